"""Which column of a table is what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ..errors import DataError, printable, warn
from .numbers import is_list, is_number, storage_type

# The names that columns have where nobody names them; of several names of one thing a table may have one.
FEATURES, LABELS, IDS = ("embedding", "embeddings", "features"), ("label", "labels"), ("id", "ids")
LISTED = 8  # columns that a message names


@dataclass(frozen=True)
class Columns:
    """The columns of a table by what they are: one of lists of numbers, or several of numbers, are the features."""

    features: tuple[str, ...]
    labels: str | None
    ids: str | None

    @property
    def features_name(self) -> str:
        first, last = printable(self.features[0]), printable(self.features[-1])
        return first if len(self.features) == 1 else f"columns {first} to {last}"


def choose(
    schema: Any,
    name: str,
    features: str | None = None,
    labels: str | None = None,
    ids: str | None = None,
    *,
    any_labels: bool = False,
    any_ids: bool = False,
) -> Columns:
    """The columns of a schema of Arrow. features: a name, several with commas between, or a pattern such as 'f*'.

    any_labels, any_ids: the columns that are usually called so, if there are any, where no name is given. Without a name of
    features these are `embedding`, `embeddings` or `features`, else the only column of lists of numbers, else all columns of
    floats, with a warning. Raises DataError where there are none, two to choose from, or none of that name.
    """
    twice = next((word for word in schema.names if schema.names.count(word) > 1), None)
    label = _one(schema, labels, LABELS if any_labels else (), name, "--labels-key")
    id_ = _one(schema, ids, IDS if any_ids else (), name, "--ids-key")
    if features is not None:
        found = _named(schema, features, name)
    else:
        usual = _one(schema, None, FEATURES, name, "--features-key")
        found = (usual,) if usual is not None else _guessed(schema, name, {label, id_})
    if twice is not None and twice in (*found, label, id_):
        raise DataError(f"{name} has column '{printable(twice)}' twice; give each its own name")
    return Columns(found, label, id_)


def _one(schema: Any, key: str | None, usual: Iterable[str], name: str, option: str) -> str | None:
    if key is not None:
        if key not in schema.names:
            raise DataError(f"{name} has no column '{printable(key)}'; {listing(schema)}; choose with {option}")
        return key
    here = [word for word in usual if word in schema.names]
    if len(here) > 1:
        raise DataError(f"{name} has columns '{here[0]}' and '{here[1]}'; choose with {option}")
    return here[0] if here else None


def _named(schema: Any, key: str, name: str) -> tuple[str, ...]:
    if key in schema.names:
        return (key,)
    found: list[str] = []
    for part in key.split(","):
        here = [word for word in schema.names if word == part or fnmatchcase(word, part)]
        if not here:
            raise DataError(f"{name} has no column '{printable(part)}'; {listing(schema)}; choose with --features-key")
        found += [word for word in here if word not in found]
    return tuple(found)


def _guessed(schema: Any, name: str, taken: set[str | None]) -> tuple[str, ...]:
    import pyarrow

    fields = [field for field in schema if field.name not in taken]
    lists = [f.name for f in fields if is_list(f.type) and is_number(storage_type(f.type).value_type)]
    if len(lists) == 1:
        return (lists[0],)
    floats = tuple(f.name for f in fields if pyarrow.types.is_floating(f.type))
    if lists or not floats:
        raise DataError(f"{name} has no column 'embedding'; {listing(schema)}; choose with --features-key")
    if len(floats) < len(fields):  # some are passed over
        warn(f"{name}: no column of lists; features are its {len(floats)} columns of floats, {_first(floats)}")
    return floats


def _first(names: tuple[str, ...]) -> str:
    shown = [printable(word[:40]) for word in names[:LISTED]]
    return ", ".join(shown) + (", ..." if len(names) > LISTED else "")


def listing(schema: Any) -> str:
    """The columns, as a message names them."""
    if not len(schema):
        return "it holds no column"
    shown = [f"{printable(field.name[:40])} ({printable(str(field.type)[:40])})" for field in list(schema)[:LISTED]]
    return f"it holds {', '.join(shown)}{' and more' if len(schema) > LISTED else ''}"
