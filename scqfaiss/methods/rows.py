"""The rows that codebooks learn from: encoded once, for from then on the encoder is frozen.

n row   d dimension of z   c class (C)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..contract import Task
from ..errors import warn
from . import lists
from .cfa import Features
from .noisy_rows import NoisyRows


def warn_of_few(n: int, K: int) -> None:
    """Say so where a codebook cannot use all of its codewords."""
    if n < K:
        warn(f"{n:,} rows can use at most {n:,} of {K} codewords")


@dataclass(frozen=True)
class CodebookRows:
    """Training rows, or the task's own rows for codebooks, as the encoder leaves them.

    features: encoder and head; None where rows are z already. limit: at most so many rows. wanted: passes over the training
    rows with noise, each of which gives them anew, and more where lists would have few. sigma: the noise, see NoisyRows; 0,
    and of images: dropout instead.
    """

    features: Features | None
    task: Task
    limit: int
    wanted: int = 1
    sigma: float = 0.0

    @property
    def source(self) -> Any:
        return self.task.codebook_rows or self.task.rows

    @property
    def noisy(self) -> bool:
        """Whether the rows are encoded with noise.

        On the rows it was trained on a classifier is surer than on any others, and codebooks fitted to that would waste their
        codewords on the corners. Unlabelled rows need no such help.
        """
        calibrated = self.features is not None and self.features.kind == "calibrated"
        return calibrated and self.task.codebook_rows is None

    @property
    def copies(self) -> int:
        """How often the rows are encoded: more than once only where each time differs."""
        fit = self.limit // max(len(self.task.rows), 1)
        wanted = lists.copies(len(self.task.rows), self.task.lists, self.wanted)
        return max(1, min(wanted, fit)) if self.noisy else 1

    def __len__(self) -> int:
        return min(len(self.source), self.limit) * self.copies

    def _embed(self, copy: int) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        if self.features is not None:
            if self.noisy and self.sigma and not self.features.encoder.modality.needs_encoder:
                return self.features.embed(NoisyRows(self.source, self.sigma, self.task.seed, copy))
            return self.features.embed(self.source, dropout=self.noisy)
        return ((i, torch.from_numpy(x), None) for i, x in self.source.blocks())

    @torch.no_grad()
    def encoded(self) -> tuple[Tensor, Tensor | None]:
        """z (n, d) on the CPU, and what is known of their classes: (n,) int64, predicted ones for unlabelled rows; (n, C)
        bool for many labels a row; None where nobody can tell.
        """
        task, n, copies = self.task, len(self.source), self.copies
        keep = None
        if n > self.limit:
            keep = np.sort(np.random.default_rng(task.seed).choice(n, self.limit, replace=False))
        z, predicted = [], []
        torch.manual_seed(task.seed)
        for copy in range(copies):
            for i, block, classes in self._embed(copy):
                if keep is not None:
                    inside = torch.from_numpy(keep[slice(*np.searchsorted(keep, [i, i + len(block)]))] - i)
                    block, classes = block[inside], classes[inside] if classes is not None else None
                z.append(block.cpu())
                if classes is not None:
                    predicted.append(classes.cpu())
                task.progress("encode rows", copy * n + i + len(block), copies * n, "")
        if task.codebook_rows is None and task.labels is not None:
            y = torch.from_numpy(task.labels.y if keep is None else task.labels.y[keep])
            return torch.cat(z), y.bool().repeat(copies, 1) if task.labels.multilabel else y.repeat(copies)
        return torch.cat(z), torch.cat(predicted) if predicted else None
