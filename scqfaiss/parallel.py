"""Several processes that train one model: each takes its share of every batch, and what they compute is brought together.

Without a process group, every function here is that of one process alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """Forward: the pieces of all processes, one behind the other. Backward: every process used this process's piece."""

    @staticmethod
    def forward(ctx: Any, piece: Tensor) -> Tensor:
        pieces = [torch.empty_like(piece) for _ in range(world())]
        dist.all_gather(pieces, piece.contiguous())
        ctx.rows = len(piece)
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous()
        dist.all_reduce(total)
        at = rank() * ctx.rows
        return total[at : at + ctx.rows]


def gathered(piece: Tensor) -> Tensor:
    """(b, ...) of this process -> (world b, ...) of all, in the order of their ranks; b must be the same everywhere.

    The gradient is that of the sum of all processes' losses. As gradients of parameters are averaged over the processes, a
    loss that is the mean over the process's own b rows gives just the gradient of one process with all rows.
    Cross-device sampling of Xiao, Liu, Shao, Lian, Xie, EMNLP 2021, arXiv 2104.07858.
    """
    return piece if world() == 1 else _Gather.apply(piece)  # type: ignore[no-any-return,no-untyped-call]


def total(t: Tensor) -> Tensor:
    """The sum over all processes, without gradient."""
    t = t.detach().clone()
    if world() > 1:
        dist.all_reduce(t)
    return t


def average(t: Tensor) -> Tensor:
    """The mean over all processes, without gradient."""
    return total(t) / world()
