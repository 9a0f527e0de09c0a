"""Formulas of rankings whose equal scores form ties: NumPy alone, one query at a time.

Short codes tie massively (8 bits give at most 256 distinct scores) and file order must not decide, so every measure is the
expectation over a random order within ties: McSherry and Najork, "Computing information retrieval performance measures
efficiently in the presence of tied scores", ECIR 2008. The cost follows the distinct scores, not the database.

A ranking is `rows` and `relevant`, (u,) int64 each: for every distinct score, best first, the rows with that score, and how many
of them are relevant.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints
from ..errors import DataError

AT_K = (1, 10, 100)
LEVELS = np.linspace(0, 1, 51)  # of recall, in precision-recall curves


def tie_blocks(scores: NDArray[Any], rows: Ints, relevant: Ints) -> tuple[Ints, Ints]:
    """scores, rows, relevant (u,) per distinct code -> (rows, relevant) per distinct score, best (largest) first."""
    order = np.argsort(-scores)  # in whatever order ties stand: they are summed
    s = scores[order]
    first = np.flatnonzero(np.r_[True, s[1:] != s[:-1]]) if len(s) else np.zeros(0, np.int64)
    if not len(s):
        return first, first
    return np.add.reduceat(rows[order], first), np.add.reduceat(relevant[order], first)


def _cut(rows: Ints, relevant: Ints, at: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Rows before each block, rows of each block that stand within rank `at`, relevant rows expected among those."""
    before = np.cumsum(rows) - rows
    inside = np.clip(at - before, 0, rows).astype(np.float64)
    return before.astype(np.float64), inside, inside * relevant / np.maximum(rows, 1)


def average_precision(rows: Any, relevant: Any, at: int | None = None, *, divide_by: str = "found") -> float:
    """AP of one query whose equal scores form blocks, averaged over every order inside a block.

    rows, relevant: (u,) int64, per distinct score, best first: rows with that score, and how many are relevant.
    at: count only ranks 1..at; the sum is then divided by the relevant rows (expected) within them, as SCQ and HashNet
    do, or with divide_by='all' by min(at, all relevant rows).
    Returns a fraction in [0, 1]; 0.0 when nothing is relevant.
    Raises DataError naming the first block with relevant > rows.

    Source: McSherry and Najork, ECIR 2008. Without ties this is the plain definition, divided by all relevant rows.

    >>> average_precision([1, 1], [0, 1])       # the relevant row comes second
    0.5
    >>> average_precision([2], [1])             # both tie: first or second, equally likely
    0.75
    """
    rows, relevant = np.asarray(rows, np.int64), np.asarray(relevant, np.int64)
    if (relevant > rows).any() or (relevant < 0).any():
        block = int(np.argmax((relevant > rows) | (relevant < 0)))
        raise DataError(f"block {block} has {relevant[block]} relevant rows of {rows[block]}")
    total = int(rows.sum())
    at = total if at is None else min(at, total)
    hits = relevant > 0  # blocks without relevant rows add nothing to the sum
    before, inside, expected = _cut(rows, relevant, at)
    found_before = (np.cumsum(relevant) - relevant).astype(np.float64)
    divisor = float(expected.sum()) if divide_by == "found" else float(min(at, int(relevant.sum())))
    if divisor == 0:
        return 0.0
    n, r = rows[hits].astype(np.float64), relevant[hits].astype(np.float64)
    N, R, j = before[hits], found_before[hits], inside[hits]
    # sum_{i=1..j} (r/n) (R + 1 + (i-1)(r-1)/(n-1)) / (N+i), with sum 1/(N+i) = H(N+j) - H(N) and
    # sum (i-1)/(N+i) = j - (N+1) (H(N+j) - H(N)).
    H = _harmonic(total)
    h = H[(N + j).astype(np.int64)] - H[N.astype(np.int64)]
    slope = np.divide(r - 1, n - 1, out=np.zeros_like(n), where=n > 1)
    return float((r / n * ((R + 1) * h + slope * (j - (N + 1) * h))).sum() / divisor)


_harmonic_numbers = np.zeros(1)


def _harmonic(n: int) -> NDArray[np.float64]:
    """H(0..n), kept between calls."""
    global _harmonic_numbers
    table = _harmonic_numbers
    if len(table) <= n:
        table = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, n + 1))])
        _harmonic_numbers = table
    return table


def precision_at(rows: Ints, relevant: Ints, k: int) -> float:
    """Expected share of relevant rows among the first k (of all rows where there are fewer than k)."""
    _, inside, expected = _cut(rows, relevant, k)
    return float(expected.sum() / max(inside.sum(), 1))


def recall_at(rows: Ints, relevant: Ints, k: int) -> float:
    """Expected share of all relevant rows that stand among the first k; 0.0 when nothing is relevant."""
    total = int(relevant.sum())
    return float(_cut(rows, relevant, k)[2].sum() / total) if total else 0.0


def first_hit(before: int, rows: int, relevant: int, at: int) -> NDArray[np.float64]:
    """Where the first relevant row stands, over every order within the tie that the best of them is part of.

    before: rows of better scores; rows: rows of its score, itself included; relevant: how many of these are relevant, 1 or
    more; at: ranks that count. -> (1 + len(AT_K),): the expected reciprocal rank, 0 beyond `at`, and for each k of AT_K the
    probability that a relevant row is among the first k.

    >>> first_hit(1, 2, 1, 100).tolist()        # second or third, equally likely
    [0.41666666666666663, 0.0, 1.0, 1.0]
    """
    reach = max(0, min(at - before, rows))
    if relevant == 1:  # every place is as likely
        H = _harmonic(before + rows)
        reciprocal = float(H[before + reach] - H[before]) / rows
        found = [min(max(k - before, 0), rows) / rows for k in AT_K]
    else:
        j = np.arange(min(rows - relevant + 1, max(reach, AT_K[-1])))
        # The probability that the first hit stands behind the j-th place.
        late = np.concatenate([[1.0], np.cumprod((rows - relevant - j) / (rows - j))])
        place = slice(0, min(reach, len(j)))
        reciprocal = float((-np.diff(late)[place] / (before + 1 + j[place])).sum())
        found = [1 - late[min(max(k - before, 0), len(j))] for k in AT_K]
    return np.array([reciprocal, *found])


def kth_score(scores: NDArray[np.float32], rows: Ints, k: int) -> float:
    """The k-th best score of the rows, or the last where there are fewer; scores (u,) of words that `rows` (u,) rows have."""
    best = np.argpartition(-scores, min(k, len(scores)) - 1)[:k]  # every word has a row: k words hold the first k rows
    best = best[np.argsort(-scores[best])]
    place = int(np.searchsorted(np.cumsum(rows[best]), k))
    return float(scores[best[min(place, len(best) - 1)]])


def precision_at_levels(rows: Ints, relevant: Ints) -> NDArray[np.float64]:
    """Precision where the recall reaches each of LEVELS, the first relevant row at the least; zeros where nothing is relevant.

    rows, relevant: (u,) per distinct score, best first. The first level is the expectation over every order within ties; from
    there on relevant rows are taken to stand evenly within their tie.
    """
    N, R = np.concatenate([[0.0], np.cumsum(rows)]), np.concatenate([[0.0], np.cumsum(relevant)])
    if not R[-1]:
        return np.zeros(len(LEVELS))
    # One relevant row at the least: recall 0 has no precision of its own. Rounding must not ask for the row behind a whole one.
    wanted = np.maximum(1.0, (LEVELS * R[-1]).round(6))
    keep = np.concatenate(
        [[True], relevant > 0]
    )  # a block without relevant rows ends where the next begins to give any
    starts = np.concatenate([[0.0], N[:-1][keep[1:]]])
    ends, found = N[keep], R[keep]
    block = np.searchsorted(found, wanted, side="left")
    before, inside = found[block - 1], (wanted - found[block - 1]) / (found[block] - found[block - 1])
    places = starts[block] + inside * (ends[block] - starts[block])
    precision = np.asarray((before + inside * (found[block] - before)) / places)
    first = int(np.argmax(relevant > 0))
    precision[wanted == 1] = first_hit(int(N[first]), int(rows[first]), int(relevant[first]), int(N[-1]))[0]
    return precision
