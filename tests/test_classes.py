"""Classes without rows: they cost a training nothing, and the numbers of the others are kept."""

import json
from functools import partial

import numpy as np
import pytest
from faults.conftest import blobs

import scqfaiss
from scqfaiss.arrays import Labels
from scqfaiss.cli import program as cli
from scqfaiss.contract import configure
from scqfaiss.data import ArraySource
from scqfaiss.data.writing import write_rows
from scqfaiss.errors import CheckpointError, ConfigError, DataError, ScqWarning, Stopped
from scqfaiss.evaluation.ranking import Relevance, measure, measure_vectors
from scqfaiss.methods import centers as sca
from scqfaiss.methods.scq import Settings
from scqfaiss.model import Model
from scqfaiss.options import TrainOptions
from scqfaiss.training import class_numbers
from scqfaiss.training.dry_run import dry_run
from scqfaiss.training.planning import make_plan

NUMBERS = np.array([3, 17, 500, 9999])
SMALL = {"bits": 8, "nbits": 4, "encoder": "linear", "epochs": 2}
MANY = "5 of 9 classes have no rows"


def far(multilabel=False):
    """x (80, 16), labels 0..3, and the same labels numbered far apart: up to 9,999, or columns of nine."""
    x, y = blobs(80)
    if not multilabel:
        return x, y, NUMBERS[y]
    dense = np.eye(4, dtype=np.uint8)[y]
    dense[::7, 0] = 1
    wide = np.zeros((80, 9), np.uint8)
    wide[:, [1, 2, 6, 8]] = dense
    return x, dense, wide


def facts(model):
    """A model's config without what tells of the numbers."""
    return {key: value for key, value in model.config.items() if key != "classes"}


@pytest.mark.slow
@pytest.mark.parametrize("multilabel", [False, True], ids=["one", "many"])
@pytest.mark.parametrize(
    "asked",
    [{"method": "scq"}, {"method": "scq", "similarity": "means"}, {"method": "dpq"}, {"method": "label"}],
    ids=["scq", "means", "dpq", "label"],
)
@pytest.mark.filterwarnings(f"ignore:{MANY}")
def test_numbers_far_apart_train_what_numbers_without_gaps_train(asked, multilabel, tmp_path, monkeypatch):
    # Centers need not be the best ones here, only the same ones.
    monkeypatch.setattr(sca, "optimise", partial(sca.optimise, steps=200, decay_every=40))
    x, y, numbers = far(multilabel)
    dense, sparse = (scqfaiss.train(x, labels, **SMALL, **asked) for labels in (y, numbers))
    assert sparse.config["classes"] == ([1, 2, 6, 8] if multilabel else NUMBERS.tolist())
    assert "classes" not in dense.config
    assert facts(sparse) == dense.config
    sparse.save(tmp_path / "m.safetensors")
    read = Model.load(tmp_path / "m.safetensors")
    assert read.config == sparse.config
    of_dense, of_sparse = (model.chain.pack()[0] for model in (dense, read))
    assert of_dense.keys() == of_sparse.keys()
    for key, a in of_dense.items():
        np.testing.assert_array_equal(a, of_sparse[key])
    np.testing.assert_array_equal(dense.codebooks.centroids, read.codebooks.centroids)


def test_the_cost_is_that_of_the_classes_that_occur():
    x, _ = blobs(60)
    labels = np.array([0, 1 << 19, (1 << 20) - 1])[np.arange(60) % 3]
    for method, d in (("scq", 4), ("dpq", 4), ("label", 3)):
        found = make_plan(TrainOptions(method, 8, 4, "linear"), ArraySource(x, labels))
        assert found.labels.C == 3
        assert scqfaiss.train(x, labels, method=method, **SMALL).codebooks.d == d


def test_the_command_line_tells_the_numbers(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y, numbers = far()
    for name, rows in (("train", slice(0, 60)), ("query", slice(60, 80))):
        with open(f"{name}.h5", "wb") as f:
            write_rows(f, x[rows], numbers[rows], np.arange(80)[rows])
    asked = ["--bits", "8", "--nbits", "4", "--encoder", "linear", "--epochs", "2"]

    def out(*command):
        assert cli.run([*command]) == 0
        return capsys.readouterr().out

    assert "\nclasses: 4, numbered 3 to 9,999\n" in out("train", "train.h5", "-o", "m.safetensors", *asked, "--dry-run")
    out("train", "train.h5", "-o", "m.safetensors", *asked)
    assert "\n  classes: 3, 17, 500, 9999\n" in out("info", "m.safetensors")
    of_rows = json.loads(out("info", "train.h5", "--json"))
    assert (of_rows["classes"], of_rows["class_numbers"]) == (4, NUMBERS.tolist())
    out("export", "m.safetensors", "train.h5", "-o", "g.faissindex")
    assert json.loads(out("info", "g.faissindex", "--json"))["classes"] == NUMBERS.tolist()
    for name, rows in (("train", slice(0, 60)), ("query", slice(60, 80))):
        with open(f"dense_{name}.h5", "wb") as f:
            write_rows(f, x[rows], y[rows], np.arange(80)[rows])

    def measured(query, database):
        return json.loads(out("evaluate", "g.faissindex", query, database, "--model", "m.safetensors", "--json"))

    assert measured("query.h5", "train.h5") == measured("dense_query.h5", "dense_train.h5")
    # By number, not by place among those that occur.
    found = measured("dense_query.h5", "train.h5")
    assert found["queries_without_relevant"] == int((y[60:] != 3).sum())  # 3 is a number of both


def test_names_stay_with_their_numbers():
    x, y, _ = far()
    names = [f"class {c}" for c in range(9)]
    with pytest.warns(ScqWarning, match=rf"^{MANY} \(class 0, class 2, class 4, class 6, class 7\)$"):
        model = scqfaiss.train(x, np.array([1, 3, 5, 8])[y], class_names=names, **SMALL)
    assert (model.config["C"], model.config["classes"], model.config["class_names"]) == (4, [1, 3, 5, 8], names)


def test_a_file_for_all_classes_serves_those_that_occur(tmp_path):
    labels = Labels(np.array([1, 3, 1]), 5).among(np.array([1, 3]))
    file = str(tmp_path / "s.npy")
    whole = np.arange(25.0).reshape(5, 5)
    for a, square, want in (
        (whole, True, [[6, 8], [16, 18]]),
        (whole[:, :3], False, [[5, 6, 7], [15, 16, 17]]),
        (np.eye(2), True, np.eye(2)),
    ):
        np.save(file, a)
        assert sca.read_matrix(file, labels, square)[0].tolist() == np.asarray(want).tolist()
    np.save(file, np.eye(4))
    with pytest.raises(DataError, match=r"needs \(2, 2\) numbers, a row for each class$"):
        sca.read_matrix(file, labels, True)


# ------------------------------------------------------------------------------------------------------- validation rows
def test_validation_rows_of_unknown_classes_are_left_out(tmp_path):
    x, y, numbers = far()
    strange = numbers.copy()
    strange[[0, 5, 6]] = 4, 10_500, 4  # beside a class, and beyond the last
    few = np.setdiff1d(np.arange(80), [0, 5, 6])
    asked = SMALL | {"patience": 0}
    with pytest.warns(
        ScqWarning, match=r"^validation: left out 3 of 80 rows, of classes that no training row has \(4, 10500\)$"
    ):
        found = scqfaiss.train(x, numbers, validation=(x, strange), **asked)
    assert found.sha256 == scqfaiss.train(x, numbers, validation=(x[few], numbers[few]), **asked).sha256
    with pytest.raises(
        DataError, match=r"^validation: all 80 rows are of classes that no training row has \(0, 1, 2\)"
    ):
        scqfaiss.train(x, numbers, validation=(x, y % 3), **asked)


def test_validation_labels_of_unknown_classes_are_left_out():
    rows = Labels(np.array([[1, 0, 1], [1, 0, 0]], np.uint8), 3)
    held = Labels(np.array([[0, 1, 1], [0, 1, 0], [1, 0, 0]], np.uint8), 3)
    with pytest.warns(ScqWarning, match=r"^1 of 3 classes have no rows \(1\)$"):
        labels = class_numbers.trained(rows, "x")
    with pytest.warns(
        ScqWarning, match=r"^v: left out labels of classes that no training row has \(1\), of 2 of 3 rows$"
    ):
        found, known = class_numbers.of_validation(held, labels, "v")
    assert (found.y.tolist(), known) == ([[0, 1], [0, 0], [1, 0]], None)


# ---------------------------------------------------------------------------------------------------- resume, bad models
def test_resume_knows_the_numbers(tmp_path):
    x, y, numbers = far()

    def stop(what, done, total, detail):
        if what == "features" and done == 3:
            raise KeyboardInterrupt

    asked = SMALL | {"checkpoints": tmp_path / "kept", "checkpoint_every": 1}
    with pytest.raises((KeyboardInterrupt, Stopped)):
        scqfaiss.train(x, numbers, progress=stop, **asked)
    for other in (y, NUMBERS[y] + 1):
        with pytest.raises(ConfigError, match="training rows"):
            scqfaiss.train(x, other, resume=True, **asked)
    resumed = scqfaiss.train(x, numbers, resume=True, **asked)
    assert resumed.sha256 == scqfaiss.train(x, numbers, **SMALL).sha256


@pytest.mark.parametrize(
    "forged",
    [
        {"classes": "3"},
        {"classes": None},
        {"classes": [1, 2]},
        {"classes": [3, 3, 4, 5]},
        {"classes": [-1, 2, 3, 4]},
        {"classes": [0, 1, 2, 10**30]},
        {"classes": [0, 1, 2, 3.0]},
        {"classes": [True, 2, 3, 4]},
        {"C": "four"},
        {"C": 10**12},
    ],
    ids=str,
)
def test_models_with_forged_numbers_are_refused(forged):
    x, _, numbers = far()
    model = scqfaiss.train(x, numbers, **SMALL | {"epochs": 0})
    with pytest.raises(CheckpointError, match="class numbers of the model need to be whole numbers that rise"):
        Model(model.chain, model.codebooks, model.config | forged)


# ----------------------------------------------------------------------------------------------------------- evaluation
def test_evaluation_costs_nothing_for_absent_classes(monkeypatch):
    rng = np.random.default_rng(0)
    z = rng.standard_normal((50, 4)).astype(np.float32)
    y = rng.integers(0, 3, 50)
    want = measure_vectors(z[:20], Labels(y[:20], 3), z, Labels(y, 3))
    monkeypatch.setattr(Labels, "multi_hot", None)  # (n, C) would be 20 x 1,000,000
    high = np.array([5, 999_000, 999_999])[y]
    assert measure_vectors(z[:20], Labels(high[:20], 1_000_000), z, Labels(high, 1_000_000)) == want


def test_columns_that_no_row_has_change_no_measure():
    rng = np.random.default_rng(1)
    dense, scores = (rng.random((40, 3)) < 0.4).astype(np.uint8), rng.random((10, 40)).astype(np.float32)
    wide = np.zeros((40, 50), np.uint8)
    wide[:, [4, 5, 40]] = dense
    queries = wide[:10].copy()
    queries[:, 9] = 1  # of queries alone: relevant to no row
    found = [
        measure(list(scores), Labels(q, q.shape[1]), Relevance(Labels(b, b.shape[1]), np.arange(40), 40))
        for q, b in ((dense[:10], dense), (queries, wide))
    ]
    assert found[0] == found[1]


def test_the_defaults_are_those_of_the_settings():
    """`means` above trains with centers of its own: of the classes that occur, not of the overall mean."""
    x, _, numbers = far()
    labels = class_numbers.trained(Labels(numbers, 10_000), "x")

    class Rows:
        d = 16

        def blocks(self):
            yield 0, x

    means = sca.class_means(Rows(), labels)
    S, name = sca.similarity_matrix(configure(Settings, {"similarity": "means"}).similarity, "", labels, means)
    assert (S.shape, name, means.shape) == ((4, 4), "means", (4, 16))
    for c, number in enumerate(NUMBERS):
        np.testing.assert_allclose(means[c], x[numbers == number].mean(0), rtol=1e-5)


def test_dry_run_of_a_file_counts_the_classes(tmp_path):
    x, _, numbers = far()
    with open(tmp_path / "train.h5", "wb") as f:
        write_rows(f, x, numbers)
    said = dry_run(tmp_path / "train.h5", tmp_path / "m.safetensors", TrainOptions(bits=8, nbits=4), keys={})
    assert "z of d=4" in said and "classes: 4, numbered 3 to 9,999" in said
