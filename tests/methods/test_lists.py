"""Lists that are part of a code: how they are learned, and codebooks of what they leave over."""

import itertools

import numpy as np
import pytest
import torch

import scqfaiss
from scqfaiss.codebooks import Codebooks
from scqfaiss.data import ArraySource
from scqfaiss.errors import ConfigError
from scqfaiss.methods import lists
from scqfaiss.methods.class_kmeans import FALL, class_kmeans, codebook_start, shares
from scqfaiss.methods.list_counts import auto
from scqfaiss.methods.noisy_rows import NoisyRows
from scqfaiss.options import TrainOptions
from scqfaiss.training.fitting import build
from scqfaiss.training.planning import make_plan, split_bits

GENERATOR = torch.Generator


def corners(C=12, n=600, d=12, noise=0.15, seed=0):
    """Rows around the corners of a simplex, as posteriors are: x (n, d), y (n,)."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % C
    return (np.eye(C, d)[y] + noise * rng.standard_normal((n, d))).astype(np.float32), y


def distortion(z, codebooks, codes):
    return float(np.square(z - codebooks.decode(codes), dtype=np.float64).sum())


# ------------------------------------------------------------------------------------------------------------- centroids
@pytest.mark.parametrize("K", [3, 4, 9, 40])
def test_centroids_go_one_by_one_where_the_error_falls_most(K):
    errors, counts = [9.0, 1.0, 4.0], [30, 30, 5]
    sizes = [1, 1, 1]
    for _ in range(K - 3):  # the slow twin: look at all classes every time
        gain = [e / s ** (1 + FALL) if s < n else -1.0 for e, s, n in zip(errors, sizes, counts)]
        sizes[int(np.argmax(gain))] += 1
    found = shares(errors, counts, K)
    assert sum(found) == K and found == sizes


def test_no_class_gets_more_centroids_than_rows():
    assert shares([1.0, 1.0], [2, 3], 100) == [2, 3]
    assert shares([0.0, 5.0, 0.0], [4, 4, 1], 4) == [1, 2, 1]


def test_every_class_has_centroids_at_the_means_of_its_own_rows():
    x, y = (torch.from_numpy(a) for a in corners())
    w = class_kmeans(x, y, 30, GENERATOR().manual_seed(0))
    assert w.shape == (30, 12)
    owner = w[:, :12].argmax(1)
    assert set(owner.tolist()) == set(range(12))
    for c in range(12):  # Lloyd's steps within a class: no centroid is worse than the mean of all
        own, rows = w[owner == c], x[y == c]
        dist = (rows[:, None] - own).square().sum(2).min(1).values.sum()
        assert dist < (rows - rows.mean(0)).square().sum()


def test_k_means_from_random_rows_leaves_classes_without_a_centroid_and_this_does_not():
    x, y = corners(C=60, n=1200, d=60, noise=0.02)
    z, classes = torch.from_numpy(x), torch.from_numpy(y)
    one_class = torch.zeros(len(z), dtype=torch.int64)
    merged = class_kmeans(z, one_class, 64, GENERATOR().manual_seed(0))
    own = class_kmeans(z, classes, 64, GENERATOR().manual_seed(0))
    near = [
        set((z[:, None] - w).square().sum(2).argmin(1)[classes == c].tolist()) for w in (merged, own) for c in range(60)
    ]
    shared = len(set.union(*near[:60])), len(set.union(*near[60:]))
    assert sum(len(near[c] & near[d]) > 0 for c in range(60) for d in range(c)) > 0, shared
    assert all(not near[60 + c] & near[60 + d] for c in range(60) for d in range(c))


def test_fewer_centroids_than_classes_are_plain_k_means_and_few_rows_are_themselves():
    x, y = (torch.from_numpy(a) for a in corners())
    assert class_kmeans(x, y, 5, GENERATOR().manual_seed(0)).shape == (5, 12)
    assert torch.equal(class_kmeans(x[:7], y[:7], 8, GENERATOR()), x[:7])


def test_codebooks_start_the_same_from_the_same_seed():
    x, y = (torch.from_numpy(a) for a in corners())
    parts = x.unflatten(1, (2, -1)).transpose(0, 1).contiguous()
    first, again, other = (codebook_start(parts, y, 16, GENERATOR().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.shape == (2, 16, 6) and torch.equal(first, again) and not torch.equal(first, other)


# ----------------------------------------------------------------------------------------------------------------- lists
def test_residuals_are_what_the_nearest_list_leaves_over():
    x, y = (torch.from_numpy(a) for a in corners())
    centroids = lists.learn(x, y, 24, seed=3)
    near = (x[:, None].double() - centroids.double()).square().sum(2).argmin(1)
    np.testing.assert_allclose(lists.residuals(x, centroids), x - centroids[near], atol=1e-6)


def test_lists_without_classes_and_with_too_few_rows():
    x, y = (torch.from_numpy(a) for a in corners(n=20))
    assert lists.learn(x, None, 8, seed=0).shape == (8, 12)
    with pytest.warns(UserWarning, match="20 rows can fill at most 20 of 32 lists"):
        assert lists.learn(x, y, 32, seed=0).shape == (20, 12)
    with pytest.warns(UserWarning):
        assert lists.learn(x[:1], y[:1], 4, seed=0).shape == (2, 12)


def slow_update(z, codebooks, codes):
    """One round of updates of product codebooks, row by row."""
    numbers, words = codes[:, 0].astype(int), codes[:, 1:].astype(int)
    centroids = codebooks.lists.astype(np.float64)
    for i in range(len(centroids)):
        rows = [n for n in range(len(z)) if numbers[n] == i]
        if rows:
            left = [z[n] - np.concatenate([w[k] for w, k in zip(codebooks.centroids, words[n])]) for n in rows]
            centroids[i] = np.mean(left, axis=0)
    w, dsub = codebooks.centroids.astype(np.float64), codebooks.centroids.shape[2]
    for m in range(codebooks.M):
        for k in range(codebooks.K):
            rows = [n for n in range(len(z)) if words[n, m] == k]
            if rows:
                part = slice(m * dsub, (m + 1) * dsub)
                w[m, k] = np.mean([z[n, part] - centroids[numbers[n], part] for n in rows], axis=0)
    return centroids, w


def residual_codebooks(kind, M, d=12, K=4, seed=1):
    rng = np.random.default_rng(seed)
    dsub = d // M if kind == "product" else d
    w = (0.2 * rng.standard_normal((M, K, dsub))).astype(np.float32)
    x, y = corners()
    centroids = lists.learn(torch.from_numpy(x), torch.from_numpy(y), 24, seed=0).numpy()
    return x, Codebooks(kind, w, lists=centroids)


def test_an_update_puts_lists_and_codewords_at_the_means_of_what_the_others_leave_over():
    z, codebooks = residual_codebooks("product", 2)
    codes = codebooks.assign(z, "l2", 1, lists.BEAM)
    updated = lists.refine(z, codebooks, rounds=1)
    centroids, w = slow_update(z, codebooks, codes)
    np.testing.assert_allclose(updated.lists, centroids, atol=1e-5)
    np.testing.assert_allclose(updated.centroids, w, atol=1e-5)


@pytest.mark.parametrize(
    "kind, M, beam", [("product", 1, 1), ("product", 3, 1), ("additive", 1, 1), ("additive", 3, 4)]
)
def test_rounds_lower_the_squared_error(kind, M, beam):
    z, codebooks = residual_codebooks(kind, M)
    errors = []
    for rounds in range(5):
        refined = lists.refine(z, codebooks, beam, rounds=rounds)
        errors.append(distortion(z, refined, refined.assign(z, "l2", beam, lists.BEAM)))
    assert errors[1] < 0.9 * errors[0]
    assert all(b <= a * (1 + 1e-5) for a, b in itertools.pairwise(errors))


def test_the_number_of_lists_by_itself():
    assert [auto(n, C) for n, C in ((4, 2), (100, 10), (3000, 150), (5000, 10), (10**7, 10))] == [1, 32, 512, 256, 1024]
    assert lists.copies(3000, 1024, 4) == 11 and lists.copies(10**6, 1024, 4) == 4 and lists.copies(10, 1, 4) == 4


# ------------------------------------------------------------------------------------------------------------ noisy rows
class Rows:
    def __init__(self, x, block=100):
        self.x, self.block, self.d = x, block, x.shape[1]

    def __len__(self):
        return len(self.x)

    def blocks(self):
        return ((i, self.x[i : i + self.block]) for i in range(0, len(self.x), self.block))

    def sample(self, limit, seed):
        return self.x[:limit], np.arange(min(limit, len(self.x)))


def noisy(x, sigma=1.2, seed=0, copy=0):
    return np.concatenate([part for _, part in NoisyRows(Rows(x), sigma, seed, copy).blocks()])


def test_noise_is_as_wide_as_each_feature_spreads_and_another_in_each_pass():
    x = np.random.default_rng(0).standard_normal((4000, 3)).astype(np.float32) * np.float32([1, 10, 0])
    out = noisy(x)
    np.testing.assert_allclose((out - x).std(0), [1.2, 12, 0], rtol=0.1)  # 4,000 draws: 9 standard errors
    assert np.array_equal(out, noisy(x)) and out.dtype == np.float32
    assert not np.array_equal(out, noisy(x, copy=1)) and not np.array_equal(out, noisy(x, seed=1))


def test_features_that_are_never_negative_stay_so_and_huge_ones_stay_finite():
    x = np.abs(np.random.default_rng(0).standard_normal((500, 4))).astype(np.float32)
    assert noisy(x).min() == 0 and noisy(x - 5).min() < -5
    huge = np.where(x > 1, np.float32(3e38), x).astype(np.float32)
    assert np.isfinite(noisy(huge)).all()


# -------------------------------------------------------------------------------------------------------------- training
FEW = pytest.mark.filterwarnings("ignore:.*rows are few:scqfaiss.errors.ScqWarning")
FAST = {"epochs": 2, "hidden": 16, "members": 1}
METHODS = {"scq": FAST, "dpq": FAST, "label": FAST, "pq": {}, "opq": {}, "rq": {}}


@FEW
@pytest.mark.parametrize("method", METHODS)
def test_every_method_with_lists_gives_codes_with_a_list_in_front(method):
    x, y = corners()
    model = scqfaiss.train(
        x, y if METHODS[method] else None, method=method, bits=8, nbits=4, lists=16, **METHODS[method]
    )
    codebooks, codes = model.codebooks, model.encode(x)
    assert codebooks.L == 16 and codes.shape == (600, 1 + codebooks.M)
    assert codebooks.bits == (0 if method == "label" else 8)
    z = model.embed(x)
    if codebooks.M:  # without them the list alone is worse
        alone = Codebooks("product", np.zeros((0, 2, codebooks.d), np.float32), lists=codebooks.lists)
        assert distortion(z, codebooks, codes) < distortion(z, alone, alone.assign(z, "l2"))
    again = scqfaiss.train(
        x, y if METHODS[method] else None, method=method, bits=8, nbits=4, lists="16", **METHODS[method]
    )
    assert again.sha256 == model.sha256


@pytest.mark.parametrize("settings", [{}, {"codebooks.kind": "additive"}])
def test_lists_alone_are_a_code_of_0_bits(settings):
    x, y = corners()
    model = scqfaiss.train(x, y, bits=0, lists="auto", **FAST, **settings)
    assert (model.codebooks.bits, model.codebooks.M, model.codebooks.L) == (0, 0, auto(600, 12))
    assert model.config["bits"] == 0 and "list_beam" not in model.config
    assert scqfaiss.Model.from_bytes(model.to_bytes()).encode(x).tolist() == model.encode(x).tolist()


def test_many_labels_a_row_teach_lists_too():
    x, y = corners()
    many = np.eye(12, dtype=np.uint8)[y] | np.eye(12, dtype=np.uint8)[(y + 1) % 12]
    for method in ("scq", "label"):
        model = scqfaiss.train(x, many, method=method, bits=8, nbits=4, lists=32, **FAST)
        assert model.codebooks.L == 32 and model.encode(x)[:, 0].max() < 32


@FEW
def test_lists_that_cannot_be():
    x, y = corners()
    for options, message in (
        (
            {"method": "mecoq", "lists": 4},
            "mecoq has codes without lists; scq, label, dpq, phpq, pq, opq, rq take --lists",
        ),
        ({"lists": "many"}, "lists is 'many', needs a whole number"),
        ({"lists": True}, "lists is True, needs a whole number"),
        ({"lists": 0}, "lists is 0, needs 1 or more"),
        ({"lists": 1 << 25}, "needs 1 to 16777216"),
        ({"bits": 0}, "bits=0 is not a multiple of nbits=8; need 8, or --lists auto, whose lists alone"),
        ({"method": "opq", "bits": 0, "lists": 4}, "--bits 0 is for method pq"),
        ({"method": "pq", "lists": 1000}, "600 rows cannot train 1,000 lists"),
    ):
        with pytest.raises(ConfigError, match=message):
            scqfaiss.train(x, None if options.get("method") in ("mecoq", "opq", "pq") else y, **options)
    assert split_bits(0, 8, 2) == (0, 1)


def test_with_as_many_codewords_as_classes_no_class_is_lost():
    """Codes of 4 bits for 16 classes: each class keeps a codeword, as in the label code, trained from 8 rows a class."""
    x, y = corners(C=16, n=128, d=24, noise=0.05)
    model = scqfaiss.train(x, y, bits=4, nbits=4, **{**FAST, "epochs": 40})
    codes = model.encode(corners(C=16, n=320, d=24, noise=0.05, seed=1)[0])[:, 0]
    most_used = [np.bincount(codes[np.arange(320) % 16 == c]).argmax() for c in range(16)]
    assert len(set(most_used)) == 16


# ---------------------------------------------------------------------------------------------------------- what lists change
@pytest.mark.parametrize("method", ["scq", "dpq"])
def test_validation_is_of_what_the_lists_leave_over(method):
    """The error that chooses the best epoch is that of codes with lists, not of whole rows by residual codewords."""
    x, y = corners()
    settings = {"hidden": 16, "members": 1} | ({"quantizer": "arsq"} if method == "scq" else {})
    options = TrainOptions(method, 8, 4, epochs=1, settings=settings, lists=16)
    trained = build(make_plan(options, ArraySource(x[:500], y[:500]), ArraySource(x[500:], y[500:])))
    trained.eval()
    for stage in trained.stages():
        stage.begin()
    found = trained.stages()[-1].validate()
    z = trained.features(torch.from_numpy(x[500:])).detach().numpy()
    w = (trained.quantizer.centroids if method == "scq" else trained.codewords).detach().numpy() / trained.scale
    kind, centroids = ("product" if method == "scq" else "additive"), trained.centroids.numpy()
    prefixes = [w] if method == "scq" else [w[:m] for m in (1, 2)]
    books = [Codebooks(kind, part.astype(np.float32), lists=centroids) for part in prefixes]
    error = sum(distortion(z, b, b.assign(z, "l2")) for b in books)
    alone = Codebooks.of_lists(centroids)
    per = len(z) if method == "scq" else distortion(z, alone, alone.assign(z, "l2"))
    np.testing.assert_allclose(found, error / per, rtol=1e-4)


def test_an_encoder_that_goes_on_learning_is_coded_less_its_lists():
    x, y = corners()
    options = TrainOptions("dpq", 8, 4, epochs=1, settings={"hidden": 16, "members": 1, "end_to_end": True}, lists=16)
    trained = build(make_plan(options, ArraySource(x, y)))
    trained.eval()
    for stage in trained.stages():
        stage.begin()
    z = trained.features(torch.from_numpy(x))
    near = (z[:, None].double() - trained.centroids.double()).square().sum(2).argmin(1)
    want = trained.quantization((z - trained.centroids[near]) * trained.scale)
    index = torch.arange(len(x))
    found = trained.joint(torch.from_numpy(x), index)
    for name, value in want.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    sum(want[name] for name in want).backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in trained.features.parameters())


def test_a_round_that_does_not_lower_the_error_counts_for_nothing(monkeypatch):
    z, codebooks = residual_codebooks("product", 2)

    def worse(z, codebooks, codes):
        return Codebooks(codebooks.kind, codebooks.centroids + 1, lists=codebooks.lists)

    monkeypatch.setattr(lists, "_updated", worse)
    assert lists.refine(z, codebooks) is codebooks
