"""How time and memory grow with the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...comparison import selection
from ...comparison.selection import Document
from ...errors import format_bytes
from ..words import format_number
from . import drawing
from .drawing import End, Look, Missing, Plan, Theme

# A container looks as what it holds or stands for among the methods; more of them take the next look.
TARGETS = {
    "ivfpq": Look("scq", 2.2, marker="o"),
    "ivfpq-lists": Look("dpq", 2.2, marker="s"),
    "pq": Look("pq", marker="s"),
    "buckets": Look("phpq", 2.2, marker="D"),
    "fastscan": Look("fastscan", marker="P"),
    "lift": Look("lsq", marker="^"),
    "residual": Look("rq", marker="v"),
    "faiss-ivfpq": Look("ivfpq", marker="o", filled=False),
    "faiss-ivfpq-l2": Look("opq", marker="s", filled=False),
}
OTHERS = tuple(Look(f"other {i}", marker=marker) for i, marker in enumerate("X<>h"))
Lines = dict[str, list[tuple[float, float]]]  # target -> (rows, value) by ascending rows


def scale_time(document: Document) -> Plan | Missing:
    """Milliseconds a query against rows, of results of kind 'scale'."""
    missing = Missing("scale-time", "Time against rows", "no row has the ms of a query (ms)")
    # Of memory there is a fixed part, which bends a power; the results carry it on in proportion.
    fits = document.get("fits") or {}
    powers = {t: e for t in fits if (e := selection.get(fits, t, "ms", "exponent")) is not None}
    said = "milliseconds a query"
    return _growth(
        document, "ms", missing, "ms a query", said, drawing.tick_text, lambda v: f"{format_number(v)} ms", powers
    )


def scale_memory(document: Document) -> Plan | Missing:
    """Bytes in memory against rows, of results of kind 'scale'."""
    missing = Missing("scale-memory", "Memory against rows", "no row has its memory (memory)")
    tick = lambda value: format_bytes(value).replace(".0 ", " ")  # noqa: E731
    return _growth(document, "memory", missing, "memory", "bytes in memory", tick, format_bytes, {})


def _growth(
    document: Document, field: str, missing: Missing, axis: str, said: str, tick: Callable[[float], str],
    as_text: Callable[[float], str], fitted_powers: dict[str, float],
) -> Plan | Missing:  # fmt: skip
    lines: Lines = {}
    for row in document["rows"]:
        rows, value = selection.get(row, "rows"), selection.get(row, field)
        if rows and value:  # a log axis has no 0
            lines.setdefault(str(row.get("target") or row["key"]), []).append((rows, value))
    if not lines:
        return missing
    lines = {target: sorted(points) for target, points in lines.items()}
    powers = {t: power for t, power in fitted_powers.items() if t in lines}
    counts = sorted({rows for points in lines.values() for rows, _ in points})
    far = selection.get(document, "extrapolation", "rows") or 0.0
    targets = lines if far > counts[-1] else {}
    carried = {t: v for t in targets if (v := selection.get(document, "extrapolation", "targets", t, field))}
    drawn = dict(list(lines.items())[: drawing.MOST])

    def draw(theme: Theme) -> Figure:
        return _drawn(theme, drawn, powers, far, carried, axis, tick)

    header = (
        "target", *(f"{n:,.0f} rows" for n in counts), *(("power",) if powers else ()),
        *((f"{far:,.0f} rows, carried on",) if carried else ()),
    )  # fmt: skip
    table = []
    for target, points in lines.items():
        at = dict(points)
        cells = [as_text(at[n]) if n in at else "–" for n in counts]
        cells += [f"{powers[target]:.2f}" if target in powers else "–"] if powers else []
        cells += [as_text(carried[target]) if target in carried else "–"] if carried else []
        table.append((target, *cells))
    at_most = [(target, points[-1][1]) for target, points in lines.items() if points[-1][0] == counts[-1]]
    least, smallest = drawing.leading(at_most, as_text, min)
    alt = (
        f"Lines of {said} against rows, both on log scales, measured {_span(counts)}. "
        f"The least with the most rows is {least}, {smallest}."
    )
    caption = "Both axes on log scales."
    if powers:
        slowest, slow = drawing.leading(list(powers.items()), lambda power: f"{power:.2f}", min)
        alt += f" The slowest growth is that of {slow}, as the rows to the power of {slowest}."
        caption += " n^1.00 beside a name: its time grows as fast as the rows n; n^0.50 as their root."
    if carried:
        caption += f" Dashed: carried on to {far:,.0f} rows, which nobody measured."
    if len(drawn) < len(lines):
        caption += f" The image holds {drawing.MOST} of {len(lines):,} lines, the table all of them."
    return Plan(missing.name, missing.title, alt, caption, header, tuple(table), draw)


def _drawn(
    theme: Theme, lines: Lines, powers: dict[str, float], far: float, carried: dict[str, float], axis: str,
    tick: Callable[[float], str],
) -> Figure:  # fmt: skip
    unknown = [target for target in lines if target not in TARGETS]
    style = {t: TARGETS.get(t) or OTHERS[unknown.index(t) % len(OTHERS)] for t in lines}
    ends = [
        End(
            f"{t} n^{powers[t]:.2f}" if t in powers else t,
            *((far, carried[t]) if t in carried else points[-1]),
            style[t],
        )
        for t, points in lines.items()
    ]
    figure, (ax,) = drawing.subplots(drawing.lines_height(len(ends)) + 70)
    every = [point for points in lines.values() for point in points] + [(end.x, end.y) for end in ends]
    drawing.log_axis(ax.xaxis, [x for x, _ in every], 0.04, drawing.tick_text, least=10)
    drawing.log_axis(ax.yaxis, [y for _, y in every], 0.06, tick)
    ax.set_title(axis)
    ax.set_xlabel("rows")
    ax.grid(axis="y")
    for target, points in lines.items():
        look = style[target].line(theme)
        ax.plot(*zip(*points, strict=True), **look)
        if target in carried:
            dashes = look | {"linestyle": (0, (3, 2.5)), "linewidth": 0.9, "marker": "", "zorder": 2}
            ax.plot([points[-1][0], far], [points[-1][1], carried[target]], **dashes, alpha=0.8)
    if carried:
        _part(ax, max(rows for points in lines.values() for rows, _ in points), theme)
    if not drawing.line_labels(ax, theme, ends, 130):
        drawing.legend(figure, theme, [(end.text, end.look) for end in ends])
    return figure


def _span(counts: Sequence[float]) -> str:
    return f"at {counts[0]:,.0f} rows" if len(counts) == 1 else f"from {counts[0]:,.0f} to {counts[-1]:,.0f} rows"


def _part(ax: Axes, last: float, theme: Theme) -> None:
    """A line between what was measured and what was not, with a word on each side where it has room."""
    ax.axvline(last, ymax=1.08, color=theme["muted"], linewidth=0.75, linestyle=(0, (1, 2)), clip_on=False)
    place = float((ax.transData + ax.transAxes.inverted()).transform((last, 1))[0])
    for word, side, room in (("measured", "right", place), ("carried on", "left", 1 - place)):
        if room > 0.35:
            ax.annotate(
                word, (place, 1.03), xycoords="axes fraction", xytext=(-4 if side == "right" else 4, 0),
                textcoords="offset points", ha=side, color=theme["muted"],
            )  # fmt: skip
