"""Results as pictures: SVG for light and dark pages, PNG, and the drawn figures as a table and in words.

`charts` is all there is to call. Whatever a results file lacks comes back as `Missing` with a reason; a part of a wrong
shape counts as lacking.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .codebook_charts import centers, codewords, plane
from .drawing_charts import Chart, Missing, Plan, measured, rendered
from .growth_charts import scale_memory, scale_time, training
from .ranking_charts import map_bits, map_ms, precision_recall

__all__ = ["Chart", "Missing", "charts"]

PICTURES: dict[str, tuple[Callable[[Mapping[str, Any]], Plan | Missing], ...]] = {
    "comparison": (map_bits, map_ms, precision_recall, codewords, centers, plane),
    "scale": (scale_time, scale_memory),
    "training": (training,),
}


NAMED = ("role", "method", "space")  # words of a row


def charts(document: Mapping[str, Any]) -> list[Chart | Missing]:
    """The pictures of results of one kind, in reading order; [] of an unknown kind.

    document: as `results.read_results` returns it, or with any part missing or odd. Same document, same bytes.
    """
    return [part if isinstance(part, Missing) else rendered(part) for part in _plans(document)]


def _plans(document: Mapping[str, Any]) -> list[Plan | Missing]:
    tidy = _tidy(document)
    return [plan(tidy) for plan in PICTURES.get(str(document.get("kind")), ())]


def _tidy(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with rows that are rows, and in them numbers that can be what their names say; else None."""
    held = document.get("rows")
    rows = []
    for i, row in enumerate(held if isinstance(held, list | tuple) else ()):
        if not isinstance(row, Mapping):
            continue
        points = row.get("points")
        rows.append(
            {
                **{field: value for field, value in row.items() if field not in NAMED},
                **{field: str(row[field]) for field in NAMED if row.get(field) is not None},
                "key": str(row.get("key", i)),
                "bits": _whole(row.get("bits")),
                "map": measured(row.get("map"), 0, 1),
                "points": [_point(p) for p in points if isinstance(p, Mapping)]
                if isinstance(points, list | tuple)
                else [],
            }
        )
    classes = document.get("classes")
    data = document.get("data")
    database = data.get("database") if isinstance(data, Mapping) else None
    return {
        **document,
        "rows": rows,
        "classes": [str(c) for c in classes] if isinstance(classes, list | tuple) else None,
        "data": {"database": database if isinstance(database, Mapping) else {}},
    }


def _point(point: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **point,
        "ms": measured(point.get("ms"), 1e-12),
        "map": measured(point.get("map"), 0, 1),
        "recall": measured(point.get("recall"), 0, 1),
    }


def _whole(value: Any) -> int | None:
    number = measured(value, 1, 1 << 20)
    return int(number) if number is not None and number.is_integer() else None
