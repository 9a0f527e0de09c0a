"""How many times as fast as the plain arithmetic a step of training is."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...comparison import selection
from ...comparison.selection import Document
from ..words import count, format_number
from .drawing import MOST, NORMAL, PX, Missing, Plan, Theme, fitted, leading, log_axis, subplots, tick_text

Bar = tuple[str, str, float, float, float]  # label, stage, ratio, its quartiles
COLOURS = ("scq", "mecoq", "phpq", "dpq")


def training(document: Document) -> Plan | Missing:
    """The chart of results of kind 'training'."""
    name, title = "training", "Speed of a training step"
    bars: list[Bar] = []
    timed = [row for row in document["rows"] if selection.get(row, "ratio")]
    for row in timed:
        ratio = selection.get(row, "ratio") or 1.0
        low, high = (selection.get(row, key) or ratio for key in ("ratio_low", "ratio_high"))
        stage, batch = str(row.get("what") or row["key"]), count(selection.get(row, "batch"))
        bars.append((f"{stage}, batch {batch}" if batch else stage, stage, ratio, min(ratio, low), max(ratio, high)))
    if not bars:
        return Missing(name, title, "no row has a ratio of speeds (ratio)")

    def draw(theme: Theme) -> Figure:
        return _drawn(theme, bars[:MOST])

    header = ("what", "batch", "times as fast", "quartiles", "pairs", "rows a second, ours", "rows a second, plain")
    table = tuple(
        (
            stage, count(selection.get(row, "batch")) or "–", f"{format_number(ratio)}×",
            f"{format_number(low)} – {format_number(high)}",
            *(count(selection.get(row, key)) or "–" for key in ("pairs", "ours_rows_per_s", "plain_rows_per_s")),
        )
        for row, (_, stage, ratio, low, high) in zip(timed, bars, strict=True)
    )  # fmt: skip
    most, quick = leading([(bar[0], bar[2]) for bar in bars], format_number)
    least, slow = leading([(bar[0], bar[2]) for bar in bars], format_number, min)
    alt = (
        f"Bars of how many times as fast a training step is as the released recipe's arithmetic. The most is "
        f"{most} times, {quick}; the least {least} times, {slow}."
    )
    caption = (
        "Medians of rounds in which both ran one after the other on the same machine; whiskers are quartiles. "
        "The upright line at 1 is equal speed."
    )
    if len(bars) > MOST:
        caption += f" The image holds {MOST} of {len(bars):,} bars, the table all of them."
    return Plan(name, title, alt, caption, header, table, draw)


def _drawn(theme: Theme, bars: list[Bar]) -> Figure:
    figure, (ax,) = subplots(30.0 * len(bars) + 50)
    ratios = [bar[2] for bar in bars]
    ends = [1.0, *(v for bar in bars for v in bar[2:])]
    log = max(ratios) > 10 * min(ratios)
    if log:
        log_axis(ax.xaxis, ends, 0.03, tick_text)
    else:
        ax.set_xlim(0, max(ends) * 1.03)
        ax.xaxis.set_major_locator(MaxNLocator(5))
    stages = list(dict.fromkeys(bar[1] for bar in bars))
    start = 1.0 if log else 0.0  # a log axis has no 0; at 1 both are as fast
    for i, (_, stage, ratio, low, high) in enumerate(bars):
        colour = theme["series"][COLOURS[stages.index(stage) % len(COLOURS)]]
        ax.barh(
            i, ratio - start, 0.56, left=start, color=colour, xerr=[[ratio - low], [high - ratio]], ecolor=theme["ink"],
            capsize=2.5, error_kw={"elinewidth": 1.2},
        )  # fmt: skip
        ax.annotate(
            f"{format_number(ratio)}×", (1.02, i), xycoords=("axes fraction", "data"), va="center", size=NORMAL * PX,
            weight="bold", annotation_clip=False,
        )  # fmt: skip
    ax.set_ylim(len(bars) - 0.5, -0.5)
    ax.set_yticks(range(len(bars)), [fitted(bar[0], 150) for bar in bars], color=theme["ink"])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.axvline(1, color=theme["ink"], linewidth=0.9, zorder=4)
    ax.grid(axis="x")
    ax.set_xlabel("times as fast as the plain arithmetic" + (", log scale" if log else ""))
    return figure
