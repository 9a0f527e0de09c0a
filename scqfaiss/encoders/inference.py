"""A network for pictures put to use outside a training: from a model or from its factory, on a device, in a precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from .. import distributed
from ..contract import configure
from ..errors import ConfigError, suggestion, warn
from . import backbone as backbones
from .backbone import Backbone
from .base import FrontEncoder

if TYPE_CHECKING:
    from ..files import PathLike

E = TypeVar("E", bound=FrontEncoder)
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


def of_factory(
    name: str, arguments: Mapping[str, str], weights: PathLike | None, settings: Mapping[str, Any]
) -> tuple[Backbone, str]:
    """(the network of that name, SHA-256 of its weights file or ''), on the CPU.

    Raises ConfigError on unknown names and settings and on weights that do not fit, CheckpointError on unsound ones.
    """
    config = configure(backbones.Settings, settings)
    net = backbones.network(name, arguments)
    if weights is None:
        warn(f"{name} has random weights; --weights FILE gives it trained ones")
    sha256 = "" if weights is None else backbones.load_weights(net, weights)
    return Backbone(config, net, name, arguments), sha256


def ready(network: E, device: str, precision: str) -> E:
    """The network on a device, in evaluation mode. Raises ConfigError where there is no such device or precision."""
    if precision not in PRECISIONS:
        near = suggestion(str(precision), PRECISIONS)
        raise ConfigError(f"encoder precision is '{precision}', needs one of {', '.join(PRECISIONS)}{near}")
    distributed.one_thread_after_fork()
    network = network.to(device_of(device)).eval()
    network.precision = PRECISIONS[precision]
    return network


def device_of(name: str) -> str:
    """'auto', 'cpu', 'cuda' or 'cuda:N' -> a device torch has. Raises ConfigError."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, colon, number = str(name).partition(":")
    if name != "cpu" and (kind != "cuda" or (colon and not number.isdigit())):
        raise ConfigError(f"encoder device is '{name}', needs auto, cpu, cuda or cuda:N")
    if name != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"encoder device is '{name}', torch {torch.__version__} sees no GPU here; use cpu")
    if number and int(number) >= torch.cuda.device_count():
        raise ConfigError(f"encoder device is '{name}', torch sees {torch.cuda.device_count()} of them")
    return name


def versions(network: FrontEncoder) -> dict[str, str]:
    """What else decides how features are rounded."""
    device = next((t.device for t in (*network.buffers(), *network.parameters())), torch.device("cpu"))
    return {"torch": torch.__version__, "device": device.type}
