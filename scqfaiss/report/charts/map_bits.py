"""mAP of every series at every length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...comparison import selection
from ...comparison.selection import Document, Row
from ..words import embedding_of, listed, score
from . import drawing
from .drawing import End, Look, Missing, Plan, Theme
from .looks import EMBEDDED, ceilings, depth, is_embedded, looks

# Dashes tell codes of the embedding apart, so that their labels can be as short as the method's name.
BY_SPACE = [
    ("FAISS's codes of the rows", Look("flat", marker="")),
    ("FAISS's codes of the embedding", Look("flat", dash=(4, 2.5), marker="")),
]


def best_text(document: Document, level: tuple[int, int]) -> str:
    """Who is best at a length and number of lists, and by how much, as a sentence; '' where nobody stands there."""
    ours, other = selection.best_ours(document, *level), selection.best_baseline(document, *level)
    parts = [
        f"{words} {selection.name_of(row)} with {row['map']:.3f}"
        for words, row in (("the best of ours is", ours), ("the best of the baselines on the rows is", other))
        if row is not None
    ]
    return f"At {selection.said(*level)} " + ", ".join(parts) + "." if parts else ""


def map_bits(document: Document) -> Plan | Missing:
    """The chart of results of kind 'comparison'."""
    name, title = "map-bits", "Quality at every length"
    series, floats = selection.series(document), ceilings(document)
    if not series:
        return Missing(name, title, "no row has a mAP and a length in bits")
    style = looks(document)
    bits = sorted({row["bits"] for rows in series.values() for row in rows})
    drawn = series
    if len(series) > drawing.MOST:
        kept = sorted(series, key=lambda n: (not style[n].bold, -max(row["map"] for row in series[n])))[: drawing.MOST]
        drawn = {label: series[label] for label in kept}
    header = ("codes", *(f"{b} bits" for b in bits), *(("floats",) if floats else ()))

    def draw(theme: Theme) -> Figure:
        return _drawn(theme, drawn, floats, bits, style)

    alt, caption = _words(document, series, floats, bits)
    return Plan(name, title, alt, caption, header, _table(series, floats, bits), draw)


def _drawn(
    theme: Theme, series: dict[str, list[Row]], floats: list[Row], bits: list[int], style: dict[str, Look]
) -> Figure:
    lines = {n: rows for n, rows in series.items() if rows[0].get("role") != "label"}
    figure, (ax,) = drawing.subplots(drawing.lines_height(len(lines) + len(floats)) + 70)
    place = _places(bits)
    drawing.log_axis(ax.xaxis, [*place.values()], 0.05, str, least=2)
    ax.set_ylim(
        *drawing.fraction_limits([row["map"] for row in [*floats, *(r for rows in series.values() for r in rows)]])
    )
    _lengths(ax, place)
    ax.set_title("mAP")
    ax.set_xlabel("bits a vector")
    ax.grid(axis="y")
    for row in floats:
        ax.plot(ax.get_xlim(), [row["map"]] * 2, **style[selection.name_of(row)].line(theme))
    for label, rows in series.items():
        look = style[label].line(theme)
        ax.plot([place[row["bits"]] for row in rows], [row["map"] for row in rows], **look, clip_on=False)
    points = [rows for n, rows in series.items() if n not in lines]
    for rows in points[:1]:  # there is one label code; a second name would have no place of its own
        best = max(rows, key=lambda row: row["map"])
        left = place[best["bits"]] ** 2 > place[bits[0]] * place[bits[-1]]  # in the right half
        ax.annotate(
            drawing.fitted(selection.name_of(best), 90), (place[best["bits"]], best["map"]), (-6 if left else 6, 0),
            textcoords="offset points", ha="right" if left else "left", va="center_baseline", zorder=5,
            bbox={"facecolor": theme["ground"], "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
    ends = [
        End(n.removesuffix(EMBEDDED), place[rows[-1]["bits"]], rows[-1]["map"], style[n]) for n, rows in lines.items()
    ]
    for row in floats:
        n = selection.name_of(row)
        text = n.removesuffix(EMBEDDED) + (", embedded" if is_embedded(row) else "")
        ends.append(End(text, ax.get_xlim()[1], row["map"], style[n]))
    spaces = {rows[0].get("space") for rows in lines.values() if rows[0].get("role") == "baseline"}
    if not drawing.line_labels(ax, theme, ends, 112):
        drawing.legend(figure, theme, [(n, style[n]) for n in [*lines, *map(selection.name_of, floats)]])
    elif spaces >= {"raw", "trained"}:
        drawing.legend(figure, theme, BY_SPACE)
    return figure


def _places(bits: Sequence[int]) -> dict[int, float]:
    """bits -> place on a log axis, which has none of 0: codes of 0 bits stand where half of the shortest would."""
    shortest = min((b for b in bits if b), default=2)
    return {b: float(b or shortest / 2) for b in bits}


def _lengths(ax: Axes, place: Mapping[int, float]) -> None:
    """Ticks at the lengths; of those that are close together powers of two are named before others."""
    low, high = map(math.log, ax.get_xlim())
    named: list[int] = []
    for b in sorted(place, key=lambda b: (not math.log2(place[b]).is_integer(), b)):
        if all(abs(math.log(place[b] / place[other])) > 0.1 * (high - low) for other in named):
            named.append(b)
    ax.set_xticks([*place.values()], [f"{b}" if b in named else "" for b in place])


def _table(series: dict[str, list[Row]], floats: list[Row], bits: list[int]) -> tuple[tuple[str, ...], ...]:
    table = []
    for label, rows in series.items():
        at = {row["bits"]: f"{row['map']:.3f}" for row in rows}
        table.append((label, *(at.get(b, "–") for b in bits), *(("–",) if floats else ())))
    return *table, *((selection.name_of(row), *("–" for _ in bits), f"{row['map']:.3f}") for row in floats)


def _words(document: Document, series: dict[str, list[Row]], floats: list[Row], bits: list[int]) -> tuple[str, str]:
    """(alt, caption)"""
    top, leaders = drawing.leading(
        [(f"{label} at {row['bits']} bits", row["map"]) for label, rows in series.items() for row in rows], score
    )
    alt = f"Lines of mAP against bits a vector, {listed([str(b) for b in bits])}. The highest is {top}, {leaders}. "
    alt = (alt + best_text(document, selection.shown_level(document) or (max(bits), 1))).strip()
    if floats:
        alt += " Without coding: " + ", ".join(f"{selection.name_of(r)} {r['map']:.3f}" for r in floats) + "."
    caption = f"Higher is better; mAP {depth(document, 'at')}. Thick lines: codes by this package; thin: FAISS's own."
    if any(r[0].get("role") == "baseline" and r[0].get("space") == "trained" for r in series.values()):
        caption += f" Dashed: FAISS's codes of {embedding_of(document)}"
        caption += "; beside that point only the codes differ." if selection.embedded(document) else "."
    if floats:
        caption += " Dotted: floats, nothing coded"
        caption += "; dots and dashes: those of the embedding." if any(map(is_embedded, floats)) else "."
    if 0 in bits:
        caption += " Codes of 0 bits are the list that a vector stands in, and nothing more."
    if len(series) > drawing.MOST:
        caption += f" The image holds {drawing.MOST} of {len(series):,} lines, the table all of them."
    return alt, caption
