"""Tables of held-out rows against slow twins; probabilities and thresholds against what they promise."""

import json

import numpy as np
import pytest

from scqfaiss.arrays import Labels
from scqfaiss.calibration.measuring import measure
from scqfaiss.calibration.tables import KNOTS, Calibration, pooled
from scqfaiss.errors import ConfigError, DataError


def rows(n, C, seed, noise=0.6):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, C, n)
    centers = rng.standard_normal((C, 8))
    z = centers[y] + noise * rng.standard_normal((n, 8))
    return z.astype(np.float32), (z + 0.2 * rng.standard_normal(z.shape)).astype(np.float32), y


def slow_scores(z, v, metric):
    z, v = z.astype(np.float64), v.astype(np.float64)
    return z @ v.T if metric == "ip" else -((z[:, None] - v[None]) ** 2).sum(2)


def slow_shares(s, relevant, t):
    """Mean recall of the queries, share of relevant pairs and of irrelevant pairs at t or better, by loops."""
    recalls, right, of_right, wrong, of_wrong = [], 0, 0, 0, 0
    for q in range(len(s)):
        found = total = 0
        for i in range(len(s)):
            if i == q:
                continue
            if relevant[q, i]:
                total, found = total + 1, found + (s[q, i] >= t)
            else:
                of_wrong, wrong = of_wrong + 1, wrong + (s[q, i] >= t)
        right, of_right = right + found, of_right + total
        if total:
            recalls.append(found / total)
    return np.mean(recalls), right / of_right, wrong / of_wrong


def relevance(labels):
    hot = labels.multi_hot().astype(int)
    return hot @ hot.T > 0


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("many", [False, True])
def test_tables_equal_their_slow_twins(metric, many):
    z, v, y = rows(60, 6, 0)
    labels = Labels(y, 6)
    if many:
        hot = labels.multi_hot().copy()
        hot[np.arange(0, 60, 3), (y[::3] + 1) % 6] = 1
        hot[5] = 0  # a row without labels is relevant to none
        labels = Labels(hot, 6)
    found = measure(z, v, labels, metric)
    s, relevant = slow_scores(z, v, metric), relevance(labels)
    np.fill_diagonal(relevant, False)
    # Between two scores of the table: no rounding of a pair's own score can move it across.
    for k in range(0, len(found.scores) - 1, 17):
        t = found.scores[k : k + 2].mean()
        inside = (s < found.scores[k]) & (s >= t)
        np.fill_diagonal(inside, False)
        if inside.any():
            continue
        want = slow_shares(s, relevant, t)
        got = (found.recall[k], found.relevant[k], found.irrelevant[k])
        np.testing.assert_allclose(got, want, atol=2e-3)
    assert found.recall[-1] == found.relevant[-1] == found.irrelevant[-1] == 1
    assert found.pairs == (relevant.sum(), (~relevant).sum() - 60)


def test_errors_are_those_of_rows_left_out_in_turn():
    z, v, y = rows(80, 4, 1, noise=1.5)
    whole = measure(z, v, Labels(y, 4), "ip")
    k = int(np.searchsorted(whole.recall, 0.6))
    t, s = whole.scores[k] - 1e-6, slow_scores(z, v, "ip")
    relevant = y[:, None] == y
    np.fill_diagonal(relevant, False)
    left = []
    for i in range(80):
        kept = np.delete(np.arange(80), i)
        part, right = s[np.ix_(kept, kept)], relevant[np.ix_(kept, kept)]
        wrong = ~right & ~np.eye(79, dtype=bool)
        recall = ((part >= t) & right).sum(1) / np.maximum(right.sum(1), 1)
        left.append(
            [recall.mean(), ((part >= t) & right).sum() / right.sum(), ((part >= t) & wrong).sum() / wrong.sum()]
        )
    want = np.sqrt(79 / 80 * ((left - np.mean(left, 0)) ** 2).sum(0))
    got = [whole.recall_error[k], whole.relevant_error[k], whole.irrelevant_error[k]]
    np.testing.assert_allclose(
        got, want, rtol=0.15
    )  # recalls of single queries weigh anew where one of their rows is gone


def slow_slopes(r, f):
    """Slopes of the least concave majorant of the points (f, r), by every pair of points."""
    F, R = np.append(0, np.cumsum(f)), np.append(0, np.cumsum(r))
    slopes = []
    for k in range(len(r)):
        middle = (F[k] + F[k + 1]) / 2
        lines = [
            (R[a] + (middle - F[a]) * (R[b] - R[a]) / (F[b] - F[a]), (R[b] - R[a]) / (F[b] - F[a]))
            for a in range(k + 1)
            for b in range(k + 1, len(F))
        ]
        slopes.append(max(lines)[1])
    return slopes


def test_pools_are_the_least_concave_majorant():
    rng = np.random.default_rng(2)
    for _ in range(20):
        r, f = rng.random(9), rng.random(9) + 0.05
        np.testing.assert_allclose(pooled(r, f), slow_slopes(r, f), rtol=1e-9)
    assert pooled(np.array([0.0, 1.0]), np.array([0.0, 1.0])).tolist() == [1, 1]  # parts without pairs change nothing
    assert pooled(np.array([1.0, 1.0]), np.array([0.0, 1.0]), 0.5, 0.5).tolist() == [3, 1]


def test_probabilities_fall_with_the_score_and_follow_the_share():
    z, v, y = rows(300, 5, 3)
    c = measure(z, v, Labels(y, 5), "ip")
    s = np.linspace(c.scores[0] + 1, c.scores[-1] - 1, 400)
    p = c.probability(s)
    assert p.dtype == np.float32 and (np.diff(p) <= 0).all() and 0 < p[-1] < p[0] < 1
    low = c.probability(s, 0.01)
    odds = p.astype(np.float64) / (1 - p) * (1 - c.share) / c.share  # Bayes
    np.testing.assert_allclose(low, odds * 0.01 / (odds * 0.01 + 0.99), rtol=1e-3)
    with pytest.raises(ConfigError, match=r"share of relevant rows is 1\.5, needs a number between 0 and 1"):
        c.probability(s, 1.5)


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_other_rows_keep_the_promises(metric):
    z, v, y = rows(800, 5, 4, noise=0.6)
    c = measure(z[:400], v[:400], Labels(y[:400], 5), metric)
    s, relevant = slow_scores(z[400:], v[400:], metric), y[400:, None] == y[400:]
    sign = -1 if metric == "l2" else 1
    for asked in (0.5, 0.7, 0.85):
        t = sign * c.threshold_of_recall(asked)
        seen = ((s > t) & relevant).sum(1) / relevant.sum(1)
        assert asked - 0.01 <= seen.mean() <= asked + 0.08
        asked -= 0.1
        t = sign * c.threshold_of_precision(asked)
        hits = s > t
        assert asked - 0.01 <= (hits & relevant).sum() / hits.sum() <= asked + 0.08
    for asked in (0.3, 0.6):
        least = c.probability(np.array([c.threshold_of_probability(asked)]) + sign * 1e-3)
        assert least >= asked - 1e-6


def test_more_confidence_is_stricter_and_too_much_is_refused():
    z, v, y = rows(200, 4, 5, noise=1.2)
    c = measure(z, v, Labels(y, 4), "ip")
    assert c.threshold_of_recall(0.8, 0.5) > c.threshold_of_recall(0.8, 0.99)
    assert c.threshold_of_precision(0.6, 0.5) < c.threshold_of_precision(0.6, 0.99)
    assert c.threshold_of_precision(0.6, share=0.9) < c.threshold_of_precision(0.6, share=0.1)
    with pytest.raises(
        ConfigError, match=r"200 calibration rows promise a recall of 0\.9\d+ at most .* 0\.999 was asked"
    ):
        c.threshold_of_recall(0.999)
    with pytest.raises(ConfigError, match=r"promise no score a precision of 0\.99999 with confidence 0\.9"):
        c.threshold_of_precision(0.99999, share=1e-4)
    with pytest.raises(ConfigError, match=r"relevant with a probability of 0\.\d+, 0\.9999 was asked for"):
        c.threshold_of_probability(0.9999, 1e-4)
    for call, message in (
        (lambda: c.threshold_of_recall(90), "recall is 90, needs a number between 0 and 1"),
        (lambda: c.threshold_of_precision(0.0), "precision is 0.0, needs a number between 0 and 1"),
        (lambda: c.threshold_of_recall(0.9, 0.2), "confidence is 0.2, needs a number from 0.5, below 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()


def test_too_few_rows_are_refused():
    z, v, _ = rows(30, 4, 6)
    with pytest.raises(DataError, match="0 of 30 calibration rows have another row of their class"):
        measure(z, v, Labels(np.arange(30), 30), "ip")
    with pytest.raises(DataError, match="and rows of other classes"):
        measure(z, v, Labels(np.zeros(30, np.int64), 1), "ip")


def test_a_packed_calibration_promises_the_same():
    z, v, y = rows(200, 4, 7)
    c = measure(z, v, Labels(y, 4), "l2")
    packed = json.loads(json.dumps(c.pack()))
    again = Calibration.unpack(packed)
    assert len(again.scores) <= 2 * KNOTS and again.threshold_of_recall(0.9) == c.threshold_of_recall(0.9)
    np.testing.assert_allclose(
        again.probability(-c.scores), c.probability(-c.scores), rtol=0.02
    )  # six digits, of differences
    assert again.pack() == packed
    assert [sorted(entry) for entry in c.table()[:1]] == [["precision", "probability", "recall", "score"]]
    wrong = {
        "metric": "cosine",
        "rows": 0,
        "pairs": [1],
        "scores": packed["scores"][::-1],
        "recall": packed["recall"][:-1],
        "relevant": packed["relevant"][::-1],
        "recall_error": [-1.0] * len(packed["scores"]),
        "covariance": "none",
    }
    for key, value in wrong.items():
        with pytest.raises(ConfigError):
            Calibration.unpack(packed | {key: value})
        with pytest.raises(ConfigError):
            Calibration.unpack({k: v for k, v in packed.items() if k != key})
    with pytest.raises(ConfigError):
        Calibration.unpack([])
