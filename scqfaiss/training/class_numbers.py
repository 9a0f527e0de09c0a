"""The classes that a training tells apart: those its rows have, numbered from 0 without gaps, so that a class without rows
costs nothing. Models keep the numbers that the rows came with.
"""

from __future__ import annotations

import numpy as np

from ..arrays import Ints, Labels
from ..errors import ConfigError, DataError, printable, warn
from ..model import Model

NAMED = 5  # classes that a message names


def trained(labels: Labels, name: str) -> Labels:
    """Labels by the classes that occur. Says which of those that were declared, by name or as a column, do not."""
    counts = labels.counts()
    present = np.flatnonzero(counts)
    if len(labels) < labels.C and not labels.multilabel and counts.max() == 1:
        warn(
            f"{name}: every row has a class of its own, numbered up to {labels.C - 1:,}; are the labels class numbers?"
        )
    if len(present) in (0, labels.C):
        return labels
    if labels.class_names or labels.multilabel:
        missing = [labels.class_name(int(c)) for c in np.flatnonzero(counts == 0)[:NAMED]]
        warn(f"{labels.C - len(present)} of {labels.C} classes have no rows ({', '.join(missing)})")
    return labels.among(present)


def of_start(labels: Labels, start: Model, name: str) -> Labels:
    """Labels by the classes of a trained model. Raises ConfigError on one that it does not know."""
    numbers = np.asarray(start.config.get("classes", range(start.config.get("C", 0))), np.int64)
    if not len(numbers) or ("classes" not in start.config and len(numbers) == labels.C):
        return labels
    unknown = np.setdiff1d(np.flatnonzero(labels.counts()), numbers)
    if len(unknown):
        raise ConfigError(
            f"{name}: the model to start from was not trained on class {_listed(labels, unknown)}; leave such images out"
        )
    return labels.among(numbers)


def of_validation(theirs: Labels, labels: Labels, name: str) -> tuple[Labels, Ints | None]:
    """Labels of validation rows by the classes of the training rows, and which rows these are (None: all).

    No training row tells what a row of any other class should look like: such rows are left out, or such labels of many a
    row, with a warning. Raises DataError where no row is left.
    """
    numbers = np.arange(labels.C) if labels.numbers is None else labels.numbers
    found = theirs.among(numbers)
    strange = np.setdiff1d(np.flatnonzero(theirs.counts()), numbers)
    if not len(strange):
        return found, None
    what = f"classes that no training row has ({_listed(theirs, strange)})"
    if theirs.multilabel:
        warn(
            f"{name}: left out labels of {what}, of {int(theirs.y[:, strange].any(1).sum()):,} of {len(theirs):,} rows"
        )
        return found, None
    known = np.flatnonzero(found.y >= 0)
    if not len(known):
        raise DataError(f"{name}: all {len(theirs):,} rows are of {what}, validation needs rows of the others")
    warn(f"{name}: left out {len(theirs) - len(known):,} of {len(theirs):,} rows, of {what}")
    return found.take(known), known


def described(labels: Labels | None) -> str:
    """How many classes there are, and their numbers where these have gaps."""
    if labels is None or labels.numbers is None:
        return str(labels.C if labels else 0)
    return f"{labels.C}, numbered {labels.numbers[0]:,} to {labels.numbers[-1]:,}"


def _listed(labels: Labels, numbers: Ints) -> str:
    names = [printable(labels.class_name(int(c))) for c in numbers[:NAMED]]
    return ", ".join(names) + (", ..." if len(numbers) > NAMED else "")
