"""A chain as a torch module: the same layers, differentiable, for what NumPy cannot do with them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from .chain import OPERATIONS, Arrays, Chain


class TorchLayer(nn.Module):
    """One layer of a chain on x (n, d), or (n, E, d) between `heads` and `average`; its arrays are buffers."""

    def __init__(self, op: str, arrays: Arrays) -> None:
        super().__init__()
        self.op, self.names = op, tuple(arrays)
        for name, a in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.array(a, np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = OPERATIONS[self.op].torch(x, {name: getattr(self, name) for name in self.names})
        return y


class TorchChain(nn.Module):
    """x (n, d_in) float32 -> z (n, d_out) float32, as Chain within float32 rounding. Rows are not looked at for overflow."""

    layers: nn.ModuleList

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TorchLayer(op, arrays) for op, arrays in chain.layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x
