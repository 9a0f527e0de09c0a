"""What results of every kind say: of a comparison in words.py, of growth and of steps of training here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..comparison.selection import Document, get
from . import attacked, promised, unseen
from .words import AHEAD, BEHIND, EVEN, Point, comparison, count, format_number, nbytes, target_of


def summary(document: Document) -> list[Point]:
    """What a document of `schema.cleaned` says, the most important first."""
    if not document["rows"]:
        return [Point("Nothing measured", "These results hold no rows: there is nothing to say yet.")]
    kinds = {"comparison": _comparison, "scale": scale, "training": training, "attack": attacked.points}
    return kinds[str(document["kind"])](document)


def _comparison(document: Document) -> list[Point]:
    points = comparison(document)
    if len(points) < 2:  # nothing of ours
        return points
    more = (unseen.point(document), promised.point(document))
    return [*points[:2], *filter(None, more), *points[2:]]  # behind quality and speed


# --------------------------------------------------------------------------------------------------------------- scale
def scale(document: Document) -> list[Point]:
    """The largest gallery measured, growth, and what it would come to."""
    return [p for p in (largest(document), growth(document), extrapolated(document)) if p]


def largest(document: Document) -> Point:
    """ms a query where the most rows were measured."""
    topic = "The largest gallery measured"
    timed = [r for r in document["rows"] if get(r, "ms") is not None and get(r, "rows") is not None]
    if not timed:
        return Point(topic, "No search was timed.")
    n = max(r["rows"] for r in timed)
    first, *others = sorted((r for r in timed if r["rows"] == n), key=lambda r: float(r["ms"]))
    recall = get(first, "recall")
    text = f"Of {count(n)} rows, the most that were measured, {target_of(first)} needs {format_number(first['ms'])} ms a query"
    text += "" if recall is None else f" and finds {100 * recall:.0f} of 100 of the first 10"
    if others:
        text += (
            f"; {target_of(others[-1])}, the slowest of {len(others) + 1} targets, {format_number(others[-1]['ms'])} ms"
        )
    return Point(topic, f"{text}.", f"{format_number(first['ms'])} ms", f"{target_of(first)}, {count(n)} rows")


def growth(document: Document) -> Point:
    """The target whose time grows slowest."""
    fits = {str(name): get(fit, "ms", "exponent") for name, fit in (document.get("fits") or {}).items()}
    known = {name: value for name, value in fits.items() if value is not None}
    if not known:
        return Point("Growth", "No growth was fitted to these times.")
    name, power = min(known.items(), key=lambda item: item[1])
    text = f"Of {len(known)} targets {name} grows slowest: its time rises with the power {power:.2f} of the rows,"
    text += f" so that ten times the rows take {format_number(10**power)} times as long."
    if len(known) > 1:
        last, worst = max(known.items(), key=lambda item: item[1])
        text += f" The fastest growth is that of {last}, with the power {worst:.2f}."
    return Point("Growth", text, f"power {power:.2f}", name)


def extrapolated(document: Document) -> Point | None:
    """What the fitted growth comes to at the size it was carried on to."""
    carried: Mapping[str, Any] = document.get("extrapolation") or {}
    targets, n = carried.get("targets") or {}, get(carried, "rows")
    timed = {str(t): value for t in targets if (value := get(targets, t, "ms")) is not None}
    if n is None or not timed:
        return None
    name, took = min(timed.items(), key=lambda item: item[1])
    memory = get(targets, name, "memory")
    text = f"Carried on to {count(n)} rows, {name} would need {format_number(took)} ms a query"
    text += f" and {nbytes(memory)} of memory" if memory is not None else ""
    text += ". This was not measured: it rests on the growth fitted, and on the assumptions below."
    return Point("Carried on", text, f"{format_number(took)} ms", f"{name}, {count(n)} rows, not measured")


# ------------------------------------------------------------------------------------------------------------ training
def training(document: Document) -> list[Point]:
    """A step of each stage and batch beside the released recipe's arithmetic."""
    points = []
    for row in document["rows"]:
        ratio, low, high = (get(row, key) for key in ("ratio", "ratio_low", "ratio_high"))
        if ratio is None:
            continue
        what, batch, pairs = (
            f"{row.get('what') or row['key']} stage",
            count(get(row, "batch")),
            count(get(row, "pairs")),
        )
        sure = low is not None and high is not None
        verdict = AHEAD if ratio > 1 else BEHIND if ratio < 1 else EVEN
        if low is not None and high is not None and low <= 1 <= high:
            verdict = EVEN
        text = f"A step of the {what}{f' at batches of {batch}' if batch else ''} runs {format_number(ratio)} times as fast as "
        text += "the released recipe's arithmetic"
        text += {AHEAD: "", EVEN: ", which is no clear difference", BEHIND: ", which is slower"}[verdict]
        rounds = f" of {pairs} rounds" if pairs else " of the rounds"
        text += (
            f"; in the middle half{rounds} between {format_number(low)} and {format_number(high)} times."
            if sure
            else "."
        )
        topic = f"{what[:1].upper()}{what[1:]}{f', batch {batch}' if batch else ''}"
        points.append(Point(topic, text, f"{format_number(ratio)} ×", "released recipe 1 ×", verdict))
    return points or [Point("Training steps", "No ratio was measured.")]
