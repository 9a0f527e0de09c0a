"""Exact top-k without looking at every row: rows that lie close together share a list, and each list has a bound.

Label-aware codes gather around their classes, which two forms make use of. Which one is chosen, the codes decide.

*unique codes*: where few codes repeat, each stands once in an IndexPQ that is the coarse quantizer, and its inverted list
holds the ids. The best codes are found by an exhaustive scan of the unique ones; the rows of one list all tie.

*bounding boxes*: otherwise lists hold neighbours, found by k-means, and the coarse quantizer holds the smallest box around
each list (see bounding_boxes.py). Lists are visited by descending bound until the k-th score is not below the next one, when
no other row can be better. `search` makes sure of that; plain FAISS visits the stored nprobe, twice what sampled queries
needed.

Codes whose lists come with the model are stored as target ivfpq or lift stores them, and searched exactly all the same (see
list_bounds.py).
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from .. import faiss_calls
from ..codebooks import Codebooks, Codes, Shape
from ..errors import ConfigError
from ..faiss_calls import Hits, Ranges
from .base import (
    METRIC,
    Ids,
    Target,
    TargetInfo,
    inject,
    kind_reason,
    parameters,
    product_codebooks,
    product_shape,
    search_until_full,
    table_bytes,
)
from .bounding_boxes import (
    FEW_ROWS,
    box_disagreement,
    build_boxes,
    is_over_boxes,
    list_count,
    range_search_boxes,
    search_boxes,
    tune_nprobe,
)
from .code_lists import (
    build_listed,
    has_code_lists,
    list_disagreement,
    listed_bytes,
    listed_shape,
    table_reason,
    unpack_listed,
)
from .list_bounds import range_search_listed, search_listed
from .lists import add, code_keys, rows_of
from .options import ListOptions
from .pq import codes_of, index_pq
from .pretransform import apply_transforms, kind_of, prepend, unwrap_index
from .reshape import as_product, merged, merged_shape, split

DEFAULTS = ListOptions()
MAX_UNIQUE = 1 << 14  # scanned in less than 0.1 ms
ROWS_PER_CODE = 16  # at least; a list costs about 200 bytes of memory
PLAIN_NPROBE = 64  # lists of unique codes that plain FAISS visits: exact for k up to that, mostly beyond
MOST_PAIRS = 1 << 22  # of query and list held at a time, about 100 MB


class Buckets(Target):
    INFO = TargetInfo("buckets", "IndexIVFPQ", ("product", "additive"), filter=True, range=True, exact=True, lists=True)

    def supports(self, shape: Shape) -> str | None:
        if shape.kind == "additive" and shape.metric != "ip":
            return "a sum of inner products is no distance; use target residual"
        if shape.L > 1 and shape.metric != "ip":
            return "lists have bounds for inner products only; use target ivfpq"
        return kind_reason(self.INFO, shape) or table_reason(shape)

    def build(
        self, codebooks: Codebooks, codes: Codes, ids: Ids, options: ListOptions = DEFAULTS, like: Any = None
    ) -> Any:
        """-> faiss.IndexIVFPQ, behind a tile if the codebooks are additive. options.nlist: lists with bounding boxes, about."""
        if codebooks.lists is not None:
            self.check(options, len(codes), codebooks.L)
            return build_listed(codebooks, codes, ids, options.nprobe)
        if options.nlist and codebooks.metric == "l2":
            raise ConfigError("lists of neighbours have bounds for inner products only; leave --nlist out")
        stored_codebooks, codes = merged(codebooks, codes)
        product, tile = as_product(stored_codebooks)
        first, inverse = np.unique(code_keys(codes, stored_codebooks.nbits), return_index=True, return_inverse=True)[1:]
        repeat = len(first) <= MAX_UNIQUE and len(first) * ROWS_PER_CODE <= len(codes)
        if options.nlist == 0 and (repeat or len(codes) <= FEW_ROWS or stored_codebooks.metric == "l2"):
            index = _build_unique_codes(product, codes[first], inverse.ravel(), ids)
        else:
            index = build_boxes(stored_codebooks, product, codes, ids, options.nlist)
        index = prepend(tile, index)
        if options.nprobe:
            unwrap_index(index).nprobe = min(options.nprobe, unwrap_index(index).nlist)
        elif not _holds_unique_codes(unwrap_index(index)):
            tune_nprobe(index, stored_codebooks, codes)
        return index

    def holds(self, index: Any) -> bool:
        index = unwrap_index(index)
        if not isinstance(index, faiss.IndexIVFPQ):
            return False
        if has_code_lists(index):
            return bool(index.metric_type == faiss.METRIC_INNER_PRODUCT)
        if _holds_unique_codes(index):
            return bool(index.by_residual) and (index.pq.M, index.pq.nbits) == (1, 1)
        return is_over_boxes(index)

    def disagreement(self, index: Any) -> str | None:
        """A row beside its unique code adds nothing to its score; rows lie within the box of their list."""
        core = unwrap_index(index)
        if has_code_lists(core):
            return list_disagreement(index)
        if _holds_unique_codes(core):
            offset = np.abs(faiss.vector_to_array(core.pq.centroids)).max()
            return f"rows add {offset:g} to their unique codes, not 0" if offset else None
        return box_disagreement(core, kind_of(index))

    def shape_of(self, index: Any) -> Shape:
        core = unwrap_index(index)
        if has_code_lists(core):
            return listed_shape(index)
        return product_shape(
            faiss.downcast_index(core.quantizer) if _holds_unique_codes(core) else core, kind_of(index)
        )

    def unpack(self, index: Any, shape: Shape | None = None, only: Ids | None = None) -> tuple[Codebooks, Codes, Ids]:
        core, kind = unwrap_index(index), kind_of(index)
        if has_code_lists(core):
            return unpack_listed(index, shape, only)
        lists, codes, ids = rows_of(core, only)
        if _holds_unique_codes(core):
            coarse = faiss.downcast_index(core.quantizer)
            codes = codes_of(coarse)[lists] if only is None else codes_of(coarse, lists)
            return *split(product_codebooks(coarse, kind), codes, shape), ids
        return *split(product_codebooks(core, kind), codes, shape), ids

    def search(self, index: Any, x: NDArray[np.float32], k: int, *, sel: Any = None, nprobe: int | None = None) -> Hits:
        """Exact, ids up to ties; with nprobe, what plain FAISS finds in so many lists."""
        if nprobe:
            return super().search(index, x, k, sel=sel, nprobe=nprobe)
        core, x = unwrap_index(index), apply_transforms(index, x)
        look = search_listed if has_code_lists(core) else search_boxes
        if _holds_unique_codes(core):
            look = _search_unique_codes
        step = max(1, MOST_PAIRS // core.nlist)  # a filter that leaves little makes a search visit every list
        parts = [look(core, x[i : i + step], k, sel) for i in range(0, max(len(x), 1), step)]
        return np.concatenate([D for D, _ in parts]), np.concatenate([I for _, I in parts])

    def range_search(self, index: Any, x: NDArray[np.float32], radius: float, *, sel: Any = None) -> Ranges:
        core, x = unwrap_index(index), apply_transforms(index, x)
        if has_code_lists(core):
            return range_search_listed(core, x, radius, sel)
        if _holds_unique_codes(core):  # best codes first, all rows of a code alike: the first outside ends the scan
            params = parameters(core, sel, core.nlist, max_empty_result_buckets=0 if sel is not None else 1)
            return faiss_calls.range_search(core, x, radius, params)
        return range_search_boxes(core, x, radius, sel)

    def nbytes(self, shape: Shape, n: int) -> int:
        """At most, unless more lists are asked for: which form it will be, only the codes tell."""
        if shape.L > 1:
            return listed_bytes(shape, n)
        tables = 2 * table_bytes(merged_shape(shape)) + 1000
        if shape.metric == "l2" or n <= FEW_ROWS:
            return 9 * n + n * (shape.code_size + 8) + tables
        unique = 9 * n + min(MAX_UNIQUE, n // ROWS_PER_CODE) * (shape.code_size + 8)
        lists = 1.1 * list_count(n)  # and those that are cut
        boxes = n * (shape.code_size + 8) + int(lists * (8 * shape.d + 24))
        return max(unique, boxes) + tables


def _holds_unique_codes(core: Any) -> bool:
    return isinstance(faiss.downcast_index(core.quantizer), faiss.IndexPQ)


def _build_unique_codes(product: Codebooks, unique: Codes, inverse: NDArray[np.int64], ids: Ids) -> Any:
    """unique (U, M) codes, inverse (n,) the one of each row -> IndexIVFPQ whose coarse quantizer holds the unique codes."""
    if not len(unique):
        unique = np.zeros((1, product.M), unique.dtype)
    coarse = index_pq(product, unique)
    # Beside its unique code a row has nothing to tell: one codebook of two zero codewords, a byte a row. (0 bits do not load; 8
    # would make FAISS's readers count U tables of 256.)
    index = faiss.IndexIVFPQ(coarse, product.d, len(unique), 1, 1, METRIC[product.metric])
    index.own_fields = True
    coarse.this.disown()
    index.by_residual = True  # the whole score comes from the "centroid", that is, from the unique code
    inject(index.pq.centroids, np.zeros(2 * product.d), "dummies")
    index.is_trained = True
    if product.metric == "l2":
        faiss_calls.one_thread_after_fork()
        index.precompute_table()
    add(index, inverse, np.zeros((len(ids), 1), np.uint8), ids)
    index.nprobe = min(PLAIN_NPROBE, len(unique))
    return index


def _search_unique_codes(core: Any, x: NDArray[np.float32], k: int, sel: Any) -> Hits:
    """Visit the best unique codes until each query has its k rows. A row of hits without -1 is exact."""
    nprobe = min(k if sel is None else 4 * k, core.nlist)
    # max_codes alone counts before the selector and would lose rows; the soft form counts after it.
    more = {"max_codes": k} if sel is None else {"max_codes": k, "ensure_topk_full": True}
    return search_until_full(core, x, k, sel, nprobe, **more)
