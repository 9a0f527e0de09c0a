"""What all charts share: two themes, a canvas in CSS pixels, and text that is measured before it is placed."""

from __future__ import annotations

import io
import math
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypedDict

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.textpath import text_to_path

from .words import listed

Header = tuple[str, ...]
Table = tuple[tuple[str, ...], ...]
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Chart:
    """One picture of a report, in both themes, with all that stands beside it."""

    name: str  # slug, unique within a document
    title: str
    alt: str  # what the picture shows, with the figures that matter
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


class Theme(TypedDict):
    ground: str  # of the page; pictures are transparent
    ink: str
    muted: str
    grid: str
    empty: str  # codewords that no row uses
    series: dict[str, str]
    classes: tuple[str, ...]  # up to 8 classes
    cosines: tuple[str, str, str]  # -1, 0, 1


# Lines and text reach 4.5:1 against the ground. Markers and dashes tell lines apart where colours do not.
# 'other': methods that this version does not know.
LIGHT: Theme = {
    "ground": "#ffffff",
    "ink": "#1f2328",
    "muted": "#57606a",
    "grid": "#d8dee4",
    "empty": "#e4e7eb",
    "series": {
        "scq": "#0b5fd0",
        "scq:4": "#4338ca",
        "dpq": "#c2410c",
        "phpq": "#7e22ce",
        "mecoq": "#0f766e",
        "mopq": "#a21caf",
        "label": "#1f2328",
        "pq": "#4b5563",
        "opq": "#15803d",
        "ivfpq": "#946200",
        "rq": "#be185d",
        "lsq": "#0e7490",
        "fastscan": "#4d7c0f",
        "flat": "#57606a",
        "other 0": "#8b4513",
        "other 1": "#3f51b5",
        "other 2": "#00695c",
        "other 3": "#b0003a",
    },
    # Okabe and Ito's colours; yellow darkened for a white ground, grey for their black, which codewords have.
    "classes": ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#bfa900", "#8a8f98"),
    "cosines": ("#c2410c", "#f4f5f7", "#0b5fd0"),
}
DARK: Theme = {
    "ground": "#14171c",
    "ink": "#e6e9ee",
    "muted": "#9aa4b2",
    "grid": "#2b313a",
    "empty": "#2b313a",
    "series": {
        "scq": "#6cb0ff",
        "scq:4": "#a5a6ff",
        "dpq": "#ff9a62",
        "phpq": "#c79bff",
        "mecoq": "#4fd1c5",
        "mopq": "#f08cf0",
        "label": "#e6e9ee",
        "pq": "#b3bcc8",
        "opq": "#6fd08c",
        "ivfpq": "#e3b341",
        "rq": "#ff8fb3",
        "lsq": "#5cc8e0",
        "fastscan": "#b4d455",
        "flat": "#9aa4b2",
        "other 0": "#dba37a",
        "other 1": "#a5b4fc",
        "other 2": "#5eead4",
        "other 3": "#fda4af",
    },
    "classes": ("#3d9be0", "#e69f00", "#00b886", "#e08fbd", "#7cc8f5", "#f0763b", "#f0e442", "#9aa0aa"),
    "cosines": ("#ff9a62", "#1e232a", "#6cb0ff"),
}

# 9 to 20 classes; more than that repeat them. Fit for both grounds.
MANY_CLASSES = tuple(
    "#1f77b4 #ff7f0e #2ca02c #d62728 #9467bd #8c6d46 #e377c2 #7f8c8d #a8a800 #17a2b8 "
    "#7fa8d9 #f2a65a #74c476 #f08080 #b39ddb #c4a484 #f4a6d7 #aab2bd #cdcd5a #7fd3e0".split()
)

WIDTH = 440  # CSS pixels, of every picture
PX = 72 / 96  # points a CSS pixel
SMALL, NORMAL = 11.0, 12.0  # text, in CSS pixels
MOST = 40  # lines or bars of one picture; tables beside it hold the rest
LINE = 17  # height of a line of a key

# Everything at matplotlib's own defaults, whatever a user's matplotlibrc says, but for these.
STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so that its glyphs are always there
    "font.size": SMALL * PX,
    "text.hinting": "none",  # as wide on the screen as text_width says
    "svg.fonttype": "path",
    "svg.hashsalt": "scqfaiss",
    "text.parse_math": False,  # a class may be called $
    "axes.unicode_minus": True,
}
_ONE_AT_A_TIME = threading.Lock()  # matplotlib's settings are the process's


@contextmanager
def settings() -> Iterator[None]:
    """matplotlib as all figures need it, while they are made and saved."""
    with _ONE_AT_A_TIME, matplotlib.style.context(["default", STYLE]):  # type: ignore[list-item]
        yield


def rendered(plan: Plan) -> Chart:
    """The picture of a plan, in both themes: same plan, same bytes."""
    with settings():
        figure = plan.draw(LIGHT)
        light, png = _svg(figure), io.BytesIO()
        figure.savefig(png, format="png", dpi=192, facecolor="#ffffff", metadata={"Software": None})
        dark = _svg(plan.draw(DARK))
    return Chart(
        plan.name, plan.title, plan.alt, plan.caption, light, dark, png.getvalue(), plan.header, plan.table
    )  # fmt: skip


def _svg(figure: Figure) -> bytes:
    out = io.BytesIO()
    nothing = {"Date": None, "Creator": None}
    figure.savefig(out, format="svg", dpi=150, transparent=True, metadata=nothing)  # dpi: of what is rasterised
    return out.getvalue()


def array(value: Any, ndim: int, low: float = -1e30, high: float = 1e30) -> Floats | None:
    """Nested lists of finite numbers within [low, high] as an array that is not empty, or None."""
    if not isinstance(value, list | tuple):
        return None
    try:
        found = np.asarray(value)
    except (ValueError, OverflowError):  # ragged; a number larger than any float
        return None
    if found.ndim != ndim or found.size == 0 or found.dtype.kind not in "iuf":
        return None
    floats = found.astype(np.float64)
    return floats if bool(((floats >= low) & (floats <= high)).all()) else None


# Text


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans", fallback_to_default=True)).get_charmap())


def drawable(text: str) -> str:
    """One line that the font can draw: a sign stands for each character it lacks."""
    line = " ".join(text.split())
    return "".join(c if ord(c) in _glyphs() else "\ufffd" for c in line)


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
    figures: Sequence[tuple[str, float]], shown: Callable[[float], str], best: Callable[[Iterable[float]], float] = max
) -> tuple[str, str]:
    """(figure, names) of the best of (name, value): all whose figure reads the same, as no reader could tell them apart."""
    figure = shown(best(value for _, value in figures))
    names = list(dict.fromkeys(name for name, value in figures if shown(value) == figure))
    return figure, some(names)


def some(names: list[str]) -> str:
    """'a, b and c', or their number where they are many."""
    return listed(names) if len(names) <= 4 else f"{len(names):,} of them"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power(exponent: int) -> str:
    """10⁵."""
    return "10" + str(exponent).translate(_RAISED)


def plain_tick(value: float) -> str:
    """A tick of a log axis: 0.01, 200, 5,000; powers of ten beyond."""
    exponent = round(math.log10(value), 9)
    if -3 <= exponent < 5:
        return f"{value:,.0f}" if value >= 1 else f"{value:.{-math.floor(exponent)}f}"
    if exponent == int(exponent):
        return power(int(exponent))
    return f"{value / 10 ** math.floor(exponent):.0f}·{power(math.floor(exponent))}"


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Ticks of a log axis between low and high: decades, or 1, 2 and 5 of each where there are few of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    inside = [
        [m * 10.0**e for e in range(first, last + 1, step) for m in parts if low <= m * 10.0**e <= high]
        for step, parts in ((1, (1, 2, 5)), (1, (1, 3)), *((s, (1,)) for s in range(1, last - first + 2)))
    ]
    return next((ticks for ticks in inside if len(ticks) <= most), inside[-1])


def log_range(values: Sequence[float], room: float = 0.06, least: float = 2.0) -> tuple[float, float]:
    """Limits around positive values with a share of room on both sides, at least a factor of `least` apart."""
    low, high = math.log10(min(values)), math.log10(max(values))
    grow = max(0.0, math.log10(least) - (high - low)) / 2
    low, high = low - grow, high + grow
    return 10 ** (low - room * (high - low)), 10 ** (high + room * (high - low))


def linear_range(values: Sequence[float], step: float = 0.1) -> tuple[float, float]:
    """Limits of an axis of fractions: outwards to full steps, within [0, 1], some room above the highest."""
    low = math.floor((min(values) - 0.02) / step) * step
    high = math.ceil((max(values) + 0.02) / step) * step
    return max(0.0, low), min(1.02, high)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least `gap` apart within [low, high], as near to the wanted ones as squares measure.

    Without the order i * gap it is isotonic regression: neighbours out of order share their mean. Needs room for all.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[list[float]] = []  # mean, count
    for rank, i in enumerate(order):
        blocks.append([wanted[i] - rank * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            mean, n = blocks.pop()
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + mean * n) / (blocks[-1][1] + n), blocks[-1][1] + n]
    flat = [mean for mean, n in blocks for _ in range(int(n))]
    out = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        out[i] = min(max(flat[rank], low), high - (len(wanted) - 1) * gap) + rank * gap
    return out


@dataclass(frozen=True)
class Look:
    """How a series is drawn, wherever it is drawn."""

    colour: str  # key of Theme['series']
    width: float = 1.5  # CSS pixels
    dash: tuple[float, ...] = ()  # in widths of the line
    marker: str = "o"  # '' for none
    size: float = 5.0
    filled: bool = True
    bold: bool = False


@dataclass(frozen=True)
class End:
    """A label beside the axes, for the line that ends at (x, y), in data's terms."""

    text: str
    x: float
    y: float
    look: Look


class Canvas:
    """A figure of WIDTH x `height` CSS pixels; places count from its upper left corner."""

    def __init__(self, theme: Theme, height: float) -> None:
        self.theme, self.height = theme, height
        self.figure = Figure(figsize=(WIDTH / 96, height / 96), dpi=96)
        FigureCanvasAgg(self.figure)

    def axes(self, left: float, top: float, width: float, height: float, frame: bool = True) -> Axes:
        ax = self.figure.add_axes((left / WIDTH, 1 - (top + height) / self.height, width / WIDTH, height / self.height))
        ax.patch.set_alpha(0)
        for side, spine in ax.spines.items():
            spine.set_visible(frame and side in ("left", "bottom"))
            spine.set(color=self.theme["muted"], linewidth=PX)
        ax.tick_params(
            which="both", length=3, width=PX, pad=3, color=self.theme["muted"], labelcolor=self.theme["muted"],
            labelsize=SMALL * PX,
        )  # fmt: skip
        ax.minorticks_off()
        ax.set_axisbelow(True)
        return ax

    def text(
        self, x: float, y: float, text: str, *, colour: str = "", size: float = SMALL, bold: bool = False, **more: Any
    ) -> Text:
        """Text as it is: fit it first."""
        return self.figure.text(
            x / WIDTH, 1 - y / self.height, text, color=colour or self.theme["ink"], size=size * PX,
            weight="bold" if bold else "normal", **more,
        )  # fmt: skip

    def line(self, xs: Sequence[float], ys: Sequence[float], **more: Any) -> None:
        """A line over everything, in pixels of the canvas."""
        self.figure.add_artist(
            Line2D(
                [x / WIDTH for x in xs], [1 - y / self.height for y in ys], transform=self.figure.transFigure, **more
            )
        )

    def colour(self, look: Look) -> str:
        return self.theme["series"][look.colour]

    def look(self, look: Look) -> dict[str, Any]:
        """Arguments of matplotlib's for a line."""
        colour = self.colour(look)
        return {
            "color": colour,
            "linewidth": look.width * PX,
            "linestyle": (0, look.dash) if look.dash else "-",
            "marker": look.marker,
            "markersize": look.size * PX,
            "markerfacecolor": colour if look.filled else self.theme["ground"],
            "markeredgecolor": colour,
            "markeredgewidth": 1.2 * PX,
            "solid_capstyle": "round",
        }

    def halo(self, width: float = 2.5) -> list[Any]:
        """Path effects that lift text and lines off what is below them."""
        return [withStroke(linewidth=width * PX, foreground=self.theme["ground"])]

    def ticks(self, ax: Axes, axis: str, ticks: Sequence[float], labels: Sequence[str], grid: bool = True) -> None:
        """Ticks of axis 'x' or 'y', whose limits are set; labels that would touch an earlier one are left out.

        Those of x may reach over the ends of the axes by half their width.
        """
        box = ax.get_position()
        length = box.width * WIDTH if axis == "x" else box.height * self.height
        to_axes = ax.transData + ax.transAxes.inverted()
        taken: list[tuple[float, float]] = []
        shown = []
        for tick, label in zip(ticks, labels, strict=True):
            at = float(to_axes.transform((tick, tick))[0 if axis == "x" else 1]) * length
            half = text_width(label) / 2 + 3 if axis == "x" else SMALL * 0.75
            free = all(at + half <= low or at - half >= high for low, high in taken)
            if free:
                taken.append((at - half, at + half))
            shown.append(label if free else "")
        ax.minorticks_off()  # a log axis brings its own
        if axis == "x":
            ax.set_xticks(ticks, shown)
        else:
            ax.set_yticks(ticks, shown)
        if grid:
            ax.grid(axis=axis, color=self.theme["grid"], linewidth=PX)  # type: ignore[arg-type]

    def fractions(self, ax: Axes, axis: str) -> None:
        """Few ticks of fractions within the limits of an axis."""
        low, high = ax.get_xlim() if axis == "x" else ax.get_ylim()
        step = next(s for s in (0.02, 0.05, 0.1, 0.2, 0.5) if (high - low) / s <= 6.5 or s == 0.5)
        places = [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
        self.ticks(ax, axis, places, [f"{p:.{2 if step < 0.1 else 1}f}" for p in places], grid=axis == "y")

    def end_labels(self, ax: Axes, ends: Sequence[End], width: float, gap: float) -> None:
        """Labels to the right of the axes, `gap` apart, joined by thin lines to where their series end."""
        figure_px = ax.transData + self.figure.transFigure.inverted()
        box = ax.get_position()
        edge, top, bottom = box.x1 * WIDTH, (1 - box.y1) * self.height, (1 - box.y0) * self.height
        points = [figure_px.transform((end.x, end.y)) for end in ends]
        wanted = [(1 - float(p[1])) * self.height for p in points]
        for end, p, y, place in zip(ends, points, wanted, spread(wanted, gap, top, bottom), strict=True):
            self.line(
                [float(p[0]) * WIDTH + 4, edge + 3, edge + 15], [y, y, place],
                color=self.colour(end.look), linewidth=0.7 * PX, alpha=0.55,
            )  # fmt: skip
            text = fitted(end.text, width, bold=end.look.bold)
            self.text(edge + 18, place, text, colour=self.colour(end.look), bold=end.look.bold, va="center_baseline")

    def key(self, top: float, entries: Sequence[tuple[str, Look]], left: float = 8) -> None:
        """A key below the axes, laid out as `key_lines` counts its lines."""
        for row, line in enumerate(_flow(entries, left)):
            for x, label, look in line:
                y = top + (row + 0.5) * LINE
                self.line([x, x + 11, x + 22], [y, y, y], **{**self.look(look), "markevery": [1]})
                self.text(x + 27, y, label, va="center_baseline", bold=look.bold)


def key_lines(entries: Sequence[tuple[str, Look]], left: float = 8) -> int:
    """Lines that a key needs."""
    return len(_flow(entries, left))


def _flow(entries: Sequence[tuple[str, Look]], left: float) -> list[list[tuple[float, str, Look]]]:
    """Entries of a key from left to right, and on to the next line: (x, text, look) of each."""
    lines: list[list[tuple[float, str, Look]]] = []
    x = 0.0
    for label, look in entries:
        text = fitted(label, WIDTH - left - 33, bold=look.bold)
        need = 27 + text_width(text, bold=look.bold)
        if not lines or x + need > WIDTH - 6:
            lines.append([])
            x = left
        lines[-1].append((x, text, look))
        x += need + 16
    return lines


def column_width(texts: Iterable[tuple[str, bool]], most: float) -> float:
    """Width of a column of labels, (text, bold) each, `most` at the most."""
    return min(most, max((text_width(drawable(t), bold=b) for t, b in texts), default=0.0) + 1)
