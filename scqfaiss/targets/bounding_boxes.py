"""Bounding boxes of inverted lists: which lists can hold a better row than those found, and which cannot.

The coarse quantizer holds the smallest box around each list, (high, low) (2 d), and no row of a list scores above
<max(q, 0), high> + <min(q, 0), low>, its bound. Many boxes stand in lists of their own, inside larger boxes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from faiss.contrib.inspect_tools import get_invlist
from numpy.typing import NDArray

from .. import faiss_calls
from ..codebooks import Codebooks, Codes
from ..errors import warn
from ..faiss_calls import Hits, Ranges
from .base import COMPARED, Ids, parameters, product_codebooks, unpack_codes
from .lists import DECODED_BYTES, Partition, add, code_keys, decoded, ivfpq, list_sizes
from .pretransform import apply_transforms, chain, prepend, unwrap_index

FEW_ROWS = 4096  # have no lists of neighbours unless these are asked for
LISTS = 8  # times the root of the rows: more boxes to rank against fewer rows in each, measured at 1 and 10 million
FIRST = 4  # lists that the first pass of a search visits: a guess that most queries need
WIDTH = 16  # bounds that a search asks for; more where these do not suffice
FLAT_BOXES = 2048  # are scanned one by one, more of them in lists of their own
TRIED = 256  # rows that serve as queries to find how many lists plain FAISS must visit
NEARLY_ALL = 0.99  # of them must find their best
LONGEST = 4  # times the mean: longer lists are cut
SAMPLE_FLOATS = 1 << 26  # of the rows that k-means looks at, 256 MB
RANGE_QUERIES = 256  # at a time: a wide search may name every list for each
ROUNDING = 1e-6  # relative: bounds and scores are sums of float32 in different orders
SUM_ROUNDING = 1e-5  # the same of scores that are the sum of a list's and of what its rows add


def is_over_boxes(core: Any) -> bool:
    """Whether the coarse quantizer of an IndexIVFPQ holds bounding boxes, behind the transform that build_boxes puts there."""
    transforms, boxes, d = chain(core.quantizer), unwrap_index(core.quantizer), core.d
    if core.by_residual or core.metric_type != faiss.METRIC_INNER_PRODUCT or boxes.metric_type != core.metric_type:
        return False
    if len(transforms) != 1 or not isinstance(transforms[0], faiss.RemapDimensionsTransform) or boxes.d % 2:
        return False
    half = boxes.d // 2  # of additive codes, d is a multiple of it
    places = np.r_[np.arange(half), np.full(half, -1)]
    same = half <= d and np.array_equal(faiss.vector_to_array(transforms[0].map), places)
    return bool(same and isinstance(boxes, (faiss.IndexFlat, faiss.IndexIVFFlat)))


def box_disagreement(core: Any, kind: str) -> str | None:
    """None, or of the bounding boxes: a list with a row outside its own, or a box outside the larger one around it."""
    boxes, codebooks = unwrap_index(core.quantizer), product_codebooks(core, kind)
    if boxes.d != 2 * codebooks.d:
        return f"boxes are of {boxes.d // 2} dimensions, codes of {codebooks.d}"
    highs_lows = all_boxes(boxes)
    numbers, packed = _some_rows(core)
    step = max(1, DECODED_BYTES // (4 * core.d))
    for i in range(0, len(numbers), step):
        x = codebooks.decode(unpack_codes(packed[i : i + step], core.pq.M, core.pq.nbits))
        high, low = np.split(highs_lows[numbers[i : i + step]], 2, axis=1)
        slack = ROUNDING * np.maximum(1e-30, np.maximum(np.abs(high).max(1), np.abs(low).max(1)))[:, None]
        wrong = ((x > high + slack) | (x < low - slack)).any(axis=1)
        if wrong.any():
            return f"list {numbers[i + int(np.argmax(wrong))]:,} holds a row outside its bounding box"
    if isinstance(boxes, faiss.IndexIVFFlat):
        larger = faiss_calls.stored_rows(boxes.quantizer)
        for number in range(boxes.nlist):
            inside = highs_lows[get_invlist(boxes.invlists, number)[0]]
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


def all_boxes(boxes: Any) -> NDArray[np.float32]:
    """(nlist, 2 d) (high, low) of each list."""
    if isinstance(boxes, faiss.IndexFlat):
        return faiss_calls.stored_rows(boxes)
    out = np.empty((boxes.ntotal, boxes.d), np.float32)
    for number in range(boxes.nlist):
        ids, codes = get_invlist(boxes.invlists, number)
        out[ids] = codes.view(np.float32).reshape(len(ids), -1)
    return out


def build_boxes(codebooks: Codebooks, product: Codebooks, codes: Codes, ids: Ids, nlist: int) -> Any:
    """codebooks as they decode, product as they are stored; codes (n, M) -> IndexIVFPQ over bounding boxes."""
    n, d = len(codes), codebooks.d
    nlist = min(nlist or list_count(n), n)
    sample = min(n, 64 * nlist, max(nlist, SAMPLE_FLOATS // d))
    sampled = np.linspace(0, n, sample, endpoint=False).astype(int)
    partition = Partition(codebooks.decode(codes[sampled]), nlist)
    lists = np.concatenate([partition(x) for _, x in decoded(codebooks, codes)])
    lists = cut_lists(lists, code_keys(codes, codebooks.nbits), -(-LONGEST * n // nlist))
    high, low = np.full((2, lists.max() + 1, d), -np.inf, np.float32)
    low = -low
    for i, x in decoded(codebooks, codes):
        order = np.argsort(lists[i : i + len(x)], kind="stable")
        ordered = lists[i : i + len(x)][order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        touched = ordered[starts]
        high[touched] = np.maximum(high[touched], np.maximum.reduceat(x[order], starts))
        low[touched] = np.minimum(low[touched], np.minimum.reduceat(x[order], starts))
    boxes = _index_boxes(np.hstack([high, low]))
    # Plain FAISS hands over q alone: <q, high> is the bound where q has no negative part, and a good order elsewhere.
    widen = faiss.RemapDimensionsTransform(product.d, 2 * d, False)
    faiss.copy_array_to_vector(np.r_[np.arange(d), np.full(d, -1)].astype(np.int32), widen.map)
    coarse = prepend([widen], boxes)
    return ivfpq(product, coarse, lists, codes, ids, by_residual=False)


def _index_boxes(boxes: NDArray[np.float32]) -> Any:
    """(high, low) of each list (nlist, 2 d) -> IndexFlat, or for many an IndexIVFFlat over larger boxes around them."""
    flat = faiss.IndexFlatIP(boxes.shape[1])
    if len(boxes) <= FLAT_BOXES:
        faiss_calls.add(flat, boxes)
        return flat
    lists = Partition(boxes, round(np.sqrt(len(boxes))))(boxes)
    lists = cut_lists(lists, lists, len(lists))
    order = np.argsort(lists, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(lists[order]) > 0])
    high, low = np.hsplit(boxes[order], 2)
    faiss_calls.add(flat, np.hstack([np.maximum.reduceat(high, starts), np.minimum.reduceat(low, starts)]))
    index = faiss.IndexIVFFlat(flat, flat.d, flat.ntotal, faiss.METRIC_INNER_PRODUCT)
    index.own_fields = True
    flat.this.disown()
    index.is_trained = True
    add(index, lists, boxes.view(np.uint8), np.arange(len(boxes)))
    index.nprobe = index.nlist
    return index


def list_count(n: int) -> int:
    """Lists for n rows, a power of 2."""
    return 1 << round(float(np.log2(LISTS * np.sqrt(n))))


def cut_lists(lists: NDArray[np.int64], keys: NDArray[Any], longest: int) -> NDArray[np.int64]:
    """Lists renumbered without gaps, those of more than `longest` rows cut in pieces, equal codes side by side.

    Pieces of one code have one bound: a search that has its k rows from the first needs none of the others.
    """
    order = np.lexsort((keys, lists)) if keys.dtype.kind == "u" else np.argsort(lists, kind="stable")
    ordered = lists[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    place = np.arange(len(lists)) - np.repeat(starts, np.diff(np.r_[starts, len(lists)]))
    new = np.r_[True, ordered[1:] != ordered[:-1]] | (place % longest == 0)
    out = np.empty_like(lists)
    out[order] = np.cumsum(new) - 1
    return out


def signed_parts(x: NDArray[np.float32], d: int) -> NDArray[np.float32]:
    """Queries as the boxes are scored with: (positive part, negative part) (nq, 2 d). A tiled query repeats itself."""
    q = x[:, :d]
    return np.hstack([np.maximum(q, 0), np.minimum(q, 0)])


def search_boxes(core: Any, x: NDArray[np.float32], k: int, sel: Any) -> Hits:
    """Exact hits from an IndexIVFPQ over boxes."""
    boxes = unwrap_index(core.quantizer)
    q = signed_parts(x, boxes.d // 2)
    return visit_lists(core, x, k, sel, lambda rows, width: best_boxes(boxes, q[rows], width))


def range_search_boxes(core: Any, x: NDArray[np.float32], radius: float, sel: Any) -> Ranges:
    """Hits above radius of each query -> lims (nq + 1,), D, I."""
    blocks = range(0, max(len(x), 1), RANGE_QUERIES)
    parts = [_range_search_block(core, x[i : i + RANGE_QUERIES], radius, sel) for i in blocks]
    counts, D, I = (np.concatenate(part) for part in zip(*parts, strict=True))
    return np.r_[0, np.cumsum(counts)], D, I


def _range_search_block(core: Any, x: NDArray[np.float32], radius: float, sel: Any) -> Ranges:
    """Hits above radius from the lists whose bound is -> hits of each query (nq,), D, I."""
    boxes = unwrap_index(core.quantizer)
    slack = ROUNDING * abs(radius) + ROUNDING
    lims, _, near = faiss_calls.range_search(boxes, signed_parts(x, boxes.d // 2), radius - slack)
    counts = np.diff(lims)
    keys = np.full((len(x), max(1, int(counts.max(initial=0)))), -1, np.int64)  # -1: FAISS passes over it
    keys[np.arange(keys.shape[1]) < counts[:, None]] = near
    lims, D, I = faiss_calls.range_search_preassigned(core, x, radius, keys, parameters(core, sel, keys.shape[1]))
    return np.diff(lims), D, I


def best_boxes(boxes: Any, q: NDArray[np.float32], width: int) -> Hits:
    """The `width` largest bounds and their boxes, best first."""
    if isinstance(boxes, faiss.IndexFlat):
        return faiss_calls.search(boxes, q, width)
    # Boxes in lists, these in larger boxes: the bound of a larger box is not below those of the boxes inside.
    larger = faiss.downcast_index(boxes.quantizer)
    return visit_lists(boxes, q, width, None, lambda rows, width: best_boxes(larger, q[rows], width))


def visit_lists(
    ivf: Any, x: NDArray[np.float32], k: int, sel: Any, best: Callable[[Any, int], Hits], above: Any = None
) -> Hits:
    """Visit the lists of each query by descending bound until its k-th score is not below the next bound.

    best(rows, width) -> (bounds, lists) of the `width` best lists. A first pass visits a few lists: with its k-th score it is
    known which lists a second must visit. above: (nq,) what a row may score above its list, where `best` gives the scores of
    lists by themselves.
    """

    def limits(bounds: Any) -> Any:
        return bounds if above is None else bounds + SUM_ROUNDING * np.abs(bounds) + above[todo, None]

    D, I = np.empty((len(x), k), np.float32), np.empty((len(x), k), np.int64)
    todo: Any = slice(None)
    width = min(WIDTH, ivf.nlist)
    first = min(FIRST, width)
    while True:
        rows = x[todo]
        bounds, lists = best(todo, width)
        if width == min(WIDTH, ivf.nlist):
            D[todo], I[todo] = _search_preassigned(ivf, rows, k, bounds[:, :first], lists[:, :first], sel)
        needed = (limits(bounds) > D[todo, -1:]) | (I[todo, -1:] < 0)
        again = np.flatnonzero(needed[:, first:].any(1)) if first < width else np.empty(0, np.int64)
        if len(again):
            keys = np.where(needed[again], lists[again], -1)[:, : int(needed[again].sum(1).max())]
            places = again if isinstance(todo, slice) else todo[again]
            D[places], I[places] = _search_preassigned(ivf, rows[again], k, bounds[again, : keys.shape[1]], keys, sel)
        if width == ivf.nlist or not needed[:, -1].any():
            return D, I
        beyond = np.flatnonzero((limits(bounds)[:, -1] > D[todo, -1]) | (I[todo, -1] < 0))
        todo = beyond if isinstance(todo, slice) else todo[beyond]
        if not len(todo):
            return D, I
        width, first = min(4 * width, ivf.nlist), 0


def _search_preassigned(ivf: Any, x: NDArray[np.float32], k: int, bounds: Any, lists: Any, sel: Any) -> Hits:
    """Search the lists (nq, nprobe) of each query, -1 for none."""
    return faiss_calls.search_preassigned(ivf, x, k, bounds, lists, parameters(ivf, sel, lists.shape[1]))


def tune_nprobe(index: Any, codebooks: Codebooks, codes: Codes) -> None:
    """Set the nprobe of plain FAISS: twice the lists in which nearly all rows that serve as queries find their 10 best."""
    tried = np.linspace(0, len(codes), min(len(codes), TRIED), endpoint=False).astype(int)
    core, x, k = unwrap_index(index), apply_transforms(index, codebooks.decode(codes[tried])), min(10, len(codes))
    exact, _ = search_boxes(core, x, k, None)
    core.nprobe = min(FIRST, core.nlist)
    while core.nprobe < core.nlist:
        same = np.abs(faiss_calls.search(core, x, k)[0] - exact) <= 10 * ROUNDING * np.abs(exact).max(1, keepdims=True)
        if same.all(1).mean() >= NEARLY_ALL:  # one outlier would ask for half of the lists
            break
        core.nprobe = min(2 * core.nprobe, core.nlist)
    core.nprobe = min(2 * core.nprobe, core.nlist)
    if core.nprobe == core.nlist and len(codes) > FEW_ROWS:
        warn("these codes do not gather: buckets look at most rows of them, targets ivfpq and lift are faster")
