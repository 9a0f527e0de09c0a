"""What a search asks for, read from a request: JSON, rows of float32, or images."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..arrays import Floats, Ints
from . import fast_json
from .problems import Problem
from .settings import Settings

KEYS = ("queries", "ids", "k", "allow", "deny", "threshold", "known", "precision", "recall", "probability", "nprobe")
DEFAULT_K = 10
MAX_ID = (1 << 63) - 1


@dataclass(frozen=True, eq=False)
class Asked:
    """One request. Either rows (nq, d), or ids (nq,) of stored vectors to search like. kind: requests of one kind can be searched
    together; filters are of one request alone, and so is `known` of a number for each query.
    """

    k: int = DEFAULT_K
    rows: Floats | None = None
    ids: Ints | None = None
    encoded: bool = False
    allow: Ints | None = None
    deny: Ints | None = None
    threshold: float | None = None
    known: Any = None
    precision: float | None = None
    recall: float | None = None
    probability: bool = False
    nprobe: int | None = None
    kind: tuple[Any, ...] = field(default=())

    @property
    def n(self) -> int:
        return len(self.rows) if self.rows is not None else len(self.ids) if self.ids is not None else 0

    @property
    def ranged(self) -> bool:
        """Whether all hits beyond a threshold are asked for, not the first k."""
        return self.threshold is not None or self.precision is not None or self.recall is not None


def of_json(body: bytes, settings: Settings, d: int) -> Asked:
    """The JSON form. Raises Problem 400 for what is no JSON object, 422 for values out of range."""
    try:
        value = fast_json.read(body)
    except (ValueError, RecursionError) as error:
        at = f" at byte {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise Problem(400, f"the body is no JSON{at}") from None
    if not isinstance(value, dict):
        raise Problem(400, f'the body is a JSON {type(value).__name__}, needs an object such as {{"queries": [[...]]}}')
    unknown = sorted(set(value) - set(KEYS))
    if unknown:
        raise Problem(422, f"unknown key {unknown[0][:40]!r}; known are {', '.join(KEYS)}")
    rows, ids = value.pop("queries", None), value.pop("ids", None)
    if (rows is None) == (ids is None):
        raise Problem(422, "give queries (rows of numbers) or ids (of stored vectors), one of them")
    return asked(value, settings, None if rows is None else rows_of(rows, d, settings), ids_of(ids, "ids", settings))


def of_binary(body: bytes, query: Mapping[str, str], settings: Settings, d: int) -> Asked:
    """Rows of float32, little-endian, one after the other; options in the address."""
    if not body or len(body) % (4 * d):
        raise Problem(422, f"the body is {len(body):,} bytes, needs rows of {d} float32, {4 * d:,} bytes each")
    rows = np.frombuffer(body, "<f4").reshape(-1, d)
    return asked(of_address(query), settings, _finite(rows, settings))


def of_address(query: Mapping[str, str]) -> dict[str, Any]:
    """Options as they stand in an address -> as they stand in JSON. Raises Problem 422."""
    found: dict[str, Any] = {}
    for key, text in query.items():
        if key not in KEYS or key in ("queries", "ids", "allow", "deny"):
            raise Problem(422, f"the address has an unknown option {key[:40]!r}")
        try:
            if key in ("k", "nprobe"):
                found[key] = int(text[:20])
            elif key == "probability":
                found[key] = {"true": True, "1": True, "false": False, "0": False}[text.lower()]
            else:
                found[key] = text if key == "known" and text == "auto" else float(text)
        except (ValueError, KeyError):
            raise Problem(422, f"{key} is {text[:40]!r} in the address") from None
    return found


def asked(value: Mapping[str, Any], settings: Settings, rows: Floats | None, ids: Ints | None = None) -> Asked:
    """Options and what is searched for. Raises Problem 422 with the value found and those that are taken."""
    k = _whole(value, "k", 1, settings.most_k, DEFAULT_K)
    if value.keys() <= {"k"}:  # as most do: the rest takes as long as a search
        return Asked(k, rows, ids, kind=(k, rows is None))
    nprobe = _whole(value, "nprobe", 1, 1 << 30, None)
    numbers = {name: _number(value, name) for name in ("threshold", "precision", "recall")}
    for name in ("precision", "recall"):
        if numbers[name] is not None and not 0 < numbers[name] < 1:  # type: ignore[operator]
            raise Problem(422, f"{name} is {numbers[name]:g}, needs a number between 0 and 1")
    given = [name for name, number in numbers.items() if number is not None]
    if len(given) > 1:
        raise Problem(422, f"{' and '.join(given)} are given, needs one of them")
    probability = value.get("probability", False)
    if not isinstance(probability, bool):
        raise Problem(422, f"probability is {str(probability)[:40]}, needs true or false")
    known = _known(value.get("known"), len(rows) if rows is not None else 0 if ids is None else len(ids))
    calibrated = "probability" if probability else given[0] if given and given[0] != "threshold" else None
    if calibrated is not None and known not in (None, "auto"):  # its scores are others than those of the calibration
        raise Problem(422, f'{calibrated} holds where known is "auto", and known is given; leave out one of them')
    allow, deny = (ids_of(value.get(name), name, settings) for name in ("allow", "deny"))
    alone = object() if allow is not None or deny is not None or isinstance(known, list) else None
    kind = (k, nprobe, *numbers.values(), probability, None if isinstance(known, list) else known, rows is None, alone)
    return Asked(
        k, rows, ids, False, allow, deny, known=known, probability=probability, nprobe=nprobe, kind=kind, **numbers
    )


def rows_of(value: Any, d: int, settings: Settings) -> Floats:
    """Rows as JSON has them -> (n, d) float32. Raises Problem 422."""
    if not isinstance(value, list) or not value:
        raise Problem(422, "queries need a list of rows, each a list of numbers")
    if not isinstance(value[0], list):
        value = [value]
    try:
        rows = np.array(value)
        if rows.dtype.kind in "fiu" and rows.shape == (len(value), d):
            with np.errstate(over="ignore"):
                return _finite(rows.astype(np.float32), settings)
    except (ValueError, TypeError, OverflowError):  # rows of several lengths, or numbers that no float holds
        pass
    for i, row in enumerate(value):
        if not isinstance(row, list) or len(row) != d:
            found = f"{len(row)} numbers" if isinstance(row, list) else f"a {type(row).__name__}"
            raise Problem(422, f"query {i} is {found}, needs a list of {d}")
    raise Problem(422, "queries hold something that is no number")


def _finite(rows: Any, settings: Settings) -> Floats:
    if len(rows) > settings.most_queries:
        raise Problem(422, f"{len(rows):,} queries are given, at most {settings.most_queries:,} are taken at a time")
    good = np.isfinite(rows)
    if not good.all():
        raise Problem(
            422,
            f"query {int(np.argmin(good.all(1)))} holds NaN, infinity or a number beyond float32, needs finite numbers",
        )
    return np.asarray(rows, np.float32)


def ids_of(value: Any, name: str, settings: Settings) -> Ints | None:
    """Ids as JSON has them -> (n,) int64, None for None. Raises Problem 422."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(i) is int and 0 <= i <= MAX_ID for i in value):
        raise Problem(422, f"{name} need a list of whole numbers from 0 to {MAX_ID}")
    if name == "ids" and not 1 <= len(value) <= settings.most_queries:
        raise Problem(422, f"{len(value):,} ids are given, needs 1 to {settings.most_queries:,}")
    return np.asarray(value, np.int64)


def _whole(value: Mapping[str, Any], name: str, low: int, high: int, default: Any) -> Any:
    found = value.get(name, default)
    if found is default:
        return default
    if type(found) is not int or not low <= found <= high:
        raise Problem(422, f"{name} is {str(found)[:40]}, needs a whole number from {low} to {high:,}")
    return found


def _number(value: Mapping[str, Any], name: str) -> float | None:
    found = value.get(name)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not abs(found) < 1e300 or math.isnan(found):
        raise Problem(422, f"{name} is {str(found)[:40]}, needs a number")
    return float(found)


def _known(found: Any, n: int) -> Any:
    if found is None or found == "auto":
        return found
    values = found if isinstance(found, list) else [found]
    if isinstance(found, list) and len(found) != n:
        raise Problem(422, f"known holds {len(found)} numbers for {n} queries")
    for v in values:
        if isinstance(v, bool) or not isinstance(v, int | float) or not 0 <= v <= 1:
            raise Problem(422, f'known is {str(v)[:40]}, needs a number from 0 to 1, one for each query, or "auto"')
    return [float(v) for v in found] if isinstance(found, list) else float(found)
