"""Maps of a network pooled over their places: one vector an image.

    average   a_s = mean over the places of map s;  g = concat of a_s
    hybrid    g_s = sigmoid(t_s) a_s + (1 - sigmoid(t_s)) m_s, m_s the maximum, t_s learned;  g = concat of g_s / ||g_s||
    pyramid   g = concat of l_s sqrt(c_s) a_s / ||a_s|| and l_s sqrt(c_s) m_s / (4 ||m_s||);  l_s = 1 of the last map, else 1/2

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
# On parts of CIFAR-10's training images (one seed) 1 and 1/2 instead ranked 0.014 lower, the mean of the last map alone 0.010.
SHALLOW, MAXIMA = 0.5, 0.25  # lengths of maps before the last, beside it, and of maxima beside their means


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
    parts = []
    for s, of_map in enumerate(zip(means, maxima)):
        of_stage = 1.0 if s == len(maps) - 1 else SHALLOW
        for p, of_kind in zip(of_map, (1.0, MAXIMA)):
            parts.append(F.normalize(p, dim=1) * (of_stage * of_kind * p.shape[1] ** 0.5))
    return torch.cat(parts, 1)
