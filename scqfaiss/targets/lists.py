"""Inverted lists filled with codes that are there already, and the partition of rows into lists."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from faiss.contrib.inspect_tools import get_invlist
from numpy.typing import NDArray

from .. import faiss_calls
from ..codebooks import Codebooks, Codes
from .base import METRIC, Ids, inject, pack, unpack_codes

SEED = 1234  # of k-means: the same rows give the same lists
DECODED_BYTES = 1 << 28  # vectors decoded at a time
IDS_AT_A_TIME = 1 << 20  # looked through
FLAT_LISTS = 1024  # up to so many lists by one k-means, more by two levels of it


def ivfpq(codebooks: Codebooks, coarse: Any, lists: NDArray[Any], codes: Codes, ids: Ids, by_residual: bool) -> Any:
    """Product codebooks, a coarse quantizer of nlist entries, list of each row (n,) -> a filled faiss.IndexIVFPQ.

    Codes go in as they are: add() would encode again, by L2, whatever the method's own rule is.
    """
    metric, nlist = METRIC[codebooks.metric], coarse.ntotal
    index = faiss.IndexIVFPQ(coarse, codebooks.d, nlist, codebooks.M, codebooks.nbits, metric)
    index.own_fields = True  # the index frees `coarse`, Python must not
    coarse.this.disown()
    index.by_residual = by_residual
    inject(index.pq.centroids, codebooks.centroids, "codebooks")
    index.is_trained = True
    if codebooks.metric == "l2":
        faiss_calls.one_thread_after_fork()
        index.precompute_table()  # a stale table gives wrong L2 distances and no error
    add(index, lists, pack(codes, codebooks.nbits), ids)
    index.nprobe = nlist
    return index


def add(index: Any, lists: NDArray[Any], packed: NDArray[np.uint8], ids: Ids) -> None:
    """Packed codes (n, code_size) into their lists: FAISS takes each behind its list number, little endian."""
    if len(packed):
        width = index.coarse_code_size()  # 0 bytes for one list
        prefix = np.ascontiguousarray(lists, "<i8").view(np.uint8).reshape(-1, 8)[:, :width]
        faiss_calls.add_codes(index, np.hstack([prefix, packed]), ids)


def rows_of(index: Any, only: Ids | None = None) -> tuple[NDArray[np.int64], Codes, Ids]:
    """(list of each row, codes, ids) of an IndexIVFPQ, list by list, in the order of insertion. only: of these ids alone."""
    sizes = list_sizes(index)
    if only is not None:
        return _some_rows_of(index, sizes, only)
    ids, packed = np.empty(index.ntotal, np.int64), np.empty((index.ntotal, index.code_size), np.uint8)
    i = 0
    for number in np.flatnonzero(sizes):
        list_ids, list_codes = get_invlist(index.invlists, int(number))
        ids[i : i + len(list_ids)], packed[i : i + len(list_ids)] = list_ids, list_codes.reshape(len(list_ids), -1)
        i += len(list_ids)
    return np.repeat(np.arange(len(sizes)), sizes), unpack_codes(packed, index.pq.M, index.pq.nbits), ids


def _some_rows_of(index: Any, sizes: NDArray[np.int64], only: Ids) -> tuple[NDArray[np.int64], Codes, Ids]:
    """The same without a look at other codes: of a memory-mapped file those stay on disk."""
    filled = np.flatnonzero(sizes)
    lists, places = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for first in np.split(filled, np.flatnonzero(np.diff(np.cumsum(sizes[filled]) // IDS_AT_A_TIME)) + 1):
        ids = [faiss.rev_swig_ptr(index.invlists.get_ids(int(number)), int(sizes[number])) for number in first]
        found = np.flatnonzero(np.isin(ids[0] if len(ids) == 1 else np.concatenate([*ids, sizes[:0]]), only))
        ends = np.cumsum(sizes[first])
        at = np.searchsorted(ends, found, side="right")
        lists.append(first[at])
        places.append(found - (ends - sizes[first])[at])
    number, place = np.concatenate(lists), np.concatenate(places)
    ids_found, packed = np.empty(len(number), np.int64), np.empty((len(number), index.code_size), np.uint8)
    for i, (n, p) in enumerate(zip(number.tolist(), place.tolist())):
        ids_found[i] = faiss.rev_swig_ptr(index.invlists.get_ids(n), p + 1)[p]
        end = (p + 1) * index.code_size
        packed[i] = faiss.rev_swig_ptr(index.invlists.get_codes(n), end)[end - index.code_size :]
    return number, unpack_codes(packed, index.pq.M, index.pq.nbits), ids_found


def list_sizes(index: Any) -> NDArray[np.int64]:
    """(nlist,) rows of each list."""
    size = index.invlists.list_size
    return np.fromiter((size(i) for i in range(index.nlist)), np.int64, index.nlist)


def kmeans(x: NDArray[np.float32], nlist: int, iterations: int = 10) -> NDArray[np.float32]:
    """x (n, d) -> (nlist, d) centroids by FAISS's k-means on at most 64 rows a list; every row once where n < nlist."""
    if len(x) <= nlist:
        return np.concatenate([x, np.repeat(x[:1], nlist - len(x), axis=0)])
    return faiss_calls.kmeans(
        x, nlist, niter=iterations, seed=SEED, min_points_per_centroid=1, max_points_per_centroid=64
    )


class Partition:
    """Lists of rows that lie close together, learned from a sample; two levels of k-means above FLAT_LISTS lists.

    Two levels cost sqrt(nlist) distances a row and not nlist; a row may miss its nearest centroid, which matters to no one
    who knows the true extent of each list.
    """

    def __init__(self, sample: NDArray[np.float32], nlist: int) -> None:
        self.top = kmeans(sample, nlist if nlist <= FLAT_LISTS else int(np.sqrt(nlist)))
        self.below: list[NDArray[np.float32]] = []
        if nlist > FLAT_LISTS:
            part = faiss_calls.nearest(sample, self.top)
            for number in range(len(self.top)):
                rows = sample[part == number]
                share = max(1, round(nlist * len(rows) / len(sample)))
                self.below.append(kmeans(rows, share) if len(rows) > share else self.top[number : number + 1])
        self.first = np.cumsum([0, *map(len, self.below)])

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.int64]:
        """x (b, d) -> (b,) list of each row."""
        part = faiss_calls.nearest(x, self.top)
        if not self.below:
            return part
        order = np.argsort(part, kind="stable")
        ends = np.cumsum(np.bincount(part, minlength=len(self.top)))
        out = np.empty(len(x), np.int64)
        for number, rows in enumerate(np.split(order, ends[:-1])):
            if len(rows):
                out[rows] = self.first[number] + faiss_calls.nearest(x[rows], self.below[number])
        return out


def code_keys(codes: Codes, nbits: int) -> NDArray[Any]:
    """(n,) keys, equal where codes are: packed codes as integers, or as opaque bytes above 64 bits."""
    packed = pack(codes, nbits)
    if packed.shape[1] > 8:
        return np.ascontiguousarray(packed).view(f"V{packed.shape[1]}").ravel()
    wide = np.zeros((len(packed), 8), np.uint8)
    wide[:, : packed.shape[1]] = packed
    return wide.view("<u8").ravel()


def decoded(codebooks: Codebooks, codes: Codes) -> Any:
    """(first row, decoded vectors (b, d)) block by block: a million wide vectors are not held at once."""
    step = max(1, DECODED_BYTES // (4 * codebooks.d))
    for i in range(0, len(codes), step):
        yield i, codebooks.decode(codes[i : i + step])
