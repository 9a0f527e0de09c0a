"""Encoders: what turns a row of features into the vector g that a method's head works on. Torch to train, NumPy to run.

One file and one line of REGISTRY each; imported only when asked for, so that naming them costs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import ConfigError, suggestion

if TYPE_CHECKING:
    from .base import Encoder

REGISTRY = {
    "identity": "identity:Identity",
    "linear": "linear:Linear",
    "mlp": "mlp:MLP",
}


def encoder_class(name: str) -> type[Encoder]:
    """The class registered under `name`. Raises ConfigError with the known names."""
    if name not in REGISTRY:
        raise ConfigError(f"unknown encoder '{name}'{suggestion(name, REGISTRY)}; there are {', '.join(REGISTRY)}")
    module, _, cls = REGISTRY[name].partition(":")
    found: type[Encoder] = getattr(import_module(f".{module}", __name__), cls)
    return found
