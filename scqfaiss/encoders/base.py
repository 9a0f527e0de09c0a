"""What every encoder offers to a method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import DataError
from ..modality import ROWS, Modality
from .chain import Arrays

if TYPE_CHECKING:
    from ..files import PathLike

LEAST_SPREAD = 1e-27  # of the widest column


@dataclass(frozen=True)
class Stats:
    """One pass over the training rows: mean and standard deviation (d,) float64 of x and of sign(x) sqrt|x|, smallest x."""

    n: int
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    power_mean: NDArray[np.float64]
    power_sd: NDArray[np.float64]
    minimum: float
    multilabel: bool = False  # whether a row may carry several labels


class Encoder(nn.Module):
    """x (b, d_in) float32 -> g (E, b, width) float32, E members that see the same rows and share nothing else.

    A subclass is built from its frozen Config and the Stats of the training rows, so that standardising is part of it.
    Members other than 1 are for encoders that train.
    """

    Config: ClassVar[type[Any]]
    modality: ClassVar[Modality] = ROWS
    d_in: int
    width: int
    # Of the products in training steps, where not float32; what comes out is float32.
    precision: torch.dtype | None = None

    def __init__(self, config: Any, stats: Stats, members: int = 1) -> None:
        super().__init__()
        self.config, self.members = config, members
        self.d_in = len(stats.mean)

    def __call__(self, x: Tensor) -> Tensor:
        # Without gradients nothing is trained: rows are encoded, by the same arithmetic as after the training.
        if self.precision is None or not torch.is_grad_enabled():
            return super().__call__(x)  # type: ignore[no-any-return]
        with torch.autocast(x.device.type, self.precision):
            out: Tensor = super().__call__(x)
        return out.float()

    def seen(self, x: Tensor) -> Tensor:
        """Items x (b, ...) of a batch -> what a step of the training sees of them, as float32 that can be moved; forward takes
        it for what it is.
        """
        return x

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def groups(self, lr: float, decay: float) -> list[dict[str, Any]]:
        """Its parameters as groups for an optimiser whose rate for what is new is `lr`."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return [{"params": trained, "lr": lr, "weight_decay": decay}] if trained else []

    def on_epoch(self, epoch: int) -> None:
        """Called before each epoch of a stage that trains it."""

    def layers(self) -> list[tuple[str, Arrays]]:
        """The evaluation-mode forward pass as layers of a Chain, the same within float32 rounding."""
        raise NotImplementedError


class FrontEncoder(Encoder):
    """What turns items of another modality into rows of features g, in front of the chain of a model.

    Its class is named by its modality (Modality.encoder_class). The source hands out items in the form that it takes, see
    Source.adapt. It trains by the same calls as any encoder; afterwards a model keeps its record, and it gives features
    outside a training.
    """

    factory: str  # what the user names it by, for a model file to be allowed to run it

    @classmethod
    def build(
        cls, config: Any, name: str, arguments: Mapping[str, str], weights: PathLike | None = None, seed: int = 0
    ) -> FrontEncoder:
        """The encoder of that name, to be trained. Raises ConfigError where name, arguments or weights do not fit."""
        raise NotImplementedError

    @classmethod
    def load(
        cls, tensors: Mapping[str, NDArray[Any]], record: Mapping[str, Any], trusted: str | None = None
    ) -> FrontEncoder:
        """The inverse of `record`, in evaluation mode on the CPU. trusted: the factory whose code the user allows to run.

        Raises CheckpointError on what record() could not have written, ConfigError on a factory that is not trusted.
        """
        raise NotImplementedError

    def record(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """(tensors by name, plain JSON values): all that `load` needs. Of modalities other than images 'modality' names it."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What a file of its features says of it, as text and numbers."""
        return {"encoder": self.factory}

    def features(self, items: NDArray[Any]) -> NDArray[np.float32]:
        """Items (b, ...) as their source gives them -> g (b, width) float32, as after the training."""
        raise NotImplementedError

    def layers(self) -> list[tuple[str, Arrays]]:
        """None: the NumPy chain of a model starts behind this encoder, from rows of d = width."""
        return []


def standardising(
    mean: NDArray[np.float64], sd: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(scale, shift), float32 (d,): x * scale + shift has mean 0 and standard deviation 1 (less in nearly constant columns).

    Raises DataError for rows so alike that float32 has no room for what is divided by their spread.
    """
    widest = float(sd.max(initial=0))
    if 0 < widest < LEAST_SPREAD:
        raise DataError(
            f"the training rows vary by {widest:.1g}, too little for float32: multiply these and all other rows by a constant"
        )
    # Dividing by a spread that is rounding noise beside the others' would blow the noise up.
    floor = max(1e-3 * widest, 1e-30)
    still = sd <= 1e-6 * np.abs(mean)
    scale = np.where(still, 0.0, 1.0 / np.maximum(sd, floor))
    return scale.astype(np.float32), (-mean * scale).astype(np.float32)
