"""Several sources of rows as one, one after another."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..modality import ROWS
from .source import Source


class Concatenated(Source):
    """Rows of several sources, which are closed with this one. Labels and ids are the subclass's.

    kept: rows are those that each source kept, looked at by it; else all that it holds, to be looked at here. Raises ConfigError
    where the sources do not go together.
    """

    def __init__(self, parts: Sequence[Source], *, kept: bool) -> None:
        first = parts[0]
        for part in parts:
            if part.modality != ROWS or part.pairs:
                what = "pairs" if part.pairs else part.modality.items
                raise ConfigError(f"{part.name} holds {what}; several files need to be files of rows")
            if part.d != first.d:
                raise ConfigError(f"{part.name} has d={part.d}, {first.name} has d={first.d}; they do not go together")
            if part.has_ids != first.has_ids:
                with_ids, without = (part, first) if part.has_ids else (first, part)
                raise ConfigError(f"{with_ids.name} has ids, {without.name} has none; give all files ids, or none")
        self._parts, self._of_kept, self._reading = list(parts), kept, 0
        self.d, self.features_name = first.d, first.features_name
        self._starts = np.cumsum([0, *(len(part) if kept else part.physical_rows for part in parts)]).tolist()
        self.physical_rows, self.known_finite = self._starts[-1], kept

    @property
    def sealed(self) -> bool:
        return all(part.sealed for part in self._parts)

    @property
    def chunk_rows(self) -> int:
        return self._parts[0].chunk_rows

    def fetch(self, i: int, j: int) -> NDArray[Any]:
        if i == j:
            return self._parts[0].fetch(0, 0)
        k, found = bisect_right(self._starts, i) - 1, []
        while i < j:
            start, end = self._starts[k], min(j, self._starts[k + 1])
            if end > i:
                found.append(self._rows(k, i - start, end - start))
            i, k = max(i, end), k + 1
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _rows(self, k: int, i: int, j: int) -> NDArray[Any]:
        if k != self._reading:
            self._parts[self._reading].rest()
            self._reading = k
        part = self._parts[k]
        return part.read(i, j) if self._of_kept else part.fetch(i, j)

    def rest(self) -> None:
        self._parts[self._reading].rest()

    def close(self) -> None:
        with ExitStack() as stack:  # closes all, whatever one of them raises
            for part in self._parts:
                stack.callback(part.close)
