"""Time and memory of a search against the number of rows, for every container of the package and for FAISS's own IVFPQ.

Writes OUT/results.json, a document of kind 'scale', row by row: an interrupted run goes on with the rows that are there.

Two baselines that FAISS trains on z (see growth_codes.py) and fills with z: faiss-ivfpq is `IVF{nlist},PQ{M}np` as its factory
makes it for inner products, with lists of spherical k-means, which suits rows of length 1 and not these; faiss-ivfpq-l2 has lists
of plain k-means, as ivfpq-lists has, and queries choose among them by inner product. These and ivfpq-lists have nlist =
4 sqrt(rows), rounded down to a power of two, and the least nprobe, a power of two, that finds 0.95 of the exact first 10. Exact
is by the codes' own scores, of the baselines a search of all of their lists. Ties count as found.

Everything that is timed runs on one thread: building, searching a batch, searching one query. Each index is written to disk and
searched as it is opened from there, one at a time. `memory` is what a fresh process allocates for it. A timing is the median of 5
calls or more (`repeats`) within `budget` seconds; `batch`, queries of a call, are as many as that leaves time for. `core` is the
share of that time in which other work left the core to it; below 0.9 it is measured up to twice more.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from .. import __version__, faiss_calls
from ..arrays import Floats, Ints
from ..files import atomic_write, make_folder
from ..galleries.exporting import SUFFIX, build, write
from ..galleries.gallery import open_gallery
from ..targets import target
from ..targets.lists import code_keys
from ..targets.pretransform import unwrap_index
from . import growth_codes
from .faiss_codes import probe_by_product, with_plain_lists
from .growth_codes import Work
from .growth_fits import ASSUMPTIONS, WANTED, extrapolated, figures, fits_of, how, short, table
from .inputs import NO_KEYS, label_files, row_facts
from .measuring import QUIET, footprint, run_facts, threads, timed_within, typed
from .options import CASES, K_NEAREST, GrowthOptions
from .results import FILE, Results, file_hash, results_file
from .rows import save_index

SLACK = 1e-5  # in scores of length 1
BASELINES = ("faiss-ivfpq", "faiss-ivfpq-l2")
PLAIN = ("buckets-plain",)  # files of ours that FAISS searches by itself, with the nprobe they hold


def list_count(rows: int) -> int:
    """4 sqrt(rows), rounded down to a power of two."""
    return 1 << (math.isqrt(16 * rows).bit_length() - 1)


def recall(best: NDArray[Any], scores: NDArray[Any]) -> float:
    """Share of scores (nq, k) not below the least of the best (nq, k)."""
    return float((scores >= best[:, -1:] - SLACK).mean())


def scored(z: Floats, I: Ints, vectors: Callable[[Ints], Floats]) -> NDArray[Any]:
    """(nq, k) exact scores of the rows found; nothing found scores -inf."""
    x = vectors(np.maximum(I, 0).ravel()).reshape(*I.shape, -1)
    return np.where(I < 0, -np.inf, np.einsum("qd,qkd->qk", z, x))


def least_nprobe(found: Callable[[int], float], nlist: int) -> tuple[int, float]:
    """The least power of two of lists with found(nprobe) >= WANTED, and what it found."""
    nprobe = 1
    while (share := found(nprobe)) < WANTED and nprobe < nlist:
        nprobe *= 2
    return nprobe, share


class Exact:
    """The exact scores of the first hits by the codes of a codebook, held for the last codebook and number of rows asked for."""

    def __init__(self, work: Work, z: NDArray[Any]) -> None:
        self.work, self.z = work, z
        self.key: tuple[str, int] | None = None
        self.D: Any = None

    def best(self, codebook: str, codes: NDArray[Any]) -> NDArray[Any]:
        """(nq, 10) scores, best first."""
        if self.key != (codebook, len(codes)):
            codebooks = self.work.models[codebook].codebooks
            plain = target("pq" if codebooks.kind == "product" else "lift")
            index = plain.build(codebooks, codes, np.arange(len(codes)))
            with threads(0):
                self.D, _ = plain.search(index, self.z, K_NEAREST)
            self.key = codebook, len(codes)
        best: NDArray[Any] = self.D
        return best


def store_case(work: Work, name: str, rows: int, z: NDArray[Any], exact: Exact, path: Path) -> dict[str, Any]:
    """Build a target of the package and write its gallery -> what is known of it by then."""
    container, codebook, asked, lists = CASES[name]
    model, codes = work.models[codebook], work.load(codebook, rows)
    best = exact.best(codebook, codes)
    options = {**asked, **({"nlist": list_count(rows)} if lists else {})}
    with threads(1):
        start = time.perf_counter()
        index, metadata = build(model, codes, np.arange(rows), container, options)
        seconds = time.perf_counter() - start

    def share(nprobe: int | None) -> float:
        if name in PLAIN:
            _, I = faiss_calls.search(index, z, K_NEAREST)
        else:
            _, I = target(container).search(index, z, K_NEAREST, nprobe=nprobe)
        return recall(best, scored(z, I, lambda rows_found: model.codebooks.decode(codes[rows_found])))

    with threads(0):
        if lists:
            nprobe, found = least_nprobe(share, options["nlist"])
            unwrap_index(index).nprobe = nprobe
            metadata |= {"nprobe": nprobe, "options": {**options, "nprobe": nprobe}}
        else:
            found = share(None)
    with atomic_write(path, suffix=SUFFIX) as output:
        write(output, index, metadata)
    return {
        "build_seconds": short(seconds),
        "recall": short(found),
        "distinct": len(np.unique(code_keys(codes, model.codebooks.nbits))),
        **{key: metadata[key] for key in ("nlist", "nprobe") if key in metadata},
    }


def store_baseline(work: Work, name: str, rows: int, z: NDArray[Any], path: Path) -> dict[str, Any]:
    """Let FAISS train its own index on the encoded rows and fill it with them, and write it -> what is known by then."""
    x, nlist = work.load("z", rows), list_count(rows)
    M, d = work.options.bits // 8, x.shape[1]
    index = faiss.index_factory(d, f"IVF{nlist},PQ{M}np", faiss.METRIC_INNER_PRODUCT)
    if name == "faiss-ivfpq-l2":
        with_plain_lists(index)
    with threads(1):
        start = time.perf_counter()
        index.train(x)
        index.add(x)
        seconds = time.perf_counter() - start
    if name == "faiss-ivfpq-l2":
        probe_by_product(index)

    def look(nprobe: int) -> NDArray[Any]:
        return faiss_calls.search(index, z, K_NEAREST, faiss.SearchParametersIVF(nprobe=nprobe))[0]

    with threads(0):
        best = look(nlist)
        nprobe, found = least_nprobe(lambda nprobe: recall(best, look(nprobe)), nlist)
    index.nprobe = nprobe
    save_index(index, path)
    return {"build_seconds": short(seconds), "recall": short(found), "nlist": nlist, "nprobe": nprobe}


def measure(work: Work, name: str, rows: int, z: NDArray[Any], exact: Exact, budget: float) -> dict[str, Any]:
    """Everything of one row but its name: an index is built and written, and then searched as it is opened."""
    path = work.folder / f"measured{SUFFIX}"
    if name in (*BASELINES, *PLAIN):
        store = store_baseline if name in BASELINES else partial(store_case, exact=exact)
        found = store(work, name, rows, z, path=path)
        held = footprint(path, "faiss")
        index = faiss.read_index(str(path))
        found |= timed_within(lambda queries: faiss_calls.search(index, queries, K_NEAREST), z, budget)
    else:
        found = store_case(work, name, rows, z, exact, path)
        held = footprint(path, "scqfaiss")
        gallery = open_gallery(path)
        found |= timed_within(lambda queries: gallery.search(queries, K_NEAREST, encoded=True), z, budget)
    path.unlink()
    return found | {"memory": held["memory"], "disk": held["disk"], "open_ms": short(held["open_ms"])}


# ----------------------------------------------------------------------------------------------------------------- command
def compare_growth(options: GrowthOptions, say: Callable[[str], Any], keys: Mapping[str, Any] = NO_KEYS) -> str:
    """Measure what is missing and write it -> a table, and a line of JSON with the exponents. say: gets a line for each row.
    keys: arguments of open_rows, see data.keys_for.

    OUT/work is removed at the end; a folder that options.work names stays. Raises ConfigError where OUT holds other results.
    """
    command = typed("scqfaiss compare-growth")
    hashes = {name: file_hash(path) for name, path in (options.inputs | label_files(keys)).items()}
    facts = row_facts(keys) | {
        "data": hashes,
        **{name: getattr(options, name) for name in ("bits", "members", "noise", "seed", "queries")},
    }
    make_folder(options.out)
    with results_file(options.out / FILE, inputs=list(options.inputs.values())) as output:
        name = options.database.resolve().parent.name
        results = Results(output, "scale", name, command, facts, fresh=options.fresh)
        wanted = [*options.targets, *(BASELINES if options.baseline else ())]
        missing = [(n, case) for n in sorted(options.rows) for case in wanted if f"{case}-{n}" not in results]
        # Named after all that the codes depend on: a folder that serves several runs never mixes them.
        made_with = json.dumps([facts | {"queries": 0}, growth_codes.PIECE, __version__])
        folder = (options.work or options.out / "work") / hashlib.sha256(made_with.encode()).hexdigest()[:16]
        if missing:
            run = run_facts(command, options.seed, hashes)
            measure_missing(options, results, missing, Work(folder, options, say, keys), run)
        rows = results.document["rows"]
        fits = fits_of(rows)
        results.finish(fits=fits, extrapolation=extrapolated(fits, rows))
        if options.work is None:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # not there, or with something else in it
                folder.parent.rmdir()
    for key in (row["key"] for row in rows if row.get("core", 1) < QUIET):
        say(f"{key}: other work on this machine took a tenth of the core or more while it was measured")
    return "\n".join([*table(rows, fits), json.dumps(figures(rows, fits))])


def measure_missing(
    options: GrowthOptions, results: Results, missing: list[tuple[int, str]], work: Work, run: dict[str, Any]
) -> None:
    """Codes of as many rows as are needed, and a row of results for each (rows, case)."""
    start = time.perf_counter()
    xq, _ = work.read("query")  # first: what is wrong with it is told before hours of encoding
    work.make(max(n for n, _ in missing), {CASES[name][1] for _, name in missing if name not in BASELINES})
    work.say(f"models and codes are there after {time.perf_counter() - start:.0f} s")
    # Queries from all over the file, which may be sorted by class.
    some = np.linspace(0, len(xq), min(options.queries, len(xq)), endpoint=False).astype(int)
    z = work.models["wide"].embed(xq[some])
    results.save(how=how(options, z.shape[1]), assumptions=ASSUMPTIONS)
    exact = Exact(work, z)
    # Targets of one codebook come one after the other: they share the exact hits.
    order = {name: i for i, name in enumerate(["wide", "narrow", "additive"])}
    missing.sort(key=lambda m: (m[0], order[CASES[m[1]][1]] if m[1] in CASES else len(order)))
    for n, name in missing:
        start = time.perf_counter()
        row = measure(work, name, n, z, exact, options.budget)
        results.add({"key": f"{name}-{n}", "target": name, "rows": n} | row | {"run": run})
        work.say(
            f"{n:,} rows, {name}: {row['ms']:g} ms a query, built in {row['build_seconds']:g} s, "
            f"measured in {time.perf_counter() - start:.0f} s"
        )
