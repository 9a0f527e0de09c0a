"""Models of every kind and every target that takes them, for the tests of what happens to a gallery after its export."""

import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import faiss
import numpy as np
import pytest
from conftest import blobs
from contents import with_content

import scqfaiss
from scqfaiss.codebooks import Codebooks
from scqfaiss.encoders.chain import Chain
from scqfaiss.errors import ScqWarning
from scqfaiss.targets import REGISTRY
from scqfaiss.targets import target as find_target

X, Y = blobs(400)
XQ, _ = blobs(9, seed=3)
IDS = 3 * np.arange(len(X)) + 5  # not the numbers of the rows
MODELS = ("product-8", "product-4", "additive-8", "additive-4", "product-l2", "additive-l2")
# The same with lists that are part of the code: their centroids and codewords are z of rows, and what is left of them.
LISTED = (
    "product-8 listed",
    "product-4 listed",
    "product-0 listed",
    "product-l2 listed",
    "additive-8 listed",
    "additive-4 listed",
)
# The same with a content part.
CONTENT = (
    "product-8 content",
    "product-4 content",
    "additive-4 content",
    "product-8 listed content",
    "product-0 listed content",
    "additive-8 listed content",
)
LISTS = 12
OF_CONTENT = 3  # codebooks of a content part, of vectors of d=6
OPTIONS = {"ivfpq": [{"nlist": 8}], "buckets": [{"nlist": 8}], "fastscan": [{"refine": -1}]}


@cache
def model(name):
    """'product' ones have an encoder that stands inside the file, 'additive' ones one that does not; l2 ones have none."""
    if name in CONTENT:
        return with_content(model(name.removesuffix(" content")), X, Y, M=OF_CONTENT)
    if name in LISTED:
        return listed(name)
    kind, what = name.split("-")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScqWarning)
        if what == "l2":
            rng = np.random.default_rng(1)
            codebooks = rng.standard_normal((4, 16, 4 if kind == "product" else 16)).astype(np.float32)
            config = {"method": "pq", "rule": "l2", "encoder": "identity"}
            return scqfaiss.Model(Chain(16), Codebooks(kind, codebooks, "l2"), config)
        asked = {"bits": 16, "nbits": int(what)}
        if kind == "product":
            return scqfaiss.train(X, method="opq", **asked)
        return scqfaiss.train(
            X, Y, method="scq", encoder="linear", epochs=1, forecast="off", **{"codebooks.kind": "additive"}, **asked
        )


def listed(name):
    """The model of the same name without lists, or the first, with lists. With codebooks of 8 bits, codes try several."""
    plain = name.removesuffix(" listed")
    base, s = model("product-8" if plain == "product-0" else plain), shape(name)
    z, rng = base.embed(X), np.random.default_rng(5)
    lists = z[rng.choice(len(z), LISTS, replace=False)]
    near = np.square(z[:, None] - lists).sum(2).argmin(1)
    left = z - lists[near]
    left = left[left.any(1)]  # equal codewords would tie
    dsub = z.shape[1] // max(s.M, 1) if s.kind == "product" else z.shape[1]
    centroids = np.empty((s.M, s.K, dsub), np.float32)
    for m in range(s.M):
        part = left[rng.choice(len(left), s.K, replace=False)]
        centroids[m] = part[:, m * dsub : (m + 1) * dsub] if s.kind == "product" else part / 2**m
    codebooks = Codebooks(s.kind, centroids, s.metric, lists)
    config = {"method": "scq", "rule": "l2", "encoder": base.config["encoder"]}
    if s.nbits == 8:
        config |= {"list_beam": 3}
    return scqfaiss.Model(base.chain, codebooks, config)


def shape(name):
    """Of the model's codebooks, without training it."""
    if name in CONTENT:
        s = shape(name.removesuffix(" content"))
        if s.kind == "product" and s.M:
            return replace(s, M=s.M + OF_CONTENT, d=(s.M + OF_CONTENT) * (s.d // s.M))
        return replace(s, kind="additive", M=s.M + OF_CONTENT, nbits=s.nbits if s.M else 4, d=s.d + 6)
    plain, _, lists = name.partition(" ")
    kind, what = plain.split("-")
    if lists:
        return replace(shape(f"{kind}-8"), M=0, nbits=1, L=LISTS) if what == "0" else replace(shape(plain), L=LISTS)
    nbits = 4 if what == "l2" else int(what)
    return scqfaiss.codebooks.Shape(kind, 16 // nbits, nbits, 16, "l2" if what == "l2" else "ip")


def cases(**wanted):
    """The same as parameters; of several models that one container takes alike, all but the first belong to the slow half."""
    met, out = set(), []
    for name, target, options in every_case(**wanted):
        kind, what = name.split("-")
        alike = (kind, "l2" in what, "listed" in what, "content" in what, target, *options.items())
        more = "".join(f"-{k}{v}" for k, v in options.items())
        marks = [pytest.mark.slow] if alike in met else []
        met.add(alike)
        out.append(pytest.param(name, target, options, id=f"{name}-{target}{more}", marks=marks))
    return out


def every_case(**wanted):
    """(model, target, options) of everything that fits together; wanted: values that TargetInfo must have."""
    for name in (*MODELS, *LISTED, *CONTENT):
        for target in REGISTRY:
            container = find_target(target)
            if container.supports(shape(name)) is None and all(
                getattr(container.INFO, k) == v for k, v in wanted.items()
            ):
                for options in ({}, *(OPTIONS.get(target, []) if name in MODELS else [])):
                    if not (target == "buckets" and options and "l2" in name):  # has no lists of neighbours
                        yield name, target, options


def export(name, path, rows, target=None, ids=None, **options):
    """rows: a slice of X."""
    scqfaiss.export(model(name), X[rows], ids=(IDS if ids is None else ids)[rows], path=path, target=target, **options)


def opened(path, name, **how):
    return scqfaiss.open(path, model=model(name), **how)


def all_rows(path, name):
    """Scores (nq, n) of all rows in the order of their ids, and the ids."""
    gallery = opened(path, name)
    lists = faiss.extract_index_ivf(gallery.index).nlist if gallery.target in ("ivfpq", "lift") else None
    D, I = gallery.search(XQ, gallery.ntotal, nprobe=lists)
    order = I.argsort(1)
    return np.take_along_axis(D, order, 1), np.take_along_axis(I, order, 1)


def assert_same(a, b, name, options):
    """The same bytes; where lists are learned from the rows, the same rows and scores."""
    if "nlist" not in options:
        assert Path(a).read_bytes() == Path(b).read_bytes()
        return
    for one, other in zip(all_rows(a, name), all_rows(b, name)):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    (_, codes, ids), (_, codes_b, ids_b) = opened(a, name).unpack(), opened(b, name).unpack()
    np.testing.assert_array_equal(codes[ids.argsort()], codes_b[ids_b.argsort()])
