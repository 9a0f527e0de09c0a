"""Labels that few labelled rows hand on to rows without, from neighbour to neighbour.

Zhou, Bousquet, Lal, Weston, Schölkopf, "Learning with local and global consistency", NIPS 2003, over the graph of nearest rows of
Iscen, Tolias, Avrithis, Chum, "Label propagation for deep semi-supervised learning", CVPR 2019.

n row, labelled ones first   c class (C)   k neighbour
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = 20
POWER = 3  # of the cosine, as in the paper
HANDED_ON = 0.9  # share of a row's labels that come from its neighbours
STEPS = 30  # 0.9^30 = 0.04 of the labels is left on the way
ROWS = 30_000  # labelled and unlabelled together, at most: the graph takes all their cosines
SURE = 0.6  # share of the rows of each class that count as sure
BLOCK = 1024


def handed_on(own: Tensor, y: Tensor, more: Tensor, C: int) -> Tensor:
    """own (m, d), y (m,) their classes, more (u, d) without labels -> shares of the classes in each row of more, (u, C) float32.

    F <- a S F + (1 - a) Y, S = D^-1/2 W D^-1/2, where W holds cosines of the centered rows, to the third power, between nearest
    rows. Classes are brought to the same mass at the start and at the end: rows are not handed to the class with most labels.
    """
    rows = torch.cat([own, more]).float()
    rows = F.normalize(rows - rows.double().mean(0).float(), dim=1)
    S = _graph(rows)
    Y = torch.zeros(len(rows), C, dtype=torch.float32)
    Y[torch.arange(len(y)), y] = 1
    Y = Y / Y.sum(0).clamp_min(1)
    shares = Y
    for _ in range(STEPS):
        shares = HANDED_ON * torch.sparse.mm(S, shares) + (1 - HANDED_ON) * Y
    shares = shares / shares.sum(0).clamp_min(1e-30)
    found = shares[len(y) :]
    return found / found.sum(1, keepdim=True).clamp_min(1e-30)


def sure_rows(shares: Tensor) -> Tensor:
    """shares (u, C) -> which rows are sure of their class, (u,) bool: of each class the 0.6 with the largest shares."""
    top, y = shares.max(1)
    order = torch.argsort(-top, stable=True)
    order = order[torch.argsort(y[order], stable=True)]  # by class, the surest first
    counts = torch.bincount(y, minlength=shares.shape[1])
    rank = torch.arange(len(y)) - (torch.cumsum(counts, 0) - counts)[y[order]]
    out = torch.zeros(len(y), dtype=torch.bool)
    out[order] = rank < torch.ceil(SURE * counts[y[order]])
    return out & (top > 0)


def _graph(rows: Tensor) -> Tensor:
    """rows (n, d) of length 1 -> S (n, n) sparse: symmetric weights between nearest rows, divided by the roots of their sums."""
    n, k = len(rows), min(NEIGHBOURS, len(rows) - 1)
    near: list[Tensor] = []
    weights: list[Tensor] = []
    for i in range(0, n, BLOCK):
        cosines = rows[i : i + BLOCK] @ rows.T
        cosines[torch.arange(len(cosines)), torch.arange(i, i + len(cosines))] = -2  # no row is its own neighbour
        found = cosines.topk(k)
        near.append(found.indices)
        weights.append(found.values.clamp_min(0) ** POWER)
    a, b, w = torch.arange(n).repeat_interleave(k), torch.cat(near).flatten(), torch.cat(weights).flatten()
    places = torch.stack([torch.cat([a, b]), torch.cat([b, a])])
    W = torch.sparse_coo_tensor(places, torch.cat([w, w]), (n, n), check_invariants=False).coalesce()
    indices, values = W.indices(), W.values()
    row, column = indices[0], indices[1]
    root = torch.zeros(n).index_add_(0, row, values).clamp_min(1e-9).rsqrt()
    return torch.sparse_coo_tensor(
        indices, values * root[row] * root[column], (n, n), is_coalesced=True, check_invariants=False
    )
