"""Rows in HDF5 files: `features`, `labels`, `ids`, read with suspicion, and the two kinds of HDF5 file we write.

HDF5 itself gives zeros without an error for chunks never written, for a virtual dataset whose source is gone and behind
the end of a file cut while it is open; it follows links into other files and believes any declared size. All of that is
looked for here, before a byte of the rows is read.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import h5py  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays import PIECE, check_feature_form, dims
from ..errors import DataError, ResourceError, shown, size, warn
from .chunks import Chunks
from .kinds import IDS, LABELS, DefaultKey
from .source import OpenFile, Source

CHUNK_BYTES = 256 << 20  # largest chunk, and largest row: HDF5 decodes chunks whole, so this bounds the memory
WHOLE_BYTES = 8 << 30  # largest labels or ids, which are read whole
BOMB_BYTES = 1 << 30  # from here on a declared size without data behind it is taken as an attack, not an accident
LISTED = 8  # datasets that a message names
QUERIES, KEYS = "queries", "keys"  # datasets of a file of pairs, and what rows of it are used as

# All that h5py raises for a file it cannot read; which one depends on the place of the damage.
H5_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError)


class Hdf5Source(Source):
    """Rows of an HDF5 file; the keys name its datasets and may lead into groups ('g/x').

    `features` (n, d) float16, float32 or float64, read in pieces; where there are none, the half of a file of pairs that
    `role` names, `queries` or `keys`. `labels` (n,) integers or class names or (n, C) of 0 and 1, and `ids` (n,) integers,
    read whole, each optional under its default key; file attribute `class_names` (C,), optional. repeated_ids: an id may
    stand more than once, as that of a query always may, and in either half of a file of pairs: see Source.copies.
    purpose: what the features are for, where that has to be said. verbose: warn where a dataset has no checksum.
    Raises ConfigError where the file is missing, ResourceError where it declares more than it holds or more than may be
    read at once, DataError where it is damaged, incomplete, in use, spread over several files or of another form.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        features_key: str | None = None,
        labels_key: str | None = LABELS,
        ids_key: str | None = IDS,
        role: str | None = None,
        skip_bad_rows: bool = False,
        allow_duplicate_ids: bool = False,
        repeated_ids: bool = False,
        purpose: str = "",
        verbose: bool = False,
    ) -> None:
        self._open_file = OpenFile(path)
        self._hdf5: Any = None
        self.path, self.name = os.fspath(path), self._open_file.name
        try:
            self._hdf5 = _open(path, self._open_file)
            self._unsealed: list[str] = []
            self._chunks: dict[bytes, Chunks] = {}
            with self._damage("the file"):
                if features_key is None:
                    features_key = self._usual_features(role)
                self.features_name = shown(features_key)
                self._features = self._find_features(features_key, purpose)
                self.half = _parts(features_key) in ([QUERIES], [KEYS]) and all(_has(self._hdf5, QUERIES, KEYS))
                self.copies = self.half and not allow_duplicate_ids
                labels = None
                if labels_key is not None:
                    labels = self._find_whole(labels_key, "--labels-key", optional=isinstance(labels_key, DefaultKey))
                ids = None
                if ids_key is not None:
                    ids = self._find_whole(ids_key, "--ids-key", optional=isinstance(ids_key, DefaultKey))
                class_names = None if labels is None else self._class_names()
            if self._unsealed and verbose:
                warn(f"{self.name}: {self._unsealed[0]} has no checksum, bit errors cannot be seen")
            self.settle(
                labels,
                ids,
                class_names,
                labels_name=shown(labels_key or ""),
                ids_name=shown(ids_key or ""),
                skip_bad_rows=skip_bad_rows,
                allow_duplicate_ids=allow_duplicate_ids,
                repeated_ids=repeated_ids or role == QUERIES or self.copies,
            )
        except BaseException:
            self._release()
            raise

    def fetch(self, i: int, j: int) -> NDArray[Any]:
        return self._rows(self._features, self.features_name, i, j)

    def close(self) -> None:
        self._close_hdf5()
        self._open_file.close()

    @property
    def chunk_rows(self) -> int:
        return int(self._features.chunks[0]) if self._features.chunks else 1

    @property
    def sealed(self) -> bool:
        """Whether all that is read has checksums."""
        return not self._unsealed

    def _release(self) -> None:
        self._close_hdf5()
        self._open_file.release()

    def _close_hdf5(self) -> None:
        if self._hdf5 is not None:
            self._hdf5.close()

    @contextmanager
    def _damage(self, what: str) -> Iterator[None]:
        """Turns what h5py raises on damaged metadata into our words."""
        try:
            yield
        except H5_ERRORS as error:
            raise DataError(f"{self.name}: {what} is damaged; restore a copy") from error

    def _find(self, key: str, option: str, *, optional: bool = False, purpose: str = "") -> Any:
        """The dataset `key`, which lies in this file and nowhere else; None where it is optional and absent.

        Goes link by link: opening the whole path at once would follow a link into another file.
        """
        node, parts, followed = self._hdf5, _parts(key), 0
        while parts:
            part = parts.pop(0)
            link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
            if isinstance(link, h5py.ExternalLink):
                raise self._outside(key, link.filename)
            if isinstance(link, h5py.SoftLink):
                followed += 1
                if followed > 16:
                    raise DataError(f"{self.name}: '{shown(key)}' is a link that leads back to itself")
                node = self._hdf5 if link.path.startswith("/") else node
                parts = _parts(link.path) + parts
            elif link is not None:
                node = node[part]
            elif optional and not followed:
                return None
            else:
                why = f", {purpose}" if purpose else ""
                raise DataError(
                    f"{self.name} has no dataset '{shown(key)}'{why}; {self._listing()}; choose with {option}"
                )
        if not isinstance(node, h5py.Dataset):
            kind = type(node).__name__.lower().replace("file", "group")
            raise DataError(
                f"{self.name}: '{shown(key)}' is a {kind}, not a dataset; {self._listing()}; choose with {option}"
            )
        if node.is_virtual:
            others = [s.file_name for s in node.virtual_sources() if s.file_name != "."]
            if others:
                raise self._outside(key, others[0])
            raise DataError(f"{self.name}: {shown(key)} is a virtual dataset, needs to hold the rows itself")
        if node.external:
            raise self._outside(key, node.external[0][0])
        if node.shape is None:
            raise DataError(f"{self.name}: {shown(key)} has no shape, needs rows")
        if not _readable(node):
            raise DataError(f"{self.name}: {shown(key)} is of a type that is neither number nor text")
        return node

    def _outside(self, key: str, other: str) -> DataError:
        return DataError(f"{shown(key)} lies outside {self.name} ({shown(other)}); copy it in")

    def _listing(self) -> str:
        """'it holds emb (8, 8) float32, ...': what the user may have meant. Links to elsewhere are not followed."""
        found: list[str] = []

        def note(name: str, node: Any) -> bool | None:
            if isinstance(node, h5py.Dataset):
                form = f" {'(none)' if node.shape is None else dims(node)}" if _readable(node) else " of another type"
                found.append(f"{shown(name)}{form}")
            return True if len(found) > LISTED else None

        self._hdf5.visititems(note)
        if not found:
            return "it holds no dataset"
        return f"it holds {', '.join(found[:LISTED])}{' and more' if len(found) > LISTED else ''}"

    def _usual_features(self, role: str | None) -> str:
        """The dataset of features where none was named."""
        if not _pairs_in(self._hdf5):
            return "features"
        if role in (QUERIES, KEYS):
            return role
        raise DataError(
            f"{self.name} holds pairs, queries and keys, where rows are needed; choose one with --features-key keys"
        )

    def _find_features(self, key: str, purpose: str) -> Any:
        """The features, checked in all that can be told without reading a row."""
        features = self._find(key, "--features-key", purpose=purpose)
        check_feature_form(features, f"{self.name}: {shown(key)}")
        self.physical_rows, self.d = features.shape
        row = self.d * features.dtype.itemsize
        if row > CHUNK_BYTES:
            raise ResourceError(
                f"{self.name}: one row of {shown(key)} takes {size(row)}, at most {size(CHUNK_BYTES)} can be read"
            )
        self._check_stored(features, shown(key))
        stripe = features.chunks[0] * row if features.chunks else 0
        if stripe <= CHUNK_BYTES:
            where, features = h5py.h5i.get_name(features.id), None
            features = self._cached(where, stripe)
        return features

    def _cached(self, where: bytes, stripe: int) -> Any:
        """The dataset at `where`, which nobody holds open, with a cache of one row of chunks, `stripe` bytes.

        A block that ends inside a chunk must not make the next decode it again. A larger cache is slower, and HDF5 takes it
        only where the dataset is not open already.
        """
        access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
        access.set_chunk_cache(521, max(stripe, 1 << 20), 1.0)
        return h5py.Dataset(h5py.h5d.open(self._hdf5.id, where, access))

    def _find_whole(self, key: str, option: str, *, optional: bool) -> NDArray[Any] | None:
        """Labels or ids of all rows; where their form is wrong already, an array of that form, without memory."""
        found = self._find(key, option, optional=optional)
        if found is None:
            return None
        text = found.ndim == 1 and h5py.check_string_dtype(found.dtype) is not None and option == "--labels-key"
        if found.shape[:1] != (self.physical_rows,) or found.ndim > 2 or (found.dtype.kind not in "buif" and not text):
            return np.broadcast_to(np.zeros((), found.dtype), found.shape)  # settle() refuses it by its form alone
        self._check_stored(found, shown(key))
        declared = found.dtype.itemsize * math.prod(found.shape)
        if declared > WHOLE_BYTES:
            raise ResourceError(
                f"{self.name}: {shown(key)} declares {size(declared)}, at most {size(WHOLE_BYTES)} can be read"
            )
        if text:
            with self._damage(shown(key)):
                return np.asarray(found.asstr(errors="replace")[:])
        if option == "--labels-key" and found.ndim == 2 and found.shape[1] > 1:
            return self._matrix(found, shown(key))
        return self._rows(found, shown(key), 0, self.physical_rows)

    def _matrix(self, found: Any, key: str) -> NDArray[Any]:
        """A matrix (n, C) of labels as uint8, in pieces: in its own dtype it might take eight times the memory.

        Raises DataError on what is neither 0 nor 1.
        """
        out = np.empty(found.shape, np.uint8)
        step, first, count = max(1, PIECE // found.shape[1]), "", 0
        for i in range(0, len(out), step):
            piece = self._rows(found, key, i, min(i + step, len(out)))
            wrong = ((piece != 0) & (piece != 1)).any(axis=1)
            if wrong.any() and not first:
                row = int(np.argmax(wrong))
                first = f"row {i + row:,} holds {piece[row][(piece[row] != 0) & (piece[row] != 1)][0]}"
            count += int(wrong.sum())
            out[i : i + step] = piece == 1
        if count:
            raise DataError(f"{self.name}: {key}: {first}, needs 0 or 1 ({count:,} such rows)")
        return out

    def _check_stored(self, dataset: Any, key: str) -> None:
        """ResourceError or DataError unless all that `dataset` declares was written, and in a form we can read."""
        name, item = f"{self.name}: {key}", dataset.dtype.itemsize
        declared, held = item * math.prod(dataset.shape), dataset.id.get_storage_size()
        if declared == 0:
            return
        chunks = dataset.chunks
        if chunks and item * math.prod(chunks) > CHUNK_BYTES:
            raise ResourceError(
                f"{name} has chunks of {size(item * math.prod(chunks))}, at most {size(CHUNK_BYTES)} can be read; "
                "write it again with smaller chunks"
            )
        if chunks:
            of = math.prod(-(-n // c) for n, c in zip(dataset.shape, chunks))
            missing = of - dataset.id.get_num_chunks()
        else:
            of, missing = 1, int(held == 0)
        if missing and declared > BOMB_BYTES and held < declared / 1000:
            raise ResourceError(f"{name} declares {size(declared)}, holds {size(held)}")
        if missing and chunks:
            raise DataError(f"{name}: {missing:,} of {of:,} chunks were never written")
        if missing:
            raise DataError(f"{name}: its rows were never written")
        plan = dataset.id.get_create_plist()
        filters = [plan.get_filter(k) for k in range(plan.get_nfilters())]
        for code, _, _, title in filters:
            if not h5py.h5z.filter_avail(code):
                title = f" ({shown(title)})" if title else ""
                raise DataError(f"{name} is packed by HDF5 filter {code}{title}, which is not installed here; use gzip")
        if h5py.h5z.FILTER_FLETCHER32 not in [f[0] for f in filters]:
            self._unsealed.append(key)
        self._chunks[h5py.h5i.get_name(dataset.id)] = Chunks(dataset, name, [f[0] for f in filters])

    def _rows(self, dataset: Any, key: str, i: int, j: int) -> NDArray[Any]:
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

    def _class_names(self) -> tuple[Any, ...] | None:
        names = self._hdf5.attrs.get("class_names")
        if names is None:
            return None
        if not isinstance(names, np.ndarray) or names.ndim != 1 or names.dtype.kind not in "OSUiu":
            raise DataError(f"{self.name}: attribute class_names needs to be a list of names, one for each class")
        return tuple(names)


def holds_pairs(path: str | os.PathLike[str]) -> bool:
    """Whether a file has `queries` and `keys`, and no `features`. Raises as Hdf5Source where it cannot be read."""
    file = OpenFile(path)
    try:
        with _open(path, file) as hdf5:
            return _pairs_in(hdf5)
    except H5_ERRORS as error:
        raise DataError(f"{file.name}: the file is damaged; restore a copy") from error
    finally:
        file.release()


def holds_pictures(path: str | os.PathLike[str], key: str | None = None) -> bool:
    """Whether a file has pictures as `images`, and they are meant: by that key, or, without one, as there are no rows.

    Raises as Hdf5Source where it cannot be read.
    """
    if key is not None and _parts(key) != ["images"]:
        return False
    file = OpenFile(path)
    try:
        with _open(path, file) as hdf5:
            features, images = _has(hdf5, "features", "images")
            if not images or (key is None and (features or _pairs_in(hdf5))):
                return False
            if not isinstance(hdf5.get("images", getlink=True), h5py.HardLink):
                return key is None  # following it is left to the reader, which looks where it leads
            node = hdf5["images"]
            return isinstance(node, h5py.Dataset) and _readable(node) and node.dtype.kind in "OSVu"
    except H5_ERRORS as error:
        raise DataError(f"{file.name}: the file is damaged; restore a copy") from error
    finally:
        file.release()


def _pairs_in(hdf5: Any) -> bool:
    return _has(hdf5, "features", QUERIES, KEYS) == [False, True, True]


def _has(hdf5: Any, *names: str) -> list[bool]:
    return [hdf5.get(name, getlink=True) is not None for name in names]


def _readable(dataset: Any) -> bool:
    """Whether NumPy has a type for what a dataset holds; it has none for times and some others."""
    try:
        return dataset.dtype is not None
    except TypeError:
        return False


def _parts(path: str) -> list[str]:
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


# What writing below adds to HDF5's defaults: the file format of HDF5 1.10, whose metadata has checksums, and nothing that
# depends on the clock or on the release of the library, so that the same rows give the same bytes.
FORMAT = {"libver": ("v110", "v110")}
WRITTEN_CHUNK_BYTES = 1 << 20


def write_hits(f: BinaryIO, scores: ArrayLike, ids: ArrayLike, query_ids: ArrayLike) -> None:
    """Write search results as HDF5 into f, a binary file open for writing.

    scores (nq, k) float32 and ids (nq, k) int64, best first; query_ids (nq,) int64. Same input, same bytes.
    """
    with _into(f) as hdf5:
        _put(hdf5, "scores", np.asarray(scores, np.float32))
        _put(hdf5, "ids", np.asarray(ids, np.int64))
        _put(hdf5, "query_ids", np.asarray(query_ids, np.int64))


def write_ranges(f: BinaryIO, lims: ArrayLike, scores: ArrayLike, ids: ArrayLike, query_ids: ArrayLike) -> None:
    """Write the results of a search by threshold: query q owns places lims[q] to lims[q + 1] of scores and ids."""
    with _into(f) as hdf5:
        _put(hdf5, "lims", np.asarray(lims, np.int64))
        _put(hdf5, "scores", np.asarray(scores, np.float32))
        _put(hdf5, "ids", np.asarray(ids, np.int64))
        _put(hdf5, "query_ids", np.asarray(query_ids, np.int64))


def write_rows(
    f: BinaryIO,
    features: ArrayLike,
    labels: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> None:
    """Write rows as HDF5 into f, a binary file open for writing: compressed, every byte under a checksum.

    features (n, d) in any float dtype, labels (n,) or (n, C), ids (n,); attrs: further attributes of the file. Nothing is
    checked: that is the reader's part. Same input, same bytes.
    """
    packed = {"compression": "gzip", "shuffle": True}
    with _into(f) as hdf5:
        for name, value in (("features", features), ("labels", labels), ("ids", ids)):
            if value is not None:
                _put(hdf5, name, np.asarray(value), **packed)
        given = dict(attrs or {}) if class_names is None else {"class_names": list(class_names), **(attrs or {})}
        for name, value in sorted(given.items()):
            hdf5.attrs[name] = _fixed_text(value)


def write_features(
    f: BinaryIO,
    parts: Iterable[NDArray[Any]],
    shape: tuple[int, int],
    dtype: Any,
    step: int,
    small: Mapping[str, Any],
    attrs: Mapping[str, Any],
) -> None:
    """Write rows that are too many to hold as HDF5 into f, a binary file open for reading and writing.

    parts: the features, (step, d) each but for the last one, (n, d) = shape in all. small: further datasets by name, arrays
    of numbers or lists of text, None for what there is none of. attrs: of the file. Same input, same bytes, every byte of
    rows under a checksum.
    """
    n, d = shape
    most = max(1, WRITTEN_CHUNK_BYTES // (d * np.dtype(dtype).itemsize))
    # Whole chunks in every part: one that two parts share would have to be read back.
    rows = min(n, max(r for r in range(1, min(step, most) + 1) if step % r == 0))
    with _onto(f) as (hdf5, file):
        kept = {"chunks": (rows, d), "fletcher32": True, "track_times": False}
        features = hdf5.create_dataset("features", shape, dtype, **kept)
        at = 0
        for part in parts:
            features[at : at + len(part)] = part
            at += len(part)
            file.check()
        for name, value in small.items():
            if value is not None:
                _put(hdf5, name, _fixed_text(value), compression="gzip", shuffle=True)
        for name, value in sorted(attrs.items()):
            hdf5.attrs[name] = _fixed_text(value)


class _Onto:
    """A file as HDF5 writes to it. h5py crashes where a file object raises: what was refused is kept here, everything after
    it goes nowhere, and check() raises it.
    """

    def __init__(self, f: BinaryIO) -> None:
        self._f, self._at, self._end = f, 0, 0
        self._refusal: BaseException | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        self._try(lambda: self._f.seek(self._at))  # a buffered file writes here what it was given before
        return self._at

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        self._try(lambda: self._f.write(data))
        self._at += len(data)
        self._end = max(self._end, self._at)
        return len(data)

    def readinto(self, data: Any) -> int:
        self._try(lambda: self._f.readinto(data))  # type: ignore[attr-defined]
        self._at += len(data)
        return len(data)

    def truncate(self, length: int) -> int:
        self._try(lambda: self._f.truncate(length))
        self._end = length
        return length

    def flush(self) -> None:
        self._try(self._f.flush)

    def _try(self, do: Callable[[], Any]) -> None:
        if self._refusal is None:
            try:
                do()
            except BaseException as error:
                self._refusal = error

    def check(self) -> None:
        """Raise what was refused, if anything was."""
        if self._refusal is not None:
            raise self._refusal


@contextmanager
def _onto(f: BinaryIO) -> Iterator[tuple[Any, _Onto]]:
    """An HDF5 file to fill that is written straight into f, in the format of FORMAT."""
    file = _Onto(f)
    made = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    made.set_obj_track_times(False)
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, file)
    try:
        with h5py.File(h5py.h5f.create(b"features", h5py.h5f.ACC_TRUNC, fcpl=made, fapl=access)) as hdf5:
            yield hdf5, file
    except H5_ERRORS:
        file.check()  # HDF5 stumbles over what was refused before
        raise
    finally:
        access.close()  # it holds `file`, which must not outlive the interpreter
    file.check()


@contextmanager
def _into(f: BinaryIO) -> Iterator[Any]:
    """An HDF5 file to fill, which ends in f: made in memory, because h5py crashes where a file object refuses a write."""
    made = io.BytesIO()
    with h5py.File(made, "w", **FORMAT) as hdf5:
        yield hdf5
    f.write(made.getbuffer())


def _put(hdf5: Any, name: str, value: NDArray[Any], **packed: Any) -> None:
    if value.size:  # HDF5 has no chunks, hence no checksums, for nothing
        rows = max(1, min(len(value), WRITTEN_CHUNK_BYTES // (value.nbytes // len(value))))
        packed |= {"chunks": (rows, *value.shape[1:]), "fletcher32": True}
    else:
        packed = {}
    hdf5.create_dataset(name, data=value, track_times=False, **packed)


def _fixed_text(value: Any) -> Any:
    """Text and lists of text as UTF-8 of fixed length: HDF5 keeps text of variable length where no checksum reaches."""
    a = np.asarray(value)
    if a.dtype.kind != "U":
        return a
    raw = np.char.encode(a, "utf-8")
    return raw.astype(h5py.string_dtype("utf-8", max(1, raw.dtype.itemsize)))
