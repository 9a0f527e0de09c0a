"""The seam: what a method hands over and a FAISS container takes in. NumPy only.

A method (torch) ends in a Codebooks and a rule of assignment; a target (FAISS) starts from a Codebooks and codes. Neither
side imports the other's library. `scores` is the oracle that every container is tested against.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, DataError
from .exponents import exponent, exponents, times

Codes = NDArray[np.unsignedinteger[Any]]

KINDS = ("product", "additive")
METRICS = ("ip", "l2")
RULES = ("l2", "ip")
MAX_NBITS = 16
MAX_BEAM = 64  # that a model may ask for
BEAM_ELEMENTS = 1 << 18  # numbers of a kind that a beam search holds at a time: 1 MB, which stays in the cache
TABLE_ELEMENTS = 1 << 24  # 64 MB: tables of products between codewords stay below, or are not made


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
    """M codebooks of K codewords, K a power of two.

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
            raise ConfigError(f"a codebook holds K={K} codewords, needs a power of two from 2 to {1 << MAX_NBITS}")
        if not np.isfinite(c).all():
            m, k, _ = np.argwhere(~np.isfinite(c))[0]
            raise DataError(f"codeword {k} of codebook {m} is not finite")
        object.__setattr__(self, "centroids", np.ascontiguousarray(c))

    @property
    def M(self) -> int:
        return len(self.centroids)

    @property
    def K(self) -> int:
        return int(self.centroids.shape[1])

    @property
    def nbits(self) -> int:
        """Bits a codebook takes, log2 K."""
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
            raise DataError(f"codes: row {row:,} is {codes[row].tolist()}, codebooks hold codewords 0 to {self.K - 1}")
        return np.ascontiguousarray(codes, self.code_dtype)

    def decode(self, codes: Codes) -> NDArray[np.float32]:
        """codes (n, M) -> the vectors they stand for, (n, d) float32."""
        if self.kind == "product":
            return np.asarray(self.centroids[np.arange(self.M), codes].reshape(len(codes), self.d))
        out: NDArray[np.float32] = self.centroids[0][codes[:, 0]]
        for m in range(1, self.M):  # codebook by codebook: all parts at once would take M times the memory
            out += self.centroids[m][codes[:, m]]
        return out

    def scores(self, xq: NDArray[Any], codes: Codes) -> NDArray[np.float64]:
        """xq (nq, d), codes (n, M) -> (nq, n) float64 in the metric's own sense: the slow, exact oracle.

        'ip' <q, x>; 'l2' ||q - x||^2. Asymmetric: the query stays a vector, only the database side is decoded.
        """
        q, x = np.asarray(xq, np.float64), self.decode(codes).astype(np.float64)
        dot = q @ x.T
        if self.metric == "ip":
            return np.asarray(dot)
        return np.asarray((q * q).sum(1)[:, None] - 2 * dot + (x * x).sum(1))

    def assign(self, z: NDArray[np.float32], rule: str, beam: int = 1) -> Codes:
        """z (n, d) float32 -> codes (n, M), codebook by codebook over the whole codebook, the lowest index on ties.

        rule 'l2': argmin_k ||z_m - w_mk||^2. rule 'ip': argmax_k <z_m, w_mk>. Additive codebooks are assigned greedily on what
        the codebooks before leave over (for 'l2' exactly FAISS's residual quantizer with a beam of 1). For them and 'l2', a
        `beam` above 1 carries that many partial sums from codebook to codebook and ends with the nearest; product codebooks need
        none. Raises ConfigError on another rule, beam or width.
        """
        if rule not in RULES:
            raise ConfigError(f"assignment rule is '{rule}', needs one of {', '.join(RULES)}")
        if z.ndim != 2 or z.shape[1] != self.d:
            raise ConfigError(f"features have d={z.shape[-1]}, the codebooks need d={self.d}")
        if beam < 1:
            raise ConfigError(f"beam is {beam}, needs 1 or more")
        if beam > 1 and self.kind == "additive" and rule != "l2":
            raise ConfigError(f"beam={beam} needs the assignment rule 'l2', got '{rule}'")
        of_codebooks, of_rows = exponent(self.centroids), exponents(z)
        if of_codebooks == 0 and of_rows is None:
            return self._assign(z, rule, beam)
        # Squares or products would leave float32: rows and codebooks times one power of two keep all distances in order.
        peaks = np.frexp(np.abs(z).max(1, initial=0))[1]
        powers = np.maximum(peaks, np.frexp(np.abs(self.centroids).max())[1])
        codes = np.empty((len(z), self.M), self.code_dtype)
        for power in np.unique(powers):
            rows = powers == power
            codebooks = Codebooks(self.kind, times(self.centroids, -power), self.metric)
            part = times(z[rows], -power)
            if (
                rule == "ip" and self.kind == "product"
            ):  # a factor of the row alone changes nothing, nor one of the codebooks
                codebooks = Codebooks(self.kind, times(self.centroids, -of_codebooks), self.metric)
                part = times(z[rows], -peaks[rows])
            codes[rows] = codebooks._assign(part, rule, beam)
        return codes

    def _assign(self, z: NDArray[np.float32], rule: str, beam: int) -> Codes:
        """The same for rows and codebooks whose squares stay in float32."""
        if beam > 1 and self.kind == "additive":
            return self._beam_search(z, beam)
        codes = np.empty((len(z), self.M), self.code_dtype)
        dsub = self.centroids.shape[2]
        half_norms = 0.5 * np.square(self.centroids).sum(2)  # M K
        left = z
        for m, codebook in enumerate(self.centroids):
            part = z[:, m * dsub : (m + 1) * dsub] if self.kind == "product" else left
            near = part @ codebook.T  # n K
            if rule == "l2":  # ||z||^2 is the same for every codeword
                near -= half_norms[m]
            codes[:, m] = near.argmax(1)
            if self.kind == "additive":
                left = left - codebook[codes[:, m]]
        return codes

    def _beam_search(self, z: NDArray[np.float32], beam: int) -> Codes:
        """Additive codebooks: of all partial sums that extend a kept one, keep the `beam` nearest, codebook after codebook.

        Ties go to the better of the kept ones, then to the lowest codeword. Source: the beam search of additive and residual
        quantization, Babenko and Lempitsky, CVPR 2014; Liu, Lu, Shao, arXiv 1509.05195.
        """
        M, K, d = self.centroids.shape
        # What is held of each kept sum are its distances (K), its remainder (d) and its codes (M).
        step = max(1, min(len(z), BEAM_ELEMENTS // (beam * max(K, d, M))))
        # Arrays of megabytes are made once: the system would hand out fresh pages at every codebook, slower than the search.
        costs, terms = (np.empty(step * beam * K, np.float32) for _ in range(2))
        firsts = np.empty((step, M * K), np.float32)
        norms = np.square(self.centroids).sum(2)  # M K
        flat = -2 * self.centroids.reshape(M * K, d)
        codes = np.empty((len(z), M), self.code_dtype)
        for i in range(0, len(z), step):
            part = z[i : i + step]
            n = len(part)
            rows = np.arange(n)[:, None]
            left, kept = part[:, None], np.empty((n, 1, 0), np.int64)  # n b d, n b m
            tables = self._tables
            if tables is not None:
                first = np.matmul(part, flat.T, out=firsts[:n]).reshape(n, M, K)
                first += norms  # ||w||^2 - 2 <z, w>
            for m in range(M):
                b = left.shape[1]
                # ||left - w||^2 = ||left||^2 + ||w||^2 - 2 <left, w>
                cost = costs[: n * b * K].reshape(n, b, K)
                energy = np.square(left).sum(2, keepdims=True)  # n b 1
                if tables is None:
                    np.matmul(left.reshape(n * b, d), flat[m * K : (m + 1) * K].T, out=cost.reshape(n * b, K))
                    cost += energy
                    cost += norms[m]
                else:
                    np.add(first[:, None, m], energy, out=cost)
                    term = terms[: n * b * K].reshape(n * b, K)
                    for e in range(m):  # z = left + the codewords kept: 2 <w_e, w> makes <left, w> of <z, w>
                        np.take(tables[m][e], kept[:, :, e].ravel(), axis=0, out=term, mode="clip")
                        cost += term.reshape(n, b, K)
                flat_cost = cost.reshape(n, b * K)
                best = np.empty((n, min(beam, b * K) if m < M - 1 else 1), np.int64)
                for j in range(best.shape[1]):  # a pass for each: faster than sorting, and the lowest index on ties
                    best[:, j] = flat_cost.argmin(1)
                    flat_cost[rows[:, 0], best[:, j]] = np.inf
                parent, k = best // K, best % K
                left = left[rows, parent] - self.centroids[m, k]
                kept = np.concatenate([kept[rows, parent], k[:, :, None]], axis=2)
            codes[i : i + step] = kept[:, 0]
        return codes

    @cached_property
    def _tables(self) -> list[NDArray[np.float32]] | None:
        """[m] -> (m, K, K): 2 <w_e, w_m> of the codebooks e before m. None where plain products are faster, or memory short."""
        M, K, d = self.centroids.shape
        if d < 8 * M or M * M * K * K // 2 > TABLE_ELEMENTS:
            return None
        return [2 * self.centroids[:m] @ self.centroids[m].T for m in range(M)]
