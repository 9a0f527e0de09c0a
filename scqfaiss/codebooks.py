"""The seam: what a method hands over and a FAISS container takes in. NumPy only.

A method (torch) ends in a Codebooks and a rule of assignment; a target (FAISS) starts from a Codebooks and codes. Neither
side imports the other's library. `scores` is the oracle that every container is tested against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, DataError

Codes = NDArray[np.unsignedinteger[Any]]

KINDS = ("product", "additive")
METRICS = ("ip", "l2")
RULES = ("l2", "ip")
MAX_NBITS = 16


@dataclass(frozen=True)
class Shape:
    """What is known of codebooks before they are trained; enough to say which containers will take them."""

    kind: str
    M: int
    nbits: int
    d: int
    metric: str = "ip"

    @property
    def K(self) -> int:
        return 1 << self.nbits

    @property
    def code_size(self) -> int:
        """Bytes of one packed code."""
        return -(-self.M * self.nbits // 8)


@dataclass(frozen=True, eq=False)
class Codebooks:
    """M books of K codewords, K a power of two.

    kind 'product': centroids (M, K, d / M) float32, a vector is the concatenation of its M codewords.
    kind 'additive': centroids (M, K, d) float32, a vector is the sum of its M codewords.
    metric: 'ip' (large is near) or 'l2' (squared Euclidean distance, small is near).
    Raises ConfigError on a shape, dtype or name that is none of these, DataError on centroids that are not finite.
    """

    kind: str
    centroids: NDArray[np.float32]
    metric: str = "ip"

    def __post_init__(self) -> None:
        c = self.centroids
        if self.kind not in KINDS:
            raise ConfigError(f"codebooks are of kind '{self.kind}', need one of {', '.join(KINDS)}")
        if self.metric not in METRICS:
            raise ConfigError(f"metric is '{self.metric}', needs one of {', '.join(METRICS)}")
        if c.ndim != 3 or c.dtype != np.float32 or 0 in c.shape:
            raise ConfigError(f"centroids are {c.shape} {c.dtype}, need (M, K, dsub) float32")
        K = c.shape[1]
        if K & (K - 1) or not 2 <= K <= 1 << MAX_NBITS:
            raise ConfigError(f"a book holds K={K} codewords, needs a power of two from 2 to {1 << MAX_NBITS}")
        if not np.isfinite(c).all():
            m, k, _ = np.argwhere(~np.isfinite(c))[0]
            raise DataError(f"codeword {k} of book {m} is not finite")
        object.__setattr__(self, "centroids", np.ascontiguousarray(c))

    @property
    def M(self) -> int:
        return len(self.centroids)

    @property
    def K(self) -> int:
        return int(self.centroids.shape[1])

    @property
    def nbits(self) -> int:
        """Bits a book takes, log2 K."""
        return self.K.bit_length() - 1

    @property
    def bits(self) -> int:
        """Bits a vector takes, M * nbits."""
        return self.M * self.nbits

    @property
    def d(self) -> int:
        """Dimension of a decoded vector."""
        return int(self.centroids.shape[2]) * (self.M if self.kind == "product" else 1)

    @property
    def shape(self) -> Shape:
        return Shape(self.kind, self.M, self.nbits, self.d, self.metric)

    @property
    def code_dtype(self) -> type[np.uint8] | type[np.uint16]:
        return np.uint8 if self.nbits <= 8 else np.uint16

    def check_codes(self, codes: NDArray[Any]) -> Codes:
        """codes (n, M) integers in 0..K-1 -> (n, M) uint8 (uint16 above 8 bits). Raises DataError.

        FAISS packs a code of 300 into 8 bits as 44 without a word, so this stands before every container.
        """
        if codes.ndim != 2 or codes.shape[1] != self.M or codes.dtype.kind not in "iu":
            raise DataError(f"codes are {codes.shape} {codes.dtype}, need (n, {self.M}) integers")
        if codes.size and (int(codes.min()) < 0 or int(codes.max()) >= self.K):
            row = int(np.argmax(((codes < 0) | (codes >= self.K)).any(axis=1)))
            raise DataError(f"codes: row {row:,} is {codes[row].tolist()}, books hold codewords 0 to {self.K - 1}")
        return np.ascontiguousarray(codes, self.code_dtype)

    def decode(self, codes: Codes) -> NDArray[np.float32]:
        """codes (n, M) -> the vectors they stand for, (n, d) float32."""
        parts = self.centroids[np.arange(self.M), codes]  # n M dsub
        if self.kind == "product":
            return parts.reshape(len(codes), self.d)
        return np.asarray(parts.sum(axis=1))

    def scores(self, xq: NDArray[Any], codes: Codes) -> NDArray[np.float64]:
        """xq (nq, d), codes (n, M) -> (nq, n) float64 in the metric's own sense: the slow, exact oracle.

        'ip' <q, x>; 'l2' ||q - x||^2. Asymmetric: the query stays a vector, only the database side is decoded.
        """
        q, x = np.asarray(xq, np.float64), self.decode(codes).astype(np.float64)
        dot = q @ x.T
        if self.metric == "ip":
            return np.asarray(dot)
        return np.asarray((q * q).sum(1)[:, None] - 2 * dot + (x * x).sum(1))

    def assign(self, z: NDArray[np.float32], rule: str) -> Codes:
        """z (n, d) float32 -> codes (n, M), book by book over the whole book, the lowest index on ties.

        rule 'l2': argmin_k ||z_m - w_mk||^2. rule 'ip': argmax_k <z_m, w_mk>. Additive books are assigned greedily on what
        the books before leave over (for 'l2' exactly FAISS's residual quantizer with a beam of 1).
        Raises ConfigError on another rule or width.
        """
        if rule not in RULES:
            raise ConfigError(f"assignment rule is '{rule}', needs one of {', '.join(RULES)}")
        if z.ndim != 2 or z.shape[1] != self.d:
            raise ConfigError(f"features have d={z.shape[-1]}, the codebooks need d={self.d}")
        codes = np.empty((len(z), self.M), self.code_dtype)
        dsub = self.centroids.shape[2]
        half_norms = 0.5 * np.square(self.centroids).sum(2)  # M K
        left = z
        for m, book in enumerate(self.centroids):
            part = z[:, m * dsub : (m + 1) * dsub] if self.kind == "product" else left
            near = part @ book.T  # n K
            if rule == "l2":  # ||z||^2 is the same for every codeword
                near -= half_norms[m]
            codes[:, m] = near.argmax(1)
            if self.kind == "additive":
                left = left - book[codes[:, m]]
        return codes
