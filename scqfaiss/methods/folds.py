"""Rows class by class, and dealt into folds, every class spread over all of them."""

from __future__ import annotations

import numpy as np

from ..arrays import Ints


def rank_in_class(y: Ints) -> Ints:
    """How many rows of the same class stand before each row, (n,)."""
    order = np.argsort(y, kind="stable")
    first = np.searchsorted(y[order], y[order])
    rank = np.empty(len(y), np.int64)
    rank[order] = np.arange(len(y)) - first
    return rank


def shuffled(y: Ints, C: int, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
    """y (n,) of C classes -> rows (n,) class by class, in random order; their places in the class; rows of each class (C,)."""
    order = rng.permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    return order, rank_in_class(y[order]), np.bincount(y, minlength=C)


def stratified(y: Ints, folds: int, seed: int) -> Ints:
    """y (n,) -> the fold of each row, (n,): rows of a class go round the folds in random order, each class from another one."""
    order = np.random.default_rng(seed).permutation(len(y))
    out = np.empty(len(y), np.int64)
    out[order] = (rank_in_class(y[order]) + y[order]) % folds
    return out
