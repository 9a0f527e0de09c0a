"""A look at labels that costs a moment: rows whose nearest rows agree on a class, and do not have it themselves."""

from __future__ import annotations

import math

import numpy as np

from ..arrays import Ints
from ..contract import RowStream, drawn_rows, seed_of

NEAREST = 5
QUERIES, ROWS = 2_000, 5_000  # at most
# Of such rows, so many look wrong, for 0, 5, 10, 20 and 40 % of wrong labels: CLINC150 0.01, 0.06, 0.10, 0.23, 0.44; CIFAR-10,
# where classes are hard to tell, 0.09, 0.13, 0.17, 0.24, 0.30.
SHARE = 0.08
MIN_ROWS = 10
RIGHT, ALIKE = 0.04, 100  # so few others, of so many rows, that nothing more need be asked


def disagreement(rows: RowStream, y: Ints, seed: int) -> tuple[int, int]:
    """Rows whose NEAREST rows, by cosine of standardised columns, all have one label; and how many of them have another.

    Counted on a sample of the rows; y (n,).
    """
    x, pool = rows.sample(ROWS, seed)
    n = len(x)
    if n <= NEAREST:
        return 0, 0
    sd = x.std(0, dtype=np.float64)
    x = ((x - x.mean(0, dtype=np.float64)) / np.where(sd > 0, sd, np.inf)).astype(np.float32)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    alike = other = 0
    for queries in np.array_split(drawn_rows(n, QUERIES, seed_of(seed, NEAREST)), -(-min(n, QUERIES) // 500)):
        scores = x[queries] @ x.T
        scores[np.arange(len(queries)), queries] = -np.inf
        near = y[pool[np.argpartition(-scores, NEAREST - 1, axis=1)[:, :NEAREST]]]
        agreed = (near == near[:, :1]).all(1)
        alike += int(agreed.sum())
        other += int((agreed & (near[:, 0] != y[pool[queries]])).sum())
    return alike, other


def looks_wrong(alike: int, other: int) -> bool:
    """Whether the share of the others lies more than a standard error above that of right labels."""
    share = other / max(alike, 1)
    return other >= MIN_ROWS and share - math.sqrt(share * (1 - share) / alike) > SHARE


def looks_right(alike: int, other: int) -> bool:
    """Whether the nearest rows alone tell that few labels are wrong, if any."""
    return alike >= ALIKE and other <= RIGHT * alike
