"""Additive codebooks level by level: the losses of Deep Progressive Quantization, and its greedy encoding.

Gao, Zhu, Song, Zhao, Shen, "Beyond product quantization: deep progressive quantization for image retrieval", IJCAI 2019.

n, b row   l level (M)   k codeword (K)   d dimension of z   c class (C)   p positive: a row and one of its classes
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import distributed
from .attention import masked

CHUNK_ELEMENTS = 1 << 22  # distances to a codebook held at a time: 16 MB
FLOOR = 1e-12  # of the mean squared residual that distances are divided by


def levels(z: Tensor, w: Tensor, gamma: float, choice: str = "l2", top: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rebuilds of z (b, d) by the codebooks w (M, K, d), level by level -> T, H (M, b, d), codes (M, b) int64.

    T_l sums soft choices, H_l hard ones; what a level chooses for is what the hard choices before leave, r = z - H:

        pi_lk = softmax_k( -gamma ||r_{l-1} - w_lk||^2 / v_l ),  v_l = mean ||r_{l-1}||^2 over the batch, no gradient
        b_l = argmax_k pi_lk,  H_l = H_{l-1} + w_l[b_l],  T_l = T_{l-1} + sum_k pi_lk w_lk

    choice 'cosine': softmax_k( gamma cos(r_{l-1}, w_lk) ); a residual of 0 has the cosine 0 with everything. top: pi is 0 but for
    so many of the largest (partial attention); 0: all take part.
    """
    left, soft, hard, T, H, codes = z, torch.zeros_like(z), torch.zeros_like(z), [], [], []
    for codebook in w:
        if choice == "l2":
            v = distributed.average(left.detach().square().sum(1).mean()).clamp_min(FLOOR)
            near = 2 * (left @ codebook.T) - codebook.square().sum(1)  # ||r||^2 is the same for all k
            logits = near * (gamma / v)
        else:
            near = _unit(left) @ _unit(codebook).T
            logits = gamma * near
        code = logits.argmax(1)
        chosen = F.embedding(
            code, codebook
        )  # not codebook[code], whose gradient threads sum up in an order of their own
        weights = (masked(logits, near, top) if top else logits).softmax(1)
        soft, hard, left = soft + weights @ codebook, hard + chosen, left - chosen
        T.append(soft)
        H.append(hard)
        codes.append(code)
    return torch.stack(T), torch.stack(H), torch.stack(codes)


def _unit(x: Tensor) -> Tensor:
    """Rows at length 1; a row of zeros stays one and passes a finite gradient."""
    square = x.square().sum(1, keepdim=True)
    return x * torch.where(square > 0, square, 1).rsqrt()


def quantization_loss(
    z: Tensor, w: Tensor, gamma: float, mu: float, nu: float, choice: str = "l2", tau: float = 1.0, top: int = 0
) -> dict[str, Tensor]:
    """L_q = tau (sum_l mse(z, T_l) + mu sum_l mse(z, H_l) + nu mse(T_M, H_M)), by terms; mse(a, b) = ||a - b||^2 / d, mean.

    Summing over the prefixes is what makes each of them good.
    """
    T, H, _ = levels(z, w, gamma, choice, top)
    return {
        "soft": (z - T).square().mean(dim=(1, 2)).sum() * tau,
        "hard": (z - H).square().mean(dim=(1, 2)).sum() * (tau * mu),
        "agree": (T[-1] - H[-1]).square().mean() * (tau * nu),
    }


def margin_loss(z: Tensor, multi_hot: Tensor, vectors: Tensor) -> Tensor:
    """1/(C |pos|) sum over rows x, i in Y, j not in Y of [delta_ij - cos(z, v_i) + cos(z, v_j)]_+, delta = 1 - cos(v_i, v_j).

    z (b, d), hot (b, C) 0/1 labels Y, vectors (C, d); |pos| counts the labels of the batch. The authors' code lets j run
    over all classes, the row's own among them; the paper's formula, which we follow, does not. A row with all classes has
    no negatives and adds 0.
    """
    rows, i = multi_hot.nonzero(as_tuple=True)  # p
    v = F.normalize(vectors, dim=1)
    cos = F.normalize(z, dim=1) @ v.T  # b c
    of_row = F.embedding(rows, cos)  # p c; not cos[rows], as above
    hinge = (1 - v[i] @ v.T - of_row.gather(1, i[:, None]) + of_row).relu()
    positives = distributed.average(torch.as_tensor(float(len(rows)), device=z.device)).clamp_min(1)
    return hinge.masked_fill(multi_hot[rows] > 0, 0).sum() / (positives * multi_hot.shape[1])


def greedy(z: Tensor, w: Tensor) -> Tensor:
    """z (n, d), w (M, K, d) -> codes (n, M) int64 by the rule of encoding: the nearest codeword to what is left, in turn."""
    codes = torch.empty(len(z), len(w), dtype=torch.int64, device=z.device)
    step = max(1, CHUNK_ELEMENTS // w.shape[1])
    for i in range(0, len(z), step):
        left = z[i : i + step]
        for m, codebook in enumerate(w):
            code = (2 * (left @ codebook.T) - codebook.square().sum(1)).argmax(1)
            codes[i : i + step, m], left = code, left - codebook[code]
    return codes


def prefix_errors(z: Tensor, w: Tensor) -> Tensor:
    """Sum over the rows of ||z - H_l||^2 for every prefix l, encoded greedily: (M,) float64."""
    codes, left, out = greedy(z, w), z, []
    for m, codebook in enumerate(w):
        left = left - codebook[codes[:, m]]
        out.append(left.double().square().sum())
    return torch.stack(out)
