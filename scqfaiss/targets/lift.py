"""Additive codes as a product quantizer: exact inner products, ids, selectors, memory mapping, and the GPU.

<q, sum_m c_m> = <[q, ..., q], [c_1, ..., c_M]>: the query is repeated M times by a transform in the file, the codebook table
and the code bytes are the additive ones as they are. For searching only: what FAISS adds or reconstructs through the
repetition is wrong.
"""

from __future__ import annotations

from typing import Any

from ..codebooks import Codebooks, Codes, Shape
from .base import Ids, Target, TargetInfo, kind_reason, product_codebooks, product_shape, table_bytes
from .ivfpq import is_flat_ivfpq, one_list, residual_centroids
from .lists import rows_of
from .pretransform import kind_of, prepend, unwrap_index
from .reshape import as_product, merged, merged_shape, split


class Lift(Target):
    INFO = TargetInfo("lift", "IndexIVFPQ", ("additive",), filter=True, range=True, exact=True)

    def supports(self, shape: Shape) -> str | None:
        if shape.kind == "additive" and shape.metric != "ip":
            return "a sum of inner products is no distance; use target residual"
        return kind_reason(self.INFO, shape)

    def build(self, codebooks: Codebooks, codes: Codes, ids: Ids, options: Any = None, like: Any = None) -> Any:
        """-> faiss.IndexPreTransform(tile, IndexIVFPQ of dimension M d with one list)."""
        stored_codebooks, codes = merged(codebooks, codes)
        lifted, tile = as_product(stored_codebooks)
        return prepend(tile, one_list(lifted, codes, ids))

    def holds(self, index: Any) -> bool:
        return is_flat_ivfpq(index) and kind_of(index) == "additive"

    def disagreement(self, index: Any) -> str | None:
        return residual_centroids(index)

    def shape_of(self, index: Any) -> Shape:
        return product_shape(unwrap_index(index), "additive")

    def unpack(self, index: Any, shape: Shape | None = None) -> tuple[Codebooks, Codes, Ids]:
        index = unwrap_index(index)
        _, codes, ids = rows_of(index)
        return *split(product_codebooks(index, "additive"), codes, shape), ids

    def nbytes(self, shape: Shape, n: int) -> int:
        stored = merged_shape(shape)
        return n * (shape.code_size + 8) + table_bytes(stored) + 8 * stored.M * shape.d + 1000
