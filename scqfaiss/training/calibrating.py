"""Calibration of a trained model with labelled rows that it has not seen: one's own, or those that a trial holds out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..arrays import Floats, Labels
from ..calibration.lengths import Calibrations, nearest_shares
from ..calibration.measuring import measure
from ..contract import Progress, drawn_rows, silent
from ..data import ArraySource, Source, open_rows
from ..errors import ConfigError, DataError, printable, warn
from ..features.source import DEFAULT_INFERENCE, FeatureSource, InferenceOptions, as_rows
from ..files import PathLike, atomic_write
from ..modality import ROWS
from ..model import SUFFIX, Model, check_width
from .planning import Plan, adapt

MOST_ROWS = 4_000  # of which every pair is looked at


def calibrate(
    model: Model | PathLike, x: Any, y: Any, *, class_names: Any = None, progress: Progress = silent
) -> Model:
    """The model with what labelled rows tell of its scores, x (n, d_in), y (n,) classes or (n, C) 0/1: such as it was not
    trained on.

    Codes and galleries stay as they are. At most MOST_ROWS rows are drawn, by the model's seed. Raises DataError on bad arrays,
    and where too few rows share a class, ConfigError on rows of another width.
    """
    loaded = model if isinstance(model, Model) else Model.load(model)
    return calibrated(loaded, ArraySource(x, y, None, class_names, name="x", allow_duplicate_ids=True), progress)


def calibrate_file(
    model: PathLike,
    rows: PathLike,
    out: PathLike | None = None,
    *,
    keys: Mapping[str, Any],
    inference_options: InferenceOptions = DEFAULT_INFERENCE,
    progress: Progress = silent,
) -> str:
    """Calibrate a model with a file of labelled rows, or of images; returns what to tell the user. out: default the model's
    file itself. keys: arguments of open_rows.
    """
    inputs = [rows] if out is None else [model, rows]
    with atomic_write(model if out is None else out, inputs=inputs, suffix=SUFFIX, what="calibrated") as output:
        with open_rows(rows, **keys, needed_by="calibrate", repeated_ids=True) as source:
            loaded = Model.load(model)
            made = calibrated(loaded, as_rows(source, loaded, inference_options, printable(model)), progress)
        made.save_to(output)
    return f"{output.name}: {describe(made)}"


def describe(model: Model) -> str:
    """One line about a calibration."""
    assert model.calibration is not None and model.calibrations is not None
    c = model.calibration
    lengths = ", ".join(map(str, model.calibrations.lengths))
    return (
        f"calibrated by {c.rows:,} rows and {sum(c.pairs):,} pairs for codes of {lengths} bits; its galleries stay its own, "
        f"SHA-256 {model.sha256[:12]}"
    )


def calibrated(model: Model, source: Source, progress: Progress = silent) -> Model:
    """The model, calibrated with the rows of a source, which are as wide as those it takes. Raises as calibrate does."""
    _check_labels(source)
    assert source.labels is not None
    if source.modality != ROWS:
        raise ConfigError(f"{source.name} holds {source.modality.noun}, a calibration needs rows that the model takes")
    check_width(model, source)
    seed = model.config.get("seed", 0)
    rows = drawn_rows(len(source), MOST_ROWS, seed if type(seed) is int else 0)
    progress("calibrate", 0, 1, "")
    x, labels = _drawn(source, rows), source.labels.take(rows)
    made = calibration_of(model, x, model.chain(x, source.name), labels)
    progress("calibrate", 1, 1, "")
    return model.calibrated(made)


def calibration_of(model: Model, x: Floats, z: Floats, labels: Labels) -> Calibrations:
    """What held-out rows x (n, d_in) tell of a model's scores, z (n, d) what its semantic codes stand for. Raises DataError
    where too few rows share a class.

    Queries are made as a search without further words makes them: with content codes the gate says how known their classes are.
    """
    lengths = {}
    for cut in lengths_of(model):
        queries, vectors = cut.of_semantic(z, x)
        coded = cut.codebooks.decode(cut.assign(vectors))
        lengths[cut.codebooks.bits] = measure(queries, coded, labels, cut.codebooks.metric)
    bare = model.origin if model.calibrations is None else model.calibrations.model_sha256
    coded = model.codebooks.decode(model.assign(model.of_semantic(z, x)[1]))
    return Calibrations(bare, lengths, *_classes(coded, labels))


def with_calibration(plan: Plan, source: Source | None) -> Plan:
    """The plan of a training that ends with a calibration. Raises ConfigError or DataError where its rows cannot be used."""
    if source is None:
        return plan
    if plan.sources.rows.pairs:
        raise ConfigError("a calibration asks which rows share a class, and pairs have none; leave --calibrate out")
    adapt(plan, source)
    if plan.network is None and source.d != plan.d_in:
        raise ConfigError(f"{source.name}: rows have d={source.d}, {plan.sources.rows.name} has d={plan.d_in}")
    _check_labels(source)
    return replace(plan, sources=replace(plan.sources, calibration=source))


def add_calibration(plan: Plan, source: Source, model: Model, progress: Progress) -> Model:
    """What a training with calibration rows ends with; says where these are training rows."""
    training = plan.sources.rows
    if source.modality == ROWS:
        own = {_hash(row) for _, block in source.blocks() for row in block}
        both = len(own & {h for _, block in training.blocks() for h in map(_hash, block)})
        if both:
            warn(
                f"{both:,} of {len(source):,} rows of {source.name} are training rows: their scores are surer than those of "
                "new rows, and what they promise breaks; calibrate with others"
            )
    rows = source if plan.network is None else FeatureSource(source, plan.network)  # type: ignore[arg-type]
    return calibrated(model, rows, progress)


def _check_labels(source: Source) -> None:
    if source.labels is None:
        raise DataError(
            f"{source.name} has no labels, which a calibration needs; bring them with --labels FILE, or use --labels-key"
        )


def _hash(row: Any) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(row, np.float32).data, digest_size=16).digest()


def _drawn(source: Source, rows: Any) -> Floats:
    parts = [block[np.isin(np.arange(i, i + len(block)), rows)] for i, block in source.blocks()]
    return np.ascontiguousarray(np.concatenate(parts), np.float32)


def lengths_of(model: Model) -> list[Model]:
    """The model cut to every length that galleries may have."""
    whole, found = model.codebooks, []
    for M in range(int(whole.lists is None), whole.M + 1):
        try:
            found.append(model.prefix(M * whole.nbits))
        except ConfigError:  # codes that are not nested
            continue
    return found


def _classes(vectors: Floats, labels: Labels) -> tuple[Any, Any, Any]:
    """Means of each class, shares of the classes, and of the rows nearest to each mean; None for many labels a row."""
    if labels.multilabel:
        return None, None, None
    used, y = np.unique(labels.y, return_inverse=True)
    means = np.zeros((len(used), vectors.shape[1]), np.float64)
    np.add.at(means, y, vectors)
    counts = np.bincount(y)
    of_class = (means / counts[:, None]).astype(np.float32)
    return of_class, counts / counts.sum(), nearest_shares(vectors, np.ones(len(vectors)), of_class)
