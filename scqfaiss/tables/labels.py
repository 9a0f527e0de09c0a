"""Columns of labels and of ids."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, ResourceError, format_bytes, printable, warn
from .numbers import is_list, list_lengths, matrix, plain, storage_type

LABEL_BYTES = 8 << 30  # largest matrix of labels


def class_names(schema: Any, column: str) -> tuple[str, ...] | None:
    """The names of classes that Hugging Face writes beside a column of class numbers."""
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        names = told.get("names") or (told.get("feature") or {}).get("names")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def labels_of(column: Any, names: tuple[str, ...] | None, name: str) -> tuple[Any, tuple[str, ...] | None]:
    """A column of labels -> class numbers or names (n,), or a matrix (n, C), and names of classes where there are any.

    Numbers and text are one label a row, and a null is none: -1, NaN or ''. Lists of a fixed size are rows of a matrix; other
    lists name the classes of a row, by number or by name. Raises DataError where a list names a class twice.
    """
    from pyarrow import types

    kind = storage_type(column.type)
    if types.is_fixed_size_list(kind):
        return matrix([column], kind.list_size, name, 0), names
    if is_list(kind):
        return _of_lists(column, names, name)
    return _flat(column), names


def _flat(column: Any) -> NDArray[Any]:
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if types.is_integer(column.type):
        return np.asarray((column.fill_null(-1) if column.null_count else column).to_numpy())
    if types.is_floating(column.type) or types.is_boolean(column.type):
        return np.asarray(column.to_numpy())
    if not any(is_kind(column.type) for is_kind in (types.is_string, types.is_large_string, types.is_string_view)):
        return np.array(column.to_pylist() or np.zeros(0), object)
    # Each distinct word becomes one of Python's once.
    if types.is_string_view(column.type):
        column = column.cast("large_string")
    coded = column.fill_null("").combine_chunks().dictionary_encode()
    coded = coded.combine_chunks() if hasattr(coded, "chunks") else coded
    words = np.array(coded.dictionary.to_pylist() or [""], str)
    return np.asarray(words[coded.indices.to_numpy(zero_copy_only=False)])


def _of_lists(column: Any, names: tuple[str, ...] | None, name: str) -> tuple[Any, tuple[str, ...] | None]:
    import pyarrow

    array = plain(column.combine_chunks())
    if hasattr(array, "chunks"):
        array = pyarrow.concat_arrays([plain(chunk) for chunk in array.chunks])
    lengths = np.maximum(list_lengths(array), 0)
    values = _flat(pyarrow.chunked_array([array.flatten()]))
    if values.dtype.kind == "U":
        words, values = np.unique(values, return_inverse=True)
        names = tuple(words.tolist())
    if values.dtype.kind not in "iu" and len(values):
        raise DataError(f"{name} is {printable(str(column.type)[:60])}, needs lists of class numbers or of class names")
    rows, C = np.repeat(np.arange(len(lengths)), lengths), len(names or ()) or 1 + int(values.max(initial=1))
    if len(values) and (values.min() < 0 or values.max() >= C):
        row = int(rows[np.flatnonzero((values < 0) | (values >= C))[0]])
        raise DataError(f"{name}: row {row:,} names a class outside 0 to {C - 1:,}")
    if len(lengths) * C > LABEL_BYTES:
        raise ResourceError(
            f"{name} needs a matrix of {format_bytes(len(lengths) * C)}, at most {format_bytes(LABEL_BYTES)} can be held"
        )
    pairs = np.sort(rows * C + np.asarray(values, np.int64))
    twice = np.flatnonzero(pairs[1:] == pairs[:-1])
    if len(twice):
        row = int(pairs[twice[0]]) // C
        raise DataError(
            f"{name}: row {row:,} names a class twice; lists hold the classes of a row, a matrix of 0 and 1 is a column of "
            "lists of a fixed size"
        )
    y = np.zeros((len(lengths), max(C, 2)), np.uint8)
    y[pairs // C, pairs % C] = 1
    return y, names


def ids_of(column: Any, name: str, *, asked: bool) -> NDArray[Any] | None:
    """A column of ids -> (n,) whole numbers. None, with a warning, where it holds anything else and was not `asked` for.

    Raises DataError where a row has none, or the column is asked for and no column of whole numbers.
    """
    from pyarrow import types

    if types.is_integer(column.type) or (asked and types.is_floating(column.type)):
        if column.null_count:
            row = int(np.argmax(column.is_null().to_numpy()))
            raise DataError(f"{name}: row {row:,} has no id ({column.null_count:,} such rows)")
        return np.asarray(column.to_numpy())
    needs = f"{name} is {printable(str(column.type)[:60])}, and FAISS knows ids as whole numbers"
    if asked:
        raise DataError(f"{needs}: number the rows, and keep these in a file of items (--items)")
    warn(f"{needs}: rows are numbered from 0 instead")
    return None
