"""Deep Progressive Quantization: additive codebooks learned level by level, so that every prefix of a code is a code.

Gao, Zhu, Song, Zhao, Shen, "Beyond product quantization: deep progressive quantization for image retrieval", IJCAI 2019,
pp. 723-729, DOI 10.24963/ijcai.2019/102, arXiv 1906.06698. (Not "Deep Product Quantization", Klein and Wolf, CVPR 2019, which
shares the letters.)

n, b row   l level (M)   k codeword (K)   d dimension of z   c class (C)   p positive: a row and one of its classes
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arrays import Ints, Labels
from ..codebooks import Codebooks
from ..contract import Layers, MethodDefaults, OptimizerStep, Stage, Task, batch_count, seed_of, setting
from ..errors import ConfigError
from ..modality import Modality
from . import centers as sca
from . import cfa, cfa_checks, dead_codewords, lists, residual
from .progressive import FLOOR, greedy, margin_loss, prefix_errors, quantization_loss
from .rows import CodebookRows, warn_of_few
from .self_training import SelfTraining

USE_ROWS = 256  # rows per codeword on which the use of codewords is counted after an epoch
MULTIPLE = 4  # d, where it is free, is one of this: additive codebooks need not divide it, vector units like it


@dataclass(frozen=True)
class CodebookStage:
    """Which rows the codebooks learn from, and how."""

    rows: int = setting(1_000_000, low=1)  # at most so many rows teach the codebooks
    copies: int = setting(4, low=1, high=100)  # passes over the training rows, with other noise each, for the codebooks
    noise: float = setting(
        1.5, low=0, high=10
    )  # in standard deviations of each feature; 0, and of images: dropout instead
    epochs: int = setting(10, low=0)  # 0: residual k-means alone
    batch_size: int = setting(256, low=1)
    lr: float = setting(1e-3, low=0)
    encoder_lr: float = setting(4e-4, low=0)  # of the encoder, where end_to_end trains it in this stage


@dataclass(frozen=True)
class Settings(cfa.Settings):
    recipe: str = setting("calibrated", choices=("calibrated", "reference"))  # reference: the paper's own, as published
    supervision: str = setting(
        "labels", choices=("labels", "none")
    )  # none: rows are z as they are, labels are not needed
    # Inverse temperature of the soft choice; without bound it is k-means. 20 blurs the codebooks and costs 0.001 mAP, measured.
    gamma: float = setting(1000.0, low=0)
    top: int = setting(0, low=0, high=1 << 16)  # partial attention: the soft choice is among so many nearest; 0: all
    choice: str = setting("l2", choices=("l2", "cosine"))  # what training compares; encoding is by l2 whatever it is
    tau: float = setting(1.0, low=0)  # weight of all three terms; matters where the encoder learns by them too
    mu: float = setting(1.0, low=0)  # weight of the hard rebuilds beside the soft ones
    nu: float = setting(0.1, low=0)  # weight of hard and soft rebuild being one
    codebooks: CodebookStage = CodebookStage()
    start: str = setting("kmeans", choices=("kmeans", "normal"))  # normal: N(0, 0.01^2), as published
    rescale: bool = True  # codebooks learn on g z, g = sqrt(d / mean ||z||^2): rates and start are made for that scale
    end_to_end: bool = False  # the codebooks' loss trains the encoder too, beside its own loss

    @property
    def what_moves(self) -> str:
        """The setting by which the encoder goes on learning beside the codebooks, or ''."""
        return "end_to_end=true" if self.end_to_end else "recipe=reference" if self.recipe == "reference" else ""


# What `recipe=reference` puts in place of the defaults above: 64 epochs, half of them encoder alone.
REFERENCE: dict[str, Any] = {
    "cfa": "reference",
    "d": 300,
    "features.epochs": 32,
    "features.batch_size": 256,
    "features.lr": 1e-3,
    "gamma": 1.0,
    "choice": "cosine",
    "codebooks.copies": 1,
    "codebooks.noise": 0.0,
    "codebooks.epochs": 32,
    "codebooks.lr": 1e-4,
    "start": "normal",
    "rescale": False,
}


# ----------------------------------------------------------------------------------------------------------------- guide
class Guide(cfa.Features):
    """Encoder and head of the features stage. cfa='reference' is DPQ's own here: a tanh layer under a margin loss."""

    def __init__(self, config: Settings, task: Task, d: int, labels: Labels) -> None:
        given = self.class_vectors(config, task, d, labels)
        super().__init__(config if given is None else replace(config, class_vectors=""), task, d, labels)
        if given is not None:
            self.config, self.sca = config, given
            self.centers = torch.from_numpy(given.centers)

    @staticmethod
    def class_vectors(config: Settings, task: Task, d: int, labels: Labels) -> sca.Centers | None:
        """Class vectors that are as wide as z stand as they are; of others only their cosines can be kept."""
        if not config.class_vectors or cfa.kind_of_cfa(config, task.encoder_name) != "reference":
            return None
        vectors, sha = sca.read_matrix(config.class_vectors, labels, square=False)
        if vectors.shape[1] != d:
            return None
        sca.from_vectors(vectors, labels)  # refuses those of length zero
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return sca.Centers(unit.astype(np.float32), f"class vectors {sha[:12]}", 0.0, 0.0)

    def loss(self, x: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Released: L_enc, the margin loss with the centers as class vectors, and 0.1 times the loss of a linear
        classifier on the layer below z, cross-entropy or, with many labels a row, the mean binary one.
        """
        if self.kind != "reference":
            return super().loss(x, index)
        g, multi_hot = self.encoder(x)[0], self.multi_hot(index)
        z, logits = torch.tanh(g @ self.project[0] + self.shift[0]), self.classify(g)
        if self.labels.multilabel:
            classified = F.binary_cross_entropy_with_logits(logits, multi_hot)
        else:
            classified = F.cross_entropy(logits, self.y[index])
        return {"margin": margin_loss(z, multi_hot, self.centers), "cls": 0.1 * classified}

    def reference_optimizer(self, before: int = 0) -> tuple[Any, Any]:
        """SGD of the authors' code: momentum 0.9, new layers x 10, biases x 20, x 0.9 per 10,000 steps, of which `before` are
        done. A network for images takes its own multiple of what new layers have.
        """
        lr = self.config.features.lr
        network = {id(p) for p in self.encoder.parameters()} if self.encoder.modality.needs_encoder else set()
        groups = [
            {"params": [p], "lr": lr * (20 if p.shape[-2:-1] in ((), (1,)) else 10)}  # biases are (d,) or (1, 1, d)
            for p in self.parameters()
            if p.requires_grad and id(p) not in network
        ]
        groups += [g | {"weight_decay": 0.0} for g in self.encoder.groups(10 * lr, 0.0)] if network else []
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9 ** ((step + before) // 10_000))

    def stage(self, without: Ints | None = None) -> Stage:
        stage = super().stage(without)
        if self.kind != "reference":
            return stage
        return replace(stage, optimizer_steps=[OptimizerStep(self.loss, lambda steps: self.reference_optimizer())])


# ---------------------------------------------------------------------------------------------------------------- method
class DPQ(MethodDefaults, nn.Module):
    """Additive codebooks whose prefixes are codebooks: one training serves every length."""

    Config = Settings
    PRESETS: ClassVar[dict[str, Any]] = {"recipe": {"reference": REFERENCE}}
    long_name = "Deep Progressive Quantization"
    needs = frozenset({"labels"})
    starts = True
    takes_lists = True
    takes_unlabelled = True
    beam = 1  # a wider one finds codes whose prefixes are not those of the shorter codes
    nested = True

    @staticmethod
    def unlabeled(config: Settings) -> str:
        return config.unlabeled

    @staticmethod
    def kind(config: Settings) -> str:
        return "additive"

    @classmethod
    def needs_of(cls, config: Settings) -> frozenset[str]:
        return frozenset() if config.supervision == "none" else cls.needs

    @staticmethod
    def default_encoder(config: Settings) -> str:
        return "identity" if config.supervision == "none" else "mlp"

    @staticmethod
    def members(config: Settings, encoder: str) -> int:
        return cfa.members(config, encoder)

    @classmethod
    def check(cls, config: Settings, d_in: int, C: int, M: int, nbits: int, encoder: str, modality: Modality) -> None:
        cfa_checks.check(config, d_in, C, MULTIPLE, encoder, modality)
        cfa.smallest_d(config, d_in, C, MULTIPLE, encoder)
        if config.top > 1 << nbits:
            raise ConfigError(f"top is {config.top}, needs 0 to K={1 << nbits} codewords (--nbits {nbits})")
        if config.supervision == "none" and encoder != "identity":
            if modality.needs_encoder:
                raise ConfigError("supervision=none codes rows as they are, and images need a network that trains")
            raise ConfigError(f"supervision=none trains no encoder; choose --encoder identity, not {encoder}")
        if config.supervision == "labels" and encoder == "identity":
            raise ConfigError("labels guide an encoder, and identity has nothing to train; add --set supervision=none")
        if config.adversarial and config.what_moves:
            raise ConfigError(
                f"adversarial={config.adversarial:g} trains the head alone, {config.what_moves} more than it"
            )
        if config.supervision == "none" and config.what_moves:
            raise ConfigError(f"{config.what_moves} trains an encoder, which supervision=none leaves out")

    def __init__(self, config: Settings, task: Task) -> None:
        super().__init__()
        self.config, self.task = config, task
        self.features: Guide | None = None
        d = task.rows.d
        if config.supervision == "labels":
            assert task.labels is not None
            d = cfa.smallest_d(config, d, task.labels.C, MULTIPLE, task.encoder_name)
            self.features = Guide(config, task, d, task.labels)
            self.self_training = SelfTraining(self.features, task)
        self.moving = bool(config.what_moves)  # the encoder goes on learning beside the codebooks
        if self.moving and task.codebook_rows is not None:
            raise ConfigError(
                f"{config.what_moves} trains encoder and codebooks on the same rows; leave --codebook-rows out"
            )
        if self.moving and task.head is not None:
            raise ConfigError(
                f"{config.what_moves} trains the network on, and that of the model to start from stays as it is"
            )
        stage = config.codebooks
        self.rows = CodebookRows(self.features, task, stage.rows, stage.copies, stage.noise)
        self.centroids: Tensor | None = None  # of lists, (L, d), of z as it is
        self.codewords = nn.Parameter(torch.zeros(task.M, task.K, d))
        self.scale = 1.0  # the codewords rebuild scale * z
        self.z: Tensor  # (n, d) rows for the codebooks, scaled, on the device
        self.held: Tensor | None = None  # validation rows, of an encoder that rests
        self.optimizer: Any = None

    # --------------------------------------------------------------------------------------------------------- stages
    def stages(self) -> list[Stage]:
        first = self.self_training.stages() if self.features is not None else []
        codebooks = self.codebook_stage(first) if self.task.M else Stage(name="codebooks")
        return [*first, Stage(name="encode rows", begin=self.encode_rows), codebooks]

    def codebook_stage(self, before: list[Stage]) -> Stage:
        """Codebooks alone on encoded rows; or encoder and codebooks, in turn (reference) or by one loss (end_to_end)."""
        c, task = self.config, self.task
        epochs = task.epochs if task.epochs is not None else c.codebooks.epochs
        batch = task.batch_size or ((self.moving and c.features.batch_size) or c.codebooks.batch_size)
        optimizer_steps = [OptimizerStep(self.quantization, self.codebook_optimizer)]

        def on_epoch(epoch: int) -> None:
            if self.features is not None and self.moving:  # its epochs go on from those before
                self.features.encoder.on_epoch(sum(stage.epochs for stage in before) + epoch)

        if c.end_to_end:
            optimizer_steps = [OptimizerStep(self.joint, self.joint_optimizer)]
        elif self.features is not None and self.moving:
            features, done = self.features, sum(stage.epochs * stage.steps_per_epoch for stage in before)
            optimizer_steps = [
                OptimizerStep(features.loss, lambda steps: features.reference_optimizer(done)),
                OptimizerStep(
                    lambda x, index: self.quantization(self.coded(features(x).detach())), self.codebook_optimizer
                ),
            ]
        return Stage(
            name="codebooks",
            begin=self.start_codebooks,
            epochs=epochs,
            steps_per_epoch=batch_count(len(task.rows) if self.moving else len(self.rows), batch),
            batches=lambda generator: self.batches(batch, generator),
            optimizer_steps=optimizer_steps,
            on_epoch=on_epoch,
            after_epoch=self.renew,
            validate=None if task.validation is None else self.validate,
            one_thread=not self.moving and batch * task.K * self.codewords.shape[2] < 1 << 24,
        )

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        """Shuffled (z (b, d),) from the encoded rows; (x, row numbers) where the encoder still learns."""
        if self.moving:
            yield from self.task.rows.batches(size, generator)
            return
        order = torch.randperm(len(self.z), generator=generator).to(self.z.device)
        for part in order.tensor_split(batch_count(len(order), size)):
            yield (self.z[part],)

    def encode_rows(self) -> None:
        task = self.task
        self.z = self.rows.encoded()[0]
        if task.lists > 1:
            self.centroids = lists.of_task(self.z, self.features, task)
            self.z = lists.residuals(self.z, self.centroids)

    @torch.no_grad()
    def start_codebooks(self) -> None:
        """Set the scale, start the codewords: residual k-means, or small noise."""
        c, task, z = self.config, self.task, self.z
        warn_of_few(len(z), task.K)
        generator = torch.Generator().manual_seed(task.seed)
        energy = float(z.double().square().sum(1).mean())
        self.scale = float(np.sqrt(z.shape[1] / energy)) if c.rescale and energy > 0 else 1.0
        z = z * self.scale
        if c.start == "normal":
            start = 0.01 * torch.randn(self.codewords.shape, generator=generator)
        else:
            start = residual.start(z, task.M, task.K, 1, generator, task.progress)
        self.codewords.copy_(start)
        self.z = z.to(task.device)

    # --------------------------------------------------------------------------------------------------------- losses
    def coded(self, z: Tensor) -> Tensor:
        """z (b, d) as the codebooks code it: less its list, where there are lists, and scaled."""
        return (z if self.centroids is None else lists.residuals(z, self.centroids)) * self.scale

    def quantization(self, z: Tensor) -> dict[str, Tensor]:
        """L_q of z (b, d), scaled."""
        c = self.config
        return quantization_loss(z, self.codewords, c.gamma, c.mu, c.nu, c.choice, c.tau, c.top)

    def joint(self, x: Tensor, index: Tensor) -> dict[str, Tensor]:
        """The encoder's own loss and L_q, whose gradient reaches the encoder."""
        assert self.features is not None
        return self.features.loss(x, index) | self.quantization(self.coded(self.features(x)))

    def codebook_optimizer(self, steps: int) -> tuple[Any, Any]:
        """Adam, the rate falling to 0 by a cosine; reference: constant."""
        self.optimizer = torch.optim.Adam([self.codewords], self.config.codebooks.lr, fused=True)
        if self.config.recipe == "reference":
            return self.optimizer, None
        return self.optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)

    def joint_optimizer(self, steps: int) -> tuple[Any, Any]:
        """AdamW on encoder and head, Adam on the codebooks, in one; both rates fall to 0 by a cosine."""
        c = self.config
        assert self.features is not None
        groups = [
            *self.features.groups(c.codebooks.encoder_lr, self.features.decay),
            {"params": [self.codewords], "lr": c.codebooks.lr, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        return self.optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)

    # --------------------------------------------------------------------------------------------------- after epochs
    @torch.no_grad()
    def renew(self, epoch: int) -> dict[str, Any]:
        """Count the codewords in use, and move each dead one to what the levels before leave of a row, drawn by the squared
        error of its prefix.
        """
        task, w = self.task, self.codewords
        # Of its own seed: what is drawn does not depend on what ran before, in a training that was resumed either.
        generator = torch.Generator().manual_seed(seed_of(task.seed, epoch))
        z = self.coded(self.rows.encoded()[0].to(task.device)) if self.moving else self.z
        if len(z) > USE_ROWS * task.K:
            sample = torch.randperm(len(z), generator=generator)[: USE_ROWS * task.K]
            z = z[sample.to(z.device)]
        codes = greedy(z, w)
        counts, moved, remaining = dead_codewords.use(codes, task.K), 0, z
        moved_to = w.detach().clone()
        for m in range(task.M):
            codebook, count = dead_codewords.revive(w[m : m + 1], codes[:, m : m + 1], remaining, generator)
            moved_to[m], moved = codebook[0], moved + count
            remaining = remaining - w[m, codes[:, m]]
        if moved and self.optimizer is not None:
            dead_codewords.reset_optimizer_state(self.optimizer, w, (moved_to != w).any(2), counts > 0)
        w.copy_(moved_to)
        return {"codewords_used": (counts > 0).sum(1).tolist(), "revived": moved}

    @torch.no_grad()
    def validate(self) -> float:
        """Squared error of rebuilding the validation rows, summed over the prefixes, as a share of their energy; with
        lists, of what the nearest leaves over.
        """
        assert self.task.validation is not None
        z = self.held
        if z is None:
            rows = replace(self.task, codebook_rows=self.task.validation.rows)  # encoded without the noise of training
            z = CodebookRows(self.features, rows, len(self.task.validation.rows)).encoded()[0].to(self.task.device)
            self.held = None if self.moving else z
        z = self.coded(z)
        energy = z.double().square().sum().clamp_min(FLOOR)
        return float(prefix_errors(z, self.codewords).sum() / energy)

    # --------------------------------------------------------------------------------------------------------- result
    def of_posterior(self, p: Tensor) -> Tensor | None:
        return None if self.features is None or self.moving else self.features.of_posterior(p)

    def layers(self) -> Layers:
        if self.features is not None:
            return self.features.layers()
        assert self.task.encoder is not None
        layers: Layers = self.task.encoder.layers()
        return layers

    def codebooks(self) -> Codebooks:
        centroids = None if self.centroids is None else self.centroids.numpy()
        if self.task.M == 0 and centroids is not None:
            return Codebooks.of_lists(centroids)
        w = (self.codewords.detach().double() / self.scale).float().cpu().numpy()
        return Codebooks("additive", w, lists=centroids)

    def summary(self) -> dict[str, Any]:
        if self.features is None:
            return {"cfa": "none"}
        return self.features.summary() | self.self_training.summary()
