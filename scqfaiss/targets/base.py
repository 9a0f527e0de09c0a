"""What a target is, and what all of them share: arrays in, FAISS object out; no torch, no files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import faiss
import numpy as np
from numpy.typing import NDArray

from .. import faiss_calls
from ..codebooks import Codebooks, Codes, Shape
from ..errors import ConfigError
from ..faiss_calls import Hits, Ranges
from .options import check as check_options
from .options import check_listed
from .pretransform import unwrap_index

METRIC = {"ip": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class TargetInfo:
    """name; FAISS class; kinds of codebooks; whether id selectors and range search work; exact: every score is the code's
    own and the best are found; lists: whether a list may be part of the code.
    """

    name: str
    faiss_class: str
    kinds: tuple[str, ...]
    filter: bool
    range: bool
    exact: bool
    lists: bool = False


COMPARED = 4096  # rows


class Target(ABC):
    """A FAISS container for learned codes. One instance a target; it keeps no state.

    `index` may have an encoder in front, and `x` are then rows as that takes them.
    """

    INFO: ClassVar[TargetInfo]

    @abstractmethod
    def supports(self, shape: Shape) -> str | None:
        """None, or the reason why codebooks of this shape cannot be stored here."""

    @abstractmethod
    def build(self, codebooks: Codebooks, codes: Codes, ids: Ids, options: Any = None, like: Any = None) -> Any:
        """Codebooks, their codes (n rows) and ids (n,) -> a filled faiss.Index that takes queries of dimension codebooks.d.

        options: of the dataclass that the registry names for this target, or None for its defaults.
        like: an index of this target whose learned lists, if it has any, are taken over instead of learned anew.
        """

    @abstractmethod
    def holds(self, index: Any) -> bool:
        """Whether build could have made this index."""

    def disagreement(self, index: Any) -> str | None:
        """None, or what parts of an index of this target say against one another, though FAISS searches it.

        Looks at codes and vectors of at most COMPARED rows, spread over all, where a look at every row would cost more than
        the hash of the file does.
        """
        return None

    @abstractmethod
    def shape_of(self, index: Any) -> Shape:
        """The shape as stored: 4-bit codebooks may stand merged in pairs (see reshape.py)."""

    @abstractmethod
    def unpack(self, index: Any, shape: Shape | None = None, only: Ids | None = None) -> tuple[Codebooks, Codes, Ids]:
        """The inverse of build, rows in the order of the index. shape: as the codes were, where they stand merged. only: ids
        whose rows are wanted, and of the others nothing but their ids is looked at (fastscan: their codes are, too).
        """

    @abstractmethod
    def nbytes(self, shape: Shape, n: int) -> int:
        """Bytes of the FAISS stream for n rows, to within a few kilobytes (buckets: at most)."""

    def check(self, options: Any, n: int, lists: int = 1) -> None:
        """Raise ConfigError for options out of range for n rows, whose codes tell `lists` lists apart. Reads no rows."""
        check_options(options)
        if lists > 1:
            check_listed(options, lists)

    def ranges(self, index: Any) -> bool:
        """Whether range_search works on this index."""
        return self.INFO.range

    def facts(self, index: Any) -> dict[str, Any]:
        """What the metadata says of the container beside its name."""
        ivf = unwrap_index(index)
        if not isinstance(ivf, faiss.IndexIVF):
            return {}
        return {"nlist": ivf.nlist, "nprobe": ivf.nprobe, "by_residual": bool(ivf.by_residual)}

    def search(self, index: Any, x: NDArray[np.float32], k: int, *, sel: Any = None, nprobe: int | None = None) -> Hits:
        """The k best of each row of x (nq, d) -> D (nq, k) float32, I (nq, k) int64; -1 where there are fewer.

        nprobe: lists to visit, and no more. Without it those that the file says, and more where these hold fewer than k hits:
        a filter, or a large k, ends the search only where every list was visited.
        """
        if nprobe is None and isinstance(ivf := unwrap_index(index), faiss.IndexIVF):
            return search_until_full(index, x, k, sel, ivf.nprobe)
        return faiss_calls.search(index, x, k, parameters(index, sel, nprobe))

    def range_search(self, index: Any, x: NDArray[np.float32], radius: float, *, sel: Any = None) -> Ranges:
        """All rows better than radius -> lims (nq + 1,), D, I: row q owns D[lims[q] : lims[q + 1]], in no order."""
        nprobe = getattr(unwrap_index(index), "nlist", None)
        return faiss_calls.range_search(index, x, radius, parameters(index, sel, nprobe))


def search_until_full(index: Any, x: NDArray[np.float32], k: int, sel: Any, nprobe: int, **more: Any) -> Hits:
    """Visit `nprobe` lists, and more of them for each query that has fewer than k hits, until all are visited."""
    nlist = unwrap_index(index).nlist
    D, I = faiss_calls.search(index, x, k, parameters(index, sel, nprobe, **more))
    todo = np.flatnonzero((I < 0).any(1))
    while len(todo) and nprobe < nlist:
        nprobe = min(8 * nprobe, nlist)
        D[todo], I[todo] = faiss_calls.search(index, x[todo], k, parameters(index, sel, nprobe, **more))
        todo = todo[(I[todo] < 0).any(1)]
    return D, I


def parameters(index: Any, sel: Any = None, nprobe: int | None = None, **more: Any) -> Any:
    """Search parameters of an inverted-list index, or None where there is nothing to say or nobody to say it to."""
    ivf = unwrap_index(index)
    if not isinstance(ivf, faiss.IndexIVF):
        return None
    if sel is not None:
        more["sel"] = sel
    return faiss.SearchParametersIVF(nprobe=nprobe or ivf.nprobe, **more)


def metric_of(index: Any) -> str:
    return "ip" if index.metric_type == faiss.METRIC_INNER_PRODUCT else "l2"


def inject(vector: Any, array: NDArray[Any], what: str) -> None:
    """Copy array into a FAISS float vector of the same length. FAISS itself takes any length without complaint."""
    if vector.size() != array.size:
        raise ConfigError(f"{what} hold {array.size} floats, FAISS needs {vector.size()}")
    faiss.copy_array_to_vector(np.ascontiguousarray(array, np.float32).ravel(), vector)


def pack(codes: Codes, nbits: int) -> NDArray[np.uint8]:
    """codes (n, M) -> packed bytes (n, ceil(M nbits / 8)), FAISS's own bit order."""
    if not len(codes):
        return np.zeros((0, -(-codes.shape[1] * nbits // 8)), np.uint8)
    if nbits == 8:  # the bytes are the codes
        return np.ascontiguousarray(codes, np.uint8)
    return faiss_calls.pack(codes, nbits)


def unpack_codes(packed: NDArray[np.uint8], M: int, nbits: int) -> Codes:
    """The inverse of pack."""
    dtype = np.uint8 if nbits <= 8 else np.uint16
    if not len(packed):
        return np.zeros((0, M), dtype)
    if nbits == 8:
        return packed.reshape(len(packed), M)
    return faiss_calls.unpack(packed, M, nbits).astype(dtype)


def product_codebooks(index: Any, kind: str = "product") -> Codebooks:
    """The codebooks inside an index with a faiss.ProductQuantizer; additive ones lie there as they are (see lift.py)."""
    pq = index.pq
    table = np.asarray(faiss.vector_to_array(pq.centroids)).reshape(pq.M, pq.ksub, pq.dsub)
    return Codebooks(kind, table, metric_of(index))


def product_shape(index: Any, kind: str = "product") -> Shape:
    pq = index.pq
    return Shape(kind, pq.M, pq.nbits, pq.dsub if kind == "additive" else pq.d, metric_of(index))


def table_bytes(shape: Shape) -> int:
    return 4 * shape.K * shape.d * (1 if shape.kind == "product" else shape.M)


def kind_reason(info: TargetInfo, shape: Shape) -> str | None:
    """Why codebooks of this kind, with lists, or product codebooks of this shape, do not fit, or None."""
    if shape.L > 1 and not info.lists:
        takers = "ivfpq or buckets" if shape.kind == "product" else "lift or buckets"
        return f"its rows stand in no lists, and lists are part of these codes; use {takers}"
    if shape.kind not in info.kinds:
        other = "lift, residual or buckets" if shape.kind == "additive" else "ivfpq, pq or buckets"
        return f"it holds {' and '.join(info.kinds)} codebooks, these are {shape.kind}; use {other}"
    if shape.kind == "product" and shape.M and shape.d // shape.M == 2 and shape.nbits < 3:
        return "codebooks of 2 dimensions need at least 8 codewords (nbits 3)"
    return None
