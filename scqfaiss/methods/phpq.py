"""PHPQ: feature maps of several stages of a network, pooled in a hybrid way, and codewords that are attended to in part.

Built after the abstract of Zeng, Wang, Chen, Dai, Xia, Wang, "Pyramid hybrid pooling quantization for efficient fine-grained
image retrieval", Pattern Recognition Letters 178:106-114, 2024, arXiv 2109.05206. Nothing more of it was open to us: layers,
losses and every number here are ours, and no result of this method is one of the paper's.

Both parts are settings of their own: pool=pyramid of the network (encoders/pooling.py), for every method that trains on images,
and quantizer=attention of scq (attention.py). This is their composition, on the calibrated head of scq.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..contract import Task, setting
from ..errors import ConfigError
from ..modality import Modality
from . import scq


@dataclass(frozen=True)
class Settings(scq.Settings):
    recipe: str = setting("calibrated", choices=("calibrated",))
    quantizer: str = setting("attention", choices=scq.QUANTIZERS)


class PHPQ(scq.SCQ):
    """scq with pool=pyramid and quantizer=attention, for images alone."""

    Config = Settings
    PRESETS: ClassVar[dict[str, Any]] = {}
    encoder_defaults: ClassVar[dict[str, Any]] = {"pool": "pyramid"}
    long_name = "pyramid hybrid pooling quantization, after PHPQ's abstract"
    needs = frozenset({"labels", "feature maps"})
    takes_unlabelled = False

    @classmethod
    def check(
        cls, config: scq.Settings, d_in: int, C: int, M: int, nbits: int, encoder: str, modality: Modality
    ) -> None:
        if not modality.needs_encoder:
            raise ConfigError("phpq pools feature maps of images; for stored features use method scq")
        super().check(config, d_in, C, M, nbits, encoder, modality)

    def __init__(self, config: scq.Settings, task: Task) -> None:
        """Raises ConfigError where the network pools its maps by the mean alone."""
        encoder: Any = task.encoder
        if encoder.config.pool == "average":
            raise ConfigError("phpq pools feature maps by pool=pyramid, got pool=average; method scq takes that")
        super().__init__(config, task)
        self.maps = int(encoder.stages)

    def summary(self) -> dict[str, Any]:
        return super().summary() | {"feature_maps": self.maps}
