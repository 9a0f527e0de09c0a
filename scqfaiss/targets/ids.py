"""Ids for FAISS classes that know positions only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np

from .base import Ids
from .head import inner


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


def without_ids(index: Any) -> tuple[Any, Ids]:
    """The index behind encoder and ids, and the ids of its positions."""
    return behind_ids(index), ids_of(index)


def behind_ids(index: Any) -> Any:
    """The same without a copy of the ids."""
    index = inner(index)
    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexIDMap) else index


def ids_of(index: Any) -> Ids:
    """(n,) the ids of all positions."""
    index = inner(index)
    return faiss.vector_to_array(index.id_map) if isinstance(index, faiss.IndexIDMap) else np.arange(index.ntotal)


def ids_at(index: Any, places: Ids) -> Ids:
    """The ids of some positions, without a copy of the others."""
    index = inner(index)
    if not isinstance(index, faiss.IndexIDMap) or not places.size:
        return places
    ids: Ids = faiss.rev_swig_ptr(index.id_map.data(), index.id_map.size())[places]
    return ids


SORTED_AT_A_TIME = 1 << 24  # ids, 128 MB: those of a memory-mapped file are not all copied at once


def id_blocks(index: Any) -> Iterator[Ids]:
    """The ids of all rows, piece by piece and without a copy; nothing where they are 0..n-1 by their places."""
    index = inner(index)
    if isinstance(index, faiss.IndexIDMap):
        size = index.id_map.size()
        if size:
            yield faiss.rev_swig_ptr(index.id_map.data(), size)
    elif isinstance(index, faiss.IndexIVF):
        for number in range(index.nlist):
            size = index.invlists.list_size(number)
            if size:
                yield faiss.rev_swig_ptr(index.invlists.get_ids(number), size)


def repeated(index: Any) -> int:
    """How many rows carry an id that another row has, but for one row of each such id; ids are 0 or larger.

    Row numbers, or nearly, cost a byte a row and no sorting; other ids of large files are sorted part by part.
    """
    n, top = 0, -1
    for ids in id_blocks(index):
        n, top = n + len(ids), max(top, int(ids.max()))
    if top < 8 * n:
        seen = np.zeros(top + 1, bool)
        for ids in id_blocks(index):
            seen[ids] = True
        return n - int(np.count_nonzero(seen))
    parts, distinct = -(-n // SORTED_AT_A_TIME), 0
    for part in range(parts):
        some = np.sort(np.concatenate([ids[ids % parts == part] for ids in id_blocks(index)]))
        distinct += int(np.count_nonzero(some[1:] != some[:-1])) + (len(some) > 0)
    return n - distinct
