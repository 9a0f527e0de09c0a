"""What every encoder offers to a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import DataError
from .chain import Arrays

LEAST_SPREAD = 1e-27  # of the widest column


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
    """x (b, d_in) float32 -> g (E, b, width) float32, E members that see the same rows and share nothing else.

    A subclass is built from its frozen Config and the Stats of the training rows, so that standardising is part of it.
    Members other than 1 are for encoders that train.
    """

    Config: ClassVar[type[Any]]
    takes_pictures: ClassVar[bool] = False  # rows are pictures, (b, 3, size, size) uint8
    d_in: int
    width: int
    precision: torch.dtype | None = (
        None  # of the products in training steps, where not float32; what comes out is float32
    )

    def __init__(self, config: Any, stats: Stats, members: int = 1) -> None:
        super().__init__()
        self.config, self.members = config, members
        self.d_in = len(stats.mean)

    def __call__(self, x: Tensor) -> Tensor:
        # Without gradients nothing is trained: rows are encoded, by the same arithmetic as after the training.
        if self.precision is None or not torch.is_grad_enabled():
            return super().__call__(x)  # type: ignore[no-any-return]
        with torch.autocast(x.device.type, self.precision):
            out: Tensor = super().__call__(x)
        return out.float()

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def groups(self, lr: float, decay: float) -> list[dict[str, Any]]:
        """Its parameters as groups for an optimiser whose rate for what is new is `lr`."""
        found = [p for p in self.parameters() if p.requires_grad]
        return [{"params": found, "lr": lr, "weight_decay": decay}] if found else []

    def on_epoch(self, epoch: int) -> None:
        """Called before each epoch of a stage that trains it."""

    def layers(self) -> list[tuple[str, Arrays]]:
        """The evaluation-mode forward pass as layers of a Chain, the same within float32 rounding."""
        raise NotImplementedError


def standardising(
    mean: NDArray[np.float64], sd: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(scale, shift), float32 (d,): x * scale + shift has mean 0 and standard deviation 1 (less in nearly constant columns).

    Raises DataError for rows so alike that float32 has no room for what is divided by their spread.
    """
    widest = float(sd.max(initial=0))
    if 0 < widest < LEAST_SPREAD:
        raise DataError(
            f"the training rows vary by {widest:.1g}, too little for float32: multiply these and all other rows by a constant"
        )
    # Dividing by a spread that is rounding noise beside the others' would blow the noise up.
    floor = max(1e-3 * widest, 1e-30)
    still = sd <= 1e-6 * np.abs(mean)
    scale = np.where(still, 0.0, 1.0 / np.maximum(sd, floor))
    return scale.astype(np.float32), (-mean * scale).astype(np.float32)
