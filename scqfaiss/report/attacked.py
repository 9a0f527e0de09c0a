"""What results of attacks say: what the strongest attack leaves of a search, beside the same change without aim."""

from __future__ import annotations

from ..comparison.selection import Document, Row, get
from .words import BEHIND, Point, score

CONTROL, CLEAN = "random", "clean"


def points(document: Document) -> list[Point]:
    """The middle strength of attacks on the model searched with, and what queries made against other models do."""
    found = [part for own in (True, False) if (part := _strongest(document, own)) is not None]
    return found or [Point("Adversarial queries", "No attack was measured beside clean queries.")]


def _strongest(document: Document, own: bool) -> Point | None:
    """own: of queries made against the model itself; otherwise of those made against another."""
    rows = [row for row in document["rows"] if get(row, "map") is not None]
    aimed = [
        row
        for row in rows
        if row.get("attack") not in (CONTROL, CLEAN, None) and (row.get("crafted") == row.get("searched")) == own
    ]
    strengths = sorted({eps for row in aimed if (eps := get(row, "eps"))})
    if not strengths:
        return None
    eps = strengths[len(strengths) // 2]
    worst = min((row for row in aimed if get(row, "eps") == eps), key=lambda row: float(row["map"]))
    clean, control = _beside(rows, worst, CLEAN, None), _beside(rows, worst, CONTROL, eps)
    if clean is None:
        return None
    by = f"{worst['attack']} with {_amount(document, eps)}"
    text = f"{by} leaves a mAP of {score(worst['map'])} of {score(clean['map'])}"
    text += f" when searching with {worst.get('searched')}"
    text += "" if own else f" by queries that were made against {worst.get('crafted')}"
    if control is not None:
        text += f"; random signs of the same size leave {score(control['map'])}"
    topic = "Attacked" if own else "Attacked through another model"
    return Point(topic, f"{text}.", score(worst["map"]), f"clean {score(clean['map'])}", BEHIND)


def _beside(rows: list[Row], worst: Row, attack: str, eps: float | None) -> Row | None:
    for row in rows:
        same = row.get("searched") == worst.get("searched") and row.get("attack") == attack
        if same and (eps is None or (get(row, "eps") == eps and row.get("crafted") == worst.get("crafted"))):
            return row
    return None


def _amount(document: Document, eps: float) -> str:
    return f"{eps:g} of 255 a pixel" if document.get("space") == "pixels" else f"{100 * eps:g} % of the norm"
