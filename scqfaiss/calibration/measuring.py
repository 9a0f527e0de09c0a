"""The tables of a calibration from rows that each stand for a query and for a row of the gallery.

q query   i row   t score of a table   n rows that stand for both
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Floats, Labels
from ..errors import DataError
from .tables import KNOTS, Calibration, Doubles

RANGE = 6.0  # decades of the share of irrelevant pairs that the tables tell apart
LEAST_ROWS = 20  # with a relevant row beside them, or nothing can be promised
BLOCK = 1 << 22  # scores that are looked at together


def measure(queries: Floats, vectors: Floats, labels: Labels, metric: str) -> Calibration:
    """The calibration of codes from held-out rows, each of which is query and row.

    queries (n, d) float32 as searched with, vectors (n, d) float32 that their codes stand for, labels of them; a row is not
    scored against itself. Raises DataError where too few rows have a relevant row beside them, or all have all.
    """
    same = _Same(labels)
    found = np.array([same(i, i + 1).sum() - 1 for i in range(len(labels))], np.int64)
    rows, pairs = int((found > 0).sum()), (int(found.sum()), int((len(found) - 1 - found).sum()))
    if rows < LEAST_ROWS or pairs[1] < 1:
        raise DataError(
            f"{rows:,} of {len(found):,} calibration rows have another row of their class beside them, needs "
            f"{LEAST_ROWS} or more, and rows of other classes"
        )
    scores = _knots(queries, vectors, same, metric)
    T = len(scores)
    n = len(found)
    of_query, of_row, recall_of_row = np.zeros((2, n, T)), np.zeros((2, n, T)), np.zeros((n, T))
    weights = 1.0 / np.maximum(found, 1)
    for i, s, relevant in _blocks(queries, vectors, same, metric):
        q = np.arange(i, i + len(s))
        place = np.searchsorted(-scores, -s, side="left").clip(max=T - 1)
        for kind, chosen in enumerate((relevant, ~relevant)):
            chosen[np.arange(len(s)), q] = False
            row, column = np.nonzero(chosen)
            at = place[row, column]
            of_query[kind, q] += np.bincount(row * T + at, minlength=len(s) * T).reshape(len(s), T)
            of_row[kind] += np.bincount(column * T + at, minlength=n * T).reshape(n, T)
            if kind == 0:
                of_pair = np.bincount(column * T + at, weights[q][row], minlength=n * T)
                recall_of_row += of_pair.reshape(n, T)
    r, u = _ratio(of_query[0], of_row[0])
    f, v = _ratio(of_query[1], of_row[1])
    recall, w = _ratio(of_query[0] * weights[:, None], recall_of_row)
    errors = [np.sqrt((a * a).sum(0)) for a in (w, u, v)]
    return Calibration(metric, rows, pairs, scores, recall, r, f, errors[0], errors[1], errors[2], (u * v).sum(0))


def _ratio(of_query: Doubles, of_row: Doubles) -> tuple[Doubles, Doubles]:
    """Pairs by table entry, (n, T) of each row as a query and as a row -> the share of pairs up to each entry (T,), and the
    influence of each row on it (n, T): the squares of these add up to the infinitesimal jackknife's variance (Efron 1982).
    """
    total = of_query.sum()
    share = np.cumsum(of_query.sum(0)) / total
    share[-1] = 1.0
    of_both = np.cumsum(of_query + of_row, axis=1)
    return np.minimum(share, 1.0), (of_both - share * of_both[:, -1:]) / total


# ---------------------------------------------------------------------------------------------------------------- pairs
class _Same:
    """Which rows share a label with rows i..j: (j - i, n) booleans."""

    def __init__(self, labels: Labels) -> None:
        self.y = labels.y.astype(np.float32) if labels.multilabel else labels.y
        self.many = labels.multilabel

    def __call__(self, i: int, j: int) -> NDArray[np.bool_]:
        found = self.y[i:j] @ self.y.T > 0 if self.many else self.y[i:j, None] == self.y[None]
        if self.many:  # a row without labels is no relevant one, not even of itself: here it is, as it is left out
            found[np.arange(j - i), np.arange(i, j)] = True
        return np.asarray(found)


def _blocks(queries: Floats, vectors: Floats, same: _Same, metric: str) -> Any:
    """(first query, scores (b, n) float64 of float32, relevant (b, n)) of block after block."""
    z, x = queries.astype(np.float64), vectors.astype(np.float64)
    squares = np.einsum("nd,nd->n", x, x)
    step = max(1, BLOCK // max(len(x), 1))
    for i in range(0, len(z), step):
        s = z[i : i + step] @ x.T
        if metric == "l2":
            s = 2 * s - squares - np.einsum("nd,nd->n", z[i : i + step], z[i : i + step])[:, None]
        yield i, s.astype(np.float32).astype(np.float64), same(i, i + len(s))


def _knots(queries: Floats, vectors: Floats, same: _Same, metric: str) -> Doubles:
    """Scores of the tables, descending: quantiles of the relevant scores, of the irrelevant ones evenly in the logarithm of
    their share, and the least of all.
    """
    parts: tuple[list[Doubles], list[Doubles]] = ([], [])
    least = math.inf
    for i, s, relevant in _blocks(queries, vectors, same, metric):
        own = np.arange(len(s)), np.arange(i, i + len(s))
        least = min(least, float(s.min()))
        others = ~relevant
        relevant[own] = False
        parts[0].append(s[relevant])
        parts[1].append(s[others].astype(np.float32))
    right, wrong = (np.sort(np.concatenate(part))[::-1] for part in parts)
    of_right = (np.linspace(0, 1, KNOTS) * (len(right) - 1)).astype(np.int64)
    decades = min(RANGE, math.log10(max(len(wrong), 2)))
    of_wrong = (np.logspace(-decades, 0, KNOTS // 2) * len(wrong)).astype(np.int64).clip(max=len(wrong) - 1)
    chosen = np.concatenate([right[of_right], wrong[of_wrong], [least]])
    return np.unique(np.asarray(chosen, np.float64))[::-1].copy()
