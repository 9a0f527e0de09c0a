"""Images of items as thumbnails: from one folder and nowhere else, within bounds, the latest ones held in memory."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import OrderedDict
from contextlib import suppress
from typing import BinaryIO, NamedTuple

from ..data.decoding import Refused, thumbnail
from ..errors import ConfigError, format_bytes, printable
from ..files import PathLike
from ..forks import Lock

SIDE = 384  # pixels of the longer side: a tile of the page on a screen of two pixels a point
MAX_PIXELS = 50_000_000  # of an image that is shown or searched with; 0.15 GB of RGB
MAX_FILE = 1 << 28  # bytes of its file
CACHE_BYTES = 64 << 20  # of thumbnails that are held
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class NoImage(LookupError):
    """There is no such image in the folder: for a client the same whether it is missing, elsewhere, or no plain file."""


class Thumbnail(NamedTuple):
    """An encoded image. etag: changes with the file it was made of."""

    content: bytes
    media_type: str
    etag: str


class ImageFolder:
    """A folder whose files may be shown. Links in it are not followed, so nothing outside of it can be reached.

    Raises ConfigError where there is no such folder.
    """

    def __init__(self, path: PathLike) -> None:
        self.name = printable(path)
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            why = os.strerror(error.errno or 0) if isinstance(error, OSError) else "no folder can have this name"
            raise ConfigError(f"{self.name}: images are served from a folder ({why})") from error

    def open(self, path: str) -> BinaryIO:
        """A file by its path relative to the folder. Raises NoImage."""
        parts = path.split("/")
        if not path or "\0" in path or any(part in ("", ".", "..") for part in parts):
            raise NoImage
        folders: list[int] = []
        try:
            at = self._fd
            for part in parts[:-1]:
                at = os.open(part, _FLAGS | os.O_DIRECTORY, dir_fd=at)
                folders.append(at)
            fd = os.open(parts[-1], _FLAGS | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=at)
        except (OSError, ValueError) as error:  # ValueError: half of a pair of surrogates
            raise NoImage from error
        finally:
            for folder in folders:
                os.close(folder)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise NoImage
        return open(fd, "rb")

    def close(self) -> None:
        """Close the folder; nothing can be opened in it any more. May be called twice."""
        with suppress(OSError):
            os.close(self._fd)
        self._fd = -1


class Thumbnails:
    """Thumbnails of the images of a folder. Any number of threads may ask; the latest ones are held, up to `cache_bytes`."""

    def __init__(self, folder: ImageFolder, cache_bytes: int = CACHE_BYTES) -> None:
        self.folder, self._most, self._held = folder, cache_bytes, 0
        self._cache: OrderedDict[str, Thumbnail] = OrderedDict()
        self._lock = Lock()

    def get(self, path: str) -> Thumbnail:
        """The thumbnail of an image by its path in the folder.

        Raises NoImage, and data.decoding.Refused for a file that is no image, damaged, or larger than MAX_FILE or MAX_PIXELS.
        """
        with self.folder.open(path) as f:
            about = os.fstat(f.fileno())
            told = f"{about.st_dev} {about.st_ino} {about.st_size} {about.st_mtime_ns} {SIDE}"
            etag = hashlib.blake2b(told.encode(), digest_size=12).hexdigest()
            if (held := self._look_up(etag)) is not None:
                return held
            if about.st_size > MAX_FILE:
                raise Refused(
                    "too large", f"its file has {format_bytes(about.st_size)}, at most {format_bytes(MAX_FILE)}"
                )
            made = Thumbnail(*thumbnail(f, SIDE, MAX_PIXELS), etag)
        self._hold(made)
        return made

    def _look_up(self, etag: str) -> Thumbnail | None:
        with self._lock:
            if (held := self._cache.get(etag)) is not None:
                self._cache.move_to_end(etag)
            return held

    def _hold(self, made: Thumbnail) -> None:
        with self._lock:
            if made.etag in self._cache:
                return
            self._cache[made.etag] = made
            self._held += len(made.content)
            while self._held > self._most:
                _, oldest = self._cache.popitem(last=False)
                self._held -= len(oldest.content)
