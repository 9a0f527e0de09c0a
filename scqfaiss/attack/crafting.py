"""Adversarial queries of one model, batch by batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..contract import Progress, seed_of, silent
from ..devices import torch_device
from ..features.source import DEFAULT_INFERENCE, InferenceOptions
from ..methods.spaces import space_of
from ..model import Model
from .ascent import DEFAULT_SCHEDULE, Schedule, ascend
from .registry import objective
from .smoothing import Smoothing, noisy
from .soft_codes import CleanQueries, SoftCodes
from .twin import Twin

Queries = NDArray[Any]  # (n, d) float32, or (n, 3, size, size) uint8


@dataclass(frozen=True)
class Crafted:
    """queries: as the clean ones; change: the largest of any; lost: steps not taken, because a gradient was not finite."""

    queries: Queries
    change: float
    lost: int


class Crafter:
    """Attacks on one model: its twin, and its codebooks as attacks see them.

    smoothing: how the model's searches smooth their queries, which the attack then knows and follows. Raises ConfigError as
    Twin does.
    """

    def __init__(
        self,
        model: Model,
        beta: float = 10.0,
        schedule: Schedule = DEFAULT_SCHEDULE,
        *,
        smoothing: Smoothing | None = None,
        options: InferenceOptions = DEFAULT_INFERENCE,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        self.device = torch_device(options.device, "encoder device")
        self.model, self.schedule, self.smoothing = model, schedule, smoothing
        self.twin = Twin(model, options, self.device)
        self.codes = SoftCodes(model.codebooks, beta, self.device)
        self.space = space_of(model.modality)
        self.batch_size, self.seed = batch_size, seed

    def craft(self, x: Queries, attack: str, eps: float, progress: Progress = silent) -> Crafted:
        """x (n, ...) -> the queries that `attack` makes of them within a ball of eps. Each batch draws from a seed of its own.

        Raises ConfigError where there is no such attack, or the model's network has no gradient, DataError on bad pixels.
        """
        aim = objective(attack)
        out, change, lost = np.empty_like(x), 0.0, 0
        for i in range(0, len(x), self.batch_size):
            clean = torch.from_numpy(x[i : i + self.batch_size].copy()).to(self.device, torch.float32)
            self.space.check(clean)
            generator = torch.Generator().manual_seed(seed_of(self.seed, i))
            if aim is None:
                q = self.space.signs(clean, eps, generator)
            else:
                known, g = self._clean(clean), generator
                found = ascend(
                    lambda q, known=known, g=g: aim(self._vectors(q, g), known),  # type: ignore[misc]
                    clean,
                    self.space,
                    eps,
                    self.schedule,
                    generator,
                )
                q, lost = found.queries, lost + found.lost
            q = self.space.finished(q, clean, eps)
            change = max(change, self.space.change(q, clean))
            out[i : i + len(q)] = q.cpu().numpy().astype(x.dtype)
            progress(f"{attack}, {eps:g}", i + len(q), len(x), "")
        return Crafted(out, change, lost)

    def _vectors(self, q: Tensor, generator: torch.Generator) -> Tensor:
        """What the model's codes are chosen by, (b, d); of smoothed queries the mean over fresh noise."""
        if self.smoothing is None:
            return self.twin(q)  # type: ignore[no-any-return]
        copies = [self.twin(noisy(q, self.smoothing.noise, generator)) for _ in range(self.smoothing.copies)]
        return torch.stack(copies).mean(0)

    def _clean(self, x: Tensor) -> CleanQueries:
        with torch.no_grad():
            vectors = self.twin(x)
            return CleanQueries.of(self.codes, vectors, self.model.assign(vectors.cpu().numpy()))
