"""mAP against the time of a search over the lists visited: ours beside FAISS's own codes of the same embedding."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from ...comparison import selection
from ...comparison.selection import Document, Row
from ..words import count, embedding_of, format_number, score
from . import drawing
from .drawing import Look, Missing, Plan, Theme
from .looks import dash_if_none, depth, is_embedded, looks

# name of the codes -> (container, operating point), by ascending lists visited
Curves = dict[str, list[tuple[str, Row]]]


def probes(document: Document) -> Plan | Missing:
    """The chart of results of kind 'comparison'."""
    name, title = "probes", "Quality over the lists visited"
    style = looks(document)
    curves, level = _curves(document, style)
    if level is None:
        return Missing(
            name, title, "no codes of ours that lists are part of have operating points over nprobe (points)"
        )
    drawn = dict(list(curves.items())[: drawing.MOST])

    def draw(theme: Theme) -> Figure:
        figure, ax = drawing.map_over_ms(
            theme, [p for points in drawn.values() for _, p in points], "ms a query, search alone, log scale"
        )
        for label, points in drawn.items():
            ax.plot([p["ms"] for _, p in points], [p["map"] for _, p in points], **style[label].line(theme))
        drawing.legend(figure, theme, [(label, style[label]) for label in drawn])
        return figure

    header = ("codes", "container", "nprobe", "search, ms a query", "mAP", "recall@10 of the codes")
    table = tuple(
        (
            label,
            container,
            count(p["nprobe"]),
            format_number(p["ms"]),
            score(p["map"]),
            dash_if_none(p.get("recall"), 3),
        )
        for label, points in curves.items()
        for container, p in points
    )
    alt = f"mAP against milliseconds a query over nprobe, codes of {selection.said(*level)}. " + " ".join(
        f"{label}: {_ends(points)}." for label, points in curves.items()
    )
    caption = (
        f"Codes of {selection.said(*level)}, in containers that FAISS searches by itself; each point visits a number of lists "
        f"(nprobe), from 1 to all. One thread, batches of 1,000 queries, mAP {depth(document, 'sweep_at')}. The time "
        "of the encoder is not in it."
    )
    if any(label.endswith("embedding") for label in curves):
        caption += f" Dashed: FAISS's codes of {embedding_of(document)}."
    if len(drawn) < len(curves):
        caption += f" The image holds {drawing.MOST} of {len(curves):,} codes, the table all of them."
    return Plan(name, title, alt, caption, header, table, draw)


def _ends(points: list[tuple[str, Row]]) -> str:
    """'0.812 at 0.01 ms with nprobe 1, 0.905 at 0.4 ms with nprobe 64'."""
    ends = [p for _, p in points]
    ends = [ends[0], ends[-1]] if len(ends) > 1 else ends
    return ", ".join(f"{score(p['map'])} at {format_number(p['ms'])} ms with nprobe {count(p['nprobe'])}" for p in ends)


def _curves(document: Document, style: Mapping[str, Look]) -> tuple[Curves, tuple[int, int] | None]:
    """(curves, their bits and lists) at the level that charts are of, or else at the nearest length that has lists."""
    shown = selection.shown_level(document)
    bits = selection.USUAL_BITS if shown is None else shown[0]
    with_lists = [level for level in selection.levels(document) if level[1] > 1]
    for level in sorted(with_lists, key=lambda level: (level != shown, abs(level[0] - bits), -level[1])):
        found = {label: points for label, points in _at(document, level).items() if label in style}
        if any(not label.endswith("embedding") for label in found):
            return found, level
    return {}, None


def _at(document: Document, level: tuple[int, int]) -> Curves:
    """Ours first; of the containers of one code the first with such points."""
    curves: Curves = {}
    rows = [r for r in document["rows"] if (r.get("bits"), selection.lists_of(r)) == level]
    mine = [r for r in rows if r.get("role") == "ours"]
    for row in [*mine, *(r for r in rows if r.get("role") == "baseline" and is_embedded(r))]:
        points = [
            p for p in row.get("points") or () if all(selection.get(p, field) for field in ("nprobe", "ms", "map"))
        ]
        if points and selection.get(row, "map") is not None:
            ordered = sorted(points, key=lambda p: float(p["nprobe"]))
            curves.setdefault(selection.name_of(row), [(str(row.get("container") or "–"), p) for p in ordered])
    return curves
