"""Which kinds of files hold rows, told by name alone, so that nothing heavy is loaded for a request that cannot be met."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ConfigError, shown
from .image_files import LIST_ENDINGS, PICTURE_ENDINGS

HDF5_ENDINGS = (".h5", ".hdf5", ".hdf")
VECS_ENDINGS = (".npy", ".fvecs", ".bvecs")
_SIGNATURE = b"\x89HDF\r\n\x1a\n"

# What to do with files of other programs.
_ONWARD = {
    ".npz": "take the array of features out of it and numpy.save it as .npy, or write features, labels and ids to .h5",
    ".parquet": "read it with pyarrow or pandas and write features, labels and ids to .h5 with h5py",
    ".arrow": "read it with pyarrow and write features, labels and ids to .h5 with h5py",
    ".feather": "read it with pyarrow or pandas and write features, labels and ids to .h5 with h5py",
    ".pt": "load the tensor with torch and numpy.save its .numpy() as .npy",
    ".pth": "load the tensor with torch and numpy.save its .numpy() as .npy",
    ".safetensors": "a model is no file of rows; export a tensor of features as .npy",
    ".pkl": "pickled files are not read, as they run code; numpy.save the array as .npy",
    ".pickle": "pickled files are not read, as they run code; numpy.save the array as .npy",
    ".txt": "numpy.loadtxt and numpy.save make .npy of columns of numbers",
    ".tsv": "numpy.loadtxt and numpy.save make .npy of columns of numbers",
    ".mat": "save it with -v7.3, which is HDF5, and write features as (d, n), which MATLAB stores as (n, d)",
    ".ivecs": "whole numbers are no features; ids go into .npy or .h5",
}


class DefaultKey(str):
    """The name of a dataset or column that nobody asked for: there may be none of this name."""


LABELS, IDS = DefaultKey("labels"), DefaultKey("ids")


def check_kind(path: str | os.PathLike[str]) -> None:
    """Raise ConfigError unless `path` exists and its ending is that of a kind of rows; nothing is read but its first bytes."""
    path = Path(path)
    name, ending = shown(path), path.suffix.lower()
    if path.is_dir():
        _check_folder(path)
        return
    if ending in (*HDF5_ENDINGS, *VECS_ENDINGS, *LIST_ENDINGS, *PICTURE_ENDINGS):
        return
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as f:
            start = f.read(len(_SIGNATURE)) or b""
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise ConfigError(f"{name}: no such file{'' if ending else ' or folder'}") from None
    except OSError:  # a FIFO, a device, no right to read it
        start = b""
    known = " ".join(HDF5_ENDINGS + VECS_ENDINGS)
    how = f"; {_ONWARD[ending]}" if ending in _ONWARD else ""
    if start == _SIGNATURE:
        how = "; it is an HDF5 file: give it the ending .h5 (MATLAB stores matrices transposed: features are (n, d))"
    raise ConfigError(
        f"{name}: ending '{shown(ending)}' is unknown, needs one of {known}, or pictures: a folder, .csv, .jsonl, .jpg ...{how}"
    )


def _check_folder(path: Path) -> None:
    """A folder holds pictures. Raise ConfigError where it holds files of rows instead."""
    endings = [Path(entry.name).suffix.lower() for entry in os.scandir(path) if not entry.name.startswith(".")]
    pieces = [ending for ending in endings if ending in (*HDF5_ENDINGS, *VECS_ENDINGS)]
    if pieces and len(pieces) == len(endings):
        raise ConfigError(
            f"{shown(path)}: a folder holds pictures, this one holds {len(pieces):,} files of rows ({pieces[0]}); "
            "join them into one file"
        )


def check_keys(path: Path, **keys: str | None) -> None:
    """Raise ConfigError where a key was given that this kind of file has no use for; keys by the name of their option."""
    ending = path.suffix.lower()
    useful: tuple[str, ...] = ()
    if path.is_dir():
        kind = "a folder of pictures takes classes from its sub-folders and ids from file names"
    elif ending in VECS_ENDINGS:
        kind = f"a {ending} file holds features alone"
    elif ending in LIST_ENDINGS:
        kind, useful = "a list of pictures has columns of labels and ids alone", ("labels_key", "ids_key")
    elif ending in PICTURE_ENDINGS:
        kind = "a picture has none"
    else:
        return
    for option, key in keys.items():
        if key is not None and not isinstance(key, DefaultKey) and option not in useful:
            raise ConfigError(
                f"{shown(path)}: --{option.replace('_', '-')} {shown(key)} names nothing: {kind}; "
                "HDF5 files (.h5) have features, labels and ids under any name"
            )
