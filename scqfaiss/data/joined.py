"""Rows in many files, one after another, and parts of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError
from ..modality import ROWS
from .source import Source


def open_several(
    paths: Sequence[str | os.PathLike[str]], *, starts: Sequence[int] | None = None, **options: Any
) -> Source:
    """The rows of all files as one Source; options as those of open_rows. Rows of files without ids are numbered through.

    starts: the number of the first row of each file, default: behind the rows of the files before it. Raises ConfigError
    where the files do not go together, DataError naming the file that is bad.
    """
    from . import open_rows

    if len(paths) == 1 and starts is None:
        return open_rows(paths[0], **options)
    opened: list[Source] = []
    try:
        for path in paths:
            opened.append(open_rows(path, **options))
        return Joined(opened, starts)
    except BaseException:
        for source in opened:
            with source:  # closes; a change of the file must not hide the error
                pass
        raise


class Joined(Source):
    """Several sources of rows, one after another; labels are left out."""

    def __init__(self, parts: Sequence[Source], starts: Sequence[int] | None = None) -> None:
        first = parts[0]
        for part in parts:
            if part.modality != ROWS or part.pairs:
                raise ConfigError(f"{part.name} holds {part.modality.items}; several files need to be files of rows")
            if part.d != first.d:
                raise ConfigError(f"{part.name} has d={part.d}, {first.name} has d={first.d}; they do not go together")
            if part.has_ids != first.has_ids:
                with_ids, without = (part, first) if part.has_ids else (first, part)
                raise ConfigError(f"{with_ids.name} has ids, {without.name} has none; give all files ids, or none")
        self._parts, self.d = list(parts), first.d
        self.name = first.name if len(parts) == 1 else f"{first.name} and {len(parts) - 1:,} more"
        self.path, self.features_name, self.has_ids = first.path, first.features_name, first.has_ids
        self._ends = np.cumsum([len(part) for part in parts])
        self.physical_rows, self.known_finite = int(self._ends[-1]), True  # each part has looked
        self.dropped = sum(part.dropped for part in parts)
        self.duplicate_ids = any(part.duplicate_ids for part in parts)
        self.is_pair_half = first.is_pair_half
        if starts is None:
            starts = np.cumsum([0, *(part.physical_rows for part in parts[:-1])]).tolist()
        ids = [part.ids if part.has_ids else part.ids + start for part, start in zip(parts, starts)]
        self._ids = np.concatenate(ids)

    @property
    def sealed(self) -> bool:
        return all(part.sealed for part in self._parts)

    @property
    def chunk_rows(self) -> int:
        return self._parts[0].chunk_rows

    def fetch(self, i: int, j: int) -> NDArray[Any]:
        out = np.empty((j - i, self.d), np.float32)
        place = int(np.searchsorted(self._ends, i, "right"))
        at = i
        while at < j:
            start = int(self._ends[place - 1]) if place else 0
            end = min(j, int(self._ends[place]))
            out[at - i : end - i] = self._parts[place].read(at - start, end - start)
            at, place = end, place + 1
        return out

    def close(self) -> None:
        faults = []
        for part in self._parts:
            try:
                part.close()
            except DataError as error:
                faults.append(error)
        if faults:
            raise faults[0]


class Slice(Source):
    """Rows i..j-1 of another source, which stays open. What is read from the first row to the last is hashed."""

    known_finite = True

    def __init__(self, whole: Source, i: int, j: int) -> None:
        self._whole, self._first = whole, i
        self.name, self.path, self.features_name, self.d = whole.name, whole.path, whole.features_name, whole.d
        self.physical_rows, self.has_ids = j - i, whole.has_ids
        self._ids = whole.ids[i:j]
        self._sha, self._hashed = hashlib.sha256(), 0

    @property
    def block_rows(self) -> int:
        return self._whole.block_rows

    def fetch(self, i: int, j: int) -> NDArray[Any]:
        x = self._whole.read(self._first + i, self._first + j)
        if i == self._hashed:
            self._sha.update(x.data)
            self._hashed = j
        return x

    def digest(self) -> str:
        """SHA-256 of the rows as float32 and of their ids, in hexadecimal digits; reads what was not read yet."""
        while self._hashed < len(self):
            self.read(self._hashed, min(self._hashed + self.block_rows, len(self)))
        sha = self._sha.copy()
        sha.update(self.ids.astype("<i8").tobytes())
        sha.update(self.d.to_bytes(8, "little"))
        return sha.hexdigest()
