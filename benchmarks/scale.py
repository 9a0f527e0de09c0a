"""Time and memory of a search against the number of rows, for every container of the package and for FAISS's own IVFPQ.

    python benchmarks/scale.py DATA/cifar10_setting1 --baseline --out results/scale

Writes OUT/results.json, a document of kind 'scale' (see scqfaiss/comparison/results.py), row by row: an interrupted run
goes on with the rows that are there. Prints a table, and one JSON line with the exponents of the fits.

Where the codes come from: one SCQ model learns from train.h5. Rows are drawn with replacement from database.h5, with Gaussian
noise of `noise` times the standard deviation of each feature, so that codes do not repeat as rows do, and encoded once, to z.
Every codebook codes that z; the first n rows of it are the gallery of n rows:

wide        the model's own product books of 8 bits: ivfpq, ivfpq-lists, pq, buckets
narrow      product books of 4 bits: fastscan
additive    additive books of 4 bits: lift, residual

narrow and additive are of method scq with encoder=identity, on z of the database as it is. z has the fewest dimensions that
the classes fit into and all of these books divide.

Two baselines (--baseline) that FAISS trains on z and fills with z: faiss-ivfpq is `IVF{nlist},PQ{M}np` as its factory makes it
for inner products, with lists of spherical k-means, which suits rows of length 1 and not these; faiss-ivfpq-l2 has lists of
plain k-means, as ivfpq-lists has, and queries choose among them by inner product. These and ivfpq-lists have nlist =
4 sqrt(rows), rounded down to a power of two, and the least nprobe, a power of two, that finds 0.95 of the exact first 10. Exact
is by the codes' own scores, of the baselines a search of all of their lists. Ties count as found.

Everything that is timed runs on one thread: building, searching a batch, searching one query. Each index is written to disk
and searched as it is opened from there, one at a time. `memory` is what a fresh process allocates for it. A timing is the
median of 5 calls or more (`repeats`) within `budget` seconds; `batch`, queries of a call, are as many as that leaves time for.
`core` is the share of that time in which other work left the core to it; below 0.9 it is measured up to twice more.

What is encoded stays in --work, in a folder of its own for each data set and setting, 84 bytes a row at 32 bits: of rows as they
were drawn nothing is kept. Ten million take less than 4 GB of memory.
"""

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import click
import faiss
import numpy as np
from measuring import footprint, run_facts, threads, typed
from own_faiss import probe_by_product, with_plain_lists
from search_speed import drawn, read, recall, scored
from upstream import sizes

import scqfaiss
from scqfaiss import faiss_calls
from scqfaiss.comparison.results import FILE, Results, file_hash
from scqfaiss.files import make_folder, reserve
from scqfaiss.galleries.exporting import SUFFIX, build, write
from scqfaiss.model import Model
from scqfaiss.targets import target
from scqfaiss.targets.lists import code_keys
from scqfaiss.targets.pretransform import unwrap_index

K_NEAREST = 10
WANTED = 0.95  # of the exact first 10, with lists
PIECE = 1 << 18  # rows of a file of work
LEAST = 5  # calls of a timing
SINGLES = 100  # searches with one query, at most
SMALL_BATCH = 16  # queries, at least
QUIET = 0.9  # of the time of a timing on the core
TRIES = 3
FAR = 10**9  # rows that the fits are drawn out to
FITTED = ("ms", "single_ms", "build_seconds", "memory")
BASELINES = ("faiss-ivfpq", "faiss-ivfpq-l2")

# name -> (target, codebooks, whether its lists grow)
CASES = {
    "ivfpq": ("ivfpq", "wide", False),
    "ivfpq-lists": ("ivfpq", "wide", True),
    "pq": ("pq", "wide", False),
    "buckets": ("buckets", "wide", False),
    "fastscan": ("fastscan", "narrow", False),
    "lift": ("lift", "additive", False),
    "residual": ("residual", "additive", False),
}


def list_count(rows: int) -> int:
    """4 sqrt(rows), rounded down to a power of two."""
    return 1 << (math.isqrt(16 * rows).bit_length() - 1)


# ------------------------------------------------------------------------------------------------------------- the codes
@dataclass
class Work:
    """Models, embeddings and codes of drawn rows, in files; what is there already is not made again.

    Files hold PIECE rows each, and each piece is drawn by a generator of its own: it does not depend on how many rows a run
    asks for.
    """

    folder: Path
    data: Path
    bits: int
    members: int
    noise: float
    seed: int
    models: dict[str, Model] = field(default_factory=dict)

    def make(self, rows: int, books: set[str]) -> None:
        """Train what has no model file, encode and code what has no piece. `wide` is always among the models."""
        make_folder(self.folder)
        xb, yb = read(self.data / "database.h5")
        wide = self.models["wide"] = self._model("wide", lambda: self._train_wide())
        for name in sorted(books - {"wide"}):
            # Only product books have codewords of their own for classes, and 16 are too few for that.
            how = {"private": "public"} if name == "narrow" else {"codebooks.kind": "additive"}
            self.models[name] = self._model(
                name,
                lambda how=how: scqfaiss.train(
                    wide.embed(xb), yb, bits=self.bits, nbits=4, encoder="identity", seed=self.seed, **how
                ),
            )
        pieces = range(-(-rows // PIECE))
        # Two pieces at a time on a core each beats one on both: drawing, and half of an encoder, use one core alone.
        with threads(1), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for number, made in enumerate(pool.map(lambda piece: self._piece(piece, xb, books), pieces)):
                for name, array in made.items():
                    with reserve(self._path(name, number)) as slot:
                        slot.write(lambda f, array=array: np.save(f, array, allow_pickle=False))
                if made:
                    say(f"encoded {min((number + 1) * PIECE, rows):,} of {rows:,} rows")

    def load(self, name: str, rows: int) -> np.ndarray:
        """The first rows of 'z' (rows, d) float32, or of the codes (rows, M) of a book."""
        first = np.load(self._path(name, 0))
        out = np.empty((rows, first.shape[1]), first.dtype)
        for i in range(0, rows, PIECE):
            out[i : i + PIECE] = np.load(self._path(name, i // PIECE))[: rows - i]
        return out

    def _path(self, name: str, piece: int) -> Path:
        return self.folder / f"{name}-{piece:05d}.npy"

    def _model(self, name: str, train: Callable[[], Model]) -> Model:
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            say(f"training the {name} books")
            train().save(path)
        return Model.load(path)

    def _train_wide(self) -> Model:
        x, y = read(self.data / "train.h5")
        C = y.shape[1] if y.ndim == 2 else int(y.max()) + 1
        step = self.bits // 4  # books of 4 bits: twice as many as of 8, so that both divide d
        d = -(-C // step) * step
        return scqfaiss.train(x, y, bits=self.bits, d=d, members=self.members, seed=self.seed)

    def _piece(self, piece: int, xb: np.ndarray, books: set[str]) -> dict[str, np.ndarray]:
        """What is missing of a piece: 'z' and codes."""
        missing = [name for name in ("z", *sorted(books)) if not self._path(name, piece).exists()]
        if not missing:
            return {}
        if "z" in missing:
            rows = drawn(xb, PIECE, self.noise, (self.seed, piece))
            z = np.concatenate([self.models["wide"].embed(part) for _, part in rows])
        else:
            z = np.load(self._path("z", piece))
        return {name: z if name == "z" else self.models[name].assign(z) for name in missing}


# ---------------------------------------------------------------------------------------------------------- measuring
def timed(search: Callable[[np.ndarray], Any], z: np.ndarray, budget: float) -> dict[str, Any]:
    """Milliseconds a query of search(z) on one thread: in batches, and one query at a time; medians.

    "core": the share of the measured time that this process had the core for itself. Where other work took more than a tenth of
    it, both are measured again, and the least disturbed of TRIES stands.
    """
    tries = []
    with threads(1):
        search(z[:1])
        while not tries or (tries[-1]["core"] < QUIET and len(tries) < TRIES):
            singles, core = _calls(search, z, 1, budget, SINGLES)
            one = median(singles)
            fits = int(budget / (LEAST * one))  # were a batch no faster than its queries one by one
            batch = min(len(z), max(SMALL_BATCH, fits))
            search(z[:batch])
            batches, also = _calls(search, z, batch, budget, math.inf)
            tries.append(
                {
                    "ms": short(1e3 * median(batches) / batch),
                    "single_ms": short(1e3 * one),
                    "batch": batch,
                    "repeats": len(batches),
                    "single_repeats": len(singles),
                    "core": round(min(core, also), 3),
                }
            )
    return max(tries, key=lambda found: found["core"])


def _calls(
    search: Callable[[np.ndarray], Any], z: np.ndarray, batch: int, budget: float, most: float
) -> tuple[list[float], float]:
    """Seconds of each call: `most` or a second of them, LEAST at least, but none begins when the budget is spent; and what
    share of that time the thread was running.
    """
    seconds: list[float] = []
    begun, begun_running = time.perf_counter(), time.thread_time()
    while True:
        first = len(seconds) * batch % max(1, len(z) - batch + 1)
        part = z[first : first + batch]
        start = time.perf_counter()
        search(part)
        end = time.perf_counter()
        seconds.append(end - start)
        enough = len(seconds) >= most or (len(seconds) >= LEAST and end - begun >= min(1.0, budget))
        if enough or end - begun >= budget:
            return seconds, min(1.0, (time.thread_time() - begun_running) / max(end - begun, 1e-9))


def short(value: float) -> float:
    return float(f"{value:.4g}")


def least_nprobe(found: Callable[[int], float], nlist: int) -> tuple[int, float]:
    """The least power of two of lists with found(nprobe) >= WANTED, and what it found."""
    nprobe = 1
    while (share := found(nprobe)) < WANTED and nprobe < nlist:
        nprobe *= 2
    return nprobe, share


class Exact:
    """The exact scores of the first hits by the codes of a book, held for the last book and number of rows asked for."""

    def __init__(self, work: Work, z: np.ndarray) -> None:
        self.work, self.z = work, z
        self.key: tuple[str, int] | None = None
        self.D: Any = None

    def best(self, book: str, codes: np.ndarray) -> np.ndarray:
        """(nq, 10) scores, best first."""
        if self.key != (book, len(codes)):
            books = self.work.models[book].codebooks
            plain = target("pq" if books.kind == "product" else "lift")
            index = plain.build(books, codes, np.arange(len(codes)))
            with threads(0):
                self.D, _ = plain.search(index, self.z, K_NEAREST)
            self.key = book, len(codes)
        return self.D


def store_case(work: Work, name: str, rows: int, z: np.ndarray, exact: Exact, path: Path) -> dict[str, Any]:
    """Build a target of the package and write its gallery -> what is known of it by then."""
    container, book, lists = CASES[name]
    model, codes = work.models[book], work.load(book, rows)
    best = exact.best(book, codes)
    options = {"nlist": list_count(rows)} if lists else {}
    with threads(1):
        start = time.perf_counter()
        index, card = build(model, codes, np.arange(rows), container, options)
        seconds = time.perf_counter() - start

    def share(nprobe: int | None) -> float:
        _, I = target(container).search(index, z, K_NEAREST, nprobe=nprobe)
        return recall(best, scored(z, I, lambda found: model.codebooks.decode(codes[found])))

    with threads(0):
        if lists:
            nprobe, found = least_nprobe(share, options["nlist"])
            unwrap_index(index).nprobe = nprobe
            card |= {"nprobe": nprobe, "options": {**options, "nprobe": nprobe}}
        else:
            found = share(None)
    with reserve(path, suffix=SUFFIX) as slot:
        write(slot, index, card)
    return {
        "build_seconds": short(seconds),
        "recall": short(found),
        "distinct": len(np.unique(code_keys(codes, model.codebooks.nbits))),
        **{key: card[key] for key in ("nlist", "nprobe") if key in card},
    }


def store_baseline(work: Work, name: str, rows: int, z: np.ndarray, path: Path) -> dict[str, Any]:
    """Let FAISS train its own index on the encoded rows and fill it with them, and write it -> what is known by then."""
    x, nlist = work.load("z", rows), list_count(rows)
    M, d = work.bits // 8, x.shape[1]
    if name == "faiss-ivfpq-l2":
        index = with_plain_lists(d, nlist, M)
    else:
        index = faiss.index_factory(d, f"IVF{nlist},PQ{M}np", faiss.METRIC_INNER_PRODUCT)
    with threads(1):
        start = time.perf_counter()
        index.train(x)
        index.add(x)
        seconds = time.perf_counter() - start
    if name == "faiss-ivfpq-l2":
        probe_by_product(index)

    def look(nprobe: int) -> np.ndarray:
        return faiss_calls.search(index, z, K_NEAREST, faiss.SearchParametersIVF(nprobe=nprobe))[0]

    with threads(0):
        best = look(nlist)
        nprobe, found = least_nprobe(lambda nprobe: recall(best, look(nprobe)), nlist)
    index.nprobe = nprobe
    with reserve(path) as slot:
        slot.write(lambda f: faiss.write_index(index, faiss.PyCallbackIOWriter(f.write)))
    return {"build_seconds": short(seconds), "recall": short(found), "nlist": nlist, "nprobe": nprobe}


def measure(work: Work, name: str, rows: int, z: np.ndarray, exact: Exact, budget: float) -> dict[str, Any]:
    """Everything of one row but its name: an index is built and written, and then searched as it is opened."""
    path = work.folder / f"measured{SUFFIX}"
    if name in BASELINES:
        found = store_baseline(work, name, rows, z, path)
        held = footprint(path, "faiss")
        index = faiss.read_index(str(path))
        found |= timed(lambda queries: index.search(queries, K_NEAREST), z, budget)
    else:
        found = store_case(work, name, rows, z, exact, path)
        held = footprint(path, "scqfaiss")
        gallery = scqfaiss.open(path)
        found |= timed(lambda queries: gallery.search(queries, K_NEAREST, encoded=True), z, budget)
    path.unlink()
    return found | {"memory": held["memory"], "disk": held["disk"], "open_ms": short(held["open_ms"])}


# ---------------------------------------------------------------------------------------------------------------- fits
def fit(rows: Any, values: Any) -> dict[str, float]:
    """values = factor * rows ** exponent, by least squares of the logarithms; "error": the exponent's standard error.

    rows, values: of 2 sizes or more; of 2 there is no error.
    """
    x, y = np.log(np.asarray(rows, float)), np.log(np.asarray(values, float))
    spread = float(np.square(x - x.mean()).sum())
    exponent = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
    factor = float(np.exp(y.mean() - exponent * x.mean()))
    found = {"exponent": round(exponent, 4), "factor": factor}
    if len(x) > 2:
        left = y - y.mean() - exponent * (x - x.mean())
        found["error"] = round(math.sqrt(float(np.square(left).sum()) / (len(x) - 2) / spread), 4)
    return found


def fits_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """{target: {what: fit}} of the targets that were measured at 2 sizes or more."""
    out = {}
    for name in dict.fromkeys(row["target"] for row in rows):
        mine = [row for row in rows if row["target"] == name]
        if len({row["rows"] for row in mine}) > 1:
            out[name] = {what: fit([row["rows"] for row in mine], [row[what] for row in mine]) for what in FITTED}
    return out


def extrapolated(fits: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the fits say of FAR rows; memory in proportion to the largest gallery.

    Memory has a fixed part, which bends a power law over small galleries below what the codes and ids alone take.
    """
    out = {}
    for name, table in fits.items():
        out[name] = {what: short(f["factor"] * FAR ** f["exponent"]) for what, f in table.items()}
        largest = max((row for row in rows if row["target"] == name), key=lambda row: row["rows"])
        out[name]["memory"] = round(largest["memory"] * FAR / largest["rows"])
    return {"rows": FAR, "targets": out}


def how(bits: int, members: int, noise: float, d: int, seconds: float) -> str:
    """How the codes came about, for whoever reads the results."""
    return (
        f"Rows were drawn with replacement from the database, with Gaussian noise of {noise:g} times the standard deviation of "
        "each feature, so that codes do not repeat as rows do: duplicates would flatter buckets. They were encoded once, by a "
        f"model of method scq ({members} classifier{'s' if members > 1 else ''}, z of {d} dimensions). Product books of "
        f"{bits // 8} x 8 bits are that model's own; those of {bits // 4} x 4 bits (fastscan) and the additive ones of "
        f"{bits // 4} x 4 bits (lift, residual) are of method scq with encoder identity, trained on z of the database. Each size "
        "is the first so many of the same rows. faiss-ivfpq: as FAISS's factory makes it for inner products, lists of spherical "
        "k-means; faiss-ivfpq-l2: lists of plain k-means, as those of ivfpq-lists. Lists of all three: 4 times the root of the "
        f"rows, rounded down to a power of two; nprobe: the least power of two with {WANTED:g} of the exact first {K_NEAREST} by "
        f"the codes' own scores. One thread; medians of {LEAST} calls or more, within {seconds:g} s each. build_seconds: of the "
        "package's targets from codes to an index, of the two of FAISS training and coding of z. memory: what a fresh process "
        "allocates for the opened file."
    )


ASSUMPTIONS = [
    "Nothing was run at a billion rows: these figures are power laws fitted to the galleries measured, drawn out far beyond the "
    "largest of them.",
    "Exhaustive searches (ivfpq, pq, lift, residual, fastscan) read every code, so their time is linear in the rows; an "
    "exponent below 1 is the fixed cost of a query at the smaller sizes, and makes their extrapolation too small.",
    "nlist goes on growing with the root of the rows, and the nprobe that is needed as it did here. nlist and nprobe are powers "
    "of two, so times move in steps, and an exponent over two decades depends on where the steps fall.",
    "Lists are found by comparing the query with every centroid. With 100,000 centroids and more a graph over them (IVF_HNSW) is "
    "usual: faster, and more memory than is counted here.",
    "Small galleries fit into the processor's cache and large ones do not: fits over both blend the two, and at a billion rows "
    "nearly every list that is visited comes from memory.",
    "The rows are all of the same few classes. Codes of b bits have at most 2^b distinct values, and fewer where classes gather: "
    "the more rows, the more of them share a code, and buckets, which keeps equal codes side by side, then gains; against that, "
    "an exact search must visit every list whose bound the 10th score does not exclude, and with more classes, or rows unlike "
    "these, there are more of them.",
    "Building is fitted on galleries that fit into memory several times over. For a billion rows k-means would learn from a "
    "sample, and rows would be added in parts; ids alone take 8 GB.",
    "memory at a billion rows is not the fit but the largest gallery's, in proportion: the fixed part of small ones bends the "
    "fit below what codes and ids alone take. It leaves out what a search needs beside the index: tables of a query, and the "
    "results.",
]


# -------------------------------------------------------------------------------------------------------------- output
def say(text: str) -> None:
    click.echo(text, err=True)


def table(rows: list[dict[str, Any]], fits: dict[str, Any]) -> Iterator[str]:
    """Lines for the reader: every row, then every fit."""
    yield (
        f"{'target':<12} {'rows':>12} {'ms':>9} {'one query':>9} {'build s':>8} {'memory MB':>10} {'disk MB':>8} "
        f"{'recall':>7} {'distinct':>11} {'nlist':>7} {'nprobe':>6}"
    )
    for r in rows:
        distinct = f"{r['distinct']:,}" if "distinct" in r else ""
        yield (
            f"{r['target']:<12} {r['rows']:>12,} {r['ms']:>9.4g} {r['single_ms']:>9.4g} {r['build_seconds']:>8.3g} "
            f"{r['memory'] / 1e6:>10.1f} {r['disk'] / 1e6:>8.1f} {r['recall']:>7.4f} {distinct:>11} "
            f"{r.get('nlist', ''):>7} {r.get('nprobe', ''):>6}"
        )
    if fits:
        yield "growth with rows, as a power of them (standard error):"
    for name, found in fits.items():
        parts = [
            f"{what} {f['exponent']:.2f}" + (f" ({f['error']:.2f})" if "error" in f else "")
            for what, f in found.items()
        ]
        yield f"{name:<12} " + "   ".join(parts)


def figures(rows: list[dict[str, Any]], fits: dict[str, Any]) -> dict[str, Any]:
    """The numbers of the JSON line: of each target the exponents, and time and recall at its largest size."""
    out: dict[str, Any] = {}
    for row in sorted(rows, key=lambda row: row["rows"]):  # the largest is last and stays
        name = row["target"].replace("-", "_")
        out |= {
            f"{name}_{what}": row[what] for what in ("rows", "ms", "single_ms", "recall", "build_seconds", "memory")
        }
    for target_name, found in fits.items():
        name = target_name.replace("-", "_")
        keys = {"ms": "", "single_ms": "_single", "build_seconds": "_build", "memory": "_memory"}
        out |= {f"{name}{keys[what]}_exponent": f["exponent"] for what, f in found.items()}
        if "error" in found["ms"]:
            out[f"{name}_exponent_error"] = found["ms"]["error"]
    return out


def names(context: Any, parameter: Any, text: str) -> tuple[str, ...]:
    """'pq,buckets' -> ('pq', 'buckets'). Raises click.BadParameter."""
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in found:
        if name not in CASES:
            raise click.BadParameter(f"'{name}' is no target measured here; needs some of {', '.join(CASES)}")
    return found


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--rows", default="100000,316228,1000000,3162278,10000000", show_default=True, callback=sizes)
@click.option("--targets", default=",".join(CASES), show_default=True, callback=names)
@click.option("--baseline", is_flag=True, help="Measure FAISS's own IVFPQ too, with two kinds of lists.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the results.")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), help="Folder of what is encoded. [OUT/work]")
@click.option("--bits", default=32, show_default=True, type=click.IntRange(8), help="Of a code, a multiple of 8.")
@click.option("--members", default=3, show_default=True, type=click.IntRange(1), help="Classifiers of the encoder.")
@click.option("--noise", default=0.1, show_default=True, help="Standard deviations of each feature.")
@click.option("--seed", default=0, show_default=True)
@click.option("--queries", default=200, show_default=True, type=click.IntRange(SMALL_BATCH))
@click.option("--budget", default=8.0, show_default=True, help="Seconds of a timing, at most.")
def main(
    data: Path,
    rows: tuple[int, ...],
    targets: tuple[str, ...],
    baseline: bool,
    out: Path,
    work: Path | None,
    bits: int,
    members: int,
    noise: float,
    seed: int,
    queries: int,
    budget: float,
) -> None:
    """Measure searches of growing galleries of rows like those of DATA (train.h5, query.h5, database.h5).

    What OUT holds already is kept and not measured again. OUT/work is removed at the end; a folder named with --work stays.
    """
    if bits % 8:
        raise click.BadParameter(f"{bits} is no multiple of 8", param_hint="--bits")
    if min(rows) < K_NEAREST:
        raise click.BadParameter(
            f"{min(rows)} rows are fewer than the {K_NEAREST} that are looked for", param_hint="--rows"
        )
    command = typed("scale.py")
    files = {name: data / f"{name}.h5" for name in ("train", "query", "database")}
    hashes = {name: file_hash(path) for name, path in files.items()}
    facts = {"data": hashes, "bits": bits, "members": members, "noise": noise, "seed": seed, "queries": queries}
    make_folder(out)
    with reserve(out / FILE) as slot:
        results = Results(slot, "scale", data.resolve().name, command, facts)
        missing = [
            (n, name)
            for n in sorted(rows)
            for name in (*targets, *(BASELINES if baseline else ()))
            if f"{name}-{n}" not in results
        ]
        # Named after all that the codes depend on: a folder that serves several runs never mixes them.
        made_with = json.dumps([facts | {"queries": 0}, PIECE, scqfaiss.__version__])
        made = Work(
            (work or out / "work") / hashlib.sha256(made_with.encode()).hexdigest()[:16],
            data,
            bits,
            members,
            noise,
            seed,
        )
        if missing:
            start = time.perf_counter()
            made.make(max(n for n, _ in missing), {CASES[name][1] for _, name in missing if name not in BASELINES})
            say(f"models and codes are there after {time.perf_counter() - start:.0f} s")
            xq = read(files["query"])[0]
            # Queries from all over the file, which may be sorted by class.
            some = np.linspace(0, len(xq), min(queries, len(xq)), endpoint=False).astype(int)
            z = made.models["wide"].embed(xq[some])
            results.save(how=how(bits, members, noise, z.shape[1], budget), assumptions=ASSUMPTIONS)
            exact = Exact(made, z)
            # Targets of one codebook come one after the other: they share the exact hits.
            order = {name: i for i, name in enumerate(["wide", "narrow", "additive"])}
            missing.sort(key=lambda m: (m[0], order[CASES[m[1]][1]] if m[1] in CASES else len(order)))
            for n, name in missing:
                start = time.perf_counter()
                found = measure(made, name, n, z, exact, budget)
                row = {"key": f"{name}-{n}", "target": name, "rows": n} | found
                results.add(row | {"run": run_facts(command, seed, hashes)})
                say(
                    f"{n:,} rows, {name}: {found['ms']:g} ms a query, built in {found['build_seconds']:g} s, "
                    f"measured in {time.perf_counter() - start:.0f} s"
                )
        found_rows = results.document["rows"]
        fits = fits_of(found_rows)
        results.save(fits=fits, extrapolation=extrapolated(fits, found_rows))
        if work is None:
            shutil.rmtree(made.folder, ignore_errors=True)
            with suppress(OSError):  # not there, or with something else in it
                made.folder.parent.rmdir()
    for line in table(found_rows, fits):
        click.echo(line)
    for key in (row["key"] for row in found_rows if row.get("core", 1) < QUIET):
        say(f"{key}: other work on this machine took a tenth of the core or more while it was measured")
    click.echo(json.dumps(figures(found_rows, fits)))


if __name__ == "__main__":
    main()
