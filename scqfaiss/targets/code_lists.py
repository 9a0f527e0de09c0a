"""Lists that are part of the code: an IndexIVFPQ with their centroids, by_residual, filled with codes of what these leave over.

A row's list costs no byte, and for inner products all lists share one look-up table of codewords. The centroid of additive
codes stands beside zeros, [c, 0, ..., 0]: of a repeated query only the first part meets it (see lift.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import faiss
import numpy as np

from .. import faiss_calls
from ..codebooks import Codebooks, Codes, Shape
from .base import METRIC, Ids, metric_of, parameters, product_codebooks, product_shape, table_bytes
from .lists import ivfpq, rows_of
from .pretransform import apply_transforms, kind_of, prepend, unwrap_index
from .reshape import as_product, filled, merged, merged_shape, split

TRIED = 256  # queries to find how many lists a search has to visit
HITS = 10  # of each
# Of these, on average. Queries that are rows find theirs sooner than others do: where they find 0.95, queries that
# no list was learned from found 0.80 to 0.95. Midpoints find about as many as these do, or 0.03 more.
FOUND = 0.98
ROUNDING = 1e-6  # relative: the same scores, added up in another order
# FAISS's readers count a table of L M K floats, which only squared distances have, against the bytes that a file may claim.
MOST_TABLE = 1 << 26


def table_reason(shape: Shape) -> str | None:
    """Why FAISS would not read codes with lists of this shape again, or None."""
    stored = merged_shape(shape)
    size = shape.L * max(stored.M, 1) * stored.K
    if shape.L == 1 or size < MOST_TABLE:
        return None
    return f"{shape.L:,} lists of {stored.M} x {stored.K:,} codewords: FAISS reads fewer than {MOST_TABLE:,} in all"


def real_lists(product: Codebooks, codes: Codes, ids: Ids) -> Any:
    """Product codebooks with lists, codes (n, 1 + M) -> IndexIVFPQ; all lists are visited."""
    coarse = faiss.IndexFlat(product.d, METRIC[product.metric])
    faiss_calls.add(coarse, np.asarray(product.lists))
    lists, words = product.split(codes)
    return ivfpq(product.residual, coarse, np.asarray(lists), words, ids, by_residual=True)


def build_listed(codebooks: Codebooks, codes: Codes, ids: Ids, nprobe: int = 0) -> Any:
    """Codebooks with lists, codes (n, 1 + M) -> IndexIVFPQ, behind a tile if additive. nprobe 0: as many as are needed."""
    stored_codebooks, codes = merged(*filled(codebooks, codes))
    product, tile = as_product(stored_codebooks)
    index = prepend(tile, real_lists(product, codes, ids))
    unwrap_index(index).nprobe = nprobe or needed_nprobe(index, stored_codebooks, codes)
    return index


def needed_nprobe(index: Any, codebooks: Codebooks, codes: Codes) -> int:
    """The fewest lists in which queries find FOUND of their HITS best scores, on average.

    codebooks: as they are stored. A query is the midpoint of two rows, one half of the gallery behind the other, list by list:
    like rows that are no part of the gallery, it lies farther from the centroids than rows do, and its best rows are spread
    over more lists. A gallery that was taken apart and built again has its rows in another order, and the same number here.
    """
    core, n = unwrap_index(index), len(codes)
    if n == 0:
        return int(core.nlist)
    by_list = np.lexsort(codes.T[::-1])  # and within a list by codewords: the order of the rows counts for nothing
    place = np.linspace(0, n, min(n, TRIED), endpoint=False).astype(int)
    near, far = (np.float32(0.5) * codebooks.decode(codes[by_list[p]]) for p in (place, (place + n // 2) % n))
    x, k = apply_transforms(index, near + far), min(HITS, n)
    sign = 1 if codebooks.metric == "ip" else -1

    def scores(nprobe: int) -> Any:
        D, I = faiss_calls.search(core, x, k, parameters(core, None, nprobe))
        return np.where(I < 0, -np.inf, sign * D)

    best = scores(core.nlist)
    enough = best[:, -1:] - ROUNDING * np.abs(best).max(1, keepdims=True)

    def suffices(nprobe: int) -> bool:
        return bool((scores(nprobe) >= enough).mean() >= FOUND)

    low, high = 0, 1  # too few, and perhaps enough
    while high < core.nlist and not suffices(high):
        low, high = high, min(2 * high, core.nlist)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


def has_code_lists(index: Any) -> bool:
    """Whether an index, behind its encoder, is an IndexIVFPQ of residuals with several lists."""
    core = unwrap_index(index)
    if not isinstance(core, faiss.IndexIVFPQ) or not core.by_residual or core.nlist == 1:
        return False
    return isinstance(faiss.downcast_index(core.quantizer), faiss.IndexFlat)


def _alone(core: Any) -> bool:
    """Whether rows say nothing beside their list: one codebook of two zero codewords."""
    return (core.pq.M, core.pq.nbits) == (1, 1) and not faiss.vector_to_array(core.pq.centroids).any()


def listed_shape(index: Any) -> Shape:
    core, kind = unwrap_index(index), kind_of(index)
    shape = replace(product_shape(core, kind), L=core.nlist)
    return replace(shape, M=0) if _alone(core) and kind == "product" else shape


def unpack_listed(index: Any, shape: Shape | None = None, only: Ids | None = None) -> tuple[Codebooks, Codes, Ids]:
    """The inverse of build_listed, rows list by list. shape, only: as Target.unpack takes them."""
    core, kind = unwrap_index(index), kind_of(index)
    numbers, words, ids = rows_of(core, only)
    residual = product_codebooks(core, kind)
    centroids, lists = residual.centroids, faiss_calls.stored_rows(core.quantizer)
    if _alone(core) and kind == "product":
        centroids, words = centroids[:0], words[:, :0]
    codebooks = Codebooks(kind, centroids, residual.metric, lists[:, : residual.d])
    return *split(codebooks, codebooks.joined(numbers, words), shape), ids


def list_disagreement(index: Any) -> str | None:
    """None, or why the centroids of an index that has_code_lists are not such as build_listed writes."""
    core = unwrap_index(index)
    if kind_of(index) == "additive":
        beyond = faiss_calls.stored_rows(core.quantizer)[:, core.pq.dsub :]
        if beyond.any():
            number = int(beyond.any(1).argmax())
            return f"the centroid of list {number:,} reaches beyond the first {core.pq.dsub} dimensions"
    return metric_disagreement(core)


def metric_disagreement(core: Any) -> str | None:
    """None, or that the lists of an IndexIVFPQ are found by another metric than its rows."""
    if faiss.downcast_index(core.quantizer).metric_type != core.metric_type:
        return f"the lists have metric {metric_of(core)}, their centroids {metric_of(core.quantizer)}"
    return None


def listed_bytes(shape: Shape, n: int) -> int:
    """Bytes of the FAISS stream, to within a few kilobytes."""
    stored = merged_shape(shape)
    d = stored.d * (stored.M if stored.kind == "additive" else 1)
    return n * (max(shape.code_size, 1) + 8) + table_bytes(stored) + shape.L * (4 * d + 8) + 4 * d + 1000
