"""Optimal scalar quantizers: the fixed points of Lloyd's iteration, reached by Anderson's mixing of its last steps.

Lloyd, "Least squares quantization in PCM", IEEE Trans. Inf. Theory 28(2), 1982: levels g are optimal only where each is the
mean of its cell, g = G(g). Iterating g <- G(g) gets there, but for K levels in about K^2 steps. Anderson, "Iterative procedures
for nonlinear integral equations", J. ACM 12(4), 1965, takes the last m + 1 steps together and goes where their mixture would
not move any more:

    f_i = G(g_i) - g_i;  theta = argmin ||f_n - dF theta||^2;  g_{n+1} = G(g_n) - dG theta

with dF, dG the differences of consecutive f and G(g). On quantization grids: Bormetti, Callegaro, Livieri, Pallavicini, arXiv
1511.00848; Rudd, McWalter, Kienitz, Platen, arXiv 2006.15823.

It pays in one dimension, where cells are intervals and a step costs O(K) or O(K log n). k-means of longer sub-vectors has many
optima, and more is won there by a better start.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, DataError

Array = NDArray[np.float64]
LARGEST = 1e150  # magnitude of a sample
# levels g (K,), increasing -> (G(g) (K,), distortion of g: the mean squared error of x coded by its nearest level)
Step = Callable[[Array], tuple[Array, float]]

MEMORY = 5  # steps that are mixed
RIDGE = 1e-12  # of the trace: the steps grow parallel towards the end
LIMIT = 100_000  # iterations


@dataclass(frozen=True)
class Grid:
    """Levels (K,) float64, ascending, and how they were reached."""

    levels: Array
    iterations: int  # evaluations of G
    distortion: float  # mean squared error
    converged: bool  # within the tolerance, not at the limit of iterations


def iterate(step: Step, start: Array, tolerance: float, memory: int = MEMORY, limit: int = LIMIT) -> Grid:
    """The fixed point of `step` from the levels `start` (K,), increasing. memory=0 is Lloyd's own iteration.

    Ends where no level moves by more than `tolerance`, or once `limit` evaluations of `step` are spent. Mixed levels must
    increase and must lower the distortion, which plain steps never raise: else the plain step is taken, and the memory
    cleared. Where `step` depends on assignments alone, tolerance=0 ends when a plain step changes none of them.
    """
    g = start
    image, distortion = step(g)
    count, past = 1, [(image - g, image)]
    while np.abs(image - g).max() > tolerance and count < limit:
        better = None
        if len(past) > 1:
            mixed = mixture(past)
            if (np.diff(mixed) > 0).all():
                found = step(mixed)
                count += 1
                better = found if found[1] < distortion else None
            if better is None:
                past = []
        if better is not None:
            g, (image, distortion) = mixed, better
        else:
            g = image
            image, distortion = step(g)
            count += 1
        past = [*past, (image - g, image)][-memory - 1 :]
    return Grid(g, count, distortion, bool(np.abs(image - g).max() <= tolerance))


def mixture(past: list[tuple[Array, Array]]) -> Array:
    """G(g_n) - dG theta, from (f, G(g)) of the last levels; theta: the least-squares weights of dF against f_n."""
    f, images = (np.stack(parts) for parts in zip(*past))
    dF, dG = np.diff(f, axis=0), np.diff(images, axis=0)  # m K
    A = dF @ dF.T
    A[np.diag_indices(len(A))] += max(RIDGE * np.trace(A), np.finfo(np.float64).tiny)
    mixed: Array = images[-1] - np.linalg.solve(A, dF @ f[-1]) @ dG
    return mixed


def _checked_start(start: ArrayLike, K: int) -> Array:
    g = np.array(start, np.float64)
    if g.shape != (K,) or not (np.isfinite(g).all() and (np.diff(g) > 0).all()):
        raise ConfigError(f"start of the levels has shape {g.shape}, needs {K} finite numbers that increase")
    return g


# --------------------------------------------------------------------------------------------------------------- N(0, 1)
def normal_levels(
    K: int, *, start: ArrayLike | None = None, tolerance: float = 1e-8, memory: int = MEMORY, limit: int = LIMIT
) -> Grid:
    """The optimal quantizer of N(0, 1) with K levels, to `tolerance` in max |G(g) - g|.

    start (K,), increasing: default, quantiles of N(0, 3), whose density is the cube root of N(0, 1)'s: for many levels the
    optimal one (Panter and Dite, Proc. IRE 39, 1951).
    Raises: ConfigError for K below 1 or a start that does not fit.

    >>> normal_levels(2).levels.round(6)  # the mean of a half: sqrt(2 / pi)
    array([-0.797885,  0.797885])
    """
    if K < 1:
        raise ConfigError(f"K is {K} levels, needs 1 or more")
    if start is None:
        g = math.sqrt(3) * torch.special.ndtri((torch.arange(K, dtype=torch.float64) + 0.5) / K).numpy()
    else:
        g = _checked_start(start, K)
    return iterate(_normal_step, g, tolerance, memory, limit)


def _normal_step(g: Array) -> tuple[Array, float]:
    """G(g)_j = (phi(t_{j-1}) - phi(t_j)) / (Phi(t_j) - Phi(t_{j-1})), t midway between levels."""
    t = np.concatenate([[-np.inf], (g[1:] + g[:-1]) / 2, [np.inf]])
    side = np.where(g > 0, 1.0, -1.0)  # cells right of 0 are mirrored: small masses, not differences near 1
    ends = np.where(side > 0, (-t[1:], -t[:-1]), (t[:-1], t[1:]))  # low and high, at most one of them right of 0
    Phi = torch.special.erfc(torch.from_numpy(ends) / -math.sqrt(2)).numpy() / 2
    phi = np.exp(-np.square(ends) / 2) / math.sqrt(2 * math.pi)
    mass = Phi[1] - Phi[0]
    mean = np.divide(side * (phi[1] - phi[0]), mass, out=g.copy(), where=mass > 0)  # no mass left: the level stays
    return mean, float(1 + (mass * g * (g - 2 * mean)).sum())


# --------------------------------------------------------------------------------------------------------------- samples
def scalar_levels(
    x: ArrayLike, K: int, *, start: ArrayLike | None = None, memory: int = MEMORY, limit: int = LIMIT
) -> Grid:
    """k-means in one dimension: K levels for the samples x (n,), to where a plain step changes no assignment.

    Samples midway between two levels belong to the lower one. Sorted once and summed up, a step costs O(K log n). A cell
    without samples keeps its level; where samples have K distinct values or fewer, these are the levels, the last of them
    repeated; one level is the mean. start (K,), increasing: default, by the density of the samples.
    Raises: DataError for no samples or a value that is not finite, ConfigError for K below 1 or a start that does not fit.

    >>> scalar_levels([0, 1, 1, 1, 10, 12], 2).levels
    array([ 0.75, 11.  ])
    """
    values = np.asarray(x, np.float64).ravel()
    if K < 1:
        raise ConfigError(f"K is {K} levels, needs 1 or more")
    if not len(values):
        raise DataError("no samples, levels need at least 1")
    finite = np.isfinite(values)
    if not finite.all():
        bad = int(np.argmin(finite))
        raise DataError(f"sample {bad:,} is {values[bad]} ({int((~finite).sum()):,} of {len(values):,} are not finite)")
    if np.abs(values).max() > LARGEST:
        raise DataError(
            f"samples run up to {np.abs(values).max():g}, whose square is not finite; needs {LARGEST:g} or less"
        )
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= K:
        return Grid(np.append(distinct, np.full(K - len(distinct), distinct[-1])), 0, 0.0, True)
    middle = values.mean()  # sums of values around 0 round least
    values = np.repeat(distinct, counts) - middle
    g = by_density(distinct, counts, K) if start is None else _checked_start(start, K)
    fixed = iterate(_Samples(values).step, g - middle, 0.0, memory, limit)
    levels = fixed.levels
    # Once more without the sums, whose difference loses digits where clusters are small and far apart.
    error = values - levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, values)]
    return Grid(levels + middle, fixed.iterations, float(np.square(error).mean()), fixed.converged)


def by_density(values: Array, counts: NDArray[np.int64], K: int) -> Array:
    """K of more than K distinct values (u,), increasing, where the cube root of their density says that levels should lie.

    Source: Panter and Dite, Proc. IRE 39, 1951. The density between two neighbours is their count over their distance.
    """
    mass = np.cbrt((counts[1:] + counts[:-1]) / 2 * np.square(np.diff(values)))  # of density^(1/3), for each gap
    place = np.concatenate([[0.0], np.cumsum(mass)])
    at = np.searchsorted(place, (np.arange(K) + 0.5) / K * place[-1])
    steps = np.arange(K)
    at = np.maximum.accumulate(at - steps) + steps  # each value once: a wide gap draws several levels to its end
    at = np.minimum(at, len(values) - K + steps)
    chosen: Array = values[at]
    return chosen


class _Samples:
    """Lloyd's step on samples x (n,), sorted."""

    def __init__(self, x: Array) -> None:
        self.x = x
        self.sums = np.concatenate([[0.0], np.cumsum(x)])
        self.energy = float(np.square(x).sum())

    def step(self, g: Array) -> tuple[Array, float]:
        n = len(self.x)
        ends = np.searchsorted(self.x, (g[1:] + g[:-1]) / 2, side="right")
        low, high = np.append(0, ends), np.append(ends, n)
        count, total = high - low, self.sums[high] - self.sums[low]
        # Within the cell, whatever the rounding of the sums: so levels stay in order.
        mean = np.clip(total / np.maximum(count, 1), self.x[np.minimum(low, n - 1)], self.x[np.maximum(high, 1) - 1])
        distortion = (self.energy + float((g * (g * count - 2 * total)).sum())) / n
        return np.where(count > 0, mean, g), distortion
