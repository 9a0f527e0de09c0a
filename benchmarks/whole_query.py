"""A whole query, encoder and search, beside FAISS's IVFPQ of the rows as they are. Prints JSON.

    python benchmarks/whole_query.py MODEL.safetensors QUERY.h5 DATABASE.h5 [--nlist auto] [--rounds 7]

IVFPQ has as many bytes a vector as the model's codes, and as many lists as these, or 4 sqrt(n) where they have none; it codes the
rows centered and of length 1. Ours is the container that is named. Either side searches with the least nprobe, a power of two,
that finds 0.95 of the first 10 of its own codes. One thread; 1,000 queries at a time and queries one by one, the sides in turns.

`batch_ratio`, `single_ratio`: how many times as fast the whole query of ours is, median over the rounds; `batch_search_ratio` and
`single_search_ratio`: without the encoder; `*_us`: microseconds a query. `map`, `faiss_map`: of the first 1,000 hits then.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click
import faiss
import numpy as np

from scqfaiss import faiss_calls
from scqfaiss.arrays import Floats
from scqfaiss.comparison.faiss_codes import build, lists_for, read_coding
from scqfaiss.comparison.growth_codes import read_labelled
from scqfaiss.comparison.measuring import latency, threads
from scqfaiss.comparison.points import powers
from scqfaiss.comparison.ranking import Coding, Task, hits_map, hits_recall, ranking
from scqfaiss.comparison.rows import coding_of
from scqfaiss.evaluation.ranking import same_classes
from scqfaiss.model import Model
from scqfaiss.targets import target

K, AT, ENOUGH = 10, 1000, 0.95
Search = Callable[[Floats, int], Any]


def settle(index: Any, task: Task, coding: Coding) -> int | None:
    """Set the least nprobe that finds ENOUGH of the first K of a coding -> it, or None where there are no lists."""
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is None or ivf.nlist == 1:
        return None
    kth = ranking(task, coding, K)[1]
    for nprobe in powers(ivf.nlist):
        ivf.nprobe = nprobe
        if hits_recall(coding, faiss_calls.search(index, coding.zq, K)[1], kth, K) >= ENOUGH:
            break
    return int(ivf.nprobe)


def timed(calls: dict[str, Callable[[Floats], Any]], xq: Floats, batch: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds a query of each call in each round, one after the other; xq (nq, d) are rows."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls) if number % 2 == 0 else list(calls)[::-1]:
            found[name].append(latency(calls[name], xq, batch, 1, 0.2)["p50"])
    return found


@click.command()
@click.argument("model_path", type=click.Path(exists=True, path_type=Path))
@click.argument("query", type=click.Path(exists=True, path_type=Path))
@click.argument("database", type=click.Path(exists=True, path_type=Path))
@click.option("--nlist", type=click.IntRange(2), help="Lists of IVFPQ; default: those of the codes, or 4 sqrt(n).")
@click.option("--target", "container", default="ivfpq", show_default=True, help="Container of ours.")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1))
def main(model_path: Path, query: Path, database: Path, nlist: int | None, container: str, rounds: int) -> None:
    """Time whole queries of both sides."""
    model = Model.load(model_path)
    codebooks = model.codebooks
    (xq, yq), (xb, yb) = read_labelled(query), read_labelled(database)
    yq, yb = same_classes(yq, yb, query.name, database.name)
    task = Task(xq, xb, yq, yb, len(xb), AT)
    zq, zb = model.embed(xq), model.vectors(xb)
    codes = model.assign(zb)
    holder = target(container)
    ours = holder.build(codebooks, codes, np.arange(len(xb)))
    nprobe = settle(ours, task, coding_of(codebooks, codes, zq, zb)) if codebooks.lists is not None else None
    rows_q, rows_b = task.cosine
    mean = xb.mean(0, dtype=np.float64).astype(np.float32)
    lists = nlist or (codebooks.L if codebooks.L > 1 else lists_for(len(xb)))
    theirs = build("ivfpq", rows_b, max(8, codebooks.bits), lists, 0, 256 * 64).index
    their_nprobe = settle(theirs, task, read_coding("ivfpq", theirs, max(8, codebooks.bits), rows_q, rows_b))

    def look(z: Floats) -> Any:
        return holder.search(ours, z, K, nprobe=nprobe)

    def their_look(x: Floats) -> Any:
        x = x - mean  # what they are coded as; a query of theirs needs it as well
        faiss.normalize_L2(x)
        return faiss_calls.search(theirs, x, K)

    calls = {"ours": lambda x: look(model.embed(x)), "encoder": model.embed, "faiss": their_look}
    out: dict[str, Any] = {"bits": codebooks.bits, "lists": codebooks.L, "nlist": lists, "faiss_nprobe": their_nprobe}
    out |= {} if nprobe is None else {"nprobe": nprobe}
    with threads(1):
        for name, batch in (("batch", 1000), ("single", 1)):
            ms = timed(calls, xq, batch, rounds)
            out |= {f"{side}_{name}_us": round(1e3 * median(held), 2) for side, held in ms.items()}
            out[f"{name}_ratio"] = round(median(b / a for a, b in zip(ms["ours"], ms["faiss"])), 3)
            search = [max(a - e, 1e-9) for a, e in zip(ms["ours"], ms["encoder"])]
            out[f"{name}_search_ratio"] = round(median(b / s for s, b in zip(search, ms["faiss"])), 3)
    out["map"] = round(hits_map(task, holder.search(ours, zq, min(AT, len(xb)), nprobe=nprobe)[1]), 4)
    out["faiss_map"] = round(hits_map(task, faiss_calls.search(theirs, rows_q, min(AT, len(xb)))[1]), 4)
    click.echo(json.dumps(out))


if __name__ == "__main__":
    main()
