"""Targets: FAISS containers for learned codes. One file and one line of REGISTRY each, imported only when asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigError, suggestion
from .options import ListOptions, NoOptions, RefineOptions, VisitOptions

if TYPE_CHECKING:
    from .base import Target


class Entry(NamedTuple):
    """Where a target stands, as module:class, and the dataclass of its options, which is known without loading FAISS."""

    path: str
    Options: type[Any] = NoOptions


REGISTRY = {
    "ivfpq": Entry("scqfaiss.targets.ivfpq:IVFPQ", ListOptions),
    "pq": Entry("scqfaiss.targets.pq:PQ"),
    "fastscan": Entry("scqfaiss.targets.fastscan:FastScan", RefineOptions),
    "buckets": Entry("scqfaiss.targets.buckets:Buckets", ListOptions),
    "lift": Entry("scqfaiss.targets.lift:Lift", VisitOptions),
    "residual": Entry("scqfaiss.targets.residual:Residual"),
}


def target(name: str) -> Target:
    """The target registered under `name`. Raises ConfigError with the known names."""
    if name not in REGISTRY:
        raise ConfigError(f"unknown target '{name}'{suggestion(name, REGISTRY)}; there are {', '.join(REGISTRY)}")
    module, _, attribute = REGISTRY[name].path.partition(":")
    instance: Target = getattr(import_module(module), attribute)()
    return instance


def option_fields() -> dict[str, tuple[dataclasses.Field[Any], list[str]]]:
    """Every option that some target takes: its field in the first of them, and the names of the targets that take it."""
    out: dict[str, tuple[dataclasses.Field[Any], list[str]]] = {}
    for name, entry in REGISTRY.items():
        for f in dataclasses.fields(entry.Options):
            out.setdefault(f.name, (f, []))[1].append(name)
    return out


def make_options(name: str, values: Mapping[str, Any]) -> Any:
    """The options of target `name` from values by name; None, and the default of an option it does not take, say nothing.

    Raises ConfigError for an option that no target takes, or that other targets take.
    """
    known = option_fields()
    given = {key: value for key, value in values.items() if value is not None}
    for key, value in given.items():
        if key not in known:
            raise ConfigError(f"unknown option '{key}'{suggestion(key, known)}; there are {', '.join(known)}")
        f, takers = known[key]
        if name not in takers and value != f.default:
            raise ConfigError(f"target {name} takes no {key}, {' and '.join(takers)} can")
    return REGISTRY[name].Options(**{key: value for key, value in given.items() if name in known[key][1]})
