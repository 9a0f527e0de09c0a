"""An HDF5 file open for reading, under suspicion: its datasets by name, checked before a byte of them is read.

HDF5 itself gives zeros without an error for chunks never written, for a virtual dataset whose source is gone and behind
the end of a file cut while it is open; it follows links into other files and believes any declared size. All of that is
looked for here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from ..arrays import PIECE, check_binary, dims
from ..errors import DataError, ResourceError, format_bytes, printable
from .chunks import Chunks
from .open_file import OpenFile

CHUNK_BYTES = 256 << 20  # largest chunk, and largest row: HDF5 decodes chunks whole, so this bounds the memory
BOMB_BYTES = 1 << 30  # from here on a declared size without data behind it is taken as an attack, not an accident
LISTED = 8  # datasets that a message names

# All that h5py raises for a file it cannot read; which one depends on the place of the damage.
H5_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError)


class Hdf5File:
    """Opened once, for all that reads from it; unsealed: datasets read from it that have no checksum.

    Raises ConfigError where the file is missing, DataError where it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._open_file = OpenFile(path)
        self.path, self.name = os.fspath(path), self._open_file.name
        self.unsealed: list[str] = []
        self._chunks: dict[bytes, Chunks] = {}
        try:
            self.root = _open(path, self._open_file)
        except BaseException:
            self._open_file.release()
            raise

    def close(self) -> None:
        """Close; DataError where the file was changed while it was open. May be called twice."""
        self.root.close()
        self._open_file.close()

    def release(self) -> None:
        """Close without a look at what happened to the file."""
        self.root.close()
        self._open_file.release()

    def has(self, *names: str) -> list[bool]:
        """Which names lead to something. Links are not followed."""
        return [self.root.get(name, getlink=True) is not None for name in names]

    @contextmanager
    def damage(self, part: str) -> Iterator[None]:
        """OptimizerStep what h5py raises on damaged metadata into our words."""
        try:
            yield
        except H5_ERRORS as error:
            raise DataError(f"{self.name}: {part} is damaged; restore a copy") from error

    def find(self, key: str, option: str, *, optional: bool = False, purpose: str = "") -> Any:
        """The dataset `key`, which lies in this file and nowhere else; None where it is optional and absent.

        Goes link by link: opening the whole path at once would follow a link into another file.
        """
        node, parts, followed = self.root, parts_of(key), 0
        while parts:
            part = parts.pop(0)
            link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
            if isinstance(link, h5py.ExternalLink):
                raise self._outside(key, link.filename)
            if isinstance(link, h5py.SoftLink):
                followed += 1
                if followed > 16:
                    raise DataError(f"{self.name}: '{printable(key)}' is a link that leads back to itself")
                node = self.root if link.path.startswith("/") else node
                parts = parts_of(link.path) + parts
            elif link is not None:
                node = node[part]
            elif optional and not followed:
                return None
            else:
                why = f", {purpose}" if purpose else ""
                raise DataError(
                    f"{self.name} has no dataset '{printable(key)}'{why}; {self._listing()}; choose with {option}"
                )
        if not isinstance(node, h5py.Dataset):
            kind = type(node).__name__.lower().replace("file", "group")
            raise DataError(
                f"{self.name}: '{printable(key)}' is a {kind}, not a dataset; {self._listing()}; choose with {option}"
            )
        if node.is_virtual:
            others = [s.file_name for s in node.virtual_sources() if s.file_name != "."]
            if others:
                raise self._outside(key, others[0])
            raise DataError(f"{self.name}: {printable(key)} is a virtual dataset, needs to hold the rows itself")
        if node.external:
            raise self._outside(key, node.external[0][0])
        if node.shape is None:
            raise DataError(f"{self.name}: {printable(key)} has no shape, needs rows")
        if not readable(node):
            raise DataError(f"{self.name}: {printable(key)} is of a type that is neither number nor text")
        return node

    def _outside(self, key: str, other: str) -> DataError:
        return DataError(f"{printable(key)} lies outside {self.name} ({printable(other)}); copy it in")

    def _listing(self) -> str:
        """'it holds emb (8, 8) float32, ...': what the user may have meant. Links to elsewhere are not followed."""
        datasets: list[str] = []

        def note(name: str, node: Any) -> bool | None:
            if isinstance(node, h5py.Dataset):
                form = f" {'(none)' if node.shape is None else dims(node)}" if readable(node) else " of another type"
                datasets.append(f"{printable(name)}{form}")
            return True if len(datasets) > LISTED else None

        self.root.visititems(note)
        if not datasets:
            return "it holds no dataset"
        return f"it holds {', '.join(datasets[:LISTED])}{' and more' if len(datasets) > LISTED else ''}"

    def cached(self, where: bytes, stripe: int) -> Any:
        """The dataset at `where`, which nobody holds open, with a cache of one row of chunks, `stripe` bytes.

        A block that ends inside a chunk must not make the next decode it again. A larger cache is slower, and HDF5 takes it
        only where the dataset is not open already.
        """
        access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
        access.set_chunk_cache(521, max(stripe, 1 << 20), 1.0)
        return h5py.Dataset(h5py.h5d.open(self.root.id, where, access))

    def matrix(self, dataset: Any, key: str) -> NDArray[np.uint8]:
        """A matrix (n, C) of labels, in pieces: in its own dtype it might take eight times the memory.

        Raises DataError on what is neither 0 nor 1.
        """
        out = np.empty(dataset.shape, np.uint8)

        def pieces() -> Iterator[NDArray[Any]]:
            step = max(1, PIECE // dataset.shape[1])
            for i in range(0, len(out), step):
                piece = self.rows(dataset, key, i, min(i + step, len(out)))
                out[i : i + step] = piece == 1
                yield piece

        check_binary(pieces(), f"{self.name}: {key}")
        return out

    def check_stored(self, dataset: Any, key: str) -> None:
        """ResourceError or DataError unless all that `dataset` declares was written, and in a form we can read."""
        name, item = f"{self.name}: {key}", dataset.dtype.itemsize
        declared, stored = item * math.prod(dataset.shape), dataset.id.get_storage_size()
        if declared == 0:
            return
        chunks = dataset.chunks
        if chunks and item * math.prod(chunks) > CHUNK_BYTES:
            raise ResourceError(
                f"{name} has chunks of {format_bytes(item * math.prod(chunks))}, "
                f"at most {format_bytes(CHUNK_BYTES)} can be read; write it again with smaller chunks"
            )
        if chunks:
            of = math.prod(-(-n // c) for n, c in zip(dataset.shape, chunks))
            missing = of - dataset.id.get_num_chunks()
        else:
            of, missing = 1, int(stored == 0)
        if missing and declared > BOMB_BYTES and stored < declared / 1000:
            raise ResourceError(f"{name} declares {format_bytes(declared)}, holds {format_bytes(stored)}")
        if missing and chunks:
            raise DataError(f"{name}: {missing:,} of {of:,} chunks were never written")
        if missing:
            raise DataError(f"{name}: its rows were never written")
        plan = dataset.id.get_create_plist()
        filters = [plan.get_filter(k) for k in range(plan.get_nfilters())]
        for code, _, _, title in filters:
            if not h5py.h5z.filter_avail(code):
                title = f" ({printable(title)})" if title else ""
                raise DataError(f"{name} is packed by HDF5 filter {code}{title}, which is not installed here; use gzip")
        if h5py.h5z.FILTER_FLETCHER32 not in [f[0] for f in filters]:
            self.unsealed.append(key)
        self._chunks[h5py.h5i.get_name(dataset.id)] = Chunks(dataset, name, [f[0] for f in filters])

    def rows(self, dataset: Any, key: str, i: int, j: int) -> NDArray[Any]:
        """Rows i..j-1 of a dataset in its own dtype. DataError names the rows of the first chunk that is damaged."""
        # Straight into place, without HDF5's own conversion: NumPy turns float16 into float32 several times faster.
        out = np.empty((j - i, *dataset.shape[1:]), dataset.dtype)
        if out.size:
            self._chunks[h5py.h5i.get_name(dataset.id)].prove(dataset, i, j)
            try:
                dataset.read_direct(out, np.s_[i:j])
            except H5_ERRORS as error:
                raise self._damaged_rows(dataset, key, i, j) from error
        return out

    def _damaged_rows(self, dataset: Any, key: str, i: int, j: int) -> DataError:
        """The error for rows i..j-1, narrowed to one row of chunks where one of them fails alone."""
        if dataset.chunks:
            step = dataset.chunks[0]
            for k in range(i - i % step, j, step):
                try:
                    dataset[k]  # HDF5 decodes and checks a chunk whole, so one row of it is enough
                except H5_ERRORS:
                    i, j = k, min(k + step, len(dataset))
                    break
        return DataError(f"{self.name}: {key}: rows {i:,} to {j - 1:,} are damaged; restore a copy")

    def class_names(self) -> tuple[Any, ...] | None:
        names = self.root.attrs.get("class_names")
        if names is None:
            return None
        if not isinstance(names, np.ndarray) or names.ndim != 1 or names.dtype.kind not in "OSUiu":
            raise DataError(f"{self.name}: attribute class_names needs to be a list of names, one for each class")
        return tuple(names)


def readable(dataset: Any) -> bool:
    """Whether NumPy has a type for what a dataset holds; it has none for times and some others."""
    try:
        return dataset.dtype is not None
    except TypeError:
        return False


def parts_of(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _open(path: str | os.PathLike[str], file: OpenFile) -> Any:
    """`path` as h5py.File, `file` being the same file; DataError says why it cannot be opened."""
    try:
        hdf5 = h5py.File(path, "r")
    except H5_ERRORS as error:
        text = str(error)  # HDF5 has no finer codes; where its words change, the general answer below remains
        if isinstance(error, BlockingIOError) or "already open for" in text:
            if not file.locked():  # by anybody: the file itself says that it is being written
                raise DataError(
                    f"{file.name} was not closed by the program that wrote it; if none is writing it, "
                    f"`h5clear -s {file.name}` makes it readable, without what was not flushed"
                ) from error
            raise DataError(f"{file.name} is open for writing in another program") from error
        if "unable to lock" in text:
            raise DataError(
                f"{file.name}: cannot be locked for reading; HDF5_USE_FILE_LOCKING=FALSE reads it without a lock"
            ) from error
        raise _why_unreadable(file) from error
    if hdf5.mode != "r":  # HDF5 gives out the handle of a writer in the same process
        hdf5.close()
        raise DataError(f"{file.name} is open for writing in this program")
    return hdf5


def _why_unreadable(file: OpenFile) -> DataError:
    """Truncated, damaged, or no HDF5 file at all: the superblock declares where the file ends.

    Source: HDF5 File Format Specification, version 3.0, section II.A.
    """
    at, head = 0, file.pread(64, 0)
    while not head.startswith(b"\x89HDF\r\n\x1a\n"):  # at byte 0, 512, 1024, 2048, ...
        at = 2 * at or 512
        if at >= file.size:
            return DataError(f"{file.name} is not an HDF5 file")
        head = file.pread(64, at)
    version = head[8] if len(head) > 8 else 0
    width, first = (head[13:14], 28 if version == 1 else 24) if version < 2 else (head[9:10], 12)
    start = first + 2 * int.from_bytes(width, "little")  # behind the base address and one more
    end = head[start : start + int.from_bytes(width, "little")]
    if len(head) < 48:
        return DataError(f"{file.name}: file is truncated, {file.size:,} bytes do not hold its header")
    if version < 4 and int.from_bytes(end, "little") > file.size:
        return DataError(f"{file.name}: file is truncated, {file.size:,} of {int.from_bytes(end, 'little'):,} bytes")
    return DataError(f"{file.name} is damaged; restore a copy")
