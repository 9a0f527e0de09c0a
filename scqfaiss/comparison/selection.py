"""Which rows of a comparison speak for what: the same choice for words, tables and charts.

Rows of one method, space, length and number of inverted lists share their codes, hence all qualities of a ranking; they differ in
container, speed and bytes. A level is a length and a number of lists: lists cost no byte, so codes are held against one another
where both have as many. Rows of older results tell no lists and count as codes of whole vectors, which they were compared as.
Anything may be missing from a results file, so every choice can come out empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from statistics import mean, stdev
from typing import Any, TypeVar

Row = Mapping[str, Any]
Document = Mapping[str, Any]
Part = TypeVar("Part")

NAMES = {
    "scq": "SCQ", "scq:4": "SCQ, 4-bit codebooks", "dpq": "DPQ", "phpq": "PHPQ", "mecoq": "MeCoQ", "mopq": "MoPQ",
    "label": "label code", "pq": "PQ", "opq": "OPQ", "ivfpq": "IVFPQ", "rq": "RQ",
    "ivfrq": "IVF RQ", "lsq": "LSQ", "fastscan": "PQ fast scan", "rabitq": "RaBitQ", "ivf": "lists alone", "flat": "floats",
}  # fmt: skip
SPACES = {"raw": "rows", "trained": "embedding"}
NO_LENGTH = "no length was measured both for ours and for a baseline of the rows"
USUAL_BITS = 32  # the length that single images are drawn for, where it was measured


def number(value: Any) -> float | None:
    """A finite number as float; None for anything else, which counts as not measured."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def get(row: Row | None, *path: str) -> float | None:
    """The number at row[path[0]][path[1]]...; None where any part of the way, or a number at its end, is missing."""
    found: Any = row
    for key in path:
        if not isinstance(found, Mapping):
            return None
        found = found.get(key)
    return number(found)


def name_of(row: Row) -> str:
    """'SCQ', 'IVFPQ (64 lists)', 'OPQ of the embedding': a method as people call it, with its lists where it has some, and with
    what it codes where that is a choice.
    """
    name = NAMES.get(str(row.get("method")), str(row.get("method", row["key"])))
    lists = lists_of(row)
    name += f" ({lists:,} lists)" if lists > 1 else ""
    return f"{name} of the embedding" if borrows(row) else name


def unknown_draws(document: Document) -> list[Row]:
    """The draws of unseen classes that were measured with the same codes as the last one."""
    draws = [row for row in (document.get("unknown") or {}).get("draws") or [] if isinstance(row, Mapping)]
    same = ("method", "bits", "content_bits", "lists")
    return [row for row in draws if all(row.get(name) == draws[-1].get(name) for name in same)]


def unknown_means(document: Document) -> dict[str, dict[str, tuple[float, float]]]:
    """{'auto': {'unseen': (mean, standard deviation over the draws), 'seen', 'all'}, ...}: of what every draw has."""
    draws = unknown_draws(document)
    names = list(draws[0].get("maps") or {}) if draws else []
    found = {}
    for name in names:
        parts = {part: [get(row, "maps", name, part) for row in draws] for part in ("unseen", "seen", "all")}
        if not any(value is None for values in parts.values() for value in values):
            whole = {part: [v for v in values if v is not None] for part, values in parts.items()}
            found[name] = {part: (mean(v), stdev(v) if len(v) > 1 else 0.0) for part, v in whole.items()}
    return found


def lists_of(row: Row) -> int:
    """Inverted lists that are part of a row's code; 1: codes of whole vectors."""
    return int(number(row.get("lists")) or 1)


def borrows(row: Row) -> bool:
    """Whether a row codes, or ranks by, the embedding that a method of ours learned."""
    return row.get("space") == "trained" and row.get("role") in ("baseline", "ceiling")


def coding(row: Row) -> tuple[Any, ...]:
    """(method, space, bits, lists): rows that agree in these hold the same codes, in other containers."""
    return row.get("method"), row.get("space"), row.get("bits"), lists_of(row)


def by_coding(document: Document) -> dict[tuple[Any, ...], Document]:
    """coding -> a document of its rows alone: what asks for one of many codings need not pass all rows each time."""
    found: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in document.get("rows", []):
        found.setdefault(coding(row), {"rows": []})["rows"].append(row)
    return dict(found)


def embedded(document: Document) -> Row | None:
    """Our row whose embedding is what baselines and the ceiling of space 'trained' code; None where nothing says whose."""
    held = document.get("embedding")
    if not isinstance(held, Mapping) or held.get("method") is None:
        return None
    wanted = (held["method"], get(held, "bits"), lists_of(held))
    rows = (r for r in document.get("rows", []) if r.get("role") == "ours" and get(r, "map") is not None)
    return next((r for r in rows if (r.get("method"), get(r, "bits"), lists_of(r)) == wanted), None)


def codings(document: Document) -> list[Row]:
    """One row for each method, space and level that has a mAP: the first, as all its containers rank alike."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in document.get("rows", []):
        if get(row, "map") is not None:
            found.setdefault(coding(row), row)
    return list(found.values())


def series(document: Document) -> dict[str, list[Row]]:
    """name -> codings by ascending bits; codes of a length only, not floats."""
    found: dict[str, list[Row]] = {}
    for row in codings(document):
        if number(row.get("bits")) is not None:
            found.setdefault(name_of(row), []).append(row)
    return {name: sorted(rows, key=lambda r: r["bits"]) for name, rows in found.items()}


def levels(document: Document) -> list[tuple[int, int]]:
    """(bits, lists) that ours or any baseline was measured at, ascending; label codes have a length of their own."""
    roles = ("ours", "baseline")
    coded = (row for row in codings(document) if row.get("role") in roles and number(row.get("bits")) is not None)
    return sorted({(row["bits"], lists_of(row)) for row in coded})


def best_of(rows: Iterable[Row]) -> Row | None:
    """The row with the highest mAP; None of none."""
    return max(rows, key=lambda row: get(row, "map") or 0.0, default=None)


def at_level(document: Document, bits: int, lists: int) -> list[Row]:
    """The codings of a length and a number of lists."""
    return [r for r in codings(document) if r.get("bits") == bits and lists_of(r) == lists]


def best_ours(document: Document, bits: int, lists: int = 1) -> Row | None:
    """The one of ours with the highest mAP at a level."""
    return best_of(r for r in at_level(document, bits, lists) if r.get("role") == "ours")


def best_baseline(document: Document, bits: int, lists: int = 1) -> Row | None:
    """The baseline without labels, on the rows as they are, with the highest mAP at a level."""
    rows = at_level(document, bits, lists)
    return best_of(r for r in rows if r.get("role") == "baseline" and r.get("space") == "raw")


def shown_level(document: Document) -> tuple[int, int] | None:
    """(bits, lists) for charts of one length: 32 bits, or else the most at which ours and a baseline stand, in the most lists."""
    both = [level for level in levels(document) if best_ours(document, *level) and best_baseline(document, *level)]
    usual = [level for level in both if level[0] == USUAL_BITS]
    return max(usual or both, default=None)


def pair(document: Document) -> tuple[Row | None, Row | None]:
    """(ours, IVFPQ of the rows) for images side by side, at shown_level."""
    level = shown_level(document)
    if level is None:
        return None, None
    ours = best_ours(document, *level)
    if ours is not None:  # of its containers the one that carries the images' data
        ours = next((r for r in document["rows"] if coding(r) == coding(ours) and r.get("plane")), ours)
    usual = [("ivfpq", "raw", *level), ("pq", "raw", *level)]
    known = (r for name in usual for r in document["rows"] if coding(r) == name and get(r, "map") is not None)
    return ours, next(known, None) or best_baseline(document, *level)


def carried(document: Document, row: Row | None, field: str) -> list[Any]:
    """What the containers of a row's coding hold in `field`, the row's own first; they share all that is not speed."""
    if row is None:
        return []
    rows = [row, *(r for r in document["rows"] if coding(r) == coding(row))]
    return [r[field] for r in rows if r.get(field) is not None]


def sides(document: Document, field: str, read: Callable[[Any], Part | None]) -> list[tuple[str, Part]]:
    """(name, what `read` makes of `field`) of ours and of the baseline, as far as they have it: for charts side by side."""
    ours, base = pair(document)
    # The inside may have been looked at of one of ours only, which need not be the best by a hair.
    shown = shown_level(document)
    level = [] if shown is None else at_level(document, *shown)
    others = sorted((r for r in level if r.get("role") == "ours"), key=lambda r: -r["map"])
    both = []
    for candidates in ([ours, *others], [base]):
        rows = [(row, value) for row in candidates if row for value in carried(document, row, field)]
        parts = ((name_of(row), part) for row, value in rows if (part := read(value)) is not None)
        both += [first for first in [next(parts, None)] if first is not None]
    return both


def lacking(document: Document, what: str) -> str:
    """Why there is no chart of what neither side has."""
    level = shown_level(document)
    return NO_LENGTH if level is None else f"no row of {said(*level)} has {what}"


def said(bits: int, lists: int) -> str:
    """'32 bits', '32 bits in 64 lists'."""
    return f"{bits} bits" + (f" in {lists:,} lists" if lists > 1 else "")


def shared(document: Document, row: Row | None, *path: str) -> float | None:
    """The number at `path` of a coding: of the row, or else of another container of the same codes, which ranks alike."""
    if row is None:
        return None
    same = (r for r in document["rows"] if coding(r) == coding(row))
    return next((value for r in (row, *same) if (value := get(r, *path)) is not None), None)


def encoding(document: Document, row: Row) -> float | None:
    """ms a query, one thread and 1,000 at a time, of the encoder before a search: 0 for rows as they are, and for floats and
    FAISS's codes of an embedding what the method took that learned it; None where it was not measured.
    """
    if row.get("space") == "raw":
        return 0.0
    path = ("encode_ms", "1000", "one", "p50")
    if borrows(row) and (learned := shared(document, embedded(document), *path)) is not None:
        return learned
    return shared(document, row, *path)


def fastest(
    document: Document, method: str, space: str, bits: int | None, lists: int | None, recall: float = 0.95
) -> tuple[Row, Mapping[str, Any]] | None:
    """(row, operating point) with the least ms among all containers of a coding, of points that find at least `recall` of the
    first 10 that the same codes would rank first; None where no point does. lists None: in however many.
    """
    best: tuple[Row, Mapping[str, Any]] | None = None
    for row in document.get("rows", []):
        if coding(row)[:3] != (method, space, bits) or lists not in (None, lists_of(row)):
            continue
        for point in row.get("points") or []:
            ms, found = get(point, "ms"), get(point, "recall")
            if ms is None or found is None or found < recall:
                continue
            if best is None or ms < best[1]["ms"]:
                best = row, point
    return best
