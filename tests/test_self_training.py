"""Self-training: pseudo-labels and the choice of the round against NumPy, its stages, and trainings from end to end."""

from itertools import permutations

import numpy as np
import pytest
import torch

import scqfaiss
from scqfaiss.arrays import Labels
from scqfaiss.data import ArraySource
from scqfaiss.errors import ConfigError, DataError, ScqWarning
from scqfaiss.methods import neighbour_labels
from scqfaiss.methods.self_training import (
    NEIGHBOURS,
    PLANS,
    POSTERIOR,
    ROUNDS,
    WITH_NEIGHBOURS,
    held_as_rare,
    kept_plan,
    pseudo_labels,
)
from scqfaiss.options import TrainOptions
from scqfaiss.training.engine import Engine
from scqfaiss.training.fingerprint import run_fingerprint
from scqfaiss.training.fitting import build
from scqfaiss.training.planning import make_plan

SMALL = {"bits": 8, "nbits": 4, "encoder": "mlp", "epochs": 10, "batch_size": 60, "hidden": 32}
pytestmark = pytest.mark.filterwarnings("ignore::scqfaiss.errors.ScqWarning")


def parts(labelled=300, unlabelled=400, seed=0):
    """x (n, 16) and y (n,) of 4 classes that overlap, and rows of the same classes without labels."""
    rng = np.random.default_rng(seed)
    y = np.arange(labelled + unlabelled) % 4
    x = (2 * rng.standard_normal((4, 16))[y] + 1.5 * rng.standard_normal((len(y), 16))).astype(np.float32)
    return x[:labelled], y[:labelled], x[labelled:]


def built(x, y, more, **settings):
    options = TrainOptions(bits=8, nbits=4, encoder="mlp", epochs=20, batch_size=60, settings={"hidden": 32} | settings)
    plan = make_plan(options, ArraySource(x, y), unlabelled=ArraySource(more, name="unlabelled"))
    torch.manual_seed(0)
    return plan, build(plan)


# -------------------------------------------------------------------------------------------------------------- formulas
def test_pseudo_labels_equal_those_of_a_slow_twin():
    p = np.random.default_rng(0).dirichlet(np.full(5, 0.2), 500)
    p[0] = [0.5, 0.5, 0, 0, 0]  # two classes of half each are sure
    y, sure = pseudo_labels(torch.from_numpy(p), False, False)
    many, sure_many = pseudo_labels(torch.from_numpy(p), True, False)
    for i, row in enumerate(p):
        assert y[i] == row.argmax() and sure[i] == sure_many[i] == (sum(v * v for v in row) ** 0.5 > 0.7)
        assert many[i].tolist() == [int(v > max(row) / 2) for v in row]
    assert sure[0] and many[0].tolist() == [1, 1, 0, 0, 0]
    assert 0 < sure.sum() < len(p)


def test_pseudo_labels_of_classes_judged_one_by_one():
    p = torch.tensor([[0.9, 0.1, 0.8], [0.9, 0.1, 0.6], [0.1, 0.2, 0.1], [0.75, 0.2, 0.25]])
    y, sure = pseudo_labels(p, True, True)
    assert y.tolist() == [[1, 0, 1], [1, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert sure.tolist() == [True, False, False, True]  # in doubt about a class; without a class


def test_the_plan_of_the_smallest_loss_is_kept():
    rng = np.random.default_rng(0)
    start = rng.random(400)
    better, best = start - 0.1 + rng.normal(0, 0.1, 400), start - 0.2 + rng.normal(0, 0.1, 400)
    assert kept_plan([start, better, best]) == 2
    assert kept_plan([start, best, better]) == 1
    assert kept_plan([start, start + 0.1, start + 0.2]) == 0
    assert kept_plan([start, start.copy(), start.copy()]) == 0  # none of what costs nothing more


def slow_losses(training, x, y, mean):
    """Cross-entropies of the held-out rows (h,), by hand, at the best of many temperatures: that of the smallest mean(losses)."""
    f = training.features
    with torch.no_grad():
        cosines = f.eval().logits(torch.from_numpy(x[training.held])).double().numpy() / f.kappa  # e h C
    best = np.full(len(training.held), np.inf)
    for kappa in f.kappa * np.geomspace(np.exp(-3), np.exp(3), 2001):
        e = np.exp(kappa * cosines - (kappa * cosines).max(2, keepdims=True))
        p = (e / e.sum(2, keepdims=True)).mean(0)
        losses = -np.log(p[np.arange(len(p)), y[training.held]])
        best = min(best, losses, key=mean)
    return best


def test_losses_of_held_out_rows_are_those_at_the_temperature_that_suits_them():
    x, y, more = parts()
    _, method = built(x, y, more)
    training, f = method.self_training, method.features
    slow = np.sort(slow_losses(training, x, y, np.mean))
    for kappa in (f.kappa, 4 * f.kappa):  # surer of everything
        f.kappa = kappa
        np.testing.assert_allclose(np.sort(training.held_out_losses()), slow, rtol=0.02)  # the grid steps by 0.003
        assert f.kappa == kappa


# ---------------------------------------------------------------------------------------------------------------- stages
def test_batches_hold_as_many_unlabelled_rows_that_are_sure_with_their_labels():
    x, y, more = parts()
    _, method = built(x, y, more)
    training, f = method.self_training, method.features
    Engine(replace_stages(method, method.stages()[:1])).run()
    training.teach()
    p = np.concatenate([f.posterior(torch.from_numpy(more)).detach().numpy()])
    assert training.sure.tolist() == np.flatnonzero(np.sqrt((p * p).sum(1)) > 0.7).tolist()
    assert f.y[: len(x)].tolist() == y.tolist() and f.y[len(x) :].tolist() == p.argmax(1).tolist()
    counts, sure = (np.bincount(labels, minlength=p.shape[1]) for labels in (y, p[training.sure].argmax(1)))
    shares = counts / counts.sum() + sure / sure.sum()
    np.testing.assert_allclose(f.prior, np.log(shares / shares.max()), rtol=1e-12)
    stage = f.stage()
    seen = []
    for batch, index in training.mixed(stage, len(x))(torch.Generator().manual_seed(0)):
        own, joined = index[index < len(x)], index[index >= len(x)] - len(x)
        assert torch.equal(batch, torch.from_numpy(np.concatenate([x[own], more[joined]])))
        assert set(joined.tolist()) <= set(training.sure.tolist())
        assert abs(len(own) - len(joined)) <= 0.5 * len(own)
        seen += own.tolist()
    assert sorted(seen) == list(range(len(x)))
    training.sure = training.sure[:0]
    assert all((index < len(x)).all() for _, index in training.mixed(stage, len(x))(torch.Generator().manual_seed(0)))
    training.finish()
    assert f.y.tolist() == y.tolist()
    np.testing.assert_allclose(f.prior, np.log(counts / counts.max()), rtol=1e-12)


def replace_stages(method, stages):
    method.stages = lambda: stages
    return method


def test_held_out_rows_train_no_trial():
    x, y, more = parts()
    _, method = built(x, y, more)
    training, names = method.self_training, [s.name for s in method.stages()]
    assert names[:6] == [
        "features",
        "trial",
        "trial, round 1",
        "trial, round 2",
        "features, round 1",
        "features, round 2",
    ]
    assert len(training.held) == pytest.approx(60, abs=4)
    training.sure = np.arange(10)
    for stage in method.stages()[1:4]:
        index = np.concatenate([i.numpy() for _, i in stage.batches(torch.Generator().manual_seed(0))])
        assert sorted(index[index < len(x)]) == sorted(set(range(len(x))) - set(training.held.tolist()))


@pytest.mark.parametrize("kept", range(ROUNDS + 1))
def test_the_rounds_up_to_the_kept_one_run_and_no_other(monkeypatch, kept):
    from scqfaiss.methods import self_training

    monkeypatch.setattr(self_training, "kept_plan", lambda losses: kept)
    x, y, more = parts()
    model = scqfaiss.train(x, y, unlabelled=more, **SMALL)
    told = model.config["training"]["self_training"]
    assert told["kept"] == [POSTERIOR] * kept and len(told["joined"]) == kept and len(told["losses"]) == ROUNDS + 1
    assert told["unlabelled"] == 400 and all(0 < n < 400 for n in told["joined"])
    ran = [n for n in range(1, ROUNDS + 1) if model.config["training"]["loss"][f"features, round {n}"]]
    assert ran == list(range(1, kept + 1))
    without = scqfaiss.train(x, y, **SMALL)
    same = all(
        np.array_equal(a[key], b[key]) for (_, a), (_, b) in zip(model.chain.layers, without.chain.layers) for key in a
    )
    assert same == (kept == 0)  # round 0 is the training without
    assert model.config["training"]["kappa"] == without.config["training"]["kappa"]


def test_rows_of_noise_change_nothing():
    x, y, _ = parts()
    noise = np.random.default_rng(5).normal(0, 30, (400, x.shape[1])).astype(np.float32)
    model, without = scqfaiss.train(x, y, unlabelled=noise, **SMALL), scqfaiss.train(x, y, **SMALL)
    assert model.config["training"]["self_training"]["kept"] == []
    assert np.array_equal(model.encode(x), without.encode(x)) and np.array_equal(model.embed(x), without.embed(x))
    assert np.array_equal(model.codebooks.centroids, without.codebooks.centroids)


@pytest.mark.parametrize("settings", [{"method": "dpq"}, {"method": "label"}])
def test_the_same_rows_give_the_same_bytes(settings):
    x, y, more = parts()
    a, b = (scqfaiss.train(x, y, unlabelled=more, **SMALL | settings).to_bytes() for _ in range(2))
    assert a == b


@pytest.mark.parametrize("multi", ["softmax", "sigmoid"])
def test_many_labels_a_row(multi):
    x, y, more = parts()
    many = np.eye(int(y.max()) + 1, dtype=np.uint8)[y]
    many[::5, 0] = 1
    told = scqfaiss.train(x, many, unlabelled=more, **SMALL | {"multi": multi}).config["training"]["self_training"]
    assert len(told["losses"]) == ROUNDS + 1 and tuple(told["kept"]) in PLANS


# ---------------------------------------------------------------------------------------------------------------- resume
class Cut(Exception):
    """Stands for a kill between two steps."""


@pytest.mark.parametrize("where, kept", [("trial, round 1", 0), ("features, round 2", 2)])
def test_a_training_cut_off_within_a_round_goes_on_to_the_same_bytes(tmp_path, monkeypatch, where, kept):
    from scqfaiss.methods import self_training

    monkeypatch.setattr(self_training, "kept_plan", lambda losses: kept)
    x, y, more = parts()
    asked = {"unlabelled": more, "checkpoint_every": 3, **SMALL}
    whole = scqfaiss.train(x, y, **asked).to_bytes()
    steps = [0]

    def progress(what, done, total, detail):
        steps[0] += what == where and detail != ""
        if steps[0] == 11:
            raise Cut

    folder = tmp_path / "checkpoints"
    with pytest.raises(Cut):
        scqfaiss.train(x, y, checkpoints=folder, progress=progress, **asked)
    if kept == 0:
        with pytest.raises(ConfigError, match="of another training: unlabelled rows is "):
            scqfaiss.train(x, y, checkpoints=folder, resume=True, **asked | {"unlabelled": more + 1})
    assert scqfaiss.train(x, y, checkpoints=folder, resume=True, **asked).to_bytes() == whole


def test_the_rows_are_part_of_the_fingerprint():
    x, y, more = parts()
    a, b = (run_fingerprint(plan, method.task) for plan, method in (built(x, y, m) for m in (more, more[:-1])))
    assert {key for key in a if a[key] != b[key]} == {"unlabelled rows"}


def test_rows_that_are_streamed_teach_too():
    x, y, more = parts()
    plan, _ = built(x, y, more)
    streamed = build(plan, memory=0)
    assert streamed.task.unlabelled.x is None
    Engine(replace_stages(streamed, streamed.stages()[:3])).run()
    assert len(streamed.self_training.losses) == 2


# ------------------------------------------------------------------------------------------------------ few labels a class
def slow_handed_on(own, y, more, C):
    rows = np.concatenate([own, more]).astype(np.float64)
    rows -= rows.mean(0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    n, cosines = len(rows), rows @ rows.T
    W = np.zeros((n, n))
    for i in range(n):
        others = [j for j in np.argsort(-cosines[i]) if j != i][: neighbour_labels.NEIGHBOURS]
        for j in others:
            w = max(cosines[i, j], 0) ** 3
            W[i, j] += w
            W[j, i] += w
    S = W / np.sqrt(np.outer(W.sum(1), W.sum(1)))
    Y = np.zeros((n, C))
    for i, c in enumerate(y):
        Y[i, c] = 1 / (y == c).sum()
    found = Y
    for _ in range(30):
        found = 0.9 * S @ found + 0.1 * Y
    found = (found / np.maximum(found.sum(0), 1e-30))[len(y) :]
    return found / found.sum(1, keepdims=True)


def test_labels_handed_on_equal_those_of_a_slow_twin():
    x, y, more = parts(12, 90)
    y[:2] = 3  # classes of unequal numbers of rows
    found = neighbour_labels.handed_on(*map(torch.from_numpy, (x, y, more)), 5).numpy()  # class 4 has no row
    np.testing.assert_allclose(found, slow_handed_on(x, y, more, 5), atol=1e-5)
    sure = neighbour_labels.sure_rows(torch.from_numpy(found)).numpy()
    for c in range(5):
        rows = np.flatnonzero(found.argmax(1) == c)
        assert sure[rows].sum() == np.ceil(neighbour_labels.SURE * len(rows))
        assert not len(rows) or found[rows[sure[rows]]].max(1).min() >= found[rows[~sure[rows]]].max(1, initial=0).max(
            initial=0
        )


def few_labels(a_class, C=20, unlabelled=600, seed=0):
    """Rows of C classes that lie apart, a few of each with labels."""
    rng = np.random.default_rng(seed)
    y = np.arange(C * a_class + unlabelled) % C
    x = (3 * rng.standard_normal((C, 16))[y] + rng.standard_normal((len(y), 16))).astype(np.float32)
    return x[: C * a_class], y[: C * a_class], x[C * a_class :], y[C * a_class :]


def test_few_labels_are_handed_on_to_neighbours_where_that_helps():
    x, y, more, truth = few_labels(9)
    small = SMALL | {"epochs": 4}
    model = scqfaiss.train(x, y, unlabelled=more, **small)
    told = model.config["training"]["self_training"]
    assert told["plans"] == [list(plan) for plan in WITH_NEIGHBOURS] and len(told["losses"]) == 5
    assert told["kept"] == list(WITH_NEIGHBOURS[int(np.argmin(told["losses"]))]) and NEIGHBOURS in told["kept"]
    assert 0.55 * 600 < told["joined"][0] < 0.65 * 600

    def right(m):
        means = np.stack([m.embed(more)[truth == c].mean(0) for c in range(20)])
        return ((m.embed(more) @ means.T).argmax(1) == truth).mean()

    assert right(model) >= right(scqfaiss.train(x, y, **small))


def test_labels_of_held_out_rows_are_not_handed_on():
    x, y, more, _ = few_labels(9)
    _, method = built(x, y, more)
    training, f = method.self_training, method.features
    training.teach(NEIGHBOURS, training.held)
    kept = np.setdiff1d(np.arange(len(x)), training.held)
    shares = neighbour_labels.handed_on(*map(torch.from_numpy, (x[kept], y[kept], more)), 20)
    assert torch.equal(f.y[len(x) :], shares.argmax(1))
    assert training.sure.tolist() == neighbour_labels.sure_rows(shares).nonzero()[:, 0].tolist()


def test_one_label_a_class_is_handed_on_without_a_trial():
    x, y, more, _ = few_labels(1)
    told = scqfaiss.train(x, y, unlabelled=more, **SMALL | {"epochs": 2}).config["training"]["self_training"]
    assert (told["losses"], told["kept"], told["held_out"]) == ([], [NEIGHBOURS, POSTERIOR], 0)


# ------------------------------------------------------------------------------------------------------- unequal classes
def unequal(counts=(40, 20, 9, 1), seed=1):
    """Rows of so many of each of 4 classes that overlap, and 400 rows without labels."""
    x, y, more = parts(200, 400, seed)
    kept = np.concatenate([np.flatnonzero(y == c)[:n] for c, n in enumerate(counts)])
    return x[kept], y[kept], more


def test_frequent_classes_are_tried_as_if_they_were_rare():
    x, y, more = unequal()
    labels = Labels(y, 5)  # one class without rows
    for seed in range(20):
        held = held_as_rare(labels, seed)
        left = np.bincount(np.delete(y, held), minlength=5).tolist()
        drawn = next(
            p for p in permutations((40, 20, 9, 1)) if left[:4] == [min(n, k) for n, k in zip((40, 20, 9, 1), p)]
        )
        assert left[4] == 0 and len(held) == sum(max(n - k, 0) for n, k in zip((40, 20, 9, 1), drawn))
    assert len({tuple(held_as_rare(labels, seed)) for seed in range(20)}) > 5
    _, method = built(x, y, more)
    assert method.self_training.unequal and method.self_training.held.tolist() == sorted(method.self_training.held)
    _, method = built(*parts())
    assert not method.self_training.unequal


def test_losses_of_unequal_classes_are_those_of_equally_frequent_ones_class_by_class():
    x, y, more = unequal()
    _, method = built(x, y, more)
    training, f = method.self_training, method.features
    prior = f.prior.clone()
    found = training.held_out_losses()
    own = y[training.held]

    def by_class(losses):
        return np.array([losses[own == c].mean() for c in range(4) if (own == c).any()])

    slow = by_class(slow_losses(training, x, y, lambda losses: by_class(losses).mean()))
    np.testing.assert_allclose(found, slow, rtol=0.02)
    assert torch.equal(f.prior, prior) and prior.min() < -3


# -------------------------------------------------------------------------------------------------------------- refusals
def test_refusals():
    x, y, more = parts()
    for rows, error, message in [
        (more[:, :5], ConfigError, r"^unlabelled: rows have d=5, x has d=16$"),
        (more[:0], DataError, r"^unlabelled holds 0 rows, self-training needs at least 1$"),
    ]:
        with pytest.raises(error, match=message):
            scqfaiss.train(x, y, unlabelled=rows, **SMALL)
    for kind in ("cosine", "reference"):
        with pytest.raises(ConfigError, match=rf"^unlabelled rows teach a posterior, which cfa={kind} has not"):
            scqfaiss.train(x, y, unlabelled=more, **SMALL | {"cfa": kind, "members": 1})


@pytest.mark.filterwarnings("default::scqfaiss.errors.ScqWarning")
def test_methods_without_a_use_for_them_say_so():
    x, y, more = parts()
    for settings in ({"method": "pq"}, {"method": "dpq", "supervision": "none"}):
        asked = {"bits": 8, "nbits": 4, **settings}
        with pytest.warns(
            ScqWarning, match=rf"^method {settings['method']} has no use for --unlabelled: it is ignored$"
        ):
            model = scqfaiss.train(x, y, unlabelled=more, **asked)
        assert "self_training" not in model.config["training"]


@pytest.mark.filterwarnings("default::scqfaiss.errors.ScqWarning")
def test_too_few_rows_to_hold_out_leave_the_training_as_it_was():
    x, y, more = parts()
    with pytest.warns(
        ScqWarning, match=r"held-out rows are too few to choose by \(need 30\): unlabelled rows are not used$"
    ):
        model = scqfaiss.train(x[:100], y[:100], unlabelled=more, **SMALL)
    assert model.config["training"]["self_training"]["losses"] == []
    assert np.array_equal(model.encode(x), scqfaiss.train(x[:100], y[:100], **SMALL).encode(x))
