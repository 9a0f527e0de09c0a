"""What all charts share: two themes, figures that matplotlib lays out, and text fitted to its room."""

from __future__ import annotations

import base64
import io
import math
import re
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image

from ..words import listed

Header = tuple[str, ...]
Table = tuple[tuple[str, ...], ...]
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Chart:
    """One chart of a report, in both themes, with all that stands beside it."""

    name: str  # slug, unique within a document
    title: str
    alt: str  # what the chart shows, with the figures that matter
    caption: str  # how to read it
    light: bytes  # SVG on a transparent ground, for light pages
    dark: bytes  # the same for dark pages
    png: bytes  # the light one on white, twice as large
    header: Header
    table: Table  # the drawn figures; () where a table makes no sense


@dataclass(frozen=True)
class Missing:
    """A chart that the results lack something for."""

    name: str
    title: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """A chart before it is drawn: `draw` makes the figure in a theme."""

    name: str
    title: str
    alt: str
    caption: str
    header: Header
    table: Table
    draw: Callable[[Theme], Figure]


# Light and dark. Lines and text reach 4.5:1 against the ground. Markers and dashes tell lines apart where colours do not.
# 'other': methods that this version does not know.
_SERIES = {
    "scq": ("#0b5fd0", "#6cb0ff"), "scq:4": ("#4338ca", "#a5a6ff"), "dpq": ("#c2410c", "#ff9a62"),
    "phpq": ("#7e22ce", "#c79bff"), "mecoq": ("#0f766e", "#4fd1c5"), "mopq": ("#a21caf", "#f08cf0"),
    "label": ("#1f2328", "#e6e9ee"), "pq": ("#4b5563", "#b3bcc8"), "opq": ("#15803d", "#6fd08c"),
    "ivfpq": ("#946200", "#e3b341"), "rq": ("#be185d", "#ff8fb3"), "lsq": ("#0e7490", "#5cc8e0"),
    "fastscan": ("#4d7c0f", "#b4d455"), "ivfrq": ("#9d174d", "#f9a8d4"), "rabitq": ("#475569", "#94a3b8"),
    "ivf": ("#7c2d12", "#fdba74"), "flat": ("#57606a", "#9aa4b2"), "other 0": ("#8b4513", "#dba37a"),
    "other 1": ("#3f51b5", "#a5b4fc"), "other 2": ("#00695c", "#5eead4"), "other 3": ("#b0003a", "#fda4af"),
}  # fmt: skip
_COLOURS = {
    "ground": ("#ffffff", "#14171c"),  # of the page; charts are transparent
    "ink": ("#1f2328", "#e6e9ee"),
    "muted": ("#57606a", "#9aa4b2"),
    "grid": ("#d8dee4", "#2b313a"),
    "empty": ("#e4e7eb", "#2b313a"),  # codewords that no row uses
    # Up to 8 classes, in Okabe and Ito's colours; yellow darkened for a white ground, grey for their black, which codewords have.
    "classes": (
        ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#bfa900", "#8a8f98"),
        ("#3d9be0", "#e69f00", "#00b886", "#e08fbd", "#7cc8f5", "#f0763b", "#f0e442", "#9aa0aa"),
    ),
    "cosines": (("#c2410c", "#f4f5f7", "#0b5fd0"), ("#ff9a62", "#1e232a", "#6cb0ff")),  # -1, 0, 1
    "use": (("#dbe9fb", "#7fb0ee", "#0b5fd0", "#06265a"), ("#173052", "#2f6fc0", "#8cc0ff", "#f2f7ff")),  # few to many
}
Theme = dict[str, Any]  # the names above and 'series', {method: colour}
LIGHT, DARK = (
    {name: pair[i] for name, pair in _COLOURS.items()} | {"series": {name: pair[i] for name, pair in _SERIES.items()}}
    for i in (0, 1)
)

WIDTH = 440  # CSS pixels, of every chart
PX = 72 / 96  # points a CSS pixel
SMALL, NORMAL = 11.0, 12.0  # text, in CSS pixels
MOST = 40  # lines or bars of one chart; tables beside it hold the rest
LINE = 17  # CSS pixels, height of a line of a legend

# Everything at matplotlib's own defaults, whatever a user's matplotlibrc says, but for these.
STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so that its glyphs are always there
    "font.size": SMALL * PX,
    "text.hinting": "none",  # as wide on the screen as text_width says
    "text.parse_math": False,  # a class may be called $
    "svg.fonttype": "path",
    "svg.hashsalt": "scqfaiss",
    "axes.formatter.useoffset": False,
    "axes.titlesize": SMALL * PX,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": PX,
    "axes.axisbelow": True,
    "xaxis.labellocation": "left",
    "grid.linewidth": PX,
    "image.aspect": "auto",
    "image.interpolation": "none",
    "legend.fontsize": SMALL * PX,
    "legend.frameon": False,
    "legend.labelspacing": 0.35,
    "legend.columnspacing": 1.4,
    "legend.borderpad": 0.0,
    "legend.borderaxespad": 0.4,
    **{f"{axis}tick.{part}": value for axis in "xy" for part, value in (("major.size", 2.3), ("major.pad", 2.3))},
}
_ONE_AT_A_TIME = threading.Lock()  # matplotlib's settings are the process's


@contextmanager
def drawn(plan: Plan, theme: Theme) -> Iterator[Figure]:
    """The figure of a plan, with matplotlib set up as it needs to be while it is made and saved."""
    muted = ("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    colours = {"text.color": theme["ink"], "grid.color": theme["grid"], **dict.fromkeys(muted, theme["muted"])}
    ground = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none")
    with _ONE_AT_A_TIME, matplotlib.style.context(["default", STYLE | colours | ground]):  # type: ignore[list-item]
        yield plan.draw(theme)


def rendered(plan: Plan) -> Chart:
    """The chart of a plan, in both themes: same plan, same bytes."""
    with drawn(plan, LIGHT) as figure:
        light, png = _svg(figure), io.BytesIO()
        figure.savefig(
            png, format="png", dpi=192, facecolor="#ffffff", metadata={"Software": None}, pil_kwargs={"optimize": True}
        )
    with drawn(plan, DARK) as figure:
        dark = _svg(figure)
    return Chart(plan.name, plan.title, plan.alt, plan.caption, light, dark, png.getvalue(), plan.header, plan.table)


def _svg(figure: Figure) -> bytes:
    out = io.BytesIO()
    # dpi: of what is rasterised
    figure.savefig(out, format="svg", dpi=192, metadata={"Date": None, "Creator": None})
    return re.sub(rb"(?<=data:image/png;base64,)[^\"]+", _packed, out.getvalue())


def _packed(match: re.Match[bytes]) -> bytes:
    """A PNG in base64, of few colours where it is large: thousands of points are."""
    if len(match[0]) < 20_000:
        return match[0]
    out = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(match[0]))) as image:
        image.quantize(64, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue())


def array(value: Any, ndim: int) -> Floats | None:
    """Nested lists of finite numbers as an array that is not empty, or None."""
    try:
        floats = np.asarray(value if isinstance(value, list) else None, np.float64)
    except (TypeError, ValueError):  # ragged, or with gaps
        return None
    return floats if floats.ndim == ndim and floats.size and bool(np.isfinite(floats).all()) else None


# ---------------------------------------------------------------------------------------------------------------- text
@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans", fallback_to_default=True)).get_charmap())


def drawable(text: str) -> str:
    """One line that the font can draw: a sign stands for each character it lacks."""
    return "".join(c if ord(c) in _glyphs() else "\ufffd" for c in " ".join(text.split()))


@lru_cache(maxsize=4096)
def text_width(text: str, size: float = SMALL, bold: bool = False) -> float:
    """Width of one line, in CSS pixels."""
    font = FontProperties(family="DejaVu Sans", size=size * PX, weight="bold" if bold else "normal")
    return float(text_to_path.get_text_width_height_descent(text, font, False)[0]) / PX


@lru_cache(maxsize=4096)
def fitted(text: str, width: float, size: float = SMALL, bold: bool = False) -> str:
    """`text` as it can be drawn, cut with an ellipsis where it is wider than `width` CSS pixels."""
    line = drawable(text)
    if text_width(line, size, bold) <= width:
        return line
    ends = range(len(line))
    keep = bisect_right(ends, width, key=lambda end: text_width(line[:end].rstrip() + "…", size, bold)) - 1
    return line[: max(keep, 0)].rstrip() + "…"


def leading(
    figures: Sequence[tuple[str, float]],
    as_text: Callable[[float], str],
    best: Callable[[Iterable[float]], float] = max,
) -> tuple[str, str]:
    """(figure, names) of the best of (name, value): all whose figure reads the same, as no reader could tell them apart."""
    figure = as_text(best(value for _, value in figures))
    names = list(dict.fromkeys(name for name, value in figures if as_text(value) == figure))
    return figure, some(names)


def some(names: list[str]) -> str:
    """'a, b and c', or their number where they are many."""
    return listed(names) if len(names) <= 4 else f"{len(names):,} of them"


# ------------------------------------------------------------------------------------------------------------- figures
def subplots(height: float, rows: int = 1, columns: int = 1, **more: Any) -> tuple[Figure, list[Axes]]:
    """A figure of WIDTH x `height` CSS pixels and its axes, row by row, which matplotlib lays out when it draws."""
    figure = Figure(figsize=(WIDTH / 96, height / 96), dpi=96, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False, **more).flat)


def map_over_ms(theme: Theme, points: Sequence[Mapping[str, Any]], axis: str) -> tuple[Figure, Axes]:
    """A figure for operating points, each with `ms` and `map`, and its axes, in logarithms of the time. axis: its title."""
    figure, (ax,) = subplots(294)
    log_axis(ax.xaxis, [p["ms"] for p in points], 0.06, tick_text)
    ax.set_ylim(*fraction_limits([p["map"] for p in points]))
    ax.set_title("mAP")
    ax.set_title("↖ better: up and left", loc="right", color=theme["ink"], weight="bold")
    ax.set_xlabel(axis)
    ax.grid(axis="y")
    return figure, ax


@dataclass(frozen=True)
class Look:
    """How a series is drawn, wherever it is drawn. width, size: of line and marker, in CSS pixels."""

    colour: str  # key of Theme['series']
    width: float = 1.5
    dash: tuple[float, ...] = ()  # in widths of the line
    marker: str = "o"  # '' for none
    size: float = 5.0
    filled: bool = True
    bold: bool = False

    def line(self, theme: Theme) -> dict[str, Any]:
        """Arguments of matplotlib's for a line."""
        colour = theme["series"][self.colour]
        return {
            "color": colour,
            "linewidth": self.width * PX,
            "linestyle": (0, self.dash) if self.dash else "-",
            "marker": self.marker,
            "markersize": self.size * PX,
            "markerfacecolor": colour if self.filled else theme["ground"],
            "markeredgewidth": 1.2 * PX,
            "zorder": 4 if self.bold else 3,
        }


def legend(figure: Figure, theme: Theme, entries: Sequence[tuple[str, Look]]) -> None:
    """A legend below everything, for which the figure grows."""
    names = [fitted(name, WIDTH - 50, bold=look.bold) for name, look in entries]
    widest = max(text_width(name, bold=look.bold) for name, (_, look) in zip(names, entries, strict=True))
    columns = max(1, int((WIDTH + 6) // (widest + 46)))
    figure.set_figheight(figure.get_figheight() + (-(-len(names) // columns) * LINE + 4) / 96)
    handles = [Line2D([], [], **look.line(theme)) for _, look in entries]
    box = figure.legend(handles, names, loc="outside lower left", ncols=columns)
    for text, (_, look) in zip(box.get_texts(), entries, strict=True):
        text.set_fontweight("bold" if look.bold else "normal")


def log_axis(
    axis: Axis, values: Sequence[float], room: float, as_text: Callable[[float], str], least: float = 5
) -> None:
    """A log scale around positive values, a share `room` of it free on both sides and at least a factor of `least` long, with
    few ticks.
    """
    low, high = math.log10(min(values)), math.log10(max(values))
    grow = max(0.0, math.log10(least) - (high - low)) / 2 + room * max(high - low, math.log10(least))
    first, last = 10 ** (low - grow), 10 ** (high + grow)
    across = axis is axis.axes.xaxis
    (axis.axes.set_xscale if across else axis.axes.set_yscale)("log")
    (axis.axes.set_xlim if across else axis.axes.set_ylim)(first, last)
    locator = LogLocator(subs=(1, 2, 5) if high - low + 2 * grow < 2 else (1,), numticks=6)
    ticks = [tick for tick in locator.tick_values(first, last) if first <= tick <= last]
    axis.set_ticks(ticks, labels=[as_text(tick) for tick in ticks])
    axis.set_minor_locator(NullLocator())


def tick_text(value: float) -> str:
    """A tick of a log axis: 0.01, 200, 5,000; powers of ten beyond."""
    exponent = math.floor(round(math.log10(value), 9))
    if -3 <= exponent < 5:
        return f"{value:,g}"
    mantissa = f"{value / 10**exponent:.0f}·".removeprefix("1·")
    return f"{mantissa}10{str(exponent).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def fraction_limits(values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis of fractions: outwards to tenths, within [0, 1], some room above the highest."""
    return max(0.0, math.floor(10 * min(values) - 0.2) / 10), min(1.02, math.ceil(10 * max(values) + 0.2) / 10)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places at least `gap` apart within [low, high], in the order of the wanted ones and near to them. Needs room for all."""
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(order))
    bare = np.asarray(wanted, np.float64)[order] - steps
    # Pushed up and pushed down are both in order, and so is what lies halfway.
    level = (np.maximum.accumulate(bare) + np.minimum.accumulate(bare[::-1])[::-1]) / 2
    places = np.empty(len(order))
    places[order] = np.clip(level, low, high - gap * (len(order) - 1)) + steps
    return [float(place) for place in places]


@dataclass(frozen=True)
class End:
    """A label beside the axes, for the line that ends at (x, y), in data's terms."""

    text: str
    x: float
    y: float
    look: Look


GAP = 14.5  # CSS pixels from one label of a line to the next
TALLEST = 330  # CSS pixels that labels of lines may take; a legend holds more of them


def lines_height(count: int) -> float:
    """CSS pixels that axes with so many lines need for the labels beside them."""
    return max(210.0, count * GAP) if count * GAP <= TALLEST else 240.0


def line_labels(ax: Axes, theme: Theme, ends: Sequence[End], most: float) -> bool:
    """Labels to the right of axes of `lines_height`, at most `most` CSS pixels wide, joined by thin lines to where the lines end.

    False where there are so many that a legend has to name them.
    """
    if len(ends) * GAP > TALLEST:
        return False
    high = lines_height(len(ends))
    to_axes = ax.transData + ax.transAxes.inverted()
    wanted = [float(to_axes.transform((end.x, end.y))[1]) for end in ends]
    for end, place in zip(ends, spread(wanted, GAP / high, 0, 1), strict=True):
        colour = theme["series"][end.look.colour]
        ax.annotate(
            fitted(end.text, most, bold=end.look.bold), (end.x, end.y), (1.05, place), textcoords="axes fraction",
            color=colour, weight="bold" if end.look.bold else "normal", va="center", annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": colour, "alpha": 0.55, "linewidth": 0.5, "relpos": (0, 0.5), "shrinkA": 1,
            },
        )  # fmt: skip
    return True
