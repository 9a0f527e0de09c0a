"""Rows of a .npz file, as numpy.savez writes it: arrays of features, labels and ids by name.

Features that are stored as they are (numpy.savez) are read in any order; those that are compressed (numpy.savez_compressed) from
the first row on, so that a row before the last one read costs all before it anew.
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import check_feature_form, dims
from ..errors import DataError, ResourceError, format_bytes, printable
from .kinds import DefaultKey, RowOptions
from .label_files import array_of
from .open_file import OpenFile
from .source import Source
from .vecs import NPY_HEADER_BYTES, npy_header

# The names that arrays have where nobody names them; arr_0 is NumPy's own for arrays without one.
FEATURES = ("features", "embedding", "embeddings", "x", "X", "arr_0")
LABELS, IDS = ("labels", "label", "y"), ("ids", "id")
WHOLE_BYTES = 8 << 30  # largest labels or ids, which are read whole
LISTED = 8  # arrays that a message names
LOCAL_HEADER = 30  # bytes before the name of a member
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, NotImplementedError, RuntimeError)


class NpzSource(Source):
    """Rows of a .npz file. Raises ConfigError where it is missing, ResourceError where labels are too large, DataError where it
    is damaged, truncated or of another form.
    """

    def __init__(self, path: str | os.PathLike[str], options: RowOptions) -> None:
        self._open_file = OpenFile(path)
        self.path, self.name, self.scale = os.fspath(path), self._open_file.name, options.scale
        self._reader = self._open_file.reader()
        try:
            with self._damage("the file"):
                if self._open_file.pread(2, 0) != b"PK":
                    raise DataError(f"{self.name} is not a .npz file")
                self._zip = zipfile.ZipFile(self._reader)
                self._members = {i.filename.removesuffix(".npy"): i for i in self._zip.infolist()}
            self._find_features(options)
            labels, labels_name = self._find_whole(options.labels_key, LABELS, "--labels-key")
            ids, ids_name = self._find_whole(options.ids_key, IDS, "--ids-key")
            class_names = self._whole("class_names") if labels is not None and "class_names" in self._members else None
            self.settle_as(options, labels, ids, class_names, labels_name, ids_name)
        except BaseException:
            self._reader.close()
            self._open_file.release()
            raise

    def close(self) -> None:
        self._reader.close()
        self._open_file.close()

    def fetch(self, i: int, j: int) -> NDArray[Any]:
        row_bytes = self.d * self._dtype.itemsize
        if self._stored is None:
            return self.scaled(self._unpacked(i, j))
        if self._columns_first:
            x = np.empty((self.d, j - i), self._dtype)
            for column in range(self.d):
                at = self._stored + self._dtype.itemsize * (column * self.physical_rows + i)
                self._open_file.read_into(x[column], at)
            return self.scaled(x.T)
        out = np.empty((j - i, self.d), self._dtype)
        self._open_file.read_into(out, self._stored + row_bytes * i)
        return self.scaled(out)

    def _find_features(self, options: RowOptions) -> None:
        key = self._key(options.features_key, FEATURES, "--features-key")
        if key is None:
            raise DataError(f"{self.name} has no array 'features'; {self._listing()}; choose with --features-key")
        self.features_name, self._member = printable(key), self._members[key]
        shape, self._columns_first, self._dtype, start = self._header(key)
        form = SimpleNamespace(shape=shape, dtype=self._dtype)
        check_feature_form(form, f"{self.name}: {self.features_name}", scale=self.scale, of_file=True)
        self.physical_rows, self.d = shape
        whole = start + math.prod(shape) * self._dtype.itemsize
        if self._member.file_size != whole:
            raise DataError(
                f"{self.name}: {self.features_name} has {self._member.file_size:,} bytes, needs {whole:,} for its array"
            )
        self._stored: int | None = None
        self._stream: Any = None
        self._data_start, self._at = start, 0
        if self._member.compress_type == zipfile.ZIP_STORED:
            self._stored = self._first_byte() + start
        elif self._columns_first:
            raise DataError(
                f"{self.name}: {self.features_name} is compressed and stored column by column; save "
                "numpy.ascontiguousarray(x), or with numpy.savez"
            )

    def _first_byte(self) -> int:
        """Where the member's bytes begin. Source: APPNOTE.TXT of PKWARE, section 4.3.7."""
        head = self._open_file.pread(LOCAL_HEADER, self._member.header_offset)
        if len(head) < LOCAL_HEADER or head[:4] != b"PK\x03\x04":
            raise DataError(f"{self.name} is damaged; restore a copy")
        lengths = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        first = self._member.header_offset + LOCAL_HEADER + lengths
        if first + self._member.file_size > self._open_file.size:
            raise DataError(f"{self.name}: file is truncated, {self._open_file.size:,} bytes")
        return first

    def _unpacked(self, i: int, j: int) -> NDArray[Any]:
        row_bytes = self.d * self._dtype.itemsize
        out = np.empty((j - i, self.d), self._dtype)
        with self._damage(self.features_name):
            if self._stream is None or i < self._at:
                self._stream, self._at = self._zip.open(self._member), 0
                self._skip(self._data_start)
            self._skip((i - self._at) * row_bytes)
            left = out.reshape(-1).view(np.uint8).data
            while left:
                got = self._stream.readinto(left)
                if not got:
                    raise DataError(f"{self.name}: {self.features_name} is damaged; restore a copy")
                left = left[got:]
        self._at = j
        return out

    def _skip(self, nbytes: int) -> None:
        while nbytes > 0:
            got = len(self._stream.read(min(nbytes, 1 << 20)))
            if not got:
                raise DataError(f"{self.name}: {self.features_name} is damaged; restore a copy")
            nbytes -= got

    def _find_whole(self, given: str | None, usual: tuple[str, ...], option: str) -> tuple[Any, str]:
        """(array of labels or ids, its name), (None, '') where there is none or none is asked for."""
        key = None if given is None else self._key(given, usual, option)
        return (None, "") if key is None else (self._whole(key), key)

    def _key(self, given: str | None, usual: tuple[str, ...], option: str) -> str | None:
        if given is not None and not isinstance(given, DefaultKey):
            if given not in self._members:
                raise DataError(
                    f"{self.name} has no array '{printable(given)}'; {self._listing()}; choose with {option}"
                )
            return given
        here = [name for name in usual if name in self._members]
        if len(here) > 1:
            raise DataError(f"{self.name} has arrays '{here[0]}' and '{here[1]}'; choose with {option}")
        return here[0] if here else None

    def _whole(self, key: str) -> NDArray[Any]:
        member = self._members[key]
        if member.file_size > WHOLE_BYTES:
            raise ResourceError(
                f"{self.name}: {printable(key)} declares {format_bytes(member.file_size)}, "
                f"at most {format_bytes(WHOLE_BYTES)} can be read"
            )
        shape, _, dtype, start = self._header(key)
        if not dtype.hasobject and start + math.prod(shape) * dtype.itemsize != member.file_size:
            raise DataError(f"{self.name}: {printable(key)} is damaged; restore a copy")
        with self._damage(printable(key)), self._zip.open(member) as f:
            return array_of(f, f"{self.name}: {printable(key)}")

    def _header(self, key: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
        with self._damage(printable(key)), self._zip.open(self._members[key]) as f:
            return npy_header(f.read(NPY_HEADER_BYTES), f"{self.name}: {printable(key)}")

    def _listing(self) -> str:
        shown = []
        for key in list(self._members)[:LISTED]:
            shape, _, dtype, _ = self._header(key)
            shown.append(f"{printable(key)} {dims(SimpleNamespace(shape=shape, dtype=dtype))}")
        return f"it holds {', '.join(shown) or 'no array'}{' and more' if len(self._members) > LISTED else ''}"

    @contextmanager
    def _damage(self, part: str) -> Iterator[None]:
        """What zipfile raises on damaged files in our words."""
        try:
            yield
        except ZIP_ERRORS as error:
            raise DataError(f"{self.name}: {part} is damaged; restore a copy") from error
