"""What every kind of row file looks like to the rest of the package: n rows of d float32 numbers, read in pieces.

A Source reads lazily, so a file larger than memory trains and exports; labels and ids are small and read whole.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import (
    Floats,
    Ints,
    Labels,
    as_array,
    as_features,
    as_ids,
    as_labels,
    bad_rows,
    check_feature_form,
    describe_bad_row,
    not_finite,
    rescaled,
)
from ..errors import DataError, printable, warn
from ..modality import ROWS, Modality
from ..tables.opening import TableRows, as_table
from .kinds import RowOptions
from .label_files import read_labels

ALLOW = " or pass --allow-duplicate-ids"
BLOCK_BYTES = 16 << 20  # what one block of rows takes as float32: large enough to read fast, small beside any memory


def row_digests(x: Floats) -> NDArray[np.uint64]:
    """x (b, d) float32 -> (b, 2), equal where rows are equal."""
    zeros_alike = x + np.float32(0)  # -0.0 equals 0.0
    hashes = b"".join(hashlib.blake2b(row.data, digest_size=16).digest() for row in zeros_alike)
    return np.frombuffer(hashes, np.uint64).reshape(-1, 2)


class Source(ABC):
    """n rows of d features, with optional labels and ids.

    A subclass opens its file, sets `name` (for messages), `physical_rows` and `d`, implements `fetch`, and gives
    labels and ids of all physical rows to `settle`, which drops bad rows where that was asked for.
    """

    name: str
    path: str | None = None
    features_name: str = "features"
    physical_rows: int
    d: int
    labels: Labels | None = None
    pairs = False  # a row is a query and its key side by side
    modality: Modality = ROWS
    is_pair_half = False  # rows are the queries of a file of pairs, or its keys
    duplicate_ids = False  # rows of one id are copies of one row, for merge_copies() to prove
    dropped = 0  # bad rows left out by skip_bad_rows
    has_ids = False
    scale: float | None = None  # what 1 stands for in features of int8 and uint8
    known_finite = False  # rows in memory, looked at when they came in
    named = False  # labels come as names, so that their numbers mean nothing outside this source
    _ids: Ints | None = None
    _kept: Ints | None = None

    @abstractmethod
    def fetch(self, i: int, j: int) -> NDArray[Any]:
        """Physical rows i..j-1 as (j - i, d), any float dtype, not yet checked for NaN."""

    def close(self) -> None:  # noqa: B027  sources in memory have nothing to release
        """Release the file and raise DataError if it was changed while it was read. May be called twice."""

    def adapt(self, encoder: Any) -> None:  # noqa: B027  rows of features come in one form
        """Hand out items in the form that this encoder of their modality takes. Raises ConfigError where that cannot be."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            self.close()
        except DataError:
            if kind is None:  # a change during reading must not hide the error that came first
                raise

    def __len__(self) -> int:
        return self.physical_rows if self._kept is None else len(self._kept)

    @property
    def block_rows(self) -> int:
        """Rows a block holds, so that it takes about BLOCK_BYTES as float32.

        Whole chunks wherever one fits in, so that none is decoded twice.
        """
        rows = max(1, BLOCK_BYTES // (4 * self.d))
        return rows - rows % self.chunk_rows or rows

    def warn_if_wide(self) -> None:
        """Warn of a file with more dimensions than rows: MATLAB and others store a matrix transposed."""
        if self.path is not None and not self.pairs and self.modality == ROWS and self.d > len(self) > 1:
            warn(
                f"{self.name}: {self.features_name} is (n, d) = ({len(self):,}, {self.d:,}), more dimensions than rows; if it "
                "is stored as (d, n), write the transpose"
            )

    @property
    def sealed(self) -> bool:
        """Whether all that is read has checksums inside the file."""
        return False

    @property
    def chunk_rows(self) -> int:
        """Rows that are stored as one."""
        return 1

    @property
    def ids(self) -> Ints:
        """(n,) int64; 0..n-1 in file order where the file gives none."""
        if self._ids is None:
            self._ids = np.arange(len(self)) if self._kept is None else self._kept.copy()
        return self._ids

    def settle(
        self,
        labels: Any = None,
        ids: Any = None,
        class_names: Any = None,
        *,
        labels_name: str = "labels",
        ids_name: str = "ids",
        skip_bad_rows: bool = False,
        allow_duplicate_ids: bool = False,
        repeated_ids: bool = False,
        keep_unlabelled: bool = False,
    ) -> None:
        """Check labels and ids of all physical rows; with skip_bad_rows scan the features once and drop bad rows.

        Of rows with one label each, those that have none are left out, with a warning, unless keep_unlabelled; where no row has
        one there are no labels.

        Where rows were dropped before, labels and ids are those of the rows kept.

        repeated_ids: that an id stands twice is in the nature of these rows, and no warning is due.
        """
        if labels is not None:
            self.named = self.named or np.asarray(labels).dtype.kind in "USO"
            self.labels = as_labels(labels, len(self), f"{self.name}: {labels_name}", class_names)
        if ids is not None:
            self.has_ids = True
            name = f"{self.name}: {ids_name}"
            allowed, advice = allow_duplicate_ids or repeated_ids, ALLOW if self.path is not None else ""
            self._ids = as_ids(ids, len(self), name, allow_duplicates=allowed, advice=advice)
            if allow_duplicate_ids and not repeated_ids and len(np.unique(self._ids)) < len(self._ids):
                warn(f"{name}: {len(self._ids) - len(np.unique(self._ids)):,} rows repeat an id")
        if skip_bad_rows:
            bad = np.concatenate([bad_rows(x) for _, x in self._physical_blocks()] or [np.zeros(0, bool)])
            if bad.any():
                self.dropped = int(bad.sum())
                self._keep(np.flatnonzero(~bad))
                warn(f"{self.name}: left out {self.dropped:,} of {len(bad):,} rows that are not finite")
        self.settle_unlabelled(keep_unlabelled)

    def settle_as(
        self, options: RowOptions, labels: Any, ids: Any, class_names: Any, labels_name: str, ids_name: str
    ) -> None:
        """settle(), as the options of a file ask for; labels may stand in a file of their own."""
        if options.labels_file is not None and options.labels_key is not None:
            labels, class_names = read_labels(options.labels_file), None
            labels_name = f"labels of {printable(options.labels_file)}"
        self.settle(
            labels,
            ids,
            class_names,
            labels_name=printable(labels_name),
            ids_name=printable(ids_name),
            skip_bad_rows=options.skip_bad_rows,
            allow_duplicate_ids=options.allow_duplicate_ids,
            repeated_ids=options.repeated_ids or options.role == "queries" or self.duplicate_ids,
            keep_unlabelled=options.keep_unlabelled,
        )

    def scaled(self, x: NDArray[Any]) -> NDArray[Any]:
        """Features as they are stored -> as floats."""
        return rescaled(x, self.scale)

    def settle_unlabelled(self, keep: bool) -> None:
        """Leave out rows without a label, with a warning, unless they are kept; where all rows are such there are no labels."""
        none, n = np.zeros(0, np.int64) if self.labels is None else self.labels.without_label(), len(self)
        if n and len(none) == n:
            self.labels = None
        elif len(none) and not keep:
            self.leave_out(none)
            warn(f"{self.name}: left out {len(none):,} of {n:,} rows without a label")

    def leave_out(self, rows: Ints) -> None:
        """Go on without these of the rows that are kept."""
        self._keep(np.setdiff1d(np.arange(len(self)), rows))

    def _keep(self, rows: Ints) -> None:
        """Go on with these rows alone, ascending."""
        self._kept = rows if self._kept is None else self._kept[rows]
        if self.labels is not None:
            self.labels = self.labels.take(rows)
            if (
                self.labels.class_names is None and not self.labels.multilabel
            ):  # a row left out says nothing of the classes
                self.labels = Labels(self.labels.y, 1 + int(self.labels.y.max(initial=-1)))
        self._ids = self._ids[rows] if self._ids is not None else None

    def merge_copies(self) -> None:
        """For a gallery: where rows of one id are copies of one row, keep the first of each id, and say so.

        Reads the rows once, if an id repeats at all. Raises DataError naming the first row that is no copy.
        """
        ids = self.ids
        _, first, which, count = np.unique(ids, return_index=True, return_inverse=True, return_counts=True)
        if not self.duplicate_ids or len(first) == len(ids):
            return
        shared = np.flatnonzero(count[which] > 1)
        digests = np.zeros((len(ids), 2), np.uint64)  # rows of one id may lie anywhere, and are too many to hold
        for i, x in self.blocks():
            here = shared[slice(*np.searchsorted(shared, [i, i + len(x)]))]
            digests[here] = row_digests(x[here - i])
        first_of_id = first[which]
        differ = np.flatnonzero((digests != digests[first_of_id]).any(1))
        if len(differ):
            a, b = (int(r if self._kept is None else self._kept[r]) for r in (first_of_id[differ[0]], differ[0]))
            raise DataError(
                f"{self.name}: {self.features_name} of id {ids[differ[0]]} differ (rows {a:,} and {b:,}; "
                f"{len(np.unique(ids[differ])):,} such ids); give each its own id{ALLOW}"
            )
        self._keep(np.sort(first))
        warn(f"{self.name}: merged {len(ids):,} {self.features_name} into {len(first):,}, one for each id")

    def read(self, i: int, j: int) -> Floats:
        """Rows i..j-1 (after dropping) as (j - i, d) float32. Raises DataError on a row that is not finite."""
        if not 0 <= i <= j <= len(self):
            raise IndexError(f"rows {i} to {j} of {len(self)}")
        if self._kept is None:
            x = self.fetch(i, j)
        elif i == j:
            x = self.fetch(0, 0)
        else:
            x = self._fetch_kept(self._kept[i:j])
        if not self.known_finite and bad_rows(x).any():
            raise self._count_bad_rows()
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(x, np.float32)

    def unchecked_blocks(self) -> Iterator[tuple[int, Floats]]:
        """As blocks(), but rows that are not finite pass."""
        step = self.block_rows
        for i in range(0, len(self), step):
            j = min(i + step, len(self))
            x = self.fetch(i, j) if self._kept is None else self._fetch_kept(self._kept[i:j])
            with np.errstate(over="ignore"):
                yield i, np.ascontiguousarray(x, np.float32)

    def _fetch_kept(self, kept: Ints) -> NDArray[Any]:
        """Physical rows `kept`, ascending; never more than a block at a time, however long the runs between them are."""
        parts = []
        while len(kept):
            first = int(kept[0])
            here = int(np.searchsorted(kept, first + self.block_rows))
            parts.append(self.fetch(first, int(kept[here - 1]) + 1)[kept[:here] - first])
            kept = kept[here:]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def blocks(self, rows: int | None = None) -> Iterator[tuple[int, Floats]]:
        """(first row, rows (b, d) float32) from the first row to the last, `rows` at a time."""
        step = rows or self.block_rows
        for i in range(0, len(self), step):
            yield i, self.read(i, min(i + step, len(self)))

    def _physical_blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        for i in range(0, self.physical_rows, self.block_rows):
            yield i, self.fetch(i, min(i + self.block_rows, self.physical_rows))

    def _count_bad_rows(self) -> DataError:
        """The full account that the message promises; reached only when the work stops anyway."""
        count, first = 0, ""
        for i, x in self._physical_blocks():
            bad = np.flatnonzero(bad_rows(x))
            if len(bad) and not first:
                first = describe_bad_row(i + int(bad[0]), x[bad[0]])
            count += len(bad)
        error = not_finite(f"{self.name}: {self.features_name}", first, count, self.physical_rows)
        return DataError(f"{error}; --skip-bad-rows leaves them out")


class ArraySource(Source):
    """Rows that are already in memory: what the Python interface wraps its arguments in."""

    def __init__(
        self,
        x: Any,
        y: Any = None,
        ids: Any = None,
        class_names: Any = None,
        *,
        name: str = "x",
        skip_bad_rows: bool = False,
        allow_duplicate_ids: bool = False,
        keep_unlabelled: bool = False,
        read_labels: bool = True,
    ) -> None:
        """x (n, d), or a table of pyarrow, pandas, polars or Hugging Face, whose columns give labels and ids where y and ids are
        None; it is read in pieces. read_labels: whether labels are asked for at all.
        """
        self.name = name
        table = as_table(x, name)
        if table is not None:
            self._x: Any = TableRows(table, name, labelled=True)
            self.features_name = self._x.columns.features_name
            check_feature_form(self._x, self._x.name)
            if y is None and read_labels:
                y, names = self._x.labels()
                class_names = names if class_names is None else class_names
            ids = self._x.ids() if ids is None else ids
        else:
            x = as_array(x, name, "(n, d) float16, float32 or float64")
            check_feature_form(x, name)
            self._x = x if skip_bad_rows else as_features(x, name)
        self.physical_rows, self.d = self._x.shape
        self.settle(
            y,
            ids,
            class_names,
            skip_bad_rows=skip_bad_rows,
            allow_duplicate_ids=allow_duplicate_ids,
            keep_unlabelled=keep_unlabelled,
        )
        self.known_finite = table is None

    def fetch(self, i: int, j: int) -> NDArray[Any]:
        found: NDArray[Any] = self._x[i:j]
        return found
