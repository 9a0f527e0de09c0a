"""FAISS's own codes, as its users make them: a factory string, training and adding, and the codes read back for ranking.

FAISS trains without labels, on rows of the database itself, centered and of length 1 (or on a method's embedding), for inner
products. Where d is no multiple of the number of books zeros are put behind (Pad), which changes no score.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from scqfaiss.arrays import Floats
from scqfaiss.evaluation import Words
from scqfaiss.targets.base import unpack_codes
from scqfaiss.targets.fastscan import unblocked

BASELINES = ("pq", "opq", "ivfpq", "rq", "lsq", "fastscan")
TRAINING_ROWS = 64  # for each codeword of 8 bits: FAISS asks for 39, and more change the second digit of nothing we saw


def padded(d: int, M: int) -> str:
    return "" if d % M == 0 else f"Pad{-(-d // M) * M},"


def factory(method: str, d: int, bits: int, nlist: int) -> str:
    """FAISS's factory string of a baseline at `bits` a vector. Raises ValueError where there is none."""
    M = bits // 8
    if method == "fastscan":
        return f"{padded(d, 2 * M)}PQ{2 * M}x4fs"
    if method == "pq":
        return f"{padded(d, M)}PQ{M}x8np"
    if method == "opq":
        if d < M:
            raise ValueError(f"OPQ needs d of {M} or more, has {d}")
        return f"OPQ{M}_{d // M * M},PQ{M}x8np"
    if method == "ivfpq":
        return f"{padded(d, M)}IVF{nlist},PQ{M}x8np"
    if method in ("rq", "lsq"):
        return f"{method.upper()}{M}x8_Nnone"  # inner products need no norms: scores are sums of table entries
    raise ValueError(f"unknown baseline '{method}', needs one of {', '.join(BASELINES)}")


def lists_for(n: int) -> int:
    """4 sqrt(n) inverted lists, as FAISS advises, as a power of two, and at least 39 rows a list to train with."""
    return int(2 ** np.floor(np.log2(max(1.0, min(4 * np.sqrt(n) * np.sqrt(2), n / 39)))))


@dataclass(frozen=True)
class Built:
    index: Any
    factory: str
    seconds: dict[str, float]  # of training; encode: of adding, in which FAISS encodes


def build(method: str, xb: Floats, bits: int, nlist: int, seed: int, training_rows: int) -> Built:
    """A trained index with all of xb (n, d) in it, under ids 0..n-1. Raises ValueError where FAISS cannot."""
    n, d = xb.shape
    words = 16 if method == "fastscan" else 256
    if n < words:
        raise ValueError(f"{n:,} rows cannot train {words} codewords")
    if method == "opq" and n < d:
        raise ValueError(f"{n:,} rows cannot train a rotation of d={d}")
    text = factory(method, d, bits, nlist)
    index = faiss.index_factory(d, text, faiss.METRIC_INNER_PRODUCT)
    rows = np.random.default_rng(seed).permutation(n)[: max(training_rows, 39 * nlist if method == "ivfpq" else 0)]
    start = time.perf_counter()
    index.train(np.ascontiguousarray(xb[rows]))
    trained = time.perf_counter()
    index.add(xb)
    return Built(index, text, {"train": trained - start, "encode": time.perf_counter() - trained, "add": 0.0})


def read_codes(index: Any, bits: int) -> tuple[NDArray[Any], Words, Floats, int]:
    """(codes (n, M), distinct words, what each word stands for (u, d), K) of an index made by `build`."""
    deep = faiss.downcast_index(index)
    while isinstance(deep, faiss.IndexPreTransform):
        deep = faiss.downcast_index(deep.index)
    n, nbits = index.ntotal, 4 if isinstance(deep, faiss.IndexPQFastScan) else 8
    keys = None
    if isinstance(deep, faiss.IndexIVF):
        deep.make_direct_map()
        codes = np.empty((n, bits // 8), np.uint8)
        lists = np.empty(n, np.int64)
        for number in range(deep.nlist):
            size = deep.invlists.list_size(number)
            if size:
                rows = faiss.rev_swig_ptr(deep.invlists.get_ids(number), size)
                codes[rows] = faiss.rev_swig_ptr(deep.invlists.get_codes(number), size * codes.shape[1]).reshape(
                    size, -1
                )
                lists[rows] = number
        # A vector is its list's centroid and its codes: words differ where either does.
        keys = np.concatenate([codes, lists.astype("<u4").view(np.uint8).reshape(n, 4)], 1)
    elif isinstance(deep, faiss.IndexPQFastScan):
        codes = unblocked(deep)
    else:
        codes = unpack_codes(faiss.vector_to_array(deep.codes).reshape(n, -1), bits // nbits, nbits)
    words = Words.of(codes if keys is None else np.ascontiguousarray(keys))
    first = np.empty(len(words.codes), np.int64)
    first[words.inverse[::-1]] = np.arange(n)[::-1]
    decoded = np.asarray(index.reconstruct_batch(first), np.float32)
    if keys is not None:
        deep.set_direct_map_type(faiss.DirectMap.NoMap)  # it would count as memory, and no search needs it
    return codes, words, decoded, 2**nbits
