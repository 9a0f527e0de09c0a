"""What a gallery's scores mean: the calibration that stands in its file or in its model, and its share of relevant rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..calibration.tables import CONFIDENCE, Calibration
from ..errors import ConfigError
from ..model import Model
from .filters import known_target
from .snapshot import Snapshot

Promises = tuple[Calibration, float | None]


class Promised(ABC):
    """The part of a Gallery that says what its scores mean."""

    name: str

    @abstractmethod
    def _promises(self) -> Promises | None:
        """The calibration of the codes, and the share of relevant rows; None where neither file nor model is calibrated."""

    @property
    def has_calibration(self) -> bool:
        """Whether the file or the model says what scores mean."""
        return self._promises() is not None

    @property
    def promises(self) -> Promises:
        """The calibration of the codes, and the share of rows that are relevant. Raises ConfigError where there is none."""
        found = self._promises()
        if found is None:
            raise ConfigError(
                f"{self.name} does not say what its scores mean: neither it nor its model is calibrated; scqfaiss calibrate "
                "MODEL ROWS takes labelled rows that were not trained on, then give --model, or export again"
            )
        return found

    def probability(self, D: Any, *, share: float | None = None) -> NDArray[np.float32]:
        """Scores as searches return them, of any shape -> the probability that each hit is of the query's class, float32.

        share: of the gallery's rows that are relevant to a query, on average; default: as it was estimated at export. Raises
        ConfigError where neither file nor model is calibrated.
        """
        calibration, estimated = self.promises
        return calibration.probability(D, estimated if share is None else share)

    def threshold(
        self,
        *,
        precision: float | None = None,
        recall: float | None = None,
        probability: float | None = None,
        confidence: float = CONFIDENCE,
        share: float | None = None,
    ) -> float:
        """The threshold for range_search, here and of plain FAISS, that keeps one promise.

        precision: this share of all hits of all queries is right. recall: queries find this share of their rows, on average.
        Both hold with `confidence` for rows and queries like those of the calibration. probability: of the least hit. share: as
        for probability. Raises ConfigError unless exactly one is asked for, and where it cannot be promised.
        """
        calibration, estimated = self.promises
        share = estimated if share is None else share
        asked = {"precision": precision, "recall": recall, "probability": probability}
        return calibration.threshold({name: v for name, v in asked.items() if v is not None}, confidence, share)


def promises_of(snapshot: Snapshot, model: Model | None, name: str) -> Promises | None:
    """The calibration of a gallery's codes, and the share of its rows that are relevant to a query.

    The model's, where it is another one than the gallery was exported with: models may be calibrated later.
    """
    if not snapshot.promises:
        snapshot.promises.append(_promises(snapshot, model, name))
    found: Promises | None = snapshot.promises[0]
    return found


def _promises(snapshot: Snapshot, model: Model | None, name: str) -> Promises | None:
    metadata = snapshot.stored.metadata or {}
    packed = metadata.get("calibration")
    calibrations = None if model is None else model.calibrations
    bits = metadata.get("M", 0) * metadata.get("nbits", 0)
    if calibrations is not None and bits in calibrations.lengths and calibrations.lengths[bits].pack() != packed:
        codebooks, codes, _ = known_target(snapshot, name).unpack(snapshot.stored.index, snapshot.stored.shape)
        distinct, counts = np.unique(codes, axis=0, return_counts=True)
        share = calibrations.share(codebooks.decode(distinct), counts, bits)
        return calibrations.lengths[bits], share
    return None if packed is None else (Calibration.unpack(packed), metadata.get("relevant_share"))
