"""Additive codebooks: every step against loops, the training as a whole, and scq with them from rows to a saved model."""

import itertools

import numpy as np
import pytest
import torch

import scqfaiss
from scqfaiss.data.writing import write_rows
from scqfaiss.errors import ConfigError, ScqWarning
from scqfaiss.methods import residual
from scqfaiss.methods.kmeans import lloyd
from scqfaiss.model import Model
from scqfaiss.options import TrainOptions
from scqfaiss.training import dry_run as plans
from scqfaiss.training.dry_run import dry_run

FAST = {"codebooks.kind": "additive", "bits": 12, "nbits": 4, "epochs": 1, "hidden": 8, "similarity": "identity"}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(n=300, d=5, seed=3):
    """Rows around a few points, so that codebooks have something to find."""
    generator = seeded(seed)
    points = 3 * torch.randn(12, d, generator=generator)
    return points[torch.randint(12, (n,), generator=generator)] + torch.randn(n, d, generator=generator)


def distortion(z, w, beam=4):
    return residual.remainder(z, w, residual.encode(z, w, beam)).square().sum().item()


def slow_remainder(z, w, codes):
    return np.array([row - sum(w[m, k] for m, k in enumerate(code)) for row, code in zip(z, codes)])


def slow_least_squares(z, codes, w, ridge):
    """The rows' choices written out, and the ridge as rows of their own."""
    M, K, d = w.shape
    B = np.zeros((len(z), M * K))
    for n, code in enumerate(codes):
        for m, k in enumerate(code):
            B[n, m * K + k] = 1
    A = np.vstack([B, np.sqrt(ridge) * np.eye(M * K)])
    b = np.vstack([z, np.sqrt(ridge) * w.reshape(M * K, d)])
    return np.linalg.lstsq(A, b, rcond=None)[0].reshape(M, K, d)


def test_the_remainder_equals_a_loop():
    z, w = rows().double(), torch.randn(3, 8, 5, generator=seeded(), dtype=torch.float64)
    codes = torch.randint(8, (300, 3), generator=seeded())
    found = residual.remainder(z, w, codes)
    np.testing.assert_allclose(found, slow_remainder(z.numpy(), w.numpy(), codes.tolist()), atol=1e-12)


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-9), (torch.float32, 2e-5)])
@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10])
@pytest.mark.parametrize("n", [1, 6, 300])
def test_least_squares_equals_slow_twin(n, ridge, dtype, rtol):
    z, w = rows(n).to(dtype), torch.randn(3, 8, 5, generator=seeded(), dtype=torch.float64).to(dtype)
    codes = torch.randint(8, (n, 3), generator=seeded(1))
    found = residual.least_squares(z, codes, w, ridge)
    want = slow_least_squares(z.double().numpy(), codes.tolist(), w.double().numpy(), ridge)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, want, rtol=rtol, atol=rtol)


def test_codewords_without_rows_stay_and_the_error_of_the_others_falls():
    z, w = rows(), torch.randn(3, 8, 5, generator=seeded())
    codes = torch.randint(5, (300, 3), generator=seeded())  # codewords 5, 6, 7 are dead
    found = residual.least_squares(z, codes, w)
    assert torch.equal(found[:, 5:], w[:, 5:])
    errors = [residual.remainder(z, v, codes).square().sum() for v in (w, found)]
    assert errors[1] < errors[0]


def test_a_revived_codeword_makes_a_row_exact():
    z, w = rows(), torch.randn(2, 8, 5, generator=seeded())
    codes = torch.randint(6, (300, 2), generator=seeded())
    left = residual.remainder(z, w, codes)
    found = residual.revive(w, codes, left, seeded())
    assert torch.equal(found[:, :6], w[:, :6])
    for m, k in itertools.product(range(2), (6, 7)):
        # Whose row it is: its own codes, but for this codebook the new codeword.
        changed = codes.clone()
        changed[:, m] = k
        away = np.linalg.norm(slow_remainder(z.numpy(), found.numpy(), changed.tolist()), axis=1)
        assert away.min() < 1e-5
    assert len(torch.unique(found.flatten(0, 1), dim=0)) == 16  # each a row of its own


def test_rows_far_off_are_revived_first():
    z = torch.zeros(200, 2)
    z[17] = 100
    w = torch.zeros(1, 2, 2)
    found = residual.revive(w, torch.zeros(200, 1, dtype=torch.int64), z, seeded())
    assert found[0].tolist() == [[0, 0], [100, 100]]


def test_every_codebook_starts_as_k_means_of_what_the_codebooks_before_leave():
    z, generator = rows(), seeded(5)
    w = residual.start(z, 3, 8, 4, seeded(5))
    left, everyone = z, torch.ones(1, 8, dtype=torch.bool)
    none = torch.zeros(300, dtype=torch.int64)
    for m in range(3):
        torch.randperm(300, generator=generator)
        codebook = lloyd(left[None], none, everyone, none[:8], (torch.arange(300), none), generator)
        assert torch.equal(w[m], codebook[0])
        left = residual.remainder(z, w[: m + 1], residual.encode(z, w[: m + 1], 4))


def test_one_codebook_is_plain_k_means():
    z, generator, none = rows(), seeded(2), torch.zeros(300, dtype=torch.int64)
    torch.randperm(300, generator=generator)
    seeds = torch.arange(300), none
    want = lloyd(z[None], none, torch.ones(1, 16, dtype=torch.bool), none[:16], seeds, generator)
    assert torch.equal(residual.train(z, 1, 16, 8, seeded(2)), want)


def test_no_round_raises_the_distortion_and_all_together_lower_it():
    z = rows(600)
    errors = [distortion(z, residual.train(z, 3, 8, 4, seeded(), rounds)) for rounds in range(8)]
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(errors))
    assert errors[-1] < 0.95 * errors[0]


def test_a_round_that_does_not_help_is_not_taken(monkeypatch):
    z = rows()
    monkeypatch.setattr(residual, "least_squares", lambda z, codes, w: w + 1)
    assert torch.equal(residual.train(z, 2, 8, 4, seeded()), residual.train(z, 2, 8, 4, seeded(), 0))


def test_codebooks_too_large_to_solve_for_stay_as_they_started(monkeypatch):
    z = rows()
    monkeypatch.setattr(residual, "MAX_CODEWORDS", 15)
    assert torch.equal(residual.train(z, 2, 8, 4, seeded()), residual.start(z, 2, 8, 4, seeded()))


def test_equal_seeds_give_equal_codebooks():
    a, b, c = (residual.train(rows(), 3, 8, 4, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert (a.shape, a.dtype) == ((3, 8, 5), torch.float32)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_fewer_rows_than_codewords_are_coded_almost_exactly(n):
    z = rows(n)
    w = residual.train(z, 3, 16, 4, seeded())
    assert torch.isfinite(w).all()
    assert distortion(z, w) < 1e-4 * z.square().sum().item()


def test_equal_rows_leave_nothing_to_do():
    z = torch.full((40, 3), 2.0)
    w = residual.train(z, 2, 4, 4, seeded())
    assert torch.isfinite(w).all()
    assert distortion(z, w) < 1e-10


@pytest.mark.slow
# ------------------------------------------------------------------------------------------------------- scq with them
@pytest.mark.parametrize("labels", ["one", "many"])
def test_scq_trains_encodes_and_saves_additive_codebooks(labels, one, multilabel, tmp_path):
    x, y = {"one": one, "many": multilabel}[labels]
    model = scqfaiss.train(x, y, **FAST)
    codebooks = model.codebooks
    assert (codebooks.kind, codebooks.metric, codebooks.centroids.shape) == (
        "additive",
        "ip",
        (3, 16, 4),
    )  # d=4 in 3 codebooks
    assert (model.config["rule"], model.config["beam"]) == ("l2", 8)
    z, codes = model.embed(x), model.encode(x)
    np.testing.assert_array_equal(codes, codebooks.assign(z, "l2", 8))
    assert np.square(z - codebooks.decode(codes)).sum() < 0.02 * np.square(z).sum()
    model.save(tmp_path / "m.safetensors")
    again = Model.load(tmp_path / "m.safetensors")
    assert again.to_bytes() == model.to_bytes() == scqfaiss.train(x, y, **FAST).to_bytes()
    np.testing.assert_array_equal(again.encode(x), codes)


def test_a_beam_of_one_is_greedy_and_leaves_no_trace_in_the_facts(one):
    model = scqfaiss.train(*one, **FAST, beam=1)
    assert "beam" not in model.config
    np.testing.assert_array_equal(model.encode(one[0]), model.codebooks.assign(model.embed(one[0]), "l2"))


def test_product_codebooks_know_no_beam(one):
    model = scqfaiss.train(*one, **FAST | {"codebooks.kind": "product"}, beam=16)
    assert ("beam" in model.config, model.codebooks.kind) == (False, "product")


@pytest.mark.filterwarnings("ignore:codebook . uses .* of 16 codewords")
def test_additive_codebooks_learn_from_other_rows_too(one):
    x, y = one
    model = scqfaiss.train(x, y, codebook_rows=x[:100] + 1, **FAST)
    assert model.codebooks.kind == "additive"
    with pytest.warns(ScqWarning, match=r"^7 rows can use at most 7 of 16 codewords$"):
        few = scqfaiss.train(x, y, codebook_rows=x[:7], **FAST)
    assert few.encode(x).shape == (400, 3)
    plain = scqfaiss.train(
        x, y, **{"codebooks.kind": "additive"}, codebook_rows=x[:200], encoder="identity", bits=12, nbits=4
    )
    assert plain.codebooks.d == 16


def test_limits_of_product_codebooks_do_not_hold(one):
    model = scqfaiss.train(*one, **FAST | {"bits": 5, "nbits": 1, "d": 8})  # 2 dimensions a codebook, 8 / 5, K < C
    assert model.codebooks.centroids.shape == (5, 2, 8)


def test_private_codewords_are_asked_for_in_vain(one):
    with pytest.warns(ScqWarning, match=r"^additive codebooks are shared by all classes: private=class is ignored$"):
        scqfaiss.train(*one, **FAST, private="class")


@pytest.mark.parametrize(
    "settings, words",
    [
        (
            {"codebooks.kind": "additve"},
            "^codebooks.kind is 'additve', needs one of product, additive; did you mean 'additive'",
        ),
        ({"beam": 0}, "^beam is 0, needs 1 to 64$"),
        ({"beam": 65}, "^beam is 65, needs 1 to 64$"),
        ({"beam": "wide"}, "^beam is 'wide', needs a whole number$"),
    ],
)
def test_bad_settings_are_refused(settings, words, one):
    with pytest.raises(ConfigError, match=words):
        scqfaiss.train(*one, **FAST | settings)


@pytest.mark.parametrize("kind, d", [("additive", 4), ("product", 6)])
def test_a_dry_run_announces_the_kind(kind, d, one, tmp_path, monkeypatch):
    with open(tmp_path / "rows.h5", "w+b") as f:
        write_rows(f, one[0], labels=one[1])
    shapes = []
    monkeypatch.setattr(plans, "describe_support", lambda name, shape: shapes.append(shape) or name)
    request = TrainOptions(bits=12, nbits=4, encoder="linear", settings={"codebooks.kind": kind})
    said = dry_run(tmp_path / "rows.h5", tmp_path / "m.safetensors", request, keys={})
    assert {(s.kind, s.M, s.nbits, s.d) for s in shapes} == {(kind, 3, 4, d)}
    assert f"z of d={d}" in said


def test_the_training_says_how_far_it_is(one):
    said = []
    scqfaiss.train(*one, **FAST, progress=lambda *a: said.append(a))
    assert {"k-means", "codebooks"} <= {what for what, *_ in said}
    assert all(done <= total for _, done, total, _ in said)
