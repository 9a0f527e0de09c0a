"""Rows whose squares leave float32, brought near 1 by powers of two: that changes no digit, and no ranking."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Floats, Ints

ORDINARY = (2.0**-40, 2.0**40)  # of such numbers squares, products and their sums are far from either end of float32


def exponent(x: NDArray[Any]) -> int:
    """The power of two next above the largest number of x, or 0 where x is ordinary or zero."""
    peak = max(abs(float(x.max(initial=0))), abs(float(x.min(initial=0))))
    return 0 if peak == 0 or ORDINARY[0] <= peak <= ORDINARY[1] else int(np.frexp(peak)[1])


def exponents(x: Floats) -> Ints | None:
    """(n,) the same for each row of x (n, d); None where all are 0, as they nearly always are."""
    peak = np.maximum(x.max(1, initial=0), -x.min(1, initial=0))
    odd = ((peak < ORDINARY[0]) & (peak > 0)) | (peak > ORDINARY[1])
    return np.where(odd, np.frexp(peak)[1], 0).astype(np.int64) if odd.any() else None


def times(x: Floats, powers: Any) -> Floats:
    """x times 2^powers, which has one number for all of x or one for each of its rows. Overflow gives infinity."""
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(x, np.reshape(powers, (-1, *[1] * (x.ndim - 1))) if np.ndim(powers) else powers)


def balanced(x: Floats) -> Floats:
    """x (n, d) with each row that is not ordinary times a power of two of its own: directions stay."""
    e = exponents(x)
    return x if e is None else times(x, -e)
