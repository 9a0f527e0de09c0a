"""Files of rows (HDF5, .npy, .fvecs, .bvecs) and images. One function opens them all, by the ending of the name."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from ..errors import ConfigError, printable
from .kinds import HDF5_ENDINGS, RowOptions, check_keys, check_kind, keys_for, reader_of
from .source import ArraySource, Source

__all__ = ["HDF5_ENDINGS", "ArraySource", "RowOptions", "Source", "check_kind", "keys_for", "open_rows"]


def open_rows(path: str | os.PathLike[str], **options: Any) -> Source:
    """Open a file of rows, or of items of another modality, once; the caller closes the Source (it is a context manager).

    options: the fields of RowOptions. features_key, labels_key and ids_key name datasets inside an HDF5 file, or columns of a
    list of images; for formats that hold features alone giving one is an error. labels_key=None leaves labels unread, for
    work that needs none. labels_file: a file of labels instead, see label_files.read_labels. scale: what 1 stands for in features
    of int8 and uint8. keep_unlabelled: rows without a label stay.
    features_key=None: `features`; in a file of pairs, which has `queries` and `keys` instead, what
    `role` says: 'queries' or 'keys' for one half, as rows; 'pairs' for a PairSource, whose names features_key may give as
    'queries,keys'; 'any' for a PairSource where the file holds one, and rows elsewhere. needed_by: what needs pairs.

    skip_bad_rows: leave out, with a warning, what cannot be used. allow_duplicate_ids: warn where an id stands twice.
    repeated_ids: ids may stand more than once, as those of queries and pairs always may; for work in which they play no part.

    A folder of files of rows of one kind, or a pattern such as 'rows/*.npy', is read as one, in the order of names.

    Images are a folder of image files (a sub-folder for each class, or none), one such file, a list of them (.csv, .jsonl),
    or an HDF5 file with `images` and no `features`; they make an ImageSource, whatever the role. workers: threads that decode
    them, 0 for one a core. verbose: warn of HDF5 datasets without checksums.

    Raises ConfigError where the file is missing or of an unknown kind, DataError where it is bad by itself or not what
    `role` asks for.
    """
    how = RowOptions(**options)
    reader = reader_of(path)
    check_keys(path, reader, how)
    if how.role == "pairs" and how.labels_file is not None:
        raise ConfigError(f"{printable(path)}: --labels is given, and pairs have none")
    if how.role == "pairs" and reader.endings != HDF5_ENDINGS:
        which = f", which {how.needed_by} needs" if how.needed_by else ""
        raise ConfigError(
            f"{printable(path)} holds no pairs{which}; needs an HDF5 file of queries and keys ({HDF5_ENDINGS[0]})"
        )
    module, _, name = reader.open.partition(":")
    source: Source = getattr(import_module(module), name)(path, how)
    return source
