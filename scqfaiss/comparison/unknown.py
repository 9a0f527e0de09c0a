"""Queries of classes that the training has not seen: codes with content codes beside FAISS's codes of the rows in as many bits.

For each draw some classes are left out of the training rows; all rows of the database are searched, and teach codebooks without
their labels. mAP of the queries of those classes (unseen), of the others (seen) and of all, for

    auto      the gate weighs every query       told    it is said which queries are of unseen classes
    semantic  the same codes without content    rows    the cosine of the rows, uncompressed
    pq, opq   FAISS's codes of the rows, of as many bits as both parts of ours; where ours stand in lists, in as many, and ivfpq
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Floats, Ints, Labels
from ..errors import ScqError
from ..evaluation.measures import BY_LABELS, load
from ..evaluation.ranking import Relevance, measure
from ..model import Model
from ..training.gate import area_under_curve
from ..training.interface import train
from .faiss_codes import build, read_coding, takes
from .inputs import Inputs, class_name
from .ranking import Coding, Task
from .results import Results
from .rows import Comparison, coding_of

CLASSES = 5  # one of so many is left out
LEAST = 4  # classes that stay, for the gate's folds
BASELINES = ("pq", "opq")  # of whole vectors
IN_LISTS = ("ivfpq", "opq")  # where ours has lists: of residuals, in as many
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Setting:
    """The codes of ours: method as `--methods` names it, bits of both parts, number of lists, seed of the training."""

    method: str
    bits: int
    content_bits: int
    lists: int
    seed: int

    @property
    def key(self) -> str:
        return f"{self.method}/{self.bits}+{self.content_bits} in {self.lists} lists"


def drawn(classes: Ints, draw: int) -> Ints:
    """The classes (C,) that a draw leaves out, a fifth of them and two at least; of up to ten classes one after the other."""
    C, count = len(classes), max(2, len(classes) // CLASSES)
    if C <= 10:
        return classes[(count * draw + np.arange(count)) % C]
    return np.sort(classes[np.random.default_rng(draw).choice(C, count, replace=False)])


def distinct(C: int) -> int:
    """How many different draws there are, at least; without limit where they are drawn at random."""
    return C // max(2, C // CLASSES) if C <= 10 else 1 << 30


def map_of(coding: Coding, queries: Labels, database: Labels) -> float:
    """mAP over the whole database, averaged over the orders of ties."""
    relevance = Relevance(database, coding.words.inverse, len(coding.decoded))
    found = measure(coding.scores(), queries, relevance, measures=load({"map": BY_LABELS["map"]}))
    return float(found["map"])


def trained(x: Floats, y: Ints, xb: Floats, setting: Setting) -> Model:
    """A training on rows x (n, d) of the classes y (n,), whose codebooks also learn from xb (nb, d)."""
    name, _, nbits = setting.method.partition(":")
    with warnings.catch_warnings():  # classes without rows: true, and no news here
        warnings.simplefilter("ignore")
        return train(
            x,
            y,
            method=name,
            bits=setting.bits,
            nbits=int(nbits or 8),
            content_bits=setting.content_bits,
            lists=str(setting.lists),
            seed=setting.seed,
            codebook_rows=xb,
            forecast="off",
        )


def figures(model: Model, task: Task, unseen: Bools, seed: int, training_rows: int) -> dict[str, Any]:
    """mAP by name and part, {'auto': {'unseen', 'seen', 'all'}}, and the AUC of the gate. unseen (nq,): the queries."""
    vectors = model.vectors(task.xb)
    codes = model.assign(vectors)
    semantic, zq, zb = codes[:, : model.semantic.columns], model.chain(task.xq), model.chain(task.xb)
    uq, ub = task.cosine
    maps: dict[str, Any] = {}

    def put(name: str, coding: Callable[[Bools], Coding]) -> None:
        parts = {"unseen": unseen, "seen": ~unseen}
        found = {
            p: map_of(coding(rows), task.queries.take(np.flatnonzero(rows)), task.database) for p, rows in parts.items()
        }
        share = float(unseen.mean())
        maps[name] = found | {"all": share * found["unseen"] + (1 - share) * found["seen"]}

    def coded(queries: Floats) -> Callable[[Bools], Coding]:
        return lambda rows: coding_of(model.codebooks, codes, queries[rows], vectors)

    put("auto", coded(model.embed(task.xq)))
    put("told", coded(model.embed(task.xq, known=np.where(unseen, 0.0, 1.0))))
    put("semantic", lambda rows: coding_of(model.semantic, semantic, zq[rows], zb))
    put("rows", lambda rows: Coding.of_floats(uq[rows], ub))
    bits, lists = model.codebooks.bits, model.codebooks.L
    for method in BASELINES if lists == 1 else ("pq", *IN_LISTS):
        held = 1 if method == "pq" else lists
        if takes(method, bits, held):
            index = build(method, ub, bits, held, seed, training_rows).index
            put(method, lambda rows, m=method, i=index: read_coding(m, i, bits, uq[rows], ub))  # type: ignore[misc]
    auc = area_under_curve(model.known(task.xq).astype(np.float64), ~unseen) if model.has_gate else None
    return {"auc": auc, "maps": maps}


def measure_unknown(c: Comparison, inputs: Inputs, draws: int, content_bits: int) -> None:
    """Every draw that is asked for and not there, each on disk before the next."""
    if not draws:
        return
    train_rows, results = inputs.train, c.results
    method = next((m for m in c.options.methods if m != "label"), None)
    reason = None
    if train_rows.labels.multilabel:
        reason = "rows of many labels are of seen and unseen classes at once"
    elif method is None:
        reason = "no method of ours was compared"
    classes = np.flatnonzero(
        (train_rows.labels.counts() > 0) & (inputs.query.labels.counts()[: train_rows.labels.C] > 0)
    )
    if reason is None and len(classes) - max(2, len(classes) // CLASSES) < LEAST:
        reason = f"{len(classes)} classes are too few to leave some out"
    if reason is not None or method is None:
        if not _held(results):  # what was measured before stays
            results.save(unknown={"reason": reason, "draws": []})
        return
    setting = Setting(method, c.charted[0], content_bits, c.charted[1], c.options.seed)
    for draw in range(min(draws, distinct(len(classes)))):
        held = _held(results)
        if any(row["key"] == f"{setting.key}/{draw}" for row in held):
            continue
        out = drawn(classes, draw)
        kept = ~np.isin(train_rows.labels.y, out)
        unseen = ~np.isin(c.task.queries.y, train_rows.labels.y[kept])  # of classes that no training row has, too
        begun = time.perf_counter()
        try:
            y = np.unique(train_rows.labels.y[kept], return_inverse=True)[1]
            model = trained(train_rows.x[kept], y, c.task.xb, setting)
        except ScqError as error:
            results.save(unknown={"reason": str(error), "draws": held})
            return
        seconds = time.perf_counter() - begun
        row = {
            "key": f"{setting.key}/{draw}",
            "method": method,
            "bits": setting.bits,
            "content_bits": content_bits,
            "lists": setting.lists,
            "left_out": [class_name(inputs.class_names, int(k)) for k in out],
            "classes": len(classes),
            **figures(model, c.task, unseen, c.options.seed, c.options.training_rows),
            "seconds": seconds,
            "run": c.run,
        }
        results.save(unknown={"reason": None, "draws": [*held, row]})
        of = row["maps"]["auto"]
        c.say(
            f"{time.strftime('%H:%M:%S')}  unseen classes, draw {draw}   mAP {of['unseen']:.4f} unseen  {of['seen']:.4f} seen"
        )


def _held(results: Results) -> list[dict[str, Any]]:
    return list((results.document.get("unknown") or {}).get("draws", []))
