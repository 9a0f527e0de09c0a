"""What codebooks and embeddings look like inside: use of codewords, cosines of classes, a map of rows and codewords.

Ours beside IVFPQ of the rows, as `selection.pair` chooses them. A side that lacks its data is left out.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ..comparison import selection
from .drawing_charts import (
    MANY_CLASSES,
    NORMAL,
    PX,
    SMALL,
    WIDTH,
    Canvas,
    Floats,
    Missing,
    Plan,
    Theme,
    array,
    column_width,
    fitted,
    text_width,
)
from .ranking_charts import NO_LENGTH, carrier
from .words import class_name

Document = selection.Document
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Part = TypeVar("Part")

WIDEST = 1024  # columns of a picture of codewords; wider books are averaged down to it
CELLS = 200  # rows and columns of a picture of cosines, likewise: the screen has few more pixels there
NAMED = 12  # classes with a name of their own
NAMELESS = 40  # classes beyond which there are no names at all
RASTER_BYTES = 36_000  # of one picture of points, compressed, where that can be had
NEIGHBOURS = 2000  # points of a map that are asked for their neighbour


def _sides(document: Document, field: str, read: Callable[[Any], Part | None]) -> list[tuple[str, Part]]:
    """(name, part) of ours and of the baseline, as far as they have it."""
    ours, base = selection.pair(document)
    # Pictures of the inside may have been taken of one of ours only, which need not be the best by a hair.
    level = [r for r in selection.codings(document) if ours is not None and r.get("bits") == ours.get("bits")]
    rest = sorted((r for r in level if r.get("role") == "ours"), key=lambda r: -r["map"])
    found = []
    for candidates in ([ours, *rest], [base]):
        parts = (
            (selection.name_of(row), part)
            for row in candidates
            if row is not None
            for held in carrier(document, row, field)
            if (part := read(held)) is not None
        )
        found += [first for first in [next(parts, None)] if first is not None]
    return found


def _missing(document: Document, name: str, title: str, what: str) -> Missing:
    bits = selection.shown_bits(document)
    if bits is None:
        return Missing(name, title, NO_LENGTH)
    return Missing(name, title, f"no row of {bits} bits has {what}")


# Use of codewords


@dataclass(frozen=True)
class Use:
    counts: Floats  # (M, K) rows that use each codeword, falling within a book

    @property
    def share(self) -> float:
        return float((self.counts > 0).mean())

    @property
    def entropies(self) -> Floats:
        """(M,) bits that the codes of each book carry."""
        p = self.counts / self.counts.sum(1, keepdims=True)
        return np.asarray(-(p * np.log2(np.where(p > 0, p, 1))).sum(1), np.float64)

    @property
    def nbits(self) -> float:
        return math.log2(self.counts.shape[1])


def _use(held: Any) -> Use | None:
    counts = array(held, 2, 0, 1e15)
    if counts is None or bool((counts.sum(1) == 0).any()):
        return None
    return Use(-np.sort(-counts, axis=1))


def codewords(document: Document) -> Plan | Missing:
    """How many rows use each codeword of each book."""
    name, title = "codewords", "Use of the codewords"
    sides = _sides(document, "usage", _use)
    if not sides:
        return _missing(document, name, title, "codeword use (usage)")
    every = np.concatenate([use.counts[use.counts > 0] for _, use in sides])
    low, high = max(1.0, float(every.min())), float(every.max())
    unused = any(use.share < 1 for _, use in sides)
    heights = [min(max(use.counts.shape[0] * 18.0, 54.0), 150.0) for _, use in sides]

    def said(label: str, use: Use, most: float) -> str:
        facts = f"{use.share:.0%} used, {use.entropies.mean():.2f} of {use.nbits:g} bits a book"
        return f"{fitted(label, most - text_width(': ' + facts, bold=True), bold=True)}: {facts}"

    def draw(theme: Theme) -> Figure:
        left, right = 38.0, 18.0
        canvas = Canvas(theme, sum(heights) + 44 * len(sides) + 44)
        shades = LinearSegmentedColormap.from_list("use", _USE[theme["ground"]])
        top = 0.0
        for (label, use), tall in zip(sides, heights, strict=True):
            books, K = use.counts.shape
            canvas.text(left, top + 13, said(label, use, WIDTH - left - right), bold=True, va="center_baseline")
            ax = canvas.axes(left, top + 24, WIDTH - left - right, tall, frame=False)
            drawn = _narrowed(use.counts, WIDEST)
            ax.imshow(
                _shaded(drawn, shades, low, high, theme["empty"]), aspect="auto", interpolation="none",
                extent=(0.5, K + 0.5, books + 0.5, 0.5),
            )  # fmt: skip
            canvas.ticks(ax, "y", [1, books] if books > 1 else [1], ["1", str(books)][: min(books, 2)], grid=False)
            canvas.ticks(ax, "x", [1, K] if K > 1 else [], ["1", f"{K:,}"] if K > 1 else [], grid=False)
            canvas.text(left - 32, top + 24 + tall / 2, "book", colour=theme["muted"], va="center", rotation=90)
            words = "codewords, most used first"
            canvas.text((left + WIDTH - right) / 2, top + tall + 36, words, colour=theme["muted"],
                        ha="center", va="center_baseline")  # fmt: skip
            top += tall + 44
        _scale_of_use(canvas, shades, top + 14, low, high, unused)
        return canvas.figure

    header = ("codes", "book", "codewords", "used", "bits of entropy", "most rows at one")
    table = tuple(
        (label, str(m + 1), f"{len(book):,}", f"{int((book > 0).sum()):,}", f"{entropy:.2f}", f"{book.max():,.0f}")
        for label, use in sides
        for m, (book, entropy) in enumerate(zip(use.counts, use.entropies, strict=True))
    )
    # Of the entropies as they are shown.
    full = [(label, round(float(use.entropies.mean()), 2) / max(use.nbits, 1e-9)) for label, use in sides]
    alt = (
        "Heat maps of how many rows use each codeword, a line for each codebook. "
        + "; ".join(said(label, use, 4 * WIDTH) for label, use in sides)
        + "."
    )
    if len(sides) > 1:
        even = len({share for _, share in full}) == 1
        alt += " Both fill their codes alike." if even else f" {max(full, key=lambda f: f[1])[0]} fills its codes best."
    caption = (
        "Each line is a codebook, each cell a codeword, sorted by use. The entropy says how many of its bits a book really "
        "spends; even use spends all. Codes shaped by labels gather rows of a class, so a low figure is no fault by itself."
    )
    return Plan(name, title, alt, caption, header, table, draw)


_USE = {
    "#ffffff": ["#dbe9fb", "#7fb0ee", "#0b5fd0", "#06265a"],
    "#14171c": ["#173052", "#2f6fc0", "#8cc0ff", "#f2f7ff"],
}


def _narrowed(counts: Floats, most: int) -> Floats:
    """(M, K) with at most `most` columns, each the mean of its neighbours."""
    step = -(-counts.shape[1] // most)
    starts = np.arange(0, counts.shape[1], step)
    widths = np.diff(np.append(starts, counts.shape[1]))
    return np.asarray(np.add.reduceat(counts, starts, axis=1) / widths, np.float64)


def _shaded(counts: Floats, shades: LinearSegmentedColormap, low: float, high: float, empty: str) -> Floats:
    """(M, K, 4) colours on a log scale; codewords that no row uses have their own."""
    part = np.log(np.maximum(counts, low) / low) / max(math.log(high / low), 1e-9)
    return np.where((counts > 0)[..., None], shades(part), to_rgba(empty))


def _scale_of_use(
    canvas: Canvas, shades: LinearSegmentedColormap, top: float, low: float, high: float, unused: bool
) -> None:
    """The scale of colours, and beside it the colour of what is not used."""
    theme = canvas.theme
    first, last = f"{low:,.0f}", f"{high:,.0f} rows, log scale"
    x = 38.0
    if unused:
        canvas.axes(x, top, 14, 10, frame=False).imshow([[to_rgba(canvas.theme["empty"])]], aspect="auto")
        _bare(canvas.figure.axes[-1])
        canvas.text(x + 19, top + 5, "no row", colour=theme["muted"], va="center_baseline")
        x += 19 + text_width("no row") + 18
    canvas.text(x, top + 5, first, colour=theme["muted"], va="center_baseline")
    x += text_width(first) + 6
    ax = canvas.axes(x, top, 110, 10, frame=False)
    ax.imshow(shades(np.linspace(0, 1, 64))[None], aspect="auto", interpolation="none")
    _bare(ax)
    canvas.text(x + 116, top + 5, last, colour=theme["muted"], va="center_baseline")


def _bare(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])


# Centers of classes


def _square(held: Any) -> Floats | None:
    found = array(held, 2, -1.001, 1.001)
    return found if found is not None and found.shape[0] == found.shape[1] >= 2 else None


def centers(document: Document) -> Plan | Missing:
    """Cosines between the mean embeddings of classes."""
    name, title = "centers", "How far apart the classes lie"
    sides = _sides(document, "centers", _square)
    if not sides:
        return _missing(document, name, title, "cosines of at least two classes (centers)")
    C = max(len(matrix) for _, matrix in sides)
    names = [class_name(document, c) for c in range(C)]
    step = -(-C // NAMED)
    named = range(0, C, step) if C <= NAMELESS else range(0)
    room = column_width(((names[i], False) for i in named), 104)
    left = 8 + room + 7
    side = (WIDTH - left - 8 - 12) / 2 if len(sides) == 2 else 250.0

    def draw(theme: Theme) -> Figure:
        foot = 26 + side + (room + 9 if named else 4)
        canvas = Canvas(theme, foot + 42)
        shades = LinearSegmentedColormap.from_list("cosines", theme["cosines"])
        for i, (label, matrix) in enumerate(sides):
            x = left + i * (side + 12)
            canvas.text(x, 13, fitted(label, side, NORMAL, True), size=NORMAL, bold=True, va="center_baseline")
            ax = canvas.axes(x, 26, side, side, frame=False)
            cells = _narrowed(_narrowed(matrix, CELLS).T, CELLS).T
            ax.imshow(shades((cells + 1) / 2), interpolation="none", aspect="auto")
            own = [k for k in named if k < len(matrix)]
            labels = [fitted(names[k], room) for k in own]
            ax.set_xticks(own, labels, rotation=90)
            ax.set_yticks(own, labels if i == 0 else ["" for _ in own])
            ax.tick_params(length=0)
        bar = canvas.axes(left, foot + 12, 120, 10, frame=False)
        bar.imshow(shades(np.linspace(0, 1, 65))[None], aspect="auto", interpolation="none", extent=(-1, 1, 0, 1))
        canvas.ticks(bar, "x", [-1, 0, 1], ["−1", "0", "1"], grid=False)
        bar.set_yticks([])
        bar.tick_params(length=0, pad=2)
        canvas.text(left + 130, foot + 17, "cosine of two classes", colour=theme["muted"], va="center_baseline")
        return canvas.figure

    # Of all pairs the closest by the first side, out of classes that both have.
    low, high = np.triu_indices(min(len(matrix) for _, matrix in sides), 1)
    order = np.argsort(-sides[0][1][low, high], kind="stable")[: NAMED * (NAMED - 1) // 2]
    kept = list(zip(low[order].tolist(), high[order].tolist(), strict=True))
    table = tuple((f"{names[i]} – {names[j]}", *(f"{m[i, j]:.2f}" for _, m in sides)) for i, j in kept)
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
    if len(kept) < len(low):
        caption += f" The table holds the {len(kept)} closest pairs."
    return Plan(name, title, alt, caption, ("classes", *(label for label, _ in sides)), table, draw)


# A map of rows and codewords


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


def _map(held: Any) -> Map | None:
    features = array(held.get("features"), 2, -1e12, 1e12) if isinstance(held, Mapping) else None
    if features is None or features.shape[1] != 2:
        return None
    labels = array(held.get("labels"), 1, -1, 1e6)
    if labels is None or len(labels) != len(features):
        labels = np.full(len(features), -1.0)
    words = array(held.get("codewords"), 2, -1e12, 1e12)
    if words is None or words.shape[1] != 2:
        words = np.zeros((0, 2))
    return Map(features, labels.astype(np.int64), words)


def plane(document: Document) -> Plan | Missing:
    """Rows and codewords on a plane."""
    name, title = "plane", "A map of the rows and their codewords"
    sides = _sides(document, "plane", _map)
    if not sides:
        return _missing(document, name, title, "a map of its features (plane)")
    present = sorted({int(c) for _, m in sides for c in np.unique(m.labels) if c >= 0})
    names = {c: class_name(document, c) for c in present}
    tall = 230.0

    def said(label: str, m: Map, most: float) -> str:
        share = m.neighbours
        facts = "" if share is None else f": {share:.0%} lie next to their own class"
        return fitted(label, most - text_width(facts, bold=True), bold=True) + facts

    def draw(theme: Theme) -> Figure:
        colours = theme["classes"] if len(present) <= len(theme["classes"]) else MANY_CLASSES
        of = {c: colours[i % len(colours)] for i, c in enumerate(present)}
        canvas = Canvas(theme, (tall + 34) * len(sides) + 22)
        words = False
        for i, (label, m) in enumerate(sides):
            top = i * (tall + 34)
            canvas.text(8, top + 13, said(label, m, WIDTH - 16), bold=True, va="center_baseline")
            ax = canvas.axes(8, top + 26, WIDTH - 16, tall, frame=False)
            _bare(ax)
            for spine in ax.spines.values():
                spine.set(visible=True, color=theme["grid"])
            _limits(ax, np.concatenate([m.features, m.codewords]), WIDTH - 16, tall)
            labels = _class_labels(canvas, ax, m, names, top + 26, tall) if len(present) <= NAMED else []
            words = words or len(m.codewords) > 0
            points = _points(theme, m, of, labels, ax.get_xlim(), ax.get_ylim(), (WIDTH - 16, tall))
            ax.imshow(points, extent=(*ax.get_xlim(), *ax.get_ylim()), aspect="auto", interpolation="none")
            for x, y, text in labels:
                canvas.text(8 + x, top + 26 + y, text, bold=True, ha="center", va="center")
        foot = (tall + 34) * len(sides)
        if words:
            canvas.line([14], [foot + 4], marker="x", color=theme["ink"], markersize=4.5, markeredgewidth=0.9)
            canvas.text(24, foot + 4, "codeword", colour=theme["muted"], va="center_baseline")
        return canvas.figure

    shares = [(label, m.neighbours) for label, m in sides]
    alt = "Maps of rows as points, coloured by class, and codewords as crosses: " + ", ".join(
        f"{label} with {len(m.features):,} rows and {len(m.codewords):,} codewords" for label, m in sides
    )
    known = [(label, share) for label, share in shares if share is not None]
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


def _limits(ax: Axes, points: Floats, width: float, height: float) -> None:
    """One scale on both axes, all points inside, some room around them."""
    low, high = points.min(0), points.max(0)
    middle, span = (low + high) / 2, np.maximum(high - low, 1e-9 * np.maximum(1, np.abs(high)))
    unit = max(float(span[0]) / (width - 20), float(span[1]) / (height - 20))
    ax.set_xlim(middle[0] - unit * width / 2, middle[0] + unit * width / 2)
    ax.set_ylim(middle[1] - unit * height / 2, middle[1] + unit * height / 2)


def _class_labels(
    canvas: Canvas, ax: Axes, m: Map, names: Mapping[int, str], top: float, tall: float
) -> list[tuple[float, float, str]]:
    """(x, y, name) in pixels of the axes: at the median point of a class, or at the nearest place that is free."""
    wide = WIDTH - 16
    taken: list[tuple[float, float, float, float]] = []
    labels = []
    for c, name in names.items():
        own = m.features[m.labels == c]
        if not len(own):
            continue
        text = fitted(name, 110, bold=True)
        half = text_width(text, bold=True) / 2 + 3, SMALL * 0.75
        x, y = (ax.transData + ax.transAxes.inverted()).transform(np.median(own, axis=0)).tolist()
        for dx, dy in _around():
            px = min(max(x * wide + dx, half[0] + 2), wide - half[0] - 2)
            py = min(max((1 - y) * tall + dy, half[1] + 2), tall - half[1] - 2)
            if all(abs(px - q[0]) >= half[0] + q[2] or abs(py - q[1]) >= half[1] + q[3] for q in taken):
                taken.append((px, py, *half))
                labels.append((px, py, text))
                break
    return labels


def _points(
    theme: Theme,
    m: Map,
    of: Mapping[int, str],
    labels: Sequence[tuple[float, float, str]],
    xlim: tuple[float, float],
    ylim: tuple[float, float],
    size: tuple[float, float],
) -> Pixels:
    """(h, w, 4) picture of the points, the codewords and the halos of labels, at up to two pixels a CSS pixel.

    As shapes, thousands of points would make the SVG large; as pixels of a few colours and steps of transparency they
    make a small PNG inside it.
    """
    figure = Figure(figsize=(size[0] / 96, size[1] / 96))
    canvas = FigureCanvasAgg(figure)
    figure.patch.set_alpha(0)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    ax.set_xlim(*xlim)
    ax.set_ylim(*ylim)
    shown = [of.get(int(c), theme["muted"]) for c in m.labels]
    dot = 4.0 if len(m.features) > 2500 else 7.0
    ax.scatter(m.features[:, 0], m.features[:, 1], s=dot, c=shown, linewidths=0, zorder=2)
    ax.plot(
        m.codewords[:, 0], m.codewords[:, 1], "x", color=theme["ink"], markersize=2.7, markeredgewidth=0.55, zorder=3
    )
    for x, y, text in labels:
        ax.text(
            x / size[0], 1 - y / size[1], text, transform=ax.transAxes, color=theme["ground"], size=SMALL * PX,
            weight="bold", ha="center", va="center", zorder=4,
            path_effects=[withStroke(linewidth=3 * PX, foreground=theme["ground"])],
        )  # fmt: skip
    colours = list(dict.fromkeys([*of.values(), theme["muted"], theme["ink"], theme["ground"]]))
    for dpi in (192, 144, 120, 96):  # as fine as a small file allows
        figure.set_dpi(dpi)
        canvas.draw()  # type: ignore[no-untyped-call]
        pixels = _few_colours(np.array(canvas.buffer_rgba()), colours)  # type: ignore[no-untyped-call]
        if len(zlib.compress(pixels.tobytes())) < RASTER_BYTES:
            break
    return pixels


def _few_colours(drawn: Pixels, colours: Sequence[str]) -> Pixels:
    """(h, w, 4) with each pixel in the nearest of `colours`, in 6 steps of transparency."""
    palette = np.array([to_rgba(c) for c in colours])[:, :3] * 255
    out = np.zeros_like(drawn)
    there = drawn[..., 3] > 25  # less is nearer to nothing than to the first step
    mixed, where = np.unique(drawn[there].view(np.uint32)[:, 0], return_inverse=True)
    pixels = mixed.view(np.uint8).reshape(-1, 4).astype(np.float64)
    nearest = ((pixels[:, None, :3] - palette) ** 2).sum(-1).argmin(1)
    few = np.column_stack([palette[nearest], np.round(pixels[:, 3] / 51) * 51])
    out[there] = few.round().astype(np.uint8)[where]
    return out


@cache
def _around() -> list[tuple[float, float]]:
    """Shifts in pixels, nearest first, far enough to find a free place for any NAMED names."""
    turns: Sequence[float] = np.linspace(0, 2 * math.pi, 24, endpoint=False).tolist()
    return [(0.0, 0.0)] + [(1.4 * r * math.cos(t), r * math.sin(t)) for r in range(4, 260, 4) for t in turns]
