"""Deep Progressive Quantization: each formula against loops in float64, gradients, nested codes, and the training as a whole."""

import math

import faiss
import numpy as np
import pytest
import torch
from close import assert_as_good, assert_close

import scqfaiss
from scqfaiss.codebooks import Codebooks
from scqfaiss.contract import settings as settings_of
from scqfaiss.data import ArraySource
from scqfaiss.errors import ConfigError, DataError, ScqWarning
from scqfaiss.methods import dpq, method_class, progressive, residual
from scqfaiss.methods.rows import CodebookRows
from scqfaiss.options import TrainOptions
from scqfaiss.targets import target as find_target
from scqfaiss.training.fitting import build, fit
from scqfaiss.training.planning import make_plan

QUICK = {"hidden": 16, "similarity": "identity"}
DTYPES = [(torch.float64, 1e-10), (torch.float32, 2e-5)]
GAMMAS = [0.0, 1.0, 20.0, 1e4]


def case(dtype=torch.float64, n=7, d=3, M=3, K=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, generator=generator, dtype=torch.float64)
    w = torch.randn(M, K, d, generator=generator, dtype=torch.float64)
    return z.to(dtype), w.to(dtype)


# -------------------------------------------------------------------------------------------------------------- slow twins
def slow_softmax(a):
    e = np.exp(a - a.max())
    return e / e.sum()


def slow_cosine(a, b):
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return a @ b / length if length else 0.0


def slow_levels(z, w, gamma, choice, v=None):
    """T, H (n, M, d) and codes (n, M); v: the divisors of each level, else the mean squared residuals of these rows."""
    n, M = len(z), len(w)
    left, T, H, codes = z.copy(), np.zeros((n, M, z.shape[1])), np.zeros((n, M, z.shape[1])), np.zeros((n, M), int)
    for m, codebook in enumerate(w):
        spread = max(np.mean([r @ r for r in left]), 1e-12) if v is None else v[m]
        for i, r in enumerate(left):
            if choice == "l2":
                a = np.array([-gamma * ((r - word) @ (r - word)) / spread for word in codebook])
            else:
                a = np.array([gamma * slow_cosine(r, word) for word in codebook])
            k = int(np.argmax(a))
            T[i, m] = (T[i, m - 1] if m else 0) + slow_softmax(a) @ codebook
            H[i, m] = (H[i, m - 1] if m else 0) + codebook[k]
            codes[i, m] = k
        left = z - H[:, m]
    return T, H, codes


def slow_loss(z, w, gamma, mu, nu, choice, tau, v=None):
    T, H, _ = slow_levels(z, w, gamma, choice, v)
    total = 0.0
    for i, row in enumerate(z):
        for m in range(len(w)):
            total += np.mean((row - T[i, m]) ** 2) + mu * np.mean((row - H[i, m]) ** 2)
        total += nu * np.mean((T[i, -1] - H[i, -1]) ** 2)
    return tau * total / len(z)


def slow_divisors(z, w, gamma, choice):
    H = slow_levels(z, w, gamma, choice)[1]
    left = [z, *(z - H[:, m] for m in range(len(w) - 1))]
    return [max(np.mean((r**2).sum(1)), 1e-12) for r in left]


def slow_margin(z, multi_hot, vectors):
    positives, total = multi_hot.sum(), 0.0
    for row, y in zip(z, multi_hot):
        for i in np.flatnonzero(y):
            for j in np.flatnonzero(y == 0):
                delta = 1 - slow_cosine(vectors[i], vectors[j])
                total += max(0.0, delta - slow_cosine(row, vectors[i]) + slow_cosine(row, vectors[j]))
    return total / (len(vectors) * max(positives, 1))


# ------------------------------------------------------------------------------------------------------------------- L_q
@pytest.mark.parametrize("dtype, rtol", DTYPES)
@pytest.mark.parametrize("choice", ["l2", "cosine"])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_loss_equals_its_slow_twin(gamma, choice, dtype, rtol):
    z, w = case(dtype)
    terms = progressive.quantization_loss(z, w, gamma, 0.7, 0.3, choice, 2.0)
    assert list(terms) == ["soft", "hard", "agree"]
    want = slow_loss(z.double().numpy(), w.double().numpy(), gamma, 0.7, 0.3, choice, 2.0)
    np.testing.assert_allclose(sum(terms.values()).item(), want, rtol=rtol)
    T, H, codes = progressive.levels(z, w, gamma, choice)
    slow = slow_levels(z.double().numpy(), w.double().numpy(), gamma, choice)
    for ours, wanted in ((T, slow[0]), (H, slow[1])):
        np.testing.assert_allclose(ours.transpose(0, 1), wanted, atol=100 * rtol * float(w.abs().max()))
    np.testing.assert_array_equal(codes.T, slow[2])


@pytest.mark.parametrize("choice", ["l2", "cosine"])
@pytest.mark.parametrize("gamma", [1.0, 20.0])
def test_gradients_equal_finite_differences(gamma, choice):
    """Of codewords and of rows; the divisors v are constants of the loss, so the twin holds them too."""
    z, w = case(n=4, M=2, K=4)
    z.requires_grad_(), w.requires_grad_()
    sum(progressive.quantization_loss(z, w, gamma, 1.0, 0.1, choice).values()).backward()
    z0, w0, h = z.detach().numpy(), w.detach().numpy(), 1e-6
    v = slow_divisors(z0, w0, gamma, choice)
    for found, which in ((z.grad, 0), (w.grad, 1)):
        base = (z0, w0)[which]
        for place in np.ndindex(base.shape):
            values = []
            for sign in (1, -1):
                moved = [z0.copy(), w0.copy()]
                moved[which][place] += sign * h
                values.append(slow_loss(*moved, gamma, 1.0, 0.1, choice, 1.0, v))
            np.testing.assert_allclose(found[place], (values[0] - values[1]) / (2 * h), rtol=1e-5, atol=1e-7)


def test_hard_rebuild_and_residual_make_the_row():
    z, w = case(torch.float32, n=50)
    _, H, codes = progressive.levels(z, w, 20.0)
    # Sums and differences of M codewords and a row.
    assert_close(H[-1] + residual.remainder(z, w, codes.T), z, 2 * len(w), z.abs().max() + len(w) * w.abs().max())


def test_soft_and_hard_rebuilds_meet_as_gamma_grows():
    z, w = case(n=40)
    T, H, _ = progressive.levels(z, w, 1e6)
    ties = progressive.levels(z, w, 1e9)[0]
    assert (T - ties).abs().max() < 1e-6  # no row lies between two codewords
    gaps = []
    for gamma in (1, 10, 100, 1e4, 1e6):
        T, H, _ = progressive.levels(z, w, gamma)
        gaps.append(float((T - H).abs().mean()))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-9


@pytest.mark.parametrize("choice", ["l2", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_residuals_of_exactly_zero_give_finite_losses_and_gradients(choice, dtype):
    """Rows that a level rebuilds exactly: the next level's divisor is zero, and so is the length of what is left."""
    w = torch.zeros(3, 4, 2, dtype=dtype)
    w[0] = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    w[1, 1:] = torch.eye(3, 2, dtype=dtype) + 1
    for z in (w[0].clone(), torch.zeros(5, 2, dtype=dtype)):
        z.requires_grad_()
        codebooks = w.clone().requires_grad_()
        loss = sum(progressive.quantization_loss(z, codebooks, 20.0, 1.0, 0.1, choice).values())
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(z.grad).all() and torch.isfinite(codebooks.grad).all()
        if choice == "cosine":  # by l2, four codewords that tie at a divisor of 1e-12 are as steep as that
            assert max(codebooks.grad.abs().max(), z.grad.abs().max()) < 1e3
    _, H, codes = progressive.levels(w[0], w, 20.0)  # the divisor is at its floor
    assert torch.equal(H[-1], w[0]) and codes[1:].eq(0).all()


# ------------------------------------------------------------------------------------------------------------ margin loss
@pytest.mark.parametrize("dtype, rtol", DTYPES)
@pytest.mark.parametrize("multilabel", [False, True])
def test_the_margin_loss_equals_its_slow_twin(multilabel, dtype, rtol):
    rng = np.random.default_rng(0)
    z, vectors = rng.standard_normal((9, 4)), rng.standard_normal((5, 4)) * 3
    multi_hot = np.eye(5)[rng.integers(5, size=9)]
    if multilabel:
        multi_hot = np.maximum(multi_hot, rng.random((9, 5)) < 0.3)
        multi_hot[0], multi_hot[1] = 0, 1  # no label; all labels
    found = progressive.margin_loss(*(torch.from_numpy(a).to(dtype) for a in (z, multi_hot, vectors)))
    np.testing.assert_allclose(found.item(), slow_margin(z, multi_hot, vectors), rtol=rtol)


def test_rows_with_all_classes_or_with_none_add_nothing_to_the_margin_loss():
    z = torch.randn(3, 4, requires_grad=True)
    for multi_hot in (torch.ones(3, 5), torch.zeros(3, 5)):
        loss = progressive.margin_loss(z, multi_hot, torch.randn(5, 4))
        loss.backward()
        assert loss == 0 and z.grad.eq(0).all()


def test_gradient_of_the_margin_loss_equals_finite_differences():
    rng = np.random.default_rng(1)
    z, multi_hot, vectors = rng.standard_normal((4, 3)), np.eye(4)[[0, 1, 2, 3]], rng.standard_normal((4, 3))
    t = torch.from_numpy(z).requires_grad_()
    progressive.margin_loss(t, torch.from_numpy(multi_hot), torch.from_numpy(vectors)).backward()
    for place in np.ndindex(z.shape):
        step = np.zeros_like(z)
        step[place] = 1e-6
        want = (slow_margin(z + step, multi_hot, vectors) - slow_margin(z - step, multi_hot, vectors)) / 2e-6
        np.testing.assert_allclose(t.grad[place], want, rtol=1e-5, atol=1e-8)


# ---------------------------------------------------------------------------------------------------------------- encoding
@pytest.fixture(scope="module")
def model(one):
    return scqfaiss.train(*one, method="dpq", bits=12, nbits=4, epochs=3, **QUICK)


def test_codes_are_greedy_and_those_of_the_residual_quantizer_of_faiss(model, one):
    z, codebooks = model.embed(one[0]), model.codebooks
    codes = model.encode(one[0])
    w = torch.from_numpy(codebooks.centroids)
    assert_as_good(progressive.greedy(torch.from_numpy(z), w).numpy(), codes, codebooks, z)
    left = z.astype(np.float64)
    for m, codebook in enumerate(codebooks.centroids.astype(np.float64)):
        distance = np.square(left[:, None] - codebook).sum(2)
        gap = distance[np.arange(len(z)), codes[:, m]] - distance.min(1)
        assert_close(
            gap, np.zeros(len(z)), 2 * z.shape[1] + 8, 4 * (np.square(left).sum(1) + np.square(codebook).sum(1).max())
        )
        left = left - codebook[codes[:, m]]
    np.testing.assert_allclose(
        progressive.prefix_errors(torch.from_numpy(z), w)[-1], np.square(left).sum(), rtol=1e-4, atol=1e-8
    )
    index = find_target("residual").build(codebooks, codes, np.arange(len(z)))
    inner = faiss.downcast_index(index.index) if hasattr(index, "index") else index
    assert inner.rq.max_beam_size == 1
    found = faiss.unpack_bitstrings(inner.rq.compute_codes(z), codebooks.M, codebooks.nbits)
    np.testing.assert_array_equal(found, codes)


def test_lifted_scores_are_those_of_the_residual_target(model, one):
    z, codebooks, codes = model.embed(one[0]), model.codebooks, model.encode(one[0])
    scores = []
    for name in ("residual", "lift"):
        D, I = find_target(name).search(find_target(name).build(codebooks, codes, np.arange(400)), z[:20], 400)
        by_id = np.zeros((20, 400))
        np.put_along_axis(by_id, I, D, 1)
        scores.append(by_id)
    np.testing.assert_allclose(*scores, atol=1e-5 * np.abs(scores[0]).max())
    np.testing.assert_allclose(scores[0], codebooks.scores(z[:20], codes), atol=1e-5 * np.abs(scores[0]).max())


# ---------------------------------------------------------------------------------------------------------------- training
def built(one, bits=12, codebook_rows=None, encoder="mlp", y=True, **settings):
    source = ArraySource(one[0], one[1] if y else None)
    quick = QUICK if encoder == "mlp" else {}
    codebooks = None if codebook_rows is None else ArraySource(codebook_rows)
    what = make_plan(
        TrainOptions("dpq", bits, 4, encoder, epochs=1, settings=quick | settings), source, None, codebooks
    )
    return build(what)


def begun(method):
    for stage in method.stages():
        stage.begin()
    return method


def test_without_epochs_the_codebooks_are_residual_k_means(one):
    method = begun(built(one, **{"codebooks.epochs": 0}))
    z, _ = CodebookRows(method.features, method.task, 10**6, 4, method.config.codebooks.noise).encoded()
    scale = math.sqrt(z.shape[1] / float(z.double().square().sum(1).mean()))
    start = residual.start(z * scale, 3, 16, 1, torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(method.codewords.detach(), start)
    # The scale is the root of a mean over all rows and dimensions, which the method takes by itself.
    assert_close(method.codebooks().centroids, start.numpy() / scale, z.numel() ** 0.5 + 8)


def test_the_codebooks_loss_falls_with_training(one):
    losses = []
    for epochs in (1, 8):
        found = scqfaiss.train(
            one[0],
            method="dpq",
            bits=12,
            nbits=4,
            encoder="identity",
            supervision="none",
            start="normal",
            epochs=epochs,
        )
        losses.append(sum(found.config["training"]["loss"]["codebooks"].values()))
    assert losses[1] < 0.9 * losses[0]


def test_dead_codewords_move_to_residuals_of_rows_and_are_counted(one):
    method = begun(built(one))
    with torch.no_grad():
        method.codewords[1, 3] = 1e3
        method.codewords[2, :2] = -1e3
    before = method.codewords.detach().clone()
    method.codebook_optimizer(3)
    facts = method.renew(0)
    codes = progressive.greedy(method.z, before)
    used = [len(codes[:, m].unique()) for m in range(3)]
    assert facts == {"codewords_used": used, "revived": 48 - sum(used)} and used[1] <= 15 and used[2] <= 14
    moved = (method.codewords != before).any(2)
    assert moved[1, 3] and moved[2, :2].all() and int(moved.sum()) == facts["revived"]
    # Each stands on what the levels before leave of a row, and is that row's choice now.
    left = method.z - before[0, codes[:, 0]]
    assert (left - method.codewords[1, 3]).norm(dim=1).min() == 0
    left = left - before[1, codes[:, 1]]
    assert (left[:, None] - method.codewords[2, :2]).norm(dim=2).min(0).values.tolist() == [0, 0]
    again = begun(built(one))
    with torch.no_grad():
        again.codewords.copy_(before)
    again.renew(0)
    assert torch.equal(again.codewords, method.codewords)  # nothing random but the seed


def test_validation_is_the_rebuild_error_of_all_prefixes(one, model):
    x, y = one
    source, held = ArraySource(x[:300], y[:300]), ArraySource(x[300:], y[300:])
    method = begun(build(make_plan(TrainOptions("dpq", 12, 4, settings=QUICK), source, held)))
    stage = method.stages()[-1]
    method.eval()
    found = stage.validate()
    z = method.features(torch.from_numpy(x[300:])).detach().double().numpy()
    left, want = z.copy(), 0.0
    codebooks = method.codebooks().centroids.astype(np.float64)
    for codebook in codebooks:
        for i, r in enumerate(left):
            left[i] = r - codebook[np.square(r - codebook).sum(1).argmin()]
        want += np.square(left).sum()
    np.testing.assert_allclose(found, want / np.square(z).sum(), rtol=1e-4)
    assert found == stage.validate()
    assert built(one).stages()[-1].validate is None


def test_only_end_to_end_lets_the_codebooks_reach_the_encoder(one):
    x = torch.from_numpy(one[0][:32])
    index = torch.arange(32)
    for end_to_end in (True, False):
        method = begun(built(one, recipe="reference", d=8, end_to_end=end_to_end))
        optimizer_steps = method.stages()[-1].optimizer_steps
        assert len(optimizer_steps) == (1 if end_to_end else 2)
        terms = optimizer_steps[-1].loss(x, index)
        sum(terms[name] for name in ("soft", "hard", "agree")).backward()
        reached = [p.grad is not None and bool(p.grad.abs().max() > 0) for p in method.features.parameters()]
        assert any(reached) == end_to_end
        assert method.codewords.grad.abs().max() > 0


@pytest.mark.parametrize("settings", [{"end_to_end": True}, {"recipe": "reference", "d": 8}])
def test_encoders_that_go_on_learning_train_twice_to_the_same_bytes(settings, one):
    twice = [scqfaiss.train(*one, method="dpq", bits=8, nbits=4, epochs=2, **QUICK, **settings) for _ in range(2)]
    assert twice[0].to_bytes() == twice[1].to_bytes()
    assert np.isfinite(twice[0].codebooks.centroids).all()
    with pytest.raises(ConfigError, match=r"trains encoder and codebooks on the same rows; leave --codebook-rows out$"):
        built(one, codebook_rows=one[0][:50], **settings)


def test_released_is_the_margin_loss_on_a_tanh_layer(one, multilabel, tmp_path):
    for data in (one, multilabel):
        method = built(data, recipe="reference")
        features, x, index = method.features, torch.from_numpy(data[0][:40]), torch.arange(40)
        features.eval()
        assert (features.d, features.kind, method.config.gamma, method.scale) == (300, "reference", 1.0, 1.0)
        terms = features.loss(x, index)
        z = features(x).detach().double().numpy()
        assert np.abs(z).max() < 1
        multi_hot = features.multi_hot(index).numpy()
        want = slow_margin(z, multi_hot, features.centers.double().numpy())
        np.testing.assert_allclose(terms["margin"].item(), want, rtol=1e-4)
        logits = features.classify(features.encoder(x)[0]).detach().double().numpy()
        if features.labels.multilabel:
            p = 1 / (1 + np.exp(-logits))
            cls = -np.mean(multi_hot * np.log(p) + (1 - multi_hot) * np.log(1 - p))
        else:
            cls = -np.mean([np.log(slow_softmax(a))[k] for a, k in zip(logits, multi_hot.argmax(1))])
        np.testing.assert_allclose(terms["cls"].item(), 0.1 * cls, rtol=1e-5)
    rates = {tuple(p.shape): g["lr"] for g in features.reference_optimizer()[0].param_groups for p in g["params"]}
    width = features.encoder.width
    assert rates[(1, width, 300)] == pytest.approx(1e-2) and rates[(1, 1, 300)] == pytest.approx(2e-2)
    assert rates[(4, width)] == pytest.approx(1e-2) and rates[(4,)] == pytest.approx(2e-2)
    scheduler = features.reference_optimizer(before=9_999)[1]
    assert [scheduler.lr_lambdas[0](step) for step in (0, 1)] == [1, 0.9]
    vectors = np.random.default_rng(0).standard_normal((4, 300))
    np.save(tmp_path / "words.npy", vectors)
    settings = {"similarity": "auto", "class_vectors": str(tmp_path / "words.npy")}
    method = built(one, recipe="reference", **settings)  # as wide as z: they stand for the classes themselves
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(method.features.centers, unit, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------- settings
def test_stored_features_need_no_labels(one):
    x, y = one
    found = scqfaiss.train(x, method="dpq", bits=8, nbits=4, encoder="identity", supervision="none", epochs=2)
    assert (found.config["labels"], found.config["C"], found.config["nested"]) == ("none", 0, True)
    np.testing.assert_array_equal(found.embed(x), x)
    with pytest.warns(ScqWarning, match="method dpq does not use labels: they are ignored"):
        labelled = scqfaiss.train(x, y, method="dpq", bits=8, nbits=4, encoder="identity", supervision="none", epochs=2)
    assert labelled.to_bytes() == found.to_bytes()
    Config = method_class("dpq").Config
    assert method_class("dpq").needs_of(Config()) == {"labels"}
    assert method_class("dpq").needs_of(Config(supervision="none")) == frozenset()
    assert method_class("scq").needs_of(method_class("scq").Config()) == {"labels"}


def test_scores_do_not_depend_on_the_scale_of_the_rows(one):
    """Codewords are learned at unit scale, so rows of any size take the same rates."""
    x = one[0]
    codebooks = [
        scqfaiss.train(x * g, method="dpq", bits=8, nbits=4, encoder="identity", supervision="none", epochs=2).codebooks
        for g in (1.0, np.float32(2.0**-20))
    ]
    np.testing.assert_allclose(codebooks[0].centroids, codebooks[1].centroids * 2.0**20, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "encoder, settings, words",
    [
        ("mlp", {"supervision": "none"}, r"^supervision=none trains no encoder; choose --encoder identity, not mlp$"),
        ("identity", {}, r"^labels guide an encoder, and identity has nothing to train; add --set supervision=none$"),
        (
            "identity",
            {"supervision": "none", "end_to_end": True},
            r"^end_to_end=true trains an encoder, which supervision",
        ),
        ("identity", {"supervision": "none", "recipe": "reference"}, r"cfa=reference needs an encoder that trains"),
        ("mlp", {"gamma": -1}, r"^gamma is -1.0, needs 0 to "),
        ("mlp", {"choice": "dot"}, r"^choice is 'dot', needs one of l2, cosine$"),
        ("identity", {"supervision": "none", "d": 5}, r"^d is 5, but without a head \(cfa=none\) z are the rows"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_row_is_read(encoder, settings, words, one):
    class Unread(ArraySource):
        def blocks(self, *args):
            raise AssertionError("rows were read")

    labels = None if "supervision" in settings else one[1]
    with pytest.raises(ConfigError, match=words):
        make_plan(TrainOptions("dpq", 8, 4, encoder, settings=settings), Unread(one[0], labels))


def test_missing_labels_are_named(one):
    with pytest.raises(
        DataError,
        match=r"^x has no labels, which method dpq needs; bring them .*; --method mecoq needs none$",
    ):
        scqfaiss.train(one[0], method="dpq", bits=8, nbits=4)


def test_names(one):
    assert method_class("dpgq") is method_class("dpq") is dpq.DPQ
    source = ArraySource(*one)
    assert make_plan(TrainOptions("dpgq", 8, 4), source).options.method == "dpq"
    words = r"^there is no method 'deep-product-quantization': it is the method of Klein and Wolf, CVPR 2019, .*ask for dpq$"
    with pytest.raises(ConfigError, match=words):
        make_plan(TrainOptions("deep-product-quantization", 8, 4), source)


def test_few_rows_train(one):
    with pytest.warns(ScqWarning) as said:
        found = scqfaiss.train(one[0][:2], one[1][:2], method="dpq", bits=8, nbits=4, epochs=2, **QUICK)
    assert "8 rows can use at most 8 of 16 codewords" in [str(w.message) for w in said]
    assert np.isfinite(found.codebooks.centroids).all()


def test_presets_name_settings_that_exist():
    assert set(dpq.REFERENCE) <= set(settings_of(dpq.Settings))


def test_a_prefix_of_the_codebooks_is_a_model_of_its_own(one, model):
    codes = model.encode(one[0])
    for bits in (4, 8):
        cut = model.prefix(bits)
        np.testing.assert_array_equal(cut.encode(one[0]), codes[:, : bits // 4])
        np.testing.assert_array_equal(
            cut.codebooks.assign(model.embed(one[0]), "l2"),
            Codebooks("additive", model.codebooks.centroids[: bits // 4].copy()).assign(model.embed(one[0]), "l2"),
        )


def test_fit_and_build_agree_on_labels(one):
    source = ArraySource(one[0])
    what = make_plan(TrainOptions("dpq", 8, 4, "identity", epochs=0, settings={"supervision": "none"}), source)
    assert what.needs == frozenset()
    assert fit(what).config["training"]["cfa"] == "none"


class Cut(Exception):
    """Stands for a kill between two steps."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::scqfaiss.errors.ScqWarning")
@pytest.mark.parametrize("settings", [{}, {"end_to_end": True}, {"recipe": "reference", "d": 8}])
def test_a_training_that_was_cut_off_goes_on_to_the_same_bytes(settings, one, tmp_path):
    """Two steps an epoch, 8 of the encoder and 8 of the codebooks."""

    def train(folder, cut=0):
        steps = [0]

        def progress(what, done, total, detail):
            steps[0] += what in ("features", "codebooks") and detail != ""
            if cut and steps[0] == cut:
                raise Cut

        asked = {"method": "dpq", "bits": 8, "nbits": 4, "epochs": 4, "batch_size": 200, "codebooks.copies": 1, **QUICK}
        kept = {"checkpoints": folder, "checkpoint_every": 1, "resume": folder is not None}
        return scqfaiss.train(*one, progress=progress, **asked | settings, **kept).to_bytes()

    whole = train(None)
    for cuts in ([3], [11], [9, 3, 2]):  # steps since the training last went on
        folder = tmp_path / str(cuts[0])
        for cut in cuts:
            with pytest.raises(Cut):
                train(folder, cut)
        assert train(folder) == whole
