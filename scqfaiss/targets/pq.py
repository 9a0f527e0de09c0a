"""IndexPQ: codes and nothing else, the smallest file and a plain scan on the CPU.

Ids other than 0..n-1 come as an IndexIDMap around it, 8 bytes a row. ID selectors are not honoured by FAISS here.
"""

from __future__ import annotations

from typing import Any

import faiss

from .. import faiss_calls
from ..codebooks import Codebooks, Codes, Shape
from .base import (
    METRIC,
    Ids,
    Target,
    TargetInfo,
    inject,
    kind_reason,
    pack,
    product_codebooks,
    product_shape,
    table_bytes,
    unpack_codes,
)
from .ids import behind_ids, packed_codes, places_of, with_ids
from .reshape import merged, merged_shape, split


def index_pq(codebooks: Codebooks, codes: Codes) -> Any:
    """Product codebooks, codes (n, M) -> a filled faiss.IndexPQ."""
    index = faiss.IndexPQ(codebooks.d, codebooks.M, codebooks.nbits, METRIC[codebooks.metric])
    inject(index.pq.centroids, codebooks.centroids, "codebooks")
    index.is_trained = True
    if len(codes):
        faiss_calls.add_codes(index, pack(codes, codebooks.nbits))
    return index


def codes_of(index: Any, places: Ids | slice = slice(None)) -> Codes:
    """The codes (n, M) of an IndexPQ, or of some of its rows."""
    return unpack_codes(packed_codes(index, places), index.pq.M, index.pq.nbits)


class PQ(Target):
    INFO = TargetInfo("pq", "IndexPQ", ("product",), filter=False, range=True, exact=True)

    def supports(self, shape: Shape) -> str | None:
        return kind_reason(self.INFO, shape)

    def build(self, codebooks: Codebooks, codes: Codes, ids: Ids, options: Any = None, like: Any = None) -> Any:
        """-> faiss.IndexPQ, inside an IndexIDMap unless ids are 0..n-1."""
        return with_ids(index_pq(*merged(codebooks, codes)), ids)

    def holds(self, index: Any) -> bool:
        return isinstance(behind_ids(index), faiss.IndexPQ)

    def shape_of(self, index: Any) -> Shape:
        return product_shape(behind_ids(index))

    def unpack(self, index: Any, shape: Shape | None = None, only: Ids | None = None) -> tuple[Codebooks, Codes, Ids]:
        places, ids = places_of(index, only)
        index = behind_ids(index)
        return *split(product_codebooks(index), codes_of(index, places), shape), ids

    def nbytes(self, shape: Shape, n: int) -> int:
        return n * (shape.code_size + 8) + table_bytes(merged_shape(shape)) + 1000
