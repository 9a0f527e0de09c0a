"""Targets: FAISS containers for learned codes. One file and one line of REGISTRY each, imported only when asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import ConfigError, suggestion

if TYPE_CHECKING:
    from .base import Target

REGISTRY = {
    "ivfpq": "scqfaiss.targets.ivfpq",
    "pq": "scqfaiss.targets.pq",
}


def target(name: str) -> Target:
    """The target registered under `name`. Raises ConfigError with the known names."""
    if name not in REGISTRY:
        raise ConfigError(f"unknown target '{name}'{suggestion(name, REGISTRY)}; there are {', '.join(REGISTRY)}")
    found: Target = import_module(REGISTRY[name])  # type: ignore[assignment]  # a module that has what Target asks for
    return found
