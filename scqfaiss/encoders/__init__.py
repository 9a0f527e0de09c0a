"""Encoders: what turns a row of features, or an image, into the vector g that a method's head works on.

One file and one line of REGISTRY each; imported only when asked for, so that naming them costs no torch. Images go through
a network, `backbone.Backbone`, that a factory builds: one of BACKBONES, or any other named as 'package.module:factory'.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import ConfigError, suggestion
from ..modality import IMAGES
from ..modality import REGISTRY as MODALITIES

if TYPE_CHECKING:
    from ..modality import Modality
    from .base import Encoder, FrontEncoder

REGISTRY = {
    "identity": "identity:Identity",
    "linear": "linear:Linear",
    "mlp": "mlp:MLP",
}
# Networks for images by short name: their factories, the only ones that a model file may name and have run unasked.
BACKBONES = {
    "squeezenet": "scqfaiss.encoders.squeezenet:squeezenet1_0",
}


def encoder_class(name: str) -> type[Encoder]:
    """The class that answers to `name`: one registered, or Backbone for a network. Raises ConfigError with the known names."""
    own = {modality.encoder: modality for modality in MODALITIES.values() if modality.encoder}
    if name in own or name in BACKBONES or ":" in name:  # any other factory is of images
        return front_encoder_class(own.get(name, IMAGES))
    if name not in REGISTRY:
        known = [*REGISTRY, *{**own, **BACKBONES}]
        raise ConfigError(
            f"unknown encoder '{name}'{suggestion(name, known)}; there are {', '.join(known)}, and any network for "
            "images as package.module:factory"
        )
    module, _, cls = REGISTRY[name].partition(":")
    encoder: type[Encoder] = getattr(import_module(f".{module}", __name__), cls)
    return encoder


def front_encoder_class(modality: Modality) -> type[FrontEncoder]:
    """The class of the encoders that turn items of a modality into rows of features."""
    module, _, cls = modality.encoder_class.partition(":")
    encoder: type[FrontEncoder] = getattr(import_module(module), cls)
    return encoder
