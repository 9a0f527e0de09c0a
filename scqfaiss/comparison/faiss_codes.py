"""FAISS's own codes, as its users make them: a factory string, training and adding, and the codes read back for ranking.

FAISS trains without labels, on rows of the database itself, centered and of length 1 (or on a method's embedding), for inner
products. Where d is no multiple of the number of codebooks zeros are put between the dimensions, which changes no score, so that
every codebook has some of them.

IVFPQ's lists: FAISS's factory makes them for rows of length 1, by spherical k-means. An embedding has rows of any length, of
which that puts most into few lists; there they are of plain k-means, rows go to the nearest and queries to the best by inner
product: `IVF{n}(L2),PQ{M}np` here, which no factory string makes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from .. import faiss_calls
from ..arrays import Floats
from ..evaluation.ranking import Words
from ..targets.base import unpack_codes
from ..targets.fastscan import unblocked


def codebooks_of(method: str, bits: int) -> int:
    """How many codebooks share the dimensions between them; 1 of additive codes, whose codebooks have all of them."""
    return {"rq": 1, "lsq": 1, "fastscan": bits // 4}.get(method, bits // 8)


def factory(method: str, bits: int, nlist: int) -> str:
    """FAISS's factory string of a baseline at `bits` a vector, for a d that its codebooks divide."""
    M = bits // 8
    return {
        "pq": f"PQ{M}x8np",
        "opq": f"OPQ{M},PQ{M}x8np",
        "ivfpq": f"IVF{nlist},PQ{M}x8np",
        "rq": f"RQ{M}x8_Nnone",  # inner products need no norms: scores are sums of table entries
        "lsq": f"LSQ{M}x8_Nnone",
        "fastscan": f"PQ{2 * M}x4fs",
    }[method]


def lists_for(n: int) -> int:
    """4 sqrt(n) inverted lists, as FAISS advises, as a power of two, and at least 39 rows a list to train with."""
    return int(2 ** np.floor(np.log2(max(1.0, min(4 * np.sqrt(n) * np.sqrt(2), n / 39)))))


@dataclass(frozen=True)
class Built:
    index: Any
    factory: str  # as FAISS's factory would write it
    seconds: dict[str, float]  # of training; encode: of adding, in which FAISS encodes


def build(method: str, xb: Floats, bits: int, nlist: int, seed: int, training_rows: int) -> Built:
    """A trained index with all of xb (n, d) in it, under ids 0..n-1. Raises ValueError where FAISS cannot."""
    n, d = xb.shape
    words, M = 16 if method == "fastscan" else 256, codebooks_of(method, bits)
    rows = np.random.default_rng(seed).permutation(n)[: max(training_rows, 39 * nlist if method == "ivfpq" else 0)]
    wide = -(-d // M) * M
    if len(rows) < words:
        raise ValueError(f"{len(rows):,} rows cannot train {words} codewords")
    if d < M:
        raise ValueError(f"{M} codebooks cannot share d={d}: some would have nothing to code")
    if method == "opq" and len(rows) < wide:  # FAISS would write beyond its arrays
        raise ValueError(f"{len(rows):,} rows cannot train a rotation of d={wide}")
    text = factory(method, bits, nlist)
    unit = bool(np.allclose(np.einsum("nd,nd->n", xb[:1000], xb[:1000]), 1, atol=1e-3))
    plain_lists = method == "ivfpq" and not unit
    if plain_lists:
        text = text.replace(",", "(L2),")
        index = with_plain_lists(wide, nlist, M)
    else:
        index = faiss.index_factory(wide, text, faiss.METRIC_INNER_PRODUCT)
    if wide > d:
        text = f"Remap{wide},{text}"
        index = faiss.IndexPreTransform(faiss.RemapDimensionsTransform(d, wide, True), index)
    start = time.perf_counter()
    index.train(np.ascontiguousarray(xb[rows]))
    trained = time.perf_counter()
    index.add(xb)
    seconds = {"train": trained - start, "encode": time.perf_counter() - trained, "add": 0.0}
    if plain_lists:
        probe_by_product(faiss.extract_index_ivf(index))
    return Built(index, text, seconds)


def with_plain_lists(d: int, nlist: int, M: int) -> Any:
    """An untrained IndexIVFPQ for inner products whose lists are of plain k-means; once filled it needs probe_by_product."""
    index = faiss.IndexIVFPQ(faiss.IndexFlatL2(d), d, nlist, M, 8, faiss.METRIC_INNER_PRODUCT)
    index.do_polysemous_training, index.cp.spherical = False, False
    return index


def probe_by_product(ivf: Any) -> None:
    """Let queries choose among lists by inner product, with the centroids that rows were given to by distance."""
    centroids = faiss_calls.stored_rows(ivf.quantizer)
    flat = faiss.IndexFlatIP(ivf.d)
    flat.add(centroids)
    ivf.quantizer, ivf.own_fields = flat, False
    ivf.referenced_objects = [flat]  # Python would free it


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
    decoded = faiss_calls.reconstruct(index, first)
    if keys is not None:
        deep.set_direct_map_type(faiss.DirectMap.NoMap)  # it would count as memory, and no search needs it
    return codes, words, decoded, 2**nbits
