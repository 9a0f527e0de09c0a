"""What a check of rows works with, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..arrays import Floats, Ints, Labels
from ..training.out_of_fold import Opinion

NO_CLASS = -1


@dataclass(frozen=True)
class Look:
    """What one pass over a file found, of its finite rows. digests (n, 2): equal where rows are equal; bad_ids: of the others."""

    name: str
    d: int
    ids: Ints  # (n,)
    labels: Labels | None
    digests: NDArray[np.uint64]
    norms: Floats  # (n,)
    low: Floats  # (d,), of each column
    high: Floats
    sd: Floats
    bad_ids: Ints
    bad_digests: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Checked:
    """The rows to train on, the other files, and a function that has classifiers judge the labels."""

    rows: Look
    others: Sequence[Look]
    judge: Callable[[], Opinion]


@dataclass(frozen=True)
class Finding:
    """One thing that stands in the way. rows (k,): row numbers that a training should leave out, none where that is no help;
    seems (k,): the class that each seems to be, NO_CLASS where that is not known; given and top (k,): its probability, and that
    of the label.
    """

    count: int
    text: str
    advice: str = ""
    rows: Ints | None = None
    seems: Ints | None = None
    given: Floats | None = None
    top: Floats | None = None


Fault = Callable[[Checked], Sequence[Finding]]


def some(words: Sequence[str], most: int = 5) -> str:
    """The first words of a list."""
    return ", ".join(words[:most]) + (", ..." if len(words) > most else "")
