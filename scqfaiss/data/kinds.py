"""Which kinds of files hold rows and images, told by name alone: nothing heavy is loaded for what cannot be opened.

ROW_READERS names those of rows: a new kind of file is one file, with a function that opens it, and one line there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from ..errors import ConfigError, printable, suggestion
from ..files import open_descriptor
from ..modality import REGISTRY, Reader

HDF5_ENDINGS = (".h5", ".hdf5", ".hdf")
VECS_ENDINGS = (".npy", ".fvecs", ".bvecs")
PARQUET_ENDINGS, NPZ_ENDINGS = (".parquet",), (".npz",)
LIST_ENDINGS = (".csv", ".jsonl")
IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo"),
    *(".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
)
ROW_READERS = (
    Reader(HDF5_ENDINGS, "scqfaiss.data.hdf5:open_hdf5", keys=("features_key", "labels_key", "ids_key")),
    Reader(VECS_ENDINGS, "scqfaiss.data.vecs:VecsSource", no_keys="a {} file holds features alone"),
    Reader(NPZ_ENDINGS, "scqfaiss.data.npz:NpzSource", keys=("features_key", "labels_key", "ids_key")),
    Reader(PARQUET_ENDINGS, "scqfaiss.data.parquet:ParquetSource", keys=("features_key", "labels_key", "ids_key")),
)
FOLDER = Reader(
    (),
    "scqfaiss.data.images:open_folder",
    no_keys="a folder of images takes classes from its sub-folders and ids from file names",
)
PIECES = Reader((), "scqfaiss.data.pieces:open_pieces", keys=("features_key", "labels_key", "ids_key"))
IMAGE_READERS = (
    FOLDER,
    Reader(
        LIST_ENDINGS,
        "scqfaiss.data.images:open_list",
        keys=("labels_key", "ids_key"),
        no_keys="a list of images has columns of labels and ids alone",
    ),
    Reader(IMAGE_ENDINGS, "scqfaiss.data.images:open_one", no_keys="an image has none"),
)
_SIGNATURE = b"\x89HDF\r\n\x1a\n"

# What to do with files of other programs; {stem} is their name without its ending.
_ONWARD = {
    ".arrow": "read it with pyarrow and write the table as .parquet",
    ".feather": "read it with pyarrow or pandas and write the table as .parquet",
    ".pt": "python -c \"import numpy, torch; numpy.save('{stem}.npy', torch.load('{stem}.pt').numpy())\"",
    ".pth": "python -c \"import numpy, torch; numpy.save('{stem}.npy', torch.load('{stem}.pth').numpy())\"",
    ".safetensors": "a model is no file of rows: scqfaiss export {stem}.safetensors ROWS -o gallery.faissindex",
    ".faissindex": "a gallery is no file of rows: scqfaiss search {stem}.faissindex QUERIES",
    ".pkl": "pickled files are not read, as they run code; numpy.save the array as .npy",
    ".pickle": "pickled files are not read, as they run code; numpy.save the array as .npy",
    ".txt": "python -c \"import numpy; numpy.save('{stem}.npy', numpy.loadtxt('{stem}.txt'))\"",
    ".tsv": "python -c \"import numpy; numpy.save('{stem}.npy', numpy.loadtxt('{stem}.tsv'))\"",
    ".mat": "save it with -v7.3, which is HDF5, and write features as (d, n), which MATLAB stores as (n, d)",
    ".ivecs": "whole numbers are no features; ids go into .npy or .h5",
    ".json": "write an object a line as .jsonl for images, or rows as .parquet with pyarrow or pandas",
}


def onward(name: str, ending: str) -> str:
    """What to do with a file of another program, '' where nobody knows."""
    return _ONWARD.get(ending, "").replace("{stem}", name[: len(name) - len(ending)])


class DefaultKey(str):
    """The name of a dataset or column that nobody asked for: there may be none of this name."""


LABELS, IDS = DefaultKey("labels"), DefaultKey("ids")


@dataclass(frozen=True)
class RowOptions:
    """How a file is opened, whatever its kind: see data.open_rows, which makes one of these from its keyword arguments."""

    features_key: str | None = None
    labels_key: str | None = LABELS
    ids_key: str = IDS
    skip_bad_rows: bool = False
    allow_duplicate_ids: bool = False
    repeated_ids: bool = False
    role: str | None = None
    needed_by: str = ""
    workers: int = 0
    verbose: bool = False
    scale: float | None = None
    keep_unlabelled: bool = False
    labels_file: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(f"scale={self.scale}, needs a number above 0")
        if self.workers < 0:
            raise ConfigError(f"workers={self.workers}, needs 0 (one for each core) or more")


def keys_for(keys: Mapping[str, Any], part: str = "") -> dict[str, Any]:
    """The arguments of open_rows for one of the files of a command: all have the same options, but each its own labels.

    keys: these arguments, with `labels_file` of the first file and `{part}_labels` of each other one.

    >>> keys_for({"scale": 2.0, "labels_file": "y.npy", "database_labels": "z.npy"}, "database")
    {'scale': 2.0, 'labels_file': 'z.npy'}
    """
    shared = {name: value for name, value in keys.items() if name != "labels_file" and not name.endswith("_labels")}
    own = keys.get(f"{part}_labels" if part else "labels_file")
    return shared if own is None else {**shared, "labels_file": own}


def readers() -> Iterator[Reader]:
    """Every kind of file that can be read: ours, and those of other modalities."""
    yield from ROW_READERS
    yield from IMAGE_READERS
    for modality in REGISTRY.values():
        yield from modality.readers


def reader_of(path: str | os.PathLike[str]) -> Reader:
    """What opens `path`. Raises ConfigError unless it exists and is of a kind that is known; its bytes stay unread."""
    check_kind(path)
    if pieces_of(path):
        return PIECES
    reader = _by_ending(Path(path))
    # A folder may be called cats.jpg.
    return FOLDER if reader is None or (reader in IMAGE_READERS and os.path.isdir(path)) else reader


def _by_ending(path: Path) -> Reader | None:
    return next((reader for reader in readers() if path.suffix.lower() in reader.endings), None)


def check_kind(path: str | os.PathLike[str]) -> None:
    """Raise ConfigError unless `path` exists and its ending is that of a kind of rows; nothing is read but its first bytes."""
    path = Path(path)
    name, ending = printable(path), path.suffix.lower()
    if path.is_dir() or _is_pattern(path):
        if not pieces_of(path) and not path.is_dir():
            raise ConfigError(f"{name}: no file matches")
        for piece in pieces_of(path):
            check_kind(piece)
        return
    if _by_ending(path) is not None:
        if not os.path.lexists(path) and (near := similar(path)):
            raise ConfigError(f"{name}: no such file{near}")
        return
    try:
        with open(open_descriptor(path), "rb") as f:
            start = f.read(len(_SIGNATURE))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise ConfigError(f"{name}: no such file{'' if ending else ' or folder'}{similar(path)}") from None
    except OSError:  # a FIFO, a device, no right to read it
        start = b""
    known = " ".join(ending for reader in readers() if reader not in IMAGE_READERS for ending in reader.endings)
    how = f"; {onward(name, ending)}" if ending in _ONWARD else ""
    if start == _SIGNATURE:
        how = "; it is an HDF5 file: give it the ending .h5 (MATLAB stores matrices transposed: features are (n, d))"
    raise ConfigError(
        f"{name}: ending '{printable(ending)}' is unknown, needs one of {known}, or images: a folder, .csv, .jsonl, .jpg ...{how}"
    )


def pieces_of(path: str | os.PathLike[str]) -> list[str]:
    """The files of rows of a folder that holds no images and no folders, or those that a pattern such as 'rows/*.npy' names, in
    the order of their names; none for anything else. Raises ConfigError where they are of several kinds.
    """
    if os.path.isdir(path):
        entries = [entry for entry in os.scandir(path) if not entry.name.startswith((".", "_"))]
        if any(entry.is_dir() or Path(entry.name).suffix.lower() in IMAGE_ENDINGS for entry in entries):
            return []
        names = [entry.path for entry in entries if _by_ending(Path(entry.name)) in ROW_READERS]
    elif _is_pattern(path):
        names = glob(os.fspath(path))
    else:
        return []
    kinds = {_by_ending(Path(name)): Path(name).suffix for name in names}
    if len(kinds) > 1:
        raise ConfigError(
            f"{printable(path)} holds files of several kinds ({', '.join(sorted(kinds.values()))}); keep those of one kind in a "
            f"folder, or give a pattern: '{printable(path)}/*{min(kinds.values())}'"
        )
    return sorted(names)


def similar(path: str | os.PathLike[str]) -> str:
    """ "; did you mean 'train.h5'?" where a file beside, of the same ending, has nearly this name, or ""."""
    folder, name = os.path.split(os.fspath(path))
    stem, ending = os.path.splitext(name)
    try:
        beside = [entry for entry in os.listdir(folder or ".") if entry.endswith(ending) and entry != ending]
    except (OSError, ValueError):
        return ""
    near = suggestion(stem, [entry.removesuffix(ending) for entry in beside])
    return printable(near.replace("'?", f"{ending}'?"))


def _is_pattern(path: str | os.PathLike[str]) -> bool:
    text = os.fspath(path)
    marked = "*" in text or "?" in text or "]" in text.partition("[")[2]
    return marked and not os.path.lexists(path)


def files_of(patterns: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Files of rows that names, patterns and folders stand for, as they were given; of a pattern or folder in the order of names.

    A folder of images stands for itself. Raises ConfigError where a pattern matches nothing, and as check_kind does.
    """
    out: list[str] = []
    for pattern in [os.fspath(p) for p in patterns]:
        out += pieces_of(pattern) or [pattern]
    for path in out:
        check_kind(path)
    twice = {path for path in out if out.count(path) > 1} if len(set(out)) < len(out) else set()
    if twice:
        raise ConfigError(f"{printable(min(twice))} is given twice")
    return out


def check_keys(path: str | os.PathLike[str], reader: Reader, options: RowOptions) -> None:
    """Raise ConfigError where a key was given that this kind of file has no use for."""
    if options.labels_file is not None and options.labels_key is not None and reader in IMAGE_READERS:
        raise ConfigError(f"{printable(path)}: --labels is for files of rows; {reader.no_keys}")
    for option in ("features_key", "labels_key", "ids_key"):
        key = getattr(options, option)
        if key is not None and not isinstance(key, DefaultKey) and option not in reader.keys:
            kind = reader.no_keys.format(Path(path).suffix.lower())
            raise ConfigError(
                f"{printable(path)}: --{option.replace('_', '-')} {printable(key)} names nothing: {kind}; "
                "HDF5 files (.h5) have features, labels and ids under any name"
            )
