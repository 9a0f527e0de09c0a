"""Images as rows: an encoder turns them into features on the way to wherever rows go.

Only what is asked for runs: a source of items is read, encoded and handed on block by block, the next block being read
meanwhile. Neither torch nor the encoder is loaded before there are items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Floats, bad_rows
from ..data import Source
from ..data.items import ItemSource
from ..errors import CheckpointError, ConfigError, DataError, printable
from ..model import Model, read_ahead

if TYPE_CHECKING:
    from ..encoders.base import FrontEncoder

BATCH = 256  # items read while the encoder works on as many


@dataclass(frozen=True)
class InferenceOptions:
    """How a model's network looks at images.

    encoder: the factory 'package.module:function' that a model file may have imported and called, where it is none of our own.
    device: auto, cpu, cuda or cuda:N. precision: float32 or bfloat16.
    """

    encoder: str | None = None
    device: str = "auto"
    precision: str = "float32"


DEFAULT_INFERENCE = InferenceOptions()


class FeatureSource(Source):
    """A source of items as rows of features, d = width of the encoder; everything else is as in the source.

    Rows are computed anew whenever they are read. Closes the source it wraps. Raises DataError where the encoder gives NaN or
    infinity for an item.
    """

    known_finite = True

    def __init__(self, source: ItemSource, encoder: FrontEncoder) -> None:
        source.adapt(encoder)
        self.source, self.encoder = source, encoder
        self.name, self.path, self.features_name = source.name, source.path, source.features_name
        self.physical_rows, self.d = len(source), encoder.width
        self.labels, self.has_ids, self.dropped = source.labels, source.has_ids, source.dropped
        self.duplicate_ids, self._ids = source.duplicate_ids, source.ids

    @property
    def names(self) -> list[str]:
        """Names of the items, as their source gives them."""
        names = self.source.names
        return names if self._kept is None else [names[i] for i in self._kept]

    @property
    def block_rows(self) -> int:
        return BATCH

    def fetch(self, i: int, j: int) -> NDArray[Any]:
        return np.concatenate([np.zeros((0, self.d), np.float32), *(x for _, x in self.encoded(i, j))])

    def blocks(self, rows: int | None = None) -> Iterator[tuple[int, Floats]]:
        if rows is None and self._kept is None:
            yield from self.encoded(0, len(self))
        else:
            yield from super().blocks(rows)

    def close(self) -> None:
        self.source.close()

    def encoded(self, i: int, j: int) -> Iterator[tuple[int, Floats]]:
        """(first row, features) of items i..j-1 of the source, in blocks."""
        for first, items in read_ahead(self._items(i, j)):
            x = self.encoder.features(items)
            bad = np.flatnonzero(bad_rows(x))
            if len(bad):
                name = printable(self.source.names[first + int(bad[0])])
                raise DataError(f"{self.name}: the network gives features of {name} that are not finite")
            yield first, x

    def _items(self, i: int, j: int) -> Iterator[tuple[int, Any]]:
        for first in range(i, j, BATCH):
            yield first, self.source.read(first, min(first + BATCH, j))


def front_encoder_of(
    model: Model, inference_options: InferenceOptions = DEFAULT_INFERENCE, name: str = "the model"
) -> FrontEncoder:
    """What stands in front of the chain of a model, ready to give features.

    Raises ConfigError where there is none, where its factory is neither ours nor the one that `seeing` names, and on an
    unknown device or precision.
    """
    if model.backbone is None:
        raise ConfigError(f"{name} has no network for images, it takes rows of d={model.d_in}")
    from ..encoders import front_encoder_class, inference

    load = front_encoder_class(model.modality).load
    encoder = load(model.backbone, model.config["backbone"], trusted=inference_options.encoder)
    if encoder.width != model.d_in:
        raise CheckpointError(f"{name}: its network gives d={encoder.width}, what follows needs d={model.d_in}")
    return inference.ready(encoder, inference_options.device, inference_options.precision)


def as_rows(
    source: Source, model: Model, inference_options: InferenceOptions = DEFAULT_INFERENCE, name: str = "the model"
) -> Source:
    """What `model` encodes: rows of features as they are, items of its modality as a FeatureSource.

    Raises ConfigError where the model takes no such items, and as front_encoder_of does.

    >>> with open_rows("photos/") as source:                            # doctest: +SKIP
    ...     codes = encode_source(model, as_rows(source, model))
    """
    if not isinstance(source, ItemSource):
        return source
    if source.modality != model.modality:
        kind = model.modality.noun if model.modality.needs_encoder else f"rows of d={model.d_in}"
        raise ConfigError(
            f"{source.name} holds {source.modality.noun}, {name} takes {kind}: {source.modality.make_features}"
        )
    return FeatureSource(source, front_encoder_of(model, inference_options, name))
