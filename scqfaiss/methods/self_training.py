"""Self-training: the features learn from rows without labels, too, what they are sure of themselves.

Lee, "Pseudo-Label", ICML workshop on representation learning, 2013; in rounds that start anew and train with dropout, as Xie,
Luong, Hovy, Le, "Self-training with Noisy Student improves ImageNet classification", CVPR 2020. Where classes have few labels,
the first round may learn from labels that rows hand on to their neighbours instead. What helps is tried first, on training rows
that are held out.

b row   c class (C)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from ..arrays import Ints, Labels
from ..contract import Stage, Task, drawn_rows, seed_of
from ..errors import ConfigError, warn
from . import neighbour_labels
from .calibration import fit_kappa, held_out
from .cfa import Features
from .folds import shuffled

Batches = Callable[[Generator], Iterator[tuple[Any, ...]]]

# Measured on training rows, a fifth of them held out. CLINC150, mAP of the held-out rows in three splits: 0.932, after one round
# 0.943; in two of them 0.9409, 0.9424 and 0.9426 after one, two and three. CIFAR-10, 400 labels a class: 0.640, 0.645, 0.643.
POSTERIOR, NEIGHBOURS = "posterior", "neighbours"  # who teaches a round
Plan = tuple[str, ...]
PLANS: tuple[Plan, ...] = ((), (POSTERIOR,), (POSTERIOR, POSTERIOR))
# For at most FEW labels a class, and for labels too few to try a plan with, which follow the last of these plans. mAP of other
# training rows without self-training, after two rounds of posteriors, and after neighbours and a posterior: CLINC150, 1 label
# a class, 0.578, -, 0.723; 3 labels 0.799, 0.864, 0.865; 5 labels 0.859, 0.893, 0.891; CIFAR-10, to which its database lent
# 54,000 unlabelled rows, 5 labels 0.274, 0.280, 0.312; 10 labels 0.315, 0.327, 0.334; 20 labels 0.396, 0.417, 0.426 (of 4,000
# unlabelled rows 0.393, 0.403, 0.369).
WITH_NEIGHBOURS: tuple[Plan, ...] = (*PLANS, (NEIGHBOURS,), (NEIGHBOURS, POSTERIOR))
FEW = 20
ROUNDS = 2  # of the longest plan
MIN_HELD_OUT = 30  # rows; fewer choose by chance
MOST_FITTED = 4096  # held-out rows that a temperature is fitted on
SURE = 0.7  # least ||p|| of a row that joins; of 0.5, 0.7 and 0.9 mAP is 0.9409, 0.9414 and 0.9395
HELD_OUT = 0.2  # share of the training rows that choose the round
UNEQUAL = 3  # times the rows of the rarest class that the most frequent one has


def pseudo_labels(p: Tensor, multilabel: bool, sigmoid: bool) -> tuple[Tensor, Tensor]:
    """p (b, C) -> the class of each row, (b,) int64, or its classes (b, C) uint8; and whether p is sure of it, (b,).

    Sure is ||p|| > 0.7: one class holds most of p, or two hold half of it each. Many labels: classes of more than half the
    largest p. Classes judged one by one (sigmoid): those of p > 0.5, sure where every p is at least 0.2 from there.
    """
    if sigmoid:
        y = p > 0.5
        return y.byte(), y.any(1) & ((p - 0.5).abs() >= SURE - 0.5).all(1)
    sure = p.norm(dim=1) > SURE
    return ((p > p.amax(1, keepdim=True) / 2).byte() if multilabel else p.argmax(1)), sure


def kept_plan(losses: Sequence[NDArray[np.float64]]) -> int:
    """losses: of each plan, of the same held-out rows (h,) -> number of the plan of the smallest mean, the first of equals.

    No plan has to be better than none by more than chance: in 9 trainings on parts of CIFAR-10's training rows, 20 to 400 labels
    a class, that of the smallest mean came to a mAP 0.0004 to 0.020 above that of none, and in 3 lay within a standard error.
    """
    return int(np.argmin([loss.mean() for loss in losses]))


def held_as_rare(labels: Labels, seed: int) -> Ints:
    """Rows held out where classes are unequal: of each class those beyond as many as another class has, drawn. -> sorted.

    What rare classes gain cannot be tried on them: one row leaves nothing to hold out. So frequent ones are made as rare.
    """
    rng = np.random.default_rng(seed)
    order, place, counts = shuffled(labels.y, labels.C, rng)
    kept = counts.copy()
    kept[counts > 0] = rng.permutation(counts[counts > 0])
    return np.sort(order[place >= np.repeat(kept, counts)])


@dataclass(frozen=True)
class Heads:
    """Encoder and head at one time: all that training and calibration change."""

    state: dict[str, Tensor]
    kappa: float
    calibration: dict[str, float]

    @classmethod
    def of(cls, features: Features) -> Heads:
        state = {name: t.detach().clone() for name, t in features.state_dict().items()}
        return cls(state, features.kappa, features.calibration)

    def restore(self, features: Features) -> None:
        features.load_state_dict(self.state)
        features.kappa, features.calibration = self.kappa, self.calibration


class SelfTraining:
    """The stages of the features, with rounds of self-training where the task has rows without labels.

    A plan says who teaches each round; the first has no rounds. Plans are tried on part of the training rows, and the
    cross-entropy of the others chooses the one that follows on all of them. In every round, heads as they were before training
    learn from batches of training rows joined by as many unlabelled rows, with the classes that the teacher is sure of: the
    posterior of the round before, or labelled neighbours.
    """

    def __init__(self, features: Features, task: Task) -> None:
        self.features, self.task, self.on = features, task, task.unlabelled is not None
        self.plan: Plan = ()
        self.losses, self.joined = list[NDArray[np.float64]](), list[int]()
        self.sure: Ints = np.zeros(0, np.int64)  # the unlabelled rows that have joined
        self.held: Ints = np.zeros(0, np.int64)
        self.tried: dict[Plan, Heads] = {}
        self.plans: tuple[Plan, ...] = ()
        if not self.on:
            return
        if features.kind != "calibrated":
            raise ConfigError(
                f"unlabelled rows teach a posterior, which cfa={features.kind} has not; use cfa=calibrated"
            )
        self.untrained = Heads.of(features)
        present = features.labels.counts()
        self.unequal = not features.labels.multilabel and present.max() > UNEQUAL * present[present > 0].min()
        hold_out = held_as_rare if self.unequal else partial(held_out, share=HELD_OUT)
        self.held = hold_out(features.labels, seed=seed_of(task.seed, 1))
        few = not features.labels.multilabel and len(features.labels) <= FEW * (present > 0).sum()
        few = (
            few and not features.encoder.modality.needs_encoder
        )  # neighbours of rows, not of what a network makes of them
        self.plans = WITH_NEIGHBOURS if few else PLANS
        if len(self.held) >= MIN_HELD_OUT:
            return
        if few:
            self.plans = WITH_NEIGHBOURS[-1:]  # untried
            return
        self.on = False
        warn(
            f"{len(self.held)} held-out rows are too few to choose by (need {MIN_HELD_OUT}): unlabelled rows are not used"
        )

    def follow(self, plan: Plan) -> None:
        """Take this plan, and try none."""
        self.on, self.plans = bool(plan), (plan,)

    def stages(self) -> list[Stage]:
        stage = self.features.stage()
        if not self.on or not stage.epochs:
            return [stage]
        tried = []
        if len(self.plans) > 1:
            trial = self.features.stage(self.held)
            tried = [self._trial(number, trial) for number in range(len(self.plans))]
        else:
            self.plan = self.plans[0]
        return [stage, *tried, *(self._round(number, stage) for number in range(1, ROUNDS + 1))]

    def _trial(self, number: int, stage: Stage) -> Stage:
        """Plan `number` without the held-out rows, whose losses it ends with; after the last one, the choice."""
        plan = self.plans[number]

        def begin() -> None:
            if number == 0:
                self.first, self.losses, self.joined = Heads.of(self.features), [], []
            if plan:
                self.tried[plan[:-1]].restore(self.features)
                self.teach(plan[-1], self.held)
            self.untrained.restore(self.features)

        def end() -> None:
            self.finish()
            self.tried[plan] = Heads.of(self.features)
            self.losses.append(self.held_out_losses())
            if number == len(self.plans) - 1:
                self.plan = self.plans[kept_plan(self.losses)]
                self.first.restore(self.features)

        by_neighbours = ", neighbours" * (NEIGHBOURS in plan)
        name = f"trial{by_neighbours}, round {len(plan)}" if plan else "trial"
        batches = self.mixed(stage, len(self.task.rows) - len(self.held)) if plan else stage.batches
        return replace(stage, name=name, begin=begin, batches=batches, end=end)

    def _round(self, number: int, stage: Stage) -> Stage:
        """Round `number` on all training rows, if the plan that is kept has it."""

        def begin() -> None:
            if number <= len(self.plan):
                self.teach(self.plan[number - 1])
                self.joined.append(len(self.sure))
                self.untrained.restore(self.features)

        def end() -> None:
            if number <= len(self.plan):
                self.finish()

        return replace(
            stage,
            name=f"features, round {number}",
            begin=begin,
            skipped=lambda: number > len(self.plan),
            batches=self.mixed(stage, len(self.task.rows)),
            end=end,
        )

    @torch.no_grad()
    def teach(self, teacher: str = POSTERIOR, held: Ints | None = None) -> None:
        """Give the unlabelled rows classes, numbered after the training rows. held: training rows whose labels are not read."""
        f = self.features
        labels, sure = self._of_posterior() if teacher == POSTERIOR else self._of_neighbours(held)
        self.sure = sure.nonzero()[:, 0].numpy()
        f.expect(self.shares(labels[self.sure]))
        f.y = torch.cat([f.y, labels])

    def _of_posterior(self) -> tuple[Tensor, Tensor]:
        """(labels, sure) of the unlabelled rows by the features as they are."""
        f, rows = self.features, self.task.unlabelled
        assert rows is not None
        f.eval()
        labels, sure, found = [], [], 0
        for _, block in rows.blocks():
            for x in torch.from_numpy(block).to(f.y.device).split(4096):
                p = f.posterior(x).masked_fill(~f.trained.to(x.device), 0)
                y, is_sure = pseudo_labels(p, f.labels.multilabel, f.sigmoid)
                labels.append(y)
                sure.append(is_sure.cpu())
            found += len(block)
            self.task.progress("pseudo-labels", found, len(rows), "")
        return torch.cat(labels), torch.cat(sure)

    def _of_neighbours(self, held: Ints | None) -> tuple[Tensor, Tensor]:
        """(labels (u,), sure (u,)) of the unlabelled rows by labelled neighbours; of many rows, drawn ones alone are sure."""
        task, f = self.task, self.features
        assert task.unlabelled is not None
        own, numbers = task.rows.sample(neighbour_labels.ROWS // 2, task.seed)
        kept = np.ones(len(numbers), bool) if held is None else ~np.isin(numbers, held)
        more, drawn = task.unlabelled.sample(neighbour_labels.ROWS - int(kept.sum()), task.seed)
        y = torch.from_numpy(f.labels.y[numbers[kept]])
        shares = neighbour_labels.handed_on(torch.from_numpy(own[kept]), y, torch.from_numpy(more), f.labels.C)
        labels = torch.zeros(len(task.unlabelled), dtype=torch.int64)
        sure = torch.zeros(len(task.unlabelled), dtype=torch.bool)
        labels[drawn], sure[drawn] = shares.argmax(1), neighbour_labels.sure_rows(shares)
        self.task.progress("pseudo-labels", len(labels), len(labels), "")
        return labels.to(f.y), sure

    def shares(self, sure: Tensor) -> Tensor:
        """Labels of the unlabelled rows that are sure -> shares of the classes in batches, half of which are such rows, (C,)."""
        labels = self.features.labels
        own = torch.from_numpy(labels.counts()).double()
        if not len(sure):
            return own
        joined = (
            sure.sum(0, dtype=torch.int64) if labels.multilabel else torch.bincount(sure, minlength=labels.C)
        ).cpu()
        return own / own.sum() + joined.double() / joined.sum()

    def finish(self) -> None:
        """Calibrate the heads, and forget the pseudo-labels."""
        self.features.expect(torch.from_numpy(self.features.labels.counts()))
        self.features.calibrate()
        self.features.y = self.features.y[: len(self.task.rows)]

    def mixed(self, stage: Stage, n: int) -> Batches:
        """Batches of a stage on n training rows, each joined by as many unlabelled rows, or by all that are sure."""
        assert stage.batches is not None
        of_stage, size = stage.batches, -(-n // stage.steps_per_epoch)

        def batches(generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
            seed = int(torch.randint(1 << 62, (), generator=generator))
            joining = self.joining(size, Generator().manual_seed(seed))
            for x, index in of_stage(generator):
                more, numbers = next(joining, (x[:0], index[:0]))
                yield torch.cat([x, more]), torch.cat([index, len(self.task.rows) + numbers])

        return batches

    def joining(self, size: int, generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled batches of the unlabelled rows that are sure, pass after pass; none if none is."""
        assert self.task.unlabelled is not None
        while len(self.sure):
            yield from self.task.unlabelled.batches(size, generator, self.sure)

    @torch.no_grad()
    def held_out_losses(self) -> NDArray[np.float64]:
        """Cross-entropy of each held-out row, (h,); where classes are unequal, of equally frequent ones, the mean of each.

        At the temperature that suits these rows best. Heads that learned their own guesses are surer than they should be, which
        costs their ranking nothing: of CIFAR-10, 100 labels a class, the cross-entropy rises from 1.23 to 1.36 at the temperature
        of training, and falls from 1.03 to 1.01 at the best one, while mAP rises from 0.516 to 0.529.
        """
        f = self.features
        f.eval()
        if self.unequal:
            f.expect(torch.ones(f.labels.C))
        trained, losses, rows = f.kappa, [], []
        if not f.sigmoid:
            f.kappa = self._suitable_kappa()
        for x, index in self.task.rows.batches(4096, Generator().manual_seed(0), self.held):
            losses.append(f.cross_entropy(x, index).double().cpu())
            rows.append(index.cpu())
        f.kappa, found = trained, torch.cat(losses).numpy()
        if not self.unequal:
            return found
        f.expect(torch.from_numpy(f.labels.counts()))
        y = f.labels.y[torch.cat(rows).numpy()]
        counts = np.bincount(y, minlength=f.labels.C)
        return (np.bincount(y, found, f.labels.C) / np.maximum(counts, 1))[counts > 0]

    def _suitable_kappa(self) -> float:
        """The inverse temperature of the least cross-entropy of the held-out rows, or of MOST_FITTED of them; where classes are
        unequal, all weigh the same.
        """
        f, logits, targets = self.features, [], []
        some = self.held[drawn_rows(len(self.held), MOST_FITTED, self.task.seed)]
        for x, index in self.task.rows.batches(MOST_FITTED, Generator().manual_seed(0), some):
            logits.append(f.logits(x).double() / f.kappa)
            targets.append(f.shares(index).double())
        shares = torch.cat(targets)
        if self.unequal:
            shares = shares / shares.sum(0).clamp_min(1)
        return fit_kappa(torch.cat(logits, 1), shares, f.kappa, f.prior)[0]

    def summary(self) -> dict[str, Any]:
        """What was tried and kept, for the model's config; nothing without unlabelled rows."""
        if self.task.unlabelled is None:
            return {}
        return {
            "self_training": {
                "unlabelled": len(self.task.unlabelled),
                "held_out": len(self.held),
                "losses": [float(loss.mean()) for loss in self.losses],
                "plans": [list(plan) for plan in self.plans],
                "kept": list(self.plan),
                "joined": self.joined,
            }
        }
