"""Targets: FAISS containers for learned codes. One file and one line of REGISTRY each, imported only when asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import ConfigError, suggestion

if TYPE_CHECKING:
    from .base import Target

REGISTRY = {
    "ivfpq": "scqfaiss.targets.ivfpq:IVFPQ",
    "pq": "scqfaiss.targets.pq:PQ",
    "fastscan": "scqfaiss.targets.fastscan:FastScan",
    "buckets": "scqfaiss.targets.buckets:Buckets",
    "lift": "scqfaiss.targets.lift:Lift",
    "residual": "scqfaiss.targets.residual:Residual",
}


def target(name: str) -> Target:
    """The target registered under `name`. Raises ConfigError with the known names."""
    if name not in REGISTRY:
        raise ConfigError(f"unknown target '{name}'{suggestion(name, REGISTRY)}; there are {', '.join(REGISTRY)}")
    module, _, attribute = REGISTRY[name].partition(":")
    found: Target = getattr(import_module(module), attribute)()
    return found
