"""What a changed query finds: the database by its codes, by floats and by the predicted class, held against the labels."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..arrays import Floats, Labels
from ..codebooks import Codes
from ..contract import seed_of
from ..encoders.chain import Chain
from ..evaluation.measures import BY_LABELS, load
from ..evaluation.ranking import Relevance, Words, measure, scores_in_blocks
from ..exponents import balanced
from ..features.source import DEFAULT_INFERENCE, InferenceOptions, front_encoder_of
from ..model import Model
from ..training.gate import area_under_curve
from .smoothing import Smoothing, noisy

MEASURES = {"map": BY_LABELS["map"]}


class Searched:
    """A database as one model codes it, and the clean queries that changed ones are held against.

    xb (n, d_in): its rows, of images their features; labels of both sides, with the same classes. Nothing of the model or the
    database changes.
    """

    def __init__(
        self,
        model: Model,
        xb: Floats,
        database: Labels,
        x: NDArray[Any],
        queries: Labels,
        *,
        at: int | None = None,
        smoothing: Smoothing | None = None,
        options: InferenceOptions = DEFAULT_INFERENCE,
        seed: int = 0,
    ) -> None:
        self.model, self.queries, self.database, self.at = model, queries, database, at
        self.smoothing, self.seed = smoothing, seed
        self.front = front_encoder_of(model, options) if model.modality.needs_encoder else None
        self.vectors = model.vectors(xb, "the database")
        self.words = Words.of(model.assign(self.vectors))
        self.decoded = model.codebooks.decode(self.words.codes)
        self.relevance = Relevance(database, self.words.inverse, len(self.decoded))
        self.xb = xb
        self.clean = self._rows(x)
        self.clean_code = self._code(self.clean)

    def figures(self, x: NDArray[Any], floats: bool = True) -> dict[str, Any]:
        """Changed queries x (n, ...) in the order of the clean ones -> mAP of their search by codes (`map`), with the code of the
        query itself (`map_symmetric`), by floats and by the predicted class; how many codes changed; and how well the model's
        gate, where there is one, tells them from clean ones.
        """
        rows = self._rows(x)
        z, code = self._query(x, rows), self._code(rows)
        changed = code != self.clean_code
        found: dict[str, Any] = {
            "map": self._map(z, self.decoded, self.relevance),
            "map_symmetric": self._map(self.model.codebooks.decode(code), self.decoded, self.relevance),
            "changed_codes": float(changed.any(1).mean()),
            "changed_codewords": float(changed.mean()),
        }
        if floats:
            found["map_floats"] = self._map(z, self.vectors, self._of_rows)
        if self._label_code is not None:
            posterior, classes, relevance = self._label_code
            p = np.ascontiguousarray(posterior(rows)[:, classes])
            scores = scores_in_blocks(p, np.eye(len(classes), dtype=np.float32))
            found["map_label"] = self._mean(scores, relevance)
        if self.model.has_gate:
            known, clean = self.model.known(rows), self.model.known(self.clean)
            both, is_clean = np.concatenate([clean, known]), np.repeat([True, False], len(known))
            found["known_auc"] = area_under_curve(both.astype(np.float64), is_clean)
        return found

    def hits(self, x: NDArray[Any], k: int) -> NDArray[np.int64]:
        """Queries x (n, ...) -> rows of the database that a search by codes finds first, (n, k); fewer where there are fewer."""
        z = self._query(x, self._rows(x))
        scores = scores_in_blocks(z, self.decoded, self.model.codebooks.metric)
        return np.stack([np.argsort(-s[self.words.inverse], kind="stable")[:k] for s in scores])

    def _map(self, z: Floats, x: Floats, relevance: Relevance) -> float:
        metric = self.model.codebooks.metric
        scores = scores_in_blocks(balanced(z) if metric == "ip" else z, x, metric)
        return self._mean(scores, relevance)

    def _mean(self, scores: Iterable[NDArray[np.float32]], relevance: Relevance) -> float:
        return float(measure(scores, self.queries, relevance, self.at, measures=load(MEASURES))["map"])

    @cached_property
    def _of_rows(self) -> Relevance:
        return Relevance(self.database, np.arange(len(self.vectors)), len(self.vectors))

    @cached_property
    def _label_code(self) -> tuple[Chain, NDArray[np.int64], Relevance] | None:
        """(the chain up to the posterior, the classes that the database is predicted to have, relevance of each); None of models
        without a posterior of one label a row.
        """
        layers = list(self.model.chain.layers)
        if not any(op == "softmax" for op, _ in layers):
            return None
        posterior = Chain(self.model.chain.d_in, layers[:-1] if layers[-1][0] == "linear" else layers)
        classes, predicted = np.unique(posterior(self.xb).argmax(1), return_inverse=True)
        return posterior, classes, Relevance(self.database, predicted, len(classes))

    # ------------------------------------------------------------------------------------------------------------ queries
    def _rows(self, x: NDArray[Any]) -> Floats:
        return x if self.front is None else self.front.features(x)

    def _query(self, x: NDArray[Any], rows: Floats) -> Floats:
        """What is searched with; where searches are smoothed, the mean over noisy copies."""
        if self.smoothing is None:
            return self.model.embed(rows)
        generator = torch.Generator().manual_seed(seed_of(self.seed, 1))
        total = np.zeros((len(rows), self.model.codebooks.d))
        for _ in range(self.smoothing.copies):
            copy = noisy(torch.from_numpy(x).float(), self.smoothing.noise, generator).numpy()
            total += self.model.embed(self._rows(copy.astype(x.dtype)))
        return (total / self.smoothing.copies).astype(np.float32)

    def _code(self, rows: Floats) -> Codes:
        return self.model.assign(self.model.vectors(rows))
