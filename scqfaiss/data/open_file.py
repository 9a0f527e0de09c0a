"""A file open for reading, and the proof that it stayed the same meanwhile."""

from __future__ import annotations

import fcntl
import os
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError, printable
from ..files import NotRegular, open_descriptor


class OpenFile:
    """A regular file open for reading, and the proof at its end that it stayed the same meanwhile.

    `name` is how messages call it, `size` its length in bytes when it was opened.
    Raises ConfigError where there is no such file; DataError where it is a folder, FIFO or device, or may not be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = printable(path)
        try:
            self._fd = open_descriptor(path)
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a NUL byte in the name
            raise ConfigError(f"{self.name}: no such file") from error
        except NotRegular as error:
            raise DataError(f"{self.name} is {error.kind}, needs to be a regular file") from error
        except PermissionError as error:
            raise DataError(f"{self.name}: no right to read it") from error
        except OSError as error:
            raise DataError(f"{self.name}: cannot be opened ({os.strerror(error.errno or 0)})") from error
        self._path, self._closed = os.path.abspath(path), False
        self._stat = os.fstat(self._fd)
        self.size = self._stat.st_size

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):  # a source that nobody closed
            os.close(self._fd)

    def pread(self, nbytes: int, offset: int) -> bytes:
        """Up to `nbytes` bytes from `offset`, fewer at the end of the file."""
        return os.pread(self._fd, nbytes, offset)

    def read_into(self, out: NDArray[Any], offset: int) -> None:
        """Fill `out` (C order) with the bytes from `offset`; DataError where the file ends before that."""
        left = out.reshape(-1).view(np.uint8).data
        while left:
            got = os.preadv(self._fd, [left], offset)  # at most 2 GiB at a time on Linux
            if got == 0:
                now = os.fstat(self._fd).st_size
                raise DataError(f"{self.name} changed from {self.size:,} to {now:,} bytes while it was read")
            left, offset = left[got:], offset + got

    def reader(self) -> BinaryIO:
        """The same file as a file object of its own, for libraries that want one; it ends with itself, not with close()."""
        return os.fdopen(os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY), "rb")

    def locked(self) -> bool:
        """Whether another process holds a lock for writing, as HDF5 does while it writes."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        except OSError:  # held, or a file system without locks
            return True
        return False

    def release(self) -> None:
        """Close without a look at what happened to the file."""
        if not self._closed:
            self._closed = True
            os.close(self._fd)

    def read(self) -> bytes:
        """The whole file. Raises as read_into."""
        raw = np.empty(self.size, np.uint8)
        self.read_into(raw, 0)
        return raw.tobytes()

    def close(self) -> None:
        """Close; DataError where the name leads to another file now or the size changed. May be called twice."""
        if self._closed:
            return
        self.release()
        try:
            now = os.stat(self._path)
        except OSError as error:
            raise DataError(f"{self.name} was removed while it was read") from error
        if (now.st_dev, now.st_ino) != (self._stat.st_dev, self._stat.st_ino):
            raise DataError(f"{self.name} was replaced by another file while it was read")
        if now.st_size != self.size:
            raise DataError(f"{self.name} changed from {self.size:,} to {now.st_size:,} bytes while it was read")
