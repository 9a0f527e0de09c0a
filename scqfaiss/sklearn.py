"""`Quantizer`: a training as a scikit-learn estimator, for pipelines, grid searches and everything else that takes one.

    from scqfaiss.sklearn import Quantizer

    codes = Quantizer(bits=16).fit(X, y).encode(X)

The only module that needs scikit-learn; nothing else imports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .arrays import NO_LABEL, Floats, as_labels
from .codebooks import Codes
from .dependencies import missing
from .errors import ConfigError, DataError
from .evaluation.ranking import Relevance, Words, scores_in_blocks
from .evaluation.ties import average_precision, tie_blocks
from .exponents import balanced
from .methods import method_class
from .model import Model
from .options import TrainOptions

try:
    from sklearn.base import (  # type: ignore[import-untyped]
        BaseEstimator,
        ClassNamePrefixFeaturesOutMixin,
        TransformerMixin,
    )
    from sklearn.utils.multiclass import check_classification_targets  # type: ignore[import-untyped]
    from sklearn.utils.validation import check_is_fitted, validate_data  # type: ignore[import-untyped]
except ImportError as error:
    raise ConfigError('scqfaiss.sklearn needs scikit-learn 1.6 or newer: pip install "scqfaiss[sklearn]"') from error

DEFAULTS = TrainOptions()
SIGNS = ("-1", "1")  # names of two classes that y gives by these numbers


def _are_signs(y: Any) -> bool:
    """Whether y (n,) holds -1 and 1, both, and nothing else."""
    return y.ndim == 1 and y.dtype.kind in "if" and np.array_equal(np.unique(y), [-1, 1])


def _classes(y: Any) -> Any:
    """The classes among y (n,), ascending, without what says that a row has none."""
    found = np.unique(y)
    if found.dtype.kind in "if" and not _are_signs(y):
        return found[found != NO_LABEL]
    return found[[not isinstance(name, str) or bool(name.strip()) for name in found.tolist()]]


class Quantizer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Train a quantizer on rows X (n, d) and, where the method learns from labels, y.

    Parameters are the fields of options.TrainOptions that are not about images; `settings` holds those of the method and of the
    encoder, {"features.epochs": 20} for instance. They are checked by `fit`, as scikit-learn wants it.

    Attributes of a fitted one: `model_`, the scqfaiss.Model, which `scqfaiss.export` and `model_.save` take; `n_features_in_`;
    `feature_names_in_` where X had names; `classes_` where labels were learned from: class numbers or names, ascending (of y
    (n, C) the numbers of its columns).

    -1 in y says that a row has no label, as in sklearn.semi_supervised. Only where y holds -1 and 1 and nothing else these are
    two classes, the usual code of two: taken otherwise there would be one class, of which nothing can be learned.

    Pickled are the parameters and the bytes of the model file (docs/format.md), which run no code; a pickle as a whole is as
    unsafe to load as any other, so exchange model files.
    """

    def __init__(
        self,
        method: str = DEFAULTS.method,
        bits: int = DEFAULTS.bits,
        *,
        nbits: int = DEFAULTS.nbits,
        encoder: str = DEFAULTS.encoder,
        lists: str | int = DEFAULTS.lists,
        content_bits: int = DEFAULTS.content_bits,
        epochs: int | None = DEFAULTS.epochs,
        batch_size: int | None = DEFAULTS.batch_size,
        patience: int = DEFAULTS.patience,
        robust: str = DEFAULTS.robust,
        forecast: str = DEFAULTS.forecast,
        device: str = DEFAULTS.device,
        precision: str = DEFAULTS.precision,
        accumulate: int = DEFAULTS.accumulate,
        clip_norm: float = DEFAULTS.clip_norm,
        seed: int = DEFAULTS.seed,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.method = method
        self.bits = bits
        self.nbits = nbits
        self.encoder = encoder
        self.lists = lists
        self.content_bits = content_bits
        self.epochs = epochs
        self.batch_size = batch_size
        self.patience = patience
        self.robust = robust
        self.forecast = forecast
        self.device = device
        self.precision = precision
        self.accumulate = accumulate
        self.clip_norm = clip_norm
        self.seed = seed
        self.settings = settings

    def fit(self, X: Any, y: Any = None) -> Quantizer:
        """X (n, d) finite numbers; y (n,) class numbers or names, or (n, C) of 0 and 1; not read by methods without labels.

        Raises ValueError, as scikit-learn's own estimators do, on bad rows or labels and on parameters that cannot work;
        ResourceError when memory runs out.
        """
        try:
            from .training.interface import train
        except ImportError as error:
            lacking = missing(error, "Quantizer.fit")
            if lacking is None:
                raise
            raise lacking from error
        if not self._learns_from_labels():
            y = None
        dtypes: dict[str, Any] = {"dtype": [np.float32, np.float64], "ensure_min_samples": 2}
        if y is None:  # raises where the method needs labels
            X = validate_data(self, X, y, **dtypes)
        else:
            X, y = validate_data(self, X, y, multi_output=True, **dtypes)
            check_classification_targets(y)
            y = y.ravel() if y.ndim == 2 and y.shape[1] == 1 else y
        options = self.get_params(deep=False) | {"settings": dict(self.settings or {})}
        target = y
        if y is not None and _are_signs(y):
            target, options["class_names"] = (y > 0).astype(np.int64), SIGNS
        try:
            model = train(X, target, **options)
        except (ConfigError, DataError) as error:
            raise ValueError(str(error)) from error
        self.model_ = model
        self._n_features_out = model.codebooks.d
        if y is not None:
            self.classes_ = np.arange(y.shape[1]) if y.ndim == 2 else _classes(y)
        elif hasattr(self, "classes_"):
            del self.classes_
        return self

    def transform(self, X: Any) -> Floats:
        """X (n, d) -> embeddings (n, d_out) float32: what is searched with, see Model.embed."""
        model, X = self._fitted(X)
        return model.embed(X, "X")

    def encode(self, X: Any) -> Codes:
        """X (n, d) -> codes (n, M) uint8, or wider; with lists (n, 1 + M), see Model.encode."""
        model, X = self._fitted(X)
        return model.encode(X, "X")

    def score(self, X: Any, y: Any) -> float:
        """Mean average precision of the rows of X as queries, each among the codes of all others.

        Relevant are rows that share a label. In a cross-validation methods and lengths are so compared by a gallery of rows that
        none was trained on. Equal scores count as in `scqfaiss evaluate`: as the expectation over their orders. X (n, d); y as in
        fit. Raises ValueError.
        """
        model, X = self._fitted(X)
        try:
            y = np.asarray(y)
            signs = _are_signs(getattr(self, "classes_", y))
            labels = as_labels(y + 1 if signs else y, len(X), "y")
        except DataError as error:
            raise ValueError(str(error)) from error
        words = Words.of(model.encode(X, "X"))
        relevance = Relevance(labels, words.inverse, len(words.codes))
        queries, decoded = model.embed(X, "X"), model.codebooks.decode(words.codes)
        total = 0.0
        for scores, own, label in zip(
            scores_in_blocks(balanced(queries), decoded, model.codebooks.metric), words.inverse, labels.y
        ):
            rows, relevant = relevance.rows.copy(), relevance.per_word(label).copy()
            rows[own] -= 1
            relevant[own] -= (
                bool(np.any(label)) if labels.multilabel else 1
            )  # a row without labels is not relevant to itself
            total += average_precision(*tie_blocks(scores, rows, relevant))
        return total / len(X)

    def _learns_from_labels(self) -> bool:
        try:
            method = method_class(self.method)
        except (ConfigError, TypeError):  # said by fit
            return True
        return "labels" in method.needs

    def _fitted(self, X: Any) -> tuple[Model, Any]:
        check_is_fitted(self, "model_")
        return self.model_, validate_data(self, X, reset=False, dtype=[np.float32, np.float64])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = self._learns_from_labels()
        tags.target_tags.multi_output = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if "model_" in state:
            state["model_"] = state["model_"].to_bytes()
        for name in ("classes_", "feature_names_in_"):
            if name in state:
                state[name] = state[name].tolist()
        return state

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        state = dict(state)
        if "model_" in state:
            state["model_"] = Model.from_bytes(state["model_"], "the model of a pickled Quantizer")
        if "classes_" in state:
            state["classes_"] = np.array(state["classes_"])
        if "feature_names_in_" in state:
            state["feature_names_in_"] = np.array(state["feature_names_in_"], dtype=object)
        super().__setstate__(state)
