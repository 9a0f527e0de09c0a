"""What a report finds missing in results: parts of the whole, fields of their rows, and rows that could not be measured."""

from __future__ import annotations

from dataclasses import dataclass

from ..comparison.fields import Part
from ..comparison.schema import KINDS
from ..comparison.selection import Document, Row, borrows


@dataclass(frozen=True)
class Gap:
    """A part that the results lack. title: what; reason: why, or where it lacks."""

    title: str
    reason: str


def gaps(document: Document) -> list[Gap]:
    """The parts that a document of `schema.cleaned` lacks."""
    results, row_type = KINDS[str(document["kind"])]
    rows = document["rows"]
    found = [
        Gap(title, "not in the results")
        for part, title in _titles(results).items()
        if document.get(part) is None and not _may_be_none(document, part)
    ]
    reason = (document.get("unknown") or {}).get("reason")
    if reason is not None:
        found.append(Gap("unseen classes", str(reason)))
    if not rows:
        return [*found, Gap("all figures", "the results hold no rows")]
    measured = [row for row in rows if row.get("reason") is None]
    for field, title in _titles(row_type).items():
        asked = [row for row in measured if not _has_none(row, field)]
        lacking = sum(row.get(field) is None or row[field] in ({}, []) for row in asked)
        if lacking:
            found.append(Gap(title, f"not in {_of(lacking, len(asked))}"))
    for field, title in _titles(row_type, some=True).items():
        if not any(field in row for row in measured):
            found.append(Gap(title, "in none of the rows"))
    return found + [Gap(str(row["key"]), str(row["reason"])) for row in rows if row.get("reason") is not None]


def _titles(model: type[Part], some: bool = False) -> dict[str, str]:
    fields = model.model_fields.items()
    return {name: info.title for name, info in fields if info.title and bool(info.json_schema_extra) == some}


def _may_be_none(document: Document, part: str) -> bool:
    # Without names of classes, and without images, results are whole; a key that is not there at all is missing.
    if part == "embedding":
        return not any(borrows(row) for row in document["rows"])
    return part in document and part in ("classes", "pictures")


def _has_none(row: Row, field: str) -> bool:
    """Whether such a row has no such figure of its own: floats have no length, rows as they are no encoder."""
    if field == "bits":
        return row.get("role") == "ceiling"
    if field == "encode_ms":  # that of an embedding stands with the method that learned it
        return row.get("space") == "raw" or borrows(row)
    # FAISS's own codes hang on their lists: equal ones are not equal vectors.
    return field == "distinct" and str(row.get("target")).startswith("faiss-")


def _of(some: int, all_of_them: int) -> str:
    if some == all_of_them:
        return "any row" if some > 1 else "the one row"
    return f"{some} of {all_of_them} rows"
