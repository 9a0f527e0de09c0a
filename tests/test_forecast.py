"""What mAP to expect, and the shorter training that tells it."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from faults.conftest import blobs

import scqfaiss
from scqfaiss.arrays import Labels
from scqfaiss.calibration import forecast
from scqfaiss.calibration.forecast import CURVES, Expected, Forecast, Ranked, expected, mean_average_precision
from scqfaiss.data import ArraySource
from scqfaiss.errors import ConfigError, DataError
from scqfaiss.galleries.inspection import describe_file
from scqfaiss.options import parse_request
from scqfaiss.training import fitting, out_of_fold, trial
from scqfaiss.training.fitting import build, train_judge
from scqfaiss.training.outcome import describe
from scqfaiss.training.planning import make_plan

SMALL = {"bits": 8, "nbits": 4, "encoder": "linear", "epochs": 2, "codebooks.copies": 1}


def slow_precision(scores, relevant, own):
    """Average precision of one query in a gallery that holds each row many times, itself never: pair by pair."""
    n, precisions = len(scores), []
    p = relevant.sum() / n
    answers = [i for i in range(n) if relevant[i] and i != own]
    others = [i for i in range(n) if not relevant[i]]
    for i in answers:
        r = np.mean([(scores[j] > scores[i]) + 0.5 * (scores[j] == scores[i]) for j in answers])
        f = np.mean([(scores[j] > scores[i]) + 0.5 * (scores[j] == scores[i]) for j in others])
        precisions.append(p * r / (p * r + (1 - p) * f))
    return answers, precisions


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_precisions_are_those_of_pairs(many, metric):
    rng = np.random.default_rng(0)
    vectors = rng.integers(-2, 3, (40, 3)).astype(np.float32)  # many ties, and exact sums
    queries = rng.integers(-2, 3, (40, 3)).astype(np.float32)
    y = (rng.random((40, 5)) < 0.3).astype(np.uint8) if many else rng.integers(0, 5, 40)
    labels = Labels(y, 5)
    of_queries, of_pairs = [], []
    for q in range(40):
        relevant = (y @ y[q].astype(int) > 0) if many else y == y[q]
        s = vectors @ queries[q] if metric == "ip" else -np.square(vectors - queries[q]).sum(1)
        answers, precisions = slow_precision(s, relevant, q)
        if precisions:
            of_queries.append(np.mean(precisions))
            of_pairs.append((q, answers, precisions))
    found = mean_average_precision(queries, vectors, labels, metric)
    assert found.queries == len(of_queries) and abs(found.map - np.mean(of_queries)) < 1e-9

    def weighted(w):  # mean over queries of the mean over answers, rows weighing w
        parts = [w[q] * np.average(p, weights=w[a]) for q, a, p in of_pairs]
        return sum(parts) / sum(w[q] for q, _, _ in of_pairs)

    steps = np.eye(40) * 1e-5
    slopes = np.array([(weighted(1 + step) - weighted(1 - step)) / 2e-5 for step in steps])
    assert abs(found.error - np.sqrt((slopes**2).sum())) < 1e-6


def test_a_small_gallery_speaks_for_a_large_one():
    """Eight rows a class tell the mAP of 200 a class, within a few standard errors."""
    rng = np.random.default_rng(1)
    means = rng.standard_normal((12, 6)) * 1.2

    def rows(per):
        y = np.repeat(np.arange(12), per)
        return (means[y] + rng.standard_normal((len(y), 6))).astype(np.float32), y

    few, many = (mean_average_precision(x, x, Labels(y, 12), "l2") for x, y in (rows(8), rows(200)))
    assert abs(few.map - many.map) < 4 * few.error
    assert many.error < few.error / 3


def test_rows_without_company_tell_nothing():
    x = np.eye(4, dtype=np.float32)
    with pytest.raises(DataError, match="no row has another one of its class beside it"):
        mean_average_precision(x, x, Labels(np.arange(4), 4), "ip")
    with pytest.raises(DataError, match="and rows of others"):
        mean_average_precision(x, x, Labels(np.zeros(4, int), 1), "ip")


def test_more_rows_to_learn_from_promise_more_and_never_less():
    ranked = Ranked(0.6, 0.05, 100)
    alone = expected(ranked)
    assert (alone.map, alone.low, alone.high) == (0.6, 0.5, 0.7)
    for few in (True, False):
        usual, steepest = CURVES[few]
        found = expected(ranked, 0.5, few)
        assert found.low == 0.5
        assert found.map == pytest.approx(1 - 0.4 * 0.5**usual, abs=1e-5)
        assert found.high == pytest.approx(1 - 0.4 * 0.5**steepest + 0.1, abs=1e-5)
    assert expected(Ranked(0.99, 0.05, 100), 0.5).high == 1.0 and expected(Ranked(0.01, 0.05, 100)).low == 0.0


def of(map, low=None, high=None):
    return Expected(map, map if low is None else low, map if high is None else high)


@pytest.mark.parametrize(
    ("codes", "rows", "pq", "says"),
    [
        (of(0.9, 0.85, 0.95), 0.6, 0.5, "labels help here"),
        (of(0.9, 0.85, 0.95), 0.6, None, "labels help here"),
        (of(0.5, 0.45, 0.55), 0.7, 0.6, "too few labels: codes of the rows themselves are better"),
        (of(0.5, 0.45, 0.55), 0.7, 0.5, "the uncompressed rows are better"),
        (of(0.6, 0.5, 0.7), 0.65, 0.4, "no better than the rows themselves for certain"),
    ],
)
def test_the_verdict_follows_from_the_figures(codes, rows, pq, says):
    found = Forecast({8: of(0.1), 16: codes}, of(rows), None if pq is None else of(pq), 100)
    assert found.verdict.startswith(says) and str(found).endswith(found.verdict)
    assert Forecast.unpack(found.pack()) == found
    uneven = replace(found, unequal=True)
    assert "classes are as unequal as the labels" in str(uneven) and Forecast.unpack(uneven.pack()) == uneven


def test_a_forecast_that_no_training_writes_is_refused():
    packed = Forecast({8: of(0.5)}, of(0.4), None, 60).pack()
    broken = [
        None,
        {},
        packed | {"lengths": {}},
        packed | {"lengths": {"x": packed["rows"]}},
        packed | {"queries": "60"},
    ]
    broken += [packed | {"rows": {"map": 2.0, "low": 0.1, "high": 0.2}}, packed | {"pq": {"map": 0.1}}]
    for value in broken:
        with pytest.raises(ConfigError, match="a forecast"):
            Forecast.unpack(value)


# ------------------------------------------------------------------------------------------------------------- held out
def test_classes_give_a_fifth_of_their_rows_and_small_ones_none():
    y = np.repeat(np.arange(5), [3, 4, 7, 20, 100])
    held = trial.held_out(Labels(y, 5), 0)
    assert np.bincount(y[held], minlength=5).tolist() == [0, 2, 2, 4, 20]
    assert trial.queries_among(Labels(y, 5), held) == 28
    assert not (held == trial.held_out(Labels(y, 5), 1)).all()
    many = Labels((np.random.default_rng(0).random((100, 3)) < 0.4).astype(np.uint8), 3)
    held = trial.held_out(many, 0)
    assert held.sum() == 20
    y = many.y[held].astype(int)
    beside = sum(((y[i] @ np.delete(y, i, 0).T) > 0).any() for i in range(20))
    assert trial.queries_among(many, held) == beside


@pytest.mark.parametrize("method", ["scq", "label"])
def test_the_heads_of_a_trial_code_as_those_of_the_training(method):
    """Given the posterior of the training's own heads, codes stand for what the model makes of rows."""
    x, y = blobs(120, C=4)
    settings = SMALL if method == "scq" else {"encoder": "linear", "epochs": 2}
    plan = make_plan(parse_request({"method": method, **settings}, of_files=False)[0], ArraySource(x, y))
    made = build(plan)
    fitting.Engine.of(made, plan.options, lambda *_: None, None, fitting.Log()).run()
    model = fitting.outcome(plan, made, [])
    p = fitting.judge_of(made.features)(x)
    z = made.of_posterior(fitting.torch.from_numpy(p)).numpy()
    np.testing.assert_allclose(z, model.chain(x), atol=1e-5)


@pytest.fixture(scope="module")
def told():
    """A training of 300 rows with a forecast, and the same without."""
    x, y = blobs(300, C=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return x, y, scqfaiss.train(x, y, **SMALL), scqfaiss.train(x, y, forecast="off", **SMALL)


def test_a_training_ends_with_a_forecast_and_a_calibration(told, tmp_path):
    _, _, model, _ = told
    assert model.calibration is not None and model.calibration.rows == 60
    found = Forecast.unpack(model.config["training"]["forecast"])
    assert list(found.lengths) == [8] and found.queries == 60 and found.pq is not None
    assert describe(model).splitlines()[1] == str(found)
    model.save(tmp_path / "m.safetensors")
    lines = describe_file(tmp_path / "m.safetensors", False, {}).splitlines()
    assert f"  forecast: {found}" in lines and any("relevant" in line or "precision" in line for line in lines)
    again = scqfaiss.Model.load(tmp_path / "m.safetensors")
    assert again.config["training"]["forecast"] == found.pack()


def test_a_forecast_changes_nothing_of_the_codes(told):
    x, _, model, plain = told
    assert plain.calibration is None and "forecast" not in plain.config["training"]
    assert (model.encode(x) == plain.encode(x)).all()
    assert (model.codebooks.centroids == plain.codebooks.centroids).all()


def test_the_same_training_tells_the_same(told):
    x, y, model, _ = told
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert scqfaiss.train(x, y, **SMALL).to_bytes() == model.to_bytes()


def test_too_few_rows_tell_nothing_and_that_is_said():
    x, y = blobs(100, C=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = scqfaiss.train(x, y, **SMALL)
    assert model.config["training"]["forecast"] is None and model.calibration is None
    assert "no forecast, and nothing is known of what scores mean: too few labelled rows" in describe(model)


def test_rows_of_ones_own_calibrate_instead():
    x, y = blobs(400, C=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = scqfaiss.train(x[:300], y[:300], calibrate=(x[300:], y[300:]), **SMALL)
    assert model.calibration.rows == 100 and model.config["training"]["forecast"]["queries"] == 60


def test_methods_without_a_posterior_have_no_forecast():
    x, y = blobs(300, C=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = scqfaiss.train(x, method="pq", bits=8, nbits=4)
    assert "forecast" not in model.config["training"]
    with pytest.raises(ConfigError, match="forecast is 'on', needs one of auto, off"):
        scqfaiss.train(x, y, forecast="on", **SMALL)


def test_a_trial_makes_half_of_the_steps(monkeypatch):
    x, y = blobs(40, C=2)
    monkeypatch.setattr("scqfaiss.methods.cfa.MIN_STEPS", 8)
    epochs = []
    run = fitting.Engine.run
    monkeypatch.setattr(fitting.Engine, "run", lambda self, *a: epochs.append(self.method.task.epochs) or run(self, *a))
    options = parse_request({"method": "label", "encoder": "linear", "features.epochs": 3}, of_files=False)[0]
    train_judge(options, x, y)
    train_judge(options, x, y, 0.5)
    whole = build(make_plan(options, ArraySource(x, y))).stages()[0].epochs
    assert epochs == [None, -(-whole // 2)]


@pytest.mark.parametrize("content", [0, 8])
def test_of_every_length_and_with_content_codes(content):
    x, y = blobs(300, C=4)
    more = {"content_bits": content} if content else {"method": "dpq"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = scqfaiss.train(x, y, **(SMALL | more))
    lengths = [8 + content] if content else [4, 8]
    assert list(model.calibrations.lengths) == lengths
    assert list(Forecast.unpack(model.config["training"]["forecast"]).lengths) == lengths


def test_pq_of_rows_needs_a_half_as_large_as_a_codebook(monkeypatch):
    x, y = blobs(300, C=4)
    labels = Labels(y, 4)
    assert trial.of_pq(x, labels, 2, 8, 0) is None
    found = trial.of_pq(x, labels, 2, 4, 0)
    assert 0.25 < found.map <= 1 and found.low <= found.map <= found.high


def test_self_training_is_followed(monkeypatch):
    """Where rounds of self-training were kept, the trial has them too."""
    x, y = blobs(300, C=4)
    asked = []
    real = fitting.train_judge

    def seen(options, x, y, effort, unlabelled, rounds):
        asked.append((effort, unlabelled is not None, rounds))
        return real(options, x, y, effort, unlabelled, rounds)

    monkeypatch.setattr(fitting, "train_judge", seen)
    monkeypatch.setattr("scqfaiss.methods.self_training.kept_plan", lambda losses: 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = scqfaiss.train(x, y, unlabelled=blobs(200, C=4)[0], **SMALL)
    assert asked == [(out_of_fold.SHORT, True, ("posterior",))] and model.calibration is not None
    assert forecast.CURVES[True][1] > forecast.CURVES[False][1]
