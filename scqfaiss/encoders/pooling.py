"""Maps of a network pooled over their places: one vector an image.

    average   a_s = mean over the places of map s;  g = concat of a_s
    hybrid    g_s = sigmoid(t_s) a_s + (1 - sigmoid(t_s)) m_s, m_s the maximum, t_s learned;  g = concat of g_s / ||g_s||
    pyramid   g = concat of sqrt(c_s) a_s / ||a_s|| and sqrt(c_s) m_s / (2 ||m_s||)

hybrid and pyramid are made after the abstract of Zeng et al., "Pyramid hybrid pooling quantization", Pattern Recognition Letters
178, 2024, arXiv 2109.05206, which pools feature maps of several stages in a hybrid way. The formulas are ours. A maximum is ten
times the mean of a map behind ReLU: in a sum of both it drowns the mean, which tells more. pyramid keeps them side by side.

b image   s map   c channel   h, w place
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError

POOLS = ("average", "hybrid", "pyramid")
OF_STAGES = frozenset({"hybrid", "pyramid"})  # which take the network's `stage_layers` unless layers are named
MAXIMA = 0.5  # length of the maxima beside the means


def width_of(maps: Sequence[Tensor], pool: str) -> int:
    """Features that the maps (b, c, h, w), or vectors (b, c), are pooled to."""
    return sum(t.shape[1] for t in maps) * (2 if pool == "pyramid" else 1)


def check_maps(maps: Sequence[Tensor], pool: str, factory: str) -> None:
    """Raise ConfigError where something else than maps is to be pooled by more than the mean."""
    if pool in OF_STAGES and any(t.ndim != 4 for t in maps):
        raise ConfigError(f"pool={pool} needs maps (b, c, h, w), network {factory} gives vectors; use average")


def pooled(maps: Sequence[Tensor], pool: str, t: Tensor | None = None) -> Tensor:
    """Maps (b, c, h, w), with pool='average' also vectors (b, c) -> g (b, width); t (s,): what hybrid learned."""
    means = [m.mean((2, 3)) if m.ndim == 4 else m for m in maps]
    if pool == "average":
        return torch.cat(means, 1)
    maxima = [m.amax((2, 3)) for m in maps]
    if pool == "hybrid":
        assert t is not None
        share = t.sigmoid()
        mixed = [share[s] * a + (1 - share[s]) * m for s, (a, m) in enumerate(zip(means, maxima))]
        return torch.cat([F.normalize(g, dim=1) for g in mixed], 1)
    parts = [(length, p) for of_map in zip(means, maxima) for length, p in zip((1.0, MAXIMA), of_map)]
    return torch.cat([F.normalize(p, dim=1) * (length * p.shape[1] ** 0.5) for length, p in parts], 1)
