"""Kill exports at random moments: what stands at the target must be the old file or the new one, whole.

    python tools/kill_export.py [--kills 20] [--rows 100000] [--seed 0]

Each round starts a real `python -m scqfaiss export` over a sound gallery, kills it (SIGKILL), and looks at what is left.
Every other kill comes after a random part of the time an undisturbed export takes, the others up to 30 milliseconds after
the temporary file appeared, where most of the harm could be done. Exit code 1 if a file is damaged or a temporary survives
the next export.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

import scqfaiss
from scqfaiss.data.hdf5 import write_rows
from scqfaiss.gallery import read_gallery


def prepare(folder: Path, rows: int) -> None:
    """model.safetensors, old.h5 and new.h5 of `rows` rows each, the old ones exported to gallery.faissindex."""
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = scqfaiss.train(rng.standard_normal((300, 16)).astype(np.float32), method="pq", bits=8, nbits=4)
    model.save(folder / "model.safetensors")
    for name, first in (("old", 0), ("new", 10**6)):
        with open(folder / f"{name}.h5", "x+b") as f:
            x = rng.standard_normal((rows, 16)).astype(np.float32)
            write_rows(f, x, ids=np.arange(rows) + first)


def export(folder: Path, name: str) -> subprocess.Popen:
    arguments = ["export", "model.safetensors", f"{name}.h5", "-o", "gallery.faissindex"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-m", "scqfaiss", *arguments], cwd=folder, **quiet)


def whole(folder: Path, name: str) -> None:
    """An undisturbed export."""
    code = export(folder, name).wait(120)
    if code:
        raise SystemExit(f"an undisturbed export ended with {code}")


def temporaries(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if ".tmp-" in p.name]


def kill_exports(folder: Path, kills: int, rows: int, seed: int = 0) -> Counter:
    """Counts of 'old', 'new', 'damaged' files, of kills that left a temporary or a lock, and of 'litter' that stayed."""
    prepare(folder, rows)
    gallery, rng, found = folder / "gallery.faissindex", np.random.default_rng(seed), Counter()
    files = {}
    for name in ("new", "old"):
        start = time.monotonic()
        whole(folder, name)
        took = time.monotonic() - start
        files[gallery.read_bytes()] = name
    for i in range(kills):
        process = export(folder, "new")
        delay = rng.uniform(0, took)
        if i % 2:
            while process.poll() is None and not temporaries(folder):
                time.sleep(0.0005)
            delay = rng.uniform(0, 0.03)
        try:
            process.wait(delay)
            found["ended before the kill"] += 1
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        what = files.get(gallery.read_bytes(), "damaged") if gallery.exists() else "damaged"
        if what != "damaged":
            read_gallery(gallery)
        found[what] += 1
        found["temporary left"] += bool(temporaries(folder))
        found["lock left"] += (folder / ".gallery.faissindex.lock").exists()
        if temporaries(folder):
            whole(folder, "old")
            found["litter"] += bool(temporaries(folder))
        gallery.write_bytes(next(data for data, name in files.items() if name == "old"))
    whole(folder, "old")
    found["litter"] += bool(temporaries(folder)) + (folder / ".gallery.faissindex.lock").exists()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = kill_exports(Path(folder), asked.kills, asked.rows, asked.seed)
    shown = ("old", "new", "damaged", "temporary left", "lock left", "ended before the kill", "litter")
    print(f"{asked.kills} kills: " + ", ".join(f"{what} {found[what]}" for what in shown))
    return int(bool(found["damaged"] or found["litter"]))


if __name__ == "__main__":
    sys.exit(main())
