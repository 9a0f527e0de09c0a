"""Every setting of a training, once: its name, type, default, range and help.

The options of `scqfaiss train` and the keyword arguments of `scqfaiss.train` are made from these fields. Settings of a
method are not here: each method has a Config of its own (`--set`, see contract.configure).
"""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from .errors import ConfigError

PathLike = str | os.PathLike[str]
MAX_COUNT = 2**31 - 1  # of epochs, of rows in a batch, and the largest seed


def option(default: Any, text: str, *, low: int | None = None, **more: Any) -> Any:
    """A field with its help text. low: the smallest whole number that is taken; more: shown_default,
    metavar (see cli.train), of_files: no keyword of train().."""
    metadata = {"help": text, **more} | ({} if low is None else {"low": low})
    return (
        field(default_factory=dict, metadata=metadata) if default is dict else field(default=default, metadata=metadata)
    )


@dataclass(frozen=True)
class TrainOptions:
    """What decides what a training comes to. `settings` go to the method's Config, or to that of an encoder of images."""

    method: str = option("scq", "One of {methods}.")
    # The range of bits and nbits follows from one another, see training.planning.split_bits.
    bits: int = option(32, "Bits of a code.", low=-MAX_COUNT)
    nbits: int = option(8, "Bits of one codebook; bits / nbits codebooks.", low=-MAX_COUNT)
    encoder: str = option(
        "auto",
        "mlp, linear or identity; for images squeezenet or package.module:factory; auto: the default of the method.",
    )
    # Of networks for images, which come from files: train() leaves these names to the method's settings.
    encoder_args: Mapping[str, str] = option(dict, "An argument of that factory.", metavar="KEY=VALUE", of_files=True)
    weights: PathLike | None = option(
        None, "Weights that a network for images starts from (.safetensors or .pth).", of_files=True
    )
    start: PathLike | None = option(
        None,
        "Model whose network and classifier are kept unchanged; only codebooks are trained (images).",
        of_files=True,
    )
    patience: int = option(5, "Epochs without improvement after which a stage stops; 0: never.", low=0)
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    precision: str = option("float32", "Precision of the encoder in training: float32, bfloat16 or float16.")
    accumulate: int = option(
        1, "Split each batch into so many parts and accumulate their gradients, to save memory.", low=1
    )
    clip_norm: float = option(0.0, "Clip the norm of the gradients to this value.", shown_default="no clipping")
    epochs: int | None = option(None, "Epochs of every stage.", low=0, shown_default="the method's own")
    batch_size: int | None = option(None, "Rows of a training step.", low=1, shown_default="the method's own")
    seed: int = option(0, "Seed of every random choice.", low=0)
    settings: Mapping[str, Any] = option(dict, "A setting of the method.", metavar="KEY=VALUE")
    lists: str | int = option(
        "1",
        "Inverted lists that are part of a code and cost no byte: a number, or auto; 1: codes of whole vectors. With lists, "
        "--bits 0 is a code too.",
    )
    robust: str = option(
        "auto",
        "on: leave out rows whose labels look wrong, if held-out rows rank better without them, which takes 8 to 18 short "
        "trainings of the features more; auto: the same where many labels look wrong at first sight; off: train on all rows.",
    )
    forecast: str = option(
        "auto",
        "auto: a shorter training without a fifth of the labelled rows tells what scores mean, and what mAP to expect; off: "
        "neither.",
    )
    content_bits: int = option(
        0,
        "Bits of a second part of the code, which knows no labels: for queries of classes that are not in ROWS, see "
        "search --known.",
        low=0,
    )


@dataclass(frozen=True)
class RunOptions:
    """What a training leaves behind on its way. Nothing of it changes the result."""

    resume: bool = option(False, "Continue from the last checkpoint.")
    checkpoints: PathLike | None = option(None, "Folder for checkpoints.", shown_default="MODEL.checkpoints")
    checkpoint_every: int = option(0, "Steps between checkpoints.", low=0, shown_default="a minute")
    metrics: PathLike | None = option(
        None, "Write losses, learning rate and codeword use of each epoch to this file, as JSON lines."
    )
    tensorboard: PathLike | None = option(None, "Write the same for TensorBoard into this folder.")


NOTHING_KEPT = RunOptions()


def names(options: type[Any]) -> dict[str, Field[Any]]:
    """The fields of TrainOptions or RunOptions by name."""
    return {f.name: f for f in fields(options)}


def parse_request(values: Mapping[str, Any], *, of_files: bool = True) -> tuple[TrainOptions, RunOptions]:
    """Values by name, as the command line or a caller gives them -> both dataclasses.

    Names of neither are settings of the method, and so are options of files where of_files is False.
    """
    train = {name for name, f in names(TrainOptions).items() if of_files or not f.metadata.get("of_files")}
    run = names(RunOptions)
    settings = {name: value for name, value in values.items() if name not in train and name not in run}
    given = {name: value for name, value in values.items() if name in train}
    given["settings"] = {**given.get("settings", {}), **settings}
    return TrainOptions(**given), RunOptions(**{name: value for name, value in values.items() if name in run})


def check_numbers(options: TrainOptions | RunOptions) -> None:
    """Raise ConfigError for whole numbers out of range or of another type."""
    for f in fields(options):
        value = getattr(options, f.name)
        if "low" in f.metadata and not (value is None and f.default is None):
            check_whole(f.name.replace("_", "-"), value, f.metadata["low"])


def as_whole(name: str, value: Any) -> int:
    """A whole number as Python's own int: FAISS takes no NumPy integers. Raises ConfigError."""
    try:
        return operator.index(value)
    except TypeError:
        raise ConfigError(f"{name} is {value!r}, needs a whole number") from None


def check_whole(name: str, value: Any, low: int, high: int = MAX_COUNT) -> None:
    """Raise ConfigError unless `value` is a whole number from `low` to `high`."""
    if isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}, needs a whole number")
    number = as_whole(name, value)
    if number < low:
        raise ConfigError(f"{name} is {value}, needs {low} or more")
    if number > high:
        raise ConfigError(f"{name} is {value}, needs {low} to {high}")
