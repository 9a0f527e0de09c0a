"""Galleries whose codes have a content part, as users meet them: `known` in searches and evaluations, facts, commands."""

import json
import pickle

import faiss
import h5py
import life
import numpy as np
import pytest
from contents import with_content
from faults.conftest import run  # noqa: F401
from life import IDS, LISTS, XQ, X, Y, opened

import scqfaiss
from scqfaiss import Model, footer
from scqfaiss.codebooks import Codebooks
from scqfaiss.data.writing import write_rows
from scqfaiss.encoders.chain import Chain
from scqfaiss.errors import ConfigError, IndexFileError
from scqfaiss.evaluation.galleries import evaluate, evaluate_pairs
from scqfaiss.galleries.alike import alike
from scqfaiss.galleries.inspection import facts
from scqfaiss.galleries.onnx_export import export_encoder

# ruff: noqa: F811  (fixtures are imported by name)
NAME = "product-8 content"
EVERY = {name: {"nprobe": LISTS} if "listed" in name else {} for name in life.CONTENT}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_file(path, x=X, y=Y, ids=IDS):
    with open(path, "x+b") as f:
        write_rows(f, x, y, ids)
    return path


def asked():
    """What `known` may be."""
    return None, "auto", 0, 1, 0.25, np.float32(0.5), np.linspace(0, 1, len(XQ)), [0.5] * len(XQ)


@pytest.mark.parametrize("name", life.CONTENT)
def test_a_search_is_that_of_plain_faiss_with_the_model_s_vectors(name):
    life.export(name, "g.faissindex", slice(400), **EVERY[name])
    model, gallery = life.model(name), opened("g.faissindex", name)
    plain, codes = faiss.read_index("g.faissindex"), model.encode(X)
    different = []
    for known in asked():
        z = model.embed(XQ, known=known)
        D, I = gallery.search(XQ, 10, known=known, **EVERY[name])
        want, _ = plain.search(z, 10)
        scores, scale = model.codebooks.scores(z, codes), np.abs(want).max()
        np.testing.assert_allclose(D, want, atol=1e-5 * scale)
        np.testing.assert_allclose(D, -np.sort(-scores, 1)[:, :10], atol=1e-5 * scale)
        # Encoded queries are weighted already.
        for a, b in zip(gallery.search(z, 10, encoded=True, **EVERY[name]), (D, I)):
            np.testing.assert_array_equal(a, b)
        different.append(D)
    assert np.abs(different[2] - different[3]).max() > 0.01
    np.testing.assert_array_equal(gallery.known(XQ), model.known(XQ))


@pytest.mark.parametrize("name", life.CONTENT)
def test_a_range_search_knows_the_same(name):
    life.export(name, "g.faissindex", slice(400))
    model, gallery = life.model(name), opened("g.faissindex", name)
    for known in (0.25, np.linspace(0, 1, len(XQ))):
        scores = model.codebooks.scores(model.embed(XQ, known=known), model.encode(X))
        values = np.sort(scores, axis=None)
        middle = len(values) // 2 + np.diff(values[len(values) // 2 : len(values) // 2 + 200]).argmax()
        threshold = float(values[middle : middle + 2].mean())
        lims, _, I = gallery.range_search(XQ, threshold, known=known)
        for q in range(len(XQ)):
            np.testing.assert_array_equal(np.sort(I[lims[q] : lims[q + 1]]), IDS[scores[q] > threshold])


def test_evaluations_rank_by_what_is_known():
    life.export(NAME, "g.faissindex", slice(400))
    gallery, model = opened("g.faissindex", NAME), life.model(NAME)
    codes = model.encode(X)
    maps = []
    for known in (0, 1, None):
        found = evaluate(gallery, XQ, Y[: len(XQ)], IDS, Y, known=known)
        pairs = evaluate_pairs(gallery, X[:50], IDS[:50], known=known)
        scores = model.codebooks.scores(model.embed(X[:50], known=known), codes)
        own = scores[np.arange(50), np.arange(50)][:, None]
        best = (scores > own + 1e-4 * np.abs(scores).max()).sum(1) == 0
        assert pairs["recall_at_k"]["1"] <= best.mean() + 1e-9
        maps.append(found["map"])
    assert len(set(maps)) == 3
    with pytest.raises(ConfigError, match=r"^known is 2, needs"):
        evaluate(gallery, XQ, Y[: len(XQ)], IDS, Y, known=2)


def test_facts_say_what_the_codes_hold(run):
    life.export("product-8 listed content", "g.faissindex", slice(400))
    model = life.model("product-8 listed content")
    model.save("m.safetensors")
    metadata = scqfaiss.open("g.faissindex").metadata
    assert (metadata["content_bits"], metadata["bits"], metadata["encoder"]) == (24, 40, "model")
    assert facts("g.faissindex", {})["content_bits"] == 24
    assert "\n  content bits: 24\n" in run("info", "g.faissindex").out
    out = run("info", "m.safetensors").out
    for line in ("content bits: 24", "content weights: known 0.05, unknown 2.0"):
        assert f"\n  {line}\n" in out
    assert "\n  gate: auc 0.9, gain 0.1, loss 0.01, on True\n" in out
    assert json.loads(run("info", "m.safetensors", "--json").out)["gate"]["gain"] == 0.1
    life.export("product-8", "p.faissindex", slice(400))
    assert "content_bits" not in scqfaiss.open("p.faissindex").metadata


@pytest.mark.parametrize("chain", [Chain(16), Chain(16, [("normalize", {})])])
def test_the_encoder_never_stands_in_the_file(chain):
    """Where without content codes no encoder is needed, or it is folded in."""
    rng = np.random.default_rng(0)
    codebooks = Codebooks("product", rng.standard_normal((4, 16, 4)).astype(np.float32))
    base = Model(chain, codebooks, {"method": "pq", "rule": "l2", "encoder": "identity"})
    model = with_content(base, X, Y)
    scqfaiss.export(base, X, path="b.faissindex")
    scqfaiss.export(model, X, path="g.faissindex")
    assert scqfaiss.open("b.faissindex").metadata["encoder"] in ("none", "folded")
    gallery = scqfaiss.open("g.faissindex", model=model)
    assert gallery.metadata["encoder"] == "model" and gallery.index.d == model.codebooks.d
    with pytest.raises(ConfigError, match=r"^g\.faissindex needs the model its codes came from; give --model$"):
        scqfaiss.open("g.faissindex").search(XQ, known=1)
    again = pickle.loads(pickle.dumps(gallery))
    for a, b in zip(again.search(XQ, known=0.2), gallery.search(XQ, known=0.2)):
        np.testing.assert_array_equal(a, b)


def test_known_is_refused_where_it_means_nothing():
    for name, words in (
        ("product-8", "^known is given, and the codes of"),
        ("additive-8", "^known is given, and the model has"),
    ):
        life.export(name, f"{name}.faissindex", slice(400))
        gallery = opened(f"{name}.faissindex", name)
        for known in (1, "auto"):
            with pytest.raises(ConfigError, match=f"{words} .*no content .*--content-bits$"):
                gallery.search(XQ, known=known)
            with pytest.raises(ConfigError, match=f"{words} .*no content .*--content-bits$"):
                gallery.range_search(XQ, 0.0, known=known)
        with pytest.raises(ConfigError, match=r"cannot tell queries of known classes from others: .*--content-bits$"):
            gallery.known(XQ)
    life.export(NAME, "g.faissindex", slice(400))
    gallery, z = opened("g.faissindex", NAME), life.model(NAME).embed(XQ)
    for search in (
        lambda: gallery.search(z, encoded=True, known=1),
        lambda: gallery.range_search(z, 0.0, encoded=True, known=1),
    ):
        with pytest.raises(
            ConfigError, match=r"^queries: known weighs queries as they are encoded, and these are encoded"
        ):
            search()
    without = with_content(life.model("product-8"), X)
    scqfaiss.export(without, X, path="w.faissindex")
    with pytest.raises(
        ConfigError, match=r"^w\.faissindex cannot tell queries of known classes from others: .* with a gate"
    ):
        scqfaiss.open("w.faissindex", model=without).known(XQ)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"content_bits": 0}, "content_bits=0, needs a whole number from 1$"),
        ({"content_bits": "24"}, "content_bits=24, needs a whole number from 1$"),
        ({"content_bits": 20}, "content_bits=20, and M=5 of nbits=8: no model divides its codes like this$"),
        ({"content_bits": 40}, "content_bits=40, and M=5 of nbits=8: no model divides its codes like this$"),
        ({"encoder": "none", "d_in": 40}, "encoder=none, metric=ip, content codes need model, ip$"),
    ],
)
def test_forged_metadata_is_refused(change, words):
    life.export(NAME, "g.faissindex", slice(400))
    gallery = opened("g.faissindex", NAME)
    metadata = {k: v for k, v in gallery.metadata.items() if k != "format"} | change
    stream = faiss.serialize_index(gallery.index).tobytes()
    with open("w.faissindex", "x+b") as f:
        footer.write_sealed(f, lambda put: put(stream), metadata)
    with pytest.raises(IndexFileError, match=rf"^w\.faissindex: the metadata says {words}"):
        scqfaiss.open("w.faissindex")


def test_what_needs_one_vector_of_a_row_says_why_not(run):
    life.model("additive-4 content").save("m.safetensors")
    with pytest.raises(
        ConfigError, match=r"^m\.safetensors has content codes, whose queries are weighted when they are asked"
    ):
        export_encoder("m.safetensors", "m.onnx")
    rows_file("rows.h5")
    result = run("export", "m.safetensors", "rows.h5", "-o", "g.faissindex", "--bits", "8")
    assert result.code == 2 and "the last 12 bits are content codes, which every prefix would leave out" in result.error
    assert run("export", "m.safetensors", "rows.h5", "-o", "g.faissindex", "--bits", "28").code == 0


def read(path):
    with h5py.File(path, "r") as f:
        return {name: node[()] for name, node in f.items()}


def test_commands(run):
    model = life.model(NAME)
    model.save("m.safetensors")
    rows_file("rows.h5"), rows_file("q.h5", XQ, Y[: len(XQ)], np.arange(len(XQ)))
    result = run("export", "m.safetensors", "rows.h5", "-o", "g.faissindex")
    assert result.code == 0 and "40 bits each" in result.out and "queries need the model" in result.out
    search = ("search", "g.faissindex", "q.h5", "--model", "m.safetensors", "-o", "h.h5")
    gallery = opened("g.faissindex", NAME)
    for given, known in (((), None), (("--known", "auto"), "auto"), (("--known", "0.25"), 0.25)):
        assert run(*search, *given).code == 0
        found, (D, I) = read("h.h5"), gallery.search(XQ, 10, known=known)
        assert sorted(found) == ["ids", "known", "query_ids", "scores"]
        np.testing.assert_array_equal(found["scores"], D)
        np.testing.assert_array_equal(found["ids"], I)
        assert found["known"].dtype == np.float32
        np.testing.assert_array_equal(found["known"], model.known(XQ))
    assert run(*search, "--threshold", "0", "--known", "1").code == 0
    found = read("h.h5")
    np.testing.assert_array_equal(found["lims"], gallery.range_search(XQ, 0.0, known=1)[0])
    np.testing.assert_array_equal(found["known"], model.known(XQ))
    measure = ("evaluate", "g.faissindex", "q.h5", "rows.h5", "--model", "m.safetensors", "--json")
    for known in (0.0, 1.0):
        found = json.loads(run(*measure, "--known", str(known)).out)
        assert found["map"] == evaluate(gallery, XQ, Y[: len(XQ)], IDS, Y, known=known)["map"]
    for given, words in (
        ("x", "known is 'x', needs 'auto' or a number from 0 to 1"),
        ("1.5", "known is 1.5, needs 'auto'"),
    ):
        for command in (search, measure):
            result = run(*command, "--known", given)
            assert result.code == 2 and words in result.error
    life.export("product-8", "p.faissindex", slice(400))
    result = run("search", "p.faissindex", "q.h5", "--known", "1")
    assert result.code == 2 and "p.faissindex have no content part" in result.error
    assert run("search", "p.faissindex", "q.h5", "-o", "p.h5").code == 0 and "known" not in read("p.h5")


@pytest.mark.parametrize("name", [NAME, "product-8"])
def test_rows_of_a_gallery_are_weighted_as_queries_are(name):
    life.export(name, "g.faissindex", slice(400))
    model, gallery = life.model(name), opened("g.faissindex", name)
    ids = IDS[[7, 3, 7]]
    stored = gallery.reconstruct(ids)
    if name != NAME:
        np.testing.assert_array_equal(alike(gallery, ids), stored)
        with pytest.raises(ConfigError, match=r"known is given, and the codes of .* have no content part"):
            alike(gallery, ids, 0.5)
        return
    z, v = model.joint.split(stored)
    of_known, of_unknown = (np.float64(w) for w in model.content.weights)
    for known in (0.0, 0.25, 1.0, np.array([0.0, 0.5, 1.0])):
        w = np.broadcast_to(of_known**known * of_unknown ** (1 - known), 3)
        want = np.concatenate([model.joint.join(z[i : i + 1], float(w[i]) * v[i : i + 1]) for i in range(3)])
        np.testing.assert_allclose(alike(gallery, ids, known), want, rtol=1e-5, atol=1e-6)
    w = model.content.weight(model.content.known(z, v, "auto"))
    np.testing.assert_array_equal(alike(gallery, ids), model.joint.join(z, v, w))
