"""Spherical Centralized Quantization: centers (SCA), features (CFA), codebooks (ARSQ).

Song, Zhang, Zhu, Zhao, Wang, Shen. IEEE Trans. Image Processing 32:6485-6499, 2023, DOI 10.1109/TIP.2023.3265262.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..codebooks import MAX_BEAM, Codebooks
from ..contract import (
    Layers,
    MethodDefaults,
    OptimizerStep,
    Stage,
    Task,
    batch_count,
    check_product_shape,
    seed_of,
    setting,
)
from ..errors import ConfigError, warn
from ..modality import Modality
from . import attention, cfa, cfa_checks, lists, residual
from .arsq import ARSQ, allocate_codewords, decode, lloyd_step, nearest
from .class_kmeans import codebook_start
from .dead_codewords import Seeds, reset_dead_codewords
from .kmeans import lloyd, sample_rows
from .rows import CodebookRows, warn_of_few
from .self_training import SelfTraining

QUANTIZERS = ("kmeans", "arsq", "attention")
SEED_ROWS = 256  # rows per codeword that k-means looks at; more do not change the start


@dataclass(frozen=True)
class CodebookStage:
    """What the codebooks are and which rows they learn from; how product codebooks are trained."""

    kind: str = setting("product", choices=("product", "additive"))
    rows: int = setting(1_000_000, low=1)  # at most so many rows teach the codebooks
    # Passes over the training rows, each with other noise, so that every pass gives other rows for the codebooks to learn from.
    copies: int = setting(4, low=1, high=100)
    noise: float = setting(
        1.5, low=0, high=10
    )  # in standard deviations of each feature; 0, and of images: dropout instead
    epochs: int = setting(5, low=0)
    batch_size: int = setting(512, low=1)
    lr: float = setting(1e-3, low=0)


@dataclass(frozen=True)
class Settings(cfa.Settings):
    recipe: str = setting("calibrated", choices=("calibrated", "reference"))  # reference: the paper's own, as published
    codebooks: CodebookStage = CodebookStage()
    beam: int = setting(
        8, low=1, high=MAX_BEAM
    )  # additive codebooks: partial sums that encoding carries from codebook to codebook
    # From here on: for product codebooks alone.
    # kmeans: Lloyd's steps from codewords of each class; arsq: annealed, as published, which ranks 0.0005 to 0.006 lower;
    # attention: partial attention, after PHPQ's abstract, from where kmeans ends.
    quantizer: str = setting("kmeans", choices=QUANTIZERS)
    top: int = setting(16, low=1, high=1 << 16)  # attention: to so many of the nearest codewords
    beta: float = setting(10.0, low=0)  # attention: its inverse temperature
    private: str = setting("auto", choices=("auto", "class", "public"))  # codewords owned by classes, or by all
    start: str = setting("kmeans", choices=("kmeans", "normal"))  # normal: N(0, 1e-4^2), as published
    soft: float = setting(1.0, low=0)  # inverse temperatures: larger is nearer to argmin
    hard: float = setting(1e5, low=0)
    hard_max: float = setting(1e7, low=0)
    anneal_every: int = setting(1, low=1)  # epochs between steps of the annealing: hard x 1.5, soft x 0.5
    omega: float = setting(0.1, low=0)  # weight of the soft rebuild beside the hard one
    rho: float = setting(0.01, low=0)  # weight of the regulation, which keeps own codewords apart
    refit: int = setting(1, low=0, high=100)  # closing steps that set codewords to the mean of the rows encoded by them
    revive: bool = True  # after each epoch, codewords that code no row move to rows that are coded badly
    rescale: bool = True  # ARSQ on g z, g = sqrt(d / mean ||z||^2): its constants are made for that scale
    detach_divisor: bool = False


# What `recipe=reference` puts in place of the defaults above.
REFERENCE: dict[str, Any] = {
    "cfa": "reference",
    "quantizer": "arsq",
    "d": 360,
    "features.epochs": 320,
    "features.batch_size": 64,
    "codebooks.copies": 1,
    "codebooks.noise": 0.0,
    "codebooks.epochs": 200,
    "codebooks.batch_size": 64,
    "codebooks.lr": 0.02,
    "start": "normal",
    "hard": 1.0,
    "hard_max": 30.0,
    "anneal_every": 5,
    "rho": 0.1,
    "refit": 0,
    "revive": False,
    "rescale": False,
}


def feature_codebooks(config: Settings, M: int) -> int:
    """How many parts z is cut into: one for each product codebook, none for additive codebooks, which span all of it."""
    return 1 if config.codebooks.kind == "additive" else max(M, 1)


def classes_of(y: Tensor) -> Seeds:
    """y (n,) classes or (n, C) bool -> rows (q,) and classes (q,), a pair for every label of every row."""
    if y.ndim == 1:
        return torch.arange(len(y)), y
    row, carried = y.nonzero().T
    return row, carried


class SCQ(MethodDefaults, nn.Module):
    """Codebooks on features drawn to class centers: product codebooks in which every class owns private codewords, or
    additive ones.
    """

    Config = Settings
    PRESETS: ClassVar[dict[str, Any]] = {"recipe": {"reference": REFERENCE}}
    long_name = "Spherical Centralized Quantization"
    needs = frozenset({"labels"})
    starts = True
    takes_lists = True
    takes_unlabelled = True

    @staticmethod
    def unlabeled(config: Settings) -> str:
        return config.unlabeled

    @staticmethod
    def kind(config: Settings) -> str:
        return config.codebooks.kind

    @staticmethod
    def default_encoder(config: Settings) -> str:
        return "mlp"

    @staticmethod
    def members(config: Settings, encoder: str) -> int:
        return cfa.members(config, encoder)

    @classmethod
    def check(cls, config: Settings, d_in: int, C: int, M: int, nbits: int, encoder: str, modality: Modality) -> None:
        cfa_checks.check(config, d_in, C, feature_codebooks(config, M), encoder, modality)
        if config.quantizer == "attention":
            attention.check(config.codebooks.kind, config.private, config.top, nbits)
        if config.codebooks.kind == "additive":
            if config.private == "class":
                warn("additive codebooks are shared by all classes: private=class is ignored")
            return
        if M:
            check_product_shape(cfa.smallest_d(config, d_in, C, M, encoder), M, nbits)
        K = 1 << nbits
        if config.private == "class" and K < C:
            need = (C - 1).bit_length()
            raise ConfigError(
                f"K={K} codewords cannot serve C={C} classes; need --nbits {need} or more, or private=public"
            )

    def __init__(self, config: Settings, task: Task) -> None:
        super().__init__()
        assert task.labels is not None
        self.config, self.task = config, task
        self.additive = config.codebooks.kind == "additive"
        self.beam = config.beam if self.additive else 1
        d = cfa.smallest_d(config, task.rows.d, task.labels.C, feature_codebooks(config, task.M), task.encoder_name)
        self.features = cfa.Features(config, task, d, task.labels)
        self.self_training = SelfTraining(self.features, task)
        stage = config.codebooks
        self.rows = CodebookRows(self.features, task, stage.rows, stage.copies, stage.noise)
        self.list_beam = lists.BEAM if task.lists > 1 and task.M else 1
        self.centroids: Tensor | None = None  # of lists, (L, d), of z as it is
        self.z: Tensor
        self.y: Tensor
        self.pattern: Tensor
        self.scale = 1.0
        self.quantizer: ARSQ | attention.PartialAttention
        self.optimizer: torch.optim.Optimizer | None = None
        self.private_to: tuple[Tensor, Seeds] | None = None  # owner (K,) of the codewords, and the classes of the rows
        self.z_validation: Tensor
        self.sums: Tensor  # additive codebooks, (M, K, d)
        self.counts = torch.from_numpy(task.labels.counts())
        present = int((self.counts > 0).sum())
        # What a list leaves over is nobody's own.
        self.public = self.additive or task.lists > 1 or config.private == "public" or config.quantizer == "attention"
        if config.private == "auto" and not self.public and task.K < 2 * present:
            self.public = True
            if config.quantizer == "arsq":
                warn(f"K={task.K} codewords are fewer than 2 for each of {present} classes: all classes share them")

    def stages(self) -> list[Stage]:
        codebooks = self.arsq_stage()
        if self.task.M == 0:
            codebooks = Stage(name="codebooks")
        elif self.additive:
            codebooks = Stage(name="codebooks", begin=self.add_codebooks)
        return [*self.self_training.stages(), Stage(name="encode rows", begin=self.encode_rows), codebooks]

    def arsq_stage(self) -> Stage:
        c, task = self.config, self.task
        epochs = 0 if c.quantizer == "kmeans" else task.epochs if task.epochs is not None else c.codebooks.epochs
        batch = task.batch_size or c.codebooks.batch_size

        def anneal(epoch: int) -> None:
            """The hard rebuild gets harder and the soft one softer."""
            if not isinstance(self.quantizer, ARSQ):
                return
            self.quantizer.hard = min(c.hard * 1.5 ** (epoch // c.anneal_every), max(c.hard_max, c.hard))
            self.quantizer.soft = max(c.soft * 0.5 ** (epoch // c.anneal_every), 0.01)

        def make_optimizer(steps: int) -> tuple[Any, Any]:
            optimizer = torch.optim.Adam(
                self.quantizer.parameters(), c.codebooks.lr, weight_decay=1e-5, amsgrad=True, fused=True
            )
            if c.recipe == "reference":
                per_epoch = max(1, steps // max(epochs, 1))
                schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.99 ** (step // per_epoch))
            else:
                schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)  # type: ignore[assignment]
            self.optimizer = optimizer
            return optimizer, schedule

        return Stage(
            name="codebooks",
            begin=self.start_codebooks,
            epochs=epochs,
            steps_per_epoch=batch_count(len(self.rows), batch),
            batches=lambda generator: self.batches(batch, generator),
            optimizer_steps=[OptimizerStep(lambda z, pattern: self.quantizer.loss(z, pattern), make_optimizer)],
            on_epoch=anneal,
            after_epoch=self.renew,
            validate=self.validate if task.validation is not None else None,
            end=self.refit,
            one_thread=batch * task.K * self.features.d < 1 << 24,
        )

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled (z (b, d), pattern (b,)) from the encoded rows."""
        order = torch.randperm(len(self.z), generator=generator).to(self.z.device)
        for part in order.tensor_split(batch_count(len(order), size)):
            yield self.z[part], self.pattern[part]

    @torch.no_grad()
    def encode_rows(self) -> None:
        """Encode the rows once: from here the encoder is frozen. With lists, codebooks learn what these leave over."""
        task = self.task
        self.z, self.y = self.rows_for_codebooks()
        if task.lists > 1:
            self.centroids = lists.of_task(self.z, self.features, task)
            self.whole, self.z = self.z, lists.residuals(self.z, self.centroids)

    @torch.no_grad()
    def add_codebooks(self) -> None:
        """Additive codebooks, from start to end; on the CPU, where they are encoded with too."""
        task = self.task
        warn_of_few(len(self.z), task.K)
        generator = torch.Generator().manual_seed(task.seed)
        self.sums = residual.train(self.z, task.M, task.K, self.beam, generator, progress=task.progress)

    @torch.no_grad()
    def start_codebooks(self) -> None:
        """Deal the codewords, start them."""
        c, task, z, y = self.config, self.task, self.z, self.y
        generator = torch.Generator().manual_seed(task.seed)
        n = len(z)
        warn_of_few(n, task.K)
        energy = float(z.double().square().sum(1).mean())
        self.scale = float(np.sqrt(z.shape[1] / energy)) if c.rescale and energy > 0 else 1.0
        z = z * self.scale
        owner, pattern, owned, groups = self.deal(y)
        if c.start == "normal" and c.quantizer == "arsq":
            start = 1e-4 * torch.randn(task.M, task.K, z.shape[1] // task.M, generator=generator)
        else:
            task.progress("k-means", 0, 1, "")
            start = self.started(z, pattern, owned, owner, generator)
        quantizer: ARSQ | attention.PartialAttention = (
            attention.PartialAttention(start, c.top, c.beta, c.omega)
            if c.quantizer == "attention"
            else ARSQ(start, owned, groups, c.omega, c.rho, c.detach_divisor)
        )
        self.quantizer = quantizer.to(task.device)
        self.z, self.pattern = z.to(task.device), pattern.to(task.device)
        if not self.public:
            row, row_class = classes_of(y)
            self.private_to = owner.to(task.device), (row.to(task.device), row_class.to(task.device))
        if task.validation is not None:
            parts = [part for _, part, _ in self.features.embed(task.validation.rows)]
            held = torch.cat(parts)
            if self.centroids is not None:
                held = lists.residuals(held, self.centroids)
            self.z_validation = held * self.scale

    def started(self, z: Tensor, pattern: Tensor, owned: Tensor, owner: Tensor, generator: torch.Generator) -> Tensor:
        """Codewords to start from (M, K, dsub): private ones within their classes, others as codebook_start does."""
        task, y = self.task, self.y
        sample = sample_rows(len(z), SEED_ROWS * task.K, generator)
        if self.public or self.config.quantizer == "kmeans":
            classes = self.features.predicted(z) if task.lists == 1 else None
            classes = torch.zeros(len(z), dtype=torch.int64) if classes is None else classes
            return codebook_start(self.parts(z[sample]), classes[sample], task.K, generator)
        first_of_class = [(y == k if y.ndim == 1 else y[:, k]).nonzero()[:1, 0] for k in owner.unique()]
        # A class that the sample left out must still seed its codewords.
        sample = torch.cat([sample, *first_of_class]).unique()
        return lloyd(self.parts(z[sample]), pattern[sample], owned, owner, classes_of(y[sample]), generator)

    def parts(self, z: Tensor) -> Tensor:
        """z (n, d) -> (M, n, dsub)."""
        parts: Tensor = z.unflatten(1, (self.task.M, -1)).transpose(0, 1).contiguous()
        return parts

    def renew(self, epoch: int) -> dict[str, Any]:
        """Codewords in use by the rule of encoding; dead ones move to rows, private ones to rows of their class."""
        w, c = self.quantizer.centroids, self.config
        # Of its own seed: the rows drawn do not depend on what ran before, in a training that was resumed either.
        generator = torch.Generator().manual_seed(seed_of(self.task.seed, epoch))
        owner, seeds = self.private_to or (None, None)
        return reset_dead_codewords(
            w, nearest(self.z, w), self.z, generator, owner, seeds, self.optimizer, only_count=not c.revive
        )

    def validate(self) -> float:
        """Mean of ||z - x^||^2 over the validation rows, coded by the rule of encoding."""
        w, z = self.quantizer.centroids.detach(), self.z_validation
        x = decode(w, nearest(z, w))
        return float((z - x).square().sum(dtype=torch.float64)) / (len(z) * self.scale**2)

    def deal(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """y (n,) classes or (n, C) bool -> owner (K,) class of each codeword, pattern (n,), owned (P, K), groups (G, K)."""
        K = self.task.K
        if self.public:
            everything = torch.ones(1, K, dtype=torch.bool)
            return torch.zeros(K, dtype=torch.int64), torch.zeros(len(y), dtype=torch.int64), everything, everything
        if y.ndim == 1:
            present = torch.bincount(y, minlength=len(self.counts)) > 0
            owner = allocate_codewords(K, present.long())
            groups = owner == present.nonzero()  # c k
            return owner, present.cumsum(0)[y] - 1, groups, groups
        present = y.any(0)
        owner = allocate_codewords(K, present.long())
        sets, pattern = torch.unique(y, dim=0, return_inverse=True)  # p c
        return owner, pattern, sets[:, owner], owner == present.nonzero()

    def rows_for_codebooks(self) -> tuple[Tensor, Tensor]:
        """z (n, d) of the rows the codebooks learn from, and their labels: (n,) int64, predicted ones for unlabelled rows, or
        (n, C) bool.
        """
        z, y = self.rows.encoded()
        if y is None:
            if not self.public:
                raise ConfigError("codebook rows have no labels and cfa=none predicts none; use --set private=public")
            y = torch.zeros(len(z), dtype=torch.int64)
        return z, y

    @torch.no_grad()
    def refit(self) -> None:
        """Lloyd steps by the rule of encoding, the nearest of all codewords.

        Training chooses among own codewords, encoding among all: this takes the difference out of the means.
        """
        for _ in range(self.config.refit if self.config.quantizer == "arsq" else 0):
            lloyd_step(self.quantizer.centroids, self.z)

    def of_posterior(self, p: Tensor) -> Tensor | None:
        return self.features.of_posterior(p)

    def layers(self) -> Layers:
        return self.features.layers()

    def codebooks(self) -> Codebooks:
        centroids = None if self.centroids is None else self.centroids.numpy()
        if self.task.M == 0 and centroids is not None:
            return Codebooks.of_lists(centroids)
        kind, w = "additive", self.sums if self.additive else None
        if w is None:
            kind, w = "product", (self.quantizer.centroids.detach().double() / self.scale).float().cpu()
        codebooks = Codebooks(kind, w.numpy(), lists=centroids)
        if centroids is None:
            return codebooks
        return lists.refine(self.whole.numpy(), codebooks, self.beam, self.task.progress)

    def summary(self) -> dict[str, Any]:
        return (
            self.features.summary() | self.self_training.summary() | {"private": "public" if self.public else "class"}
        )
