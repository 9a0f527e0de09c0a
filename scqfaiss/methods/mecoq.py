"""MeCoQ: codes without labels, from views of a row that should decode alike, and a memory of codes that should not.

Wang, Zeng, Chen, Dai, Xia, "Contrastive quantization with code memory for unsupervised image retrieval", AAAI 2022,
DOI 10.1609/aaai.v36i3.20147, arXiv 2109.05205. Views of images are augmented images, as in the paper; the network draws them
(its settings augment, flip, ...). A view of a row of features is that row drawn towards one of its nearest rows (Dwibedi,
Aytar, Tompson, Sermanet, Zisserman, "With a little help from my friends", ICCV 2021), mixed with another (Verma, Luong,
Kawaguchi, Pham, Le, "Towards domain-agnostic contrastive learning", ICML 2021), plus noise and dropout.
Debiasing: Chuang, Robinson, Lin, Torralba, Jegelka, "Debiased contrastive learning", NeurIPS 2020, arXiv 2007.00224.

b row of this process   n row of all processes   q memory row   m codebook (M)   k codeword (K)   e place in a sub-vector
d dimension of f   w width of the encoder's output   i input   c column: whatever a row is compared with
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import distributed
from ..codebooks import Codebooks
from ..contract import (
    Layers,
    MethodDefaults,
    OptimizerStep,
    RowStream,
    Stage,
    Task,
    batch_count,
    check_product_shape,
    drawn_rows,
    setting,
    settings,
)
from ..errors import ConfigError, warn
from ..modality import Modality
from . import items
from .contrast import CodeMemory, contrast, decoded, entropy, negatives, omega, soft_codes
from .dead_codewords import reset_dead_codewords, use
from .kmeans import shared_lloyd
from .schedules import warmup_cosine
from .tensors import EPSILON, as_array, rotated_principal, unit, unit_parts
from .views import RowViews

DSUB = 16  # dimensions of a codebook, unless d is set
IMAGES = 64  # of a batch, unless its size is asked for
COUNTED_IMAGES = 4096  # on which the use of codewords is counted after an epoch: each is encoded anew


@dataclass(frozen=True)
class TrainingStage:
    """How encoder, projection and codewords are trained."""

    epochs: int = setting(30, low=0)
    batch_size: int = setting(256, low=2)  # of images at most 64, each in two views; --batch-size takes more
    lr: float = setting(3e-3, low=0)
    decay: float = setting(1e-3, low=0)
    codeword_lr: float = setting(1.0, low=0, high=100)  # learning rate of codewords, as a multiple
    warmup: float = setting(0.1, low=0.01, high=0.9)  # share of the steps in which the learning rate rises


@dataclass(frozen=True)
class Settings:
    d: int = setting(0, low=0, high=1 << 16)  # dimension of f; 0: 16 for each codebook
    query_norm: str = setting("none", choices=("none", "intra"))  # intra: every sub-vector of a query weighs the same
    # Views of stored features, down to encoder_dropout. Two are drawn of every row in every step.
    neighbours: int = setting(5, low=0, high=1000)  # nearest rows, one of which a view is drawn towards
    near_mix: float = setting(1.0, low=0, high=1)  # by at most this share of the way
    mixup: float = setting(0.3, low=0, high=1)  # and then towards any row, by at most this share
    noise: float = setting(0.1, low=0, high=10)  # Gaussian, in standard deviations of each feature
    feature_dropout: float = setting(0.0, low=0, high=0.95)  # share of features that take their mean instead
    encoder_dropout: bool = False  # the encoder's own dropout in training; beside these views it costs mAP
    bank: int = setting(20_000, low=2)  # at most so many rows are neighbours, and start and count the codewords
    # The loss.
    temperature: float = setting(1.0, low=0.02, high=100)  # T
    alpha: float = setting(10.0, low=1e-3, high=1e6)  # inverse temperature of soft codes
    prior: float = setting(0.1, low=0, high=0.99)  # chance that two rows belong together
    entropy: float = setting(0.05, low=0, high=1e6)  # lambda: weight of the entropy of soft codes
    gamma: float = setting(0.5, low=0, high=1e6)  # weight of Omega, which keeps the codewords of a codebook apart
    queue: int = setting(384, low=0, high=1 << 20)  # soft codes remembered
    queue_from: int = setting(3, low=0)  # first epoch, counted from 0, whose loss uses them
    # The start and the training.
    start: str = setting("kmeans", choices=("kmeans", "random"))  # codewords
    projection: str = setting("pca", choices=("pca", "random"))  # A and a
    train_codewords: bool = True  # False: they stay as they start, as in the authors' code
    # After an epoch that left less than this share of a codebook's codewords in use, the dead ones move to rows that are coded
    # badly. Rows of their own make codewords of outliers: always done (1), it costs mAP.
    revive_below: float = setting(0.25, low=0, high=1)
    training: TrainingStage = TrainingStage()


# Settings that views of images have no use for.
OF_ROWS = ("neighbours", "near_mix", "mixup", "noise", "feature_dropout", "encoder_dropout")


# --------------------------------------------------------------------------------------------------------------- method
class MeCoQ(MethodDefaults, nn.Module):
    """Unit codewords on f = A g + a, g the encoder's output, trained so that two views of a row decode alike.

    codewords (M, K, dsub), A (d, w), a (d,) are parameters beside the encoder's. Encoding takes the codeword of the largest
    inner product, which for unit codewords is the nearest one, whatever the length of f_m.
    """

    Config = Settings
    long_name = "contrastive quantization with code memory"
    rule = "ip"
    separable = False

    @classmethod
    def check(cls, config: Settings, d_in: int, C: int, M: int, nbits: int, encoder: str, modality: Modality) -> None:
        d = config.d or DSUB * M
        check_product_shape(d, M, nbits)
        if d == M:
            raise ConfigError(
                f"d={d} in M={M} codebooks leaves 1 dimension a codebook, where the only unit codewords are +1 and -1; "
                f"need d of {2 * M} or more"
            )
        if modality.needs_encoder:
            of_rows = settings(Settings)
            idle = [name for name in OF_ROWS if getattr(config, name) != of_rows[name].default]
            if idle:
                warn(f"views of images are drawn by the network (augment=...): {', '.join(idle)} ignored")
            return
        near = config.near_mix if config.neighbours else 0
        if near == config.mixup == config.noise == config.feature_dropout == 0:
            warn("no noise in the views: both of a row are the row itself, but for encoder_dropout")

    def __init__(self, config: Settings, task: Task) -> None:
        """Raises ConfigError where rows or batch hold no two rows to tell apart."""
        super().__init__()
        assert task.encoder is not None
        self.config, self.task = config, task
        self.of_images = task.encoder.modality.needs_encoder
        size = config.training.batch_size
        self.batch = task.batch_size or (min(size, IMAGES) if self.of_images else size)
        if len(task.rows) < 2:
            raise ConfigError(f"{len(task.rows)} rows cannot train mecoq, which tells rows apart; need at least 2")
        if task.validation is not None and len(task.validation.rows) < 2:
            raise ConfigError(
                f"{len(task.validation.rows)} rows cannot validate mecoq, which tells rows apart; need at least 2"
            )
        if self.batch < 2:
            raise ConfigError(f"batch-size is {self.batch}, mecoq tells the rows of a batch apart; need at least 2")
        self.M, self.K, self.d = task.M, task.K, config.d or DSUB * task.M
        self.encoder: Any = task.encoder
        network: Any = task.encoder if self.of_images else None
        if network is not None and not (network.strengths.any or network.config.dropout):
            warn("no augmentation and no dropout: both views of an image are the image itself")
        self.A = nn.Parameter(torch.zeros(self.d, task.encoder.width))
        self.a = nn.Parameter(torch.zeros(self.d))
        self.codewords = nn.Parameter(torch.zeros(self.M, self.K, self.d // self.M), config.train_codewords)
        self.memory = CodeMemory(config.queue, self.M, self.K)
        self.remembers = False  # whether the loss uses the memory; follows from the epoch
        self.fresh: tuple[Tensor, Tensor] | None = None  # what the memory takes in after the step
        self.optimizer: Any = None
        # Made by begin(), and not changed by the epochs. Rows of the bank; of images, which rows:
        self.bank: Tensor
        self.views: RowViews  # of stored features
        self.near: Tensor  # (rows, neighbours) int32, places in the bank
        self.validation_views: tuple[Tensor, Tensor] | None = None  # validation rows, and their near rows

    # ------------------------------------------------------------------------------------------------------------ start
    def stages(self) -> list[Stage]:
        c, task = self.config, self.task
        epochs = c.training.epochs if task.epochs is None else task.epochs

        def make_optimizer(total: int) -> tuple[Any, Any]:
            groups: list[dict[str, Any]] = [
                {"params": [self.A, self.a]},
                *self.encoder.groups(c.training.lr, c.training.decay),
                # Their length is fixed, so decay could only pull against that.
                {"params": [self.codewords], "lr": c.training.lr * c.training.codeword_lr, "weight_decay": 0.0},
            ]
            groups = groups if c.train_codewords else groups[:-1]
            self.optimizer = torch.optim.AdamW(groups, c.training.lr, weight_decay=c.training.decay, fused=True)
            return self.optimizer, warmup_cosine(self.optimizer, c.training.warmup, total)

        return [
            Stage(
                name="contrast",
                begin=self.begin,
                epochs=epochs,
                steps_per_epoch=batch_count(len(task.rows), self.batch),
                batches=self.batches,
                optimizer_steps=[OptimizerStep(self.loss, make_optimizer)],
                on_epoch=self.on_epoch,
                after_step=self.after_step,
                after_epoch=self.after_epoch,
                validate=None if task.validation is None else self.validate,
            )
        ]

    def batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        return self.task.rows.batches(self.batch, generator)

    @torch.no_grad()
    def begin(self) -> None:
        """Near rows, the projection and the codewords, from the rows and the seed alone."""
        c, task = self.config, self.task
        if len(task.rows) < self.K:
            warn(f"{len(task.rows):,} rows can use at most {len(task.rows):,} of {self.K} codewords")
        self.eval()
        generator = torch.Generator().manual_seed(task.seed)
        if self.of_images:
            g, self.bank = self.encoded_images(task.rows)
            self.near = torch.zeros(len(task.rows), 0, dtype=torch.int32)
        else:
            x, numbers = task.rows.sample(c.bank, task.seed)
            bank = torch.from_numpy(np.ascontiguousarray(x))
            self.views = RowViews(c, bank, task.device)
            self.near = self.views.near_rows(task.rows, torch.from_numpy(np.asarray(numbers)), task.progress)
            self.bank = self.views.bank
            if task.validation is not None:
                held = torch.from_numpy(np.ascontiguousarray(task.validation.rows.sample(c.bank, task.seed)[0]))
                self.validation_views = held, self.views.near(held)
            g = self.encoded(self.bank)
        A, a = self.start_projection(g, generator)
        self.A.copy_(A)
        self.a.copy_(a)
        if task.codebook_rows is not None and self.of_images:
            g, _ = self.encoded_images(task.codebook_rows)
        elif task.codebook_rows is not None:
            g = self.encoded(torch.from_numpy(task.codebook_rows.sample(c.bank, task.seed)[0]))
        self.codewords.copy_(self.start_codewords(g @ A.T + a, generator))

    def encoded(self, x: Tensor) -> Tensor:
        """x (n, i) -> g (n, w), both whole; on the CPU."""
        return torch.cat([self.encoder(part.to(self.task.device))[0].cpu() for part in x.split(4096)])

    def encoded_images(self, rows: RowStream) -> tuple[Tensor, Tensor]:
        """g (n, w) of at most `bank` of the images, whole, and their numbers (n,); on the CPU."""
        numbers = drawn_rows(len(rows), self.config.bank, self.task.seed)
        return items.map_items(rows, numbers, lambda x: self.encoder(x)[0])

    def start_projection(self, g: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """g (n, w) -> A (d, w), a (d,)."""
        d, width = self.d, g.shape[1]
        if self.config.projection == "random":
            bound = width**-0.5
            A, a = (torch.empty(s).uniform_(-bound, bound, generator=generator) for s in ((d, width), (d,)))
            return A, a
        return rotated_principal(g, d, generator, 1e-12)

    def start_codewords(self, f: Tensor, generator: torch.Generator) -> Tensor:
        """f (n, d) -> (M, K, dsub) at unit length: k-means of the directions of the sub-vectors, or random directions."""
        shape = self.codewords.shape
        if self.config.start == "random":
            return unit(torch.randn(shape, generator=generator))
        self.task.progress("k-means", 0, 1, "")
        x = unit(f.unflatten(1, (self.M, -1))).transpose(0, 1).contiguous()  # m n e
        w = shared_lloyd(x, self.K, generator)
        # A mean of directions that cancel out has none itself.
        return unit(torch.where(w.norm(dim=2, keepdim=True) > EPSILON, w, torch.randn(shape, generator=generator)))

    # --------------------------------------------------------------------------------------------------------- training
    def forward(self, x: Tensor) -> Tensor:
        """x (b, i), or images (b, 3, size, size) uint8 -> f (b, d)."""
        return F.linear(self.encoder(x)[0], self.A, self.a)

    def parts(self, x: Tensor) -> Tensor:
        """x as in forward -> the directions of f's sub-vectors, (b, M, dsub)."""
        return unit(self(x).unflatten(1, (self.M, -1)))

    def drawn(self, x: Tensor) -> Tensor:
        """Images (b, 3, size, size) uint8 -> parts of the two views of each that the network draws, (b, 2, M, dsub).

        Both views of an image stand side by side on the way through: so several processes, which cut a batch, draw the views
        of one process.
        """
        parts: Tensor = self.parts(x.repeat_interleave(2, 0)).unflatten(0, (-1, 2))
        return parts

    def loss(self, x: Tensor, index: Tensor) -> dict[str, Tensor]:
        """The terms for the rows x (b, i), or images, as numbered; see loss_of_parts."""
        if self.of_images:
            return self.loss_of_parts(self.drawn(x).transpose(0, 1).flatten(0, 1), index)
        near = self.near[index.cpu()]
        return self.loss_of_views(self.views.draw(x, near), self.views.draw(x, near), index)

    def loss_of_views(self, x1: Tensor, x2: Tensor, index: Tensor) -> dict[str, Tensor]:
        """The terms for two views (b, i) each of rows `index`; see loss_of_parts."""
        if not self.config.encoder_dropout:
            self.encoder.eval()
        return self.loss_of_parts(self.parts(torch.cat([x1, x2])), index)

    def loss_of_parts(self, x: Tensor, index: Tensor) -> dict[str, Tensor]:
        """contrast + lambda entropy + gamma Omega, as named, weighted terms, for parts x (2b, M, dsub) of two views, one behind
        the other, of rows `index` (b,).

        Negatives are the other rows of all processes, in both views, and, once it is used, what the memory holds of other
        rows. Means are over this process's 2 b views.
        """
        c, w, b = self.config, self.codewords, len(index)
        log_p = soft_codes(x, w, c.alpha)  # 2b m k
        p = log_p.exp()
        u = decoded(p, w)  # 2b d
        columns = [distributed.all_gather_with_grad(u[:b]), distributed.all_gather_with_grad(u[b:])]
        n, first = len(columns[0]), distributed.rank() * b
        with torch.no_grad():
            rows = torch.cat(distributed.all_gather(index))
            codes = [torch.cat(distributed.all_gather(part.detach().contiguous())) for part in (p[:b], p[b:])]
            self.fresh = torch.cat(codes), rows.repeat(2)
            remembered, remembered_rows = self.memory.held() if self.remembers else (p[:0], rows[:0])
            columns.append(decoded(remembered.to(w.dtype), w))
        counted = negatives(first, b, n, torch.cat([index, index]), remembered_rows)
        own = torch.arange(first, first + b, device=u.device)
        partner = torch.cat([own + n, own])
        terms = contrast(u @ torch.cat(columns).T, partner, counted, c.temperature, c.prior)
        return {"contrast": terms.mean(), "entropy": c.entropy * entropy(log_p), "omega": c.gamma * omega(w)}

    def on_epoch(self, epoch: int) -> None:
        self.encoder.on_epoch(epoch)
        self.remembers = epoch >= self.config.queue_from

    def after_step(self) -> None:
        """Codewords back to unit length; the step's soft codes into the memory."""
        if self.config.train_codewords:
            self.codewords.copy_(unit(self.codewords))
        if self.fresh is not None:
            self.memory.push(*self.fresh)
            self.fresh = None

    @torch.no_grad()
    def after_epoch(self, epoch: int) -> dict[str, Any]:
        """Count the codewords that the bank uses; where they are too few, move the dead ones onto its sub-vectors."""
        self.eval()
        if self.of_images:
            numbers = self.bank.numpy()[:: -(-len(self.bank) // COUNTED_IMAGES)]
            parts = items.map_items(self.task.rows, numbers, self.parts)[0].to(self.codewords.device)
        else:
            parts = torch.cat([self.parts(x) for x in self.bank.split(4096)])  # n m e
        codes = torch.cat([torch.einsum("bme,mke->bmk", x, self.codewords).argmax(2) for x in parts.split(1024)])
        generator = torch.Generator().manual_seed(self.task.seed * 1_000_003 + epoch)
        fewest = int((use(codes, self.K) > 0).sum(1).min())
        enough = fewest >= self.config.revive_below * min(self.K, len(codes)) or not self.config.train_codewords
        return reset_dead_codewords(
            self.codewords, codes, parts.flatten(1), generator, optimizer=self.optimizer, only_count=enough
        )

    @torch.no_grad()
    def validate(self) -> float:
        """Mean contrastive loss of the validation rows among themselves, in views that are the same every time."""
        c, device = self.config, self.task.device
        total, n = 0.0, 0
        with torch.random.fork_rng(devices=[torch.device(device)] if device != "cpu" else []):
            torch.manual_seed(self.task.seed)
            for x, index in self.validation_parts():
                u = decoded(soft_codes(x, self.codewords, c.alpha).exp(), self.codewords)
                b = len(index)
                terms = contrast(
                    u @ u.T,
                    torch.arange(2 * b, device=device).roll(b),
                    negatives(0, b, b, torch.cat([index, index]), index[:0]),
                    c.temperature,
                    c.prior,
                )
                total, n = total + float(terms.double().mean()) * b, n + b
        return total / n

    def validation_parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Parts (2b, M, dsub) of two views of b validation rows, one behind the other, and the rows' numbers (b,)."""
        device = self.task.device
        both = self.validation_images() if self.validation_views is None else self.validation_views[0]
        for part in torch.arange(len(both)).tensor_split(batch_count(len(both), self.batch)):
            if self.validation_views is None:
                yield both[part].transpose(0, 1).flatten(0, 1).to(device), part.to(device)
            else:
                x, near = both[part].to(device), self.validation_views[1][part]
                yield self.parts(torch.cat([self.views.draw(x, near), self.views.draw(x, near)])), part.to(device)

    def validation_images(self) -> Tensor:
        """Parts (n, 2, M, dsub) of two views each of at most `bank` validation images, on the CPU; the same views each time."""
        assert self.task.validation is not None
        rows, draws = self.task.validation.rows, int(self.encoder.draws)
        self.encoder.train()  # in which it draws views, and without gradients learns nothing from them
        try:
            self.encoder.draws.zero_()
            return items.map_items(rows, drawn_rows(len(rows), self.config.bank, self.task.seed), self.drawn)[0]
        finally:
            self.encoder.draws.fill_(draws)
            self.encoder.eval()

    # ----------------------------------------------------------------------------------------------------------- result
    def layers(self) -> Layers:
        """x -> f; with query_norm=intra every sub-vector at unit length."""
        layers: list[Any] = [*self.encoder.layers(), ("linear", {"A": as_array(self.A), "b": as_array(self.a)})]
        if self.config.query_norm == "none":
            return layers
        return [*layers, *unit_parts(self.M, self.d)]

    def codebooks(self) -> Codebooks:
        return Codebooks("product", as_array(self.codewords))

    def summary(self) -> dict[str, Any]:
        return {"d": self.d, "bank_rows": len(self.bank), "neighbours": int(self.near.shape[1])}
