"""What training and a method agree on: Task in, Stages to run, Codebooks and a chain of layers out.

Plain Python and NumPy, so that methods trained by torch and baselines trained by FAISS meet the same contract without
either importing the other's library.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from .arrays import Ints, Labels
from .codebooks import Codebooks
from .errors import ConfigError, suggestion
from .modality import Modality

if TYPE_CHECKING:
    from torch import Generator, Tensor

# What a text may say where true or false is needed.
TRUTHS = {"true": True, "false": False, "on": True, "off": False, "1": True, "0": False}

Layers = Sequence[tuple[str, Mapping[str, NDArray[np.float32]]]]
# progress(what, done, total, detail): called often; draws or ignores.
Progress = Callable[[str, int, int, str], None]


def silent(what: str, done: int, total: int, detail: str) -> None:
    """The Progress that shows nothing."""


class RowStream(Protocol):
    """Training rows as a method sees them: in memory or streamed, it cannot tell."""

    d: int

    def __len__(self) -> int: ...

    def blocks(self) -> Iterator[tuple[int, Any]]:
        """(first row, x (b, d) float32) in file order; of images x (b, 3, size, size) uint8, here and below."""

    def sample(self, limit: int, seed: int) -> tuple[Any, Ints]:
        """At most `limit` rows drawn without replacement, in file order, and their row numbers."""

    def batches(self, size: int, generator: Generator, rows: Ints | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled batches of about `size` of `rows` (default all): x (b, d) float32, row numbers (b,) int64, on the device."""


class Encoder(Protocol):
    """The part of scqfaiss.encoders.base.Encoder that methods use (a torch module)."""

    d_in: int
    width: int
    modality: ClassVar[Modality]

    def __call__(self, x: Tensor) -> Tensor: ...

    def groups(self, lr: float, decay: float) -> list[dict[str, Any]]: ...

    def on_epoch(self, epoch: int) -> None: ...

    def parameters(self) -> Any: ...

    def layers(self) -> Any: ...


@dataclass(frozen=True)
class Subset:
    """Rows set aside, with what belongs to them."""

    rows: RowStream
    labels: Labels | None = None
    ids: Ints | None = None


@dataclass(frozen=True)
class Task:
    """What a method is given. M codebooks of 2^nbits codewords; everything is checked already."""

    rows: RowStream
    labels: Labels | None
    M: int
    nbits: int
    seed: int = 0
    encoder: Encoder | None = None  # None for methods that bring their own (needs_encoder False)
    encoder_name: str = ""
    head: Layers | None = None  # layers of a trained model, whose classifier stays as it is
    codebook_rows: RowStream | None = None  # rows, without labels, that the codebooks learn from instead
    unlabelled: RowStream | None = None  # rows, without labels, that the features learn from too
    validation: Subset | None = None  # rows that train nothing and say when to stop
    ids: Ints | None = None  # (n,) ids of the rows; of pairs, those of the keys, which may repeat
    epochs: int | None = None  # of every stage, instead of each stage's own default
    batch_size: int | None = None
    device: str = "cpu"
    progress: Progress = silent
    lists: int = 1  # inverted lists that are part of a code; 1: codes are of whole vectors

    @property
    def K(self) -> int:
        return 1 << self.nbits


@dataclass(frozen=True)
class OptimizerStep:
    """A loss and the optimiser that minimises it; stages that train two parts alternately have two.

    loss(*batch) returns named terms, already weighted, that are summed; over several processes each gives the mean over its
    own share of the batch. make_optimizer(steps) returns (optimizer, scheduler stepped after each batch or None).
    """

    loss: Callable[..., dict[str, Any]]
    make_optimizer: Callable[[int], tuple[Any, Any]]


@dataclass(frozen=True)
class Stage:
    """One part of a training.

    begin() runs first and may take long (k-means, encoding the rows). Then, for each of `epochs` epochs, every batch of
    batches(generator) takes its turns one after the other. end() runs last.

    A training that was interrupted is resumed by running begin() and end() of all stages again, with the parameters and
    buffers of that moment in place of the epochs: both must do the same whenever they run, and whatever the epochs change
    must be a parameter or a buffer of the method, or follow from on_epoch.
    """

    name: str
    begin: Callable[[], None] = lambda: None
    epochs: int = 0
    steps_per_epoch: int = 0
    batches: Callable[[Generator], Iterator[tuple[Any, ...]]] | None = None
    optimizer_steps: Sequence[OptimizerStep] = ()
    on_epoch: Callable[[int], None] = lambda epoch: None  # before each epoch; sets annealed quantities
    after_step: Callable[[], None] = lambda: None  # after the turns of a batch; without gradient
    # After each epoch, without gradient: moves dead codewords, and returns facts for the metrics, "codewords_used" a list
    # with a count for each codebook, "revived" how many were moved.
    after_epoch: Callable[[int], dict[str, Any]] = lambda epoch: {}
    skipped: Callable[[], bool] = lambda: False  # asked after begin(): whether the epochs are left out after all
    # A number that falls as the method gets better, from task.validation; asked after each epoch, in evaluation mode.
    validate: Callable[[], float] | None = None
    end: Callable[[], None] = lambda: None
    # Products of the steps in what the device multiplies fast (bfloat16 on a CPU that has it, TF32 on a GPU); sums, weights
    # and all that follows the training stay float32.
    allow_reduced_precision: bool = False
    one_thread: bool = False  # steps too small for threads: waiting for one another would cost more than it saves


class Method(Protocol):
    """What training runs. Built as cls(config, task); its class attributes are known before any row is read."""

    Config: ClassVar[type[Any]]
    PRESETS: ClassVar[dict[str, dict[str, dict[str, Any]]]]  # setting -> value -> the defaults that it replaces
    encoder_defaults: ClassVar[dict[str, Any]]  # settings of a network for images, where they are not set
    starts: ClassVar[bool]  # whether it can go on from the encoder and the classifier of a trained model
    separable: ClassVar[bool]  # whether its losses are means over rows that know nothing of one another
    long_name: ClassVar[str]
    # Of 'labels', 'pairs' (rows are then query and key side by side, (n, 2 d)), 'feature maps' (of images).
    needs: ClassVar[frozenset[str]]
    needs_encoder: ClassVar[bool]
    rule: str  # how Codebooks.assign encodes: 'l2' or 'ip'
    task: Task
    takes_lists: ClassVar[bool]  # whether inverted lists can be part of its codes
    takes_unlabelled: ClassVar[bool]  # whether its features learn from rows without labels
    list_beam: int  # and how many lists encoding tries; 1 without lists
    beam: int  # and how many partial sums it carries along; 1 for all but additive codebooks
    nested: ClassVar[bool]  # whether the first codebooks of a code are a code

    def __init__(self, config: Any, task: Task) -> None: ...

    @classmethod
    def needs_of(cls, config: Any) -> frozenset[str]:
        """What of `needs` it needs under these settings."""

    @staticmethod
    def unlabeled(config: Any) -> str:
        """What to do with rows without any label: 'error' or 'drop'."""

    @staticmethod
    def shape(C: int, multilabel: bool, M: int, nbits: int, lists: int = 1) -> tuple[int, int]:
        """(M, nbits) of the codes for C classes, where M and nbits were asked for, in so many lists."""

    @staticmethod
    def kind(config: Any) -> str:
        """The kind of the codebooks, 'product' or 'additive'."""

    @staticmethod
    def default_encoder(config: Any) -> str:
        """The encoder where none was asked for."""

    @staticmethod
    def members(config: Any, encoder: str) -> int:
        """How many members the encoder is built with."""

    @classmethod
    def check(cls, config: Any, d_in: int, C: int, M: int, nbits: int, encoder: str, modality: Modality) -> None:
        """Raise ConfigError for settings that cannot work together; C = 0 without labels. Reads no rows.

        encoder: its name; modality: of the items that it takes.
        """

    def stages(self) -> list[Stage]: ...

    def layers(self) -> Layers:
        """x -> z as layers of an encoder chain."""

    def codebooks(self) -> Codebooks: ...

    def of_posterior(self, p: Tensor) -> Tensor | None: ...

    def summary(self) -> dict[str, Any]:
        """Plain facts for the model's config: fitted temperature, centre errors and the like."""


class MethodDefaults:
    """What a method says of itself where it has no reason to say anything else: methods inherit it and override.

    Product codebooks of the shape that was asked for, encoded by L2, behind a linear encoder of one member; rows alone.
    """

    PRESETS: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {}
    encoder_defaults: ClassVar[dict[str, Any]] = {}
    separable: ClassVar[bool] = True
    starts: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    needs_encoder: ClassVar[bool] = True
    nested: ClassVar[bool] = False
    rule: str = "l2"
    beam: int = 1
    takes_lists: ClassVar[bool] = False
    takes_unlabelled: ClassVar[bool] = False
    list_beam: int = 1

    @staticmethod
    def shape(C: int, multilabel: bool, M: int, nbits: int, lists: int = 1) -> tuple[int, int]:
        return M, nbits

    @staticmethod
    def kind(config: Any) -> str:
        return "product"

    @staticmethod
    def default_encoder(config: Any) -> str:
        return "linear"

    @staticmethod
    def members(config: Any, encoder: str) -> int:
        return 1

    @classmethod
    def needs_of(cls, config: Any) -> frozenset[str]:
        return cls.needs

    @staticmethod
    def unlabeled(config: Any) -> str:
        return "error"

    def of_posterior(self, p: Tensor) -> Tensor | None:
        """p (b, C) by other heads of the same training -> what codes would stand for (b, d); None: no posterior is coded."""
        return None


def seed_of(*parts: int) -> int:
    """A seed of its own for every tuple of numbers, such as (seed of the training, stage, epoch)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def drawn_rows(n: int, limit: int, seed: int) -> Ints:
    """At most `limit` of n row numbers, drawn without replacement, ascending: the same whenever they are drawn."""
    return np.arange(n) if n <= limit else np.sort(np.random.default_rng(seed).choice(n, limit, replace=False))


def batch_count(n: int, size: int) -> int:
    """Batches of an epoch over n rows, as even as can be: a last batch of a few rows would weigh as much as a whole one."""
    return max(1, round(n / size))


@dataclass(frozen=True)
class Setting:
    """What is known of one setting: its type (int, float, bool or str), its default, and its range or its choices."""

    kind: type[Any]
    default: Any
    limits: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()


def settings(config_class: type[Any], prefix: str = "") -> dict[str, Setting]:
    """The settings of a frozen Config dataclass by name; those of a dataclass within it by dotted name, 'features.epochs'."""
    types = typing.get_type_hints(config_class)
    out: dict[str, Setting] = {}
    for f in dataclasses.fields(config_class):
        kind, name = types[f.name], prefix + f.name
        if dataclasses.is_dataclass(kind):
            out |= settings(typing.cast(type[Any], kind), f"{name}.")
        else:
            out[name] = Setting(kind, f.default, f.metadata.get("range"), f.metadata.get("choices", ()))
    return out


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """A Config, or settings by name, as dotted names and plain values: {"features": {"lr": 0.1}} -> {"features.lr": 0.1}."""
    out: dict[str, Any] = {}
    for key, value in (vars(values) if dataclasses.is_dataclass(values) else values).items():
        nested = isinstance(value, Mapping) or dataclasses.is_dataclass(value)
        out |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return out


def near_settings(key: str, known: Iterable[str]) -> str:
    """What to say of an unknown key: the settings of the group of that name, or those that look or end like it."""
    known = list(known)
    group = [name for name in known if name.startswith(f"{key}.")]
    if group:
        return f"; that is a group of settings: {', '.join(group)}"
    end = key.replace("_", ".").rpartition(".")[2]
    same_end = [f"'{name}'" for name in known if name.endswith(f".{end}")]
    return suggestion(key, known) or (f"; did you mean {' or '.join(same_end)}?" if same_end else "")


def configure(config_class: type[Any], values: Mapping[str, Any], where: str = "") -> Any:
    """Build a Config from `values`: names, types, ranges and choices checked, strings converted.

    values: by name; settings of a dataclass within the Config by dotted name, or in a mapping of their own. Raises ConfigError
    that names the key, what was found, and what is needed; unknown keys come with the nearest known one.
    """
    known, checked = settings(config_class), {}
    for key, value in flat(values).items():
        if key not in known:
            raise ConfigError(f"{where}unknown key '{key}'{near_settings(key, known)}")
        checked[key] = _convert(key, value, known[key].kind, where)
        _check_setting(key, known[key], checked[key], where)
    return _built(config_class, checked)


def _built(config_class: type[Any], values: Mapping[str, Any]) -> Any:
    """A Config of checked values by dotted name."""
    arguments = {key: value for key, value in values.items() if "." not in key}
    for name, kind in typing.get_type_hints(config_class).items():
        if dataclasses.is_dataclass(kind):
            inside = {k.removeprefix(f"{name}."): v for k, v in values.items() if k.startswith(f"{name}.")}
            arguments[name] = _built(typing.cast(type[Any], kind), inside)
    return config_class(**arguments)


def _convert(key: str, value: Any, kind: type[Any], where: str) -> Any:
    needs = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
    error = ConfigError(f"{where}{key} is {value!r}, needs {needs}")
    if isinstance(value, str) and kind is not str:
        try:
            if kind is bool:
                return TRUTHS[value.lower()]
            return int(value) if kind is int else float(value)
        except (ValueError, KeyError):
            raise error from None
    if kind is float and type(value) in (int, float):
        return float(value)
    if type(value) is not kind:
        raise error
    return value


def _check_setting(key: str, known: Setting, value: Any, where: str) -> None:
    if known.choices and value not in known.choices:
        near = suggestion(value, known.choices)
        raise ConfigError(f"{where}{key} is '{value}', needs one of {', '.join(known.choices)}{near}")
    if known.limits and not known.limits[0] <= value <= known.limits[1]:  # also refuses NaN
        raise ConfigError(f"{where}{key} is {value}, needs {known.limits[0]} to {known.limits[1]}")


def setting(default: Any, *, low: float | None = None, high: float = 2**31 - 1, choices: Sequence[str] = ()) -> Any:
    """A field of a Config with its range (low to high) or its choices."""
    metadata: dict[str, Any] = {}
    if low is not None:
        metadata["range"] = (low, high)
    if choices:
        metadata["choices"] = tuple(choices)
    return field(default=default, metadata=metadata)


def nearest_divisors(d: int, M: int) -> str:
    """'4 or 8': the divisors of d next to M, for messages."""
    divisors = [m for m in range(1, d + 1) if d % m == 0]
    below, above = [m for m in divisors if m < M], [m for m in divisors if m > M]
    return " or ".join(str(m) for m in [*below[-1:], *above[:1]])


def check_product_shape(d: int, M: int, nbits: int, what: str = "d") -> None:
    """Raise ConfigError where product codebooks of d / M dimensions and 2^nbits codewords cannot exist in FAISS."""
    if d % M:
        raise ConfigError(f"{what}={d} is not divisible by M={M} codebooks; need M of {nearest_divisors(d, M)}")
    if d // M == 2 and nbits < 3:
        raise ConfigError(
            f"{what}={d} in M={M} codebooks leaves 2 dimensions a codebook, which needs --nbits 3 or more"
        )
