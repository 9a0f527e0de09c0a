"""Rows of new classes teach a trained classifier's heads to tell these apart too: every number that was there stays as it is.

A head that sees new classes alone would call everything new. The rows of the old classes are gone, but the classifier tells
what they looked like: a row of class c is the one nearest to the mean of all that makes the heads sure of c. On CLINC150
(120 classes, 30 new) it points where the mean of the class's own rows does, at a cosine of 0.85. Around such rows stand the
deviations that the new rows have from the means of their classes.

i dimension of a row (d_in)   e head (E)   c old class (C)   k new class (N)   w width of a head   b row of a batch
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..arrays import Floats
from ..contract import Progress, silent
from ..encoders.chain import Chain
from ..encoders.torch_chain import TorchChain

STEPS, BATCH = 400, 320  # of the new heads; a batch holds new and old rows
LEAST_NEW = 16  # rows of new classes in a batch, which count as many as their classes do
LR, DECAY = 4e-3, 1.0  # as those of the feature stage
INPUT_DROPOUT, DROPOUT = 0.2, 0.5  # as those of the mlp
TYPICAL_STEPS, TYPICAL_LR = 150, 0.4  # steps in standard deviations
ALONE = 2.0  # times the way that gradients lead, where a single new class cannot tell how far the others lie


@dataclass(frozen=True, eq=False)
class Classifier:
    """What a calibrated model does before its softmax: rows to hidden units `front`, and heads A (E, C, w), b (E, C)."""

    front: Chain
    A: NDArray[np.float32]
    b: NDArray[np.float32]
    kappa: float = 1.0  # logits are those of training times kappa


def learn(
    classifier: Classifier, x: Floats, y: NDArray[np.int64], N: int, seed: int, progress: Progress = silent
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """x (n, d_in) rows of new classes y (n,) 0..N-1, two or more of each -> their A (E, N, w) and b (E, N)."""
    generator = torch.Generator().manual_seed(seed)
    front = TorchChain(classifier.front)
    kappa = classifier.kappa
    old = torch.from_numpy(classifier.A) / kappa, torch.from_numpy(classifier.b) / kappa
    rows, classes = torch.from_numpy(x), torch.from_numpy(y)
    means = torch.zeros(N, x.shape[1]).index_add_(0, classes, rows) / torch.bincount(classes, minlength=N)[:, None]
    counts = torch.bincount(classes, minlength=N)[classes, None].float()
    deviations = (rows - means[classes]) * (counts / (counts - 1)).sqrt()
    progress("old classes", 0, 1, "")
    typical = typical_rows(front, old, rows, means)
    E, C, w = classifier.A.shape
    share = N / (C + N)
    n_new = max(LEAST_NEW, round(BATCH * share))
    n_old = BATCH - n_new
    A, b = torch.zeros(E, N, w, requires_grad=True), torch.zeros(E, 1, N, requires_grad=True)
    optimizer = torch.optim.AdamW([A, b], LR, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, STEPS, pct_start=0.1)
    weights = torch.cat([torch.full((n_new,), share / n_new), torch.full((n_old,), (1 - share) / n_old)])
    middle = rows.mean(0)
    for step in range(STEPS):
        drawn = torch.randint(len(rows), (n_new,), generator=generator)
        of = torch.randint(C, (n_old,), generator=generator)
        around = deviations[torch.randint(len(rows), (n_old,), generator=generator)]
        batch = torch.cat([rows[drawn], typical[of] + around])
        target = torch.cat([C + classes[drawn], of])
        with torch.no_grad():
            # Noise as in the training: dropped inputs count as the mean.
            noisy = torch.where(torch.rand(batch.shape, generator=generator) < INPUT_DROPOUT, middle, batch)
            hidden = front(noisy).unflatten(1, (E, w)).transpose(0, 1)
            hidden = hidden * (torch.rand(hidden.shape, generator=generator) >= DROPOUT) / (1 - DROPOUT)
            known = hidden @ old[0].mT + old[1][:, None]
        logits = torch.cat([known, hidden @ A.mT + b], 2)  # e b (c k)
        loss = F.cross_entropy(logits.flatten(0, 1), target.repeat(E), reduction="none")
        optimizer.zero_grad()
        (loss * weights.repeat(E)).sum().backward()
        optimizer.step()
        schedule.step()
        progress("new classes", step + 1, STEPS, "")
    return (kappa * A).detach().numpy(), (kappa * b[:, 0]).detach().numpy()


def typical_rows(front: TorchChain, heads: tuple[Tensor, Tensor], rows: Tensor, means: Tensor) -> Tensor:
    """A row of every class of the heads, (C, d_in): the nearest to the mean of `rows` of which the heads are sure.

    Distances are in standard deviations of `rows`. Two classes or more with `means` tell how far from the mean of all those of
    a class lie, and so far the rows are moved along their way; gradients alone stop at 0.6 of it.
    """
    A, b = heads
    E, C, w = A.shape
    middle, spread = rows.mean(0), rows.std(0)
    moved = torch.zeros(C, rows.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([moved], TYPICAL_LR)
    target = torch.arange(C).repeat(E)
    for _ in range(TYPICAL_STEPS):
        hidden = front(middle + moved * spread).unflatten(1, (E, w)).transpose(0, 1)
        unsure = F.cross_entropy((hidden @ A.mT + b[:, None]).flatten(0, 1), target, reduction="sum") / E
        optimizer.zero_grad()
        (unsure + moved.square().mean(1).sum()).backward()
        optimizer.step()
    way = ALONE * moved.detach()
    if len(means) > 1:
        far = (means - middle) / torch.where(spread > 0, spread, 1)
        length = far.norm(dim=1).mean() * (len(means) / (len(means) - 1)) ** 0.5
        way = way * (length / way.norm(dim=1, keepdim=True).clamp_min(1e-12))
    return middle + way * spread
