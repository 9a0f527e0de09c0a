"""Arithmetic that several methods share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor

EPSILON = 1e-6  # below it a vector counts as zero: it has no direction


def as_array(t: Tensor) -> Any:
    """A tensor as an array of its own, without gradient."""
    return t.detach().cpu().contiguous().numpy().copy()


def unit(x: Tensor) -> Tensor:
    """x / ||x|| along the last axis; shorter than EPSILON: x / EPSILON, so that zero stays zero."""
    return F.normalize(x, dim=-1, eps=EPSILON)


def principal(x: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """x (n, i) -> its mean (i,), and the at most d directions of largest variance as rows (r, i); float32.

    Each direction points to where its largest entry is positive: which way would otherwise be up to the machine.
    """
    double = x.double()
    mean = double.mean(0)
    double = double - mean
    values, vectors = torch.linalg.eigh(double.T @ double)
    r = min(d, int((values > 1e-9 * values[-1]).sum())) if values[-1] > 0 else 0
    axes = vectors[:, len(values) - r :].flip(1).T
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    return mean.float(), axes.float().contiguous()


def rotated_principal(g: Tensor, d: int, generator: Generator, least: float) -> tuple[Tensor, Tensor]:
    """g (n, w) -> A (d, w), a (d,): principal components under a random rotation, which gives every part of f = A g + a its
    share; f has mean square 1, on which a learning rate can rely.

    Where the rows have fewer directions than d, the rotation's first columns spread these over all of f. least: of the root
    mean square that f is divided by.
    """
    mean, axes = principal(g, d)
    rotation = torch.linalg.qr(torch.randn(d, len(axes), generator=generator, dtype=torch.float64))[0].float()
    A = rotation @ axes
    A = A / ((g - mean) @ A.T).square().mean().sqrt().clamp_min(least)
    return A, -A @ mean


def unit_parts(M: int, d: int) -> list[tuple[str, dict[str, NDArray[np.float32]]]]:
    """Layers that put each of the M parts of a vector (d,) at unit length.

    A head for each part puts it in its place among zeros; normalised, they add up.
    """
    A = np.zeros((M, d, d // M), np.float32)
    for m in range(M):
        A[m, m * (d // M) : (m + 1) * (d // M)] = np.eye(d // M)
    heads = {"A": A, "b": np.zeros((M, d), np.float32)}
    return [("heads", heads), ("normalize", {}), ("average", {"weights": np.ones(M, np.float32)})]
