"""Ids for FAISS classes that know positions only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from .base import Ids
from .pretransform import unwrap_index


def with_ids(index: Any, ids: Ids) -> Any:
    """faiss.IndexIDMap around an index that is full already (its constructor wants an empty one); ids 0..n-1 need none.

    Not IndexIDMap2: it builds a hash table at every load, 50 bytes a row, to reconstruct by id, which we do by the codes.
    """
    if np.array_equal(ids, np.arange(len(ids))):
        return index
    out = faiss.IndexIDMap(faiss.IndexFlat(index.d, index.metric_type))
    out.index, out.own_fields, out.referenced_objects = index, False, [index]
    faiss.copy_array_to_vector(np.ascontiguousarray(ids, np.int64), out.id_map)
    out.ntotal, out.is_trained = index.ntotal, True
    return out


def behind_ids(index: Any) -> Any:
    """The index behind encoder and ids."""
    index = unwrap_index(index)
    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexIDMap) else index


def ids_of(index: Any) -> Ids:
    """(n,) the ids of all positions."""
    index = unwrap_index(index)
    return faiss.vector_to_array(index.id_map) if isinstance(index, faiss.IndexIDMap) else np.arange(index.ntotal)


def places_of(index: Any, only: Ids | None) -> tuple[Ids | slice, Ids]:
    """(places, their ids) of the rows of some ids, or of all rows."""
    ids = ids_of(index)
    if only is None:
        return slice(None), ids
    places = np.flatnonzero(np.isin(ids, only))
    return places, ids[places]


def packed_codes(index: Any, places: Ids | slice) -> NDArray[np.uint8]:
    """(rows, code_size), a copy of the codes of some rows of an index that holds them one after the other."""
    if not index.ntotal:
        return np.zeros((0, index.code_size), np.uint8)
    flat: NDArray[np.uint8] = faiss.rev_swig_ptr(index.codes.data(), index.codes.size())
    return flat.reshape(index.ntotal, index.code_size)[places].copy()


def ids_at(index: Any, places: Ids) -> Ids:
    """The ids of some positions, without a copy of the others."""
    index = unwrap_index(index)
    if not isinstance(index, faiss.IndexIDMap) or not places.size:
        return places
    ids: Ids = faiss.rev_swig_ptr(index.id_map.data(), index.id_map.size())[places]
    return ids


SORTED_AT_A_TIME = 1 << 24  # ids, 128 MB: those of a memory-mapped file are not all copied at once


def _blocks(index: Any) -> Iterator[Ids]:
    """The ids of all rows, piece by piece and without a copy; nothing where they are 0..n-1 by their places."""
    index = unwrap_index(index)
    if isinstance(index, faiss.IndexIDMap):
        size = index.id_map.size()
        if size:
            yield faiss.rev_swig_ptr(index.id_map.data(), size)
    elif isinstance(index, faiss.IndexIVF):
        for number in range(index.nlist):
            size = index.invlists.list_size(number)
            if size:
                yield faiss.rev_swig_ptr(index.invlists.get_ids(number), size)


def id_pieces(index: Any) -> Iterator[Ids]:
    """The same in few pieces: thousands of short lists are copied together, long ones stay where they are."""
    short: list[Ids] = []
    pending = 0
    for ids in _blocks(index):
        if len(ids) >= SORTED_AT_A_TIME // 16:
            yield ids
            continue
        short.append(ids)
        pending += len(ids)
        if pending >= SORTED_AT_A_TIME:
            yield np.concatenate(short)
            short, pending = [], 0
    if short:
        yield np.concatenate(short) if len(short) > 1 else short[0]


def all_ids(index: Any) -> Ids:
    """(n,) a copy of the ids of all rows, in no order: without a look at their codes."""
    pieces = list(id_pieces(index))
    return np.concatenate(pieces) if pieces else np.arange(index.ntotal)


def lowest_and_repeated(index: Any) -> tuple[int, int]:
    """The smallest id, 0 where there is none, and how many rows carry an id that another row has, but for one of each.

    Row numbers, or nearly, cost a byte a row and no sorting; other ids of large files are sorted part by part.
    """
    n, low, top, last = 0, 0, -1, None
    for last in id_pieces(index):
        n, low, top = n + len(last), min(low, int(last.min())), max(top, int(last.max()))
    if low < 0 or last is None:
        return low, 0
    whole = len(last) == n  # in one piece: no need to gather it again
    if top < 8 * n:
        seen = np.zeros(top + 1, bool)
        for ids in [last] if whole else id_pieces(index):
            seen[ids] = True
        return low, n - int(np.count_nonzero(seen))
    parts, distinct = -(-n // SORTED_AT_A_TIME), 0
    for part in range(parts):
        pieces = [last] if whole else id_pieces(index)
        some = np.sort(np.concatenate([ids[ids % parts == part] if parts > 1 else ids for ids in pieces]))
        distinct += int(np.count_nonzero(some[1:] != some[:-1])) + (len(some) > 0)
    return low, n - distinct


def id_bounds(index: Any) -> tuple[int, int]:
    """The smallest and the largest id of an index with rows."""
    found = [(int(ids.min()), int(ids.max())) for ids in id_pieces(index)] or [(0, index.ntotal - 1)]
    return min(low for low, _ in found), max(high for _, high in found)
