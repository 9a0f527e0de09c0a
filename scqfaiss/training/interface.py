"""Training from Python and from files: rows in, a model out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import distributed, signals
from ..contract import Progress, silent
from ..data import ArraySource, Source, keys_for, open_rows
from ..data.left_out import leave_out
from ..data.pairs import PairSource
from ..errors import ConfigError, printable, warn
from ..files import PathLike, atomic_write
from ..methods import method_class
from ..model import SUFFIX, Model
from ..options import NOTHING_KEPT, RunOptions, TrainOptions, parse_request
from .calibrating import with_calibration
from .checkpoints import Checkpoints
from .fingerprint import setting_files
from .fitting import fit
from .outcome import describe
from .planning import Sources, make_plan


def train(
    x: Any,
    y: Any = None,
    *,
    keys: Any = None,
    ids: Any = None,
    codebook_rows: Any = None,
    unlabelled: Any = None,
    validation: Any = None,
    calibrate: Any = None,
    class_names: Any = None,
    progress: Progress = silent,
    **options: Any,
) -> Model:
    """Train a quantizer on arrays.

    x (n, d_in) float16, float32 or float64; y (n,) class numbers, or (n, C) 0/1 for many labels a row; codebook_rows
    (n2, d_in) rows without labels that the codebooks learn from; unlabelled (n3, d_in) rows without labels from which the
    features learn too, where that helps (self-training). For methods that learn from pairs x are the queries, keys
    (n, d_in) what answers each, and ids (n,) the keys' ids, which repeat where queries share a key (default: none does).
    validation: (x, y), or (queries, keys, ids) of pairs, ids optional, that train nothing: after each epoch the
    loss on them is taken, each stage ends with what was best on them, and earlier after `patience` epochs without a better
    one. calibrate: (x, y) of labelled rows that train nothing: they tell what the scores of the codes mean.

    options: the fields of options.TrainOptions (method, bits, nbits, encoder, epochs, batch_size, seed, device, precision,
    accumulate, clip_norm, patience) and of options.RunOptions (checkpoints, checkpoint_every, resume, metrics, tensorboard);
    every other name is a setting of the method or the encoder (`--set` on the command line), "features.epochs" for instance
    as **{"features.epochs": 20} or features={"epochs": 20}. The folder of checkpoints stays: remove it once the model is saved.

    Raises DataError on bad arrays, ConfigError on settings that cannot work, ResourceError when memory runs out.
    """
    train_options, run = parse_request(options, of_files=False)
    source: Source
    if keys is None:
        source = ArraySource(x, y, ids, class_names, name="x", allow_duplicate_ids=True)
    elif y is not None:
        raise ConfigError("y and keys were given: labels are of rows, and pairs have none")
    else:
        source = PairSource.of_arrays(x, keys, ids)
    codebook_source = (
        None if codebook_rows is None else ArraySource(codebook_rows, name="codebook_rows", read_labels=False)
    )
    unlabelled_source = None if unlabelled is None else ArraySource(unlabelled, name="unlabelled", read_labels=False)
    validation_source = _validation_source(validation, pairs=keys is not None)
    if run.resume and run.checkpoints is None:
        raise ConfigError("resume needs the folder of the checkpoints: checkpoints=...")
    plan = make_plan(train_options, source, validation_source, codebook_source, unlabelled_source)
    if calibrate is not None:
        if not isinstance(calibrate, tuple) or len(calibrate) != 2:
            raise ConfigError("calibrate needs (x, y): rows and their labels")
        plan = with_calibration(plan, ArraySource(*calibrate, name="calibrate"))
    return fit(plan, run=run, progress=progress)


def _validation_source(validation: Any, pairs: bool) -> Source | None:
    if validation is None:
        return None
    if pairs:
        if not isinstance(validation, tuple) or len(validation) not in (2, 3):
            raise ConfigError("validation of pairs needs (queries, keys) or (queries, keys, ids)")
        return PairSource.of_arrays(*validation, names=("validation queries", "validation keys"))
    parts = validation if isinstance(validation, tuple) else (validation, None)
    if len(parts) != 2:
        raise ConfigError(f"validation is a tuple of {len(parts)}, needs (x, y), or x alone without labels")
    return ArraySource(*parts, name="validation")


def train_file(
    path: PathLike,
    out: PathLike,
    options: TrainOptions,
    *,
    run: RunOptions = NOTHING_KEPT,
    keys: Mapping[str, Any],
    progress: Progress = silent,
    memory: int | None = None,
    **more: PathLike | None,
) -> str:
    """Train on a file of rows and write the model; returns what to tell the user. keys: arguments of open_rows.

    more: files of open_sources; `without` names rows to leave out, see data.left_out.

    Checkpoints go into MODEL.checkpoints unless run names another folder. Where torchrun started several processes they
    train together, and the first one writes; the others return "".
    """
    inputs = input_files(path, options, more)
    with distributed.process_group(distributed.pick_device(options.device)), ExitStack() as stack:
        output, folder = None, Path(os.path.realpath(out)).with_suffix(".checkpoints")
        if distributed.rank() == 0:
            output = stack.enter_context(atomic_write(out, inputs=inputs, suffix=SUFFIX, what="trained"))
        else:
            run, progress = replace(run, metrics=None, tensorboard=None), silent
        run = replace(run, checkpoints=run.checkpoints or folder)
        if os.path.realpath(run.checkpoints or "") == os.path.realpath(out):
            raise ConfigError(f"{printable(out)} is the model; choose another folder for checkpoints")
        checkpoints = Checkpoints(run.checkpoints or folder)
        with open_sources(path, keys, options.method, **more) as sources:
            plan = make_plan(options, sources.rows, sources.validation, sources.codebooks, sources.unlabelled)
            plan = with_calibration(plan, sources.calibration)
            with signals.saying(lambda: "stopped; continue with --resume" if checkpoints.steps() else None):
                model = fit(plan, run=run, memory=memory, progress=progress, output=output)
        # Closing says whether the rows were changed while they were read: only then does the file take its place.
        if output is None:
            return ""
        output.place()
        checkpoints.clear()
    return f"{output.name}: {describe(model)}"


def input_files(path: PathLike, options: TrainOptions, more: Mapping[str, PathLike | None]) -> list[PathLike]:
    """Every file that a training reads: none of them may be written. more: files beside the training rows."""
    files = (path, *more.values(), options.weights, options.start, *setting_files(options.settings))
    return [p for p in files if p is not None]


@contextmanager
def open_sources(
    path: PathLike,
    keys: Mapping[str, Any],
    method: str,
    *,
    codebook_rows: PathLike | None = None,
    unlabelled: PathLike | None = None,
    validation: PathLike | None = None,
    without: PathLike | None = None,
    calibrate: PathLike | None = None,
) -> Iterator[Sources]:
    """The training rows of a method, and rows for codebooks, self-training, validation and calibration where there are any; of
    the first two labels stay unread, and of pairs the queries. Ids may repeat: they play no part, but for pairs. Of the training
    rows those that the file `without` names are left out.
    """
    role = "pairs" if "pairs" in method_class(method).needs else None
    of_rows: dict[str, Any] = {"role": role, "needed_by": f"method {method}", "repeated_ids": True}
    with ExitStack() as stack:
        rows = stack.enter_context(open_rows(path, **keys_for(keys), **of_rows))
        if without is not None:
            n, left_out = len(rows), leave_out(rows, without)
            warn(f"{rows.name}: left out {left_out:,} of {n:,} rows, those that {printable(without)} names")
        rows.warn_if_wide()
        own = {**keys_for(keys, "unlabelled"), "labels_key": None} | ({"features_key": None} if role == "pairs" else {})
        codebook_source, unlabelled_source = (
            None if file is None else stack.enter_context(open_rows(file, **own, role="keys", repeated_ids=True))
            for file in (codebook_rows, unlabelled)
        )
        validation_source = None
        if validation is not None:
            validation_source = stack.enter_context(open_rows(validation, **keys_for(keys, "validation"), **of_rows))
        calibration_source = None
        if calibrate is not None:
            held_out = {**keys_for(keys, "calibrate"), "needed_by": "--calibrate", "repeated_ids": True}
            calibration_source = stack.enter_context(open_rows(calibrate, **held_out))
        yield Sources(rows, codebook_source, validation_source, unlabelled_source, calibration_source)
