"""Kill commands at random moments: what stands at the target must be the old file or the new one, whole.

    python tools/kill_export.py [--what export|append|remove] [--kills 20] [--rows 100000] [--seed 0]

Each round starts a real `python -m scqfaiss export` (or append, remove) over a sound gallery, kills it (SIGKILL), and looks
at what is left. Every other kill comes after a random part of the time an undisturbed run takes, the others up to 30
milliseconds after the temporary file appeared, where most of the harm could be done. Exit code 1 if a file is damaged or a
temporary survives the next run.
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
from scqfaiss.data.writing import write_rows
from scqfaiss.galleries.reading import read_gallery

GALLERY = "gallery.faissindex"
COMMANDS = {
    "export": ("export", "model.safetensors", "new.h5", "-o", GALLERY),
    "append": ("append", GALLERY, "new.h5"),
    "remove": ("remove", GALLERY, "--ids", "some.txt"),
}


def prepare(folder: Path, rows: int) -> None:
    """model.safetensors, old.h5 and new.h5 of `rows` rows each, and some.txt, half of the ids of the old ones."""
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = scqfaiss.train(rng.standard_normal((300, 16)).astype(np.float32), method="pq", bits=8, nbits=4)
    model.save(folder / "model.safetensors")
    for name, first in (("old", 0), ("new", 10**6)):
        with open(folder / f"{name}.h5", "x+b") as f:
            x = rng.standard_normal((rows, 16)).astype(np.float32)
            write_rows(f, x, ids=np.arange(rows) + first)
    (folder / "some.txt").write_text("\n".join(map(str, range(0, rows, 2))))


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-m", "scqfaiss", *arguments], cwd=folder, **quiet)


def whole(folder: Path, *arguments: str) -> None:
    """An undisturbed run."""
    code = start(folder, *arguments).wait(120)
    if code:
        raise SystemExit(f"an undisturbed {arguments[0]} ended with {code}")


def temporaries(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if ".tmp-" in p.name]


def kill_exports(folder: Path, kills: int, rows: int, seed: int = 0, what: str = "export") -> Counter:
    """Counts of 'old', 'new', 'damaged' files, of kills that left a temporary or a lock, and of 'litter' that stayed."""
    prepare(folder, rows)
    gallery, rng, found = folder / GALLERY, np.random.default_rng(seed), Counter()
    # The same command over the same file makes the same bytes, which is how old and new are known afterwards.
    whole(folder, "export", "model.safetensors", "old.h5", "-o", GALLERY)
    old = gallery.read_bytes()
    begin = time.monotonic()
    whole(folder, *COMMANDS[what])
    took = time.monotonic() - begin
    files = {gallery.read_bytes(): "new", old: "old"}
    assert len(files) == 2
    for i in range(kills):
        gallery.write_bytes(old)
        process = start(folder, *COMMANDS[what])
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
        state = files.get(gallery.read_bytes(), "damaged") if gallery.exists() else "damaged"
        if state != "damaged":
            read_gallery(gallery)
        found[state] += 1
        found["temporary left"] += bool(temporaries(folder))
        found["lock left"] += (folder / f".{GALLERY}.lock").exists()
        if temporaries(folder):
            gallery.write_bytes(old)
            whole(folder, *COMMANDS[what])
            found["litter"] += bool(temporaries(folder))
    gallery.write_bytes(old)
    whole(folder, *COMMANDS[what])
    found["litter"] += bool(temporaries(folder)) + (folder / f".{GALLERY}.lock").exists()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", choices=COMMANDS, default="export")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = kill_exports(Path(folder), asked.kills, asked.rows, asked.seed, asked.what)
    printable = ("old", "new", "damaged", "temporary left", "lock left", "ended before the kill", "litter")
    print(f"{asked.kills} kills: " + ", ".join(f"{what} {found[what]}" for what in printable))
    return int(bool(found["damaged"] or found["litter"]))


if __name__ == "__main__":
    sys.exit(main())
