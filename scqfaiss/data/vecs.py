"""Rows in .npy, .fvecs and .bvecs files: features alone, without labels and ids.

.npy    the format of numpy.save, one array (n, d) float16, float32 or float64, in C or Fortran order
.fvecs  for each row its d as int32, then d float32 (all little-endian); the form of the TEXMEX sets
.bvecs  for each row its d as int32, then d uint8
"""

from __future__ import annotations

import io
import math
import os
import warnings
from tokenize import TokenError
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import check_feature_form
from ..errors import DataError
from .kinds import RowOptions
from .open_file import OpenFile
from .source import Source

NPY_HEADER_BYTES = 16384  # read to find the header; NumPy itself refuses more than 10,000 as unsafe


class VecsSource(Source):
    """Rows of a .npy, .fvecs or .bvecs file, read in pieces; which of them, the ending says.

    Raises ConfigError where the file is missing, DataError where it is damaged, truncated or of another form.
    """

    def __init__(self, path: str | os.PathLike[str], options: RowOptions) -> None:
        self._file = OpenFile(path)
        self.path, self.name = os.fspath(path), self._file.name
        self.scale = options.scale
        self._start = 0  # byte of the first row
        self._prefix = 0  # bytes before the numbers of each row
        self._columns_first = False  # Fortran order
        try:
            if self.path.lower().endswith(".npy"):
                self._open_npy()
            else:
                self._open_vecs(np.dtype("<f4" if self.path.lower().endswith(".fvecs") else "u1"))
            self.settle_as(options, None, None, None, "", "")
        except BaseException:
            self._file.release()
            raise

    def close(self) -> None:
        self._file.close()

    def fetch(self, i: int, j: int) -> NDArray[Any]:
        if self._columns_first:
            x = np.empty((self.d, j - i), self._dtype)
            for column in range(self.d):
                self._file.read_into(x[column], self._start + self._dtype.itemsize * (column * self.physical_rows + i))
            return self.scaled(x.T)
        raw = np.empty((j - i, self._row_bytes), np.uint8)
        self._file.read_into(raw, self._start + self._row_bytes * i)
        if self._prefix:
            self._check_prefix(raw, i)
        return self.scaled(raw[:, self._prefix :].view(self._dtype))

    @property
    def _row_bytes(self) -> int:
        return self._prefix + self.d * self._dtype.itemsize

    def _open_npy(self) -> None:
        shape, self._columns_first, self._dtype, self._start = npy_header(
            self._file.pread(NPY_HEADER_BYTES, 0), self.name
        )
        form = SimpleNamespace(shape=shape, dtype=self._dtype)
        check_feature_form(form, f"{self.name}: array", scale=self.scale, of_file=True)
        self.features_name = "array"
        self.physical_rows, self.d = shape
        whole = self._start + math.prod(shape) * self._dtype.itemsize
        if self._file.size < whole:
            raise DataError(f"{self.name}: file is truncated, {self._file.size:,} of {whole:,} bytes")
        if self._file.size > whole:
            raise DataError(f"{self.name}: {self._file.size:,} bytes, needs {whole:,} for its array")

    def _open_vecs(self, dtype: np.dtype[Any]) -> None:
        self._dtype, self._prefix, self.features_name = dtype, 4, "rows"
        if self._file.size < 4:
            raise DataError(f"{self.name} has {self._file.size} bytes, needs at least one row")
        self.d = int.from_bytes(self._file.pread(4, 0), "little", signed=True)
        if self.d < 1:
            raise DataError(f"{self.name}: row 0 says d={self.d}, needs 1 or more")
        self.physical_rows, leftover = divmod(self._file.size, self._row_bytes)
        if leftover:
            for _ in self._physical_blocks():  # a row of another length is the better answer where there is one
                pass
            whole = (self.physical_rows + 1) * self._row_bytes
            raise DataError(f"{self.name}: file is truncated, {self._file.size:,} of {whole:,} bytes")

    def _check_prefix(self, raw: NDArray[np.uint8], i: int) -> None:
        """raw (rows, bytes of a row), the first being row i: DataError names the first that says another d."""
        said = raw[:, :4].view("<i4")[:, 0]
        wrong = np.flatnonzero(said != self.d)
        if len(wrong):
            row = int(wrong[0])
            raise DataError(f"{self.name}: row {i + row:,} says d={said[row]}, row 0 says d={self.d}")


def npy_header(start: bytes, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, Fortran order, dtype and first byte of an array, from the start of its file. Nothing in it is executed."""
    if not start.startswith(b"\x93NUMPY"):
        raise DataError(f"{name} is not a .npy file")
    head = io.BytesIO(start)
    try:
        version = np.lib.format.read_magic(head)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(version)
        with warnings.catch_warnings():  # the literals of a damaged header make Python warn about their syntax
            warnings.simplefilter("ignore")
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, columns_first, dtype = read(head)
    except (ValueError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError) as error:
        raise DataError(f"{name}: its header is damaged or of a version other than 1.0 and 2.0") from error
    if any(n < 0 for n in shape):
        raise DataError(f"{name}: its header is damaged, shape {shape}")
    return tuple(int(n) for n in shape), bool(columns_first), dtype, head.tell()
