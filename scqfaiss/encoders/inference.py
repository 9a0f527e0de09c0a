"""A network for images put to use outside a training: from a model or from its factory, on a device, in a precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from .. import distributed
from ..contract import configure
from ..devices import check_precision, torch_device, torch_dtype
from ..errors import warn
from .backbone import Backbone, Settings
from .base import FrontEncoder
from .factory import network
from .weights import load_weights

if TYPE_CHECKING:
    from ..files import PathLike

E = TypeVar("E", bound=FrontEncoder)
PRECISIONS = ("float32", "bfloat16")


def of_factory(
    name: str, arguments: Mapping[str, str], weights: PathLike | None, settings: Mapping[str, Any]
) -> tuple[Backbone, str]:
    """(the network of that name, SHA-256 of its weights file or ''), on the CPU.

    Raises ConfigError on unknown names and settings and on weights that do not fit, CheckpointError on unsound ones.
    """
    config = configure(Settings, settings)
    net = network(name, arguments)
    if weights is None:
        warn(f"{name} has random weights; --weights FILE gives it trained ones")
    sha256 = "" if weights is None else load_weights(net, weights)
    return Backbone(config, net, name, arguments), sha256


def ready(encoder: E, device: str, precision: str) -> E:
    """The network on a device, in evaluation mode. Raises ConfigError where there is no such device or precision."""
    check_precision(precision, "encoder precision", PRECISIONS)
    distributed.one_thread_after_fork()
    encoder = encoder.to(torch_device(device, "encoder device")).eval()
    encoder.precision = torch_dtype(precision)
    return encoder


def versions(encoder: FrontEncoder) -> dict[str, str]:
    """What else decides how features are rounded."""
    device = next((t.device for t in (*encoder.buffers(), *encoder.parameters())), torch.device("cpu"))
    return {"torch": torch.__version__, "device": device.type}
