"""Items that are no rows of features, such as images: what a Source of them offers."""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints
from .classes import numbered_as
from .source import BLOCK_BYTES, Source


class ItemSource(Source):
    """n items of another modality than rows of features, of which an encoder makes such rows.

    A subclass sets `modality` and `item_shape` and implements `items`; item_shape may change in `adapt`.
    """

    item_shape: tuple[int, ...]
    block_items = 1  # the fewest in a block
    _names: list[str] | None = None

    @abstractmethod
    def items(self, physical: Ints) -> NDArray[np.uint8]:
        """Physical items, in any order, any of them more than once -> (b, *item_shape). Raises DataError on bad ones."""

    def item_name(self, physical: int) -> str:
        """What messages call an item."""
        return f"#{physical}"

    @property
    def d(self) -> int:  # type: ignore[override]
        """Numbers of an item."""
        return math.prod(self.item_shape)

    @property
    def form(self) -> str:
        """What one item is, in words."""
        return f"of {self.d:,} bytes"

    @property
    def names(self) -> list[str]:
        """What messages call the items that were kept."""
        if self._names is None:
            self._names = [self.item_name(int(k)) for k in self._physical(np.arange(len(self)))]
        return self._names

    def take(self, rows: Ints) -> NDArray[np.uint8]:
        """Items `rows` of those kept, in any order, any of them more than once -> (b, *item_shape). Raises as items()."""
        rows = np.asarray(rows, np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"{self.modality.items} {rows.min()} to {rows.max()} of {len(self)}")
        return self.items(self._physical(rows))

    def read(self, i: int, j: int) -> NDArray[np.uint8]:  # type: ignore[override]  # what rows are of depends on the source
        """Items i..j-1 of those kept -> (j - i, *item_shape). Raises as items()."""
        if not 0 <= i <= j <= len(self):
            raise IndexError(f"{self.modality.items} {i} to {j} of {len(self)}")
        return self.take(np.arange(i, j))

    def blocks(self, rows: int | None = None) -> Iterator[tuple[int, NDArray[np.uint8]]]:  # type: ignore[override]
        """(first row, items (b, *item_shape)) from the first to the last, `rows` at a time."""
        yield from super().blocks(rows)  # type: ignore[misc]

    @property
    def block_rows(self) -> int:
        """Items that a block holds, so that it takes about BLOCK_BYTES."""
        return max(self.block_items, BLOCK_BYTES // self.d)

    def fetch(self, i: int, j: int) -> NDArray[Any]:
        return self.items(np.arange(i, j)).reshape(j - i, self.d)

    def digest(self, rows: Ints | None = None) -> str:
        """SHA-256 of the items `rows` of those kept, or of all, in order."""
        kept = np.arange(len(self)) if rows is None else np.asarray(rows, np.int64)
        sha = hashlib.sha256()
        for i in range(0, len(kept), self.block_rows):
            sha.update(self.take(kept[i : i + self.block_rows]).tobytes())
        return sha.hexdigest()

    def prove(self) -> None:
        """Look at every item once. Raises DataError that counts those that cannot be used."""

    def align(self, class_names: Sequence[str], other: str = "the other side") -> None:
        """Number classes as `other` does, which calls them `class_names`. Raises as classes.numbered_as."""
        if self.labels is not None:
            self.labels = numbered_as(self.labels, class_names, self.name, other)

    def _physical(self, rows: Ints) -> Ints:
        return rows if self._kept is None else self._kept[rows]

    def _keep(self, rows: Ints) -> None:
        super()._keep(rows)
        self._names = None
