"""Inverted lists learned with the codes: a row is the centroid of its list and a code of what that leaves over.

In which list a row stands costs no byte, as its id has to stand somewhere: the list is a code. Each list belongs to one class,
see class_kmeans. Residual codebooks are trained as codebooks of whole vectors are, and then lists and codewords in turn.

n row   d dimension of z   l list (L)   m codebook (M)   k codeword (K)
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..codebooks import Codebooks, Codes
from ..contract import Progress, Task, silent
from ..errors import warn
from .cfa import Features
from .class_kmeans import class_kmeans
from .kmeans import sample_rows
from .residual import MAX_CODEWORDS, least_squares

Array = NDArray[np.float32]

SEED_ROWS = 256  # rows a list that k-means looks at
ROWS = 32  # rows a list that are made of the training rows, where these are fewer
BEAM = 4  # lists that encoding tries
ROUNDS = 6  # of encoding and updates: the squared error falls by 10 %, most of it in the first two


def copies(n: int, L: int, wanted: int) -> int:
    """Passes over n training rows that give ROWS a list, `wanted` at least."""
    return max(wanted, -(-ROWS * L // max(n, 1))) if L > 1 else wanted


def learn(z: Tensor, y: Tensor | None, L: int, seed: int, progress: Progress = silent) -> Tensor:
    """z (n, d) float32 on the CPU, classes y (n,) int64 or None -> centroids (L, d); fewer where the rows are fewer."""
    progress("lists", 0, 1, "")
    generator = torch.Generator().manual_seed(seed)
    sample = sample_rows(len(z), SEED_ROWS * L, generator)
    y = torch.zeros(len(z), dtype=torch.int64) if y is None else y
    if len(z) < L:
        warn(f"{len(z):,} rows can fill at most {len(z):,} of {L:,} lists")
    lists = class_kmeans(z[sample], y[sample], L, generator)
    if len(lists) < 2:
        lists = torch.cat([lists, lists[:1]])  # codes need two lists to tell apart
    return lists


def of_task(z: Tensor, features: Features | None, task: Task) -> Tensor:
    """The lists of a training from its rows z (n, d), each of a class that `features` predicts, where there are any."""
    classes = None if features is None else features.predicted(z)
    return learn(z, classes, task.lists, task.seed, task.progress)


def residuals(z: Tensor, lists: Tensor) -> Tensor:
    """z (n, d) on any device, with its gradient, less the centroid of the nearest list, (n, d)."""
    numbers = Codebooks.of_lists(lists.numpy()).assign(z.detach().cpu().numpy(), "l2")[:, 0]
    return z - lists[torch.from_numpy(numbers.astype(np.int64))].to(z.device)


def refine(
    z: Array, codebooks: Codebooks, beam: int = 1, progress: Progress = silent, rounds: int = ROUNDS
) -> Codebooks:
    """Lists and residual codebooks in turn, each the best for the other and for the codes; then the rows are encoded anew.

    z (n, d) float32: the rows they learn from. beam: as Codebooks.assign takes it. Codes are those of encoding. The first round
    that does not lower the squared error ends them, and counts for nothing.
    """

    def encoded(codebooks: Codebooks) -> tuple[Codes, float]:
        codes = codebooks.assign(z, "l2", beam, BEAM)
        return codes, float(np.square(z - codebooks.decode(codes), dtype=np.float64).sum())

    codes, error = encoded(codebooks)
    for done in range(rounds):
        progress("lists and codebooks", done, rounds, "")
        updated = _updated(z, codebooks, codes)
        new_codes, new_error = encoded(updated)
        if not new_error < error:
            break
        codebooks, codes, error = updated, new_codes, new_error
    return codebooks


def _updated(z: Array, codebooks: Codebooks, codes: Codes) -> Codebooks:
    """Centroids of lists as means of what the codewords leave over, then codewords of what the lists leave over."""
    assert codebooks.lists is not None
    numbers, words = codebooks.split(codes)
    assert numbers is not None
    lists = means(z - codebooks.residual.decode(words), numbers, codebooks.lists)
    chosen: NDArray[np.int64] = words.astype(np.int64)
    left, w = z - lists[numbers], codebooks.centroids
    if codebooks.kind == "product":
        dsub = w.shape[2]
        parts = [left[:, m * dsub : (m + 1) * dsub] for m in range(len(w))]
        w = np.stack([means(part, chosen[:, m], w[m]) for m, part in enumerate(parts)])
    elif codebooks.M == 1:
        w = means(left, chosen[:, 0], w[0])[None]
    elif codebooks.M * codebooks.K <= MAX_CODEWORDS:
        w = least_squares(torch.from_numpy(left), torch.from_numpy(chosen), torch.from_numpy(w)).numpy()
    return Codebooks(codebooks.kind, w, codebooks.metric, lists)


def means(x: Array, place: NDArray[np.int64], before: Array) -> Array:
    """Mean of the rows x (n, e) at each place (n,), (K, e); `before` (K, e) where there are none."""
    sums = torch.zeros(before.shape, dtype=torch.float64).index_add_(
        0, torch.from_numpy(place), torch.from_numpy(x).double()
    )
    counts = np.bincount(place, minlength=len(before))[:, None]
    return np.where(counts > 0, sums.numpy() / np.maximum(counts, 1), before).astype(np.float32)
