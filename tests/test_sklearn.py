"""Quantizer: scikit-learn's own checks, grid searches, pipelines, pickles, and a slow twin of its score."""

import inspect
import pickle
import pickletools
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import scqfaiss
from scqfaiss.options import TrainOptions
from scqfaiss.sklearn import Quantizer

pytestmark = pytest.mark.filterwarnings("ignore::scqfaiss.ScqWarning")
PAGE = Path(__file__).parents[1] / "docs" / "sklearn.md"
QUICK = {"bits": 6, "nbits": 3, "epochs": 1, "forecast": "off"}
SKIPPED = {"check_array_api_input"}  # of arrays on a GPU, and only where SCIPY_ARRAY_API=1


@pytest.fixture(scope="module")
def fitted(one):
    return Quantizer(**QUICK).fit(*one)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["scq", "pq"])
def test_scikit_learns_own_checks_pass(method):
    results = check_estimator(Quantizer(method, 3, nbits=3, epochs=1, forecast="off"), on_skip=None)
    assert {r["check_name"] for r in results if r["status"] != "passed"} == SKIPPED
    assert len(results) > 40


def test_parameters_are_the_options_of_a_training():
    of_images = {f.name for f in fields(TrainOptions) if f.metadata.get("of_files")}
    options = {f.name: f.default for f in fields(TrainOptions) if f.name not in of_images} | {"settings": None}
    assert Quantizer().get_params() == options
    assert set(inspect.signature(Quantizer).parameters) == set(options)


def test_it_is_what_train_makes(one, fitted):
    x, y = one
    model = scqfaiss.train(x, y, **QUICK)
    assert fitted.model_.sha256 == model.sha256
    np.testing.assert_array_equal(fitted.encode(x), model.encode(x))
    z = fitted.transform(x)
    assert (z.dtype, z.shape) == (np.float32, (400, model.codebooks.d))
    np.testing.assert_allclose(z, model.embed(x), rtol=1e-6)
    assert fitted.get_feature_names_out()[0] == "quantizer0" and len(fitted.get_feature_names_out()) == z.shape[1]
    assert fitted.classes_.tolist() == [0, 1, 2, 3]


def test_names_of_classes_and_many_labels(one, multilabel):
    x, y = one
    names = np.array(["ash", "birch", "cedar", "elm"])[y]
    named = Quantizer(**QUICK).fit(x, names)
    assert named.classes_.tolist() == ["ash", "birch", "cedar", "elm"]
    assert named.score(x, names) > 0.9
    many = Quantizer(**QUICK).fit(*multilabel)
    assert many.classes_.tolist() == [0, 1, 2, 3]
    without = Quantizer("pq", 4, nbits=2).fit(x, y)
    assert not hasattr(without, "classes_") and without.encode(x).shape == (400, 2)


def test_minus_one_is_no_label_unless_it_is_one_of_two_classes(one):
    """-1 and 1 alone are the code of two classes; -1 among others is no label, as in sklearn.semi_supervised."""
    x, y = one
    half = y % 2
    signs = Quantizer(**QUICK).fit(x, 2 * half - 1)
    assert signs.classes_.tolist() == [-1, 1] and signs.model_.config["class_names"] == ["-1", "1"]
    by_name = Quantizer(**QUICK).fit(x, np.array(["-1", "1"])[half])
    np.testing.assert_array_equal(signs.encode(x), by_name.encode(x))
    for kind in (int, float, np.int8):
        assert signs.score(x, (2 * half - 1).astype(kind)) == signs.score(x, half + 1) > 0.9
    alone = np.where(np.arange(len(x)) == 3, 5, 2 * half - 1)  # a class that the training did not see
    assert signs.score(x, alone) < signs.score(x, 2 * half - 1)
    plain = Quantizer("pq", 4, nbits=2).fit(x)
    assert plain.score(x, 2 * half - 1) == plain.score(x, half)
    again = pickle.loads(pickle.dumps(signs))
    assert again.classes_.tolist() == [-1, 1] and again.score(x, 2 * half - 1) == signs.score(x, 2 * half - 1)

    some = np.where(np.arange(len(x)) % 4 == 3, -1, y)
    without = Quantizer(**QUICK).fit(x, some)
    kept = some >= 0
    assert without.classes_.tolist() == np.unique(some[kept]).tolist()
    assert without.model_.sha256 == Quantizer(**QUICK).fit(x[kept], y[kept]).model_.sha256
    names = np.array(["ash", "birch", "cedar", "elm"])[y]
    assert Quantizer(**QUICK).fit(x, np.where(kept, names, "")).classes_.tolist() == np.unique(names[kept]).tolist()


def slow_score(model, x, sharing):
    """mAP of every row among all others: the mean over 200 orders within ties, rank by rank."""
    z, decoded = model.embed(x).astype(np.float64), model.codebooks.decode(model.encode(x)).astype(np.float64)
    rng, values = np.random.default_rng(0), []
    for q in range(len(x)):
        others = np.flatnonzero(np.arange(len(x)) != q)
        scores = (decoded[others] @ z[q]).astype(np.float32)
        precision = []
        for _ in range(200):
            order = np.lexsort([rng.random(len(others)), -scores])
            hits = sharing[q, others[order]]
            ranks = np.flatnonzero(hits) + 1
            precision.append((np.arange(1, len(ranks) + 1) / ranks).mean() if len(ranks) else 0.0)
        values.append(np.mean(precision))
    return np.mean(values)


@pytest.mark.parametrize("many", [False, True])
def test_score_against_a_slow_twin(one, multilabel, many):
    x, y = multilabel if many else one
    quantizer = Quantizer("pq", 4, nbits=2).fit(x)
    rows = np.r_[:24]
    x, y = x[rows], y[rows].copy()
    if many:
        y[3] = 0  # shares no label with anything
    else:
        y[3] = 9  # alone in its class
    sharing = (y.astype(int) @ y.T > 0) if many else y[:, None] == y
    expected = slow_score(quantizer.model_, x, sharing)
    assert abs(quantizer.score(x, y) - expected) < 0.01
    with pytest.raises(ValueError, match="23"):
        quantizer.score(x, y[:-1])


def test_grid_search_pipeline_and_clone(one):
    x, y = one
    grid = {"quantizer__bits": [3, 6], "quantizer__method": ["scq", "pq"]}
    search = GridSearchCV(make_pipeline(StandardScaler(), Quantizer(**QUICK)), grid, cv=2, error_score="raise").fit(
        x, y
    )
    assert search.best_params_["quantizer__method"] == "scq" and 0.9 < search.best_score_ <= 1
    best = search.best_estimator_[-1]
    assert clone(best).get_params() == best.get_params() and not hasattr(clone(best), "model_")


def test_pickles_hold_the_model_file(fitted, one):
    data = pickle.dumps(fitted)
    assert fitted.model_.to_bytes() in data
    globals_of = [arg for op, arg, _ in pickletools.genops(data) if op.name == "GLOBAL"]
    names = {arg for op, arg, _ in pickletools.genops(data) if isinstance(arg, str)}
    assert not globals_of and not any("numpy" in name or "reconstruct" in name for name in names)
    again = pickle.loads(data)
    np.testing.assert_array_equal(again.encode(one[0]), fitted.encode(one[0]))
    assert again.get_params() == fitted.get_params() and again.classes_.tolist() == fitted.classes_.tolist()
    assert pickle.loads(pickle.dumps(Quantizer(bits=8))).bits == 8
    damaged = data.replace(fitted.model_.to_bytes(), fitted.model_.to_bytes()[:-1] + b"\xff")
    with pytest.raises(scqfaiss.CheckpointError, match="the model of a pickled Quantizer: checksum mismatch"):
        pickle.loads(damaged)


@pytest.mark.parametrize(
    "parameters, y, message",
    [
        ({"method": "scp"}, [0, 1], "unknown method 'scp'; did you mean 'scq'"),
        ({"bits": 7}, [0, 1], "bits"),
        ({"settings": {"featuers.epochs": 1}}, [0, 1], "featuers.epochs"),
        ({}, None, "requires y"),
        ({}, [0.5, 1.5], "Unknown label type: continuous"),
        ({}, [-1, 0], "at least 2 classes, found 1"),  # -1 is no label, as in sklearn.semi_supervised
        ({"method": "mopq"}, [0, 1], "pairs"),
        ({"method": "phpq"}, [0, 1], "images"),
    ],
)
def test_what_cannot_work_is_a_value_error(parameters, y, message):
    x = np.random.default_rng(0).standard_normal((40, 8))
    with pytest.raises(ValueError, match=re.escape(message)):
        Quantizer(**parameters).fit(x, None if y is None else np.tile(y, 20))


def test_without_scikit_learn_one_line_says_what_to_type():
    code = """
import sys
class Nothing:
    def find_spec(self, name, path, target=None):
        if name == "sklearn":
            raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
sys.meta_path.insert(0, Nothing())
import scqfaiss
try:
    import scqfaiss.sklearn
except scqfaiss.ConfigError as error:
    print(error)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == 'scqfaiss.sklearn needs scikit-learn 1.6 or newer: pip install "scqfaiss[sklearn]"\n'


@pytest.mark.slow
def test_the_page_runs_as_it_stands(tmp_path, monkeypatch):
    from scqfaiss.demo.digits import write_parts

    monkeypatch.chdir(tmp_path)
    parts = write_parts(tmp_path)
    (x, labels, _), (xq, _, _), (xb, _, _) = (parts[name] for name in ("train", "query", "database"))
    space = {"x": x, "y": labels.y, "xq": xq, "xb": xb}
    for text in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        exec(compile(text, str(PAGE), "exec"), space)
    assert space["search"].best_params_["method"] == "scq"
    assert space["codes"].shape == (len(space["xb"]), 2)
    assert scqfaiss.Model.load("best.safetensors").config["method"] == "scq"
    assert scqfaiss.open("gallery.faissindex").ntotal == len(space["xb"])
