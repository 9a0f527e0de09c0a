"""Columns of numbers, and of lists of numbers, as a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, printable


def storage_type(kind: Any) -> Any:
    return getattr(kind, "storage_type", kind)


def is_list(kind: Any) -> bool:
    from pyarrow import types

    kind = storage_type(kind)
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def is_number(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_floating(kind) or types.is_integer(kind))


def number_type(schema: Any, columns: Sequence[str], name: str) -> np.dtype[Any]:
    """What NumPy calls the numbers of these columns. Raises DataError where they are none."""
    kinds = []
    for column in columns:
        kind = storage_type(schema.field(column).type)
        if is_list(kind) and len(columns) == 1:
            kind = kind.value_type
        if not is_number(kind):
            shown = printable(str(schema.field(column).type)[:60])
            raise DataError(f"{name}: {printable(column)} is {shown}, needs numbers, or lists of numbers of one length")
        kinds.append(np.dtype(kind.to_pandas_dtype()))
    return np.result_type(*kinds)


def width(column: Any) -> int:
    """Numbers in a row: of lists as many as the first one holds, 0 where there is none; else 1."""
    kind = storage_type(column.type)
    if not is_list(kind):
        return 1
    if hasattr(kind, "list_size"):
        return int(kind.list_size)
    for chunk in column.chunks if hasattr(column, "chunks") else [column]:
        lengths = list_lengths(plain(chunk))
        if len(lengths[lengths >= 0]):
            return int(lengths[lengths >= 0][0])
    return 0


def plain(array: Any) -> Any:
    """An array of an extension type, a tensor for instance, as what it is stored as."""
    return getattr(array, "storage", array)


def list_lengths(array: Any) -> NDArray[np.int64]:
    """The length of each list of an array, -1 where there is none."""
    # Without it where there is a way: pyarrow.compute takes as long to load as a small file to read.
    if not array.null_count and hasattr(array, "offsets"):
        lengths: NDArray[np.int64] = np.diff(array.offsets.to_numpy().astype(np.int64)).astype(np.int64)
        return lengths
    import pyarrow.compute

    counted = pyarrow.compute.list_value_length(array)
    return np.asarray(counted.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)


def matrix(columns: list[Any], d: int, name: str, first: int) -> NDArray[Any]:
    """One column of lists of d numbers, or d columns of numbers, -> (n, d) in their own dtype; what lacks is NaN.

    first: the number of the first row. Raises DataError naming the first row of another length.
    """
    if len(columns) > 1 or not is_list(columns[0].type):
        return np.stack([_numbers(column) for column in columns], axis=1)
    column = columns[0]
    parts = []
    for chunk in column.chunks if hasattr(column, "chunks") else [column]:
        parts.append(_rows(plain(chunk), d, name, first))
        first += len(chunk)
    return parts[0] if len(parts) == 1 else np.concatenate([np.zeros((0, d), np.int8), *parts])


def _rows(array: Any, d: int, name: str, first: int) -> NDArray[Any]:
    if not hasattr(array.type, "list_size") or array.null_count:
        lengths = list_lengths(array)
        wrong = np.flatnonzero((lengths != d) & (lengths >= 0))
        if len(wrong):
            row = int(wrong[0])
            raise DataError(f"{name}: row {first + row:,} holds {lengths[row]:,} numbers, the first row holds {d:,}")
    x = _numbers(array.flatten()).reshape(-1, d)
    if not array.null_count:
        return x
    out = np.full((len(array), d), np.nan, np.result_type(x.dtype, np.float16))
    out[lengths >= 0] = x
    return out


def _numbers(array: Any) -> NDArray[Any]:
    """Numbers as NumPy has them, without a copy where none is null; NaN for those that are."""
    if hasattr(array, "chunks"):
        return np.asarray(array.to_numpy())
    return np.asarray(array.to_numpy(zero_copy_only=False))
