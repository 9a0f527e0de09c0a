"""Results as charts: SVG for light and dark pages, PNG, and the drawn figures as a table and in words.

A chart is a function from a document to a `Plan`, or to `Missing` with a reason, in a file of its own and a line of CHARTS.
"""

from __future__ import annotations

from collections.abc import Callable

from ...comparison.selection import Document
from .attacked import attacked
from .centers import centers
from .codewords import codewords
from .drawing import Chart, Missing, Plan, rendered
from .growth import scale_memory, scale_time
from .map_bits import map_bits
from .map_ms import map_ms
from .plane import plane
from .precision_recall import precision_recall
from .probes import probes
from .reliability import reliability
from .training import training

__all__ = ["CHARTS", "Chart", "Missing", "charts"]

CHARTS: dict[str, tuple[Callable[[Document], Plan | Missing], ...]] = {
    "comparison": (map_bits, map_ms, probes, precision_recall, reliability, codewords, centers, plane),
    "scale": (scale_time, scale_memory),
    "training": (training,),
    "attack": (attacked,),
}


def charts(document: Document) -> list[Chart | Missing]:
    """The charts of results of one kind, in reading order. document: of `schema.cleaned`. Same document, same bytes."""
    return [part if isinstance(part, Missing) else rendered(part) for part in plans(document)]


def plans(document: Document) -> list[Plan | Missing]:
    """The same before they are drawn."""
    return [plan(document) for plan in CHARTS[document["kind"]]]
