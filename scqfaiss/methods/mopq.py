"""MoPQ: product codebooks trained for matching, so that a query picks its own quantized key among all others.

Xiao, Liu, Shao, Lian, Xie, "Matching-oriented Product Quantization for Ad-hoc Retrieval", EMNLP 2021, arXiv 2104.07858.
Where the paper leaves a choice open, the authors' released code decides; written anew, nothing copied. Ours are the
temperatures, the start of map and codebooks from the data, the revival of dead codewords, the masking of keys that are known
answers, and cross-device sampling with its exact gradient.

b pair   m codebook (M)   k codeword (K)   e place in a sub-vector (dsub)   d dimension of z   w width of the encoder's output
j key of a pair of any process
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

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
    Stage,
    Subset,
    Task,
    batch_count,
    check_product_shape,
    setting,
)
from ..errors import ConfigError, DataError, warn
from ..modality import Modality
from .arsq import decode, nearest
from .dead_codewords import reset_dead_codewords
from .kmeans import shared_lloyd

DSUB = 16  # dimensions of z a codebook: of 7,500 pairs, 8 and 12 a codebook lose recall, 24 gain none
START_ROWS = 256  # pairs per codeword that the start and the revival look at
MIN_STEPS = 600  # few pairs make short epochs
VALIDATION_ROWS = 16_384  # pairs that are ranked against one another after an epoch; the square of it is computed


@dataclass(frozen=True)
class TrainingStage:
    """How map and codebooks are trained."""

    epochs: int = setting(20, low=0)  # at least 600 steps, unless epochs are set
    batch_size: int = setting(512, low=1)  # pairs that are one another's negatives, over all processes
    lr: float = setting(1e-3, low=0)  # of the codewords
    map_lr: float = setting(1e-3, low=0)  # of encoder and map


@dataclass(frozen=True)
class Settings:
    recipe: str = setting("tuned", choices=("tuned", "reference"))  # reference: the authors' own, as published
    d: int = setting(0, low=0, high=1 << 16)  # dimension of z; 0: 16 a codebook, or that of the rows where it is less
    # How far the start evens out the variances of the axes it keeps: 0 principal components, 1 whitened ones.
    whitening: float = setting(0.5, low=0, high=1)
    scale: float = setting(20.0, low=0)  # inverse temperature of the loss, for keys of mean squared length 1; 0: none
    # Inverse temperature of the soft choice of a codeword, in units of a codebook's squared error at the start; 0: none.
    sharpness: float = setting(3.0, low=0)
    dense: float = setting(1.0, low=0)  # weight of the loss of keys before they are quantized
    rebuild: float = setting(1e-8, low=0)  # weight of the squared error of the quantized keys
    training: TrainingStage = TrainingStage()
    start: str = setting("data", choices=("data", "uniform"))  # principal axes and k-means; or U(-1, 1), as published
    revive: bool = True  # move codewords that no key uses onto keys that are coded worst


# What `recipe=reference` puts in place of the defaults above.
REFERENCE: dict[str, Any] = {
    "scale": 0.0,
    "sharpness": 0.0,
    "training.epochs": 50,
    "training.batch_size": 4000,  # 8 devices of 500
    "start": "uniform",
    "revive": False,
}


def z_dimension(config: Settings, d_in: int, M: int, encoder: str) -> int:
    """The dimension of z: as set, that of rows which no map changes, or 16 a codebook as far as the rows have so many."""
    if encoder == "identity":
        if config.d not in (0, d_in):
            raise ConfigError(f"d is {config.d}, but without a map (--encoder identity) z are the rows, d={d_in}")
        return d_in
    return config.d or M * max(1, min(DSUB, d_in // M))


def straight_through(z: Tensor, w: Tensor, sharpness: float | Tensor) -> tuple[Tensor, Tensor]:
    """Each row's nearest codewords, with the gradient of the soft choice -> z^ (b, d), codes (b, M).

    z (b, d), w (M, K, dsub). With p = softmax_k(-sharpness ||z_m - w_mk||^2) the choice is one-hot(argmax p) + p - sg[p], in
    value the codeword itself; its gradient goes to the codeword chosen and, through p, to z and all codewords.
    """
    M = len(w)
    x = z.unflatten(1, (M, -1)).transpose(0, 1)  # m b e
    dist = torch.baddbmm(w.square().sum(2)[:, None], x, w.transpose(1, 2), alpha=-2)  # m b k, less ||z_m||^2
    codes = dist.argmin(2)  # m b
    # Not w[.., codes]: the gradient of indexing sums up in an order of its own on several threads.
    offset = torch.arange(M, device=w.device)[:, None] * w.shape[1]
    hard = F.embedding(codes + offset, w.flatten(0, 1))  # m b e
    p = (dist * -sharpness).softmax(2)
    # Products with exact zeros, so that the value stays the codeword's to the last bit.
    out = hard + torch.bmm(p - p.detach(), w)
    return out.transpose(0, 1).flatten(1), codes.T


def matching_loss(q: Tensor, keys: Tensor, target: Tensor, masked: Tensor, scale: float) -> Tensor:
    """MCL: mean over b of -log of the share of exp(scale <q_b, k_target>) among all keys j that are not masked; scalar.

    q (b, d), keys (j, d), target (b,) the own key's place, masked (b, j) bool, never the own key.
    """
    return F.cross_entropy((scale * (q @ keys.T)).masked_fill(masked, -torch.inf), target)


def known_answers(own: Tensor, ids: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
    """own (b,) and ids (j,) of keys, own standing in ids from place `first` -> target (b,), masked (b, j).

    Masked are other copies of a query's key: they would be negatives that are right.
    """
    target = first + torch.arange(len(own), device=own.device)
    masked = own[:, None] == ids
    masked[torch.arange(len(own), device=own.device), target] = False
    return target, masked


class MoPQ(MethodDefaults, nn.Module):
    """A linear map of queries and keys alike (none with --encoder identity), and product codebooks for the keys."""

    Config = Settings
    PRESETS: ClassVar[dict[str, Any]] = {"recipe": {"reference": REFERENCE}}
    separable = False
    long_name = "Matching-oriented Product Quantization"
    needs = frozenset({"pairs"})
    mean: Tensor
    gain: Tensor
    error: Tensor

    @classmethod
    def check(cls, config: Settings, d_in: int, C: int, M: int, nbits: int, encoder: str, modality: Modality) -> None:
        check_product_shape(z_dimension(config, d_in, M, encoder), M, nbits)

    def __init__(self, config: Settings, task: Task) -> None:
        super().__init__()
        assert task.encoder is not None and task.ids is not None
        self.config, self.task = config, task
        self.encoder: Any = task.encoder
        self.mapped = task.encoder_name != "identity"
        self.batch = task.batch_size or config.training.batch_size
        n = len(task.rows)
        if min(self.batch, n) < 2:
            what = f"{n:,} pair holds" if n < 2 else f"batches of {self.batch} pair hold"
            raise ConfigError(f"{what} no wrong key to tell the right one from; need 2 or more")
        if n < task.K:
            warn(f"{n:,} pairs can use at most {n:,} of {task.K} codewords")
        self.ids = torch.from_numpy(np.ascontiguousarray(task.ids)).to(task.device)
        if bool((self.ids == self.ids[0]).all()):
            raise DataError(
                f"all {n:,} pairs have the key id {int(self.ids[0])}: there is no other key to tell it from"
            )
        if task.validation is not None:
            validation_ids = task.validation.ids
            assert validation_ids is not None
            if bool((validation_ids == validation_ids[0]).all()):
                raise DataError(
                    f"all {len(validation_ids):,} validation pairs have the key id {int(validation_ids[0])}: there is no other "
                    "key to tell it from, and every epoch would do as well"
                )
        d = z_dimension(config, self.encoder.d_in, task.M, task.encoder_name)
        self.d = d
        self.centroids = nn.Parameter(torch.zeros(task.M, task.K, d // task.M))  # m k e
        if self.mapped:
            self.map = nn.Parameter(torch.zeros(d, self.encoder.width))
            self.shift = nn.Parameter(torch.zeros(d))
        # Of the start. Training works on gain (g - mean), of mean squared length 1, which its rates are made for; `error` is
        # the mean squared error of a codebook.
        self.register_buffer("mean", torch.zeros(self.encoder.width))
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("error", torch.ones(()))
        self.sample: Tensor  # keys that the revival looks at, (s, d_in)
        self.optimizer: Any = None

    # ----------------------------------------------------------------------------------------------------------- model
    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs (b, 2 d_in) -> queries and keys, (b, d_in) each."""
        return x[:, : self.encoder.d_in], x[:, self.encoder.d_in :]

    def normed(self, x: Tensor) -> Tensor:
        """x (b, d_in) -> gain (g - mean), (b, w), of mean squared length 1 at the start."""
        out: Tensor = (self.encoder(x)[0] - self.mean) * self.gain
        return out

    def forward(self, x: Tensor) -> Tensor:
        """x (b, d_in) -> z (b, d) on the scale of the training."""
        g = self.normed(x)
        return torch.addmm(self.shift, g, self.map.T) if self.mapped else g

    @property
    def sharpness(self) -> float | Tensor:
        return self.config.sharpness / self.error if self.config.sharpness else 1.0

    def loss(self, x: Tensor, index: Tensor) -> dict[str, Tensor]:
        """MCL(q, k) + MCL(q, k^) + rebuild ||k - k^||^2 as named, weighted terms.

        x (b, 2 d_in) pairs, index (b,) their row numbers. Every query of this process meets the keys of all processes.
        """
        c = self.config
        # One pass of the encoder over both, as mean and standard deviation are those of both.
        q, k = self(torch.cat(self.halves(x))).chunk(2)
        quantized, _ = straight_through(k, self.centroids, self.sharpness)
        own = self.ids[index]
        everyone = torch.cat(distributed.all_gather(own))
        target, masked = known_answers(own, everyone, distributed.rank() * len(own))
        scale = c.scale or 1.0
        terms = {}
        if c.dense:
            terms["dense"] = c.dense * matching_loss(q, distributed.all_gather_with_grad(k), target, masked, scale)
        terms["quantized"] = matching_loss(q, distributed.all_gather_with_grad(quantized), target, masked, scale)
        if c.rebuild:
            terms["rebuild"] = c.rebuild * (k - quantized).square().sum(1).mean()
        return terms

    # ---------------------------------------------------------------------------------------------------------- stages
    def stages(self) -> list[Stage]:
        c, task = self.config, self.task
        steps = batch_count(len(task.rows), self.batch)
        epochs = task.epochs
        if epochs is None:
            epochs = c.training.epochs
            if c.recipe != "reference" and epochs:
                epochs = max(epochs, -(-MIN_STEPS // steps))
        return [
            Stage(
                name="pairs",
                begin=self.begin,
                epochs=epochs,
                steps_per_epoch=steps,
                batches=lambda generator: task.rows.batches(self.batch, generator),
                optimizer_steps=[OptimizerStep(self.loss, self.make_optimizer)],
                after_epoch=self.after_epoch,
                validate=None if task.validation is None else self.validate,
            )
        ]

    def make_optimizer(self, steps: int) -> tuple[Any, Any]:
        c = self.config
        others = [p for p in self.parameters() if p.requires_grad and p is not self.centroids]
        groups = [
            {"params": [self.centroids], "lr": c.training.lr},
            *([{"params": others, "lr": c.training.map_lr}] if others else []),
        ]
        self.optimizer = torch.optim.Adam(groups, c.training.lr, fused=True)
        reference = c.recipe == "reference"
        return self.optimizer, None if reference else torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)

    @torch.no_grad()
    def begin(self) -> None:
        """Start map and codebooks."""
        c, task = self.config, self.task
        generator = torch.Generator().manual_seed(task.seed)
        pairs, _ = task.rows.sample(START_ROWS * task.K, task.seed)
        queries, keys = (half.contiguous() for half in self.halves(torch.from_numpy(pairs)))
        self.sample = keys
        if c.start == "uniform":
            M, K, dsub = self.centroids.shape
            self.centroids.copy_(2 * torch.rand(M, K, dsub, generator=generator) - 1)
            if self.mapped:
                bound = self.encoder.width**-0.5
                for p in (self.map, self.shift):
                    p.copy_(bound * (2 * torch.rand(p.shape, generator=generator) - 1))
            return
        task.progress("k-means", 0, 1, "")
        if self.mapped:
            self.start_map(queries, keys, generator)
        else:
            energy = float(keys.double().square().sum(1).mean())
            self.gain.fill_(1 / math.sqrt(energy) if energy > 0 else 1.0)
        if task.codebook_rows is not None:
            keys = torch.from_numpy(task.codebook_rows.sample(START_ROWS * task.K, task.seed)[0])
        self.start_codebooks(self.encoded(keys).cpu(), generator)

    def start_map(self, queries: Tensor, keys: Tensor, generator: torch.Generator) -> None:
        """The d largest principal axes of the keys, their variances evened out, turned at random.

        Turned, because product codebooks cut z into pieces that code alike and should carry alike.
        """
        training, width, d = self.training, self.encoder.width, self.d
        self.eval()
        total, moments, energy = (
            torch.zeros(width, dtype=torch.float64),
            torch.zeros(width, width, dtype=torch.float64),
            0.0,
        )
        for x in torch.cat([queries, keys]).split(4096):
            total += self.encoder(x.to(self.task.device))[0].double().sum(0).cpu()
        mean = total / (2 * len(keys))
        for x in keys.split(4096):
            g = self.encoder(x.to(self.task.device))[0].double().cpu() - mean
            moments += g.T @ g
            energy += float(g.square().sum())
        self.train(training)
        self.mean.copy_(mean)
        gain = math.sqrt(len(keys) / energy) if energy > 0 else 1.0
        self.gain.fill_(gain)
        variance, axes = torch.linalg.eigh(moments * (gain**2 / len(keys)))  # ascending
        r = min(d, width)
        variance, axes = variance[-r:].clamp_min(1e-6 * float(variance[-1].clamp_min(1e-30))), axes[:, -r:]
        turn = torch.linalg.qr(torch.randn(d, r, generator=generator, dtype=torch.float64))[0]
        start = turn * variance ** (-self.config.whitening / 2) @ axes.T  # d w
        kept = float((variance ** (1 - self.config.whitening)).sum())  # mean squared length of z
        self.map.copy_(start / math.sqrt(kept) if kept > 0 else start)
        self.shift.zero_()

    def start_codebooks(self, z: Tensor, generator: torch.Generator) -> None:
        """k-means of z (s, d), and what it leaves."""
        M, K, _ = self.centroids.shape
        parts = z.unflatten(1, (M, -1)).transpose(0, 1).contiguous()  # m s e
        w = shared_lloyd(parts, K, generator)
        self.centroids.copy_(w)
        decoded = decode(self.centroids, nearest(z.to(self.centroids.device), self.centroids))
        error = float((decoded.cpu() - z).double().square().sum(1).mean()) / M
        self.error.fill_(error if error > 0 else 1.0)

    # ------------------------------------------------------------------------------------------------------ evaluation
    @torch.no_grad()
    def encoded(self, x: Tensor) -> Tensor:
        """x (n, d_in) -> z (n, d) on the device, without the noise of training."""
        training = self.training
        self.eval()
        z = torch.cat([self(part.to(self.task.device)) for part in x.split(4096)])
        self.train(training)
        return z

    @torch.no_grad()
    def after_epoch(self, epoch: int) -> dict[str, Any]:
        z = self.encoded(self.sample)
        codes = nearest(z, self.centroids)
        generator = torch.Generator().manual_seed((self.task.seed << 20) + epoch)
        return reset_dead_codewords(
            self.centroids, codes, z, generator, optimizer=self.optimizer, only_count=not self.config.revive
        )

    @torch.no_grad()
    def validate(self) -> float:
        """MCL of the validation pairs' quantized keys, each query among all of them."""
        part = self.task.validation
        assert isinstance(part, Subset) and part.ids is not None
        pairs, rows = part.rows.sample(VALIDATION_ROWS, self.task.seed)
        queries, keys = self.halves(torch.from_numpy(pairs))
        ids = torch.from_numpy(part.ids[rows]).to(self.task.device)
        q, k = self.encoded(queries), self.encoded(keys)
        quantized = decode(self.centroids, nearest(k, self.centroids))
        total, step = 0.0, 1024
        for i in range(0, len(q), step):
            target, masked = known_answers(ids[i : i + step], ids, i)
            block_loss = matching_loss(q[i : i + step], quantized, target, masked, self.config.scale or 1.0)
            total += float(block_loss) * len(target)
        return total / len(q)

    # ---------------------------------------------------------------------------------------------------------- result
    def layers(self) -> Layers:
        layers = list(self.encoder.layers())
        if self.mapped:
            A = (self.map.detach().double() * self.gain.double()).cpu()
            b = self.shift.detach().double().cpu() - A @ self.mean.double().cpu()
            layers.append(("linear", {"A": A.float().numpy(), "b": b.float().numpy()}))
        return layers

    def codebooks(self) -> Codebooks:
        w = self.centroids.detach().double().cpu()
        if not self.mapped:  # rows are coded as they come, whatever scale they were trained at
            w = w / float(self.gain)
        return Codebooks("product", w.float().numpy())

    def summary(self) -> dict[str, Any]:
        return {"distinct_keys": len(torch.unique(self.ids))}
