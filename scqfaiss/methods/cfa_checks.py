"""What can be said of a head before any row is read: settings that cannot work together."""

from __future__ import annotations

from ..errors import ConfigError
from ..modality import Modality
from . import cfa
from .spaces import space_of


def check(config: cfa.Settings, d_in: int, C: int, M: int, encoder: str, modality: Modality) -> None:
    """Raise ConfigError for a head that cannot be built; reads no rows."""
    kind = cfa.kind_of_cfa(config, encoder)
    check_items(config, modality)
    if encoder == "identity" and kind != "none":
        raise ConfigError(f"cfa={kind} needs an encoder that trains; choose --encoder linear or mlp, or cfa=none")
    if encoder != "identity" and kind == "none":
        raise ConfigError(
            f"cfa=none trains nothing, so the rows must be the embedding: --encoder identity, not {encoder}"
        )
    if config.members > 1 and cfa.members(config, encoder) == 1:
        raise ConfigError(f"members={config.members} needs --encoder mlp and cfa=calibrated, got {encoder} and {kind}")
    if config.logits == "inner" and kind == "cosine":
        raise ConfigError("logits=inner needs cfa=calibrated: cfa=cosine trains by the cosines that it is searched by")
    if config.adversarial and kind not in ("calibrated", "cosine"):
        raise ConfigError(f"adversarial={config.adversarial:g} needs cfa=calibrated or cosine, got {kind}")
    if config.adversarial:
        space = space_of(modality)
        if config.adversarial > space.largest:
            raise ConfigError(
                f"adversarial={config.adversarial:g} for {modality.noun} needs 0 to {space.largest:g} {space.unit}"
            )
    d = cfa.smallest_d(config, d_in, C, M, encoder)
    if config.multi == "sigmoid" and kind == "calibrated" and d < C:
        raise ConfigError(f"multi=sigmoid needs d of at least C={C}, got d={d}")


def check_items(config: cfa.Settings, modality: Modality) -> None:
    """Raise ConfigError for what items that are no rows of features have not got."""
    if not modality.needs_encoder:
        return
    if config.similarity == "means":
        raise ConfigError(
            f"similarity=means takes the mean features of each class, and {modality.items} have none before the training; use "
            "class_vectors=FILE.npy, or similarity=identity"
        )
    if config.cfa == "none":
        raise ConfigError(
            f"cfa=none takes rows that are the embedding already, which {modality.items} are not; use cfa=calibrated"
        )
