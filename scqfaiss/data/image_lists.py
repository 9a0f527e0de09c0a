"""Lists of images, .csv and .jsonl: what their lines say of files, classes and ids."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import DataError, ResourceError, format_bytes, printable, warn
from ..files import parse_json
from .image_files import MAX_ID, Listing, counted, ids_of
from .image_labels import Item, check_labels
from .open_file import OpenFile

LIST_BYTES = 1 << 30  # longest list, which is read whole
_NONE = re.compile(r"-1(\.0*)?")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def list_file(path: str | os.PathLike[str], *, labels_key: str | None = "labels", ids_key: str = "ids") -> Listing:
    """The images that a list names, in its order, paths being relative to its folder.

    .csv (UTF-8, a header first) has a column `path`, and may have `labels` (or `label`; several apart by ;) and `ids` (or
    `id`). .jsonl holds an object on each line, with the same keys; labels are a name, a number or a list. Whole numbers are
    class numbers; names are sorted into classes; nothing, or -1, says that an image has none. Labels come out as (n,) where no
    image has several, else as a matrix.
    labels_key and ids_key: columns of other names; labels_key=None leaves labels unread. Raises ConfigError where there is
    no such file, ResourceError on more than can be read whole, DataError that names the line on anything malformed.
    """
    name = printable(path)
    wanted = _Columns(name, labels_key, ids_key)
    raw = _as_utf8(_read(path), name)
    lines = _csv_items(raw, wanted) if os.fspath(path).lower().endswith(".csv") else _json_items(raw, wanted)
    root = os.path.dirname(os.fspath(path))
    items = list(lines)
    for item in items:
        if not _may_be_path(item.path):
            raise DataError(f"{name}: line {item.line:,}: no file can have this path")
    check_labels(items, name)
    ids_of(items, name)
    names = [found_path(root, item.path, f"{name}: line {item.line:,}") for item in items]
    _say_repeated(root, names, items, name)
    return Listing(root, names, items=items, list_name=name)


def _as_utf8(raw: bytes, name: str) -> bytes:
    """UTF-16 and UTF-32 are known by their byte order mark, and turned into UTF-8."""
    marks = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
    marks |= {
        codecs.BOM_UTF16_LE: "utf-16",
        codecs.BOM_UTF16_BE: "utf-16",
    }  # which the first of UTF-32 begins with, too
    form = next((form for mark, form in marks.items() if raw.startswith(mark)), None)
    if form is None:
        return raw
    try:
        return raw.decode(form).encode()
    except UnicodeError as error:
        raise DataError(f"{name} begins as {form.upper()} and is not; save it as UTF-8") from error


def found_path(root: str, path: str, where: str) -> str:
    """`path` as it has to be asked for below `root`: with \\ for / as Windows writes it, or its letters composed otherwise.

    Only where there is no file of the very name. Raises DataError on a path of a Windows drive.
    """
    if ("\\" not in path and path.isascii() and not _DRIVE.match(path)) or os.path.lexists(os.path.join(root, path)):
        return path
    if _DRIVE.match(path):
        raise DataError(
            f"{where}: {printable(path)} is a path of Windows; write paths relative to the folder of the list"
        )
    plain = path.replace("\\", "/")
    for form in (plain, unicodedata.normalize("NFC", plain), unicodedata.normalize("NFD", plain)):
        if os.path.lexists(os.path.join(root, form)):
            return form
    return plain


def _say_repeated(root: str, names: list[str], items: list[Item], name: str) -> None:
    """Warn of images that stand on several lines: each line is an image of its own."""
    first: dict[str, int] = {}
    repeated: dict[str, tuple[int, int]] = {}
    for path, item in zip(names, items):
        line = first.setdefault(path := os.path.normpath(os.path.join(root, path)), item.line)
        if line != item.line:
            repeated.setdefault(path, (line, item.line))
    if repeated:
        lines = [
            f"{printable(os.path.relpath(path, root))} on lines {a:,} and {b:,}" for path, (a, b) in repeated.items()
        ]
        warn(
            f"{name}: {counted(lines, 'image')} {'stands' if len(lines) == 1 else 'stand'} on more than one line "
            f"({', '.join(lines[:5])}{', ...' if len(lines) > 5 else ''}): each line counts as an image of its own; several "
            "labels of one image belong on one line"
        )


def _may_be_path(text: str) -> bool:
    try:
        return bool(text) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


class _Columns:
    """Which columns, or keys, of a list are meant; `name` is the list's for messages."""

    def __init__(self, name: str, labels_key: str | None, ids_key: str) -> None:
        self.name = name
        self._labels = ["labels", "label"] if labels_key == "labels" else [] if labels_key is None else [labels_key]
        self._ids = ["ids", "id"] if ids_key == "ids" else [ids_key]
        self._needed = [key for key, usual in ((labels_key, "labels"), (ids_key, "ids")) if key not in (None, usual)]

    def find(self, keys: list[str], line: int) -> tuple[str | None, str | None]:
        """The keys of labels and ids among `keys` of this line, which has to have `path`."""
        for key in ["path", *self._needed]:
            if key not in keys:
                raise DataError(
                    f"{self.name}: line {line:,} has no '{printable(key or '')}'; "
                    f"it has {', '.join(printable(k) for k in keys[:8]) or 'nothing'}{_advice(keys)}"
                )
        columns = [[key for key in wanted if key in keys] for wanted in (self._labels, self._ids)]
        for key in ("path", *columns[0], *columns[1]):
            if keys.count(key) > 1:
                raise DataError(f"{self.name}: line {line:,} has '{printable(key)}' twice")
        for synonyms in columns:
            if len(synonyms) > 1:
                raise DataError(f"{self.name}: line {line:,} has both '{synonyms[0]}' and '{synonyms[1]}'")
        return next(iter(columns[0]), None), next(iter(columns[1]), None)


def _advice(keys: list[str]) -> str:
    """What to do where the columns stand apart by something else than commas."""
    if len(keys) == 1 and any(mark in keys[0] for mark in ";\t|"):
        return "; columns stand apart by commas"
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _csv_items(raw: bytes, wanted: _Columns) -> Iterator[Item]:
    name = wanted.name
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: line {_line(raw, error.start):,} is not UTF-8; save it as UTF-8") from error
    rows = _csv_rows(text, name)
    first, header = next(rows, (1, []))
    header = [column.strip() for column in header]
    try:
        labels_key, ids_key = wanted.find(header, first)
    except DataError as error:
        fields = header if all(map(_is_number, header)) else next(rows, (0, []))[1]
        if fields and all(map(_is_number, fields)):
            skip = "" if all(map(_is_number, header)) else ", skiprows=1"
            stem = name.removesuffix(".csv")
            made = f"numpy.save('{stem}.npy', numpy.loadtxt('{name}', delimiter=','{skip}))"
            raise DataError(
                f'{error}; a .csv lists images, of numbers make rows: python -c "import numpy; {made}"'
            ) from None
        raise
    for line, fields in rows:
        if len(fields) != len(header):
            raise DataError(f"{name}: line {line:,} has {counted(fields, 'field')}, line {first:,} has {len(header)}")
        row = dict(zip(header, fields))
        labels = _csv_labels(row[labels_key], name, line) if labels_key is not None else []
        id = None
        if ids_key is not None:
            word = row[ids_key].strip()
            if not (word.isascii() and word.isdecimal() and len(word) < 40 and int(word) <= MAX_ID):
                raise _no_id(name, line, word)
            id = int(word)
        yield Item(line, row["path"], labels, len(labels) > 1, id, text=True)


def _csv_rows(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """(line that it begins on, fields) of each row that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{name}: line {line:,} is no line of a CSV file") from error
        if fields is None:
            return
        if fields:
            yield line, fields


def _csv_labels(field: str, name: str, line: int) -> list[str]:
    words = [word.strip() for word in field.split(";")] if field.strip() else []
    if not all(words):
        raise DataError(f"{name}: line {line:,}: '{printable(field[:40])}' holds an empty label")
    return [] if _is_none(words, name, line) else words


def _is_none(labels: Sequence[int] | Sequence[str], name: str, line: int) -> bool:
    """Whether labels say that there is none: -1, or -1.0 as programs write it beside gaps. Raises DataError where it is one of
    several.
    """
    none = [label for label in labels if _NONE.fullmatch(str(label))]
    if none and len(labels) > 1:
        raise DataError(
            f"{name}: line {line:,}: {none[0]} says that there is no label, and stands beside others; leave it out there"
        )
    return bool(none)


def _json_items(raw: bytes, wanted: _Columns) -> Iterator[Item]:
    name = wanted.name
    for number, text in enumerate(raw.split(b"\n")):
        line = number + 1
        text = text.removeprefix(codecs.BOM_UTF8)  # anywhere: lists are put together from several
        if not text.strip():
            continue
        row = parse_json(text)
        if row is None:
            raise DataError(f"{name}: line {line:,} is not a JSON object")
        labels_key, ids_key = wanted.find(list(row), line)
        path = row["path"]
        if not isinstance(path, str):
            raise DataError(f"{name}: line {line:,}: path is no text")
        given = row[labels_key] if labels_key is not None else None
        several = isinstance(given, list)
        listed: list[Any] = given if isinstance(given, list) else [] if given is None else [given]
        labels = _json_labels(listed, name, line)
        id = row[ids_key] if ids_key is not None else None
        if id is not None and (type(id) is not int or not 0 <= id <= MAX_ID):
            raise _no_id(name, line, id)
        yield Item(line, path, labels, several, id)


def _json_labels(given: list[Any], name: str, line: int) -> list[int] | list[str]:
    if len(given) == 1 and isinstance(given[0], str) and not given[0].strip():
        return []
    words = [label for label in given if isinstance(label, str) and label]
    if len(words) == len(given):
        return words
    numbers = [int(label) for label in given if type(label) is int or (isinstance(label, float) and label.is_integer())]
    if len(numbers) == len(given):
        return [] if _is_none(numbers, name, line) else numbers
    raise DataError(f"{name}: line {line:,}: labels need to be names or class numbers, and all of one kind")


def _no_id(name: str, line: int, word: Any) -> DataError:
    return DataError(f"{name}: line {line:,}: '{printable(str(word)[:40])}' is no id (0 to {MAX_ID:,})")


def _line(raw: bytes, at: int) -> int:
    return raw.count(b"\n", 0, at) + 1


def _read(path: str | os.PathLike[str]) -> bytes:
    file = OpenFile(path)
    try:
        if file.size > LIST_BYTES:
            raise ResourceError(
                f"{file.name} has {format_bytes(file.size)}, a list may have at most {format_bytes(LIST_BYTES)}"
            )
        content = file.read()
    except BaseException:
        file.release()
        raise
    file.close()
    return content
