"""The content part of a trained model: learned from its rows, weighted and gated by trainings without some of the classes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..arrays import Floats, Ints
from ..contract import Progress, Task, settings
from ..errors import ScqWarning, warn
from ..model import Model
from ..options import TrainOptions
from . import content_codes, gate
from .fingerprint import setting_files
from .planning import Plan

ROWS = 100_000  # that content codes learn from, at most


def add_content(
    plan: Plan, task: Task, model: Model, retrain: Callable[[TrainOptions, Floats, Ints], Model], progress: Progress
) -> Model:
    """The model with content codes of `content_bits` bits.

    They learn from the rows for codebooks where there are any, else from the training rows. retrain(options, x, y): a training of
    the same method on rows of features.
    """
    options = plan.options
    drawn = task.codebook_rows is not None
    if not drawn:
        warn(
            "content codes learn from the training rows alone, which lack the classes that they are for; give --codebook-rows"
        )
    x, rows = task.rows.sample(ROWS, options.seed)
    x = _features(plan, x)
    bank = _features(plan, task.codebook_rows.sample(ROWS, options.seed)[0]) if task.codebook_rows is not None else None
    content = content_codes.learn(
        model, x if bank is None else bank, options.content_bits, options.nbits, drawn, progress
    )
    if task.labels is None or task.labels.multilabel:  # a row of many labels is of known and unknown classes at once
        content = replace(content, weights=gate.default_weights(model, content, x))
    else:
        of_fold = _options_of_folds(plan)

        def train_fold(x: Floats, y: Ints) -> Model:
            with warnings.catch_warnings():  # the whole training said it already
                warnings.simplefilter("ignore", ScqWarning)
                return retrain(of_fold, x, np.unique(y, return_inverse=True)[1])

        content = gate.fitted(model, content, x, task.labels.y[rows], bank, train_fold, progress)
    config = model.config | {"bits": model.semantic.bits + content.bits}
    return Model(model.chain, model.semantic, config, model.backbone, content)


def _options_of_folds(plan: Plan) -> TrainOptions:
    """The options of a training on features and some of the classes, whose codes nobody needs."""
    options = plan.options
    files = set(setting_files(options.settings))
    kept = {key: value for key, value in options.settings.items() if value not in files}
    encoder = options.encoder
    if plan.network is not None:
        # A network for images stays as the whole training left it: the heads alone are trained again.
        own = settings(plan.method.Config)
        encoder, kept = TrainOptions.encoder, {key: value for key, value in kept.items() if key in own}
    return replace(
        options,
        bits=options.nbits,
        lists=TrainOptions.lists,
        content_bits=0,
        forecast="off",
        encoder=encoder,
        encoder_args={},
        weights=None,
        start=None,
        settings=kept,
    )


def _features(plan: Plan, x: Any) -> Floats:
    """Rows of features as they are; of images what the network makes of them."""
    if plan.network is None:
        return np.ascontiguousarray(x, np.float32)
    size = max(1, plan.options.batch_size or 256)
    return np.concatenate([plan.network.features(x[i : i + size]) for i in range(0, len(x), size)])
