"""Images of folders, lists and HDF5 files, decoded in several threads and handed out in one size."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints
from ..errors import ConfigError, DataError, ScqError, printable, suggestion, warn
from ..modality import IMAGES
from .decoding import FITS, Fault, Refused, decode, prove, quiet
from .image_files import Listing, list_folder, list_one
from .image_lists import list_file
from .items import ItemSource
from .kinds import RowOptions
from .stores import FileStore, Hdf5Store, Store

if TYPE_CHECKING:
    from .hdf5_file import Hdf5File
    from .hdf5_images import Hdf5Images

T = TypeVar("T")
Images = NDArray[np.uint8]  # (b, 3, size, size)

DEFAULT_SIZE, MAX_SIZE = 224, 4096
BLOCK_IMAGES = 16  # the fewest in a block
LOCKED = 0.00018  # seconds that an image keeps Python's lock: what opening it takes, whatever its size
TRIED = 5  # images that show how long one takes
PIECE = 4096  # images looked at between two looks at the results
LEFT_OUT = 100  # and images, of those that were left out: whoever has to mend them wants them all


def open_folder(path: str | os.PathLike[str], options: RowOptions) -> ImageSource:
    """A folder, with a sub-folder for each class or none. Raises as list_folder and ImageSource."""
    return ImageSource(path, options, list_folder(path))


def open_list(path: str | os.PathLike[str], options: RowOptions) -> ImageSource:
    """A list of images, .csv or .jsonl. Raises as list_file and ImageSource."""
    return ImageSource(path, options, list_file(path, labels_key=options.labels_key, ids_key=options.ids_key))


def open_one(path: str | os.PathLike[str], options: RowOptions) -> ImageSource:
    """One image. Raises as list_one and ImageSource."""
    return ImageSource(path, options, list_one(path))


def open_hdf5_images(file: Hdf5File, options: RowOptions) -> ImageSource:
    """Images in an HDF5 file, which is closed with the source. Raises as Hdf5Images and ImageSource."""
    from .hdf5_images import Hdf5Images

    # Bad images are found by decoding them.
    packed = Hdf5Images(
        file, replace(options, skip_bad_rows=False, keep_unlabelled=True, repeated_ids=_may_repeat(options), role=None)
    )
    return ImageSource(file.path, options, packed=packed)


def _may_repeat(options: RowOptions) -> bool:
    return options.repeated_ids or options.role == "queries"


class ImageSource(ItemSource):
    """n images as (3, size, size) uint8, with optional labels and ids.

    Either files of a Listing (a folder, a list, one file) or rows of an HDF5 file. options.workers: threads that decode, at
    most; 0 for one a core.

    An image that cannot be used stops the work with DataError, which counts all such; with skip_bad_rows all are decoded
    once here, and those left out.
    """

    modality = IMAGES
    named = True
    features_name = "images"
    size = DEFAULT_SIZE
    fit = FITS[0]
    block_items = BLOCK_IMAGES

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: RowOptions,
        listing: Listing | None = None,
        packed: Hdf5Images | None = None,
    ) -> None:
        import PIL  # noqa: F401  its absence is told before any image is read

        self.workers = options.workers or len(os.sched_getaffinity(0))
        self.path, self.name = os.fspath(path), printable(path)
        self._threads: ThreadPoolExecutor | None = None
        self._useful: dict[str, int] = {}  # threads, by what they do
        self._proven, self._single = False, listing is not None and listing.single
        self._store: Store
        if listing is not None:
            self._store = FileStore(self.name, listing.root, listing.names)
            self.physical_rows = len(listing.names)
        else:
            assert packed is not None
            self._store = Hdf5Store(packed)
            self.physical_rows, self.features_name = len(packed), packed.features_name
            self.labels, self._ids, self.has_ids = packed.labels, packed._ids, packed.has_ids
        try:
            if options.skip_bad_rows:
                self._leave_out()
            if listing is not None:  # what images that are left out would have said of the others, nobody says
                y, class_names, ids = listing.facts(self._kept)
                self.settle(
                    None if options.labels_key is None else y,
                    ids,
                    class_names,
                    allow_duplicate_ids=options.allow_duplicate_ids,
                    repeated_ids=_may_repeat(options),
                    keep_unlabelled=True,
                )
            self.settle_unlabelled(options.keep_unlabelled)
        except BaseException:
            with suppress(ScqError):
                self.close()
            raise

    def shaped(self, size: int, fit: str) -> None:
        """What read, take and blocks give from now on: `size` pixels a side, made by `fit`. Raises ConfigError."""
        if not 1 <= size <= MAX_SIZE:
            raise ConfigError(f"images of size={size}, needs 1 to {MAX_SIZE:,} pixels")
        if fit not in FITS:
            raise ConfigError(f"fit is '{printable(fit)}', needs one of {', '.join(FITS)}{suggestion(fit, FITS)}")
        self.size, self.fit = size, fit
        self._useful.pop("decode", None)

    def adapt(self, encoder: Any) -> None:
        self.shaped(encoder.size, encoder.fit)

    # ---- reading
    @property
    def item_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return 3, self.size, self.size

    @property
    def form(self) -> str:
        return f"of {self.size} x {self.size} pixels"

    def items(self, physical: Ints) -> Images:
        """Each is decoded once, however often it stands there."""
        return self._decoded(physical)

    def item_name(self, physical: int) -> str:
        """Path relative to the folder, or as the list has it; '#row' in HDF5."""
        return self._store.called(physical)

    def digest(self, rows: Ints | None = None) -> str:
        """SHA-256 over the SHA-256 of each image as it is stored, in order: `rows`, or all. Nothing is decoded."""
        kept = self._physical(np.arange(len(self)) if rows is None else np.asarray(rows, np.int64))
        whole = hashlib.sha256()
        for i in range(0, len(kept), PIECE):
            digests = self._each("hash", self._hash, kept[i : i + PIECE])
            if bad := {int(k): why for k, why in zip(kept[i:], digests) if isinstance(why, Fault)}:
                raise self._account(self._bad() or bad)
            for digest in digests:
                whole.update(digest)  # type: ignore[arg-type]
        return whole.hexdigest()

    def prove(self) -> None:
        """Decode every image once. Raises DataError that counts those that cannot be used."""
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
    def _decoded(self, kept: Ints) -> Images:
        """Physical images `kept`; each is decoded once, however often it stands there."""
        which, order = np.unique(kept, return_inverse=True)
        out = np.empty((len(which), 3, self.size, self.size), np.uint8)

        def decode_one(place: int) -> Fault | None:
            try:
                with self._store.opened(int(which[place])) as f:
                    out[place] = decode(f, self.size, self.fit)
            except Refused as refused:
                return refused.fault
            return None

        faults = self._each("decode", decode_one, np.arange(len(which)))
        if bad := {int(k): fault for k, fault in zip(which, faults) if fault}:
            raise self._account(self._bad() or bad)
        return out if np.array_equal(order, np.arange(len(kept))) else out[order]

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

    def _each(self, kind: str, work: Callable[[int], T], numbers: Ints) -> list[T]:
        """[work(k) for k in numbers], by as many threads as are of use for `what`. What one of them raises is raised."""
        with quiet():  # here once, so that filters do not come and go with every image
            done = self._try(kind, work, numbers[:TRIED]) if kind not in self._useful else []
            left = numbers[len(done) :]
            threads = min(self._useful[kind], len(left)) if len(left) else 1
            if threads <= 1:
                return done + [work(int(k)) for k in left]
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="images")
            # Several shares for each thread, because some images take longer; not one for each, because handing over costs.
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
            return done + [result for part in parts for result in part]

    def _try(self, kind: str, work: Callable[[int], T], numbers: Ints) -> list[T]:
        """[work(k) for k in numbers], and how many threads are of use for more: only one at a time can run Python.

        Small images are decoded in less time than it takes to open them; more threads would only make each other wait.
        """
        done, seconds = [], []
        for k in numbers:
            start = time.perf_counter()
            done.append(work(int(k)))
            seconds.append(time.perf_counter() - start)
        if done:  # the first may have loaded libraries
            self._useful[kind] = min(self.workers, max(1, int(median(seconds[1:] or seconds) / LOCKED)))
        return done

    # ---- images that cannot be used
    def _bad(self) -> dict[int, Fault]:
        """Every physical image that cannot be used, in order."""
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
        names = [printable(self._store.called(k)) for k in list(bad)[:LEFT_OUT]]
        more = f" and {len(bad) - LEFT_OUT:,} more" if len(bad) > LEFT_OUT else ""
        self._keep(np.setdiff1d(np.arange(self.physical_rows), list(bad)))
        warn(
            f"{self.name}: left out {len(bad):,} of {self.physical_rows:,} {self._store.unit}: "
            f"{_kinds(bad)} ({', '.join(names)}{more})"
        )

    def _account(self, bad: dict[int, Fault]) -> DataError:
        """The error for images that cannot be used, told by their physical numbers."""
        first, fault = next(iter(bad.items()))
        if self._single:
            return DataError(f"{self.name} cannot be used: {fault}")
        return DataError(
            f"{self.name}: {len(bad):,} of {self.physical_rows:,} {self._store.unit} cannot be used: {_kinds(bad)} "
            f"(first: {printable(self._store.called(first))}: {fault}); --skip-bad-rows leaves them out"
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
    """'10 damaged, 8 no image': how many of each kind."""
    return ", ".join(f"{n:,} {kind}" for kind, n in sorted(Counter(fault.kind for fault in bad.values()).items()))
