"""Appending rows to a gallery and removing rows from it: seconds, and proof that both equal a rebuild. Prints JSON.

    python benchmarks/edit_speed.py [--rows 1000000] [--more 10000] [--fewer 1000]

Rows of 64 numbers around 100 centres, 4 codebooks of 8 bits, encoder inside the file; whole calls of scqfaiss.append and
scqfaiss.remove, file synced and read back. A form whose lists are learned from the rows (boxes of buckets) is compared by
its answers, the others by their bytes. Exit code 1 where anything differs.
"""

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

import click
import numpy as np

import scqfaiss

TARGETS = {"ivfpq": {}, "ivfpq_lists": {"nlist": 1024}, "buckets": {}}


def same(a: Path, b: Path, xq: np.ndarray, target: str) -> bool:
    """Whether two galleries are the same, down to the order of ties."""
    if target == "ivfpq":
        return a.read_bytes() == b.read_bytes()
    one, other = scqfaiss.open(a), scqfaiss.open(b)
    (_, codes, ids), (_, codes_b, ids_b) = one.unpack(), other.unpack()
    order, order_b = ids.argsort(), ids_b.argsort()
    if not (np.array_equal(ids[order], ids_b[order_b]) and np.array_equal(codes[order], codes_b[order_b])):
        return False
    lists = {"nprobe": 1024} if target == "ivfpq_lists" else {}
    return np.allclose(one.search(xq, 10, **lists)[0], other.search(xq, 10, **lists)[0], rtol=1e-5)


@click.command()
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--more", default=10_000, show_default=True)
@click.option("--fewer", default=1_000, show_default=True)
def main(rows: int, more: int, fewer: int) -> None:
    """Seconds of an append and a remove in each form."""
    warnings.simplefilter("ignore", scqfaiss.ScqWarning)
    rng = np.random.default_rng(0)
    centres = 2 * rng.standard_normal((100, 64), dtype=np.float32)
    x = centres[rng.integers(0, 100, rows + more)] + rng.standard_normal((rows + more, 64), dtype=np.float32)
    xq = centres[:50] + rng.standard_normal((50, 64), dtype=np.float32)
    model = scqfaiss.train(x[:10_000], method="pq", bits=32)
    ids = np.arange(rows + more)
    gone = np.sort(rng.choice(rows + more, fewer, replace=False))
    stays = ~np.isin(ids, gone)
    out: dict[str, float | bool] = {}
    with tempfile.TemporaryDirectory() as folder:
        g, again = Path(folder) / "g.faissindex", Path(folder) / "again.faissindex"
        for name, options in TARGETS.items():
            target = name.partition("_")[0]
            scqfaiss.export(model, x[:rows], ids=ids[:rows], path=g, target=target, **options)
            start = time.perf_counter()
            scqfaiss.append(g, x[rows:], ids=ids[rows:])
            out[f"{name}_append_s"] = round(time.perf_counter() - start, 2)
            start = time.perf_counter()
            scqfaiss.export(model, x, ids=ids, path=again, target=target, **options)
            out[f"{name}_rebuild_s"] = round(time.perf_counter() - start, 2)
            equal = same(g, again, xq, name)
            start = time.perf_counter()
            scqfaiss.remove(g, gone)
            out[f"{name}_remove_s"] = round(time.perf_counter() - start, 2)
            scqfaiss.export(model, x[stays], ids=ids[stays], path=again, target=target, **options)
            out[f"{name}_equal"] = int(equal and same(g, again, xq, name))
    print(json.dumps(out))
    sys.exit(0 if all(out[f"{name}_equal"] for name in TARGETS) else 1)


if __name__ == "__main__":
    main()
