"""Chunks of an HDF5 dataset that unpack to more than they declare.

HDF5's deflate filter inflates a chunk to its end, however long that is, and then reads the bytes that the dataset declares:
a chunk of 4 kB may take 1 GiB of memory on the way, and reads as sound. One that inflates to less reads as sound too, what
is lacking taken from whatever stood in memory. So each chunk is inflated once, within bounds, before HDF5 may have it.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Sequence
from typing import Any

import h5py  # type: ignore[import-untyped]

from ..errors import DataError, format_bytes

DEFLATE, LZF, FLETCHER32 = h5py.h5z.FILTER_DEFLATE, 32000, h5py.h5z.FILTER_FLETCHER32
SLACK = 4096  # bytes by which packing may lengthen what cannot be packed, beside a part in a hundred


class Chunks:
    """The stored chunks of one dataset. Raises DataError where one is longer than what it declares, or packed twice."""

    def __init__(self, dataset: Any, name: str, filters: Sequence[int]) -> None:
        self._name = name
        self._deflate = filters.index(DEFLATE) if DEFLATE in filters else None
        self._proven: set[int] = set()  # first rows of chunks
        if not dataset.chunks or not {DEFLATE, LZF} & set(filters):
            self._deflate = None
            return
        if sum(code in (DEFLATE, LZF) for code in filters) > 1:
            raise DataError(f"{name} is packed twice, needs gzip once at most")
        self._declared = dataset.dtype.itemsize * math.prod(dataset.chunks)
        longest = self._declared + self._declared // 100 + SLACK

        def note(chunk: Any) -> None:
            if chunk.size > longest:
                self._refuse(chunk.chunk_offset[0], f"{format_bytes(chunk.size)} stored")

        dataset.id.chunk_iter(note)

    def prove(self, dataset: Any, i: int, j: int) -> None:
        """Raise DataError where a chunk of rows i..j-1 unpacks to anything but what it declares; each is looked at once."""
        if self._deflate is None:
            return
        step, *others = dataset.chunks
        for row in range(i - i % step, j, step):
            if row in self._proven:
                continue
            for place in itertools.product(*(range(0, n, c) for n, c in zip(dataset.shape[1:], others))):
                mask, packed = dataset.id.read_direct_chunk((row, *place))
                if not mask >> self._deflate & 1:  # else this chunk is stored as it is
                    self._inflate(packed, row)
            self._proven.add(row)

    def _inflate(self, packed: bytes, row: int) -> None:
        stream = zlib.decompressobj()
        left, inflated = packed, 0
        while inflated <= self._declared and not stream.eof and left:
            try:
                inflated += len(stream.decompress(left, 1 << 20))
            except zlib.error:
                return  # damaged: HDF5 finds that too
            left = stream.unconsumed_tail
        if inflated != self._declared:
            more = f"more than {format_bytes(self._declared)}" if inflated > self._declared else format_bytes(inflated)
            self._refuse(row, f"{more} unpacked")

    def _refuse(self, row: int, holds: str) -> None:
        raise DataError(
            f"{self._name}: the chunk at row {row:,} declares {format_bytes(self._declared)}, holds {holds}; write the file again"
        )
