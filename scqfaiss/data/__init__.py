"""Row files: HDF5, .npy, .fvecs, .bvecs. One function opens them all, by the ending of the name."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ConfigError, shown
from .source import ArraySource, Source

__all__ = ["ArraySource", "Source", "open_rows"]

HDF5_ENDINGS = (".h5", ".hdf5", ".hdf")
VECS_ENDINGS = (".npy", ".fvecs", ".bvecs")


def open_rows(
    path: str | os.PathLike[str],
    *,
    features_key: str = "features",
    labels_key: str | None = "labels",
    ids_key: str = "ids",
    skip_bad_rows: bool = False,
    allow_duplicate_ids: bool = False,
) -> Source:
    """Open a file of rows; the caller closes the Source (it is a context manager).

    The keys name datasets inside an HDF5 file; the other formats hold features alone. labels_key=None leaves labels unread,
    for work that needs none.
    Raises ConfigError where the file is missing or of an unknown kind, DataError where it is bad by itself.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending in HDF5_ENDINGS:
        from .hdf5 import Hdf5Source

        return Hdf5Source(
            path,
            features_key=features_key,
            labels_key=labels_key,
            ids_key=ids_key,
            skip_bad_rows=skip_bad_rows,
            allow_duplicate_ids=allow_duplicate_ids,
        )
    if ending in VECS_ENDINGS:
        from .vecs import VecsSource

        return VecsSource(path, skip_bad_rows=skip_bad_rows)
    known = " ".join(HDF5_ENDINGS + VECS_ENDINGS)
    raise ConfigError(f"{shown(path)}: ending '{shown(ending)}' is unknown, needs one of {known}")
