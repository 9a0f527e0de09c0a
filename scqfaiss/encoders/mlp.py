"""One hidden layer on power-normalised, standardised rows: the default for stored features.

The square root evens out the heavy tail of non-negative features (pooled activations, histograms); see Perronnin, Sanchez,
Mensink, "Improving the Fisher kernel", ECCV 2010, section 3.2. Several members trained side by side and averaged by the
method's head (a deep ensemble: Lakshminarayanan, Pritzel, Blundell, NeurIPS 2017) cost one batched product a layer.

b row   e member (E)   i input (d_in)   h hidden unit
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from .base import Encoder, Stats, standardising
from .chain import Arrays
from .dropout import Dropout


@dataclass(frozen=True)
class Settings:
    # Units of the hidden layer, per member; 0: 1,024, of members that are averaged what the rows can teach, see default_width.
    hidden: int = field(default=0, metadata={"range": (0, 1 << 16)})
    # Signed square root of the input; auto: where no training value is negative.
    power: str = field(default="auto", metadata={"choices": ("auto", "on", "off")})
    input_dropout: float = field(default=0.2, metadata={"range": (0, 0.95)})
    dropout: float = field(default=0.5, metadata={"range": (0, 0.95)})


def default_width(stats: Stats, members: int) -> int:
    """Units of each member's hidden layer: 256 to 1,024 by the rows, where members are averaged.

    On parts of CIFAR-10 256 units each rank as well as 512 after 3,500 rows (mAP 0.631), and after 20,000 worse: 0.685,
    against 0.700 of 512 and 0.706 of 1,024. With many labels a row 1,024 rank better by 0.003.
    """
    if members == 1 or stats.multilabel or stats.n > 16_000:
        return 1024
    return 256 if stats.n <= 8_000 else 512


class MLP(Encoder):
    Config = Settings
    scale: Tensor
    shift: Tensor

    def __init__(self, config: Settings, stats: Stats, members: int = 1) -> None:
        super().__init__(config, stats, members)
        self.width = config.hidden or default_width(stats, members)
        self.power = config.power == "on" or (config.power == "auto" and stats.minimum >= 0)
        mean, sd = (stats.power_mean, stats.power_sd) if self.power else (stats.mean, stats.sd)
        scale, shift = standardising(mean, sd)
        self.register_buffer("scale", torch.from_numpy(scale))
        self.register_buffer("shift", torch.from_numpy(shift))
        bound = self.d_in**-0.5
        self.weight = nn.Parameter(torch.empty(members, self.d_in, self.width).uniform_(-bound, bound))  # e i h
        self.bias = nn.Parameter(torch.empty(members, 1, self.width).uniform_(-bound, bound))
        self.drop_in = Dropout(config.input_dropout)
        self.drop = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        if self.power:
            x = x.abs().sqrt().copysign(x)
        x = torch.addcmul(self.shift, x, self.scale)
        x = self.drop_in(x.expand(self.members, -1, -1))  # a mask for every member
        out: Tensor = self.drop(torch.baddbmm(self.bias, x, self.weight), relu=True)  # e b h
        return out

    def layers(self) -> list[tuple[str, Arrays]]:
        scale, shift = (t.cpu().numpy().astype(np.float64) for t in (self.scale, self.shift))
        A = self.weight.detach().cpu().numpy().astype(np.float64).transpose(0, 2, 1).reshape(-1, self.d_in)  # (e h) i
        b = self.bias.detach().cpu().numpy().reshape(-1) + A @ shift
        # Standardising folded in: the same map, one pass over the rows less.
        wide: Arrays = {"A": (A * scale).astype(np.float32), "b": b.astype(np.float32)}
        layers: list[tuple[str, Arrays]] = [("linear", wide), ("relu", {})]
        return [("power", {}), *layers] if self.power else layers
