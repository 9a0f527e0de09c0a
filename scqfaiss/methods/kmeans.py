"""Plain Lloyd k-means of all codebooks at once, over all codewords or over each class's own: where codebooks start from.

m codebook (M)   n row   k codeword (K)   e place in a sub-vector (dsub)   p pattern: a set of classes that rows carry (P)
g block of rows of one pattern   r place in a block   s place among a pattern's own codewords
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .arsq import blocks_of, table
from .dead_codewords import draw_rows, gumbel_keys
from .fixed_point import scalar_levels

CHUNK_ELEMENTS = 1 << 19  # distances held at a time: 2 MB, which stays in the cache (4 times faster than 64 MB)


def lloyd(
    z: Tensor,
    pattern: Tensor,
    allowed: Tensor,
    owner: Tensor,
    seeds: tuple[Tensor, Tensor],
    generator: torch.Generator,
    iterations: int = 25,
    start: Tensor | None = None,
) -> Tensor:
    """k-means of M codebooks, each row only among the codewords its classes own.

    z (M, n, dsub) float32; pattern (n,) row -> p; allowed (P, K) bool; owner (K,) class of each codeword;
    seeds: rows (q,) and classes (q,), a pair for every label of every row, which codewords start from, unless `start`
    (M, K, dsub) says from where. Codewords that all own in common are the case P = 1 with one class, 0. -> centroids
    (M, K, dsub). Where rows are fewer than codewords, jittered copies fill up.

    Sub-vectors of one dimension among codewords of all have an optimum that `scalar_levels` finds, without a draw.
    """
    M, n, dsub = z.shape
    K = len(owner)
    if dsub == 1 and bool(allowed[:1].all()) and len(allowed) == 1:
        levels = np.stack([scalar_levels(x, K).levels for x in z[:, :, 0].numpy()])
        return torch.from_numpy(levels).to(z.dtype)[:, :, None]
    row, row_class = seeds
    w = _start(z, owner, seeds, generator) if start is None else start
    own, valid = table(allowed)
    output, codewords, counted, present = blocks_of(pattern, allowed, own, valid)
    (G, S), R = codewords.shape, len(output) // len(codewords)
    x = z[:, output].view(M, G, R, dsub)
    weight = torch.ones(G, R) if present is None else present.float()
    barred = torch.zeros(counted.shape).masked_fill_(~counted, torch.inf)  # g (1 or r) s
    chunk = max(1, CHUNK_ELEMENTS // (M * G * S))
    offset = (torch.arange(M) * K)[:, None, None]
    for iteration in range(iterations):
        sums, counts, far = torch.zeros(M * K, dsub), torch.zeros(M * K), torch.zeros(M, n)
        block_codewords = w[:, codewords]  # m g s e
        norms = block_codewords.square().sum(3)[:, :, None] + (barred if barred.shape[1] == 1 else 0)
        for i in range(0, R, chunk):
            part = x[:, :, i : i + chunk]  # m g r e
            dist = norms - 2 * (part @ block_codewords.transpose(2, 3))  # m g r s, less ||z||^2
            if barred.shape[1] > 1:
                dist += barred[:, i : i + chunk]
            near, code = dist.min(3)
            rows = output.view(G, R)[:, i : i + chunk].flatten()
            far[:, rows] = (near + part.square().sum(3)).flatten(1)
            code = codewords[torch.arange(G)[:, None], code] + offset  # m g r
            heavy = weight[:, i : i + chunk]
            sums.index_add_(0, code.flatten(), (part * heavy[..., None]).reshape(-1, dsub))
            counts += torch.bincount(code.flatten(), heavy.expand_as(code).flatten(), minlength=M * K)
        alive = (counts > 0)[:, None]
        w = torch.where(alive, sums / counts.clamp_min(1)[:, None], w.reshape(M * K, dsub)).view(M, K, dsub)
        if iteration < iterations - 1:
            # A codeword without rows moves to a row of its class, drawn by squared distance (as k-means++ draws seeds).
            for m in range(M):
                dead = (counts.view(M, K)[m] == 0).nonzero().flatten()
                if len(dead):
                    key = gumbel_keys(far[m, row], generator)
                    w[m, dead] = z[m, row[draw_rows(row_class, key, owner[dead])]]
    return w


def _start(z: Tensor, owner: Tensor, seeds: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
    """Rows drawn for the codewords, each from the class that owns it, and jittered, (M, K, dsub)."""
    row, row_class = seeds
    noise = torch.rand(len(z), len(row), generator=generator)
    w = torch.stack([part[row[draw_rows(row_class, keys, owner)]] for part, keys in zip(z, noise)])
    spread = z.var(dim=(1, 2), unbiased=False).sqrt()[:, None, None]
    return w + 1e-4 * spread * torch.randn(w.shape, generator=generator)


def sample_rows(n: int, limit: int, generator: torch.Generator) -> Tensor:
    """At most `limit` of n row numbers, drawn without replacement, ascending."""
    return torch.randperm(n, generator=generator)[:limit].sort().values


def shared_lloyd(
    z: Tensor, K: int, generator: torch.Generator, start: Tensor | None = None, iterations: int = 25
) -> Tensor:
    """k-means of M codebooks whose K codewords all rows share: z (M, n, dsub) float32 -> centroids (M, K, dsub)."""
    n = z.shape[1]
    one_pattern, one_class = torch.zeros(n, dtype=torch.int64), torch.zeros(K, dtype=torch.int64)
    everything = torch.ones(1, K, dtype=torch.bool)
    seeds = torch.arange(n), one_pattern
    return lloyd(z, one_pattern, everything, one_class, seeds, generator, iterations, start)
