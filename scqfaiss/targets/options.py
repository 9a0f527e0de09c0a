"""The options of each target beside the codes: names, defaults, ranges and help. Neither FAISS nor NumPy is needed to read them.

A default leaves the choice to the target, and only what differs from it is written into the metadata of a gallery.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import ConfigError

MAX_LISTS = 1 << 24
MAX_REFINE = 1000  # candidates a hit


def option(default: int, low: int, high: int, help: str) -> Any:
    """A field with its range, from low to high, and what the command line says of it."""
    return field(default=default, metadata={"range": (low, high), "help": help})


@dataclass(frozen=True)
class NoOptions:
    """Of a target that takes none."""


_NPROBE = "lists that a search visits unless it says otherwise."


@dataclass(frozen=True)
class ListOptions:
    """Of a target with inverted lists."""

    nlist: int = option(0, 0, MAX_LISTS, "inverted lists (default of ivfpq 1: exact).")
    nprobe: int = option(0, 0, MAX_LISTS, _NPROBE)


@dataclass(frozen=True)
class VisitOptions:
    """Of a target whose lists, if there are several, come with the codes."""

    nprobe: int = option(0, 0, MAX_LISTS, _NPROBE)


@dataclass(frozen=True)
class RefineOptions:
    """Of a target with a scan of rounded scores."""

    refine: int = option(0, -1, MAX_REFINE, "candidates per hit that are scored again exactly; -1: none.")


def check(options: Any) -> None:
    """Raise ConfigError for a value of another type than its default, or out of range."""
    for f in fields(options):
        (low, high), value = f.metadata["range"], getattr(options, f.name)
        if type(value) is not type(f.default) or not low <= value <= high:
            kind = "a whole number" if isinstance(f.default, int) else "a number"
            raise ConfigError(f"{f.name} is {value!r}, needs {kind} from {low} to {high:,}")


def check_listed(options: Any, lists: int) -> None:
    """Raise ConfigError for options that do not fit codes whose lists come with the model."""
    nlist, nprobe = getattr(options, "nlist", 0), getattr(options, "nprobe", 0)
    if nlist:
        raise ConfigError(f"nlist is {nlist:,}, and the model has {lists:,} lists of its own; leave --nlist out")
    if nprobe > lists:
        raise ConfigError(f"nprobe is {nprobe:,}, needs at most the {lists:,} lists")


def chosen(options: Any) -> dict[str, Any]:
    """The options that differ from their defaults."""
    values = ((f.name, getattr(options, f.name), f.default) for f in fields(options))
    return {name: value for name, value, default in values if value != default}
