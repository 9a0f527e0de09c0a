"""Galleries of codes with lists, as users meet them: options, facts, shorter codes, commands."""

import json

import faiss
import life
import numpy as np
import pytest
from faults.conftest import run  # noqa: F401
from life import IDS, LISTS, XQ, X, opened

import scqfaiss
from scqfaiss.codebooks import Codebooks
from scqfaiss.data.writing import write_rows
from scqfaiss.encoders.chain import Chain
from scqfaiss.errors import ConfigError
from scqfaiss.galleries.exporting import export_file, export_plan
from scqfaiss.galleries.inspection import facts
from scqfaiss.model import Model
from scqfaiss.training.outcome import describe

# ruff: noqa: F811  (fixtures are imported by name)
KEYS = {}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_file(path="rows.h5"):
    with open(path, "x+b") as f:
        write_rows(f, X, None, IDS)
    return path


@pytest.mark.parametrize("name", life.LISTED)
def test_metadata_and_facts_say_how_many_lists(name):
    life.export(name, "g.faissindex", slice(400))
    metadata = opened("g.faissindex", name).metadata
    assert (metadata["lists"], metadata["nlist"], metadata["by_residual"]) == (LISTS, LISTS, True)
    assert metadata["list_beam"] == life.model(name).config.get("list_beam", 1)
    assert metadata["bits"] == life.shape(name).M * life.shape(name).nbits and 1 <= metadata["nprobe"] <= LISTS
    life.model(name).save("m.safetensors")
    assert facts("m.safetensors", KEYS)["lists"] == LISTS
    found = facts("g.faissindex", KEYS)
    codes = opened("g.faissindex", name).unpack()[1]
    assert found["lists_used"] == len(np.unique(codes[:, 0]))
    assert found["codewords_used"] == [len(np.unique(column)) for column in codes[:, 1:].T]
    assert found["exact"] is False


def test_galleries_without_lists_say_nothing_of_them():
    life.export("product-8", "g.faissindex", slice(400))
    assert not {"lists", "list_beam"} & set(scqfaiss.open("g.faissindex").metadata)
    assert "lists_used" not in facts("g.faissindex", KEYS)


def test_options_of_an_export():
    model = life.model("product-8 listed")
    with pytest.raises(ConfigError, match="nlist is 4, and the model has 12 lists of its own; leave --nlist out"):
        scqfaiss.export(model, X, path="g.faissindex", nlist=4)
    with pytest.raises(ConfigError, match="nprobe is 13, needs at most the 12 lists"):
        scqfaiss.export(model, X, path="g.faissindex", nprobe=13)
    with pytest.raises(ConfigError, match="target pq cannot serve these codes: its rows stand in no lists"):
        scqfaiss.export(model, X, path="g.faissindex", target="pq")
    scqfaiss.export(model, X, path="g.faissindex", nprobe=5)
    gallery = scqfaiss.open("g.faissindex")
    assert gallery.metadata["nprobe"] == 5 and gallery.metadata["options"] == {"nprobe": 5}
    scqfaiss.append("g.faissindex", X[:1], ids=[10**6])
    assert scqfaiss.open("g.faissindex").metadata["nprobe"] == 5
    scqfaiss.export(life.model("additive-8 listed"), X, path="l.faissindex", nprobe=5)
    assert opened("l.faissindex", "additive-8 listed").metadata["nprobe"] == 5


def test_a_plan_is_refused_as_the_export_would_be():
    life.model("product-8 listed").save("m.safetensors")
    with pytest.raises(ConfigError, match="leave --nlist out"):
        export_plan("m.safetensors", rows_file(), "g.faissindex", target=None, keys=KEYS, nlist=4)
    text = export_plan("m.safetensors", "rows.h5", "g.faissindex", target=None, keys=KEYS)
    assert "target ivfpq: CPU yes, GPU yes" in text


def test_fewer_rows_than_lists():
    life.export("product-8 listed", "g.faissindex", slice(5))
    gallery = scqfaiss.open("g.faissindex")
    assert gallery.metadata["nlist"] == LISTS
    D, I = gallery.search(XQ, 5)
    assert (np.sort(I, 1) == IDS[:5]).all() and np.isfinite(D).all()


@pytest.mark.parametrize("name", ["product-8 listed", "additive-8 listed"])
def test_few_lists_and_all_of_them(name):
    life.export(name, "g.faissindex", slice(400))
    gallery, m = opened("g.faissindex", name), life.model(name)
    scores = m.codebooks.scores(m.embed(XQ), m.encode(X))
    best = -np.sort(-scores, 1)
    np.testing.assert_allclose(gallery.search(XQ, 20, nprobe=LISTS)[0], best[:, :20], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gallery.search(XQ, 400)[0], best, rtol=1e-4, atol=1e-4)  # none is missing
    assert (gallery.search(XQ, 400, nprobe=1)[1] < 0).any()
    life.export(name, "b.faissindex", slice(400), "buckets")
    assert opened("b.faissindex", name).exact
    np.testing.assert_allclose(opened("b.faissindex", name).search(XQ, 20)[0], best[:, :20], rtol=1e-4, atol=1e-4)
    # One file is the other but for the name of the target.
    for path in ("g.faissindex", "b.faissindex"):
        index = faiss.read_index(path)
        np.testing.assert_allclose(faiss.extract_index_ivf(index).nprobe, gallery.metadata["nprobe"])


def test_shorter_codes_down_to_the_lists_alone():
    """A gallery of the lists alone goes with the whole model."""
    rng = np.random.default_rng(0)
    centroids = rng.standard_normal((3, 16, 16)).astype(np.float32) * np.array([1, 0.5, 0.2], np.float32)[:, None, None]
    codebooks = Codebooks("additive", centroids, lists=X[:20].copy())
    config = {"method": "dpq", "rule": "l2", "encoder": "identity", "nested": True, "bits": 12, "training": {}}
    whole = Model(Chain(16), codebooks, config)
    whole.save("m.safetensors")
    codes = whole.encode(X)
    for bits in (12, 8, 4, 0):
        scqfaiss.export(whole, X[:300], path=f"{bits}.faissindex", ids=IDS[:300], bits=bits)
        assert scqfaiss.append(f"{bits}.faissindex", X[300:], ids=IDS[300:], model="m.safetensors") == 400
        gallery = scqfaiss.open(f"{bits}.faissindex", model=whole)
        stored, found, held = gallery.unpack()
        np.testing.assert_array_equal(found[held.argsort(), 0], codes[:, 0])
        wanted = whole.prefix(bits).codebooks.decode(codes[:, : 1 + bits // 4])  # merged pairs tell the sums alone
        np.testing.assert_allclose(stored.decode(found[held.argsort()]), wanted, rtol=1e-5, atol=1e-5)
        metadata = gallery.metadata
        assert (metadata["bits"], metadata["M"], metadata["lists"]) == (bits, bits // 4, 20)
        assert metadata.get("model_bits", 12) == 12
        scores = whole.prefix(bits).codebooks.scores(XQ, codes[:, : 1 + bits // 4])
        D = gallery.search(XQ, 10, nprobe=20)[0]
        np.testing.assert_allclose(D, -np.sort(-scores, 1)[:, :10], rtol=1e-4, atol=1e-4)
    assert gallery.target == "ivfpq" and metadata["kind"] == "product"


def test_the_line_about_a_model():
    for name, words in (
        ("product-8 listed", "16 bits (2 x 8) in 12 lists"),
        ("product-0 listed", "0 bits (0 x 1) in 12"),
    ):
        model = life.model(name)
        use = [9] * model.codebooks.M
        config = model.config | {"training": {"codewords_used": use}, "long_name": "x"}
        text = describe(Model(model.chain, model.codebooks, config))
        assert words in text and ("codewords used 9 to 9 of 256" in text) == bool(use)


def test_commands(run):
    life.model("product-8 listed").save("m.safetensors")
    rows_file()
    result = run("export", "m.safetensors", "rows.h5", "-o", "g.faissindex")
    assert result.code == 0, result.error
    result = run("export", "m.safetensors", "rows.h5", "-o", "zero.faissindex", "--bits", "0")
    assert result.code == 2 and "the model tries the 3 nearest lists" in result.error
    result = run("export", "m.safetensors", "rows.h5", "-o", "n.faissindex", "--nlist", "5")
    assert (result.code, result.error) == (
        2,
        "Error: nlist is 5, and the model has 12 lists of its own; leave --nlist out",
    )
    found = json.loads(run("info", "g.faissindex", "--json").out)
    assert (found["lists"], found["nlist"], found["bits"]) == (12, 12, 16)
    assert "lists: 12" in run("info", "g.faissindex").out and "nprobe: " in run("info", "g.faissindex").out
    assert run("verify", "g.faissindex").code == 0
    assert run("search", "g.faissindex", "rows.h5", "-k", "3", "--nprobe", "12").code == 0
    for nprobe, words in (("0", "nprobe is 0: needs 1 or more"), ("-2", "nprobe is -2: needs 1 or more")):
        result = run("search", "g.faissindex", "rows.h5", "-k", "3", "--nprobe", nprobe)
        assert result.code == 2 and words in result.error
    result = run("search", "g.faissindex", "rows.h5", "-k", "3", "--nprobe", "13")
    assert result.code == 0 and "nprobe=13 is more than the 12 lists" in result.warnings[0]


def test_a_file_exported_by_the_command_is_that_of_the_function():
    life.model("additive-4 listed").save("m.safetensors")
    export_file("m.safetensors", rows_file(), "a.faissindex", keys=KEYS)
    scqfaiss.export("m.safetensors", X, ids=IDS, path="b.faissindex")
    with open("a.faissindex", "rb") as a, open("b.faissindex", "rb") as b:
        assert a.read() == b.read()
