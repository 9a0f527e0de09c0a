"""Results as pictures: SVG for light and dark pages, PNG, and the drawn figures as a table and in words.

`charts` is all there is to call. Whatever a results file lacks comes back as `Missing` with a reason; a part of a wrong
shape counts as lacking.
"""

from __future__ import annotations

from collections.abc import Callable

from ..comparison.selection import Document
from .codebook_charts import centers, codewords, plane
from .drawing_charts import Chart, Missing, Plan, rendered
from .growth_charts import scale_memory, scale_time, training
from .ranking_charts import map_bits, map_ms, precision_recall

__all__ = ["Chart", "Missing", "charts"]

PICTURES: dict[str, tuple[Callable[[Document], Plan | Missing], ...]] = {
    "comparison": (map_bits, map_ms, precision_recall, codewords, centers, plane),
    "scale": (scale_time, scale_memory),
    "training": (training,),
}


def charts(document: Document) -> list[Chart | Missing]:
    """The pictures of results of one kind, in reading order.

    document: of `intake.sound`, any part of which may be missing. Same document, same bytes.
    """
    return [part if isinstance(part, Missing) else rendered(part) for part in plans(document)]


def plans(document: Document) -> list[Plan | Missing]:
    """The same before they are drawn."""
    return [plan(document) for plan in PICTURES[document["kind"]]]
