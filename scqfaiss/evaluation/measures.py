"""Measures of rankings by name: NumPy alone. A measure is one function in one file, and a line in BY_LABELS or BY_IDS.

A measure takes the `Ranking` of one query and gives a number, or numbers by key; what is reported is the mean over the queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints
from ..contract import Progress, silent
from . import ties


@dataclass(frozen=True)
class Ranking:
    """What the ranking of n rows says of one query.

    rows, relevant: (u,) int64, per distinct score, best first: rows with that score, and how many are relevant. For measures by
    ids only as far as the first score that a relevant row has, all scores above it as one.
    at: ranks that count; None: all.
    """

    rows: Ints
    relevant: Ints
    n: int
    at: int | None = None

    @property
    def depths(self) -> list[int]:
        """The k of the measures that look at the first k rows; of fewer rows than the least of them, all."""
        return [k for k in ties.AT_K if k <= self.n] or [self.n]

    @cached_property
    def first_hit(self) -> NDArray[np.float64]:
        """(1 + len(AT_K),) of the first relevant row, see ties.first_hit; one must be there."""
        block = int(np.argmax(self.relevant > 0))
        before = int(self.rows[:block].sum())
        return ties.first_hit(before, int(self.rows[block]), int(self.relevant[block]), self.at or self.n)


Value = float | Mapping[str, float] | NDArray[np.float64]
Measure = Callable[[Ranking], Value]


def average_precision(ranking: Ranking) -> float:
    """Its mean is the mAP: precision at every relevant row within rank `at`, averaged over the relevant rows within it."""
    return ties.average_precision(ranking.rows, ranking.relevant, ranking.at)


def precision_at_k(ranking: Ranking) -> dict[str, float]:
    """Share of relevant rows among the first k."""
    return {str(k): ties.precision_at(ranking.rows, ranking.relevant, k) for k in ranking.depths}


def recall_at_k(ranking: Ranking) -> dict[str, float]:
    """Share of all relevant rows that stand among the first k."""
    return {str(k): ties.recall_at(ranking.rows, ranking.relevant, k) for k in ranking.depths}


def precision_at_levels(ranking: Ranking) -> NDArray[np.float64]:
    """Precision where the recall reaches each of ties.LEVELS: the curve of a comparison."""
    return ties.precision_at_levels(ranking.rows, ranking.relevant)


def reciprocal_rank(ranking: Ranking) -> float:
    """1 / rank of the first relevant row, 0 beyond rank `at`."""
    return float(ranking.first_hit[0])


def hit_at_k(ranking: Ranking) -> dict[str, float]:
    """Whether a relevant row is among the first k, for each k of ties.AT_K that there are rows for."""
    return {str(k): float(hit) for k, hit in zip(ties.AT_K, ranking.first_hit[1:]) if k <= ranking.n}


# Name in results -> module:function. Rows of a comparison have those by labels too.
BY_LABELS = {
    "map": "scqfaiss.evaluation.measures:average_precision",
    "precision_at_k": "scqfaiss.evaluation.measures:precision_at_k",
    "recall_at_k": "scqfaiss.evaluation.measures:recall_at_k",
}
# By the ids of the queries: the relevant rows are the query's own.
BY_IDS = {
    "mrr": "scqfaiss.evaluation.measures:reciprocal_rank",
    "recall_at_k": "scqfaiss.evaluation.measures:hit_at_k",
}


def load(names: Mapping[str, str]) -> dict[str, Measure]:
    """The functions of a registry."""
    return {
        name: getattr(import_module(where.partition(":")[0]), where.partition(":")[2]) for name, where in names.items()
    }


def mean_over(
    rankings: Iterable[Ranking], measures: Mapping[str, Measure], queries: int, progress: Progress = silent
) -> tuple[dict[str, Any], int]:
    """Means of every measure over so many queries -> (by name; how many queries have no relevant row, which count as 0)."""
    sums: dict[str, Any] = {}
    without_relevant = 0
    for q, ranking in enumerate(rankings, 1):
        without_relevant += not ranking.relevant.any()
        for name, measure in measures.items():
            value = measure(ranking)
            if isinstance(value, Mapping):
                so_far = sums.setdefault(name, dict.fromkeys(value, 0.0))
                sums[name] = {key: so_far[key] + value[key] for key in value}
            else:
                sums[name] = sums.get(name, 0.0) + value
        if q % 64 == 0 or q == queries:
            progress("evaluate", q, queries, "")
    n = max(queries, 1)
    means = {name: {k: v / n for k, v in s.items()} if isinstance(s, dict) else s / n for name, s in sums.items()}
    return means, without_relevant
