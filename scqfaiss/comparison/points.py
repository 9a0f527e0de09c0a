"""Operating points of an opened index: what it finds and how long it takes, over the one setting that trades them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from faiss.contrib.evaluation import OperatingPoints

from ..arrays import Floats
from .measuring import latencies, latency
from .ranking import Coding, Task, exact_neighbours, hits_map, hits_precision, hits_recall, shared

ENOUGH = 0.95  # recall of an operating point that a container is timed at
K = 10  # hits of a timed search


@dataclass(frozen=True)
class Sweep:
    """The setting of a container that its operating points differ in: `name`, and visit(value) puts a value into force."""

    name: str | None = None
    values: tuple[int | None, ...] = (None,)
    visit: Callable[[Any], Any] = lambda value: None
    nlist: int | None = None


def powers(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and `most` itself."""
    return (*(1 << i for i in range((most - 1).bit_length())), most)


def lists_of(ivf: Any) -> Sweep:
    """Over nprobe, where an index has lists to choose from."""
    if ivf.nlist == 1:
        return Sweep()
    return Sweep("nprobe", powers(ivf.nlist), lambda value: setattr(ivf, "nprobe", value), ivf.nlist)


def measure_points(
    task: Task,
    budget: float,
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
        _, I = search(zq, task.sweep_at)
        _, first = search(zq, K)
        point = {
            **({} if sweep.name is None else {sweep.name: value}),
            "ms": latency(lambda x: search(x, K), zq, 1000, 1, budget / 2)["p50"],
            "map": hits_map(task, I),
            "precision_at_10": hits_precision(task, first, K),
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
            "raw": shared(I, task.neighbours),
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
    row["ms"] = latencies(lambda x: search(x, K), zq, budget)
