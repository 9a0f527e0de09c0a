"""Additive codes as a product quantizer: exact inner products, ids, selectors, memory mapping, and the GPU.

<q, sum_m c_m> = <[q, ..., q], [c_1, ..., c_M]>: the query is repeated M times by a transform in the file, the codebook table
and the code bytes are the additive ones as they are. For searching only: what FAISS adds or reconstructs through the
repetition is wrong. Where codes have lists, the first of the M parts also meets the centroid (see code_lists.py).
"""

from __future__ import annotations

from typing import Any

from ..codebooks import Codebooks, Codes, Shape
from ..errors import ConfigError
from .base import Ids, Target, TargetInfo, kind_reason, product_codebooks, product_shape, table_bytes
from .code_lists import build_listed, has_code_lists, listed_bytes, listed_shape, table_reason, unpack_listed
from .ivfpq import is_flat_ivfpq, one_list, residual_centroids
from .lists import rows_of
from .options import VisitOptions
from .pretransform import kind_of, prepend, unwrap_index
from .reshape import as_product, merged, merged_shape, split

DEFAULTS = VisitOptions()


class Lift(Target):
    INFO = TargetInfo("lift", "IndexIVFPQ", ("additive",), filter=True, range=True, exact=True, lists=True)

    def supports(self, shape: Shape) -> str | None:
        if shape.kind == "additive" and shape.metric != "ip":
            return "a sum of inner products is no distance; use target residual"
        return kind_reason(self.INFO, shape) or table_reason(shape)

    def check(self, options: VisitOptions, n: int, lists: int = 1) -> None:
        super().check(options, n, lists)
        if options.nprobe > lists:
            raise ConfigError(
                f"nprobe is {options.nprobe:,}, and codes of target lift have lists only where the model has"
            )

    def build(
        self, codebooks: Codebooks, codes: Codes, ids: Ids, options: VisitOptions = DEFAULTS, like: Any = None
    ) -> Any:
        """-> faiss.IndexPreTransform(tile, IndexIVFPQ of dimension M d), with one list or with those of the codes."""
        self.check(options, len(codes), codebooks.L)
        if codebooks.lists is not None:
            return build_listed(codebooks, codes, ids, options.nprobe)
        stored_codebooks, codes = merged(codebooks, codes)
        lifted, tile = as_product(stored_codebooks)
        return prepend(tile, one_list(lifted, codes, ids))

    def holds(self, index: Any) -> bool:
        return is_flat_ivfpq(index) and kind_of(index) == "additive"

    def disagreement(self, index: Any) -> str | None:
        return residual_centroids(index)

    def shape_of(self, index: Any) -> Shape:
        return listed_shape(index) if has_code_lists(index) else product_shape(unwrap_index(index), "additive")

    def unpack(self, index: Any, shape: Shape | None = None, only: Ids | None = None) -> tuple[Codebooks, Codes, Ids]:
        if has_code_lists(index):
            return unpack_listed(index, shape, only)
        index = unwrap_index(index)
        _, codes, ids = rows_of(index, only)
        return *split(product_codebooks(index, "additive"), codes, shape), ids

    def nbytes(self, shape: Shape, n: int) -> int:
        if shape.L > 1:
            return listed_bytes(shape, n)
        stored = merged_shape(shape)
        return n * (shape.code_size + 8) + table_bytes(stored) + 8 * stored.M * shape.d + 1000
