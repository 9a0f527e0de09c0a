"""Models of a comparison by method and length, each trained once."""

from __future__ import annotations

import time
import warnings
from typing import Any

from ..arrays import Floats
from ..errors import ConfigError
from ..methods import method_class
from ..model import Model
from ..training.interface import train


def check_methods(asked: tuple[str, ...]) -> None:
    """Raise ConfigError where a method learns from anything but rows with labels."""
    for name in asked:
        method = method_class(name.partition(":")[0])
        more = sorted(method.needs_of(method.Config()) - {"labels"})
        if more:
            raise ConfigError(
                f"--methods names '{name}', which learns from {' and '.join(more)}; a comparison has labelled rows"
            )


class Models:
    """Models of one set of training rows; one training of nested codes serves every length.

    x (n, d), y as train() takes it; longest: the most bits that are asked for.
    """

    def __init__(self, x: Floats, y: Any, longest: int, seed: int, class_names: Any) -> None:
        self.x, self.y, self.longest, self.seed, self.class_names = x, y, longest, seed, class_names
        self.trained: dict[tuple[str, int, int], tuple[Model, float]] = {}

    def get(self, asked: str, bits: int, lists: int) -> tuple[Model, float]:
        """(model of that length in so many lists, seconds of the training behind it).

        asked: a method, with ':4' for codebooks of 4 bits. Raises ScqError where no such model can be trained.
        """
        name, _, nbits = asked.partition(":")
        method = method_class(name)
        labelled = "labels" in method.needs_of(method.Config())
        longest = self.longest if method.nested else bits
        if (asked, longest, lists) not in self.trained:
            more: dict[str, Any] = {"lists": str(lists)} if lists > 1 else {}
            start = time.perf_counter()
            with warnings.catch_warnings():  # few rows a codeword, an unused class: true, and no news here
                warnings.simplefilter("ignore")
                model = train(
                    self.x,
                    self.y if labelled else None,
                    method=name,
                    bits=longest,
                    nbits=int(nbits or 8),
                    seed=self.seed,
                    class_names=self.class_names if labelled else None,
                    **more,
                )
            self.trained[asked, longest, lists] = model, time.perf_counter() - start
        model, seconds = self.trained[asked, longest, lists]
        return (model.prefix(bits) if method.nested and bits < longest else model), seconds
