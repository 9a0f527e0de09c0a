"""The three files of a comparison: read, of one width and one set of classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Floats, Ints, Labels
from ..data import open_rows
from ..data.classes import check_classes
from ..errors import ConfigError, DataError
from ..evaluation.ranking import same_classes
from .options import CompareOptions


@dataclass(frozen=True)
class Rows:
    """One file in memory: x (n, d), labels, ids (n,)."""

    x: Floats
    labels: Labels
    ids: Ints


@dataclass(frozen=True)
class Inputs:
    """All three, and the names of their classes, or None."""

    train: Rows
    query: Rows
    database: Rows
    class_names: tuple[str, ...] | None


def read(path: Path, role: str) -> Rows:
    """All rows of a file with labels. Raises DataError where there are none, or where it holds images."""
    with open_rows(path, role=role) as source:
        if source.labels is None:
            raise DataError(f"{source.name} has no labels, which a comparison needs")
        if source.modality.needs_encoder:
            raise DataError(f"{source.name} holds images; write their features first: scqfaiss features MODEL PICTURES")
        if len(source) == 0:
            raise DataError(f"{source.name} holds 0 rows, a comparison needs some")
        return Rows(source.read(0, len(source)), source.labels, source.ids)


def read_inputs(options: CompareOptions) -> Inputs:
    """The three files. Raises ConfigError where they, or options, do not fit together."""
    train, query, database = options.train, options.query, options.database
    with open_rows(query, role="queries") as q, open_rows(database, role="keys") as b, open_rows(train) as t:
        check_classes(q, b)
        check_classes(t, b)
        for source in (q, t):
            if source.d != b.d:
                raise ConfigError(f"{source.name}: rows have d={source.d}, those of {b.name} d={b.d}")
        for source in (q, b) if options.images is not None else ():
            if not source.has_ids:
                raise ConfigError(f"{source.name} has no ids, by which --images are named")
    parts = {"train": read(train, "any"), "query": read(query, "queries"), "database": read(database, "keys")}
    labels = {name: rows.labels for name, rows in parts.items()}
    if labels["train"].multilabel != labels["database"].multilabel:
        raise ConfigError(f"{train.name} and {database.name} differ in kind: one label a row, and many")
    # Twice with the training rows: only after the queries may the database have names for its numbers.
    for name, path in (("train", train), ("query", query), ("train", train)):
        labels[name], labels["database"] = same_classes(labels[name], labels["database"], path.name, database.name)
    names = labels["database"].class_names
    labels, names = only_classes_that_occur(labels, names)
    train_rows, query_rows, database_rows = (Rows(part.x, labels[name], part.ids) for name, part in parts.items())
    return Inputs(train_rows, query_rows, database_rows, names)


def only_classes_that_occur(labels: dict[str, Labels], names: Any) -> tuple[dict[str, Labels], Any]:
    """The same by the classes that occur in any part alone: a table over 10,000 of which 5 do would be all zeros."""
    used = np.unique(np.concatenate([np.flatnonzero(one.counts()) for one in labels.values()]))
    if len(used) in (0, max(one.C for one in labels.values())):
        return labels, names
    given = next((one.class_names for one in labels.values() if one.class_names is not None), None)
    return {name: one.among(used) for name, one in labels.items()}, tuple(class_name(given, int(c)) for c in used)


def class_name(names: Any, c: int) -> str:
    """The name of a class, or its number as text."""
    return str(c) if names is None else str(names[c])
