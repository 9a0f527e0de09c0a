"""Pictures: found in folders, lists and HDF5 files, decoded by Pillow in several threads, handed out in one size.

Every picture becomes (3, size, size) uint8 in RGB, upright as its EXIF orientation says. Grey and palette become RGB, CMYK
by the plain formula; transparent pixels are laid over white; of 16 bits the upper 8 stay; of an animation the first picture;
colour profiles are ignored. Pixels of 32 bits (integers, floats) have no agreed range and are refused.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import stat
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from statistics import median
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints
from ..errors import ConfigError, DataError, ResourceError, ScqError, shown, size, suggestion, warn
from ..modality import IMAGES
from .image_files import LIST_ENDINGS, list_file, list_folder, list_one
from .kinds import IDS, LABELS
from .png_notes import NOTE_BYTES, TooLong, without_large_notes
from .source import ItemSource

if TYPE_CHECKING:
    from PIL import Image
    from PIL.ImageFile import ImageFile

    from .packed import PackedPictures

T = TypeVar("T")
Pictures = NDArray[np.uint8]  # (b, 3, size, size)

FITS = ("crop", "squash", "pad")
USUAL_SIZE, MAX_SIZE = 224, 4096
BLOCK_PICTURES = 16  # the fewest in a block
MAX_SIDE = 1 << 20  # pixels: each line costs memory of its own, however short it is
MAX_PIXELS = 178_956_970  # what Pillow itself takes for an attack, unless its settings were changed: 0.5 GB of RGB
LARGE_PIXELS = 1 << 24  # from here on pictures are decoded one at a time: 4 bytes a pixel, several times over
FILE_BYTES = 1 << 30  # some decoders read a file whole
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # no others: Pillow would start programs for some
MAGIC = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|RIFF....WEBP|GIF8[79]a|II[*+]\0|MM\0[*+]", re.DOTALL)
# What undoes each EXIF orientation (CIPA DC-008, tag 274); Pillow counts angles against the clock.
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
LOCKED = 0.00018  # seconds that a picture keeps Python's lock: what opening it takes, whatever its size
TRIED = 5  # pictures that show how long one takes
PIECE = 4096  # pictures looked at between two looks at the results
LEFT_OUT = 100  # and pictures, of those that were left out: whoever has to mend them wants them all

_large = threading.Lock()


class Fault(NamedTuple):
    """Why a picture cannot be used. kind: 'empty', 'no picture', 'damaged', 'too large' or 'unreadable'."""

    kind: str
    why: str

    def __str__(self) -> str:
        return f"{self.kind}, {self.why}"


class Refused(Exception):
    """A Fault on its way up. Not to be kept: its traceback holds the pixels that there were."""

    def __init__(self, kind: str, why: str) -> None:
        self.fault = Fault(kind, why)
        super().__init__(str(self.fault))


# ------------------------------------------------------------------------------------------------------------ decoding
def decode(f: BinaryIO, side: int, fit: str = "crop") -> NDArray[np.uint8]:
    """One encoded picture -> (3, side, side) uint8, RGB, as the head of this file says.

    fit: 'crop' scales the short side to `side` and cuts the middle out, 'squash' scales both sides, 'pad' scales the long
    side and adds black bars. Bicubic, antialiased. A JPEG is decoded at a half, a quarter or an eighth of its size where that
    is still twice what is needed: what comes out differs by 1 to 3 of 255 levels on average.
    Raises Refused; more than MAX_PIXELS, or MAX_SIDE on a side, are refused by the header, before memory is taken for them.
    """
    return _made(
        f,
        lambda w, h: _whole(w, h, 2 * side, fit),
        lambda image: np.asarray(_fitted(image, side, fit)).transpose(2, 0, 1),
    )


def prove(f: BinaryIO) -> None:
    """Decode a picture for nothing but to know that it can be, as fast as that goes. Raises Refused."""
    _made(f, lambda w, h: (1, 1), lambda image: None)


def _whole(w: int, h: int, side: int, fit: str) -> tuple[int, int]:
    """What a picture (w, h) as a whole has to be scaled to: exactly this for 'pad', no less than this for the others."""
    if fit != "pad":
        return side, side
    return max(1, round(w * side / max(w, h))), max(1, round(h * side / max(w, h)))


def _made(f: BinaryIO, needed: Callable[[int, int], tuple[int, int]], make: Callable[[Image.Image], T]) -> T:
    """make(picture), the picture being upright, RGB, and no smaller than needed(width, height) where it was not before."""
    try:
        return _made_as_it_is(f, needed, make)
    except Refused as refused:
        if refused.fault.kind != "damaged":
            raise
        from PIL import PngImagePlugin

        try:
            plain = without_large_notes(f, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
        except OSError as error:
            raise Refused("unreadable", os.strerror(error.errno or 0)) from error
        except TooLong:
            raise Refused("too large", f"its texts unpack to more than {size(NOTE_BYTES)}") from None
        if plain is None:
            raise
        return _made_as_it_is(plain, needed, make)


def _made_as_it_is(f: BinaryIO, needed: Callable[[int, int], tuple[int, int]], make: Callable[[Image.Image], T]) -> T:
    from PIL import Image

    with _quiet(), _damage(f):
        image = Image.open(f, formats=FORMATS)
        if max(image.size) > MAX_SIDE:
            raise Refused("too large", f"a side has {max(image.size):,} pixels, at most {MAX_SIDE:,} are read")
        if image.width * image.height > MAX_PIXELS:
            raise _too_many_pixels()
        if not (image.width and image.height):
            raise Refused("damaged", "it has no pixels")
        image.draft(None, needed(*image.size))  # something for JPEG alone
    if image.width * image.height <= LARGE_PIXELS:
        return _of_pixels(f, image, make)
    # The C library keeps what a thread has used for that thread: 4 of them would hold 4 such pictures, even in turns.
    with _large, ThreadPoolExecutor(1) as alone:
        return alone.submit(_of_pixels, f, image, make).result()


def _of_pixels(f: BinaryIO, image: ImageFile, make: Callable[[Image.Image], T]) -> T:
    with _quiet(), _damage(f):
        image.load()
        return make(_upright(_rgb(image), _orientation(image)))


@contextmanager
def _damage(f: BinaryIO) -> Iterator[None]:
    """Turns what Pillow raises on bad bytes, which is whatever its code happens to meet, into Refused."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except (Refused, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(2 * (Image.MAX_IMAGE_PIXELS or 0)) from error
    except UnidentifiedImageError as error:  # also where the header is of a format that we know, and broken
        f.seek(0)
        if MAGIC.match(f.read(16)):
            raise Refused("damaged", "its header is broken or cut off") from error
        raise Refused("no picture", "it is neither JPEG, PNG, WebP, GIF, BMP nor TIFF") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's own, not Pillow's
            raise Refused("unreadable", os.strerror(error.errno)) from error
        raise Refused("damaged", "its pixels are broken or cut off") from error


def _too_many_pixels(most: int = MAX_PIXELS) -> Refused:
    return Refused("too large", f"it has more than {most:,} pixels")


def _orientation(image: ImageFile) -> int:
    """How the picture has to be turned: 1 (not at all) to 8, as EXIF numbers it."""
    try:
        found = image.getexif().get(0x0112, 1)
    except MemoryError:
        raise
    except Exception:  # what is broken is the EXIF part, not the picture
        return 1
    return found if isinstance(found, int) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    from PIL.Image import Transpose

    return image.transpose(Transpose[TURNS[orientation]]) if orientation in TURNS else image


def _rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I;16"):
        # Pillow would clip at 255. The upper byte is also what it keeps of 16 bits in colour.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise Refused("no picture", "its pixels of 32 bits have no agreed range")
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        image = Image.new("RGB", pixels.size, "white")
        image.paste(pixels, mask=pixels.getchannel("A"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _fitted(image: Image.Image, side: int, fit: str) -> Image.Image:
    from PIL import Image

    bicubic, (w, h) = Image.Resampling.BICUBIC, image.size
    if fit == "squash":
        return image.resize((side, side), bicubic)
    if fit == "crop":
        # Scaling a box gives the pixels that scaling the whole and cutting would, its surroundings being looked at too.
        # From whole pixels on: a picture that only has to be cut must not be blurred by half a pixel.
        short = min(w, h)
        x, y = (w - short) // 2, (h - short) // 2
        return image.resize((side, side), bicubic, box=(x, y, x + short, y + short))
    small = image.resize(_whole(w, h, side, fit), bicubic)
    out = Image.new("RGB", (side, side))
    out.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return out


# One filter for all threads. warnings.catch_warnings() would do for one thread, but for several it is none: the last to leave
# puts back what it found when it came.
_QUIET = ("ignore", None, Warning, re.compile(r"PIL\b|PIL\."), 0)
_quiet_lock, _quiet_users = threading.Lock(), 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing that Pillow warns of (odd EXIF parts, many pixels) reaches anybody: a picture can be used, or is Refused."""
    global _quiet_users
    with _quiet_lock:
        _quiet_users += 1
        if _QUIET not in warnings.filters:
            warnings.filterwarnings("ignore", module=_QUIET[3].pattern)
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users -= 1
            if not _quiet_users:
                with suppress(ValueError):  # somebody else put other filters in place meanwhile
                    warnings.filters.remove(_QUIET)  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------------------- storage
class Store(Protocol):
    """Where encoded pictures lie, by number."""

    unit: str  # what messages call several of them

    def called(self, k: int) -> str:
        """The name of picture k."""

    def opened(self, k: int) -> AbstractContextManager[BinaryIO]:
        """Picture k, open for reading. Raises Refused; DataError where it is not what it was when read before."""

    def close(self) -> None: ...


class _Files:
    """Pictures as files. Each is opened for as long as it is read; how it looked then is kept, to compare."""

    unit = "files"

    def __init__(self, name: str, root: str, names: list[str]) -> None:
        self._name, self._names, self._root = name, names, os.path.abspath(root)
        self._looks = np.zeros((len(names), 3), np.int64)  # zeros: not read yet

    def called(self, k: int) -> str:
        return self._names[k]

    @contextmanager
    def opened(self, k: int) -> Iterator[BinaryIO]:
        fd = self._open(k)
        with open(fd, "rb") as f:
            before = _look(fd)
            if self._looks[k].any() and (self._looks[k] != before).any():
                raise self._changed(k)
            if not before[2]:
                raise Refused("empty", "it has 0 bytes")
            if before[2] > FILE_BYTES:
                raise Refused("too large", f"it has {size(int(before[2]))}, at most {size(FILE_BYTES)} are read")
            try:
                yield f
            finally:
                if (_look(fd) != before).any():
                    raise self._changed(k)
                self._looks[k] = before

    def _open(self, k: int) -> int:
        """A descriptor of a regular file. Never waits, whatever the name leads to."""
        try:
            path = os.path.join(self._root, self._names[k])
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # says nothing about the picture
                raise ResourceError(f"{self._name}: cannot open its files ({os.strerror(error.errno)})") from error
            if self._looks[k].any():
                raise self._changed(k) from error
            raise Refused("unreadable", os.strerror(error.errno or 0)) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            if self._looks[k].any():
                raise self._changed(k)
            raise Refused("unreadable", "it is no regular file")
        return fd

    def _changed(self, k: int) -> DataError:
        return DataError(f"{self._name}: {shown(self._names[k])} was changed or removed while it was in use")

    def close(self) -> None:
        pass


def _look(fd: int) -> Ints:
    """What tells whether an open file is the same as before: device, inode, bytes. (No time: clocks jump.)"""
    found = os.fstat(fd)
    numbers = (found.st_dev, found.st_ino, found.st_size)
    return np.array([number & 0x7FFFFFFFFFFFFFFF for number in numbers], np.int64)


class _Packed:
    """Pictures inside an HDF5 file."""

    unit = "pictures"

    def __init__(self, file: PackedPictures) -> None:
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


# -------------------------------------------------------------------------------------------------------------- source
class ImageSource(ItemSource):
    """n pictures as (3, size, size) uint8, with optional labels and ids.

    path: a folder, with a sub-folder for each class (see picture_files.list_folder); a list, .csv or .jsonl
    (picture_files.list_file); one picture file; or an HDF5 file (packed.PackedPictures). The keys name columns of a list
    and datasets of an HDF5 file. workers: threads that decode, at most; 0 for one a core.

    A picture that cannot be used stops the work with DataError, which counts all such; with skip_bad_rows all are decoded
    once here, and those left out. Raises ConfigError where the file is missing, DataError where it is bad by itself.
    """

    modality = IMAGES
    named = True
    features_name = "pictures"
    size = USUAL_SIZE
    fit = FITS[0]
    block_items = BLOCK_PICTURES

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        features_key: str | None = None,
        labels_key: str | None = LABELS,
        ids_key: str = IDS,
        skip_bad_rows: bool = False,
        allow_duplicate_ids: bool = False,
        repeated_ids: bool = False,
        workers: int = 0,
        verbose: bool = False,
    ) -> None:
        if workers < 0:
            raise ConfigError(f"workers={workers}, needs 0 (one for each core) or more")
        self.workers = workers or len(os.sched_getaffinity(0))
        self.path, self.name = os.fspath(path), shown(path)
        self._threads: ThreadPoolExecutor | None = None
        self._useful: dict[str, int] = {}  # threads, by what they do
        self._proven = self._single = False
        ids: dict[str, Any] = {"allow_duplicate_ids": allow_duplicate_ids, "repeated_ids": repeated_ids}
        listing = None
        if os.path.isdir(path):
            listing = list_folder(path)
        elif self.path.lower().endswith(LIST_ENDINGS):
            listing = list_file(path, labels_key=labels_key, ids_key=ids_key)
        elif not self.path.lower().endswith((".h5", ".hdf5", ".hdf")):
            self._single, listing = True, list_one(path)
        import PIL  # noqa: F401  its absence is told before any picture is read

        if listing is None:
            self._unpack(features_key, labels_key, ids_key, ids | {"verbose": verbose})
        else:
            self.physical_rows = len(listing.names)
            self._store: Store = _Files(self.name, listing.root, listing.names)
        try:
            if skip_bad_rows:
                self._leave_out()
            if listing is not None:  # what pictures that are left out would have said of the others, nobody says
                y, class_names, given = listing.facts(self._kept)
                self.settle(None if labels_key is None else y, given, class_names, **ids)
        except BaseException:
            with suppress(ScqError):
                self.close()
            raise

    def _unpack(self, features_key: str | None, labels_key: str | None, ids_key: str, ids: dict[str, Any]) -> None:
        from .packed import PackedPictures

        file = PackedPictures(self.path or "", features_key=features_key, labels_key=labels_key, ids_key=ids_key, **ids)
        self._store = _Packed(file)
        self.physical_rows, self.features_name = len(file), file.features_name
        self.labels, self._ids, self.has_ids = file.labels, file._ids, file.has_ids

    def shaped(self, size: int, fit: str) -> None:
        """What read, take and blocks give from now on: `size` pixels a side, made by `fit`. Raises ConfigError."""
        if not 1 <= size <= MAX_SIZE:
            raise ConfigError(f"pictures of size={size}, needs 1 to {MAX_SIZE:,} pixels")
        if fit not in FITS:
            raise ConfigError(f"fit is '{shown(fit)}', needs one of {', '.join(FITS)}{suggestion(fit, FITS)}")
        self.size, self.fit = size, fit
        self._useful.pop("decode", None)

    def adapt(self, encoder: Any) -> None:
        self.shaped(encoder.size, encoder.fit)

    # ---- reading
    @property
    def item_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return 3, self.size, self.size

    def items(self, physical: Ints) -> Pictures:
        """Each is decoded once, however often it stands there."""
        return self._decoded(physical)

    def item_name(self, physical: int) -> str:
        """Path relative to the folder, or as the list has it; '#row' in HDF5."""
        return self._store.called(physical)

    def digest(self, rows: Ints | None = None) -> str:
        """SHA-256 over the SHA-256 of each picture as it is stored, in order: `rows`, or all. Nothing is decoded."""
        kept = self._physical(np.arange(len(self)) if rows is None else np.asarray(rows, np.int64))
        whole = hashlib.sha256()
        for i in range(0, len(kept), PIECE):
            found = self._each("hash", self._hash, kept[i : i + PIECE])
            if bad := {int(k): why for k, why in zip(kept[i:], found) if isinstance(why, Fault)}:
                raise self._account(self._bad() or bad)
            for one in found:
                whole.update(one)  # type: ignore[arg-type]
        return whole.hexdigest()

    def prove(self) -> None:
        """Decode every picture once. Raises DataError that counts those that cannot be used."""
        if not self._proven:
            if bad := self._bad():
                raise self._account(bad)
            self._proven = True

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
            self._threads = None
        self._store.close()

    # ---- the work of the threads
    def _decoded(self, kept: Ints) -> Pictures:
        """Physical pictures `kept`; each is decoded once, however often it stands there."""
        which, back = np.unique(kept, return_inverse=True)
        out = np.empty((len(which), 3, self.size, self.size), np.uint8)

        def one(place: int) -> Fault | None:
            try:
                with self._store.opened(int(which[place])) as f:
                    out[place] = decode(f, self.size, self.fit)
            except Refused as refused:
                return refused.fault
            return None

        found = self._each("decode", one, np.arange(len(which)))
        if bad := {int(k): fault for k, fault in zip(which, found) if fault}:
            raise self._account(self._bad() or bad)
        return out if np.array_equal(back, np.arange(len(kept))) else out[back]

    def _prove(self, k: int) -> Fault | None:
        try:
            with self._store.opened(k) as f:
                prove(f)
        except Refused as refused:
            return refused.fault
        return None

    def _hash(self, k: int) -> bytes | Fault:
        sha = hashlib.sha256()
        try:
            with self._store.opened(k) as f:
                while block := f.read(1 << 20):
                    sha.update(block)
        except Refused as refused:
            return refused.fault
        except OSError as error:
            return Fault("unreadable", os.strerror(error.errno or 0))
        return sha.digest()

    def _each(self, what: str, work: Callable[[int], T], numbers: Ints) -> list[T]:
        """[work(k) for k in numbers], by as many threads as are of use for `what`. What one of them raises is raised."""
        with _quiet():  # here once, so that filters do not come and go with every picture
            done = self._try(what, work, numbers[:TRIED]) if what not in self._useful else []
            left = numbers[len(done) :]
            threads = min(self._useful[what], len(left)) if len(left) else 1
            if threads <= 1:
                return done + [work(int(k)) for k in left]
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="pictures")
            # Several shares for each thread, because some pictures take longer; not one for each, because handing over costs.
            shares = list(enumerate(np.array_split(left, min(len(left), 4 * threads))))
            parts: list[list[T]] = [[] for _ in shares]
            waiting = iter(shares)  # from which each thread takes the next

            def go_on() -> None:
                with _emptied_on_error(waiting):
                    for place, share in waiting:
                        parts[place] = [work(int(k)) for k in share]

            with _emptied_on_error(waiting):
                for thread in [self._threads.submit(go_on) for _ in range(threads)]:
                    thread.result()
            return done + [one for part in parts for one in part]

    def _try(self, what: str, work: Callable[[int], T], numbers: Ints) -> list[T]:
        """[work(k) for k in numbers], and how many threads are of use for more: only one at a time can run Python.

        Small pictures are decoded in less time than it takes to open them; more threads would only make each other wait.
        """
        done, seconds = [], []
        for k in numbers:
            start = time.perf_counter()
            done.append(work(int(k)))
            seconds.append(time.perf_counter() - start)
        if done:  # the first may have loaded libraries
            self._useful[what] = min(self.workers, max(1, int(median(seconds[1:] or seconds) / LOCKED)))
        return done

    # ---- pictures that cannot be used
    def _bad(self) -> dict[int, Fault]:
        """Every physical picture that cannot be used, in order."""
        bad: dict[int, Fault] = {}
        for i in range(0, self.physical_rows, PIECE):
            piece = np.arange(i, min(i + PIECE, self.physical_rows))
            bad |= {int(k): fault for k, fault in zip(piece, self._each("prove", self._prove, piece)) if fault}
        return bad

    def _leave_out(self) -> None:
        bad = self._bad()
        self._proven = True
        if not bad:
            return
        self.dropped = len(bad)
        names = [shown(self._store.called(k)) for k in list(bad)[:LEFT_OUT]]
        more = f" and {len(bad) - LEFT_OUT:,} more" if len(bad) > LEFT_OUT else ""
        self._keep(np.setdiff1d(np.arange(self.physical_rows), list(bad)))
        warn(
            f"{self.name}: left out {len(bad):,} of {self.physical_rows:,} {self._store.unit}: "
            f"{_kinds(bad)} ({', '.join(names)}{more})"
        )

    def _account(self, bad: dict[int, Fault]) -> DataError:
        """The error for pictures that cannot be used, told by their physical numbers."""
        first, fault = next(iter(bad.items()))
        if self._single:
            return DataError(f"{self.name} cannot be used: {fault}")
        return DataError(
            f"{self.name}: {len(bad):,} of {self.physical_rows:,} {self._store.unit} cannot be used: {_kinds(bad)} "
            f"(first: {shown(self._store.called(first))}: {fault}); --skip-bad-rows leaves them out"
        )

    def _count_bad_rows(self) -> DataError:
        return self._account(self._bad())


@contextmanager
def _emptied_on_error(waiting: Iterator[Any]) -> Iterator[None]:
    """What goes wrong, Ctrl-C included, leaves nothing in `waiting`, so that other threads end soon."""
    try:
        yield
    except BaseException:
        for _ in waiting:
            pass
        raise


def _kinds(bad: dict[int, Fault]) -> str:
    """'10 damaged, 8 no picture': how many of each kind."""
    return ", ".join(f"{n:,} {kind}" for kind, n in sorted(Counter(fault.kind for fault in bad.values()).items()))
