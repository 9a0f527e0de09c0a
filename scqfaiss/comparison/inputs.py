"""The three files of a comparison: read, of one width and one set of classes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Floats, Ints, Labels
from ..data import Source, keys_for, open_rows
from ..data.classes import check_classes
from ..errors import ConfigError, DataError
from ..evaluation.ranking import same_classes
from .options import CompareOptions

NO_KEYS: Mapping[str, Any] = {}  # files as they are by default
ROLES = {"query": "queries", "database": "keys"}  # of the parts, in a file of pairs


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


def labelled(path: Path, keys: Mapping[str, Any], part: str, role: str | None = None) -> Source:
    """A file of rows with labels, open. keys: arguments of open_rows, see data.keys_for. Raises DataError where it has none."""
    source = open_rows(path, **keys_for(keys, part), role=role)
    try:
        if source.labels is None:
            raise DataError(
                f"{source.name} has no labels, which a comparison needs; name them with --labels-key, or bring them with "
                f"--{part}-labels FILE"
            )
        if source.modality.needs_encoder:
            raise DataError(
                f"{source.name} holds images; write their features first: scqfaiss features IMAGES -o ROWS.h5"
            )
        if len(source) == 0:
            raise DataError(f"{source.name} holds 0 rows, a comparison needs some")
    except BaseException:
        with source:  # closes; a change of the file must not hide the error
            raise
    return source


def label_files(keys: Mapping[str, Any], first: str = "") -> dict[str, Path]:
    """Files of labels among the options for rows, as 'database labels'; first: the part whose labels --labels gives."""
    given = {name: path for name, path in keys.items() if name == "labels_file" or name.endswith("_labels")}
    return {
        f"{name.removesuffix('_labels') if name != 'labels_file' else first} labels": p for name, p in given.items()
    }


def row_facts(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The options for rows that say what is read, where there are any: what makes two runs one, beside the files."""
    given = {
        name: keys[name]
        for name in ("features_key", "labels_key", "ids_key", "scale", "skip_bad_rows")
        if keys.get(name)
    }
    return {"row_options": given} if given else {}


def read_inputs(options: CompareOptions, keys: Mapping[str, Any]) -> Inputs:
    """The three files. keys: arguments of open_rows, see data.keys_for. Raises ConfigError where they, or options, do not fit
    together, DataError where one has no labels.
    """
    train, query, database = options.train, options.query, options.database
    with ExitStack() as stack:
        opened = {
            part: stack.enter_context(labelled(path, keys, part, ROLES.get(part)))
            for part, path in options.inputs.items()
        }
        t, q, b = opened.values()
        check_classes(q, b)
        check_classes(t, b)
        for source in (q, t):
            if source.d != b.d:
                raise ConfigError(f"{source.name}: rows have d={source.d}, those of {b.name} d={b.d}")
        for source in (q, b) if options.images is not None else ():
            if not source.has_ids:
                raise ConfigError(f"{source.name} has no ids, by which --images are named")
        parts = {part: Rows(s.read(0, len(s)), s.labels, s.ids) for part, s in opened.items() if s.labels is not None}
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
