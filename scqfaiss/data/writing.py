"""The HDF5 files that we write: rows, features, results of searches. The same input gives the same bytes."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import h5py  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .hdf5_file import H5_ERRORS

# What writing below adds to HDF5's defaults: the file format of HDF5 1.10, whose metadata has checksums, and nothing that
# depends on the clock or on the release of the library, so that the same rows give the same bytes.
FORMAT = {"libver": ("v110", "v110")}
WRITTEN_CHUNK_BYTES = 1 << 20


def write_hits(
    f: BinaryIO,
    scores: ArrayLike,
    ids: ArrayLike,
    query_ids: ArrayLike,
    known: ArrayLike | None = None,
    probability: ArrayLike | None = None,
    texts: Mapping[str, NDArray[np.bytes_]] | None = None,
) -> None:
    """Write search results as HDF5 into f, a binary file open for writing.

    scores (nq, k) float32 and ids (nq, k) int64, best first; query_ids (nq,) int64; known (nq,) float32, the probability
    that the class of each query is one of the training's, and probability (nq, k) float32, that each hit is of its class, where
    there are any. texts: what is said of each hit, (nq, k) UTF-8 by name. Same input, same bytes.
    """
    with _into(f) as hdf5:
        _put_hits(hdf5, scores, ids, query_ids, known, probability, texts)


def write_ranges(
    f: BinaryIO,
    lims: ArrayLike,
    scores: ArrayLike,
    ids: ArrayLike,
    query_ids: ArrayLike,
    known: ArrayLike | None = None,
    probability: ArrayLike | None = None,
    texts: Mapping[str, NDArray[np.bytes_]] | None = None,
) -> None:
    """Write the results of a search by threshold: query q owns places lims[q] to lims[q + 1] of scores, ids, probability and
    texts; known: as for write_hits.
    """
    with _into(f) as hdf5:
        _put(hdf5, "lims", np.asarray(lims, np.int64))
        _put_hits(hdf5, scores, ids, query_ids, known, probability, texts)


def _put_hits(
    hdf5: Any,
    scores: ArrayLike,
    ids: ArrayLike,
    query_ids: ArrayLike,
    known: ArrayLike | None,
    probability: ArrayLike | None,
    texts: Mapping[str, NDArray[np.bytes_]] | None,
) -> None:
    _put(hdf5, "scores", np.asarray(scores, np.float32))
    _put(hdf5, "ids", np.asarray(ids, np.int64))
    _put(hdf5, "query_ids", np.asarray(query_ids, np.int64))
    if known is not None:
        _put(hdf5, "known", np.asarray(known, np.float32))
    if probability is not None:
        _put(hdf5, "probability", np.asarray(probability, np.float32))
    for name, text in (texts or {}).items():
        utf8 = text.astype(h5py.string_dtype("utf-8", max(1, text.dtype.itemsize)))
        _put(hdf5, name, utf8, compression="gzip", shuffle=True)


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

    HDF5 writing to a path by itself is no way out: where the disk is full it cannot close the file either, and the process
    ends with a segmentation fault.
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
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_obj_track_times(False)
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, file)
    try:
        with h5py.File(h5py.h5f.create(b"features", h5py.h5f.ACC_TRUNC, fcpl=creation, fapl=access)) as hdf5:
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
    memory = io.BytesIO()
    with h5py.File(memory, "w", **FORMAT) as hdf5:
        yield hdf5
    f.write(memory.getbuffer())


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
