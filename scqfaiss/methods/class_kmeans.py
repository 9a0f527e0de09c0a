"""k-means whose centroids each belong to one class: where codebooks and inverted lists of many classes start from.

k-means that starts from rows drawn at random leaves some classes without a centroid and gives others several, and Lloyd's steps
do not mend that: z of different classes lie on different corners, far apart. Of 150 classes 256 codewords then tell fewer
apart than a code of the predicted class does. Here every class gets a centroid, and the rest go where the squared error is.

n row   e dimension (d, or that of a sub-vector)   c class   k centroid (K)
"""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

from .kmeans import lloyd, shared_lloyd

ITERATIONS = 15  # of Lloyd's steps within the classes; more change no measure
# k centroids leave about k^(-2/D) of the error of rows that fill D dimensions. Rows of one class scatter in few: D = 4.
FALL = 0.5


def shares(errors: list[float], counts: list[int], K: int) -> list[int]:
    """How many of K centroids each class gets, one at least and as many as it has rows at most.

    errors (C,): squared error of each class around its mean; counts (C,): its rows, 1 or more. One after the other goes to the
    class whose error falls most by it. Fewer than K in all where the rows are fewer. Needs K >= C.
    """
    sizes = [1] * len(errors)
    heap = [(-e, c) for c, e in enumerate(errors) if counts[c] > 1]
    heapq.heapify(heap)
    for _ in range(K - len(sizes)):
        if not heap:
            break
        _, c = heapq.heappop(heap)
        sizes[c] += 1
        if sizes[c] < counts[c]:
            heapq.heappush(heap, (-errors[c] / sizes[c] ** (1 + FALL), c))
    return sizes


def class_kmeans(x: Tensor, y: Tensor, K: int, generator: torch.Generator) -> Tensor:
    """x (n, e) float32 and the class of each row y (n,) int64 -> (K, e), fewer than K where the rows are.

    Plain k-means where the classes are more than K.
    """
    present, y = torch.unique(y, return_inverse=True)
    C, n = len(present), len(x)
    if K >= n:
        return x.clone()
    if C > K or C == 1:
        return shared_lloyd(x[None], K, generator)[0]
    counts = torch.bincount(y, minlength=C)
    means = x.new_zeros(C, x.shape[1]).index_add_(0, y, x) / counts[:, None]
    errors = torch.zeros(C, dtype=torch.float64).index_add_(0, y, (x - means[y]).double().square().sum(1))
    sizes = torch.tensor(shares(errors.tolist(), counts.tolist(), K))
    owner = torch.repeat_interleave(torch.arange(C), sizes)
    own = owner == torch.arange(C)[:, None]
    return lloyd(x[None], y, own, owner, (torch.arange(n), y), generator, ITERATIONS)[0]


def codebook_start(parts: Tensor, y: Tensor, K: int, generator: torch.Generator) -> Tensor:
    """Product codebooks that all classes share: parts (M, n, dsub) float32, y (n,) -> (M, K, dsub).

    One codebook stands alone and keeps a codeword to a class: Lloyd's steps over all rows would lower the squared error and
    lose mAP (0.9081 to 0.9046 of 150 classes, 256 codewords). Several share the work, and there the steps win 0.002 to 0.005.
    """
    M, n, dsub = parts.shape
    if dsub == 1 or len(torch.unique(y)) == 1 or n <= K:
        return shared_lloyd(parts, K, generator)
    w = torch.stack([class_kmeans(x, y, K, generator) for x in parts])
    return w if M == 1 else shared_lloyd(parts, K, generator, w)
