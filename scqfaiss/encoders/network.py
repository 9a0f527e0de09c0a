"""What a network says of itself by attributes, and the maps that its layers give.

b image   c channel   h, w place
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError, printable, suggestion
from .factory import one_line
from .pooling import OF_STAGES
from .weights import first_few

MAX_SIZE = 2048  # pixels of a side
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of RGB in [0, 1]
INPUT_SIZE = 224  # of networks that do not say theirs


def is_traced() -> bool:
    tracing: bool = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined,no-untyped-call]
    return tracing


def input_size(net: nn.Module) -> int:
    size = getattr(net, "input_size", INPUT_SIZE)
    return size if type(size) is int and 1 <= size <= MAX_SIZE else INPUT_SIZE


def colours(net: nn.Module) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of red, green and blue that the network was made for; ImageNet's if it does not say."""
    colours_of = []
    for name, usual in zip(("mean", "std"), IMAGENET):
        given = getattr(net, name, usual)
        try:
            values = torch.as_tensor(given, dtype=torch.float64).flatten().tolist()
        except (TypeError, ValueError, RuntimeError):
            values = []
        if len(values) != 3 or not np.isfinite(values).all() or (name == "std" and min(values) <= 0):
            raise ConfigError(
                f"the network's {name} is {printable(str(given))[:60]}, needs three numbers for red, green and blue"
            )
        colours_of.append(values)
    return colours_of[0], colours_of[1]


def layer_names(net: nn.Module, asked: str, pool: str) -> list[str]:
    """The layers asked for, or the network's own choice, each found in the network. Raises ConfigError."""
    chosen = getattr(net, "feature_layers", None) or ()
    if pool in OF_STAGES:
        chosen = getattr(net, "stage_layers", chosen)
    asked = asked or (chosen if isinstance(chosen, str) else ",".join(map(str, chosen)))
    names = [name.strip() for name in asked.split(",")] if asked else []
    known = [name for name, _ in net.named_modules() if name]
    for i, name in enumerate(names):
        if name not in known:
            near = suggestion(name, known) or f"; it begins with {first_few(known)}" if known else ""
            raise ConfigError(f"the network has no layer '{printable(name)}'{near}")
        if name in names[:i]:
            raise ConfigError(f"layer {name} is named twice")
    return names


class _Reached(Exception):
    """All layers that were asked for have run: the rest of the network need not."""


def maps_of(net: nn.Module, x: Tensor, names: list[str], factory: str, to_the_end: bool = False) -> list[Tensor]:
    """Outputs of the named layers for x (b, 3, h, w), or of the network where none is named; each (b, c) or (b, c, h, w).

    to_the_end: run what comes after the last of these layers too. Raises ConfigError where a layer does not run, or gives
    something else.
    """
    outputs: dict[str, Any] = {}
    to_the_end = to_the_end or is_traced()

    def keep(name: str, out: Any) -> None:
        if name in outputs:  # a layer that runs more than once counts with its first output
            return
        last = len(outputs) == len(names) - 1
        # What comes after may overwrite it (ReLU in place), unless nothing comes after.
        outputs[name] = out.clone() if isinstance(out, Tensor) and (to_the_end or not last) else out
        if last and not to_the_end:
            raise _Reached

    hooks = [
        net.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: keep(name, out)) for name in names
    ]
    try:
        whole = _run(net, x, factory)
        if not names:
            outputs["the network"] = whole
    except _Reached:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return [_checked(outputs, name, factory) for name in names or ["the network"]]


def _run(net: nn.Module, x: Tensor, factory: str) -> Any:
    try:
        return net(x)
    except ValueError as error:  # batch normalisation of a single value, as a rule
        raise ConfigError(
            f"network {factory} refuses {len(x)} images: {one_line(error)}; change --batch-size or --accumulate"
        ) from error


def _checked(outputs: dict[str, Any], name: str, factory: str) -> Tensor:
    """The output of that name. Raises ConfigError where it is lacking or is no map and no vector."""
    if name not in outputs:
        raise ConfigError(f"network {factory}: layer {name} does not run; name others with --set layers=...")
    out = outputs[name]
    if isinstance(out, Tensor) and out.ndim in (2, 4) and out.is_floating_point():
        return out
    kind = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    raise ConfigError(
        f"network {factory}: {name} gives {kind}, needs (b, c) or (b, c, h, w); name layers that do with --set layers=..."
    )
