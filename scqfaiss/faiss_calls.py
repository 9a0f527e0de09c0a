"""FAISS's own methods, called with NumPy arrays.

FAISS's Python layer lays methods for arrays over those of its C++ classes, and others lay theirs over these: with
faiss.contrib.torch_utils loaded, `search` takes no parameters and `reconstruct_n` returns tensors. The C++ methods keep
their names with `_c` added, whatever lies over them. Everything in this package that computes with FAISS calls them here,
and on one thread where a fork left the others behind (see forks.py).
"""

from __future__ import annotations

import os
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from . import forks
from .exponents import exponent, times

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Hits = tuple[Floats, Ints]  # D, I
Ranges = tuple[Ints, Floats, Ints]  # lims, D, I


def one_thread_after_fork() -> None:
    """Set FAISS to one thread in a child made by fork; nothing elsewhere."""
    forks.one_thread(faiss.omp_set_num_threads)


os.register_at_fork(after_in_child=one_thread_after_fork)
one_thread_after_fork()


def _rows(x: NDArray[Any], d: int) -> Floats:
    """x as C++ reads it: FAISS looks at neither shape nor type."""
    x = np.ascontiguousarray(x, np.float32)
    if x.ndim != 2 or x.shape[1] != d:
        raise ValueError(f"rows are {x.shape}, FAISS needs (n, {d})")
    one_thread_after_fork()
    return x


def search(index: Any, x: NDArray[Any], k: int, params: Any = None) -> Hits:
    """x (nq, d) -> scores D (nq, k) float32 and ids I (nq, k) int64, -1 where there are fewer. params: SearchParameters."""
    x = _rows(x, index.d)
    D, I = np.empty((len(x), k), np.float32), np.empty((len(x), k), np.int64)
    index.search_c(len(x), faiss.swig_ptr(x), k, faiss.swig_ptr(D), faiss.swig_ptr(I), params)
    return D, I


def range_search(index: Any, x: NDArray[Any], radius: float, params: Any = None) -> Ranges:
    """x (nq, d) -> lims (nq + 1,) int64, D, I: query q owns D[lims[q] : lims[q + 1]]."""
    x = _rows(x, index.d)
    found = faiss.RangeSearchResult(len(x))
    index.range_search_c(len(x), faiss.swig_ptr(x), float(radius), found, params)
    return _ranges(found, len(x))


def search_preassigned(ivf: Any, x: NDArray[Any], k: int, bounds: Any, lists: Any, params: Any) -> Hits:
    """The same in the lists (nq, nprobe) of each query, -1 for none; bounds: their coarse scores."""
    x = _rows(x, ivf.d)
    D, I = np.empty((len(x), k), np.float32), np.empty((len(x), k), np.int64)
    bounds, lists = np.ascontiguousarray(bounds, np.float32), np.ascontiguousarray(lists, np.int64)
    pointers = [faiss.swig_ptr(a) for a in (lists, bounds, D, I)]
    ivf.search_preassigned_c(len(x), faiss.swig_ptr(x), k, *pointers, False, params)
    return D, I


def range_search_preassigned(
    ivf: Any, x: NDArray[Any], radius: float, lists: Any, params: Any, coarse: Any = None
) -> Ranges:
    """The same for all rows better than radius. coarse: may be left out where codes are not of residuals."""
    x = _rows(x, ivf.d)
    lists = np.ascontiguousarray(lists, np.int64)
    coarse = np.zeros(lists.shape, np.float32) if coarse is None else np.ascontiguousarray(coarse, np.float32)
    found = faiss.RangeSearchResult(len(x))
    pointers = faiss.swig_ptr(lists), faiss.swig_ptr(coarse)
    ivf.range_search_preassigned_c(len(x), faiss.swig_ptr(x), float(radius), *pointers, found, False, params)
    return _ranges(found, len(x))


def _ranges(found: Any, nq: int) -> Ranges:
    lims = faiss.rev_swig_ptr(found.lims, nq + 1).copy().astype(np.int64)
    D, I = (faiss.rev_swig_ptr(a, int(lims[-1])).copy() for a in (found.distances, found.labels))
    return lims, D, I


def add(index: Any, x: NDArray[Any]) -> None:
    """Add rows (n, d) to an index that stores them as they are."""
    x = _rows(x, index.d)
    index.add_c(len(x), faiss.swig_ptr(x))


def add_codes(index: Any, packed: NDArray[np.uint8], ids: Ints | None = None) -> None:
    """Add packed codes (n, sa_code_size), under ids (n,) where the index keeps such."""
    packed = np.ascontiguousarray(packed, np.uint8)
    if (
        packed.ndim != 2
        or packed.shape[1] != index.sa_code_size()
        or (ids is not None and ids.shape != packed.shape[:1])
    ):
        raise ValueError(f"codes are {packed.shape}, FAISS needs (n, {index.sa_code_size()}) and an id for each")
    one_thread_after_fork()
    ids = None if ids is None else np.ascontiguousarray(ids, np.int64)
    index.add_sa_codes_c(len(packed), faiss.swig_ptr(packed), None if ids is None else faiss.swig_ptr(ids))


def stored_rows(index: Any) -> Floats:
    """All rows (ntotal, d) of an index that stores them as they are."""
    x = np.empty((index.ntotal, index.d), np.float32)
    if len(x):
        index.reconstruct_n_c(0, len(x), faiss.swig_ptr(x))
    return x


def reconstruct(index: Any, rows: Ints) -> Floats:
    """The vectors (b, d) that the codes of `rows` (b,) stand for, by their place in the index."""
    rows = np.ascontiguousarray(rows, np.int64)
    x = np.empty((len(rows), index.d), np.float32)
    index.reconstruct_batch_c(len(rows), faiss.swig_ptr(rows), faiss.swig_ptr(x))
    return x


def apply(transform: Any, x: NDArray[Any]) -> Floats:
    """x (n, d_in) through a VectorTransform -> (n, d_out)."""
    x = _rows(x, transform.d_in)
    y = np.empty((len(x), transform.d_out), np.float32)
    transform.apply_noalloc(len(x), faiss.swig_ptr(x), faiss.swig_ptr(y))
    return y


def normalize(x: Floats) -> None:
    """Bring rows (n, d), C order, to L2 norm 1 where they are; zero rows stay. Their squares must fit into float32."""
    one_thread_after_fork()
    faiss.fvec_renorm_L2(x.shape[1], len(x), faiss.swig_ptr(x))


def train(learner: Any, x: NDArray[Any]) -> None:
    """Train a quantizer or a transform on rows (n, d)."""
    x = _rows(x, learner.d_in if isinstance(learner, faiss.VectorTransform) else learner.d)
    learner.train_c(len(x), faiss.swig_ptr(x))


def kmeans(x: NDArray[Any], k: int, **parameters: int) -> Floats:
    """x (n, d), n >= k -> (k, d) centroids by squared L2 distance. parameters: fields of ClusteringParameters."""
    x = np.ascontiguousarray(x, np.float32)
    chosen = faiss.ClusteringParameters()
    for name, value in parameters.items():
        setattr(chosen, name, value)
    learner, index = faiss.Clustering(x.shape[1], k, chosen), faiss.IndexFlatL2(x.shape[1])
    power = exponent(x)
    x = _rows(times(x, -power) if power else x, index.d)
    learner.train_c(len(x), faiss.swig_ptr(x), index)
    found = np.asarray(faiss.vector_to_array(learner.centroids)).reshape(k, x.shape[1])
    return times(found, power) if power else found


def nearest(x: NDArray[Any], centroids: NDArray[Any]) -> Ints:
    """x (n, d), centroids (k, d) -> (n,) index of the nearest centroid of each row, by squared L2 distance."""
    x, centroids = np.ascontiguousarray(x, np.float32), np.ascontiguousarray(centroids, np.float32)
    power = exponent(x) or exponent(centroids)
    if power:  # squares of either would leave float32
        x, centroids = times(x, -power), times(centroids, -power)
    x = _rows(x, centroids.shape[1])
    D, I = np.empty((len(x), 1), np.float32), np.empty((len(x), 1), np.int64)
    sizes = x.shape[1], len(x), len(centroids), 1
    faiss.knn_L2sqr(faiss.swig_ptr(x), faiss.swig_ptr(centroids), *sizes, faiss.swig_ptr(D), faiss.swig_ptr(I))
    return I[:, 0]


def pack(values: NDArray[Any], nbits: int) -> NDArray[np.uint8]:
    """values (n, M) below 2^nbits -> packed bytes (n, ceil(M nbits / 8)), FAISS's own bit order."""
    one_thread_after_fork()
    return np.asarray(faiss.pack_bitstrings(values.astype(np.int32), nbits))


def unpack(packed: NDArray[np.uint8], M: int, nbits: int) -> NDArray[np.int32]:
    """The inverse of pack."""
    one_thread_after_fork()
    return np.asarray(faiss.unpack_bitstrings(np.ascontiguousarray(packed), M, nbits))
