"""The allow-list: an index read from a file is looked through before its first search.

FAISS checks little: it accepts NaN codebooks, and sizes that disagree make it read outside its arrays. Only classes that
this package writes pass, with sizes that agree and finite numbers.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from faiss.contrib.inspect_tools import get_invlist

from ..errors import IndexFileError

MAX_D = 1 << 20
MAX_DEPTH = 8  # encoder, ids, refine, lists and their coarse quantizer stand at most so deep in one another
AQ = faiss.AdditiveQuantizer


def _need(condition: Any, what: str) -> None:
    if not condition:
        raise IndexFileError(what)


def _finite(vector: Any, what: str) -> None:
    _need(np.isfinite(faiss.vector_to_array(vector)).all(), f"{what} are not finite")


def walk(index: Any, mapped: bool = False, depth: int = 0) -> None:
    """Raise IndexFileError with what is wrong, unless `index` is one that this package could have written.

    mapped: it was opened memory-mapped, its lists may stand in the file itself.
    """
    index = faiss.downcast_index(index)
    name = type(index).__name__
    _need(depth < MAX_DEPTH, f"more than {MAX_DEPTH} indexes in one another")
    _need(0 < index.d <= MAX_D and index.is_trained, f"{name} has d={index.d} or is not trained")
    _need(index.metric_type in (faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2), f"{name} has an unknown metric")
    if name in ("IndexFlat", "IndexFlatIP", "IndexFlatL2"):
        _need(index.codes.size() == index.ntotal * index.d * 4, f"{name}: table of another size")
        _need(np.isfinite(faiss.vector_to_array(index.codes).view(np.float32)).all(), f"{name}: vectors are not finite")
    elif name == "IndexPQ":
        _walk_pq(index, name)
        _need(index.search_type == faiss.IndexPQ.ST_PQ and not index.encode_signs, f"{name}: search type")
        _need(index.codes.size() == index.ntotal * index.code_size, f"{name}: codes of another size")
    elif name == "IndexPQFastScan":
        _walk_pq(index, name)
        M2 = index.pq.M + index.pq.M % 2
        _need(index.pq.nbits == 4 and (index.M, index.M2, index.bbs) == (index.pq.M, M2, 32), f"{name}: layout")
        _need(index.implem == index.qbs == 0, f"{name}: implem or qbs")
        rows = -(-index.ntotal // 32) * 32
        _need(index.ntotal2 == rows and index.codes.size() == rows * M2 // 2, f"{name}: codes of another size")
    elif name == "IndexResidualQuantizer":
        _walk_rq(index, name)
    elif name == "IndexIVFPQ":
        _walk_pq(index, name)
        _need(index.code_size == index.pq.code_size, f"{name}: code size differs")
        _walk_lists(index, name, mapped, depth)
    elif name == "IndexIVFFlat":
        _need(depth > 0 and index.code_size == 4 * index.d, f"{name}: code size differs")
        _walk_lists(index, name, mapped, depth)
        _walk_boxes(index, name)
    elif name in ("IndexIDMap", "IndexIDMap2"):
        _need(index.id_map.size() == index.ntotal == index.index.ntotal, f"{name}: number of ids differs")
        _need(index.index.d == index.d, f"{name}: d differs inside")
        walk(index.index, mapped, depth + 1)
    elif name == "IndexRefine":
        base, refine = index.base_index, index.refine_index
        _need(base.ntotal == refine.ntotal == index.ntotal, f"{name}: number of rows differs inside")
        _need(base.d == refine.d == index.d, f"{name}: d differs inside")
        _need(base.metric_type == refine.metric_type == index.metric_type, f"{name}: metric differs inside")
        _need(1 <= index.k_factor <= 1000, f"{name}: k_factor {index.k_factor}")
        walk(base, mapped, depth + 1)
        walk(refine, mapped, depth + 1)
    elif name == "IndexPreTransform":
        d = index.d
        for i in range(index.chain.size()):
            t = faiss.downcast_VectorTransform(index.chain.at(i))
            _need(t.d_in == d and 0 < t.d_out <= MAX_D and t.is_trained, f"{name}: transform {i} does not fit")
            _walk_transform(t)
            d = t.d_out
        _need(d == index.index.d and index.ntotal == index.index.ntotal, f"{name}: d or number of rows differs inside")
        walk(index.index, mapped, depth + 1)
    else:
        raise IndexFileError(f"class {name} is not one that scqfaiss writes")


def _walk_pq(index: Any, name: str) -> None:
    pq = index.pq
    _need(pq.d == index.d and pq.M * pq.dsub == index.d, f"{name}: M or dsub does not fit d")
    _need(1 <= pq.nbits <= 16 and pq.ksub == 1 << pq.nbits, f"{name}: nbits or ksub")
    _need(pq.code_size == (pq.M * pq.nbits + 7) // 8, f"{name}: code size")
    _need(pq.centroids.size() == pq.M * pq.ksub * pq.dsub, f"{name}: codebooks of another size")
    _finite(pq.centroids, f"{name}: codebooks")


def _walk_rq(index: Any, name: str) -> None:
    rq = index.rq
    nbits = faiss.vector_to_array(rq.nbits)
    _need(len(nbits) == rq.M and rq.M > 0 and (nbits == nbits[0]).all() and 1 <= nbits[0] <= 16, f"{name}: M or nbits")
    _need(rq.codebooks.size() == rq.M * (1 << int(nbits[0])) * index.d, f"{name}: codebooks of another size")
    _finite(rq.codebooks, f"{name}: codebooks")
    norms = {AQ.ST_LUT_nonorm: 0, AQ.ST_norm_float: 32}
    _need(rq.search_type in norms, f"{name}: search type {rq.search_type} is not one that scqfaiss writes")
    _need((rq.search_type == AQ.ST_norm_float) == (index.metric_type == faiss.METRIC_L2), f"{name}: norms")
    size = (rq.M * int(nbits[0]) + norms[rq.search_type] + 7) // 8
    _need(index.code_size == rq.code_size == size, f"{name}: code size")
    _need(index.codes.size() == index.ntotal * index.code_size, f"{name}: codes of another size")


def _walk_lists(index: Any, name: str, mapped: bool, depth: int) -> None:
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
    held = lists.compute_ntotal()
    _need(held == index.ntotal, f"{name} says {index.ntotal:,} rows, its lists hold {held:,}")
    walk(index.quantizer, mapped, depth + 1)


def _walk_boxes(index: Any, name: str) -> None:
    """Lists of boxes (see buckets.py): every number once, and finite corners."""
    held = [get_invlist(index.invlists, i) for i in range(index.nlist)]
    ids = np.concatenate([ids for ids, _ in held])
    _need((np.sort(ids) == np.arange(index.ntotal)).all(), f"{name}: numbers of lists")
    _need(all(np.isfinite(codes.view(np.float32)).all() for _, codes in held), f"{name}: vectors are not finite")


def _walk_transform(t: Any) -> None:
    name = type(t).__name__
    if name == "LinearTransform":
        _need(t.A.size() == t.d_in * t.d_out and t.b.size() == (t.d_out if t.have_bias else 0), f"{name}: size")
        _finite(t.A, f"{name}: coefficients")
        _finite(t.b, f"{name}: coefficients")
        t.set_is_orthonormal()  # FAISS computes the flag before it has read the sizes, and always says yes
    elif name == "CenteringTransform":
        _need(t.d_in == t.d_out == t.mean.size(), f"{name}: size")
        _finite(t.mean, f"{name}: mean")
    elif name == "RemapDimensionsTransform":
        places = faiss.vector_to_array(t.map)  # FAISS reads the query wherever these say
        _need(len(places) == t.d_out and places.min() >= -1 and places.max() < t.d_in, f"{name}: places")
    else:
        _need(name == "NormalizationTransform" and t.norm == 2 and t.d_in == t.d_out, f"{name} is not one we write")
