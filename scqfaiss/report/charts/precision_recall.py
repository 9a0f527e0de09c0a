"""Precision at every recall, of the pair that a report compares and of the best others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ...comparison import selection
from ...comparison.selection import Document
from ..words import embedding_of, score
from .drawing import Floats, Missing, Plan, Table, Theme, array, leading, legend, subplots
from .looks import EMBEDDED, ceilings, looks

FEW_LINES = 8  # they lie close together


def precision_recall(document: Document) -> Plan | Missing:
    """The chart of results of kind 'comparison'."""
    name, title = "precision-recall", "Precision at every recall"
    level = selection.shown_level(document)
    if level is None:
        return Missing(name, title, selection.NO_LENGTH)
    lines = _lines(document, level)
    if not lines:
        return Missing(name, title, f"no row of {selection.said(*level)} has precision at recall (pr)")
    style = {label: replace(look, marker="") for label, look in looks(document).items()}
    style |= {n: replace(look, width=1.3, dash=(3, 1.2, 1, 1.2)) for n, look in style.items() if not look.width}

    def draw(theme: Theme) -> Figure:
        figure, (ax,) = subplots(294)
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1.02)
        ax.set_title("precision")
        ax.set_xlabel("recall")
        ax.grid(axis="y")
        for label, (recall, precision) in reversed(lines.items()):
            ax.plot(recall, precision, **style[label].line(theme))
        legend(figure, theme, [(label, style[label]) for label in lines])
        return figure

    steps = np.linspace(0, 1, 11)
    at = {label: np.interp(steps, *curve) for label, curve in lines.items()}
    table: Table = tuple((f"{r:.1f}", *(f"{ys[i]:.3f}" for ys in at.values())) for i, r in enumerate(steps))
    _, best = leading([(label, float(ys[5])) for label, ys in at.items()], score)
    alt = (
        f"Precision against recall of codes of {selection.said(*level)}. When half of the right rows are found, precision is "
        + ", ".join(f"{ys[5]:.3f} for {label}" for label, ys in at.items())
        + (f"; the highest: {best}." if len(at) > 1 else ".")
    )
    caption = (
        "Down a ranking more of the right rows are found (recall) and more wrong ones stand among them (precision falls). "
        f"Higher is better. Codes of {selection.said(*level)}"
        + ("; floats are not coded" if any(selection.name_of(r) in lines for r in ceilings(document)) else "")
        + ("; the label code has a length of its own." if any(style[n].colour == "label" for n in lines) else ".")
    )
    if any(label.endswith(EMBEDDED) for label in lines):
        caption += f" Of the embedding: {embedding_of(document)}."
    return Plan(name, title, alt, caption, ("recall", *lines), table, draw)


def _lines(document: Document, shown: tuple[int, int]) -> dict[str, tuple[Floats, Floats]]:
    """name -> (recall, precision), the most telling first, FEW_LINES at most."""
    codings = selection.codings(document)
    level = selection.at_level(document, *shown)
    learned = selection.embedded(document)
    wanted = [
        *selection.pair(document),
        selection.best_baseline(document, *shown),
        selection.best_of(r for r in level if r.get("role") == "baseline" and r.get("space") == "trained"),
        learned if learned in level else None,
        *ceilings(document),
        *(r for r in codings if r.get("role") == "label"),
        *sorted((r for r in level if r.get("role") == "ours"), key=lambda r: -r["map"]),
    ]
    lines: dict[str, tuple[Floats, Floats]] = {}
    for row in wanted:
        curves = (curve for held in selection.carried(document, row, "pr") if (curve := _curve(held)) is not None)
        if row is not None and len(lines) < FEW_LINES and (curve := next(curves, None)) is not None:
            lines.setdefault(selection.name_of(row), curve)
    return lines


def _curve(held: dict[str, Any]) -> tuple[Floats, Floats] | None:
    recall, precision = (array(held.get(part), 1) for part in ("recall", "precision"))
    if recall is None or precision is None or recall.shape != precision.shape or len(recall) < 2:
        return None
    order = np.argsort(recall, kind="stable")
    return recall[order], precision[order]
