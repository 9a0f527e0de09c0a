"""What is left of a search, by how much its queries were changed."""

from __future__ import annotations

from matplotlib.figure import Figure

from ...comparison.selection import Document, get
from ..words import score
from .drawing import Look, Missing, Plan, Table, Theme, legend, subplots

LOOKS = {
    "random": Look("pq", dash=(4, 2.5), marker="s", filled=False),
    "apd": Look("dpq", marker="^"),
    "aod": Look("scq", width=2.8, bold=True),
    "feature": Look("opq", marker="D"),
}
OTHERS = Look("other 0", marker="v")
Lines = dict[str, list[tuple[float, float]]]


def attacked(document: Document) -> Plan | Missing:
    """The chart of results of kind 'attack': of the first model that was attacked itself."""
    name, title = "attacked", "What attacks leave"
    lines, searched = _lines(document)
    if not lines:
        return Missing(name, title, "no attack has a mAP beside that of clean queries")
    pixels = document.get("space") == "pixels"
    scale, unit = (1.0, "steps of 255 a pixel") if pixels else (100.0, "% of the norm")

    def draw(theme: Theme) -> Figure:
        figure, (ax,) = subplots(294)
        ax.set_ylim(0, 1.02)
        ax.set_title("mAP")
        ax.set_xlabel(f"largest change of a query, {unit}")
        ax.grid(axis="y")
        for attack, points in lines.items():
            xs, ys = zip(*points)
            ax.plot([scale * x for x in xs], ys, **LOOKS.get(attack, OTHERS).line(theme))
        legend(figure, theme, [(attack, LOOKS.get(attack, OTHERS)) for attack in lines])
        return figure

    strengths = sorted({eps for points in lines.values() for eps, _ in points})
    at = {attack: dict(points) for attack, points in lines.items()}
    table: Table = tuple(
        (f"{scale * eps:g}", *(score(at[attack].get(eps)) or "–" for attack in lines)) for eps in strengths
    )
    last = "; ".join(
        f"{attack} {score(points[-1][1])} at {scale * points[-1][0]:g}" for attack, points in lines.items()
    )
    alt = f"mAP of searches with {searched} against the largest change of a query in {unit}: {last}."
    caption = (
        f"Queries made against {searched} and searched with it. At 0 they are as they came. Random signs change a query as much, "
        "without aim."
    )
    return Plan(name, title, alt, caption, (f"largest change, {unit}", *lines), table, draw)


def _lines(document: Document) -> tuple[Lines, str]:
    """({attack: [(eps, mAP), ...] from clean queries on}, the model)."""
    rows = [row for row in document["rows"] if get(row, "map") is not None and get(row, "eps") is not None]
    own = [row for row in rows if row.get("crafted") and row.get("crafted") == row.get("searched")]
    if not own:
        return {}, ""
    searched = str(own[0]["searched"])
    clean = [(0.0, row["map"]) for row in rows if row.get("attack") == "clean" and row.get("searched") == searched][:1]
    lines: Lines = {}
    for row in sorted((r for r in own if r["searched"] == searched), key=lambda r: float(r["eps"])):
        lines.setdefault(str(row.get("attack") or row["key"]), list(clean)).append((row["eps"], row["map"]))
    return lines, searched
