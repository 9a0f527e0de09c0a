"""Plain Lloyd k-means of all books at once, over all codewords or over each class's own: where codebooks start from.

m book (M)   n row   k codeword (K)   e place in a sub-vector (dsub)   p pattern: a set of classes that rows carry (P)
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 24  # distances held at a time


def _rank_within(group: Tensor) -> Tensor:
    """(n,) group numbers -> place of each element within its group, counted in order of appearance."""
    order = group.argsort(stable=True)
    counts = torch.bincount(group)
    start = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    rank = torch.empty_like(group)
    rank[order] = torch.arange(len(group), device=group.device) - start
    return rank


def draw_rows(row_class: Tensor, key: Tensor, wanted: Tensor) -> Tensor:
    """For codewords of classes `wanted` (w,), rows of the same class with the largest `key` (n,), each once if possible.

    row_class (n,) holds one class a row; every wanted class has a row. -> row numbers (w,) int64.
    """
    best_first = key.argsort(descending=True, stable=True)
    best_first = best_first[row_class[best_first].argsort(stable=True)]  # by class, then by falling key
    counts = torch.bincount(row_class, minlength=int(wanted.max()) + 1)
    start = counts.cumsum(0) - counts
    return best_first[start[wanted] + _rank_within(wanted) % counts[wanted]]


def lloyd(
    z: Tensor,
    pattern: Tensor,
    allowed: Tensor,
    owner: Tensor,
    row_class: Tensor,
    generator: torch.Generator,
    iterations: int = 25,
) -> Tensor:
    """k-means of M books, each row only among the codewords its classes own.

    z (M, n, dsub) float32; pattern (n,) row -> p; allowed (P, K) bool; owner (K,) class of each codeword;
    row_class (n,) one class per row, drawn from its labels, for seeding. Books that own all codewords in common are the
    case P = 1, owner = row_class = 0. -> centroids (M, K, dsub). Rows fewer than codewords: jittered copies fill up.
    """
    M, n, dsub = z.shape
    K = len(owner)
    noise = torch.rand(M, n, generator=generator)
    w = torch.stack([z[m, draw_rows(row_class, noise[m], owner)] for m in range(M)])  # m k e
    spread = z.var(dim=(1, 2), unbiased=False).sqrt()[:, None, None]
    w = w + 1e-4 * spread * torch.randn(w.shape, generator=generator)
    chunk = max(1, CHUNK_ELEMENTS // (M * K))
    offset = (torch.arange(M) * K)[:, None]
    for iteration in range(iterations):
        sums, counts = torch.zeros(M * K, dsub), torch.zeros(M * K)
        far = torch.empty(M, n)
        for i in range(0, n, chunk):
            part = z[:, i : i + chunk]
            dist = torch.baddbmm(
                w.square().sum(2)[:, None, :], part, w.transpose(1, 2), alpha=-2
            )  # m b k, less ||z||^2
            if len(allowed) > 1:
                dist.masked_fill_(~allowed[pattern[i : i + chunk]], torch.inf)
            near, code = dist.min(2)
            far[:, i : i + chunk] = near + part.square().sum(2)
            code = (code + offset).flatten()
            sums.index_add_(0, code, part.reshape(-1, dsub))
            counts += torch.bincount(code, minlength=M * K)
        alive = (counts > 0)[:, None]
        w = torch.where(alive, sums / counts.clamp_min(1)[:, None], w.reshape(M * K, dsub)).view(M, K, dsub)
        if iteration < iterations - 1:
            # A codeword without rows moves to a row of its class, drawn by squared distance (as k-means++ draws seeds).
            for m in range(M):
                dead = (counts.view(M, K)[m] == 0).nonzero().flatten()
                if len(dead):
                    gumbel = -torch.log(-torch.log(torch.rand(n, generator=generator).clamp(1e-30, 1 - 1e-7)))
                    key = far[m].clamp_min(1e-30).log() + gumbel
                    w[m, dead] = z[m, draw_rows(row_class, key, owner[dead])]
    return w
