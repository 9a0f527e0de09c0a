"""Searches while the gallery beneath them is replaced: every answer is the old file's or the new one's. Prints JSON.

    python benchmarks/hot_swap.py [--mmap] [--rows 200000] [--swaps 60] [--threads 8] [--rate 100]

Two galleries of one model take turns under one name, by a rename and Gallery.refresh(). Threads search meanwhile, and each
answer is compared bit for bit with what either gallery answers alone; a single other one, or an error, makes exit code 1.
"""

import json
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import click
import numpy as np

import scqfaiss

K = 10
QUERIES = 64


def prepare(folder: Path, rows: int) -> np.ndarray:
    """old.faissindex and new.faissindex of one model, other rows under other ids; returns queries."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2 * rows, 64), dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = scqfaiss.train(x[:2000], method="pq", bits=32)
    for i, name in enumerate(("old", "new")):
        part = slice(i * rows, (i + 1) * rows)
        scqfaiss.export(model, x[part], ids=np.arange(2 * rows)[part], path=folder / f"{name}.faissindex")
    return rng.standard_normal((QUERIES, 64), dtype=np.float32)


def measure(
    folder: Path, rows: int, swaps: int, threads: int, rate: float, seconds: float, mmap: bool
) -> dict[str, float]:
    """`swaps` swaps spread over `seconds`, `threads` threads that search `rate` times a second together."""
    xq, live = prepare(folder, rows), folder / "live.faissindex"
    names = ("old", "new")
    expected = []
    for name in names:
        alone = scqfaiss.open(folder / f"{name}.faissindex", mmap=mmap)
        expected.append([alone.search(xq[q : q + 1], K) for q in range(QUERIES)])
    shutil.copy(folder / "old.faissindex", live)
    gallery = scqfaiss.open(live, mmap=mmap)
    done = threading.Event()
    took: list[float] = []
    seen: list[int] = []
    errors: list[BaseException] = []

    def load(number: int) -> None:
        due, q = time.perf_counter() + number / rate, number
        while not done.wait(max(0.0, due - time.perf_counter())):
            due, q = due + threads / rate, (q + threads) % QUERIES
            start = time.perf_counter()
            try:
                D, I = gallery.search(xq[q : q + 1], K)
            except Exception as error:
                errors.append(error)
                continue
            took.append(time.perf_counter() - start)
            wanted = [np.array_equal(D, e[q][0]) and np.array_equal(I, e[q][1]) for e in expected]
            seen.append(wanted.index(True) if any(wanted) else -1)

    workers = [threading.Thread(target=load, args=(i,)) for i in range(threads)]
    begin, made = time.perf_counter(), 0
    for w in workers:
        w.start()
    try:
        for i in range(swaps):
            shutil.copy(folder / f"{names[(i + 1) % 2]}.faissindex", folder / "next.faissindex")
            os.replace(folder / "next.faissindex", live)
            made += gallery.refresh()
            time.sleep(max(0.0, begin + (i + 1) * seconds / swaps - time.perf_counter()))
    finally:
        done.set()
        for w in workers:
            w.join()
    spent = time.perf_counter() - begin
    ms = 1e3 * np.array(took or [np.nan])
    for error in errors[:3]:
        print(repr(error), file=sys.stderr)
    return {
        "searches": len(seen),
        "swaps": made,
        "errors": len(errors),
        "mixed": seen.count(-1),
        "answers_old": seen.count(0),
        "answers_new": seen.count(1),
        "searches_per_s": round(len(seen) / spent, 1),
        "p50_ms": round(float(np.median(ms)), 2),
        "p99_ms": round(float(np.percentile(ms, 99)), 2),
    }


@click.command()
@click.option("--rows", default=200_000, show_default=True)
@click.option("--swaps", default=60, show_default=True)
@click.option("--threads", default=8, show_default=True)
@click.option("--rate", default=100.0, show_default=True, help="Searches a second, all threads together.")
@click.option("--seconds", default=30.0, show_default=True)
@click.option("--mmap", is_flag=True)
def main(**asked: float) -> None:
    """Searches, swaps, errors, and how long a search takes meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), **asked)
    print(json.dumps(found))
    sys.exit(1 if found["errors"] or found["mixed"] or found["swaps"] != asked["swaps"] else 0)


if __name__ == "__main__":
    main()
