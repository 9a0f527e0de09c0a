"""Row files (HDF5, .npy, .fvecs, .bvecs) and pictures. One function opens them all, by the ending of the name."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ConfigError, shown
from .kinds import HDF5_ENDINGS, IDS, LABELS, VECS_ENDINGS, DefaultKey, check_keys, check_kind
from .source import ArraySource, Source

__all__ = ["HDF5_ENDINGS", "ArraySource", "Source", "check_kind", "open_rows"]


def open_rows(
    path: str | os.PathLike[str],
    *,
    features_key: str | None = None,
    labels_key: str | None = LABELS,
    ids_key: str = IDS,
    skip_bad_rows: bool = False,
    allow_duplicate_ids: bool = False,
    repeated_ids: bool = False,
    role: str | None = None,
    needed_by: str = "",
    workers: int = 0,
    verbose: bool = False,
) -> Source:
    """Open a file of rows, or pictures; the caller closes the Source (it is a context manager).

    The keys name datasets inside an HDF5 file, or columns of a list of pictures; for other formats, which hold features alone,
    giving one is an error. labels_key=None leaves labels unread, for work that needs none. features_key=None: `features`;
    in a file of pairs, which has `queries` and `keys` instead, what
    `role` says: 'queries' or 'keys' for one half, as rows; 'pairs' for a PairSource, whose names features_key may give as
    'queries,keys'; 'any' for a PairSource where the file holds one, and rows elsewhere. repeated_ids: ids may stand more
    than once, as those of queries and pairs always may; for work in which they play no part. needed_by: what needs pairs.

    Pictures are a folder of picture files (a sub-folder for each class, or none), one such file, a list of them (.csv,
    .jsonl), or an HDF5 file with `images` and no `features`; they make an ImageSource, whatever the role. workers: threads
    that decode them, 0 for one a core. verbose: warn of HDF5 datasets without checksums.

    Raises ConfigError where the file is missing or of an unknown kind, DataError where it is bad by itself or not what
    `role` asks for.
    """
    path = Path(path)
    ending = path.suffix.lower()
    check_kind(path)
    check_keys(path, features_key=features_key, labels_key=labels_key, ids_key=ids_key)
    if role == "any" and features_key is None and ending in HDF5_ENDINGS:
        from .hdf5 import holds_pairs

        role = "pairs" if holds_pairs(path) else None
    if role == "pairs":
        if labels_key is not None and not isinstance(labels_key, DefaultKey):
            raise ConfigError(f"{shown(path)}: --labels-key {shown(labels_key)} names nothing: pairs have no labels")
        return _open_pairs(path, features_key, ids_key, skip_bad_rows, needed_by, verbose)
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
                verbose=verbose,
            )
    if ending in VECS_ENDINGS:
        from .vecs import VecsSource

        return VecsSource(path, skip_bad_rows=skip_bad_rows)
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
        verbose=verbose,
    )


def _open_pairs(
    path: Path, features_key: str | None, ids_key: str, skip_bad_rows: bool, needed_by: str, verbose: bool
) -> Source:
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
        verbose=verbose,
        purpose=f"and {needed_by} needs pairs, queries and keys" if needed_by else "",
    )
