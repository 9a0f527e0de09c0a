"""Cosines between the mean embeddings of classes: ours beside the baseline."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from ...comparison import selection
from ...comparison.selection import Document
from ..words import class_name
from .codewords import narrowed
from .drawing import NORMAL, PX, WIDTH, Floats, Missing, Plan, Theme, array, drawable, fitted, subplots, text_width

CELLS = 200  # rows and columns that are drawn: the screen has few more pixels there
NAMED = 12  # classes with a name of their own
NAMELESS = 40  # classes beyond which there are no names at all


def _square(held: Any) -> Floats | None:
    cosines = array(held, 2)
    return cosines if cosines is not None and cosines.shape[0] == cosines.shape[1] >= 2 else None


def centers(document: Document) -> Plan | Missing:
    """The chart of results of kind 'comparison'."""
    name, title = "centers", "How far apart the classes lie"
    sides = selection.sides(document, "centers", _square)
    if not sides:
        return Missing(name, title, selection.lacking(document, "cosines of at least two classes (centers)"))
    C = max(len(matrix) for _, matrix in sides)
    names = [class_name(document, c) for c in range(C)]

    def draw(theme: Theme) -> Figure:
        return _drawn(theme, sides, names)

    # Of all pairs the closest by the first side, out of classes that both have.
    low, high = np.triu_indices(min(len(matrix) for _, matrix in sides), 1)
    order = np.argsort(-sides[0][1][low, high], kind="stable")[: NAMED * (NAMED - 1) // 2]
    pairs = list(zip(low[order].tolist(), high[order].tolist(), strict=True))
    table = tuple((f"{names[i]} – {names[j]}", *(f"{m[i, j]:.2f}" for _, m in sides)) for i, j in pairs)
    closest = []
    for label, m in sides:
        i, j = divmod(int(np.where(np.eye(len(m), dtype=bool), -2, m).argmax()), len(m))
        closest.append((label, round(float(m[i, j]), 2), f"{names[min(i, j)]} and {names[max(i, j)]}"))
    alt = f"Matrices of the cosines between the mean vectors of {C} classes. The two closest classes are " + ", ".join(
        f"{which} with {cosine:.2f} for {label}" for label, cosine, which in closest
    )
    apart, least, _ = min(closest, key=lambda side: side[1])
    if len(closest) > 1:
        same = all(cosine == least for _, cosine, _ in closest)
        alt += ": the same." if same else f": {apart} keeps its closest classes farther apart."
    else:
        alt += "."
    caption = (
        "1 on the diagonal is a class with itself; the nearer the rest to the colour of 0, the less the classes are mixed "
        "up. Ours: mean embeddings. FAISS's codes: means of the rows as they are."
    )
    if C > CELLS:
        caption += f" Cells are means of up to {-(-C // CELLS)} classes either way."
    if len(pairs) < len(low):
        caption += f" The table holds the {len(pairs)} closest pairs."
    return Plan(name, title, alt, caption, ("classes", *(label for label, _ in sides)), table, draw)


def _drawn(theme: Theme, sides: list[tuple[str, Floats]], names: list[str]) -> Figure:
    C = len(names)
    named = range(0, C, -(-C // NAMED)) if C <= NAMELESS else range(0)
    room = min(104.0, max((text_width(drawable(names[i])) for i in named), default=0.0) + 1)
    side = (WIDTH - room - 34) / 2 if len(sides) == 2 else 250.0
    figure, every = subplots(side + room + 84, 1, len(sides))
    figure.set_layout_engine("compressed")
    shades = LinearSegmentedColormap.from_list("cosines", theme["cosines"])
    for i, (ax, (label, matrix)) in enumerate(zip(every, sides, strict=True)):
        C = len(matrix)
        image = ax.imshow(
            narrowed(narrowed(matrix, CELLS).T, CELLS).T, cmap=shades, vmin=-1, vmax=1, aspect="equal",
            extent=(-0.5, C - 0.5, C - 0.5, -0.5),
        )  # fmt: skip
        ax.set_title(fitted(label, side, NORMAL, True), size=NORMAL * PX, weight="bold", color=theme["ink"])
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        ticks = [k for k in named if k < C]
        labels = [fitted(names[k], room) for k in ticks]
        ax.set_xticks(ticks, labels, rotation=90)
        ax.set_yticks(ticks, labels if i == 0 else ["" for _ in ticks])
    bar = figure.colorbar(image, ax=every, location="bottom", shrink=0.4, aspect=16, ticks=[-1, 0, 1])
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_ticklabels(["−1", "0", "1"])
    bar.set_label("cosine of two classes")
    return figure
