"""Exact top-k without looking at every row: rows that lie close together share a list, and each list has a bound.

Label-aware codes gather around their classes, which two forms make use of. Which one is chosen, the codes decide.

*words*: where few distinct codes repeat, each stands once in an IndexPQ that is the coarse quantizer, and its inverted list
holds the ids. The best words are found by an exhaustive scan of the words; the rows of one list all tie.

*boxes*: otherwise lists hold neighbours, found by k-means, and the coarse quantizer holds the smallest box around each
list, (high, low) (2 d). No row of a list can score above <max(q, 0), high> + <min(q, 0), low>, the bound; lists are visited
by falling bound until the k-th score is not below the next one, when no other row can be better. `search` makes sure of
that; plain FAISS visits the stored nprobe, twice what sampled queries needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from faiss.contrib.inspect_tools import get_invlist
from numpy.typing import NDArray

from .. import faiss_calls
from ..codebooks import Codebooks, Codes, Shape
from ..errors import ConfigError, warn
from ..faiss_calls import Hits, Ranges
from .base import (
    COMPARED,
    METRIC,
    Ids,
    Target,
    TargetInfo,
    inject,
    kind_reason,
    parameters,
    product_books,
    product_shape,
    table_bytes,
    unpack_codes,
)
from .head import chain, inner, kind_of, prepend, through
from .lists import DECODED_BYTES, Partition, add, decoded, ivfpq, list_sizes, rows_of, words_of
from .options import ListOptions
from .pq import codes_of, index_pq
from .reshape import as_product, merged, merged_shape, split

DEFAULTS = ListOptions()
MAX_WORDS = 1 << 14  # scanned in less than 0.1 ms
WORDS_SHARE = 16  # rows a word, at least; a list costs about 200 bytes of memory
FEW_ROWS = 4096  # are kept as words in any case: the search is exact in plain FAISS too
PLAIN_NPROBE = 64  # lists of words that plain FAISS visits: exact for k up to that, mostly beyond
LISTS = 8  # times the root of the rows: more boxes to rank against fewer rows in each, measured at 1 and 10 million
FIRST = 4  # lists that the first pass of a search visits: a guess that most queries need
WIDTH = 16  # bounds that a search asks for; more where these do not suffice
FLAT_BOXES = 2048  # are scanned one by one, more of them in lists of their own
TRIED = 256  # rows that serve as queries to find how many lists plain FAISS must visit
NEARLY_ALL = 0.99  # of them must find their best
LONGEST = 4  # times the mean: longer lists are cut
SAMPLE_FLOATS = 1 << 26  # of the rows that k-means looks at, 256 MB
MOST_PAIRS = 1 << 22  # of query and list held at a time, about 100 MB
RANGE_QUERIES = 256  # at a time: a wide search may name every list for each
ROUNDING = 1e-6  # relative: bounds and scores are sums of float32 in different orders


class Buckets(Target):
    INFO = TargetInfo(
        "buckets",
        "IndexIVFPQ",
        ("product", "additive"),
        filter=True,
        range=True,
        exact=True,
    )

    def supports(self, shape: Shape) -> str | None:
        if shape.kind == "additive" and shape.metric != "ip":
            return "a sum of inner products is no distance; use target residual"
        return kind_reason(self.INFO, shape)

    def build(
        self, codebooks: Codebooks, codes: Codes, ids: Ids, options: ListOptions = DEFAULTS, like: Any = None
    ) -> Any:
        """-> faiss.IndexIVFPQ, behind a tile if the codebooks are additive. options.nlist: lists of boxes, about."""
        if options.nlist and codebooks.metric == "l2":
            raise ConfigError("lists of neighbours have bounds for inner products only; leave --nlist out")
        books, codes = merged(codebooks, codes)
        product, tile = as_product(books)
        few, inverse = np.unique(words_of(codes, books.nbits), return_index=True, return_inverse=True)[1:]
        repeat = len(few) <= MAX_WORDS and len(few) * WORDS_SHARE <= len(codes)
        if options.nlist == 0 and (repeat or len(codes) <= FEW_ROWS or books.metric == "l2"):
            index = _of_words(product, codes[few], inverse.ravel(), ids)
        else:
            index = _of_boxes(books, product, codes, ids, options.nlist)
        index = prepend(tile, index)
        if options.nprobe:
            inner(index).nprobe = min(options.nprobe, inner(index).nlist)
        elif not _holds_words(inner(index)):
            _tune(index, books, codes)
        return index

    def holds(self, index: Any) -> bool:
        index = inner(index)
        if not isinstance(index, faiss.IndexIVFPQ):
            return False
        if _holds_words(index):
            return bool(index.by_residual) and (index.pq.M, index.pq.nbits) == (1, 1)
        return _is_over_boxes(index)

    def disagreement(self, index: Any) -> str | None:
        """A row beside its word adds nothing to its score; rows lie within the box of their list."""
        core = inner(index)
        if _holds_words(core):
            rest = np.abs(faiss.vector_to_array(core.pq.centroids)).max()
            return f"rows add {rest:g} to their words, not 0" if rest else None
        return _outside(core, kind_of(index))

    def shape_of(self, index: Any) -> Shape:
        core = inner(index)
        return product_shape(faiss.downcast_index(core.quantizer) if _holds_words(core) else core, kind_of(index))

    def unpack(self, index: Any, shape: Shape | None = None) -> tuple[Codebooks, Codes, Ids]:
        core, kind = inner(index), kind_of(index)
        lists, codes, ids = rows_of(core)
        if _holds_words(core):
            coarse = faiss.downcast_index(core.quantizer)
            return *split(product_books(coarse, kind), codes_of(coarse)[lists], shape), ids
        return *split(product_books(core, kind), codes, shape), ids

    def search(self, index: Any, x: NDArray[np.float32], k: int, *, sel: Any = None, nprobe: int | None = None) -> Hits:
        """Exact, ids up to ties; with nprobe, what plain FAISS finds in so many lists."""
        if nprobe:
            return super().search(index, x, k, sel=sel, nprobe=nprobe)
        core, x = inner(index), through(index, x)
        look = _search_words if _holds_words(core) else _search_boxes
        step = max(1, MOST_PAIRS // core.nlist)  # a filter that leaves little makes a search visit every list
        parts = [look(core, x[i : i + step], k, sel) for i in range(0, max(len(x), 1), step)]
        return (
            parts[0]
            if len(parts) == 1
            else (np.concatenate([D for D, _ in parts]), np.concatenate([I for _, I in parts]))
        )

    def range_search(self, index: Any, x: NDArray[np.float32], radius: float, *, sel: Any = None) -> Ranges:
        core, x = inner(index), through(index, x)
        if _holds_words(core):  # best words first, all rows of a word alike: the first word outside ends the scan
            params = parameters(core, sel, core.nlist, max_empty_result_buckets=0 if sel is not None else 1)
            return faiss_calls.range_search(core, x, radius, params)
        parts = [
            _range_boxes(core, x[i : i + RANGE_QUERIES], radius, sel) for i in range(0, max(len(x), 1), RANGE_QUERIES)
        ]
        counts, D, I = (np.concatenate(part) for part in zip(*parts, strict=True))
        return np.r_[0, np.cumsum(counts)], D, I

    def nbytes(self, shape: Shape, n: int) -> int:
        """At most, unless more lists are asked for: which form it will be, only the codes tell."""
        tables = 2 * table_bytes(merged_shape(shape)) + 1000
        if shape.metric == "l2" or n <= FEW_ROWS:
            return 9 * n + n * (shape.code_size + 8) + tables
        words = 9 * n + min(MAX_WORDS, n // WORDS_SHARE) * (shape.code_size + 8)
        lists = 1.1 * _list_count(n)  # and those that are cut
        boxes = n * (shape.code_size + 8) + int(lists * (8 * shape.d + 24))
        return max(words, boxes) + tables


def _holds_words(core: Any) -> bool:
    return isinstance(faiss.downcast_index(core.quantizer), faiss.IndexPQ)


def _is_over_boxes(core: Any) -> bool:
    """Whether the coarse quantizer of an IndexIVFPQ holds boxes, behind the transform that _of_boxes puts there."""
    first, boxes, d = chain(core.quantizer), inner(core.quantizer), core.d
    if core.by_residual or core.metric_type != faiss.METRIC_INNER_PRODUCT or boxes.metric_type != core.metric_type:
        return False
    if len(first) != 1 or not isinstance(first[0], faiss.RemapDimensionsTransform) or boxes.d % 2:
        return False
    half = boxes.d // 2  # of additive codes, d is a multiple of it
    places = np.r_[np.arange(half), np.full(half, -1)]
    same = half <= d and np.array_equal(faiss.vector_to_array(first[0].map), places)
    return bool(same and isinstance(boxes, (faiss.IndexFlat, faiss.IndexIVFFlat)))


def _outside(core: Any, kind: str) -> str | None:
    """Of the boxes, a list with a row outside its own, or a box outside the larger one around it."""
    boxes, books = inner(core.quantizer), product_books(core, kind)
    if boxes.d != 2 * books.d:
        return f"boxes are of {boxes.d // 2} dimensions, codes of {books.d}"
    corners = _all_boxes(boxes)
    numbers, packed = _some_rows(core)
    step = max(1, DECODED_BYTES // (4 * core.d))
    for i in range(0, len(numbers), step):
        x = books.decode(unpack_codes(packed[i : i + step], core.pq.M, core.pq.nbits))
        high, low = np.split(corners[numbers[i : i + step]], 2, axis=1)
        slack = ROUNDING * np.maximum(1e-30, np.maximum(np.abs(high).max(1), np.abs(low).max(1)))[:, None]
        wrong = ((x > high + slack) | (x < low - slack)).any(axis=1)
        if wrong.any():
            return f"list {numbers[i + int(np.argmax(wrong))]:,} holds a row outside its box"
    if isinstance(boxes, faiss.IndexIVFFlat):
        larger = faiss_calls.stored_rows(boxes.quantizer)
        for number in range(boxes.nlist):
            inside = corners[get_invlist(boxes.invlists, number)[0]]
            high, low = np.split(larger[number], 2)
            if len(inside) and ((inside[:, : len(high)] > high).any() or (inside[:, len(high) :] < low).any()):
                return f"larger box {number:,} does not hold its boxes"
    return None


def _some_rows(core: Any) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """(list, packed codes) of about COMPARED rows spread over all lists, one of each list at least."""
    step, sizes = max(1, core.ntotal // COMPARED), list_sizes(core)
    filled = np.flatnonzero(sizes)
    parts = [
        faiss.rev_swig_ptr(core.invlists.get_codes(number), size * core.code_size).reshape(size, -1)[::step]
        for number, size in zip(filled.tolist(), sizes[filled].tolist())
    ]
    packed = np.concatenate(parts) if parts else np.empty((0, core.code_size), np.uint8)
    return np.repeat(filled, [len(part) for part in parts]), packed


def _all_boxes(boxes: Any) -> NDArray[np.float32]:
    """(nlist, 2 d) (high, low) of each list."""
    if isinstance(boxes, faiss.IndexFlat):
        return faiss_calls.stored_rows(boxes)
    out = np.empty((boxes.ntotal, boxes.d), np.float32)
    for number in range(boxes.nlist):
        ids, codes = get_invlist(boxes.invlists, number)
        out[ids] = codes.view(np.float32).reshape(len(ids), -1)
    return out


def _of_words(product: Codebooks, words: Codes, inverse: NDArray[np.int64], ids: Ids) -> Any:
    """words (U, M) distinct codes, inverse (n,) word of each row -> IndexIVFPQ whose coarse quantizer holds the words."""
    if not len(words):
        words = np.zeros((1, product.M), words.dtype)
    coarse = index_pq(product, words)
    # Beside its word a row has nothing to tell: one book of two zero codewords, a byte a row. (0 bits do not load; 8 would
    # make FAISS's readers count U tables of 256.)
    index = faiss.IndexIVFPQ(coarse, product.d, len(words), 1, 1, METRIC[product.metric])
    index.own_fields = True
    coarse.this.disown()
    index.by_residual = True  # the whole score comes from the "centroid", that is, from the word
    inject(index.pq.centroids, np.zeros(2 * product.d), "dummies")
    index.is_trained = True
    if product.metric == "l2":
        faiss_calls.one_thread_after_fork()
        index.precompute_table()
    add(index, inverse, np.zeros((len(ids), 1), np.uint8), ids)
    index.nprobe = min(PLAIN_NPROBE, len(words))
    return index


def _of_boxes(books: Codebooks, product: Codebooks, codes: Codes, ids: Ids, nlist: int) -> Any:
    """books as they decode, product as they are stored; codes (n, M) -> IndexIVFPQ whose coarse quantizer holds boxes."""
    n, d = len(codes), books.d
    nlist = min(nlist or _list_count(n), n)
    sample = min(n, 64 * nlist, max(nlist, SAMPLE_FLOATS // d))
    few = np.linspace(0, n, sample, endpoint=False).astype(int)
    parts = Partition(books.decode(codes[few]), nlist)
    lists = np.concatenate([parts(x) for _, x in decoded(books, codes)])
    lists = _cut(lists, words_of(codes, books.nbits), -(-LONGEST * n // nlist))
    high, low = np.full((2, lists.max() + 1, d), -np.inf, np.float32)
    low = -low
    for i, x in decoded(books, codes):
        order = np.argsort(lists[i : i + len(x)], kind="stable")
        ordered = lists[i : i + len(x)][order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        here = ordered[starts]
        high[here] = np.maximum(high[here], np.maximum.reduceat(x[order], starts))
        low[here] = np.minimum(low[here], np.minimum.reduceat(x[order], starts))
    boxes = _boxes(np.hstack([high, low]))
    # Plain FAISS hands over q alone: <q, high> is the bound where q has no negative part, and a good order elsewhere.
    first = faiss.RemapDimensionsTransform(product.d, 2 * d, False)
    faiss.copy_array_to_vector(np.r_[np.arange(d), np.full(d, -1)].astype(np.int32), first.map)
    coarse = prepend([first], boxes)
    return ivfpq(product, coarse, lists, codes, ids, by_residual=False)


def _boxes(corners: NDArray[np.float32]) -> Any:
    """(high, low) of each list (nlist, 2 d) -> IndexFlat, or for many an IndexIVFFlat over larger boxes around them."""
    flat = faiss.IndexFlatIP(corners.shape[1])
    if len(corners) <= FLAT_BOXES:
        faiss_calls.add(flat, corners)
        return flat
    lists = Partition(corners, round(np.sqrt(len(corners))))(corners)
    lists = _cut(lists, lists, len(lists))
    order = np.argsort(lists, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(lists[order]) > 0])
    high, low = np.hsplit(corners[order], 2)
    faiss_calls.add(flat, np.hstack([np.maximum.reduceat(high, starts), np.minimum.reduceat(low, starts)]))
    index = faiss.IndexIVFFlat(flat, flat.d, flat.ntotal, faiss.METRIC_INNER_PRODUCT)
    index.own_fields = True
    flat.this.disown()
    index.is_trained = True
    add(index, lists, corners.view(np.uint8), np.arange(len(corners)))
    index.nprobe = index.nlist
    return index


def _list_count(n: int) -> int:
    """Lists for n rows, a power of 2."""
    return 1 << round(float(np.log2(LISTS * np.sqrt(n))))


def _cut(lists: NDArray[np.int64], words: NDArray[Any], longest: int) -> NDArray[np.int64]:
    """Lists renumbered without gaps, those of more than `longest` rows cut in pieces, equal codes side by side.

    Pieces of one word have one bound: a search that has its k rows from the first needs none of the others.
    """
    order = np.lexsort((words, lists)) if words.dtype.kind == "u" else np.argsort(lists, kind="stable")
    ordered = lists[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    place = np.arange(len(lists)) - np.repeat(starts, np.diff(np.r_[starts, len(lists)]))
    new = np.r_[True, ordered[1:] != ordered[:-1]] | (place % longest == 0)
    out = np.empty_like(lists)
    out[order] = np.cumsum(new) - 1
    return out


def _corners(x: NDArray[np.float32], d: int) -> NDArray[np.float32]:
    """Queries as the boxes are scored with: (positive part, negative part) (nq, 2 d). A tiled query repeats itself."""
    q = x[:, :d]
    return np.hstack([np.maximum(q, 0), np.minimum(q, 0)])


def _search_preassigned(ivf: Any, x: NDArray[np.float32], k: int, bounds: Any, lists: Any, sel: Any) -> Hits:
    """Search the lists (nq, nprobe) of each query, -1 for none."""
    return faiss_calls.search_preassigned(ivf, x, k, bounds, lists, parameters(ivf, sel, lists.shape[1]))


def _search_words(core: Any, x: NDArray[np.float32], k: int, sel: Any) -> Hits:
    """Visit the best words until each query has its k rows. A row of hits without -1 is exact."""
    nprobe = min(k if sel is None else 4 * k, core.nlist)
    # max_codes alone counts before the selector and would lose rows; the soft form counts after it.
    more = {"max_codes": k} if sel is None else {"max_codes": k, "ensure_topk_full": True}
    D, I = faiss_calls.search(core, x, k, parameters(core, sel, nprobe, **more))
    todo = np.flatnonzero((I < 0).any(1))
    while len(todo) and nprobe < core.nlist:
        nprobe = min(8 * nprobe, core.nlist)
        D[todo], I[todo] = faiss_calls.search(core, x[todo], k, parameters(core, sel, nprobe, **more))
        todo = todo[(I[todo] < 0).any(1)]
    return D, I


def _search_boxes(core: Any, x: NDArray[np.float32], k: int, sel: Any) -> Hits:
    """Exact hits from an IndexIVFPQ over boxes."""
    boxes = inner(core.quantizer)
    q = _corners(x, boxes.d // 2)
    return _visit(core, x, k, sel, lambda rows, width: _best_boxes(boxes, q[rows], width))


def _range_boxes(core: Any, x: NDArray[np.float32], radius: float, sel: Any) -> Ranges:
    """Hits above radius from the lists whose bound is -> hits of each query (nq,), D, I."""
    boxes = inner(core.quantizer)
    slack = ROUNDING * abs(radius) + ROUNDING
    lims, _, near = faiss_calls.range_search(boxes, _corners(x, boxes.d // 2), radius - slack)
    counts = np.diff(lims)
    keys = np.full((len(x), max(1, int(counts.max(initial=0)))), -1, np.int64)  # -1: FAISS passes over it
    keys[np.arange(keys.shape[1]) < counts[:, None]] = near
    lims, D, I = faiss_calls.range_search_preassigned(core, x, radius, keys, parameters(core, sel, keys.shape[1]))
    return np.diff(lims), D, I


def _best_boxes(boxes: Any, q: NDArray[np.float32], width: int) -> Hits:
    """The `width` largest bounds and their boxes, best first."""
    if isinstance(boxes, faiss.IndexFlat):
        return faiss_calls.search(boxes, q, width)
    # Boxes in lists, these in larger boxes: the bound of a larger box is not below those of the boxes inside.
    larger = faiss.downcast_index(boxes.quantizer)
    return _visit(boxes, q, width, None, lambda rows, width: _best_boxes(larger, q[rows], width))


def _visit(ivf: Any, x: NDArray[np.float32], k: int, sel: Any, best: Callable[[Any, int], Hits]) -> Hits:
    """Visit the lists of each query by falling bound until its k-th score is not below the next bound.

    best(rows, width) -> (bounds, lists) of the `width` best lists. A first pass visits a few lists: with its k-th score it is
    known which lists a second must visit.
    """
    D, I = np.empty((len(x), k), np.float32), np.empty((len(x), k), np.int64)
    todo: Any = slice(None)
    width = min(WIDTH, ivf.nlist)
    few = min(FIRST, width)
    while True:
        rows = x[todo]
        bounds, lists = best(todo, width)
        if width == min(WIDTH, ivf.nlist):
            D[todo], I[todo] = _search_preassigned(ivf, rows, k, bounds[:, :few], lists[:, :few], sel)
        needed = (bounds > D[todo, -1:]) | (I[todo, -1:] < 0)
        again = np.flatnonzero(needed[:, few:].any(1)) if few < width else np.empty(0, np.int64)
        if len(again):
            keys = np.where(needed[again], lists[again], -1)[:, : int(needed[again].sum(1).max())]
            places = again if isinstance(todo, slice) else todo[again]
            D[places], I[places] = _search_preassigned(ivf, rows[again], k, bounds[again, : keys.shape[1]], keys, sel)
        if width == ivf.nlist or not needed[:, -1].any():
            return D, I
        beyond = np.flatnonzero((bounds[:, -1] > D[todo, -1]) | (I[todo, -1] < 0))
        todo = beyond if isinstance(todo, slice) else todo[beyond]
        if not len(todo):
            return D, I
        width = few = min(4 * width, ivf.nlist)
        few = 0


def _tune(index: Any, books: Codebooks, codes: Codes) -> None:
    """Set the nprobe of plain FAISS: twice the lists in which nearly all rows that serve as queries find their 10 best."""
    few = np.linspace(0, len(codes), min(len(codes), TRIED), endpoint=False).astype(int)
    core, x, k = inner(index), through(index, books.decode(codes[few])), min(10, len(codes))
    exact, _ = _search_boxes(core, x, k, None)
    core.nprobe = min(FIRST, core.nlist)
    while core.nprobe < core.nlist:
        found = np.abs(faiss_calls.search(core, x, k)[0] - exact) <= 10 * ROUNDING * np.abs(exact).max(1, keepdims=True)
        if found.all(1).mean() >= NEARLY_ALL:  # one outlier would ask for half of the lists
            break
        core.nprobe = min(2 * core.nprobe, core.nlist)
    core.nprobe = min(2 * core.nprobe, core.nlist)
    if core.nprobe == core.nlist and len(codes) > FEW_ROWS:
        warn("these codes do not gather: buckets look at most rows of them, targets ivfpq and lift are faster")
