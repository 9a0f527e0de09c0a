"""Training on wrong labels: what is left out, when, and what is said of it."""

import warnings

import numpy as np
import pytest
from faults.conftest import blobs

import scqfaiss
from scqfaiss.arrays import Labels
from scqfaiss.contract import silent
from scqfaiss.data import ArraySource
from scqfaiss.errors import ConfigError, ScqWarning
from scqfaiss.methods.scq import Settings
from scqfaiss.options import TrainOptions, parse_request
from scqfaiss.training import fitting
from scqfaiss.training.neighbour_labels import NEAREST, disagreement, looks_right, looks_wrong
from scqfaiss.training.out_of_fold import FOLDS, options_of_folds
from scqfaiss.training.planning import make_plan
from scqfaiss.training.robust import RATIOS, better, hint, in_doubt, kept_classes, say, tried
from scqfaiss.training.rows import SourceRows

SMALL = {"bits": 8, "nbits": 4, "encoder": "linear", "epochs": 1, "codebooks.copies": 1}


def nearest_mean(options, x, y, *_, **__):
    """A classifier of no time: softmax of -||x - class mean||^2 / 10."""
    numbers = np.unique(y)
    means = np.stack([x[y == c].mean(0) for c in numbers])

    def judge(rows):
        logits = -np.square(rows[:, None] - means).sum(2) / 10
        e = np.exp(logits - logits.max(1, keepdims=True))
        return (e / e.sum(1, keepdims=True)).astype(np.float32)

    return judge, numbers


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(fitting, "train_judge", nearest_mean)


def wrong(n=200, share=0.25, C=4):
    """Rows, labels of which a share is wrong, and which these are."""
    x, y = blobs(n, C=C)
    rng = np.random.default_rng(3)
    bad = rng.random(n) < share
    return x, np.where(bad, (y + rng.integers(1, C, n)) % C, y), bad


def test_rows_are_left_out_where_that_ranks_better_beyond_chance():
    rng = np.random.default_rng(0)
    before = rng.random(400)
    assert better(before, before + 0.05) and not better(before, before - 0.05)
    noise = rng.standard_normal(400)
    noise = (noise - noise.mean()) / noise.std(ddof=1)  # mean 0, standard error 1/20
    for gain, worth in ((0.9 / 20, False), (1.1 / 20, True)):
        assert better(before, before + noise + gain) == worth
    assert better(np.zeros(0), np.zeros(0)) is False


def test_what_is_suspicious_is_found_without_the_held_out_rows():
    x, y, _ = wrong()
    seen = []

    def train(options, x, y):
        judge, numbers = nearest_mean(options, x, y)

        def noted(rows):
            seen.append((x, rows))
            return judge(rows)

        return noted, numbers

    rows = SourceRows(ArraySource(x, y), "cpu")
    before, after = tried(rows, Labels(y, 4), options_of_folds(TrainOptions(), Settings), train, silent)
    assert len(seen) == FOLDS + 1 + len(RATIOS)
    held = seen[-1][1]
    assert (held == seen[-3][1]).all() and len(held) == 40 == len(before) and set(after) == set(RATIOS)
    for trained, _ in seen:
        assert not (trained[:, None] == held).all(2).any()
    assert len(seen[-1][0]) <= len(seen[-2][0]) < len(seen[-3][0]) == 160


def planned(x, y):
    return make_plan(parse_request({"robust": "on", **SMALL}, of_files=False)[0], ArraySource(x, y))


def test_no_class_is_lost():
    y = np.array([0, 0, 1, 1, 2, 2])
    suspicious = np.array([True, True, True, False, False, False])
    assert kept_classes(suspicious, Labels(y, 3)).tolist() == [2]


def test_wrong_labels_do_not_train_and_right_ones_do(quick, monkeypatch):
    x, y, bad = wrong()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScqWarning)
        monkeypatch.setattr("scqfaiss.training.robust.better", lambda before, after: True)
        robust = scqfaiss.train(x, y, robust="on", **SMALL)
        facts = robust.config["training"]["wrong_labels"]
        assert facts["left_out"] > 0.7 * bad.sum()
        cleaning = fitting.clean_labels(planned(x, y), None, silent)
        assert len(cleaning.rows) == facts["left_out"] and bad[cleaning.rows].mean() > 0.9
        assert "left out" in say(facts)
        loaded = scqfaiss.Model.from_bytes(robust.to_bytes(), "m")
        assert loaded.config["training"]["wrong_labels"] == facts
        monkeypatch.undo()
        monkeypatch.setattr(fitting, "train_judge", nearest_mean)
        x, y = blobs(200)
        of_all, robust = scqfaiss.train(x, y, **SMALL), scqfaiss.train(x, y, robust="on", **SMALL)
        assert robust.config["training"]["wrong_labels"]["left_out"] == 0
        assert (of_all.codebooks.centroids == robust.codebooks.centroids).all()
        assert "wrong_labels" not in of_all.config["training"]


def asked(x, y, share_of_wrong):
    """Whether labels are in doubt where a classifier finds so many of those it is asked for wrong, and how often it is asked."""
    calls = []

    def train(options, x, y):
        calls.append(1)
        numbers = np.unique(y)

        def judge(rows):  # the same wrong class for a share of the rows, whatever they are
            p = np.full((len(rows), len(numbers)), 1e-4, np.float32)
            right = np.array([of[row.tobytes()] for row in rows])
            said = np.where(np.arange(len(rows)) < share_of_wrong * len(rows), (right + 1) % len(numbers), right)
            p[np.arange(len(rows)), said] = 1
            return p

        return judge, numbers

    of = {row.tobytes(): c for row, c in zip(x, y)}
    rows = SourceRows(ArraySource(x, y), "cpu", memory=0)
    return in_doubt(planned(x, y), rows, Labels(y, 4), train, silent), len(calls)


def test_labels_are_in_doubt_where_many_look_wrong_beside_others_and_to_a_short_training():
    x, y = blobs(300)
    assert asked(x, y, 1.0) == (False, 0)  # the nearest rows agree: nothing else is asked
    x, y, _ = wrong(300, 0.2)
    assert asked(x, y, 0.05) == (False, 1)
    assert asked(x, y, 0.10) == (True, 1)
    assert asked(x[:190], y[:190], 1.0) == (False, 0)  # too few to judge
    assert looks_right(100, 4) and not looks_right(100, 5) and not looks_right(99, 0)


def test_labels_in_doubt_are_cleaned_unasked(quick):
    x, y, bad = wrong(400)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScqWarning)
        facts = scqfaiss.train(x, y, **SMALL).config["training"]["wrong_labels"]
        assert facts["left_out"] > 0.7 * bad.sum()
        assert "wrong_labels" not in scqfaiss.train(x, y, robust="off", **SMALL).config["training"]
        assert "wrong_labels" not in scqfaiss.train(*blobs(400), **SMALL).config["training"]


def test_what_cannot_be_judged_trains_whole_and_says_so(quick):
    x, y = blobs(60)
    with pytest.warns(ScqWarning, match="judges single labels of rows of features, not many a row"):
        scqfaiss.train(x, np.eye(4, dtype=np.uint8)[y], robust="on", **SMALL)
    with pytest.warns(ScqWarning) as said:
        scqfaiss.train(x, method="pq", bits=8, nbits=4, robust="on")
    assert "method pq has no use for --robust: it is ignored" in [str(w.message) for w in said]
    with pytest.raises(ConfigError, match="robust is 'yes', needs one of auto, on, off"):
        scqfaiss.train(x, y, robust="yes", **SMALL)
    with pytest.raises(scqfaiss.DataError, match="at least 2 classes"):
        scqfaiss.train(x, np.zeros(60, int), robust="on", **SMALL)


# ---------------------------------------------------------------------------------------------------------------- hint
def test_the_look_at_nearest_rows_against_a_loop():
    x, y, _ = wrong(90)
    x[:, 2] = 5  # a constant column says nothing
    z = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    sd = z.std(0)
    z = z[:, sd > 1e-6] / sd[sd > 1e-6]
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    alike = other = 0
    for i in range(90):
        near = [j for j in np.argsort(-(z @ z[i]), kind="stable").tolist() if j != i][:NEAREST]
        if len(set(y[near].tolist())) == 1:
            alike, other = alike + 1, other + (y[near[0]] != y[i])
    assert disagreement(SourceRows(ArraySource(x, y), "cpu"), y, 0) == (alike, other) and other > 0
    assert disagreement(SourceRows(ArraySource(x[:5], y[:5]), "cpu"), y[:5], 0) == (0, 0)


def test_the_hint_comes_with_wrong_labels_alone():
    x, y, _ = wrong(600, 0.2)
    rows = SourceRows(ArraySource(x, y), "cpu")
    with pytest.warns(ScqWarning, match="labels may be wrong: of .*scqfaiss check"):
        hint(rows, Labels(y, 4), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hint(rows, Labels(blobs(600)[1], 4), 0)
        hint(rows, Labels(np.eye(4, dtype=np.uint8)[y], 4), 0)
    assert not looks_wrong(0, 0) and not looks_wrong(50, 9) and looks_wrong(100, 20) and not looks_wrong(300, 26)
