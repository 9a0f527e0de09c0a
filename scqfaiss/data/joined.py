"""Rows in many files, one after another, and parts of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .concatenated import Concatenated
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
    with ExitStack() as stack:
        joined = Joined([stack.enter_context(open_rows(path, **options)) for path in paths], starts)
        stack.pop_all()
    return joined


class Joined(Concatenated):
    """Several sources of rows, one after another; labels are left out."""

    def __init__(self, parts: Sequence[Source], starts: Sequence[int] | None = None) -> None:
        super().__init__(parts, kept=True)
        first = parts[0]
        self.name = first.name if len(parts) == 1 else f"{first.name} and {len(parts) - 1:,} more"
        self.path, self.has_ids, self.is_pair_half = first.path, first.has_ids, first.is_pair_half
        self.dropped = sum(part.dropped for part in parts)
        self.duplicate_ids = any(part.duplicate_ids for part in parts)
        if starts is None:
            starts = np.cumsum([0, *(part.physical_rows for part in parts[:-1])]).tolist()
        ids = [part.ids if part.has_ids else part.ids + start for part, start in zip(parts, starts)]
        self._ids = np.concatenate(ids)


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
