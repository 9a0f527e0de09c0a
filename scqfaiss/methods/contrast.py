"""The debiased contrastive loss of soft codes, and a memory of codes to be told apart from.

Wang, Zeng, Chen, Dai, Xia, "Contrastive quantization with code memory for unsupervised image retrieval", AAAI 2022;
Chuang, Robinson, Lin, Torralba, Jegelka, "Debiased contrastive learning", NeurIPS 2020, arXiv 2007.00224.

b row   q memory row   m codebook (M)   k codeword (K)   e place in a sub-vector   c column: whatever a row is compared with
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .tensors import unit


def soft_codes(x: Tensor, w: Tensor, alpha: float) -> Tensor:
    """log p (b, M, K) of soft codes, p_mk = softmax_k(alpha <x_m, w_mk>) (AAAI 2022, eq. 3); x (b, M, dsub), w (M, K, dsub)."""
    return (alpha * torch.einsum("bme,mke->bmk", x, w)).log_softmax(2)


def decoded(p: Tensor, w: Tensor) -> Tensor:
    """p (b, M, K), w (M, K, dsub) -> u (b, M dsub): the soft rebuild sum_k p_mk w_mk of all codebooks, at unit length."""
    return unit(torch.einsum("bmk,mke->bme", p, w).flatten(1))


def contrast(cosines: Tensor, partner: Tensor, counted: Tensor, temperature: float, prior: float) -> Tensor:
    """The debiased contrastive loss of every row, (b,): -log P / (P + G).

    cosines (b, c) of rows and columns; partner (b,) int64 the column that shows the row's other view; counted (b, c) bool
    the columns that are negatives, neither the row itself nor its partner. With e = exp(cosine / T), N negatives, S the sum
    of their e and P that of the partner,
        G = max((S - prior N P) / (1 - prior), N exp(-1/T)),
    prior being the chance that a negative belongs with the row after all (arXiv 2007.00224, eq. 8). prior 0 is NT-Xent. A
    row without negatives has loss 0.
    """
    t = cosines / temperature
    own = t.gather(1, partner[:, None])[:, 0]
    # In units of the row's largest term nothing overflows at small T, and what vanishes does not matter.
    top = torch.maximum(t.detach().masked_fill(~counted, -torch.inf).amax(1), own.detach())
    P = (own - top).exp()
    S = ((t - top[:, None]).exp() * counted).sum(1)
    N = counted.sum(1).to(t.dtype)
    least = (N * (-1 / temperature - top).exp()).clamp_min(torch.finfo(t.dtype).tiny)
    G = torch.maximum((S - prior * N * P) / (1 - prior), least)
    ratio = G.log() - (own - top)
    return torch.logaddexp(ratio, torch.zeros_like(ratio))


def negatives(first: int, b: int, n: int, index: Tensor, remembered: Tensor) -> Tensor:
    """Columns that are negatives of 2 b views, (2b, 2n + q) bool: not the view itself, not its partner, no memory of its own row.

    first: the place of the first of the b rows among all n; index (2b,) the views' rows, remembered (q,) those of the memory.
    """
    own = torch.arange(b, device=index.device)
    counted = torch.ones(2 * b, 2 * n, dtype=torch.bool, device=index.device)
    for row in (own, own + b):
        for view in (0, n):
            counted[row, view + first + own] = False
    return torch.cat([counted, index[:, None] != remembered], 1)


def entropy(log_p: Tensor) -> Tensor:
    """Mean entropy of soft codes log p (b, M, K), in nats: it falls as codes become hard."""
    return -(log_p.exp() * log_p).sum(2).mean()


def omega(w: Tensor) -> Tensor:
    """Omega of w (M, K, dsub): mean over codebooks and pairs of <w_mk, w_mk'>, which is mean_m ||mean_k w_mk||^2."""
    return w.mean(1).square().sum(1).mean()


class CodeMemory(nn.Module):
    """The soft codes of the last `size` views in a ring, and the row that each is a view of.

    Codes, not features: decoded by the codewords of the moment, they stay fresh while the codewords move.
    """

    codes: Tensor
    rows: Tensor
    filled: Tensor
    pointer: Tensor

    def __init__(self, size: int, M: int, K: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("codes", torch.zeros(size, M, K))
        self.register_buffer("rows", torch.full((size,), -1))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))  # where the next code goes

    @torch.no_grad()
    def push(self, codes: Tensor, rows: Tensor) -> None:
        """codes (b, M, K), rows (b,) take the places of the oldest; of more than `size` the last stay."""
        if not self.size:
            return
        # Those that do not fit count as if they had been here and gone.
        place = (self.pointer + torch.arange(len(codes), device=codes.device))[-self.size :] % self.size
        self.codes[place], self.rows[place] = codes[-self.size :].to(self.codes.dtype), rows[-self.size :]
        self.pointer.copy_((self.pointer + len(codes)) % self.size)
        self.filled.copy_((self.filled + len(codes)).clamp_max(self.size))

    def held(self) -> tuple[Tensor, Tensor]:
        """(codes (q, M, K), rows (q,)) of what is filled, in no particular order."""
        filled = int(self.filled)
        return self.codes[:filled], self.rows[:filled]
