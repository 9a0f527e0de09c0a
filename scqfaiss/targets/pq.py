"""IndexPQ: codes and nothing else, the smallest file and a plain scan on the CPU.

Ids other than 0..n-1 come as an IndexIDMap2 around it, 8 bytes a row. ID selectors are not honoured by FAISS here.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from ..codebooks import Codebooks, Codes, Shape
from .base import METRIC, TargetInfo, inject, pack, product_reason, product_table, table_bytes, unpack_codes

INFO = TargetInfo("pq", "IndexPQ", filter=False, append=True, exact=True)


def supports(shape: Shape, device: str) -> str | None:
    if device != "cpu":
        return "IndexPQ has no GPU form; use target ivfpq"
    return product_reason(shape)


def build(codebooks: Codebooks, codes: Codes, ids: NDArray[np.int64]) -> Any:
    """Product codebooks, codes (n, M), ids (n,) int64 -> faiss.IndexPQ, inside an IndexIDMap2 unless ids are 0..n-1."""
    index = faiss.IndexPQ(codebooks.d, codebooks.M, codebooks.nbits, METRIC[codebooks.metric])
    inject(index.pq.centroids, codebooks.centroids, "codebooks")
    index.is_trained = True
    if len(codes):
        index.add_sa_codes(pack(codes, codebooks.nbits))
    if np.array_equal(ids, np.arange(len(ids))):
        return index
    return with_ids(index, ids)


def with_ids(index: Any, ids: NDArray[np.int64]) -> Any:
    """faiss.IndexIDMap2 around an index that is full already; its constructor wants an empty one."""
    out = faiss.IndexIDMap2(faiss.IndexFlat(index.d, index.metric_type))
    out.index, out.own_fields, out.referenced_objects = index, False, [index]
    faiss.copy_array_to_vector(np.ascontiguousarray(ids, np.int64), out.id_map)
    out.ntotal, out.is_trained = index.ntotal, True
    out.construct_rev_map()
    return out


def unpack(index: Any) -> tuple[Codebooks, Codes, NDArray[np.int64]]:
    ids = np.arange(index.ntotal)
    if isinstance(index, faiss.IndexIDMap):
        ids, index = faiss.vector_to_array(index.id_map), faiss.downcast_index(index.index)
    packed = faiss.vector_to_array(index.codes).reshape(index.ntotal, index.code_size)
    metric = "ip" if index.metric_type == faiss.METRIC_INNER_PRODUCT else "l2"
    codebooks = Codebooks("product", product_table(index.pq), metric)
    return codebooks, unpack_codes(packed, index.pq.M, index.pq.nbits), ids


def nbytes(shape: Shape, n: int) -> int:
    return n * (shape.code_size + 8) + table_bytes(shape) + 1000
