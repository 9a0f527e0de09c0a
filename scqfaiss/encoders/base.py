"""What every encoder offers to a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from .chain import Arrays


@dataclass(frozen=True)
class Stats:
    """One pass over the training rows: mean and standard deviation (d,) float64 of x and of sign(x) sqrt|x|, smallest x."""

    n: int
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    power_mean: NDArray[np.float64]
    power_sd: NDArray[np.float64]
    minimum: float


class Encoder(nn.Module):
    """x (b, d_in) float32 -> g (b, width) float32.

    A subclass is built from its frozen Config and the Stats of the training rows, so that standardising is part of it.
    """

    Config: ClassVar[type[Any]]
    trainable: ClassVar[bool] = True  # False: the rows are the embedding already, no head is put on top
    d_in: int
    width: int

    def __init__(self, config: Any, stats: Stats) -> None:
        super().__init__()
        self.config = config
        self.d_in = len(stats.mean)

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def layers(self) -> list[tuple[str, Arrays]]:
        """The evaluation-mode forward pass as layers of a Chain, the same within float32 rounding."""
        raise NotImplementedError


def standardising(mean: NDArray[np.float64], sd: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(scale, shift), float32 (d,): x * scale + shift has mean 0 and standard deviation 1; constant columns become 0."""
    # A column whose spread is rounding noise beside its mean carries nothing, and dividing by it would blow noise up.
    still = sd <= 1e-6 * np.maximum(np.abs(mean), 1e-30)
    scale = np.where(still, 0.0, 1.0 / np.where(still, 1.0, sd))
    return scale.astype(np.float32), (-mean * scale).astype(np.float32)


def as_linear(layer: nn.Linear) -> tuple[str, Arrays]:
    """A torch linear layer as a layer of a Chain."""
    arrays = {"A": layer.weight.detach().cpu().numpy().copy()}
    if layer.bias is not None:
        arrays["b"] = layer.bias.detach().cpu().numpy().copy()
    return "linear", arrays
