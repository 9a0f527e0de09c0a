"""Learning rates over a training."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(optimizer: Optimizer, warmup: float, steps: int) -> LambdaLR:
    """Each rate rises evenly over the first share `warmup` of the steps, then falls to 0 by a cosine."""
    warm = max(1, int(warmup * steps))

    def rate(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))

    return LambdaLR(optimizer, rate)
