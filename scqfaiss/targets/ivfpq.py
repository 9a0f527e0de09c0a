"""IndexIVFPQ with one list whose centroid is the origin: the default .faissindex form.

A zero centroid makes every residual the vector itself, so codebooks learned elsewhere are exact. Chosen over IndexPQ,
which has no id selectors, no ids of its own and no GPU class.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from faiss.contrib.inspect_tools import get_invlist
from numpy.typing import NDArray

from ..codebooks import Codebooks, Codes, Shape
from ..errors import ConfigError
from .base import (
    GPU_M,
    GPU_SHARED_BYTES,
    METRIC,
    TargetInfo,
    inject,
    pack,
    product_reason,
    product_table,
    table_bytes,
    unpack_codes,
)

INFO = TargetInfo("ivfpq", "IndexIVFPQ", filter=True, append=True, exact=True)


def supports(shape: Shape, device: str) -> str | None:
    reason = product_reason(shape)
    if reason or device == "cpu":
        return reason
    if shape.nbits != 8:
        return f"the GPU kernels need nbits 8, got {shape.nbits}"
    if shape.M not in GPU_M:
        return f"the GPU kernels need M of {', '.join(map(str, GPU_M))}, got {shape.M}"
    if 4 * shape.M * shape.K > GPU_SHARED_BYTES:
        return f"look-up tables of M={shape.M} books exceed the {GPU_SHARED_BYTES >> 10} KiB of shared GPU memory"
    return None


def build(codebooks: Codebooks, codes: Codes, ids: NDArray[np.int64]) -> Any:
    """Product codebooks, codes (n, M), ids (n,) int64 -> faiss.IndexIVFPQ holding n vectors under their ids."""
    d = codebooks.d
    coarse = faiss.IndexFlat(d, METRIC[codebooks.metric])
    coarse.add(np.zeros((1, d), np.float32))
    index = faiss.IndexIVFPQ(coarse, d, 1, codebooks.M, codebooks.nbits, METRIC[codebooks.metric])
    index.own_fields = True  # the index frees `coarse`, Python must not
    coarse.this.disown()
    index.by_residual = True  # what the GPU class demands
    inject(index.pq.centroids, codebooks.centroids, "codebooks")
    index.is_trained = True
    index.nprobe = 1
    index.precompute_table()  # a stale table gives wrong L2 distances and no error
    # Codes go in as they are: add() would encode again, by L2, whatever the method's own rule is. With one list the
    # list number in front of each code takes no byte.
    if len(codes):
        index.add_sa_codes(pack(codes, codebooks.nbits), np.ascontiguousarray(ids, np.int64))
    return index


def unpack(index: Any) -> tuple[Codebooks, Codes, NDArray[np.int64]]:
    """Rows list by list, in the order of insertion. Raises ConfigError for codes of residuals, which we never write."""
    pq = index.pq
    if index.by_residual and index.quantizer.reconstruct_n(0, index.nlist).any():
        raise ConfigError("the codes stand for residuals of coarse centroids, not for vectors")
    lists = [get_invlist(index.invlists, i) for i in range(index.nlist)]
    ids = np.concatenate([ids for ids, _ in lists])
    packed = np.concatenate([codes.reshape(len(ids), index.code_size) for ids, codes in lists])
    metric = "ip" if index.metric_type == faiss.METRIC_INNER_PRODUCT else "l2"
    codebooks = Codebooks("product", product_table(pq), metric)
    return codebooks, unpack_codes(packed, pq.M, pq.nbits), ids


def nbytes(shape: Shape, n: int) -> int:
    return n * (shape.code_size + 8) + table_bytes(shape) + 4 * shape.d + 1000
