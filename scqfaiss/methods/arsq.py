"""ARSQ, the last step of SCQ: codebooks by annealed partial-soft assignment among each class's own codewords.

Song, Zhang, Zhu, Zhao, Wang, Shen. IEEE Trans. Image Processing 32:6485-6499, 2023.
Where the paper leaves a choice open, the authors' released code decides; written anew, nothing copied.

b row   m codebook (M)   k codeword (K)   e place in a sub-vector (dsub)   c class (C)
p pattern: the set of classes a row carries (single labels: the class)   s place among a pattern's own codewords (S)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CHUNK_ELEMENTS = 1 << 22  # distances held at a time, 16 MB


def allocate_codewords(K: int, counts: Tensor) -> Tensor:
    """The K codewords dealt to the classes present, sizes differing by at most 1 -> owner (K,) int64.

    counts (C,): training rows of each class; classes without rows get nothing. Needs K >= classes present.
    """
    present = (counts > 0).nonzero().flatten()
    return present[torch.arange(K) * len(present) // K]


def table(owned: Tensor) -> tuple[Tensor, Tensor]:
    """owned (P, K) bool -> (codewords (P, S) int64, valid (P, S) bool): own codewords first, padded to the longest row."""
    S = int(owned.sum(1).max())
    order = owned.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :S]
    return order, owned.gather(1, order)


def blocks_of(
    pattern: Tensor, owned: Tensor, own: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Rows sorted into one block per pattern, so that each meets only its own codewords in one matrix product.

    pattern (b,); owned (P, K); own, valid (P, S) from `table`. -> row number of each place (g r,), short blocks filled up
    with repeated rows; codewords of each block (g, s); which of them count (g, 1 or r, s); which places count (g, r), None
    for all. Where blocks would be too uneven to pay, one block of all rows against all codewords comes back.
    """
    B, (P, S), K = len(pattern), own.shape, owned.shape[1]
    everyone = torch.arange(B, device=pattern.device)
    if P == 1:
        return everyone, own, valid[:, None], None
    patterns, group, counts = torch.unique(pattern, return_inverse=True, return_counts=True)
    R = int(counts.max())
    if len(patterns) * R * S >= B * K:
        return everyone, torch.arange(K, device=pattern.device)[None], owned[pattern][None], None
    order = group.argsort(stable=True)
    start = counts.cumsum(0) - counts
    place = torch.arange(R, device=pattern.device)
    output = order[start[:, None] + torch.minimum(place, counts[:, None] - 1)]
    return output.flatten(), own[patterns], valid[patterns][:, None], place < counts[:, None]


def nearest(z: Tensor, w: Tensor) -> Tensor:
    """z (n, d), w (M, K, dsub) -> codes (n, M) int64 by the rule of encoding: the nearest of all codewords."""
    M, K, _ = w.shape
    norms = w.square().sum(2)[:, None]
    codes = torch.empty(len(z), M, dtype=torch.int64, device=z.device)
    step = max(1, CHUNK_ELEMENTS // (M * K))
    for i in range(0, len(z), step):
        x = z[i : i + step].unflatten(1, (M, -1)).transpose(0, 1)  # m b e
        codes[i : i + step] = torch.baddbmm(norms, x, w.transpose(1, 2), alpha=-2).argmin(2).T
    return codes


def decode(w: Tensor, codes: Tensor) -> Tensor:
    """w (M, K, dsub), codes (n, M) -> the codewords side by side, (n, M dsub)."""
    return torch.cat([codebook[code] for codebook, code in zip(w, codes.T)], 1)


def lloyd_step(w: Tensor, z: Tensor) -> None:
    """Set every codeword of w (M, K, dsub) that codes a row to the mean of the rows z (n, d) that it codes, in place."""
    M, K, _ = w.shape
    sums, counts = torch.zeros_like(w), w.new_zeros(M, K)
    for part in z.split(1 << 16):
        x, code = part.unflatten(1, (M, -1)).unbind(1), nearest(part, w).T  # m b e, m b
        for m in range(M):
            sums[m].index_add_(0, code[m], x[m])
            counts[m] += torch.bincount(code[m], minlength=K)
    w.copy_(torch.where(counts[..., None] > 0, sums / counts.clamp_min(1)[..., None], w))


class ARSQ(nn.Module):
    """Product codebooks in which every class owns private codewords.

    centroids (M, K, dsub): start. owned (P, K) bool: the codewords rows of each pattern may use; public: one row of True.
    groups (G, K) bool: the codewords that keep apart from each other, one row a class; public: one row of True.
    """

    own: Tensor
    own_valid: Tensor
    owned: Tensor
    apart: Tensor
    apart_pairs: Tensor

    def __init__(
        self, centroids: Tensor, owned: Tensor, groups: Tensor, omega: float, rho: float, detach_divisor: bool = False
    ) -> None:
        super().__init__()
        self.centroids = nn.Parameter(centroids.clone())  # m k e
        self.omega, self.rho, self.detach_divisor = omega, rho, detach_divisor
        self.soft, self.hard = 1.0, 1.0  # inverse temperatures: larger is nearer to argmin
        own, own_valid = table(owned)
        apart, valid = table(groups[groups.sum(1) >= 2]) if (groups.sum(1) >= 2).any() else (own[:0], own_valid[:0])
        pairs = valid[:, :, None] & valid[:, None, :] & ~torch.eye(valid.shape[1], dtype=torch.bool)
        for name, value in zip(
            ("owned", "own", "own_valid", "apart", "apart_pairs"), (owned, own, own_valid, apart, pairs)
        ):
            self.register_buffer(name, value)

    def rebuild_error(self, z: Tensor, pattern: Tensor) -> tuple[Tensor, Tensor]:
        """z (b, d) without gradient, pattern (b,) -> (soft, hard) errors: sum over codebooks of the mean over b and e."""
        M, _, dsub = self.centroids.shape
        output, own, valid, present = blocks_of(pattern, self.owned, self.own, self.own_valid)
        (G, S), R = own.shape, len(output) // len(own)
        x = z[output].view(G, R, M, dsub).permute(2, 0, 1, 3).reshape(M * G, R, dsub)  # (m g) r e
        w = self.centroids.index_select(1, own.flatten()).view(M * G, S, dsub)  # (m g) s e
        norms = x.square().sum(2, keepdim=True) + w.square().sum(2)[:, None]
        dist = torch.baddbmm(norms, x, w.transpose(1, 2), alpha=-2).clamp_min(0).view(M, G, R, S)
        # Dividing by the farthest own codeword lets one temperature fit all codebooks. The divisor keeps its gradient, as in
        # the authors' code. Padding is masked last: an infinite distance divided by `far` would make its gradient NaN.
        all_valid = bool(valid.all())
        far = (dist if all_valid else dist.masked_fill(~valid, 0)).amax(-1, keepdim=True).clamp_min(1e-12)
        delta = (dist / (far.detach() if self.detach_divisor else far))[:, :, None]  # m g 1 r s
        logits = delta * torch.tensor([-self.soft, -self.hard], device=z.device).to(delta).view(2, 1, 1)  # m g 2 r s
        weights = (logits if all_valid else logits.masked_fill(~valid[:, None], -torch.inf)).softmax(-1)
        rebuilt = torch.bmm(weights.view(M * G, 2 * R, S), w).view(M, G, 2, R, dsub)
        error = (rebuilt - x.view(M, G, 1, R, dsub)).square().sum((0, 4))  # g 2 r
        if present is not None:
            error = error * present[:, None]
        soft, hard = (error.sum((0, 2)) / (len(z) * dsub)).unbind()
        return soft, hard

    def regulation(self) -> Tensor:
        """R = -tanh of the mean, over codebooks and classes, of the smallest squared distance between own codewords."""
        M, _, dsub = self.centroids.shape
        G, S = self.apart.shape
        if G == 0:
            return self.centroids.new_zeros(())
        w = self.centroids.index_select(1, self.apart.flatten()).view(M, G, S, dsub)
        with torch.no_grad():  # which pair is nearest; its distance is taken again below, without cancellation
            flat = w.reshape(M * G, S, dsub)
            norms = flat.square().sum(2)
            dist = torch.baddbmm(norms[:, :, None] + norms[:, None], flat, flat.transpose(1, 2), alpha=-2)
            nearest = dist.view(M, G, S, S).masked_fill(~self.apart_pairs, torch.inf).flatten(2).argmin(2)  # m g
        i, j = nearest // S, nearest % S
        pick = torch.stack([i, j], 2)[..., None].expand(M, G, 2, dsub)
        pair = w.gather(2, pick)
        return -(pair[:, :, 0] - pair[:, :, 1]).square().sum(2).mean().tanh()

    def loss(self, z: Tensor, pattern: Tensor) -> dict[str, Tensor]:
        """L_ARSQ = omega * soft + hard + rho * R as named, weighted terms."""
        soft, hard = self.rebuild_error(z, pattern)
        return {"soft": self.omega * soft, "hard": hard, "regulation": self.rho * self.regulation()}
