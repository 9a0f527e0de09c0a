"""What a report shows of an attack: a few queries before and after, and what is found."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints, Labels
from .scoring import Searched

SHOWN, HITS = 5, 10


def examples(
    x: NDArray[Any], changed: NDArray[Any], side: Searched, ids: tuple[Ints, Ints], how: str
) -> dict[str, Any]:
    """`gallery` and `pictures` of a document: the first queries x (n, ...) as they are and as they were changed, each with the
    first hits of a search. ids: of queries and of the database's rows; how: in words, what changed them.
    """
    pictures: dict[str, Any] = {}
    queries, hits = [], []
    for when, rows in (("before", x[:SHOWN]), (how, changed[:SHOWN])):
        for q, found in enumerate(side.hits(rows, HITS)):
            name = f"query-{q}-{when}"
            if x.ndim == 4:
                pictures[name] = _png(rows[q])
            labels = _labels(side.queries, q)
            queries.append({"id": f"{ids[0][q]}, {when}", "labels": labels, "picture": name if x.ndim == 4 else None})
            hits.append([_hit(side.database, int(i), ids[1], labels) for i in found])
    half = len(queries) // 2
    order = [q + stage for q in range(half) for stage in (0, half)]
    sides = [{"key": "first hits", "hits": [hits[i] for i in order]}]
    return {"gallery": {"queries": [queries[i] for i in order], "sides": sides}, "pictures": pictures}


def _hit(database: Labels, i: int, ids: Ints, wanted: list[int]) -> dict[str, Any]:
    labels = _labels(database, i)
    return {"id": int(ids[i]), "labels": labels, "picture": None, "right": bool(set(labels) & set(wanted))}


def _labels(labels: Labels, i: int) -> list[int]:
    return np.flatnonzero(labels.y[i]).tolist() if labels.multilabel else [int(labels.y[i])]


def _png(pixels: NDArray[np.uint8]) -> dict[str, str]:
    """(3, size, size) -> as results hold images; a PNG, as every pixel counts here."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(out, "PNG")
    return {"type": "image/png", "data": base64.b64encode(out.getvalue()).decode()}
