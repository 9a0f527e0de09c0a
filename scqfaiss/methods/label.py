"""The label code: store the predicted class, rank by the query's posterior. The row every supervised code must beat.

Sablayrolles, Douze, Usunier, Jegou, "How should we evaluate supervised hashing?", ICASSP 2017, arXiv 1609.06753.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..codebooks import Codebooks
from ..contract import Layers, MethodDefaults, Stage, Task, setting
from ..errors import ConfigError
from ..modality import Modality
from . import cfa, cfa_checks, lists
from .rows import CodebookRows
from .self_training import SelfTraining

MAX_ROWS = 1_000_000  # that teach lists


@dataclass(frozen=True)
class Settings(cfa.Settings):
    copies: int = setting(4, low=1, high=100)  # passes over the training rows that teach lists, with other noise each
    noise: float = setting(
        1.5, low=0, high=10
    )  # in standard deviations of each feature; 0, and of images: dropout instead


class LabelCode(MethodDefaults, nn.Module):
    """One label a row: M=1, codewords are unit vectors, ceil(log2 C) bits, score = posterior of the stored class.

    Many labels: one bit a class, set where its probability is above 0.5; score = expected number of shared labels.
    The bits follow from the classes: --bits and --nbits are not asked. With lists, these are the code, and cost no byte: each
    belongs to a class, and several of a class tell its rows apart by what else they could be. The score is then that of scq, the
    inner product of z.
    """

    Config = Settings
    long_name = "label code"
    needs = frozenset({"labels"})
    starts = True
    takes_lists = True
    takes_unlabelled = True
    rule = "ip"  # argmax_k <p, e_k>; with many labels 'l2', which is pi_k > 0.5

    @staticmethod
    def unlabeled(config: Settings) -> str:
        return config.unlabeled

    @staticmethod
    def shape(C: int, multilabel: bool, M: int = 1, nbits: int = 1, lists: int = 1) -> tuple[int, int]:
        """(M, nbits) that C classes need, whatever was asked for; nothing beside lists."""
        if lists > 1:
            return 0, 1
        return (C, 1) if multilabel else (1, max(1, (C - 1).bit_length()))

    @staticmethod
    def default_encoder(config: Settings) -> str:
        return "mlp"

    @staticmethod
    def members(config: Settings, encoder: str) -> int:
        return cfa.members(config, encoder)

    @classmethod
    def check(cls, config: Settings, d_in: int, C: int, M: int, nbits: int, encoder: str, modality: Modality) -> None:
        cfa_checks.check_items(config, modality)
        if encoder == "identity":
            raise ConfigError("the label code needs a classifier; choose --encoder mlp or linear")
        if config.cfa not in ("auto", "calibrated"):
            raise ConfigError(
                f"the label code needs a posterior, which cfa={config.cfa} does not give; use cfa=calibrated"
            )
        if C > 1 << 16:
            raise ConfigError(f"the label code stores at most {1 << 16:,} classes, found {C:,}")

    def __init__(self, config: Settings, task: Task) -> None:
        super().__init__()
        assert task.labels is not None
        self.config, self.task = config, task
        self.multilabel, C = task.labels.multilabel, task.labels.C
        if self.multilabel:
            config = replace(config, multi="sigmoid", d=max(config.d, C))
            self.rule = "l2"
        self.C = C
        d = cfa.smallest_d(config, task.rows.d, C, 1, task.encoder_name)
        self.features = cfa.Features(config, task, d, task.labels)
        self.self_training = SelfTraining(self.features, task)
        self.centroids: Tensor | None = None  # of lists, (L, d)
        if task.lists > 1:
            self.rule = "l2"

    def stages(self) -> list[Stage]:
        stages = self.self_training.stages()
        return [*stages, Stage(name="lists", begin=self.learn_lists)] if self.task.lists > 1 else stages

    @torch.no_grad()
    def learn_lists(self) -> None:
        rows = CodebookRows(self.features, self.task, MAX_ROWS, self.config.copies, self.config.noise)
        self.centroids = lists.of_task(rows.encoded()[0], self.features, self.task)

    def of_posterior(self, p: Tensor) -> Tensor | None:
        if self.task.lists > 1:
            return self.features.of_posterior(p)
        return p if self.multilabel else nn.functional.pad(p, (0, max(0, 3 - self.C)))

    def layers(self) -> Layers:
        if self.task.lists > 1:
            return self.features.layers()
        layers = list(self.features.layers(upto="posterior"))
        if not self.multilabel and self.C < 3:  # FAISS has no 2-dimensional codebooks of fewer than 8 codewords
            layers.append(("linear", {"A": np.eye(3, self.C, dtype=np.float32)}))
        return layers

    def codebooks(self) -> Codebooks:
        if self.centroids is not None:
            return Codebooks.of_lists(self.centroids.numpy())
        if self.multilabel:
            return Codebooks("product", np.tile(np.array([[[0.0], [1.0]]], np.float32), (self.C, 1, 1)))
        K = 1 << self.shape(self.C, False)[1]
        return Codebooks("product", np.eye(K, max(self.C, 3), dtype=np.float32)[None])

    def summary(self) -> dict[str, Any]:
        return self.features.summary() | self.self_training.summary()
