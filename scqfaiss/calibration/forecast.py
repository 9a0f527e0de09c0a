"""What mAP to expect of a gallery, from labelled rows that did not train.

Few rows stand for a gallery of many: a query's rows are taken for quantiles of what its class will score, and those of other
classes likewise. Heads that learned from fewer rows rank worse than those that learn from all; by how much is bounded by what
learning curves are known to do.

q query   i relevant row
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..arrays import Floats, Labels
from ..errors import ConfigError, DataError
from .tables import DIGITS, Doubles

QUERIES = 1_000  # that are ranked, at most
WIDTH = 2.0  # standard errors on both sides
# With n times the rows to learn from, the loss 1 - mAP falls by n^-a. Seen on parts of training rows: CLINC150, 3 to 5, 5 to 10,
# 10 to 14 rows a class: a = 1.1, 0.7, 0.6; CIFAR-10, 20 to 100, 100 to 350: 0.14, 0.19.
FEW = 20  # rows a class
CURVES = {True: (0.6, 1.2), False: (0.3, 0.7)}  # usual and steepest a, of few rows a class and of more


@dataclass(frozen=True)
class Expected:
    """mAP of a gallery whose classes are as frequent as among the rows that told it: expected, and between which bounds."""

    map: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.2f} to {self.high:.2f}" if round(self.low, 2) < round(self.high, 2) else f"{self.map:.2f}"


@dataclass(frozen=True)
class Ranked:
    """Mean average precision of `queries` queries, and its standard error: rows err as queries and as answers of others."""

    map: float
    error: float
    queries: int


def mean_average_precision(queries: Floats, vectors: Floats, labels: Labels, metric: str, seed: int = 0) -> Ranked:
    """queries (n, d) as searched with, vectors (n, d) that the codes of the same rows stand for -> the mAP to expect of such
    queries in a gallery of many such rows; at most QUERIES of them are drawn. Raises DataError where none has a relevant row.

    With r(t) and f(t) the shares of a query's relevant and irrelevant rows that score t or better, and p that of relevant rows,
    average precision is the mean of p r / (p r + (1 - p) f) over the scores of relevant rows; of rows that tie, a half counts. A
    row is not scored against itself. The error is that of the infinitesimal jackknife (Efron 1982).
    """
    y = labels.y.astype(np.float32) if labels.multilabel else labels.y
    squares = np.einsum("nd,nd->n", vectors, vectors)
    of_query, of_row, found = np.zeros(len(y)), np.zeros(len(y)), np.zeros(len(y), bool)
    for q in np.random.default_rng(seed).permutation(len(queries))[:QUERIES]:
        s = vectors @ queries[q]
        s = 2 * s - squares if metric == "l2" else s
        relevant = y @ y[q] > 0 if labels.multilabel else y == y[q]
        others, p = ~relevant, float(relevant.mean())
        relevant[q] = False
        answers = np.flatnonzero(relevant)
        if len(answers) and others.any():
            r, f = (_share_above(np.sort(scores), s[answers]) for scores in (s[answers], s[others]))
            precision = p * r / (p * r + (1 - p) * f)
            found[q], of_query[q] = True, precision.mean()
            of_row[answers] += (precision - of_query[q]) / len(answers)
    n = int(found.sum())
    if not n:
        raise DataError("no row has another one of its class beside it, and rows of others")
    mean = float(of_query[found].mean())
    influence = np.where(found, of_query - mean, 0) + of_row
    return Ranked(mean, float(np.sqrt((influence**2).sum())) / n, n)


def _share_above(ascending: Floats, at: Floats) -> Doubles:
    """The share of scores above each of `at`, those that equal it counted half."""
    above = 2 * len(ascending) - np.searchsorted(ascending, at, "left") - np.searchsorted(ascending, at, "right")
    return np.asarray(above / (2 * len(ascending)))


def expected(ranked: Ranked, learned: float = 1.0, few: bool = True) -> Expected:
    """What is to be expected of heads that learn from all rows, where those that ranked learned from the share `learned` of them.
    few: whether these are fewer than FEW a class.
    """
    usual, best = (1 - (1 - ranked.map) * learned**a for a in CURVES[few])
    low, high = max(ranked.map - WIDTH * ranked.error, 0.0), min(best + WIDTH * ranked.error, 1.0)
    return Expected(*(float(f"{v:.{DIGITS}g}") for v in (min(max(usual, low), high), low, high)))


@dataclass(frozen=True)
class Forecast:
    """lengths: by bits; rows: of the rows' own cosine; pq: of PQ of the rows in as many bits as the longest codes, None where
    rows are too few; queries: held-out rows that told it; unequal: whether some classes have many times the rows of others, so
    that a gallery of other shares may come to much less.
    """

    lengths: Mapping[int, Expected]
    rows: Expected
    pq: Expected | None
    queries: int
    unequal: bool = False

    @property
    def verdict(self) -> str:
        """What to do, in a few words."""
        codes = self.lengths[max(self.lengths)]
        if codes.low > self.rows.map and (self.pq is None or codes.low > self.pq.map):
            return "labels help here"
        if self.pq is not None and codes.high < self.pq.low:
            return "too few labels: codes of the rows themselves are better (--method pq, or --content-bits)"
        if codes.high < self.rows.low:
            return "the uncompressed rows are better; more labels, --unlabelled rows or --content-bits help"
        return "no better than the rows themselves for certain"

    def __str__(self) -> str:
        """One line for a person."""
        lengths = ", ".join(f"{bits} bits {of}" for bits, of in self.lengths.items())
        pq = "" if self.pq is None else f", PQ of the rows in {max(self.lengths)} bits {self.pq.map:.2f}"
        where = ", in a gallery whose classes are as unequal as the labels" * self.unequal
        return (
            f"mAP to expect{where}, by {self.queries:,} held-out rows: {lengths}; the rows' own cosine {self.rows.map:.2f}{pq}: "
            f"{self.verdict}"
        )

    def pack(self) -> dict[str, Any]:
        """Plain JSON values."""
        lengths = {str(bits): asdict(of) for bits, of in self.lengths.items()}
        pq = None if self.pq is None else asdict(self.pq)
        return {
            "lengths": lengths,
            "rows": asdict(self.rows),
            "pq": pq,
            "queries": self.queries,
            "unequal": self.unequal,
        }

    @staticmethod
    def unpack(packed: Any) -> Forecast:
        """The inverse of pack. Raises ConfigError for what pack does not write."""
        try:
            pq = None if packed["pq"] is None else Expected(**packed["pq"])
            lengths = {int(bits): Expected(**of) for bits, of in packed["lengths"].items()}
            found = Forecast(lengths, Expected(**packed["rows"]), pq, packed["queries"], packed["unequal"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"a forecast that cannot be read: {error}") from error
        values = [v for of in (*lengths.values(), found.rows, *filter(None, [pq])) for v in (of.map, of.low, of.high)]
        if (
            not lengths
            or type(found.queries) is not int
            or not all(type(v) in (int, float) and 0 <= v <= 1 for v in values)
        ):
            raise ConfigError("a forecast needs mAP from 0 to 1 for every length")
        return found
