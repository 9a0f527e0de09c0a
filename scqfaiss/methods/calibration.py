"""The temperature of a classifier, fitted on rows that it was not trained on.

Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks", ICML 2017.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from ..arrays import Ints, Labels
from .folds import shuffled

EPSILON = 0.03  # what kappa leaves to the wrong classes at best


def default_kappa(C: int, epsilon: float = EPSILON) -> float:
    """Inverse temperature that lets p reach 1 - epsilon for the right class: ((C-1)/C) ln((C-1) (1-epsilon)/epsilon)."""
    return (C - 1) / C * math.log((C - 1) * (1 - epsilon) / epsilon)


def held_out(labels: Labels, share: float, seed: int) -> Ints:
    """A stratified share of the rows; classes with one row stay in training. -> row numbers, sorted."""
    rng = np.random.default_rng(seed)
    one = labels.y if not labels.multilabel else labels.y.argmax(1)  # stratified by a row's first label
    order, place, counts = shuffled(one, labels.C, rng)
    take = np.where(counts > 1, np.floor(counts * share + rng.random(labels.C)), 0)
    take = np.minimum(take, counts - 1)
    return np.sort(order[place < np.repeat(take, counts)])


def fit_kappa(
    cosines: Tensor, targets: Tensor, kappa: float, prior: Tensor | float = 0.0
) -> tuple[float, float, float]:
    """Inverse temperature that minimises the NLL of the mean over e of softmax(kappa cos + prior).

    By golden section on log kappa. cosines (E, h, C); targets (h, C), summing to 1; prior (C,). -> (kappa, NLL before, NLL
    after); never worse than it was.
    """

    def nll(log_kappa: float) -> float:
        log_p = (math.exp(log_kappa) * cosines + prior).log_softmax(2).logsumexp(0) - math.log(len(cosines))
        return float(-(targets * log_p).sum(1).mean())

    low, high = math.log(kappa) - 3, math.log(kappa) + 3
    golden = (math.sqrt(5) - 1) / 2
    a, b = high - golden * (high - low), low + golden * (high - low)
    fa, fb = nll(a), nll(b)
    while high - low > 1e-4:  # for one member NLL is convex in kappa, hence has one minimum in log kappa
        if fa < fb:
            high, b, fb = b, a, fa
            a = high - golden * (high - low)
            fa = nll(a)
        else:
            low, a, fa = a, b, fb
            b = low + golden * (high - low)
            fb = nll(b)
    before, best = nll(math.log(kappa)), (low + high) / 2
    return (math.exp(best), before, nll(best)) if nll(best) < before else (kappa, before, before)
