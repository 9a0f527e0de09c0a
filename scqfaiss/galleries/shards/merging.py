"""Hits of several shards as those of one gallery: best first, equal scores by id. NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...arrays import Ints

Scores = NDArray[np.float32]
LAST = np.iinfo(np.int64).max  # sorts behind every id


def merge_hits(parts: Sequence[tuple[Scores, Ints]], k: int, metric: str) -> tuple[Scores, Ints]:
    """parts: D (nq, k_s) float32 and I (nq, k_s) int64 of each shard, -1 where there is no hit -> D, I (nq, k).

    Of hits with equal scores those with smaller ids come first, whichever shard they are from. Places without a hit come
    last, with id -1 and the score that FAISS puts there.
    """
    D, I = np.concatenate([d for d, _ in parts], 1), np.concatenate([i for _, i in parts], 1)
    worst = np.float32(-np.inf if metric == "ip" else np.inf)
    empty = I < 0
    keys, ids = (np.where(empty, worst, D), np.where(empty, LAST, I)) if empty.any() else (D, I)
    order = np.lexsort((ids, -keys if metric == "ip" else keys), axis=1)[:, :k]
    D, I = np.take_along_axis(D, order, 1), np.take_along_axis(I, order, 1)
    if D.shape[1] < k:  # fewer rows than hits were asked for
        more = (len(D), k - D.shape[1])
        D, I = np.hstack([D, np.full(more, worst)]), np.hstack([I, np.full(more, -1)])
    return np.ascontiguousarray(D, np.float32), np.ascontiguousarray(I, np.int64)


def merge_ranges(parts: Sequence[tuple[Ints, Scores, Ints]], nq: int, metric: str) -> tuple[Ints, Scores, Ints]:
    """parts: lims (nq + 1,), D, I of each shard, as range searches give them -> the same of all, in the order of merge_hits."""
    counts = sum((np.diff(lims) for lims, _, _ in parts), np.zeros(nq, np.int64))
    query = np.concatenate([np.repeat(np.arange(nq), np.diff(lims)) for lims, _, _ in parts])
    D, I = np.concatenate([d for _, d, _ in parts]), np.concatenate([i for _, _, i in parts])
    order = np.lexsort((I, -D if metric == "ip" else D, query))
    return np.append(0, np.cumsum(counts)).astype(np.int64), D[order], I[order]
