"""Training on wrong labels: suspicious rows are left out, where that ranks rows better that did not train."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints, Labels
from ..contract import Progress, RowStream, drawn_rows, seed_of
from ..data import ArraySource
from ..errors import warn
from ..methods.folds import stratified
from ..options import TrainOptions
from .gate import QUERIES, average_precision
from .neighbour_labels import disagreement, looks_right, looks_wrong
from .out_of_fold import FOLDS, MIN_ROWS, RATIO, ROWS, TrainJudge, opinion, short_options
from .planning import Plan
from .rows import SourceRows
from .suspects import opinions

Precisions = NDArray[np.float64]


# Shares of the largest probability below which a label is left out: the one that ranks held-out rows best. The more wrong labels
# and the fewer classes, the more probability each class keeps: with 40 % of them and 10 classes 0.07 of the largest. With 20 %,
# held-out rows of CLINC150, 15 rows a class, rank at 0.830 with all rows, without those below 0.02 and 0.1 at 0.916 and 0.913.
RATIOS = (0.02, 0.1)
# Share of held-out labels that look wrong to a short training. With 0, 5, 10, 20, 40 % of wrong labels: CLINC150 0.01, 0.06,
# 0.11, 0.19, 0.40; 8 rows a class 0.02, 0.07, 0.12, 0.23, 0.44; CIFAR-10 0.03, 0.06, 0.08, 0.11, 0.10.
DOUBT = 0.07
LEAST = 200  # rows of classes that can be judged; fewer are not looked at
ERRORS = 1.0  # standard errors of the difference by which mAP without suspicious rows must be better


@dataclass(frozen=True)
class Cleaning:
    """The rows of a training that `robust` leaves out, (k,) ascending, and what the model's config says of it."""

    rows: Ints
    facts: Mapping[str, Any]


def in_doubt(plan: Plan, rows: RowStream, labels: Labels, train: TrainJudge, progress: Progress) -> bool:
    """Whether so many labels look wrong that `clean` is worth its time. labels: one a row.

    A look at the nearest rows costs a moment, and is enough where classes are easy to tell; else a short training tells.
    """
    counts = labels.counts()
    if counts[counts >= MIN_ROWS].sum() < LEAST or np.count_nonzero(counts) < 2:
        return False
    if looks_right(*disagreement(rows, labels.y, plan.options.seed)):
        return False
    x, pool = rows.sample(ROWS, plan.options.seed)
    y = labels.y[pool]
    held = stratified(y, FOLDS, seed_of(plan.options.seed, FOLDS + 1)) == 0
    progress("labels", 0, 1, "")
    judge, numbers = train(short_options(plan), x[~held], y[~held])
    of_all = np.zeros((int(held.sum()), labels.C), np.float32)
    of_all[:, numbers] = judge(x[held])
    given = of_all[np.arange(len(of_all)), y[held]]
    progress("labels", 1, 1, "")
    return bool((given < RATIO * of_all.max(1)).mean() > DOUBT)


def clean(plan: Plan, rows: RowStream, labels: Labels, train: TrainJudge, progress: Progress) -> Cleaning:
    """Choose whether to leave rows with suspicious labels out, and find them. labels: one a row.

    train makes short trainings: on splits of the training rows of CLINC150 and CIFAR-10 they choose as well as whole ones.
    """
    options = short_options(plan)
    before, after = tried(rows, labels, options, train, progress)
    ratio = max(after, key=lambda ratio: after[ratio].mean(), default=0.0)
    best = after.get(ratio, before)
    facts: dict[str, Any] = {"map": [float(ap.mean()) if len(ap) else 0.0 for ap in (before, best)], "left_out": 0}
    left_out = np.zeros(0, np.int64)
    if better(before, best):
        last = opinions(rows, labels, options, train, progress)[-1]
        left_out = kept_classes(last.suspicious(ratio), labels)
        facts |= {"left_out": len(left_out), "ratio": ratio}
    return Cleaning(left_out, facts)


def tried(
    rows: RowStream, labels: Labels, options: TrainOptions, train: TrainJudge, progress: Progress
) -> tuple[Precisions, dict[float, Precisions]]:
    """Average precision (q,) of held-out rows among themselves, by classifiers of all other rows, and of those that are not
    suspicious, by RATIOS; nothing of ratios that leave out no row.

    The held-out rows have no part in what is suspicious: else their labels would choose the rows that rank them. Wrong labels
    of their own lower both alike.
    """
    x, pool = rows.sample(ROWS, options.seed)
    y = labels.y[pool]
    held = stratified(y, FOLDS, seed_of(options.seed, FOLDS + 1)) == 0
    x_rest, y_rest = x[~held], y[~held]
    rest = SourceRows(ArraySource(x_rest, y_rest), "cpu", memory=0)
    one = opinion(rest, Labels(y_rest, labels.C), options, train, progress, what="trial")
    everyone = np.arange(len(y_rest))
    queries = np.flatnonzero(held)[drawn_rows(int(held.sum()), QUERIES, options.seed)]

    def precision(kept: Ints) -> Precisions:
        judge, _ = train(options, x_rest[kept], y_rest[kept])
        p = judge(x[queries])
        return average_precision(p @ p.T, np.arange(len(queries)), y[queries])

    sure = {r: np.delete(everyone, kept_classes(one.suspicious(r), Labels(y_rest, labels.C))) for r in RATIOS}
    fewer = {ratio: kept for ratio, kept in sure.items() if len(kept) < len(everyone)}
    if not fewer or len(np.unique(y_rest)) < 2:
        return np.zeros(0), {}
    return precision(everyone), {ratio: precision(kept) for ratio, kept in fewer.items()}


def better(before: Precisions, after: Precisions) -> bool:
    """Whether the same rows rank better after than before by more than chance.

    Accuracy would not do: where hard rows are left out it rises, and mAP falls.
    """
    gain = after - before
    return len(gain) > 1 and bool(gain.mean() > ERRORS * gain.std(ddof=1) / math.sqrt(len(gain)))


def kept_classes(suspicious: Any, labels: Labels) -> Ints:
    """The suspicious rows (n,) -> their numbers, without those of classes of which no row would be left."""
    left = np.bincount(labels.y[~suspicious], minlength=labels.C)
    return np.flatnonzero(suspicious & (left[labels.y] > 0))


def say(facts: Mapping[str, Any]) -> str:
    """What was chosen, in a few words."""
    before, after = facts["map"]
    if before == after:
        return "no label is suspicious"
    ranks = f"held-out rows rank at {after:.3f} mAP without rows with suspicious labels, at {before:.3f} with them"
    if facts["left_out"]:
        return f"left out {facts['left_out']:,} rows with suspicious labels ({ranks})"
    return f"no row left out for its label ({ranks})"


def hint(rows: RowStream, labels: Labels, seed: int) -> None:
    """Warn where labels look wrong beside those of the nearest rows."""
    if labels.multilabel:
        return
    alike, other = disagreement(rows, labels.y, seed)
    if looks_wrong(alike, other):
        warn(
            f"labels may be wrong: of {alike:,} rows whose nearest rows agree on a class, {other:,} have another label; "
            "`scqfaiss check` names them, and --robust on trains without them"
        )
