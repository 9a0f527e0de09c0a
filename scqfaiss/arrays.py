"""The border: arrays that come from outside are checked once, here, and trusted everywhere else.

Each function takes what a user may hand over, returns one fixed form (dtype, shape, C order) and raises DataError with
the first offending row otherwise. `name` is how messages call the array, usually "file.h5: features".
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, DataError, printable
from .tables import opening as tables

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

MAX_CLASSES = 1 << 20  # a larger class number is an id or a mistake, and would be paid for in memory
PIECE = 1 << 22  # elements of a matrix of labels looked at together
FEATURE_DTYPES = (np.float16, np.float32, np.float64)
NO_LABEL = -1  # the class number of a row without a label


def dims(x: Any) -> str:
    """Shape and dtype as messages print them: (1000, 32) float64."""
    return f"({', '.join(str(n) for n in x.shape)}{',' if len(x.shape) == 1 else ''}) {x.dtype}"


def as_array(a: Any, name: str, needs: str) -> NDArray[Any]:
    """np.asarray for whatever a user may hand over: tensors of torch, with gradient, on a GPU or bfloat16 too, columns of arrays,
    and of tables of pyarrow, frames of pandas or polars and datasets of Hugging Face the features (see tables.choose).

    Raises DataError where it is no array of numbers or text: a file name, a set, a generator, rows of unequal length.
    """
    if isinstance(a, str | bytes | os.PathLike):
        kind = "an array; read the file first, or give it to the command line"
        raise DataError(f"{name} is a name, '{printable(a)[:80]}', needs {kind} ({needs})")
    if isinstance(a, Set | Mapping):
        raise DataError(f"{name} is a {type(a).__name__}, which has no order; needs {needs}")
    if tables.is_arrow(a):
        table = tables.as_table(a, name)
        a = tables.as_column(a) if table is None else tables.TableRows(table, name)[:]
    if isinstance(a, np.ma.MaskedArray) and np.ma.is_masked(a):  # type: ignore[no-untyped-call]
        raise DataError(f"{name} holds masked values; needs {needs}")
    try:
        if isinstance(a, list | tuple):
            # NumPy would make the text 'nan' of a NaN among text.
            found = np.asarray([_off_torch(row) for row in a], object if _holds_text(a) else None)
        else:
            found = np.asarray(_off_torch(a))
        if found.dtype == object and found.ndim == 1 and len(found) and not _holds_text(found):
            found = np.array([_off_torch(row) for row in found])  # a column of arrays, or of numbers
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise DataError(f"{name} is no array: rows of unequal length or no numbers; needs {needs}") from error
    if found.dtype == object and found.ndim == 0:
        raise DataError(f"{name} is a {type(a).__name__}, no array; needs {needs}")
    # NumPy itself has no bfloat16: those of other libraries look like raw bytes to it.
    return found.astype(np.float32) if found.dtype.name == "bfloat16" else found


def _holds_text(a: Iterable[Any]) -> bool:
    return any(isinstance(value, str | bytes) for value in a)


def _off_torch(a: Any) -> Any:
    """A tensor of torch as an array; anything else as it is. torch is not imported: whoever has a tensor has it already."""
    if type(a).__module__.partition(".")[0] != "torch" or not hasattr(a, "detach"):
        return a
    a = a.detach().cpu()
    return (a.float() if str(a.dtype) == "torch.bfloat16" else a).numpy()


def check_feature_form(x: Any, name: str, *, scale: float | None = None, of_file: bool = False) -> None:
    """Shape and dtype alone; `x` is an array or an HDF5 dataset, nothing of it is read. Raises DataError.

    scale: what 1 stands for in features of int8 and uint8, which need one; ConfigError where one is given for floats.
    """
    quantized = x.dtype.type in (np.int8, np.uint8)
    if len(x.shape) == 2 and x.shape[1] >= 1 and quantized and scale is not None:
        return
    if len(x.shape) != 2 or x.shape[1] < 1 or x.dtype.type not in FEATURE_DTYPES:
        how = "; one row is x[None]" if len(x.shape) == 1 and x.dtype.type in FEATURE_DTYPES else ""
        if len(x.shape) == 2 and x.dtype.kind in "iu":
            how = "; convert them to float32, times their scale where they were quantized"
            if of_file and quantized:
                how = (
                    "; say what 1 stands for: --scale 0.0078125 for numbers of [-1, 1) times 128, --scale 1 as they are"
                )
        raise DataError(f"{name} is {dims(x)}, needs (n, d) float16, float32 or float64{how}")
    if scale is not None:
        raise ConfigError(f"{name} is {dims(x)}: a scale is of int8 and uint8; leave --scale out")


def rescaled(x: NDArray[Any], scale: float | None) -> NDArray[Any]:
    """Features as floats: int8 and uint8 times what 1 stands for, 1 where nobody said; floats as they are."""
    if x.dtype.kind not in "iu":
        return x
    out = x.astype(np.float32)
    return out if scale is None or scale == 1 else np.multiply(out, np.float32(scale), out=out)


def transposed(n: int, d: int, needed: int) -> str:
    """What to add to a message about rows of the wrong d, where n, the number of rows, would be the right one."""
    return f"; they are stored as (d, n) = ({n:,}, {d:,}), write the transpose" if n == needed != d else ""


def bad_rows(x: NDArray[Any]) -> NDArray[np.bool_]:
    """(n,) True where a row of x (n, d) holds NaN, infinity or a number too large for float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        # A finite sum proves a whole block sound at a fraction of the cost; only a suspicious one is looked at in full.
        if x.dtype != np.float64 and np.isfinite(x.sum(dtype=np.float32)):
            return np.zeros(len(x), bool)
        return np.asarray(~np.isfinite(x.astype(np.float32, copy=False)).all(axis=1))


def describe_bad_row(row: int, x: NDArray[Any]) -> str:
    """'row 5, column 3 is NaN' for a row x (d,) that bad_rows() found; `row` is its number in the file."""
    with np.errstate(over="ignore"):
        column = int(np.argmin(np.isfinite(x.astype(np.float32))))
    value = float(x[column])
    what = "NaN" if np.isnan(value) else "infinite" if np.isinf(value) else f"{value:g}, too large for float32"
    return f"row {row:,}, column {column} is {what}"


def not_finite(name: str, first: str, count: int, n: int) -> DataError:
    """The error for `count` bad rows of `n`, the first already described."""
    return DataError(f"{name}: {first} ({count:,} of {n:,} rows {'is' if count == 1 else 'are'} not finite)")


def as_features(x: Any, name: str = "features", *, finite: bool = True, one_row: bool = False) -> Floats:
    """x (n, d) float16, float32 or float64 -> (n, d) float32, C order; no copy where none is needed.

    one_row: (d,) is taken as (1, d).

    Raises DataError on another shape or dtype and, unless finite=False, on NaN, infinity and overflow of float32.
    """
    x = as_array(x, name, "(n, d) float16, float32 or float64")
    if one_row and x.ndim == 1:
        x = x[None]
    check_feature_form(x, name)
    if finite:
        bad = np.flatnonzero(bad_rows(x))
        if len(bad):
            raise not_finite(name, describe_bad_row(int(bad[0]), x[bad[0]]), len(bad), len(x))
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(x, np.float32)


def _whole_numbers(a: NDArray[Any], name: str, what: str) -> Ints:
    """(n,) of any real dtype -> int64; DataError names the first value that is no whole number within int64."""
    if a.dtype.kind == "b":
        raise DataError(f"{name} is {dims(a)}, needs whole numbers")
    if a.dtype.kind == "f":
        with np.errstate(invalid="ignore", over="ignore"):  # 2^63 overflows float16, and is infinity there
            wrong = ~(np.isfinite(a) & (a == np.floor(a)) & (np.abs(a) < 2.0**63))
    elif a.dtype.kind == "u":
        wrong = a > np.uint64(2**63 - 1) if a.dtype.itemsize == 8 else np.zeros(len(a), bool)
    elif a.dtype.kind == "i":
        wrong = np.zeros(len(a), bool)
    else:
        raise DataError(f"{name} is {dims(a)}, needs whole numbers")
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(f"{name}: row {row:,} is {a[row]}, not {what}")
    return np.ascontiguousarray(a, np.int64)


@dataclass(frozen=True)
class Labels:
    """Labels of n rows: one class a row, y (n,) int64, or many, y (n, C) uint8 of 0 and 1. C classes, names optional.

    A row without a label is NO_LABEL in y (n,), and zeros in y (n, C).

    numbers (C,) int64, ascending: the class numbers of the rows, where these are `among` a choice of classes, of `declared` in
    all; None where class c is number c.
    """

    y: NDArray[Any]
    C: int
    class_names: tuple[str, ...] | None = None
    numbers: Ints | None = None
    declared: int = 0

    def __len__(self) -> int:
        return len(self.y)

    @property
    def multilabel(self) -> bool:
        """True where a row may have several labels (or none)."""
        return self.y.ndim == 2

    def class_name(self, c: int) -> str:
        if self.class_names:
            return self.class_names[c]
        return str(c if self.numbers is None else self.numbers[c])

    def counts(self) -> Ints:
        """(C,) rows that carry each class."""
        if self.multilabel:
            return np.asarray(self.y.sum(0, dtype=np.int64))
        return np.bincount(self.y[self.y >= 0], minlength=self.C).astype(np.int64)

    def without_label(self) -> Ints:
        """The rows that have no label, where a row has one at most."""
        return np.zeros(0, np.int64) if self.multilabel else np.flatnonzero(self.y == NO_LABEL)

    def multi_hot(self) -> NDArray[np.uint8]:
        """(n, C) uint8 multi-hot form, for single labels too."""
        if self.multilabel:
            return self.y
        out = np.zeros((len(self.y), self.C), np.uint8)
        out[self.y >= 0, self.y[self.y >= 0]] = 1
        return out

    def take(self, rows: Any) -> Labels:
        """The labels of `rows` (indices, slice or mask)."""
        return replace(self, y=self.y[rows])

    def among(self, numbers: Ints) -> Labels:
        """The same rows told apart by the classes `numbers` (C',) alone, ascending: these become 0..C'-1.

        A row of any other class gets -1; of many labels a row those of other classes are left out.
        """
        names = self.class_names
        if names is not None:
            names = tuple(names[c] for c in numbers) if int(numbers.max()) < len(names) else None
        if self.multilabel:
            y = np.zeros((len(self), len(numbers)), np.uint8)
            known = numbers < self.C
            y[:, known] = self.y[:, numbers[known]]
        else:
            place = np.full(max(self.C, int(numbers.max()) + 1), -1)
            place[numbers] = np.arange(len(numbers))
            y = np.where(self.y < 0, NO_LABEL, place[self.y])
        return Labels(y, len(numbers), names, numbers, self.C)


def _is_missing(value: Any) -> bool:
    """Whether a value of a column says that there is none: None, '', NaN, and what pandas has for it."""
    if isinstance(value, str | bytes):
        return not value.strip()
    return value is None or type(value).__name__ in ("NAType", "NaTType") or bool(value != value)


def _plain_labels(a: NDArray[Any]) -> NDArray[Any]:
    """Labels (n,) with NO_LABEL or '' where there is none, whatever the caller wrote for it."""
    if a.dtype.kind == "T":  # NumPy's own strings of any length
        return a.astype(str)
    if a.dtype.kind == "f":
        return np.where(np.isnan(a), a.dtype.type(NO_LABEL), a)
    if a.dtype.kind != "O":
        return a
    lacks = np.array([_is_missing(value) for value in a.tolist()], bool)
    found = a[~lacks].tolist()
    if found and all(isinstance(value, int | float) and not isinstance(value, bool) for value in found):
        out = np.full(len(a), NO_LABEL, np.result_type(np.array(found), np.int64))
        out[~lacks] = found
        return out
    return np.where(lacks, "", a)


def as_labels(y: Any, n: int, name: str = "labels", class_names: Any = None, *, C: int | None = None) -> Labels:
    """Integers (n,), class names (n,), or a 0/1 matrix (n, C), of n rows -> Labels.

    -1, NaN, None and an empty name are NO_LABEL. Whole floats are taken as integers; names are numbered in their order, or as
    `class_names` number them. C is the number of names where `class_names` are given, else `C` where that is given, else the
    largest label + 1. Rows of a matrix without any label pass: only training cannot use them.
    Raises DataError on wrong lengths, on labels outside 0..C-1 and on values other than 0 and 1 in a matrix.
    """
    a = as_array(y, name, "(n,) class numbers or names, or an (n, C) matrix of 0 and 1")
    names = None if class_names is None else _names(class_names, name)
    if a.ndim not in (1, 2) or (a.ndim == 2 and a.shape[1] < 2):
        how = "; class numbers in one column are y.ravel()" if a.ndim == 2 else ""
        raise DataError(
            f"{name} is {dims(a)}, needs (n,) class numbers or an (n, C) matrix of 0 and 1 with C >= 2{how}"
        )
    if len(a) != n:
        raise DataError(f"{name} has {len(a):,} rows, features has {n:,}")
    if a.ndim == 2:
        if a.dtype.kind not in "buif":
            raise DataError(f"{name} is {dims(a)}, needs 0 and 1")
        # In pieces: without a matrix of booleans as large as this one.
        step = max(1, PIECE // a.shape[1])
        check_binary((a[i : i + step] for i in range(0, len(a), step)), name)
        width = len(names) if names is not None else C if C is not None else a.shape[1]
        if a.shape[1] != width:
            raise DataError(f"{name} has {a.shape[1]} columns, needs one for each of the {width} classes")
        return Labels(np.ascontiguousarray(a, np.uint8), width, names)
    a = _plain_labels(a)
    if a.dtype.kind in "USO":
        return _named(a, name, names)
    a = _whole_numbers(a, name, "a class number")
    if n and int(a.max()) >= MAX_CLASSES:
        row = int(np.argmax(a >= MAX_CLASSES))
        raise DataError(f"{name}: row {row:,} is {a[row]}, at most {MAX_CLASSES:,} classes can be told apart")
    classes = len(names) if names is not None else C if C is not None else int(a.max()) + 1 if n else 0
    wrong = (a < NO_LABEL) | (a >= classes)
    if wrong.any():
        row, upper = int(np.argmax(wrong)), f"to {classes - 1}" if names is not None or C is not None else "upwards"
        none = f"; {NO_LABEL} says that a row has no label" if (a < NO_LABEL).any() else ""
        raise DataError(
            f"{name}: row {row:,} is {a[row]}, classes run 0 {upper} ({int(wrong.sum()):,} such rows){none}"
        )
    return Labels(a, classes, names)


def _named(a: NDArray[Any], name: str, names: tuple[str, ...] | None) -> Labels:
    """Labels given as names (n,): classes are the names in their order, or `names` where those are given."""
    words = [class_text(value) if isinstance(value, str | bytes) else None for value in a.tolist()]
    if None in words:
        row, value = next((i, value) for i, value in enumerate(a.tolist()) if words[i] is None)
        raise DataError(
            f"{name}: row {row:,} is {printable(repr(value)[:40])}, not a class name ({words.count(None):,} such rows)"
        )
    text = np.array([word if word and word.strip() else "" for word in words], dtype=str)
    found, y = np.unique(text, return_inverse=True)
    if len(found) and not found[0]:  # an empty name sorts first
        found, y = found[1:], y - 1
    if names is None:
        return Labels(y.astype(np.int64), len(found), tuple(found.tolist()))
    place = {word: c for c, word in enumerate(names)}
    for word in found.tolist():
        if word not in place:
            row = int(np.argmax(text == word))
            raise DataError(f"{name}: row {row:,} is '{printable(word)}', which class_names does not name")
    number = np.array([*(place[word] for word in found.tolist()), NO_LABEL], np.int64)
    return Labels(number[y], len(names), names)  # -1 is the last place


def _names(given: Any, name: str) -> tuple[str, ...]:
    """Class names as text, each once."""
    names = tuple(class_text(c) for c in given)
    twice = next((c for i, c in enumerate(names) if c in names[:i]), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise DataError(f"{name}: class_names holds '{printable(twice)}' more than once")
    return names


def check_binary(pieces: Iterable[NDArray[Any]], name: str) -> None:
    """Raise DataError unless a matrix, given in pieces of rows from first to last, holds 0 and 1 alone."""
    first, count, start = "", 0, 0
    for piece in pieces:
        wrong = (piece != 0) & (piece != 1)
        rows = np.flatnonzero(wrong.any(axis=1))
        if len(rows) and not first:
            first = f"row {start + rows[0]:,} holds {piece[rows[0]][wrong[rows[0]]][0]}"
        count, start = count + len(rows), start + len(piece)
    if count:
        raise DataError(f"{name}: {first}, needs 0 or 1 ({count:,} such rows)")


def class_text(value: Any) -> str:
    """The name of a class, its letters composed (NFC): Unicode has two spellings of accents, and programs choose either."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return unicodedata.normalize("NFC", text)


def as_id_set(ids: Any, name: str = "ids") -> Ints:
    """Ids in no order, of a list, an array or a set, or one id; any may stand twice -> (n,) int64. Raises as as_ids."""
    a = np.atleast_1d(as_array(list(ids) if isinstance(ids, Set) else ids, name, "(n,) int64"))
    return as_ids(a, None, name, allow_duplicates=True)


def as_ids(ids: Any, n: int | None, name: str = "ids", *, allow_duplicates: bool = False, advice: str = "") -> Ints:
    """(n,) whole numbers in 0..2^63-1, each once -> (n,) int64. n=None: as many as there are.

    FAISS itself takes -1 (its mark for "nothing found") and duplicates without a word. Raises DataError; advice: what else
    there is to do about duplicates.
    """
    needs = "(n,) int64" if n is None else f"({n},) int64, one for each row of features"
    a = as_array(ids, name, needs)
    if a.ndim != 1 or n not in (None, len(a)):
        raise DataError(f"{name} is {dims(a)}, needs {needs}")
    a = _whole_numbers(a, name, "an id (0 to 9,223,372,036,854,775,807)")
    if (a < 0).any():
        row = int(np.argmax(a < 0))
        raise DataError(f"{name}: row {row:,} is {a[row]}, ids are 0 or larger ({int((a < 0).sum()):,} such rows)")
    if not allow_duplicates:
        s = np.sort(a)
        twice = np.unique(s[1:][s[1:] == s[:-1]])
        if len(twice):
            first = ", ".join(str(i) for i in twice[:5])
            raise DataError(
                f"{name}: {first} {'stands' if len(twice) == 1 else 'stand'} more than once ({len(twice):,} such ids); "
                f"give every row its own id{advice}"
            )
    return a
