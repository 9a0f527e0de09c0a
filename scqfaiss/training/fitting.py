"""Training: one loop over a method's stages, from rows to a Model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__, distributed, signals
from ..arrays import Floats, Ints, Labels
from ..codebooks import Codebooks, Shape
from ..contract import Method, Part, Progress, Task, configure, flat, near_settings, needs_of, settings, silent
from ..data import ArraySource, Source, classes, open_rows
from ..data.items import ItemSource
from ..data.pairs import PairSource
from ..dependencies import missing
from ..devices import check_precision, torch_device, torch_dtype
from ..encoders import BACKBONES, encoder_class
from ..encoders.base import Stats
from ..encoders.chain import Chain
from ..errors import CheckpointError, ConfigError, DataError, ResourceError, WriteError, shown, size, suggestion, warn
from ..files import PathLike, Slot, check_target, open_regular, reserve
from ..methods import ALIASES, MISTAKEN, REGISTRY
from ..modality import IMAGES, ROWS
from ..model import SUFFIX, Model
from . import class_numbers
from .checkpoints import Checkpoints
from .engine import Engine
from .epoch_log import log_to
from .rows import MEMORY_SHARE, PictureRows, SourceRows, free_memory, statistics
from .threads import considerate

CHECK_ROWS = 100_000  # rows on which the use of codewords is counted after training
MAX_COUNT = 2**31 - 1  # of epochs, of rows in a batch, and the largest seed
CHECK_PICTURES = 1_000  # and pictures, each of which costs a pass through the network
HEADER = 1 << 16  # bytes of a model's file that hold no weights
MAX_BITS = 4096  # of a code: longer ones are no short codes, and a slip of the keyboard must not fill the memory


@dataclass(frozen=True)
class Request:
    """What to train, in the words of the command line. `settings` go to the method's Config or the encoder's."""

    method: str = "scq"
    bits: int = 32
    nbits: int = 8
    encoder: str = "auto"  # the method's own choice: mlp, or linear where rows are embeddings already
    seed: int = 0
    epochs: int | None = None
    batch_size: int | None = None
    device: str = "auto"
    precision: str = "float32"  # of the encoder's products in training steps; of devices.PRECISIONS
    clip_norm: float = 0.0  # largest norm of the gradients of a step; 0: any
    patience: int = 5  # epochs without a better validation value that end a stage; 0: none does
    accumulate: int = 1  # parts that a batch goes through the network in, one after the other, to save memory
    encoder_args: Mapping[str, str] = field(default_factory=dict)  # of the factory of a network for pictures
    weights: PathLike | None = None  # file that such a network starts from
    start: PathLike | None = None  # model whose network and classifier stay as they are: codebooks alone are trained
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Traces:
    """What a training leaves behind on its way. Nothing of it changes the result."""

    checkpoints: PathLike | None = None  # folder, made when the first one is written and removed at the end
    checkpoint_every: int = 0  # steps between two; 0: a minute between two
    resume: bool = False  # go on from the newest checkpoint
    metrics: PathLike | None = None  # file of JSON lines, one an epoch
    tensorboard: PathLike | None = None  # folder


def asked(options: Mapping[str, Any]) -> tuple[Request, Traces]:
    """Options of the command line, by name -> what to train, and what to leave behind on the way."""
    of_traces = {f.name for f in fields(Traces)}
    traces = Traces(**{name: value for name, value in options.items() if name in of_traces})
    return Request(**{name: value for name, value in options.items() if name not in of_traces}), traces


@dataclass(frozen=True)
class Plan:
    """A Request with every name looked up and every setting checked, before any row is read."""

    request: Request
    method: type[Method]
    config: Any
    encoder: type[Any] | None
    encoder_config: Any
    device: str
    M: int
    nbits: int
    network: Any = None  # encoders.backbone.Backbone, where rows are pictures
    start: Model | None = None
    labels: Labels | None = None  # of the training rows, by the classes that are told apart

    @property
    def needs(self) -> frozenset[str]:
        """What the method needs of the rows under its settings."""
        return needs_of(self.method, self.config)

    def shape(self, source: Source | None) -> None:
        """Have pictures come in the size that the network takes."""
        if source is not None and self.network is not None:
            if source.modality != self.network.modality:
                raise ConfigError(
                    f"{source.name} holds {source.modality.noun}, encoder {self.request.encoder} takes "
                    f"{self.network.modality.noun}"
                )
            source.adapt(self.network)

    def d_in(self, source: Source) -> int:
        """Dimension of what is encoded: of the rows, of either half of pairs, or of what the network makes of pictures."""
        if self.network is not None:
            return int(self.network.width)
        return source.d // 2 if source.pairs else source.d


# ------------------------------------------------------------------------------------------------------------- planning
def method_class(name: str) -> type[Method]:
    """The method registered under `name`. Raises ConfigError with the known names."""
    name = ALIASES.get(name, name)
    if name in MISTAKEN:
        raise ConfigError(f"there is no method '{name}': {MISTAKEN[name]}")
    if name not in REGISTRY:
        raise ConfigError(f"unknown method '{name}'{suggestion(name, REGISTRY)}; there are {', '.join(REGISTRY)}")
    module, _, cls = REGISTRY[name].partition(":")
    try:
        found: type[Method] = getattr(import_module(module), cls)
    except Exception as error:
        lacking = missing(error, f"method {name}")
        if lacking is None:
            raise
        raise lacking from error
    return found


def plan(request: Request, source: Source, validation: Source | None = None) -> Plan:
    """Check everything that can be known before the first row is read. Raises ConfigError or DataError."""
    request = replace(request, method=ALIASES.get(request.method, request.method), settings=flat(request.settings))
    method = method_class(request.method)
    of_method = settings(method.Config)
    if source.modality.needs_encoder:  # what such an encoder calls by the same name is the encoder's
        of_pictures = settings(encoder_class(source.modality.encoder).Config)
        of_method = {key: f for key, f in of_method.items() if key not in of_pictures}
    values = {key: value for key, value in request.settings.items() if key in of_method}
    for key, choices in method.PRESETS.items():
        values = choices.get(str(values.get(key)), {}) | values
    config = configure(method.Config, values)
    start = model_to_start_from(request, method, source)
    chosen = request.encoder
    if start is not None:
        chosen = start.config["backbone"]["factory"]
    elif chosen == Request.encoder:
        chosen = source.modality.encoder or method.default_encoder(config)
    encoder = encoder_class(chosen) if method.needs_encoder else None
    check_pictures(source, request, chosen, encoder)
    of_encoder = settings(encoder.Config) if encoder else {}
    encoder_values = {key: value for key, value in request.settings.items() if key not in of_method}
    for key in encoder_values:
        if key not in of_encoder:
            near = near_settings(key, [*of_method, *of_encoder])
            raise ConfigError(f"unknown key '{key}' for method {request.method}{near}")
    if encoder is not None and encoder.modality.needs_encoder:
        of_start = of_network(start) if start is not None else {}
        for key in of_start.keys() & encoder_values.keys():
            raise ConfigError(f"{key} is that of the model to start from, {of_start[key]!r}; leave it out")
        # The views that its books learn from are those that the network was trained with, unless told otherwise.
        before = start.config.get("settings", {}) if start is not None else {}
        views = {key: value for key, value in before.items() if key in of_encoder}
        encoder_values = {**method.encoder_defaults, **views, **encoder_values, **of_start}
    encoder_config = configure(encoder.Config, encoder_values) if encoder else None
    check_request(request)
    if request.accumulate > 1 and not method.separable:
        raise ConfigError(
            f"method {request.method} compares the rows of a batch with one another: parts of it (--accumulate) would "
            "compare fewer; use a smaller --batch-size"
        )
    needs = needs_of(method, config)
    for rows in (source, validation):
        if rows is not None:
            check_pairs(rows, request.method, "pairs" in needs)
    if "labels" in needs and source.labels is None:
        raise DataError(
            f"{source.name} has no labels, which method {request.method} needs; {source.modality.give_labels}"
        )
    if "labels" not in needs and source.labels is not None:
        warn(f"method {request.method} does not use labels: they are ignored")
    if start is not None:
        align_with(start, source)
    labels = source.labels if "labels" in needs else None
    if validation is not None:
        if labels is not None:
            classes.align_to(validation, source)
        check_validation(validation, source, labels)
    if labels is not None:
        labels = (
            class_numbers.trained(labels, source.name)
            if start is None
            else class_numbers.of_start(labels, start, source.name)
        )
    if not method.needs_encoder:
        for option, ignored in (
            ("--encoder", request.encoder != Request.encoder),
            ("--epochs", request.epochs is not None),
            ("--batch-size", request.batch_size is not None),
            ("--validation", validation is not None),
            ("--precision", request.precision != Request.precision),
            ("--clip-norm", request.clip_norm != Request.clip_norm),
        ):
            if ignored:
                warn(f"method {request.method} has no use for {option}: it is ignored")
    C, many = (labels.C, labels.many) if labels else (0, False)
    if 48 * C * C > free_memory():  # a handful of (C, C) matrices in float64
        raise ResourceError(
            f"{source.name}: centers of {C:,} classes need about {size(48 * C * C)}, {size(free_memory())} free; "
            "are the labels class numbers?"
        )
    M, nbits = method.shape(C, many, *split_bits(request.bits, request.nbits))
    device, network = pick_device(request.device), None
    if encoder is not None and encoder.modality.needs_encoder:
        network = make_network(request, chosen, encoder, encoder_config, start)
        chosen = network.factory
    request = replace(request, encoder=chosen)
    found = Plan(request, method, config, encoder, encoder_config, device, M, nbits, network, start, labels)
    for rows in (source, validation):
        found.shape(rows)
    method.check(config, found.d_in(source), C, M, nbits, chosen, source.modality)
    return found


def check_pictures(source: Source, request: Request, chosen: str, encoder: type[Any] | None) -> None:
    """Raise ConfigError unless pictures meet an encoder for pictures, and rows one for rows."""
    if source.modality.needs_encoder and encoder is None:
        raise ConfigError(
            f"{source.name} holds {source.modality.noun}, method {request.method} takes rows of features; "
            f"{source.modality.make_features}"
        )
    takes = encoder.modality if encoder is not None else ROWS
    if source.modality != takes:
        how = f"; {source.modality.choose_encoder}" if source.modality.choose_encoder else ""
        raise ConfigError(f"{source.name} holds {source.modality.noun}, encoder {chosen} takes {takes.noun}{how}")
    if not takes.needs_encoder:
        for option, given in (("--weights", request.weights), ("--encoder-arg", request.encoder_args)):
            if given:
                raise ConfigError(f"{option} goes with a network for pictures, encoder {chosen} is none")


def make_network(request: Request, name: str, encoder: type[Any], config: Any, start: Model | None) -> Any:
    """The network for pictures of that name, with its weights, or with those of a model; reads no rows."""
    if start is not None:
        from ..encoders.record import from_record

        assert start.backbone is not None
        trusted = None if request.encoder == Request.encoder else request.encoder
        found = from_record(start.backbone, start.config["backbone"], trusted=trusted)
        made = encoder(config, found.net, found.factory, found.arguments, request.seed)
        made.load_state_dict(found.state_dict())
        made.standardise(found.channels, found.deviations)
        return made
    return encoder.build(config, name, request.encoder_args, request.weights, request.seed)


def model_to_start_from(request: Request, method: type[Method], source: Source) -> Model | None:
    """The model of --start. Raises ConfigError where the method, the rows or other options do not go with it."""
    if request.start is None:
        return None
    name = shown(request.start)
    if not method.starts:
        raise ConfigError(
            f"method {request.method} cannot start from a model: its codebooks and its network learn together"
        )
    for option, given in (
        ("--weights", request.weights is not None),
        ("--encoder-arg", bool(request.encoder_args)),
    ):
        if given:
            raise ConfigError(f"{option} goes with a network that is trained, that of {name} stays as it is")
    from ..encoders.record import check_record

    model = Model.load(request.start)
    if not model.modality == source.modality == IMAGES:
        what = f"{name} has no network for pictures" if model.modality != IMAGES else f"{source.name} holds no pictures"
        raise ConfigError(f"{what}; only trainings on pictures, which take long, start from one another")
    try:
        factory = check_record(model.config["backbone"])["factory"]
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    if request.encoder != Request.encoder and BACKBONES.get(request.encoder, request.encoder) != factory:
        raise ConfigError(f"encoder {request.encoder} is not that of {name}, {factory}")
    return model


def align_with(start: Model, source: Source) -> None:
    """Number the classes of pictures as the classifier of a trained model does. Raises ConfigError where it knows others."""
    assert isinstance(source, ItemSource) and source.labels is not None
    names, kind = start.config.get("class_names"), "many" if source.labels.many else "one"
    if start.config.get("labels") != kind:
        raise ConfigError(
            f"{source.name} has {kind} label{'s' if kind == 'many' else ''} a picture, the model to start from was trained with "
            f"{start.config.get('labels')}"
        )
    if names:
        source.align(names, "the model to start from")
    elif source.labels.class_names:
        source.labels = classes.unnamed(source.labels, source.name, "the model to start from")


def of_network(model: Model) -> dict[str, Any]:
    """The settings of a model's network that decide what its features are."""
    found = model.config["backbone"]
    settings = {key: found.get(key) for key in ("size", "fit", "pool", "mirror", "channels_last")}
    return settings | {"layers": ",".join(found.get("layers", ()))}


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


def check_request(request: Request) -> None:
    """Raise ConfigError for numbers out of range or of another type, and for an unknown precision."""
    for what, value, low in (
        ("bits", request.bits, -MAX_COUNT),  # its range follows from nbits, see split_bits
        ("nbits", request.nbits, -MAX_COUNT),
        ("seed", request.seed, 0),
        ("epochs", request.epochs, 0),
        ("batch size", request.batch_size, 1),
        ("patience", request.patience, 0),
        ("accumulate", request.accumulate, 1),
    ):
        if value is not None or what not in ("epochs", "batch size"):
            check_whole(what, value, low)
    check_precision(request.precision)
    clip = request.clip_norm
    if isinstance(clip, bool) or not isinstance(clip, int | float | np.number) or not 0 <= clip < float("inf"):
        raise ConfigError(f"the largest norm of gradients is {clip!r}, needs a number from 0")


def check_whole(what: str, value: Any, low: int) -> None:
    """Raise ConfigError unless `value` is a whole number from `low` to MAX_COUNT."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ConfigError(f"{what} is {value!r}, needs a whole number")
    if value < low:
        raise ConfigError(f"{what} is {value}, needs {low} or more")
    if value > MAX_COUNT:
        raise ConfigError(f"{what} is {value}, needs {low} to {MAX_COUNT}")


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
    if theirs.many != labels.many or (labels.many and theirs.C != labels.C):
        kinds = [f"{'many labels' if of.many else 'one label'} a row and {of.C} classes" for of in (theirs, labels)]
        raise ConfigError(f"{validation.name} has {kinds[0]}, {source.name} has {kinds[1]}")


def split_bits(bits: int, nbits: int) -> tuple[int, int]:
    """(M, nbits) of codes of `bits` bits. Raises ConfigError with the nearest lengths that work."""
    if not 1 <= nbits <= 16:
        raise ConfigError(f"nbits is {nbits}, needs 1 to 16")
    if bits > MAX_BITS:
        raise ConfigError(f"bits is {bits:,}, needs {nbits} to {MAX_BITS:,}")
    if bits < 1 or bits % nbits:
        below = bits // nbits * nbits
        near = f"{below} or {below + nbits}" if below > 0 else f"{nbits}"
        raise ConfigError(f"bits={bits} is not a multiple of nbits={nbits}; need {near}")
    return bits // nbits, nbits


def pick_device(name: str) -> str:
    """'auto', 'cpu', 'cuda' or 'cuda:N' -> a device torch has. Raises ConfigError.

    'cuda' is a GPU of its own for each of several processes.
    """
    number = int(os.environ.get("LOCAL_RANK", "0")) if distributed.launched() > 1 else None
    return torch_device(name, number=number)


# ------------------------------------------------------------------------------------------------------------- training
def build(
    what: Plan,
    source: Source,
    codebook_source: Source | None = None,
    validation: Source | None = None,
    *,
    memory: int | None = None,
    progress: Progress = silent,
    dry: bool = False,
) -> Method:
    """The method of a Plan on the rows of a source, ready for its stages. dry=True reads no features."""
    request, labels, kept = what.request, None, None
    if len(source) == 0:
        raise DataError(f"{source.name} holds 0 rows, training needs at least 1")
    if "labels" in what.needs:
        from ..methods.labelled_rows import labelled_rows

        assert what.labels is not None
        kept = labelled_rows(what.labels, request.method, getattr(what.config, "unlabeled", "error"))
        labels = what.labels if kept is None else what.labels.take(kept)
    d = what.d_in(source)
    what.shape(codebook_source)

    share = 0 if dry else memory

    def rows_of(source: Source, kept: Ints | None = None) -> SourceRows | PictureRows:
        nonlocal share
        if not isinstance(source, ItemSource):
            return SourceRows(source, what.device, share, kept)
        found = PictureRows(source, d, what.device, share, kept)
        if (
            share is not None and found.x is not None
        ):  # of one share all parts are held: pictures come alike, held or not
            share -= found.x.nbytes
        return found

    if codebook_source is not None:
        if what.network is None and codebook_source.d != d:
            raise ConfigError(f"{codebook_source.name}: rows have d={codebook_source.d}, {source.name} has d={d}")
        if len(codebook_source) == 0:
            raise DataError(f"{codebook_source.name} holds 0 rows, codebooks need at least 1")
    rows = rows_of(source, kept)
    codebook_rows = rows_of(codebook_source) if codebook_source else None
    encoder = None
    if what.network is not None:
        encoder = what.network.to(what.device)
        encoder.precision = torch_dtype(request.precision)
    elif what.encoder is not None:
        assert isinstance(rows, SourceRows)
        stats = Stats(1, np.zeros(d), np.ones(d), np.zeros(d), np.ones(d), 0.0) if dry else statistics(rows, d)
        members = what.method.members(what.config, request.encoder)
        encoder = what.encoder(what.encoder_config, stats, members).to(what.device)
        encoder.precision = torch_dtype(request.precision)
    held = None
    if validation is not None and what.method.needs_encoder:
        if labels is None or validation.labels is None:
            held = Part(rows_of(validation), None, validation.ids)
        else:
            theirs, known = class_numbers.of_validation(validation.labels, labels, validation.name)
            held = Part(rows_of(validation, known), theirs, validation.ids if known is None else validation.ids[known])
    task = Task(
        rows=rows,
        labels=labels,
        M=what.M,
        nbits=what.nbits,
        seed=request.seed,
        encoder=encoder,
        encoder_name=request.encoder if encoder is not None else "",
        head=None if what.start is None else what.start.chain.layers,
        codebook_rows=codebook_rows,
        validation=held,
        ids=source.ids if kept is None else source.ids[kept],
        epochs=request.epochs,
        batch_size=request.batch_size,
        device=what.device,
        progress=progress,
    )
    method = what.method(what.config, task)
    if isinstance(method, torch.nn.Module):
        method.to(what.device)
    return method


def fit(
    what: Plan,
    source: Source,
    codebook_source: Source | None = None,
    validation: Source | None = None,
    *,
    traces: Traces = Traces(),
    memory: int | None = None,
    progress: Progress = silent,
    slot: Slot | None = None,
) -> Model:
    """Train what a Plan asks for. Same rows, same settings, same machine: the same bytes (on CPU).

    slot: where to prepare the model's file, for which room is asked before the first step.
    """
    distributed.one_thread_after_fork()
    request = what.request
    devices = [torch.device(what.device)] if what.device != "cpu" else []
    check_whole("checkpoint-every", traces.checkpoint_every, 0)
    with log_to(traces.metrics, traces.tensorboard) as log, torch.random.fork_rng(devices=devices), considerate():
        torch.manual_seed(request.seed)  # forked: the caller's random state stays as it was
        kept = None
        if traces.checkpoints is not None:
            writes, every = distributed.rank() == 0, traces.checkpoint_every
            kept = Checkpoints(traces.checkpoints, lambda: identity(what, method.task), every, writes)
            kept.check_start(traces.resume)
            if traces.resume and memory is None:
                # Held or streamed, and how much at a time, decides the order of the rows: as it was, whatever is free now.
                memory = kept.last_hints().get("memory")
        if (
            memory is None and distributed.world() > 1
        ):  # on one machine, as a rule, and all must see one order of the rows
            memory = int(-distributed.agreed(-MEMORY_SHARE * free_memory() / distributed.world()))
        try:
            method = build(what, source, codebook_source, validation, memory=memory, progress=progress)
            if kept is not None and isinstance(method.task.rows, SourceRows | PictureRows):
                kept.hints["memory"] = method.task.rows.memory
            check_room(what, source, method, slot, kept)
            over = kept.finished() if kept is not None and traces.resume else None
            if over is not None:  # all that is missing is its file
                model = Model.from_bytes(over, "the finished model")
                return prepared(model, slot, kept)
            engine = Engine(
                method,
                request.seed,
                request.precision,
                request.clip_norm,
                request.patience,
                request.accumulate,
                progress,
                kept,
                log,
            )
            losses = engine.run(traces.resume)
        except torch.OutOfMemoryError as error:
            raise ResourceError(f"the {what.device} is out of memory; lower --batch-size") from error
        except RuntimeError as error:
            if "allocate memory" not in str(error):  # torch has no class of its own for the memory of the CPU
                raise
            raise ResourceError("out of memory; lower --batch-size, or train on fewer rows or shorter codes") from error
    return prepared(outcome(what, source, method, losses), slot, kept)


def check_room(what: Plan, source: Source, method: Method, slot: Slot | None, kept: Checkpoints | None) -> None:
    """Hold room for the model on its disk. Raises WriteError unless there is, and for the checkpoints that stand side by side."""
    model = 0
    if slot is not None:
        model = model_bytes(what, Chain(what.d_in(source)).then(*method.layers()))
        slot.check_space(model + HEADER)
    if kept is not None and isinstance(method, torch.nn.Module):
        stages = sum(stage.epochs > 0 for stage in method.stages())
        state = sum(t.nbytes for t in method.state_dict().values())
        # As it is, as finished stages left it, the best one; and two moments of each parameter, as the optimisers keep them.
        copies = max(stages, 1) + (method.task.validation is not None)
        kept.check_room(copies * state + 2 * sum(p.nbytes for p in method.parameters()), slot, model)
    if slot is not None:
        slot.hold(model + HEADER)


def model_bytes(what: Plan, chain: Chain) -> int:
    """About the bytes of the model's file."""
    shape = Shape(what.method.kind(what.config), what.M, what.nbits, chain.d_out)
    of_books = shape.K * shape.d * (shape.M if shape.kind == "additive" else 1)
    weights = sum(a.size for _, arrays in chain.layers for a in arrays.values()) + of_books
    if what.network is not None:
        weights += sum(t.numel() for t in what.network.state_dict().values())
    return 4 * weights


def prepared(model: Model, slot: Slot | None, kept: Checkpoints | None) -> Model:
    """The model, with its file ready to take its place; where that fails, the training is not lost."""
    if slot is None:
        return model
    try:
        model.prepare(slot)
    except (WriteError, CheckpointError) as error:
        there = kept.keep(model.to_bytes()) if kept is not None else ""
        if not there or kept is None:
            raise
        folder = shown(kept.folder)
        raise type(error)(
            f"{error}; {there}: make room and type the same with --resume, or with --resume --checkpoints {folder} and "
            "another -o"
        ) from error
    return model


def outcome(what: Plan, source: Source, method: Method, losses: Any) -> Model:
    """The model that a trained method comes to, with all that its file tells of the training."""
    request = what.request
    chain = Chain(what.d_in(source)).then(*method.layers())
    books: Codebooks = method.codebooks()
    labels = what.labels
    unlabeled = int((labels.y.sum(1) == 0).sum()) if labels and labels.many else 0  # present only with unlabeled=drop
    config = {
        "method": request.method,
        "long_name": what.method.long_name,
        "rule": method.rule,
        "bits": books.bits,
        "encoder": request.encoder if what.method.needs_encoder else "identity",
        "seed": request.seed,
        "settings": recorded(what.config) | (recorded(what.encoder_config) if what.encoder else {}),
        "C": labels.C if labels else 0,
        "labels": "none" if labels is None else "many" if labels.many else "one",
        "class_names": list(source.labels.class_names)
        if labels and source.labels and source.labels.class_names
        else None,
        "training": {"rows": len(source), "skipped_rows": source.dropped, "unlabeled_rows": unlabeled, "loss": losses}
        | method.summary(),
    }
    if labels and labels.numbers is not None:
        config["classes"] = labels.numbers.tolist()
    if method.beam != 1:
        config["beam"] = method.beam
    if method.nested:
        config["nested"] = True
    weights = None
    if what.network is not None:
        weights, config["backbone"] = what.network.record()
    model = Model(chain, books, config, weights)
    use, looked_at = codeword_use(model, source, what.network)
    model.config["training"]["codewords_used"] = use
    for m, used in enumerate(use):
        if used <= max(1.0, 0.02 * min(books.K, looked_at)) and len(source) > 1:
            warn(f"codebook {m} uses {used} of {books.K} codewords")
    return model


def identity(what: Plan, task: Task) -> dict[str, Any]:
    """Everything that decides what a training comes to, as plain values: a checkpoint of another one is refused."""
    request = what.request
    named = ("method", "encoder", "seed", "epochs", "batch_size", "precision", "clip_norm", "accumulate")
    out: dict[str, Any] = {name: getattr(request, name) for name in named}
    out |= {"bits": what.M * what.nbits, "nbits": what.nbits, "device": torch.device(what.device).type}
    out |= {"scqfaiss": __version__, "torch": torch.__version__, "processes": distributed.world()}
    if task.labels is not None:
        out |= {"classes": task.labels.C, "class names": list(task.labels.class_names or ())}
    out |= {"training rows": fingerprint(Part(task.rows, task.labels, task.ids))}
    if task.codebook_rows is not None:
        out["codebook rows"] = fingerprint(Part(task.codebook_rows))
    if task.validation is not None:
        out |= {"patience": request.patience, "validation rows": fingerprint(task.validation)}
    values = flat(what.config) | (flat(what.encoder_config) if what.encoder else {})
    out |= {f"setting {name}": value for name, value in values.items()}
    out |= {f"argument {name}": value for name, value in request.encoder_args.items()}
    for name in [*_files(values), *(f for f in (request.weights, request.start) if f is not None)]:
        with open_regular(name) as f:
            out[f"contents of {shown(name)}"] = hashlib.sha256(f.read()).hexdigest()
    return out


def fingerprint(part: Part) -> str:
    """SHA-256 (hex) of rows, labels and ids."""
    sha = hashlib.sha256(f"{len(part.rows)} {part.rows.d}".encode())
    if isinstance(part.rows, PictureRows):
        sha.update(part.rows.digest().encode())
    else:
        for _, x in part.rows.blocks():
            sha.update(np.ascontiguousarray(x).data)
    for a in (part.labels.y if part.labels else None, part.ids):
        sha.update(b"none" if a is None else f"{a.dtype} {a.shape}".encode() + a.tobytes())
    if part.labels and part.labels.numbers is not None:
        sha.update(part.labels.numbers.tobytes())
    return sha.hexdigest()


def recorded(config: Any) -> dict[str, Any]:
    """Settings as a model keeps them: file names without their folders, so that no path enters the artefact."""
    return {k: v.rpartition("/")[2] if isinstance(v, str) else v for k, v in flat(config).items()}


def codeword_use(model: Model, source: Source, network: Any = None) -> tuple[list[int], int]:
    """How many codewords of each book the first rows use, or pictures evenly spaced; and how many were looked at."""
    seen = np.zeros((model.codebooks.M, model.codebooks.K), bool)

    def blocks() -> Iterator[Floats]:
        if isinstance(source, ItemSource):
            for rows in np.array_split(pictures, -(-n // source.block_rows)):
                yield network.features(source.take(rows))
            return
        for i in range(0, n, source.block_rows):
            x = source.read(i, min(i + source.block_rows, n))
            yield x[:, -model.d_in :]  # of pairs the keys, which stand behind their queries

    n = min(len(source), CHECK_PICTURES if source.modality.needs_encoder else CHECK_ROWS)
    pictures = np.linspace(0, len(source) - 1, n).astype(np.int64)
    for x in blocks():
        codes = model.encode(x)
        for m in range(model.codebooks.M):
            seen[m, codes[:, m]] = True
    return [int(s) for s in seen.sum(1)], n


# ------------------------------------------------------------------------------------------------------------ interface
def train(
    x: Any,
    y: Any = None,
    *,
    keys: Any = None,
    ids: Any = None,
    method: str = "scq",
    bits: int = 32,
    nbits: int = 8,
    encoder: str = "auto",
    codebook_rows: Any = None,
    seed: int = 0,
    epochs: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    precision: str = "float32",
    clip_norm: float = 0.0,
    patience: int = 5,
    validation: Any = None,
    checkpoints: PathLike | None = None,
    checkpoint_every: int = 0,
    resume: bool = False,
    metrics: PathLike | None = None,
    tensorboard: PathLike | None = None,
    class_names: Any = None,
    progress: Progress = silent,
    **settings: Any,
) -> Model:
    """Train a quantizer on arrays.

    x (n, d_in) float16, float32 or float64; y (n,) class numbers, or (n, C) 0/1 for many labels a row; codebook_rows
    (n2, d_in) rows without labels that the codebooks learn from. For methods that learn from pairs x are the queries, keys
    (n, d_in) what answers each, and ids (n,) the keys' ids, which repeat where queries share a key (default: none does).
    validation: (x, y), or (queries, keys, ids) of pairs, ids optional, that train nothing: after each epoch the
    loss on them is taken, each stage ends with what was best on them, and earlier after `patience` epochs without a better
    one. precision, clip_norm: see Request; checkpoints to tensorboard: see Traces, but that the folder of checkpoints stays:
    remove it once the model is saved. `settings` are the method's or the
    encoder's own (`--set` on the command line).
    Raises DataError on bad arrays, ConfigError on settings that cannot work, ResourceError when memory runs out.
    """
    source: Source
    held: Source | None = None
    if keys is None:
        source = ArraySource(x, y, ids, class_names, name="x", allow_duplicate_ids=True)
    elif y is not None:
        raise ConfigError("y and keys were given: labels are of rows, and pairs have none")
    else:
        source = PairSource.of_arrays(x, keys, ids)
    books = None if codebook_rows is None else ArraySource(codebook_rows, name="codebook_rows")
    if validation is not None and keys is not None:
        if not isinstance(validation, tuple) or len(validation) not in (2, 3):
            raise ConfigError("validation of pairs needs (queries, keys) or (queries, keys, ids)")
        held = PairSource.of_arrays(*validation, names=("validation queries", "validation keys"))
    elif validation is not None:
        parts = validation if isinstance(validation, tuple) else (validation, None)
        if len(parts) != 2:
            raise ConfigError(f"validation is a tuple of {len(parts)}, needs (x, y), or x alone without labels")
        held = ArraySource(*parts, name="validation")
    request = Request(
        method,
        bits,
        nbits,
        encoder,
        seed,
        epochs,
        batch_size,
        device,
        precision,
        clip_norm,
        patience,
        settings=settings,
    )
    traces = Traces(checkpoints, checkpoint_every, resume, metrics, tensorboard)
    if resume and checkpoints is None:
        raise ConfigError("resume needs the folder of the checkpoints: checkpoints=...")
    return fit(plan(request, source, held), source, books, held, traces=traces, progress=progress)


def train_file(
    path: PathLike,
    out: PathLike,
    request: Request,
    *,
    codebook_rows: PathLike | None = None,
    validation: PathLike | None = None,
    traces: Traces = Traces(),
    keys: Mapping[str, Any],
    progress: Progress = silent,
    memory: int | None = None,
) -> str:
    """Train on a file of rows and write the model; returns what to tell the user. keys: arguments of open_rows.

    Checkpoints go into MODEL.checkpoints unless traces name another folder. Where torchrun started several processes they
    train together, and the first one writes; the others return "".
    """
    files = (path, codebook_rows, validation, request.weights, request.start, *_files(request.settings))
    inputs = [p for p in files if p is not None]
    with distributed.joined(pick_device(request.device)), ExitStack() as stack:
        slot, folder = None, Path(os.path.realpath(out)).with_suffix(".checkpoints")
        if distributed.rank() == 0:
            slot = stack.enter_context(reserve(out, inputs=inputs, suffix=SUFFIX, what="trained"))
        else:
            traces, progress = replace(traces, metrics=None, tensorboard=None), silent
        traces = replace(traces, checkpoints=traces.checkpoints or folder)
        if os.path.realpath(traces.checkpoints or "") == os.path.realpath(out):
            raise ConfigError(f"{shown(out)} is the model; choose another folder for checkpoints")
        checkpoints = Checkpoints(traces.checkpoints or folder)
        with opened(path, codebook_rows, validation, keys, request.method) as (source, books, held):
            what = plan(request, source, held)
            with signals.saying(lambda: "stopped; continue with --resume" if checkpoints.steps() else None):
                model = fit(what, source, books, held, traces=traces, memory=memory, progress=progress, slot=slot)
        # Closing says whether the rows were changed while they were read: only then does the file take its place.
        if slot is None:
            return ""
        slot.place()
        checkpoints.clear()
    return f"{slot.name}: {describe(model)}"


@contextmanager
def opened(
    path: PathLike,
    codebook_rows: PathLike | None,
    validation: PathLike | None,
    keys: Mapping[str, Any],
    method: str,
) -> Iterator[tuple[Source, Source | None, Source | None]]:
    """The training rows of a method, and rows for codebooks and validation where there are any; of those for codebooks
    labels stay unread, and of pairs the queries. Ids may repeat: they play no part, but for pairs.
    """
    role = "pairs" if "pairs" in method_class(method).needs else None
    of_rows: dict[str, Any] = {"role": role, "needed_by": f"method {method}", "repeated_ids": True}
    with ExitStack() as stack:
        source = stack.enter_context(open_rows(path, **keys, **of_rows))
        source.warn_if_wide()
        books = held = None
        if codebook_rows is not None:
            of_books = {**keys, "labels_key": None} | ({"features_key": None} if role == "pairs" else {})
            books = stack.enter_context(open_rows(codebook_rows, **of_books, role="keys", repeated_ids=True))
        if validation is not None:
            held = stack.enter_context(open_rows(validation, **keys, **of_rows))
        yield source, books, held


def _files(values: Mapping[str, Any]) -> list[str]:
    return [v for v in values.values() if isinstance(v, str) and v.endswith(".npy")]


def describe(model: Model) -> str:
    """One line about a model."""
    b, use = model.codebooks, model.config["training"]["codewords_used"]
    return (
        f"{model.config['method']}, {b.bits} bits ({b.M} x {b.nbits}), rows of d={model.d_in} to z of d={b.d}, "
        f"codewords used {min(use)} to {max(use)} of {b.K}, {model.config['long_name']}, SHA-256 {model.sha256[:12]}"
    )


def dry_run(
    path: PathLike,
    out: PathLike,
    request: Request,
    *,
    codebook_rows: PathLike | None = None,
    validation: PathLike | None = None,
    keys: Mapping[str, Any],
) -> str:
    """What a training would do: rows, steps, bytes, and which targets take its codes where.

    Writes nothing, and reads no features unless similarity=means asks for class means.
    """
    from ..targets import REGISTRY as TARGETS

    files = (path, codebook_rows, validation, request.weights, request.start, *_files(request.settings))
    inputs = [p for p in files if p is not None]
    check_target(out, inputs=inputs, suffix=SUFFIX)
    with opened(path, codebook_rows, validation, keys, request.method) as (source, books, held):
        what = plan(request, source, held)
        method = build(what, source, books, held, dry=True)
        stages = method.stages()
        n, chain = len(source), Chain(what.d_in(source)).then(*method.layers())
    shape = Shape(what.method.kind(what.config), what.M, what.nbits, chain.d_out)
    form = f"of d={what.d_in(source)} ({size(4 * n * source.d)} as float32)"
    if isinstance(source, ItemSource):
        form = f"{source.form} ({size(n * source.d)}), to features of d={what.d_in(source)}"
    lines = [
        f"{'pairs' if source.pairs else source.modality.items}: {n:,} {form}",
        f"classes: {class_numbers.described(what.labels)}",
        f"codes: {shape.M} x {shape.nbits} bits, {shape.code_size} bytes a vector, z of d={shape.d}",
        f"model: about {size(model_bytes(what, chain))}",
        *(f"stage {s.name}: {s.epochs} epochs, {s.epochs * s.steps_per_epoch:,} steps" for s in stages if s.epochs),
        f"device: {what.device}",
    ]
    for name in TARGETS:
        lines.append(verdict(name, shape))
    return "\n".join(lines)


def verdict(name: str, shape: Shape) -> str:
    """A line about target `name` for codes of this shape: bytes for a million rows, CPU and GPU."""
    try:
        from ..targets import gpu, target

        container = target(name)
    except Exception as error:
        lacking = missing(error)
        if lacking is None:
            raise
        return f"target {name}: unknown: {lacking}"
    reason = container.supports(shape)
    if reason is not None:
        return f"target {name}: no ({reason})"
    on_gpu = gpu.reason(shape)
    answer = f"CPU yes, GPU {'yes' if on_gpu is None else f'no ({on_gpu})'}"
    return f"target {name}: {size(container.nbytes(shape, 1_000_000))} a million rows, {answer}"
