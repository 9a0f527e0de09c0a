"""What the tests of single targets share: codebooks, codes, valid galleries, the oracle's answers."""

import faiss
import numpy as np
import pytest

from scqfaiss import footer
from scqfaiss.codebooks import Codebooks, Shape
from scqfaiss.targets import make_options, target

KINDS = ("product", "additive")


def random_codebooks(kind="product", M=4, nbits=4, d=8, metric="ip", seed=0, L=1):
    """Codebooks of random numbers; d is that of a decoded vector. L: lists that are part of the codes, if above 1."""
    rng = np.random.default_rng(seed)
    width = d // max(M, 1) if kind == "product" else d
    centroids = rng.standard_normal((M, 1 << nbits, width)).astype(np.float32)
    lists = None if L == 1 else 2 * rng.standard_normal((L, d)).astype(np.float32)
    return Codebooks(kind, centroids, metric, lists)


def random_codes(codebooks, n, seed=1):
    rng = np.random.default_rng(seed)
    words = rng.integers(0, codebooks.K, (n, codebooks.M))
    if codebooks.lists is None:
        return codebooks.check_codes(words)
    return codebooks.joined(rng.integers(0, codebooks.L, n), words)


def random_queries(nq, d, seed=2):
    return np.random.default_rng(seed).standard_normal((nq, d)).astype(np.float32)


def assert_best(found, scores, ids, k, metric="ip"):
    """D, I are the best k of scores (nq, n) of rows `ids`, by the scores alone: ties may fall to either side."""
    D, I = found
    assert D.shape == I.shape == (len(scores), k)
    held = min(k, len(ids))
    assert (I[:, held:] == -1).all()
    sign = 1 if metric == "ip" else -1
    best = sign * -np.sort(-sign * scores, axis=1)[:, :held]
    order = np.argsort(ids)
    place = order[np.searchsorted(ids[order], I[:, :held])]
    np.testing.assert_array_equal(ids[place], I[:, :held])
    scale = np.abs(scores).max() + 1e-12
    np.testing.assert_allclose(np.take_along_axis(scores, place, 1) / scale, best / scale, atol=1e-5)
    np.testing.assert_allclose(D[:, :held] / scale, best / scale, atol=1e-5)
    assert (np.diff(np.sort(place, axis=1), axis=1) > 0).all()  # no row twice


# name -> target, kind, M, nbits, d, metric, n, options
VALID = {
    "ivfpq": ("ivfpq", "product", 4, 8, 8, "ip", 60, {}),
    "ivfpq l2": ("ivfpq", "product", 4, 4, 8, "l2", 60, {}),
    "ivfpq lists": ("ivfpq", "product", 2, 8, 8, "ip", 60, {"nlist": 5}),
    "pq": ("pq", "product", 3, 5, 9, "ip", 60, {}),
    "fastscan": ("fastscan", "product", 4, 4, 8, "ip", 60, {}),
    "fastscan odd": ("fastscan", "product", 3, 4, 9, "l2", 60, {}),
    "fastscan at most": ("fastscan", "product", 4, 4, 8, "ip", 60, {"refine": 1000}),
    "fastscan alone": ("fastscan", "product", 4, 4, 8, "ip", 60, {"refine": -1}),
    "fastscan additive": ("fastscan", "additive", 4, 4, 6, "ip", 60, {}),
    "words": ("buckets", "product", 2, 4, 8, "ip", 300, {}),
    "words additive": ("buckets", "additive", 2, 4, 5, "ip", 300, {}),
    "boxes": ("buckets", "product", 2, 8, 8, "ip", 300, {"nlist": 12}),
    "boxes additive": ("buckets", "additive", 3, 8, 5, "ip", 300, {"nlist": 12}),
    "many boxes": ("buckets", "product", 2, 8, 8, "ip", 300, {"nlist": 100}),
    "lift": ("lift", "additive", 3, 4, 6, "ip", 60, {}),
    "residual": ("residual", "additive", 3, 5, 6, "ip", 60, {}),
    "residual l2": ("residual", "additive", 3, 5, 6, "l2", 60, {}),
    "ivfpq listed": ("ivfpq", "product", 2, 8, 8, "ip", 60, {}),
    "ivfpq listed l2": ("ivfpq", "product", 4, 4, 8, "l2", 60, {"nprobe": 2}),
    "ivfpq of lists alone": ("ivfpq", "product", 0, 1, 8, "ip", 60, {}),
    "lift listed": ("lift", "additive", 2, 8, 6, "ip", 60, {}),
    "buckets listed": ("buckets", "additive", 4, 4, 6, "ip", 60, {}),
    "buckets of lists alone": ("buckets", "product", 0, 1, 8, "ip", 60, {}),
}
LISTED = [name for name in VALID if "listed" in name or "lists alone" in name]
LISTS = 7


def valid(name):
    """(index with ids of its own, metadata) of a valid gallery."""
    which, kind, M, nbits, d, metric, n, options = VALID[name]
    codebooks = random_codebooks(kind, M, nbits, d, metric, L=LISTS if name in LISTED else 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scqfaiss.targets.bounding_boxes.FLAT_BOXES", 50)  # so that 100 lists take two levels
        index = target(which).build(
            codebooks, random_codes(codebooks, n), np.arange(n) * 2 + 9, make_options(which, options)
        )
    s = Shape(kind, M, nbits, d, metric, codebooks.L)
    metadata = {"target": which, "n": n, "kind": kind, "M": M, "nbits": nbits, "K": s.K, "d": d, "metric": metric}
    if name in LISTED:
        metadata["lists"] = LISTS
    return index, metadata | {"encoder": "none", "d_in": d, "model_sha256": "0" * 64}


def write(path, index, metadata):
    """The index under this metadata and a valid footer."""
    stream = faiss.serialize_index(index).tobytes()
    with open(path, "x+b") as f:
        footer.write_sealed(f, lambda put: put(stream), dict(metadata))
