"""Standardised rows: together with a method's own linear layer one affine map, which fits into a FAISS file."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .base import Encoder, Stats, standardising
from .chain import Arrays
from .dropout import Dropout


@dataclass(frozen=True)
class Settings:
    input_dropout: float = field(default=0.2, metadata={"range": (0, 0.95)})  # share of input features left out


class Linear(Encoder):
    Config = Settings
    scale: Tensor
    shift: Tensor

    def __init__(self, config: Settings, stats: Stats, members: int = 1) -> None:
        super().__init__(config, stats, members)
        self.width = self.d_in
        scale, shift = standardising(stats.mean, stats.sd)
        self.register_buffer("scale", torch.from_numpy(scale))
        self.register_buffer("shift", torch.from_numpy(shift))
        self.drop = Dropout(config.input_dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(torch.addcmul(self.shift, x, self.scale))[None]
        return out

    def layers(self) -> list[tuple[str, Arrays]]:
        return [("linear", {"A": np.diag(self.scale.cpu().numpy()), "b": self.shift.cpu().numpy().copy()})]
