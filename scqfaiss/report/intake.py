"""What a report takes from a results file, and what it finds missing there.

Results files are text that anybody may have edited. What has the wrong kind counts as not measured, so that words, tables
and charts meet numbers, names and lists where they look for them, or nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .selection import Document, Row, get, number

_DEPTH = 8  # results nest 5 deep; what lies deeper than this is none of ours
_NAMES = ("role", "method", "space", "container", "factory", "reason", "target", "what")
_NUMBERS = ("bits", "nlist", "nprobe", "refine", "rows", "batch", "pairs")
_LISTS = ("points",)
_HEAD_NAMES = ("name", "written", "command", "how")
_HEAD_LISTS = ("classes", "left_out", "bits", "assumptions")
_HEAD_TABLES = ("machine", "data", "gallery", "pictures", "fits", "extrapolation")


@dataclass(frozen=True)
class Gap:
    """A part that the results lack. title: what; reason: why, or where it lacks."""

    title: str
    reason: str


def sound(document: Document) -> dict[str, Any]:
    """A copy of a document of `results.read_results` in which every part has its kind, or is None."""
    found: dict[str, Any] = _plain(document, 0)
    for row in found["rows"]:
        _keep(row, _NAMES, str)
        _keep(row, _LISTS, list)
        for name in _NUMBERS:
            value = number(row.get(name))
            if name in row:
                row[name] = int(value) if value is not None and value == int(value) else value
    _keep(found, _HEAD_NAMES, str)
    _keep(found, _HEAD_LISTS, list)
    _keep(found, _HEAD_TABLES, dict)
    return found


def _keep(table: dict[str, Any], names: Sequence[str], kind: type) -> None:
    for name in names:
        if name in table and not isinstance(table[name], kind):
            table[name] = None


def _plain(value: Any, depth: int) -> Any:
    """JSON values without numbers that no float holds, and without text that UTF-8 does not."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 63 else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth >= _DEPTH:
        return None
    if isinstance(value, list):
        return [_plain(part, depth + 1) for part in value]
    return {_plain(key, depth): _plain(part, depth + 1) for key, part in value.items()}


# ------------------------------------------------------------------------------------------------------------- missing
_TITLES = {
    "name": "the name of the results",
    "seed": "the seed",
    "written": "the date",
    "command": "the command",
    "machine": "the machine",
    "data": "the data files",
    "classes": "names of the classes",
    "many_labels": "whether rows have several labels",
    "left_out": "the classes left out of training",
    "at": "the ranks that count in mAP",
    "sweep_at": "the ranks that count at operating points",
    "bits": "the lengths asked for",
    "gallery": "the retrieval gallery",
    "pictures": "pictures of the gallery",
    "how": "how the codes came about",
    "assumptions": "what stands behind the extrapolation",
    "fits": "fitted growth",
    "extrapolation": "the extrapolation",
}
_HEAD = ("name", "seed", "written", "command", "machine")
_PARTS = {
    "comparison": (
        *_HEAD,
        "data",
        "classes",
        "many_labels",
        "left_out",
        "at",
        "sweep_at",
        "bits",
        "gallery",
        "pictures",
    ),
    "scale": (*_HEAD, "how", "assumptions", "fits", "extrapolation"),
    "training": _HEAD,
}
# What every row has, and what some row has: single rows carry the data of a chart, or have no lists to visit.
_EVERY = {
    "comparison": {
        "role": "role",
        "method": "method",
        "space": "space",
        "container": "container",
        "bits": "bits",
        "map": "mAP",
        "unseen_map": "mAP of unseen classes",
        "precision_at_k": "precision@10",
        "label_recall_at_k": "label recall",
        "neighbours": "recall of exact neighbours",
        "ms": "search times",
        "encode_ms": "encoding times",
        "seconds": "building times",
        "bytes": "bytes",
        "open_ms": "opening time",
        "points": "operating points",
        "run": "where the figures come from",
    },
    "scale": {
        "target": "target",
        "rows": "number of rows",
        "ms": "search times in batches",
        "single_ms": "search times of single queries",
        "build_seconds": "building times",
        "memory": "memory",
        "disk": "bytes on disk",
        "recall": "recall",
        "distinct": "distinct codes",
        "run": "where the figures come from",
    },
    "training": {
        "what": "stage",
        "batch": "batch",
        "pairs": "rounds",
        "ratio": "ratio",
        "ratio_low": "lower quartile of the ratio",
        "ratio_high": "upper quartile of the ratio",
        "ours_rows_per_s": "our rows a second",
        "plain_rows_per_s": "plain rows a second",
        "run": "where the figures come from",
    },
}
_SOME = {
    "comparison": {
        "factory": "FAISS's factory strings",
        "nlist": "nlist",
        "nprobe": "nprobe",
        "refine": "refine",
        "pr": "precision-recall curves",
        "usage": "use of codewords",
        "distinct_codes": "distinct codes",
        "mse": "error of coding",
        "centers": "similarity of classes",
        "plane": "the map of embeddings",
    },
    "scale": {"nlist": "nlist", "nprobe": "nprobe"},
    "training": {},
}


def gaps(document: Document) -> list[Gap]:
    """The parts that a sound document lacks: of the whole, of its rows, and rows that could not be measured."""
    kind, rows = str(document.get("kind")), document["rows"]
    found = [
        Gap(_TITLES[part], "not in the results")
        for part in _PARTS[kind]
        if document.get(part) is None and not _may_be_none(document, part)
    ]
    if not rows:
        return [*found, Gap("all figures", "the results hold no rows")]
    measured = [row for row in rows if row.get("reason") is None]
    for field, title in _EVERY[kind].items():
        asked = [row for row in measured if not _has_none(row, field)]
        lacking = sum(not _there(row, field) for row in asked)
        if lacking:
            found.append(Gap(title, f"not in {_of(lacking, len(asked))}"))
    for field, title in _SOME[kind].items():
        if not any(field in row for row in measured):
            found.append(Gap(title, "in none of the rows"))
    found += [Gap(str(row["key"]), str(row["reason"])) for row in rows if row.get("reason") is not None]
    return found


def _may_be_none(document: Document, part: str) -> bool:
    # Without names of classes, and without pictures, results are whole; a key that is not there at all is missing.
    return part in document and part in ("classes", "left_out", "pictures")


def _has_none(row: Row, field: str) -> bool:
    """Whether such a row has no such figure: floats have no length, rows as they are no encoder."""
    if field == "bits":
        return row.get("role") == "ceiling"
    return field == "encode_ms" and row.get("space") == "raw"


def _there(row: Row, field: str) -> bool:
    value = row.get(field)
    return value is not None and (not isinstance(value, Mapping | list) or bool(value))


def _of(some: int, all_of_them: int) -> str:
    if some == all_of_them:
        return "any row" if some > 1 else "the one row"
    return f"{some} of {all_of_them} rows"


def shared(document: Document, row: Row | None, *path: str) -> float | None:
    """The number at `path` of a coding: of the row, or else of another container of the same codes, which ranks alike."""
    if row is None:
        return None
    same = (r for r in document["rows"] if all(r.get(k) == row.get(k) for k in ("method", "space", "bits")))
    return next((value for r in (row, *same) if (value := get(r, *path)) is not None), None)
