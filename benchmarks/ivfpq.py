"""Label-aware codes beside FAISS's own at equal bits a vector: quality, speed, bytes, on your own rows.

    python benchmarks/ivfpq.py --train T.h5 --query Q.h5 --database D.h5 --out results/NAME
        [--bits 8,16,32,64] [--methods scq,scq:4,dpq,label] [--baselines pq,opq,ivfpq,rq,lsq,fastscan] [--nlist auto]
    scqfaiss report results/NAME -o report.html

Files are whatever `scqfaiss train` takes (README, Rows), with labels in all three; they are held in memory. Ours learn from the
labels of TRAIN. Baselines are FAISS's, trained without labels on rows of DATABASE itself, twice: on the rows, centered and of
length 1 (raw), and on the embedding of the first method (trained), which tells what the codes add to the features.

Each coding is measured once for its ranking (mAP and the like, ties averaged) and once for each container: times a query, bytes,
opening, and operating points over nprobe, of which FAISS's OperatingPoints keeps the Pareto front. Two honesty rows: the label
code, and `unseen_map`, of a second training without two of the classes, for queries of those two.

The database is put into an order of its own first, drawn by --seed: FAISS breaks ties by position, and files often stand by
class.

results/NAME/results.json is written after every coding; the same command goes on where it stopped, and one with more lengths
or methods adds to it. `scqfaiss/comparison/results.py` tells what each figure is.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np
from faiss.contrib.evaluation import OperatingPoints
from measuring import footprint, latencies, latency, run_facts, typed
from own_faiss import BASELINES, TRAINING_ROWS, build, lists_for, read_codes
from ranking import (
    METRICS,
    Coding,
    Task,
    carry,
    exact_neighbours,
    hits_map,
    hits_precision,
    hits_recall,
    ranking,
    shared,
    unseen_map,
)
from shown import gallery, pictures_of

import scqfaiss
from scqfaiss.arrays import Floats, Ints, Labels
from scqfaiss.comparison.results import FILE, Results, file_hash
from scqfaiss.data import open_rows
from scqfaiss.errors import ConfigError, DataError, ScqError
from scqfaiss.evaluation.files import Words, check_classes, same_classes
from scqfaiss.files import make_folder, reserve
from scqfaiss.galleries import exporting
from scqfaiss.methods import REGISTRY as METHODS
from scqfaiss.model import Model
from scqfaiss.report.selection import best_baseline, best_ours, fastest, get, lengths
from scqfaiss.targets import REGISTRY as TARGETS
from scqfaiss.targets import target
from scqfaiss.targets.ids import behind_ids
from scqfaiss.targets.pretransform import encoded, unwrap_index

SEARCHES = ("buckets", "fastscan")  # containers that scqfaiss searches in its own way; FAISS alone searches the others
ENOUGH = 0.95  # recall of an operating point that a container is timed at
K = 10  # hits of a timed search


@dataclass
class Comparison:
    """What all rows share."""

    task: Task
    ids: dict[str, Ints]  # of queries, and of database rows in their own order
    results: Results
    run: dict[str, Any]
    seed: int
    nlist: int
    training_rows: int
    folder: Path
    containers: tuple[str, ...]
    shown: int  # the length of pictures
    map_rows: int
    budget: float  # seconds of each timing

    def key(self, method: str, space: str, bits: int | None, container: str = "") -> str:
        """'scq/trained/32/buckets'; bits None: of floats, and of codes that have one length only."""
        return "/".join(str(part) for part in (method, space, bits, container) if part)

    def done(self, coding: str) -> bool:
        return coding in self.results.document.get("done", [])

    def finish(self, coding: str, rows: list[dict[str, Any]]) -> None:
        """Rows of a coding on disk, all of them or none."""
        held = self.results.document
        kept = [row for row in held["rows"] if not row["key"].startswith(coding + "/")]
        self.results.save(rows=kept + rows, done=[*(d for d in held.get("done", []) if d != coding), coding])
        what = rows[0].get("reason", "")
        if "map" in rows[0]:
            what = f"mAP {rows[0]['map']:.4f}  {len(rows)} container{'s'[: len(rows) > 1]}"
        click.echo(f"{time.strftime('%H:%M:%S')}  {coding:24} {what}")


# ----------------------------------------------------------------------------------------------------------------- reading
def read(path: Path, role: str) -> tuple[Floats, Labels, Ints]:
    with open_rows(path, role=role) as source:
        if source.labels is None:
            raise DataError(f"{source.name} has no labels, which a comparison needs")
        if source.modality.needs_encoder:
            raise DataError(
                f"{source.name} holds pictures; write their features first: scqfaiss features MODEL PICTURES"
            )
        if len(source) == 0:
            raise DataError(f"{source.name} holds 0 rows, a comparison needs some")
        return source.read(0, len(source)), source.labels, source.ids


def compared(train: Path, query: Path, database: Path) -> dict[str, tuple[Floats, Labels, Ints, Any]]:
    """The three files, of one width and one set of classes. Raises ConfigError where they do not fit together."""
    with open_rows(query, role="queries") as q, open_rows(database, role="keys") as b, open_rows(train) as t:
        check_classes(q, b)
        check_classes(t, b)
        for source in (q, t):
            if source.d != b.d:
                raise ConfigError(f"{source.name}: rows have d={source.d}, those of {b.name} d={b.d}")
    parts = {"train": read(train, "any"), "query": read(query, "queries"), "database": read(database, "keys")}
    labels = {name: y for name, (_, y, _) in parts.items()}
    if labels["train"].many != labels["database"].many:
        raise ConfigError(f"{train.name} and {database.name} differ in kind: one label a row, and many")
    # Twice with the training rows: only after the queries may the database have names for its numbers.
    for name, path in (("train", train), ("query", query), ("train", train)):
        labels[name], labels["database"] = same_classes(labels[name], labels["database"], path.name, database.name)
    return told_apart({name: (x, labels[name], ids, labels[name].class_names) for name, (x, _, ids) in parts.items()})


def told_apart(parts: dict[str, tuple[Floats, Labels, Ints, Any]]) -> dict[str, tuple[Floats, Labels, Ints, Any]]:
    """The same by the classes that occur in any part alone: a table over 10,000 of which 5 do would be all zeros."""
    used = np.unique(np.concatenate([np.flatnonzero(labels.counts()) for _, labels, _, _ in parts.values()]))
    C = max(labels.C for _, labels, _, _ in parts.values())
    if len(used) in (0, C):
        return parts
    given = next((names for _, _, _, names in parts.values() if names is not None), None)
    names = tuple(class_name(given, int(c)) for c in used)
    return {part: (x, labels.among(used), ids, names) for part, (x, labels, ids, _) in parts.items()}


# ---------------------------------------------------------------------------------------------------------------- training
class Models:
    """Models by method and length, each trained once; dpq's one training serves every length."""

    def __init__(self, x: Floats, y: Any, longest: int, seed: int, class_names: Any) -> None:
        self.x, self.y, self.longest, self.seed, self.class_names = x, y, longest, seed, class_names
        self.held: dict[tuple[str, int], tuple[Model, float]] = {}

    def get(self, asked: str, bits: int) -> tuple[Model, float]:
        """(model of that length, seconds of the training behind it); asked: a method, with ':4' for books of 4 bits."""
        method, _, nbits = asked.partition(":")
        nested = method == "dpq"
        trained = self.longest if nested else bits
        if (asked, trained) not in self.held:
            start = time.perf_counter()
            with warnings.catch_warnings():  # few rows a codeword, an unused class: true, and no news here
                warnings.simplefilter("ignore")
                y = None if method == "mecoq" else self.y
                model = scqfaiss.train(
                    self.x,
                    y,
                    method=method,
                    bits=trained,
                    nbits=int(nbits or 8),
                    seed=self.seed,
                    class_names=self.class_names if y is not None else None,
                )
            self.held[asked, trained] = model, time.perf_counter() - start
        model, seconds = self.held[asked, trained]
        return (model.prefix(bits) if nested and bits < trained else model), seconds


def without(x: Floats, labels: Labels, left_out: tuple[int, ...]) -> tuple[Floats, Any] | None:
    """Training rows and labels without some classes, those left numbered anew; None where fewer than 2 classes are left."""
    kept_classes = np.setdiff1d(np.arange(labels.C), left_out)
    rows = ~carry(labels, left_out)
    y = labels.y[rows][:, kept_classes] if labels.many else np.searchsorted(kept_classes, labels.y[rows])
    there = y.any(0).sum() if labels.many else len(np.unique(y))
    return (x[rows], y) if there >= 2 else None


# ------------------------------------------------------------------------------------------------------------------- rows
@dataclass(frozen=True)
class Sweep:
    """The setting of a container that its operating points differ in: `name`, and visit(value) puts a value into force."""

    name: str | None = None
    values: tuple[int | None, ...] = (None,)
    visit: Callable[[Any], Any] = lambda value: None
    nlist: int | None = None


REFINES = (1, 4, 16, 64, 256)  # candidates per hit that fast scan scores again


def powers(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and `most` itself."""
    return (*(1 << i for i in range((most - 1).bit_length())), most)


def lists_of(ivf: Any) -> Sweep:
    """Over nprobe, where an index has lists to choose from."""
    if ivf.nlist == 1:
        return Sweep()
    return Sweep("nprobe", powers(ivf.nlist), lambda value: setattr(ivf, "nprobe", value), ivf.nlist)


def ours(c: Comparison, models: Models, unseen: Models | None, method: str, bits: int | None) -> None:
    """All rows of one method at one length (None: the method's own)."""
    coding_key = c.key(method, "trained", bits)
    if c.done(coding_key):
        return
    model, train_seconds = models.get(method, bits or 8)
    books = model.codebooks
    start = time.perf_counter()
    zb = model.embed(c.task.xb)
    codes = model.assign(zb)
    encode_seconds = time.perf_counter() - start
    words = Words.of(codes)
    coding: Coding | None = None
    measured: dict[str, Any] = {}
    rows = []
    for container, options in containers(c, books.shape):
        path = c.folder / "ours.faissindex"
        start = time.perf_counter()
        name = container.partition(" ")[0]
        with warnings.catch_warnings():  # few rows for k-means, as above
            warnings.simplefilter("ignore")
            index, card = exporting.build(model, codes, np.arange(len(codes)), name, options)
        add_seconds = time.perf_counter() - start
        with reserve(path) as slot:
            exporting.write(slot, index, card)
        gallery = scqfaiss.open(path, model=model)
        zq = gallery.embed(c.task.xq)
        if coding is None:
            zs = encoded(gallery.index, zq)
            coding = Coding(zs, zb, words, books.decode(words.codes), codes, books.K, books.metric)
            measured, kth = ranking(c.task, coding)
            measured["neighbours"] = {}
            measured["encode_ms"] = latencies(lambda x: gallery.embed(x), c.task.xq, c.budget)  # noqa: B023
            measured |= {"usage": coding.usage()} | (
                pictures_of(c.task, coding, c.seed, c.map_rows) if bits == c.shown else {}
            )
            measured["unseen_map"] = unseen_of(c, unseen, method, bits)
        row = {
            "role": "label" if method == "label" else "ours",
            "method": method,
            "space": "trained",
            "container": container,
            "factory": None,
            "bits": books.bits,
            "trained_bits": model.config.get("prefix", {}).get("bits", books.bits),
            **measured,
            "seconds": {"train": train_seconds, "encode": encode_seconds, "add": add_seconds},
        }
        held = footprint(path, "scqfaiss" if name in SEARCHES else "faiss", None)
        row |= {"bytes": {"memory": held["memory"], "disk": held["disk"]}, "open_ms": held["open_ms"]}
        if name in SEARCHES:
            search = lambda z, k: gallery.search(z, k, encoded=True)  # noqa: B023, E731
        else:
            search = gallery.index.search
        sweep = Sweep()
        if name == "ivfpq":
            sweep = lists_of(unwrap_index(gallery.index))
        elif name == "fastscan":
            refine = behind_ids(gallery.index)
            sweep = Sweep("refine", REFINES, lambda value: setattr(refine, "k_factor", value))  # noqa: B023
        timed(c, row, coding, kth, search, zq, sweep)
        rows.append(row | {"key": c.key(method, "trained", bits, container), "run": c.run})
    if not rows:
        reason = f"none of {', '.join(c.containers)} takes {books.M} books of {books.nbits} bits ({books.kind})"
        role = "label" if method == "label" else "ours"
        head = {"role": role, "method": method, "space": "trained", "bits": books.bits, "run": c.run}
        rows.append(head | {"key": coding_key + "/none", "reason": reason})
    c.finish(coding_key, rows)


def containers(c: Comparison, shape: Any) -> Iterator[tuple[str, dict[str, int]]]:
    """(name, options of the export) of every target that takes such codes; `ivfpq` alone, and with lists."""
    for name in TARGETS:
        if target(name).supports(shape) is not None or name not in c.containers:
            continue
        if shape.nbits == 4 and shape.M > 1 and name != "fastscan":
            continue  # pairs of them stand as books of 8 bits there, which are measured as such
        yield name, {}
        if name == "ivfpq" and c.nlist > 1:
            yield f"ivfpq {c.nlist} lists", {"nlist": c.nlist}


def unseen_of(c: Comparison, unseen: Models | None, method: str, bits: int | None) -> float | None:
    """mAP for queries of classes that a training of its own has not seen; None where it cannot be had."""
    if unseen is None:
        return None
    try:
        model, _ = unseen.get(method, bits or 8)
    except ScqError as error:
        click.echo(f"{method}: no training without the classes left out ({error})")
        return None
    zb = model.embed(c.task.xb)
    codes = model.assign(zb)
    words = Words.of(codes)
    books = model.codebooks
    zq = model.embed(c.task.xq)
    return unseen_map(c.task, Coding(zq, zb, words, books.decode(words.codes), codes, books.K, books.metric))


def baseline(c: Comparison, method: str, space: str, bits: int, zq: Floats, zb: Floats) -> None:
    """The row of one of FAISS's own quantizers over queries zq (nq, d) and database zb (n, d)."""
    coding_key = c.key(method, space, bits)
    if c.done(coding_key):
        return
    head = {"role": "baseline", "method": method, "space": space, "bits": bits, "run": c.run}
    try:
        built = build(method, zb, bits, c.nlist, c.seed, c.training_rows)
    except (ValueError, RuntimeError) as error:  # FAISS's own errors are RuntimeErrors
        c.finish(coding_key, [head | {"key": coding_key + "/faiss", "reason": " ".join(str(error).split())[:200]}])
        return
    codes, words, decoded, size = read_codes(built.index, bits)
    coding = Coding(zq, zb, words, decoded, codes, size)
    measured, kth = ranking(c.task, coding)
    if space == "trained":
        measured.pop("unseen_map", None)  # that embedding has seen all classes
    measured["neighbours"] = {}
    measured["usage"] = coding.usage()
    if (method, space, bits) == ("ivfpq", "raw", c.shown):
        measured |= pictures_of(c.task, coding, c.seed, c.map_rows)
    path = c.folder / "faiss.index"
    faiss.write_index(built.index, str(path))
    held = footprint(path)
    deep = unwrap_index(built.index)
    row = head | {
        "key": coding_key + "/faiss",
        "container": type(faiss.downcast_index(deep)).__name__,
        "factory": built.factory,
        **measured,
        "seconds": built.seconds,
        "bytes": {"memory": held["memory"], "disk": held["disk"]},
        "open_ms": held["open_ms"],
    }
    timed(c, row, coding, kth, built.index.search, zq, lists_of(deep) if method == "ivfpq" else Sweep())
    c.finish(coding_key, [row])


def ceiling(c: Comparison, space: str, zq: Floats, zb: Floats, metric: str = "ip") -> None:
    """The row of floats: what codes of them can reach, all of them looked at."""
    coding_key = c.key("flat", space, None)
    if c.done(coding_key):
        return
    words = Words(np.zeros((len(zb), 1), np.uint8), np.arange(len(zb)))
    coding = Coding(zq, zb, words, zb, words.codes, 1, metric)
    measured, kth = ranking(c.task, coding)
    if space == "trained":
        measured.pop("unseen_map", None)
    index = faiss.IndexFlat(zb.shape[1], METRICS[metric])
    start = time.perf_counter()
    index.add(zb)
    seconds = time.perf_counter() - start
    path = c.folder / "faiss.index"
    faiss.write_index(index, str(path))
    held = footprint(path)
    row = {
        "key": coding_key + "/faiss",
        "role": "ceiling",
        "method": "flat",
        "space": space,
        "container": "IndexFlat",
        "factory": "Flat",
        "bits": None,
        "run": c.run,
        **{name: value for name, value in measured.items() if name not in ("distinct_codes", "mse")},
        "neighbours": {},
        "seconds": {"train": 0.0, "encode": 0.0, "add": seconds},
        "bytes": {"memory": held["memory"], "disk": held["disk"]},
        "open_ms": held["open_ms"],
    }
    timed(c, row, coding, kth, index.search, zq, Sweep())
    c.finish(coding_key, [row])


def timed(
    c: Comparison,
    row: dict[str, Any],
    coding: Coding,
    kth: Any,
    search: Callable[[Floats, int], Any],
    zq: Floats,
    sweep: Sweep,
) -> None:
    """Operating points of an index into `row`, and its times at the fastest of them that finds ENOUGH."""
    points: list[dict[str, Any]] = []
    front = OperatingPoints()
    for value in sweep.values:
        sweep.visit(value)
        _, I = search(zq, c.task.sweep_at)
        _, first = search(zq, K)
        point = {
            **({} if sweep.name is None else {sweep.name: value}),
            "ms": latency(lambda x: search(x, K), zq, 1000, 1, c.budget / 2)["p50"],
            "map": hits_map(c.task, I),
            "precision_at_10": hits_precision(c.task, first, K),
            "recall": hits_recall(coding, first, kth, K),
        }
        points.append(point)
        front.add_operating_point(len(points) - 1, point["map"], point["ms"])
    best = {key for key, _, _ in front.operating_points}
    row["points"] = [point | {"pareto": i in best} for i, point in enumerate(points)]
    if not row["neighbours"]:  # everything is looked at: these are the codes' own first hundred
        _, I = search(zq, min(100, len(coding.zb)))
        row["neighbours"] |= {
            "coded": shared(I, exact_neighbours(coding.zq, coding.zb, coding.metric)),
            "raw": shared(I, c.task.neighbours),
        }
    if "fastscan" not in (row["method"], row["container"]) and points[-1]["recall"] < 0.999:
        raise RuntimeError(
            f"{row['method']} {row['bits']}: a search of everything finds {points[-1]['recall']:.4f} of the best"
        )
    enough = [i for i, point in enumerate(points) if point["recall"] >= ENOUGH] or [len(points) - 1]
    chosen = sweep.values[min(enough, key=lambda i: points[i]["ms"])]
    sweep.visit(chosen)
    row["nlist"] = sweep.nlist
    if sweep.name is not None:
        row[sweep.name] = chosen
    row["ms"] = latencies(lambda x: search(x, K), zq, c.budget)


# ---------------------------------------------------------------------------------------------------------------- command
def words_of(_: Any, option: Any, text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def lengths_of(_: Any, option: Any, text: str) -> tuple[int, ...]:
    try:
        found = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        found = ()
    if not found or any(b < 8 or b % 8 for b in found):
        raise click.BadParameter(f"'{text}' needs lengths in bits, multiples of 8, such as 8,16,32,64")
    return found


def shape_of(_: Any, option: Any, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        h, w = (int(part) for part in text.split("x"))
    except ValueError:
        raise click.BadParameter(f"'{text}' needs rows and columns, such as 8x8") from None
    return h, w


FILE_HERE = click.Path(exists=True, path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--train", type=FILE_HERE, required=True, help="Labelled rows to train on.")
@click.option("--query", type=FILE_HERE, required=True, help="Labelled queries.")
@click.option("--database", type=FILE_HERE, required=True, help="Labelled rows that are searched.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for results.json.")
@click.option("--bits", default="8,16,32,64", show_default=True, callback=lengths_of, help="Bits a vector.")
@click.option(
    "--methods",
    default="scq,scq:4,dpq,label",
    show_default=True,
    callback=words_of,
    help="Of `scqfaiss train`; :4 for books of 4 bits.",
)
@click.option("--baselines", default=",".join(BASELINES), show_default=True, callback=words_of, help="FAISS's own.")
@click.option("--spaces", default="raw,trained", show_default=True, callback=words_of, help="What baselines code.")
@click.option("--containers", default=",".join(TARGETS), show_default=True, callback=words_of, help="Targets of ours.")
@click.option("--nlist", default="auto", show_default=True, help="Inverted lists; auto: 4 sqrt(n), a power of two.")
@click.option("--at", type=click.IntRange(1), help="Ranks that count in mAP; default: the whole database.")
@click.option(
    "--sweep-at", default=1000, show_default=True, type=click.IntRange(1), help="The same at operating points."
)
@click.option(
    "--left-out", callback=lambda c, o, v: words_of(c, o, v or ""), help="Two classes that a training does not see."
)
@click.option(
    "--training-rows",
    default=256 * TRAINING_ROWS,
    show_default=True,
    type=click.IntRange(1),
    help="Database rows for baselines.",
)
@click.option(
    "--pictures", type=FILE_HERE, help="Folder of pictures named by ids, 17.jpg or 00017.png, for the report's gallery."
)
@click.option("--picture-shape", callback=shape_of, metavar="HxW", help="Rows are grey pictures themselves.")
@click.option("--map-rows", default=1500, show_default=True, type=click.IntRange(20), help="Rows in the 2-D map.")
@click.option("--budget", default=0.5, show_default=True, help="Seconds of each timing, at least.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**31 - 1))
def main(
    train: Path,
    query: Path,
    database: Path,
    out: Path,
    bits: tuple[int, ...],
    methods: tuple[str, ...],
    baselines: tuple[str, ...],
    spaces: tuple[str, ...],
    containers: tuple[str, ...],
    nlist: str,
    at: int | None,
    sweep_at: int,
    left_out: tuple[str, ...],
    training_rows: int,
    pictures: Path | None,
    picture_shape: tuple[int, int] | None,
    map_rows: int,
    budget: float,
    seed: int,
) -> None:
    """Compare label-aware codes with FAISS's own on labelled rows."""
    for given, known in ((baselines, BASELINES), (spaces, ("raw", "trained")), (containers, tuple(TARGETS))):
        for name in given:
            if name not in known:
                raise ConfigError(f"'{name}' is unknown, needs one of {', '.join(known)}")
    for name in methods:
        method, colon, nbits = name.partition(":")
        if method not in METHODS or (colon and nbits not in ("4", "8")):
            raise ConfigError(
                f"--methods names '{name}', needs some of {', '.join(METHODS)}, with :4 for books of 4 bits"
            )
        if method in BASELINES:
            raise ConfigError(f"--methods names '{name}', which has no labels; it is one of --baselines")
    parts = compared(train, query, database)
    (xt, yt, _, _), (xq, yq, qids, _), (xb, yb, ids, names) = parts.values()
    if picture_shape is not None and picture_shape[0] * picture_shape[1] != xb.shape[1]:
        raise ConfigError(
            f"--picture-shape {picture_shape[0]}x{picture_shape[1]} needs rows of that many numbers, not {xb.shape[1]}"
        )
    if pictures is not None:
        with open_rows(query, role="queries") as q, open_rows(database, role="keys") as b:
            for source in (q, b):
                if not source.has_ids:
                    raise ConfigError(f"{source.name} has no ids, by which --pictures are named")
    n = len(xb)
    try:
        lists = lists_for(n) if nlist == "auto" else int(nlist)
    except ValueError:
        raise ConfigError(f"--nlist is '{nlist}', needs a number or auto") from None
    if not 1 <= lists <= n:
        raise ConfigError(f"--nlist is {lists}, needs 1 to {n:,}")
    unseen = unseen_classes(left_out, yt, yq, yb, names, seed)
    order = np.random.default_rng(seed).permutation(n)
    xb, yb, ids = xb[order], yb.take(order), ids[order]
    at, sweep_at = min(at or n, n), min(sweep_at, n)
    files = {"train": train, "query": query, "database": database}
    data = {
        name: {"file": path.name, "sha256": file_hash(path), "rows": len(parts[name][0]), "d": int(xb.shape[1])}
        for name, path in files.items()
    }
    task = Task(xq, xb, yq, yb, unseen, at, sweep_at)
    command = typed("ivfpq.py")
    facts = {
        "data": data,
        "seed": seed,
        "classes": None if names is None else list(names),
        "many_labels": yb.many,
        "left_out": [class_name(names, c) for c in unseen],
        "at": at,
        "sweep_at": sweep_at,
        "nlist": lists,
        "training_rows": training_rows,
        "containers": list(containers),
        "budget": budget,
    }
    make_folder(out)
    started = time.perf_counter()
    with (
        reserve(out / FILE, inputs=list(files.values()), what="measured") as slot,
        tempfile.TemporaryDirectory() as folder,
    ):
        results = Results(slot, "comparison", out.name, command, facts)
        results.document["bits"] = sorted({*results.document.get("bits", []), *bits})
        run = run_facts(command, seed, {name: part["sha256"] for name, part in data.items()})
        c = Comparison(
            task,
            {"query": qids, "database": ids},
            results,
            run,
            seed,
            lists,
            training_rows,
            Path(folder),
            containers,
            32 if 32 in bits else max(bits),
            map_rows,
            budget,
        )
        models = Models(xt, yt.y, max(bits), seed, names)
        less = without(xt, yt, unseen) if unseen else None
        held_out = Models(*less, max(bits), seed, None) if less else None
        for method in methods:
            for b in (None,) if method == "label" else bits:
                ours(c, models, held_out, method, b)
        if "raw" in spaces:
            ceiling(c, "raw", *task.cosine)
            for method in baselines:
                for b in bits:
                    baseline(c, method, "raw", b, *task.cosine)
        if "trained" in spaces and methods:
            embedding = results.document.setdefault("embedding", {"method": methods[0], "bits": c.shown})
            model, _ = models.get(embedding["method"], embedding["bits"])
            zq, zb = model.embed(xq), model.embed(xb)
            ceiling(c, "trained", zq, zb)
            for method in baselines:
                for b in bits:
                    baseline(c, method, "trained", b, zq, zb)
        seconds = results.document.get("seconds", 0.0) + time.perf_counter() - started
        results.save(**gallery(results.document, task, c.ids, seed, pictures, picture_shape), seconds=round(seconds, 1))
    click.echo(verdict(results.document))


def class_name(names: Any, c: int) -> str:
    return str(c) if names is None else names[c]


def unseen_classes(
    left_out: tuple[str, ...], train: Labels, queries: Labels, database: Labels, names: Any, seed: int
) -> tuple[int, ...]:
    """Numbers of the classes left out: of those that stand in all three files by default two, the 2s-th and the next for
    seed s, or none where fewer than 2 would be left.
    """
    C = min(train.C, queries.C)
    there = np.flatnonzero((train.counts()[:C] > 0) & (queries.counts()[:C] > 0) & (database.counts()[:C] > 0))
    if not left_out:
        return tuple(sorted({int(there[(2 * seed + i) % len(there)]) for i in (0, 1)})) if len(there) >= 4 else ()
    known = {class_name(names, int(c)): int(c) for c in there}
    for name in left_out:
        if name not in known:
            raise ConfigError(
                f"--left-out names '{name}', classes in all three files are {', '.join(list(known)[:20])}"
            )
    return tuple(sorted({known[name] for name in left_out}))


def verdict(document: Any) -> str:
    """A line for each length: what labels gain, and at which speed; then the same figures as one JSON object."""
    lines, found = [], {}
    for bits in lengths(document):
        mine, other = best_ours(document, bits), best_baseline(document, bits)
        if mine is None or other is None:
            continue
        found[f"map_{bits}"], found[f"gain_{bits}"] = mine["map"], mine["map"] - other["map"]
        line = f"{bits:3} bits: {mine['method']} {mine['map']:.4f}, best without labels {other['method']} {other['map']:.4f}"
        line += f", gain {mine['map'] - other['map']:+.4f}"
        here, there = fastest(document, mine["method"], "trained", bits), fastest(document, "ivfpq", "raw", bits)
        encode = get(mine, "encode_ms", "1000", "one", "p50")
        if here and there and encode is not None:
            ms, plain = here[1]["ms"], there[1]["ms"]
            found[f"ratio_{bits}"], found[f"ratio_with_encoder_{bits}"] = plain / ms, plain / (ms + encode)
            line += f"; search {ms:.4f} ms in {here[0]['container']} (IVFPQ {plain:.4f}, ratio {plain / ms:.2f})"
            line += f", with its encoder {ms + encode:.4f} (ratio {plain / (ms + encode):.2f})"
        lines.append(line)
    return "\n".join([*lines, json.dumps({key: round(value, 4) for key, value in found.items()})])


if __name__ == "__main__":
    try:
        main()
    except ScqError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
