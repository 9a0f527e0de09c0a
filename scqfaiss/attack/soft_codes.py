"""A differentiable stand-in for codes: how likely each codeword is for a vector, of product and additive codebooks, with lists.

    p_m(k | q) = softmax_k( beta cos(z_m(q), w_mk) )

Feng, Chen, Dai, Xia, AAAI 2020, arXiv 2002.11374, for product codebooks. Additive ones are ours: z_m is what the codewords that
the clean query has in the codebooks before leave over. Lists come first, as a codebook of their own.

b query   m codebook (M)   k codeword (K)   s dimension of a sub-vector
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codebooks import Codebooks, Codes


class SoftCodes:
    """Codebooks on a device, as attacks see them. beta: inverse temperature of the softmax over cosines."""

    def __init__(self, codebooks: Codebooks, beta: float, device: str = "cpu") -> None:
        self.codebooks, self.beta = codebooks, beta
        self.words = torch.from_numpy(codebooks.centroids.copy()).to(device)  # m k s
        self.directions = F.normalize(self.words, dim=2)
        self.lists = None if codebooks.lists is None else torch.from_numpy(codebooks.lists.copy()).to(device)

    def before(self, code: Tensor) -> Tensor:
        """code (b, columns) int64 -> what the codewords before each codebook add up to, (b, M, d); of product codebooks the list
        alone.
        """
        b, words = self.codebooks, code[:, 1:] if self.lists is not None else code
        first = torch.zeros(len(code), b.d, device=code.device) if self.lists is None else self.lists[code[:, 0]]
        if b.kind == "product":
            return first[:, None].expand(-1, b.M, -1)
        chosen = self.words[torch.arange(b.M, device=code.device), words]  # b m d
        return first[:, None] + chosen.cumsum(1) - chosen

    def log_p(self, vectors: Tensor, before: Tensor) -> list[Tensor]:
        """vectors (b, d), before (b, M, d) -> log p of each codebook, (b, K) each; with lists, that of the lists (b, L) first."""
        found = []
        if self.lists is not None:
            cosines = F.normalize(vectors, dim=1) @ F.normalize(self.lists, dim=1).to(vectors).T
            found.append(F.log_softmax(self.beta * cosines, 1))
        M, _, s = self.words.shape
        left = vectors[:, None] - before  # b m d
        if self.codebooks.kind == "product" and M:
            own = torch.arange(M * s, device=vectors.device).view(M, s)
            left = left.gather(2, own.expand(len(left), M, s))
        cosines = torch.einsum("bms,mks->bmk", F.normalize(left, dim=2), self.directions.to(vectors))
        return [*found, *F.log_softmax(self.beta * cosines, 2).unbind(1)]


@dataclass(frozen=True)
class CleanQueries:
    """What an attack knows of queries before it changes them. vectors (b, d); code (b, columns) int64, the list first."""

    codes: SoftCodes
    vectors: Tensor
    code: Tensor
    before: Tensor
    log_p_clean: list[Tensor]

    @classmethod
    def of(cls, codes: SoftCodes, vectors: Tensor, code: Codes) -> CleanQueries:
        chosen = torch.from_numpy(code.astype("int64")).to(vectors.device)
        before = codes.before(chosen)
        return cls(codes, vectors, chosen, before, codes.log_p(vectors, before))

    def log_p(self, vectors: Tensor) -> list[Tensor]:
        """The same distributions of changed queries, vectors (b, d)."""
        return self.codes.log_p(vectors, self.before)
