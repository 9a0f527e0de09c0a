"""mAP against the milliseconds of a search over nprobe: a model's codes beside IVFPQ of the same embedding. Prints JSON.

    python benchmarks/nprobe.py MODEL.safetensors QUERY.h5 DATABASE.h5 [--rows 1000000] [--queries 200]

The model's codes have lists; FAISS's IVFPQ has as many lists and bytes, and is trained on the embedding of the rows. --rows: so
many rows are drawn like those of the database, as `scqfaiss compare-growth` draws them, each with the label of the row that it is
like; default: the database itself. mAP is that of the first 1,000 hits, divided by what could have been found. Searches are
FAISS's own on both sides, 1,000 queries at a time on one thread, one side after the other at each nprobe.

`ours_NPROBE_map`, `_ms` and the same of `faiss`; `mean_gain` and `least_gain`: over the points of FAISS's, how much more mAP the
best point of ours has that takes no longer (SLACK for the noise of times); `unmatched`: points of FAISS's that none of ours is as
fast as, which have no gain.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np

from scqfaiss import faiss_calls
from scqfaiss.arrays import Floats, Labels
from scqfaiss.comparison.faiss_codes import build
from scqfaiss.comparison.growth_codes import drawn, read_labelled
from scqfaiss.comparison.measuring import latency, threads
from scqfaiss.comparison.points import powers
from scqfaiss.comparison.ranking import Task, hits_map
from scqfaiss.evaluation.ranking import same_classes
from scqfaiss.model import Model
from scqfaiss.targets import target

AT = 1000  # hits of mAP
K = 10  # hits of a timed search
SLACK = 1.05
NOISE = 0.1  # standard deviations of each feature, of rows that are drawn
Point = tuple[int, float, float]  # nprobe, ms a query, mAP


def rows_of(model: Model, path: Path, rows: int | None, seed: int) -> tuple[Floats, Labels]:
    """(z (n, d), labels) of the database, or of so many rows drawn like its own."""
    xb, labels = read_labelled(path)
    if rows is None:
        return model.vectors(xb), labels
    z, picked = np.empty((rows, model.codebooks.d), np.float32), np.empty(rows, np.int64)
    done = 0
    for which, part in drawn(xb, rows, NOISE, seed):
        z[done : done + len(part)], picked[done : done + len(part)] = model.vectors(part), which
        done += len(part)
    return z, labels.take(picked)


def sweep(indexes: dict[str, Any], task: Task, nlist: int, budget: float) -> dict[str, list[Point]]:
    """The points of each index by name, one after the other at each nprobe."""
    found: dict[str, list[Point]] = {name: [] for name in indexes}
    with threads(1):
        for nprobe in powers(nlist):
            for name, index in indexes.items():
                faiss.extract_index_ivf(index).nprobe = nprobe
                _, I = faiss_calls.search(index, task.xq, AT)
                ms = latency(lambda x: faiss_calls.search(index, x, K), task.xq, 1000, 1, budget)["p50"]  # noqa: B023
                found[name].append((nprobe, ms, hits_map(task, I)))
    return found


def gains(ours: list[Point], theirs: list[Point]) -> list[float]:
    """For each of their points that one of ours is as fast as: how much more mAP the best of these has."""
    found = []
    for _, their_ms, their_map in theirs:
        as_fast = [quality for _, ms, quality in ours if ms <= SLACK * their_ms]
        found += [max(as_fast) - their_map] if as_fast else []
    return found


@click.command()
@click.argument("model_path", type=click.Path(exists=True, path_type=Path))
@click.argument("query", type=click.Path(exists=True, path_type=Path))
@click.argument("database", type=click.Path(exists=True, path_type=Path))
@click.option("--rows", type=click.IntRange(1000), help="Rows to draw; default: the database itself.")
@click.option(
    "--queries", default=200, show_default=True, type=click.IntRange(1), help="Queries, from all over the file."
)
@click.option("--budget", default=0.5, show_default=True, help="Seconds of each timing, at least.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
def main(
    model_path: Path, query: Path, database: Path, rows: int | None, queries: int, budget: float, seed: int
) -> None:
    """Measure mAP and time over nprobe of both sides."""
    model = Model.load(model_path)
    codebooks = model.codebooks
    if codebooks.lists is None or codebooks.kind != "product" or not codebooks.M:
        raise click.ClickException(
            f"{model_path.name}: needs product codebooks and lists, as `--bits 16 --lists 1024` makes"
        )
    zb, yb = rows_of(model, database, rows, seed)
    xq, yq = read_labelled(query)
    some = np.linspace(0, len(xq), min(queries, len(xq)), endpoint=False).astype(int)
    yq, yb = same_classes(yq.take(some), yb, query.name, database.name)
    task = Task(model.embed(xq[some]), zb, yq, yb, len(zb), AT)
    index = target("ivfpq").build(codebooks, model.assign(zb), np.arange(len(zb)))
    theirs = build("ivfpq", zb, codebooks.bits, codebooks.L, seed, 256 * 64).index
    found = sweep({"ours": index, "faiss": theirs}, task, codebooks.L, budget)
    out: dict[str, float] = {}
    click.echo(f"{'nprobe':>8}{'ours ms':>12}{'mAP':>8}{'IVFPQ ms':>12}{'mAP':>8}")
    for (nprobe, ms, quality), (_, their_ms, their_quality) in zip(found["ours"], found["faiss"]):
        click.echo(f"{nprobe:8}{ms:12.4f}{quality:8.4f}{their_ms:12.4f}{their_quality:8.4f}")
    for name, points in found.items():
        out |= {
            f"{name}_{nprobe}_{what}": value for nprobe, *pair in points for what, value in zip(("ms", "map"), pair)
        }
    more = gains(found["ours"], found["faiss"])
    out |= {"rows": len(zb), "lists": codebooks.L, "unmatched": len(found["faiss"]) - len(more)}
    out |= {"mean_gain": float(np.mean(more)), "least_gain": min(more)} if more else {}
    click.echo(json.dumps({key: round(value, 5) for key, value in out.items()}))


if __name__ == "__main__":
    main()
