"""Galleries of a model that another one extends: the same codes, in the codebooks and lists of the later model.

Codewords get zeros on the dimensions of the new classes, and codes without a list get list 0, the origin; so every row scores
as it did, and its packed code is the same, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..codebooks import Codes
from ..errors import ConfigError
from ..model import Model
from .exporting import build
from .reading import Stored

OF_LISTS = ("nlist", "nprobe")  # options of a target that go with the lists it had


def extends(model: Model, metadata: Mapping[str, Any] | None) -> bool:
    """Whether a gallery with this metadata was made by a model that `model` extends."""
    steps = model.config.get("extends", [])
    return metadata is not None and metadata.get("model_sha256") in [step["sha256"] for step in steps]


def recoded(model: Model, codes: Codes) -> Codes:
    """Codes of a model that `model` extends as its own: behind list 0 where they have none."""
    lists = np.zeros((len(codes), model.codebooks.columns - codes.shape[1]), codes.dtype)
    return model.codebooks.check_codes(np.concatenate([lists, codes], 1))


def taken_over(model: Model, stored: Stored, name: str) -> Stored:
    """The gallery as `model`, which extends its own, would have made it.

    Raises ConfigError for targets that hold no lists, and for codes that were cut.
    """
    assert stored.target is not None and stored.metadata is not None
    metadata = stored.metadata
    if metadata["M"] != model.codebooks.M:
        raise ConfigError(
            f"{name} holds codes of {metadata['M'] * metadata['nbits']} bits, the first of {model.codebooks.bits}; extended "
            f"models take whole ones"
        )
    _, codes, ids = stored.target.unpack(stored.index, stored.shape)
    options = {key: value for key, value in metadata.get("options", {}).items() if key not in OF_LISTS}
    index, new = build(model, recoded(model, codes), ids, metadata["target"], options)
    kept = {key: metadata[key] for key in ("skipped_rows",) if key in metadata}
    return replace(Stored.of(index, new | kept), stamp=stored.stamp)
