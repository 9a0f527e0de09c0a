"""Hits as JSON or as bytes."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np

from .galleries import Answer

BINARY = "application/octet-stream"
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def as_json(answer: Answer) -> bytes:
    """{"ids": [[...]], "scores": [[...]], "version"}, and "probability" and "items" where there are some: of each query its hits,
    best first, as many as there are.
    """
    bounds = answer.lims.tolist()
    found: dict[str, Any] = {"version": answer.version}
    parts = {"ids": answer.I.tolist(), "scores": answer.D.tolist()}
    if answer.P is not None:
        parts["probability"] = answer.P.tolist()
    if answer.items is not None:
        parts["items"] = answer.items
    whole = not (answer.I < 0).any()  # -1 marks places without a hit
    for name, values in parts.items():
        rows = [values[a:b] for a, b in pairwise(bounds)]
        if not whole:
            ids = [answer.I[a:b] for a, b in pairwise(bounds)]
            rows = [[v for v, i in zip(row, of_query) if i >= 0] for row, of_query in zip(rows, ids)]
        found[name] = rows
    return _encode(found).encode()


def as_bytes(answer: Answer) -> tuple[bytes, dict[str, str]]:
    """(body, headers) of nq queries: lims (nq + 1) int64, ids int64, scores float32, and probabilities float32 where they were
    asked for, all little-endian; id -1 marks a place without a hit.
    """
    parts = [answer.lims.astype("<i8"), answer.I.astype("<i8"), answer.D.astype("<f4")]
    if answer.P is not None:
        parts.append(answer.P.astype("<f4"))
    body = b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
    return body, {"X-Queries": str(len(answer.lims) - 1), "X-Hits": str(len(answer.I)), "X-Version": answer.version}
