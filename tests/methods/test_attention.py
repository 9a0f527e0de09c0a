"""Partial attention: its loss against a slow twin, gradients, both ends of `top`, trainings of scq and dpq, refusals."""

import numpy as np
import pytest
import torch

import scqfaiss
from scqfaiss.contract import configure
from scqfaiss.errors import ConfigError
from scqfaiss.methods import attention, dpq, progressive, scq
from scqfaiss.methods.arsq import decode, nearest
from scqfaiss.modality import ROWS

PRECISIONS = pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 2e-5)])


def case(dtype=torch.float64, n=6, M=2, K=8, e=3, seed=0):
    """Codewords (M, K, e) and rows (n, M e)."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in ((M, K, e), (n, M * e)))


def slow_rebuilds(z, w, top, beta, v):
    """Soft and hard rebuilds of one row z (d,), by sorting the codewords of every codebook."""
    soft, hard, dsub = [], [], w.shape[2]
    for m, codebook in enumerate(w):
        part = z[m * dsub : (m + 1) * dsub]
        dist = np.array([((part - word) ** 2).sum() for word in codebook])
        near = sorted(range(len(codebook)), key=lambda k: dist[k])[:top]
        e = np.exp(-beta * (dist[near] - dist.min()) / v[m])
        soft.append((e / e.sum()) @ codebook[near])
        hard.append(codebook[near[0]])
    return np.concatenate(soft), np.concatenate(hard)


def slow_spread(z, M):
    return np.array([np.mean([(part**2).sum() for part in np.split(z, M, 1)[m]]) for m in range(M)])


def slow_loss(z, w, top, beta, omega, v=None):
    v = slow_spread(z, len(w)) if v is None else v
    terms = {"soft": 0.0, "hard": 0.0}
    for row in z:
        soft, hard = slow_rebuilds(row, w, top, beta, v)
        terms["soft"] += omega * ((row - soft) ** 2).sum() / w.shape[2] / len(z)
        terms["hard"] += ((row - hard) ** 2).sum() / w.shape[2] / len(z)
    return terms


@PRECISIONS
@pytest.mark.parametrize("top", [1, 3, 8])
@pytest.mark.parametrize("beta", [0.0, 10.0])
def test_the_loss_equals_its_slow_twin(dtype, rtol, top, beta):
    w, z = case(dtype)
    got = attention.PartialAttention(w, top, beta, 0.3).loss(z, torch.zeros(6, dtype=torch.int64))
    want = slow_loss(z.double().numpy(), w.double().numpy(), top, beta, 0.3)
    assert list(got) == list(want)
    for name, value in want.items():
        np.testing.assert_allclose(got[name].item(), value, rtol=rtol, err_msg=name)


@pytest.mark.parametrize("top", [3, 8])
def test_gradients_equal_finite_differences(top):
    w, z = case(n=4)
    quantizer = attention.PartialAttention(w, top, 4.0, 0.7)
    sum(quantizer.loss(z, torch.zeros(4, dtype=torch.int64)).values()).backward()
    start, z = w.numpy(), z.numpy()
    for place in np.ndindex(start.shape):
        values = []
        for sign in (1, -1):
            moved = start.copy()
            moved[place] += sign * 1e-6
            values.append(sum(slow_loss(z, moved, top, 4.0, 0.7).values()))
        want = (values[0] - values[1]) / 2e-6
        np.testing.assert_allclose(quantizer.centroids.grad[place], want, rtol=1e-4, atol=1e-7)


def test_attention_to_all_is_the_plain_softmax_and_to_one_the_hard_choice():
    w, z = case(n=20)
    v = attention.spread(z, 2)
    soft, codes = attention.attention(z, w, v, 8, 10.0)
    x = z.unflatten(1, (2, 3))
    a = (-10 * (x[:, :, None] - w).square().sum(3) / v[:, None]).softmax(2)  # b m k
    np.testing.assert_allclose(soft, torch.einsum("bmk,mke->bme", a, w).flatten(1), rtol=1e-10)
    one, same = attention.attention(z, w, v, 1, 10.0)
    np.testing.assert_array_equal(one, decode(w, codes))
    np.testing.assert_array_equal(same, nearest(z, w))


def test_codewords_that_are_not_attended_to_have_no_gradient():
    w, z = case(n=1)
    w.requires_grad_()
    soft, _ = attention.attention(z, w, attention.spread(z, 2), 3, 10.0)
    soft.square().sum().backward()
    near = (z.unflatten(1, (2, 3))[0][:, None] - w.detach()).square().sum(2).topk(3, largest=False).indices
    inside = torch.zeros(2, 8, dtype=torch.bool).scatter_(1, near, True)
    assert (w.grad[~inside] == 0).all() and (w.grad[inside] != 0).any(1).all()


def test_equal_codewords_and_rows_of_zeros_stay_finite():
    z = torch.zeros(4, 4)
    quantizer = attention.PartialAttention(torch.zeros(2, 8, 2), 3, 10.0, 1.0)
    terms = quantizer.loss(z, torch.zeros(4, dtype=torch.int64))
    sum(terms.values()).backward()
    assert all(t.item() == 0 for t in terms.values()) and torch.isfinite(quantizer.centroids.grad).all()


# -------------------------------------------------------------------------------------------------------------- methods
FAST = {"encoder": "linear", "features.epochs": 2, "codebooks.epochs": 2, "codebooks.copies": 1, "seed": 0}


@pytest.mark.parametrize("settings", [{}, {"lists": 4}, {"nbits": 8, "bits": 8}])
def test_scq_learns_codebooks_by_partial_attention(one, settings):
    options = {"bits": 8, "nbits": 4, **FAST, **settings}
    plain = scqfaiss.train(*one, **options)
    model = scqfaiss.train(*one, **options, quantizer="attention", top=4)
    for a, b in zip(plain.chain.layers, model.chain.layers):  # the features are those of any other quantizer
        assert a[0] == b[0] and all(np.array_equal(a[1][key], b[1][key]) for key in a[1])
    assert model.config["training"]["private"] == "public" and model.config["settings"]["top"] == 4
    assert set(model.config["training"]["loss"]["codebooks"]) == {"soft", "hard"}
    z = model.embed(one[0])
    error = [((z - m.codebooks.decode(m.codebooks.assign(z, "l2"))) ** 2).sum() for m in (plain, model)]
    assert error[1] < 0.5 * (z**2).sum() and not np.array_equal(plain.codebooks.centroids, model.codebooks.centroids)
    again = scqfaiss.train(*one, **options, quantizer="attention", top=4)
    assert again.to_bytes() == model.to_bytes()


def test_scq_of_many_labels_learns_by_partial_attention(multilabel):
    model = scqfaiss.train(*multilabel, bits=8, nbits=4, quantizer="attention", **FAST)
    assert np.isfinite(model.codebooks.centroids).all()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"top": 17}, r"^top is 17, needs 1 to K=16 codewords \(--nbits 4\)$"),
        ({"top": 0}, "^top is 0, needs 1 to 65536$"),
        (
            {"private": "class"},
            "^quantizer=attention shares the codewords among all classes; private=class needs quantizer=",
        ),
        (
            {"codebooks.kind": "additive"},
            "^quantizer=attention learns product codebooks, not codebooks.kind=additive; dpq",
        ),
    ],
)
def test_what_partial_attention_contradicts_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        config = configure(scq.Settings, {"quantizer": "attention", **settings})
        scq.SCQ.check(config, 16, 4, 2, 4, "linear", ROWS)


def test_top_is_checked_only_where_it_is_used():
    scq.SCQ.check(configure(scq.Settings, {"top": 17}), 16, 4, 2, 4, "linear", ROWS)


# ------------------------------------------------------------------------------------------------------------------ dpq
@PRECISIONS
@pytest.mark.parametrize("choice", ["l2", "cosine"])
def test_additive_codebooks_attend_in_part(dtype, rtol, choice):
    generator = torch.Generator().manual_seed(3)
    z, w = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in ((5, 4), (2, 6, 4)))
    T, H, codes = progressive.levels(z, w, 3.0, choice, top=2)
    x, books = z.double().numpy(), w.double().numpy()
    left, soft = x.copy(), np.zeros_like(x)
    for m, codebook in enumerate(books):
        v = np.mean((left**2).sum(1))
        for i, row in enumerate(left):
            if choice == "l2":
                logits = -3 * ((row - codebook) ** 2).sum(1) / v
            else:
                logits = 3 * (codebook @ row) / np.linalg.norm(codebook, axis=1) / np.linalg.norm(row)
            near = np.argsort(-logits)[:2]
            a = np.exp(logits[near] - logits.max())
            soft[i] += (a / a.sum()) @ codebook[near]
        np.testing.assert_allclose(T[m], soft, rtol=100 * rtol, atol=100 * rtol)
        left = x - H[m].double().numpy()
    for same, other in zip(progressive.levels(z, w, 3.0, choice, top=6), progressive.levels(z, w, 3.0, choice)):
        np.testing.assert_allclose(same, other, rtol=rtol)
    hard = progressive.levels(z, w, 3.0, choice, top=1)
    np.testing.assert_allclose(hard[0], H, rtol=rtol, atol=rtol)
    np.testing.assert_array_equal(hard[2], codes)


def test_dpq_trains_so_and_refuses_more_than_there_are(one):
    model = scqfaiss.train(*one, method="dpq", bits=8, nbits=4, top=3, gamma=20.0, **FAST)
    plain = scqfaiss.train(*one, method="dpq", bits=8, nbits=4, gamma=20.0, **FAST)
    assert not np.array_equal(model.codebooks.centroids, plain.codebooks.centroids)
    with pytest.raises(ConfigError, match=r"^top is 17, needs 0 to K=16 codewords \(--nbits 4\)$"):
        dpq.DPQ.check(configure(dpq.Settings, {"top": 17}), 16, 4, 2, 4, "linear", ROWS)
