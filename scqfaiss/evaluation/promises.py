"""What a calibration promised, held against labels: precision and recall beyond its thresholds, and its probabilities."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Labels
from ..calibration.tables import CONFIDENCE, Calibration
from ..errors import ConfigError
from .ranking import Relevance

RECALLS = (0.5, 0.8, 0.9, 0.95)
PRECISIONS = (0.5, 0.8, 0.9, 0.95, 0.99)
FIRST = 100  # hits of each query whose probabilities are looked at
BINS = 15  # of the expected calibration error (Guo et al. 2017)


def check(
    scores: Iterable[NDArray[np.float32]],
    queries: Labels,
    relevance: Relevance,
    calibration: Calibration,
    share: float | None,
    confidence: float = CONFIDENCE,
) -> dict[str, Any]:
    """scores: one (u,) float32 per query over the distinct codes, large is near -> {"recall": {"0.5": seen, ...},
    "precision": ..., "ece", "reliability", "confidence"}.

    Recall is the mean over queries with a relevant row, precision that of all hits of all queries; None where the calibration
    could not promise so much, or nothing was found. ece: of the first FIRST hits, ties in equal parts; reliability: of these, by
    bins of probability, the mean "probability", the share that is "right", and how many "hits".
    """
    sign = -1.0 if calibration.metric == "l2" else 1.0
    thresholds = _thresholds(calibration, share, confidence)
    t = np.array([np.inf if v is None else sign * v for _, _, v in thresholds])
    hits, right, recalls, asked = np.zeros(len(t)), np.zeros(len(t)), np.zeros(len(t)), 0
    bins = np.zeros((3, BINS))  # hits, the sum of their probabilities, how many are relevant
    for s, y in zip(scores, queries.y):
        found = relevance.per_word(y)
        order = np.argsort(-s, kind="stable")
        place = np.searchsorted(-s[order], -t, side="left")  # scores above the threshold, those equal to it are not
        rows, own = (np.append(0, np.cumsum(a[order])) for a in (relevance.rows, found))
        hits += rows[place]
        right += own[place]
        if own[-1]:
            asked, recalls = asked + 1, recalls + own[place] / own[-1]
        bins += _first(s[order], relevance.rows[order], found[order], calibration, share, sign)
    out: dict[str, Any] = {"recall": {}, "precision": {}, "confidence": confidence}
    for i, (name, value, threshold) in enumerate(thresholds):
        seen = recalls[i] / max(asked, 1) if name == "recall" else right[i] / max(hits[i], 1)
        none = threshold is None or (name == "precision" and not hits[i])
        out[name][f"{value:g}"] = None if none else float(seen)
    curve = [
        {"probability": p / hits, "right": own / hits, "hits": hits} for hits, p, own in bins.T.tolist() if hits > 0
    ]
    return out | {"ece": float(np.abs(bins[1] - bins[2]).sum() / max(bins[0].sum(), 1)), "reliability": curve}


def _thresholds(
    calibration: Calibration, share: float | None, confidence: float
) -> list[tuple[str, float, float | None]]:
    found: list[tuple[str, float, float | None]] = []
    for name, values in (("recall", RECALLS), ("precision", PRECISIONS)):
        for value in values:
            try:
                found.append((name, value, calibration.threshold({name: value}, confidence, share)))
            except ConfigError:  # the calibration rows cannot promise so much
                found.append((name, value, None))
    return found


def _first(
    s: NDArray[np.float32], rows: Any, found: Any, calibration: Calibration, share: float | None, sign: float
) -> NDArray[np.float64]:
    """Of the first hits: how many fall into each bin of probability, the sum of these, and how many are relevant, (3, BINS)."""
    few = slice(0, FIRST)  # every word holds a row
    s, rows, found = s[few], rows[few], found[few]
    part = np.clip((FIRST - (np.cumsum(rows) - rows)) / rows, 0, 1)
    p = calibration.probability(sign * s, share)
    place = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    return np.stack([np.bincount(place, w, BINS) for w in (part * rows, part * rows * p, part * found)])


def lines(found: dict[str, Any]) -> list[str]:
    """For a person: asked against seen."""
    text = []
    for name in ("recall", "precision"):
        seen = "  ".join(f"{k} {'none' if v is None else format(v, '.3f')}" for k, v in found[name].items())
        text.append(f"promised {name}, seen with confidence {found['confidence']:g}: {seen}")
    return [*text, f"expected calibration error of the first {FIRST} hits: {found['ece']:.3f}"]
