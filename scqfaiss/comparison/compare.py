"""Label-aware codes beside FAISS's own at equal bits a vector: quality, speed, bytes, on your own rows.

Ours learn from the labels of `train`. Baselines are FAISS's, trained without labels on rows of `database` itself, twice: on the
rows, centered and of length 1 (raw), and on the embedding of the first method (trained), which tells what the codes add to the
features. Both sides have the same numbers of inverted lists: the list of a row is part of its code and costs no byte. For honesty
there are the label code, and draws of classes that a training does not see (unknown.py). The database is put into an order of its
own first, drawn by the seed: FAISS breaks ties by position, and files often stand by class.

OUT/results.json is written after every coding; the same command goes on where it stopped, and one with more lengths or methods
adds to it. What each figure is stands with the results.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Floats
from ..errors import ConfigError
from ..files import make_folder
from .examples import gallery
from .faiss_codes import lists_for, takes
from .inputs import NO_KEYS, Inputs, label_files, read_inputs, row_facts
from .measuring import run_facts, typed
from .models import Models, check_methods
from .options import CompareOptions
from .promised import measure_promises
from .ranking import Task
from .results import FILE, Results, file_hash, results_file
from .rows import Comparison, baseline, ceiling, coding_key, ours
from .selection import best_baseline, best_ours, fastest, get, levels, unknown_means
from .unknown import measure_unknown


def compare(options: CompareOptions, say: Callable[[str], Any], keys: Mapping[str, Any] = NO_KEYS) -> str:
    """Measure what is missing of a comparison and write it -> its verdict. say: gets a line for each coding. keys: arguments of
    open_rows, see data.keys_for.

    Raises ConfigError where files or options do not fit together, or OUT holds results of other ones.
    """
    check_methods(options.methods)
    inputs = read_inputs(options, keys)
    lists = _check(options, inputs)
    n = len(inputs.database.x)
    order = np.random.default_rng(options.seed).permutation(n)
    task = Task(
        inputs.query.x,
        inputs.database.x[order],
        inputs.query.labels,
        inputs.database.labels.take(order),
        min(options.at or n, n),
        min(options.sweep_at, n),
    )
    ids = {"query": inputs.query.ids, "database": inputs.database.ids[order]}
    facts = facts_of(options, inputs, task, label_files(keys)) | row_facts(keys)
    command = typed("scqfaiss compare")
    make_folder(options.out)
    started = time.perf_counter()
    with (
        results_file(options.out / FILE, inputs=list(options.inputs.values()), what="measured") as output,
        tempfile.TemporaryDirectory() as folder,
    ):
        results = Results(output, "comparison", options.out.name, command, facts, fresh=options.fresh)
        if any("lists" not in row for row in results.document["rows"]):
            raise ConfigError(
                f"{output.name}: made by an older scqfaiss, which told no lists; choose another --out, or --fresh"
            )
        for name, asked in (("bits", options.bits), ("lists", lists)):
            results.document[name] = sorted({*results.document.get(name, []), *asked})
        run = run_facts(command, options.seed, {name: part["sha256"] for name, part in facts["data"].items()})
        c = Comparison(options, task, ids, results, run, Path(folder), say, (options.charted_bits, max(lists)))
        measure_all(c, inputs, lists)
        seconds = results.document.get("seconds", 0.0) + time.perf_counter() - started
        examples = gallery(results.document, task, ids, options.seed, options.images, options.image_shape)
        results.finish(**examples, seconds=round(seconds, 1))
    return verdict(results.document)


def measure_all(c: Comparison, inputs: Inputs, lists: tuple[int, ...]) -> None:
    """Every row that is asked for and not there."""
    options, task = c.options, c.task
    longest, train = max(options.bits), inputs.train
    models = Models(train.x, train.labels.y, longest, options.seed, inputs.class_names)
    levels = [(bits, n) for n in lists for bits in options.bits if bits or n > 1]
    for method in options.methods:
        for bits, n in ((None, 1),) if method == "label" else levels:
            ours(c, models, method, bits, n)
    measure_promises(c, models)
    spaces = {}
    if "raw" in options.spaces:
        spaces["raw"] = task.cosine
    if "trained" in options.spaces and options.methods:
        spaces["trained"] = _embedding(c, models)
    for space, (zq, zb) in spaces.items():
        ceiling(c, space, zq, zb)
        for method in options.baselines:
            for bits, n in levels:
                if takes(method, bits, n):
                    baseline(c, method, space, bits, n, zq, zb)
    measure_unknown(c, inputs, options.draws, options.content_bits)


def _embedding(c: Comparison, models: Models) -> tuple[Floats, Floats]:
    """(zq, zb) that FAISS's codes of the embedding are of: that of the first method, in the most lists it has."""
    method, document = c.options.methods[0], c.results.document
    bits, lists = c.charted
    key = coding_key(method, "trained", bits, lists)
    failed = any(row["key"] == key + "/none" for row in document["rows"])
    first = {"method": method, "bits": bits, "lists": 1 if method == "label" or failed else lists}
    held = document.setdefault("embedding", first)
    model, _ = models.get(held["method"], held["bits"], held["lists"])
    return model.embed(c.task.xq), model.vectors(c.task.xb)


def _check(options: CompareOptions, inputs: Inputs) -> tuple[int, ...]:
    """The numbers of lists. Raises ConfigError where options do not fit the rows."""
    n, d = inputs.database.x.shape
    shape = options.image_shape
    if shape is not None and shape[0] * shape[1] != d:
        raise ConfigError(f"--image-shape {shape[0]}x{shape[1]} needs rows of that many numbers, not {d}")
    lists = tuple(sorted({1, lists_for(n)})) if options.lists is None else options.lists
    if max(lists) > n:
        raise ConfigError(f"--lists names {max(lists):,}, needs 1 to {n:,}, the rows of the database")
    return lists


def facts_of(options: CompareOptions, inputs: Inputs, task: Task, labels: Mapping[str, Path]) -> dict[str, Any]:
    """What makes two runs one: results with other facts are refused. labels: files of labels, by what they are."""
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
        }
        | {name: {"file": path.name, "sha256": file_hash(path)} for name, path in labels.items()},
        "seed": options.seed,
        "classes": None if names is None else list(names),
        "many_labels": task.database.multilabel,
        "at": task.at,
        "sweep_at": task.sweep_at,
        "training_rows": options.training_rows,
        "containers": list(options.containers),
        "budget": options.budget,
    }


def verdict(document: Any) -> str:
    """A line for each length and number of lists: what labels gain, and at which speed; then the same figures as JSON."""
    lines, found = [], {}
    for bits, lists in levels(document):
        mine, other = best_ours(document, bits, lists), best_baseline(document, bits, lists)
        if mine is None or other is None:
            continue
        name = f"{bits}_{lists}" if lists > 1 else f"{bits}"
        found[f"map_{name}"], found[f"gain_{name}"] = mine["map"], mine["map"] - other["map"]
        line = f"{bits:3} bits{f', {lists:,} lists' * (lists > 1)}: {mine['method']} {mine['map']:.4f}"
        line += f", best without labels {other['method']} {other['map']:.4f}, gain {mine['map'] - other['map']:+.4f}"
        here = fastest(document, mine["method"], "trained", bits, lists)
        # Codes of whole vectors are held against the search that FAISS's users know, which has lists.
        there = fastest(document, "ivfpq", "raw", bits, lists if lists > 1 else None)
        encode = get(mine, "encode_ms", "1000", "one", "p50")
        if here and there and encode is not None:
            ms, plain = here[1]["ms"], there[1]["ms"]
            found[f"ratio_{name}"], found[f"ratio_with_encoder_{name}"] = plain / ms, plain / (ms + encode)
            line += f"; search {ms:.4f} ms in {here[0]['container']} (IVFPQ {plain:.4f}, ratio {plain / ms:.2f})"
            line += f", with its encoder {ms + encode:.4f} (ratio {plain / (ms + encode):.2f})"
        lines.append(line)
    for name, parts in unknown_means(document).items():
        found |= {f"{name}_{part}": mean for part, (mean, _) in parts.items()}
    if "auto_unseen" in found:
        auto = f"{found['auto_unseen']:.4f}, of the others {found['auto_seen']:.4f}"
        lines.append(f"queries of classes that the training has not seen: {auto}")
    return "\n".join([*lines, json.dumps({key: round(value, 4) for key, value in found.items()})])
