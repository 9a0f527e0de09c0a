"""Row files (HDF5, .npy, .fvecs, .bvecs) and pictures. One function opens them all, by the ending of the name."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ConfigError, shown, warn
from .picture_files import LIST_ENDINGS, PICTURE_ENDINGS
from .source import ArraySource, Source

__all__ = ["ArraySource", "Source", "open_rows"]

HDF5_ENDINGS = (".h5", ".hdf5", ".hdf")
VECS_ENDINGS = (".npy", ".fvecs", ".bvecs")


def open_rows(
    path: str | os.PathLike[str],
    *,
    features_key: str | None = None,
    labels_key: str | None = "labels",
    ids_key: str = "ids",
    skip_bad_rows: bool = False,
    allow_duplicate_ids: bool = False,
    repeated_ids: bool = False,
    role: str | None = None,
    needed_by: str = "",
    workers: int = 0,
) -> Source:
    """Open a file of rows, or pictures; the caller closes the Source (it is a context manager).

    The keys name datasets inside an HDF5 file; the other formats hold features alone. labels_key=None leaves labels unread,
    for work that needs none. features_key=None: `features`; in a file of pairs, which has `queries` and `keys` instead, what
    `role` says: 'queries' or 'keys' for one half, as rows; 'pairs' for a PairSource, whose names features_key may give as
    'queries,keys'; 'any' for a PairSource where the file holds one, and rows elsewhere. repeated_ids: ids may stand more
    than once, as those of queries and pairs always may; for work in which they play no part. needed_by: what needs pairs.

    Pictures are a folder of picture files (a sub-folder for each class, or none), one such file, a list of them (.csv,
    .jsonl), or an HDF5 file with `images` and no `features`; they make an ImageSource, whatever the role. workers: threads
    that decode them, 0 for one a core.

    Raises ConfigError where the file is missing or of an unknown kind, DataError where it is bad by itself or not what
    `role` asks for.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if role == "any" and features_key is None and ending in HDF5_ENDINGS:
        from .hdf5 import holds_pairs

        role = "pairs" if holds_pairs(path) else None
    if role == "pairs":
        if labels_key not in (None, "labels"):
            warn(f"{shown(path)}: pairs have no labels, --labels-key is ignored")
        return _open_pairs(path, features_key, ids_key, skip_bad_rows, needed_by)
    if ending in HDF5_ENDINGS:
        from .hdf5 import Hdf5Source, holds_pictures

        if not holds_pictures(path, features_key):
            return Hdf5Source(
                path,
                features_key=features_key,
                labels_key=labels_key,
                ids_key=ids_key,
                role=role,
                skip_bad_rows=skip_bad_rows,
                allow_duplicate_ids=allow_duplicate_ids,
                repeated_ids=repeated_ids,
            )
    if ending in VECS_ENDINGS:
        from .vecs import VecsSource

        return VecsSource(path, skip_bad_rows=skip_bad_rows)
    if ending in (*HDF5_ENDINGS, *LIST_ENDINGS, *PICTURE_ENDINGS) or path.is_dir():
        from .images import ImageSource

        return ImageSource(
            path,
            features_key=features_key,
            labels_key=labels_key,
            ids_key=ids_key,
            skip_bad_rows=skip_bad_rows,
            allow_duplicate_ids=allow_duplicate_ids,
            repeated_ids=repeated_ids or role == "queries",
            workers=workers,
        )
    if not ending and not path.exists():
        raise ConfigError(f"{shown(path)}: no such file or folder")
    known = " ".join(HDF5_ENDINGS + VECS_ENDINGS)
    raise ConfigError(
        f"{shown(path)}: ending '{shown(ending)}' is unknown, needs one of {known}, or pictures: a folder, .csv, .jsonl, .jpg ..."
    )


def _open_pairs(path: Path, features_key: str | None, ids_key: str, skip_bad_rows: bool, needed_by: str) -> Source:
    if path.suffix.lower() not in HDF5_ENDINGS:
        which = f", which {needed_by} needs" if needed_by else ""
        raise ConfigError(
            f"{shown(path)} holds no pairs{which}; needs an HDF5 file of queries and keys ({HDF5_ENDINGS[0]})"
        )
    queries_key, comma, keys_key = (features_key or "queries,keys").partition(",")
    if not (queries_key and comma and keys_key):
        raise ConfigError(f"--features-key is '{shown(queries_key)}', pairs need two datasets: queries,keys")
    from .pairs import PairSource

    return PairSource.of_file(
        path,
        queries_key=queries_key,
        keys_key=keys_key,
        ids_key=ids_key,
        skip_bad_rows=skip_bad_rows,
        purpose=f"and {needed_by} needs pairs, queries and keys" if needed_by else "",
    )
