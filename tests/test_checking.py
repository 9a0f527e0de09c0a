"""scqfaiss check and train --without: every fault made for real, hashes and opinions against slow twins."""

import csv
import json

import numpy as np
import pytest
from faults.conftest import TINY, blobs, run, write_h5  # noqa: F401

from scqfaiss.arrays import Labels
from scqfaiss.checking.check import check_file
from scqfaiss.checking.faults import FAULTS
from scqfaiss.checking.findings import Checked
from scqfaiss.checking.looking import look_at
from scqfaiss.contract import silent
from scqfaiss.data import ArraySource
from scqfaiss.data.source import row_digests
from scqfaiss.errors import ConfigError
from scqfaiss.methods.folds import rank_in_class, shuffled, stratified
from scqfaiss.methods.scq import Settings
from scqfaiss.options import TrainOptions
from scqfaiss.training.fitting import train_judge
from scqfaiss.training.out_of_fold import FOLDS, Opinion, opinion, options_of_folds
from scqfaiss.training.rows import SourceRows

# ruff: noqa: F811  (fixtures are imported by name)


def unjudged():
    raise AssertionError("no classifier is needed for this")


def faults(x, y=None, others=(), judge=unjudged, **more):
    """name -> findings, of rows in memory."""
    looks = [look_at(ArraySource(a, name=f"o{i}", skip_bad_rows=False), silent) for i, a in enumerate(others)]
    checked = Checked(look_at(ArraySource(x, y, **more), silent), looks, judge)
    names = [name for name in FAULTS if name != "suspicious labels" or judge is not unjudged]
    return {name: found for name in names if (found := FAULTS[name](checked))}


def test_rows_without_fault_have_none():
    x, y = blobs(60)
    assert faults(x, y) == {}


def test_every_fault_is_found():
    x, y = blobs(80, C=4)
    x[:, 3], x[:, 5] = 7, 1e4 * np.sign(x[:, 5])
    assert set(faults(x, y)) == {"constant columns", "unscaled columns"}
    x, y = blobs(80, C=4)
    x[5], x[6] = 0, 1e4 * x[6]
    found = faults(x, y)
    assert (list(found), found["zero rows"][0].rows.tolist(), found["norms"][0].rows.tolist()) == (
        ["zero rows", "norms"],
        [5],
        [6],
    )
    x, y = blobs(80, C=4)
    y[0] = 4
    found = faults(x, y)
    assert list(found) == ["small classes", "unequal classes"] and "4: 1" in found["small classes"][0].text
    assert list(faults(x)) == ["labels lack"]
    assert "one class" in faults(x, np.zeros(80, int))["labels lack"][0].text


def test_copies_and_contradictions():
    x, y = blobs(80, C=4)
    x[4], x[8], x[12] = x[0], x[0], x[0]  # all of class 0
    x[1], x[5] = -0.0 * x[1], 0 * x[5]
    y[8] = 2
    x[13], y[13] = x[22], 3  # one against one
    y[22] = 1
    found = faults(x, y)
    assert found["copies"][0].count == 3 + 1 + 1
    (odd,) = found["contradictions"]
    assert dict(zip(odd.rows.tolist(), odd.seems.tolist())) == {8: 0, 13: -1, 22: -1}
    many = np.eye(5, dtype=np.uint8)[y]
    (odd,) = faults(x, many)["contradictions"]
    assert sorted(odd.rows.tolist()) == [8, 13, 22]


def test_rows_of_other_files_and_other_widths():
    x, y = blobs(80)
    other = blobs(20, seed=3)[0]
    assert "shared rows" not in faults(x, y, [other])
    other[3] = x[17]
    (both,) = faults(x, y, [blobs(20, seed=4)[0], other])["shared rows"]
    assert both.rows.tolist() == [17] and "o1" in both.text
    assert "d=5" in faults(x, y, [other[:, :5]])["other files"][0].text


def test_digests_are_equal_where_rows_are():
    x = np.random.default_rng(0).integers(-1, 2, (300, 3)).astype(np.float32)
    x[x == 0] *= np.float32(-1)
    x[::2] = x[::2] + np.float32(0)
    a, b = (np.unique(of, axis=0, return_inverse=True)[1].reshape(-1) for of in (x, row_digests(x)))
    assert ((a[:, None] == a) == (b[:, None] == b)).all()


def test_one_pass_takes_the_statistics_of_the_finite_rows():
    x, y = blobs(50)
    x += 1000
    look = look_at(ArraySource(x, y), silent)
    assert np.allclose(look.sd, x.astype(np.float64).std(0), rtol=1e-4)
    assert np.allclose(look.norms, np.linalg.norm(x.astype(np.float64), axis=1), rtol=1e-5)
    assert (look.low == x.min(0)).all() and (look.high == x.max(0)).all()


# --------------------------------------------------------------------------------------------------------- out of fold
def test_ranks_and_folds_against_a_loop():
    y = np.random.default_rng(0).integers(0, 7, 100)
    assert rank_in_class(y).tolist() == [int((y[:i] == c).sum()) for i, c in enumerate(y)]
    order, place, counts = shuffled(y, 8, np.random.default_rng(0))
    assert sorted(order) == list(range(len(y))) and counts.tolist() == np.bincount(y, minlength=8).tolist()
    assert y[order].tolist() == sorted(y) and place.tolist() == [k for n in counts for k in range(n)]
    fold = stratified(y, 5, 0)
    table = np.array([[((fold == k) & (y == c)).sum() for k in range(5)] for c in range(7)])
    assert (table.max(1) - table.min(1) <= 1).all()
    assert (stratified(y, 5, 0) == fold).all() and (stratified(y, 5, 1) != fold).any()


def nearest_mean(options, x, y):
    """A classifier that a test can follow: softmax of -||x - class mean||^2, and which rows it saw."""
    numbers = np.unique(y)
    means = np.stack([x[y == c].mean(0) for c in numbers])

    def judge(rows):
        seen.append((x, rows))
        logits = -np.square(rows[:, None] - means).sum(2)
        e = np.exp(logits - logits.max(1, keepdims=True))
        return (e / e.sum(1, keepdims=True)).astype(np.float32)

    return judge, numbers


seen: list = []


def test_no_row_is_judged_by_a_classifier_that_saw_it():
    seen.clear()
    x, y = blobs(61, C=3)
    y[0] = 3  # a class of one row cannot be judged
    wrong = np.arange(10, 14)
    y[wrong] = (y[wrong] + 1) % 3
    labels = Labels(y, 4)
    found = opinion(SourceRows(ArraySource(x, y), "cpu"), labels, TrainOptions(), nearest_mean, silent)
    assert len(seen) == FOLDS
    for trained, judged in seen:
        assert not (trained[:, None] == judged).all(2).any()
    assert not found.judged[0] and found.judged[1:].all()
    named = set(np.flatnonzero(found.suspicious()).tolist())
    assert set(wrong.tolist()) <= named and len(named) <= 6  # such a classifier is too sure of means of wrong rows
    assert (found.seems[wrong] == (y[wrong] - 1) % 3).all()
    without = found.suspicious()
    again = opinion(SourceRows(ArraySource(x, y), "cpu"), labels, TrainOptions(), nearest_mean, silent, without)
    for trained, _ in seen[FOLDS:]:
        assert not (trained[:, None] == x[wrong]).all(2).any()
    assert set(wrong.tolist()) <= set(np.flatnonzero(again.suspicious()).tolist())


def test_the_classifiers_are_those_of_a_training():
    x, y = blobs(60, C=3)
    for labels in (5 * y, np.eye(3, dtype=np.uint8)[y]):
        judge, numbers = train_judge(options_of_folds(TrainOptions(encoder="linear", epochs=1), Settings), x, labels)
        p = judge(x)
        assert p.shape == (60, 3) and p.dtype == np.float32
        assert numbers.tolist() == ([0, 5, 10] if labels.ndim == 1 else [0, 1, 2])
        assert p.min() >= 0 and (labels.ndim == 2 or np.allclose(p.sum(1), 1, atol=1e-5))


def test_of_many_labels_the_most_probable_counts():
    p = np.array([[0.9, 0.5, 0.01], [0.01, 0.9, 0.02], [0.2, 0.1, 0.9]], np.float32)
    y = np.array([[1, 0, 1], [1, 0, 1], [0, 0, 0]], np.uint8)
    from scqfaiss.training.out_of_fold import _judge

    out = Opinion(np.zeros(3, np.float32), np.zeros(3, np.float32), np.zeros(3, np.int64), np.zeros(3, bool))
    _judge(out, np.arange(3), p, np.arange(3), Labels(y, 3))
    assert np.allclose(out.given, [0.9, 0.02, 0]) and out.seems.tolist() == [0, 1, 2]
    assert out.judged.tolist() == [True, True, False] and out.suspicious().tolist() == [False, True, False]


def test_folds_keep_the_settings_of_a_classifier_alone():
    options = TrainOptions(
        bits=16,
        lists=4,
        content_bits=8,
        seed=3,
        epochs=2,
        settings={"hidden": 64, "beam": 4, "similarity": "S.npy", "kappa": 2.0},
    )
    of_folds = options_of_folds(options, Settings)
    assert (of_folds.method, of_folds.seed, of_folds.epochs, of_folds.lists) == ("label", 3, 2, "1")
    assert of_folds.settings == {"hidden": 64, "kappa": 2.0}


# -------------------------------------------------------------------------------------------------------- the commands
@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files with every kind of row to leave out, and a classifier of no time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("scqfaiss.checking.check.train_judge", nearest_mean)
    x, y = blobs(120)
    x[7], x[11] = x[3], np.nan
    y[7] = (y[3] + 1) % 4
    y[20] = (y[20] + 1) % 4
    write_h5("train.h5", x, y, np.arange(120) + 1000, names=("a", "b", "c", "d"))
    write_h5("query.h5", np.concatenate([blobs(10, seed=5)[0], x[40:41]]))
    return tmp_path


def test_check_names_rows_and_train_leaves_them_out(folder, run):
    found = json.loads(check_file("train.h5", ["query.h5"], "out.csv", True, keys={}))
    assert found["rows"] == 119 and found["d"] == 16
    assert found["faults"]["suspicious labels"][0]["ids"][:2] in ([1007, 1020], [1020, 1007])
    with open("out.csv", newline="") as f:
        lines = {(int(line["id"]), line["reason"]): line for line in csv.DictReader(f)}
    assert {(1011, "not finite"), (1003, "contradictions"), (1007, "contradictions"), (1040, "shared rows")} <= set(
        lines
    )
    assert (lines[1020, "suspicious labels"]["label"], lines[1020, "suspicious labels"]["seems"]) == ("b", "a")
    table = check_file("train.h5", keys={})
    assert "1020  b " in table
    table = run("check", "train.h5", "query.h5", "--quick").out
    assert "train.h5: 119 rows of d=16, 4 classes" in table and "-o FILE.csv lists them" in table
    assert run("train", "train.h5", "-o", "m.safetensors", *TINY).code == 3  # NaN
    done = run("train", "train.h5", "-o", "m.safetensors", "--without", "out.csv", *TINY)
    assert done.code == 0 and f"left out {len(lines)} of 120 rows" in done.warnings[0]
    assert (
        "rows: 115 " in run("train", "train.h5", "-o", "n.safetensors", "--without", "out.csv", "--dry-run", *TINY).out
    )
    assert run("train", "train.h5", "-o", "k.safetensors", "--without", "1011,1003", *TINY).code == 0


def test_a_list_of_other_rows_is_refused(folder, run):
    check_file("train.h5", (), "out.csv", keys={})
    x, y = blobs(120)
    x[3] += 1
    write_h5("other.h5", x, y, np.arange(120) + 1000, names=("a", "b", "c", "d"))
    write_h5("fewer.h5", x, y, np.arange(120), names=("a", "b", "c", "d"))
    text = (folder / "out.csv").read_text()
    lines = text.splitlines()
    (folder / "moved.csv").write_text("\n".join([lines[0], *(line for line in lines if line.startswith("1020,"))]))
    (folder / "bad.csv").write_text("id\nx\n")
    (folder / "none.csv").write_text("name\nx\n")
    (folder / "all.csv").write_text("\n".join(["id", *(str(i + 1000) for i in range(120))]))

    def refused(rows, without):
        return run("train", rows, "-o", "m.safetensors", "--without", without, *TINY)

    for rows, without, words in (
        ("other.h5", "out.csv", "is not the one that was checked; check again"),
        ("fewer.h5", "out.csv", "has no row of id 10"),
        ("other.h5", "moved.csv", "the label of id 1020 in other.h5 is 'a', it was 'b'"),
        ("train.h5", "bad.csv", "line 2: 'x' is no id"),
        ("train.h5", "none.csv", "has no column id"),
        ("train.h5", "all.csv", "names all 120 rows"),
    ):
        said = refused(rows, without)
        assert said.code == 3 and words in said.error, (said.error, words)
    assert refused("train.h5", "nothing.csv").code == 2
    assert not (folder / "m.safetensors").exists()


def test_check_refuses_what_it_cannot_read(folder, run):
    assert run("check", "train.h5", "-o", "train.h5").code == 2
    assert run("check", "train.h5", "-o", "out.txt").code == 2
    write_h5("empty.h5", np.zeros((0, 4), np.float32))
    assert "0 rows" in run("check", "empty.h5").error
    write_h5("nan.h5", np.full((4, 4), np.nan, np.float32))
    assert "all 4 rows hold NaN" in run("check", "nan.h5").error
    with pytest.raises(ConfigError):
        look_at(
            type("Images", (ArraySource,), {"modality": __import__("scqfaiss.modality").modality.IMAGES})(blobs(4)[0]),
            silent,
        )
