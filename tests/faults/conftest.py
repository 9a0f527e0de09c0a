"""What the fault tests share: a tiny model and its gallery, made once, and the command line run in process."""

import os
import resource
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import scqfaiss
from scqfaiss.cli import program as cli
from scqfaiss.data.writing import write_rows
from scqfaiss.errors import ScqWarning

# Processes started in another folder must find the package too, however this one was told where it is.
os.environ["PYTHONPATH"] = str(Path(scqfaiss.__file__).parents[1])
os.environ["OMP_NUM_THREADS"] = "1"  # for them: their work is tiny, threads would only wait for one another

CODES = (0, 2, 3, 4, 5, 130)
TINY = (
    "--bits",
    "8",
    "--nbits",
    "4",
    "--encoder",
    "linear",
    "--epochs",
    "1",
    "--set",
    "codebooks.copies=1",
    "--forecast",
    "off",
)


def blobs(n, d=16, C=4, seed=0):
    """n rows of C well separated classes: x (n, d) float32, y (n,) int64."""
    y = np.arange(n) % C
    points = 3 * np.random.default_rng(99).standard_normal((C, d))
    return (points[y] + np.random.default_rng(seed).standard_normal((n, d))).astype(np.float32), y


def write_h5(path, x, y=None, ids=None, names=None):
    with open(path, "x+b") as f:
        write_rows(f, x, y, ids, names)


def command(*arguments):
    """The arguments of a scqfaiss command that runs in a process of its own."""
    return [sys.executable, "-m", "scqfaiss", *map(str, arguments)]


def checked(code, out, err):
    """What holds for every command: a code of the contract, no traceback, one line of error, nothing on stdout with it."""
    assert code in CODES, (code, err)
    assert "Traceback" not in err
    if code:
        errors = [line for line in err.split("\n") if line.startswith("Error: ")]
        assert len(errors) == 1, err
        assert out == ""
    return SimpleNamespace(
        code=code,
        out=out,
        err=err,
        error=next((line for line in err.split("\n") if line.startswith("Error: ")), ""),
        warnings=[line[9:] for line in err.split("\n") if line.startswith("Warning: ")],
    )


@pytest.fixture
def run(capsys):
    """run(*arguments) -> code, out, err, error (the one line), warnings; in this process, as main() would."""

    def call(*arguments):
        capsys.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("always", ScqWarning)
            warnings.showwarning = cli.show_warning
            code = cli.run([os.fspath(a) for a in arguments])
        out, err = capsys.readouterr()
        return checked(code, out, err)

    return call


@pytest.fixture
def start():
    """start(*arguments, limit=None) -> (code, out, err) of a process of its own; limit: largest file it may write, bytes."""

    def call(*arguments, limit=None, **options):
        if limit is not None:
            options["preexec_fn"] = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=50, **options)
        return checked(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with train.h5, database.h5, query.h5, m.safetensors (and its twin of another seed), g.faissindex."""
    folder = tmp_path_factory.mktemp("made")
    for name, n, seed, first in (("train", 300, 0, 0), ("database", 200, 1, 1000), ("query", 20, 2, 5000)):
        write_h5(folder / f"{name}.h5", *blobs(n, seed=seed), np.arange(n) + first)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScqWarning)
        for name, seed in (("m", "0"), ("other", "1")):
            out = folder / f"{name}.safetensors"
            assert cli.run(["train", str(folder / "train.h5"), "-o", str(out), *TINY, "--seed", seed]) == 0
        for model, name, target in (("m", "g", "ivfpq"), ("m", "p", "pq"), ("other", "other", "ivfpq")):
            rows, out = folder / "database.h5", folder / f"{name}.faissindex"
            model_file = folder / f"{model}.safetensors"
            assert cli.run(["export", str(model_file), str(rows), "-o", str(out), "--target", target]) == 0
        # An encoder that FAISS can run itself, hence inside the file.
        inside = folder / "pq.safetensors"
        asked = ["--method", "pq", "--bits", "8", "--nbits", "4"]
        assert cli.run(["train", str(folder / "train.h5"), "-o", str(inside), *asked]) == 0
        rows, out = folder / "database.h5", folder / "folded.faissindex"
        assert cli.run(["export", str(inside), str(rows), "-o", str(out)]) == 0
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A copy of the made files in the current folder, so that messages hold no path; fails if anything is left behind."""
    for file in made.iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    left = [name for name in os.listdir(tmp_path) if ".tmp-" in name or name.endswith(".lock")]
    assert not left, left


@pytest.fixture
def untouched(here):
    """untouched() asserts that every file of the folder is as it was when the test began, and that there are no others."""

    def look():
        found = {}
        for p in sorted(here.rglob("*")):
            found[str(p)] = p.read_bytes() if p.is_file() and not p.is_symlink() else p.lstat().st_mode
        return found

    before = None

    def call(again=False):
        nonlocal before
        if before is None or again:
            before = look()
        now = look()
        assert sorted(now) == sorted(before)
        assert [p for p in now if now[p] != before[p]] == []

    call()
    return call
