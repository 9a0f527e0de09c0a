"""Attacks by name: a line each, imported only when asked for.

An attack is one function in one file: from the twin's vectors of changed queries, and from what is known of the clean ones, to J,
which the attack makes as large as it can. None stands for the control, which looks at no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import ConfigError, suggestion

if TYPE_CHECKING:
    from torch import Tensor

    from .soft_codes import CleanQueries

    Objective = Callable[[Tensor, CleanQueries], Tensor]  # vectors (b, d) of changed queries -> J (b,)

REGISTRY: dict[str, str | None] = {
    "random": None,
    "apd": "scqfaiss.attack.apd:apd",
    "aod": "scqfaiss.attack.aod:aod",
    "feature": "scqfaiss.attack.feature:feature",
}


def check_attack(name: str) -> None:
    """Raise ConfigError where no attack has this name."""
    if name not in REGISTRY:
        raise ConfigError(f"unknown attack '{name}'{suggestion(name, REGISTRY)}; there are {', '.join(REGISTRY)}")


def objective(name: str) -> Objective | None:
    """What the attack of this name makes large; None for the control. Raises ConfigError where there is no such attack."""
    check_attack(name)
    place = REGISTRY[name]
    if place is None:
        return None
    module, _, function = place.partition(":")
    found: Objective = getattr(import_module(module), function)
    return found
