"""Additive codebooks: residual k-means to start from, then all codewords at once by least squares.

Chen, Guan, Wang, "Approximate nearest neighbor search by residual vector quantization", Sensors 10(12), 2010 (the start);
Babenko and Lempitsky, "Additive quantization for extreme vector compression", CVPR 2014, and Martinez, Zakhmi, Hoos, Little,
"LSQ++", ECCV 2018 (beam encoding and codebook update in turns).

n row   m codebook (M)   k codeword (K)   d dimension   x^ = sum_m w[m, code_m]
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..codebooks import Codebooks
from ..contract import Progress, silent
from .dead_codewords import gumbel_keys
from .kmeans import sample_rows, shared_lloyd

SEED_ROWS = 256  # rows per codeword that k-means looks at; the rounds after it look at all
ROUNDS = 10  # of encoding and least squares: 8 codebooks of 4 bits lose a third of their error in them, half in 30
RIDGE = 0.1  # weight, in rows, of a codeword's old place: least squares alone leaves M - 1 directions open
MAX_CODEWORDS = 8192  # of all codebooks: the matrix of the least squares takes half a gigabyte there


def encode(z: Tensor, w: Tensor, beam: int) -> Tensor:
    """z (n, d), w (M, K, d) -> codes (n, M) int64, by the code that will encode the database."""
    return torch.from_numpy(Codebooks("additive", w.numpy()).assign(z.numpy(), "l2", beam).astype("int64"))


def remainder(z: Tensor, w: Tensor, codes: Tensor) -> Tensor:
    """z - x^, (n, d)."""
    left = z.clone()
    for m, codebook in enumerate(w):
        left -= codebook[codes[:, m]]
    return left


def start(z: Tensor, M: int, K: int, beam: int, generator: torch.Generator, progress: Progress = silent) -> Tensor:
    """Residual k-means: each codebook is k-means on what the codebooks before leave of z (n, d), encoded by beam -> (M, K, d)."""
    w = z.new_zeros(0, K, z.shape[1])
    for m in range(M):
        progress("k-means", m, M, "")
        sample = sample_rows(len(z), SEED_ROWS * K, generator)
        left = remainder(z, w, encode(z, w, beam)) if m else z
        w = torch.cat([w, shared_lloyd(left[sample][None], K, generator)])
    return w


def least_squares(z: Tensor, codes: Tensor, w: Tensor, ridge: float = RIDGE) -> Tensor:
    """argmin over v (M, K, d) of sum_n ||z_n - sum_m v[m, codes_nm]||^2 + ridge ||v - w||^2, in float64.

    With B (n, M K) the rows' 0/1 choices and D = v - w: (B'B + ridge I) D = B'(z - x^). B'B counts the rows that two
    codewords share, so it is filled by counting. A codeword without rows stays where it is.
    """
    M, K, d = w.shape
    left = remainder(z.double(), w.double(), codes)
    A = torch.empty(M, K, M, K, dtype=torch.float64)
    b = torch.zeros(M, K, d, dtype=torch.float64)
    for i in range(M):
        b[i].index_add_(0, codes[:, i], left)
        for j in range(i + 1):
            shared = torch.bincount(codes[:, i] * K + codes[:, j], minlength=K * K).view(K, K).double()
            A[i, :, j], A[j, :, i] = shared, shared.T
    A = A.view(M * K, M * K)
    A.diagonal().add_(ridge)
    step = torch.cholesky_solve(b.view(M * K, d), torch.linalg.cholesky(A))
    return (w.double() + step.view(M, K, d)).to(w.dtype)


def revive(w: Tensor, codes: Tensor, left: Tensor, generator: torch.Generator) -> Tensor:
    """w (M, K, d) with every codeword that no row uses moved to where it makes one row exact.

    Rows are drawn by their squared remainder `left` (n, d), as k-means++ draws seeds: w[m, k] = w[m, codes_nm] + left_n.
    """
    w = w.clone()
    energy = left.square().sum(1)
    for m, codebook in enumerate(w):
        dead = (torch.bincount(codes[:, m], minlength=len(codebook)) == 0).nonzero()[:, 0]
        rows = gumbel_keys(energy, generator).topk(min(len(dead), len(left))).indices
        codebook[dead[: len(rows)]] = codebook[codes[rows, m]] + left[rows]
    return w


def train(
    z: Tensor,
    M: int,
    K: int,
    beam: int,
    generator: torch.Generator,
    rounds: int = ROUNDS,
    progress: Progress = silent,
) -> Tensor:
    """Additive codebooks for the rows z (n, d) float32 on the CPU -> (M, K, d) float32.

    After the start, `rounds` of least squares on the codes and encoding by the new codewords; the first that does not lower
    the distortion ends them. One codebook is k-means, and codebooks of more codewords than can be solved for stay as they
    started.
    """
    w = start(z, M, K, beam, generator, progress)
    if M == 1 or M * K > MAX_CODEWORDS:
        return w
    codes = encode(z, w, beam)
    error = float(remainder(z, w, codes).double().square().sum())
    for done in range(rounds):
        progress("codebooks", done, rounds, "")
        better = least_squares(z, codes, w)
        better = revive(better, codes, remainder(z, better, codes), generator)
        new_codes = encode(z, better, beam)
        new_error = float(remainder(z, better, new_codes).double().square().sum())
        if not new_error < error:
            break
        w, codes, error = better, new_codes, new_error
    return w
