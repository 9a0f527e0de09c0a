"""Projected gradient ascent with restarts: the best point within the ball that a few steps find.

Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards deep learning models resistant to adversarial attacks", ICLR 2018.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..methods.spaces import Space
from .twin import gradient


@dataclass(frozen=True)
class Schedule:
    """How an attack climbs. step: a share of eps."""

    steps: int = 5
    step: float = 0.25
    restarts: int = 3


DEFAULT_SCHEDULE = Schedule()


@dataclass(frozen=True)
class Found:
    """queries (b, ...): the best point of each over steps and restarts. value (b,): its J; first (b,): the largest J of the
    random starts. lost: steps that were not taken, because a gradient was not finite.
    """

    queries: Tensor
    value: Tensor
    first: Tensor
    lost: int


def ascend(
    objective: Callable[[Tensor], Tensor], x: Tensor, space: Space, eps: float, schedule: Schedule, generator: Generator
) -> Found:
    """objective: queries (b, ...) -> J (b,), differentiable. Each restart begins at a random point of the ball: the gradient of
    some objectives is zero at x itself.
    """
    best, value = x.clone(), torch.full((len(x),), -torch.inf, device=x.device)
    first, lost = value.clone(), 0
    shape = (-1, *[1] * (x.ndim - 1))
    for _ in range(schedule.restarts):
        q = space.start(x, eps, generator)
        for step in range(schedule.steps + 1):
            q = q.detach().requires_grad_()
            J = objective(q)
            with torch.no_grad():
                if step == 0:
                    first = torch.fmax(first, J)
                better = J > value
                value = torch.where(better, J, value)
                best = torch.where(better.view(shape), q, best)
            if step == schedule.steps:
                break
            slope = gradient(J, q)
            with torch.no_grad():
                finite = slope.flatten(1).isfinite().all(1)
                lost += int((~finite).sum())
                moved = space.moved(q, slope, x, eps, schedule.step)
                q = torch.where(finite.view(shape), moved, q)
    return Found(best.detach(), value.detach(), first.detach(), lost)
