"""Rows from outside are looked at once, where they come in; a gallery is unpacked once."""

import numpy as np
import pytest

import scqfaiss
from scqfaiss import Model, arrays
from scqfaiss.codebooks import Codebooks
from scqfaiss.data import source
from scqfaiss.data.writing import write_rows
from scqfaiss.encoders.chain import Chain
from scqfaiss.errors import DataError
from scqfaiss.evaluation.files import evaluate_file
from scqfaiss.galleries.editing import append_file
from scqfaiss.galleries.exporting import export_file
from scqfaiss.galleries.searching import search_file
from scqfaiss.targets.ivfpq import IVFPQ

N, NQ, D, BLOCK = 120, 50, 20, 16  # rows, queries, width of both; rows of a block of a file
RNG = np.random.default_rng(0)
X, XQ = RNG.standard_normal((N, D)).astype(np.float32), RNG.standard_normal((NQ, D)).astype(np.float32)
A = RNG.standard_normal((8, D)).astype(np.float32)
CHAINS = {
    "none": Chain(D),
    "folded": Chain(D, [("center", {"mean": X.mean(0)}), ("linear", {"A": A}), ("normalize", {})]),
    "model": Chain(D, [("linear", {"A": A}), ("tanh", {})]),
}
OF_FILE = [BLOCK] * (NQ // BLOCK) + [NQ % BLOCK]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*without DATABASE only ids", "ignore:.*queries are also in the database"
)


def make_model(name):
    width = CHAINS[name].d_out // 4
    codebooks = Codebooks("product", RNG.standard_normal((4, 16, width)).astype(np.float32), "ip")
    return Model(CHAINS[name], codebooks, {"method": "pq", "rule": "l2", "encoder": "chain"})


@pytest.fixture(params=CHAINS)
def gallery(request, tmp_path, monkeypatch):
    """A gallery of X and the files that go with it, in the current folder."""
    monkeypatch.chdir(tmp_path)
    model = make_model(request.param)
    model.save("m.safetensors")
    scqfaiss.export(model, X, path="g.faissindex")
    for name, x in (("x.h5", X), ("q.h5", XQ)):
        with open(name, "x+b") as f:
            write_rows(f, x, np.arange(len(x)) % 3, np.arange(len(x)))
    return scqfaiss.open("g.faissindex", model=model)


@pytest.fixture
def scans(monkeypatch):
    """The number of rows of every look for NaN and infinity at rows of width D."""
    seen, bad_rows, isfinite = [], arrays.bad_rows, np.isfinite
    inside = []

    def counted_bad_rows(x):
        if x.shape[1] == D:
            seen.append(len(x))
        inside.append(1)
        try:
            return bad_rows(x)
        finally:
            inside.pop()

    def counted_isfinite(x, *args, **kwargs):
        if not inside and np.ndim(x) == 2 and np.shape(x)[1] == D and x.shape != A.shape:
            seen.append(len(x))
        return isfinite(x, *args, **kwargs)

    for module in (arrays, source):
        monkeypatch.setattr(module, "bad_rows", counted_bad_rows)
    monkeypatch.setattr(np, "isfinite", counted_isfinite)
    monkeypatch.setattr(source, "BLOCK_BYTES", 4 * D * BLOCK)
    return seen


def test_a_search_with_an_array(gallery, scans):
    gallery.search(XQ, 3)
    gallery.range_search(XQ, 0.5)
    assert scans == [NQ, NQ]
    scans.clear()
    z = gallery.embed(XQ)
    assert scans == [NQ]
    scans.clear()
    gallery.search(z, 3, encoded=True)
    assert scans == [NQ] * (z.shape[1] == D)


def test_a_search_with_a_file(gallery, scans):
    for more in ({"k": 3}, {"threshold": 0.5}):
        search_file("g.faissindex", "q.h5", model="m.safetensors", keys={}, **more)
        assert scans == OF_FILE
        scans.clear()


def test_an_evaluation(gallery, scans):
    evaluate_file("g.faissindex", "q.h5", "x.h5", model="m.safetensors", keys={})
    evaluate_file("g.faissindex", "q.h5", model="m.safetensors", keys={})
    assert scans == [NQ, NQ]  # the queries are read as one
    scans.clear()
    scqfaiss.evaluate(gallery, XQ, np.arange(NQ) % 3, np.arange(N), np.arange(N) % 3)
    scqfaiss.evaluate_pairs(gallery, XQ, np.arange(NQ))
    assert scans == [NQ, NQ]


def test_rows_that_are_encoded(gallery, scans):
    scqfaiss.append("g.faissindex", XQ, model="m.safetensors")
    scqfaiss.export("m.safetensors", XQ, path="e.faissindex")
    assert scans == [NQ, NQ]
    scans.clear()
    export_file("m.safetensors", "q.h5", "f.faissindex", keys={})
    with open("more.h5", "x+b") as f:
        write_rows(f, XQ, ids=np.arange(NQ) + 1000)
    assert scans == OF_FILE
    append_file("g.faissindex", "more.h5", model="m.safetensors", keys={})
    assert scans == 2 * OF_FILE


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_rows_are_refused_at_every_entrance(gallery, value):
    x, y, ids = XQ.copy(), np.arange(NQ) % 3, np.arange(NQ)
    x[33, 4] = value
    with open("bad.h5", "x+b") as f:
        write_rows(f, x, y, ids + 1000)
    files = {"model": "m.safetensors", "keys": {}}
    for call in (
        lambda: gallery.search(x, 3),
        lambda: gallery.range_search(x, 0.5),
        lambda: gallery.embed(x),
        lambda: scqfaiss.evaluate(gallery, x, y, np.arange(N), np.arange(N) % 3),
        lambda: scqfaiss.evaluate_pairs(gallery, x, ids),
        lambda: scqfaiss.append("g.faissindex", x, model="m.safetensors"),
        lambda: scqfaiss.export("m.safetensors", x, path="e.faissindex"),
        lambda: search_file("g.faissindex", "bad.h5", k=3, **files),
        lambda: search_file("g.faissindex", "bad.h5", threshold=0.5, **files),
        lambda: evaluate_file("g.faissindex", "bad.h5", "x.h5", **files),
        lambda: append_file("g.faissindex", "bad.h5", **files),
        lambda: export_file("m.safetensors", "bad.h5", "e.faissindex", keys={}),
    ):
        with pytest.raises(DataError, match=r"row 33, column 4 is (NaN|infinite) \(1 of 50 rows is not finite\)"):
            call()
    width = gallery.index.d
    z = np.full((2, width), value, np.float32)
    with pytest.raises(DataError, match=r"^queries: row 0, column 0 is (NaN|infinite)"):
        gallery.search(z, 3, encoded=True)


def test_an_evaluation_unpacks_the_gallery_once(gallery, monkeypatch):
    unpacked, unpack = [], IVFPQ.unpack
    monkeypatch.setattr(IVFPQ, "unpack", lambda *arguments: unpacked.append(1) or unpack(*arguments))
    for database in (None, "x.h5"):
        evaluate_file("g.faissindex", "q.h5", database, model="m.safetensors", keys={})
        assert unpacked == [1]
        unpacked.clear()


@pytest.mark.parametrize("target", ["ivfpq", "pq", "fastscan", "buckets"])
@pytest.mark.parametrize("ids", [np.arange(N), np.arange(N)[::-1] * 5 + 3])
def test_ids_are_those_of_the_rows(target, ids, tmp_path):
    path = tmp_path / "g.faissindex"
    scqfaiss.export(make_model("none"), X, ids=ids, path=path, target=target)
    for mmap in (False, True):
        gallery = scqfaiss.open(path, mmap=mmap)
        np.testing.assert_array_equal(np.sort(gallery.ids()), np.sort(ids))
        np.testing.assert_array_equal(np.sort(gallery.ids()), np.sort(gallery.unpack()[2]))
