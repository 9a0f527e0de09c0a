"""Adversarial training in its cheapest form: one step of gradient ascent for half of each batch.

Half of the rows of a batch are moved within a ball of `eps` to where a step of the loss's gradient leads, from a random point
of the ball. Goodfellow, Shlens, Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015; half of each batch after
Kurakin, Goodfellow, Bengio, "Adversarial machine learning at scale", ICLR 2017; the random start and the step's length after
Wong, Rice, Kolter, "Fast is better than free", ICLR 2020.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .spaces import Space

STEP = 1.25  # of eps, before a row is brought back into its ball
SHARE = 0.5  # of a batch's rows; alone, moved rows cost 0.01 of mAP on CLINC150 and gain nothing
SCALE = 4096.0  # of gradients, whose direction alone counts: float16 products would lose small ones

Loss = Callable[[Tensor, Tensor], dict[str, Tensor]]


def hardened(loss: Loss, eps: float, space: Space, seen: Callable[[Tensor], Tensor]) -> Loss:
    """loss: rows or images x (b, ...), row numbers (b,) -> terms, means over the batch. The same with the first half of x
    moved by eps.

    space: of the ball that eps is the size of. seen: what is moved, of x: images as the training sees them.
    """

    def both(x: Tensor, index: Tensor) -> dict[str, Tensor]:
        x = seen(x)
        n = min(len(x), max(2, round(SHARE * len(x))))  # batch normalisation cannot do with one
        moved = worst_of_one_step(loss, x[:n], index[:n], eps, space)
        return loss(torch.cat([moved, x[n:]]), index)

    return both


def worst_of_one_step(loss: Loss, x: Tensor, index: Tensor, eps: float, space: Space) -> Tensor:
    """x (b, ...) -> points within their balls of `eps`, of larger loss."""
    q = space.start(x, eps, None).requires_grad_()
    value = torch.stack([term.sum() for term in loss(q, index).values()]).sum()
    (slope,) = torch.autograd.grad(SCALE * value, q)
    # Where the root of encoders is infinitely steep, at zero, autograd gives NaN: such a number stays where it is.
    return space.moved(q.detach(), slope.nan_to_num(0.0, 0.0, 0.0), x, eps, STEP)
