"""Every command opens each file that it reads once: what is there is read from the open file."""

import os
import sys
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from faults.conftest import TINY, blobs, here, made, run, write_h5  # noqa: F401

# ruff: noqa: F811  (fixtures are imported by name)
pytestmark = pytest.mark.filterwarnings("ignore::scqfaiss.errors.ScqWarning")

MODEL = ("--model", "m.safetensors")
_counting: list[Counter] = []


def _hook(event, arguments):
    if event == "open" and _counting and isinstance(arguments[0], str | bytes | os.PathLike):
        writes = isinstance(arguments[1], str) and set(arguments[1]) & set("wxa+")
        if not writes and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            _counting[-1][Path(os.fsdecode(arguments[0])).name] += 1


@pytest.fixture(scope="module", autouse=True)
def hook():
    sys.addaudithook(_hook)  # for good; it does nothing while nobody counts


@pytest.fixture
def opened(run, monkeypatch):
    """opened(*arguments) -> how often a command opens each file of this folder, by Python; and by h5py."""
    real = h5py.File.__init__

    def init(self, name, *rest, **options):
        if isinstance(name, str | os.PathLike):
            by_h5py[Path(name).name] += 1
        real(self, name, *rest, **options)

    by_h5py = Counter()
    monkeypatch.setattr(h5py.File, "__init__", init)

    def call(*arguments):
        by_h5py.clear()
        _counting.append(Counter())
        try:
            done = run(*arguments)
        finally:
            count = _counting.pop()
        assert done.code == 0, done.err
        inputs = {name for a in arguments if (name := os.path.basename(str(a))) in os.listdir()}
        return {name: count[name] for name in inputs if os.path.isfile(name)}, dict(by_h5py)

    return call


def test_commands(here, opened):
    x, y = blobs(60, 8, 3, 1)
    np.save("x.npy", x)
    write_h5("one.h5", x, y)
    write_h5("two.h5", x[:20] + 1, y[:20])
    write_h5("more.h5", x[:20] + 1, y[:20], np.arange(20) + 100)
    np.save("ids.npy", np.arange(3))
    Path("ids.txt").write_text("4 5")
    more = []
    for arguments in (
        ("train", "one.h5", "-o", "m.safetensors", *TINY),
        ("train", "one.h5", "-o", "m.safetensors", *TINY, "--validation", "two.h5", "--codebook-rows", "x.npy"),
        ("train", "one.h5", "-o", "m.safetensors", *TINY, "--dry-run"),
        ("export", "m.safetensors", "one.h5", "-o", "g.faissindex"),
        ("export", "m.safetensors", "x.npy", "-o", "h.faissindex"),
        ("info", "one.h5"),
        ("info", "x.npy"),
        ("info", "m.safetensors"),
        ("info", "g.faissindex"),
        ("verify", "m.safetensors"),
        ("verify", "g.faissindex"),
        ("search", "g.faissindex", "two.h5", "-k", "3", "--filter-ids", "ids.npy", *MODEL),
        ("search", "g.faissindex", "x.npy", "-k", "3", "--deny-ids", "ids.txt", *MODEL),
        ("evaluate", "g.faissindex", "two.h5", "one.h5", *MODEL),
        ("remove", "g.faissindex", "--ids", "ids.txt"),
        ("append", "h.faissindex", "more.h5", *MODEL),
    ):
        by_python, by_h5py = opened(*arguments)
        more += wrong(arguments, by_python, by_h5py)
    assert not more, "\n".join(map(str, more))


def test_files_of_images(here, opened):
    pytest.importorskip("PIL", reason="images need Pillow")
    from images import NETWORK, photos

    photos(here / "photos", 2)
    names = sorted(str(path) for path in Path("photos").rglob("*.*"))
    Path("l.csv").write_text("path,labels\n" + "".join(f"{name},{Path(name).parts[1]}\n" for name in names))
    with h5py.File("p.h5", "w") as f:
        images = f.create_dataset("images", len(names), h5py.vlen_dtype(np.uint8))
        for i, name in enumerate(names):
            images[i] = np.frombuffer(Path(name).read_bytes(), np.uint8)
    more = []
    for arguments in (
        ("info", "p.h5"),
        ("info", "l.csv"),
        ("features", "p.h5", "-o", "f.h5", *NETWORK),
        ("features", "l.csv", "-o", "f.h5", *NETWORK),
    ):
        more += wrong(arguments, *opened(*arguments))
    assert not more, "\n".join(map(str, more))


def wrong(arguments, by_python, by_h5py):
    """What was not opened once. HDF5 opens a file by its name beside the descriptor that proves that it did not change.

    Images themselves are not counted: each is opened for as long as it is decoded or hashed, and no longer, since there may
    be more of them than a process may hold open; that it is the same one as before is looked for each time.
    """
    out = arguments[arguments.index("-o") + 1] if "-o" in arguments else ""
    return [(arguments, name, n) for by in (by_python, by_h5py) for name, n in by.items() if n != 1 and name != out]
