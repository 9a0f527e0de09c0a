"""Search on one thread in every container of product codes, at a million rows or ten. Prints JSON.

    python benchmarks/search_speed.py DATA/cifar10_setting1 [--rows 1000000] [--also 0] [--noise 0.1]

Two models learn from train.h5: 32 bits as 4 books of 256 codewords, and as 8 books of 16 for fast scan. The rows are drawn with
replacement from database.h5, with Gaussian noise of `noise` times the standard deviation of each feature, so that codes do not
repeat as rows do: `rows_distinct` of them, beside `real_distinct` of the database itself. Queries are those of query.h5, encoded.

Each container is searched through its target, as a gallery searches it. All take turns in every round, so that what slows the
machine slows them alike; a batch that takes longer than 5 s is in 3 of the rounds. Of each:
`_ms` a query in a batch of all, the median over rounds; `_single_ms` the median of 200 searches with one query each;
`_bytes` of the FAISS stream a row; `_recall` share of the rows found whose exact score is at least the exact k-th best (within
1e-5); `_difference` the largest of any score from the exact one, where the target promises exactness.

pq            IndexPQ, exhaustive
ivfpq         IndexIVFPQ, one list, exhaustive: what an export makes that asks for nothing
ivfpq_1024    the same with 1,024 lists of which 8 are visited
buckets       exact; buckets_plain: what FAISS by itself finds in it with the nprobe in the file
faiss         FAISS's own IVF1024,PQ4np, trained on the encoded rows and filled with them, nprobe 8; `faiss_recall` is
              against its own codes, all lists visited. `faiss_float_recall` and `buckets_float_recall` are against the
              encoded rows before they are coded.
pq_8x4        IndexPQ with the 8x4 codes as this package stores them, two books in one
generic_8x4   IndexPQ with the 8x4 codes as they are, which FAISS scans code by code
fastscan      IndexPQFastScan without a second look; fastscan_refine: with it, at its default

lift_8x4      (with --additive) additive 8x4 codes of a third model, exhaustive; fastscan_additive, fastscan_additive_refine

--also N adds pq and buckets of the first N rows (`also_...`) and `buckets_growth`, the ratio of the two times of buckets.
"""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import click
import faiss
import numpy as np

import scqfaiss
from scqfaiss import faiss_calls
from scqfaiss.codebooks import Codebooks
from scqfaiss.data import open_rows
from scqfaiss.targets import make_options, target
from scqfaiss.targets.pq import index_pq
from scqfaiss.targets.pretransform import unwrap_index

BLOCK = 1 << 15  # rows drawn and encoded at a time
SLOW = 5.0  # seconds a batch
SINGLE = 200  # searches with one query
SLACK = 1e-5  # in scores of length 1


@dataclass
class Container:
    """An index and how it is searched; `codes` are those it holds, None where they are FAISS's own."""

    index: Any
    search: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
    books: Codebooks
    codes: np.ndarray | None
    z: np.ndarray  # queries
    seconds: list[float] = field(default_factory=list)
    single: float = 0.0
    D: Any = None
    I: Any = None

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """What the codes of some rows stand for."""
        return self.books.decode(self.codes[rows])

    def round(self, k: int) -> float:
        start = time.perf_counter()
        self.D, self.I = self.search(self.z, k)
        return time.perf_counter() - start


def read(path: Path) -> tuple[np.ndarray, Any]:
    with open_rows(path) as source:
        assert source.labels is not None
        return source.read(0, len(source)), source.labels.y


def drawn(x: np.ndarray, rows: int, noise: float, seed: int | tuple[int, ...]) -> Any:
    """(first row, rows like those of x) block by block."""
    rng = np.random.default_rng(seed)
    spread = (noise * x.std(0)).astype(np.float32)
    for i in range(0, rows, BLOCK):
        part = x[rng.integers(0, len(x), min(BLOCK, rows - i))]
        yield i, part + spread * rng.standard_normal(part.shape, np.float32)


def held(name: str, model: Any, codes: np.ndarray, z: np.ndarray, **options: int) -> Container:
    made, books = target(name), model.codebooks
    index = made.build(books, codes, np.arange(len(codes)), make_options(name, options))
    return Container(index, lambda z, k: made.search(index, z, k), books, codes, z)


def plain(index: Any, books: Codebooks, codes: Any, z: np.ndarray) -> Container:
    """An index that FAISS searches by itself."""
    return Container(index, index.search, books, codes, z)


def bytes_of(index: Any) -> int:
    """Length of the FAISS stream."""
    sizes = []
    faiss.write_index(index, faiss.PyCallbackIOWriter(lambda part: sizes.append(len(part))))
    return sum(sizes)


def recall(best: np.ndarray, scores: np.ndarray) -> float:
    """Share of scores (nq, k) not below the least of the best (nq, k)."""
    return float((scores >= best[:, -1:] - SLACK).mean())


def scored(z: np.ndarray, I: np.ndarray, vectors: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """(nq, k) exact scores of the rows found; nothing found scores -inf."""
    x = vectors(np.maximum(I, 0).ravel()).reshape(*I.shape, -1)
    return np.where(I < 0, -np.inf, np.einsum("qd,qkd->qk", z, x))


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--also", default=0, help="A smaller number of rows, in the same rounds.")
@click.option("--wide-only", is_flag=True, help="Leave the 8x4 codes out: half the encoding.")
@click.option("--additive", is_flag=True, help="Time additive 8x4 codes too.")
@click.option("--queries", default=0, help="Of the query file; all if 0.")
@click.option("--noise", default=0.1, show_default=True)
@click.option("--k", default=10, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(
    data: Path,
    rows: int,
    also: int,
    wide_only: bool,
    additive: bool,
    queries: int,
    noise: float,
    k: int,
    rounds: int,
    seed: int,
) -> None:
    """Time every container over the rows of DATA."""
    x, y = read(data / "train.h5")
    wide = scqfaiss.train(x, y, bits=32, seed=seed)
    narrow = scqfaiss.train(x, y, bits=32, nbits=4, seed=seed)
    sums = scqfaiss.train(x, y, bits=32, nbits=4, **{"codebooks.kind": "additive"}, seed=seed) if additive else None
    xq, xb = read(data / "query.h5")[0], read(data / "database.h5")[0]
    xq = xq[: queries or None]
    zq, zq4 = wide.embed(xq), narrow.embed(xq)
    out: dict[str, float] = {"rows": rows, "real_distinct": distinct(wide.encode(xb))}
    z = np.empty((rows, wide.codebooks.d), np.float32)
    codes, codes4 = np.empty((rows, wide.codebooks.M), np.uint8), np.empty((rows, narrow.codebooks.M), np.uint8)
    codes_sums = np.empty((rows if additive else 0, narrow.codebooks.M), np.uint8)
    with ThreadPoolExecutor(1) as pool:
        for i, part in drawn(xb, rows, noise, seed):
            if sums is not None:
                codes_sums[i : i + len(part)] = sums.encode(part)
            other = None if wide_only else pool.submit(narrow.encode, part)
            z[i : i + len(part)] = wide.embed(part)
            codes[i : i + len(part)] = wide.assign(z[i : i + len(part)])
            if other is not None:
                codes4[i : i + len(part)] = other.result()
    out["rows_distinct"] = distinct(codes)

    own = faiss.index_factory(z.shape[1], "IVF1024,PQ4np", faiss.METRIC_INNER_PRODUCT)
    own.train(z[:: max(1, rows // 200_000)])
    own.add(z)
    own.nprobe = 8
    start = time.perf_counter()
    buckets = held("buckets", wide, codes, zq)
    out |= {"buckets_build_seconds": time.perf_counter() - start, "buckets_nlist": unwrap_index(buckets.index).nlist}
    out["buckets_nprobe"] = unwrap_index(buckets.index).nprobe
    containers = {
        "pq": held("pq", wide, codes, zq),
        "ivfpq": held("ivfpq", wide, codes, zq),
        "ivfpq_1024": held("ivfpq", wide, codes, zq, nlist=1024, nprobe=8),
        "buckets": buckets,
        "buckets_plain": plain(buckets.index, wide.codebooks, codes, zq),
        "faiss": plain(own, wide.codebooks, None, zq),
    }
    if not wide_only:
        out["rows_distinct_8x4"] = distinct(codes4)
        containers |= {
            "pq_8x4": held("pq", narrow, codes4, zq4),
            "generic_8x4": plain(index_pq(narrow.codebooks, codes4), narrow.codebooks, codes4, zq4),
            "fastscan": held("fastscan", narrow, codes4, zq4, refine=-1),
            "fastscan_refine": held("fastscan", narrow, codes4, zq4),
        }
    if sums is not None:
        z_sums = sums.embed(xq)
        containers["lift_8x4"] = held("lift", sums, codes_sums, z_sums)
        containers["fastscan_additive"] = held("fastscan", sums, codes_sums, z_sums, refine=-1)
        containers["fastscan_additive_refine"] = held("fastscan", sums, codes_sums, z_sums)
    if also:
        containers["also_pq"] = held("pq", wide, codes[:also], zq)
        containers["also_buckets"] = held("buckets", wide, codes[:also], zq)

    faiss.omp_set_num_threads(1)
    slow = {name: c.round(k) > SLOW for name, c in containers.items()}
    for number in range(rounds):
        for name, c in containers.items():
            if not slow[name] or number in (0, rounds // 2, rounds - 1):
                c.seconds.append(c.round(k))
    for c in containers.values():
        times = []
        for q in range(SINGLE):
            one = c.z[q % len(c.z)][None]
            start = time.perf_counter()
            c.search(one, k)
            times.append(time.perf_counter() - start)
        c.single = 1e3 * median(times)

    exact = {id(wide.codebooks): containers["pq"].D}
    if not wide_only:
        exact[id(narrow.codebooks)] = containers["pq_8x4"].D
    if sums is not None:
        exact[id(sums.codebooks)] = containers["lift_8x4"].D
    for name, c in containers.items():
        out[f"{name}_ms"] = 1e3 * median(c.seconds) / len(c.z)
        out[f"{name}_single_ms"] = c.single
        out[f"{name}_bytes"] = bytes_of(c.index) / c.index.ntotal
        if c.codes is not None:
            best = containers["also_pq"].D if name.startswith("also") else exact[id(c.books)]
            out[f"{name}_recall"] = recall(best, scored(c.z, c.I, c.vectors))
            if name in ("ivfpq", "buckets", "also_buckets", "generic_8x4"):
                out[f"{name}_difference"] = float(np.abs(c.D - best).max())
    best, _ = faiss_calls.search(own, zq, k, faiss.SearchParametersIVF(nprobe=own.nlist))
    out["faiss_recall"] = recall(best, containers["faiss"].D)
    best, _ = faiss.knn(zq, z, k, metric=faiss.METRIC_INNER_PRODUCT)
    for name in ("buckets", "faiss"):
        out[f"{name}_float_recall"] = recall(best, scored(zq, containers[name].I, z.__getitem__))
    out["buckets_equal"] = int(out["buckets_difference"] <= SLACK)
    for name in ("ivfpq", "ivfpq_1024", "buckets", "buckets_plain", "faiss"):
        out[f"{name}_ratio"] = out["pq_ms"] / out[f"{name}_ms"]
    out["buckets_to_faiss"] = out["faiss_ms"] / out["buckets_ms"]
    for name in [name for name in containers if name.startswith("fastscan")]:
        for other in ["pq", "lift_8x4"] if wide_only else ["pq", "pq_8x4", "generic_8x4"]:
            out[f"{name}_to_{other}"] = out[f"{other}_ms"] / out[f"{name}_ms"]
    if also:
        out["also_rows"] = also
        out["also_equal"] = int(out["also_buckets_difference"] <= SLACK)
        out["buckets_growth"] = out["buckets_ms"] / out["also_buckets_ms"]
    print(json.dumps({key: value if isinstance(value, int) else float(f"{value:.4g}") for key, value in out.items()}))


def distinct(codes: np.ndarray) -> int:
    packed = np.zeros((len(codes), 8), np.uint8)
    packed[:, : codes.shape[1]] = codes
    return len(np.unique(packed.view(np.uint64)))


if __name__ == "__main__":
    main()
