"""Rows of a comparison: one coding measured once for its ranking, and once for each container that holds it.

A coding is a method's codes at one length in so many inverted lists, one of FAISS's quantizers in the same, or floats.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from ..arrays import Floats, Ints
from ..codebooks import Codebooks
from ..errors import ScqError
from ..evaluation.ranking import Words
from ..files import atomic_write
from ..galleries import exporting
from ..galleries.gallery import Gallery, open_gallery
from ..model import Model
from ..targets import REGISTRY as TARGETS
from ..targets import target
from ..targets.ids import behind_ids
from ..targets.pretransform import encoded, unwrap_index
from .examples import examples_of
from .faiss_codes import build, lists_for, read_coding
from .measuring import footprint, latencies
from .models import Models
from .options import CompareOptions
from .points import Sweep, lists_of, measure_points
from .ranking import METRICS, Coding, Task, ranking
from .results import Results

SEARCHES = ("buckets", "fastscan")  # containers that scqfaiss searches in its own way; FAISS alone searches the others
REFINES = (1, 4, 16, 64, 256)  # candidates per hit that fast scan scores again


@dataclass
class Comparison:
    """What all rows share."""

    options: CompareOptions
    task: Task
    ids: dict[str, Ints]  # of queries, and of database rows in their own order
    results: Results
    run: dict[str, Any]
    folder: Path  # for indexes while they are measured
    say: Callable[[str], Any]

    charted: tuple[int, int]  # bits and lists that charts of single codes are drawn for

    def done(self, coding: str) -> bool:
        """Whether results hold the rows of a coding."""
        return coding in self.results.document.get("done", [])

    def finish(self, coding: str, rows: list[dict[str, Any]]) -> None:
        """Rows of a coding on disk, all of them or none."""
        document = self.results.document
        kept = [row for row in document["rows"] if not row["key"].startswith(coding + "/")]
        self.results.save(rows=kept + rows, done=[*(d for d in document.get("done", []) if d != coding), coding])
        what = rows[0].get("reason", "")
        if "map" in rows[0]:
            what = f"mAP {rows[0]['map']:.4f}  {len(rows)} container{'s'[: len(rows) > 1]}"
        self.say(f"{time.strftime('%H:%M:%S')}  {coding:24} {what}")


def coding_key(method: str, space: str, bits: int | None, lists: int = 1) -> str:
    """'scq/trained/32', 'scq/trained/32 in 64 lists'; bits None: of floats, and of codes that have one length only."""
    key = "/".join(str(part) for part in (method, space, bits) if part is not None)
    return key if lists == 1 else f"{key} in {lists} lists"


def save_index(index: Any, path: Path) -> None:
    """A FAISS file without metadata."""
    with atomic_write(path) as output:
        output.write(lambda f: faiss.write_index(index, faiss.PyCallbackIOWriter(f.write)))


# -------------------------------------------------------------------------------------------------------------------- ours
def ours(c: Comparison, models: Models, method: str, bits: int | None, lists: int) -> None:
    """All rows of one method at one length (None: the method's own) in so many lists (1: codes of whole vectors)."""
    key = coding_key(method, "trained", bits, lists)
    if c.done(key):
        return
    role = "label" if method == "label" else "ours"
    head = {"role": role, "method": method, "space": "trained", "bits": bits, "lists": lists, "run": c.run}
    try:
        model, train_seconds = models.get(method, 8 if bits is None else bits, lists)
    except ScqError as error:
        if lists == 1:
            raise
        c.finish(key, [head | {"key": key + "/none", "reason": str(error)}])
        return
    head["bits"] = model.codebooks.bits
    rows = _rows_of(c, model, head, train_seconds)
    if not rows:
        shape = model.codebooks.shape
        text = f"{shape.M} codebooks of {shape.nbits} bits ({shape.kind})" + (f" in {lists} lists" if lists > 1 else "")
        rows.append(head | {"reason": f"none of {', '.join(c.options.containers)} takes {text}"})
    c.finish(key, [row | {"key": f"{key}/{row.get('container', 'none')}"} for row in rows])


def _rows_of(c: Comparison, model: Model, head: dict[str, Any], train_seconds: float) -> list[dict[str, Any]]:
    """A row for each container that takes the model's codes."""
    level = head["bits"], head["lists"]
    start = time.perf_counter()
    zb = model.vectors(c.task.xb)
    codes = model.assign(zb)
    encode_seconds = time.perf_counter() - start
    trained = model.config.get("prefix", {}).get("bits", model.codebooks.bits)
    rows: list[dict[str, Any]] = []
    coded: _Coded | None = None
    for container, options in containers(c, model.codebooks.shape):
        name = container.partition(" ")[0]
        gallery, add_seconds = _export(c, model, codes, name, options)
        if coded is None:
            coded = _Coded.of(c, model, gallery, zb, codes, drawn=level == c.charted)
        size = footprint(c.folder / "ours.faissindex", "scqfaiss" if name in SEARCHES else "faiss", None)
        row = {
            **head,
            "factory": None,
            "trained_bits": trained,
            "container": container,
            **coded.measures,
            "seconds": {"train": train_seconds, "encode": encode_seconds, "add": add_seconds},
            "bytes": {"memory": size["memory"], "disk": size["disk"]},
            "open_ms": size["open_ms"],
        }
        search = (lambda z, k, g=gallery: g.search(z, k, encoded=True)) if name in SEARCHES else gallery.index.search
        zq, sweep = gallery.embed(c.task.xq), _sweep(name, gallery, head["lists"])
        measure_points(c.task, c.options.budget, row, coded.coding, coded.kth, search, zq, sweep)
        rows.append(row)
    return rows


@dataclass(frozen=True)
class _Coded:
    """What the containers of a method's codes share: the coding, its measures, and the k-th best score of each query."""

    coding: Coding
    measures: dict[str, Any]
    kth: NDArray[np.float32]

    @staticmethod
    def of(c: Comparison, model: Model, gallery: Gallery, zb: Floats, codes: NDArray[Any], drawn: bool) -> _Coded:
        """gallery: any that holds the codes (n, M) of zb (n, d). drawn: with what charts of single codes need."""
        zs = encoded(gallery.index, gallery.embed(c.task.xq))
        coding = coding_of(model.codebooks, codes, zs, zb)
        measures, kth = ranking(c.task, coding)
        measures |= {"neighbours": {}, "encode_ms": latencies(gallery.embed, c.task.xq, c.options.budget)}
        measures["usage"] = coding.usage()
        if drawn:
            measures |= examples_of(c.task, coding, c.options.seed, c.options.map_rows)
        return _Coded(coding, measures, kth)


def coding_of(codebooks: Codebooks, codes: NDArray[Any], zq: Floats, zb: Floats) -> Coding:
    """Queries zq (nq, d) and rows zb (n, d) by codes of ours, (n, M), or (n, 1 + M) where the list stands first."""
    words, told, K = Words.of(codes), codes, codebooks.K
    if codebooks.lists is not None:  # what use of codewords is told of: of codes of 0 bits, that of the lists
        told, K = (codes[:, 1:], K) if codebooks.M else (codes, len(codebooks.lists))
    return Coding(zq, zb, words, codebooks.decode(words.codes), told, K, codebooks.metric)


def _export(
    c: Comparison, model: Model, codes: NDArray[Any], name: str, options: dict[str, int]
) -> tuple[Gallery, float]:
    """A gallery in the comparison's folder, opened, and the seconds of filling its container."""
    path = c.folder / "ours.faissindex"
    start = time.perf_counter()
    with warnings.catch_warnings():  # few rows for k-means: true, and no news here
        warnings.simplefilter("ignore")
        index, metadata = exporting.build(model, codes, np.arange(len(codes)), name, options)
    seconds = time.perf_counter() - start
    with atomic_write(path) as output:
        exporting.write(output, index, metadata)
    return open_gallery(path, model=model), seconds


def _sweep(name: str, gallery: Gallery, lists: int) -> Sweep:
    """What the operating points of a target differ in."""
    if name == "ivfpq" or (name == "lift" and lists > 1):
        return lists_of(unwrap_index(gallery.index))
    if name == "fastscan":
        refine = behind_ids(gallery.index)
        return Sweep("refine", REFINES, lambda value: setattr(refine, "k_factor", value))
    return Sweep()


def containers(c: Comparison, shape: Any) -> Iterator[tuple[str, dict[str, int]]]:
    """(name, options of the export) of every target that takes such codes; `ivfpq` of codes of whole vectors alone, and with
    lists that searches are routed by.
    """
    routing = lists_for(len(c.task.xb))
    for name in TARGETS:
        if target(name).supports(shape) is not None or name not in c.options.containers:
            continue
        if shape.nbits == 4 and shape.M > 1 and shape.L == 1 and name != "fastscan":
            continue  # pairs of them stand as codebooks of 8 bits there, which are measured as such
        yield name, {}
        if name == "ivfpq" and shape.L == 1 and routing > 1:
            yield f"ivfpq {routing} lists", {"nlist": routing}


# ------------------------------------------------------------------------------------------------------------------- FAISS's
def baseline(c: Comparison, method: str, space: str, bits: int, lists: int, zq: Floats, zb: Floats) -> None:
    """The row of one of FAISS's own quantizers over queries zq (nq, d) and database zb (n, d)."""
    key = coding_key(method, space, bits, lists)
    if c.done(key):
        return
    head = {"key": key + "/faiss", "role": "baseline", "method": method, "space": space, "bits": bits, "lists": lists}
    head["run"] = c.run
    try:
        built = build(method, zb, bits, lists, c.options.seed, c.options.training_rows)
    except (ValueError, RuntimeError) as error:  # FAISS's own errors are RuntimeErrors
        c.finish(key, [head | {"reason": " ".join(str(error).split())[:200]}])
        return
    coding = read_coding(method, built.index, bits, zq, zb)
    measures, kth = _measures_of(c, coding)
    if method != "rabitq":  # whose codes are no codewords
        measures["usage"] = coding.usage()
    if space == "raw" and (bits, lists) == c.charted and method == ("ivfpq" if lists > 1 else "pq"):
        measures |= examples_of(c.task, coding, c.options.seed, c.options.map_rows)
    deep = unwrap_index(built.index)
    container = type(faiss.downcast_index(deep)).__name__
    row = head | {"container": container, "factory": built.factory, **measures, "seconds": built.seconds}
    row |= _size_of(c, built.index)
    sweep = lists_of(faiss.extract_index_ivf(built.index)) if lists > 1 else Sweep()
    measure_points(c.task, c.options.budget, row, coding, kth, built.index.search, zq, sweep)
    c.finish(key, [row])


def ceiling(c: Comparison, space: str, zq: Floats, zb: Floats, metric: str = "ip") -> None:
    """The row of floats: what codes of them can reach, all of them looked at."""
    key = coding_key("flat", space, None)
    if c.done(key):
        return
    coding = Coding.of_floats(zq, zb, metric)
    measures, kth = _measures_of(c, coding)
    index = faiss.IndexFlat(zb.shape[1], METRICS[metric])
    start = time.perf_counter()
    index.add(zb)
    seconds = time.perf_counter() - start
    row = {
        "key": key + "/faiss",
        "role": "ceiling",
        "method": "flat",
        "space": space,
        "container": "IndexFlat",
        "factory": "Flat",
        "bits": None,
        "lists": 1,
        "run": c.run,
        **{name: value for name, value in measures.items() if name not in ("distinct_codes", "mse")},
        "seconds": {"train": 0.0, "encode": 0.0, "add": seconds},
        **_size_of(c, index),
    }
    measure_points(c.task, c.options.budget, row, coding, kth, index.search, zq, Sweep())
    c.finish(key, [row])


def _measures_of(c: Comparison, coding: Coding) -> tuple[dict[str, Any], NDArray[np.float32]]:
    measures, kth = ranking(c.task, coding)
    return measures | {"neighbours": {}}, kth


def _size_of(c: Comparison, index: Any) -> dict[str, Any]:
    """`bytes` and `open_ms` of an index as FAISS writes and reads it."""
    path = c.folder / "faiss.index"
    save_index(index, path)
    size = footprint(path)
    return {"bytes": {"memory": size["memory"], "disk": size["disk"]}, "open_ms": size["open_ms"]}
