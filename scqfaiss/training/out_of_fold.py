"""What a classifier thinks of a label that it was not trained on: rows are dealt into folds, and each is judged by the others.

Northcutt, Jiang, Chuang, "Confident learning", JAIR 70, 2021, name wrong labels by such probabilities. Theirs are held to a
threshold for each class, the mean probability of its rows; ours to the largest of the row: 20 rows make no mean to trust.

b row   c class (C)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..arrays import Floats, Ints, Labels
from ..contract import Progress, RowStream, seed_of, settings
from ..encoders import encoder_class
from ..methods import method_class
from ..methods.cfa import DEFAULT_MEMBERS
from ..methods.folds import stratified
from ..options import TrainOptions
from .fingerprint import setting_files
from .planning import Plan

Bools = NDArray[np.bool_]
Judge = Callable[[Floats], Floats]  # x (b, d_in) -> the probability of every class that was trained, (b, C')
TrainJudge = Callable[
    [TrainOptions, Floats, NDArray[Any]], tuple[Judge, Ints]
]  # and the numbers of these classes, (C',)

FOLDS = 5
ROWS = 10_000  # that the folds are trained on, at most
# A short training: two of the members, and half of the steps, about a quarter of the time of a whole one.
SHORT_MEMBERS, SHORT = 2, 0.5
BLOCK = 4096  # rows whose probabilities are held at a time
MIN_ROWS = 5  # of a class whose labels are judged: of fewer, a fold knows too little
# A label is suspicious where its probability is below this share of the largest. On CLINC150 with 20 % wrong labels, 15 rows a
# class, 0.2, 0.1, 0.05 and 0.02 name 99.8, 99.6, 99.6 and 98.9 % of the wrong ones and 3.9, 2.7, 1.3 and 0.8 % of the right ones.
RATIO = 0.05


@dataclass(frozen=True)
class Opinion:
    """What the folds think of each row's label.

    given (n,) its probability; of many labels that of the most probable of them. top (n,) the largest probability, and seems (n,)
    the class that has it. judged (n,): whether there was anything to judge by.
    """

    given: Floats
    top: Floats
    seems: Ints
    judged: Bools

    def suspicious(self, ratio: float = RATIO) -> Bools:
        """(n,) whether the label is much less probable than another class."""
        return np.asarray(self.judged & (self.given < ratio * self.top))


def options_of_folds(options: TrainOptions, method_config: type[Any]) -> TrainOptions:
    """The options of a training, reduced to those of a classifier on rows of features, without codes."""
    files = set(setting_files(options.settings))
    encoder = options.encoder if options.encoder in ("mlp", "linear") else "auto"
    of_encoder = settings(encoder_class("mlp" if encoder == "auto" else encoder).Config)
    own = (set(settings(method_class("label").Config)) & set(settings(method_config))) - {
        "cfa",
        "d",
        "holdout",
        "unlabeled",
    }
    kept = {key: v for key, v in options.settings.items() if (key in own or key in of_encoder) and v not in files}
    base = TrainOptions(method="label", encoder=encoder, settings=kept)
    named = ("device", "precision", "accumulate", "clip_norm", "epochs", "batch_size", "seed")
    return replace(base, **{name: getattr(options, name) for name in named})


def short_options(plan: Plan) -> TrainOptions:
    """The options of a short training of a plan's features, to be made with SHORT of the steps."""
    options = options_of_folds(plan.options, plan.method.Config)
    if plan.method.members(plan.config, plan.options.encoder) < DEFAULT_MEMBERS:
        return options
    return replace(options, settings={**options.settings, "members": SHORT_MEMBERS})


def opinion(
    rows: RowStream,
    labels: Labels,
    options: TrainOptions,
    train: TrainJudge,
    progress: Progress,
    without: Bools | None = None,
    what: str = "labels",
) -> Opinion:
    """What classifiers trained on the other folds think of each row's label.

    without (n,): rows that no fold trains on. Of more than ROWS rows, the others are judged by one fold alone.
    Rows of classes of fewer than MIN_ROWS rows, and rows without any label, are not judged.
    """
    n, seed = len(labels), options.seed
    without = np.zeros(n, bool) if without is None else without
    x, pool = rows.sample(ROWS, seed)
    first = labels.y.argmax(1) if labels.multilabel else labels.y
    labelled = np.asarray(labels.y.any(1)) if labels.multilabel else np.ones(n, bool)
    fold = np.zeros(n, np.int64)
    fold[pool] = stratified(first[pool], FOLDS, seed_of(seed, FOLDS))
    out = Opinion(np.zeros(n, np.float32), np.zeros(n, np.float32), np.zeros(n, np.int64), np.zeros(n, bool))
    for k in range(FOLDS):
        progress(what, k, FOLDS, "")
        trained = (fold[pool] != k) & ~without[pool] & labelled[pool]
        y = labels.y[pool[trained]]
        if np.count_nonzero(replace(labels, y=y).counts()) < 2:
            continue
        judge, numbers = train(options, x[trained], y)
        for i, block in rows.blocks():
            here = np.flatnonzero(fold[i : i + len(block)] == k)
            for part in np.array_split(here, -(-len(here) // BLOCK)) if len(here) else ():
                _judge(out, part + i, judge(block[part]), numbers, labels)
    progress(what, FOLDS, FOLDS, "")
    counts = labels.counts()
    often = labels.y[:, counts >= MIN_ROWS].any(1) if labels.multilabel else (counts >= MIN_ROWS)[labels.y]
    return replace(out, judged=out.judged & often)


def _judge(out: Opinion, rows: Ints, p: Floats, numbers: Ints, labels: Labels) -> None:
    """Enter p (b, C') of the classes `numbers` for `rows` (b,)."""
    best = p.argmax(1)
    out.top[rows], out.seems[rows] = p[np.arange(len(p)), best], numbers[best]
    if labels.multilabel:
        carried = labels.y[rows][:, numbers] > 0
        out.given[rows], out.judged[rows] = np.where(carried, p, 0).max(1), carried.any(1)
        return
    place = np.full(labels.C, -1)
    place[numbers] = np.arange(len(numbers))
    column = place[labels.y[rows]]
    out.given[rows] = np.where(column >= 0, p[np.arange(len(p)), column], 0)
    out.judged[rows] = column >= 0


def judge_of(features: Any) -> Judge:
    """The posterior of trained features (methods.cfa.Features) as a function of NumPy rows."""

    @torch.no_grad()
    def judge(x: Floats) -> Floats:
        features.eval()
        parts = torch.from_numpy(np.ascontiguousarray(x)).split(BLOCK)
        p: Floats = torch.cat([features.posterior(part.to(features.y.device)).cpu() for part in parts]).numpy()
        return p

    return judge
