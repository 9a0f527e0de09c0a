"""A trial: a shorter training without a fifth of the labelled rows. What it makes of these tells what the scores of the whole
training mean, and what mAP to expect of it.

It is a short one (out_of_fold.SHORT): its rows are ranked by heads that are a little worse than those of the whole training. On
parts of the training rows of CLINC150 and CIFAR-10 thresholds of such heads met what was asked for as near as those of heads
that trained to the end: what the held-out rows lack is time to be learned by heart.

n labelled row   h held-out row   c class (C)   d dimension of what codes stand for
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..arrays import Floats, Ints, Labels
from ..calibration.forecast import FEW, Expected, Forecast, expected, mean_average_precision
from ..codebooks import Codebooks
from ..contract import Method, Progress, drawn_rows, seed_of
from ..methods.folds import rank_in_class
from ..methods.kmeans import shared_lloyd
from ..methods.self_training import UNEQUAL
from ..model import Model
from ..options import TrainOptions
from .calibrating import MOST_ROWS, calibration_of, lengths_of
from .content_codes import unit
from .out_of_fold import SHORT, Judge, short_options
from .planning import Plan
from .rows import SourceRows

# options, x (n, d_in), y (n,) or (n, C), share of the steps, plan of self-training -> classifier, numbers of its classes
Train = Callable[[TrainOptions, Floats, NDArray[Any], float, tuple[str, ...]], tuple[Judge, Ints]]

PART = 0.2  # of the rows of each class, at least 2 of 4, is held out
ROWS = 40_000  # labelled rows that a trial looks at
MIN_QUERIES = 50  # held-out rows with another of their class beside them; fewer tell nothing
PQ_ROWS = 4_096  # that PQ of the rows learns from, and is tried on
PQ_ITERATIONS = 10  # of its k-means


@dataclass(frozen=True)
class Trial:
    """Held-out rows x (h, d_in) with their labels, and what codes stand for by heads that did not learn from them, z (h, d).
    learned: the share of the labelled rows that these heads learned from; few: whether a class has few of them.
    """

    x: Floats
    labels: Labels
    z: Floats
    learned: float
    few: bool


def add_forecast(plan: Plan, method: Method, model: Model, train: Train, progress: Progress) -> Model:
    """The model with a forecast and, unless other rows are to calibrate it, a calibration; with neither for methods without a
    posterior, for images, whose network has seen all rows, and where labelled rows are too few.
    """
    rows, labels = method.task.rows, method.task.labels
    if labels is None or not isinstance(rows, SourceRows) or method.of_posterior(torch.ones(1, labels.C)) is None:
        return model
    x, numbers = rows.sample(ROWS, plan.options.seed)
    sample = labels.take(numbers)
    held = held_out(sample, plan.options.seed)
    if queries_among(sample, held) < MIN_QUERIES:
        model.config["training"]["forecast"] = None
        return model
    progress("trial", 0, 1, "")
    trial = tried(plan, method, x, sample, held, train)
    model.config["training"]["forecast"] = forecast(model, trial, x, sample).pack()
    if plan.sources.calibration is None:
        model = model.calibrated(calibration_of(model, trial.x, trial.z, trial.labels))
    progress("trial", 1, 1, "")
    return model


def held_out(labels: Labels, seed: int) -> NDArray[np.bool_]:
    """(n,) which rows are held out: of each class PART, at least 2, and none of classes of fewer than 4 rows. Rows of many
    labels are drawn as they come.
    """
    rng = np.random.default_rng(seed_of(seed, len(labels)))
    order = rng.permutation(len(labels))
    part = min(PART, MOST_ROWS / len(labels))
    if labels.multilabel:
        held = np.zeros(len(labels), bool)
        held[order[: round(part * len(labels))]] = True
        return held
    rank = np.empty(len(labels), np.int64)
    rank[order] = rank_in_class(labels.y[order])
    counts = np.bincount(labels.y, minlength=labels.C)
    of_class = np.where(counts < 4, 0, np.maximum(2, np.round(part * counts)))
    return np.asarray(rank < of_class[labels.y])


def queries_among(labels: Labels, held: NDArray[np.bool_]) -> int:
    """How many held-out rows have another one of their class beside them."""
    y = labels.y[held]
    if labels.multilabel:
        y = y.astype(np.float32)
        beside = (y @ y.sum(0)) - y.sum(1)
        return int((beside > 0).sum())
    counts = np.bincount(y, minlength=labels.C)
    return int((counts[y] > 1).sum())


def tried(plan: Plan, method: Method, x: Floats, labels: Labels, held: NDArray[np.bool_], train: Train) -> Trial:
    """Train on the other rows, and look at those held out."""
    kept = getattr(getattr(method, "self_training", None), "plan", ())
    judge, numbers = train(short_options(plan), x[~held], labels.y[~held], SHORT, kept)
    p = np.zeros((int(held.sum()), labels.C), np.float32)
    p[:, numbers] = judge(x[held])
    with torch.no_grad():
        z = method.of_posterior(torch.from_numpy(p))
    assert z is not None
    few = labels.counts().sum() < FEW * (labels.counts() > 0).sum()
    return Trial(x[held], labels.take(np.flatnonzero(held)), z.cpu().numpy(), float((~held).mean()), bool(few))


def forecast(model: Model, trial: Trial, x: Floats, labels: Labels) -> Forecast:
    """What to expect of every length, and of the labelled rows x (n, d_in) themselves."""
    lengths: dict[int, Expected] = {}
    for cut in lengths_of(model):
        queries, vectors = cut.of_semantic(trial.z, trial.x)
        coded = cut.codebooks.decode(cut.assign(vectors))
        ranked = mean_average_precision(queries, coded, trial.labels, cut.codebooks.metric, int(cut.config["seed"]))
        lengths[cut.codebooks.bits] = expected(ranked, trial.learned, trial.few)
    drawn = drawn_rows(len(x), MOST_ROWS, int(model.config["seed"]))
    directions = unit(x[drawn])
    rows = expected(mean_average_precision(directions, directions, labels.take(drawn), "ip"))
    pq = None
    if model.codebooks.M:
        pq = of_pq(x, labels, model.codebooks.M, model.codebooks.nbits, int(model.config["seed"]))
    counts = labels.counts()[labels.counts() > 0]
    unequal = bool(counts.max() > UNEQUAL * counts.min())
    return Forecast(lengths, rows, pq, queries_among(trial.labels, np.ones(len(trial.labels), bool)), unequal)


def of_pq(x: Floats, labels: Labels, M: int, nbits: int, seed: int) -> Expected | None:
    """PQ of centered rows of length 1, as FAISS learns it without labels: learned on one half of the rows, tried on the other.
    None where the half is smaller than a codebook.
    """
    order = np.random.default_rng(seed_of(seed, M)).permutation(len(x))
    bank, tried = order[::2][:PQ_ROWS], order[1::2][:PQ_ROWS]
    if len(bank) < 1 << nbits:
        return None
    rows = unit(x - x.mean(0, dtype=np.float64).astype(np.float32))
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % M)))
    generator = torch.Generator().manual_seed(seed)
    parts = torch.from_numpy(rows[bank]).unflatten(1, (M, -1)).transpose(0, 1).contiguous()
    codebooks = Codebooks("product", shared_lloyd(parts, 1 << nbits, generator, iterations=PQ_ITERATIONS).numpy())
    coded = codebooks.decode(codebooks.assign(rows[tried], "l2"))
    return expected(mean_average_precision(rows[tried], coded, labels.take(tried), "ip", seed))
