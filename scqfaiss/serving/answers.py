"""Hits as JSON or as bytes."""

from __future__ import annotations

from itertools import compress, pairwise
from typing import Any

import numpy as np

from . import fast_json
from .galleries import Answer

BINARY = "application/octet-stream"


def as_json(answer: Answer) -> bytes:
    """{"ids": [[...]], "scores": [[...]], "version"}, and "probability" and "items" where there are some: of each query its hits,
    best first, as many as there are.
    """
    bounds = answer.lims.tolist()
    found: dict[str, Any] = {"version": answer.version}
    parts: dict[str, Any] = {"ids": answer.I, "scores": answer.D}
    if answer.P is not None:
        parts["probability"] = answer.P
    if answer.items is not None:
        parts["items"] = answer.items
    there = answer.I >= 0  # -1 marks places without a hit
    whole = there.all()
    for name, values in parts.items():
        rows = [values[a:b] for a, b in pairwise(bounds)]
        if not whole:
            rows = [list(compress(row, there[a:b])) for row, (a, b) in zip(rows, pairwise(bounds))]
        found[name] = rows
    return fast_json.written(found)


def as_bytes(answer: Answer) -> tuple[bytes, dict[str, str]]:
    """(body, headers) of nq queries: lims (nq + 1) int64, ids int64, scores float32, and probabilities float32 where they were
    asked for, all little-endian; id -1 marks a place without a hit.
    """
    parts = [answer.lims.astype("<i8"), answer.I.astype("<i8"), answer.D.astype("<f4")]
    if answer.P is not None:
        parts.append(answer.P.astype("<f4"))
    body = b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
    return body, {"X-Queries": str(len(answer.lims) - 1), "X-Hits": str(len(answer.I)), "X-Version": answer.version}
