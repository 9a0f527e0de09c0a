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
from torch import Generator, Tensor

from . import __version__, parallel
from .arrays import Floats, Ints, Labels
from .checkpoints import Checkpoints
from .codebooks import Codebooks, Shape
from .contract import Method, Part, Progress, Task, batch_count, configure, needs_of, settings, silent
from .data import ArraySource, Source, open_rows
from .data.pairs import PairSource
from .encoders import encoder_class
from .encoders.base import Stats
from .encoders.chain import Chain
from .engine import PRECISIONS, Engine
from .errors import ConfigError, DataError, ResourceError, shown, size, suggestion, warn
from .files import PathLike, check_target, open_regular, reserve
from .methods import ALIASES, MISTAKEN, REGISTRY
from .metrics import log_to
from .model import SUFFIX, Model, read_ahead

MEMORY_SHARE = 0.4  # of the free memory, for rows held at a time; more than that is streamed
CHECK_ROWS = 100_000  # rows on which the use of codewords is counted after training
MAX_COUNT = 2**31 - 1  # of epochs, of rows in a batch, and the largest seed
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
    precision: str = "float32"  # of the encoder's products in training steps; a key of engine.PRECISIONS
    clip_norm: float = 0.0  # largest norm of the gradients of a step; 0: any
    patience: int = 5  # epochs without a better validation value that end a stage; 0: none does
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

    @property
    def needs(self) -> frozenset[str]:
        """What the method needs of the rows under its settings."""
        return needs_of(self.method, self.config)

    def d_in(self, source: Source) -> int:
        """Dimension of what is encoded: of the rows, or of either half of pairs."""
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
    except ModuleNotFoundError as error:
        if error.name != "faiss":
            raise
        raise ConfigError(f'method {name} needs FAISS: pip install "scqfaiss[cpu]"') from None
    return found


def plan(request: Request, source: Source, validation: Source | None = None) -> Plan:
    """Check everything that can be known before the first row is read. Raises ConfigError or DataError."""
    request = replace(request, method=ALIASES.get(request.method, request.method))
    method = method_class(request.method)
    of_method = settings(method.Config)
    values = {key: value for key, value in request.settings.items() if key in of_method}
    for key, choices in method.PRESETS.items():
        values = choices.get(str(values.get(key)), {}) | values
    config = configure(method.Config, values)
    chosen = request.encoder if request.encoder != Request.encoder else method.default_encoder(config)
    encoder = encoder_class(chosen) if method.needs_encoder else None
    of_encoder = settings(encoder.Config) if encoder else {}
    encoder_values = {key: value for key, value in request.settings.items() if key not in of_method}
    for key in encoder_values:
        if key not in of_encoder:
            near = suggestion(key, [*of_method, *of_encoder])
            raise ConfigError(f"unknown key '{key}' for method {request.method}{near}")
    encoder_config = configure(encoder.Config, encoder_values) if encoder else None
    check_request(request)
    needs = needs_of(method, config)
    for rows in (source, validation):
        if rows is not None:
            check_pairs(rows, request.method, "pairs" in needs)
    if "labels" in needs and source.labels is None:
        raise DataError(
            f"{source.name} has no labels, which method {request.method} needs; name them with --labels-key"
        )
    if "labels" not in needs and source.labels is not None:
        warn(f"method {request.method} does not use labels: they are ignored")
    labels = source.labels if "labels" in needs else None
    if validation is not None:
        check_validation(validation, source, labels)
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
    request = replace(request, encoder=chosen)
    found = Plan(request, method, config, encoder, encoder_config, pick_device(request.device), M, nbits)
    method.check(config, found.d_in(source), C, M, nbits, chosen)
    return found


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
    ):
        if value is not None or what in ("bits", "nbits", "seed", "patience"):
            check_whole(what, value, low)
    if request.precision not in PRECISIONS:
        near = suggestion(str(request.precision), PRECISIONS)
        raise ConfigError(f"precision is '{request.precision}', needs one of {', '.join(PRECISIONS)}{near}")
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
    if validation.d != source.d:
        raise ConfigError(f"{validation.name}: rows have d={validation.d}, {source.name} has d={source.d}")
    if len(validation) == 0:
        raise DataError(f"{validation.name} holds 0 rows, validation needs at least 1")
    if labels is None:
        return
    theirs = validation.labels
    if theirs is None:
        raise DataError(f"{validation.name} has no labels, which validation needs; name them with --labels-key")
    if theirs.many != labels.many or theirs.C > labels.C or (labels.many and theirs.C != labels.C):
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
    """'auto', 'cpu', 'cuda' or 'cuda:N' -> a device torch has. Raises ConfigError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and parallel.launched() > 1:
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"  # a GPU for every process
    kind, _, number = name.partition(":")
    if name != "cpu" and (kind != "cuda" or (number and not number.isdecimal()) or name.endswith(":")):
        raise ConfigError(f"device is '{name}', needs auto, cpu, cuda or cuda:N")
    if name != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"device {name} was asked for, but this torch sees no GPU; use --device cpu")
    if number and int(number) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name} was asked for, but this torch sees {torch.cuda.device_count()} GPUs, from cuda:0 on"
        )
    return name


# ----------------------------------------------------------------------------------------------------------------- rows
def free_memory() -> int:
    """Bytes this process may still take: the smaller of free memory and what its control group leaves."""
    with open("/proc/meminfo") as f:
        free = next(int(line.split()[1]) * 1024 for line in f if line.startswith("MemAvailable"))
    try:
        with open("/sys/fs/cgroup/memory.max") as limit, open("/sys/fs/cgroup/memory.current") as used:
            free = min(free, int(limit.read()) - int(used.read()))
    except (OSError, ValueError):  # no control group, or one without a limit ("max")
        pass
    return free


class SourceRows:
    """The rows of a Source for training: held as one tensor if they fit into `memory` bytes, else streamed.

    kept: row numbers to use (default all); every row number given out counts among these.
    """

    def __init__(self, source: Source, device: str, memory: int | None = None, kept: Ints | None = None) -> None:
        self.source, self.device, self.kept, self.d = source, device, kept, source.d
        self.memory = int(MEMORY_SHARE * free_memory()) if memory is None else memory
        self.x: Tensor | None = None
        if 4 * source.d * len(self) <= self.memory:
            x = np.empty((len(self), source.d), np.float32)
            for i, block in self._read():
                x[i : i + len(block)] = block
            self.x = torch.from_numpy(x)

    def __len__(self) -> int:
        return len(self.source) if self.kept is None else len(self.kept)

    def _read(self) -> Iterator[tuple[int, Floats]]:
        place = 0
        for i, x in read_ahead(self.source.blocks()):
            if self.kept is not None:
                low, high = np.searchsorted(self.kept, [i, i + len(x)])
                x = x[self.kept[low:high] - i]
            if len(x):
                yield place, x
            place += len(x)

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        if self.x is None:
            yield from self._read()
            return
        for i in range(0, len(self.x), self.source.block_rows):
            yield i, self.x[i : i + self.source.block_rows].numpy()

    def sample(self, limit: int, seed: int) -> tuple[Floats, Ints]:
        n = len(self)
        rows = np.arange(n)
        if n > limit:
            rows = np.sort(np.random.default_rng(seed).choice(n, limit, replace=False))
        parts = [x[rows[slice(*np.searchsorted(rows, [i, i + len(x)]))] - i] for i, x in self.blocks()]
        return np.concatenate(parts or [np.zeros((0, self.d), np.float32)]), rows

    def batches(self, size: int, generator: Generator, rows: Ints | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        if self.x is not None:
            index = torch.arange(len(self)) if rows is None else torch.from_numpy(rows)
            index = index[torch.randperm(len(index), generator=generator)]
            for part in index.tensor_split(batch_count(len(index), size)):
                yield self.x[part].to(self.device), part.to(self.device)
            return
        yield from self._streamed(size, generator, rows)

    def _streamed(self, size: int, generator: Generator, rows: Ints | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks in random order, several at a time mixed row by row: as near to a full shuffle as memory lets."""
        wanted = np.ones(len(self), bool)
        if rows is not None:
            wanted[:] = False
            wanted[rows] = True
        own = np.arange(len(self.source)) if self.kept is None else self.kept
        step = self.source.block_rows
        starts = torch.randperm(-(-len(self.source) // step), generator=generator).numpy() * step
        at_a_time = max(1, self.memory // (3 * 4 * self.d * step))  # the pool, its shuffled copy, the block being read

        def pools() -> Iterator[tuple[Floats, Ints]]:
            for j in range(0, len(starts), at_a_time):
                xs, indices = [], []
                for i in starts[j : j + at_a_time]:
                    end = min(int(i) + step, len(self.source))
                    low, high = np.searchsorted(own, [i, end])
                    index = np.arange(low, high)[wanted[low:high]]
                    if len(index):
                        xs.append(self.source.read(int(i), end)[own[index] - i])
                        indices.append(index)
                if xs:
                    yield np.concatenate(xs), np.concatenate(indices)

        count = batch_count(int(wanted.sum()), size)
        least, more = divmod(int(wanted.sum()), count)
        sizes = iter([least + 1] * more + [least] * (count - more))  # those of tensor_split
        wants = next(sizes)
        rest_x, rest_index = torch.zeros(0, self.d), torch.zeros(0, dtype=torch.int64)
        for pool_x, pool_index in read_ahead(pools()):
            x, index = (
                torch.cat([rest_x, torch.from_numpy(pool_x)]),
                torch.cat([rest_index, torch.from_numpy(pool_index)]),
            )
            order = torch.randperm(len(x), generator=generator)
            at = 0
            while wants and len(order) - at >= wants:
                part = order[at : at + wants]
                yield x[part].to(self.device), index[part].to(self.device)
                at, wants = at + wants, next(sizes, 0)
            rest_x, rest_index = x[order[at:]], index[order[at:]]


def statistics(rows: SourceRows, d: int | None = None) -> Stats:
    """Mean and standard deviation of x and of its signed square root, in one pass, summed in float64.

    d: dimension of what is encoded, default that of the rows; of pairs half of it, and queries and keys count alike.
    """
    d = d or rows.d
    sums, n = np.zeros((4, d)), len(rows) * rows.d // d
    minimum = np.inf
    for _, x in rows.blocks():
        x = x.reshape(-1, d)
        root = np.copysign(np.sqrt(np.abs(x)), x)
        sums += [
            x.sum(0, dtype=np.float64),
            np.einsum("nd,nd->d", x, x, dtype=np.float64),
            root.sum(0, dtype=np.float64),
            np.einsum("nd,nd->d", root, root, dtype=np.float64),  # not |x|: a constant column must come out as one
        ]
        minimum = min(minimum, float(x.min(initial=np.inf)))
    mean, square, root_mean, root_square = sums / max(n, 1)
    sd, root_sd = (np.sqrt(np.maximum(a - b * b, 0)) for a, b in ((square, mean), (root_square, root_mean)))
    return Stats(n, mean, sd, root_mean, root_sd, minimum)


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
        from .methods.cfa import labelled_rows

        assert source.labels is not None
        kept = labelled_rows(source.labels, request.method, getattr(what.config, "unlabeled", "error"))
        labels = source.labels if kept is None else source.labels.take(kept)
    d = what.d_in(source)
    if codebook_source is not None:
        if codebook_source.d != d:
            raise ConfigError(f"{codebook_source.name}: rows have d={codebook_source.d}, {source.name} has d={d}")
        if len(codebook_source) == 0:
            raise DataError(f"{codebook_source.name} holds 0 rows, codebooks need at least 1")
    rows = SourceRows(source, what.device, 0 if dry else memory, kept)
    codebook_rows = SourceRows(codebook_source, what.device, 0 if dry else memory) if codebook_source else None
    encoder = None
    if what.encoder is not None:
        stats = Stats(1, np.zeros(d), np.ones(d), np.zeros(d), np.ones(d), 0.0) if dry else statistics(rows, d)
        members = what.method.members(what.config, request.encoder)
        encoder = what.encoder(what.encoder_config, stats, members).to(what.device)
        encoder.precision = PRECISIONS[request.precision]
    held = None
    if validation is not None and what.method.needs_encoder:
        of = validation.labels if "labels" in what.needs else None
        of = (
            of and labels and Labels(of.y, labels.C, labels.class_names)
        )  # a part of the rows may lack the last classes
        held = Part(SourceRows(validation, what.device, 0 if dry else memory), of, validation.ids)
    task = Task(
        rows=rows,
        labels=labels,
        M=what.M,
        nbits=what.nbits,
        seed=request.seed,
        encoder=encoder,
        encoder_name=request.encoder if encoder is not None else "",
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
) -> Model:
    """Train what a Plan asks for. Same rows, same settings, same machine: the same bytes (on CPU)."""
    request = what.request
    devices = [torch.device(what.device)] if what.device != "cpu" else []
    check_whole("checkpoint-every", traces.checkpoint_every, 0)
    with log_to(traces.metrics, traces.tensorboard) as log, torch.random.fork_rng(devices=devices):
        torch.manual_seed(request.seed)  # forked: the caller's random state stays as it was
        kept = None
        if traces.checkpoints is not None:
            writes, every = parallel.rank() == 0, traces.checkpoint_every
            kept = Checkpoints(traces.checkpoints, lambda: identity(what, method.task), every, writes)
            kept.check_start(traces.resume)
            if traces.resume and memory is None:
                # Held or streamed, and how much at a time, decides the order of the rows: as it was, whatever is free now.
                memory = kept.last_hints().get("memory")
        if memory is None and parallel.world() > 1:  # on one machine, as a rule, and all must see one order of the rows
            memory = int(-parallel.agreed(-MEMORY_SHARE * free_memory() / parallel.world()))
        try:
            method = build(what, source, codebook_source, validation, memory=memory, progress=progress)
            if kept is not None and isinstance(method.task.rows, SourceRows):
                kept.hints["memory"] = method.task.rows.memory
            engine = Engine(
                method, request.seed, request.precision, request.clip_norm, request.patience, progress, kept, log
            )
            losses = engine.run(traces.resume)
        except torch.OutOfMemoryError as error:
            raise ResourceError(f"the {what.device} is out of memory; lower --batch-size") from error
        except RuntimeError as error:
            if "allocate memory" not in str(error):  # torch has no class of its own for the memory of the CPU
                raise
            raise ResourceError("out of memory; lower --batch-size, or train on fewer rows or shorter codes") from error
    chain = Chain(what.d_in(source)).then(*method.layers())
    books: Codebooks = method.codebooks()
    labels: Labels | None = source.labels if "labels" in what.needs else None
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
        "class_names": list(labels.class_names) if labels and labels.class_names else None,
        "training": {"rows": len(source), "skipped_rows": source.dropped, "unlabeled_rows": unlabeled, "loss": losses}
        | method.summary(),
    }
    if method.beam != 1:
        config["beam"] = method.beam
    if method.nested:
        config["nested"] = True
    model = Model(chain, books, config)
    model.config["training"]["codewords_used"] = use = codeword_use(model, source)
    for m, used in enumerate(use):
        if used <= max(1.0, 0.02 * min(books.K, len(source))) and len(source) > 1:
            warn(f"codebook {m} uses {used} of {books.K} codewords")
    return model


def identity(what: Plan, task: Task) -> dict[str, Any]:
    """Everything that decides what a training comes to, as plain values: a checkpoint of another one is refused."""
    request = what.request
    named = ("method", "encoder", "seed", "epochs", "batch_size", "precision", "clip_norm")
    out: dict[str, Any] = {name: getattr(request, name) for name in named}
    out |= {"bits": what.M * what.nbits, "nbits": what.nbits, "device": torch.device(what.device).type}
    out |= {"scqfaiss": __version__, "torch": torch.__version__, "processes": parallel.world()}
    if task.labels is not None:
        out |= {"classes": task.labels.C, "class names": list(task.labels.class_names or ())}
    out |= {"training rows": fingerprint(Part(task.rows, task.labels, task.ids))}
    if task.codebook_rows is not None:
        out["codebook rows"] = fingerprint(Part(task.codebook_rows))
    if task.validation is not None:
        out |= {"patience": request.patience, "validation rows": fingerprint(task.validation)}
    values = vars(what.config) | (vars(what.encoder_config) if what.encoder else {})
    out |= {f"setting {name}": value for name, value in values.items()}
    for name in _files(values):
        with open_regular(name) as f:
            out[f"contents of {shown(name)}"] = hashlib.sha256(f.read()).hexdigest()
    return out


def fingerprint(part: Part) -> str:
    """SHA-256 (hex) of rows, labels and ids."""
    sha = hashlib.sha256(f"{len(part.rows)} {part.rows.d}".encode())
    for _, x in part.rows.blocks():
        sha.update(np.ascontiguousarray(x).data)
    for a in (part.labels.y if part.labels else None, part.ids):
        sha.update(b"none" if a is None else f"{a.dtype} {a.shape}".encode() + a.tobytes())
    return sha.hexdigest()


def recorded(config: Any) -> dict[str, Any]:
    """Settings as a model keeps them: file names without their folders, so that no path enters the artefact."""
    return {k: v.rpartition("/")[2] if isinstance(v, str) else v for k, v in vars(config).items()}


def codeword_use(model: Model, source: Source) -> list[int]:
    """How many codewords of each book the first rows use."""
    n = min(len(source), CHECK_ROWS)
    seen = np.zeros((model.codebooks.M, model.codebooks.K), bool)
    for i in range(0, n, source.block_rows):
        x = source.read(i, min(i + source.block_rows, n))
        codes = model.encode(x[:, -model.d_in :])  # of pairs the keys, which stand behind their queries
        for m in range(model.codebooks.M):
            seen[m, codes[:, m]] = True
    return [int(s) for s in seen.sum(1)]


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
        method, bits, nbits, encoder, seed, epochs, batch_size, device, precision, clip_norm, patience, settings
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
    files = (path, codebook_rows, validation, *_files(request.settings))
    inputs = [p for p in files if p is not None]
    with parallel.joined(pick_device(request.device)), ExitStack() as stack:
        slot, folder = None, Path(os.path.realpath(out)).with_suffix(".checkpoints")
        if parallel.rank() == 0:
            slot = stack.enter_context(reserve(out, inputs=inputs, suffix=SUFFIX, what="trained"))
        else:
            traces, progress = replace(traces, metrics=None, tensorboard=None), silent
        traces = replace(traces, checkpoints=traces.checkpoints or folder)
        if os.path.realpath(traces.checkpoints or "") == os.path.realpath(out):
            raise ConfigError(f"{shown(out)} is the model; choose another folder for checkpoints")
        with opened(path, codebook_rows, validation, keys, request.method) as (source, books, held):
            what = plan(request, source, held)
            model = fit(what, source, books, held, traces=traces, memory=memory, progress=progress)
        if slot is None:
            return ""
        model.save_to(slot)
        Checkpoints(traces.checkpoints or folder).clear()
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
    from .targets import REGISTRY as TARGETS

    inputs = [p for p in (path, codebook_rows, validation, *_files(request.settings)) if p is not None]
    check_target(out, inputs=inputs, suffix=SUFFIX)
    with opened(path, codebook_rows, validation, keys, request.method) as (source, books, held):
        what = plan(request, source, held)
        method = build(what, source, books, held, dry=True)
        stages = method.stages()
        n, chain = len(source), Chain(what.d_in(source)).then(*method.layers())
    shape = Shape(what.method.kind(what.config), what.M, what.nbits, chain.d_out)
    of_books = shape.K * shape.d * (shape.M if shape.kind == "additive" else 1)
    weights = sum(a.size for _, arrays in chain.layers for a in arrays.values()) + of_books
    lines = [
        f"{'pairs' if source.pairs else 'rows'}: {n:,} of d={what.d_in(source)} ({size(4 * n * source.d)} as float32)",
        f"classes: {source.labels.C if source.labels else 0}",
        f"codes: {shape.M} x {shape.nbits} bits, {shape.code_size} bytes a vector, z of d={shape.d}",
        f"model: about {size(4 * weights)}",
        *(f"stage {s.name}: {s.epochs} epochs, {s.epochs * s.steps_per_epoch:,} steps" for s in stages if s.epochs),
        f"device: {what.device}",
    ]
    for name in TARGETS:
        lines.append(verdict(name, shape))
    return "\n".join(lines)


def verdict(name: str, shape: Shape) -> str:
    """A line about target `name` for codes of this shape: bytes for a million rows, CPU and GPU."""
    try:
        from .targets import gpu, target

        container = target(name)
    except ModuleNotFoundError as error:
        if error.name != "faiss":
            raise
        return f'target {name}: unknown without FAISS: pip install "scqfaiss[cpu]"'
    reason = container.supports(shape)
    if reason is not None:
        return f"target {name}: no ({reason})"
    on_gpu = gpu.reason(shape)
    answer = f"CPU yes, GPU {'yes' if on_gpu is None else f'no ({on_gpu})'}"
    return f"target {name}: {size(container.nbytes(shape, 1_000_000))} a million rows, {answer}"
