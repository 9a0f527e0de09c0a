"""The tables of a report: what stands in which cell, and which value of a column is the best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..comparison import selection
from ..comparison.selection import Document, Row, codings, fastest, get, lists_of, name_of, number
from .words import RECALL, count, format_number, length, nbytes, score, target_of

LOW, HIGH = -1, 1  # which end of a column is the best one; 0: neither
Value = Callable[[Row], float | None]


@dataclass
class Cell:
    """text '' is 'not measured'; value: what it competes with, or None; best: among those it stands with."""

    text: str
    value: float | None = None
    best: bool = False


@dataclass
class Line:
    """A row of a table. note: a word under its name; mark: the key of a footnote, or ''; reason: why it has no figures."""

    name: str
    cells: list[Cell]
    note: str = ""
    mark: str = ""
    reason: str = ""


@dataclass
class Group:
    """Rows of one table that compare: codes of one length. title '' where the table has one group."""

    title: str
    lines: list[Line]


@dataclass
class Table:
    """header: of the cells, (label, what it is counted in or ''); first: what the first column holds; label: for readers of
    screens; lead: what has to be known to read it.
    """

    label: str
    first: str
    header: list[tuple[str, str]]
    groups: list[Group]
    lead: str = ""
    footnotes: dict[str, str] = field(default_factory=dict)

    @property
    def lines(self) -> int:
        return sum(len(group.lines) for group in self.groups)


@dataclass(frozen=True)
class _Column:
    label: str
    unit: str
    value: Value
    text: Callable[[float | None], str]
    best: int = 0
    prefix: Callable[[Row], str] = lambda row: ""


def _header(columns: Iterable[_Column]) -> list[tuple[str, str]]:
    return [(column.label, column.unit) for column in columns]


def _at(*path: str) -> Value:
    return lambda row: get(row, *path)


def _line(columns: Sequence[_Column], row: Row, name: str, note: str = "", mark: str = "") -> Line:
    cells = []
    for column in columns:
        value, prefix = column.value(row), column.prefix(row)
        text = column.text(value)
        # A sum of which a part is not known may be more than it seems, so it competes with none.
        cells.append(Cell(prefix + text if text else "", None if prefix else value))
    return Line(name, cells, note, mark, str(row.get("reason") or ""))


def _with_best(columns: Sequence[_Column], lines: list[Line]) -> list[Line]:
    """The lines with the best of each column marked, and all that show the same figure; none where there is nothing to choose."""
    for place, column in enumerate(columns):
        rivals = [(column.best * cell.value, cell) for line in lines if (cell := line.cells[place]).value is not None]
        if not column.best or len({cell.text for _, cell in rivals}) < 2:
            continue
        top = max(rivals, key=lambda pair: pair[0])[1].text
        for _, cell in rivals:
            cell.best = cell.text == top
    return lines


# ---------------------------------------------------------------------------------------------------------- comparison
HONESTY = (
    "Honesty row: the predicted class alone as the code. A code that knows labels is worth something where it ranks better than "
    "this."
)


def comparison(document: Document) -> Table:
    """Codes beside one another at each length: quality of the codes, costs of the container that is fastest."""
    failed = [row for row in document["rows"] if row.get("reason") is not None and get(row, "map") is None]
    together = selection.by_coding(document)
    costs = {str(row["key"]): _costs(together, row) for row in codings(document)}
    costs |= {str(row["key"]): (row, None) for row in failed}
    columns = _columns(document, together, costs)
    grouped: dict[tuple[int | None, int], list[Row]] = {}
    for row in [*codings(document), *failed]:
        bits = None if number(row.get("bits")) is None else row["bits"]
        grouped.setdefault((bits, lists_of(row)), []).append(row)
    order = {"ours": 0, "label": 1, "baseline": 2, "ceiling": 3}
    groups = []
    for bits, lists in sorted(grouped, key=lambda level: (level[0] is None, level[0] or 0, level[1])):
        rows = sorted(
            grouped[bits, lists], key=lambda r: (order.get(str(r.get("role")), 4), r.get("space") == "trained")
        )
        lines = [
            _line(columns, r, *_named(r, costs[str(r["key"])][0].get("container")), "*" * (r.get("role") == "label"))
            for r in rows
        ]
        groups.append(Group(_length(bits, lists), _with_best(columns, lines)))
    lead = (
        "The best of each column at each length stands in bold. Times and bytes are those of the container that is named, the "
        "fastest that finds at least 95 of 100 of the first 10; one thread, 1,000 queries at a time."
    )
    if any(lists > 1 for _, lists in grouped):
        lead += (
            " The list that a vector stands in costs no byte; codes stand together that have the same number of lists."
        )
    notes = {"*": HONESTY} if any(row.get("role") == "label" for row in codings(document)) else {}
    return Table("Codes by length", "code", _header(columns), groups, lead, notes)


def _costs(together: dict[tuple[Any, ...], Document], row: Row) -> tuple[Row, float | None]:
    """(the container that the costs of a coding are told of, ms of its search)"""
    point = None
    if row.get("role") != "ceiling":
        rows = together[selection.coding(row)]
        point = fastest(rows, str(row.get("method")), str(row.get("space")), row.get("bits"), None, RECALL)
    if point:
        return point[0], get(point[1], "ms")
    # Floats are searched whole, and have no length to look their settings up by.
    return row, None if row.get("role") != "ceiling" else get(row, "ms", "1000", "one", "p50")


def _columns(
    document: Document, together: dict[tuple[Any, ...], Document], costs: dict[str, tuple[Row, float | None]]
) -> list[_Column]:
    vectors, learned = get(document, "data", "database", "rows"), selection.embedded(document)
    teachers = (
        together[selection.coding(learned)]["rows"] if learned else []
    )  # whose encoder stands before FAISS's codes

    def cost(*path: str) -> Value:
        return lambda row: get(costs[str(row["key"])][0], *path)

    def quality(*path: str) -> Value:
        return lambda row: selection.shared(together[selection.coding(row)], row, *path)

    def encoder(row: Row) -> float | None:
        return selection.encoding({**document, "rows": [*teachers, *together[selection.coding(row)]["rows"]]}, row)

    def memory(row: Row) -> float | None:
        held = cost("bytes", "memory")(row)
        return held / vectors if held is not None and vectors else None

    def building(row: Row) -> float | None:
        parts = [part for name in ("train", "encode", "add") if (part := cost("seconds", name)(row)) is not None]
        return sum(parts) if parts else None

    def at_least(row: Row) -> str:
        # Before a sum of which a part was not measured; rows as they are need no encoder.
        needed = ("train", "add") if row.get("space") == "raw" else ("train", "encode", "add")
        return "≥ " if any(cost("seconds", part)(row) is None for part in needed) else ""

    return [
        _Column("mAP", "", quality("map"), score, HIGH),
        _Column("precision@10", "", quality("precision_at_k", "10"), score, HIGH),
        _Column("recall@10, floats coded", "", quality("neighbours", "coded", "10"), score, HIGH),
        _Column("recall@10, rows", "", quality("neighbours", "raw", "10"), score, HIGH),
        _Column("search", "ms a query", lambda row: costs[str(row["key"])][1], format_number, LOW),
        _Column("encoding", "ms a query", encoder, lambda ms: "none" if ms == 0 else format_number(ms), LOW),
        _Column("memory", "bytes a vector", memory, _few, LOW),
        _Column("on disk", "", cost("bytes", "disk"), nbytes, LOW),
        _Column("building", "s", building, format_number, LOW, at_least),
        _Column("opening", "ms", cost("open_ms"), format_number, LOW),
    ]


def _named(row: Row, held: Any) -> tuple[str, str]:
    """('RQ', 'of the embedding, residual'): a code, and in small what it codes and what holds it."""
    name, of, _ = name_of(row).partition(" of the embedding")
    return name, ", ".join(part for part in (of.strip(), str(held or "")) if part)


def _length(bits: int | None, lists: int) -> str:
    if bits is None:
        return "floats, without a code"
    text = f"{bits} bits" + (f": {length(bits)} a vector" if bits % 8 == 0 else " a vector")
    return text + (f" in {lists:,} lists" if lists > 1 else "")


def everything(document: Document) -> Table:
    """Every row of a comparison with every figure that is one number."""
    columns = [
        _Column("bits", "", _at("bits"), count),
        _Column("lists of the code", "", _at("lists"), count),
        _Column("nlist", "", _at("nlist"), count),
        _Column("nprobe", "", _at("nprobe"), count),
        _Column("refine", "", _at("refine"), count),
        _Column("mAP", "", _at("map"), score),
        _Column("precision@10", "", _at("precision_at_k", "10"), score),
        *(_Column(f"label recall@{k}", "", _at("label_recall_at_k", k), _fine) for k in ("1", "10", "100")),
        *(
            _Column(f"recall@{k}, {label}", "", _at("neighbours", of, k), score)
            for of, label in (("coded", "coded"), ("raw", "rows"))
            for k in ("1", "10", "100")
        ),
        *(
            _Column(
                f"{what} {batch} at a time, {threads} thread{'s' * (threads == 'all')}, {p}",
                "ms",
                _at(*path),
                format_number,
            )
            for what, key in (("search", "ms"), ("encoding", "encode_ms"))
            for batch in ("1", "1000")
            for threads in ("one", "all")
            for p in ("p50", "p95", "p99")
            for path in [(key, batch, threads, p)]
        ),
        *(_Column(part, "s", _at("seconds", part), format_number) for part in ("train", "encode", "add")),
        _Column("memory", "", _at("bytes", "memory"), nbytes),
        _Column("on disk", "", _at("bytes", "disk"), nbytes),
        _Column("opening", "ms", _at("open_ms"), format_number),
        _Column("distinct codes", "", _at("distinct_codes"), count),
        _Column("coding error", "mean square", _at("mse"), _fine),
    ]
    rows = document["rows"]
    # A column that nobody measured says so once, under "What is missing", not in every row.
    columns = [c for c in columns if any(c.value(row) is not None for row in rows)]
    lines = [_line(columns, row, *_named(row, row.get("factory") or row.get("container"))) for row in rows]
    lead = ""
    if any(row.get("points") for row in rows):
        lead = (
            "Search times here were measured anew, at the nlist, nprobe and refine of the row. Those of the table above and of "
            "the chart are of the operating points, so that the two differ somewhat."
        )
    return Table("All rows", "row", _header(columns), [Group("", lines)], lead)


def _few(value: float | None) -> str:
    """Bytes of one vector: 12, 12.2, 2,056."""
    return "" if value is None else f"{value:,.1f}".removesuffix(".0")


def _fine(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def scale(document: Document) -> Table:
    """Each target at each number of rows."""
    columns = [
        _Column("search, 1,000 at a time", "ms a query", _at("ms"), format_number, LOW),
        _Column("search, one by one", "ms a query", _at("single_ms"), format_number, LOW),
        _Column("recall@10", "", _at("recall"), score, HIGH),
        _Column("building", "s", _at("build_seconds"), format_number, LOW),
        _Column("memory", "", _at("memory"), nbytes, LOW),
        _Column("on disk", "", _at("disk"), nbytes, LOW),
        _Column("distinct codes", "", _at("distinct"), count),
        _Column("nlist", "", _at("nlist"), count),
        _Column("nprobe", "", _at("nprobe"), count),
    ]
    grouped: dict[float, list[Row]] = {}
    for row in document["rows"]:
        grouped.setdefault(get(row, "rows") or 0.0, []).append(row)
    groups = []
    for n in sorted(grouped):
        lines = _with_best(columns, [_line(columns, row, target_of(row)) for row in grouped[n]])
        groups.append(Group(f"{count(n)} rows" if n else "number of rows not in the results", lines))
    lead = "The best of each column at each number of rows stands in bold."
    return Table("Targets by size", "target", _header(columns), groups, lead)


def training(document: Document) -> Table:
    """Each stage and batch."""
    columns = [
        _Column("batch", "", _at("batch"), count),
        _Column("ratio", "median", _at("ratio"), format_number),
        _Column("ratio", "lower quartile", _at("ratio_low"), format_number),
        _Column("ratio", "upper quartile", _at("ratio_high"), format_number),
        _Column("rounds", "", _at("pairs"), count),
        _Column("ours", "rows a second", _at("ours_rows_per_s"), count),
        _Column("released recipe", "rows a second", _at("plain_rows_per_s"), count),
    ]
    lines = [_line(columns, row, str(row.get("what") or row["key"])) for row in document["rows"]]
    lead = "A step of ours beside a step of the released recipe's arithmetic, in pairs, one after the other."
    return Table("Training steps", "stage", _header(columns), [Group("", lines)], lead)


def attack(document: Document) -> Table:
    """Each attack at each strength, a group for each pair of models: that which queries were made against, that searched with."""
    columns = [
        _Column("mAP", "", _at("map"), score),
        _Column("mAP", "with the query's code", _at("map_symmetric"), score),
        _Column("mAP", "of floats", _at("map_floats"), score),
        _Column("mAP", "of the label code", _at("map_label"), score),
        _Column("codes changed", "", _at("changed_codes"), score),
        _Column("AUC of known", "clean against changed", _at("known_auc"), score),
        _Column("largest change", "", _at("change"), format_number),
    ]
    columns = [c for c in columns if any(c.value(row) is not None for row in document["rows"])]
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in document["rows"]:
        searched = str(row.get("searched") or "a model")
        grouped.setdefault((searched, str(row.get("crafted") or searched)), []).append(row)
    groups = []
    for (searched, crafted), rows in sorted(grouped.items(), key=lambda item: (item[0][0], item[0][0] != item[0][1])):
        title = (
            f"{searched}, attacked itself" if searched == crafted else f"{searched}, by queries made against {crafted}"
        )
        rows = sorted(rows, key=lambda row: get(row, "eps") or 0.0)
        lines = [_line(columns, row, str(row.get("attack") or row["key"]), _strength(document, row)) for row in rows]
        groups.append(Group(title, lines))
    lead = "What is left of a search when its queries are changed a little. Random signs are as large a change, without aim."
    return Table("Adversarial queries", "queries", _header(columns), groups, lead)


def _strength(document: Document, row: Row) -> str:
    eps = get(row, "eps")
    if not eps:
        return ""
    return f"{eps:g} of 255" if document.get("space") == "pixels" else f"{100 * eps:g} % of the norm"


def tables(document: Document) -> tuple[Table, Table | None]:
    """(the table, the folded one of all rows or None) of a sound document."""
    if document["kind"] == "comparison":
        return comparison(document), everything(document)
    if document["kind"] == "attack":
        return attack(document), None
    return (scale(document) if document["kind"] == "scale" else training(document)), None
