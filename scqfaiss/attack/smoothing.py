"""A smoothed query: the mean of what a model makes of a few noisy copies, so that no small change tips it over alone.

After Cohen, Rosenfeld, Kolter, "Certified adversarial robustness via randomized smoothing", ICML 2019; here the vectors are
averaged, and nothing is certified.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..methods.spaces import PIXELS


@dataclass(frozen=True)
class Smoothing:
    """copies: noisy ones of each query; noise: their distance from it, a share of the norm of rows, or of the range of pixels."""

    copies: int
    noise: float


def noisy(x: Tensor, noise: float, generator: Generator) -> Tensor:
    """Rows x (b, d), or pixels (b, 3, size, size) from 0 to 255 + Gaussian noise; of rows its norm is `noise` times theirs."""
    drawn: Tensor = torch.randn(x.shape, generator=generator).to(x)
    if x.ndim == 2:
        drawn *= x.norm(dim=1, keepdim=True) / x.shape[1] ** 0.5
        return x + noise * drawn
    return (x + noise * PIXELS * drawn).clamp(0, PIXELS)
