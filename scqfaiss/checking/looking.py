"""One pass over a file of rows: all that the faults ask for, whatever the size of the file."""

from __future__ import annotations

import numpy as np

from ..arrays import bad_rows
from ..contract import Progress
from ..data import Source
from ..data.source import row_digests
from ..errors import ConfigError, DataError
from ..modality import ROWS
from .findings import Look


def look_at(source: Source, progress: Progress) -> Look:
    """Read every row once; rows that are not finite are left out of the source from then on.

    Raises ConfigError where the source holds no rows of features, DataError where it is empty or damaged.
    """
    if source.modality != ROWS:
        raise ConfigError(
            f"{source.name} holds {source.modality.noun}, check takes rows of features; {source.modality.make_features}"
        )
    if len(source) == 0:
        raise DataError(f"{source.name} holds 0 rows, check needs at least 1")
    n, d = len(source), source.d
    bad, digests, norms = np.zeros(n, bool), np.zeros((n, 2), np.uint64), np.zeros(n, np.float32)
    low, high = np.full(d, np.inf, np.float32), np.full(d, -np.inf, np.float32)
    sums, shift = np.zeros((2, d)), None
    for i, x in source.unchecked_blocks():
        progress("rows", i, n, "")
        here = slice(i, i + len(x))
        bad[here], digests[here] = bad_rows(x), row_digests(x)
        x = x[~bad[here]]
        if not len(x):
            continue
        norms[here][~bad[here]] = np.sqrt(np.einsum("nd,nd->n", x, x, dtype=np.float64))
        low, high = np.minimum(low, x.min(0)), np.maximum(high, x.max(0))
        if shift is None:
            shift = x[0].astype(np.float64)  # near the mean, so that the squares do not drown the variance
        centered = x - shift
        sums += [centered.sum(0), np.einsum("nd,nd->d", centered, centered)]
    progress("rows", n, n, "")
    bad_ids, good = source.ids[bad].copy(), ~bad
    if bad.all():
        raise DataError(f"{source.name}: all {n:,} rows hold NaN, infinity or a number too large for float32")
    source.leave_out(np.flatnonzero(bad))
    mean, square = sums / good.sum()
    sd = np.sqrt(np.maximum(square - mean * mean, 0)).astype(np.float32)
    kept = (digests[good], norms[good], low, high, sd)
    return Look(source.name, d, source.ids, source.labels, *kept, bad_ids, digests[bad])
