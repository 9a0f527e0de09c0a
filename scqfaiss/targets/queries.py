"""Query rows on their way into an index, and scores on theirs out: no number may leave float32 in between.

Inner products grow with the query alone, so that rows whose squares or products would are divided by a power of two, and
their scores multiplied by it. That changes no digit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np

from ..arrays import Floats, Ints
from ..errors import DataError
from ..exponents import exponents, times
from .pretransform import apply_transforms, encoded, may_overflow, tiled, unwrap_index

MAX_SCORE = float(np.finfo(np.float32).max)


def prepared(
    index: Any, z: Floats, name: str, gpu: bool = False, decoded: bool = False
) -> tuple[Any, Floats, Ints | None]:
    """z: finite rows -> (index behind its encoder, rows as it takes them, powers of two that they were divided by, or None).

    decoded: z live where codes do already, behind the encoder.

    Raises DataError for a row that the encoder inside the file, or squared distances, make too large for float32.
    """
    if decoded:
        x = z if gpu else tiled(index, z)
    else:
        x = encoded(index, z) if gpu else apply_transforms(index, z)
    if may_overflow(index):
        finite = np.isfinite(x).all(1)
        if not finite.all():
            raise DataError(f"{name}: row {int(finite.argmin()):,} is too large for the encoder of the index")
    powers = exponents(x)
    if powers is None:
        return unwrap_index(index), x, None
    if index.metric_type == faiss.METRIC_INNER_PRODUCT:  # scores grow with the query, and their order stays
        return unwrap_index(index), times(x, -powers), powers
    if (powers > 0).any():
        raise DataError(f"{name}: row {int((powers > 0).argmax()):,} is too large for squared distances in float32")
    return unwrap_index(index), x, None


def unscaled(D: Floats, powers: Ints | None, I: Ints, name: str, rows: Ints | None = None) -> Floats:
    """Scores of rows divided by powers of two -> those of the rows. Raises DataError where they leave float32."""
    if powers is not None:
        D = times(D, powers)
    lost = ~np.isfinite(D) & (I >= 0)
    if lost.any():
        row = int(np.nonzero(lost)[0][0])
        row = row if rows is None else int(rows[row])
        raise DataError(f"{name}: row {row:,}: its scores are too large for float32; divide the rows by a constant")
    return D


def ranges(search: Callable[[Any, float], Any], threshold: float, powers: Ints) -> Any:
    """A range search for each power of two -> lims, D (still divided), I, in the order of the queries."""
    parts: list[tuple[Any, Any]] = [(np.zeros(0, np.float32), np.zeros(0, np.int64))] * len(powers)
    for power in np.unique(powers):
        rows = np.flatnonzero(powers == power)
        lims, D, I = search(rows, float(np.clip(np.ldexp(threshold, -power), -MAX_SCORE, MAX_SCORE)))
        for row, low, high in zip(rows, lims[:-1], lims[1:]):
            parts[row] = D[low:high], I[low:high]
    lims = np.cumsum([0, *(len(I) for _, I in parts)])
    return lims, np.concatenate([D for D, _ in parts]), np.concatenate([I for _, I in parts])
