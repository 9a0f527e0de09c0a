"""CFA, the second step of SCQ: features pulled to their class's center, calibrated by default.

Song, Zhang, Zhu, Zhao, Wang, Shen. IEEE Trans. Image Processing 32:6485-6499, 2023; the calibration is ours: with p the
posterior over classes and z = sum_k p_k c_k on simplex centers, <z_q, z_x> rises with the probability that the two items
share a label, and ranking by that probability is the best ranking there is (probability ranking principle).

b row   c class (C)   d dimension of z   w width of the encoder's output g
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import distributed
from ..arrays import Ints, Labels
from ..contract import Layers, OptimizerStep, RowStream, Stage, Task, batch_count, setting
from ..errors import ConfigError, DataError, warn
from . import centers as sca
from . import head_layers, items, reference_cfa
from .adversarial import Loss, hardened
from .calibration import default_kappa, fit_kappa, held_out
from .schedules import warmup_cosine
from .spaces import space_of

MIN_HELD_OUT = 50  # rows; a temperature fitted on fewer follows chance
# On parts of CIFAR-10's training rows 1, 2, 3, 4 members of 256 units rank at 0.625, 0.628, 0.631, 0.631 mAP, on those of
# CLINC150 at 0.918, 0.921, 0.922, 0.922; each costs its time.
DEFAULT_MEMBERS = 3
MIN_STEPS = 400  # of the feature stage: few rows make short epochs, and a head needs its steps


@dataclass(frozen=True)
class FeatureStage:
    """How encoder and head are trained."""

    epochs: int = setting(20, low=0)  # at least 400 steps, unless epochs are set
    batch_size: int = setting(0, low=0)  # 0: an eighth of the rows, within 32 and 256
    lr: float = setting(4e-3, low=0)
    # -1: 1, of cosines 0.3. Of inner products 0.3 ranks the same within 0.001, and 0.007 worse on 100 classes of 20 rows; of
    # cosines with many labels a row 1 ranks 0.002 worse.
    decay: float = setting(-1.0, low=-1)
    warmup: float = setting(0.1, low=0.01, high=0.9)  # share of the steps in which the learning rate rises
    allow_reduced_precision: bool = True  # train with bfloat16 or TF32 products where the device has them


@dataclass(frozen=True)
class Settings:
    """Settings of centers and features; methods with this head inherit them."""

    # identity, cooccurrence, means or a .npy file (C, C); auto: identity for one label a row, co-occurrence for many.
    similarity: str = "auto"
    class_vectors: str = ""  # a .npy file (C, e) of class embeddings, instead of a similarity
    target: str = setting("plain", choices=("plain", "simplex"))  # cosines asked of centers: 2S - 1, S - (1-S)/(C-1)
    d: int = setting(0, low=0, high=1 << 16)  # dimension of z; 0: the smallest that M divides and the classes fit into
    cfa: str = setting("auto", choices=("auto", "calibrated", "cosine", "reference", "none"))
    members: int = setting(0, low=0, high=64)  # classifiers whose posteriors are averaged; 0: 3 where that can be done
    multi: str = setting("softmax", choices=("softmax", "sigmoid"))  # many labels a row: what the posterior models
    unlabeled: str = setting("error", choices=("error", "drop"))  # training rows without any label
    # How a classifier compares its f with the centers: <f, c> or cos(f, c). auto: inner products for rows of one label each.
    logits: str = setting("auto", choices=("auto", "inner", "cosine"))
    kappa: float = setting(
        0.0, low=0
    )  # inverse temperature of the classifier; 0: 1, of cosines by the number of classes
    sharpen: float = setting(1.1, low=0.1, high=10)  # kappa after training, as a multiple; measured, see docs
    # Weight of the classes' shares in losses: 1 learns a posterior that takes all classes for equally frequent, 0 one that takes
    # them for as frequent as in the training rows.
    balance: float = setting(1.0, low=0, high=3)
    # Train half on rows moved by this share of their norm to where the loss is larger, on images whose pixels are moved by so
    # many steps of 255; 0: not. docs/robustness.md
    adversarial: float = setting(0.0, low=0, high=255)
    holdout: float = setting(0.0, low=0, high=0.5)  # share of rows to fit kappa on instead, which then do not train
    features: FeatureStage = FeatureStage()


def kind_of_cfa(config: Settings, encoder: str) -> str:
    """'auto' resolved: rows that are an embedding already get no head."""
    return config.cfa if config.cfa != "auto" else "none" if encoder == "identity" else "calibrated"


def members(config: Settings, encoder: str) -> int:
    """How many classifiers train side by side."""
    can = encoder == "mlp" and kind_of_cfa(config, encoder) == "calibrated"
    return (config.members or DEFAULT_MEMBERS) if can else 1


def smallest_d(config: Settings, d_in: int, C: int, M: int, encoder: str) -> int:
    """The dimension of z: as set, as the rows have it, or the smallest multiple of M that the classes fit into."""
    kind = kind_of_cfa(config, encoder)
    if kind == "none":
        if config.d not in (0, d_in):
            raise ConfigError(f"d is {config.d}, but without a head (cfa=none) z are the rows themselves, d={d_in}")
        return d_in
    if config.d:
        return config.d
    return -(-(360 if kind == "reference" else C) // M) * M


class Features(nn.Module):
    """Encoder, head and centers: x -> z (b, d), and the posterior p (b, C) where there is one.

    e member (E)   b row   c class (C)   w width of the encoder's output
    """

    centers: Tensor

    def __init__(self, config: Settings, task: Task, d: int, labels: Labels) -> None:
        super().__init__()
        assert task.encoder is not None
        self.config, self.task, self.labels, self.d = config, task, labels, d
        self.encoder: Any = task.encoder
        self.kind = kind_of_cfa(config, task.encoder_name)
        self.members = members(config, task.encoder_name)
        self.sigmoid = config.multi == "sigmoid" and labels.multilabel and self.kind == "calibrated"
        C = labels.C
        if self.sigmoid:  # orthonormal directions, so that <z_q, z_x> counts shared labels
            axes = np.eye(d)[np.linspace(0, d - 1, C).round().astype(int)]
            self.sca = sca.Centers(axes.astype(np.float32), "orthonormal", 0.0, 0.0)
        else:
            means = sca.class_means(task.rows, labels) if config.similarity == "means" else None
            S, source = sca.similarity_matrix(config.similarity, config.class_vectors, labels, means)
            # A posterior lives on the axes of its classes. Any other feature fills all places, and tanh would clip axes.
            align = self.kind == "calibrated"
            self.sca = sca.class_centers(S, source, config.target, d, max(task.M, 1), task.seed, align)
        self.register_buffer("centers", torch.from_numpy(np.ascontiguousarray(self.sca.centers)))
        # Cosines are bounded: training goes on until each row stands on its center, by heart where a class has few rows. mAP
        # of cosines and inner products, on halves of training rows: 150 classes 0.909 and 0.922, 10 classes 0.624 and 0.631.
        # With many labels a row, 0.722 and 0.720.
        by_cosine = self.kind == "cosine" or labels.multilabel or self.encoder.modality.needs_encoder
        self.cosine = config.logits == "cosine" or (config.logits == "auto" and by_cosine)
        self.kappa = config.kappa or (default_kappa(C) if self.cosine else 1.0)
        decay = config.features.decay
        self.decay = decay if decay >= 0 else 0.3 if self.cosine else 1.0
        if self.kind != "none":
            bound = self.encoder.width**-0.5
            self.project = nn.Parameter(torch.empty(self.members, self.encoder.width, d).uniform_(-bound, bound))
            self.shift = nn.Parameter(torch.empty(self.members, 1, d).uniform_(-bound, bound))
        if self.sigmoid:
            self.bias = nn.Parameter(torch.zeros(C))
        if self.kind == "reference":
            self.classify = nn.Linear(self.encoder.width, C)
        self.axes: Tensor | None = None  # directions of the logits, (C, d of f), where they are not the centers
        if task.head is not None:
            head_layers.adopt(self, task.head)
        # (n, C) targets would take gigabytes for many rows and classes: only the batch's rows are expanded.
        self.y = torch.from_numpy(labels.y).to(task.device)
        self.trained = torch.from_numpy(labels.counts() > 0).to(task.device)
        self.expect(torch.from_numpy(labels.counts()))
        self.held_out: Ints | None = None
        self.calibration: dict[str, float] = {}

    def expect(self, counts: Tensor) -> None:
        """Take the rows of training for labelled in these shares, counts (C,): what logits are adjusted by in losses.

        Menon, Jayasumana, Rawat, Jain, Veit, Kumar, "Long-tail learning via logit adjustment", ICLR 2021, eq. 10. mAP of equal
        classes with and without it, on parts of training rows of CLINC150 and CIFAR-10: where the rarest class has a tenth of
        the rows of the most frequent one 0.784 and 0.743, 0.544 and 0.517; a hundredth, 0.683 and 0.594, 0.404 and 0.334.
        """
        counts = counts.to(self.trained.device, torch.float64)
        self.prior = self.config.balance * torch.where(counts > 0, (counts / counts.max()).log(), 0)

    def directions(self) -> Tensor:
        """What f is compared with, (C, d of f), at length kappa."""
        axes = self.centers if self.axes is None else self.axes.to(self.centers.device)
        return self.kappa * F.normalize(axes, dim=1)

    def multi_hot(self, index: Tensor) -> Tensor:
        """Multi-hot labels (b, C) float32 of the rows `index`."""
        y = self.y[index]
        return y.float() if self.labels.multilabel else F.one_hot(y, self.labels.C).float()

    def shares(self, index: Tensor) -> Tensor:
        """Labels of the rows `index` as a distribution over the classes, (b, C): Y / |Y|."""
        t = self.multi_hot(index)
        return t / t.sum(1, keepdim=True)

    def logits(self, x: Tensor) -> Tensor:
        """kappa <f, c_k> or kappa cos(f, c_k) of every member, (e, b, C); plus a bias a class where classes are judged one by
        one.
        """
        f = torch.baddbmm(self.shift, self.encoder(x), self.project)  # e b d
        out = (F.normalize(f, dim=2) if self.cosine else f) @ self.directions().T
        return out + self.bias if self.sigmoid else out

    def posterior(self, x: Tensor) -> Tensor:
        """p (b, C), the mean over the members: sums to 1 a row (softmax), or one probability a class (sigmoid)."""
        logits = self.logits(x)
        return (logits.sigmoid() if self.sigmoid else logits.softmax(2)).mean(0)

    def forward(self, x: Tensor) -> Tensor:
        """z (b, d), the feature that is coded and searched."""
        if self.kind == "none":
            return x
        if self.kind == "calibrated":
            return self.posterior(x) @ self.centers
        f = torch.baddbmm(self.shift, self.encoder(x), self.project)[0]
        return torch.tanh(f) if self.kind == "reference" else F.normalize(f, dim=1)

    def of_posterior(self, p: Tensor) -> Tensor | None:
        """p (b, C) -> z (b, d), where z is made of a posterior."""
        return p.to(self.centers) @ self.centers if self.kind == "calibrated" else None

    def targets(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """t = sum of the row's centers, normalised (b, d), and which rows have one: a sum below 1e-6 has no direction."""
        total = self.multi_hot(index) @ self.centers
        length = total.norm(dim=1, keepdim=True)
        return total / length.clamp_min(1e-6), length.squeeze(1) >= 1e-6

    def loss(self, x: Tensor, index: Tensor) -> dict[str, Tensor]:
        """L_CFA of the rows `index` as named, weighted terms; members add up, as each trains alone."""
        if self.kind == "reference":
            g = self.encoder(x)[0]
            z, logits = torch.tanh(g @ self.project[0] + self.shift[0]), self.classify(g)
            if self.labels.multilabel:
                return reference_cfa.loss(z, logits, *self.targets(index), self.multi_hot(index))
            return reference_cfa.loss_of_one_label(z, logits, self.centers, self.y[index])
        logits = self.logits(x)  # e b c
        if self.sigmoid:
            multi_hot = self.multi_hot(index).expand_as(logits)
            return {"bce": F.binary_cross_entropy_with_logits(logits, multi_hot) * self.labels.C * self.members}
        logits = logits + self.prior.to(logits)
        target = (
            self.shares(index).repeat(self.members, 1) if self.labels.multilabel else self.y[index].repeat(self.members)
        )
        return {"ce": F.cross_entropy(logits.flatten(0, 1), target) * self.members}

    def stage(self, without: Ints | None = None) -> Stage:
        """The training of encoder and head; no epochs where there is nothing to train. without: rows that do not train."""
        c, task = self.config, self.task
        rows = np.arange(len(task.rows))
        if self.kind == "calibrated" and not self.sigmoid and c.holdout:
            held = held_out(self.labels, c.holdout, task.seed)
            if len(held) < MIN_HELD_OUT:
                warn(
                    f"{len(held)} held-out rows are too few to fit a temperature on (need {MIN_HELD_OUT}): none held out"
                )
            else:
                rows, self.held_out = np.setdiff1d(rows, held, assume_unique=True), held
        if without is not None:
            rows = np.setdiff1d(rows, without, assume_unique=True)
        reference = self.kind == "reference"
        small = reference or self.encoder.modality.needs_encoder  # a network wants its steps, and its memory
        batch = task.batch_size or c.features.batch_size or (64 if small else min(256, max(32, len(rows) // 8)))
        steps = batch_count(len(rows), batch)
        epochs = task.epochs
        if epochs is None:
            epochs = c.features.epochs
            if not reference and epochs:
                epochs = max(epochs, -(-MIN_STEPS // steps))
        if self.kind == "none" or task.head is not None:
            epochs = 0
        validation = task.validation.labels if task.validation is not None and epochs else None
        if validation is not None and not validation.counts().any():
            raise DataError(f"none of {len(validation):,} validation rows has a label, at least 1 must")

        loss: Loss = self.loss
        if c.adversarial:
            loss = hardened(loss, c.adversarial, space_of(self.encoder.modality), self.encoder.seen)

        def make_optimizer(total: int) -> tuple[Any, Any]:
            if reference:
                return reference_cfa.optimizer(self, steps)
            optimizer = torch.optim.AdamW(self.groups(c.features.lr, self.decay), c.features.lr, fused=True)
            return optimizer, warmup_cosine(optimizer, c.features.warmup, total)

        return Stage(
            name="features",
            epochs=epochs,
            steps_per_epoch=steps,
            batches=lambda generator: task.rows.batches(batch, generator, rows),
            optimizer_steps=[OptimizerStep(loss, make_optimizer)],
            on_epoch=self.encoder.on_epoch,
            validate=self.validate if validation is not None else None,
            end=self.calibrate,
            allow_reduced_precision=c.features.allow_reduced_precision and not reference,
        )

    def groups(self, lr: float, decay: float) -> list[dict[str, Any]]:
        """All that trains, as groups for an optimiser; a network for images has rates of its own."""
        if not self.encoder.modality.needs_encoder:  # in one group, in the order of the model
            return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": lr, "weight_decay": decay}]
        of_encoder = {id(p) for p in self.encoder.parameters()}
        own = [p for p in self.parameters() if p.requires_grad and id(p) not in of_encoder]
        return [{"params": own, "lr": lr, "weight_decay": decay}, *self.encoder.groups(lr, decay)]

    @torch.no_grad()
    def validate(self) -> float:
        """How badly the validation rows that have a label are understood: the mean cross-entropy of the posterior, that of
        all members together, at the temperature of training; of heads without a posterior, their own loss.
        """
        part, y = self.task.validation, self.y
        assert part is not None and part.labels is not None
        sums: dict[str, float] = {}
        rows: dict[str, int] = {}
        self.eval()
        self.y = torch.from_numpy(part.labels.y).to(y)  # where losses look up the labels of their rows
        try:
            for x, index in self._labelled(part.rows):
                if self.kind == "calibrated":
                    terms = {"ce": self.cross_entropy(x, index).mean()}
                else:
                    terms = self.loss(x, index)
                for name, term in terms.items():
                    # Each weighs as many rows as it is the mean of, so that blocks of any size come to the same.
                    directed = name in ("align", "pull")
                    n = int(self.targets(index)[1].sum()) if directed else len(index)
                    sums[name], rows[name] = sums.get(name, 0.0) + n * float(term), rows.get(name, 0) + n
        finally:
            self.y = y
        return sum(total / max(rows[name], 1) for name, total in sums.items())

    def _labelled(self, rows: RowStream) -> Iterator[tuple[Tensor, Tensor]]:
        """x (b, d_in) and row numbers (b,) on the device, of the rows to which self.y gives a label."""
        for i, block in rows.blocks():
            for at in range(i, i + len(block), 4096):
                x = torch.from_numpy(block[at - i : at - i + 4096]).to(self.y.device)
                index = torch.arange(at, at + len(x), device=self.y.device)
                if self.labels.multilabel:
                    labelled = self.y[index].bool().any(1)
                    x, index = x[labelled], index[labelled]
                if len(x):
                    yield x, index

    def cross_entropy(self, x: Tensor, index: Tensor) -> Tensor:
        """Cross-entropy of the posterior and the labels of each row `index`, (b,), whose classes are as frequent as in training;
        of each class where they are judged one by one, summed.
        """
        logits = self.logits(x).double()
        if self.sigmoid:
            multi_hot = self.multi_hot(index)
            log_p, log_not = (F.logsigmoid(t).logsumexp(0) - math.log(len(t)) for t in (logits, -logits))
            return -(multi_hot * log_p + (1 - multi_hot) * log_not).sum(1)
        log_p = (logits + self.prior).log_softmax(2).logsumexp(0) - math.log(len(logits))
        return -(self.shares(index) * log_p).sum(1)

    @torch.no_grad()
    def calibrate(self) -> None:
        """The inverse temperature for use: fitted on held-out rows, or the trained one sharpened by a fixed factor."""
        if self.kind != "calibrated" or self.sigmoid or self.task.head is not None:
            return
        trained = self.kappa
        if self.held_out is None:
            self.kappa = trained * self.config.sharpen
            return
        self.eval()
        logits, targets = [], []
        size = items.BATCH if self.encoder.modality.needs_encoder else 4096
        for batch in self.task.rows.batches(size, torch.Generator().manual_seed(0), self.held_out):
            x, index = batch
            parts = self.logits(x).double() / trained, self.shares(index).double()
            if isinstance(batch, distributed.LocalBatch):  # every process has seen its share of the images
                parts = (
                    torch.cat(distributed.all_gather(parts[0].contiguous()), 1),
                    torch.cat(distributed.all_gather(parts[1])),
                )
            logits.append(parts[0])
            targets.append(parts[1])
        self.kappa, before, after = fit_kappa(torch.cat(logits, 1), torch.cat(targets), trained, self.prior)
        self.calibration = {"held_out": len(self.held_out), "nll_before": before, "nll_after": after}

    @torch.no_grad()
    def embed(self, rows: Any, dropout: bool = False) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """(first row, z (b, d), predicted class (b,) or None) over rows; dropout=True keeps the noise of training."""
        self.train(dropout)
        for i, x in rows.blocks():
            z = torch.cat([self(part) for part in torch.from_numpy(x).to(self.task.device).split(4096)])
            yield i, z, self.predicted(z)

    def predicted(self, z: Tensor) -> Tensor | None:
        """z (b, d) -> the class whose center is nearest, (b,) int64; None without centers."""
        if self.kind == "none":
            return None
        # Only classes that were trained: the others' centers were never pulled away from anything.
        like = z @ self.centers.to(z.device).T
        return like.masked_fill(~self.trained.to(z.device), -torch.inf).argmax(1)

    def layers(self, upto: str = "z") -> Layers:
        """x -> z as layers of an encoder chain; upto='posterior' stops at p."""
        layers = list(self.encoder.layers())
        return layers if self.kind == "none" else [*layers, *head_layers.of(self, upto)]

    def summary(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "cfa": self.kind,
            "centers": self.sca.source,
            "centers_rms_error": self.sca.rms_error,
            "centers_max_error": self.sca.max_error,
        }
        if self.kind == "calibrated":
            out |= {"members": self.members, "kappa": self.kappa, **self.calibration}
        return out
