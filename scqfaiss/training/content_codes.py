"""Content codes: what is learned of rows without their labels, beside the codes that know them.

v is a row centered, of length 1, on its principal axes. Where unlabelled rows teach the codebooks, v is also drawn half the
way to the centroids of these that it is near: rows of one class that nobody labelled lie together all the same. On splits of
the training rows of CLINC150 with 30 of 150 classes left out, the mAP of these classes' queries by v alone rises from .70 and
.75 to .77 and .83; where the unlabelled rows hold none of these classes it falls from .66 to .62.

n row   d dimension of v   m codebook (M)   k codeword (K)   g centroid (G)
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..arrays import Floats
from ..codebooks import Codebooks, Shape
from ..content import Content
from ..contract import Progress
from ..encoders.chain import Chain
from ..methods import residual
from ..methods.kmeans import sample_rows, shared_lloyd
from ..methods.lists import means
from ..model import Model

AXES = 64  # principal axes of the rows; 32 and 128 rank .02 to .04 lower
SHARE = 0.5  # of the way to the centroids; 0.65 ranks .002 higher, and falls deeper for rows of no centroid
TEMPERATURE = 0.05  # of the softmax over the centroids, in cosines
NULL = 0.25  # quantile of the rows' largest cosines to a centroid: rows that are further away are not drawn
SEED_ROWS = 256  # a centroid or codeword that k-means looks at
MIN_ROWS = 8  # a centroid
BEAM = 8  # of additive codebooks: partial sums that encoding carries from codebook to codebook


def dimension(d_in: int, M: int) -> int:
    """Of v: AXES or all there are, up to a multiple of M."""
    return -(-min(AXES, d_in) // M) * M


def joint_shape(semantic: Shape, bits: int, nbits: int, d_in: int) -> Shape:
    """The shape of codes with a content part of `bits` bits, as content.Joint makes them of semantic ones."""
    M = bits // nbits
    d = dimension(d_in, M)
    if semantic.kind == "additive" or semantic.M == 0:
        return Shape("additive", semantic.M + M, nbits, semantic.d + d, semantic.metric, semantic.L)
    dsub = max(semantic.d // semantic.M, d // M)
    return Shape("product", semantic.M + M, nbits, (semantic.M + M) * dsub, semantic.metric, semantic.L)


def clusters_for(n: int) -> int:
    """How many centroids n rows get: 2 sqrt(n), a power of two, and no fewer than MIN_ROWS rows each."""
    return max(1, min(1 << round(math.log2(2 * math.sqrt(n))), n // MIN_ROWS))


def cluster(v: Floats, seed: int) -> Floats:
    """v (n, d) of length 1 -> centroids (G, d), of length 1 as well (spherical k-means up to the last step)."""
    generator = torch.Generator().manual_seed(seed)
    G = clusters_for(len(v))
    rows = sample_rows(len(v), SEED_ROWS * G, generator)
    return unit(shared_lloyd(torch.from_numpy(v)[rows][None], G, generator)[0].numpy())


def content_chain(x: Floats, M: int, drawn: bool, seed: int) -> Chain:
    """x (n, d_in) -> the layers of v. d is a multiple of M; drawn: whether v is drawn to centroids of these rows."""
    mean = x.mean(0, dtype=np.float64).astype(np.float32)
    centered = Chain(x.shape[1], [("center", {"mean": mean}), ("normalize", {})])
    d = dimension(x.shape[1], M)
    chain = centered.then(("linear", {"A": principal_axes(centered(x), d, M)}), ("normalize", {}))
    if not drawn:
        return chain
    v = chain(x)
    keys = cluster(v, seed)
    null = np.quantile((v @ keys.T).max(1), NULL)
    mix = np.array([SHARE, 1 / TEMPERATURE, null], np.float32)
    return chain.then(("attend", {"keys": keys, "mix": mix}), ("normalize", {}))


def principal_axes(x: Floats, d: int, M: int) -> Floats:
    """x (n, d_in) -> (d, d_in): the axes of largest variance, dealt so that all M sub-vectors hold about as much of it.

    Each axis goes to the sub-vector with the smallest product of variances that has room ("eigenvalue allocation": Ge, He, Ke,
    Sun, "Optimized product quantization", CVPR 2013, section 3.2.2). Rows of zeros where d is above d_in.
    """
    centered = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    variances, axes = np.linalg.eigh(centered.T @ centered / len(x))
    kept = min(d, x.shape[1])
    variances, axes = variances[::-1][:kept], axes.T[::-1][:kept]
    logs = np.log(np.maximum(variances, 1e-12 * max(float(variances[0]), 1e-30)))
    places: list[list[int]] = [[] for _ in range(M)]
    products = np.zeros(M)
    for i, log in enumerate(logs - logs[-1]):  # none below 0: every axis makes a sub-vector fuller
        room = [m for m in range(M) if len(places[m]) < d // M]
        m = min(room, key=lambda m: (products[m], m))
        places[m].append(i)
        products[m] += log
    A = np.zeros((M, d // M, x.shape[1]), np.float32)
    for m, chosen in enumerate(places):
        A[m, : len(chosen)] = axes[chosen]
    return A.reshape(d, x.shape[1])


def content_codebooks(
    v: Floats, lists: NDArray[np.int64] | None, semantic: Codebooks, M: int, nbits: int, seed: int, progress: Progress
) -> Codebooks:
    """v (n, d) and the semantic list of each row (n,), None without lists -> the codebooks of the content part."""
    generator = torch.Generator().manual_seed(seed)
    kind = semantic.kind if semantic.M else "additive"
    centroids = None
    if lists is not None:
        whole = np.tile(v.mean(0, dtype=np.float64).astype(np.float32), (semantic.L, 1))  # for lists without rows
        centroids = means(v, lists, whole)
        v = v - centroids[lists]
    z = torch.from_numpy(v)
    progress("content codes", 0, 1, "")
    if kind == "additive":
        w = residual.train(z, M, 1 << nbits, BEAM, generator, progress=progress)
    else:
        w = shared_lloyd(_parts(z, M, 1 << nbits, generator), 1 << nbits, generator)
    return Codebooks(kind, w.numpy(), "ip", centroids)


def _parts(z: Tensor, M: int, K: int, generator: torch.Generator) -> Tensor:
    """Rows that k-means looks at, (M, n, d / M)."""
    rows = sample_rows(len(z), SEED_ROWS * K, generator)
    parts: Tensor = z[rows].unflatten(1, (M, -1)).transpose(0, 1).contiguous()
    return parts


def learn(model: Model, bank: Floats, bits: int, nbits: int, drawn: bool, progress: Progress) -> Content:
    """The content part of a model's codes from rows `bank` (n, d_in): weights of 1 that nobody chose, and no gate."""
    M, seed = bits // nbits, int(model.config["seed"])
    chain = content_chain(bank, M, drawn, seed)
    lists, _ = model.semantic.split(model.assign(model.chain(bank)))
    codebooks = content_codebooks(chain(bank), lists, model.semantic, M, nbits, seed, progress)
    return Content(chain, codebooks, (1.0, 1.0), beam=BEAM if codebooks.kind == "additive" else 1)


def unit(x: NDArray[np.floating]) -> Floats:
    """Rows of length 1; rows of zeros stay."""
    norm = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(x / np.where(norm > 0, norm, 1), np.float32)
