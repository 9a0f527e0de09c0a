"""Pairs of rows: what somebody asks with, and the row that answers it.

Row i of a PairSource is query i and key i side by side, so that whatever streams, shuffles, shares out or fingerprints rows
does so with pairs. Only keys stand in a gallery, and the id of a pair is its key's: several queries of one key repeat it.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import bad_rows
from ..errors import ConfigError, DataError
from .source import ArraySource, Source


class PairSource(Source):
    """Queries and keys, of as many rows and dimensions, as rows of d = 2 d_in: the query first.

    Labels stay unread. ids may repeat. Raises DataError where there are more of one than of the other, ConfigError where
    they differ in dimension; both sources are closed together with this one.
    """

    pairs = True

    def __init__(self, queries: Source, keys: Source, ids: Any = None, *, skip_bad_rows: bool = False) -> None:
        self._parts = (queries, keys)
        try:
            self.name, self.path = queries.name, queries.path
            n, m = queries.physical_rows, keys.physical_rows
            of_queries, of_keys = (f"{s.name}: {s.features_name}" for s in self._parts)
            if n != m:
                raise DataError(f"{of_queries} has {n:,} rows, {of_keys} has {m:,}; a pair needs one of each")
            if queries.d != keys.d:
                raise ConfigError(f"{of_queries} have d={queries.d}, {of_keys} have d={keys.d}; pairs need the same")
            self.physical_rows, self.d = n, 2 * keys.d
            if ids is None and keys.has_ids:
                ids = keys.ids
            self.settle(ids=ids, skip_bad_rows=skip_bad_rows, repeated_ids=True)
        except BaseException:
            for part in self._parts:
                with suppress(DataError):
                    part.close()
            raise

    @staticmethod
    def of_arrays(
        queries: Any, keys: Any, ids: Any = None, *, names: tuple[str, str] = ("x", "keys"), skip_bad_rows: bool = False
    ) -> PairSource:
        """Pairs in memory: queries and keys (n, d) floats, ids (n,) of the keys. Raises as ArraySource and PairSource."""
        q, k = (ArraySource(a, name=name, read_labels=False) for a, name in zip((queries, keys), names))
        q.features_name, k.features_name = "queries", "keys"
        return PairSource(q, k, ids, skip_bad_rows=skip_bad_rows)

    @property
    def sealed(self) -> bool:
        return all(part.sealed for part in self._parts)

    @property
    def chunk_rows(self) -> int:
        return math.lcm(*(part.chunk_rows for part in self._parts))

    def fetch(self, i: int, j: int) -> NDArray[Any]:
        return np.concatenate([part.fetch(i, j) for part in self._parts], axis=1)

    def close(self) -> None:
        queries, keys = self._parts
        try:
            queries.close()
        finally:
            keys.close()

    def _count_bad_rows(self) -> DataError:
        """The account of the half that holds the bad rows, in its own columns."""
        holder = next(
            (s for s in self._parts if any(bad_rows(x).any() for _, x in s._physical_blocks())), self._parts[0]
        )
        return holder._count_bad_rows()
