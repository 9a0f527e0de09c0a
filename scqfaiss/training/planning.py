"""A request, looked up and checked before any row is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import distributed
from ..arrays import Labels
from ..codebooks import MAX_LISTS, Shape
from ..contract import Method, configure, flat, near_settings, settings
from ..data import Source, classes
from ..devices import check_precision
from ..encoders import encoder_class
from ..errors import ConfigError, DataError, ResourceError, format_bytes, warn
from ..methods import ALIASES, REGISTRY, method_class
from ..methods.list_counts import auto
from ..modality import ROWS
from ..model import Model
from ..options import TrainOptions, check_numbers, check_whole
from . import class_numbers
from .rows import free_memory
from .starting import align_with, make_network, model_to_start_from, of_network

MAX_BITS = 4096  # of a code: longer ones are no short codes, and a slip of the keyboard must not fill the memory
ROBUST, FORECAST = ("auto", "on", "off"), ("auto", "off")


@dataclass(frozen=True)
class Sources:
    """The rows of a training, and where there are any those that codebooks learn from, those that validate it, those without
    labels that the features learn from, and those that tell what the trained model's scores mean.
    """

    rows: Source
    codebooks: Source | None = None
    validation: Source | None = None
    unlabelled: Source | None = None
    calibration: Source | None = None


@dataclass(frozen=True)
class Plan:
    """TrainOptions with every name looked up and every setting checked, before any row is read."""

    options: TrainOptions
    sources: Sources
    method: type[Method]
    config: Any
    encoder: type[Any] | None
    encoder_config: Any
    device: str
    M: int
    nbits: int
    lists: int  # that are part of a code; 1: codes are of whole vectors
    network: Any = None  # an encoders.base.FrontEncoder, where rows are no rows of features
    start: Model | None = None
    labels: Labels | None = None  # of the training rows, by the classes that are told apart

    @property
    def needs(self) -> frozenset[str]:
        """What the method needs of the rows under its settings."""
        return self.method.needs_of(self.config)

    @property
    def d_in(self) -> int:
        """Dimension of what is encoded: of the rows, of either half of pairs, or of what the network makes of items."""
        if self.network is not None:
            return int(self.network.width)
        source = self.sources.rows
        return source.d // 2 if source.pairs else source.d

    def shape(self, d: int) -> Shape:
        """The shape of the codes that the training comes to, of z of dimension d."""
        kind = self.method.kind(self.config) if self.M else "product"
        return Shape(kind, self.M, self.nbits, d, L=self.lists)


def make_plan(
    options: TrainOptions,
    source: Source,
    validation: Source | None = None,
    codebook_source: Source | None = None,
    unlabelled: Source | None = None,
) -> Plan:
    """Check everything that can be known before the first row is read. Raises ConfigError or DataError."""
    options = replace(options, method=ALIASES.get(options.method, options.method), settings=flat(options.settings))
    method = method_class(options.method)
    config, of_method = _method_config(options, method, source)
    start = model_to_start_from(options, method, source)
    name = _encoder_name(options, method, config, source, start)
    encoder = encoder_class(name) if method.needs_encoder else None
    check_modality(options, source, name, encoder)
    encoder_config = _encoder_config(options, method, of_method, encoder, start)
    check_options(options, method)
    labels = _labels(options, method, config, source, validation, start)
    _warn_of_unused(options, method, validation)
    C, multilabel = (labels.C, labels.multilabel) if labels else (0, False)
    check_memory(C, source)
    lists = count_lists(options, method, codebook_source or source, C, multilabel)
    check_content_bits(options, method, source)
    M, nbits = method.shape(C, multilabel, *split_bits(options.bits, options.nbits, lists), lists)
    device, network = distributed.pick_device(options.device), None
    if encoder is not None and encoder.modality.needs_encoder:
        network = make_network(options, name, encoder, encoder_config, start)
        name = network.factory
    unlabelled = _unlabelled(options, method, config, source, unlabelled)
    options, sources = replace(options, encoder=name), Sources(source, codebook_source, validation, unlabelled)
    plan = Plan(
        options, sources, method, config, encoder, encoder_config, device, M, nbits, lists, network, start, labels
    )
    for rows in (source, validation):
        adapt(plan, rows)
    method.check(config, plan.d_in, C, M, nbits, name, source.modality)
    return plan


def adapt(plan: Plan, source: Source | None) -> None:
    """Have items come in the form that the network takes. Raises ConfigError where they are of another modality."""
    if source is None or plan.network is None:
        return
    if source.modality != plan.network.modality:
        raise ConfigError(
            f"{source.name} holds {source.modality.noun}, encoder {plan.options.encoder} takes {plan.network.modality.noun}"
        )
    source.adapt(plan.network)


def _method_config(options: TrainOptions, method: type[Method], source: Source) -> tuple[Any, Mapping[str, Any]]:
    """The method's Config, and the settings that are the method's."""
    of_method: Mapping[str, Any] = settings(method.Config)
    if source.modality.needs_encoder:  # what such an encoder calls by the same name is the encoder's
        of_encoder = settings(encoder_class(source.modality.encoder).Config)
        of_method = {key: f for key, f in of_method.items() if key not in of_encoder}
    values = {key: value for key, value in options.settings.items() if key in of_method}
    for key, choices in method.PRESETS.items():
        values = choices.get(str(values.get(key)), {}) | values
    return configure(method.Config, values), of_method


def _encoder_name(options: TrainOptions, method: type[Method], config: Any, source: Source, start: Model | None) -> str:
    if start is not None:
        return str(start.config["backbone"]["factory"])
    if options.encoder == TrainOptions.encoder:
        return source.modality.encoder or method.default_encoder(config)
    return options.encoder


def _encoder_config(
    options: TrainOptions,
    method: type[Method],
    of_method: Mapping[str, Any],
    encoder: type[Any] | None,
    start: Model | None,
) -> Any:
    """The encoder's Config, None without one. Raises ConfigError for settings that neither it nor the method has."""
    of_encoder = settings(encoder.Config) if encoder else {}
    values = {key: value for key, value in options.settings.items() if key not in of_method}
    for key in values:
        if key not in of_encoder:
            near = near_settings(key, [*of_method, *of_encoder])
            raise ConfigError(f"unknown key '{key}' for method {options.method}{near}")
    if encoder is None:
        return None
    if encoder.modality.needs_encoder:
        of_start = of_network(start) if start is not None else {}
        for key in of_start.keys() & values.keys():
            raise ConfigError(f"{key} is that of the model to start from, {of_start[key]!r}; leave it out")
        # The views that its codebooks learn from are those that the network was trained with, unless told otherwise.
        before = start.config.get("settings", {}) if start is not None else {}
        views = {key: value for key, value in before.items() if key in of_encoder}
        values = {**method.encoder_defaults, **views, **values, **of_start}
    return configure(encoder.Config, values)


def _labels(
    options: TrainOptions,
    method: type[Method],
    config: Any,
    source: Source,
    validation: Source | None,
    start: Model | None,
) -> Labels | None:
    """The labels to train on, by the classes that are told apart, None where the method needs none; all rows checked."""
    needs = method.needs_of(config)
    for rows in (source, validation):
        if rows is not None:
            check_pairs(rows, options.method, "pairs" in needs)
    if "labels" in needs and source.labels is None:
        how = source.modality.give_labels
        raise DataError(f"{source.name} has no labels, which method {options.method} needs; {how}")
    if "labels" not in needs and source.labels is not None:
        warn(f"method {options.method} does not use labels: they are ignored")
    if start is not None:
        align_with(start, source)
    labels = source.labels if "labels" in needs else None
    if validation is not None:
        if labels is not None:
            classes.align_to(validation, source)
        check_validation(validation, source, labels)
    if labels is None:
        return None
    if start is None:
        return class_numbers.trained(labels, source.name)
    return class_numbers.of_start(labels, start, source.name)


def _warn_of_unused(options: TrainOptions, method: type[Method], validation: Source | None) -> None:
    if method.needs_encoder:
        return
    for name, ignored in (
        ("--encoder", options.encoder != TrainOptions.encoder),
        ("--epochs", options.epochs is not None),
        ("--batch-size", options.batch_size is not None),
        ("--validation", validation is not None),
        ("--precision", options.precision != TrainOptions.precision),
        ("--clip-norm", options.clip_norm != TrainOptions.clip_norm),
    ):
        if ignored:
            warn(f"method {options.method} has no use for {name}: it is ignored")


def _unlabelled(
    options: TrainOptions, method: type[Method], config: Any, source: Source, unlabelled: Source | None
) -> Source | None:
    """The rows without labels, None where the method has no use for them. Raises ConfigError for items other than rows."""
    if unlabelled is None:
        return None
    if not method.takes_unlabelled or "labels" not in method.needs_of(config):
        warn(f"method {options.method} has no use for --unlabelled: it is ignored")
        return None
    for of in (unlabelled, source):
        if of.modality != ROWS:
            raise ConfigError(
                f"{of.name} holds {of.modality.noun}, --unlabelled goes with rows of features; {of.modality.make_features}"
            )
    return unlabelled


def check_memory(C: int, source: Source) -> None:
    """Raise ResourceError where centers of C classes do not fit: a handful of (C, C) matrices in float64."""
    if 48 * C * C > free_memory():
        raise ResourceError(
            f"{source.name}: centers of {C:,} classes need about {format_bytes(48 * C * C)}, {format_bytes(free_memory())} free; "
            "are the labels class numbers?"
        )


def check_modality(options: TrainOptions, source: Source, chosen: str, encoder: type[Any] | None) -> None:
    """Raise ConfigError unless the encoder takes items of the source's modality, and the options go with it."""
    if source.modality.needs_encoder and encoder is None:
        raise ConfigError(
            f"{source.name} holds {source.modality.noun}, method {options.method} takes rows of features; "
            f"{source.modality.make_features}"
        )
    takes = encoder.modality if encoder is not None else ROWS
    if source.modality != takes:
        how = f"; {source.modality.choose_encoder}" if source.modality.choose_encoder else ""
        raise ConfigError(f"{source.name} holds {source.modality.noun}, encoder {chosen} takes {takes.noun}{how}")
    if not takes.needs_encoder:
        for option, given in (("--weights", options.weights), ("--encoder-arg", options.encoder_args)):
            if given:
                raise ConfigError(f"{option} goes with a network for images, encoder {chosen} is none")


def check_pairs(source: Source, method: str, needed: bool) -> None:
    """Raise DataError unless `source` holds pairs where they are needed, and rows where they are not."""
    array = source.path is None
    if needed and not source.pairs:
        how = "give queries as x, and what answers each as keys" if array else "an HDF5 file of queries and keys"
        raise DataError(f"{source.name} holds no pairs, which method {method} needs: {how}")
    if source.pairs and not needed:
        raise DataError(
            f"x and keys are pairs, method {method} takes rows; give the rows to code as x, without keys"
            if array
            else f"{source.name} holds pairs, method {method} takes rows; choose them with --features-key keys"
        )


def check_options(options: TrainOptions, method: type[Method]) -> None:
    """Raise ConfigError for numbers out of range or of another type, and for an unknown precision."""
    check_numbers(options)
    check_precision(options.precision)
    if options.robust not in ROBUST:
        raise ConfigError(f"robust is {options.robust!r}, needs one of {', '.join(ROBUST)}")
    if options.forecast not in FORECAST:
        raise ConfigError(f"forecast is {options.forecast!r}, needs one of {', '.join(FORECAST)}")
    clip = options.clip_norm
    if isinstance(clip, bool) or not isinstance(clip, int | float | np.number) or not 0 <= clip < float("inf"):
        raise ConfigError(f"the largest norm of gradients is {clip!r}, needs a number from 0")
    if options.accumulate > 1 and not method.separable:
        raise ConfigError(
            f"method {options.method} compares the rows of a batch with one another: parts of it (--accumulate) would "
            "compare fewer; use a smaller --batch-size"
        )


def check_validation(validation: Source, source: Source, labels: Labels | None) -> None:
    """Raise ConfigError or DataError unless `validation` holds rows of the kind of `source`, whose labels are used."""
    if validation.modality != source.modality:
        kinds = [of.modality.noun for of in (validation, source)]
        raise ConfigError(f"{validation.name} holds {kinds[0]}, {source.name} holds {kinds[1]}")
    if validation.d != source.d:
        raise ConfigError(f"{validation.name}: rows have d={validation.d}, {source.name} has d={source.d}")
    if len(validation) == 0:
        raise DataError(f"{validation.name} holds 0 rows, validation needs at least 1")
    if labels is None:
        return
    theirs = validation.labels
    if theirs is None:
        raise DataError(f"{validation.name} has no labels, which validation needs; name them with --labels-key")
    if theirs.multilabel != labels.multilabel or (labels.multilabel and theirs.C != labels.C):
        kinds = [
            f"{'many labels' if of.multilabel else 'one label'} a row and {of.C} classes" for of in (theirs, labels)
        ]
        raise ConfigError(f"{validation.name} has {kinds[0]}, {source.name} has {kinds[1]}")


def count_lists(options: TrainOptions, method: type[Method], codebook_rows: Source, C: int, multilabel: bool) -> int:
    """The number of lists that was asked for; `auto` by the rows that the codebooks learn from and by the classes.

    Raises ConfigError for another word, and where the method's codes have no lists.
    """
    text = str(options.lists)
    if text == "auto":
        return auto(len(codebook_rows), 1 if multilabel else C) if method.takes_lists else 1
    if isinstance(options.lists, bool) or not text.isdecimal():
        raise ConfigError(f"lists is {options.lists!r}, needs a whole number from 1 to {MAX_LISTS:,}, or auto")
    number = int(text)
    check_whole("lists", number, 1, MAX_LISTS)
    if number > 1 and not method.takes_lists:
        able = [name for name in REGISTRY if method_class(name).takes_lists]
        raise ConfigError(f"method {options.method} has codes without lists; {', '.join(able)} take --lists")
    return number


def check_content_bits(options: TrainOptions, method: type[Method], source: Source) -> None:
    """Raise ConfigError for content codes that nbits does not divide, or of pairs."""
    bits, nbits = options.content_bits, options.nbits
    if bits == 0:
        return
    if source.pairs:
        raise ConfigError(
            f"method {options.method} learns from pairs; content codes go with rows (leave --content-bits out)"
        )
    if not 1 <= nbits <= 16 or bits % nbits or bits > MAX_BITS:
        raise ConfigError(f"content bits are {bits:,}, need a multiple of nbits={nbits} up to {MAX_BITS:,}")


def split_bits(bits: int, nbits: int, L: int = 1) -> tuple[int, int]:
    """(M, nbits) of codes of `bits` bits. Raises ConfigError with the nearest lengths that work."""
    if bits == 0 and L > 1:  # the list is all there is
        return 0, 1
    if not 1 <= nbits <= 16:
        raise ConfigError(f"nbits is {nbits}, needs 1 to 16")
    if bits > MAX_BITS:
        raise ConfigError(f"bits is {bits:,}, needs {nbits} to {MAX_BITS:,}")
    if bits < 1 or bits % nbits:
        below = bits // nbits * nbits
        near = f"{below} or {below + nbits}" if below > 0 else f"{nbits}"
        if bits == 0:
            near += ", or --lists auto, whose lists alone are a code of 0 bits"
        raise ConfigError(f"bits={bits} is not a multiple of nbits={nbits}; need {near}")
    return bits // nbits, nbits
