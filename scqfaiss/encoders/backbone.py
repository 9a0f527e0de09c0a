"""A network for pictures as an encoder: pictures in, one vector of pooled features a picture out.

The network is any torch module that a factory makes, given as 'package.module:factory': what it returns, or the output of
submodules that are named, is pooled over places. Its weights and all that the forward pass needs are kept as plain tensors
and JSON (`record`); the code of the network is not, so a model file can only name the factory, and whoever opens the file
must have named it too (`from_record`).

b picture   S its side in pixels   s map (a layer's output)   c channel   h, w place
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from .. import distributed
from ..bundle import read_tensors
from ..contract import seed_of, setting
from ..errors import CheckpointError, ConfigError, ScqError, shown, suggestion, warn
from ..files import PathLike, open_regular
from ..modality import IMAGES
from . import BACKBONES, augment
from .base import FrontEncoder
from .norms import joined

CHUNK = 64  # pictures that go through the network together where no gradient is wanted
MAX_SIZE = 2048  # pixels of a side
FITS = ("crop", "squash", "pad")
POOLS = ("average", "hybrid")
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of RGB in [0, 1]
INPUT_SIZE = 224  # of networks that do not say theirs
PICKLES = (".pth", ".pt", ".bin", ".ckpt")  # files of weights that torch writes


@dataclass(frozen=True)
class Settings:
    size: int = setting(0, low=0, high=MAX_SIZE)  # pixels of a side; 0: the network's own, else 224
    fit: str = setting("crop", choices=FITS)  # how a picture becomes square
    layers: str = (
        ""  # submodules whose output is pooled, with commas between; none: the network's choice, else its output
    )
    pool: str = setting("average", choices=POOLS)  # over places; hybrid: a learned mean of average and maximum
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
    mirror: bool = False  # features, after training, are the mean over a picture and its mirror image: twice the time
    channels_last: bool = True  # the layout of memory in which CPUs and GPUs convolve fastest


# ---------------------------------------------------------------------------------------------------------- the network
def factory_name(name: str) -> str:
    """A short name of BACKBONES or 'package.module:factory' -> the latter. Raises ConfigError for anything else."""
    full = BACKBONES.get(name, name)
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", full):
        near = suggestion(name, BACKBONES)
        raise ConfigError(
            f"network '{shown(name)}' is neither {' nor '.join(BACKBONES)} nor package.module:factory{near}"
        )
    return full


def network(factory: str, arguments: Mapping[str, str], seed: int = 0) -> nn.Module:
    """The network that `factory` ('package.module:factory', or a short name of BACKBONES) makes of `arguments`.

    Arguments are texts, turned into what the factory's signature asks for. seed: of the initial weights; torch's own random
    state is left as it was. Raises ConfigError where the factory is missing, takes no such argument, or fails.
    """
    name = factory_name(factory)
    module, _, attribute = name.partition(":")
    try:
        with _seeded(seed):
            found = getattr(import_module(module), attribute)
            if not callable(found):
                raise TypeError(f"{attribute} is {type(found).__name__}, needs a function or class")
            net = found(**_converted(found, arguments, name))
    except ScqError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"network {name}: {_reason(error)}") from error
    if not isinstance(net, nn.Module):
        raise ConfigError(f"network {name}: the factory gives {type(net).__name__}, needs a torch.nn.Module")
    return net


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's CPU generator started from `seed` within, and as it was after."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def _reason(error: BaseException) -> str:
    """The error in one line."""
    first = next(iter(str(error).splitlines()), "")
    return shown(f"{type(error).__name__}: {first}" if first else type(error).__name__)


def _converted(factory: Any, arguments: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        parameters = dict(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # made in C: nothing is known of it
        return {key: _guessed(value) for key, value in arguments.items()}
    try:
        hints = typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    except Exception:  # names that exist for type checkers alone
        hints = {}
    takes = [key for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    anything = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    out = {}
    for key, value in arguments.items():
        if key not in takes and not anything:
            what = f"it takes {', '.join(takes)}" if takes else "it takes none"
            raise ConfigError(f"network {name} has no argument '{shown(key)}'{suggestion(key, takes)}; {what}")
        p = parameters[key] if key in takes else None
        hint = hints.get(key, p.annotation) if p is not None else inspect.Parameter.empty
        if p is not None and hint is inspect.Parameter.empty and p.default not in (p.empty, None):
            hint = type(p.default)
        out[key] = _of_type(value, hint, f"network {name}: {key}")
    return out


_TRUTHS = {"true": True, "false": False, "on": True, "off": False, "1": True, "0": False}
# Narrow types before those that take their texts too.
_NEEDS = {bool: "true or false", int: "a whole number", float: "a number"}


def _of_type(text: str, hint: Any, what: str) -> Any:
    """`text` as a bool, int, float, str or None, whichever `hint` allows; guessed without a hint, a text for any other."""
    if hint in (inspect.Parameter.empty, Any) or isinstance(hint, str):
        return _guessed(text)
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    allowed = typing.get_args(hint) if union else (hint,)
    if type(None) in allowed and text.lower() == "none":
        return None
    kinds = [kind for kind in _NEEDS if kind in allowed]
    for kind in kinds:
        try:
            return _TRUTHS[text.lower()] if kind is bool else kind(text)
        except (ValueError, KeyError):
            pass
    if kinds and set(allowed) <= {*_NEEDS, type(None)}:
        raise ConfigError(f"{what} is '{shown(text)}', needs {' or '.join(_NEEDS[kind] for kind in kinds)}")
    return text


def _guessed(text: str) -> Any:
    """A number, a truth value or None where the text reads like one, else the text."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


# ---------------------------------------------------------------------------------------------------------- its weights
def load_weights(net: nn.Module, path: PathLike) -> str:
    """Put the weights of a file into `net` -> SHA-256 (hex) of the file.

    path: .safetensors, or a torch file (.pth, .pt, .bin, .ckpt) of tensors alone, whose pickled code is never run. Weights
    that the network lacks, such as those of a classifier, are left out with a notice. Raises ConfigError where the network has
    weights that the file lacks, or of another shape; CheckpointError where the file is unsound.
    """
    name = shown(path)
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".safetensors":
        arrays, sha = read_tensors(path)
        # The arrays may be views of the file's bytes, which torch must not write to.
        found = {key: torch.tensor(a) for key, a in arrays.items()}
    elif suffix in PICKLES:
        found, sha = _pickled(path)
        warn(f"{name}: a pickle, of which only tensors were read; .safetensors cannot hold anything else and is safer")
    else:
        raise ConfigError(f"{name}: files of weights end in .safetensors, or {', '.join(PICKLES)}")
    own = _state(net)
    if found and all(key.startswith("module.") for key in found) and not any(key.startswith("module.") for key in own):
        found = {key.removeprefix("module."): t for key, t in found.items()}  # as nn.DataParallel writes them
    _fit(net, found, name, ConfigError)
    _put(net, found)
    unused = sorted(set(found) - set(own))
    if unused:
        warn(f"{name}: {len(unused)} tensors have no place in the network and are left out: {_few(unused)}")
    return sha


def _pickled(path: PathLike) -> tuple[dict[str, Tensor], str]:
    name = shown(path)
    with open_regular(path, CheckpointError) as f:
        data = f.read()
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the bytes make of the reader
        raise CheckpointError(
            f"{name}: not a plain state dict of torch ({type(error).__name__}); only tensors are read, and no code is run"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{name}: holds {type(found).__name__}, needs a state dict: tensors by name")
    for key, t in found.items():
        if not isinstance(key, str) or not isinstance(t, Tensor) or t.layout != torch.strided or t.device.type != "cpu":
            raise CheckpointError(f"{name}: '{shown(str(key))}' is {type(t).__name__}, needs plain tensors by name")
    return dict(found), hashlib.sha256(data).hexdigest()


def _state(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name. Raises ConfigError where the network keeps anything else."""
    state = net.state_dict()
    for key, t in state.items():
        if not isinstance(t, Tensor):
            raise ConfigError(f"the network's state holds {key}, {type(t).__name__}; needs tensors alone")
    return state


def _fit(net: nn.Module, found: Mapping[str, Tensor], where: str, error: type[ScqError]) -> None:
    """Raise `error` where a tensor of the network is lacking or is of another kind, CheckpointError where one is not finite."""
    own = _state(net)
    # Counters of batches came to torch's norms late, and nothing but momentum=None looks at them.
    missing = [key for key in own if key not in found and not key.endswith("num_batches_tracked")]
    if missing:
        raise error(f"{where}: lacks {len(missing)} of the network's {len(own)} tensors: {_few(missing)}")
    for key, t in own.items():
        if key in found and found[key].shape != t.shape and (found[key].shape, t.shape) != ((1,), ()):
            raise error(f"{where}: {key} is {tuple(found[key].shape)}, the network needs {tuple(t.shape)}")
        if key in found and found[key].is_complex() != t.is_complex():
            raise error(f"{where}: {key} is {found[key].dtype}, the network needs {t.dtype}")
        if key in found and found[key].is_floating_point() and not found[key].isfinite().all():
            raise CheckpointError(f"{where}: {key} holds NaN or infinity")


@torch.no_grad()
def _put(net: nn.Module, found: Mapping[str, Tensor]) -> None:
    """Copy tensors that fit into the network's, by name."""
    for key, t in _state(net).items():
        if key in found:
            t.copy_(found[key].view_as(t))


def _few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(map(shown, names[:most])) + (", ..." if len(names) > most else "")


# --------------------------------------------------------------------------------------------------------- the encoder
@dataclass(frozen=True)
class _Drawn:
    """What one forward pass draws: rows of random numbers for the joint batch of all processes, of which we see our share."""

    seed: int
    rows: int
    share: slice

    def generator(self, purpose: int) -> Generator:
        """A generator of its own for everything that is drawn."""
        return Generator().manual_seed(seed_of(self.seed, purpose))


class _Reached(Exception):
    """All layers that were asked for have run: the rest of the network need not."""


class Backbone(FrontEncoder):
    """Pictures x (b, 3, size, size) uint8, RGB -> g (1, b, width) float32: pooled maps of the network, one after the other.

    pool='average': the mean over places. pool='hybrid': with t_s learned, from 0,

        g_s = sigmoid(t_s) mean + (1 - sigmoid(t_s)) max over places,   g = concat of g_s / ||g_s||

    after the abstract of Zeng et al., PHPQ, Pattern Recognition Letters 178, 2024, arXiv 2109.05206; the formula is ours.

    In training mode, with or without gradients, it sees random views of the pictures and drops some of g. The network itself
    is in training mode in steps that train it alone: what a picture's features are does not depend on the others beside it.

    net: made by `network`, its weights loaded. It may say by attributes what it takes: input_size (pixels), mean and std (of
    RGB in [0, 1]), feature_layers (names). Its output is (b, c) or (b, c, h, w). seed: of views and dropout.
    Raises ConfigError where settings and network do not fit.
    """

    Config = Settings
    modality = IMAGES
    takes_pictures = True
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
        self.size, self.fit = config.size or _input_size(net), config.fit
        self.channels, self.deviations = _colours(net)
        self.names = _layer_names(net, config.layers, config.pool)
        # Traced and exported as a whole: the forward pass must not stop early, and takes its pictures in one piece.
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
        self.stages = sum(t.ndim == 4 for t in maps)  # maps, where a place is more than the whole picture
        self.width = self.d_in = sum(t.shape[1] for t in maps)
        if config.pool == "hybrid":
            if self.stages < len(maps):
                raise ConfigError(
                    f"pool=hybrid needs maps (b, c, h, w), network {self.factory} gives vectors; use average"
                )
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
        return cls(config, net, name, arguments, seed)

    @classmethod
    def load(
        cls, tensors: Mapping[str, NDArray[Any]], record: Mapping[str, Any], trusted: str | None = None
    ) -> Backbone:
        return from_record(tensors, record, trusted=trusted)

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or self.whole or _is_traced() or len(x) <= CHUNK:
            return self._one(x)
        return torch.cat([self._one(part) for part in x.split(CHUNK)], 1)

    def _one(self, x: Tensor) -> Tensor:
        # Reduced precision is for training, and then for what the books learn from too; rows are encoded in float32.
        if self.precision is None or not self.training:
            out: Tensor = nn.Module.__call__(self, x)
            return out
        with torch.autocast(self.mean.device.type, self.precision):
            out = nn.Module.__call__(self, x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] != self.size or x.shape[3] != self.size:
            raise ConfigError(f"pictures are {tuple(x.shape)}, the network needs (b, 3, {self.size}, {self.size})")
        x = x.to(self.mean.device).to(torch.float32) / 255
        drawn = self._drawn(len(x)) if self.training else None
        if drawn is not None and self.strengths.any:
            numbers = augment.table(drawn.rows, drawn.generator(0))[drawn.share]
            x = augment.views(x, numbers, self.strengths, self.mean.flatten())
        x = (x - self.mean) / self.std
        if self.config.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        learning = self.training and torch.is_grad_enabled() and not self.frozen
        if self.net.training != learning:
            self.net.train(learning)
        with nullcontext() if learning or not self.training else torch.no_grad():
            maps = [self._maps(x)]
            if self.config.mirror and not self.training:
                maps.append(self._maps(x.flip(3)))
        pooled = [self._pooled(m) for m in maps]
        g = pooled[0] if len(pooled) == 1 else (pooled[0] + pooled[1]) / 2
        if drawn is not None and self.config.dropout:
            g = self._dropped(g, drawn)
        return g[None]

    def standardise(self, mean: list[float], std: list[float]) -> None:
        """Take these mean and standard deviation of red, green and blue instead of the network's own."""
        self.channels, self.deviations = list(mean), list(std)
        self.mean.copy_(torch.tensor(mean)[:, None, None])
        self.std.copy_(torch.tensor(std)[:, None, None])

    # ------------------------------------------------------------------------------------------------------ randomness
    def _drawn(self, b: int) -> _Drawn:
        """What this forward pass of b pictures draws from, no other one does."""
        seed = seed_of(self.seed, int(self.draws))
        self.draws += 1
        # Without gradients every process encodes what it likes; the steps of training share a batch.
        W, r = (distributed.world(), distributed.rank()) if torch.is_grad_enabled() else (1, 0)
        return _Drawn(seed, W * b, slice(r * b, (r + 1) * b))

    def _dropped(self, g: Tensor, drawn: _Drawn) -> Tensor:
        """Dropout by a byte an element, as in dropout.Dropout."""
        out_of_256: int = round(256 * self.config.dropout)
        size, generator = (drawn.rows, self.width), drawn.generator(1)
        kept = torch.randint(256, size, generator=generator, dtype=torch.uint8)[drawn.share].to(g.device) >= out_of_256
        return g * kept.to(g.dtype).mul_(256 / (256 - out_of_256))

    # -------------------------------------------------------------------------------------------------------- features
    def _maps(self, x: Tensor) -> list[Tensor]:
        """Outputs of the named layers, or of the network where none is named; each (b, c) or (b, c, h, w)."""
        found: dict[str, Tensor] = {}
        if not self.names:
            found["the network"] = self._run(x)
        else:
            go_on = self.whole or _is_traced()

            def keep(name: str, out: Any) -> None:
                if name in found:  # a layer that runs more than once counts with its first output
                    return
                last = len(found) == len(self.names) - 1
                # What comes after may overwrite it (ReLU in place), unless nothing comes after.
                found[name] = out.clone() if isinstance(out, Tensor) and (go_on or not last) else out
                if last and not go_on:
                    raise _Reached

            handles = [
                self.net.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: keep(name, out))
                for name in self.names
            ]
            try:
                self._run(x)
            except _Reached:
                pass
            finally:
                for handle in handles:
                    handle.remove()
        maps = []
        for name in self.names or ["the network"]:
            if name not in found:
                raise ConfigError(
                    f"network {self.factory}: layer {name} does not run; name others with --set layers=..."
                )
            out = found[name]
            if not isinstance(out, Tensor) or out.ndim not in (2, 4) or not out.is_floating_point():
                what = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
                raise ConfigError(
                    f"network {self.factory}: {name} gives {what}, needs (b, c) or (b, c, h, w); name layers that do with "
                    "--set layers=..."
                )
            maps.append(out)
        return maps

    def _run(self, x: Tensor) -> Any:
        try:
            return self.net(x)
        except ValueError as error:  # batch normalisation of a single value, as a rule
            raise ConfigError(
                f"network {self.factory} refuses {len(x)} pictures: {_reason(error)}; change --batch-size or --accumulate"
            ) from error

    def _pooled(self, maps: Sequence[Tensor]) -> Tensor:
        """-> g (b, width), float32 whatever less precise the maps are."""
        with torch.autocast(self.mean.device.type, enabled=False):
            maps = [m.to(torch.promote_types(m.dtype, torch.float32)) for m in maps]
            if self.config.pool == "average":
                return torch.cat([m.mean((2, 3)) if m.ndim == 4 else m for m in maps], 1)
            share = self.t.sigmoid()
            parts = [share[s] * m.mean((2, 3)) + (1 - share[s]) * m.amax((2, 3)) for s, m in enumerate(maps)]
            return torch.cat([F.normalize(g, dim=1) for g in parts], 1)

    def _tried(self) -> list[Tensor]:
        """The maps of one black picture, by which widths are known. Raises ConfigError where the network cannot take it."""
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
                f"network {self.factory} cannot take pictures of {self.size} x {self.size}: {_reason(error)}"
            ) from error
        finally:
            self.net.train(training)

    def features(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """pictures (b, 3, size, size) uint8 -> g (b, width) float32, as after the training; precision, if set, is used."""
        if pictures.dtype != np.uint8:
            raise ConfigError(f"pictures are {pictures.dtype}, the network needs uint8")
        out = np.empty((len(pictures), self.width), np.float32)
        training, device = self.training, self.mean.device.type
        self.eval()
        try:
            with torch.no_grad(), torch.autocast(device, self.precision) if self.precision else nullcontext():
                for i in range(0, len(pictures), CHUNK):
                    x = torch.tensor(pictures[i : i + CHUNK])  # a copy: the caller's may be read-only
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
        state = {f"net.{name}": t for name, t in _state(self.net).items()}
        if self.config.pool == "hybrid":
            state["t"] = self.t.detach()
        # A number by itself is kept as one of a row: not every reader of arrays has arrays without dimensions.
        tensors = {
            name: (t.reshape(1) if t.ndim == 0 else t).detach().cpu().contiguous().numpy().copy()
            for name, t in state.items()
        }
        return tensors, {
            "factory": self.factory,
            "arguments": self.arguments,
            "size": self.size,
            "fit": self.fit,
            "mean": self.channels,
            "std": self.deviations,
            "layers": self.names,
            "pool": self.config.pool,
            "width": self.width,
            "mirror": self.config.mirror,
            "channels_last": self.config.channels_last,
        }

    def facts(self) -> dict[str, Any]:
        return {
            "encoder": self.factory,
            "encoder_args": json.dumps(dict(self.arguments), sort_keys=True),
            "size": self.size,
            "fit": self.fit,
            "layers": ",".join(self.names),
            "pool": self.config.pool,
        }


def _is_traced() -> bool:
    tracing: bool = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined,no-untyped-call]
    return tracing


def _input_size(net: nn.Module) -> int:
    own = getattr(net, "input_size", INPUT_SIZE)
    return own if type(own) is int and 1 <= own <= MAX_SIZE else INPUT_SIZE


def _colours(net: nn.Module) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of red, green and blue that the network was made for; ImageNet's if it does not say."""
    found = []
    for name, usual in zip(("mean", "std"), IMAGENET):
        own = getattr(net, name, usual)
        try:
            values = torch.as_tensor(own, dtype=torch.float64).flatten().tolist()
        except (TypeError, ValueError, RuntimeError):
            values = []
        if len(values) != 3 or not np.isfinite(values).all() or (name == "std" and min(values) <= 0):
            raise ConfigError(
                f"the network's {name} is {shown(str(own))[:60]}, needs three numbers for red, green and blue"
            )
        found.append(values)
    return found[0], found[1]


def _layer_names(net: nn.Module, asked: str, pool: str) -> list[str]:
    """The layers asked for, or the network's own choice, each found in the network. Raises ConfigError."""
    own = getattr(net, "feature_layers", None) or ()
    if pool == "hybrid":  # which lives on several
        own = getattr(net, "stage_layers", own)
    if pool == "hybrid":  # which lives on several
        own = getattr(net, "stage_layers", own)
    asked = asked or (own if isinstance(own, str) else ",".join(map(str, own)))
    names = [name.strip() for name in asked.split(",")] if asked else []
    known = [name for name, _ in net.named_modules() if name]
    for i, name in enumerate(names):
        if name not in known:
            near = suggestion(name, known) or f"; it begins with {_few(known)}" if known else ""
            raise ConfigError(f"the network has no layer '{shown(name)}'{near}")
        if name in names[:i]:
            raise ConfigError(f"layer {name} is named twice")
    return names


# ------------------------------------------------------------------------------------------------------------- a record
def from_record(
    tensors: Mapping[str, NDArray[Any]],
    config: Mapping[str, Any],
    device: str = "cpu",
    trusted: str | None = None,
) -> Backbone:
    """The inverse of Backbone.record, in evaluation mode on `device`.

    trusted: the factory that the user named. A record's word is enough for the factories of BACKBONES alone; any other raises
    ConfigError before anything of it is imported, unless it is the trusted one. Raises CheckpointError where tensors and
    network do not fit, or the record is no record.
    """
    values = check_record(config)
    factory = values["factory"]
    if factory not in BACKBONES.values() and (trusted is None or factory_name(trusted) != factory):
        raise ConfigError(f"the model's network is built by {factory}; name it with --encoder {factory} to allow that")
    where = f"the model's network ({factory})"
    weights = {name.removeprefix("net."): torch.tensor(a) for name, a in tensors.items() if name.startswith("net.")}
    others = {name: torch.tensor(a) for name, a in tensors.items() if not name.startswith("net.")}
    if factory in BACKBONES.values():  # before memory is taken for a network that a forged record makes huge
        with torch.device("meta"):
            _fit(network(factory, values["arguments"]), weights, where, CheckpointError)
    net = network(factory, values["arguments"])
    _fit(net, weights, where, CheckpointError)
    unknown = [*sorted(set(weights) - set(_state(net))), *sorted(set(others) - {"t"})]
    if unknown:
        raise CheckpointError(f"{where} has no place for {len(unknown)} of the tensors: {_few(unknown)}")
    _put(net, weights)
    settings = Settings(
        size=values["size"],
        fit=values["fit"],
        layers=",".join(values["layers"]),
        pool=values["pool"],
        mirror=values["mirror"],
        channels_last=values["channels_last"],
        augment="none",
        dropout=0.0,
    )
    try:
        made = Backbone(settings, net, factory, values["arguments"])
    except ConfigError as error:
        raise CheckpointError(f"{where} is another one now: {error}") from error
    if made.width != values["width"]:
        raise CheckpointError(f"{where} gives {made.width} features, the model was made with {values['width']}")
    if ("t" in others) != (settings.pool == "hybrid") or ("t" in others and others["t"].shape != made.t.shape):
        raise CheckpointError(f"{where}: tensor t does not fit pool={settings.pool}")
    made.standardise(values["mean"], values["std"])
    if "t" in others:
        with torch.no_grad():
            made.t.copy_(others["t"])
    return made.to(device).eval()


def check_record(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a record. Raises CheckpointError for any that record() could not have written."""

    def texts(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(v, str) for v in value)

    def colours(value: Any) -> bool:
        return isinstance(value, list) and len(value) == 3 and all(type(v) is float and np.isfinite(v) for v in value)

    rules: dict[str, Callable[[Any], bool]] = {
        "factory": lambda v: isinstance(v, str) and v == shown(v) and ":" in v,
        "arguments": lambda v: isinstance(v, dict) and texts(list(v.values())),
        "size": lambda v: type(v) is int and 1 <= v <= MAX_SIZE,
        "fit": lambda v: v in FITS,
        "mean": colours,
        "std": lambda v: colours(v) and min(v) > 0,
        "layers": texts,
        "pool": lambda v: v in POOLS,
        "width": lambda v: type(v) is int and v >= 1,
        "mirror": lambda v: type(v) is bool,
        "channels_last": lambda v: type(v) is bool,
    }
    for key, sound in rules.items():
        if key not in config or not sound(config[key]):
            raise CheckpointError(
                f"the model's network: {key} is {shown(repr(config.get(key)))[:80]}, which is no record"
            )
    try:
        factory_name(config["factory"])
    except ConfigError as error:
        raise CheckpointError(f"the model's network: {error}") from error
    return {key: config[key] for key in rules}
