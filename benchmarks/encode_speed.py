"""Encoding and exporting a million rows, against bare matrix products and FAISS's own encoder. Prints JSON.

    python benchmarks/encode_speed.py [--rows 1000000] [--rounds 3]

Ours: `scqfaiss export` as a whole process, rows of 512 float32 on disk, mlp encoder, file written, synced and read back.
Bare: the matrix products of the same encoder in NumPy (no activation, no bias, no norm) and ProductQuantizer.compute_codes,
rows in memory, nothing written, at the block size that suits it best. The two take turns; medians.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import click
import faiss
import h5py
import numpy as np

import scqfaiss
from scqfaiss.model import Model

D, C = 512, 10
BLOCKS = (1024, 8192)
# `scqfaiss export` that tells its own peak memory at the end: the figure kept for child processes counts this one's too.
EXPORT = """
import sys
from scqfaiss.cli.program import run
code = run(sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


def bare(x: np.ndarray, model: Model, pq: Any, block: int) -> float:
    """Seconds for products and codes alone."""
    matrices = [arrays["A"] for op, arrays in model.chain.layers if op in ("linear", "heads")]
    start = time.perf_counter()
    for i in range(0, len(x), block):
        h = x[i : i + block]
        for A in matrices:
            if A.ndim == 3:
                members = h.reshape(len(h), len(A), -1).transpose(1, 0, 2)
                h = np.matmul(members, A.transpose(0, 2, 1)).mean(0)
            else:
                h = h @ A.T
        pq.compute_codes(np.ascontiguousarray(h))
    return time.perf_counter() - start


@click.command()
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--members", default=3, show_default=True, help="Classifiers averaged by the encoder.")
def main(rows: int, rounds: int, members: int) -> None:
    """Rows per second of both sides, their ratio, peak memory of the export."""
    rng = np.random.default_rng(0)
    x = np.abs(rng.standard_normal((rows, D), dtype=np.float32))
    model = scqfaiss.train(x[:4000], rng.integers(0, C, 4000), bits=32, epochs=1, members=members)
    pq = faiss.ProductQuantizer(model.codebooks.d, model.codebooks.M, 8)
    faiss.copy_array_to_vector(model.codebooks.centroids.ravel(), pq.centroids)
    ours, plain, peaks = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "m.safetensors")
        with h5py.File(Path(folder) / "rows.h5", "w") as f:
            f.create_dataset("features", data=x, chunks=(2048, D), fletcher32=True)
        command = [sys.executable, "-c", EXPORT, "export", "m.safetensors", "rows.h5", "-o", "g.faissindex"]
        for _ in range(rounds):
            start = time.perf_counter()
            done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
            ours.append(time.perf_counter() - start)
            peaks.append(1024 * int(done.stdout.split()[-1]))
            plain.append(min(bare(x, model, pq, block) for block in BLOCKS))
    out = {
        "ours_rows_per_s": round(rows / median(ours)),
        "bare_rows_per_s": round(rows / median(plain)),
        "ratio": round(median(b / a for a, b in zip(ours, plain)), 3),
        "peak_gb": round(max(peaks) / 1e9, 3),
    }
    print(json.dumps(out))


if __name__ == "__main__":
    main()
