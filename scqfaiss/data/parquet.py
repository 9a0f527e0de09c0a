"""Rows of a Parquet file: a column of lists of numbers, or several columns of numbers, beside columns of labels and ids.

Row groups are decoded page by page, so that the memory does not follow their size: writers put a million rows into one.
Rows in file order are decoded once. A row before the last one read, or in another row group, costs its row group anew from its
beginning: a training on more rows than fit into memory wants row groups of some 10,000 rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..arrays import check_feature_form
from ..errors import DataError, ResourceError, format_bytes, printable
from ..tables.columns import choose
from ..tables.labels import class_names, ids_of, labels_of
from ..tables.numbers import matrix, number_type, width
from .kinds import DefaultKey, RowOptions
from .open_file import OpenFile
from .source import BLOCK_BYTES, Source

BUFFER_BYTES = 1 << 20  # of each column, read at a time
ROW_BYTES = 256 << 20  # largest row
WHOLE_BYTES = 8 << 30  # largest labels or ids, which are read whole
MAGIC = b"PAR1"
ARROW_ERRORS = (pyarrow.ArrowException, OSError, ValueError)


class ParquetSource(Source):
    """Rows of a Parquet file; which column is what, columns.choose says, where options do not.

    A null row, or a null number, is NaN. Raises ConfigError where the file is missing, ResourceError where a row or the labels
    are too large to read, DataError where the file is damaged or of another form.
    """

    def __init__(self, path: str | os.PathLike[str], options: RowOptions) -> None:
        self._open_file = OpenFile(path)
        self.path, self.name = os.fspath(path), self._open_file.name
        self.scale, self._reader = options.scale, self._open_file.reader()
        try:
            self._file = self._opened()
            with self._damage("the file"):
                self._schema = self._file.schema_arrow
                counts = [self._file.metadata.row_group(g).num_rows for g in range(self._file.num_row_groups)]
            self._starts = np.append(0, np.cumsum(np.array(counts, np.int64)))
            self.physical_rows = int(self._starts[-1])
            self._choose(options)
            self._measure()
            self._settle(options)
        except BaseException:
            self._reader.close()
            self._open_file.release()
            raise

    def close(self) -> None:
        self._batches = iter(())
        self._reader.close()
        self._open_file.close()

    def fetch(self, i: int, j: int) -> NDArray[Any]:
        out = np.empty((j - i, self.d), np.float32 if self._dtype.kind in "iu" else self._dtype)
        at = i
        while at < j:
            start, x = self._batch_of(at)
            end = min(j, start + len(x))
            out[at - i : end - i] = x[at - start : end - start]
            at = end
        return out

    def _opened(self) -> Any:
        """The file as pyarrow has it, read through the descriptor that is open already."""
        magic = self._open_file.pread(4, 0)
        if magic != MAGIC:
            raise DataError(f"{self.name} is not a Parquet file")
        if self._open_file.pread(4, self._open_file.size - 4) != MAGIC or self._open_file.size < 12:
            raise DataError(
                f"{self.name}: file is truncated, its {self._open_file.size:,} bytes do not end with {MAGIC.decode()}"
            )
        with self._damage("the file"):
            return pq.ParquetFile(
                self._reader, buffer_size=BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
            )

    def _choose(self, options: RowOptions) -> None:
        def key(given: str | None) -> str | None:
            return None if isinstance(given, DefaultKey) else given

        self._columns = choose(
            self._schema,
            self.name,
            options.features_key,
            key(options.labels_key),
            key(options.ids_key),
            any_labels=isinstance(options.labels_key, DefaultKey),
            any_ids=isinstance(options.ids_key, DefaultKey),
        )
        self.features_name = self._columns.features_name
        self._dtype = number_type(self._schema, self._columns.features, self.name)

    def _measure(self) -> None:
        """The dimension, that of the first row; before it is read, that no row can be too large for memory."""
        stored = max(
            (self._stored(self._columns.features, g) / max(1, self._rows_of(g)) for g in self._groups), default=0
        )
        if stored > ROW_BYTES:
            raise ResourceError(
                f"{self.name}: one row of {self.features_name} takes {format_bytes(stored)}, "
                f"at most {format_bytes(ROW_BYTES)} can be read"
            )
        self.d, self._batches, self._current = len(self._columns.features), iter(()), (0, np.zeros((0, 0)))
        if len(self._columns.features) == 1:
            self.d = self._first_width()
        check_feature_form(
            SimpleNamespace(shape=(self.physical_rows, self.d), dtype=self._dtype),
            f"{self.name}: {self.features_name}",
            scale=self.scale,
            of_file=True,
        )
        self._batch_rows = max(1, BLOCK_BYTES // (4 * self.d))

    def _first_width(self) -> int:
        """Numbers in the first row that is there; 1 where there is none."""
        with self._damage(self.features_name):
            for batch in self._file.iter_batches(1024, columns=list(self._columns.features), use_threads=False):
                found = width(batch.column(0))
                if found:
                    return found
        return max(1, width(pyarrow.chunked_array([], self._schema.field(self._columns.features[0]).type)))

    @property
    def _groups(self) -> range:
        return range(len(self._starts) - 1)

    def _rows_of(self, group: int) -> int:
        return int(self._starts[group + 1] - self._starts[group])

    def _stored(self, columns: tuple[str, ...], group: int) -> int:
        """Bytes that columns take in a row group before they are packed, as the file says."""
        metadata, total = self._file.metadata.row_group(group), 0
        for k in range(metadata.num_columns):
            column = metadata.column(k)
            if any(column.path_in_schema == c or column.path_in_schema.startswith(f"{c}.") for c in columns):
                total += max(0, column.total_uncompressed_size)
        return total

    def _settle(self, options: RowOptions) -> None:
        columns = self._columns
        labels = names = ids = None
        if columns.labels is not None:
            where = f"{self.name}: {printable(columns.labels)}"
            names = class_names(self._schema, columns.labels)
            labels, names = labels_of(self._whole(columns.labels), names, where)
        if columns.ids is not None:
            asked = not isinstance(options.ids_key, DefaultKey)
            ids = ids_of(self._whole(columns.ids), f"{self.name}: {printable(columns.ids)}", asked=asked)
        self.settle_as(options, labels, ids, names, columns.labels or "", columns.ids or "")

    def _whole(self, column: str) -> Any:
        declared = sum(self._stored((column,), g) for g in self._groups)
        if declared > WHOLE_BYTES:
            raise ResourceError(
                f"{self.name}: {printable(column)} declares {format_bytes(declared)}, "
                f"at most {format_bytes(WHOLE_BYTES)} can be read"
            )
        with self._damage(printable(column)):
            found = self._file.read(columns=[column], use_threads=False).column(0)
        if len(found) != self.physical_rows:
            raise DataError(f"{self.name}: {printable(column)} is damaged; restore a copy")
        return found

    def _batch_of(self, row: int) -> tuple[int, NDArray[Any]]:
        """(its first row, rows) of the batch that a row stands in."""
        start, x = self._current
        group = int(np.searchsorted(self._starts, row, "right")) - 1
        if row < start or self._starts[group] > start + len(x) or not len(x):
            with self._damage(self.features_name):
                self._batches = self._file.iter_batches(
                    self._batch_rows,
                    row_groups=list(self._groups[group:]),
                    columns=list(self._columns.features),
                    use_threads=False,
                )
            start, x = int(self._starts[group]), x[:0]
        while row >= start + len(x):
            start, x = start + len(x), self._next(start + len(x))
        self._current = start, x
        return self._current

    def _next(self, start: int) -> NDArray[Any]:
        name = f"{self.name}: {self.features_name}"
        try:
            batch = next(self._batches, None)
        except ARROW_ERRORS as error:
            end = min(start + self._batch_rows, self.physical_rows)
            raise DataError(f"{name}: rows {start:,} to {end - 1:,} are damaged; restore a copy") from error
        if batch is None or not len(batch):
            raise DataError(f"{name}: rows from {start:,} on are lacking; restore a copy")
        columns = [batch.column(batch.schema.get_field_index(column)) for column in self._columns.features]
        return self.scaled(matrix(columns, self.d, name, start))

    @contextmanager
    def _damage(self, part: str) -> Iterator[None]:
        """What pyarrow raises on damaged files in our words."""
        try:
            yield
        except ARROW_ERRORS as error:
            raise DataError(
                f"{self.name}: {part} is damaged, or of a form that cannot be read; restore a copy"
            ) from error
