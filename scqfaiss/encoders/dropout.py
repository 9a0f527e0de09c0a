"""Dropout with one random byte an element: torch's own draws a float each and took half of a training step on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """Zeroes a share `p` of the elements in training (rounded to a multiple of 1/256 on CPU) and scales up the rest.

    Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, JMLR 15, 2014.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """x of any shape, or with relu=True max(x, 0), under a new mask."""
        out_of_256 = round(256 * self.p)
        if not self.training or out_of_256 == 0:
            return x.relu() if relu else x
        if x.is_cuda:
            return F.dropout(x.relu() if relu else x, self.p)
        n = x.numel()
        words = torch.empty(-(-n // 8), dtype=torch.int64).random_(-(2**63), None)  # type: ignore[call-overload]
        kept = words.view(torch.uint8)[:n].view(x.shape) >= out_of_256
        if relu:  # in the same mask: one pass over the activations less each way
            kept &= x.detach() > 0
        return x * kept.to(x.dtype).mul_(256 / (256 - out_of_256))
