"""The calibrations of a model, one for each length of its codes, and the share of relevant rows in a gallery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Floats
from ..errors import ConfigError
from .tables import Calibration, Doubles, numbers, rounded

MEANS = "calibration.means"  # the tensor of a model file
BLOCK = 1 << 22  # similarities that are looked at together


@dataclass(frozen=True, eq=False)
class Calibrations:
    """What a model file keeps: a calibration for each length of its codes, and how shares of classes are told in a gallery.

    model_sha256: of the model's file as it was before, by which galleries go on to know it. lengths: calibrations by bits. means
    (C, d) float32: of the vectors that the rows of each class are coded as; classes (C,): the share of each class among
    the calibration rows, nearest (C,): the share of rows whose nearest mean is that of the class. Without them (many labels
    a row) the share of relevant rows is taken to be that of the calibration rows.
    """

    model_sha256: str
    lengths: Mapping[int, Calibration]
    means: Floats | None = None
    classes: Doubles | None = None
    nearest: Doubles | None = None

    def share(self, vectors: Floats, counts: NDArray[Any], bits: int) -> float:
        """The share of relevant pairs in a gallery of counts (u,) rows that are coded as vectors (u, d), for queries whose
        classes are as frequent as among the calibration rows.

        The share of each class is that of the rows nearest to its mean, times what this was off by on the calibration rows.
        """
        if self.means is None or self.classes is None or self.nearest is None:
            return self.lengths[bits].share
        found = nearest_shares(vectors, counts, self.means)
        corrected = found * self.classes / np.maximum(self.nearest, 1e-12)
        corrected = np.where(self.nearest > 0, corrected, self.classes)
        return float(np.clip(self.classes @ corrected / corrected.sum(), 1e-9, 1 - 1e-9))

    def checked(self, d: int) -> Calibrations:
        """Itself. Raises ConfigError unless it fits codes of vectors of dimension d."""
        if self.means is not None and self.means.shape[1] != d:
            raise ConfigError(f"the calibration has means of d={self.means.shape[1]}, the codes are of d={d}")
        return self

    def pack(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """-> (tensors, config) as a model file keeps them."""
        lengths = {str(bits): c.pack() for bits, c in self.lengths.items()}
        config: dict[str, Any] = {"model_sha256": self.model_sha256, "lengths": lengths}
        if self.means is None or self.classes is None or self.nearest is None:
            return {}, config
        shares = {name: rounded(a) for name, a in (("classes", self.classes), ("nearest", self.nearest))}
        return {MEANS: self.means}, config | shares

    @staticmethod
    def unpack(tensors: Mapping[str, NDArray[Any]], config: Any) -> Calibrations | None:
        """The inverse of pack; None without a config. Raises ConfigError for what pack does not write."""
        if config is None:
            if MEANS in tensors:
                raise ConfigError(f"a tensor {MEANS} belongs to no calibration")
            return None
        try:
            sha, lengths = config["model_sha256"], config["lengths"].items()
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"a calibration without {error}") from error
        if not isinstance(sha, str) or len(sha) != 64:
            raise ConfigError(f"the calibration is of model {str(sha)[:80]!r}, needs a SHA-256")
        if not lengths or not all(bits.isdecimal() and len(bits) <= 5 for bits, _ in lengths):
            raise ConfigError("a calibration is kept by the bits of its codes")
        found = {int(bits): Calibration.unpack(packed) for bits, packed in lengths}
        if (MEANS in tensors) != ("classes" in config):
            raise ConfigError(f"a tensor {MEANS} and shares of classes need one another")
        if MEANS not in tensors:
            return Calibrations(sha, found)
        classes, nearest = numbers(config["classes"], "classes"), numbers(config.get("nearest"), "nearest")
        means = tensors[MEANS]
        if means.ndim != 2 or means.dtype != np.float32 or not np.isfinite(means).all():
            raise ConfigError(f"{MEANS} are {means.shape} {means.dtype}, need finite float32 in 2 dimensions")
        if (
            not len(means) == len(classes) == len(nearest)
            or min(classes.min(), nearest.min()) < 0
            or not classes.sum() > 0
        ):
            raise ConfigError(f"the shares of classes do not fit {MEANS}")
        return Calibrations(sha, found, np.asarray(means), classes, nearest)


def nearest_shares(vectors: Floats, counts: NDArray[Any], means: Floats) -> Doubles:
    """vectors (u, d), counts (u,) rows of each, means (C, d) -> the share of rows nearest to each mean, (C,)."""
    halves = 0.5 * np.einsum("cd,cd->c", means, means)
    step = max(1, BLOCK // len(means))
    of = [(vectors[i : i + step] @ means.T - halves).argmax(1) for i in range(0, len(vectors), step)]
    rows = np.bincount(np.concatenate(of), counts, len(means)).astype(np.float64)
    return np.asarray(rows / rows.sum())
