"""What a search returns: arrays, to be unpacked as ever, and as a table of a hit a row."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints, as_array
from ..dependencies import missing
from ..errors import DataError

Table = dict[str, NDArray[Any]]


class Hits(NamedTuple):
    """The k best of each query: scores D (nq, k) float32 and ids I (nq, k) int64, best first; -1 where nothing was found."""

    D: NDArray[np.float32]
    I: Ints

    def to_dict(self, queries: Any = None) -> Table:
        """Columns `query`, `rank` (from 1), `id` and `score` of all hits, query by query; places without a hit are left out.

        queries (nq,): what queries are called, default 0..nq-1. Raises DataError on another length.
        """
        q, rank = np.nonzero(self.I >= 0)
        return _table(_names(queries, len(self.I)), q, rank, self.I[q, rank], self.D[q, rank])

    def to_pandas(self, queries: Any = None) -> Any:
        """The same as a pandas.DataFrame. Raises ConfigError without pandas."""
        return _frame(self.to_dict(queries))


class RangeHits(NamedTuple):
    """All hits beyond a threshold: query q owns D[lims[q] : lims[q + 1]], and I likewise, best first; lims (nq + 1,) int64."""

    lims: Ints
    D: NDArray[np.float32]
    I: Ints

    def to_dict(self, queries: Any = None) -> Table:
        """As Hits.to_dict."""
        counts = np.diff(self.lims)
        q = np.repeat(np.arange(len(counts)), counts)
        return _table(_names(queries, len(counts)), q, np.arange(len(q)) - self.lims[q], self.I, self.D)

    def to_pandas(self, queries: Any = None) -> Any:
        """The same as a pandas.DataFrame. Raises ConfigError without pandas."""
        return _frame(self.to_dict(queries))


def _table(names: NDArray[Any], q: Ints, rank: Ints, ids: Ints, scores: NDArray[np.float32]) -> Table:
    return {"query": names[q], "rank": rank + 1, "id": ids, "score": scores}


def _names(queries: Any, nq: int) -> NDArray[Any]:
    names = np.arange(nq) if queries is None else as_array(queries, "queries", f"({nq},) names of the queries")
    if names.shape != (nq,):
        raise DataError(f"queries has shape {names.shape}, needs ({nq},), a name for each query")
    return names


def _frame(table: Table) -> Any:
    try:
        import pandas
    except ImportError as error:
        raise missing(error, "to_pandas") or error from error
    return pandas.DataFrame(table)
