"""Exact search of codes that have lists: which lists can hold a better row than those found, and which cannot.

A row of list l scores <q, c_l> plus the inner product of q with what its codewords make. No row of any list adds more than
sum_m max_k <q_m, w_mk>: lists are visited by descending <q, c_l> until that sum does not bring the next one above the k-th score.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from .. import faiss_calls
from ..faiss_calls import Hits, Ranges
from .base import parameters
from .bounding_boxes import SUM_ROUNDING, visit_lists

SCORES = 1 << 24  # of queries and lists, or codewords, held at a time: 64 MB


def most_added(core: Any, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """x (nq, d) -> (nq,) the most that codewords add to the score of a list, and what rounding may."""
    pq = core.pq
    table = faiss.rev_swig_ptr(pq.centroids.data(), pq.centroids.size()).reshape(pq.M, pq.ksub, pq.dsub)
    added, size = np.zeros((2, len(x)), np.float64)
    step = max(1, SCORES // pq.ksub)
    for i in range(0, len(x), step):
        for m in range(pq.M):
            products = x[i : i + step, m * pq.dsub : (m + 1) * pq.dsub] @ table[m].T
            added[i : i + step] += products.max(1)
            size[i : i + step] += np.abs(products).max(1)
    return (added + SUM_ROUNDING * size).astype(np.float32)


def search_listed(core: Any, x: NDArray[np.float32], k: int, sel: Any) -> Hits:
    """Exact hits from an IndexIVFPQ whose lists are part of the code."""
    coarse = faiss.downcast_index(core.quantizer)  # <q, c_l> as computed here goes into the scores, too
    best = lambda rows, width: faiss_calls.search(coarse, x[rows], width)  # noqa: E731
    return visit_lists(core, x, k, sel, best, most_added(core, x))


def range_search_listed(core: Any, x: NDArray[np.float32], radius: float, sel: Any) -> Ranges:
    """Hits above radius of each query -> lims (nq + 1,), D, I, from the lists that can hold one."""
    centroids = faiss_calls.stored_rows(core.quantizer)
    lowest = radius - most_added(core, x)
    counts, D, I = [np.zeros(1, np.int64)], [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
    step = max(1, SCORES // core.nlist)
    for i in range(0, len(x), step):
        scores = x[i : i + step] @ centroids.T
        near = scores + SUM_ROUNDING * np.abs(scores) > lowest[i : i + step, None]
        width = max(1, int(near.sum(1).max(initial=0)))
        lists = np.argsort(~near, axis=1, kind="stable")[:, :width]
        found = np.take_along_axis(near, lists, 1)
        lims, scores_found, ids = faiss_calls.range_search_preassigned(
            core,
            x[i : i + step],
            radius,
            np.where(found, lists, -1),
            parameters(core, sel, width),
            np.take_along_axis(scores, lists, 1),
        )
        counts.append(np.diff(lims))
        D.append(scores_found)
        I.append(ids)
    return np.cumsum(np.concatenate(counts)), np.concatenate(D), np.concatenate(I)
