"""Opening a gallery of about a gigabyte: mapped or read, with its hash or without. Prints JSON.

    python benchmarks/open_time.py [--rows 85000000] [--target ivfpq] [--rounds 5]

Each way is timed in a process of its own, median of the rounds, the file in the page cache: what is measured is the work,
not the disk. Codes are random, 4 codebooks of 8 bits (ivfpq: 12 bytes a row with its id; pq: 4; buckets: 10, few words).
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import faiss
import numpy as np

import scqfaiss
from scqfaiss.codebooks import Codebooks
from scqfaiss.encoders.chain import Chain
from scqfaiss.files import atomic_write
from scqfaiss.footer import write_sealed
from scqfaiss.galleries.exporting import SUFFIX, build

WAYS = {
    "mmap": {"mmap": True, "verify": False},
    "mmap_hashed": {"mmap": True, "verify": True},
    "read": {"mmap": False, "verify": False},
    "read_hashed": {"mmap": False, "verify": True},
}
OPEN = """
import json, sys, time
import numpy as np
import faiss, scqfaiss
from statistics import median
import scqfaiss.galleries.gallery
path, rounds, how = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
times = []
for _ in range(rounds):
    start = time.perf_counter()
    gallery = scqfaiss.open(path, **how)
    times.append(time.perf_counter() - start)
D, I = gallery.search(np.zeros((1, 16), np.float32), 3)
assert (I >= 0).all()  # the mapped rows are there
print(median(times))
"""


def write(path: Path, rows: int, target: str) -> None:
    rng = np.random.default_rng(0)
    codebooks = Codebooks("product", rng.standard_normal((4, 256, 4)).astype(np.float32))
    model = scqfaiss.Model(Chain(16), codebooks, {"method": "pq", "rule": "l2", "encoder": "identity"})
    if target == "buckets":  # words repeat
        codes = rng.integers(0, 256, (1 << 12, 4), np.uint8)[rng.integers(0, 1 << 12, rows, np.uint16)]
    else:
        codes = rng.integers(0, 256, (rows, 4), np.uint8)
    index, metadata = build(model, codes, np.arange(rows), target)
    with atomic_write(path, suffix=SUFFIX) as output:
        output.write(
            lambda f: write_sealed(f, lambda put: faiss.write_index(index, faiss.PyCallbackIOWriter(put)), metadata)
        )


@click.command()
@click.option("--rows", default=85_000_000, show_default=True)
@click.option("--target", default="ivfpq", show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where the file is made; default: the system's own place."
)
def main(rows: int, target: str, rounds: int, folder: Path | None) -> None:
    """Seconds for each way of opening, and gigabytes a second."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        path = Path(made) / f"g{SUFFIX}"
        if os.fork() == 0:  # what writing takes in memory goes back to the system
            write(path, rows, target)
            os._exit(0)
        assert os.wait()[1] == 0
        gb = path.stat().st_size / 1e9
        out = {"gb": round(gb, 3)}
        for name, how in WAYS.items():
            asked = [sys.executable, "-c", OPEN, str(path), str(rounds), json.dumps(how)]
            done = subprocess.run(asked, check=True, capture_output=True, text=True)
            took = float(done.stdout)
            out[f"{name}_ms"] = round(1e3 * took, 2)
            out[f"{name}_gb_per_s"] = round(gb / took, 2)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
