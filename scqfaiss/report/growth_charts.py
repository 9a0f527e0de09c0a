"""How time and memory grow with the rows, and how fast a training is beside the released recipe's arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from ..comparison import selection
from ..errors import size
from .drawing_charts import (
    LINE,
    MOST,
    NORMAL,
    WIDTH,
    Canvas,
    End,
    Look,
    Missing,
    Plan,
    Theme,
    column_width,
    fitted,
    key_lines,
    leading,
    log_range,
    log_ticks,
    plain_tick,
    power,
    text_width,
)
from .words import amount, count

Document = selection.Document

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


def scale_time(document: Document) -> Plan | Missing:
    """Milliseconds a query against rows."""
    return _growth(
        document, "ms", "scale-time", "Time against rows", "ms a query", plain_tick, lambda v: f"{amount(v)} ms"
    )  # fmt: skip


def scale_memory(document: Document) -> Plan | Missing:
    """Bytes in memory against rows."""
    return _growth(
        document, "memory", "scale-memory", "Memory against rows", "memory", lambda v: size(v).replace(".0 ", " "), size
    )  # fmt: skip


def _growth(
    document: Document,
    field: str,
    name: str,
    title: str,
    axis: str,
    tick: Callable[[float], str],
    shown: Callable[[float], str],
) -> Plan | Missing:
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in document["rows"]:
        rows, value = selection.get(row, "rows"), selection.get(row, field)
        if rows and value:  # a log axis has no 0
            lines.setdefault(str(row.get("target") or row["key"]), []).append((rows, value))
    if not lines:
        return Missing(
            name, title, f"no row has {'the ms of a query (ms)' if field == 'ms' else 'its memory (memory)'}"
        )
    lines = {target: sorted(points) for target, points in lines.items()}
    counts = sorted({rows for points in lines.values() for rows, _ in points})
    # Of memory there is a fixed part, which bends a power; the results carry it on in proportion.
    powers = {t: e for t in lines if (e := selection.get(document, "fits", t, field, "exponent")) is not None}
    powers = powers if field == "ms" else {}
    far = selection.get(document, "extrapolation", "rows")
    carried = {t: v for t in lines if (v := selection.get(document, "extrapolation", "targets", t, field))}
    if not carried or far is None or far <= counts[-1]:
        far, carried = None, {}
    drawn = dict(list(lines.items())[:MOST])
    ends = []
    unknown = [target for target in drawn if target not in TARGETS]
    style = {t: TARGETS.get(t) or OTHERS[unknown.index(t) % len(OTHERS)] for t in drawn}
    for target, points in drawn.items():
        text = f"{target} n^{powers[target]:.2f}" if target in powers else target
        end = (far, carried[target]) if far is not None and target in carried else points[-1]
        ends.append(End(text, *end, style[target]))
    gap = 14.5
    beside = len(ends) * gap <= 330
    labels = column_width(((end.text, end.look.bold) for end in ends), 130) if beside else 0.0
    entries = [] if beside else [(end.text, end.look) for end in ends]
    high = max(210.0, len(ends) * gap) if beside else 240.0
    every = [value for points in drawn.values() for _, value in points] + [end.y for end in ends]
    rows_range = log_range([*counts, *([far] if far else [])], room=0.04, least=10)
    value_range = log_range(every)

    def draw(theme: Theme) -> Figure:
        ticks = log_ticks(*value_range)
        names = [tick(t) for t in ticks]
        left = max(30.0, max((text_width(n) for n in names), default=0) + 12)
        top = 42.0 if far else 24.0
        foot = top + high + 38
        canvas = Canvas(theme, foot + (4 + LINE * key_lines(entries) if entries else 0) + 4)
        width = WIDTH - left - (labels + 24 if beside else 14)
        ax = canvas.axes(left, top, width, high)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlim(*rows_range)
        ax.set_ylim(*value_range)
        canvas.ticks(ax, "y", ticks, names)
        across = log_ticks(*rows_range)
        canvas.ticks(ax, "x", across, [_rows(t) for t in across], grid=False)
        for target, points in drawn.items():
            look = canvas.look(style[target])
            ax.plot(*zip(*points, strict=True), **look, zorder=3)
            if far is not None and target in carried:
                last, value = points[-1]
                dashed = {**look, "linestyle": (0, (3, 2.5)), "linewidth": 0.9, "marker": "", "alpha": 0.8}
                ax.plot([last, far], [value, carried[target]], **dashed, zorder=2)
        if far:
            _parted(canvas, ax.transData, counts[-1], left, top, width, high)
        if beside:
            canvas.end_labels(ax, ends, labels, gap)
        canvas.text(8, 12, axis, colour=theme["muted"], va="center_baseline")
        canvas.text(left, foot - 9, "rows", colour=theme["muted"], va="center_baseline")
        if entries:
            canvas.key(foot + 4, entries)
        return canvas.figure

    header = (
        "target", *(f"{n:,.0f} rows" for n in counts), *(("power",) if powers else ()),
        *((f"{far:,.0f} rows, carried on",) if far else ()),
    )  # fmt: skip
    table = []
    for target, points in lines.items():
        at = dict(points)
        cells = [shown(at[n]) if n in at else "–" for n in counts]
        cells += [f"{powers[target]:.2f}" if target in powers else "–"] if powers else []
        cells += [shown(carried[target]) if target in carried else "–"] if far else []
        table.append((target, *cells))
    at_most = [(target, dict(points)[counts[-1]]) for target, points in lines.items() if counts[-1] in dict(points)]
    least, smallest = leading(at_most, shown, min)
    what = "milliseconds a query" if field == "ms" else "bytes in memory"
    alt = (
        f"Lines of {what} against rows, both on log scales, measured {_span(counts)}. "
        f"The least with the most rows is {least}, {smallest}."
    )
    if powers:
        slowest, slow = leading(list(powers.items()), lambda power: f"{power:.2f}", min)
        alt += f" The slowest growth is that of {slow}, as the rows to the power of {slowest}."
    caption = "Both axes on log scales."
    if powers:
        caption += " n^1.00 beside a name: its time grows as fast as the rows n; n^0.50 as their root."
    if far:
        caption += f" Dashed: carried on to {far:,.0f} rows, which nobody measured."
    if len(drawn) < len(lines):
        caption += f" The picture holds {MOST} of {len(lines):,} lines, the table all of them."
    return Plan(name, title, alt, caption, header, tuple(table), draw)


def _span(counts: Sequence[float]) -> str:
    if len(counts) == 1:
        return f"at {counts[0]:,.0f} rows"
    return f"from {counts[0]:,.0f} to {counts[-1]:,.0f} rows"


def _rows(count: float) -> str:
    exponent = math.log10(count)
    return power(round(exponent)) if abs(exponent - round(exponent)) < 1e-9 and count >= 1000 else plain_tick(count)


def _parted(canvas: Canvas, place: Any, last: float, left: float, top: float, width: float, high: float) -> None:
    """A line between what was measured and what was not, with a word on each side where it has room."""
    x = float((place + canvas.figure.transFigure.inverted()).transform((last, 1))[0]) * WIDTH
    canvas.line([x, x], [top - 14, top + high], color=canvas.theme["muted"], linewidth=0.75, linestyle=(0, (1, 2)))
    y, muted = top - 8, canvas.theme["muted"]
    if x - left > text_width("measured") + 6:
        canvas.text(x - 5, y, "measured", colour=muted, ha="right", va="center_baseline")
    if left + width - x > text_width("carried on") + 6:
        canvas.text(x + 5, y, "carried on", colour=muted, va="center_baseline")


# Training


def training(document: Document) -> Plan | Missing:
    """How many times as fast as the plain arithmetic a step of training is."""
    name, title = "training", "Speed of a training step"
    bars: list[tuple[str, str, float, float, float]] = []
    timed = [row for row in document["rows"] if selection.get(row, "ratio")]
    for row in timed:
        ratio = selection.get(row, "ratio") or 1.0
        low, high = (selection.get(row, key) or ratio for key in ("ratio_low", "ratio_high"))
        what = str(row.get("what") or row["key"])
        batch = count(selection.get(row, "batch"))
        label = f"{what}, batch {batch}" if batch else what
        bars.append((label, what, ratio, min(ratio, low), max(ratio, high)))
    if not bars:
        return Missing(name, title, "no row has a ratio of speeds (ratio)")
    drawn = bars[:MOST]
    ratios = [ratio for _, _, ratio, _, _ in drawn]
    log = max(ratios) > 10 * min(ratios)
    names = column_width(((label, False) for label, *_ in drawn), 150)
    values = [f"{amount(ratio)}×" for ratio in ratios]
    room = max(text_width(v, NORMAL, True) for v in values)
    kinds = list(dict.fromkeys(what for _, what, *_ in drawn))
    colours = ("scq", "mecoq", "phpq", "dpq")

    def draw(theme: Theme) -> Figure:
        pitch, top = 30.0, 12.0
        high, left = pitch * len(drawn), 8 + names + 8
        width = WIDTH - left - room - 24
        canvas = Canvas(theme, top + high + 44)
        ax = canvas.axes(left, top, width, high)
        ax.spines["left"].set_visible(False)
        ends = [1.0, *(v for bar in drawn for v in bar[2:])]
        if log:
            ax.set_xscale("log")
            ax.set_xlim(*log_range(ends, 0.03))
            ticks = log_ticks(*ax.get_xlim(), most=5)
            canvas.ticks(ax, "x", ticks, [plain_tick(t) for t in ticks])
        else:
            ax.set_xlim(0, max(ends) * 1.03)
            ticks = list(_steps(max(ends)))
            canvas.ticks(ax, "x", ticks, [f"{t:g}" for t in ticks])
        ax.set_ylim(len(drawn) - 0.5, -0.5)
        ax.set_yticks([])
        for i, (label, what, ratio, low, up) in enumerate(drawn):
            colour = theme["series"][colours[kinds.index(what) % len(colours)]]
            start = 1.0 if log else 0.0  # a log axis has no 0; at 1 both are as fast
            ax.barh(i, ratio - start, 0.56, left=start, color=colour, linewidth=0)
            ax.plot([low, up], [i, i], color=theme["ink"], linewidth=1.2, solid_capstyle="butt")
            ax.plot([low, up], [i, i], "|", color=theme["ink"], markersize=5, markeredgewidth=1.2)
            y = top + pitch * (i + 0.5)
            canvas.text(left - 8, y, fitted(label, names), ha="right", va="center_baseline")
            canvas.text(WIDTH - 8, y, values[i], size=NORMAL, bold=True, ha="right", va="center_baseline")
        ax.axvline(1, color=theme["ink"], linewidth=PLAIN_WIDTH, zorder=4)
        words = "times as fast as the plain arithmetic" + (", log scale" if log else "")
        canvas.text(left, top + high + 30, words, colour=theme["muted"], va="center_baseline")
        return canvas.figure

    header = ("what", "batch", "times as fast", "quartiles", "pairs", "rows a second, ours", "rows a second, plain")
    table = tuple(
        (
            what, count(selection.get(row, "batch")) or "–", f"{amount(ratio)}×", f"{amount(low)} – {amount(up)}",
            *(count(selection.get(row, key)) or "–" for key in ("pairs", "ours_rows_per_s", "plain_rows_per_s")),
        )
        for row, (_, what, ratio, low, up) in zip(timed, bars, strict=True)
    )  # fmt: skip
    most, quick = leading([(bar[0], bar[2]) for bar in bars], amount)
    least, slow = leading([(bar[0], bar[2]) for bar in bars], amount, min)
    alt = (
        f"Bars of how many times as fast a training step is as the released recipe's arithmetic. The most is "
        f"{most} times, {quick}; the least {least} times, {slow}."
    )
    caption = (
        "Medians of rounds in which both ran one after the other on the same machine; whiskers are quartiles. "
        "The upright line at 1 is equal speed."
    )
    if len(drawn) < len(bars):
        caption += f" The picture holds {MOST} of {len(bars):,} bars, the table all of them."
    return Plan(name, title, alt, caption, header, table, draw)


PLAIN_WIDTH = 0.9  # points, of the line at equal speed


def _steps(high: float) -> Sequence[float]:
    """A few round ticks from 0 to `high`."""
    unit = 10 ** math.floor(math.log10(high))
    step = next(s * unit for s in (0.2, 0.5, 1, 2, 5) if high / (s * unit) <= 5)
    return [i * step for i in range(int(high / step + 1e-9) + 1)]
