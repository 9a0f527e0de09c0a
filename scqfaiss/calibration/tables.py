"""Scores of codes as probabilities, and thresholds that keep a promise.

Two tables over scores t describe codes of one length: r(t), the share of relevant pairs that score t or better, and f(t), that of
irrelevant ones. In a gallery where a share p of all pairs is relevant, Bayes gives the precision of all hits at t or better,
p r / (p r + (1 - p) f), and the probability of a pair p l / (p l + 1 - p), where l = dr / df falls with t: the slope of the least
concave majorant of r over f, which pooling of adjacent violators finds (Ayer et al. 1955).

Scores inside this file are large for near rows: of metric l2 they are minus the distance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codebooks import METRICS
from ..errors import ConfigError

Doubles = NDArray[np.float64]

KNOTS = 192  # quantiles of the relevant scores that tables are kept at; of the irrelevant ones half as many
CONFIDENCE = 0.9  # of promises, unless another is asked for
DIGITS = 6  # significant, of the numbers in files
_TABLES = ("recall", "relevant", "irrelevant")
_ERRORS = ("recall_error", "relevant_error", "irrelevant_error", "covariance")


@dataclass(frozen=True, eq=False)
class Calibration:
    """The tables of codes of one length, and how sure they are.

    scores (T,): descending. recall, relevant, irrelevant (T,), ascending from 0 to 1: shares of pairs at that score or better:
    of the relevant pairs of a query, the mean over queries; of all relevant pairs; of all irrelevant pairs. recall_error,
    relevant_error, irrelevant_error (T,): their standard errors over rows, covariance (T,): of the last two. pairs: how many
    relevant and irrelevant ones were looked at. rows: that had a relevant row beside them.
    """

    metric: str
    rows: int
    pairs: tuple[int, int]
    scores: Doubles
    recall: Doubles
    relevant: Doubles
    irrelevant: Doubles
    recall_error: Doubles
    relevant_error: Doubles
    irrelevant_error: Doubles
    covariance: Doubles

    @property
    def share(self) -> float:
        """The share of relevant pairs among the calibration rows."""
        return self.pairs[0] / sum(self.pairs)

    @cached_property
    def _slopes(self) -> Doubles:
        """(T,) the likelihood ratio of scores from one table entry to the next."""
        r, f = np.diff(self.relevant, prepend=0.0), np.diff(self.irrelevant, prepend=0.0)
        # Half a pair of each kind more in a pool: no score is certain because few pairs were looked at.
        return pooled(r, f, 0.5 / self.pairs[0], 0.5 / self.pairs[1])

    def probability(self, scores: NDArray[Any], share: float | None = None) -> NDArray[np.float32]:
        """Scores as FAISS returns them, of any shape -> the probability that each hit is relevant, float32, monotone.

        share: of relevant pairs in the gallery, default that of the calibration rows. Raises ConfigError for one that is no
        share.
        """
        p, s = self._share(share), np.asarray(scores, np.float64) * self._sign
        place = np.searchsorted(-self.scores, -s, side="left").clip(max=len(self.scores) - 1)
        odds = p * self._slopes[place]
        return np.asarray(odds / (odds + (1 - p)), np.float32)

    def precision(self, share: float | None = None) -> Doubles:
        """(T,) expected precision of all hits at each score of the table or better."""
        p = self._share(share)
        right, wrong = p * self.relevant, (1 - p) * self.irrelevant
        return np.asarray(right / np.maximum(right + wrong, 1e-300))

    def threshold_of_recall(self, recall: float, confidence: float = CONFIDENCE) -> float:
        """The strictest score of the table above which a query finds a share `recall` of its rows, on average over queries.

        The conformal quantile, n / (n + 1) of the mean (Vovk, Gammerman, Shafer 2005; over queries, as for hierarchical data:
        Lee, Barber, Willett 2023), lowered by the normal bound over rows at `confidence` (0.5: not lowered). Raises
        ConfigError where the calibration rows cannot promise so much, or for numbers out of range.
        """
        _check("recall", recall)
        z = _quantile(confidence)
        lower = (self.recall - z * self.recall_error) * self.rows / (self.rows + 1)
        fails = np.flatnonzero(lower < recall)
        best = int(fails[-1]) + 1 if len(fails) else 0
        if best == len(self.scores):
            raise ConfigError(
                f"{self.rows:,} calibration rows promise a recall of {lower[-1]:.3f} at most with confidence {confidence:g}, "
                f"{recall:g} was asked for; calibrate with more rows"
            )
        return self._faiss(float(self.scores[best]))

    def threshold_of_precision(
        self, precision: float, confidence: float = CONFIDENCE, share: float | None = None
    ) -> float:
        """The loosest score of the table above which a share `precision` of all hits of all queries is relevant.

        Learn then test (Angelopoulos, Bates, Candes, Jordan, Lei 2021): from the score whose bound is the best towards looser
        ones, as long as the normal bound over rows, at `confidence`, of the hits that are right above those that may be wrong
        is positive. Rows are counted, not pairs. Raises as threshold_of_recall.
        """
        _check("precision", precision)
        margin = self._margin(precision, _quantile(confidence), self._share(share))
        start = int(np.argmax(margin))
        if margin[start] < 0:
            raise ConfigError(
                f"{self.rows:,} calibration rows promise no score a precision of {precision:g} with confidence "
                f"{confidence:g}; ask for less, or calibrate with more rows"
            )
        fails = np.flatnonzero(margin[start:] < 0)
        return self._faiss(float(self.scores[start + int(fails[0]) - 1 if len(fails) else -1]))

    def threshold_of_probability(self, probability: float, share: float | None = None) -> float:
        """The loosest score whose hits are relevant with this probability. Raises ConfigError where none is."""
        _check("probability", probability)
        found = np.flatnonzero(self.probability(self._sign * self.scores, share) >= probability)
        if not len(found):
            best = float(self.probability(self._sign * self.scores[:1], share)[0])
            raise ConfigError(
                f"the best hits are relevant with a probability of {best:.3f}, {probability:g} was asked for"
            )
        return self._faiss(float(self.scores[found[-1]]))

    def threshold(
        self, asked: Mapping[str, float], confidence: float = CONFIDENCE, share: float | None = None
    ) -> float:
        """By the one thing that is asked for: 'precision', 'recall' or 'probability'. Raises as those do, ConfigError unless
        there is exactly one.
        """
        if len(asked) != 1:
            found = " and ".join(asked) or "nothing"
            raise ConfigError(f"{found} was asked for, needs one of precision, recall and probability")
        ((name, value),) = asked.items()
        if name == "recall":
            return self.threshold_of_recall(value, confidence)
        if name == "precision":
            return self.threshold_of_precision(value, confidence, share)
        return self.threshold_of_probability(value, share)

    def table(self, share: float | None = None, entries: int = 9) -> list[dict[str, float]]:
        """Score, probability, precision and recall at evenly spaced recalls: what `info` prints."""
        at = np.unique(np.searchsorted(self.recall, np.linspace(0.1, 0.95, entries)).clip(max=len(self.scores) - 1))
        columns: tuple[NDArray[Any], ...] = (
            self.probability(self._sign * self.scores, share),
            self.precision(share),
            self.recall,
        )
        return [
            {"score": float(self._sign * self.scores[i])}
            | {key: float(c[i]) for key, c in zip(("probability", "precision", "recall"), columns)}
            for i in at
        ]

    @property
    def _sign(self) -> float:
        return -1.0 if self.metric == "l2" else 1.0

    def _faiss(self, score: float) -> float:
        """A threshold that FAISS's range_search, which takes no score equal to it, meets a table's score with."""
        return self._sign * float(np.nextafter(np.float32(score), np.float32(-np.inf)))

    def _share(self, share: float | None) -> float:
        p = self.share if share is None else share
        if not isinstance(p, (int, float, np.number)) or not 0 < p < 1:
            raise ConfigError(f"the share of relevant rows is {p!r}, needs a number between 0 and 1")
        return float(p)

    def _margin(self, precision: float, z: float, p: float) -> Doubles:
        """(T,) the lower bound of (1 - precision) right - precision wrong, relative to right; one wrong pair more is assumed."""
        n = self.pairs[1]
        right, wrong = (1 - precision) * p, precision * (1 - p)
        mean = right * self.relevant - wrong * (self.irrelevant * n + 1) / (n + 1)
        variance = (right * self.relevant_error) ** 2 + (wrong * self.irrelevant_error) ** 2
        variance -= 2 * right * wrong * self.covariance
        lower = mean - z * np.sqrt(np.maximum(variance, 0))
        return np.asarray(np.where(self.relevant > 0, lower / np.maximum(right * self.relevant, 1e-300), -np.inf))

    # ------------------------------------------------------------------------------------------------------------ file
    def pack(self) -> dict[str, Any]:
        """Plain JSON values; about 20 kB."""
        tables = {name: rounded(getattr(self, name)) for name in (*_TABLES, *_ERRORS)}
        scores = [float(np.float32(v)) for v in self.scores]  # of float32, so that none moves past its hits
        return {"metric": self.metric, "rows": self.rows, "pairs": list(self.pairs), "scores": scores, **tables}

    @staticmethod
    def unpack(packed: Any) -> Calibration:
        """The inverse of pack. Raises ConfigError for what pack does not write."""
        try:
            arrays = {name: numbers(packed[name], name) for name in ("scores", *_TABLES, *_ERRORS)}
            metric, rows, pairs = packed["metric"], packed["rows"], packed["pairs"]
        except (KeyError, TypeError) as error:
            raise ConfigError(f"a calibration without {error}") from error
        if metric not in METRICS or type(rows) is not int or rows < 1:
            raise ConfigError(f"a calibration of metric {metric!r} from {rows!r} rows")
        if not isinstance(pairs, list) or len(pairs) != 2 or any(type(n) is not int or n < 1 for n in pairs):
            raise ConfigError(f"a calibration from {pairs!r} pairs, needs two counts")
        if len({len(a) for a in arrays.values()}) != 1 or not 1 <= len(arrays["scores"]) <= 4 * KNOTS:
            raise ConfigError(f"the tables of a calibration need one length, from 1 to {4 * KNOTS}")
        if (np.diff(arrays["scores"]) >= 0).any():
            raise ConfigError("the scores of a calibration do not descend")
        for name in _TABLES:
            a = arrays[name]
            if a[0] < 0 or a[-1] > 1 or (np.diff(a) < 0).any():
                raise ConfigError(f"the table '{name}' of a calibration does not ascend from 0 to 1")
        if any((arrays[name] < 0).any() for name in _ERRORS[:3]):
            raise ConfigError("a calibration has errors below 0")
        return Calibration(metric, rows, (pairs[0], pairs[1]), **arrays)


def pooled(r: Doubles, f: Doubles, more_r: float = 0.0, more_f: float = 0.0) -> Doubles:
    """r, f (T,) parts of relevant and irrelevant pairs -> (T,) slopes that fall: pooled r / f, by pooling adjacent violators.

    more_r, more_f are added to each pool; a pool with neither is a part of the one before.
    """
    blocks: list[list[float]] = []  # r, f, entries
    for a, b in zip(r.tolist(), f.tolist()):
        blocks.append([a, b, 1])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] <= blocks[-1][0] * blocks[-2][1]:
            last = blocks.pop()
            blocks[-1] = [x + y for x, y in zip(blocks[-1], last)]
    slopes = [(a + more_r) / max(b + more_f, 1e-300) for a, b, _ in blocks]
    falling = np.minimum.accumulate(
        np.repeat(slopes, [int(n) for _, _, n in blocks])
    )  # added parts may turn two around
    return np.asarray(falling, np.float64)


def rounded(a: Doubles) -> list[float]:
    return [float(f"{v:.{DIGITS}g}") for v in a]


def numbers(values: Any, name: str) -> Doubles:
    if not isinstance(values, list) or any(type(v) not in (int, float) or not math.isfinite(v) for v in values):
        raise ConfigError(f"the table '{name}' of a calibration is no list of numbers")
    return np.asarray(values, np.float64)


def _check(name: str, value: float) -> None:
    if not isinstance(value, (int, float, np.number)) or not 0 < value < 1:
        raise ConfigError(f"{name} is {value!r}, needs a number between 0 and 1")


def _quantile(confidence: float) -> float:
    """Of the normal distribution. Raises ConfigError below one half: nobody wants a promise that mostly breaks."""
    if not isinstance(confidence, (int, float, np.number)) or not 0.5 <= confidence < 1:
        raise ConfigError(f"confidence is {confidence!r}, needs a number from 0.5, below 1")
    return NormalDist().inv_cdf(float(confidence))
