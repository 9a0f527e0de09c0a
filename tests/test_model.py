"""A model: bytes, saving and loading, encoding in pieces."""

import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from close import assert_encodes_as

import scqfaiss.model
from scqfaiss import Model
from scqfaiss.bundle import Bundle
from scqfaiss.codebooks import Codebooks
from scqfaiss.data import ArraySource
from scqfaiss.encoders.chain import Chain
from scqfaiss.errors import CheckpointError, ConfigError, ScqError, WriteError
from scqfaiss.model import encode_source, read_ahead

RNG = np.random.default_rng(0)
CONFIG = {"method": "scq", "rule": "l2", "encoder": "linear"}


def made(rule="l2", nbits=4, seed=0):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((6, 5)).astype(np.float32)
    codebooks = Codebooks("product", rng.standard_normal((3, 1 << nbits, 2)).astype(np.float32))
    return Model(Chain(5, [("linear", {"A": A}), ("softmax", {})]), codebooks, CONFIG | {"rule": rule})


X = RNG.standard_normal((300, 5)).astype(np.float32)


@pytest.mark.parametrize("rule", ["l2", "ip"])
@pytest.mark.parametrize("nbits, dtype", [(4, np.uint8), (8, np.uint8), (9, np.uint16)])
def test_encoding_is_the_encoder_then_the_rule(rule, nbits, dtype):
    model = made(rule, nbits)
    z = model.embed(X)
    codes = model.encode(X)
    np.testing.assert_array_equal(codes, model.codebooks.assign(z, rule))
    assert codes.dtype == dtype
    assert len(np.unique(codes[:, 0])) > 1


def test_additive_codebooks_are_encoded_by_the_beam_of_the_model(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    codebooks = Codebooks("additive", rng.standard_normal((3, 16, 5)).astype(np.float32))
    models = [Model(Chain(5), codebooks, CONFIG | more) for more in ({}, {"beam": 1}, {"beam": 8})]
    greedy, one, wide = (model.encode(X) for model in models)
    np.testing.assert_array_equal(one, greedy)
    np.testing.assert_array_equal(wide, codebooks.assign(X, "l2", 8))
    assert (wide != greedy).any()
    monkeypatch.setattr(scqfaiss.model, "ASSIGN_ELEMENTS", 1)
    assert_encodes_as(models[2], X, wide)
    models[2].save(tmp_path / "m.safetensors")
    again = Model.load(tmp_path / "m.safetensors")
    assert again.config["beam"] == 8
    assert_encodes_as(again, X, wide)


def test_rows_encode_alike_in_any_company(monkeypatch):
    model = made()
    whole = model.encode(X)
    for n in (0, 1, 7, 299):
        assert_encodes_as(model, X[:n], whole[:n])
    monkeypatch.setattr(scqfaiss.model, "ASSIGN_ELEMENTS", 1)
    assert_encodes_as(model, X, whole)
    assert_encodes_as(model, X.astype(np.float64), whole)
    assert_encodes_as(model, np.asfortranarray(X), whole)


def test_a_source_is_encoded_in_blocks_and_says_so(monkeypatch):
    monkeypatch.setattr(ArraySource, "block_rows", 70)
    seen = []
    codes = encode_source(made(), ArraySource(X), lambda *a: seen.append(a))
    assert_encodes_as(made(), X, codes)
    assert seen == [("encode", n, 300, "") for n in (70, 140, 210, 280, 300)]


def test_a_wrong_width_is_refused():
    with pytest.raises(ConfigError, match=r"^rows have d=4, the model needs d=5$"):
        made().encode(X[:, :4])
    with pytest.raises(ConfigError, match=r"^queries have d=4, the model needs d=5$"):
        made().embed(X[:, :4], "queries")
    with pytest.raises(ConfigError, match=r"^b.h5: rows have d=4, the model needs d=5$"):
        encode_source(made(), ArraySource(X[:, :4], name="b.h5"))


def test_equal_models_have_equal_bytes_and_others_have_not():
    assert made().to_bytes() == made().to_bytes()
    assert made().sha256 == made().sha256
    assert made().sha256 != made(seed=1).sha256
    assert made().sha256 != made("ip").sha256


def test_what_was_saved_loads_the_same(tmp_path):
    model = made()
    model.save(tmp_path / "m.safetensors")
    again = Model.load(tmp_path / "m.safetensors")
    assert again.to_bytes() == model.to_bytes() == (tmp_path / "m.safetensors").read_bytes()
    assert (again.sha256, again.config, again.d_in) == (model.sha256, model.config, 5)
    np.testing.assert_array_equal(again.embed(X), model.embed(X))
    np.testing.assert_array_equal(again.encode(X), model.encode(X))
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_model_file_needs_its_ending_and_a_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"m.pt: models end in .safetensors; write m.safetensors$"):
        made().save(tmp_path / "m.pt")
    with pytest.raises(WriteError, match=r"does not exist"):
        made().save(tmp_path / "none" / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_write_leaves_the_old_file(tmp_path, monkeypatch):
    made().save(tmp_path / "m.safetensors")
    before = (tmp_path / "m.safetensors").read_bytes()

    def damaged(path, data):
        raise CheckpointError("read back differently")

    monkeypatch.setattr(scqfaiss.model, "check_saved", damaged)
    with pytest.raises(CheckpointError):
        made(seed=1).save(tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_any_flipped_bit_of_a_model_is_seen(tmp_path):
    path = tmp_path / "m.safetensors"
    made().save(path)
    whole = path.read_bytes()
    for bit in np.random.default_rng(0).choice(8 * len(whole), 200, replace=False):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"^.*m\.safetensors: "):
            Model.load(path)
    for cut in (0, 7, 8, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=r"not a sound .safetensors file"):
            Model.load(path)


def rewritten(path, change):
    """A file whose hash is right and whose content is not ours."""
    model = made()
    tensors, encoder = model.chain.pack()
    config = CONFIG | {"chain": encoder, "codebooks": {"kind": "product", "metric": "ip"}}
    tensors = dict(tensors) | {"codebooks.centroids": model.codebooks.centroids}
    change(tensors, config)
    path.write_bytes(Bundle(tensors, config).to_bytes())
    return path


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t, c: c.pop("chain"), "a model without 'chain'$"),
        (lambda t, c: c.pop("codebooks"), "a model without 'codebooks'$"),
        (lambda t, c: t.pop("codebooks.centroids"), "a model without 'codebooks.centroids'$"),
        (lambda t, c: c.pop("rule"), "the assignment rule is None, needs one of l2, ip$"),
        (lambda t, c: c.update(rule="near"), "the assignment rule is 'near', needs one of l2, ip$"),
        (lambda t, c: c.update(beam=0), "the beam is 0, needs a whole number from 1 to 64$"),
        (lambda t, c: c.update(beam=65), "the beam is 65, needs a whole number from 1 to 64$"),
        (lambda t, c: c.update(beam="8"), "the beam is '8', needs a whole number from 1 to 64$"),
        (lambda t, c: c.update(beam=2.0), "the beam is 2.0, needs"),
        (lambda t, c: c.update(beam=True), "the beam is True, needs"),
        (lambda t, c: c.update(beam=None), "the beam is None, needs"),
        (lambda t, c: c["codebooks"].update(kind="tree"), "codebooks are of kind 'tree'"),
        (lambda t, c: c["codebooks"].pop("metric"), "a model without 'metric'$"),
        (lambda t, c: c.update(codebooks=3), "codebooks=3, needs an object$"),
        (lambda t, c: c.update(chain=[]), r"chain=\[\], needs an object$"),
        (lambda t, c: c["chain"].update(layers=["relu"]), "encoder layer 0 .relu. holds A$"),
        (
            lambda t, c: t.update({"encoder.0.A": np.ones((4, 5), np.float32)}),
            "the encoder gives d=4, the codebooks need",
        ),
        (lambda t, c: t.update({"encoder.0.A": np.full((6, 5), np.inf, np.float32)}), "not finite"),
        (
            lambda t, c: t.update({"codebooks.centroids": np.full((3, 4, 2), np.nan, np.float32)}),
            "codeword 0 of codebook 0",
        ),
        (
            lambda t, c: t.update({"codebooks.centroids": np.zeros((3, 5, 2), np.float32)}),
            "a codebook holds K=5 codewords",
        ),
    ],
)
def test_a_forged_model_is_refused(tmp_path, change, words):
    path = rewritten(tmp_path / "m.safetensors", change)
    with pytest.raises(CheckpointError, match=rf"m\.safetensors: .*{words}"):
        Model.load(path)


def test_other_files_are_told_from_models(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(ConfigError, match=r"m.safetensors: no such file$"):
        Model.load(path)
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(CheckpointError, match=r"a .safetensors file, but not a model of scqfaiss$"):
        Model.load(path)
    header = json.loads(made().to_bytes()[8 : 8 + struct.unpack("<Q", made().to_bytes()[:8])[0]])
    meta = json.loads(header["__metadata__"]["scqfaiss"])
    assert (sorted(meta), meta["format"]) == (["config", "format", "sha256"], 1)
    text = json.dumps({"__metadata__": {"scqfaiss": json.dumps(meta | {"format": 4})}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(CheckpointError, match=r"made by a newer scqfaiss: format 4, this version reads 3$"):
        Model.load(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ScqError, match=r"is no plain file$"):
        Model.load(path)


def test_blocks_are_read_one_ahead_in_order_and_errors_arrive():
    taken = []

    def blocks():
        for i in range(5):
            taken.append(i)
            yield i, i * i
        raise OSError("gone")

    found = []
    with pytest.raises(OSError, match=r"gone"):
        for i, x in read_ahead(blocks()):
            found.append((i, x))
    assert found == [(i, i * i) for i in range(5)]
    assert list(read_ahead(iter([]))) == []


def test_a_model_loads_and_encodes_without_torch_and_faiss(tmp_path):
    made().save(tmp_path / "m.safetensors")
    code = (
        "import sys, numpy as np, scqfaiss\n"
        "m = scqfaiss.Model.load(sys.argv[1])\n"
        "print(m.encode(np.ones((2, 5), np.float32)).tolist(), {'torch', 'faiss'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "m.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{made().encode(np.ones((2, 5), np.float32)).tolist()} set()"
