"""Distinct codes, which of them are relevant to a query, and the scores that rank them: NumPy alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import NO_LABEL, Floats, Ints, Labels
from ..codebooks import Codes
from ..contract import Progress, silent
from ..data.classes import together, with_unknown
from ..errors import ConfigError
from ..exponents import balanced
from .measures import BY_LABELS, Measure, Ranking, load, mean_over
from .ties import tie_blocks

SCORE_BYTES = 64 << 20  # scores of a block of queries
CACHE_BYTES = 256 << 20  # relevant rows per word, kept for the label sets of queries


@dataclass(frozen=True)
class Words:
    """The distinct code words of a database: rows of `codes` (u, M), and which word each row has, (n,)."""

    codes: Codes
    inverse: Ints

    @staticmethod
    def of(codes: Codes) -> Words:
        n, M = codes.shape
        nbytes = M * codes.dtype.itemsize
        if 0 < nbytes <= 8:  # one integer a row sorts several times faster than rows do
            key = np.zeros((n, 8), np.uint8)
            key[:, :nbytes] = np.ascontiguousarray(codes).view(np.uint8).reshape(n, nbytes)
            _, first, inverse = np.unique(key.view(np.uint64)[:, 0], return_index=True, return_inverse=True)
        else:
            _, first, inverse = np.unique(codes, axis=0, return_index=True, return_inverse=True)
        return Words(codes[first], inverse.ravel())


class Relevance:
    """Which database rows share a label with a query, as counts per code word.

    Rows are grouped by label set first: there are few distinct ones, whatever the number of rows.
    """

    def __init__(self, database: Labels, inverse: Ints, u: int) -> None:
        self.u = u
        self.sets: NDArray[np.uint8] | None = None  # None: one label a row, a set is a class
        # Rows without a label are a set of their own, that no query asks for.
        n_sets, row_set = database.C + 1, np.where(database.y == NO_LABEL, database.C, database.y)
        if database.multilabel:
            self.classes = np.flatnonzero(database.counts())  # those without rows are relevant to no query
            self.sets, row_set = np.unique(database.y[:, self.classes], axis=0, return_inverse=True)
            n_sets = len(self.sets)
        pairs, self.count = np.unique(inverse * n_sets + row_set.ravel(), return_counts=True)
        self.word, self.set = pairs // n_sets, pairs % n_sets
        self.rows = np.bincount(inverse, minlength=u)
        self._cache: dict[bytes, Ints] = {}

    def per_word(self, y: Any) -> Ints:
        """y: the class of a query, or its labels (C,) of 0 and 1 -> (u,) relevant rows of each word."""
        key = y.tobytes()
        if key not in self._cache:
            if 8 * self.u * (len(self._cache) + 1) > CACHE_BYTES:
                self._cache.clear()
            if self.sets is None:
                shares = self.set == y
            else:
                shares = (self.sets @ y[self.classes].astype(np.int64) > 0)[self.set]
            self._cache[key] = np.bincount(self.word[shares], self.count[shares], self.u).astype(np.int64)
        return self._cache[key]


def measure(
    scores: Iterable[NDArray[np.float32]],
    queries: Labels,
    relevance: Relevance,
    at: int | None = None,
    progress: Progress = silent,
    measures: Mapping[str, Measure] | None = None,
) -> dict[str, Any]:
    """Means over the queries. scores: one (u,) float32 per query, large is near, in the order of `queries`.

    measures: by name, default measures.BY_LABELS. -> a value for each of them, and "queries_without_relevant"; queries without
    any relevant row count as 0.
    """
    measures = load(BY_LABELS) if measures is None else measures
    n = int(relevance.rows.sum())
    rankings = (
        Ranking(*tie_blocks(s, relevance.rows, relevance.per_word(y)), n, at) for s, y in zip(scores, queries.y)
    )
    means, without_relevant = mean_over(rankings, measures, len(queries), progress)
    return means | {"queries_without_relevant": without_relevant}


def scores_in_blocks(zq: NDArray[Any], x: NDArray[Any], metric: str = "ip") -> Iterable[NDArray[np.float32]]:
    """zq (nq, d), x (u, d) -> one (u,) float32 per query, large is near.

    In float64 first: equal vectors then round to equal float32 scores wherever they stand in the product.
    """
    x64 = x.astype(np.float64)
    squares = np.einsum("ud,ud->u", x64, x64) if metric == "l2" else 0.0
    step = max(1, min(256, SCORE_BYTES // (8 * max(len(x), 1))))
    for i in range(0, len(zq), step):
        q = zq[i : i + step].astype(np.float64)
        dot = q @ x64.T
        if metric == "l2":
            dot = 2 * dot - squares - np.einsum("qd,qd->q", q, q)[:, None]
        yield from dot.astype(np.float32)


def measure_vectors(
    zq: Floats, queries: Labels, zb: Floats, database: Labels, at: int | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """The same measures for plain vectors ranked by inner product: the ceiling that codes of them are held to."""
    queries, database = same_classes(queries, database, "queries")
    inverse = np.arange(len(zb))
    return measure(scores_in_blocks(balanced(zq), zb), queries, Relevance(database, inverse, len(zb)), at, progress)


def same_classes(
    queries: Labels, database: Labels, name: str, database_name: str = "the database"
) -> tuple[Labels, Labels]:
    """Both with the same classes, matched as data.classes.together does; a class that queries alone name is relevant to none.

    Raises ConfigError where they are of two kinds, matrices of two widths without names, or classes do not match.
    """
    if queries.multilabel == database.multilabel:
        database = with_unknown(queries, database, name, database_name)
        queries, database = together(queries, database, name, database_name)
    if queries.multilabel != database.multilabel or (queries.multilabel and queries.C != database.C):
        raise ConfigError(
            f"{name} has {'many labels' if queries.multilabel else 'one label'} a row and {queries.C} classes, "
            f"the database has {'many labels' if database.multilabel else 'one label'} a row and {database.C}"
        )
    C = max(queries.C, database.C)  # class numbers without names: the larger range holds both
    return Labels(queries.y, C, queries.class_names), Labels(database.y, C, database.class_names)
