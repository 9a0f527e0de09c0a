"""Comparisons with FAISS's own codes; the options are made from the fields of comparison.options."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..comparison.options import CompareOptions, GrowthOptions
from ..errors import ConfigError, printable
from .arguments import FILE, ROWS, compared_row_options, say

INPUTS = ("train", "query", "database")


def options_of(options: type[Any], leave_out: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    """A command with an option for each field of `options`, but for those left out."""
    types = typing.get_type_hints(options)
    chosen = [f for f in dataclasses.fields(options) if f.name not in leave_out]

    def add(command: Callable[..., Any]) -> Any:
        for field in reversed(chosen):
            command = _option(field, types[field.name])(command)
        return command

    return add


def _option(field: dataclasses.Field[Any], kind: Any) -> Callable[[Callable[..., Any]], Any]:
    name, parse, limits = f"--{field.name.replace('_', '-')}", field.metadata["parse"], field.metadata["range"]
    required = field.default is dataclasses.MISSING
    more: dict[str, Any] = {} if required else {"default": field.default, "show_default": field.default is not None}
    if kind is bool:
        return click.option(name, is_flag=True, help=field.metadata["help"])
    if parse is not None:
        default = field.default
        text = field.metadata["shown"] or (",".join(map(str, default)) if isinstance(default, tuple) else default)
        more = {"default": text, "show_default": bool(text), "callback": _parsed(parse), "type": str}
    elif kind in (Path, Path | None):
        more["type"] = ROWS if field.name in INPUTS else FILE
    elif limits is not None:
        more["type"] = click.IntRange(*limits)
    return click.option(name, help=field.metadata["help"], required=required, **more)


def _parsed(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    def convert(context: click.Context, option: click.Parameter, text: str | None) -> Any:
        if text is None:
            return None
        try:
            return parse(text)
        except ValueError as error:
            raise ConfigError(f"{option.opts[0]}: '{printable(text)}' {error}") from error

    return convert


@click.command()
@options_of(CompareOptions)
@compared_row_options
def compare(keys: dict[str, Any], **values: Any) -> None:
    """Hold label-aware codes against FAISS's own, at equal bits a vector, on labelled rows.

    Writes OUT/results.json after every coding, for `scqfaiss report OUT`. A run that was interrupted goes on with the same
    command; one with more lengths or methods adds to the file.
    """
    options = CompareOptions(**values)
    from ..comparison.compare import compare as measured

    say(measured(options, say, keys=keys))


@click.command("compare-growth")
@options_of(GrowthOptions)
@compared_row_options
def compare_growth(keys: dict[str, Any], **values: Any) -> None:
    """Measure how time and memory of searches grow with the rows, in every container and in FAISS's own IVFPQ.

    Writes OUT/results.json row by row, for `scqfaiss report OUT`. A run that was interrupted goes on with the same command.
    """
    options = GrowthOptions(**values)
    from ..comparison.growth import compare_growth as measured
    from ..progress import to_stderr

    say(measured(options, to_stderr, keys=keys))
