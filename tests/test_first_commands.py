"""What a newcomer types first: what each answers, and the command it names next; one row, tensors, frames and tables of hits."""

import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from faults.conftest import run, write_h5  # noqa: F401

import scqfaiss
from scqfaiss.cli.commands import cli
from scqfaiss.cli.train import GROUPS
from scqfaiss.codebooks import Codebooks
from scqfaiss.encoders.chain import Chain
from scqfaiss.errors import ConfigError, DataError

# ruff: noqa: F811  (fixtures are imported by name)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 8)).astype(np.float32)


def model(seed, chain=()):
    table = np.random.default_rng(seed).standard_normal((2, 16, 4)).astype(np.float32)
    config = {"method": "scq", "rule": "l2", "encoder": "mlp" if chain else "identity"}
    return scqfaiss.Model(Chain(8, list(chain)), Codebooks("product", table), config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    for seed, name in enumerate(("m", "m2")):
        model(seed, [("relu", {})]).save(folder / f"{name}.safetensors")
    scqfaiss.export(folder / "m.safetensors", X, path=folder / "g.faissindex")
    write_h5(folder / "train.h5", X, np.arange(60) % 3)
    np.save(folder / "x.npy", X)
    np.save(folder / "wide.npy", X[:, :5])
    np.savetxt(folder / "rows.csv", X, delimiter=",")
    for name in ("rows.txt", "rows.pt", "rows.pkl"):
        (folder / name).write_bytes(b"something")
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


NEEDS = "has no labels, which method scq needs; bring them with --labels FILE, or use --labels-key; --method mecoq needs none"
EXPORT = "scqfaiss export m.safetensors ROWS -o gallery.faissindex"
FIRST = {
    "train rows.csv -o n.safetensors": "\"import numpy; numpy.save('rows.npy', numpy.loadtxt('rows.csv', delimiter=','))\"",
    "train rows.txt -o n.safetensors": "python -c \"import numpy; numpy.save('rows.npy', numpy.loadtxt('rows.txt'))\"",
    "train rows.pt -o n.safetensors": "numpy.save('rows.npy', torch.load('rows.pt').numpy())\"",
    "train rows.pkl -o n.safetensors": "pickled files are not read, as they run code; numpy.save the array as .npy",
    "train x.npy -o n.safetensors": NEEDS,
    "train trian.h5 -o n.safetensors": "trian.h5: no such file; did you mean 'train.h5'?",
    "train train.h5 -o n.pt": "n.pt: models end in .safetensors; write n.safetensors",
    "train train.h5 -o n.safetensors --bits 31": "bits=31 is not a multiple of nbits=8; need 24 or 32",
    "train train.h5 -o n.safetensors --method scqq": "; there are scq, label, dpq, mecoq, mopq, phpq, pq, opq, rq",
    "serach g.faissindex x.npy": "No such command 'serach'. Did you mean 'search'?",
    "search g.faissindex x.npy": "; give --model",
    "search g.faissindex x.npy --model m2.safetensors": "; give that model",
    "search g.faissindex x.npy --model g.faissindex": "g.faissindex is a gallery; a model is the .safetensors file that made it",
    "search g.faissindex wide.npy --model m.safetensors": "wide.npy: queries have d=5, g.faissindex needs d=8",
    "search m.safetensors x.npy": f"m.safetensors is a model: {EXPORT}",
    "export x.npy m.safetensors -o n.faissindex": f"a model is no file of rows: {EXPORT}",
    "export m.safetensors x.npy -o n.index": "n.index: galleries end in .faissindex; write n.faissindex",
    "evaluate g.faissindex x.npy train.h5 --model m.safetensors": "or bring labels with --labels FILE",
}


@pytest.mark.parametrize("command", FIRST)
def test_what_is_answered(here, run, command):
    result = run(*command.split())
    assert result.code in (2, 3)
    assert result.error.endswith(FIRST[command])


def test_one_row_is_a_query(here, run):
    np.save("one.npy", X[3])
    result = run("search", "g.faissindex", "one.npy", "--model", "m.safetensors", "-k", "2")
    assert (result.code, result.out.splitlines()[0]) == (0, "1 queries, 2 hits each")
    assert run("export", "m.safetensors", "one.npy", "-o", "n.faissindex").error.endswith("one row is x[None]")


ONE = {
    "array": X[3],
    "float64": X[3].astype(np.float64),
    "list": X[3].tolist(),
    "rows": [X[3].tolist()],
    "tensor": torch.from_numpy(X[3]).requires_grad_(),
    "table": pa.table({"embedding": [X[3]]}),
    "column": pa.array([X[3]]),
}


@pytest.mark.parametrize("form", ONE)
def test_queries_in_every_form(here, form):
    gallery = scqfaiss.open("g.faissindex", model="m.safetensors")
    D, I = gallery.search(X[3:4], 5)
    D2, I2 = gallery.search(ONE[form], 5)
    np.testing.assert_array_equal(I, I2)
    np.testing.assert_allclose(D, D2, rtol=1e-6)
    if form != "column":
        np.testing.assert_array_equal(gallery.model.encode(ONE[form]), gallery.model.encode(X[3:4]))
    np.testing.assert_array_equal(gallery.model.embed(ONE[form]), gallery.model.embed(X[3:4]))


def test_hits_are_arrays_and_a_table(here, monkeypatch):
    gallery = scqfaiss.open("g.faissindex", model="m.safetensors")
    hits = gallery.search(X[:3], 4, allow=[5, 6, 7])
    D, I = hits
    assert hits.D is D and hits.I is I and D.shape == (3, 4) and (I[:, 3] == -1).all()
    table = hits.to_dict(["a", "b", "c"])
    assert table["query"].tolist() == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    assert table["rank"].tolist() == [1, 2, 3] * 3
    np.testing.assert_array_equal(table["id"], I[:, :3].ravel())
    np.testing.assert_array_equal(table["score"], D[:, :3].ravel())
    found = gallery.range_search(X[:3], float(np.median(D[:, :3])))
    table = found.to_dict()
    for q in range(3):
        own = table["query"] == q
        np.testing.assert_array_equal(table["id"][own], found.I[found.lims[q] : found.lims[q + 1]])
        assert table["rank"][own].tolist() == list(range(1, 1 + own.sum()))
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=dict))
    assert list(hits.to_pandas()) == list(found.to_pandas()) == ["query", "rank", "id", "score"]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"to_pandas needs pandas, which .*: pip install pandas$"):
        hits.to_pandas()
    with pytest.raises(DataError, match=r"queries has shape \(2,\), needs \(3,\), a name for each query"):
        hits.to_dict(["a", "b"])


def test_the_help_of_a_training_stands_in_groups(run):
    named = [name for names in GROUPS.values() for name in names]
    options = {p.name for p in cli.commands["train"].params if p.param_type_name == "option"}
    assert len(named) == len(set(named)) and options - set(named) == {"out", "config", "dry_run"}
    text = run("train", "--help").out
    places = [text.index(f"\n{heading}:") for heading in (*GROUPS, "Options")]
    assert places == sorted(places)
    assert all(p.opts[-1] in text for p in cli.commands["train"].params if p.name in named)


def test_a_shell_completes(run, monkeypatch):
    for shell in ("bash", "zsh", "fish"):
        assert "_SCQFAISS_COMPLETE" in run("completion", shell).out
    for name, value in {"_SCQFAISS_COMPLETE": "bash_complete", "COMP_WORDS": "scqfaiss tr", "COMP_CWORD": "1"}.items():
        monkeypatch.setenv(name, value)
    result = run()
    assert (result.code, result.out) == (0, "plain,train\n")
