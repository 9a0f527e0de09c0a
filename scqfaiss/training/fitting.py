"""From a plan to a trained model: the method on its rows, the loop over its stages, and room for what is written."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import distributed
from ..arrays import Floats, Ints
from ..contract import Method, Progress, Subset, Task, silent
from ..data import ArraySource, Source
from ..data.items import ItemSource
from ..devices import torch_dtype
from ..encoders.base import Stats
from ..encoders.chain import Chain
from ..errors import CheckpointError, ConfigError, DataError, ResourceError, ScqWarning, WriteError, printable, warn
from ..files import AtomicFile
from ..model import Model
from ..options import NOTHING_KEPT, RunOptions, TrainOptions, check_numbers
from . import class_numbers
from .calibrating import add_calibration
from .checkpoints import Checkpoints
from .content import add_content
from .engine import Engine
from .epoch_log import Log, log_to
from .fingerprint import run_fingerprint
from .labelled_rows import labelled_rows
from .out_of_fold import SHORT, Judge, judge_of
from .outcome import model_bytes, outcome
from .planning import Plan, adapt, make_plan
from .robust import Cleaning, clean, hint, in_doubt
from .rows import MEMORY_SHARE, ImageRows, SourceRows, free_memory, statistics
from .threads import considerate
from .trial import add_forecast

HEADER = 1 << 16  # bytes of a model's file that hold no weights


class _RowsOf:
    """Sources as training rows that share a budget of memory (bytes; None: what is free)."""

    def __init__(self, plan: Plan, memory: int | None) -> None:
        self.plan, self.memory = plan, memory

    def __call__(self, source: Source, kept: Ints | None = None) -> SourceRows | ImageRows:
        if not isinstance(source, ItemSource):
            return SourceRows(source, self.plan.device, self.memory, kept)
        rows = ImageRows(source, self.plan.d_in, self.plan.device, self.memory, kept)
        # All parts are held out of one share: items come alike, held or not.
        if self.memory is not None and rows.x is not None:
            self.memory -= rows.x.nbytes
        return rows


def build(
    plan: Plan,
    *,
    memory: int | None = None,
    progress: Progress = silent,
    dry: bool = False,
    without: Ints | None = None,
) -> Method:
    """The method of a plan on its rows, ready for its stages. dry=True reads no features. without: of the rows that would train,
    those that do not.
    """
    options, source = plan.options, plan.sources.rows
    codebook_source, unlabelled = plan.sources.codebooks, plan.sources.unlabelled
    if len(source) == 0:
        raise DataError(f"{source.name} holds 0 rows, training needs at least 1")
    labels, kept = None, None
    if "labels" in plan.needs:
        assert plan.labels is not None
        kept = labelled_rows(plan.labels, options.method, plan.method.unlabeled(plan.config))
        if without is not None and len(without):
            kept = np.delete(np.arange(len(source)) if kept is None else kept, without)
        labels = plan.labels if kept is None else plan.labels.take(kept)
    adapt(plan, codebook_source)
    _check_more_rows(plan, codebook_source, "codebooks need")
    _check_more_rows(plan, unlabelled, "self-training needs")
    rows_of = _RowsOf(plan, 0 if dry else memory)
    rows = rows_of(source, kept)
    codebook_rows = rows_of(codebook_source) if codebook_source else None
    encoder = _encoder(plan, rows, dry)
    task = Task(
        rows=rows,
        labels=labels,
        M=plan.M,
        nbits=plan.nbits,
        lists=plan.lists,
        seed=options.seed,
        encoder=encoder,
        encoder_name=options.encoder if encoder is not None else "",
        head=None if plan.start is None else plan.start.chain.layers,
        codebook_rows=codebook_rows,
        # Held or streamed decides their order too: by the same budget as the training rows, which a checkpoint keeps.
        unlabelled=None if unlabelled is None else SourceRows(unlabelled, plan.device, rows.memory),
        ids=source.ids if kept is None else source.ids[kept],
        epochs=options.epochs,
        batch_size=options.batch_size,
        device=plan.device,
        progress=progress,
    )
    task = replace(task, validation=_validation(plan, task, rows_of))
    method = plan.method(plan.config, task)
    if isinstance(method, torch.nn.Module):
        method.to(plan.device)
    return method


def _check_more_rows(plan: Plan, source: Source | None, what_needs: str) -> None:
    """Raise ConfigError or DataError unless `source` holds rows of the width of the training rows."""
    if source is None:
        return
    if plan.network is None and source.d != plan.d_in:
        raise ConfigError(f"{source.name}: rows have d={source.d}, {plan.sources.rows.name} has d={plan.d_in}")
    if len(source) == 0:
        raise DataError(f"{source.name} holds 0 rows, {what_needs} at least 1")


def _encoder(plan: Plan, rows: SourceRows | ImageRows, dry: bool) -> Any:
    """The encoder to train, on its device; None for methods that bring their own."""
    if plan.network is not None:
        encoder = plan.network.to(plan.device)
    elif plan.encoder is not None:
        assert isinstance(rows, SourceRows)
        d = plan.d_in
        n = len(rows)
        stats = Stats(n, np.zeros(d), np.ones(d), np.zeros(d), np.ones(d), 0.0) if dry else statistics(rows, d)
        stats = replace(stats, multilabel=plan.labels is not None and plan.labels.multilabel)
        members = plan.method.members(plan.config, plan.options.encoder)
        encoder = plan.encoder(plan.encoder_config, stats, members).to(plan.device)
    else:
        return None
    encoder.precision = torch_dtype(plan.options.precision)
    return encoder


def _validation(plan: Plan, task: Task, rows_of: _RowsOf) -> Subset | None:
    """The validation rows whose classes are trained on."""
    source = plan.sources.validation
    if source is None or not plan.method.needs_encoder:
        return None
    if task.labels is None or source.labels is None:
        return Subset(rows_of(source), None, source.ids)
    labels, known = class_numbers.of_validation(source.labels, task.labels, source.name)
    return Subset(rows_of(source, known), labels, source.ids if known is None else source.ids[known])


def fit(
    plan: Plan,
    *,
    run: RunOptions = NOTHING_KEPT,
    memory: int | None = None,
    progress: Progress = silent,
    output: AtomicFile | None = None,
) -> Model:
    """Train what a plan asks for. Same rows, same settings, same machine: the same bytes (on CPU).

    memory: bytes for held rows, None: a share of what is free. output: where to prepare the model's file, for which room is
    asked before the first step. Raises ConfigError on a loss that is not finite, ResourceError where memory runs out.
    """
    distributed.one_thread_after_fork()
    devices = [torch.device(plan.device)] if plan.device != "cpu" else []
    check_numbers(run)
    with log_to(run.metrics, run.tensorboard) as log, torch.random.fork_rng(devices=devices), considerate():
        torch.manual_seed(plan.options.seed)  # forked: the caller's random state stays as it was
        try:
            cleaning = clean_labels(plan, memory, progress)
            return _fit(plan, run, memory, progress, output, log, cleaning, hints=plan.options.robust == "off")
        except torch.OutOfMemoryError as error:
            raise ResourceError(f"the {plan.device} is out of memory; lower --batch-size") from error
        except RuntimeError as error:
            if "allocate memory" not in str(error):  # torch has no class of its own for the memory of the CPU
                raise
            raise ResourceError("out of memory; lower --batch-size, or train on fewer rows or shorter codes") from error


def clean_labels(plan: Plan, memory: int | None, progress: Progress) -> Cleaning | None:
    """What `robust` says of the labels; None where it is off, where they look right at first sight, or where they cannot be
    judged, which is said where it was asked for.
    """
    source, labels, asked = plan.sources.rows, plan.labels, plan.options.robust == "on"
    if plan.options.robust == "off":
        return None
    if "labels" not in plan.needs or labels is None:
        if asked:
            warn(f"method {plan.options.method} has no use for --robust: it is ignored")
        return None
    if isinstance(source, ItemSource) or labels.multilabel:
        what = "those of images" if isinstance(source, ItemSource) else "many a row"
        if asked:
            warn(f"--robust on judges single labels of rows of features, not {what}: all rows train")
        return None
    if len(np.flatnonzero(labels.counts())) < 2:  # which the training refuses
        return None
    train = partial(train_judge, effort=SHORT)
    if not asked and not in_doubt(plan, SourceRows(source, plan.device, memory=0), labels, train, progress):
        return None
    return clean(plan, _RowsOf(plan, memory)(source), labels, train, progress)


def _fit(
    plan: Plan,
    run: RunOptions,
    memory: int | None,
    progress: Progress,
    output: AtomicFile | None,
    log: Any,
    cleaning: Cleaning | None = None,
    hints: bool = False,
) -> Model:
    method: Method | None = None
    checkpoints = None
    if run.checkpoints is not None:
        writes = distributed.rank() == 0

        def fingerprint() -> dict[str, Any]:
            assert method is not None
            return run_fingerprint(plan, method.task)

        checkpoints = Checkpoints(run.checkpoints, fingerprint, run.checkpoint_every, writes)
        checkpoints.check_start(run.resume)
        if run.resume and memory is None:
            # Held or streamed, and how much at a time, decides the order of the rows: as it was, whatever is free now.
            memory = checkpoints.last_hints().get("memory")
    # Several processes are on one machine, as a rule, and all must see one order of the rows.
    if memory is None and distributed.world_size() > 1:
        memory = int(-distributed.all_reduce_max(-MEMORY_SHARE * free_memory() / distributed.world_size()))
    method = build(plan, memory=memory, progress=progress, without=None if cleaning is None else cleaning.rows)
    if hints and isinstance(method.task.rows, SourceRows) and method.task.labels is not None:
        hint(method.task.rows, method.task.labels, plan.options.seed)
    if checkpoints is not None and isinstance(method.task.rows, SourceRows | ImageRows):
        checkpoints.hints["memory"] = method.task.rows.memory
    check_room(plan, method, output, checkpoints)
    finished = checkpoints.finished() if checkpoints is not None and run.resume else None
    if finished is not None:  # all that is missing is its file
        return prepared(Model.from_bytes(finished, "the finished model"), output, checkpoints)
    losses = Engine.of(method, plan.options, progress, checkpoints, log).run(run.resume)
    model = outcome(plan, method, losses)
    if cleaning is not None:
        model.config["training"]["wrong_labels"] = dict(cleaning.facts)
    if plan.options.content_bits:

        def retrain(options: TrainOptions, x: Floats, y: Ints) -> Model:
            return _fit(make_plan(options, ArraySource(x, y)), NOTHING_KEPT, memory, silent, None, Log())

        model = add_content(plan, method.task, model, retrain, progress)
    if plan.options.forecast == "auto":

        def train_trial(
            options: TrainOptions, x: Floats, y: NDArray[Any], effort: float, rounds: tuple[str, ...]
        ) -> tuple[Judge, Ints]:
            return train_judge(options, x, y, effort, plan.sources.unlabelled if rounds else None, rounds)

        model = add_forecast(plan, method, model, train_trial, progress)
    if plan.sources.calibration is not None:
        model = add_calibration(plan, plan.sources.calibration, model, progress)
    return prepared(model, output, checkpoints)


def train_judge(
    options: TrainOptions,
    x: Floats,
    y: NDArray[Any],
    effort: float = 1.0,
    unlabelled: Source | None = None,
    rounds: tuple[str, ...] = (),
) -> tuple[Judge, Ints]:
    """The classifier of a training on rows x (n, d_in), y (n,) or (n, C), without codes, and the numbers of its classes.

    options: as out_of_fold.options_of_folds makes them. effort: the share of the steps that are made. unlabelled, rounds: rows
    and a plan of self-training that is followed untried.
    """
    devices = [] if distributed.pick_device(options.device) == "cpu" else [distributed.pick_device(options.device)]
    with warnings.catch_warnings(), torch.random.fork_rng(devices=devices), considerate():
        warnings.simplefilter("ignore", ScqWarning)  # of parts of the rows; the whole training says it of all
        torch.manual_seed(options.seed)
        plan = make_plan(options, ArraySource(x, y), unlabelled=unlabelled)
        method = build(plan)
        if effort < 1:
            epochs = math.ceil(effort * method.stages()[0].epochs)
            plan = replace(plan, options=replace(plan.options, epochs=epochs))
            method = build(plan)
        if rounds:
            method.self_training.follow(rounds)  # type: ignore[attr-defined]  # a label code has it
        Engine.of(method, plan.options, silent, None, Log()).run()
    assert plan.labels is not None
    numbers = plan.labels.numbers
    features = method.features  # type: ignore[attr-defined]  # a label code has them
    return judge_of(features), np.arange(plan.labels.C) if numbers is None else numbers


def check_room(plan: Plan, method: Method, output: AtomicFile | None, checkpoints: Checkpoints | None) -> None:
    """Hold room for the model on its disk. Raises WriteError unless there is, and for the checkpoints that stand side by side."""
    model = 0
    if output is not None:
        model = model_bytes(plan, Chain(plan.d_in).then(*method.layers()))
        output.check_space(model + HEADER)
    if checkpoints is not None and isinstance(method, torch.nn.Module):
        stages = sum(stage.epochs > 0 for stage in method.stages())
        state = sum(t.nbytes for t in method.state_dict().values())
        # As it is, as finished stages left it, the best one; and two moments of each parameter, as the optimisers keep them.
        copies = max(stages, 1) + (method.task.validation is not None)
        checkpoints.check_room(copies * state + 2 * sum(p.nbytes for p in method.parameters()), output, model)
    if output is not None:
        output.hold(model + HEADER)


def prepared(model: Model, output: AtomicFile | None, checkpoints: Checkpoints | None) -> Model:
    """The model, with its file ready to take its place; where that fails, the training is not lost."""
    if output is None:
        return model
    try:
        model.prepare(output)
    except (WriteError, CheckpointError) as error:
        kept = checkpoints.keep(model.to_bytes()) if checkpoints is not None else ""
        if not kept or checkpoints is None:
            raise
        folder = printable(checkpoints.folder)
        raise type(error)(
            f"{error}; {kept}: make room and type the same with --resume, or with --resume --checkpoints {folder} and "
            "another -o"
        ) from error
    return model
