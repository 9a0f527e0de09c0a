"""Views of stored features: noisy copies of rows, drawn towards near rows and mixed with any.

Dwibedi, Aytar, Tompson, Sermanet, Zisserman, "With a little help from my friends: nearest-neighbor contrastive learning of
visual representations", ICCV 2021; Verma, Luong, Kawaguchi, Pham, Le, "Towards domain-agnostic contrastive learning", ICML 2021.

b row   i input
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..contract import Progress, RowStream
from .neighbours import NearestNeighbours, places_in


class RowViews:
    """Views of rows (b, i) by the settings neighbours, near_mix, mixup, noise and feature_dropout of a Config.

    bank (rows, i): the rows that views are drawn towards, on the CPU; they are kept on `device`.
    """

    def __init__(self, config: Any, bank: Tensor, device: str) -> None:
        self.config = config
        self.neighbours = min(config.neighbours, len(bank) - 1) if config.near_mix else 0
        self.search = NearestNeighbours(bank) if self.neighbours else None
        self.mean, self.sd = bank.mean(0).to(device), bank.std(0, unbiased=False).to(device)
        self.bank = bank.to(device)

    def near(self, x: Tensor, own: Tensor | None = None) -> Tensor:
        """x (n, i) on the CPU -> places of the nearest rows in the bank, (n, neighbours) int32; own (n,): one left out, or -1."""
        if self.search is None:
            return torch.zeros(len(x), 0, dtype=torch.int32)
        return self.search.search(x, self.neighbours, own)

    def near_rows(self, rows: RowStream, numbers: Tensor, progress: Progress) -> Tensor:
        """The near rows of all rows, (n, neighbours) int32; numbers: which rows the bank holds, ascending."""
        if self.search is None:
            return torch.zeros(len(rows), 0, dtype=torch.int32)
        parts = []
        for i, x in rows.blocks():
            own = places_in(torch.arange(i, i + len(x)), numbers)
            parts.append(self.near(torch.from_numpy(np.ascontiguousarray(x)), own))
            progress("near rows", i + len(x), len(rows), "")
        return torch.cat(parts)

    def draw(self, x: Tensor, near: Tensor) -> Tensor:
        """A noisy copy of x (b, i), drawn from the global random state; near (b, neighbours) places in the bank."""
        c = self.config
        if near.shape[1]:
            place = near.gather(1, torch.randint(near.shape[1], (len(x), 1)))[:, 0].long().to(x.device)
            x = torch.lerp(x, self.bank[place], c.near_mix * torch.rand(len(x), 1, device=x.device))
        if c.mixup:
            place = torch.randint(len(self.bank), (len(x),), device=x.device)
            x = torch.lerp(x, self.bank[place], c.mixup * torch.rand(len(x), 1, device=x.device))
        if c.noise:
            x = torch.addcmul(x, torch.randn_like(x), self.sd, value=c.noise)
        if c.feature_dropout:
            x = torch.where(torch.rand_like(x) < c.feature_dropout, self.mean, x)
        return x
