"""Images inside HDF5 files: a dataset whose rows are JPEG or PNG files, and so on, as they lay on disk."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np

from ..arrays import dims
from ..errors import DataError, printable
from .hdf5 import Hdf5Source
from .hdf5_file import Hdf5File
from .kinds import RowOptions


class Hdf5Images(Hdf5Source):
    """Encoded images, labels and ids of an HDF5 file, under all checks that files of rows undergo.

    `images` (n,) of uint8 in variable length, of opaque or of bytes, or (n, bytes) uint8: shorter images are padded with
    zeros, which no decoder reads. Raises as Hdf5Source.
    """

    def __init__(self, file: Hdf5File, options: RowOptions) -> None:
        super().__init__(file, replace(options, features_key=options.features_key or "images"))

    def encoded(self, k: int) -> bytes:
        """Image k as the file it was."""
        row = self._file.rows(self._features, self.features_name, k, k + 1)
        return bytes(row[0].tobytes()) if self._varying else row.tobytes()

    def _find_features(self, key: str, purpose: str) -> Any:
        images = self._file.find(key, "--features-key", purpose=purpose)
        self._varying = h5py.check_vlen_dtype(images.dtype) == np.uint8
        plain = images.dtype.kind in "SV" and images.dtype.fields is None and images.dtype.subdtype is None
        padded = images.ndim == 2 and images.dtype == np.uint8
        if not (images.ndim == 1 and (self._varying or plain)) and not padded:
            raise DataError(
                f"{self.name}: {printable(key)} is {dims(images)}, needs (n,) encoded images: uint8 of variable length, "
                "opaque or bytes"
            )
        self.physical_rows, self.d = len(images), 1
        where, stripe = self._checked(images, key, images.dtype.itemsize * (images.shape[1] if padded else 1))
        del images  # HDF5 sets up a cache only for what nobody holds open
        return self._file.cached(where, stripe)
