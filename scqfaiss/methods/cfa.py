"""CFA, the second step of SCQ: features pulled to their class's center, calibrated by default.

Song, Zhang, Zhu, Zhao, Wang, Shen. IEEE Trans. Image Processing 32:6485-6499, 2023; the calibration is ours: with p the
posterior over classes and z = sum_k p_k c_k on simplex centers, <z_q, z_x> rises with the probability that the two items
share a label, and ranking by that probability is the best ranking there is (probability ranking principle).

b row   c class (C)   d dimension of z   w width of the encoder's output g
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arrays import Ints, Labels
from ..contract import Layers, Stage, Task, setting
from ..errors import ConfigError, DataError, warn
from . import centers as sca

KAPPA_FLOOR = 5.0
MIN_HELD_OUT = 50  # rows; a temperature fitted on fewer follows chance


@dataclass(frozen=True)
class Config:
    """Settings of centers and features; methods with this head inherit them."""

    similarity: str = "auto"  # identity, cooccurrence, means or a .npy file (C, C); auto: by one label a row or many
    class_vectors: str = ""  # a .npy file (C, e) of class embeddings, instead of a similarity
    target: str = setting("plain", choices=("plain", "simplex"))  # cosines asked of centers: 2S - 1, S - (1-S)/(C-1)
    d: int = setting(0, low=0, high=1 << 16)  # dimension of z; 0: the smallest that M divides and the classes fit into
    cfa: str = setting("auto", choices=("auto", "calibrated", "cosine", "released", "none"))
    multi: str = setting("softmax", choices=("softmax", "sigmoid"))  # many labels a row: what the posterior models
    unlabeled: str = setting("error", choices=("error", "drop"))  # training rows without any label
    kappa: float = setting(0.0, low=0)  # inverse temperature of the classifier; 0: from the number of classes
    holdout: float = setting(0.1, low=0, high=0.5)  # share of rows the temperature is fitted on; 0: kappa as trained
    cfa_epochs: int = setting(20, low=0)
    cfa_batch: int = setting(128, low=1)
    cfa_lr: float = setting(2e-3, low=0)
    cfa_decay: float = setting(0.3, low=0)
    warmup: float = setting(0.1, low=0.01, high=0.9)  # share of the steps in which the learning rate rises


def default_kappa(C: int) -> float:
    """Inverse temperature that lets p reach 0.98 for the right class: ((C-1)/C) ln((C-1) 0.98 / 0.02), at least 5."""
    return max(KAPPA_FLOOR, (C - 1) / C * math.log(max(C - 1, 1) * 49))


def kind_of_cfa(config: Config, encoder: str) -> str:
    """'auto' resolved: rows that are an embedding already get no head."""
    return config.cfa if config.cfa != "auto" else "none" if encoder == "identity" else "calibrated"


def smallest_d(config: Config, d_in: int, C: int, M: int, encoder: str) -> int:
    """The dimension of z: as set, as the rows have it, or the smallest multiple of M that the classes fit into."""
    kind = kind_of_cfa(config, encoder)
    if kind == "none":
        if config.d not in (0, d_in):
            raise ConfigError(f"d is {config.d}, but without a head (cfa=none) z are the rows themselves, d={d_in}")
        return d_in
    if config.d:
        return config.d
    least = 360 if kind == "released" else C if config.multi == "sigmoid" else C - 1
    return max(M, -(-least // M) * M)


def check(config: Config, d_in: int, C: int, M: int, encoder: str) -> None:
    """Raise ConfigError for a head that cannot be built; reads no rows."""
    kind = kind_of_cfa(config, encoder)
    if encoder == "identity" and kind != "none":
        raise ConfigError(f"cfa={kind} needs an encoder that trains; choose --encoder linear or mlp, or cfa=none")
    d = smallest_d(config, d_in, C, M, encoder)
    if config.multi == "sigmoid" and kind == "calibrated" and d < C:
        raise ConfigError(f"multi=sigmoid needs d of at least C={C}, got d={d}")


def labelled_rows(labels: Labels, method: str, unlabeled: str) -> Ints | None:
    """Rows to train on (None: all), after the checks on labels that every supervised method shares.

    Raises DataError for one class alone and for rows without any label unless unlabeled='drop'.
    """
    rows = None
    if labels.many:
        empty = np.flatnonzero(labels.y.sum(1) == 0)
        if len(empty):
            if unlabeled != "drop":
                raise DataError(
                    f"labels: row {empty[0]:,} has no label ({len(empty):,} of {len(labels):,} rows); "
                    "--set unlabeled=drop trains without them"
                )
            warn(f"left out {len(empty):,} of {len(labels):,} rows that have no label")
            rows = np.flatnonzero(labels.y.sum(1) > 0)
    present = np.flatnonzero(labels.counts())
    if len(present) < 2:
        found = f" ('{labels.class_name(int(present[0]))}')" if len(present) else ""
        raise DataError(f"{method} needs at least 2 classes, found {len(present)}{found}")
    if len(present) < labels.C:
        missing = [labels.class_name(int(c)) for c in np.flatnonzero(labels.counts() == 0)[:5]]
        warn(f"{labels.C - len(present)} of {labels.C} classes have no rows ({', '.join(missing)})")
    return rows


def held_out(labels: Labels, share: float, seed: int) -> Ints:
    """A stratified share of the rows; classes with one row stay in training. -> row numbers, sorted."""
    rng = np.random.default_rng(seed)
    one = labels.y if not labels.many else labels.y.argmax(1)  # stratified by a row's first label
    order = rng.permutation(len(labels))
    order = order[np.argsort(one[order], kind="stable")]
    counts = np.bincount(one, minlength=labels.C)
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    take = np.where(counts > 1, np.floor(counts * share + rng.random(labels.C)), 0)
    take = np.minimum(take, counts - 1)
    return np.sort(order[place < np.repeat(take, counts)])


def fit_kappa(cosines: Tensor, targets: Tensor, kappa: float) -> tuple[float, float, float]:
    """Inverse temperature that minimises the NLL of softmax(kappa cos), by golden section on log kappa.

    cosines, targets (h, C), targets summing to 1. -> (kappa, NLL before, NLL after); never worse than it was.
    Source: Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks", ICML 2017.
    """

    def nll(log_kappa: float) -> float:
        return float(-(targets * (math.exp(log_kappa) * cosines).log_softmax(1)).sum(1).mean())

    low, high = math.log(kappa) - 3, math.log(kappa) + 3
    golden = (math.sqrt(5) - 1) / 2
    a, b = high - golden * (high - low), low + golden * (high - low)
    fa, fb = nll(a), nll(b)
    while high - low > 1e-4:  # NLL is convex in kappa, hence has one minimum in log kappa
        if fa < fb:
            high, b, fb = b, a, fa
            a = high - golden * (high - low)
            fa = nll(a)
        else:
            low, a, fa = a, b, fb
            b = low + golden * (high - low)
            fb = nll(b)
    before, best = nll(math.log(kappa)), (low + high) / 2
    return (math.exp(best), before, nll(best)) if nll(best) < before else (kappa, before, before)


class Features(nn.Module):
    """Encoder, head and centers: x -> z (b, d), and the posterior p (b, C) where there is one."""

    centers: Tensor

    def __init__(self, config: Config, task: Task, d: int, labels: Labels) -> None:
        super().__init__()
        assert task.encoder is not None
        self.config, self.task, self.labels, self.d = config, task, labels, d
        self.encoder: Any = task.encoder
        self.kind = kind_of_cfa(config, task.encoder_name)
        self.sigmoid = config.multi == "sigmoid" and labels.many and self.kind == "calibrated"
        C = labels.C
        means = None
        if config.similarity == "means":
            means = sca.class_means(task.rows, labels)
        if self.sigmoid:  # orthonormal directions, so that <z_q, z_x> counts shared labels
            basis, _ = np.linalg.qr(np.random.default_rng(task.seed).standard_normal((d, C)))
            self.sca = sca.Centers(basis.T.astype(np.float32), "orthonormal", 0.0, 0.0)
        else:
            self.sca = sca.class_centers(
                config.similarity, config.class_vectors, config.target, labels, d, task.seed, means
            )
        self.register_buffer("centers", torch.from_numpy(np.ascontiguousarray(self.sca.centers)))
        self.kappa = config.kappa or default_kappa(C)
        self.bias = nn.Parameter(torch.zeros(C)) if self.sigmoid else None
        if self.kind != "none":
            self.project = nn.Linear(self.encoder.width, d)
        if self.kind == "released":
            self.classify = nn.Linear(self.encoder.width, C)
        # (n, C) targets would take gigabytes for many rows and classes: only the batch's rows are expanded.
        self.y = torch.from_numpy(labels.y).to(task.device)
        self.fit_rows: Ints | None = None
        self.calibration: dict[str, float] = {}

    def hot(self, index: Tensor) -> Tensor:
        """Multi-hot labels (b, C) float32 of the rows `index`."""
        y = self.y[index]
        return y.float() if self.labels.many else F.one_hot(y, self.labels.C).float()

    def cosines(self, x: Tensor) -> Tensor:
        """cos(f, c_k), (b, C)."""
        return F.normalize(self.project(self.encoder(x)), dim=1) @ F.normalize(self.centers, dim=1).T

    def posterior(self, x: Tensor) -> Tensor:
        """p (b, C): sums to 1 a row (softmax), or one probability a class (sigmoid)."""
        logits = self.kappa * self.cosines(x)
        return (logits + self.bias).sigmoid() if self.bias is not None else logits.softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        """z (b, d), the feature that is coded and searched."""
        if self.kind == "none":
            return x
        if self.kind == "calibrated":
            return self.posterior(x) @ self.centers
        f = self.project(self.encoder(x))
        return torch.tanh(f) if self.kind == "released" else F.normalize(f, dim=1)

    def targets(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """t = sum of the row's centers, normalised (b, d), and which rows have one: a sum below 1e-6 has no direction."""
        total = self.hot(index) @ self.centers
        length = total.norm(dim=1, keepdim=True)
        return total / length.clamp_min(1e-6), length.squeeze(1) >= 1e-6

    def loss(self, x: Tensor, index: Tensor) -> dict[str, Tensor]:
        """L_CFA of the rows `index` as named, weighted terms."""
        if self.kind == "released":
            g = self.encoder(x)
            z, logits = torch.tanh(self.project(g)), self.classify(g)
            if self.labels.many:
                return released_loss(z, logits, *self.targets(index), self.hot(index))
            return released_loss_single(z, logits, self.centers, self.y[index])
        cos = self.cosines(x)
        if self.bias is not None:
            logits = self.kappa * cos + self.bias
            return {"bce": F.binary_cross_entropy_with_logits(logits, self.hot(index)) * self.labels.C}
        if not self.labels.many:
            return {"ce": F.cross_entropy(self.kappa * cos, self.y[index])}
        t = self.hot(index)
        return {"ce": F.cross_entropy(self.kappa * cos, t / t.sum(1, keepdim=True))}

    def stage(self) -> Stage:
        """The training of encoder and head; no epochs where there is nothing to train."""
        c, task = self.config, self.task
        epochs = 0 if self.kind == "none" else task.epochs if task.epochs is not None else c.cfa_epochs
        rows = np.arange(len(task.rows))
        if self.kind == "calibrated" and not self.sigmoid and c.holdout and epochs:
            held = held_out(self.labels, c.holdout, task.seed)
            if len(held) < MIN_HELD_OUT:
                warn(f"{len(held)} held-out rows are too few to fit a temperature on (need {MIN_HELD_OUT}): kept as trained")
            else:
                rows, self.held = np.setdiff1d(rows, held, assume_unique=True), held
        batch = task.batch_size or (64 if self.kind == "released" else c.cfa_batch)
        self.fit_rows = rows

        def make_optimizer(steps: int) -> tuple[Any, Any]:
            if self.kind == "released":
                return released_optimizer(self, steps // max(epochs, 1))
            optimizer = torch.optim.AdamW(
                [p for p in self.parameters() if p.requires_grad], c.cfa_lr, weight_decay=c.cfa_decay
            )
            return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, c.cfa_lr, steps, pct_start=c.warmup)

        return Stage(
            name="features",
            epochs=epochs,
            steps_per_epoch=-(-len(rows) // batch),
            batches=lambda generator: task.rows.batches(batch, generator, rows),
            loss=self.loss,
            make_optimizer=make_optimizer,
            end=self.calibrate,
        )

    @torch.no_grad()
    def calibrate(self) -> None:
        """Fit one temperature on the held-out rows."""
        held = getattr(self, "held", None)
        if held is None:
            return
        self.eval()
        cosines, targets = [], []
        for x, index in self.task.rows.batches(4096, torch.Generator().manual_seed(0), held):
            cosines.append(self.cosines(x).double())
            t = self.hot(index).double()
            targets.append(t / t.sum(1, keepdim=True))
        self.kappa, before, after = fit_kappa(torch.cat(cosines), torch.cat(targets), self.kappa)
        self.calibration = {"held_out": len(held), "nll_before": before, "nll_after": after}

    @torch.no_grad()
    def embed(self, rows: Any) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """(first row, z (b, d), predicted class (b,) or None) over rows, in evaluation mode."""
        self.eval()
        for i, x in rows.blocks():
            out = []
            for part in torch.from_numpy(x).to(self.task.device).split(4096):
                z = self(part)
                out.append((z, None if self.kind == "none" else (z @ self.centers.T).argmax(1)))
            yield i, torch.cat([z for z, _ in out]), None if out[0][1] is None else torch.cat([p for _, p in out])  # type: ignore[misc]

    def layers(self, upto: str = "z") -> Layers:
        """x -> z as layers of an encoder chain; upto='posterior' stops at p."""
        layers = list(self.encoder.layers())
        if self.kind == "none":
            return layers
        layers.append(("linear", {"A": _array(self.project.weight), "b": _array(self.project.bias)}))
        if self.kind == "released":
            return [*layers, ("tanh", {})]
        layers.append(("normalize", {}))
        if self.kind == "cosine":
            return layers
        logits = {"A": _array(self.kappa * F.normalize(self.centers, dim=1))}
        if self.bias is not None:
            logits["b"] = _array(self.bias)
        layers += [("linear", logits), ("sigmoid" if self.bias is not None else "softmax", {})]
        return layers if upto == "posterior" else [*layers, ("linear", {"A": _array(self.centers.T)})]

    def summary(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "cfa": self.kind,
            "centers": self.sca.source,
            "centers_rms_error": self.sca.rms_error,
            "centers_max_error": self.sca.max_error,
        }
        if self.kind == "calibrated":
            out |= {"kappa": self.kappa, **self.calibration}
        return out


def _array(t: Tensor) -> Any:
    return t.detach().cpu().contiguous().numpy().copy()


def released_loss(z: Tensor, logits: Tensor, t: Tensor, has_target: Tensor, hot: Tensor) -> dict[str, Tensor]:
    """The feature loss of the authors' code: -cos(z, t) + 0.01 ||z - 360 t|| + 0.1 CE, means over the batch.

    z, t (b, d); logits, hot (b, C). The second term is a norm, not a square. Rows without a target direction leave the
    alignment terms. CE with many labels: -log of the probability mass on the row's classes.
    """
    n = has_target.sum().clamp_min(1)
    cos = (F.cosine_similarity(z, t) * has_target).sum() / n
    pull = ((z - 360 * t).norm(dim=1) * has_target).sum() / n
    ce = -logits.log_softmax(1).masked_fill(hot == 0, -torch.inf).logsumexp(1).mean()
    return {"align": -cos, "pull": 0.01 * pull, "ce": 0.1 * ce}


def released_loss_single(z: Tensor, logits: Tensor, centers: Tensor, y: Tensor) -> dict[str, Tensor]:
    """released_loss for one label a row: the target is a center itself, of norm 1.

    <z, t> and ||z||^2 give both terms: ||z - 360 t||^2 = ||z||^2 - 720 <z, t> + 360^2.
    """
    dot, square = (z * centers.index_select(0, y)).sum(1), z.square().sum(1)
    align = (dot * square.clamp_min(1e-16).rsqrt()).mean()
    pull = (square - 720 * dot + 129600).clamp_min(1e-12).sqrt().mean()
    return {"align": -align, "pull": 0.01 * pull, "ce": 0.1 * F.cross_entropy(logits, y)}


def released_optimizer(features: Features, steps_per_epoch: int) -> tuple[Any, Any]:
    """SGD of the authors' code: Nesterov 0.9, 2e-3, new layers x 40, biases x 2, decay 1e-5 on weights, x 0.9 per 10 epochs."""
    groups = [
        {"params": [p], "lr": 2e-3 * 40 * (2 if p.ndim == 1 else 1), "weight_decay": 0.0 if p.ndim == 1 else 1e-5}
        for p in features.parameters()
        if p.requires_grad
    ]
    optimizer = torch.optim.SGD(groups, lr=2e-3, momentum=0.9, nesterov=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.9 ** (step // max(1, 10 * steps_per_epoch))
    )
