"""What attacks and adversarial training may change, and by how much: rows within a ball, images by a few steps of each pixel.

b query or row of a batch   d its dimension   size side of an image in pixels
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Generator, Tensor

from ..errors import ConfigError, DataError
from ..modality import Modality

PIXELS = 255.0


class Space(ABC):
    """A ball around each query x (b, ...). eps: its size as users give it."""

    largest: float  # eps beyond it means nothing
    unit: str

    def check(self, x: Tensor) -> None:  # noqa: B027  rows may hold anything finite
        """Raise DataError where x are no queries of this space."""

    @abstractmethod
    def start(self, x: Tensor, eps: float, generator: Generator | None) -> Tensor:
        """A random point of the ball, evenly; without a generator drawn from torch's own state on the CPU."""

    @abstractmethod
    def signs(self, x: Tensor, eps: float, generator: Generator) -> Tensor:
        """The control: random signs, at the border of the ball."""

    @abstractmethod
    def moved(self, q: Tensor, gradient: Tensor, x: Tensor, eps: float, step: float) -> Tensor:
        """q (b, ...) one step up the gradient, back inside the ball; step: a share of eps."""

    def finished(self, q: Tensor, x: Tensor, eps: float) -> Tensor:
        """q as it can be given to a search."""
        return q

    @abstractmethod
    def change(self, q: Tensor, x: Tensor) -> float:
        """The largest change of any query, in the unit of eps."""


class RowBall(Space):
    """Rows x (b, d): || q - x || <= eps ||x||, eps a share of the norm."""

    largest, unit = 1.0, "of the norm"

    def _radius(self, x: Tensor, eps: float) -> Tensor:
        norm: Tensor = x.norm(dim=1, keepdim=True)
        return eps * norm

    def start(self, x: Tensor, eps: float, generator: Generator | None) -> Tensor:
        direction = unit(_normal(x, generator))
        # In d dimensions the share of the ball within radius r is r^d.
        share = torch.rand(len(x), 1, generator=generator).to(x) ** (1 / x.shape[1])
        return x + self._radius(x, eps) * share * direction

    def signs(self, x: Tensor, eps: float, generator: Generator) -> Tensor:
        return x + self._radius(x, eps) * unit(_signs(x, generator))

    def moved(self, q: Tensor, gradient: Tensor, x: Tensor, eps: float, step: float) -> Tensor:
        radius = self._radius(x, eps)
        delta = q + step * radius * unit(gradient) - x
        return x + within(delta, radius)

    def change(self, q: Tensor, x: Tensor) -> float:
        return float(((q - x).norm(dim=1) / x.norm(dim=1).clamp_min(1e-30)).max())


class PixelBox(Space):
    """Images x (b, 3, size, size) of pixels from 0 to 255: |q - x| <= eps, and q from 0 to 255 again."""

    largest, unit = PIXELS, "of 255"

    def check(self, x: Tensor) -> None:
        outside = ((x < 0) | (x > PIXELS)).flatten(1).any(1)
        if outside.any():
            raise DataError(f"image {int(outside.nonzero()[0, 0]):,} has pixels outside of 0 to 255")

    def _inside(self, q: Tensor, x: Tensor, eps: float) -> Tensor:
        return torch.minimum(torch.maximum(q, x - eps), x + eps).clamp(0, PIXELS)

    def start(self, x: Tensor, eps: float, generator: Generator | None) -> Tensor:
        away: Tensor = 2 * torch.rand(x.shape, generator=generator).to(x) - 1
        return self._inside(x + eps * away, x, eps)

    def signs(self, x: Tensor, eps: float, generator: Generator) -> Tensor:
        return self._inside(x + eps * _signs(x, generator), x, eps)

    def moved(self, q: Tensor, gradient: Tensor, x: Tensor, eps: float, step: float) -> Tensor:
        return self._inside(q + step * eps * gradient.sign(), x, eps)

    def finished(self, q: Tensor, x: Tensor, eps: float) -> Tensor:
        """Whole numbers, as files of images hold them."""
        most = float(int(eps))
        return (x + (q - x).round().clamp(-most, most)).clamp(0, PIXELS)

    def change(self, q: Tensor, x: Tensor) -> float:
        return float((q - x).abs().max())


REGISTRY: dict[str, type[Space]] = {"rows": RowBall, "images": PixelBox}  # by the names of modalities


def space_of(modality: Modality) -> Space:
    """Where items of that modality can be moved. Raises ConfigError where nobody has said how."""
    if modality.name not in REGISTRY:
        raise ConfigError(f"{modality.items} cannot be attacked: needs {' or '.join(REGISTRY)}")
    return REGISTRY[modality.name]()


def _normal(x: Tensor, generator: Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator).to(x)


def _signs(x: Tensor, generator: Generator) -> Tensor:
    return 2 * torch.randint(0, 2, x.shape, generator=generator).to(x) - 1


def unit(x: Tensor) -> Tensor:
    """Rows x (b, d) of length 1; rows of zeros stay. The squares of small gradients leave float32: their largest counts as 1."""
    x = x / x.abs().amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    norm: Tensor = x.norm(dim=1, keepdim=True)
    return x / norm.masked_fill(norm == 0, 1)


def within(delta: Tensor, radius: Tensor) -> Tensor:
    """delta (b, d) brought back to lengths of at most radius (b, 1)."""
    found: Tensor = delta * (radius / delta.norm(dim=1, keepdim=True).clamp_min(1e-30)).clamp_max(1)
    return found
