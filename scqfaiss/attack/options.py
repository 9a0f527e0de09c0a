"""Options of `scqfaiss attack`: names, defaults and help; the command line is made from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ..comparison.options import names, option
from ..errors import ConfigError
from .registry import REGISTRY, check_attack

# Of rows, shares of their norm: on parts of training rows of CLINC150 and CIFAR-10 random signs cost 0.01 of mAP up to the
# middle one.
ROW_STRENGTHS, PIXEL_STRENGTHS = (0.01, 0.02, 0.04), (2.0, 4.0, 8.0)


def strengths(text: str) -> tuple[float, ...] | None:
    """'2,4,8' -> (2.0, 4.0, 8.0), each once, ascending; 'auto' -> None."""
    if text == "auto":
        return None
    try:
        found = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        found = (-1.0,)
    if not all(0 <= eps < math.inf for eps in found):
        raise ValueError("needs auto, or numbers from 0 on, such as 2,4,8")
    return found


def paths(text: str) -> tuple[Path, ...]:
    """'a.safetensors,b.safetensors' -> paths."""
    return tuple(map(Path, names(text)))


@dataclass(frozen=True, kw_only=True)
class AttackOptions:
    """What is attacked, how, and how strongly. Raises ConfigError on values that mean nothing."""

    out: Path = option("Folder for results.json.")
    attacks: tuple[str, ...] = option(f"Of {', '.join(REGISTRY)}.", tuple(REGISTRY), parse=names)
    eps: tuple[float, ...] | None = option(
        "Largest changes: of rows a share of their norm, of images steps of 255 of each pixel; auto: 0.01,0.02,0.04 or 2,4,8.",
        None,
        parse=strengths,
        shown_default="auto",
    )
    steps: int = option("Steps of an attack.", 5, low=0)
    step: float = option("Length of a step, as a share of --eps.", 0.25)
    restarts: int = option("Random points that an attack starts from.", 3, low=1)
    beta: float = option("Inverse temperature of the stand-in for codes.", 10.0)
    transfer: tuple[Path, ...] = option(
        "More models, with commas between: the queries made against MODEL are searched with them too.",
        (),
        parse=paths,
        shown_default="",
    )
    all_pairs: bool = option("Also make queries against each of these models, and search with all.", False)
    sample: int | None = option("Use so many of the queries, drawn by the seed; default: all.", None, low=1)
    database_sample: int | None = option(
        "Search so many rows of the database, drawn by the seed; default: all.", None, low=1
    )
    at: int | None = option("Ranks that count in mAP; default: the whole database.", None, low=1)
    smooth: int = option(
        "Search with the mean of so many noisy copies of a query, which attacks know; 0: as it is.", 0, low=0
    )
    smooth_noise: float = option("Noise of these copies: a share of the norm of rows, or of the range of pixels.", 0.02)
    floats: bool = option("Also rank the database by its floats, without codes.", False)
    batch_size: int = option("Queries that are changed together.", 256, low=1)
    seed: int = option("Of every random choice.", 0, low=0)
    fresh: bool = option("Begin anew: what results.json holds is measured again.", False)

    def __post_init__(self) -> None:
        for name in self.attacks:
            check_attack(name)
        if not self.attacks:
            raise ConfigError(f"--attacks names none, needs some of {', '.join(REGISTRY)}")
        for option_name in ("step", "beta", "smooth_noise"):
            value = getattr(self, option_name)
            if not 0 < value < math.inf:
                raise ConfigError(f"--{option_name.replace('_', '-')} is {value:g}, needs a number above 0")
        if self.all_pairs and not self.transfer:
            raise ConfigError("--all-pairs needs --transfer with other models")

    @property
    def facts(self) -> dict[str, object]:
        """What makes two runs one."""
        own = ("steps", "step", "restarts", "beta", "sample", "database_sample", "at", "smooth", "batch_size")
        return {name: getattr(self, name) for name in own} | {
            "smooth_noise": self.smooth_noise if self.smooth else None
        }
