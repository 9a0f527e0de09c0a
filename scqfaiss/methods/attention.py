"""Product codebooks learned by partial attention: a row is rebuilt from the codewords near it, and these alone learn from it.

After the abstract of Zeng, Wang, Chen, Dai, Xia, Wang, "Pyramid hybrid pooling quantization for efficient fine-grained image
retrieval", Pattern Recognition Letters 178:106-114, 2024, arXiv 2109.05206: a learnable quantizer attends to part of the
codebook, so that the most relevant codewords are optimised. Nothing more of it was open to us: the formulas are ours.

b row   m codebook (M)   k codeword (K)   e place in a sub-vector (dsub)   d dimension of z
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import distributed
from ..errors import ConfigError

FLOOR = 1e-12  # of the mean squared sub-vector that distances are divided by


def check(kind: str, private: str, top: int, nbits: int) -> None:
    """Raise ConfigError for codebooks that partial attention does not learn."""
    if kind == "additive":
        raise ConfigError(
            "quantizer=attention learns product codebooks, not codebooks.kind=additive; dpq has --set top=16 for those"
        )
    if private == "class":
        raise ConfigError(
            "quantizer=attention shares the codewords among all classes; private=class needs quantizer=arsq"
        )
    if top > 1 << nbits:
        raise ConfigError(f"top is {top}, needs 1 to K={1 << nbits} codewords (--nbits {nbits})")


def masked(logits: Tensor, nearness: Tensor, top: int) -> Tensor:
    """logits (..., K) at minus infinity, where a softmax is 0, for all but the `top` codewords of largest nearness (..., K)."""
    if top >= logits.shape[-1]:
        return logits
    near = nearness.detach().topk(top, dim=-1).indices
    among = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, near, True)
    return logits.masked_fill(~among, -torch.inf)


def attention(z: Tensor, w: Tensor, v: Tensor, top: int, beta: float) -> tuple[Tensor, Tensor]:
    """Soft rebuild z~ (b, d) of z (b, d) by w (M, K, dsub), and the codes by the rule of encoding, (b, M) int64.

    a_mk = softmax over the `top` nearest codewords of (-beta ||z_m - w_mk||^2 / v_m), 0 elsewhere; z~_m = sum_k a_mk w_mk.
    v (M,) positive, a constant.
    """
    x = z.unflatten(1, (len(w), -1)).transpose(0, 1)  # m b e
    near = torch.baddbmm(
        -w.square().sum(2)[:, None], x, w.transpose(1, 2), alpha=2
    )  # m b k: ||z_m||^2 less the distance
    weights = masked(near * (beta / v)[:, None, None], near, top).softmax(2)
    return (weights @ w).transpose(0, 1).flatten(1), near.argmax(2).T


def spread(z: Tensor, M: int) -> Tensor:
    """v_m = mean ||z_m||^2 over the rows of all processes, (M,), without gradient."""
    return distributed.average(z.detach().unflatten(1, (M, -1)).square().sum(2).mean(0)).clamp_min(FLOOR)


class PartialAttention(nn.Module):
    """L = omega mse(z, z~) + mse(z, z^), z^ the rebuild by the nearest codewords; mse(a, b) = ||a - b||^2 / dsub, mean over b.

    centroids (M, K, dsub): start.
    """

    def __init__(self, centroids: Tensor, top: int, beta: float, omega: float) -> None:
        super().__init__()
        self.centroids = nn.Parameter(centroids.clone())  # m k e
        self.top, self.beta, self.omega = top, beta, omega

    def loss(self, z: Tensor, pattern: Tensor) -> dict[str, Tensor]:
        """z (b, d) without gradient -> named, weighted terms. pattern, the classes of a row, plays no part."""
        w = self.centroids
        M, K, dsub = w.shape
        soft, codes = attention(z, w, spread(z, M), self.top, self.beta)
        # Not w[.., codes]: the gradient of indexing sums up in an order of its own on several threads.
        hard = F.embedding(codes + torch.arange(M, device=w.device) * K, w.flatten(0, 1)).flatten(1)
        error = [(z - rebuilt).square().sum(1).mean() / dsub for rebuilt in (soft, hard)]
        return {"soft": self.omega * error[0], "hard": error[1]}
