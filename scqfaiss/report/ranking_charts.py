"""Quality of rankings: against bits, against time, and as precision at every recall."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..comparison import selection
from .drawing_charts import (
    LIGHT,
    LINE,
    MOST,
    WIDTH,
    Canvas,
    End,
    Floats,
    Look,
    Missing,
    Plan,
    Table,
    Theme,
    array,
    column_width,
    fitted,
    key_lines,
    leading,
    linear_range,
    log_range,
    log_ticks,
    plain_tick,
    some,
)
from .intake import encoding
from .words import amount, count, embedding_of, listed, score

Row = selection.Row
Document = selection.Document

MARKERS = {
    "scq": "o", "scq:4": "h", "dpq": "s", "phpq": "D", "mecoq": "^", "mopq": "v", "label": "X",
    "ivfpq": "o", "pq": "s", "opq": "^", "rq": "v", "lsq": "D", "fastscan": "P",
}  # fmt: skip
OF_ROWS = ("FAISS's codes of the rows", Look("flat", marker=""))
OF_EMBEDDING = ("FAISS's codes of the embedding", Look("flat", dash=(4, 2.5), marker=""))
EMBEDDED = " of the embedding"  # as selection.name_of says it
MANY_SERIES = 9  # beyond that, a picture of single points leaves out what others of FAISS's codes beat
FEW_LINES = 8  # of precision and recall, which lie close together
NO_LENGTH = "no length was measured both for ours and for a baseline of the rows"


def looks(document: Document) -> dict[str, Look]:
    """name -> look of every series and ceiling; a method has one colour and one marker in all pictures."""
    rows = selection.codings(document)
    unknown = sorted({str(row.get("method")) for row in rows} - set(LIGHT["series"]))
    others = [c for c in LIGHT["series"] if c.startswith("other")]
    colours = {method: others[i % len(others)] for i, method in enumerate(unknown)}
    markers = MARKERS | {method: "osD^vPX"[i // len(others) % 7] for i, method in enumerate(unknown)}
    found: dict[str, Look] = {}
    for row in rows:
        method = str(row.get("method"))
        look = Look(colours.get(method, method), marker=markers.get(method, "o"))
        if row.get("role") == "ours":
            look = replace(look, width=2.8, size=6.5, bold=True)
        elif row.get("role") == "label":
            look = replace(look, width=0, size=8)
        elif row.get("role") == "ceiling":
            dash = (4, 1.5, 1, 1.5) if row.get("space") == "trained" else (1, 1.8)
            look = replace(look, width=1.3, dash=dash, marker="")
        if row.get("space") == "trained" and row.get("role") == "baseline":
            look = replace(look, width=1.3, dash=(4, 2.5), filled=False)
        found.setdefault(selection.name_of(row), look)
    return found


def ceilings(document: Document) -> list[Row]:
    """Floats, nothing coded."""
    return [r for r in selection.codings(document) if r.get("role") == "ceiling"][:MOST]


def best_text(document: Document, bits: int | None) -> str:
    """Who is best at a length, and by how much, as a sentence; '' where nobody stands there."""
    if bits is None:
        return ""
    ours, other = selection.best_ours(document, bits), selection.best_baseline(document, bits)
    said = [
        f"{words} {selection.name_of(row)} with {row['map']:.3f}"
        for words, row in (("the best of ours is", ours), ("the best of the baselines on the rows is", other))
        if row is not None
    ]
    return f"At {bits} bits " + ", ".join(said) + "." if said else ""


def map_bits(document: Document) -> Plan | Missing:
    """mAP of every series at every length."""
    name, title = "map-bits", "Quality at every length"
    series = selection.series(document)
    floats = ceilings(document)
    if not series:
        return Missing(name, title, "no row has a mAP and a length in bits")
    style = looks(document)
    bits = sorted({row["bits"] for rows in series.values() for row in rows})
    header = ("codes", *(f"{b} bits" for b in bits), *(("floats",) if floats else ()))
    table: list[tuple[str, ...]] = []
    lines = len(series)
    for label, rows in series.items():
        at = {row["bits"]: f"{row['map']:.3f}" for row in rows}
        table.append((label, *(at.get(b, "–") for b in bits), *(("–",) if floats else ())))
    for row in floats:
        table.append((selection.name_of(row), *("–" for _ in bits), f"{row['map']:.3f}"))

    top, leaders = leading(
        [(f"{label} at {row['bits']} bits", row["map"]) for label, rows in series.items() for row in rows], score
    )
    if lines > MOST:
        kept = sorted(series, key=lambda n: (not style[n].bold, -max(row["map"] for row in series[n])))[:MOST]
        series = {label: series[label] for label in kept}

    # Dashes tell codes of the embedding apart, so that their labels can be as short as the method's name.
    spaces = {rows[0].get("space") for rows in series.values() if rows[0].get("role") == "baseline"}
    split = [OF_ROWS, OF_EMBEDDING] if spaces >= {"raw", "trained"} else []
    points = {label: rows for label, rows in series.items() if rows[0].get("role") == "label"}
    ends = [
        End(_method(label), float(rows[-1]["bits"]), rows[-1]["map"], style[label])
        for label, rows in series.items()
        if label not in points
    ]
    lowest, highest = log_range(bits, room=0.05)
    ends += [
        End(_method(selection.name_of(r), ", embedded"), highest, r["map"], style[selection.name_of(r)]) for r in floats
    ]
    gap = 14.5
    beside = len(ends) * gap <= 330
    labels = column_width(((end.text, end.look.bold) for end in ends), 112) if beside else 0.0
    high = max(190.0, len(ends) * gap) if beside else 230.0
    drawn = [n for n in series if n not in points] + [selection.name_of(row) for row in floats]
    entries = split if beside else [(label, style[label]) for label in drawn]
    every = [row["map"] for rows in series.values() for row in rows] + [row["map"] for row in floats]

    def draw(theme: Theme) -> Figure:
        top, left = 24.0, 38.0
        foot = top + high + 38
        canvas = Canvas(theme, foot + (4 + LINE * key_lines(entries) if entries else 0) + 4)
        ax = canvas.axes(left, top, WIDTH - left - (labels + 24 if beside else 12), high)
        ax.set_xscale("log")
        ax.set_xlim(lowest, highest)
        ax.set_ylim(*linear_range(every))
        canvas.fractions(ax, "y")
        _lengths(canvas, ax, bits)
        for row in floats:
            look = style[selection.name_of(row)]
            ax.plot([lowest, highest], [row["map"]] * 2, **canvas.look(look))
        for label, rows in series.items():
            look = style[label]
            xs, ys = [row["bits"] for row in rows], [row["map"] for row in rows]
            ax.plot(xs, ys, **canvas.look(look), zorder=4 if look.bold else 3, clip_on=False)
        for label, rows in points.items():
            best = max(rows, key=lambda row: row["map"])
            left_of = math.log(best["bits"]) > (math.log(lowest) + math.log(highest)) / 2
            ax.annotate(
                fitted(label, 90), (best["bits"], best["map"]), (-6 if left_of else 6, 0), textcoords="offset points",
                ha="right" if left_of else "left", va="center_baseline", color=theme["ink"], zorder=5,
                path_effects=canvas.halo(),
            )  # fmt: skip
            break  # there is one label code; a second name would have no place of its own
        if beside:
            canvas.end_labels(ax, ends, labels, gap)
        canvas.text(8, 12, "mAP", colour=theme["muted"], va="center_baseline")
        canvas.text(left, foot - 9, "bits a vector", colour=theme["muted"], va="center_baseline")
        if entries:
            canvas.key(foot + 4, entries)
        return canvas.figure

    shown = selection.shown_bits(document) or max(bits)
    alt = (
        f"Lines of mAP against bits a vector, {listed([str(b) for b in bits])}. The highest is {top}, {leaders}. "
        f"{best_text(document, shown)}"
    ).strip()
    if floats:
        alt += " Without coding: " + ", ".join(f"{selection.name_of(r)} {r['map']:.3f}" for r in floats) + "."
    caption = f"Higher is better; mAP {_depth(document, 'at')}. Thick lines: codes by this package; thin: FAISS's own."
    if "trained" in spaces:
        caption += f" Dashed: FAISS's codes of {embedding_of(document)}"
        caption += "; beside that point only the codes differ." if selection.embedded(document) else "."
    if floats:
        caption += " Dotted: floats, nothing coded"
        caption += "; dots and dashes: those of the embedding." if any(map(_embedded, floats)) else "."
    if lines > MOST:
        caption += f" The picture holds {MOST} of {lines:,} lines, the table all of them."
    return Plan(name, title, alt, caption, header, tuple(table), draw)


def map_ms(document: Document) -> Plan | Missing:
    """mAP of every operating point at one length, against time."""
    name, title = "map-ms", "Quality against time"
    bits = selection.shown_bits(document)
    if bits is None:
        return Missing(name, title, NO_LENGTH)
    style = looks(document)
    found, encoders = _settings(document, bits, style)
    if not found:
        return Missing(name, title, f"no row of {bits} bits has operating points with ms and mAP (points)")
    drawn = found if len(found) <= MANY_SERIES else _unbeaten(found, style)
    fronts = {label: front([p for _, p in points if p.get("pareto")]) for label, points in found.items()}
    every = [p for points in drawn.values() for _, p in points]
    embedded = {n for n, points in found.items() if _embedded(points[0][0])}
    entries = [(label, style[label]) for label in sorted(drawn, key=lambda n: not style[n].bold)]
    ms_range, map_range = log_range([p["ms"] for p in every]), linear_range([p["map"] for p in every])
    axis = "ms a query, with its encoder, log scale" if any(encoders.values()) else "ms a query, log scale"

    def draw(theme: Theme) -> Figure:
        top, left, high = 24.0, 38.0, 230.0
        foot = top + high + 38
        canvas = Canvas(theme, foot + 4 + LINE * key_lines(entries) + 4)
        ax = canvas.axes(left, top, WIDTH - left - 14, high)
        ax.set_xscale("log")
        ax.set_xlim(*ms_range)
        ax.set_ylim(*map_range)
        canvas.fractions(ax, "y")
        ticks = log_ticks(*ms_range)
        canvas.ticks(ax, "x", ticks, [plain_tick(t) for t in ticks], grid=False)
        for label, points in drawn.items():
            look = style[label]
            faint = canvas.look(replace(look, size=look.size - 1.5))
            xs, ys = [p["ms"] for _, p in points], [p["map"] for _, p in points]
            ax.plot(xs, ys, **{**faint, "linestyle": "none"}, alpha=0.4, zorder=2)
            best = fronts[label]
            ax.plot(
                [p["ms"] for p in best], [p["map"] for p in best], **canvas.look(look), zorder=4 if look.bold else 3
            )
        canvas.text(8, 12, "mAP", colour=theme["muted"], va="center_baseline")
        canvas.text(WIDTH - 14, 12, "↖ better: up and left", bold=True, ha="right", va="center_baseline")
        canvas.text(left, foot - 9, axis, colour=theme["muted"], va="center_baseline")
        canvas.key(foot + 4, entries)
        return canvas.figure

    # Of each series its best point, not all that come out as good: a higher nprobe seldom changes the last digit.
    tops = {n: min((p for _, p in points), key=lambda p: (-round(p["map"], 3), p["ms"])) for n, points in found.items()}
    quick = {n: min((p for _, p in points), key=lambda p: (p["ms"], -p["map"])) for n, points in found.items()}
    top, highest = leading([(f"{n} at {amount(p['ms'])} ms", p["map"]) for n, p in tops.items()], score)
    least, fastest = leading([(f"{n} with a mAP of {p['map']:.3f}", p["ms"]) for n, p in quick.items()], amount, min)
    alt = (
        f"Operating points at {bits} bits a vector, mAP against milliseconds a query on a log scale. The highest mAP is "
        f"{top}, {highest}; the least time {least} ms, {fastest}."
    )
    caption = (
        f"Codes of {bits} bits; one thread, batches of 1,000 queries, mAP {_depth(document, 'sweep_at')}. Each point is a "
        "container at one setting; lines join the points of a method that none of its others beats in both time and mAP."
    )
    if any(encoders.values()):
        caption += " Times are those of search and encoder; codes of the rows need none."
    if embedded:
        caption += f" Dashed: FAISS's codes of {embedding_of(document)}"
        caption += ", and its encoder's time." if any(encoders[n] for n in embedded) else "."
    unknown = [n for n, ms in encoders.items() if ms is None]
    if unknown:
        caption += f" Search alone, as its encoder was not measured: {some(unknown)}."
    if len(drawn) == MOST < len(found):
        caption += f" The picture holds {MOST} of {len(found):,} codes, the table all of them."
    elif len(drawn) < len(found):
        out = [n for n in found if n not in drawn]
        caption += (
            " Left out of the picture, as others of FAISS's codes of the same rows or embedding are as good and as fast: "
            f"{some(out)}. The table holds them."
        )
    header = (
        "codes", "container", "nprobe", "refine", "search, ms a query", "with its encoder", "mAP",
        "recall@10 of the codes", "on the line",
    )  # fmt: skip
    table = tuple(
        (
            label, str(row.get("container") or "–"), _whole(p.get("nprobe")), _whole(p.get("refine")),
            amount(p["search"]), "–" if encoders[label] is None else amount(p["ms"]), score(p["map"]),
            "–" if selection.get(p, "recall") is None else f"{p['recall']:.3f}",
            "yes" if any(p is q for q in fronts[label]) else "no",
        )
        for label, points in found.items()
        for row, p in points
    )  # fmt: skip
    return Plan(name, title, alt, caption, header, table, draw)


Settings = dict[str, list[tuple[Row, Row]]]


def _settings(document: Document, bits: int, style: Mapping[str, Look]) -> tuple[Settings, dict[str, float | None]]:
    """(name -> (row, operating point) of every setting at a length, name -> ms of its encoder).

    ms of a point are with the encoder, as far as it was measured; search: without.
    """
    found: Settings = {}
    encoders: dict[str, float | None] = {}
    for row in document["rows"]:
        label = selection.name_of(row)
        if row.get("bits") != bits or row.get("role") == "ceiling" or label not in style:
            continue
        points = [p for p in row.get("points") or () if selection.get(p, "ms") and selection.get(p, "map")]
        if not points:
            continue
        if label not in encoders:
            encoders[label] = encoding(document, row)
        more = encoders[label] or 0.0
        found.setdefault(label, []).extend((row, {**p, "search": p["ms"], "ms": p["ms"] + more}) for p in points)
    return found, encoders


def _unbeaten(found: Settings, style: Mapping[str, Look]) -> Settings:
    """Ours, IVFPQ of the rows, and those of FAISS's codes that no others of the same space beat at every setting."""
    kept = {n for n, points in found.items() if style[n].bold or n == "IVFPQ"}
    for space in ("raw", "trained"):
        rivals = [
            (n, p) for n, points in found.items() for row, p in points
            if row.get("role") == "baseline" and row.get("space") == space
        ]  # fmt: skip
        best = front([p for _, p in rivals])
        kept |= {n for n, p in rivals if any(p is q for q in best)}
    first = sorted((n for n in found if n in kept), key=lambda n: not style[n].bold)[:MOST]
    return {n: points for n, points in found.items() if n in first}


def front(points: Sequence[Row]) -> list[Row]:
    """The points that no other beats in both, by rising ms. What is flagged may be so among its own container's only."""
    best: list[Row] = []
    for p in sorted(points, key=lambda p: (p["ms"], -p["map"])):
        if not best or p["map"] > best[-1]["map"]:
            best.append(p)
    return best


def precision_recall(document: Document) -> Plan | Missing:
    """Precision at every recall, of the pair that a report compares and of the best others."""
    name, title = "precision-recall", "Precision at every recall"
    bits = selection.shown_bits(document)
    if bits is None:
        return Missing(name, title, NO_LENGTH)
    ours, base = selection.pair(document)
    level = [r for r in selection.codings(document) if r.get("bits") == bits]
    embedded = [r for r in level if r.get("role") == "baseline" and r.get("space") == "trained"]
    whose = selection.embedded(document)
    wanted = [
        ours,
        base,
        selection.best_baseline(document, bits),
        max(embedded, key=lambda r: r["map"], default=None),
        whose if whose in level else None,
        *ceilings(document),
        *(r for r in selection.codings(document) if r.get("role") == "label"),
        *sorted((r for r in level if r.get("role") == "ours"), key=lambda r: -r["map"]),
    ]
    lines: dict[str, tuple[Floats, Floats]] = {}
    for row in wanted:
        curve = _curve(document, row)
        if row is not None and curve is not None and len(lines) < FEW_LINES:
            lines.setdefault(selection.name_of(row), curve)
    if not lines:
        return Missing(name, title, f"no row of {bits} bits has precision at recall (pr)")
    style = {label: replace(look, marker="") for label, look in looks(document).items()}
    style = {
        n: replace(look, width=1.3, dash=(3, 1.2, 1, 1.2)) if not look.width else look for n, look in style.items()
    }
    entries = [(label, style[label]) for label in lines]

    def draw(theme: Theme) -> Figure:
        top, left, high = 24.0, 38.0, 230.0
        foot = top + high + 38
        canvas = Canvas(theme, foot + 4 + LINE * key_lines(entries) + 4)
        ax = canvas.axes(left, top, WIDTH - left - 16, high)
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1.02)
        canvas.fractions(ax, "x")
        canvas.fractions(ax, "y")
        for label, (recall, precision) in reversed(lines.items()):
            ax.plot(recall, precision, **canvas.look(style[label]), zorder=4 if style[label].bold else 3)
        canvas.text(8, 12, "precision", colour=theme["muted"], va="center_baseline")
        canvas.text(left, foot - 9, "recall", colour=theme["muted"], va="center_baseline")
        canvas.key(foot + 4, entries)
        return canvas.figure

    steps = np.linspace(0, 1, 11)
    at = {label: np.interp(steps, *curve) for label, curve in lines.items()}
    table: Table = tuple((f"{r:.1f}", *(f"{ys[i]:.3f}" for ys in at.values())) for i, r in enumerate(steps))
    _, best = leading([(label, float(ys[5])) for label, ys in at.items()], score)
    alt = (
        f"Precision against recall at {bits} bits a vector. When half of the right rows are found, precision is "
        + ", ".join(f"{ys[5]:.3f} for {label}" for label, ys in at.items())
        + (f"; the highest: {best}." if len(at) > 1 else ".")
    )
    caption = (
        "Down a ranking more of the right rows are found (recall) and more wrong ones stand among them (precision falls). "
        f"Higher is better. Codes of {bits} bits"
        + ("; floats are not coded" if any(selection.name_of(r) in lines for r in ceilings(document)) else "")
        + ("; the label code has a length of its own." if any(style[n].colour == "label" for n in lines) else ".")
    )
    if any(label.endswith(EMBEDDED) for label in lines):
        caption += f" Of the embedding: {embedding_of(document)}."
    return Plan(name, title, alt, caption, ("recall", *lines), table, draw)


def carrier(document: Document, row: Row | None, field: str) -> list[Any]:
    """What the containers of a row's coding hold in `field`, the row's own first; they share all that is not speed."""
    if row is None:
        return []
    rows = [row, *(r for r in document["rows"] if selection.coding(r) == selection.coding(row))]
    return [r[field] for r in rows if r.get(field) is not None]


def _curve(document: Document, row: Row | None) -> tuple[Floats, Floats] | None:
    for held in carrier(document, row, "pr"):
        if not isinstance(held, Mapping):
            continue
        recall, precision = (array(held.get(part), 1, 0, 1) for part in ("recall", "precision"))
        if recall is not None and precision is not None and recall.shape == precision.shape and len(recall) > 1:
            order = np.argsort(recall, kind="stable")
            return recall[order], precision[order]
    return None


def _lengths(canvas: Canvas, ax: Axes, bits: Sequence[int]) -> None:
    # Powers of two first: where labels would touch, these are the ones that stay.
    order = sorted(bits, key=lambda b: (not math.log2(b).is_integer(), b))
    canvas.ticks(ax, "x", order, [f"{b:g}" for b in order], grid=False)


def _embedded(row: Row) -> bool:
    return selection.name_of(row).endswith(EMBEDDED)


def _method(label: str, mark: str = "") -> str:
    bare = label.removesuffix(EMBEDDED)
    return label if bare == label else bare + mark


def _depth(document: Document, key: str) -> str:
    at, rows = selection.get(document, key), selection.get(document, "data", "database", "rows")
    if at is None or (rows is not None and at >= rows):
        return "over the whole database"
    return f"of the first {at:,.0f} of each ranking"


def _whole(value: Any) -> str:
    return count(selection.number(value)) or "–"
