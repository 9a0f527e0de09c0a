"""Faults of search, evaluation, training, models and environment: rows E1 to E6, F5, F6, F7, G1 and G4."""

import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import faiss
import h5py
import numpy as np
import pytest
import torch
from close import assert_encodes_as

import scqfaiss
from scqfaiss import bundle
from scqfaiss.dependencies import PIP, missing
from scqfaiss.errors import CheckpointError, ScqError
from scqfaiss.evaluation.ties import average_precision

from .conftest import TINY, blobs, checked, command, write_h5

SEARCH = ("search", "g.faissindex", "query.h5", "--model", "m.safetensors")
EVALUATE = ("evaluate", "g.faissindex", "query.h5", "database.h5", "--model", "m.safetensors")


def refused(result, code, message):
    assert (result.code, result.error) == (code, f"Error: {message}")


# -------------------------------------------------------------------------------------------------------------- search
def search(*rest, queries="query.h5"):
    return (*SEARCH[:2], queries, *SEARCH[3:], *rest)


def test_e1_odd_queries(run, here, untouched):
    x, _ = blobs(20)
    write_h5("d17.h5", np.c_[x, x[:, :1]])
    bad = x.copy()
    bad[5, 3] = np.nan
    write_h5("nan.h5", bad)
    write_h5("f64.h5", x.astype(np.float64))
    write_h5("f32.h5", x)
    write_h5("none.h5", x[:0])
    untouched(again=True)
    refused(run(*search("-o", "hits.h5", queries="d17.h5")), 2, "d17.h5: queries have d=17, g.faissindex needs d=16")
    result = run(*search("-o", "hits.h5", queries="nan.h5"))
    message = "nan.h5: features: row 5, column 3 is NaN (1 of 20 rows is not finite); --skip-bad-rows leaves them out"
    refused(result, 3, message)
    untouched()
    for name in ("f64", "f32"):
        assert run(*search("-o", f"{name}.hits.h5", queries=f"{name}.h5")).code == 0
    assert Path("f64.hits.h5").read_bytes() == Path("f32.hits.h5").read_bytes()
    result = run(*search("-o", "none.hits.h5", queries="none.h5"))
    assert (result.code, result.out) == (0, "0 queries, 10 hits each, written to none.hits.h5\n")
    with h5py.File("none.hits.h5") as f:
        assert f["scores"].shape == f["ids"].shape == (0, 10)
    result = run(*search("-o", "one.hits.h5", "--skip-bad-rows", queries="nan.h5"))
    assert (result.code, result.warnings) == (0, ["nan.h5: left out 1 of 20 rows that are not finite"])


def test_e2_another_model(run, here, untouched):
    a, b = (scqfaiss.Model.load(f"{n}.safetensors").sha256[:12] for n in ("m", "other"))
    message = f"other.safetensors is {b}, g.faissindex was made by {a}; give that model"
    for arguments in (SEARCH, EVALUATE):
        result = run(*arguments[:-1], "other.safetensors")
        refused(result, 2, message)
    message = f"g.faissindex: queries need the model its codes came from ({a}); give --model"
    refused(run(*SEARCH[:3]), 2, message)
    refused(run(*EVALUATE[:4]), 2, message)
    untouched()


def test_e3_k_out_of_range(run, here, untouched):
    for k in ("0", "-1"):
        refused(run(*SEARCH, "-k", k), 2, f"k is {k}, needs 1 or more")
    for k, printable in (("201", "201"), ("9" * 20, "99,999,999,999,999,999,999")):
        result = run(*SEARCH, "-k", k)
        words = f"k={printable} is more than the 200 vectors of g.faissindex: returned all of them"
        assert (result.code, result.warnings) == (0, [words])
        assert result.out.startswith("20 queries, 200 hits each\n")
    refused(run(*SEARCH, "-k", "1.5"), 2, "Invalid value for '-k': '1.5' is not a valid integer.")
    refused(run(*SEARCH, "--device", "tpu"), 2, "device is 'tpu', needs cpu, cuda or cuda:N")
    message = 'device cuda:0: this FAISS is built for the CPU: pip install "scqfaiss[gpu]"'
    if "GPU" not in faiss.get_compile_options().split():
        refused(run(*SEARCH, "--device", "cuda:0"), 2, message)
    untouched()


def test_e4_fewer_than_k_found(run, here):
    """A FAISS file whose lists are not all visited: its -1 stays in Python and in files, and is never shown."""
    x, _ = blobs(40)
    index = faiss.index_factory(16, "IVF8,PQ4x4np")
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
    index.train(x)
    index.add(x)
    faiss.write_index(index, "lists.faissindex")
    result = run("search", "lists.faissindex", "query.h5", "-k", "40", "--nprobe", "1", "-o", "hits.h5")
    assert result.code == 0
    assert "-1:" not in result.out
    with h5py.File("hits.h5") as f:
        assert (f["ids"][:] == -1).any()


def test_e6_evaluation_does_not_fit(run, here, untouched):
    x, y = blobs(199)
    write_h5("short.h5", x, y, np.arange(199) + 1000)
    write_h5("bare.h5", x[:20])
    write_h5("many.h5", x[:20], np.eye(4, dtype=np.uint8)[y[:20]])
    untouched(again=True)
    result = run(*EVALUATE[:3], "short.h5", *EVALUATE[4:])
    refused(result, 2, "g.faissindex holds 200 ids, short.h5 has 199 of them")
    for at in ("0", "-3"):
        refused(run(*EVALUATE, "--at", at), 2, f"R is {at}, needs 1 or more")
    message = "bare.h5 has no ids or labels, which an evaluation needs; name them with --ids-key or --labels-key"
    refused(run(*EVALUATE[:2], "bare.h5", *EVALUATE[3:]), 3, message)
    message = "many.h5 has many labels a row and 4 classes, the database has one label a row and 4"
    refused(run(*EVALUATE[:2], "many.h5", *EVALUATE[3:]), 2, message)
    untouched()


def test_e6_order_of_rows_changes_nothing(run, here):
    with h5py.File("database.h5") as f:
        x, y, ids = (f[key][:] for key in ("features", "labels", "ids"))
    order = np.random.default_rng(0).permutation(len(x))
    write_h5("shuffled.h5", x[order], y[order], ids[order])
    assert run("export", "m.safetensors", "shuffled.h5", "-o", "s.faissindex").code == 0
    model = scqfaiss.Model.load("m.safetensors")
    codes = []
    for name in ("g", "s"):
        _, held, order = scqfaiss.open(f"{name}.faissindex", model=model).unpack()
        codes.append(held[np.argsort(order)])
    assert_encodes_as(model, x[np.argsort(ids)], codes[1])
    # A row between two codewords may fall to the other one in another place, and then moves in the rankings: by how much a
    # mean over ranks of 1 / rank can change. Without such rows there is no change at all.
    moved = int((codes[0] != codes[1]).any(1).sum())
    allowed = 1e-12 + moved * (1 + math.log(len(x))) / np.bincount(y).min()
    found = []
    for gallery in ("g", "s"):
        for database in ("database", "shuffled"):
            arguments = (f"{gallery}.faissindex", "query.h5", f"{database}.h5", *EVALUATE[4:])
            found.append(json.loads(run("evaluate", *arguments, "--json").out))
    for other in found[1:]:
        assert other["map"] == pytest.approx(found[0]["map"], abs=allowed)
        assert other["precision_at_k"] == pytest.approx(found[0]["precision_at_k"], abs=max(1e-12, min(moved, 1)))


# ------------------------------------------------------------------------------------------------------------ training
def test_f5_divergence(run, here, untouched):
    result = run(
        "train", "train.h5", "-o", "x.safetensors", *TINY[:6], "--set", "features.lr=1e6", "--set", "codebooks.copies=1"
    )
    assert result.code == 2
    start, end = "Error: loss is NaN at step ", "); lower the rate"
    assert result.error.startswith(start) and result.error.endswith(end), result.error
    assert "(stage features, term ce, lr " in result.error
    untouched()


def test_f6_collapse(run, here):
    """One row, again and again: every codebook needs one codeword, and says so."""
    write_h5("same.h5", np.ones((100, 16), np.float32), np.arange(100) % 4)
    result = run("train", "same.h5", "-o", "x.safetensors", *TINY)
    assert (result.code, result.warnings) == (0, [f"codebook {m} uses 1 of 16 codewords" for m in (0, 1)])
    assert "codewords_used [1, 1]" in run("info", "x.safetensors").out


@pytest.mark.parametrize(
    "error, message",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to ..."), "the cpu is out of memory; lower --batch-size"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to"),
            "out of memory; lower --batch-size, or train on fewer rows or shorter codes",
        ),
        (MemoryError(), "out of memory; use smaller batches or fewer rows"),
    ],
)
def test_f7_out_of_memory(run, here, untouched, monkeypatch, error, message):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr("scqfaiss.methods.arsq.ARSQ.loss", refuse)
    refused(run("train", "train.h5", "-o", "x.safetensors", *TINY, "--set", "quantizer=arsq"), 5, message)
    untouched()


# -------------------------------------------------------------------------------------------------------------- models
class Evil:
    def __reduce__(self):
        return os.system, ("touch marker",)


def test_g1_pickle_under_another_name(run, here, untouched):
    Path("evil.safetensors").write_bytes(pickle.dumps(Evil()))
    torch.save({"a": torch.zeros(3)}, "torch.safetensors")
    Path("empty.safetensors").write_bytes(b"")
    Path("long.safetensors").write_bytes(b"\xff" * 8 + b"{}")
    np.save("object.npy", np.array([Evil()], object), allow_pickle=True)
    untouched(again=True)
    for name in ("evil", "torch", "empty", "long"):
        message = f"{name}.safetensors: not a sound .safetensors file; train again or restore a copy"
        refused(run("verify", f"{name}.safetensors"), 3, message)
        refused(run("info", f"{name}.safetensors"), 3, message)
        refused(run("export", f"{name}.safetensors", "database.h5", "-o", "x.faissindex"), 3, message)
    result = run("train", "train.h5", "-o", "x.safetensors", *TINY[:-2], "--set", "class_vectors=object.npy")
    refused(result, 3, "object.npy: not a sound .npy file")
    assert not Path("marker").exists()
    untouched()


def test_g1_one_bit_flipped_anywhere(here):
    data = Path("m.safetensors").read_bytes()
    rng, accepted = np.random.default_rng(0), []
    for bit in rng.choice(8 * len(data), 500, replace=False):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << int(bit) % 8
        Path("m.safetensors").write_bytes(flipped)
        try:
            scqfaiss.Model.load("m.safetensors")
            accepted.append(int(bit))
        except CheckpointError as error:
            assert "\n" not in str(error)
    assert accepted == []


def test_g1_every_truncation_and_junk(here):
    data = Path("m.safetensors").read_bytes()
    for n in [*range(0, len(data), 37), len(data) - 1]:
        Path("m.safetensors").write_bytes(data[:n])
        with pytest.raises(CheckpointError):
            scqfaiss.Model.load("m.safetensors")
    Path("m.safetensors").write_bytes(data + b"\0")
    with pytest.raises(CheckpointError):
        scqfaiss.Model.load("m.safetensors")


def forged(change):
    """The tiny model with its config or tensors changed, under a valid hash."""
    found, _ = bundle.read("m.safetensors")
    tensors, config = dict(found.tensors), json.loads(json.dumps(found.config))
    change(tensors, config)
    Path("m.safetensors").write_bytes(bundle.Bundle(tensors, config).to_bytes())


def layer(name):
    return lambda t, c: c["chain"]["layers"].__setitem__(0, name)


@pytest.mark.parametrize(
    "change, message",
    [
        (layer("os:system"), "encoder layer 0 (os:system) is unknown, this version runs "),
        (layer("../../etc/passwd"), "encoder layer 0 (../../etc/passwd) is unknown"),
        (layer("a\nb\x1b[31m"), "encoder layer 0 (a b\\x1b[31m) is unknown"),
        (layer(["linear"]), "encoder layer 0 (['linear']) is unknown"),
        (lambda t, c: c["chain"].update(layers="linear"), "the encoder's config needs d_in and a list of layers"),
        (lambda t, c: c["chain"].update(d_in=10**18), "encoder layer 0 (linear) is (4, 16), needs"),
        (lambda t, c: c["chain"].update(d_in=-1), "the encoder's config needs d_in and a list of layers"),
        (lambda t, c: c.pop("chain"), "a model without 'chain'"),
        (lambda t, c: c.update(chain=3), "the model's config says chain=3, needs an object"),
        (lambda t, c: c.update(codebooks=None), "the model's config says codebooks=None, needs an object"),
        (
            lambda t, c: c["codebooks"].update(kind="../x"),
            "codebooks are of kind '../x', need one of product, additive",
        ),
        (lambda t, c: c["codebooks"].update(metric="cos"), "metric is 'cos', needs one of ip, l2"),
        (lambda t, c: c.update(rule="eval"), "the assignment rule is 'eval', needs one of l2, ip"),
        (lambda t, c: c.pop("method"), "a model that names no method"),
        (lambda t, c: c.update(encoder=7), "a model that names no encoder"),
        (lambda t, c: t.update({"encoder.9.A": np.zeros((1, 1), np.float32)}), "tensor encoder.9.A belongs to no"),
        (lambda t, c: t.update({"encoder.0.x": np.zeros((1, 1), np.float32)}), "encoder layer 0 (linear) holds"),
        (lambda t, c: t.pop("codebooks.centroids"), "a model without 'codebooks.centroids'"),
        (
            lambda t, c: t.update({"codebooks.centroids": np.full((2, 16, 2), np.nan, np.float32)}),
            "codeword 0 of codebook 0 is not finite",
        ),
        (lambda t, c: t.update({"codebooks.centroids": np.zeros((2, 15, 2), np.float32)}), "a codebook holds K=15"),
        (lambda t, c: t.update({"codebooks.centroids": np.zeros((2, 16, 2))}), "centroids are (2, 16, 2) float64"),
    ],
)
def test_g1_forged_metadata(run, here, change, message):
    forged(change)
    before = sorted(os.listdir())
    for arguments in (["verify", "m.safetensors"], ["info", "m.safetensors"], [*SEARCH, "-o", "hits.h5"]):
        result = run(*arguments)
        assert result.code == 3
        assert result.error.startswith(f"Error: m.safetensors: {message}"), result.error
    assert sorted(os.listdir()) == before


def test_g1_newer_format(run, here):
    data = Path("m.safetensors").read_bytes()
    meta = b'\\"format\\": 1'
    assert data.count(meta) == 1
    Path("m.safetensors").write_bytes(data.replace(meta, b'\\"format\\": 4'))
    message = "m.safetensors: made by a newer scqfaiss: format 4, this version reads 3"
    refused(run("verify", "m.safetensors"), 3, message)


def test_g1_safetensors_of_somebody_else(run, here):
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3, np.float32)}, "theirs.safetensors", {"format": "pt"})
    save_file({"a": np.zeros(3, np.float32)}, "bare.safetensors")
    for name in ("theirs", "bare"):
        message = f"{name}.safetensors: a .safetensors file, but not a model of scqfaiss"
        refused(run("verify", f"{name}.safetensors"), 3, message)


# --------------------------------------------------------------------------------------------------------- environment
BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from scqfaiss.cli.program import run
sys.exit(run(sys.argv[2:]))
"""


def without(module, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, module, *arguments], capture_output=True, text=True, timeout=50
    )
    return checked(done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    "module, arguments, pip",
    [
        ("faiss", SEARCH, 'pip install "scqfaiss[cpu]"'),
        ("torch", ("train", "train.h5", "-o", "x.safetensors"), 'pip install "scqfaiss[train]"'),
        ("h5py", ("info", "train.h5"), "pip install h5py"),
        ("safetensors", ("info", "m.safetensors"), "pip install safetensors"),
    ],
)
def test_g4_part_missing(here, untouched, module, arguments, pip):
    refused(without(module, *arguments), 2, f"{module} is not installed: {pip}")
    untouched()


@pytest.mark.slow
def test_g4_method_and_names_that_need_faiss(here, untouched):
    result = without("faiss", "train", "train.h5", "-o", "x.safetensors", "--method", "pq")
    refused(result, 2, 'method pq needs faiss, which is not installed: pip install "scqfaiss[cpu]"')
    untouched()


@pytest.mark.slow
def test_g4_what_is_not_needed_is_not_asked_for(here):
    """Encoding and writing needs no torch, describing a model no FAISS, help neither."""
    assert without("torch", "export", "m.safetensors", "database.h5", "-o", "x.faissindex").code == 0
    assert Path("x.faissindex").read_bytes() == Path("g.faissindex").read_bytes()
    assert without("torch", *SEARCH).code == 0
    assert without("torch", *EVALUATE).code == 0
    assert without("faiss", "info", "m.safetensors").code == 0
    assert "train" in without("numpy", "--help").out


def test_g4_library_that_does_not_load(run, here, untouched, monkeypatch):
    for name, message in (
        (None, "a library does not load (libx.so: failed to map segment)"),
        ("faiss._swigfaiss", 'faiss does not load: pip install "scqfaiss[cpu]"'),
    ):

        def refuse(*_, name=name, **__):
            raise ImportError("libx.so: failed to map segment", name=name)

        monkeypatch.setattr("scqfaiss.galleries.searching.search_file", refuse)
        refused(run(*SEARCH), 2, message)
    untouched()


def test_g4_python_names(here):
    code = BLOCKED.partition("from scqfaiss.cli")[0] + "import scqfaiss; scqfaiss.open"
    done = subprocess.run([sys.executable, "-c", code, "faiss"], capture_output=True, text=True, timeout=50)
    assert 'ConfigError: open needs faiss, which is not installed: pip install "scqfaiss[cpu]"' in done.stderr


def test_no_gpu_is_said(run, here, untouched):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = run("train", "train.h5", "-o", "x.safetensors", "--device", "cuda")
    refused(result, 2, "device cuda was asked for, but this torch sees no GPU; use --device cpu")
    untouched()


def test_average_precision_refuses_more_relevant_than_rows():
    with pytest.raises(ScqError, match="block 1 has 3 relevant rows of 2"):
        average_precision([1, 2], [1, 3])


def test_help_is_a_process_of_its_own(here):
    done = subprocess.run(command("--help"), capture_output=True, text=True, timeout=50)
    assert done.returncode == 0 and done.stderr == ""


BROKEN = """
import importlib.abc, importlib.util, sys


class Breaker(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name == sys.argv[1] else None

    def exec_module(self, module):
        exec(compile(sys.argv[2], "broken.py", "exec"), module.__dict__)


sys.meta_path.insert(0, Breaker())
from scqfaiss.cli.program import run
sys.exit(run(sys.argv[3:]))
"""


TRAIN = ("train", "train.h5", "-o", "x.safetensors")


@pytest.mark.parametrize(
    "module, raises, arguments, message",
    [
        ("faiss", "RuntimeError('no CUDA\\n runtime')", SEARCH, "(no CUDA runtime): "),
        ("faiss", "ImportError('libx.so')", SEARCH, ": "),
        ("torch", "OSError('libx.so')", TRAIN, "(libx.so): "),
        ("h5py", "ValueError('size changed')", ("info", "train.h5"), "(size changed): "),
    ],
)
def test_g4_part_that_breaks_while_it_loads(here, untouched, module, raises, arguments, message):
    done = subprocess.run(
        [sys.executable, "-c", BROKEN, module, f"raise {raises}", *arguments],
        capture_output=True,
        text=True,
        timeout=50,
    )
    why = f"{module} does not load{message if message == ': ' else ' ' + message}{PIP[module]}"
    refused(checked(done.returncode, done.stdout, done.stderr), 2, why)
    untouched()


def test_g4_python_names_of_a_part_that_breaks(here):
    code = BROKEN.partition("from scqfaiss.cli")[0] + "import scqfaiss\ntry:\n    scqfaiss.open\n"
    code += "except scqfaiss.ConfigError as error:\n    print(error)\n"
    done = subprocess.run(
        [sys.executable, "-c", code, "faiss", "raise RuntimeError('x')"], capture_output=True, text=True, timeout=50
    )
    assert done.stdout == 'open needs faiss, which does not load (x): pip install "scqfaiss[cpu]"\n'


def test_an_error_after_loading_is_no_broken_part():
    try:
        np.linalg.cholesky(-np.eye(2))
    except np.linalg.LinAlgError as error:
        assert missing(error) is None
