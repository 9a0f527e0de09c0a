"""Which rows a supervised method trains on."""

from __future__ import annotations

import numpy as np

from ..arrays import Ints, Labels
from ..errors import DataError, warn


def labelled_rows(labels: Labels, method: str, unlabeled: str) -> Ints | None:
    """Rows to train on (None: all), after the checks on labels that every supervised method shares.

    Raises DataError for one class alone and for rows without any label unless unlabeled='drop'.
    """
    rows = None
    if labels.multilabel:
        empty = np.flatnonzero(labels.y.sum(1) == 0)
        if len(empty):
            if unlabeled != "drop":
                raise DataError(
                    f"labels: row {empty[0]:,} has no label ({len(empty):,} of {len(labels):,} rows); "
                    "--set unlabeled=drop trains without them"
                )
            warn(f"left out {len(empty):,} of {len(labels):,} rows that have no label")
            rows = np.flatnonzero(labels.y.sum(1) > 0)
    present = np.flatnonzero(labels.counts())
    if len(present) < 2:
        name = f" ('{labels.class_name(int(present[0]))}')" if len(present) else ""
        signs = (
            "; a label of -1 says that a row has none: write classes -1 and 1 as 0 and 1" if name == " ('1')" else ""
        )
        raise DataError(f"{method} needs at least 2 classes, found {len(present)}{name}{signs}")
    if len(present) < labels.C:
        missing = [labels.class_name(int(c)) for c in np.flatnonzero(labels.counts() == 0)[:5]]
        warn(f"{labels.C - len(present)} of {labels.C} classes have no rows ({', '.join(missing)})")
    return rows
