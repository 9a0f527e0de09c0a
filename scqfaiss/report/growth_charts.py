"""How time and memory grow with the rows, and how fast a training is beside the released recipe's arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from ..errors import size
from . import selection
from .drawing_charts import (
    LINE,
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
    log_range,
    log_ticks,
    measured,
    plain_tick,
    power,
    short,
    text_width,
)

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
}
MOST_ROWS = 1e15
BOUNDS = {"ms": (1e-9, 1e15), "memory": (1.0, 1e18)}  # of values that can be true
OTHERS = tuple(Look(f"other {i}", marker=marker) for i, marker in enumerate("X<>h"))


def scale_time(document: Document) -> Plan | Missing:
    """Milliseconds a query against rows."""
    return _growth(
        document, "ms", "scale-time", "Time against rows", "ms a query", plain_tick, lambda v: f"{short(v)} ms"
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
        rows, value = measured(row.get("rows"), 1, MOST_ROWS), measured(row.get(field), *BOUNDS[field])
        if rows is not None and value is not None:
            lines.setdefault(str(row.get("target", row["key"])), []).append((rows, value))
    if not lines:
        return Missing(
            name, title, f"no row has {'the ms of a query (ms)' if field == 'ms' else 'its memory (memory)'}"
        )
    lines = {target: sorted(points) for target, points in lines.items()}
    counts = sorted({rows for points in lines.values() for rows, _ in points})
    far = _far(document, counts[-1])
    fits = {target: fit for target in lines if (fit := _fit(document, target, field, far or counts[-1])) is not None}
    carried = {target for target in fits if far is not None and _carried(document, target, field)}
    far = far if carried else None
    ends = []
    unknown = [target for target in lines if target not in TARGETS]
    style = {t: TARGETS.get(t) or OTHERS[unknown.index(t) % len(OTHERS)] for t in lines}
    for target, points in lines.items():
        fit = fits.get(target)
        text = target if fit is None else f"{target} n^{fit[0]:.2f}"
        end = (far, _at(fit, far)) if fit is not None and far is not None and target in carried else points[-1]
        ends.append(End(text, *end, style[target]))
    gap = 14.5
    beside = len(ends) * gap <= 330
    labels = column_width(((end.text, end.look.bold) for end in ends), 130) if beside else 0.0
    entries = [] if beside else [(end.text, end.look) for end in ends]
    high = max(210.0, len(ends) * gap) if beside else 240.0
    every = [value for points in lines.values() for _, value in points] + [end.y for end in ends]
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
        for target, points in lines.items():
            look = canvas.look(style[target])
            ax.plot(*zip(*points, strict=True), **look, zorder=3)
            fit = fits.get(target)
            if fit is not None and far is not None and target in carried:
                first = points[-1][0]
                dashed = {**look, "linestyle": (0, (3, 2.5)), "linewidth": 0.9, "marker": "", "alpha": 0.8}
                ax.plot([first, far], [_at(fit, first), _at(fit, far)], **dashed, zorder=2)
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
        "target", *(f"{n:,.0f} rows" for n in counts), *(("exponent",) if fits else ()),
        *((f"{far:,.0f} rows, by the fit",) if far else ()),
    )  # fmt: skip
    table = []
    for target, points in lines.items():
        fit, at = fits.get(target), dict(points)
        cells = [shown(at[n]) if n in at else "–" for n in counts]
        cells += ([f"{fit[0]:.2f}" if fit else "–"] if fits else []) + (
            [shown(_at(fit, far)) if fit and target in carried else "–"] if far else []
        )
        table.append((target, *cells))
    at_most = {target: dict(points)[counts[-1]] for target, points in lines.items() if counts[-1] in dict(points)}
    least = min(at_most, key=lambda target: at_most[target])
    what = "milliseconds a query" if field == "ms" else "bytes in memory"
    alt = (
        f"Lines of {what} against rows, both on log scales, measured {_span(counts)}. "
        f"With the most rows {least} needs the least, {shown(at_most[least])}."
    )
    if fits:
        slow = min(fits, key=lambda target: fits[target][0])
        alt += f" {slow} grows the slowest, as the rows to the power of {fits[slow][0]:.2f}."
    caption = "Both axes on log scales: a straight line is a power of the rows n, n^1.00 grows as fast as they do."
    if far:
        caption += f" Dashed: the fit carried on to {far:,.0f} rows, which nobody measured."
    return Plan(name, title, alt, caption, header, tuple(table), draw)


def _fit(document: Document, target: str, field: str, rows: float) -> tuple[float, float] | None:
    """(exponent, factor) of factor * rows ** exponent, if what it gives for `rows` can be true."""
    held: Any = document.get("fits")
    for part in (target, field):
        held = held.get(part) if isinstance(held, Mapping) else None
    if not isinstance(held, Mapping):
        return None
    exponent, factor = measured(held.get("exponent"), -5, 5), measured(held.get("factor"), 1e-30)
    if exponent is None or factor is None or measured(factor * rows**exponent, *BOUNDS[field]) is None:
        return None
    return exponent, factor


def _carried(document: Document, target: str, field: str) -> bool:
    """Whether the results carry a fit on to the rows of the extrapolation."""
    held: Any = document.get("extrapolation")
    for part in ("targets", target):
        held = held.get(part) if isinstance(held, Mapping) else None
    return isinstance(held, Mapping) and measured(held.get(field)) is not None


def _at(fit: tuple[float, float], rows: float) -> float:
    return float(fit[1] * rows ** fit[0])


def _far(document: Document, measured_rows: float) -> float | None:
    """Rows of the extrapolation, if they go beyond what was measured."""
    held = document.get("extrapolation")
    rows = measured(held.get("rows"), 1, MOST_ROWS) if isinstance(held, Mapping) else None
    return rows if rows is not None and rows > measured_rows else None


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
    if left + width - x > text_width("by the fit") + 6:
        canvas.text(x + 5, y, "by the fit", colour=muted, va="center_baseline")


# Training


def training(document: Document) -> Plan | Missing:
    """How many times as fast as the plain arithmetic a step of training is."""
    name, title = "training", "Speed of a training step"
    bars: list[tuple[str, str, float, float, float]] = []
    for row in document["rows"]:
        ratio = measured(row.get("ratio"), 1e-9)
        if ratio is None:
            continue
        low, high = (measured(row.get(key), 1e-9) for key in ("ratio_low", "ratio_high"))
        batch = measured(row.get("batch"), 1)
        what = str(row.get("what", row["key"]))
        label = what if batch is None else f"{what}, batch {batch:,.0f}"
        bars.append((label, what, ratio, min(ratio, low or ratio), max(ratio, high or ratio)))
    if not bars:
        return Missing(name, title, "no row has a ratio of speeds (ratio)")
    ratios = [ratio for _, _, ratio, _, _ in bars]
    log = max(ratios) > 10 * min(ratios)
    names = column_width(((label, False) for label, *_ in bars), 150)
    values = [f"{short(ratio)}×" for ratio in ratios]
    room = max(text_width(v, NORMAL, True) for v in values)
    kinds = list(dict.fromkeys(what for _, what, *_ in bars))
    colours = ("scq", "mecoq", "phpq", "dpq")

    def draw(theme: Theme) -> Figure:
        pitch, top = 30.0, 12.0
        high, left = pitch * len(bars), 8 + names + 8
        width = WIDTH - left - room - 24
        canvas = Canvas(theme, top + high + 44)
        ax = canvas.axes(left, top, width, high)
        ax.spines["left"].set_visible(False)
        ends = [1.0, *(v for bar in bars for v in bar[2:])]
        if log:
            ax.set_xscale("log")
            ax.set_xlim(*log_range(ends, 0.03))
            ticks = log_ticks(*ax.get_xlim(), most=5)
            canvas.ticks(ax, "x", ticks, [plain_tick(t) for t in ticks])
        else:
            ax.set_xlim(0, max(ends) * 1.03)
            ticks = list(_steps(max(ends)))
            canvas.ticks(ax, "x", ticks, [f"{t:g}" for t in ticks])
        ax.set_ylim(len(bars) - 0.5, -0.5)
        ax.set_yticks([])
        for i, (label, what, ratio, low, up) in enumerate(bars):
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
            what, _count(row.get("batch")), f"{short(ratio)}×", f"{short(low)} – {short(up)}", _count(row.get("pairs")),
            _count(row.get("ours_rows_per_s")), _count(row.get("plain_rows_per_s")),
        )
        for row, (_, what, ratio, low, up) in zip(
            (r for r in document["rows"] if measured(r.get("ratio"), 1e-9) is not None), bars, strict=True
        )
    )  # fmt: skip
    best, worst = max(bars, key=lambda bar: bar[2]), min(bars, key=lambda bar: bar[2])
    alt = (
        f"Bars of how many times as fast a training step is as the released recipe's arithmetic. The most is "
        f"{short(best[2])} times, {best[0]}; the least {short(worst[2])} times, {worst[0]}."
    )
    caption = (
        "Medians of rounds in which both ran one after the other on the same machine; whiskers are quartiles. "
        "The upright line at 1 is equal speed."
    )
    return Plan(name, title, alt, caption, header, table, draw)


PLAIN_WIDTH = 0.9  # points, of the line at equal speed


def _steps(high: float) -> Sequence[float]:
    """A few round ticks from 0 to `high`."""
    unit = 10 ** math.floor(math.log10(high))
    step = next(s * unit for s in (0.2, 0.5, 1, 2, 5) if high / (s * unit) <= 5)
    return [i * step for i in range(int(high / step + 1e-9) + 1)]


def _count(value: Any) -> str:
    number = measured(value)
    return "–" if number is None else f"{number:,.0f}"
