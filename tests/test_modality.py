"""A modality is one file and one line in a registry: a toy, rows of bytes, through every command."""

import json
import os

import numpy as np
import pytest
import toy_bytes
from faults.conftest import run  # noqa: F401
from images import plain

from scqfaiss import modality
from scqfaiss.data import ArraySource, kinds, open_rows
from scqfaiss.errors import CheckpointError, ConfigError
from scqfaiss.features.source import FeatureSource, as_rows
from scqfaiss.modality import IMAGES, ROWS, Reader
from scqfaiss.model import Model

# ruff: noqa: F811  (fixtures are imported by name)
pytestmark = pytest.mark.filterwarnings("ignore::scqfaiss.errors.ScqWarning")
TRAIN = ("train", "train.bytes", "-o", "m.safetensors", "--bits", "8", "--nbits", "4", "--epochs", "1", "--seed", "3")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(modality.REGISTRY, "bytes", toy_bytes.BYTES)
    for name, n in (("train", 90), ("db", 60), ("q", 12)):
        toy_bytes.write(f"{name}.bytes", n, len(name))


def test_a_third_modality_through_every_command(toy, run):
    for arguments in (
        (*TRAIN, "--dry-run"),
        TRAIN,
        ("export", "m.safetensors", "db.bytes", "-o", "g.faissindex"),
        ("info", "m.safetensors"),
        ("info", "g.faissindex"),
        ("info", "db.bytes"),
        ("verify", "g.faissindex"),
        ("search", "g.faissindex", "q.bytes", "--model", "m.safetensors", "-k", "5"),
    ):
        done = run(*arguments)
        assert done.code == 0, done.err
    done = run("evaluate", "g.faissindex", "q.bytes", "db.bytes", "--model", "m.safetensors", "--json")
    assert done.code == 0 and json.loads(done.out)["map"] > 0.5  # a third of the rows are of one class
    model = Model.load("m.safetensors")
    assert model.modality == toy_bytes.BYTES and model.config["encoder"] == "byte-table"
    with open_rows("q.bytes") as source:
        rows = as_rows(source, model)
        assert isinstance(rows, FeatureSource) and rows.read(0, 12).shape == (12, model.d_in)
    toy_bytes.write("more.bytes", 9, 5)
    done = run("append", "g.faissindex", "more.bytes", "--model", "m.safetensors")
    assert done.code == 0, done.err


def test_modalities_that_do_not_fit_are_refused(toy, run):
    np.save("x.npy", np.eye(8, dtype=np.float32))
    said = "train.bytes holds rows of bytes, encoder linear takes rows of features; choose --encoder byte-table"
    assert run(*TRAIN, "--encoder", "linear").error == f"Error: {said}"
    said = "x.npy holds rows of features, encoder byte-table takes rows of bytes"
    assert run("train", "x.npy", *TRAIN[2:], "--encoder", "byte-table").error == f"Error: {said}"
    said = "train.bytes holds rows of bytes, method pq takes rows of features; there is no other way"
    assert run(*TRAIN, "--method", "pq").error == f"Error: {said}"
    with (
        open_rows("q.bytes") as source,
        pytest.raises(ConfigError, match="holds rows of bytes, the model takes rows of d=4"),
    ):
        as_rows(source, plain(4))


def test_a_model_of_an_unknown_modality_is_refused(toy, run, monkeypatch):
    assert run(*TRAIN).code == 0
    monkeypatch.delitem(modality.REGISTRY, "bytes")
    with pytest.raises(CheckpointError, match="the model's encoder is of 'bytes', which is not known here"):
        Model.load("m.safetensors")
    with pytest.raises(ConfigError, match=r"ending '\.bytes' is unknown"):
        open_rows("q.bytes")


def test_a_reader_is_one_function_and_one_line(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        kinds, "ROW_READERS", (*kinds.ROW_READERS, Reader((".raw",), "toy_bytes:open_raw", no_keys="it has none"))
    )
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    x.tofile("x.raw")
    with open_rows("x.raw") as source:
        assert (source.read(0, 3) == x).all()
    assert json.loads(run("info", "x.raw", "--json").out)["rows"] == 3
    assert run("info", "x.raw", "--labels-key", "y").error.startswith(
        "Error: x.raw: --labels-key y names nothing: it has none;"
    )
    os.rename("x.raw", "x.odd")
    assert (
        "ending '.odd' is unknown, needs one of .h5 .hdf5 .hdf .npy .fvecs .bvecs .npz .parquet .raw, or"
        in run("info", "x.odd").error
    )


def test_the_two_of_ours():
    assert modality.REGISTRY == {"rows": ROWS, "images": IMAGES}
    assert not ROWS.needs_encoder and IMAGES.needs_encoder
    assert ArraySource(np.eye(3, dtype=np.float32)).modality == ROWS
