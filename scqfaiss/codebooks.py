"""The seam: what a method hands over and a FAISS container takes in. NumPy only.

A method (torch) ends in a Codebooks and a rule of assignment; a target (FAISS) starts from a Codebooks and codes. Neither
side imports the other's library. `scores` is the oracle that every container is tested against.

Codebooks may have lists: a code is then the list that its row stands in, and codewords of what the list's centroid leaves over.
The list costs no byte, because an inverted list says of its rows where they stand.
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
CodeType = type[np.uint8] | type[np.uint16] | type[np.uint32]

KINDS = ("product", "additive")
METRICS = ("ip", "l2")
RULES = ("l2", "ip")
MAX_NBITS = 16
MAX_LISTS = 1 << 24
MAX_BEAM = 64  # that a model may ask for
BEAM_ELEMENTS = 1 << 18  # numbers of a kind that a beam search holds at a time: 1 MB, which stays in the cache
TABLE_ELEMENTS = 1 << 24  # 64 MB: tables of products between codewords stay below, or are not made


@dataclass(frozen=True)
class Shape:
    """What is known of codebooks before they are trained; enough to say which containers will take them. L: lists, 1 for
    codes of whole vectors.
    """

    kind: str
    M: int
    nbits: int
    d: int
    metric: str = "ip"
    L: int = 1

    @property
    def K(self) -> int:
        return 1 << self.nbits

    @property
    def code_size(self) -> int:
        """Bytes of one packed code; the list takes none."""
        return -(-self.M * self.nbits // 8)


@dataclass(frozen=True, eq=False)
class Codebooks:
    """M codebooks of K codewords, K a power of two, and L lists where these are part of the code.

    kind 'product': centroids (M, K, d / M) float32, a vector is the concatenation of its M codewords.
    kind 'additive': centroids (M, K, d) float32, a vector is the sum of its M codewords.
    metric: 'ip' (large is near) or 'l2' (squared Euclidean distance, small is near).
    lists: (L, d) float32, L from 2, or None. With lists, codes are (n, 1 + M): column 0 is the list, and a vector is the list's
    centroid plus what its codewords make. M may be 0 then, as centroids (0, 2, d) of kind 'product'.
    Raises ConfigError on a shape, dtype or name that is none of these, DataError on numbers that are not finite.
    """

    kind: str
    centroids: NDArray[np.float32]
    metric: str = "ip"
    lists: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        c = self.centroids
        if self.kind not in KINDS:
            raise ConfigError(f"codebooks are of kind '{self.kind}', need one of {', '.join(KINDS)}")
        if self.metric not in METRICS:
            raise ConfigError(f"metric is '{self.metric}', needs one of {', '.join(METRICS)}")
        listed = self.lists is not None
        empty = listed and c.ndim == 3 and len(c) == 0
        if c.ndim != 3 or c.dtype != np.float32 or 0 in c.shape[empty:]:
            raise ConfigError(f"centroids are {c.shape} {c.dtype}, need (M, K, dsub) float32")
        K = c.shape[1]
        if K & (K - 1) or not 2 <= K <= 1 << MAX_NBITS:
            raise ConfigError(f"a codebook holds K={K} codewords, needs a power of two from 2 to {1 << MAX_NBITS}")
        if empty and (self.kind != "product" or K != 2):
            raise ConfigError(f"codes of lists alone are of kind '{self.kind}' and K={K}, need kind 'product' and K=2")
        if not np.isfinite(c).all():
            m, k, _ = np.argwhere(~np.isfinite(c))[0]
            raise DataError(f"codeword {k} of codebook {m} is not finite")
        object.__setattr__(self, "centroids", np.ascontiguousarray(c))
        if self.lists is not None:
            self._check_lists(self.lists)
            object.__setattr__(self, "lists", np.ascontiguousarray(self.lists))

    @classmethod
    def of_lists(cls, lists: NDArray[np.float32], metric: str = "ip") -> Codebooks:
        """Codes of 0 bits: the list that a row stands in, lists (L, d), and no codeword."""
        return cls("product", np.zeros((0, 2, lists.shape[1]), np.float32), metric, lists)

    def _check_lists(self, lists: NDArray[np.float32]) -> None:
        if lists.ndim != 2 or lists.dtype != np.float32 or lists.shape[1] != self.d:
            raise ConfigError(f"lists are {lists.shape} {lists.dtype}, need (L, {self.d}) float32")
        if not 2 <= len(lists) <= MAX_LISTS:
            raise ConfigError(f"there are {len(lists):,} lists, need 2 to {MAX_LISTS:,}")
        finite = np.isfinite(lists).all(1)
        if not finite.all():
            raise DataError(f"the centroid of list {int(finite.argmin()):,} is not finite")

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
        """Bits a vector takes, M * nbits: where it has a list, that costs none."""
        return self.M * self.nbits

    @property
    def d(self) -> int:
        """Dimension of a decoded vector."""
        return int(self.centroids.shape[2]) * (max(self.M, 1) if self.kind == "product" else 1)

    @property
    def L(self) -> int:
        """Lists that a code tells apart; 1 for codes of whole vectors."""
        return 1 if self.lists is None else len(self.lists)

    @property
    def columns(self) -> int:
        """Numbers in a code: M, and one more for the list where there are lists."""
        return self.M + (self.lists is not None)

    @property
    def shape(self) -> Shape:
        return Shape(self.kind, self.M, self.nbits, self.d, self.metric, self.L)

    @property
    def code_dtype(self) -> CodeType:
        """The smallest type that holds every number of a code."""
        most = max(self.K, self.L)
        return np.uint8 if most <= 1 << 8 else np.uint16 if most <= 1 << 16 else np.uint32

    @cached_property
    def residual(self) -> Codebooks:
        """The codebooks without the lists: what they code is what a list's centroid leaves over. Raises ConfigError for M = 0."""
        return self if self.lists is None else Codebooks(self.kind, self.centroids, self.metric)

    def split(self, codes: Codes) -> tuple[NDArray[np.int64] | None, Codes]:
        """codes (n, M), or (n, 1 + M) with lists -> (list of each row (n,) or None, codewords (n, M))."""
        if self.lists is None:
            return None, codes
        return codes[:, 0].astype(np.int64), codes[:, 1:]

    def joined(self, lists: NDArray[Any] | None, words: NDArray[Any]) -> Codes:
        """The inverse of split."""
        if self.lists is None or lists is None:
            return np.ascontiguousarray(words, self.code_dtype)
        return np.column_stack([lists.astype(self.code_dtype), words.astype(self.code_dtype)])

    def check_codes(self, codes: NDArray[Any]) -> Codes:
        """codes (n, M) integers in 0..K-1, behind their list in 0..L-1 where there are lists -> the same as code_dtype.

        FAISS packs a code of 300 into 8 bits as 44 without a word, so this stands before every container. Raises DataError.
        """
        if codes.ndim != 2 or codes.shape[1] != self.columns or codes.dtype.kind not in "iu":
            raise DataError(f"codes are {codes.shape} {codes.dtype}, need (n, {self.columns}) integers")
        _, words = self.split(codes)
        _check_range(codes, words, self.K, "codebooks hold codewords")
        if self.lists is not None:
            _check_range(codes, codes[:, :1], self.L, "there are lists")
        return np.ascontiguousarray(codes, self.code_dtype)

    def decode(self, codes: Codes) -> NDArray[np.float32]:
        """codes (n, M), or (n, 1 + M) with lists -> the vectors they stand for, (n, d) float32."""
        lists, words = self.split(codes)
        if self.M == 0:
            return np.asarray(self.lists, np.float32)[lists]
        out: NDArray[np.float32]
        if self.kind == "product":
            out = np.asarray(self.centroids[np.arange(self.M), words].reshape(len(codes), self.d))
        else:
            out = self.centroids[0][words[:, 0]]
            for m in range(1, self.M):  # codebook by codebook: all parts at once would take M times the memory
                out += self.centroids[m][words[:, m]]
        if self.lists is not None:
            out += self.lists[lists]
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

    def assign(self, z: NDArray[np.float32], rule: str, beam: int = 1, list_beam: int = 1) -> Codes:
        """z (n, d) float32 -> codes (n, M), codebook by codebook over the whole codebook, the lowest index on ties.

        rule 'l2': argmin_k ||z_m - w_mk||^2. rule 'ip': argmax_k <z_m, w_mk>. Additive codebooks are assigned greedily on what
        the codebooks before leave over (for 'l2' exactly FAISS's residual quantizer with a beam of 1). For them and 'l2', a
        `beam` above 1 carries that many partial sums from codebook to codebook and ends with the nearest; product codebooks need
        none. With lists, codes are (n, 1 + M) and the rule is 'l2': what each of the `list_beam` nearest centroids leaves over is
        encoded, and the nearest sum of centroid and codewords is taken, of equal ones that of the nearer list. Raises ConfigError
        on another rule, beam or width.
        """
        self._check_assignment(z, rule, beam, list_beam)
        of_codebooks, of_rows = exponent(self.centroids), exponents(z)
        if of_codebooks == 0 and of_rows is None and (self.lists is None or exponent(self.lists) == 0):
            return self._assign(z, rule, beam, list_beam)
        # Squares or products would leave float32: rows and codebooks times one power of two keep all distances in order.
        of_rows = np.abs(z).max(1, initial=0)
        largest = max(float(np.abs(a).max(initial=0)) for a in (self.centroids, self.lists) if a is not None)
        powers = np.frexp(np.maximum(of_rows, np.float32(largest)))[1]
        codes = np.empty((len(z), self.columns), self.code_dtype)
        for power in np.unique(powers):
            rows = powers == power
            codebooks, part = self._scaled(-power), times(z[rows], -power)
            if (
                rule == "ip" and self.kind == "product"
            ):  # a factor of the row alone changes nothing, nor one of the codebooks
                codebooks, part = self._scaled(-of_codebooks), times(z[rows], -np.frexp(of_rows[rows])[1])
            codes[rows] = codebooks._assign(part, rule, beam, list_beam)
        return codes

    def _check_assignment(self, z: NDArray[np.float32], rule: str, beam: int, list_beam: int) -> None:
        if rule not in RULES:
            raise ConfigError(f"assignment rule is '{rule}', needs one of {', '.join(RULES)}")
        if z.ndim != 2 or z.shape[1] != self.d:
            raise ConfigError(f"features have d={z.shape[-1]}, the codebooks need d={self.d}")
        for name, value in (("beam", beam), ("list_beam", list_beam)):
            if value < 1:
                raise ConfigError(f"{name} is {value}, needs 1 or more")
        if beam > 1 and self.kind == "additive" and rule != "l2":
            raise ConfigError(f"beam={beam} needs the assignment rule 'l2', got '{rule}'")
        if self.lists is not None and rule != "l2":
            raise ConfigError(f"codebooks with lists need the assignment rule 'l2', got '{rule}'")
        if self.lists is None and list_beam > 1:
            raise ConfigError(f"list_beam={list_beam} needs codebooks with lists, these have none")

    def _scaled(self, power: int) -> Codebooks:
        """Codebooks and lists times 2^power."""
        lists = None if self.lists is None else times(self.lists, power)
        return Codebooks(self.kind, times(self.centroids, power), self.metric, lists)

    def _assign(self, z: NDArray[np.float32], rule: str, beam: int, list_beam: int) -> Codes:
        """The same for rows and codebooks whose squares stay in float32."""
        if self.lists is not None:
            return self._assign_lists(z, self.lists, beam, list_beam)
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

    def _assign_lists(self, z: NDArray[np.float32], lists: NDArray[np.float32], beam: int, list_beam: int) -> Codes:
        """What each of the nearest lists leaves over, encoded; of these codes the nearest."""
        near = z @ lists.T  # n L
        near -= 0.5 * np.square(lists).sum(1)
        codes = np.zeros((len(z), self.columns), self.code_dtype)
        least = np.full(len(z), np.inf)
        rows = np.arange(len(z))
        tries = min(list_beam, self.L) if self.M else 1
        for _ in range(tries):
            number = near.argmax(1)
            near[rows, number] = -np.inf
            left = z - lists[number]
            found = self.joined(number, self.residual.assign(left, "l2", beam) if self.M else codes[:, 1:])
            if tries == 1:
                return found
            left -= self.residual.decode(found[:, 1:])
            error = np.square(left, dtype=np.float64).sum(1)  # also of residuals far smaller than the rows
            better = error < least
            codes[better], least[better] = found[better], error[better]
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


def _check_range(codes: NDArray[Any], numbers: NDArray[Any], most: int, what: str) -> None:
    """Raise DataError for the first row whose numbers, a part of its code, are not 0 to most - 1."""
    if numbers.size and (int(numbers.min()) < 0 or int(numbers.max()) >= most):
        row = int(np.argmax(((numbers < 0) | (numbers >= most)).any(axis=1)))
        raise DataError(f"codes: row {row:,} is {codes[row].tolist()}, {what} 0 to {most - 1}")
