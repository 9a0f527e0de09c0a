"""Which rows of a comparison speak for what: the same choice for words, tables and charts.

Rows of one method, space and length share their codes, hence all qualities of a ranking; they differ in container, speed and
bytes. Anything may be missing from a results file, so every choice can come out empty.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]
Document = Mapping[str, Any]

NAMES = {
    "scq": "SCQ",
    "scq:4": "SCQ, 4-bit books",
    "dpq": "DPQ",
    "phpq": "PHPQ",
    "mecoq": "MeCoQ",
    "mopq": "MoPQ",
    "label": "label code",
    "pq": "PQ",
    "opq": "OPQ",
    "ivfpq": "IVFPQ",
    "rq": "RQ",
    "lsq": "LSQ",
    "fastscan": "PQ fast scan",
    "flat": "floats",
}
SPACES = {"raw": "rows", "trained": "embedding"}
USUAL_BITS = 32  # the length that single pictures are drawn for, where it was measured


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
    """'SCQ', 'IVFPQ', 'OPQ of the embedding': a method as people call it, with what it codes where that is a choice."""
    name = NAMES.get(str(row.get("method")), str(row.get("method", row["key"])))
    return (
        f"{name} of the embedding"
        if row.get("role") in ("baseline", "ceiling") and row.get("space") == "trained"
        else name
    )


def coding(row: Row) -> tuple[Any, ...]:
    """(method, space, bits): rows that agree in these hold the same codes, in other containers."""
    return row.get("method"), row.get("space"), row.get("bits")


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
    wanted = (held["method"], get(held, "bits"))
    rows = (r for r in document.get("rows", []) if r.get("role") == "ours" and get(r, "map") is not None)
    return next((r for r in rows if (r.get("method"), get(r, "bits")) == wanted), None)


def codings(document: Document) -> list[Row]:
    """One row for each method, space and length that has a mAP: the first, as all its containers rank alike."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in document.get("rows", []):
        if get(row, "map") is not None:
            found.setdefault(coding(row), row)
    return list(found.values())


def series(document: Document) -> dict[str, list[Row]]:
    """name -> codings by rising bits; codes of a length only, not floats."""
    found: dict[str, list[Row]] = {}
    for row in codings(document):
        if number(row.get("bits")) is not None:
            found.setdefault(name_of(row), []).append(row)
    return {name: sorted(rows, key=lambda r: r["bits"]) for name, rows in found.items()}


def lengths(document: Document) -> list[int]:
    """Bits that ours or any baseline was measured at, rising; label codes have a length of their own."""
    roles = ("ours", "baseline")
    return sorted({row["bits"] for row in codings(document) if row.get("role") in roles and number(row.get("bits"))})


def best_of(rows: Iterable[Row]) -> Row | None:
    """The row with the highest mAP; None of none."""
    return max(rows, key=lambda row: get(row, "map") or 0.0, default=None)


def best_ours(document: Document, bits: int) -> Row | None:
    """The one of ours with the highest mAP at a length."""
    return best_of(r for r in codings(document) if r.get("role") == "ours" and r.get("bits") == bits)


def best_baseline(document: Document, bits: int) -> Row | None:
    """The baseline without labels, on the rows as they are, with the highest mAP at a length."""
    return best_of(
        r
        for r in codings(document)
        if r.get("role") == "baseline" and r.get("space") == "raw" and r.get("bits") == bits
    )


def shown_bits(document: Document) -> int | None:
    """The length for charts of one length: 32 bits, or else the largest at which ours and a baseline stand."""
    both = [b for b in lengths(document) if best_ours(document, b) and best_baseline(document, b)]
    return USUAL_BITS if USUAL_BITS in both else max(both, default=None)


def pair(document: Document) -> tuple[Row | None, Row | None]:
    """(ours, IVFPQ of the rows) for pictures side by side, at shown_bits."""
    bits = shown_bits(document)
    if bits is None:
        return None, None
    ours = best_ours(document, bits)
    if ours is not None:  # of its containers the one that carries the pictures' data
        ours = next((r for r in document["rows"] if coding(r) == coding(ours) and r.get("plane")), ours)
    base = [
        r
        for r in document["rows"]
        if r.get("method") == "ivfpq"
        and r.get("space") == "raw"
        and r.get("bits") == bits
        and get(r, "map") is not None
    ]
    return ours, base[0] if base else best_baseline(document, bits)


def fastest(
    document: Document, method: str, space: str, bits: int, recall: float = 0.95
) -> tuple[Row, Mapping[str, Any]] | None:
    """(row, operating point) with the least ms among all containers of a coding, of points that find at least `recall` of the
    first 10 that the same codes would rank first; None where no point does.
    """
    best: tuple[Row, Mapping[str, Any]] | None = None
    for row in document.get("rows", []):
        if coding(row) != (method, space, bits):
            continue
        for point in row.get("points") or []:
            ms, found = get(point, "ms"), get(point, "recall")
            if ms is None or found is None or found < recall:
                continue
            if best is None or ms < best[1]["ms"]:
                best = row, point
    return best
