"""A network for images as an encoder: images in, one vector of pooled features an image out.

The network is any torch module that a factory makes, given as 'package.module:factory': what it returns, or the output of
submodules that are named, is pooled over places. Its weights and all that the forward pass needs are kept as plain tensors
and JSON (`record.py`); the code of the network is not, so a model file can only name the factory, and whoever opens the file
must have named it too (`load`).

b image   S its side in pixels   s map (a layer's output)   c channel   h, w place
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from .. import distributed
from ..contract import seed_of, setting
from ..errors import ConfigError, ScqError, warn
from ..files import PathLike
from ..modality import IMAGES
from . import augment
from .base import FrontEncoder
from .factory import factory_name, network, one_line
from .network import MAX_SIZE, colours, input_size, is_traced, layer_names, maps_of
from .norms import joined
from .pooling import OF_STAGES, POOLS, check_maps, pooled, width_of
from .weights import load_weights

CHUNK = 64  # images that go through the network together where no gradient is wanted
FITS = ("crop", "squash", "pad")


@dataclass(frozen=True)
class Settings:
    size: int = setting(0, low=0, high=MAX_SIZE)  # pixels of a side; 0: the network's own, else 224
    fit: str = setting("crop", choices=FITS)  # how an image becomes square
    # Submodules whose output is pooled, with commas between; none: the network's choice, else its output.
    layers: str = ""
    pool: str = setting("average", choices=POOLS)  # over places: pooling.py
    augment: str = setting("auto", choices=tuple(augment.PRESETS))  # the views of training; single strengths below
    flip: float = setting(-1.0, low=-1, high=1)  # negative, here and below: that of the preset
    shift: float = setting(-1.0, low=-1, high=0.5)
    zoom: float = setting(-1.0, low=-1, high=0.9)
    brightness: float = setting(-1.0, low=-1, high=1)
    saturation: float = setting(-1.0, low=-1, high=1)
    contrast: float = setting(-1.0, low=-1, high=1)
    noise: float = setting(-1.0, low=-1, high=1)
    erase: float = setting(-1.0, low=-1, high=1)
    backbone_lr: float = setting(0.1, low=0, high=1000)  # the network's rate, times the method's; 0: it does not learn
    backbone_decay: float = setting(0.05, low=0, high=1000)  # its weight decay, of all but biases and norms
    frozen_epochs: int = setting(0, low=0)  # first epochs in which only what follows it learns
    dropout: float = setting(0.2, low=0, high=0.95)  # of pooled features, in training
    mirror: bool = False  # features, after training, are the mean over an image and its mirror image: twice the time
    channels_last: bool = True  # the layout of memory in which CPUs and GPUs convolve fastest


@dataclass(frozen=True)
class _Drawn:
    """What one forward pass draws: rows of random numbers for the joint batch of all processes, of which we see our share."""

    seed: int
    rows: int
    share: slice

    def generator(self, purpose: int) -> Generator:
        """A generator of its own for everything that is drawn."""
        return Generator().manual_seed(seed_of(self.seed, purpose))


class Backbone(FrontEncoder):
    """Images x (b, 3, size, size) uint8, RGB -> g (1, b, width) float32: pooled maps of the network, one after the other.

    How places are pooled: `pooling.pooled`, by the setting `pool`.

    In training mode, with or without gradients, it sees random views of the images and drops some of g; images given as
    float32, from 0 to 255, are views already (`seen`). The network itself
    is in training mode in steps that train it alone: what an image's features are does not depend on the others beside it.

    net: made by `factory.network`, its weights loaded. It may say by attributes what it takes: input_size (pixels), mean and
    std (of RGB in [0, 1]), feature_layers (names). Its output is (b, c) or (b, c, h, w). seed: of views and dropout.
    Raises ConfigError where settings and network do not fit.
    """

    Config = Settings
    modality = IMAGES
    config: Settings
    mean: Tensor
    std: Tensor
    draws: Tensor

    def __init__(
        self, config: Settings, net: nn.Module, factory: str, arguments: Mapping[str, str], seed: int = 0
    ) -> None:
        nn.Module.__init__(self)  # there are no statistics of rows
        self.config, self.members, self.seed = config, 1, seed
        self.factory, self.arguments = factory_name(factory), {str(k): str(v) for k, v in arguments.items()}
        self.size, self.fit = config.size or input_size(net), config.fit
        self.channels, self.deviations = colours(net)
        self.names = layer_names(net, config.layers, config.pool)
        # Set while it is exported: the forward pass then runs to its end, and takes its images in one piece.
        self.whole = False
        self.strengths = augment.strengths(config.augment, vars(config))
        self.frozen = config.backbone_lr == 0
        self.net = joined(net.float())
        if config.channels_last:
            self.net = self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._learns = frozenset(name for name, p in net.named_parameters() if p.requires_grad)
        if self.frozen:
            self.net.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(self.channels)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(self.deviations)[:, None, None], persistent=False)
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))  # forward passes in training so far
        maps = self._tried()
        self.stages = sum(t.ndim == 4 for t in maps)  # maps, where a place is more than the whole image
        check_maps(maps, config.pool, self.factory)
        self.width = self.d_in = width_of(maps, config.pool)
        if config.pool == "hybrid":
            self.t = nn.Parameter(torch.zeros(len(maps)))

    @classmethod
    def build(
        cls, config: Settings, name: str, arguments: Mapping[str, str], weights: PathLike | None = None, seed: int = 0
    ) -> Backbone:
        net = network(name, arguments, seed)
        if weights is not None:
            load_weights(net, weights)
        else:
            warn(f"{name} starts from random weights; --weights FILE starts from trained ones")
        encoder = cls(config, net, name, arguments, seed)
        if config.pool in OF_STAGES and encoder.stages < 2:
            warn(
                f"pool={config.pool} is for feature maps of several stages, the network gives one; name them: layers=a,b"
            )
        return encoder

    @classmethod
    def load(
        cls, tensors: Mapping[str, NDArray[Any]], record: Mapping[str, Any], trusted: str | None = None
    ) -> Backbone:
        from .record import from_record

        return from_record(tensors, record, trusted=trusted)

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or self.whole or is_traced() or len(x) <= CHUNK:
            return self._one(x)
        return torch.cat([self._one(part) for part in x.split(CHUNK)], 1)

    def _one(self, x: Tensor) -> Tensor:
        # Reduced precision is for training, and then for what the codebooks learn from too; rows are encoded in float32.
        if self.precision is None or not self.training:
            out: Tensor = nn.Module.__call__(self, x)
            return out
        with torch.autocast(self.mean.device.type, self.precision):
            out = nn.Module.__call__(self, x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] != self.size or x.shape[3] != self.size:
            raise ConfigError(f"images are {tuple(x.shape)}, the network needs (b, 3, {self.size}, {self.size})")
        drawn = self._drawn(len(x)) if self.training else None
        x = self._unit_range(x, None if x.is_floating_point() else drawn)
        x = (x - self.mean) / self.std
        if self.config.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        learning = self.training and torch.is_grad_enabled() and not self.frozen
        if self.net.training != learning:
            self.net.train(learning)
        with nullcontext() if learning or not self.training or x.requires_grad else torch.no_grad():
            maps = [self._maps(x)]
            if self.config.mirror and not self.training:
                maps.append(self._maps(x.flip(3)))
        views = [self._pooled(m) for m in maps]
        g = views[0] if len(views) == 1 else (views[0] + views[1]) / 2
        if drawn is not None and self.config.dropout:
            g = self._dropped(g, drawn)
        return g[None]

    def seen(self, x: Tensor) -> Tensor:
        """Images x (b, 3, size, size) uint8 -> random views of them, float32 from 0 to 255, without gradient."""
        return self._unit_range(x, self._drawn(len(x))) * 255

    def _unit_range(self, x: Tensor, drawn: _Drawn | None) -> Tensor:
        """Images x of pixels from 0 to 255 -> on the network's device, from 0 to 1; views of them where some are drawn."""
        x = x.to(self.mean.device).to(torch.float32) / 255
        if drawn is None or not self.strengths.any:
            return x
        numbers = augment.table(drawn.rows, drawn.generator(0))[drawn.share]
        return augment.views(x, numbers, self.strengths, self.mean.flatten())

    def standardise(self, mean: list[float], std: list[float]) -> None:
        """Take these mean and standard deviation of red, green and blue instead of the network's own."""
        self.channels, self.deviations = list(mean), list(std)
        self.mean.copy_(torch.tensor(mean)[:, None, None])
        self.std.copy_(torch.tensor(std)[:, None, None])

    # ------------------------------------------------------------------------------------------------------ randomness
    def _drawn(self, b: int) -> _Drawn:
        """What this forward pass of b images draws from, no other one does."""
        seed = seed_of(self.seed, int(self.draws))
        self.draws += 1
        # Without gradients every process encodes what it likes; the steps of training share a batch.
        W, r = (distributed.world_size(), distributed.rank()) if torch.is_grad_enabled() else (1, 0)
        return _Drawn(seed, W * b, slice(r * b, (r + 1) * b))

    def _dropped(self, g: Tensor, drawn: _Drawn) -> Tensor:
        """Dropout by a byte an element, as in dropout.Dropout."""
        out_of_256: int = round(256 * self.config.dropout)
        size, generator = (drawn.rows, self.width), drawn.generator(1)
        kept = torch.randint(256, size, generator=generator, dtype=torch.uint8)[drawn.share].to(g.device) >= out_of_256
        return g * kept.to(g.dtype).mul_(256 / (256 - out_of_256))

    # -------------------------------------------------------------------------------------------------------- features
    def _maps(self, x: Tensor) -> list[Tensor]:
        return maps_of(self.net, x, self.names, self.factory, self.whole)

    def _pooled(self, maps: Sequence[Tensor]) -> Tensor:
        """-> g (b, width), float32 whatever less precise the maps are."""
        with torch.autocast(self.mean.device.type, enabled=False):
            maps = [m.to(torch.promote_types(m.dtype, torch.float32)) for m in maps]
            return pooled(maps, self.config.pool, getattr(self, "t", None))

    def _tried(self) -> list[Tensor]:
        """The maps of one black image, by which widths are known. Raises ConfigError where the network cannot take it."""
        training = self.net.training
        self.net.eval()
        x = (torch.zeros(1, 3, self.size, self.size) - self.mean) / self.std
        try:
            with torch.no_grad():
                return self._maps(x)
        except ScqError:
            raise
        except Exception as error:
            raise ConfigError(
                f"network {self.factory} cannot take images of {self.size} x {self.size}: {one_line(error)}"
            ) from error
        finally:
            self.net.train(training)

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """images (b, 3, size, size) uint8 -> g (b, width) float32, as after the training; precision, if set, is used."""
        if images.dtype != np.uint8:
            raise ConfigError(f"images are {images.dtype}, the network needs uint8")
        out = np.empty((len(images), self.width), np.float32)
        training, device = self.training, self.mean.device.type
        self.eval()
        try:
            with torch.no_grad(), torch.autocast(device, self.precision) if self.precision else nullcontext():
                for i in range(0, len(images), CHUNK):
                    x = torch.tensor(images[i : i + CHUNK])  # a copy: the caller's may be read-only
                    out[i : i + CHUNK] = self.forward(x)[0].cpu().numpy()
        finally:
            self.train(training)
        return out

    # -------------------------------------------------------------------------------------------------------- training
    def groups(self, lr: float, decay: float) -> list[dict[str, Any]]:
        """Parameters for an optimiser: the network's by rates of their own, frozen for now or not, without decay of vectors."""
        named = [(name, p) for name, p in self.net.named_parameters() if name in self._learns]
        rate, c = lr * self.config.backbone_lr, self.config
        groups = []
        if c.backbone_lr:
            groups = [
                {"params": [p for _, p in named if p.ndim > 1], "lr": rate, "weight_decay": c.backbone_decay},
                {"params": [p for _, p in named if p.ndim <= 1], "lr": rate, "weight_decay": 0.0},
            ]
        if c.pool == "hybrid":
            groups.append({"params": [self.t], "lr": lr, "weight_decay": 0.0})
        return [group for group in groups if group["params"]]

    def on_epoch(self, epoch: int) -> None:
        """Keep the network as it is in the first `frozen_epochs` epochs, from 0."""
        self.frozen = self.config.backbone_lr == 0 or epoch < self.config.frozen_epochs
        for name, p in self.net.named_parameters():
            if name in self._learns:
                p.requires_grad_(not self.frozen)

    # ---------------------------------------------------------------------------------------------------------- record
    def record(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """(tensors by name, plain JSON values): all that from_record needs, but for the factory's code."""
        from .record import to_record

        return to_record(self)

    def facts(self) -> dict[str, Any]:
        return {
            "encoder": self.factory,
            "encoder_args": json.dumps(dict(self.arguments), sort_keys=True),
            "size": self.size,
            "fit": self.fit,
            "layers": ",".join(self.names),
            "pool": self.config.pool,
        }
