"""Galleries of shorter codes from one model: the first codebooks and the first code columns, whatever is done with them."""

import json

import numpy as np
import pytest
from close import assert_close, assert_encodes_as, roundings
from faults.conftest import run  # noqa: F401

import scqfaiss
from scqfaiss.codebooks import Codebooks, Shape
from scqfaiss.data.writing import write_rows
from scqfaiss.encoders.chain import Chain
from scqfaiss.errors import CheckpointError, ConfigError
from scqfaiss.model import Model
from scqfaiss.targets import REGISTRY as TARGETS
from scqfaiss.targets import target as find_target

# ruff: noqa: F811  (fixtures are imported by name)
N, C = 90, 3


def made(nbits=4, M=4, encoder="mlp", kind="additive", d=6, **config):
    """A model as a method with nested codes leaves it. encoder 'mlp' cannot be folded, 'linear' can, 'identity' is none."""
    rng = np.random.default_rng(0)
    layers = {"identity": [], "linear": ["linear"], "mlp": ["linear", "tanh"]}[encoder]
    A = rng.standard_normal((d, d)).astype(np.float32)
    chain = Chain(d, [(op, {"A": A} if op == "linear" else {}) for op in layers])
    dsub = d if kind == "additive" else d // M
    shrink = 0.5 ** np.arange(M)[:, None, None]
    codebooks = Codebooks(kind, (rng.standard_normal((M, 1 << nbits, dsub)) * shrink).astype(np.float32))
    facts = {"method": "dpq", "rule": "l2", "encoder": encoder, "bits": codebooks.bits, "nested": True, "training": {}}
    return Model(chain, codebooks, facts | config)


def rows(n=N, seed=1):
    return np.random.default_rng(seed).standard_normal((n, 6)).astype(np.float32)


def fitting(nbits, M, d=6):
    """Targets that take additive codes of this shape."""
    return [name for name in TARGETS if find_target(name).supports(Shape("additive", M, nbits, d)) is None]


CASES = [(nbits, M, name) for nbits in (4, 8) for M in (1, 2, 3) for name in fitting(nbits, M)]


def test_every_target_of_additive_codes_is_here():
    assert {name for _, _, name in CASES} == {"residual", "lift", "buckets", "fastscan"}


@pytest.mark.parametrize("nbits, M, target", CASES)
def test_a_prefix_is_the_first_columns_and_scores_as_the_first_codebooks(nbits, M, target, tmp_path):
    whole, x, xq = made(nbits), rows(), rows(5, 2)
    codes = whole.encode(x)[:, :M]
    cut = whole.prefix(M * nbits)
    np.testing.assert_array_equal(cut.encode(x), codes)
    np.testing.assert_array_equal(cut.codebooks.centroids, whole.codebooks.centroids[:M])
    path = tmp_path / "g.faissindex"
    scqfaiss.export(whole, x, path=path, target=target, bits=M * nbits)
    codebooks, found, ids = scqfaiss.open(path, model=whole).unpack()
    assert codebooks.shape == cut.codebooks.shape
    np.testing.assert_array_equal(np.sort(ids), np.arange(N))
    held = found[np.argsort(ids)]
    assert_encodes_as(whole.prefix(M * nbits), x, held)  # in blocks of its own: a tie may fall to either side
    scores = Codebooks("additive", whole.codebooks.centroids[:M].copy()).scores(whole.embed(xq), held)
    for model in (whole, cut):
        gallery = scqfaiss.open(path, model=model)
        D, I = gallery.search(xq, N)
        by_id = np.zeros_like(scores)
        np.put_along_axis(by_id, I, D, 1)
        np.testing.assert_allclose(by_id, scores, atol=1e-5 * np.abs(scores).max())
    metadata = gallery.metadata
    assert (metadata["bits"], metadata["M"], metadata["model_bits"]) == (M * nbits, M, 4 * nbits)
    assert metadata["model_sha256"] == whole.sha256 == cut.origin != cut.sha256
    # The same file as from the model that was cut before.
    scqfaiss.export(cut, x, path=tmp_path / "h.faissindex", target=target)
    assert (tmp_path / "h.faissindex").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("target", ["residual", "lift", "buckets", "fastscan"])
def test_a_gallery_of_prefixes_lives_on_with_the_whole_model(target, tmp_path):
    """Appended, removed, merged: always what an export of those rows would be."""
    whole, x = made(), rows()
    ids = np.arange(N)

    def exported(name, some):
        scqfaiss.export(whole, x[some], ids=ids[some], path=tmp_path / name, target=target, bits=8)
        return tmp_path / name

    wanted = scqfaiss.open(exported("all.faissindex", slice(None)), model=whole)
    first = exported("a.faissindex", slice(0, 40))
    assert scqfaiss.append(first, x[40:70], ids=ids[40:70], model=whole) == 70
    whole.prefix(8).save(tmp_path / "cut.safetensors")  # as good, and so is a longer cut
    assert scqfaiss.append(first, x[70:80], ids=ids[70:80], model=tmp_path / "cut.safetensors") == 80
    assert scqfaiss.append(first, x[80:], ids=ids[80:], model=whole.prefix(12)) == N
    assert scqfaiss.remove(first, [3]) == (1, N - 1)
    assert scqfaiss.append(first, x[3:4], ids=[3], model=whole) == N
    parts = [exported(f"{i}.faissindex", slice(i, N, 3)) for i in range(3)]
    assert scqfaiss.merge(parts, tmp_path / "merged.faissindex") == N
    for path in (first, tmp_path / "merged.faissindex"):
        found = scqfaiss.open(path, model=whole)
        assert found.metadata == wanted.metadata
        _, codes, held = found.unpack()
        assert_encodes_as(whole.prefix(8), x, codes[np.argsort(held)])
        terms = roundings(whole.chain) + 2 * whole.codebooks.d
        assert_close(found.search(x[:4], 9)[0], wanted.search(x[:4], 9)[0], terms)


def test_what_does_not_belong_together_is_refused(tmp_path):
    whole, x = made(), rows()
    for bits in (8, 16):
        scqfaiss.export(whole, x, ids=np.arange(N) + 100 * bits, path=tmp_path / f"{bits}.faissindex", bits=bits)
    with pytest.raises(ConfigError, match=r"8.faissindex has bits 8, .*16.faissindex has 16$"):
        scqfaiss.merge([tmp_path / "16.faissindex", tmp_path / "8.faissindex"], tmp_path / "m.faissindex")
    with pytest.raises(ConfigError, match=r"holds codes of 16 bits, the model is cut to 8; give the whole one$"):
        scqfaiss.append(tmp_path / "16.faissindex", x, model=whole.prefix(8))
    scqfaiss.open(tmp_path / "16.faissindex", model=whole.prefix(8)).search(x, 3)  # queries are the same
    other = made(seed=1)
    for model in (other, other.prefix(8)):
        for refused in (
            lambda model=model: scqfaiss.append(tmp_path / "8.faissindex", x, model=model),
            lambda model=model: scqfaiss.open(tmp_path / "8.faissindex", model=model),
        ):
            words = f"^the model is {other.sha256[:12]}, .* was made by {whole.sha256[:12]}; give that model$"
            with pytest.raises(ConfigError, match=words):
                refused()


@pytest.mark.parametrize("encoder", ["identity", "linear"])
def test_folded_encoders_search_without_the_model_and_append_with_it(encoder, tmp_path):
    whole, x = made(encoder=encoder), rows()
    scqfaiss.export(whole, x[:50], path=tmp_path / "g.faissindex", bits=12)
    with pytest.raises(ConfigError, match=r"new rows need the model its codes came from .*; give --model$"):
        scqfaiss.append(tmp_path / "g.faissindex", x[50:])
    assert scqfaiss.append(tmp_path / "g.faissindex", x[50:], model=whole) == N
    gallery = scqfaiss.open(tmp_path / "g.faissindex")
    scores = whole.prefix(12).codebooks.scores(whole.embed(x[:5]), whole.encode(x)[:, :3])
    np.testing.assert_allclose(gallery.search(x[:5], 7)[0], -np.sort(-scores, 1)[:, :7], rtol=1e-5, atol=1e-5)


def test_a_refresh_may_change_the_length(tmp_path):
    whole, x, path = made(), rows(), tmp_path / "g.faissindex"
    scqfaiss.export(whole, x, path=path, bits=4)
    gallery = scqfaiss.open(path, model=whole)
    scqfaiss.export(whole, x, path=path)
    assert gallery.refresh() and gallery.metadata["bits"] == 16 and "model_bits" not in gallery.metadata


def test_all_bits_are_the_model_itself_and_a_prefix_of_a_prefix_knows_the_whole(tmp_path):
    whole = made()
    assert whole.prefix(16) is whole and whole.origin == whole.sha256
    shorter = whole.prefix(12).prefix(4)
    assert shorter.to_bytes() == whole.prefix(4).to_bytes()
    assert shorter.config["prefix"] == {"sha256": whole.sha256, "bits": 16}
    assert shorter.config["bits"] == 4
    shorter.save(tmp_path / "m.safetensors")
    again = Model.load(tmp_path / "m.safetensors")
    assert again.origin == whole.sha256 and again.to_bytes() == shorter.to_bytes()
    assert np.int64(4) == 4 and scqfaiss.export(whole, rows(), path=tmp_path / "g.faissindex", bits=np.int64(4)) is None


@pytest.mark.parametrize("bits", [0, -4, 3, 6, 20, 4.0, True, "8"])
def test_lengths_that_are_no_prefix_are_refused(bits):
    with pytest.raises(ConfigError, match=rf"^bits is {bits}, needs a multiple of nbits=4 up to the model's 16$"):
        made().prefix(bits)


@pytest.mark.parametrize(
    "how, words",
    [
        (
            {"kind": "product", "d": 8},
            "^product codebooks of method dpq each hold a part of the features: codes of 8 bits need",
        ),
        (
            {"beam": 8},
            "^the model encodes with a beam of 8, which chooses all codebooks together: codes of 8 bits need",
        ),
        (
            {"nested": False, "method": "scq"},
            "^method scq trains its codebooks for the whole code alone: codes of 8 bits need",
        ),
    ],
)
def test_codes_that_are_not_nested_are_refused_with_the_reason(how, words, tmp_path):
    model = made(**how)
    with pytest.raises(ConfigError, match=words + " a model of their own, or one of method dpq$"):
        scqfaiss.export(model, np.zeros((3, model.d_in), np.float32), path=tmp_path / "g.faissindex", bits=8)
    assert not (tmp_path / "g.faissindex").exists()
    assert model.prefix(16) is model


@pytest.mark.parametrize("found", [5, {}, {"sha256": 3, "bits": 16}, {"sha256": "a", "bits": "16"}])
def test_a_damaged_note_of_the_whole_is_refused(found):
    with pytest.raises(
        CheckpointError, match=r"^the model is a prefix of .*, needs the SHA-256 and the bits of the whole one$"
    ):
        made(prefix=found)


def test_the_commands(run, tmp_path, monkeypatch):
    """Train once, export at two lengths, and search, evaluate, append, merge, describe with the one model."""
    monkeypatch.chdir(tmp_path)
    x, y = rows(120), np.arange(120) % C
    x += 3 * np.eye(6, dtype=np.float32)[y]
    for name, part in (
        ("train", slice(0, 60)),
        ("db", slice(60, 100)),
        ("new", slice(100, 110)),
        ("q", slice(110, 120)),
    ):
        with open(f"{name}.h5", "w+b") as f:
            write_rows(f, x[part], y[part], ids=np.arange(120)[part])
    quick = ("--epochs", "2", "--set", "hidden=8", "--bits", "16", "--nbits", "4")
    trained = run("train", "train.h5", "-o", "m.safetensors", "--method", "dpgq", *quick)
    assert trained.code == 0 and "m.safetensors: dpq, 16 bits (4 x 4)" in trained.out
    assert ", Deep Progressive Quantization, SHA-256 " in trained.out
    whole = Model.load("m.safetensors")
    dry = run("export", "m.safetensors", "db.h5", "-o", "g.faissindex", "--bits", "8", "--dry-run")
    assert (dry.code, dry.out.splitlines()[:2]) == (0, ["rows: 40 of d=6", "codes: 8 bits (of 16)"])
    for bits, said in (("8", "8 bits (of 16)"), ("16", "16 bits")):
        done = run("export", "m.safetensors", "db.h5", "-o", f"g{bits}.faissindex", "--bits", bits)
        assert done.code == 0 and f": 40 vectors, {said} each, target lift, " in done.out
    facts = json.loads(run("info", "g8.faissindex", "--json").out)
    assert (facts["bits"], facts["model_bits"], facts["model_sha256"]) == (8, 16, whole.sha256)
    assert "  model bits: 16\n" in run("info", "g8.faissindex").out
    assert run("verify", "g8.faissindex").code == 0
    model = ("--model", "m.safetensors")
    assert run("append", "g8.faissindex", "new.h5", *model).code == 0
    assert run("search", "g8.faissindex", "q.h5", "-k", "3", *model).out.startswith("10 queries, 3 hits each")
    np.testing.assert_array_equal(np.sort(scqfaiss.open("g8.faissindex").unpack()[2]), np.arange(60, 110))
    for i, part in ((0, slice(0, 25)), (1, slice(25, 40))):
        scqfaiss.export(whole, x[60:100][part], ids=np.arange(60, 100)[part], path=f"p{i}.faissindex", bits=8)
    assert run("merge", "p0.faissindex", "p1.faissindex", "-o", "p.faissindex").code == 0
    scqfaiss.export(whole, x[60:100], ids=np.arange(60, 100), path="e.faissindex", bits=8)
    measured = [
        json.loads(run("evaluate", name, "q.h5", "db.h5", *model, "--json").out)["map"]
        for name in ("p.faissindex", "e.faissindex")
    ]
    assert measured[0] == pytest.approx(measured[1]) and 0 < measured[0] <= 1
    for length, words in (
        ("12x", "Invalid value for '--bits': '12x' is not a valid integer."),
        ("6", "bits is 6, needs a multiple of nbits=4 up to the model's 16"),
        ("20", "bits is 20, needs a multiple of nbits=4 up to the model's 16"),
    ):
        for more in ((), ("--dry-run",)):
            refused = run("export", "m.safetensors", "db.h5", "-o", "x.faissindex", "--bits", length, *more)
            assert (refused.code, refused.error) == (2, f"Error: {words}")
    with pytest.raises(FileNotFoundError):
        open("x.faissindex")
