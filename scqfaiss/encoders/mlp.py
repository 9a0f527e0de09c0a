"""One hidden layer on power-normalised, standardised rows: the default for stored features.

The square root evens out the heavy tail of non-negative features (pooled activations, histograms); see Perronnin, Sanchez,
Mensink, "Improving the Fisher kernel", ECCV 2010, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from .base import Encoder, Stats, as_linear, standardising
from .chain import Arrays


@dataclass(frozen=True)
class Config:
    hidden: int = field(default=1024, metadata={"range": (1, 1 << 16)})  # units of the hidden layer
    # Signed square root of the input; auto: where no training value is negative.
    power: str = field(default="auto", metadata={"choices": ("auto", "on", "off")})
    input_dropout: float = field(default=0.2, metadata={"range": (0, 0.95)})
    dropout: float = field(default=0.5, metadata={"range": (0, 0.95)})


class MLP(Encoder):
    Config = Config
    scale: Tensor
    shift: Tensor

    def __init__(self, config: Config, stats: Stats) -> None:
        super().__init__(config, stats)
        self.width = config.hidden
        self.power = config.power == "on" or (config.power == "auto" and stats.minimum >= 0)
        mean, sd = (stats.power_mean, stats.power_sd) if self.power else (stats.mean, stats.sd)
        scale, shift = standardising(mean, sd)
        self.register_buffer("scale", torch.from_numpy(scale))
        self.register_buffer("shift", torch.from_numpy(shift))
        self.drop_in = nn.Dropout(config.input_dropout)
        self.hidden = nn.Linear(self.d_in, config.hidden)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        if self.power:
            x = x.abs().sqrt() * x.sign()
        x = torch.addcmul(self.shift, x, self.scale)
        out: Tensor = self.drop(self.hidden(self.drop_in(x)).relu())
        return out

    def layers(self) -> list[tuple[str, Arrays]]:
        scale, shift = self.scale.cpu().numpy(), self.shift.cpu().numpy()
        op, arrays = as_linear(self.hidden)
        A, b = arrays["A"].astype(np.float64), arrays["b"].astype(np.float64)
        # Standardising folded in: the same map, one pass over the rows less.
        folded: Arrays = {"A": (A * scale).astype(np.float32), "b": (b + A @ shift).astype(np.float32)}
        return [*([("power", {})] if self.power else []), (op, folded), ("relu", {})]  # type: ignore[list-item]
