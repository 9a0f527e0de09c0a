"""Items beside a gallery: the SQLite file is made where there is none, or where the user's file changed since."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..contract import Progress, silent
from ..errors import DataError, printable
from ..files import PathLike, atomic_write, open_regular
from .reading import Line, reader_of
from .store import DamagedItems, Items, write_items

ENDING = ".sqlite"


def items_path(gallery: PathLike) -> Path:
    """Where the items of a gallery are kept."""
    path = Path(gallery)
    return path.with_name(f"{path.name}.items{ENDING}")


def open_items(path: PathLike, gallery: PathLike, progress: Progress = silent) -> Items:
    """The items of a .csv, .jsonl or .parquet file, for a gallery: beside it they are kept as SQLite, GALLERY.items.sqlite.

    That file is made in one pass, and again whenever the size or the SHA-256 of `path` has changed. A path that ends in
    .sqlite is opened as it is, and nothing is written. Raises ConfigError where there is no such file or nothing reads it,
    DataError that names the line of what is wrong in it, WriteError where the folder of the gallery cannot be written,
    IndexFileError for a file there that is not ours.
    """
    if os.fspath(path).lower().endswith(ENDING):
        return Items(path)
    name, place = printable(path), items_path(gallery)
    read = reader_of(name)
    with open_regular(path, DataError) as f:
        if (made := _made_of(place, f)) is not None:
            return made
        with atomic_write(place, inputs=[path], what="imported") as output:
            output.outermost = False  # it lies on the way of a command, and is not what the command is for
            source = {"name": os.path.basename(os.fspath(path)), **_stamp(f), "sha256": _sha256(f)}
            write_items(output, _unchanged(read(f, name), f, name), source, progress)
    return Items(place)


def _unchanged(lines: Iterable[Line], f: BinaryIO, name: str) -> Iterator[Line]:
    before = _stamp(f)
    yield from lines
    if _stamp(f) != before:
        raise DataError(f"{name} changed while it was read")


def _made_of(place: Path, f: BinaryIO) -> Items | None:
    """The items there, where they were made of the bytes of the file f."""
    if not os.path.lexists(place):
        return None
    try:
        items = Items(place)
    except DamagedItems:
        return None
    if items.source.get("size") == str(_stamp(f)["size"]) and items.source.get("sha256") == _sha256(f):
        return items
    items.close()
    return None


def _stamp(f: BinaryIO) -> dict[str, Any]:
    return {"size": os.fstat(f.fileno()).st_size}  # no times: what a clock says decides nothing


def _sha256(f: BinaryIO) -> str:
    f.seek(0)
    digest = hashlib.sha256()
    while block := f.read(1 << 20):
        digest.update(block)
    f.seek(0)
    return digest.hexdigest()
