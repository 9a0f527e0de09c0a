"""Where encoded images lie: as files, or inside an HDF5 file. Each is opened for as long as it is read."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np

from ..arrays import Ints
from ..errors import DataError, ResourceError, format_bytes, printable
from ..files import NotRegular, open_descriptor
from .decoding import Refused

if TYPE_CHECKING:
    from .hdf5_images import Hdf5Images

FILE_BYTES = 1 << 30  # some decoders read a file whole


class Store(Protocol):
    """Where encoded images lie, by number."""

    unit: str  # what messages call several of them

    def called(self, k: int) -> str:
        """The name of image k."""

    def opened(self, k: int) -> AbstractContextManager[BinaryIO]:
        """Image k, open for reading. Raises Refused; DataError where it is not what it was when read before."""

    def close(self) -> None: ...


class FileStore:
    """Images as files. Each is opened for as long as it is read; how it looked then is kept, to compare."""

    unit = "files"

    def __init__(self, name: str, root: str, names: list[str]) -> None:
        self._name, self._names, self._root = name, names, os.path.abspath(root)
        self._before = np.zeros((len(names), 3), np.int64)  # zeros: not read yet

    def called(self, k: int) -> str:
        return self._names[k]

    @contextmanager
    def opened(self, k: int) -> Iterator[BinaryIO]:
        fd = self._open(k)
        with open(fd, "rb") as f:
            before = _identity(fd)
            if self._before[k].any() and (self._before[k] != before).any():
                raise self._changed(k)
            if not before[2]:
                raise Refused("empty", "it has 0 bytes")
            if before[2] > FILE_BYTES:
                raise Refused(
                    "too large", f"it has {format_bytes(int(before[2]))}, at most {format_bytes(FILE_BYTES)} are read"
                )
            try:
                yield f
            finally:
                if (_identity(fd) != before).any():
                    raise self._changed(k)
                self._before[k] = before

    def _open(self, k: int) -> int:
        """A descriptor of a regular file. Never waits, whatever the name leads to."""
        try:
            return open_descriptor(os.path.join(self._root, self._names[k]))
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # says nothing about the image
                raise ResourceError(f"{self._name}: cannot open its files ({os.strerror(error.errno)})") from error
            if self._before[k].any():
                raise self._changed(k) from error
            why = "it is no regular file" if isinstance(error, NotRegular) else os.strerror(error.errno or 0)
            raise Refused("unreadable", why) from error

    def _changed(self, k: int) -> DataError:
        return DataError(f"{self._name}: {printable(self._names[k])} was changed or removed while it was in use")

    def close(self) -> None:
        pass


def _identity(fd: int) -> Ints:
    """What tells whether an open file is the same as before: device, inode, bytes. (No time: clocks jump.)"""
    status = os.fstat(fd)
    numbers = (status.st_dev, status.st_ino, status.st_size)
    return np.array([number & 0x7FFFFFFFFFFFFFFF for number in numbers], np.int64)


class Hdf5Store:
    """Images inside an HDF5 file."""

    unit = "images"

    def __init__(self, file: Hdf5Images) -> None:
        self._file = file

    def called(self, k: int) -> str:
        return f"#{k}"

    @contextmanager
    def opened(self, k: int) -> Iterator[BinaryIO]:
        encoded = self._file.encoded(k)
        if not encoded:
            raise Refused("empty", "it has 0 bytes")
        yield io.BytesIO(encoded)

    def close(self) -> None:
        self._file.close()
