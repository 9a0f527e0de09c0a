"""Other views of an image for training: mirrored, moved, zoomed, in other colours, with noise, with a patch covered.

Random numbers come first, in one table with a row an image; what is done to an image follows from its row alone. So the
processes of a training, each with its share of a batch, can draw the table for the whole batch and see, together, just the
views that one process sees.

b image   S side in pixels   u column of the table
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

GREY = (0.299, 0.587, 0.114)  # luma of RGB, ITU-R BT.601


@dataclass(frozen=True)
class Strengths:
    """How far a view may be from its image; 0 leaves that kind of change out, bit for bit."""

    flip: float = 0.0  # probability of being mirrored, left to right
    shift: float = 0.0  # largest way in x and y, as a share of the side; what comes in is a reflection
    zoom: float = 0.0  # the window has 1 - zoom to 1 + zoom times the image's side
    brightness: float = 0.0  # colours times 1 - brightness to 1 + brightness
    contrast: float = 0.0  # the same of their distance from the image's mean grey
    saturation: float = 0.0  # the same of their distance from each pixel's grey
    noise: float = 0.0  # standard deviation of normal noise, where black is 0 and white 1
    erase: float = 0.0  # probability that a patch is covered

    @property
    def any(self) -> bool:
        """False where a view is the image itself."""
        return any(vars(self).values())


# 'paper' is what SCQ's released code does: windows of 0.7 to 1.3, and a shift that brings the smallest just to the border.
PRESETS = {
    "none": Strengths(),
    "light": Strengths(flip=0.5, shift=0.1, zoom=0.15),
    "paper": Strengths(flip=0.5, shift=0.15, zoom=0.3, brightness=0.3, saturation=0.1, noise=0.01),
    "auto": Strengths(flip=0.5, shift=0.1, zoom=0.15, brightness=0.3, saturation=0.1),
}

# Columns of the table of random numbers.
_FLIP, _X, _Y, _ZOOM, _BRIGHTNESS, _CONTRAST, _SATURATION, _ERASE, _AREA, _ASPECT, _LEFT, _TOP, _NOISE = range(13)
COLUMNS = 13
# Share of the image that a patch covers, and its shape, of Zhong, Zheng, Kang, Li, Yang, "Random Erasing Data
# Augmentation", AAAI 2020, table 2.
ERASE_AREA, ERASE_ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)


def strengths(preset: str, knobs: Mapping[str, float]) -> Strengths:
    """A preset, those of its strengths replaced that `knobs` gives by name; negative ones count as not given."""
    names = {f.name for f in fields(Strengths)}
    return replace(PRESETS[preset], **{name: value for name, value in knobs.items() if name in names and value >= 0})


def table(n: int, generator: Generator) -> Tensor:
    """Random numbers (n, COLUMNS) float64 in [0, 1) for n images. Of a larger n, the first rows are the same."""
    return torch.rand(n, COLUMNS, generator=generator, dtype=torch.float64)


def views(x: Tensor, numbers: Tensor, s: Strengths, fill: Tensor) -> Tensor:
    """x (b, 3, S, S) float32 in [0, 1] -> as much, on x's device, without gradient.

    numbers: (b, COLUMNS) float64 on the CPU, rows of table(). fill: (3,), the colour of patches that are covered.
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        u = numbers.to(torch.float32).to(x.device)
        x = _placed(x, u, s)
        coloured = _coloured(x, u, s)
        if s.noise:
            coloured = coloured + s.noise * _noise(x.shape, numbers[:, _NOISE]).to(x.device)
        if coloured is not x:
            x = coloured.clamp_(0, 1)
        return _covered(x, u, s, fill.to(x.device)) if s.erase else x


def _placed(x: Tensor, u: Tensor, s: Strengths) -> Tensor:
    """Mirrored, moved and zoomed by one sampling, bilinear and with reflection beyond the border."""
    mirrored = u[:, _FLIP] < s.flip
    if not s.shift and not s.zoom:  # pixels stay what they are
        return torch.where(mirrored[:, None, None, None], x.flip(3), x) if s.flip else x
    side = 1 + s.zoom * (2 * u[:, _ZOOM, None] - 1)
    # Where a column and a row of the view, in [-1, 1], lie in the image: a shift by the whole side is 2. Not by affine_grid,
    # whose matrix product has three digits where the products of a training are bfloat16.
    columns, rows = ((torch.arange(n, device=x.device) * 2 + 1) / n - 1 for n in (x.shape[3], x.shape[2]))
    across = torch.where(mirrored[:, None], -side, side) * columns + 2 * s.shift * (2 * u[:, _X, None] - 1)  # b S
    down = side * rows + 2 * s.shift * (2 * u[:, _Y, None] - 1)  # b S
    grid = torch.stack(torch.broadcast_tensors(across[:, None, :], down[:, :, None]), 3)  # b S S 2
    out: Tensor = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return out


def _coloured(x: Tensor, u: Tensor, s: Strengths) -> Tensor:
    """Brightness, contrast and saturation, in this order; x itself where all are 0."""

    def factor(column: int, strength: float) -> Tensor:
        return (1 + strength * (2 * u[:, column] - 1))[:, None, None, None]

    if s.brightness:
        x = x * factor(_BRIGHTNESS, s.brightness)
    if s.contrast:
        mean = _grey(x).mean((2, 3), keepdim=True)
        x = torch.lerp(mean, x, factor(_CONTRAST, s.contrast))
    if s.saturation:
        x = torch.lerp(_grey(x), x, factor(_SATURATION, s.saturation))
    return x


def _grey(x: Tensor) -> Tensor:
    """(b, 3, S, S) -> (b, 1, S, S)."""
    return GREY[0] * x[:, :1] + GREY[1] * x[:, 1:2] + GREY[2] * x[:, 2:]


def _noise(shape: torch.Size, numbers: Tensor) -> Tensor:
    """Standard normal numbers; those of an image come from a generator of its own, so that nobody draws others' noise."""
    out = torch.empty(shape)
    for one, number in zip(out, numbers.tolist()):
        torch.randn(one.shape, generator=Generator().manual_seed(int(number * 2**53)), out=one)
    return out


def _covered(x: Tensor, u: Tensor, s: Strengths, fill: Tensor) -> Tensor:
    """A patch of random size, shape and place in some images gets the colour `fill` (random erasing)."""
    area = ERASE_AREA[0] + (ERASE_AREA[1] - ERASE_AREA[0]) * u[:, _AREA]
    low, high = math.log(ERASE_ASPECT[0]), math.log(ERASE_ASPECT[1])
    aspect = (low + (high - low) * u[:, _ASPECT]).exp()

    def inside(length: Tensor, at: Tensor, n: int) -> Tensor:
        length = length.clamp(max=1)
        start = at * (1 - length)
        middle = (torch.arange(n, device=x.device) + 0.5) / n  # of the pixels
        return (middle >= start[:, None]) & (middle < (start + length)[:, None])  # b S

    rows = inside((area * aspect).sqrt(), u[:, _TOP], x.shape[2]) & (u[:, _ERASE] < s.erase)[:, None]
    columns = inside((area / aspect).sqrt(), u[:, _LEFT], x.shape[3])
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], fill[:, None, None], x)
