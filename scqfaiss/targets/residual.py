"""IndexResidualQuantizer with codebooks put in: additive codes as they are, the form other forms can be made from.

Inner product without norms; squared L2 with the norm of each vector stored beside its code, 4 bytes, exact.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from .. import faiss_calls
from ..codebooks import Codebooks, Codes, Shape
from .base import (
    COMPARED,
    METRIC,
    Ids,
    Target,
    TargetInfo,
    kind_reason,
    metric_of,
    pack,
    table_bytes,
    unpack_codes,
)
from .ids import behind_ids, packed_codes, places_of, with_ids
from .lists import decoded
from .validation import stored_norms

AQ = faiss.AdditiveQuantizer


class Residual(Target):
    INFO = TargetInfo("residual", "IndexResidualQuantizer", ("additive",), filter=False, range=True, exact=True)

    def supports(self, shape: Shape) -> str | None:
        return kind_reason(self.INFO, shape)

    def build(self, codebooks: Codebooks, codes: Codes, ids: Ids, options: Any = None, like: Any = None) -> Any:
        """-> faiss.IndexResidualQuantizer, inside an IndexIDMap unless ids are 0..n-1."""
        b = codebooks
        norms = b.metric == "l2"  # without them FAISS's table search under L2 is no distance
        kind = AQ.ST_norm_float if norms else AQ.ST_LUT_nonorm
        index = faiss.IndexResidualQuantizer(b.d, b.M, b.nbits, METRIC[b.metric], kind)
        rq = index.rq
        faiss.copy_array_to_vector(b.centroids.ravel(), rq.codebooks)  # empty until now: M K d by construction
        rq.is_trained = index.is_trained = True
        rq.max_beam_size = 1  # greedy, should FAISS ever be asked to encode
        rq.train_type |= faiss.ResidualQuantizer.Skip_codebook_tables  # M^2 K^2 / 2 products at every load, unused here
        if norms and len(codes):
            squares = np.concatenate([np.square(x.astype(np.float64)).sum(1) for _, x in decoded(b, codes)])
            squares = squares.astype(np.float32)
            faiss_calls.one_thread_after_fork()
            rq.train_norm(len(squares), faiss.swig_ptr(squares))
            packed, plain = np.zeros((len(codes), rq.code_size), np.uint8), np.ascontiguousarray(codes, np.int32)
            rq.pack_codes(len(plain), faiss.swig_ptr(plain), faiss.swig_ptr(packed), -1, faiss.swig_ptr(squares))
            faiss_calls.add_codes(index, packed)
        elif len(codes):
            faiss_calls.add_codes(index, pack(codes, b.nbits))
        return with_ids(index, ids)

    def holds(self, index: Any) -> bool:
        return isinstance(behind_ids(index), faiss.IndexResidualQuantizer)

    def disagreement(self, index: Any) -> str | None:
        """Of squared L2, the norm behind a code is that of the vector it stands for."""
        core = behind_ids(index)
        if metric_of(core) != "l2" or not core.ntotal:
            return None
        codebooks, s = self._codebooks(core), self.shape_of(index)
        step = max(1, core.ntotal // COMPARED)
        stored_codes = faiss.rev_swig_ptr(core.codes.data(), core.codes.size()).reshape(core.ntotal, -1)[::step]
        packed = np.ascontiguousarray(stored_codes[:, : s.code_size])
        squares = np.square(codebooks.decode(unpack_codes(packed, s.M, s.nbits)).astype(np.float64)).sum(1)
        stored = np.concatenate([norms for _, norms in stored_norms(core)])[::step]
        wrong = np.flatnonzero(np.abs(stored - squares) > 1e-4 * squares.max() + 1e-30)
        if len(wrong):
            row = wrong[0]
            return f"row {row * step:,} has the squared norm {squares[row]:g}, the file says {stored[row]:g}"
        return None

    @staticmethod
    def _codebooks(core: Any) -> Codebooks:
        s = Shape("additive", core.rq.M, core.rq.nbits.at(0), core.d, metric_of(core))
        return Codebooks(s.kind, np.asarray(faiss.vector_to_array(core.rq.codebooks)).reshape(s.M, s.K, s.d), s.metric)

    def shape_of(self, index: Any) -> Shape:
        index = behind_ids(index)
        return Shape("additive", index.rq.M, index.rq.nbits.at(0), index.d, metric_of(index))

    def unpack(self, index: Any, shape: Shape | None = None, only: Ids | None = None) -> tuple[Codebooks, Codes, Ids]:
        s = self.shape_of(index)
        places, ids = places_of(index, only)
        index = behind_ids(index)
        packed = packed_codes(index, places)[:, : s.code_size]  # a norm follows the code
        codes = unpack_codes(np.ascontiguousarray(packed), s.M, s.nbits)
        return self._codebooks(index), codes, ids

    def nbytes(self, shape: Shape, n: int) -> int:
        return n * (shape.code_size + 8 + 4 * (shape.metric == "l2")) + table_bytes(shape) + 2000
