"""Types of arguments, options that several commands share, and configuration files."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError, printable
from ..files import open_regular
from ..progress import Meter
from ..targets import option_fields


class FileName(click.Path):
    """A file name; a configuration file may put anything else in its place."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, (str, os.PathLike)) or "\0" in os.fsdecode(value):
            self.fail(f"{value!r} is no file name", param, ctx)
        return super().convert(value, param, ctx)


class RowsName(FileName):
    """The name of a file of rows or of images: whether it can be one is told before anything heavy is loaded."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from ..data.kinds import check_kind

        path = super().convert(value, param, ctx)
        check_kind(path)
        return path


class PiecesName(FileName):
    """The name of a file of rows, a folder of them or of images, or a glob; more than one may be given."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from ..data.kinds import files_of

        path = super().convert(value, param, ctx)
        files_of([path])
        return path


FILE, ROWS, PIECES = FileName(path_type=Path), RowsName(path_type=Path), PiecesName(path_type=Path)
meter = Meter()


def gathering(
    command: Callable[..., Any], options: list[Any], name: str, parts: tuple[str, ...], make: Callable[..., Any]
) -> Callable[..., Any]:
    """A command with more options, which arrive as one argument `name`, make(**parts)."""

    @click.pass_context
    def gathered(context: click.Context, /, **values: Any) -> Any:
        given = make(**{part: values.pop(part) for part in parts})
        return context.invoke(command, **{name: given}, **values)

    gathered.__name__, gathered.__doc__ = command.__name__, command.__doc__
    gathered.__click_params__ = list(getattr(command, "__click_params__", []))  # type: ignore[attr-defined]
    for option in reversed(options):
        gathered = option(gathered)
    return gathered


LABELS_HELP = "Labels of {} in a file of their own: .npy, or text with a label on each line."
NO_LABELS: Mapping[str, tuple[str, str]] = {}


def row_options(command: Callable[..., Any], labels: Mapping[str, tuple[str, str]] = NO_LABELS) -> Callable[..., Any]:
    """Options of every command that reads rows; they arrive as one dictionary, `keys`, of which data.keys_for makes those of
    each file. labels: name in `keys` -> (option, file whose labels it gives)."""
    options = [
        *(
            click.option(flag, name, type=FILE, help=LABELS_HELP.format(of) if k == 0 else f"The same for {of}.")
            for k, (name, (flag, of)) in enumerate(labels.items())
        ),
        click.option(
            "--features-key",
            show_default="features; in a file of pairs queries or keys",
            help="Dataset or column with the features; columns of numbers as a,b,c or 'f*'; for training on pairs two names: "
            "queries,keys.",
        ),
        click.option("--labels-key", show_default="labels or label", help="Dataset or column of the labels."),
        click.option("--ids-key", show_default="ids or id", help="Dataset or column of the ids."),
        click.option("--scale", type=float, help="What 1 stands for in features of int8 or uint8."),
        click.option("--skip-bad-rows", is_flag=True, help="Leave out rows that hold NaN or infinity, and bad images."),
        click.option("--allow-duplicate-ids", is_flag=True, help="Accept ids that occur more than once."),
        click.option("-v", "--verbose", is_flag=True, help="Also report HDF5 datasets without checksums."),
        click.option("--workers", default=0, help="Threads that decode images; default: one for each core."),
    ]

    def given(**values: Any) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value is not None}

    names = (
        *labels,
        "features_key",
        "labels_key",
        "ids_key",
        "scale",
        "skip_bad_rows",
        "allow_duplicate_ids",
        "verbose",
        "workers",
    )
    return gathering(command, options, "keys", names, given)


def labelled_row_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The same for commands that read labels."""
    return row_options(command, {"labels_file": ("--labels", "ROWS")})


def trained_row_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The same for a training: labelled rows, and such that are held out."""
    of_rows = {"labels_file": ("--labels", "ROWS")}
    held_out = {f"{name}_labels": (f"--{name}-labels", f"--{name}") for name in ("validation", "calibrate")}
    return row_options(command, of_rows | held_out)


def evaluated_row_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The same for two files of labelled rows, queries and database."""
    labels = {"labels_file": ("--labels", "QUERIES"), "database_labels": ("--database-labels", "DATABASE")}
    return row_options(command, labels)


def compared_row_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The same for the three files of a comparison, which are options themselves."""
    parts = ("train", "query", "database")
    return row_options(command, {f"{part}_labels": (f"--{part}-labels", f"--{part}") for part in parts})


def image_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of commands that show images to a model's network; they arrive as one InferenceOptions, `inference_options`."""
    options = [
        click.option(
            "--encoder",
            metavar="MODULE:FACTORY",
            help="Network factory that the model may import; needed where the network is not part of scqfaiss.",
        ),
        click.option(
            "--encoder-device", default="auto", show_default=True, help="Device of the network: auto, cpu or cuda."
        ),
        click.option(
            "--encoder-precision",
            default="float32",
            show_default=True,
            help="Precision of the network: float32 or bfloat16.",
        ),
    ]

    def inference_options(**given: Any) -> Any:
        from ..features.source import InferenceOptions

        return InferenceOptions(*given.values())

    return gathering(
        command, options, "inference_options", ("encoder", "encoder_device", "encoder_precision"), inference_options
    )


known_option = click.option(
    "--known",
    metavar="auto|0..1",
    help="How certain the queries' classes are among the training's, for models with content codes; default: auto.",
)


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of all targets of the registry; each arrives under its own name, None where it is not given."""
    for name, (f, targets) in reversed(option_fields().items()):
        text = f"{', '.join(targets)}: {f.metadata['help']}"
        command = click.option(f"--{name.replace('_', '-')}", name, type=type(f.default), help=text)(command)
    return command


def read_config(context: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    """Defaults from a TOML file: option names as keys, and a table [set] for the method's settings."""
    if path is None:
        return None
    try:
        with open_regular(path, ConfigError) as f:
            values = tomllib.loads(f.read().decode("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{printable(path)}: not a readable TOML file ({' '.join(str(error).split())})") from error
    table = values.pop("set", {})
    options = [p for p in context.command.params if isinstance(p, click.Option)]
    known = {str(p.name): p for p in options}
    known |= {flag.lstrip("-").replace("-", "_"): p for p in options for flag in p.opts if flag.startswith("--")}
    defaults = {}
    for key, value in values.items():
        option = known.get(key.replace("-", "_"))
        if option is None or option.name in ("config", "settings"):
            raise ConfigError(f"{printable(path)}: unknown key '{key}'; method settings go into a table [set]")
        if isinstance(option.type, click.types.IntParamType) and type(value) not in (int, str):
            raise ConfigError(f"{printable(path)}: {key} is {value!r}, needs a whole number")  # click would round it
        if isinstance(option.type, click.types.FloatParamType) and type(value) not in (int, float, str):
            raise ConfigError(f"{printable(path)}: {key} is {value!r}, needs a number")
        defaults[str(option.name)] = value
    if not isinstance(table, dict):
        raise ConfigError(f"{printable(path)}: set is {table!r}, needs a table [set]")
    context.default_map = defaults
    context.meta["scqfaiss.set"] = table
    return path


def parse_pairs(context: click.Context, option: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    out = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{option.opts[0]} is '{printable(pair)}', needs key=value")
        out[key.strip()] = value.strip()
    return out


def parse_settings(context: click.Context, _: click.Parameter, pairs: tuple[str, ...]) -> dict[str, Any]:
    table: dict[str, Any] = context.meta.get("scqfaiss.set", {})
    return table | parse_pairs(context, _, pairs)


def say(text: str) -> None:
    """What a command found; of several processes the first one speaks. What stands in files reaches no terminal raw."""
    if text:
        click.echo("\n".join(printable(line) for line in text.split("\n")))
