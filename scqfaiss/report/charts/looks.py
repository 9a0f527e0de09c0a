"""How the codes of a comparison are drawn: a method has one colour and one marker in all charts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...comparison import selection
from ...comparison.selection import Document, Row
from ..words import count
from .drawing import LIGHT, MOST, Look

MARKERS = {
    "scq": "o", "scq:4": "h", "dpq": "s", "phpq": "D", "mecoq": "^", "mopq": "v", "label": "X",
    "ivfpq": "o", "pq": "s", "opq": "^", "rq": "v", "ivfrq": "<", "lsq": "D", "fastscan": "P", "rabitq": "*", "ivf": "X",
}  # fmt: skip
BY_LISTS = "ph<>*"  # markers of a method in other numbers of lists than its fewest
EMBEDDED = " of the embedding"  # as selection.name_of says it


def looks(document: Document) -> dict[str, Look]:
    """name -> look of every series and ceiling."""
    rows = selection.codings(document)
    unknown = sorted({str(row.get("method")) for row in rows} - set(LIGHT["series"]))
    others = [c for c in LIGHT["series"] if c.startswith("other")]
    colours = {method: others[i % len(others)] for i, method in enumerate(unknown)}
    markers = MARKERS | {method: "osD^vPX"[i // len(others) % 7] for i, method in enumerate(unknown)}
    lists: dict[str, set[int]] = {}
    for row in rows:
        lists.setdefault(str(row.get("method")), set()).add(selection.lists_of(row))
    by_name: dict[str, Look] = {}
    for row in rows:
        method, role, trained = str(row.get("method")), row.get("role"), row.get("space") == "trained"
        rank = sorted(lists[method]).index(selection.lists_of(row))
        marker = markers.get(method, "o") if rank == 0 else BY_LISTS[(rank - 1) % len(BY_LISTS)]
        look = Look(colours.get(method, method), marker=marker)
        if role == "ours":
            look = replace(look, width=2.8, size=6.5, bold=True)
        elif role == "label":
            look = replace(look, width=0, size=8)
        elif role == "ceiling":
            look = replace(look, width=1.3, dash=(4, 1.5, 1, 1.5) if trained else (1, 1.8), marker="")
        elif role == "baseline" and trained:
            look = replace(look, width=1.3, dash=(4, 2.5), filled=False)
        by_name.setdefault(selection.name_of(row), look)
    return by_name


def ceilings(document: Document) -> list[Row]:
    """Floats, nothing coded."""
    return [r for r in selection.codings(document) if r.get("role") == "ceiling"][:MOST]


def is_embedded(row: Row) -> bool:
    return selection.name_of(row).endswith(EMBEDDED)


def depth(document: Document, key: str) -> str:
    """Over how much of each ranking a mAP goes. key: 'at' or 'sweep_at'."""
    at, rows = selection.get(document, key), selection.get(document, "data", "database", "rows")
    if at is None or (rows is not None and at >= rows):
        return "over the whole database"
    return f"of the first {at:,.0f} of each ranking"


def dash_if_none(value: Any, digits: int | None = None) -> str:
    """A number as a cell of a table: whole, or with so many digits; a dash where there is none."""
    number = selection.number(value)
    return "–" if number is None else count(number) if digits is None else f"{number:.{digits}f}"
