"""The nearest rows of rows of features, by cosine in their first principal components.

n row   i input   r principal component
"""

from __future__ import annotations

import torch
from torch import Tensor

from .tensors import principal, unit

NEAR_D = 64  # principal components in which near rows are sought
BLOCK_ELEMENTS = 1 << 22  # similarities held at a time: 16 MB


class NearestNeighbours:
    """Searches the nearest rows of a bank by cosine, in its first principal components.

    Rows that are nowhere negative (pooled activations, histograms) are compared by their square roots: Perronnin, Sanchez,
    Mensink, "Improving the Fisher kernel", ECCV 2010.
    """

    def __init__(self, bank: Tensor) -> None:
        self.root = bool((bank >= 0).all())
        self.mean, self.axes = principal(self.prepared(bank), NEAR_D)
        self.bank = self.placed(bank)

    def prepared(self, x: Tensor) -> Tensor:
        return x.abs().sqrt().copysign(x) if self.root else x

    def placed(self, x: Tensor) -> Tensor:
        """x (n, i) -> (n, r) at unit length."""
        return unit((self.prepared(x) - self.mean) @ self.axes.T)

    def search(self, x: Tensor, k: int, own: Tensor | None = None) -> Tensor:
        """x (n, i) -> the k most similar rows of the bank, (n, k) int32; own (n,) int64: a row left out for each, or -1."""
        nearest, z = [], self.placed(x)
        step = max(1, BLOCK_ELEMENTS // len(self.bank))
        for i in range(0, len(z), step):
            like = z[i : i + step] @ self.bank.T
            if own is not None:
                inside = (own[i : i + step] >= 0).nonzero()[:, 0]
                like[inside, own[i : i + step][inside]] = -torch.inf
            nearest.append(like.topk(k, dim=1).indices.int())
        return torch.cat(nearest) if nearest else torch.zeros(0, k, dtype=torch.int32)


def places_in(numbers: Tensor, among: Tensor) -> Tensor:
    """Where each of `numbers` stands in `among`, which is sorted; -1 where it does not."""
    place = torch.searchsorted(among, numbers).clamp_max(len(among) - 1)
    return torch.where(among[place] == numbers, place, -1)
