"""Galleries whose ids are positions, 0 to n - 1, for programs that take ids for row numbers; the rows' own ids stand beside."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Ints
from ..data.idlist import read_ids
from ..errors import ConfigError, DataError, printable, warn
from ..files import AtomicFile, PathLike, atomic_write

ENDING = ".ids.npy"
COUNTING = "Hugging Face datasets, txtai, sentence-transformers and autofaiss"  # what takes ids for row numbers


def ids_path(gallery: PathLike) -> Path:
    """gallery.faissindex -> gallery.ids.npy."""
    path = Path(gallery)
    return path.with_name(f"{path.stem}{ENDING}")


def sha256_of(ids: Ints) -> str:
    """SHA-256 of ids (n,) as little-endian int64."""
    return hashlib.sha256(np.ascontiguousarray(ids, "<i8").tobytes()).hexdigest()


@contextmanager
def beside(gallery: PathLike, wanted: bool, inputs: list[PathLike]) -> Iterator[AtomicFile | None]:
    """The file of ids beside a gallery that is being written, locked like it; None where none is wanted."""
    if not wanted:
        yield None
        return
    with atomic_write(ids_path(gallery), inputs=inputs, what="exported") as output:
        output.outermost = False  # the gallery is what the command is for
        yield output


def prepare(output: AtomicFile | None, ids: Ints) -> None:
    """Write the ids (n,) to where they wait until the gallery stands; then output.place()."""
    if output is not None:
        array = np.ascontiguousarray(ids, "<i8")
        output.prepare(lambda f: np.lib.format.write_array(f, array, allow_pickle=False), nbytes=array.nbytes)


def facts(gallery: PathLike, ids: Ints, metadata: Mapping[str, Any] | None) -> dict[str, str]:
    """What `info` says of the ids (n,) that a gallery holds, in any order."""
    counted = np.array_equal(np.sort(ids), np.arange(len(ids)))
    found = {
        "positions": f"yes: ids are 0 to {len(ids) - 1:,}"
        if counted
        else f"no: {COUNTING} take ids for row numbers, and need `export --positions`"
    }
    expected = (metadata or {}).get("ids_sha256")
    if expected is not None:
        found["ids_file"] = _state(ids_path(gallery), expected)
    return found


def _state(path: Path, expected: str) -> str:
    name = printable(path)
    if not os.path.lexists(path):
        return f"{name}: missing; it holds the rows' own ids"
    try:
        fits = sha256_of(read_ids(path)) == expected
    except (ConfigError, DataError):
        fits = False
    return f"{name}: the rows' own ids" if fits else f"{name}: of another gallery"


def forget(metadata: dict[str, Any], name: str) -> None:
    """Of a gallery whose rows change: ids that stood beside it fit no longer."""
    if metadata.pop("ids_sha256", None) is not None:
        warn(f"{name}: the file of ids beside it no longer fits; export all rows with --positions again")
