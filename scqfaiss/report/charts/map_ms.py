"""mAP of every operating point at one length, against time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from matplotlib.figure import Figure

from ...comparison import selection
from ...comparison.selection import Document, Row
from ..words import embedding_of, format_number, score
from . import drawing
from .drawing import Look, Missing, Plan, Theme
from .looks import dash_if_none, depth, is_embedded, looks

MANY_SERIES = 9  # beyond that, codes that others of FAISS's beat are left out
# name of the codes -> (row, operating point) of each setting
Points = dict[str, list[tuple[Row, Row]]]
HEADER = (
    "codes", "container", "nprobe", "refine", "search, ms a query", "with its encoder", "mAP", "recall@10 of the codes",
    "on the line",
)  # fmt: skip


def map_ms(document: Document) -> Plan | Missing:
    """The chart of results of kind 'comparison'."""
    name, title = "map-ms", "Quality against time"
    level = selection.shown_level(document)
    if level is None:
        return Missing(name, title, selection.NO_LENGTH)
    bits, style = level[0], looks(document)
    series, encoders = _operating_points(document, bits, style)
    if not series:
        return Missing(name, title, f"no row of {bits} bits has operating points with ms and mAP (points)")
    printable = series if len(series) <= MANY_SERIES else _unbeaten(series, style)
    fronts = {label: front([p for _, p in points if p.get("pareto")]) for label, points in series.items()}

    def draw(theme: Theme) -> Figure:
        figure, ax = drawing.map_over_ms(
            theme,
            [p for points in printable.values() for _, p in points],
            f"ms a query, {'with its encoder, ' if any(encoders.values()) else ''}log scale",
        )
        for label, points in printable.items():
            look = style[label]
            faint = replace(look, size=look.size - 1.5).line(theme) | {"linestyle": "none", "zorder": 2}
            ax.plot([p["ms"] for _, p in points], [p["map"] for _, p in points], **faint, alpha=0.4)
            ax.plot([p["ms"] for p in fronts[label]], [p["map"] for p in fronts[label]], **look.line(theme))
        drawing.legend(
            figure, theme, [(label, style[label]) for label in sorted(printable, key=lambda n: not style[n].bold)]
        )
        return figure

    table = tuple(
        (
            label, str(row.get("container") or "–"), dash_if_none(p.get("nprobe")), dash_if_none(p.get("refine")),
            format_number(p["search"]), "–" if encoders[label] is None else format_number(p["ms"]), score(p["map"]),
            dash_if_none(p.get("recall"), 3), "yes" if any(p is q for q in fronts[label]) else "no",
        )
        for label, points in series.items()
        for row, p in points
    )  # fmt: skip
    alt, caption = _alt(series, bits), _caption(document, bits, series, printable, encoders)
    return Plan(name, title, alt, caption, HEADER, table, draw)


def _operating_points(
    document: Document, bits: int, style: Mapping[str, Look]
) -> tuple[Points, dict[str, float | None]]:
    """(the points at a length, name -> ms of the encoder). `ms` of a point is with the encoder, as far as that was measured;
    `search`: without.
    """
    series: Points = {}
    encoders: dict[str, float | None] = {}
    for row in document["rows"]:
        label = selection.name_of(row)
        if row.get("bits") != bits or row.get("role") == "ceiling" or label not in style:
            continue
        points = [p for p in row.get("points") or () if selection.get(p, "ms") and selection.get(p, "map")]
        if points and label not in encoders:
            encoders[label] = selection.encoding(document, row)
        for p in points:
            point = {**p, "search": p["ms"], "ms": p["ms"] + (encoders[label] or 0.0)}
            series.setdefault(label, []).append((row, point))
    return series, encoders


def _unbeaten(series: Points, style: Mapping[str, Look]) -> Points:
    """Ours, IVFPQ of the rows, and those of FAISS's codes that no others of the same space beat at every setting."""
    kept = {n for n in series if style[n].bold or n == "IVFPQ"}
    for space in ("raw", "trained"):
        rivals = [
            (n, p) for n, points in series.items() for row, p in points
            if row.get("role") == "baseline" and row.get("space") == space
        ]  # fmt: skip
        best = front([p for _, p in rivals])
        kept |= {n for n, p in rivals if any(p is q for q in best)}
    first = sorted((n for n in series if n in kept), key=lambda n: not style[n].bold)[: drawing.MOST]
    return {n: points for n, points in series.items() if n in first}


def front(points: Sequence[Row]) -> list[Row]:
    """The points that no other beats in both, by ascending ms. What is flagged may be so among its own container's only."""
    best: list[Row] = []
    for p in sorted(points, key=lambda p: (p["ms"], -p["map"])):
        if not best or p["map"] > best[-1]["map"]:
            best.append(p)
    return best


def _alt(series: Points, bits: int) -> str:
    # Of each series its best point, not all that come out as good: a higher nprobe seldom changes the last digit.
    tops = {
        n: min((p for _, p in points), key=lambda p: (-round(p["map"], 3), p["ms"])) for n, points in series.items()
    }
    quick = {n: min((p for _, p in points), key=lambda p: (p["ms"], -p["map"])) for n, points in series.items()}
    top, highest = drawing.leading([(f"{n} at {format_number(p['ms'])} ms", p["map"]) for n, p in tops.items()], score)
    least, fastest = drawing.leading(
        [(f"{n} with a mAP of {p['map']:.3f}", p["ms"]) for n, p in quick.items()], format_number, min
    )
    return (
        f"Operating points at {bits} bits a vector, mAP against milliseconds a query on a log scale. The highest mAP is "
        f"{top}, {highest}; the least time {least} ms, {fastest}."
    )


def _caption(
    document: Document, bits: int, series: Points, printable: Points, encoders: Mapping[str, float | None]
) -> str:
    caption = (
        f"Codes of {bits} bits; one thread, batches of 1,000 queries, mAP {depth(document, 'sweep_at')}. Each point is a "
        "container at one setting; lines join the points of a method that none of its others beats in both time and mAP."
    )
    if any(encoders.values()):
        caption += " Times are those of search and encoder; codes of the rows need none."
    embedded = {n for n, points in series.items() if is_embedded(points[0][0])}
    if embedded:
        caption += f" Dashed: FAISS's codes of {embedding_of(document)}"
        caption += ", and its encoder's time." if any(encoders[n] for n in embedded) else "."
    unknown = [n for n, ms in encoders.items() if ms is None]
    if unknown:
        caption += f" Search alone, as its encoder was not measured: {drawing.some(unknown)}."
    if len(printable) == drawing.MOST < len(series):
        caption += f" The image holds {drawing.MOST} of {len(series):,} codes, the table all of them."
    elif len(printable) < len(series):
        caption += (
            " Left out of the image, as others of FAISS's codes of the same rows or embedding are as good and as fast: "
            f"{drawing.some([n for n in series if n not in printable])}. The table holds them."
        )
    return caption
