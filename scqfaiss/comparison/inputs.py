"""The three files of a comparison: read, of one width and one set of classes, and the classes that a training leaves out."""

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
from .ranking import carry


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


def unseen_classes(inputs: Inputs, left_out: tuple[str, ...], seed: int) -> tuple[int, ...]:
    """Numbers of the classes left out: of those that stand in all three files by default two, the 2s-th and the next for
    seed s, or none where fewer than 2 would be left.
    """
    train, queries, database = (part.labels for part in (inputs.train, inputs.query, inputs.database))
    names = inputs.class_names
    C = min(train.C, queries.C)
    there = np.flatnonzero((train.counts()[:C] > 0) & (queries.counts()[:C] > 0) & (database.counts()[:C] > 0))
    if not left_out:
        return tuple(sorted({int(there[(2 * seed + i) % len(there)]) for i in (0, 1)})) if len(there) >= 4 else ()
    known = {class_name(names, int(c)): int(c) for c in there}
    for name in left_out:
        if name not in known:
            raise ConfigError(
                f"--left-out names '{name}', classes in all three files are {', '.join(list(known)[:20])}"
            )
    return tuple(sorted({known[name] for name in left_out}))


def without(x: Floats, labels: Labels, left_out: tuple[int, ...]) -> tuple[Floats, Any] | None:
    """Training rows and labels without some classes, those left numbered anew; None where fewer than 2 classes are left."""
    kept_classes = np.setdiff1d(np.arange(labels.C), left_out)
    rows = ~carry(labels, left_out)
    y = labels.y[rows][:, kept_classes] if labels.multilabel else np.searchsorted(kept_classes, labels.y[rows])
    there = y.any(0).sum() if labels.multilabel else len(np.unique(y))
    return (x[rows], y) if there >= 2 else None
