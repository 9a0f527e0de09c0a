"""What an HDF5 file holds, read from the file once it is open: rows, the pairs of a file of pairs, or encoded images."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import h5py  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from ..arrays import check_feature_form
from ..errors import ConfigError, DataError, ResourceError, format_bytes, printable, warn
from .hdf5_file import CHUNK_BYTES, Hdf5File, parts_of, readable
from .kinds import DefaultKey, RowOptions
from .source import Source

if TYPE_CHECKING:
    from .pairs import PairSource

WHOLE_BYTES = 8 << 30  # largest labels or ids, which are read whole
QUERIES, KEYS = "queries", "keys"  # datasets of a file of pairs, and what rows of it are used as


def open_hdf5(path: str | os.PathLike[str], options: RowOptions) -> Source:
    """Whatever the file holds that `options` ask for: rows, pairs or images. Raises as Hdf5Source and PairSource."""
    file = Hdf5File(path)
    try:
        with file.damage("the file"):
            either = options.role == "any" and options.features_key is None
            pairs = options.role == "pairs" or (either and _holds_pairs(file))
            images = not pairs and _holds_images(file, options.features_key)
        if pairs:
            _check_pair_keys(file, options)
    except BaseException:
        file.release()
        raise
    if pairs:
        return _open_pairs(file, options)
    if images:
        from .images import open_hdf5_images

        return open_hdf5_images(file, options)
    return Hdf5Source(file, options)


class Hdf5Source(Source):
    """Rows of an HDF5 file; the keys name its datasets and may lead into groups ('g/x'). Closes the file.

    `features` (n, d) float16, float32 or float64, read in pieces; where there are none, the half of a file of pairs that
    the role names, `queries` or `keys`. `labels` (n,) integers or class names or (n, C) of 0 and 1, and `ids` (n,) integers,
    read whole, each optional under its default key; file attribute `class_names` (C,), optional. Ids may stand more than
    once as those of a query always may, and in either half of a file of pairs: see Source.duplicate_ids.
    purpose: what the features are for, where that has to be said.
    Raises ResourceError where the file declares more than it holds or more than may be read at once, DataError where it is
    damaged, incomplete, in use, spread over several files or of another form.
    """

    def __init__(self, file: Hdf5File, options: RowOptions, *, read_ids: bool = True, purpose: str = "") -> None:
        self._file = file
        self.path, self.name, self.scale = file.path, file.name, options.scale
        try:
            with file.damage("the file"):
                features_key = options.features_key or self._default_features(options.role)
                self.features_name = printable(features_key)
                self._features = self._find_features(features_key, purpose)
                is_half = parts_of(features_key) in ([QUERIES], [KEYS])
                self.is_pair_half = is_half and all(file.has(QUERIES, KEYS))
                self.duplicate_ids = self.is_pair_half and not options.allow_duplicate_ids
                labels = self._find_whole(options.labels_key, "--labels-key")
                ids = self._find_whole(options.ids_key if read_ids else None, "--ids-key")
                class_names = None if labels is None else file.class_names()
            if file.unsealed and options.verbose:
                warn(f"{self.name}: {file.unsealed[0]} has no checksum, bit errors cannot be seen")
            self.settle_as(options, labels, ids, class_names, options.labels_key or "", options.ids_key)
        except BaseException:
            file.release()
            raise

    def fetch(self, i: int, j: int) -> NDArray[Any]:
        return self.scaled(self._file.rows(self._features, self.features_name, i, j))

    def close(self) -> None:
        self._file.close()

    @property
    def chunk_rows(self) -> int:
        return int(self._features.chunks[0]) if self._features.chunks else 1

    @property
    def sealed(self) -> bool:
        """Whether all that is read has checksums."""
        return not self._file.unsealed

    def _default_features(self, role: str | None) -> str:
        """The dataset of features where none was named."""
        if not _holds_pairs(self._file):
            return "features"
        if role in (QUERIES, KEYS):
            return role
        raise DataError(
            f"{self.name} holds pairs, queries and keys, where rows are needed; choose one with --features-key keys"
        )

    def _find_features(self, key: str, purpose: str) -> Any:
        """The features, checked in all that can be told without reading a row."""
        features = self._file.find(key, "--features-key", purpose=purpose)
        check_feature_form(features, f"{self.name}: {printable(key)}", scale=self.scale, of_file=True)
        self.physical_rows, self.d = features.shape
        where, stripe = self._checked(features, key, self.d * features.dtype.itemsize)
        del features  # HDF5 sets up a cache only for what nobody holds open
        return self._file.cached(where, stripe)

    def _checked(self, dataset: Any, key: str, row_bytes: int) -> tuple[bytes, int]:
        """(name of the dataset, whose rows take so many bytes; bytes of one row of chunks, 0 where they are too many)."""
        if row_bytes > CHUNK_BYTES:
            raise ResourceError(
                f"{self.name}: one row of {printable(key)} takes {format_bytes(row_bytes)}, "
                f"at most {format_bytes(CHUNK_BYTES)} can be read"
            )
        self._file.check_stored(dataset, printable(key))
        stripe = dataset.chunks[0] * row_bytes if dataset.chunks else 0
        return h5py.h5i.get_name(dataset.id), stripe if stripe <= CHUNK_BYTES else 0

    def _find_whole(self, key: str | None, option: str) -> NDArray[Any] | None:
        """Labels or ids of all rows; where their form is wrong already, an array of that form, without memory."""
        if key is None:
            return None
        dataset = self._file.find(key, option, optional=isinstance(key, DefaultKey))
        if dataset is None:
            return None
        labels = option == "--labels-key"
        text = dataset.ndim == 1 and h5py.check_string_dtype(dataset.dtype) is not None and labels
        numbers = dataset.dtype.kind in "buif"
        if dataset.shape[:1] != (self.physical_rows,) or dataset.ndim > 2 or not (numbers or text):
            return np.broadcast_to(np.zeros((), dataset.dtype), dataset.shape)  # settle() refuses it by its form alone
        self._file.check_stored(dataset, printable(key))
        declared = dataset.dtype.itemsize * math.prod(dataset.shape)
        if declared > WHOLE_BYTES:
            raise ResourceError(
                f"{self.name}: {printable(key)} declares {format_bytes(declared)}, "
                f"at most {format_bytes(WHOLE_BYTES)} can be read"
            )
        if text:
            with self._file.damage(printable(key)):
                return np.asarray(dataset.asstr(errors="replace")[:])
        if labels and dataset.ndim == 2 and dataset.shape[1] > 1:
            return self._file.matrix(dataset, printable(key))
        return self._file.rows(dataset, printable(key), 0, self.physical_rows)


def _check_pair_keys(file: Hdf5File, options: RowOptions) -> None:
    if options.labels_key is not None and not isinstance(options.labels_key, DefaultKey):
        raise ConfigError(
            f"{file.name}: --labels-key {printable(options.labels_key)} names nothing: pairs have no labels"
        )
    queries_key, comma, keys_key = (options.features_key or "queries,keys").partition(",")
    if not (queries_key and comma and keys_key):
        raise ConfigError(f"--features-key is '{printable(queries_key)}', pairs need two datasets: queries,keys")


def _open_pairs(file: Hdf5File, options: RowOptions) -> PairSource:
    """Two datasets of features, and the keys' ids where there are any."""
    from .pairs import PairSource

    queries_key, _, keys_key = (options.features_key or f"{QUERIES},{KEYS}").partition(",")
    purpose = f"and {options.needed_by} needs pairs, queries and keys" if options.needed_by else ""
    plain = RowOptions(labels_key=None, ids_key=options.ids_key, verbose=options.verbose, scale=options.scale)
    keys = Hdf5Source(file, replace(plain, features_key=keys_key, repeated_ids=True), purpose=purpose)
    # One warning is enough where neither has a checksum.
    half = replace(plain, features_key=queries_key, verbose=options.verbose and keys.sealed)
    queries = Hdf5Source(file, half, read_ids=False, purpose=purpose)
    return PairSource(queries, keys, skip_bad_rows=options.skip_bad_rows)


def _holds_pairs(file: Hdf5File) -> bool:
    """Whether there are `queries` and `keys`, and no `features`."""
    return file.has("features", QUERIES, KEYS) == [False, True, True]


def _holds_images(file: Hdf5File, key: str | None) -> bool:
    """Whether there are images as `images`, and they are meant: by that key, or, without one, as there are no rows."""
    if key is not None and parts_of(key) != ["images"]:
        return False
    features, images = file.has("features", "images")
    if not images or (key is None and (features or _holds_pairs(file))):
        return False
    if not isinstance(file.root.get("images", getlink=True), h5py.HardLink):
        return key is None  # following it is left to the reader, which looks where it leads
    node = file.root["images"]
    return isinstance(node, h5py.Dataset) and readable(node) and node.dtype.kind in "OSVu"
