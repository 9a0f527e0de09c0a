"""What a target is, and what all of them share. A target is a module: arrays in, FAISS object out; no torch, no files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from ..codebooks import Codebooks, Codes, Shape
from ..errors import ConfigError

METRIC = {"ip": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}
# Books that the classical GPU kernels of IVFPQ take (faiss/gpu/impl/IVFPQ.cu).
GPU_M = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)
GPU_SHARED_BYTES = 48 << 10  # look-up tables of a query must fit


@dataclass(frozen=True)
class TargetInfo:
    """name; FAISS class; whether it honours ID selectors, takes more codes later, is exact."""

    name: str
    faiss_class: str
    filter: bool
    append: bool
    exact: bool


class Target(Protocol):
    """The functions every target module offers."""

    INFO: TargetInfo

    def supports(self, shape: Shape, device: str) -> str | None:
        """None, or the reason why codebooks of this shape cannot be served on device 'cpu' or 'cuda'."""

    def build(self, codebooks: Codebooks, codes: Codes, ids: NDArray[np.int64]) -> Any:
        """Codebooks, codes (n, M) and ids (n,) -> a filled faiss.Index of dimension codebooks.d."""

    def unpack(self, index: Any) -> tuple[Codebooks, Codes, NDArray[np.int64]]:
        """The inverse of build, rows in the order of the index."""

    def nbytes(self, shape: Shape, n: int) -> int:
        """Bytes of the FAISS stream for n rows, to within a few kilobytes."""


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
    return np.asarray(faiss.pack_bitstrings(codes.astype(np.int32), nbits))


def unpack_codes(packed: NDArray[np.uint8], M: int, nbits: int) -> Codes:
    """The inverse of pack."""
    dtype = np.uint8 if nbits <= 8 else np.uint16
    if not len(packed):
        return np.zeros((0, M), dtype)
    if nbits == 8:
        return packed.reshape(len(packed), M)
    return np.asarray(faiss.unpack_bitstrings(np.ascontiguousarray(packed), M, nbits)).astype(dtype)


def product_table(pq: Any) -> NDArray[np.float32]:
    """The codebook table (M, K, dsub) of a faiss.ProductQuantizer."""
    return np.asarray(faiss.vector_to_array(pq.centroids)).reshape(pq.M, pq.ksub, pq.dsub)


def table_bytes(shape: Shape) -> int:
    return 4 * shape.K * shape.d * (1 if shape.kind == "product" else shape.M)


def product_reason(shape: Shape) -> str | None:
    """Why a ProductQuantizer cannot hold codebooks of this shape, or None."""
    if shape.kind != "product":
        return f"{shape.kind} codebooks do not fit into a product quantizer"
    if shape.d // shape.M == 2 and shape.nbits < 3:
        return "books of 2 dimensions need at least 8 codewords (nbits 3)"
    return None
