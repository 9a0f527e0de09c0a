"""Probabilities of hits against the share of them that was right."""

from __future__ import annotations

from matplotlib.figure import Figure

from ...comparison import selection
from ...comparison.selection import Document, Row, get
from .drawing import Missing, Plan, Table, Theme, subplots


def reliability(document: Document) -> Plan | Missing:
    """The chart of results of kind 'comparison'."""
    name, title = "reliability", "What probabilities are worth"
    promises = document.get("promises") or {}
    points = _points(promises)
    if not points:
        return Missing(name, title, str(promises.get("reason") or "the results tell nothing of probabilities"))
    total = sum(hits for _, _, hits in points)

    def draw(theme: Theme) -> Figure:
        figure, (ax,) = subplots(294)
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1.02)
        ax.set_title("share of hits that are right")
        ax.set_xlabel("probability that the gallery gave")
        ax.grid(axis="y")
        ax.plot([0, 1], [0, 1], color=theme["muted"], linewidth=1, linestyle=(0, (3, 3)))
        colour = theme["series"].get(str(promises.get("method")), theme["series"]["other 0"])
        ax.plot([p for p, _, _ in points], [r for _, r, _ in points], color=colour, linewidth=2)
        sizes = [20 + 280 * (hits / total) ** 0.5 for _, _, hits in points]
        ax.scatter([p for p, _, _ in points], [r for _, r, _ in points], s=sizes, color=colour, alpha=0.6, linewidths=0)
        return figure

    table: Table = tuple((f"{p:.3f}", f"{right:.3f}", f"{hits:,.0f}") for p, right, hits in points)
    ece = get(promises, "ece")
    codes = selection.said(int(get(promises, "bits") or 0), int(get(promises, "lists") or 1))
    off = max(points, key=lambda point: abs(point[0] - point[1]) * point[2])
    alt = (
        f"Share of right hits against the probability that the gallery gave, codes of {codes}. "
        + ("" if ece is None else f"Expected calibration error {ece:.3f}. ")
        + f"Where it weighs most, hits of probability {off[0]:.2f} are right in {off[1]:.2f} of the cases."
    )
    caption = (
        "On the dashed line, hits of probability 0.8 are right in 8 of 10 cases. Below it, probabilities promise too much. A "
        "large dot stands for many hits. The first 100 hits of every query."
    )
    return Plan(name, title, alt, caption, ("probability", "right", "hits"), table, draw)


def _points(promises: Row) -> list[tuple[float, float, float]]:
    """(probability, share that is right, hits), where all three are there."""
    found = []
    for entry in promises.get("reliability") or []:
        p, right, hits = (get(entry, name) for name in ("probability", "right", "hits"))
        if p is not None and right is not None and hits:
            found.append((p, right, hits))
    return found
