"""FAISS's own codes, as its users make them: a factory string, training and adding, and the codes read back for ranking.

FAISS trains without labels, on rows of the database itself, centered and of length 1 (or on a method's embedding), for inner
products. Where d is no multiple of the number of codebooks zeros are put between the dimensions, which changes no score, so that
every codebook has some of them.

With inverted lists (`lists` above 1) codes are those of residuals, and a vector is its list's centroid plus its codes. FAISS's
factory makes lists for rows of length 1, by spherical k-means. An embedding has rows of any length, of which that puts most into
few lists; there they are of plain k-means, rows go to the nearest and queries to the best by inner product:
`IVF{n}(L2),PQ{M}np` here, which no factory string makes. A code of 0 bits is the list alone.

RaBitQ takes a bit for each dimension and 8 bytes of factors: the dimensions are brought to as many as the bytes leave over, by
PCA to fewer or by a random rotation to more. (More bits for each dimension take 20 bytes of factors.) Queries are not rounded, as
they are for no other codes here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from .. import faiss_calls
from ..arrays import Floats, Ints
from ..codebooks import Codebooks
from ..evaluation.ranking import Words
from ..targets.base import unpack_codes
from ..targets.code_lists import real_lists
from ..targets.fastscan import unblocked
from ..targets.reshape import filled
from .ranking import Coding

WHOLE = ("pq", "opq", "rq", "lsq", "fastscan", "rabitq")  # methods that code whole vectors
RESIDUALS = ("ivfpq", "opq", "ivfrq", "lsq", "rabitq")  # methods that code what a list's centroid leaves over
FACTORS = 8  # bytes of a code of RaBitQ that hold no dimension


def takes(method: str, bits: int, lists: int) -> bool:
    """Whether a method has codes of so many bits in so many lists (1: codes of whole vectors)."""
    if bits == 0 or method == "ivf":
        return (method, bits) == ("ivf", 0) and lists > 1
    if method == "rabitq" and bits < 8 * FACTORS:  # its factors alone take as much
        return False
    return method in (WHOLE if lists == 1 else RESIDUALS)


def codebooks_of(method: str, bits: int) -> int:
    """How many codebooks share the dimensions between them; 1 of additive codes, whose codebooks have all of them."""
    return {"rq": 1, "ivfrq": 1, "lsq": 1, "rabitq": 1, "ivf": 1, "fastscan": bits // 4}.get(method, bits // 8)


def factory(method: str, bits: int, lists: int, d: int) -> str:
    """FAISS's factory string of a baseline at `bits` a vector, for a d that its codebooks divide."""
    M, before = bits // 8, f"IVF{lists}," if lists > 1 else ""
    turned = 8 * (M - FACTORS)  # dimensions of RaBitQ
    return {
        "ivf": f"{before}Flat",
        "pq": f"PQ{M}x8np",
        "opq": f"OPQ{M},{before}PQ{M}x8np",
        "ivfpq": f"{before}PQ{M}x8np",
        "rq": f"RQ{M}x8_Nnone",  # inner products need no norms: scores are sums of table entries
        "ivfrq": f"{before}RQ{M}x8_Nnone",
        "lsq": f"{before}LSQ{M}x8_Nnone",
        "fastscan": f"PQ{2 * M}x4fs",
        "rabitq": (f"PCAR{turned}," if turned < d else f"RR{turned}," if turned > d else "") + f"{before}RaBitQ",
    }[method]


def lists_for(n: int) -> int:
    """4 sqrt(n) inverted lists, as FAISS advises, as a power of two, and at least 39 rows a list to train with."""
    return int(2 ** np.floor(np.log2(max(1.0, min(4 * np.sqrt(n) * np.sqrt(2), n / 39)))))


@dataclass(frozen=True)
class Built:
    index: Any
    factory: str  # as FAISS's factory would write it
    seconds: dict[str, float]  # of training; encode: of adding, in which FAISS encodes


def build(method: str, xb: Floats, bits: int, lists: int, seed: int, training_rows: int) -> Built:
    """A trained index with all of xb (n, d) in it, under ids 0..n-1. Raises ValueError where FAISS cannot."""
    n, d = xb.shape
    rows = np.random.default_rng(seed).permutation(n)[: max(training_rows, 39 * lists if lists > 1 else 0)]
    M = codebooks_of(method, bits)
    wide = -(-d // M) * M
    _check(method, bits, lists, len(rows), d, wide)
    stored = max(bits, 8 * (FACTORS + 1)) if method == "rabitq" else bits
    text = factory(method, stored, lists, wide)
    index = faiss.index_factory(wide, text, faiss.METRIC_INNER_PRODUCT)
    ivf = faiss.try_extract_index_ivf(index)
    unit = bool(np.allclose(np.einsum("nd,nd->n", xb[:1000], xb[:1000]), 1, atol=1e-3))
    plain = ivf is not None and not unit
    if plain:
        text = text.replace(f"IVF{lists},", f"IVF{lists}(L2),")
        with_plain_lists(ivf)
    if ivf is not None:
        ivf.cp.min_points_per_centroid = 1  # it would warn of fewer rows a list than it advises
    if method == "rabitq":
        rabitq_of(index).qb = 0
    if stored != bits:
        text += f" ({stored // 8} bytes)"
    if wide > d:
        text = f"Remap{wide},{text}"
        index = faiss.IndexPreTransform(faiss.RemapDimensionsTransform(d, wide, True), index)
    start = time.perf_counter()
    index.train(np.ascontiguousarray(xb[rows]))
    trained = time.perf_counter()
    if method == "ivf":
        index = lists_alone(ivf, xb)
    else:
        index.add(xb)
    seconds = {"train": trained - start, "encode": time.perf_counter() - trained, "add": 0.0}
    if plain and method != "ivf":
        probe_by_product(ivf)
    return Built(index, text.replace("Flat", "centroids"), seconds)


def _check(method: str, bits: int, lists: int, rows: int, d: int, wide: int) -> None:
    """Raise ValueError where FAISS has no such codes, or would fail or write beyond its arrays."""
    words, M = 16 if method == "fastscan" else 256, codebooks_of(method, bits)
    if method == "rabitq":
        if not hasattr(faiss, "IndexRaBitQ"):
            raise ValueError(f"FAISS {faiss.__version__} has no RaBitQ")
        if bits < 8 * FACTORS:
            raise ValueError(
                f"codes of RaBitQ have {FACTORS + 1} bytes or more: {FACTORS} of factors, and the dimensions"
            )
        words = 1
        if 8 * (bits // 8 - FACTORS) < d and rows < d:
            raise ValueError(f"{rows:,} rows cannot train a projection of d={d}")
    if rows < max(lists, 1 if method == "ivf" else words):
        what = f"{lists} lists" if lists > words else f"{words} codewords"
        raise ValueError(f"{rows:,} rows cannot train {what}")
    if d < M:
        raise ValueError(f"{M} codebooks cannot share d={d}: some would have nothing to code")
    if method == "opq" and rows < wide:  # FAISS would write beyond its arrays
        raise ValueError(f"{rows:,} rows cannot train a rotation of d={wide}")


def with_plain_lists(ivf: Any) -> None:
    """Give an untrained IndexIVF for inner products lists of plain k-means; once filled it needs probe_by_product."""
    _replace(ivf, faiss.IndexFlatL2(ivf.d))
    ivf.cp.spherical = False


def probe_by_product(ivf: Any) -> None:
    """Let queries choose among lists by inner product, with the centroids that rows were given to by distance."""
    flat = faiss.IndexFlatIP(ivf.d)
    faiss_calls.add(flat, faiss_calls.stored_rows(ivf.quantizer))
    _replace(ivf, flat)


def _replace(ivf: Any, coarse: Any) -> None:
    """Put a coarse quantizer in the place of the one that an IndexIVF owns; it owns this one then."""
    before = ivf.quantizer
    ivf.quantizer = coarse
    coarse.this.disown()
    before.this.own(True)  # nobody else frees it


def lists_alone(ivf: Any, xb: Floats) -> Any:
    """The rows in the trained lists of `ivf`, with codes that say nothing more; all lists are visited."""
    codebooks = Codebooks.of_lists(faiss_calls.stored_rows(ivf.quantizer))
    lists = faiss_calls.search(ivf.quantizer, xb, 1)[1]
    return real_lists(*filled(codebooks, codebooks.check_codes(lists)), np.arange(len(xb)))


def rabitq_of(index: Any) -> Any:
    """The IndexRaBitQ or IndexIVFRaBitQ behind pretransforms."""
    deep = faiss.downcast_index(index)
    return rabitq_of(deep.index) if isinstance(deep, faiss.IndexPreTransform) else deep


def read_coding(method: str, index: Any, bits: int, zq: Floats, zb: Floats) -> Coding:
    """Queries zq (nq, d) and rows zb (n, d) by the codes of an index made by `build`, as its own scores have them."""
    deep = rabitq_of(index)
    n, K = index.ntotal, 256
    lists = None
    if isinstance(deep, faiss.IndexIVF):
        lists, codes = _in_lists(deep)
    elif isinstance(deep, faiss.IndexPQFastScan):
        codes, K = unblocked(deep), 16
    elif method == "rabitq":
        codes = faiss.vector_to_array(deep.codes).reshape(n, -1)
    else:
        codes = unpack_codes(faiss.vector_to_array(deep.codes).reshape(n, -1), bits // 8, 8)
    # With lists a vector is its list's centroid and its codes: words differ where either does.
    keys = codes
    if lists is not None:
        number = lists.astype("<u2" if deep.nlist <= 1 << 16 else "<u4")
        keys = np.concatenate([codes, number.view(np.uint8).reshape(n, -1)], 1)
    words = Words.of(np.ascontiguousarray(keys))
    first = np.empty(len(words.codes), np.int64)
    first[words.inverse[::-1]] = np.arange(n)[::-1]
    if lists is not None:
        deep.make_direct_map()
    decoded = faiss_calls.reconstruct(index, first)
    if method == "rabitq":
        zq, zb, decoded = _with_bias(index, first, zq, zb, decoded)
    if lists is not None:
        deep.set_direct_map_type(faiss.DirectMap.NoMap)  # it would count as memory, and no search needs it
    if lists is not None and bits == 0:
        return Coding(zq, zb, words, decoded, lists[:, None], deep.nlist)
    return Coding(zq, zb, words, decoded, codes, K)


def _in_lists(ivf: Any) -> tuple[Ints, NDArray[np.uint8]]:
    """(list (n,), bytes of the code (n, code_size)) of the row of each id 0..n-1."""
    codes, lists = np.empty((ivf.ntotal, ivf.code_size), np.uint8), np.empty(ivf.ntotal, np.int64)
    for number in range(ivf.nlist):
        size = ivf.invlists.list_size(number)
        if size:
            rows = faiss.rev_swig_ptr(ivf.invlists.get_ids(number), size)
            codes[rows] = faiss.rev_swig_ptr(ivf.invlists.get_codes(number), size * codes.shape[1]).reshape(size, -1)
            lists[rows] = number
    return lists, codes


def _with_bias(index: Any, first: Ints, zq: Floats, zb: Floats, decoded: Floats) -> tuple[Floats, Floats, Floats]:
    """(zq, zb, decoded) with a dimension more, that holds what the factors of RaBitQ add to the score of a row with any query:
    its score with a query of zeros.
    """
    deep = rabitq_of(index)
    if isinstance(deep, faiss.IndexIVF):
        deep.nprobe = deep.nlist
    D, I = faiss_calls.search(index, np.zeros((1, zq.shape[1]), np.float32), index.ntotal)
    bias = np.empty(index.ntotal, np.float32)
    bias[I[0]] = D[0]

    def wider(x: Floats, column: Any) -> Floats:
        return np.column_stack([x, np.broadcast_to(np.asarray(column, np.float32), len(x))])

    return wider(zq, 1), wider(zb, 0), wider(decoded, bias[first])
