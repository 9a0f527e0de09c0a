"""Finite rows whose squares leave float32, at either end: the hits of a float64 oracle, or a row that is named."""

import warnings

import numpy as np
import pytest

import scqfaiss
from scqfaiss.codebooks import Codebooks
from scqfaiss.encoders.chain import Chain
from scqfaiss.errors import DataError, ScqWarning
from scqfaiss.model import Model
from scqfaiss.targets import REGISTRY, target

from .conftest import blobs

FACTORS = (6e19, 1e37, 1e-20, 1e-30, 3e-41)


def oracle(chain, x):
    """x (n, d) through an encoder's layers, in float64."""
    y = x.astype(np.float64)
    for op, a in chain.layers:
        if op == "linear":
            y = y @ a["A"].T.astype(np.float64) + a.get("b", np.zeros(1))
        elif op == "center":
            y = y - a["mean"]
        else:
            assert op == "normalize"
            y = y / np.where(
                (n := np.linalg.norm(y / np.abs(y).max(1, keepdims=True), axis=1, keepdims=True)) > 0, n, 1
            )
            y = y / np.where((n := np.linalg.norm(y, axis=1, keepdims=True)) > 0, n, 1)
    return y


def assert_best(scores, ids, D, I):
    """scores (nq, n) float64, of rows with `ids`: I are the best of them and D their scores."""
    place = np.searchsorted(ids, I)
    got = np.take_along_axis(scores, place, 1)
    best = -np.sort(-scores, 1)[:, : I.shape[1]]
    scale = np.abs(scores).max(1, keepdims=True)
    assert (np.abs(got - best) <= 2e-5 * scale).all()
    assert (np.abs(D - got) <= 2e-5 * scale + 1e-44).all()


@pytest.fixture(scope="module")
def trained():
    """Models of each baseline, of rows whose mean lies far from the origin; the rows."""
    x, _ = blobs(300)
    x = x + 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScqWarning)
        return {m: scqfaiss.train(x, method=m, bits=16, nbits=4) for m in ("pq", "opq", "rq")}, x


@pytest.mark.parametrize("name", list(REGISTRY))
def test_queries_of_every_size_through_an_encoder_inside_the_file(trained, tmp_path, name):
    models, x = trained
    for model in models.values():
        if target(name).supports(model.codebooks.shape) is not None:
            continue
        path = tmp_path / "g.faissindex"
        scqfaiss.export(model, x, path=path, target=name)
        gallery = scqfaiss.open(path)
        codebooks, codes, ids = gallery.unpack()
        order = np.argsort(ids)
        for factor in FACTORS:
            q = np.vstack([x[:2], factor * x[2:4] / np.abs(x[2:4]).max()]).astype(np.float32)
            scores = codebooks.scores(oracle(model.chain, q), codes[order])
            if gallery.exact:
                assert_best(scores, ids[order], *gallery.search(q, 10))
            else:
                assert gallery.search(q, 10)[1].min() >= 0
            lims, _, _ = gallery.range_search(q, 0.3)
            np.testing.assert_allclose(np.diff(lims), (scores > 0.3).sum(1), atol=1)
        found = scqfaiss.evaluate_pairs(gallery, q, ids[:4])
        assert found["search_agreement"] > 0.9


@pytest.mark.parametrize("name", list(REGISTRY))
def test_queries_of_every_size_without_an_encoder(name, tmp_path):
    rng = np.random.default_rng(0)
    for kind, dsub in (("product", 4), ("additive", 16)):
        codebooks = Codebooks(kind, rng.standard_normal((4, 16, dsub)).astype(np.float32))
        if target(name).supports(codebooks.shape) is not None:
            continue
        model = Model(Chain(16), codebooks, {"method": "x", "encoder": "identity", "rule": "l2"})
        x = rng.standard_normal((300, 16)).astype(np.float32)
        scqfaiss.export(model, x, path=tmp_path / "g.faissindex", target=name)
        gallery = scqfaiss.open(tmp_path / "g.faissindex")
        stored, codes, ids = gallery.unpack()
        order = np.argsort(ids)
        for factor in FACTORS[:-1]:  # of denormal rows few digits are left
            q = (factor * np.vstack([x[:3]])).astype(np.float32)
            scores = stored.scores(q, codes[order])
            D, I = gallery.search(q, 10)
            if gallery.exact:
                assert_best(scores, ids[order], D, I)
            half = float(np.sort(scores[0])[-20])
            for row, (a, b) in enumerate(zip(*(lambda lims: (lims[:-1], lims[1:]))(gallery.range_search(q, half)[0]))):
                assert abs((b - a) - (scores[row] > half).sum()) <= 1
        with pytest.raises(DataError, match=r"^queries: row 1: its scores are too large for float32; divide the rows"):
            gallery.search(
                np.vstack([x[:1], np.full((1, 16), 3e38, np.float32) * np.sign(gallery.reconstruct([5]))]), 3
            )


@pytest.mark.parametrize("rule", ["l2", "ip"])
@pytest.mark.parametrize("kind, beam", [("product", 1), ("additive", 1), ("additive", 4)])
def test_codes_of_rows_and_codebooks_of_every_size(kind, beam, rule):
    if beam > 1 and rule == "ip":
        return
    rng = np.random.default_rng(1)
    table = rng.standard_normal((3, 8, 2 if kind == "product" else 6)).astype(np.float32)
    z = rng.standard_normal((20, 6)).astype(np.float32)
    plain = Codebooks(kind, table).assign(z, rule, beam)
    for factor in (2.0**70, 2.0**110, 2.0**-70, 2.0**-110):  # both alike: the same codes
        codebooks = Codebooks(kind, (table * factor).astype(np.float32))
        np.testing.assert_array_equal(codebooks.assign((z * factor).astype(np.float32), rule, beam), plain)
    if beam == 1 and kind == "product":
        for factor in (1e30, 1e-30):  # rows alone: as in float64
            big = (z * factor).astype(np.float32)
            parts, wide = big.astype(np.float64).reshape(20, 3, 2), table.astype(np.float64)
            products = np.einsum("nmd,mkd->nmk", parts, wide)
            wanted = (products - (0.5 * np.square(wide).sum(2) if rule == "l2" else 0)).argmax(2)
            np.testing.assert_array_equal(Codebooks(kind, table).assign(big, rule), wanted)


@pytest.mark.parametrize("factor", [1e30, 1e-30])
@pytest.mark.parametrize("method", ["pq", "opq", "rq"])
@pytest.mark.parametrize("raw", ["true", "false"])
@pytest.mark.filterwarnings("ignore::scqfaiss.ScqWarning")
def test_training_rows_of_every_size(method, factor, raw):
    x, _ = blobs(300)
    power = np.float32(2.0 ** np.round(np.log2(factor)))
    one, other = (scqfaiss.train(a, method=method, bits=8, nbits=4, raw=raw == "true") for a in (x, x * power))
    np.testing.assert_array_equal(one.encode(x), other.encode(x * power))
    assert len(np.unique(one.encode(x))) > 8


def test_one_row_beyond_an_encoder_is_named():
    A = np.full((4, 4), 10, np.float32)
    model = Model(
        Chain(4, [("linear", {"A": A}), ("tanh", {})]),
        Codebooks("product", np.ones((2, 4, 2), np.float32)),
        {"method": "x", "encoder": "linear", "rule": "l2"},
    )
    x = np.ones((5, 4), np.float32)
    x[3] = 1e38
    with pytest.raises(DataError, match=r"^rows: row 3 is too large for the encoder \(layer 0, linear\)$"):
        model.embed(x)


@pytest.mark.filterwarnings("ignore::scqfaiss.ScqWarning")
def test_training_rows_of_every_size_through_an_encoder():
    x, y = blobs(200)
    options = {"bits": 8, "nbits": 4, "encoder": "linear", "epochs": 1, "codebooks.copies": 1}
    plain, large = (scqfaiss.train(a, y, **options) for a in (x, x * np.float32(2.0**100)))
    np.testing.assert_array_equal(plain.encode(x), large.encode(x * np.float32(2.0**100)))
    with pytest.raises(DataError, match=r"^the training rows vary by [\d.e-]+, too little for float32: multiply these"):
        scqfaiss.train(x * np.float32(2.0**-100), y, **options)
