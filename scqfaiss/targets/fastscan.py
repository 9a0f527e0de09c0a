"""IndexPQFastScan: 4-bit codes scanned in SIMD registers, and a second look that puts the best in exact order.

The scan rounds its look-up tables to 8 bits. With the refine stage (the default) `refine` candidates per hit are scored
again with the same codes, exactly, which doubles the code bytes. FAISS offers no id selectors here.

Additive codebooks are spread first (see reshape.py): three quarters as many bytes again and a quarter more time, and the scan
alone finds 98 of 100 where it found 89. Product codebooks of SCQ hold classes of their own, so that any of them may be the widest
for a query: they need more candidates.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from .. import faiss_calls
from ..codebooks import Codebooks, Codes, Shape
from ..errors import ConfigError
from ..faiss_calls import Hits, Ranges
from .base import (
    COMPARED,
    Ids,
    Target,
    TargetInfo,
    kind_reason,
    pack,
    product_codebooks,
    product_shape,
    table_bytes,
)
from .ids import behind_ids, ids_at, places_of, with_ids
from .options import RefineOptions
from .pq import codes_of, index_pq
from .pretransform import apply_transforms, kind_of, prepend
from .reshape import as_product, gathered, merged, merged_shape, parts_of, split, spread

DEFAULTS = RefineOptions()
REFINE = {"product": 256, "additive": 32}  # candidates per hit: all 10 best of all queries on 54,000 rows of CIFAR-10
MOST_CANDIDATES = 1 << 23  # of all queries at a time, 100 MB


class FastScan(Target):
    INFO = TargetInfo(
        "fastscan",
        "IndexPQFastScan",
        ("product", "additive"),
        filter=False,
        range=True,
        exact=False,
    )

    def supports(self, shape: Shape) -> str | None:
        if shape.nbits != 4 and shape.L == 1:
            return f"fast scan needs 4-bit codebooks (--nbits 4), these have {shape.nbits}"
        if shape.kind == "additive" and shape.metric != "ip":
            return "a sum of inner products is no distance; use target residual"
        return kind_reason(self.INFO, shape)

    def build(
        self, codebooks: Codebooks, codes: Codes, ids: Ids, options: RefineOptions = DEFAULTS, like: Any = None
    ) -> Any:
        """-> faiss.IndexPQFastScan, inside a faiss.IndexRefine unless options.refine is -1, behind a tile if additive."""
        if codebooks.kind == "additive":
            codebooks, codes = _spread(codebooks, codes)
        narrow, tile = as_product(codebooks)
        faiss_calls.one_thread_after_fork()
        index = faiss.IndexPQFastScan(index_pq(narrow, codes))  # filled first: it takes no codes itself
        if options.refine >= 0:
            exact = index_pq(*merged(narrow, codes))  # 8-bit codebooks score faster
            refine = faiss.IndexRefine(index, exact)
            refine.own_fields = refine.own_refine_index = True
            index.this.disown()
            exact.this.disown()
            refine.k_factor = options.refine or REFINE[codebooks.kind]
            index = refine
        return prepend(tile, with_ids(index, ids))

    def holds(self, index: Any) -> bool:
        scan, exact = _parts(index)
        return isinstance(scan, faiss.IndexPQFastScan) and (exact is None or isinstance(exact, faiss.IndexPQ))

    def disagreement(self, index: Any) -> str | None:
        """Both stages hold the same codebooks, those of the second merged, and the same code bytes."""
        scan, exact = _parts(index)
        if exact is None:
            return None
        shape, refined = merged_shape(product_shape(scan)), product_shape(exact)
        if shape != refined:
            of_stage = f"{refined.M} x {refined.nbits}, not {shape.M} x {shape.nbits}"
            return f"the scan holds {scan.pq.M} x 4 bits, its second stage {of_stage}"
        expected, stored = (
            merged(product_codebooks(scan), np.zeros((0, scan.pq.M), np.uint8))[0],
            product_codebooks(exact),
        )
        different = np.argwhere(expected.centroids != stored.centroids)
        if len(different):
            at = tuple(different[0])
            return f"codebook {at[0]} of the scan says {expected.centroids[at]:g}, of its second stage {stored.centroids[at]:g}"
        n, size = int(scan.ntotal), int(exact.code_size)
        step = 32 * COMPARED  # whole blocks of rows
        for i in range(0, n, step):
            rows = min(step, n - i)
            codes = faiss.rev_swig_ptr(exact.codes.data(), n * size)[i * size : (i + rows) * size].reshape(rows, size)
            wrong = np.flatnonzero((pack(unblocked(scan, i, rows), 4) != codes).any(1))
            if len(wrong):
                return f"row {i + wrong[0]:,} has one code in the scan and another in its second stage"
        return None

    def shape_of(self, index: Any) -> Shape:
        scan, kind = _parts(index)[0], kind_of(index)
        shape = product_shape(scan, kind)
        return shape if kind == "product" else replace(shape, M=len(parts_of(product_codebooks(scan, kind).centroids)))

    def unpack(self, index: Any, shape: Shape | None = None, only: Ids | None = None) -> tuple[Codebooks, Codes, Ids]:
        scan, exact = _parts(index)
        codes = (
            unblocked(scan)
            if exact is None
            else split(product_codebooks(exact), codes_of(exact), product_shape(scan))[1]
        )
        places, ids = places_of(index, only)
        codes = codes[places]
        stored_codebooks, kind = product_codebooks(scan, kind_of(index)), kind_of(index)
        return *(gathered(stored_codebooks, codes) if kind == "additive" else (stored_codebooks, codes)), ids

    def search(self, index: Any, x: NDArray[np.float32], k: int, *, sel: Any = None, nprobe: int | None = None) -> Hits:
        """As FAISS scans, but for what it passes over: rows of the lowest rounded score, all rows for a query of zeros."""
        scan, exact = _parts(index)
        factor = 1.0
        if exact is not None:
            factor = max(
                1.0, min(behind_ids(index).k_factor, index.ntotal / k)
            )  # FAISS asks for more rows than there are
        step = max(1, int(MOST_CANDIDATES / (k * factor)))
        parts = [self._scan(index, x[i : i + step], k, factor) for i in range(0, max(len(x), 1), step)]
        D, I = parts[0] if len(parts) == 1 else (np.concatenate(part) for part in zip(*parts, strict=True))
        short = np.flatnonzero((I[:, : min(k, index.ntotal)] < 0).any(1))
        if len(short):
            queries = apply_transforms(index, np.ascontiguousarray(x[short]))
            if exact is None:
                exact = index_pq(product_codebooks(scan), unblocked(scan))
            D[short], I[short] = faiss_calls.search(exact, queries, k)
            I[short] = np.where(I[short] < 0, -1, ids_at(index, I[short]))
        return D, I

    @staticmethod
    def _scan(index: Any, x: NDArray[np.float32], k: int, factor: float) -> Hits:
        params = None
        if isinstance(behind_ids(index), faiss.IndexRefine):
            params = faiss.IndexRefineSearchParameters(k_factor=factor)
        return faiss_calls.search(index, x, k, params)

    def ranges(self, index: Any) -> bool:
        return _parts(index)[1] is not None

    def range_search(self, index: Any, x: NDArray[np.float32], radius: float, *, sel: Any = None) -> Ranges:
        """By the exact codes of the refine stage. Raises ConfigError without one: FAISS has no such scan."""
        _, exact = _parts(index)
        if exact is None:
            raise ConfigError("fast scan without refine has no range search; export without --refine -1")
        lims, D, I = super().range_search(exact, apply_transforms(index, x), radius)
        return lims, D, ids_at(index, I)

    def nbytes(self, shape: Shape, n: int) -> int:
        narrow = shape
        if shape.kind == "additive":
            M = 2 * round(0.875 * shape.M)
            narrow = replace(shape, kind="product", M=M, d=M * shape.d)
        return n * (2 * narrow.code_size + 8) + table_bytes(narrow) + table_bytes(merged_shape(narrow)) + 2000


def _spread(codebooks: Codebooks, codes: Codes) -> tuple[Codebooks, Codes]:
    """Spread codebooks, or the codebooks as they are where they could not be told apart again.

    Raises ConfigError where one is a multiple of the next: nothing in the file would say that they are two.
    """
    wide, wide_codes = spread(codebooks, codes)
    if np.array_equal(gathered(wide, wide_codes)[0].centroids, codebooks.centroids):
        return wide, wide_codes
    if len(parts_of(codebooks.centroids)) == codebooks.M:
        return codebooks, codes
    raise ConfigError(
        "one additive codebook is a multiple of another: fast scan cannot keep them apart; use target lift"
    )


def _parts(index: Any) -> tuple[Any, Any]:
    """The fast-scan index, and the exact one behind it or None."""
    index = behind_ids(index)
    if isinstance(index, faiss.IndexRefine):
        return faiss.downcast_index(index.base_index), faiss.downcast_index(index.refine_index)
    return index, None


@cache
def _layout(M: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(32, M) place of the byte in a block of 32 rows that holds codeword m of row i, and its shift: 0 or 4.

    Found by packing one codeword at a time with FAISS's own packer, so that it is right in every version.
    """
    packer = faiss.IndexPQFastScan(M, M, 4).get_CodePacker()
    place, shift = np.empty((32, M), np.int64), np.empty((32, M), np.int64)
    for i in range(32):
        for m in range(M):
            code, block = np.zeros(packer.code_size, np.uint8), np.zeros((1, packer.block_size), np.uint8)
            code[m // 2] = 15 << 4 * (m % 2)
            packer.pack_1(code, i, block)
            place[i, m] = block[0].argmax()
            shift[i, m] = 4 * (block.max() == 240)
    return place, shift


def unblocked(scan: Any, first: int = 0, rows: int | None = None) -> Codes:
    """The codes (rows, M) of a faiss.IndexPQFastScan, whose rows stand in blocks of 32; first: a multiple of that."""
    rows = scan.ntotal - first if rows is None else rows
    size, length = 16 * scan.M2, scan.codes.size()  # M2 nibbles of 32 rows
    stored = faiss.rev_swig_ptr(scan.codes.data(), length) if length else np.zeros(0, np.uint8)
    blocks = stored[first // 32 * size : -(-(first + rows) // 32) * size].reshape(-1, size)
    place, shift = _layout(scan.M)
    codes = blocks[:, place] >> shift.astype(np.uint8) & 15  # block row m
    return np.ascontiguousarray(codes.reshape(-1, scan.M)[:rows])
