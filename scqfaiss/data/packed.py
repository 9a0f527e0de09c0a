"""Pictures inside HDF5 files: a dataset whose rows are JPEG or PNG files, and so on, as they lay on disk."""

from __future__ import annotations

import os
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np

from ..arrays import dims
from ..errors import DataError, ResourceError, shown, size
from .hdf5 import CHUNK_BYTES, Hdf5Source


class PackedPictures(Hdf5Source):
    """Encoded pictures, labels and ids of an HDF5 file, under all checks that files of rows undergo.

    `images` (n,) of uint8 in variable length, of opaque or of bytes, or (n, bytes) uint8: shorter pictures are padded with
    zeros, which no decoder reads. Raises as Hdf5Source.
    """

    def __init__(self, path: str | os.PathLike[str], *, features_key: str | None = None, **options: Any) -> None:
        super().__init__(path, features_key=features_key or "images", **options)

    def encoded(self, k: int) -> bytes:
        """Picture k as the file it was."""
        row = self._rows(self._features, self.features_name, k, k + 1)
        return bytes(row[0].tobytes()) if self._varying else row.tobytes()

    def _find_features(self, key: str, purpose: str) -> Any:
        images = self._find(key, "--features-key", purpose=purpose)
        self._varying = h5py.check_vlen_dtype(images.dtype) == np.uint8
        plain = images.dtype.kind in "SV" and images.dtype.fields is None and images.dtype.subdtype is None
        padded = images.ndim == 2 and images.dtype == np.uint8
        if not (images.ndim == 1 and (self._varying or plain)) and not padded:
            raise DataError(
                f"{self.name}: {shown(key)} is {dims(images)}, needs (n,) encoded pictures: uint8 of variable length, "
                "opaque or bytes"
            )
        self.physical_rows, self.d = len(images), 1
        row = images.dtype.itemsize * (images.shape[1] if padded else 1)
        if row > CHUNK_BYTES:
            raise ResourceError(
                f"{self.name}: one row of {shown(key)} takes {size(row)}, at most {size(CHUNK_BYTES)} can be read"
            )
        self._check_stored(images, shown(key))
        stripe = (images.chunks or (0,))[0] * row
        if stripe > CHUNK_BYTES:
            return images
        where, images = h5py.h5i.get_name(images.id), None
        return self._cached(where, stripe)
