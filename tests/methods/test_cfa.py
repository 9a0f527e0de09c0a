"""Features (CFA): every loss against loops, the posterior identities, calibration."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from close import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from scqfaiss.arrays import Labels
from scqfaiss.contract import Subset, Task, configure
from scqfaiss.data import ArraySource
from scqfaiss.encoders.linear import Linear
from scqfaiss.encoders.linear import Settings as LinearSettings
from scqfaiss.encoders.mlp import MLP
from scqfaiss.encoders.mlp import Settings as MLPSettings
from scqfaiss.errors import ConfigError, DataError, ScqWarning
from scqfaiss.methods import calibration, cfa, cfa_checks, head_layers, reference_cfa
from scqfaiss.methods.centers import aligned_simplex, simplex
from scqfaiss.modality import ROWS
from scqfaiss.training.labelled_rows import labelled_rows
from scqfaiss.training.rows import SourceRows, statistics

DTYPES = [(torch.float64, 1e-10), (torch.float32, 2e-5)]
X = np.random.default_rng(0).standard_normal((24, 6)).astype(np.float32)
ONE = Labels(np.arange(24) % 4, 4)
UNEQUAL = Labels(np.repeat([0, 1, 2], [18, 5, 1]), 4)  # and a class without rows
MANY = Labels(np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1]] * 6, np.uint8), 4)
SINGLE = [
    ("linear", {}),
    ("mlp", {"members": 1, "logits": "cosine"}),
    ("mlp", {"members": 3, "logits": "inner", "kappa": 1.7}),
]


def features(labels=ONE, encoder="linear", d=8, dtype=torch.float64, **config):
    """A Features with random weights; dropout off."""
    torch.manual_seed(3)
    rows = SourceRows(ArraySource(X), "cpu")
    settings = configure(cfa.Settings, {"similarity": "identity", **config})
    stats = statistics(rows)
    made = Linear(LinearSettings(), stats) if encoder == "linear" else None
    if made is None:
        made = MLP(MLPSettings(hidden=5), stats, cfa.members(settings, "mlp"))
    task = Task(rows=rows, labels=labels, M=2, nbits=4, encoder=made, encoder_name=encoder)
    out = cfa.Features(settings, task, d, labels).to(dtype).eval()
    multi_hot = out.multi_hot
    out.multi_hot = lambda index: multi_hot(index).to(dtype)  # training itself is float32 throughout
    return out


def slow_posteriors(f, x):
    """(E, n, C) logits of every member, inner products or cosines, by loops over members, rows and classes."""
    g = f.encoder(x).detach().numpy()
    centers, A, b = f.centers.numpy(), f.project.detach().numpy(), f.shift.detach().numpy()
    logits = np.zeros((len(A), len(x), len(centers)))
    for e, i, k in itertools.product(*map(range, logits.shape)):
        v = g[min(e, len(g) - 1), i] @ A[e] + b[e, 0]
        lengths = (v @ v if f.cosine else 1.0) * (centers[k] @ centers[k])
        logits[e, i, k] = f.kappa * (v @ centers[k]) / np.sqrt(lengths)
        if f.sigmoid:
            logits[e, i, k] += f.bias[k].item()
    return logits


def slow_prior(labels, balance):
    """(C,) what a class's logit is adjusted by: the logarithm of its rows over those of the most frequent class."""
    counts = [sum(int(hot[k]) for hot in labels.multi_hot()) for k in range(labels.C)]
    return np.array([balance * np.log(n / max(counts)) if n else 0.0 for n in counts])


@pytest.mark.parametrize("dtype, rtol", DTYPES)
@pytest.mark.parametrize("labels, balance", [(ONE, 1.0), (UNEQUAL, 1.0), (UNEQUAL, 0.5), (MANY, 1.0), (MANY, 0.0)])
@pytest.mark.parametrize("encoder, config", SINGLE)
def test_calibrated_loss_equals_slow_twin(encoder, config, labels, balance, dtype, rtol):
    f = features(labels, encoder, dtype=dtype, balance=balance, **config)
    x, index = torch.from_numpy(X).to(dtype), torch.arange(24)
    total, multi_hot = 0.0, labels.multi_hot()
    for member in slow_posteriors(f, x):
        for row, o in enumerate(member):
            o = o + slow_prior(labels, balance)
            log_p = o - np.log(np.exp(o).sum())
            total -= sum(log_p[k] for k in range(4) if multi_hot[row, k]) / multi_hot[row].sum() / len(x)
    terms = f.loss(x, index)
    assert list(terms) == ["ce"]
    np.testing.assert_allclose(terms["ce"].item(), total, rtol=rtol)


@pytest.mark.parametrize("dtype, rtol", DTYPES)
@pytest.mark.parametrize("encoder, config", SINGLE)
def test_sigmoid_loss_equals_slow_twin(encoder, config, dtype, rtol):
    f = features(MANY, encoder, dtype=dtype, multi="sigmoid", **config)
    with torch.no_grad():
        f.bias += torch.arange(4) * 0.3
    x, total = torch.from_numpy(X).to(dtype), 0.0
    for member in slow_posteriors(f, x):
        for row, o in enumerate(member):
            for k in range(4):
                p = 1 / (1 + np.exp(-o[k]))
                total -= np.log(p if MANY.y[row, k] else 1 - p) / len(x)
    terms = f.loss(x, torch.arange(24))
    assert list(terms) == ["bce"]
    np.testing.assert_allclose(terms["bce"].item(), total, rtol=rtol)


def slow_released(z, logits, t, has_target, multi_hot):
    align = pull = ce = 0.0
    kept = [i for i in range(len(z)) if has_target[i]]
    for i in kept:
        align -= z[i] @ t[i] / np.sqrt((z[i] @ z[i]) * (t[i] @ t[i])) / len(kept)
        pull += np.sqrt(((z[i] - 360 * t[i]) ** 2).sum()) / len(kept)
    for i in range(len(z)):
        p = np.exp(logits[i]) / np.exp(logits[i]).sum()
        ce -= np.log(sum(p[k] for k in range(len(p)) if multi_hot[i, k])) / len(z)
    return {"align": align, "pull": 0.01 * pull, "ce": 0.1 * ce}


@pytest.mark.parametrize("dtype, rtol", DTYPES)
def test_released_loss_equals_slow_twin(dtype, rtol):
    rng = np.random.default_rng(1)
    z, logits = np.tanh(rng.standard_normal((6, 8))), rng.standard_normal((6, 4))
    t = rng.standard_normal((6, 8))
    t /= np.linalg.norm(t, axis=1)[:, None]
    has_target, multi_hot = np.array([1, 1, 0, 1, 1, 1], bool), MANY.y[:6]
    args = [torch.tensor(a, dtype=dtype) for a in (z, logits, t)]
    found = reference_cfa.loss(*args, torch.from_numpy(has_target), torch.tensor(multi_hot, dtype=dtype))
    want = slow_released(z, logits, t, has_target, multi_hot)
    assert list(found) == list(want)
    for name in want:
        np.testing.assert_allclose(found[name].item(), want[name], rtol=rtol)


@pytest.mark.parametrize("dtype, rtol", DTYPES)
def test_released_loss_of_one_label_is_that_of_many_with_one(dtype, rtol):
    rng = np.random.default_rng(1)
    z = torch.tensor(np.tanh(rng.standard_normal((6, 8))), dtype=dtype, requires_grad=True)
    logits = torch.tensor(rng.standard_normal((6, 4)), dtype=dtype, requires_grad=True)
    centers, y = torch.tensor(simplex(4, 8), dtype=dtype), torch.arange(6) % 4
    single = reference_cfa.loss_of_one_label(z, logits, centers, y)
    general = reference_cfa.loss(z, logits, centers[y], torch.ones(6, dtype=torch.bool), torch.eye(4, dtype=dtype)[y])
    joined = {"align and pull": general["align"] + general["pull"], "ce": general["ce"]}
    assert list(single) == list(joined)
    for name, term in joined.items():
        np.testing.assert_allclose(single[name].item(), term.item(), rtol=rtol)
        # The backward pass is written out: each term alone, and weighted.
        for weight in (1.0, -2.5):
            for found, want in zip(gradients(weight * single[name], z, logits), gradients(weight * term, z, logits)):
                np.testing.assert_allclose(found, want, rtol=100 * rtol, atol=rtol * float(want.abs().max()))
    total = gradients(sum(single.values()), z, logits)
    for found, want in zip(total, gradients(sum(joined.values()), z, logits)):
        assert want.abs().max() > 1e-3
        np.testing.assert_allclose(found, want, rtol=100 * rtol, atol=rtol * float(want.abs().max()))


def gradients(value, *leaves):
    found = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found)]


def test_a_feature_of_zero_has_a_finite_released_loss():
    z, logits = torch.zeros(3, 8, requires_grad=True), torch.zeros(3, 4, requires_grad=True)
    terms = reference_cfa.loss_of_one_label(z, logits, torch.tensor(simplex(4, 8)).float(), torch.arange(3))
    np.testing.assert_allclose(terms["align and pull"].item(), 3.6, rtol=1e-5)  # 0.01 times 360
    sum(terms.values()).backward()
    assert torch.isfinite(z.grad).all()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("labels", [ONE, MANY], ids=["one", "many"])
def test_the_released_head_computes_the_released_loss(labels):
    f = features(labels, "mlp", d=8, cfa="reference")
    x = torch.from_numpy(X).double()
    g = f.encoder(x)[0].detach().numpy()
    z = np.tanh(g @ f.project[0].detach().numpy() + f.shift[0].detach().numpy())
    logits = g @ f.classify.weight.detach().numpy().T + f.classify.bias.detach().numpy()
    t = labels.multi_hot().astype(np.float64) @ f.centers.numpy()
    length = np.linalg.norm(t, axis=1)
    want = slow_released(z, logits, t / np.maximum(length, 1e-6)[:, None], length > 1e-6, labels.multi_hot())
    terms = f.loss(x, torch.arange(24))
    if labels is ONE:
        want = {"align and pull": want["align"] + want["pull"], "ce": want["ce"]}
    assert list(terms) == list(want)
    for name, term in terms.items():
        np.testing.assert_allclose(term.item(), want[name], rtol=1e-6)  # the centers are float32
    np.testing.assert_allclose(f(x).detach(), z, atol=1e-12)


def test_a_row_of_every_class_has_no_direction_on_a_simplex():
    f = features(MANY)
    t, has = f.targets(torch.arange(4))
    assert has.tolist() == [True, True, True, False]
    np.testing.assert_allclose(t[0], f.centers[0], atol=1e-6)
    np.testing.assert_allclose(t[:3].norm(dim=1), 1, atol=1e-6)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.integers(2, 12), st.integers(0, 5), st.integers(0, 999), st.sampled_from([0.05, 0.5, 5.0]))
def test_the_score_of_two_posteriors_is_the_probability_of_a_shared_class(C, extra, seed, alpha):
    rng = np.random.default_rng(seed)
    c = aligned_simplex(C, C + extra) if seed % 2 else simplex(C, C - 1 + extra, seed)
    p = rng.dirichlet(np.full(C, alpha), 8)
    z = p @ c
    s = p @ p.T
    np.testing.assert_allclose(z @ z.T, (C * s - 1) / (C - 1), atol=1e-6)
    np.testing.assert_allclose((1 + (C - 1) * z @ c.T) / C, p, atol=1e-6)  # the inverse
    np.testing.assert_allclose(np.full(C, 1 / C) @ c, 0, atol=1e-6)
    np.testing.assert_allclose(np.eye(C) @ c, c, atol=1e-6)


@pytest.mark.parametrize("config", [{"members": 1}, {"members": 4, "logits": "cosine"}])
def test_z_is_the_posterior_mean_of_the_centers(config):
    f = features(encoder="mlp", **config)
    x = torch.from_numpy(X).double()
    logits = slow_posteriors(f, x)
    p = (np.exp(logits) / np.exp(logits).sum(2, keepdims=True)).mean(0)
    np.testing.assert_allclose(f.posterior(x).detach(), p, atol=1e-9)
    np.testing.assert_allclose(f(x).detach(), p @ f.centers.numpy(), atol=1e-9)
    q = f(x).detach().numpy() @ f.centers.numpy().T  # the inverse, on centers rounded to float32
    np.testing.assert_allclose((1 + 3 * q) / 4, p, atol=1e-6)


def test_sigmoid_scores_are_expected_numbers_of_shared_labels():
    f = features(MANY, encoder="mlp", multi="sigmoid")
    x = torch.from_numpy(X).double()
    pi, z = f.posterior(x).detach(), f(x).detach()
    np.testing.assert_allclose(z @ z.T, pi @ pi.T, atol=1e-7)


@pytest.mark.parametrize("C", [2, 4, 10, 100])
def test_kappa_lets_the_posterior_reach_what_it_is_made_for(C):
    for epsilon in (0.03, 0.01):
        best = np.full(C, -1 / (C - 1))
        best[0] = 1  # a row exactly at its center
        o = calibration.default_kappa(C, epsilon) * best
        p = np.exp(o) / np.exp(o).sum()
        np.testing.assert_allclose(p[0], 1 - epsilon, rtol=1e-9)
    np.testing.assert_allclose(features(logits="cosine").kappa, calibration.default_kappa(4, 0.03))


@pytest.mark.parametrize("logits, trained", [("inner", 1.0), ("cosine", calibration.default_kappa(4))])
def test_kappa_is_sharpened_after_training_unless_rows_are_held_out(logits, trained):
    f = features(logits=logits)
    f.calibrate()
    np.testing.assert_allclose(f.kappa, 1.1 * trained)
    assert f.summary()["kappa"] == f.kappa
    kept = features(kappa=7.0, sharpen=2.0)
    kept.calibrate()
    assert kept.kappa == 14.0


@settings(max_examples=25, derandomize=True, deadline=None)
@given(st.integers(1, 3), st.integers(2, 6), st.floats(0.5, 40), st.integers(0, 99))
def test_fitting_kappa_never_raises_the_nll(E, C, kappa, seed):
    rng = np.random.default_rng(seed)
    cosines = torch.from_numpy(rng.uniform(-1, 1, (E, 60, C)))
    y = np.where(rng.random(60) < 0.7, cosines.mean(0).numpy().argmax(1), rng.integers(0, C, 60))
    targets = torch.from_numpy(np.eye(C)[y])

    prior = torch.from_numpy(np.log(rng.uniform(0.1, 1, C)))

    def nll(k):
        p = (k * cosines + prior).softmax(2).mean(0)
        return -float((targets * p.log()).sum(1).mean())

    best, before, after = calibration.fit_kappa(cosines, targets, kappa, prior)
    assert after <= before
    np.testing.assert_allclose([before, after], [nll(kappa), nll(best)], rtol=1e-9)
    if E == 1:  # convex: the grid cannot find better, but for the width at which the search stops
        grid = min(nll(k) for k in kappa * np.exp(np.linspace(-3, 3, 200)))
        assert after <= grid + 1e-5


def test_rare_classes_are_as_likely_as_frequent_ones():
    """With logits of the log shares the loss is least; what is left of them after training knows no shares."""
    f = features(UNEQUAL)
    with torch.no_grad():
        np.testing.assert_allclose(f.prior, np.log([18 / 18, 5 / 18, 1 / 18, 1]), rtol=1e-12)
        f.expect(torch.tensor([3, 3, 3, 0]))
        assert not f.prior.any()
        assert not features(UNEQUAL, balance=0.0).prior.any()


def test_rows_are_held_out_by_class_and_single_ones_stay():
    y = np.r_[np.zeros(40, int), np.ones(20, int), 2, np.full(4, 3)]
    held = calibration.held_out(Labels(y, 5), 0.25, seed=0)
    assert (np.diff(held) > 0).all()
    assert np.bincount(y[held], minlength=5).tolist()[:3] == [10, 5, 0]
    assert np.array_equal(held, calibration.held_out(Labels(y, 5), 0.25, seed=0))
    assert not np.array_equal(held, calibration.held_out(Labels(y, 5), 0.25, seed=1))
    for seed in range(5):  # a class keeps at least one row, whatever the share
        left = np.setdiff1d(np.arange(65), calibration.held_out(Labels(y, 5), 0.5, seed))
        assert set(y[left]) == {0, 1, 2, 3}


def test_few_held_out_rows_are_refused_with_a_notice():
    with pytest.warns(ScqWarning, match=r"^6 held-out rows are too few .* \(need 50\): none held out$"):
        stage = features(holdout=0.25).stage()
    assert stage.steps_per_epoch == 1
    batches = [index for _, index in stage.batches(torch.Generator().manual_seed(0))]
    assert sorted(torch.cat(batches).tolist()) == list(range(24))


@pytest.mark.parametrize(
    "y, words",
    [
        (Labels(np.zeros(3, int), 1), "^scq needs at least 2 classes, found 1 \\('0'\\)$"),
        (Labels(np.ones(3, int), 2), "found 1 \\('1'\\); a label of -1 .*: write classes -1 and 1 as 0 and 1$"),
        (Labels(np.zeros(3, int), 1, ("cat",)), "^scq needs at least 2 classes, found 1 \\('cat'\\)$"),
        (
            Labels(np.array([[1, 0], [0, 0], [0, 0]], np.uint8), 2),
            r"^labels: row 1 has no label \(2 of 3 rows\); --set unlabeled=drop trains without them$",
        ),
    ],
)
def test_labels_that_cannot_train_are_refused(y, words):
    with pytest.raises(DataError, match=words):
        labelled_rows(y, "scq", "error")


def test_a_class_without_rows_is_a_notice():
    with pytest.warns(ScqWarning, match=r"^1 of 3 classes have no rows \(owl\)$"):
        assert labelled_rows(Labels(np.array([0, 1]), 3, ("cat", "dog", "owl")), "scq", "error") is None


@pytest.mark.parametrize(
    "config, encoder, words",
    [
        ({"cfa": "calibrated"}, "identity", "^cfa=calibrated needs an encoder that trains; choose --encoder linear or"),
        ({"cfa": "none"}, "linear", "^cfa=none trains nothing, .* --encoder identity, not linear$"),
        ({"members": 2}, "linear", "^members=2 needs --encoder mlp and cfa=calibrated, got linear and calibrated$"),
        ({"members": 2, "cfa": "cosine"}, "mlp", "^members=2 needs .*, got mlp and cosine$"),
        ({"logits": "inner", "cfa": "cosine"}, "mlp", "^logits=inner needs cfa=calibrated: cfa=cosine trains by"),
        ({"multi": "sigmoid", "d": 3}, "mlp", "^multi=sigmoid needs d of at least C=4, got d=3$"),
        ({"d": 5}, "identity", r"^d is 5, but without a head \(cfa=none\) z are the rows themselves, d=6$"),
    ],
)
def test_heads_that_cannot_be_built_are_refused(config, encoder, words):
    with pytest.raises(ConfigError, match=words):
        cfa_checks.check(cfa.Settings(**config), 6, 4, 2, encoder, ROWS)


def test_z_is_as_small_as_the_classes_and_codebooks_let_it():
    def d(C, M, encoder="mlp", **config):
        return cfa.smallest_d(cfa.Settings(**config), 99, C, M, encoder)

    assert [d(10, M) for M in (1, 2, 3, 4, 8, 16)] == [10, 10, 12, 12, 16, 16]
    assert (d(10, 7, cfa="reference"), d(10, 4, d=20), d(10, 3, "identity")) == (364, 20, 99)


def test_members_train_side_by_side_where_they_can():
    auto, five = cfa.Settings(), cfa.Settings(members=5)
    assert [cfa.members(auto, e) for e in ("mlp", "linear", "identity")] == [3, 1, 1]
    assert (cfa.members(five, "mlp"), cfa.members(cfa.Settings(cfa="cosine"), "mlp")) == (5, 1)


# ------------------------------------------------------------------------------------------------------------ validation
XV = np.random.default_rng(7).standard_normal((13, 6)).astype(np.float32)
ONE_V = Labels(np.arange(13) * 7 % 4, 4)
MANY_V = Labels(np.r_[MANY.y[:10], np.ones((1, 4), np.uint8), np.zeros((2, 4), np.uint8)], 4)  # two without any label


class Blocks:
    """The rows set aside, 5 at a time, in the arithmetic of the test."""

    def __init__(self, dtype):
        self.x = torch.from_numpy(XV).to(dtype).numpy()

    def blocks(self):
        return ((i, self.x[i : i + 5]) for i in range(0, 13, 5))


def validated(labels, encoder="mlp", dtype=torch.float64, **config):
    """Features with rows set aside, in training mode: dropout on."""
    f = features(MANY if labels.multilabel else ONE, encoder, dtype=dtype, **config)
    f.task = replace(f.task, validation=Subset(Blocks(dtype), labels))
    return f.train()


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-6), (torch.float32, 2e-5)])
@pytest.mark.parametrize("labels", [ONE_V, MANY_V], ids=["one", "many"])
@pytest.mark.parametrize("encoder, config", SINGLE)
def test_validation_is_the_cross_entropy_of_the_mean_posterior(encoder, config, labels, dtype, rtol):
    f = validated(labels, encoder, dtype, **config)
    found, multi_hot = f.stage().validate(), labels.multi_hot()
    logits = slow_posteriors(f, torch.from_numpy(XV).to(dtype))  # in evaluation mode, which validate() leaves behind
    logits += slow_prior(
        MANY if labels is MANY_V else ONE, 1.0
    )  # validation rows have classes as often as training rows
    p = (np.exp(logits) / np.exp(logits).sum(2, keepdims=True)).mean(0)
    rows = [i for i in range(13) if multi_hot[i].any()]
    want = -sum(multi_hot[i, k] / multi_hot[i].sum() * np.log(p[i, k]) for i in rows for k in range(4)) / len(rows)
    assert len(rows) == (11 if labels is MANY_V else 13)
    np.testing.assert_allclose(found, want, rtol=rtol)


@pytest.mark.parametrize("encoder, config", SINGLE)
def test_validation_of_sigmoids_is_the_cross_entropy_of_every_class(encoder, config):
    f = validated(MANY_V, encoder, multi="sigmoid", **config)
    found, multi_hot = f.stage().validate(), MANY_V.multi_hot()
    p = (1 / (1 + np.exp(-slow_posteriors(f, torch.from_numpy(XV).double())))).mean(0)
    want = 0.0
    for i in range(11):
        want -= sum(np.log(p[i, k] if multi_hot[i, k] else 1 - p[i, k]) for k in range(4)) / 11
    np.testing.assert_allclose(found, want, rtol=1e-6)


@pytest.mark.parametrize("labels", [ONE_V, MANY_V], ids=["one", "many"])
@pytest.mark.parametrize("kind", ["reference", "cosine"])
def test_validation_of_other_heads_is_their_own_loss(kind, labels):
    """Of all rows at once, however they are cut into blocks: rows without a direction weigh nothing in its terms."""
    f = validated(labels, "mlp", cfa=kind)
    found = f.stage().validate()
    some = labels.multi_hot().any(1)
    x = torch.from_numpy(XV[some]).double()
    f.eval()
    f.y = torch.from_numpy(labels.y[some])
    want = sum(term.item() for term in f.loss(x, torch.arange(len(x))).values())
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_validation_leaves_training_as_it_was():
    f = validated(ONE_V)
    state, y, random = f.state_dict(), f.y, torch.get_rng_state()
    first, second = f.stage().validate(), f.stage().validate()
    assert first == second
    assert f.y is y
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in f.state_dict().items())
    f.loss = lambda x, index: 1 / 0
    g = validated(ONE_V, cfa="cosine")
    g.loss = f.loss
    with pytest.raises(ZeroDivisionError):
        g.stage().validate()
    assert len(g.y) == 24  # the labels of the training rows are back


def test_nothing_validates_without_rows_labels_or_epochs():
    assert features().stage().validate is None
    f = validated(ONE_V)
    f.task = replace(f.task, validation=Subset(f.task.validation.rows))
    assert f.stage().validate is None
    f = validated(ONE_V, **{"features.epochs": 0})
    assert f.stage().validate is None


def test_validation_rows_without_any_label_are_refused():
    f = validated(Labels(np.zeros((13, 4), np.uint8), 4), members=1)
    with pytest.raises(DataError, match=r"^none of 13 validation rows has a label, at least 1 must$"):
        f.stage()


@pytest.mark.parametrize("multi", ["softmax", "sigmoid"])
@pytest.mark.parametrize("logits", ["inner", "cosine"])
def test_a_head_read_back_from_its_layers_gives_the_same_posterior(logits, multi):
    f = features(MANY, dtype=torch.float32, logits=logits, multi=multi, kappa=2.0)
    if f.sigmoid:
        with torch.no_grad():
            f.bias += torch.arange(4) * 0.3
    f.calibrate()
    # What the other training would have by itself plays no part.
    other = "cosine" if logits == "inner" else "inner"
    again = features(MANY, dtype=torch.float32, logits=other, multi=multi, kappa=9.0)
    head_layers.adopt(again, head_layers.of(f, "z"))
    x = torch.from_numpy(X)
    assert_close(again.posterior(x).detach(), f.posterior(x).detach(), terms=64, scale=8.0)  # of logits
    assert [p for p in (again.project, again.shift) if p.requires_grad] == []


@pytest.mark.parametrize("labels, wanted", [(ONE, "softmax"), (MANY, "sigmoid")])
def test_a_head_of_another_kind_is_refused(labels, wanted):
    f = features(MANY, multi="softmax" if wanted == "sigmoid" else "sigmoid")
    g = features(labels, multi=wanted)
    with pytest.raises(ConfigError, match=f"needs linear, normalize, linear, {wanted}, or linear, {wanted}$"):
        head_layers.adopt(g, head_layers.of(f, "z"))


@pytest.mark.parametrize(
    "labels, config, decay",
    [
        (ONE, {}, 1.0),
        (ONE, {"logits": "cosine"}, 0.3),
        (MANY, {}, 0.3),
        (MANY, {"logits": "inner"}, 1.0),
        (MANY, {"features.decay": 0.0}, 0.0),
    ],
)
def test_the_default_decay_is_that_of_the_logits(labels, config, decay):
    stage = features(labels, **config).stage()
    optimizer, _ = stage.optimizer_steps[0].make_optimizer(10)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [decay]
