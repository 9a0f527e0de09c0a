"""Training by plain gradient steps: Adam divides a gradient by its own size, so that the rounding of a small one becomes a
whole step, and two ways to the same gradients cannot be compared by where they lead.

As a script, the command line with such steps: `python plain_steps.py GRADIENTS.npz train ...`
"""

import sys

import numpy as np
import torch
from torch import nn


class PlainSteps(torch.optim.SGD):
    """Stands for AdamW; `first` are the gradients of the first step since it was set to None."""

    first = None

    def __init__(self, params, lr, fused=None, **_):
        super().__init__(params, lr)
        for group in self.param_groups:
            group["weight_decay"] = 0.0

    def step(self, closure=None):
        if PlainSteps.first is None:
            PlainSteps.first = [p.grad.numpy().copy() for group in self.param_groups for p in group["params"]]
        return super().step(closure)


def smooth():
    """A network without corners: where ReLU and max pooling meet a tie, rounding decides which way a gradient goes."""
    return nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.Tanh(), nn.Conv2d(8, 16, 5, 2), nn.Tanh())


if __name__ == "__main__":
    from scqfaiss.cli.program import run

    torch.optim.AdamW = PlainSteps
    path, *command = sys.argv[1:]
    code = run(command)
    np.savez(path, *PlainSteps.first)
    sys.exit(code)
