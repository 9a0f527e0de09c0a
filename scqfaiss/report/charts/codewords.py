"""How many rows use each codeword of each codebook: ours beside the baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ...comparison import selection
from ...comparison.selection import Document
from .drawing import LINE, WIDTH, Floats, Missing, Plan, Theme, array, fitted, subplots, text_width

WIDEST = 1024  # columns that are drawn; wider codebooks are averaged down to them


@dataclass(frozen=True)
class Use:
    counts: Floats  # (M, K) rows that use each codeword, falling within a codebook

    @property
    def share(self) -> float:
        return float((self.counts > 0).mean())

    @property
    def entropies(self) -> Floats:
        """(M,) bits that the codes of each codebook carry."""
        p = self.counts / self.counts.sum(1, keepdims=True)
        return np.asarray(-(p * np.log2(np.where(p > 0, p, 1))).sum(1), np.float64)

    @property
    def nbits(self) -> float:
        return math.log2(self.counts.shape[1])


def _use(held: Any) -> Use | None:
    counts = array(held, 2)
    return None if counts is None or bool((counts.sum(1) == 0).any()) else Use(-np.sort(-counts, axis=1))


def codewords(document: Document) -> Plan | Missing:
    """The chart of results of kind 'comparison'."""
    name, title = "codewords", "Use of the codewords"
    sides = selection.sides(document, "usage", _use)
    if not sides:
        return Missing(name, title, selection.lacking(document, "codeword use (usage)"))

    def draw(theme: Theme) -> Figure:
        return _drawn(theme, sides)

    header = ("codes", "codebook", "codewords", "used", "bits of entropy", "most rows at one")
    table = tuple(
        (
            label,
            str(m + 1),
            f"{len(codebook):,}",
            f"{int((codebook > 0).sum()):,}",
            f"{entropy:.2f}",
            f"{codebook.max():,.0f}",
        )
        for label, use in sides
        for m, (codebook, entropy) in enumerate(zip(use.counts, use.entropies, strict=True))
    )
    # Of the entropies as they are shown.
    full = [(label, round(float(use.entropies.mean()), 2) / max(use.nbits, 1e-9)) for label, use in sides]
    alt = (
        "Heat maps of how many rows use each codeword, a line for each codebook. "
        + "; ".join(_title(label, use, 4 * WIDTH) for label, use in sides)
        + "."
    )
    if len(sides) > 1:
        even = len({share for _, share in full}) == 1
        alt += " Both fill their codes alike." if even else f" {max(full, key=lambda f: f[1])[0]} fills its codes best."
    caption = (
        "Each line is a codebook, each cell a codeword, sorted by use. The entropy says how many of its bits a codebook really "
        "spends; even use spends all. Codes shaped by labels gather rows of a class, so a low figure is no fault by itself."
    )
    return Plan(name, title, alt, caption, header, table, draw)


def _title(label: str, use: Use, most: float) -> str:
    facts = f"{use.share:.0%} used, {use.entropies.mean():.2f} of {use.nbits:g} bits a codebook"
    return f"{fitted(label, most - text_width(': ' + facts, bold=True), bold=True)}: {facts}"


def _drawn(theme: Theme, sides: list[tuple[str, Use]]) -> Figure:
    heights = [min(max(len(use.counts) * 18.0, 54.0), 150.0) for _, use in sides]
    figure, every = subplots(sum(heights) + 58 * len(sides) + 44, len(sides), height_ratios=heights)
    used = np.concatenate([use.counts[use.counts > 0] for _, use in sides])
    low, high = max(1.0, float(used.min())), float(used.max())
    shades = LinearSegmentedColormap.from_list("use", theme["use"]).with_extremes(bad=theme["empty"])
    for ax, (label, use) in zip(every, sides, strict=True):
        codebooks, K = use.counts.shape
        counts = narrowed(use.counts, WIDEST)
        image = ax.imshow(
            np.ma.masked_equal(np.maximum(counts, low * (counts > 0)), 0), cmap=shades,
            norm=LogNorm(low, max(high, 1.01 * low)), extent=(0.5, K + 0.5, codebooks + 0.5, 0.5),
        )  # fmt: skip
        ax.set_title(_title(label, use, WIDTH - 60), weight="bold", color=theme["ink"])
        ax.spines[:].set_visible(False)
        ax.set_yticks(sorted({1, codebooks}))
        ax.set_xticks(sorted({1, K}) if K > 1 else [], ["1", f"{K:,}"] if K > 1 else [])
        ax.set_ylabel("codebook")
        ax.set_xlabel("codewords, most used first", loc="center", labelpad=-8)
    bar = figure.colorbar(image, ax=every, location="bottom", shrink=0.4, aspect=16, anchor=(0, 0))
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.minorticks_off()
    ends = sorted({low, high})
    bar.set_ticks(ends, labels=[f"{end:,.0f}" for end in ends])
    bar.set_label("rows, log scale", loc="center", labelpad=-8)
    if any(use.share < 1 for _, use in sides):
        figure.set_figheight(figure.get_figheight() + LINE / 96)
        figure.legend([Patch(color=theme["empty"])], ["no row"], loc="outside lower left")
    return figure


def narrowed(counts: Floats, most: int) -> Floats:
    """(M, K) with at most `most` columns, each the mean of its neighbours."""
    step = -(-counts.shape[1] // most)
    starts = np.arange(0, counts.shape[1], step)
    widths = np.diff(np.append(starts, counts.shape[1]))
    return np.asarray(np.add.reduceat(counts, starts, axis=1) / widths, np.float64)
