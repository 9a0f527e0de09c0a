"""What a report takes from a results file, and what it finds missing there.

Results files are text that anybody may have edited. What has the wrong kind, or cannot be true, counts as not measured, so that
words, tables and charts meet numbers, names and lists where they look for them, or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..comparison.selection import Document, Row, coding, embedded, get, number

_DEPTH = 8  # results nest 5 deep; what lies deeper than this is none of ours
_NAMES = ("role", "method", "space", "container", "factory", "reason", "target", "what")
_WHOLE = ("bits", "nlist", "nprobe", "refine", "rows", "batch", "pairs")
_HEAD_NAMES = ("name", "written", "command", "how")
_HEAD_LISTS = ("classes", "left_out", "bits", "assumptions")
_HEAD_TABLES = ("machine", "data", "embedding", "gallery", "pictures", "fits", "extrapolation")
# Characters that no name has: controls but tab and line feed, and what turns the direction of the text around a name.
_FOREIGN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

# (least, most) that numbers under a name can be, however deep they lie under it; squares and sums of them stay finite.
_ANY = (-1e30, 1e30)
_SHARE, _COUNT, _TIME, _BYTES = (0, 1), (0, 1e15), (1e-12, 1e15), (0, 1e18)
_BOUNDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("map", "unseen_map", "precision_at_k", "precision_at_10", "label_recall_at_k"), _SHARE),
    **dict.fromkeys(("neighbours", "recall", "precision"), _SHARE),
    **dict.fromkeys(("ms", "encode_ms", "single_ms", "open_ms"), _TIME),
    **dict.fromkeys(("seconds", "build_seconds"), (0, 1e12)),
    **dict.fromkeys(("bytes", "memory", "disk"), _BYTES),
    **dict.fromkeys(("rows", "d", "at", "sweep_at", "batch", "pairs"), (1, 1e15)),
    **dict.fromkeys(("nlist", "nprobe", "refine", "usage", "distinct", "distinct_codes"), _COUNT),
    **dict.fromkeys(("ours_rows_per_s", "plain_rows_per_s"), _COUNT),
    **dict.fromkeys(("ratio", "ratio_low", "ratio_high"), (1e-9, 1e9)),
    "bits": (1, 1 << 20),
    "mse": (0, 1e30),
    "exponent": (-5, 5),
    "factor": (0, 1e30),
}


@dataclass(frozen=True)
class Gap:
    """A part that the results lack. title: what; reason: why, or where it lacks."""

    title: str
    reason: str


def sound(document: Document) -> dict[str, Any]:
    """A copy of a document of `results.read_results` in which every part has its kind and can be true, or is None.

    Parts of its data, and operating points, are objects; classes are text; lengths and other counts are whole.
    """
    found: dict[str, Any] = _plain({part: value for part, value in document.items() if part != "rows"})
    found["rows"] = rows = [_plain(row) for row in document["rows"]]
    for row in rows:
        _keep(row, _NAMES, str)
        for name in _WHOLE:
            if name in row:
                value = number(row[name])
                row[name] = int(value) if value is not None and value.is_integer() else None
        _keep(row, ("points",), list)
        if row.get("points"):
            row["points"] = [point for point in row["points"] if isinstance(point, dict)]
    _keep(found, _HEAD_NAMES, str)
    _keep(found, _HEAD_LISTS, list)
    _keep(found, _HEAD_TABLES, dict)
    if found.get("classes"):
        found["classes"] = [str(name) for name in found["classes"]]
    if found.get("data"):
        # Some results name a file by its hash alone.
        parts = {part: {"sha256": held} if isinstance(held, str) else held for part, held in found["data"].items()}
        found["data"] = {part: held for part, held in parts.items() if isinstance(held, dict)}
    return found


def _keep(table: dict[str, Any], names: Sequence[str], kind: type) -> None:
    for name in names:
        if name in table and not isinstance(table[name], kind):
            table[name] = None


def clean(text: str) -> str:
    """Text that UTF-8 holds, without controls and without what turns the direction of the text beside it."""
    if text.isascii() and text.isprintable():
        return text
    return _FOREIGN.sub("", text.encode("utf-8", "replace").decode("utf-8"))


def _plain(value: Any, bounds: tuple[float, float] = _ANY, depth: int = 0) -> Any:
    """JSON values with numbers within their bounds, and with clean text."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):  # NaN is within no bounds; whole numbers are those that arrays hold
        return value if bounds[0] <= value <= bounds[1] and (isinstance(value, float) or abs(value) < 1 << 63) else None
    if depth >= _DEPTH:
        return None
    if isinstance(value, list):
        return [_plain(part, bounds, depth + 1) for part in value]
    return {clean(key): _plain(part, _BOUNDS.get(key, bounds), depth + 1) for key, part in value.items()}


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
    "embedding": "whose embedding FAISS codes",
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
        "embedding",
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
    if part == "embedding":
        return not any(_borrowed(row) for row in document["rows"])
    return part in document and part in ("classes", "left_out", "pictures")


def _borrowed(row: Row) -> bool:
    """Whether a row codes, or ranks by, the embedding that a method of ours learned."""
    return row.get("space") == "trained" and row.get("role") in ("baseline", "ceiling")


def _has_none(row: Row, field: str) -> bool:
    """Whether such a row has no such figure of its own: floats have no length, rows as they are no encoder."""
    if field == "bits":
        return row.get("role") == "ceiling"
    if field == "encode_ms":  # that of an embedding stands with the method that learned it
        return row.get("space") == "raw" or _borrowed(row)
    if field == "distinct":  # FAISS's own codes hang on their lists: equal ones are not equal vectors
        return str(row.get("target")).startswith("faiss-")
    return field == "unseen_map" and _borrowed(row)  # that embedding has seen all classes


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
    same = (r for r in document["rows"] if coding(r) == coding(row))
    return next((value for r in (row, *same) if (value := get(r, *path)) is not None), None)


def encoding(document: Document, row: Row) -> float | None:
    """ms a query, one thread and 1,000 at a time, of the encoder before a search: 0 for rows as they are, and for floats and
    FAISS's codes of an embedding what the method took that learned it; None where it was not measured.
    """
    if row.get("space") == "raw":
        return 0.0
    path = ("encode_ms", "1000", "one", "p50")
    if _borrowed(row) and (learned := shared(document, embedded(document), *path)) is not None:
        return learned
    return shared(document, row, *path)
