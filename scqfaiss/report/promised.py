"""What a comparison says of thresholds and probabilities: asked for against seen, and the forecast against what came of it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..comparison.selection import NAMES, Document, Row, get, number
from .tables import Cell, Group, Line, Table
from .words import Point, score

TOPIC = "Thresholds"
KINDS = {"recall": "recall, of a query's rows", "precision": "precision, of all hits"}
NONE = "not promised"


def _asked(promises: Row, name: str, kind: str) -> dict[float, float | None]:
    """Asked for -> seen, ascending; None where nothing was promised."""
    held = (promises.get(name) or {}).get(kind) or {}
    if not isinstance(held, Mapping):
        return {}
    found = {float(k): number(seen) for k, seen in held.items() if re.fullmatch(r"0\.\d{1,4}", str(k))}
    return dict(sorted(found.items()))


def table(document: Document) -> Table | None:
    """What was asked for, and what the queries saw."""
    promises = document.get("promises") or {}
    groups = []
    for kind, title in KINDS.items():
        guess, sure = (_asked(promises, name, kind) for name in ("guess", "sure"))
        lines = [
            Line(
                f"{asked:g}",
                [Cell(score(seen.get(asked)) or NONE, seen.get(asked)) for seen in (guess, sure)],
                "asked for",
            )
            for asked in guess
        ]
        if lines:
            groups.append(Group(title, lines))
    if not groups:
        return None
    rows = get(promises, "held_out") or 0
    lead = (
        f"Thresholds by {rows:,.0f} labelled rows that did not train, taken from the training rows. A threshold without a margin "
        "is as likely above what was asked for as below; with confidence 0.9 it should be kept nine times in ten, over "
        "many trainings."
    )
    header = [("seen, without a margin", ""), ("seen, with confidence 0.9", "")]
    return Table("Thresholds", "asked for", header, groups, lead)


def point(document: Document) -> Point | None:
    """How far promises, probabilities and the forecast were off; None where results tell nothing of them."""
    promises = document.get("promises")
    if not promises:
        return None
    reason, ece = promises.get("reason"), get(promises, "ece")
    if reason or ece is None:
        return Point(TOPIC, f"Nothing is known of what scores mean: {reason or 'not measured'}.")
    pairs = [
        (abs(seen - asked), kind, asked, seen)
        for kind in KINDS
        for asked, seen in _asked(promises, "guess", kind).items()
        if seen is not None
    ]
    sure = [
        (seen, asked) for kind in KINDS for asked, seen in _asked(promises, "sure", kind).items() if seen is not None
    ]
    name = NAMES.get(str(promises.get("method")), str(promises.get("method")))
    text = f"Probabilities of {name}'s first 100 hits are off by {score(ece)} on average"
    if pairs:
        _, kind, asked, seen = max(pairs)
        text += f". Of {len(pairs)} thresholds, the worst was asked for a {kind} of {asked:g} and had {score(seen)}"
    if sure:
        kept = sum(seen >= asked for seen, asked in sure)
        text += f"; with confidence 0.9, {kept} of {len(sure)} were kept"
    low, high, came = (get(promises, *path) for path in (("forecast", "low"), ("forecast", "high"), ("map",)))
    if low is not None and high is not None and came is not None:
        text += f". The training forecast a mAP of {score(low)} to {score(high)}, and it came to {score(came)}"
    return Point(TOPIC, f"{text}.", score(ece))
