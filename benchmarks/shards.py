"""What it costs to cut a gallery into shards: the merge, the bytes, and the times of single shards. Prints JSON. Needs no Ray.

    python benchmarks/shards.py merge [--queries 1000] [-k 10]
    python benchmarks/shards.py search [--rows 1000000]
    python benchmarks/shards.py tail -o TIMES.json [--rows 1000000] [--shards 8] [--searches 3000]

merge: milliseconds of merging the hits of 1 to 16 shards, for one query and for many, with a fitted line; bytes a query that
travel where shards are on other machines: k hits of 12 bytes from each shard, d numbers of 4 bytes to each. search: one process,
one thread, the same rows in 1 to 16 shards. tail: times of every shard in every search, the longest of each search (what a
cluster waits for), and of searches that ask all shards on one core: for benchmarks/tail_latency.py.
"""

import json
import tempfile
import time
import warnings
from pathlib import Path

import click
import faiss
import numpy as np

import scqfaiss
from scqfaiss.galleries.shards.merging import merge_hits

COUNTS = (1, 2, 4, 8, 16)
D = 64
warnings.simplefilter("ignore")


def rows_of(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = 2 * np.random.default_rng(9).standard_normal((100, D), dtype=np.float32)
    return centres[rng.integers(0, 100, n)] + rng.standard_normal((n, D), dtype=np.float32)


def line(x: tuple[int, ...], y: list[float]) -> dict[str, float]:
    """y = fixed + slope x by least squares, and how far off it is at most."""
    slope, fixed = np.polyfit(x, y, 1)
    off = np.abs(np.polyval([slope, fixed], x) / np.array(y) - 1).max()
    return {"fixed": round(float(fixed), 5), "a_shard": round(float(slope), 5), "off_at_most": round(float(off), 3)}


def best(work, times: int) -> float:
    """Seconds of the fastest of some runs."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@click.group()
def main() -> None:
    """What shards cost."""


@main.command()
@click.option("--queries", default=1000, show_default=True)
@click.option("-k", default=10, show_default=True)
def merge(queries: int, k: int) -> None:
    """Seconds and bytes of merging."""
    rng, out = np.random.default_rng(0), {"k": k, "d": D, "merge_ms": {}, "bytes_a_query": {}}
    for nq in (1, queries):
        ms = []
        for S in COUNTS:
            parts = [(-np.sort(-rng.random((nq, k), np.float32)), rng.integers(0, 10**9, (nq, k))) for _ in range(S)]
            ms.append(1000 * best(lambda parts=parts: merge_hits(parts, k, "ip"), 200 if nq == 1 else 10))
        out["merge_ms"][str(nq)] = dict(zip(map(str, COUNTS), [round(v, 4) for v in ms])) | {"line": line(COUNTS, ms)}
    for S in COUNTS:
        out["bytes_a_query"][str(S)] = S * (12 * k + 4 * D)
    one, many = out["merge_ms"]["1"]["16"], out["merge_ms"][str(queries)]["16"]
    out |= {"one_query_16_shards_ms": one, "many_queries_16_shards_ms": round(many / queries, 4)}
    print(json.dumps(out | {"bytes_a_query_16_shards": out["bytes_a_query"]["16"]}))


@main.command()
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--queries", default=200, show_default=True)
def search(rows: int, queries: int) -> None:
    """One process, one thread: the same rows in 1 to 16 shards, by ivfpq (every row) and buckets."""
    x, xq, out = rows_of(rows), rows_of(queries, seed=1), {"rows": rows, "ms_a_query": {}}
    faiss.omp_set_num_threads(1)
    model = scqfaiss.train(x[:20_000], method="pq", bits=32)
    for target in ("ivfpq", "buckets"):
        ms, equal, first = [], True, None
        with tempfile.TemporaryDirectory() as folder:
            for S in COUNTS:
                scqfaiss.export(model, x, path=f"{folder}/{S}.shards", target=target, shards=S)
                gallery = scqfaiss.open(f"{folder}/{S}.shards")
                found = gallery.search(xq, 10)[0]
                first = found if first is None else first
                equal &= bool(np.allclose(found, first, rtol=1e-5, atol=1e-5))
                ms.append(1000 * best(lambda g=gallery: g.search(xq, 10), 3) / queries)
        out["ms_a_query"][target] = dict(zip(map(str, COUNTS), [round(v, 4) for v in ms])) | {
            "line": line(COUNTS, ms),
            "equal": equal,
        }
    print(json.dumps(out))


@main.command()
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--shards", default=8, show_default=True)
@click.option("--searches", default=3000, show_default=True)
@click.option("--target", default="buckets", show_default=True)
def tail(out: Path, rows: int, shards: int, searches: int, target: str) -> None:
    """Times of single shards, and of the longest of each search, which is what a cluster waits for."""
    x, xq = rows_of(rows), rows_of(searches, seed=1)
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = scqfaiss.train(x[:20_000], method="pq", bits=32)
        scqfaiss.export(model, x, path=f"{folder}/x.shards", target=target, shards=shards)
        gallery = scqfaiss.open(f"{folder}/x.shards")
        parts = gallery._opened.parts
        seconds, merges, whole = np.empty((searches, shards)), np.empty(searches), np.empty(searches)
        for q in range(searches):
            found = []
            for s, part in enumerate(parts):
                start = time.perf_counter()
                found.append(part.search(xq[q : q + 1], 10))
                seconds[q, s] = time.perf_counter() - start
            start = time.perf_counter()
            merge_hits(found, 10, "ip")
            merges[q] = time.perf_counter() - start
            start = time.perf_counter()
            gallery.search(xq[q : q + 1], 10)
            whole[q] = time.perf_counter() - start
    values = {
        "of_shards": seconds.T.tolist(),
        "merge": float(np.median(merges)),
        "searches": (seconds.max(1) + merges).tolist(),
        "one_core": whole.tolist(),
    }
    out.write_text(json.dumps(values))
    of = {f"p{p}_ms": round(1000 * float(np.percentile(seconds, p)), 3) for p in (50, 99)}
    print(json.dumps({"shards": shards, "of_a_shard": of, "merge_ms": round(1000 * values["merge"], 4)}))


if __name__ == "__main__":
    main()
