"""Encoders: what turns a row of features, or a picture, into the vector g that a method's head works on.

One file and one line of REGISTRY each; imported only when asked for, so that naming them costs no torch. Pictures go through
a network, `backbone.Backbone`, that a factory builds: one of BACKBONES, or any other named as 'package.module:factory'.
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
# Networks for pictures by short name: their factories, the only ones that a model file may name and have run unasked.
BACKBONES = {
    "squeezenet": "scqfaiss.encoders.squeezenet:squeezenet1_0",
}


def encoder_class(name: str) -> type[Encoder]:
    """The class that answers to `name`: one registered, or Backbone for a network. Raises ConfigError with the known names."""
    if name in BACKBONES or ":" in name:
        from .backbone import Backbone

        return Backbone
    if name not in REGISTRY:
        known = [*REGISTRY, *BACKBONES]
        raise ConfigError(
            f"unknown encoder '{name}'{suggestion(name, known)}; there are {', '.join(known)}, and any network for "
            "pictures as package.module:factory"
        )
    module, _, cls = REGISTRY[name].partition(":")
    found: type[Encoder] = getattr(import_module(f".{module}", __name__), cls)
    return found
