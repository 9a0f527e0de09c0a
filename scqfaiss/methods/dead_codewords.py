"""Codewords in use, and dead ones moved to where rows are coded worst.

A codeword that no row is coded by learns nothing more: every loss of the rows passes it over. It is put on a row instead,
drawn by its squared error as k-means++ draws seeds (Arthur and Vassilvitskii, SODA 2007). Several rows are drawn at once,
without replacement, as the largest of log weight + Gumbel noise (Efraimidis and Spirakis, Inf. Process. Letters 97(5), 2006).

m codebook (M)   n row   k codeword (K)   e place in a sub-vector (dsub)   q seed: a row and one class that it carries
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Seeds = tuple[Tensor, Tensor]  # rows (q,) and classes (q,), a pair for every label of every row


def gumbel_keys(weight: Tensor, generator: torch.Generator) -> Tensor:
    """weight (q,) float32, none negative -> keys (q,): the t largest are t draws without replacement, by weight.

    generator: of the CPU, whatever the device of `weight`, so that every device draws the same. Weights of zero come last.
    """
    noise = -torch.log(-torch.log(torch.rand(len(weight), generator=generator).clamp(1e-30, 1 - 1e-7)))
    return weight.clamp_min(1e-30).log() + noise.to(weight.device)


def rank_within(group: Tensor) -> Tensor:
    """(n,) group numbers -> place of each element within its group, counted in order of appearance."""
    order = group.argsort(stable=True)
    counts = torch.bincount(group)
    start = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    rank = torch.empty_like(group)
    rank[order] = torch.arange(len(group), device=group.device) - start
    return rank


def draw_rows(row_class: Tensor, key: Tensor, wanted: Tensor) -> Tensor:
    """For codewords of classes `wanted` (w,), seeds of the same class with the largest `key` (q,), each once if possible.

    row_class (q,) holds the class of each seed; every wanted class has one. -> places among the seeds (w,) int64.
    """
    best_first = key.argsort(descending=True, stable=True)
    best_first = best_first[row_class[best_first].argsort(stable=True)]  # by class, then by falling key
    counts = torch.bincount(row_class, minlength=int(wanted.max()) + 1)
    start = counts.cumsum(0) - counts
    return best_first[start[wanted] + rank_within(wanted) % counts[wanted]]


def use(codes: Tensor, K: int) -> Tensor:
    """codes (n, M) int64 -> rows that use each codeword, (M, K) int64."""
    M = codes.shape[1]
    return torch.bincount((codes + torch.arange(M, device=codes.device) * K).flatten(), minlength=M * K).view(M, K)


def revive(
    w: Tensor,
    codes: Tensor,
    z: Tensor,
    generator: torch.Generator,
    owner: Tensor | None = None,
    seeds: Seeds | None = None,
) -> tuple[Tensor, int]:
    """Product codebooks w (M, K, dsub) with every codeword that no row uses moved onto a row -> (new w, how many moved).

    codes (n, M) int64 of the rows z (n, M dsub); generator of the CPU. Where codewords are private, owner (K,) is the class
    of each and `seeds` the classes of the rows: a codeword moves to a row of its own class. No two codewords of a codebook move
    to the same row, none to a row that is exact already (repeated rows have nothing to gain), and one for which no row is
    left stays where it is. `w` itself is not changed.
    """
    w = w.detach().clone()
    M, K, _ = w.shape
    row, row_class = seeds or (torch.arange(len(z), device=z.device), torch.zeros_like(codes[:, 0]))
    owner = torch.zeros(K, dtype=torch.int64, device=w.device) if owner is None else owner
    dead, moved = use(codes, K) == 0, 0
    for m, x in enumerate(z.unflatten(1, (M, -1)).unbind(1)):
        candidates = dead[m].nonzero()[:, 0]
        if not len(candidates):
            continue
        error = (x - w[m, codes[:, m]]).square().sum(1)[row]
        off = error > 0
        left = torch.bincount(row_class[off], minlength=int(owner.max()) + 1)
        wanted = owner[candidates]
        has_row = rank_within(wanted) < left[wanted]
        if has_row.any():
            place = row[off][draw_rows(row_class[off], gumbel_keys(error[off], generator), wanted[has_row])]
            once = _first_of_each(place)  # a row of several classes may have been drawn for each of them
            w[m, candidates[has_row][once]] = x[place[once]]
            moved += len(once)
    return w, moved


def _first_of_each(x: Tensor) -> Tensor:
    """Where each value of x (n,) stands first, in the order of the values."""
    values, which = torch.unique(x, return_inverse=True)
    places = torch.arange(len(x), device=x.device)
    return torch.full_like(values, len(x)).scatter_reduce(0, which, places, "amin")


@torch.no_grad()
def reset_dead_codewords(
    parameter: Tensor,
    codes: Tensor,
    z: Tensor,
    generator: torch.Generator,
    owner: Tensor | None = None,
    seeds: Seeds | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    only_count: bool = False,
) -> dict[str, Any]:
    """`revive` on a parameter in training, in place -> {"codewords_used": [of each codebook], "revived": how many moved}.

    What Adam remembers of a moved codeword belongs to its old place: its mean gradient becomes 0, its mean squared ones those
    of the codebook's codewords in use, on average. only_count=True moves nothing.
    """
    counts = use(codes, parameter.shape[1])
    moved = 0
    if not only_count:
        w, moved = revive(parameter, codes, z, generator, owner, seeds)
        if moved and optimizer is not None:
            reset_optimizer_state(optimizer, parameter, (w != parameter).any(2), counts > 0)
        parameter.copy_(w)
    return {"codewords_used": (counts > 0).sum(1).tolist(), "revived": moved}


def reset_optimizer_state(optimizer: torch.optim.Optimizer, parameter: Tensor, moved: Tensor, used: Tensor) -> None:
    """Set what Adam (or AdamW) remembers of the codewords `moved` (M, K) bool; `used` (M, K) bool: those with rows."""
    state = optimizer.state.get(parameter, {})
    for name, value in state.items():
        if name == "exp_avg":
            value[moved] = 0
        elif name in ("exp_avg_sq", "max_exp_avg_sq"):
            mean = (value * used[..., None]).sum(1) / used.sum(1).clamp_min(1)[:, None]  # m e
            value[moved] = mean[:, None].expand_as(value)[moved]
        elif name == "momentum_buffer" and value is not None:  # SGD
            value[moved] = 0
