"""FAISS's own reader, held to what a file can hold: limits on what it allocates, and a watch on what it reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import faiss

from ..errors import ConfigError, IndexFileError, ResourceError
from ..forks import Lock
from ..targets.pretransform import unwrap_index
from ..targets.product_tables import ProductTables

MIN_FAISS = (1, 14, 2)  # the first with limits on what a file may make it allocate
# FAISS holds sizes that never stand in the file (d_in * d_out * 4 of a transform) to the limit too, hence the floor.
BYTE_LIMIT_FLOOR = 256 << 20
LOOP_LIMIT_FLOOR = 10**6
LOOK_BYTES = 96 << 20  # read to find out whether a file without a metadata has inverted lists
_limits_lock = Lock()  # the limits are process-wide


@contextmanager
def _read_limits(nbytes: int, loops: int) -> Iterator[None]:
    if not hasattr(faiss, "set_deserialization_vector_byte_limit"):
        need = ".".join(map(str, MIN_FAISS))
        raise ConfigError(
            f'FAISS {faiss.__version__} is too old, needs {need} or newer: pip install -U "scqfaiss[cpu]"'
        )
    with _limits_lock:
        before = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
        faiss.set_deserialization_vector_byte_limit(nbytes)
        faiss.set_deserialization_loop_limit(loops)
        try:
            yield
        finally:
            faiss.set_deserialization_vector_byte_limit(before[0])
            faiss.set_deserialization_loop_limit(before[1])


class _Enough(Exception):
    """A look at the head of a file has seen what it came for."""


class _Watch:
    """What FAISS reads goes through here: at most the bytes up to `end`, or the first LOOK_BYTES of these for a look."""

    def __init__(self, f: BinaryIO, end: int, look: bool) -> None:
        self.file, self.end, self.look, self.used = f, end, look, 0
        self.error: BaseException | None = (
            None  # of the file, or a look that saw enough: FAISS hands on words of its own
        )
        self.lists = False
        self.tables = ProductTables()

    def read(self, n: int) -> bytes:
        try:
            if self.look and self.used + n > LOOK_BYTES:
                raise _Enough
            block = self.file.read(min(n, self.end - self.used))
        except BaseException as error:  # a failing disk or Ctrl-C: neither says anything about the file
            self.error = error
            raise
        self.used += len(block)
        self.tables(block)
        self.lists = self.lists or block == b"ilar"
        if block == b"ilod":  # lists kept in another file, which FAISS would open by the name it finds here
            raise RuntimeError(block)
        return block


def load_index(f: BinaryIO, name: str, stream: int | None, mapped: bool = False) -> tuple[Any, int]:
    """The index at the start of the open file and the bytes FAISS read; at most `stream` of them where that is known.

    mapped: lists and codes stay in the file, read when they are searched. Raises IndexFileError where it is none,
    ResourceError where it claims more than the file or memory can hold.
    """
    size = os.fstat(f.fileno()).st_size
    watch = _Watch(f, size if stream is None else stream, mapped)
    limits = max(size, BYTE_LIMIT_FLOOR), max(LOOP_LIMIT_FLOOR, size // 8)
    f.seek(0)
    try:
        if not mapped:
            with _read_limits(*limits):
                return _null(faiss.read_index(faiss.PyCallbackIOReader(watch.read))), watch.used
        index, used = _map_index(watch, limits)
    except (RuntimeError, OSError) as error:
        if isinstance(watch.error, OSError):
            raise IndexFileError(f"{name}: cannot be read ({os.strerror(watch.error.errno or 0)})") from error
        if watch.error is not None:
            raise watch.error from None
        if "limit" in str(error):
            raise ResourceError(f"{name}: claims more data than a file of {size:,} bytes can hold") from error
        if name.endswith(".safetensors"):
            raise IndexFileError(f"{name} is a model: scqfaiss export {name} ROWS -o gallery.faissindex") from error
        raise IndexFileError(f"{name}: not a FAISS index, or damaged") from error
    except MemoryError as error:
        raise ResourceError(f"{name}: claims more data than memory can hold") from error
    if used > watch.end:
        raise IndexFileError(f"{name}: not a FAISS index, or damaged")
    return index, used


def _map_index(watch: _Watch, limits: tuple[int, int]) -> tuple[Any, int]:
    """The index with its lists or codes left in the file, and where they end.

    FAISS maps either inverted lists or flat codes, and only by a path. Under both flags lists that claim to stand in another
    file are not opened: that for lists leaves data where it is.
    """
    of_lists, whole = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY, False
    # A first look goes through the watch: with the flag for lists FAISS gives up where they begin, because the watch is no
    # file, and at large arrays by the limit. A damaged head must not reach the reader of flat codes: it may crash.
    try:
        with _read_limits(LOOK_BYTES, limits[1]):
            faiss.read_index(faiss.PyCallbackIOReader(watch.read), of_lists)
        whole = True
    except (RuntimeError, _Enough) as error:
        if watch.error is not None and not isinstance(watch.error, _Enough):
            raise
        if watch.tables.refused or (not watch.lists and watch.error is None and "limit" not in str(error)):
            raise
        watch.error = None
    flags = of_lists if watch.lists else of_lists | faiss.IO_FLAG_MMAP_IFC
    # The same descriptor under a name: a file swapped in meanwhile cannot mix.
    path = f"/proc/self/fd/{watch.file.fileno()}"
    with _read_limits(*limits):
        try:
            index = faiss.read_index(path, flags)
        except RuntimeError:
            if flags == of_lists:
                raise
            index = faiss.read_index(path, of_lists)  # lists behind more than that look saw
    _null(index)
    return index, watch.used if whole else _end_of_lists(index, watch.end)


def _null(index: Any) -> Any:
    """FAISS reads the mark of an absent index as one."""
    if index is None:
        raise RuntimeError("there is no index")
    return index


def _end_of_lists(index: Any, end: int) -> int:
    """Where mapped lists end in the file, of which FAISS only checks that they begin there; `end` where there are none: of
    flat codes FAISS sees that they lie in the file.
    """
    ivf = unwrap_index(index)  # of a transform with nothing behind it, None: the validation refuses that
    has_lists = isinstance(ivf, faiss.IndexIVF) and ivf.invlists is not None
    lists = faiss.downcast_InvertedLists(ivf.invlists) if has_lists else None
    if not isinstance(lists, faiss.OnDiskInvertedLists) or not lists.nlist:
        return end
    last = lists.lists.at(lists.nlist - 1)
    return int(last.offset) + int(last.size) * (8 + int(lists.code_size))
