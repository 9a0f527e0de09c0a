"""SCA, the first step of SCQ: one unit vector per class, as far apart on the sphere as the classes are different.

Song, Zhang, Zhu, Zhao, Wang, Shen. IEEE Trans. Image Processing 32:6485-6499, 2023.

i, j, k class (C)   d dimension   S similarity of classes in [0, 1]   T target cosine
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..arrays import Labels
from ..errors import ConfigError, DataError, printable, warn

Matrix = NDArray[np.float64]

STEPS = 10_000  # of the optimiser; each costs C^2 d multiplications
DECAY_EVERY = 2_000


@dataclass(frozen=True)
class Centers:
    """centers (C, d) float32, unit norm; where they come from; how far their cosines are from the target ones."""

    centers: NDArray[np.float32]
    source: str
    rms_error: float
    max_error: float


def simplex(C: int, d: int, seed: int = 0) -> Matrix:
    """C unit vectors (C, d) float64 whose cosines are all -1/(C-1): the minimum of the SCA loss for identity S.

    Needs d >= C - 1. Turned by a random rotation, because product codebooks cut vectors into contiguous pieces: without it
    most pieces would be zero. Raises ConfigError for C < 2 or d < C - 1.
    """
    if C < 2 or d < C - 1:
        raise ConfigError(f"{C} classes need centers of at least {max(C - 1, 1)} dimensions, got d={d}")
    # Rows of I - 11'/C in Helmert's basis of the (C-1)-dimensional space orthogonal to 1.
    k = np.arange(1, C)
    basis = np.tril(np.ones((C - 1, C)), 0) / np.sqrt(k * (k + 1))[:, None]  # entry i <= row: 1 / sqrt(k (k + 1))
    basis[np.arange(C - 1), k] = -k / np.sqrt(k * (k + 1))
    corners = basis.T / np.linalg.norm(basis.T, axis=1, keepdims=True)
    turn, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, C - 1)))
    turn *= np.sign(np.diag(r))  # makes the factorisation, hence the rotation, unique
    return np.asarray(corners @ turn.T)


def aligned_simplex(C: int, d: int) -> Matrix:
    """The same simplex with every class on an axis of its own, the axes spread evenly over the d places. Needs d >= C.

    Rows of I - 11'/C, normalised. A codebook then codes the posterior of its own few classes, sparse and far easier to quantize
    than a random mixture of all: the squared error of 2 x 8 bits falls by 40 %.
    """
    corners = np.eye(C) - 1 / C
    out = np.zeros((C, d))
    out[:, np.linspace(0, d - 1, C).round().astype(int)] = corners / np.linalg.norm(corners, axis=1, keepdims=True)
    return out


def turned_onto(vectors: Matrix, wanted: Matrix) -> Matrix:
    """found (C, d) turned as a whole to lie as near as possible to `wanted` (C, d): orthogonal Procrustes.

    All cosines stay. Schoenemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 31, 1966.
    """
    u, _, v = np.linalg.svd(vectors.T @ wanted)
    return np.asarray(vectors @ (u @ v))


def cooccurrence(labels: Labels) -> Matrix:
    """Jaccard similarity of classes over the rows: n_ij / (n_i + n_j - n_ij), 0 for classes without rows. (C, C)."""
    both = np.zeros((labels.C, labels.C))
    step = max(1, min(1 << 24, (1 << 26) // labels.C))  # float32 counts exactly up to 2^24
    for i in range(0, len(labels), step):
        multi_hot = labels.take(slice(i, i + step)).multi_hot().astype(np.float32)
        both += multi_hot.T @ multi_hot
    n = both.diagonal()
    either = n[:, None] + n[None, :] - both
    S = np.divide(both, either, out=np.zeros_like(both), where=either > 0)
    np.fill_diagonal(S, 1)
    return S


def from_vectors(vectors: Matrix, labels: Labels | None = None) -> Matrix:
    """(1 + cos(v_i, v_j)) / 2 of class vectors (C, e). Raises DataError naming a class whose vector is zero."""
    norm = np.linalg.norm(vectors, axis=1)
    if (norm == 0).any():
        k = int(np.argmin(norm))
        raise DataError(f"the vector of class {labels.class_name(k) if labels else k} is zero, it has no direction")
    unit = vectors / norm[:, None]
    S = (1 + unit @ unit.T) / 2
    np.fill_diagonal(S, 1)
    return np.asarray(np.clip(S, 0, 1))


def read_matrix(path: str, labels: Labels, square: bool) -> tuple[Matrix, str]:
    """A (C, C) or (C, e) .npy file -> (float64 matrix, its SHA-256). Raises ConfigError or DataError.

    Where classes without rows were left out the file may hold all that were declared: those left out are passed over.
    """
    name = printable(path)
    if not Path(path).is_file():
        raise ConfigError(f"{name}: no such file")
    try:
        a = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{name}: not a sound .npy file") from error
    whole = labels.numbers is not None and a.ndim == 2 and len(a) == labels.declared
    C = labels.declared if whole else labels.C
    if a.ndim != 2 or len(a) != C or a.dtype.kind not in "fiu" or (square and a.shape[1] != C):
        raise DataError(
            f"{name} is {a.shape} {a.dtype}, needs ({C}, {C if square else 'e'}) numbers, a row for each class"
        )
    if whole:
        assert labels.numbers is not None
        a = a[np.ix_(labels.numbers, labels.numbers)] if square else a[labels.numbers]
    a = a.astype(np.float64)
    if not np.isfinite(a).all():
        raise DataError(f"{name}: row {int(np.argmin(np.isfinite(a).all(1)))} is not finite")
    return a, hashlib.sha256(np.ascontiguousarray(a).data).hexdigest()


def check_similarity(S: Matrix, name: str) -> Matrix:
    """S in [0, 1] with ones on the diagonal, symmetric -> S; an asymmetric S is averaged with its transpose."""
    if (S < 0).any() or (S > 1).any():
        raise DataError(f"{name} holds {S.min():g} to {S.max():g}, similarities run from 0 to 1")
    if not np.allclose(S.diagonal(), 1):
        k = int(np.argmin(S.diagonal()))
        raise DataError(f"{name}: class {k} has similarity {S[k, k]:g} to itself, needs 1")
    gap = float(np.abs(S - S.T).max())
    if gap > 1e-6:
        warn(f"{name} is not symmetric (largest difference {gap:.2f}): averaged with its transpose")
        S = (S + S.T) / 2
    return S


def loss(u: Tensor, target: Tensor) -> Tensor:
    """L_SCA of free vectors u (C, d) against target cosines (C, C); scalar.

    1/(C(C-1)) sum_{i!=j} (T_ij - cos_ij)^2 + 1/C sum_i max_{j!=i} (T_ij - cos_ij)^2.
    """
    C = len(u)
    unit = torch.nn.functional.normalize(u, dim=1)
    gap = (target - unit @ unit.T).square().masked_fill(torch.eye(C, dtype=torch.bool, device=u.device), 0)  # i j
    return gap.sum() / (C * (C - 1)) + gap.amax(1).mean()


def optimise(T: Matrix, d: int, seed: int = 0, steps: int = STEPS, decay_every: int = DECAY_EVERY) -> Matrix:
    """Unit vectors (C, d) float64 that minimise L_SCA for target cosines T (C, C).

    SGD with Nesterov momentum 0.9, learning rate 1, x 0.9 every `decay_every` steps, from N(0, 2^2); stops early when
    the best loss improves by less than 1e-6 of itself over 500 steps.
    """
    generator = torch.Generator().manual_seed(seed)
    u = (2 * torch.randn(len(T), d, generator=generator, dtype=torch.float64)).requires_grad_()
    target = torch.from_numpy(T)
    optimizer = torch.optim.SGD([u], lr=1.0, momentum=0.9, nesterov=True)
    best, best_u, mark = np.inf, u.detach().clone(), np.inf
    for step in range(steps):
        optimizer.zero_grad()
        value = loss(u, target)
        value.backward()  # type: ignore[no-untyped-call]
        if value.item() < best:
            best, best_u = value.item(), u.detach().clone()
        optimizer.step()
        if step % decay_every == decay_every - 1:
            optimizer.param_groups[0]["lr"] *= 0.9
        if step % 500 == 499:
            if mark - best < 1e-6 * best:
                break
            mark = best
    return np.asarray(torch.nn.functional.normalize(best_u, dim=1).numpy())


def similarity_matrix(
    similarity: str, class_vectors: str, labels: Labels, means: Matrix | None = None
) -> tuple[Matrix, str]:
    """The similarity of classes (C, C) that a Config asks for, and its name; see class_centers."""
    if class_vectors:
        if similarity != "auto":
            raise ConfigError("similarity and class_vectors exclude each other; give one")
        vectors, sha = read_matrix(class_vectors, labels, square=False)
        return from_vectors(vectors, labels), f"class vectors {sha[:12]}"
    if similarity == "cooccurrence" or (similarity == "auto" and labels.multilabel):
        return cooccurrence(labels), "cooccurrence"
    if similarity in ("auto", "identity"):
        return np.eye(labels.C), "identity"
    if similarity == "means":
        assert means is not None
        return from_vectors(means - means.mean(0), labels), similarity
    S, sha = read_matrix(similarity, labels, square=True)
    return check_similarity(S, printable(similarity)), f"similarity {sha[:12]}"


def class_centers(S: Matrix, source: str, target: str, d: int, M: int, seed: int, align: bool = True) -> Centers:
    """Centers (C, d) for a similarity S (C, C).

    target: 'plain' T = 2S - 1; 'simplex' T = S - (1-S)/(C-1), which is nearer to what vectors can attain. Identity S has a
    closed form; anything else is optimised. align: turned as a whole, which changes no cosine, so that each of the M
    contiguous pieces holds classes of its own as far as that can be; otherwise in a random position.
    """
    C = len(S)
    plain = np.array_equal(S, np.eye(C))
    align = align and d >= C >= M
    if plain and d >= C - 1:
        T = S - (1 - S) / (C - 1)  # what the closed form attains exactly
        centers = aligned_simplex(C, d) if align else simplex(C, d, seed)
    else:
        T = 2 * S - 1 if target == "plain" else S - (1 - S) / (C - 1)
        centers = optimise(T, d, seed)
        if align:
            centers = turned_onto(centers, aligned_simplex(C, d))
    gap = (centers @ centers.T - T)[~np.eye(C, dtype=bool)]
    return Centers(centers.astype(np.float32), source, float(np.sqrt(np.mean(gap**2))), float(np.abs(gap).max()))


def class_means(rows: Any, labels: Labels) -> Matrix:
    """(C, d) float64 mean of each class's rows; the overall mean for classes without rows. One pass over the rows."""
    sums, hot_count = np.zeros((labels.C, rows.d)), labels.counts()
    for i, x in rows.blocks():
        sums += labels.take(slice(i, i + len(x))).multi_hot().T.astype(np.float64) @ x
    means = sums / np.maximum(hot_count, 1)[:, None]
    means[hot_count == 0] = means[hot_count > 0].mean(0)
    return np.asarray(means)
