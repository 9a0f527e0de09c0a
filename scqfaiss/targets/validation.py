"""The allow-list: an index read from a file is validated before its first search.

FAISS checks little: it accepts NaN codebooks, sizes that disagree make it read outside its arrays, and of many classes that it
reads inside one another its search aborts the process. Only what stands in PLACES passes, with sizes that agree and numbers
that float32 can search with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
from faiss.contrib.inspect_tools import get_invlist
from numpy.typing import NDArray

from ..errors import IndexFileError
from .ids import id_pieces, lowest_and_repeated

MAX_D = 1 << 20
# Of stored vectors, and of what transforms make of a query of norm 1: squares and products stay in float32.
MAX_NORM = 1e18
BLOCK = 1 << 22  # numbers looked at in float64 at a time
AQ = faiss.AdditiveQuantizer

_FLAT = ("IndexFlat", "IndexFlatIP", "IndexFlatL2")
_IDS = ("IndexIDMap", "IndexIDMap2")
_CODES = (*_FLAT, "IndexPQ", "IndexPQFastScan", "IndexResidualQuantizer", "IndexIVFPQ")
# Where an index stands -> the classes that may stand there. FAISS reads more, and cannot search all of it.
PLACES: dict[str, tuple[str, ...]] = {
    "in a file": (*_CODES, *_IDS, "IndexRefine", "IndexPreTransform"),
    "behind transforms": (*_CODES, *_IDS, "IndexRefine"),
    "behind ids": (*_CODES, "IndexRefine", "IndexPreTransform"),
    "behind ids and transforms": (*_CODES, "IndexRefine"),
    "as base of a refine": (*_CODES, "IndexPreTransform"),
    "behind transforms of a base": _CODES,
    "as store of a refine": ("IndexPQ", "IndexResidualQuantizer"),
    "as coarse quantizer": (*_FLAT, "IndexPQ", "IndexPQFastScan", "IndexResidualQuantizer", "IndexPreTransform"),
    "behind transforms of a coarse quantizer": (*_FLAT, "IndexPQ", "IndexIVFFlat"),
    "as coarse quantizer of bounding boxes": _FLAT,
}
# The place behind transforms, or behind ids, that stand in a place themselves.
_TRANSFORMED = {
    "in a file": "behind transforms",
    "behind ids": "behind ids and transforms",
    "as base of a refine": "behind transforms of a base",
    "as coarse quantizer": "behind transforms of a coarse quantizer",
}
_NUMBERED = {"in a file": "behind ids", "behind transforms": "behind ids and transforms"}
# Rows of an inverted list carry ids of their own; what stands around these takes them for row numbers.
_BY_ROW_NUMBER = ("behind ids", "behind ids and transforms", "as base of a refine", "behind transforms of a base")
TRANSFORMS = ("LinearTransform", "CenteringTransform", "RemapDimensionsTransform", "NormalizationTransform")


def _need(condition: Any, what: str) -> None:
    if not condition:
        raise IndexFileError(what)


def _finite(vector: Any, what: str) -> NDArray[np.float64]:
    """The numbers of a FAISS float vector in float64, once they are finite."""
    with np.errstate(invalid="ignore"):  # a signalling NaN says so when it is converted
        values = np.asarray(faiss.vector_to_array(vector), np.float64)
    _need(np.isfinite(values).all(), f"{what} are not finite")
    return values


def _small(norm: float, what: str) -> float:
    _need(norm <= MAX_NORM, f"{what} have norm {norm:.3g}, at most {MAX_NORM:g} can be searched in float32")
    return norm


def validate(index: Any, mapped: bool = False) -> None:
    """Raise IndexFileError with what is wrong, unless `index` is one that FAISS can search safely.

    mapped: it was opened memory-mapped, its lists may stand in the file itself.
    """
    _validate(index, "in a file", mapped)


def _validate(index: Any, place: str, mapped: bool) -> float:
    """-> at most the norm of a vector in the index."""
    index = None if index is None else faiss.downcast_index(index)
    _need(index is not None, f"there is no index {place}")
    name = type(index).__name__
    if name not in PLACES[place]:
        known = any(name in classes for classes in PLACES.values())
        why = f"cannot stand {place}" if known else "is not one that scqfaiss writes"
        raise IndexFileError(f"class {name} {why}")
    _need(0 < index.d <= MAX_D and index.is_trained, f"{name} has d={index.d} or is not trained")
    _need(index.ntotal >= 0, f"{name} says {index.ntotal:,} rows")
    _need(index.metric_type in (faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2), f"{name} has an unknown metric")
    if name in _FLAT:
        return _validate_flat(index, name)
    if name in _IDS:
        _inside(index, index.index, name)
        _need(index.id_map.size() == index.ntotal, f"{name}: number of ids differs")
        return _validate(index.index, _NUMBERED[place], mapped)
    match name:
        case "IndexPQ":
            return _validate_index_pq(index, name)
        case "IndexPQFastScan":
            return _validate_fast_scan(index, name)
        case "IndexResidualQuantizer":
            return _validate_rq(index, name)
        case "IndexIVFPQ":
            return _validate_ivfpq(index, name, place, mapped)
        case "IndexIVFFlat":
            return _validate_ivf_flat(index, name, mapped)
        case "IndexRefine":
            return _validate_refine(index, name, mapped)
    return _validate_pretransform(index, name, place, mapped)


def _validate_flat(index: Any, name: str) -> float:
    _need(index.codes.size() == index.ntotal * index.d * 4, f"{name}: table of another size")
    told = {"IndexFlatIP": faiss.METRIC_INNER_PRODUCT, "IndexFlatL2": faiss.METRIC_L2}.get(name, index.metric_type)
    _need(told == index.metric_type, f"{name} has metric {_metric(index)}")
    return _largest(faiss.vector_to_array(index.codes).view(np.float32).reshape(-1, index.d), name)


def _validate_index_pq(index: Any, name: str) -> float:
    norm = _validate_pq(index, name)
    _need(index.search_type == faiss.IndexPQ.ST_PQ and not index.encode_signs, f"{name}: search type")
    _need(index.codes.size() == index.ntotal * index.code_size, f"{name}: codes of another size")
    _need(index.code_size == index.pq.code_size, f"{name}: code size differs")
    return norm


def _validate_fast_scan(index: Any, name: str) -> float:
    norm = _validate_pq(index, name)
    M2 = index.pq.M + index.pq.M % 2
    _need(index.pq.nbits == 4 and (index.M, index.M2, index.bbs) == (index.pq.M, M2, 32), f"{name}: layout")
    _need((index.nbits, index.ksub, index.code_size) == (4, 16, (index.pq.M + 1) // 2), f"{name}: layout")
    _need(index.implem == index.qbs == 0, f"{name}: implem or qbs")
    rows = -(-index.ntotal // 32) * 32
    _need(index.ntotal2 == rows and index.codes.size() == rows * M2 // 2, f"{name}: codes of another size")
    return norm


def _validate_ivfpq(index: Any, name: str, place: str, mapped: bool) -> float:
    norm = _validate_pq(index, name)
    _need(index.code_size == index.pq.code_size, f"{name}: code size differs")
    _need(index.polysemous_ht == 0, f"{name}: polysemous_ht {index.polysemous_ht}")
    coarse = _validate_lists(index, name, mapped, "as coarse quantizer")
    if place in _BY_ROW_NUMBER:
        _validate_numbers(index, name)
    return norm + coarse * bool(index.by_residual)


def _validate_ivf_flat(index: Any, name: str, mapped: bool) -> float:
    _need(index.code_size == 4 * index.d, f"{name}: code size differs")
    _validate_lists(index, name, mapped, "as coarse quantizer of bounding boxes")
    _validate_numbers(index, name)
    blocks = (get_invlist(index.invlists, i)[1] for i in range(index.nlist))
    return max((_largest(codes.view(np.float32).reshape(-1, index.d), name) for codes in blocks), default=0.0)


def _validate_refine(index: Any, name: str, mapped: bool) -> float:
    for part in (index.base_index, index.refine_index):
        _inside(index, part, name)
    _need(1 <= index.k_factor <= 1000, f"{name}: k_factor {index.k_factor}")
    norm = _validate(index.base_index, "as base of a refine", mapped)
    return max(norm, _validate(index.refine_index, "as store of a refine", mapped))


def _validate_pretransform(index: Any, name: str, place: str, mapped: bool) -> float:
    d, reach = index.d, 1.0
    for i in range(index.chain.size()):
        t = index.chain.at(i)
        _need(t is not None, f"{name}: transform {i} is missing")
        t = faiss.downcast_VectorTransform(t)
        _need(t.d_in == d and 0 < t.d_out <= MAX_D and t.is_trained, f"{name}: transform {i} does not fit")
        reach = _small(_validate_transform(t, reach), f"{name}: queries of norm 1 behind transform {i}")
        d = t.d_out
    _inside(index, index.index, name, d)
    return _validate(index.index, _TRANSFORMED[place], mapped)


def _metric(index: Any) -> str:
    return {faiss.METRIC_INNER_PRODUCT: "ip", faiss.METRIC_L2: "l2"}.get(index.metric_type, str(index.metric_type))


def _inside(index: Any, part: Any, name: str, d: int | None = None) -> None:
    """An index around another tells the same of its rows as that does."""
    _need(part is not None, f"{name}: there is no index in it")
    d = index.d if d is None else d
    _need(part.d == d, f"{name}: d differs inside: {d} and {part.d}")
    _need(part.ntotal == index.ntotal, f"{name}: number of rows differs inside: {index.ntotal:,} and {part.ntotal:,}")
    same = part.metric_type == index.metric_type
    _need(same, f"{name}: metric differs inside: {_metric(index)} and {_metric(part)}")


def _largest(rows: NDArray[np.float32], name: str) -> float:
    """The largest norm of rows (n, d), which are finite."""
    step, largest = max(1, BLOCK // rows.shape[1]), 0.0
    for i in range(0, len(rows), step):
        squares = np.square(rows[i : i + step], dtype=np.float64).sum(1)
        _need(np.isfinite(squares).all(), f"{name}: vectors are not finite")
        largest = max(largest, float(squares.max()))
    return _small(largest**0.5, f"{name}: vectors")


def _validate_pq(index: Any, name: str) -> float:
    pq = index.pq
    _need(pq.M > 0 and pq.d == index.d and pq.M * pq.dsub == index.d, f"{name}: M or dsub does not fit d")
    _need(1 <= pq.nbits <= 16 and pq.ksub == 1 << pq.nbits, f"{name}: nbits or ksub")
    _need(pq.code_size == (pq.M * pq.nbits + 7) // 8, f"{name}: code size")
    _need(
        pq.dsub != 2 or pq.nbits >= 3 or (name == "IndexIVFPQ" and pq.nbits == 1), f"{name}: nbits {pq.nbits} of dsub 2"
    )
    _need(pq.centroids.size() == pq.M * pq.ksub * pq.dsub, f"{name}: codebooks of another size")
    squares = np.square(_finite(pq.centroids, f"{name}: codebooks")).reshape(pq.M, pq.ksub, pq.dsub).sum(2)
    return _small(float(squares.max(1).sum()) ** 0.5, f"{name}: codebooks")


def _validate_rq(index: Any, name: str) -> float:
    rq = index.rq
    _need(rq.is_trained, f"{name}: its quantizer is not trained")
    _need(rq.d == index.d, f"{name}: d differs inside: {index.d} and {rq.d}")
    nbits = faiss.vector_to_array(rq.nbits)
    _need(len(nbits) == rq.M and rq.M > 0 and (nbits == nbits[0]).all() and 1 <= nbits[0] <= 16, f"{name}: M or nbits")
    _need(rq.codebooks.size() == rq.M * (1 << int(nbits[0])) * index.d, f"{name}: codebooks of another size")
    squares = np.square(_finite(rq.codebooks, f"{name}: codebooks")).reshape(rq.M, -1, index.d).sum(2)
    largest = _small(float(np.sqrt(squares.max(1)).sum()), f"{name}: codebooks")
    norms = {AQ.ST_LUT_nonorm: 0, AQ.ST_norm_float: 32}
    _need(rq.search_type in norms, f"{name}: search type {rq.search_type} is not one that scqfaiss writes")
    _need((rq.search_type == AQ.ST_norm_float) == (index.metric_type == faiss.METRIC_L2), f"{name}: norms")
    size = (rq.M * int(nbits[0]) + norms[rq.search_type] + 7) // 8
    _need(index.code_size == rq.code_size == size, f"{name}: code size")
    _need(index.codes.size() == index.ntotal * index.code_size, f"{name}: codes of another size")
    if rq.search_type == AQ.ST_norm_float:
        for i, stored in stored_norms(index):
            valid = (stored >= 0) & (stored <= 1.001 * largest**2)  # NaN is neither
            _need(valid.all(), f"{name}: row {i + int((~valid).argmax()):,} has no norm that its codebooks can make")
    return largest


def stored_norms(index: Any) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(first row, squared norms that stand behind the codes) of an IndexResidualQuantizer, block by block."""
    bits, n = [*faiss.vector_to_array(index.rq.nbits).astype(int).tolist(), 32], index.ntotal
    codes = (
        faiss.rev_swig_ptr(index.codes.data(), n * index.code_size).reshape(n, -1) if n else np.zeros((0, 1), np.uint8)
    )
    for i in range(0, n, 1 << 16):
        parts = faiss.unpack_bitstrings(np.ascontiguousarray(codes[i : i + (1 << 16)]), np.array(bits, np.int32))
        yield i, np.ascontiguousarray(parts[:, -1], np.int32).view(np.float32)


def _validate_lists(index: Any, name: str, mapped: bool, coarse: str) -> float:
    """-> at most the norm of a centroid."""
    _need(index.invlists is not None, f"{name}: there are no inverted lists in it")
    _need(index.quantizer is not None, f"{name}: there is no coarse quantizer in it")
    _need(index.quantizer.ntotal == index.nlist == index.invlists.nlist, f"{name}: number of lists differs")
    _need(index.quantizer.d == index.d and 1 <= index.nprobe <= index.nlist, f"{name}: coarse d or nprobe")
    _need(index.invlists.code_size == index.code_size, f"{name}: code size differs")
    lists = faiss.downcast_InvertedLists(index.invlists)
    kind = type(lists).__name__
    if mapped and kind == "OnDiskInvertedLists":
        _need(lists.filename == "", f"{name}: its lists stand in another file")
        lists.prefetch_nthread = 0  # FAISS would start 32 threads for every search
        longest = max(lists.list_size(i) for i in range(lists.nlist))  # sums of sizes may wrap, and then agree
        _need(longest <= index.ntotal, f"{name}: a list of {longest:,} rows")
    else:
        _need(kind == "ArrayInvertedLists", f"{name}: lists of class {kind} are not what scqfaiss writes")
    rows = lists.compute_ntotal()
    _need(rows == index.ntotal, f"{name} says {index.ntotal:,} rows, its lists hold {rows:,}")
    return _validate(index.quantizer, coarse, mapped)


def _validate_numbers(index: Any, name: str) -> None:
    """Rows of lists that are numbered 0..n-1, each once."""
    for ids in id_pieces(index):
        wrong = (ids < 0) | (ids >= index.ntotal)
        _need(not wrong.any(), f"{name}: numbers of lists: {ids[wrong][:1]} of {index.ntotal:,} rows")
    _need(lowest_and_repeated(index)[1] == 0, f"{name}: numbers of lists: one stands twice")


def _validate_transform(t: Any, reach: float) -> float:
    """reach: at most the norm of a query in front of it -> that of the query behind it."""
    name = type(t).__name__
    if name == "LinearTransform":
        _need(t.A.size() == t.d_in * t.d_out and t.b.size() == (t.d_out if t.have_bias else 0), f"{name}: size")
        norms = [float(np.linalg.norm(_finite(part, f"{name}: coefficients"))) for part in (t.A, t.b)]
        t.set_is_orthonormal()  # FAISS computes the flag before it has read the sizes, and always says yes
        return norms[0] * reach + norms[1]
    if name == "CenteringTransform":
        _need(t.d_in == t.d_out == t.mean.size(), f"{name}: size")
        return reach + float(np.square(_finite(t.mean, f"{name}: mean")).sum() ** 0.5)
    if name == "RemapDimensionsTransform":
        places = faiss.vector_to_array(t.map)  # FAISS reads the query wherever these say
        _need(len(places) == t.d_out and places.min() >= -1 and places.max() < t.d_in, f"{name}: places")
        return reach * math.sqrt(t.d_out)
    _need(name in TRANSFORMS, f"{name} is not one we write")
    _need(t.norm == 2 and t.d_in == t.d_out, f"{name}: norm {t.norm}, or d differs")
    return 1.0
