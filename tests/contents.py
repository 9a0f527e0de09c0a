"""Content codes for models that have none, made from rows without a training: for tests of everything behind it."""

import numpy as np

from scqfaiss import Model
from scqfaiss.codebooks import Codebooks
from scqfaiss.content import Content, Gate
from scqfaiss.encoders.chain import Chain

FACTS = {"auc": 0.9, "loss": 0.01, "gain": 0.1, "on": True}


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def gate_of(z, v, y, on=True, G=3, seed=0):
    """A gate whose classes are means of rows z, v with class numbers y, and whose other numbers are random."""
    rng = np.random.default_rng(seed)
    means = [unit(np.stack([a[y == c].mean(0) for c in np.unique(y)])) for a in (z, v)]
    tops, shares = rng.standard_normal((2, G)).astype(np.float32)
    coefficients, weighing = rng.standard_normal((2, 5)).astype(np.float32)
    return Gate(*means, unit(v[:G]), 0.3, tops, shares, coefficients, FACTS | {"on": on}, 0.25, weighing)


def asked(gate, z, v):
    """What a gate says of rows z, v (n, d) where it sets their weights, (n,)."""
    t = gate.features(z, v) @ gate.weighing[:-1].astype(np.float64) + float(gate.weighing[-1]) + gate.caution
    return 1 / (1 + np.exp(-t))


def content_of(model, x, y=None, M=2, nbits=None, d=6, weights=(0.05, 2.0), on=True, seed=0):
    """Content codes for the rows x (n, d_in) of a model without: random directions of them, and codewords that are rows."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((d, model.d_in)).astype(np.float32)
    chain = Chain(model.d_in, [("center", {"mean": x.mean(0)}), ("linear", {"A": A}), ("normalize", {})])
    z, v, s = model.vectors(x), chain(x), model.codebooks
    lists, left = None, v
    if s.lists is not None:
        numbers = model.encode(x)[:, 0].astype(int)
        lists = np.stack([v[numbers == i].mean(0) if (numbers == i).any() else 0 * v[0] for i in range(s.L)])
        left = v - lists[numbers]
        left = left[left.any(1)]  # equal codewords would tie
    kind, K = (s.kind, s.K) if s.M else ("additive", 1 << (nbits or 4))
    dsub = d // M if kind == "product" else d
    centroids = np.empty((M, K, dsub), np.float32)
    for m in range(M):
        part = left[rng.choice(len(left), K, replace=False)]
        centroids[m] = part[:, m * dsub : (m + 1) * dsub] if kind == "product" else part / 2**m
    gate = None if y is None else gate_of(z, v, y, on)
    return Content(chain, Codebooks(kind, centroids, "ip", lists), weights, gate, 1 if kind == "product" else 3)


def with_content(model, x, y=None, **how):
    """The same model with content codes; how: of content_of."""
    return Model(model.chain, model.codebooks, model.config, model.backbone, content_of(model, x, y, **how))
