"""PQ, OPQ and RQ as FAISS trains them, without labels: what label-aware codes are measured against.

Jegou, Douze, Schmid, "Product quantization for nearest neighbor search", TPAMI 33(1), 2011; Ge, He, Ke, Sun, "Optimized
product quantization", CVPR 2013; Chen, Guan, Wang, "Approximate nearest neighbor search by residual vector quantization",
Sensors 10(12), 2010. Factory equivalents: PQ{M}x{nbits}np, OPQ{M},PQ{M}x{nbits}np and RQ{M}x{nbits}.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from . import faiss_calls
from .codebooks import Codebooks
from .contract import Layers, MethodDefaults, Stage, Task, check_product_shape, setting
from .errors import ConfigError, DataError, warn
from .exponents import balanced, exponent, times
from .modality import Modality

ROWS_PER_LIST = 64  # that k-means looks at


@dataclass(frozen=True)
class Settings:
    raw: bool = False  # True: rows as they are; False: centered by the training mean, then L2-normalised
    iterations: int = setting(25, low=1, high=1000)  # of k-means


@contextmanager
def one_thread() -> Iterator[None]:
    """FAISS on one thread, which makes its k-means repeatable."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


class PQ(MethodDefaults):
    """Product quantization of the rows themselves."""

    Config = Settings
    long_name = "product quantization (FAISS)"
    needs_encoder = False
    takes_lists = True

    @staticmethod
    def default_encoder(config: Settings) -> str:
        return "identity"

    @classmethod
    def check(cls, config: Settings, d_in: int, C: int, M: int, nbits: int, encoder: str, modality: Modality) -> None:
        if M:
            check_product_shape(d_in, M, nbits, "rows of d")

    def __init__(self, config: Settings, task: Task) -> None:
        self.config, self.task = config, task
        self.mean = np.zeros(task.rows.d)
        self.centroids: NDArray[np.float32]
        self.lists: NDArray[np.float32] | None = None  # (L, d)

    def stages(self) -> list[Stage]:
        return [Stage(name="k-means", begin=self.fit)]

    def prepared_rows(self) -> NDArray[np.float32]:
        """At most 256 rows per codeword, centered and normalised unless raw."""
        task, rows = self.task, self.task.codebook_rows or self.task.rows
        if len(rows) < 2:
            raise ConfigError(f"{len(rows):,} rows cannot train K={task.K} codewords; need at least 2 rows")
        if len(rows) < task.K:
            fits = len(rows).bit_length() - 1
            raise ConfigError(f"{len(rows):,} rows cannot train K={task.K} codewords; need --nbits {fits} or less")
        if len(rows) < 39 * task.K:
            warn(f"{len(rows):,} rows are few for {task.K} codewords a codebook; FAISS advises {39 * task.K:,}")
        if len(rows) < task.lists:
            raise ConfigError(
                f"{len(rows):,} rows cannot train {task.lists:,} lists; need --lists {len(rows):,} or less"
            )
        x: NDArray[np.float32] = rows.sample(max(256 * task.K, ROWS_PER_LIST * task.lists), task.seed)[0]
        if self.config.raw:
            return x
        self.mean = x.mean(0, dtype=np.float64)
        with np.errstate(over="ignore"):
            x = balanced(x - self.mean.astype(np.float32))
        bad = np.flatnonzero(~np.isfinite(x).all(1))
        if len(bad):
            raise DataError(
                f"{len(bad):,} of {len(x):,} training rows are too large for float32 once they are centered"
            )
        faiss_calls.normalize(x)
        return x

    def fit(self) -> None:
        with one_thread():
            x = self.prepared_rows()
            power = exponent(x)  # of raw rows whose squares leave float32
            self.train_codebooks(times(x, -power) if power else x)
            if power:
                self.centroids = times(self.centroids, power)
                self.lists = times(self.lists, power) if self.lists is not None else None

    def without_lists(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Learn the lists of x (n, d) -> what they leave over; x itself without lists."""
        if self.task.lists == 1:
            return x
        self.lists = faiss_calls.kmeans(
            x,
            self.task.lists,
            niter=self.config.iterations,
            seed=(self.task.seed + 1) % 2**31,
            min_points_per_centroid=1,
        )
        return x - self.lists[faiss_calls.nearest(x, self.lists)]

    def train_codebooks(self, x: NDArray[np.float32]) -> None:
        x = self.without_lists(x)
        if self.task.M == 0:
            self.centroids = np.zeros((0, 2, x.shape[1]), np.float32)
            return
        pq = faiss.ProductQuantizer(x.shape[1], self.task.M, self.task.nbits)
        pq.cp.seed = (self.task.seed + 1) % 2**31
        pq.cp.niter = self.config.iterations
        pq.cp.min_points_per_centroid = 1  # said above, in our words
        faiss_calls.train(pq, x)
        self.centroids = faiss.vector_to_array(pq.centroids).reshape(pq.M, pq.ksub, pq.dsub)

    def layers(self) -> Layers:
        return [] if self.config.raw else [("center", {"mean": self.mean.astype(np.float32)}), ("normalize", {})]

    def codebooks(self) -> Codebooks:
        return Codebooks("product", self.centroids, lists=self.lists)

    def summary(self) -> dict[str, Any]:
        return {}


class OPQ(PQ):
    """PQ after a learned rotation, which also brings d to a multiple of M."""

    long_name = "optimized product quantization (FAISS)"

    @classmethod
    def check(cls, config: Settings, d_in: int, C: int, M: int, nbits: int, encoder: str, modality: Modality) -> None:
        if M == 0:
            raise ConfigError(
                "a rotation changes no distance, and lists alone have nothing else; --bits 0 is for method pq"
            )
        if d_in < M:
            raise ConfigError(f"rows of d={d_in} cannot fill M={M} codebooks")
        check_product_shape(d_in // M * M, M, nbits)

    def __init__(self, config: Settings, task: Task) -> None:
        super().__init__(config, task)
        self.A = np.zeros((task.rows.d // task.M * task.M, task.rows.d), np.float32)

    def train_codebooks(self, x: NDArray[np.float32]) -> None:
        d = x.shape[1]
        if len(x) < d:  # FAISS writes beyond its arrays
            raise DataError(f"{len(x):,} rows cannot train a rotation of d={d}; need {d:,} or more, or method pq")
        # The rotation starts from a fixed seed inside FAISS; the codebooks inside it take the product quantizer's.
        pq = faiss.ProductQuantizer(d // self.task.M * self.task.M, self.task.M, self.task.nbits)
        pq.cp.seed, pq.cp.min_points_per_centroid = (self.task.seed + 1) % 2**31, 1
        opq = faiss.OPQMatrix(d, self.task.M, pq.d)
        opq.pq = pq
        faiss_calls.train(opq, x)
        self.A = faiss.vector_to_array(opq.A).reshape(opq.d_out, opq.d_in)
        super().train_codebooks(faiss_calls.apply(opq, x))

    def layers(self) -> Layers:
        return [*super().layers(), ("linear", {"A": self.A})]


class RQ(PQ):
    """Additive codebooks of the rows themselves, each on what the ones before leave over."""

    long_name = "residual quantization (FAISS)"
    beam = 5  # FAISS's own, with which its codebooks are trained

    @staticmethod
    def kind(config: Settings) -> str:
        return "additive"

    @classmethod
    def check(cls, config: Settings, d_in: int, C: int, M: int, nbits: int, encoder: str, modality: Modality) -> None:
        pass  # any number of codebooks of any width

    def train_codebooks(self, x: NDArray[np.float32]) -> None:
        if self.task.M == 0:
            super().train_codebooks(x)
            return
        x = self.without_lists(x)
        rq = faiss.ResidualQuantizer(x.shape[1], self.task.M, self.task.nbits)
        rq.max_beam_size = self.beam
        rq.cp.seed, rq.cp.niter = (self.task.seed + 1) % 2**31, self.config.iterations
        rq.cp.min_points_per_centroid = 1
        faiss_calls.train(rq, x)
        self.centroids = faiss.vector_to_array(rq.codebooks).reshape(rq.M, self.task.K, rq.d)

    def codebooks(self) -> Codebooks:
        return Codebooks("additive" if self.task.M else "product", self.centroids, lists=self.lists)
