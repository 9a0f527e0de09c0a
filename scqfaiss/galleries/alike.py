"""Rows of a gallery as queries: what is searched with to find more like them."""

from __future__ import annotations

from typing import Any

from ..arrays import Floats
from ..errors import ConfigError
from .base import AnyGallery


def alike(gallery: AnyGallery, ids: Any, known: Any = None) -> Floats:
    """ids (n,) -> what their codes stand for, (n, d of the codebooks), as queries: `search(..., decoded=True)`.

    known: as Gallery.search takes it, for galleries whose model has content codes; None and 'auto' ask its gate. Raises DataError
    for ids that are not there, ConfigError for `known` without content codes.
    """
    vectors, model = gallery.reconstruct(ids), gallery.model
    if not gallery.needs_model or model is None or model.content is None or model.joint is None:
        if known is not None:
            raise ConfigError(f"known is given, and the codes of {gallery.name} have no content part")
        return vectors
    z, v = model.joint.split(vectors)
    return model.joint.join(z, v, model.content.weight(model.content.known(z, v, known)))
