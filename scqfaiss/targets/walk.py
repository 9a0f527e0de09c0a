"""The allow-list: an index read from a file is looked through before its first search.

FAISS checks little: it accepts NaN codebooks, and sizes that disagree make it read outside its arrays. Only classes that
this package writes pass, with sizes that agree and finite numbers.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from ..errors import IndexFileError

MAX_D = 1 << 20


def _need(condition: Any, what: str) -> None:
    if not condition:
        raise IndexFileError(what)


def _finite(vector: Any, what: str) -> None:
    _need(np.isfinite(faiss.vector_to_array(vector)).all(), f"{what} are not finite")


def walk(index: Any) -> None:
    """Raise IndexFileError with what is wrong, unless `index` is one that this package could have written."""
    index = faiss.downcast_index(index)
    name = type(index).__name__
    _need(0 < index.d <= MAX_D and index.is_trained, f"{name} has d={index.d} or is not trained")
    _need(index.metric_type in (faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2), f"{name} has an unknown metric")
    if name in ("IndexFlat", "IndexFlatIP", "IndexFlatL2"):
        _need(index.codes.size() == index.ntotal * index.d * 4, f"{name}: table of another size")
        _need(np.isfinite(faiss.vector_to_array(index.codes).view(np.float32)).all(), f"{name}: vectors are not finite")
    elif name == "IndexPQ":
        _walk_pq(index, name)
        _need(index.codes.size() == index.ntotal * index.code_size, f"{name}: codes of another size")
    elif name == "IndexIVFPQ":
        _walk_pq(index, name)
        _need(index.quantizer.ntotal == index.nlist == index.invlists.nlist, f"{name}: number of lists differs")
        _need(index.quantizer.d == index.d and 1 <= index.nprobe <= index.nlist, f"{name}: coarse d or nprobe")
        _need(index.invlists.code_size == index.code_size == index.pq.code_size, f"{name}: code size differs")
        lists = type(faiss.downcast_InvertedLists(index.invlists)).__name__
        _need(lists == "ArrayInvertedLists", f"{name}: lists of class {lists} are not what scqfaiss writes")
        held = sum(index.invlists.list_size(i) for i in range(index.nlist))
        _need(held == index.ntotal, f"{name} says {index.ntotal:,} rows, its lists hold {held:,}")
        walk(index.quantizer)
    elif name == "IndexIDMap2":
        _need(index.id_map.size() == index.ntotal == index.index.ntotal, f"{name}: number of ids differs")
        _need(index.index.d == index.d, f"{name}: d differs inside")
        walk(index.index)
    elif name == "IndexPreTransform":
        d = index.d
        for i in range(index.chain.size()):
            t = faiss.downcast_VectorTransform(index.chain.at(i))
            _need(t.d_in == d and 0 < t.d_out <= MAX_D and t.is_trained, f"{name}: transform {i} does not fit")
            _walk_transform(t)
            d = t.d_out
        _need(d == index.index.d and index.ntotal == index.index.ntotal, f"{name}: d or number of rows differs inside")
        walk(index.index)
    else:
        raise IndexFileError(f"class {name} is not one that scqfaiss writes")


def _walk_pq(index: Any, name: str) -> None:
    pq = index.pq
    _need(pq.d == index.d and pq.M * pq.dsub == index.d, f"{name}: M or dsub does not fit d")
    _need(1 <= pq.nbits <= 16 and pq.ksub == 1 << pq.nbits, f"{name}: nbits or ksub")
    _need(pq.code_size == (pq.M * pq.nbits + 7) // 8, f"{name}: code size")
    _need(pq.centroids.size() == pq.M * pq.ksub * pq.dsub, f"{name}: codebooks of another size")
    _finite(pq.centroids, f"{name}: codebooks")


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
    else:
        _need(name == "NormalizationTransform" and t.norm == 2 and t.d_in == t.d_out, f"{name} is not one we write")
