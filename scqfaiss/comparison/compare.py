"""Label-aware codes beside FAISS's own at equal bits a vector: quality, speed, bytes, on your own rows.

Ours learn from the labels of `train`. Baselines are FAISS's, trained without labels on rows of `database` itself, twice: on the
rows, centered and of length 1 (raw), and on the embedding of the first method (trained), which tells what the codes add to the
features. Two honesty rows: the label code, and `unseen_map`, of a second training without two of the classes, for queries of
those two. The database is put into an order of its own first, drawn by the seed: FAISS breaks ties by position, and files often
stand by class.

OUT/results.json is written after every coding; the same command goes on where it stopped, and one with more lengths or methods
adds to it. What each figure is stands with the results.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..files import atomic_write, make_folder
from .examples import gallery
from .faiss_codes import lists_for
from .inputs import Inputs, class_name, read_inputs, unseen_classes, without
from .measuring import run_facts, typed
from .models import Models, check_methods
from .options import CompareOptions
from .ranking import Task
from .results import FILE, Results, file_hash
from .rows import Comparison, baseline, ceiling, ours
from .selection import best_baseline, best_ours, fastest, get, lengths


def compare(options: CompareOptions, say: Callable[[str], Any]) -> str:
    """Measure what is missing of a comparison and write it -> its verdict. say: gets a line for each coding.

    Raises ConfigError where files or options do not fit together, or OUT holds results of other ones.
    """
    check_methods(options.methods)
    inputs = read_inputs(options)
    nlist = _check(options, inputs)
    unseen = unseen_classes(inputs, options.left_out, options.seed)
    n = len(inputs.database.x)
    order = np.random.default_rng(options.seed).permutation(n)
    task = Task(
        inputs.query.x,
        inputs.database.x[order],
        inputs.query.labels,
        inputs.database.labels.take(order),
        unseen,
        min(options.at or n, n),
        min(options.sweep_at, n),
    )
    ids = {"query": inputs.query.ids, "database": inputs.database.ids[order]}
    facts = facts_of(options, inputs, task, nlist)
    command = typed("scqfaiss compare")
    make_folder(options.out)
    started = time.perf_counter()
    with (
        atomic_write(options.out / FILE, inputs=list(options.inputs.values()), what="measured") as output,
        tempfile.TemporaryDirectory() as folder,
    ):
        results = Results(output, "comparison", options.out.name, command, facts, fresh=options.fresh)
        results.document["bits"] = sorted({*results.document.get("bits", []), *options.bits})
        run = run_facts(command, options.seed, {name: part["sha256"] for name, part in facts["data"].items()})
        c = Comparison(options, task, ids, results, run, nlist, Path(folder), say)
        measure_all(c, inputs)
        seconds = results.document.get("seconds", 0.0) + time.perf_counter() - started
        examples = gallery(results.document, task, ids, options.seed, options.images, options.image_shape)
        results.save(**examples, seconds=round(seconds, 1))
    return verdict(results.document)


def measure_all(c: Comparison, inputs: Inputs) -> None:
    """Every row that is asked for and not there."""
    options, task = c.options, c.task
    longest, train = max(options.bits), inputs.train
    models = Models(train.x, train.labels.y, longest, options.seed, inputs.class_names)
    rest = without(train.x, train.labels, task.unseen) if task.unseen else None
    unseen_models = Models(*rest, longest, options.seed, None) if rest else None
    for method in options.methods:
        for bits in (None,) if method == "label" else options.bits:
            ours(c, models, unseen_models, method, bits)
    spaces = {}
    if "raw" in options.spaces:
        spaces["raw"] = task.cosine
    if "trained" in options.spaces and options.methods:
        first = {"method": options.methods[0], "bits": options.charted_bits}
        embedding = c.results.document.setdefault("embedding", first)
        model, _ = models.get(embedding["method"], embedding["bits"])
        spaces["trained"] = model.embed(task.xq), model.embed(task.xb)
    for space, (zq, zb) in spaces.items():
        ceiling(c, space, zq, zb)
        for method in options.baselines:
            for bits in options.bits:
                baseline(c, method, space, bits, zq, zb)


def _check(options: CompareOptions, inputs: Inputs) -> int:
    """How many inverted lists. Raises ConfigError where options do not fit the rows."""
    n, d = inputs.database.x.shape
    shape = options.image_shape
    if shape is not None and shape[0] * shape[1] != d:
        raise ConfigError(f"--image-shape {shape[0]}x{shape[1]} needs rows of that many numbers, not {d}")
    nlist = lists_for(n) if options.nlist is None else options.nlist
    if not 1 <= nlist <= n:
        raise ConfigError(f"--nlist is {nlist}, needs 1 to {n:,}")
    return nlist


def facts_of(options: CompareOptions, inputs: Inputs, task: Task, nlist: int) -> dict[str, Any]:
    """What makes two runs one: results with other facts are refused."""
    parts = {"train": inputs.train, "query": inputs.query, "database": inputs.database}
    names = inputs.class_names
    return {
        "data": {
            name: {
                "file": path.name,
                "sha256": file_hash(path),
                "rows": len(parts[name].x),
                "d": parts[name].x.shape[1],
            }
            for name, path in options.inputs.items()
        },
        "seed": options.seed,
        "classes": None if names is None else list(names),
        "many_labels": task.database.multilabel,
        "left_out": [class_name(names, c) for c in task.unseen],
        "at": task.at,
        "sweep_at": task.sweep_at,
        "nlist": nlist,
        "training_rows": options.training_rows,
        "containers": list(options.containers),
        "budget": options.budget,
    }


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
