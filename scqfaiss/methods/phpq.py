"""PHPQ: fine-grained codes from the feature maps of several stages of a network, by codewords that attend in part.

Built after the abstract of Zeng, Wang, Chen, Dai, Xia, Wang, "Pyramid hybrid pooling quantization for efficient fine-grained
image retrieval", Pattern Recognition Letters 178:106-114, 2024, arXiv 2109.05206: hybrid pooling of several stages keeps fine
detail, and a learnable quantizer attends to part of the codebook. Nothing more of it was open to us: layers, losses and every
number here are ours, and no result of this method is one of the paper's.

The pooling is that of the network (setting pool=hybrid): g = concat_s(g_s / ||g_s||), g_s between the mean and the maximum of a
stage's map. Here begins what follows it.

b row   n row of all processes   m codebook (M)   k codeword (K)   e place in a sub-vector (dsub)   d dimension of z
w width of g   c class (C)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .. import distributed
from ..arrays import Labels
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
    seed_of,
    setting,
)
from ..errors import ConfigError, DataError, warn
from ..modality import Modality
from . import centers as sca
from . import items
from .arsq import nearest
from .dead_codewords import reset_dead_codewords, use
from .kmeans import shared_lloyd
from .rows import warn_of_few
from .tensors import EPSILON, as_array, rotated_principal

D = 128  # dimensions of z, unless d is set
SCALE_ROWS = 512  # images from which the place and the scale of z are taken
START_ROWS = 64  # images per codeword that k-means looks at
RECENT_ROWS = 4096  # rows of z kept of an epoch, to which codewords that nothing attended to may move
FLOOR = 1e-12  # of the mean squared sub-vector that distances are divided by


@dataclass(frozen=True)
class TrainingStage:
    """How network, projection and codebooks are trained."""

    epochs: int = setting(30, low=0)
    batch_size: int = setting(64, low=1)
    lr: float = setting(4e-3, low=0)  # of all but the network, whose rate is backbone_lr times this
    # Of codewords and class vectors, as a multiple: they have far to go.
    free_lr: float = setting(2.5, low=0, high=1000)
    decay: float = setting(1e-2, low=0)  # of A and a


@dataclass(frozen=True)
class Settings:
    d: int = setting(0, low=0, high=1 << 16)  # dimension of z; 0: 128, or the next number that M divides
    top: int = setting(16, low=1, high=1 << 16)  # nearest codewords that a sub-vector attends to; those of K at most
    beta: float = setting(10.0, low=0)  # inverse temperature of the attention
    # Inverse temperature of the classifier. A surer one, such as 16, fits the training images and ranks others far worse.
    kappa: float = setting(4.0, low=0)
    commit: float = setting(0.25, low=0)  # weight of drawing z to its codewords, beside codewords to z
    vectors: str = setting("centers", choices=("learned", "centers"))  # of the classes; centers: fixed, those of SCA
    unlabeled: str = setting("error", choices=("error", "drop"))  # training rows without any label
    training: TrainingStage = TrainingStage()
    revive: bool = True  # after each epoch, codewords that nothing attended to move to rows that are coded badly


def z_dimension(config: Settings, M: int) -> int:
    """The dimension of z: as set, or 128 as nearly as M codebooks let."""
    return config.d or -(-D // M) * M


# ------------------------------------------------------------------------------------------------------------- formulas
def attention(z: Tensor, w: Tensor, v: Tensor, top: int, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Soft rebuild z~ (b, d) of z (b, d) by w (M, K, dsub), from the codewords near it -> z~, near (M, b, top), codes (b, M).

    a_mk = softmax over the `top` nearest codewords of (-beta ||z_m - w_mk||^2 / v_m), 0 elsewhere; z~_m = sum_k a_mk w_mk.
    near int64: the codewords that take part; codes int64: the nearest one, by the rule of encoding. v (M,) positive, a constant.
    """
    M, K, _ = w.shape
    x = z.unflatten(1, (M, -1)).transpose(0, 1)  # m b e
    dist = torch.baddbmm(w.square().sum(2)[:, None], x, w.transpose(1, 2), alpha=-2)  # m b k, less ||z_m||^2
    near = dist.detach().topk(top, largest=False).indices
    logits = dist * (-beta / v)[:, None, None]
    if top < K:
        among = torch.zeros_like(dist, dtype=torch.bool).scatter_(2, near, True)
        logits = logits.masked_fill(~among, -torch.inf)
    return (logits.softmax(2) @ w).transpose(0, 1).flatten(1), near, dist.argmin(2).T


def decoded(w: Tensor, codes: Tensor) -> Tensor:
    """w (M, K, dsub), codes (b, M) -> z^ (b, d), the codewords side by side."""
    # Not w[.., codes]: the gradient of indexing sums up in an order of its own on several threads.
    offset = torch.arange(len(w), device=w.device) * w.shape[1]
    return F.embedding(codes + offset, w.flatten(0, 1)).flatten(1)


def attended(near: Tensor, K: int) -> Tensor:
    """near (M, b, top) -> how many rows attend to each codeword, (M, K) int64."""
    return use(near.flatten(1).T, K)


def spread(z: Tensor, M: int) -> Tensor:
    """v_m = mean ||z_m||^2 over the rows of all processes, (M,), without gradient."""
    return distributed.average(z.detach().unflatten(1, (M, -1)).square().sum(2).mean(0)).clamp_min(FLOOR)


def class_loss(z: Tensor, vectors: Tensor, target: Tensor, kappa: float, bias: Tensor | None = None) -> Tensor:
    """Cross-entropy of softmax(kappa cos(z, c)) and classes `target` (b,), mean over b; z (b, d), vectors (C, d).

    With a bias (C,) classes are judged one by one: binary cross-entropy of sigmoid(kappa cos(z, c) + bias) and target (b, C)
    0/1, summed over the classes.
    """
    logits = kappa * (F.normalize(z, dim=1, eps=EPSILON) @ F.normalize(vectors, dim=1, eps=EPSILON).T)
    if bias is None:
        return F.cross_entropy(logits, target)
    return F.binary_cross_entropy_with_logits(logits + bias, target.to(logits.dtype)) * len(vectors)


def feature_maps(encoder: Any) -> int:
    """How many maps a network pools. ConfigError where it does not by pool=hybrid; a warning of a single one."""
    if encoder.config.pool != "hybrid":
        raise ConfigError(f"phpq pools feature maps by pool=hybrid, got pool={encoder.config.pool}")
    if encoder.stages < 2:
        warn(
            "the network gives one feature map, phpq is made for those of several stages: name them by --set layers=..."
        )
    return int(encoder.stages)


# --------------------------------------------------------------------------------------------------------------- method
class PHPQ(MethodDefaults, nn.Module):
    """z = A g + a in product codebooks, trained by class vectors for z and for its soft rebuild alike.

    The codebooks start by k-means when the first epoch is over; until then the class vectors alone shape z.
    """

    Config = Settings
    # Most of a pooled map is the same in all images: dropout of it is more noise than what tells them apart.
    encoder_defaults: ClassVar[dict[str, Any]] = {"pool": "hybrid", "dropout": 0.0}
    long_name = "pyramid hybrid pooling quantization, after PHPQ's abstract"
    needs = frozenset({"labels", "feature maps"})
    centers: Tensor
    started: Tensor
    attended: Tensor
    chosen: Tensor
    recent: Tensor
    held: Tensor

    @staticmethod
    def unlabeled(config: Settings) -> str:
        return config.unlabeled

    @classmethod
    def check(cls, config: Settings, d_in: int, C: int, M: int, nbits: int, encoder: str, modality: Modality) -> None:
        if not modality.needs_encoder:
            raise ConfigError("phpq pools feature maps of images; for stored features use method scq")
        check_product_shape(z_dimension(config, M), M, nbits)
        K = 1 << nbits
        if config.top > K:
            raise ConfigError(f"top is {config.top}, needs 1 to K={K} codewords (--nbits {nbits})")

    def __init__(self, config: Settings, task: Task) -> None:
        """Raises ConfigError where the network does not pool its maps by pool=hybrid; warns of a single map."""
        super().__init__()
        assert task.encoder is not None and task.labels is not None
        self.config, self.task, self.labels = config, task, task.labels
        self.epochs = config.training.epochs if task.epochs is None else task.epochs
        self.encoder: Any = task.encoder
        self.maps = feature_maps(self.encoder)
        validation_labels = None if task.validation is None else task.validation.labels
        if validation_labels is not None and not validation_labels.counts().any():
            raise DataError(f"none of {len(validation_labels):,} validation images has a label, at least 1 must")
        warn_of_few(len(task.rows), task.K)
        d, M, K, C, multilabel = z_dimension(config, task.M), task.M, task.K, self.labels.C, self.labels.multilabel
        self.A = nn.Parameter(torch.zeros(d, self.encoder.width))
        self.a = nn.Parameter(torch.zeros(d))
        self.codewords = nn.Parameter(torch.zeros(M, K, d // M))  # m k e
        self.bias = nn.Parameter(torch.zeros(C)) if multilabel else None
        if config.vectors == "learned":
            self.centers = nn.Parameter(torch.randn(C, d, generator=Generator().manual_seed(seed_of(task.seed, C))))
            self.source = "learned"
        else:
            S, self.source = sca.similarity_matrix("auto", "", self.labels, None)
            fixed = sca.class_centers(S, self.source, "plain", d, M, task.seed, align=False)
            self.register_buffer("centers", torch.from_numpy(np.ascontiguousarray(fixed.centers)))
        self.y = torch.from_numpy(self.labels.y).to(task.device)
        # What the epochs change beside the parameters. Of the epoch: how often a codeword was among the nearest, and how
        # often the nearest; the last rows of z, and how many of them there are.
        self.register_buffer("started", torch.zeros((), dtype=torch.int64))  # whether the codebooks are
        self.register_buffer("attended", torch.zeros(M, K, dtype=torch.int64))
        self.register_buffer("chosen", torch.zeros(M, K, dtype=torch.int64))
        self.register_buffer("recent", torch.zeros(RECENT_ROWS, d))
        self.register_buffer("held", torch.zeros((), dtype=torch.int64))
        self.quantizes = (
            False  # whether the loss uses the codebooks: `started`, without a look at the device in every step
        )
        self.fresh: list[tuple[Tensor, Tensor, Tensor]] = []  # of the step: z, and what its rows attended to and chose
        self.optimizer: Any = None

    # ------------------------------------------------------------------------------------------------------------ model
    def forward(self, x: Tensor) -> Tensor:
        """x (b, 3, size, size) uint8 -> z (b, d)."""
        return F.linear(self.encoder(x)[0], self.A, self.a)

    def loss(self, x: Tensor, index: Tensor) -> dict[str, Tensor]:
        """L of the images x as numbered, by named, weighted terms; see loss_of."""
        return self.loss_of(self(x), self.y[index])

    def loss_of(self, z: Tensor, y: Tensor) -> dict[str, Tensor]:
        """CE(z) + CE(z~) + mse(sg[z], z^) + commit mse(z, sg[z^]) of z (b, d), as named, weighted terms.

        y (b,) classes, or (b, C) 0/1. mse(a, b) = ||a - b||^2 / d, mean over b. Before the codebooks are started CE(z) alone.
        Over parts of a batch (--accumulate) the v_m of the attention are those of the part.
        """
        c, w = self.config, self.codewords
        terms = {"classes": class_loss(z, self.centers, y, c.kappa, self.bias)}
        if not self.quantizes:
            return terms
        K = w.shape[1]
        soft, near, codes = attention(z, w, spread(z, len(w)), c.top, c.beta)
        hard = decoded(w, codes)
        self.fresh.append((z.detach(), attended(near, K), use(codes, K)))
        terms["soft classes"] = class_loss(soft, self.centers, y, c.kappa, self.bias)
        terms["codewords"] = F.mse_loss(hard, z.detach())
        terms["commit"] = c.commit * F.mse_loss(z, hard.detach())
        return terms

    # ----------------------------------------------------------------------------------------------------------- stages
    def stages(self) -> list[Stage]:
        c, task = self.config, self.task
        batch = task.batch_size or c.training.batch_size

        def make_optimizer(steps: int) -> tuple[Any, Any]:
            lr = c.training.lr
            # Neither a codeword's place nor a class vector's length is for decay to change.
            free = [p for p in (self.codewords, self.centers, self.bias) if isinstance(p, nn.Parameter)]
            groups = [
                {"params": [self.A, self.a], "lr": lr, "weight_decay": c.training.decay},
                {"params": free, "lr": lr * c.training.free_lr, "weight_decay": 0.0},
                *self.encoder.groups(lr, c.training.decay),
            ]
            self.optimizer = torch.optim.AdamW(groups, lr, fused=True)
            return self.optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)

        return [
            Stage(
                name="images",
                begin=self.begin,
                epochs=self.epochs,
                steps_per_epoch=batch_count(len(task.rows), batch),
                batches=lambda generator: task.rows.batches(batch, generator),
                optimizer_steps=[OptimizerStep(self.loss, make_optimizer)],
                on_epoch=self.on_epoch,
                after_step=self.after_step,
                after_epoch=self.after_epoch,
                validate=None if task.validation is None else self.validate,
            )
        ]

    @torch.no_grad()
    def begin(self) -> None:
        """A and a: principal components under a random rotation, so that every codebook gets its share, z of mean square 1, which
        the rates are made for.
        """
        rows, task = self.task.rows, self.task
        self.eval()
        g, _ = items.map_items(rows, drawn_rows(len(rows), SCALE_ROWS, task.seed), lambda x: self.encoder(x)[0])
        A, a = rotated_principal(g, len(self.A), Generator().manual_seed(task.seed), EPSILON)
        self.A.copy_(A)
        self.a.copy_(a)
        if not self.epochs:
            self.start_codebooks()

    def on_epoch(self, epoch: int) -> None:
        self.encoder.on_epoch(epoch)
        self.quantizes, self.fresh = bool(self.started), []

    def after_step(self) -> None:
        """Note what the rows of all processes attended to, and the rows."""
        for z, near, nearest_ones in self.fresh:
            self.attended += distributed.all_reduce_sum(near)
            self.chosen += distributed.all_reduce_sum(nearest_ones)
            new = torch.cat(distributed.all_gather(z.contiguous()))
            self.recent.copy_(torch.cat([new, self.recent])[: len(self.recent)])
            self.held.copy_((self.held + len(new)).clamp_max(len(self.recent)))
        self.fresh = []

    @torch.no_grad()
    def after_epoch(self, epoch: int) -> dict[str, Any]:
        """Start the codebooks after the first epoch; after any other, move codewords that nothing attended to."""
        if not self.started:
            return {"codewords_used": self.start_codebooks(), "revived": 0}
        w, used = self.codewords, (self.chosen > 0).sum(1).tolist()
        z = self.recent[: int(self.held)]
        # Attended codewords count as used: each stands as a row of its own, which is exact already and draws none to it.
        best = self.attended.argmax(1, keepdim=True)
        codes = torch.where(self.attended > 0, torch.arange(w.shape[1], device=w.device), best)  # m k
        stand = w.detach().gather(1, codes[..., None].expand_as(w)).transpose(0, 1).flatten(1)  # k (m e)
        generator = Generator().manual_seed(seed_of(self.task.seed, epoch))
        facts = reset_dead_codewords(
            w,
            torch.cat([nearest(z, w), codes.T]),
            torch.cat([z, stand]),
            generator,
            optimizer=self.optimizer,
            only_count=not self.config.revive,
        )
        for t in (self.attended, self.chosen, self.held):
            t.zero_()
        return facts | {"codewords_used": used}

    @torch.no_grad()
    def start_codebooks(self) -> list[int]:
        """k-means of z, as it is now -> how many codewords of each codebook its rows use."""
        task, (M, K, _) = self.task, self.codewords.shape
        task.progress("k-means", 0, 1, "")
        self.eval()
        rows = task.codebook_rows or task.rows
        z, _ = items.map_items(rows, drawn_rows(len(rows), START_ROWS * K, task.seed), self)
        parts = z.unflatten(1, (M, -1)).transpose(0, 1).contiguous()  # m n e
        w = shared_lloyd(parts, K, Generator().manual_seed(task.seed))
        self.codewords.copy_(w)
        self.started.fill_(1)
        return (use(nearest(z, w), K) > 0).sum(1).tolist()

    @torch.no_grad()
    def validate(self) -> float:
        """Mean of CE(z) and CE(z~), added, over the validation rows that have a label."""
        part, c, w = self.task.validation, self.config, self.codewords
        assert part is not None and part.labels is not None
        self.eval()
        labels: Labels = part.labels
        numbers = np.flatnonzero(labels.y.any(1)) if labels.multilabel else np.arange(len(labels))
        rows: RowStream = part.rows
        z, index = items.map_items(rows, numbers, self)
        z, y = z.to(w.device), torch.from_numpy(labels.y)[index].to(w.device)
        v, total = spread(z, len(w)), 0.0
        for some_z, some_y in zip(z.split(4096), y.split(4096)):
            soft = attention(some_z, w, v, c.top, c.beta)[0]
            terms = (class_loss(t, self.centers, some_y, c.kappa, self.bias) for t in (some_z, soft))
            total += len(some_z) * float(sum(terms))
        return total / len(z)

    # ----------------------------------------------------------------------------------------------------------- result
    def layers(self) -> Layers:
        """g -> z."""
        return [*self.encoder.layers(), ("linear", {"A": as_array(self.A), "b": as_array(self.a)})]

    def codebooks(self) -> Codebooks:
        return Codebooks("product", as_array(self.codewords))

    def summary(self) -> dict[str, Any]:
        return {"class_vectors": self.source, "feature_maps": self.maps}
