"""A map of rows and codewords on a plane: ours above the baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...comparison import selection
from ...comparison.selection import Document
from ..words import class_name
from .drawing import LINE, WIDTH, Floats, Missing, Plan, Theme, array, fitted, spread, subplots, text_width

NAMED = 12  # classes with a name of their own
NEIGHBOURS = 2000  # points that are asked for their neighbour
HIGH = 230.0  # CSS pixels, of one map

# 9 to 20 classes; more than that repeat them. Fit for both grounds.
MANY_CLASSES = tuple(
    "#1f77b4 #ff7f0e #2ca02c #d62728 #9467bd #8c6d46 #e377c2 #7f8c8d #a8a800 #17a2b8 "
    "#7fa8d9 #f2a65a #74c476 #f08080 #b39ddb #c4a484 #f4a6d7 #aab2bd #cdcd5a #7fd3e0".split()
)


@dataclass(frozen=True)
class Map:
    features: Floats  # (n, 2)
    labels: np.ndarray[Any, np.dtype[np.int64]]  # (n,), -1 where unknown
    codewords: Floats  # (u, 2)

    @property
    def neighbours(self) -> float | None:
        """Share of points whose nearest other point on the map is of their own class; None without two labels."""
        known = np.flatnonzero(self.labels >= 0)
        known = known[:: -(-len(known) // NEIGHBOURS) or 1]
        if len(known) < 2:
            return None
        x, y = self.features[known], self.labels[known]
        nearest = []
        for i in range(0, len(x), 256):
            D = ((x[i : i + 256, None] - x[None]) ** 2).sum(-1)
            D[np.arange(len(D)), np.arange(i, i + len(D))] = np.inf
            nearest.append(D.argmin(1))
        return float((y[np.concatenate(nearest)] == y).mean())


def _map(held: dict[str, Any]) -> Map | None:
    features, labels, words = (
        array(held.get(part), k) for part, k in (("features", 2), ("labels", 1), ("codewords", 2))
    )
    if features is None or features.shape[1] != 2:
        return None
    if labels is None or len(labels) != len(features):
        labels = np.full(len(features), -1.0)
    if words is None or words.shape[1] != 2:
        words = np.zeros((0, 2))
    return Map(features, labels.astype(np.int64), words)


def plane(document: Document) -> Plan | Missing:
    """The chart of results of kind 'comparison'."""
    name, title = "plane", "A map of the rows and their codewords"
    sides = selection.sides(document, "plane", _map)
    if not sides:
        return Missing(name, title, selection.lacking(document, "a map of its features (plane)"))
    present = sorted({int(c) for _, m in sides for c in np.unique(m.labels) if c >= 0})
    names = {c: class_name(document, c) for c in present}

    def draw(theme: Theme) -> Figure:
        return _drawn(theme, sides, names)

    alt = "Maps of rows as points, coloured by class, and codewords as crosses: " + ", ".join(
        f"{label} with {len(m.features):,} rows and {len(m.codewords):,} codewords" for label, m in sides
    )
    known = [(label, share) for label, m in sides if (share := m.neighbours) is not None]
    alt += ". "
    if known:
        alt += "Next to a row of its own class lie " + ", ".join(f"{s:.0%} of {label}'s" for label, s in known)
        even = len({f"{share:.0%}" for _, share in known}) == 1
        most = "the same" if even else f"the most are {max(known, key=lambda k: k[1])[0]}'s"
        alt += f"; {most}." if len(known) > 1 else "."
    caption = (
        "t-SNE: what lies close together was close before; distances between groups mean little. Ours: the embedding; "
        "FAISS's codes: the rows as they are. Crosses are codewords: what whole codes stand for."
    )
    if len(present) > len(MANY_CLASSES):
        caption += f" {len(present)} classes share {len(MANY_CLASSES)} colours."
    return Plan(name, title, alt.strip(), caption, (), (), draw)


def _drawn(theme: Theme, sides: list[tuple[str, Map]], names: Mapping[int, str]) -> Figure:
    palette = theme["classes"] if len(names) <= len(theme["classes"]) else MANY_CLASSES
    colours = {c: palette[i % len(palette)] for i, c in enumerate(names)}
    figure, every = subplots((HIGH + 28) * len(sides) + 6, len(sides))
    for ax, (label, m) in zip(every, sides, strict=True):
        share = m.neighbours
        facts = "" if share is None else f": {share:.0%} lie next to their own class"
        room = WIDTH - 16 - text_width(facts, bold=True)
        ax.set_title(fitted(label, room, bold=True) + facts, weight="bold", color=theme["ink"])
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(visible=True, color=theme["grid"])
        _limits(ax, np.concatenate([m.features, m.codewords]))
        # Rasterized: as shapes, thousands of points would make the SVG large.
        printable = [str(colours.get(int(c), theme["muted"])) for c in m.labels]
        ax.scatter(
            m.features[:, 0],
            m.features[:, 1],
            s=4 if len(m.features) > 2500 else 7,
            c=printable,
            linewidths=0,
            rasterized=True,
        )
        ax.plot(*m.codewords.T, "x", color=theme["ink"], markersize=2.7, markeredgewidth=0.55, rasterized=True)
        if len(names) <= NAMED:
            _class_labels(ax, m, names, theme)
    if any(len(m.codewords) for _, m in sides):
        figure.set_figheight(figure.get_figheight() + LINE / 96)
        cross = Line2D([], [], linestyle="none", marker="x", color=theme["ink"], markersize=4.5, markeredgewidth=0.9)
        figure.legend([cross], ["codeword"], loc="outside lower left", labelcolor=theme["muted"], handletextpad=0)
    return figure


def _limits(ax: Axes, points: Floats) -> None:
    """One scale on both axes, all points inside, some room around them."""
    width, height = WIDTH - 16, HIGH
    low, high = points.min(0), points.max(0)
    middle, span = (low + high) / 2, np.maximum(high - low, 1e-9 * np.maximum(1, np.abs(high)))
    unit = max(float(span[0]) / (width - 20), float(span[1]) / (height - 20))
    ax.set_xlim(middle[0] - unit * width / 2, middle[0] + unit * width / 2)
    ax.set_ylim(middle[1] - unit * height / 2, middle[1] + unit * height / 2)


def _class_labels(ax: Axes, m: Map, names: Mapping[int, str], theme: Theme) -> None:
    """Each at the median point of its class, moved up or down where others would lie on the same line."""
    there = [c for c in names if (m.labels == c).any()]
    to_axes = ax.transData + ax.transAxes.inverted()
    places = [to_axes.transform(np.median(m.features[m.labels == c], axis=0)).tolist() for c in there]
    line = 14.5 / HIGH
    for c, (x, _), y in zip(there, places, spread([y for _, y in places], line, line / 2, 1 - line / 2), strict=True):
        text = fitted(names[c], 110, bold=True)
        half = (text_width(text, bold=True) / 2 + 4) / (WIDTH - 16)
        ground = {"facecolor": theme["ground"], "edgecolor": "none", "alpha": 0.7, "boxstyle": "round,pad=0.1"}
        ax.text(
            min(max(x, half), 1 - half),
            y,
            text,
            transform=ax.transAxes,
            weight="bold",
            ha="center",
            va="center",
            bbox=ground,
        )
