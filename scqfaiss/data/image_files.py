"""Where pictures lie as files: a folder, with a sub-folder for each class or none, a list (.csv, .jsonl), or one file."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Ints
from ..errors import DataError, ResourceError, shown, size, warn
from ..files import parse_json
from .classes import class_key, in_order
from .list_labels import Item, check_labels, classes_of
from .source import OpenFile

PICTURE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo"),
    *(".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
)
LIST_ENDINGS = (".csv", ".jsonl")
LIST_BYTES = 1 << 30  # longest list, which is read whole
MAX_ID = (1 << 63) - 1
_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")

# What systems leave beside pictures, in small letters; also passed over: all names with a leading dot.
_LEFT_BY_SYSTEMS = {
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"),
    *("__macosx", "@eadir", "$recycle.bin", "system volume information"),
}


@dataclass(frozen=True)
class Listing:
    """Pictures by name, in order: n names relative to `root`, and what is known of them.

    Either `classes`, which names the class folder that each lies in, or `items`, a line of the list `list_name` each.
    """

    root: str
    names: list[str]
    class_names: tuple[str, ...] | None = None
    classes: Ints | None = None
    items: list[Item] | None = None
    list_name: str = ""

    def facts(self, rows: Ints | None = None) -> tuple[Any, tuple[str, ...] | None, Ints | None]:
        """Of the pictures `rows`, or all, as if there were no others: class numbers (n,) or a matrix (n, C) of 0 and 1,
        names of classes, ids (n,); None where they are not given."""
        kept = range(len(self.names)) if rows is None else rows.tolist()
        by_name = _numbers([self.names[k] for k in kept])
        if self.items is None:
            return None if self.classes is None else self.classes[list(kept)], self.class_names, by_name
        items = [self.items[k] for k in kept]
        ids = _ids(items, self.list_name)
        return *classes_of(items, self.list_name), by_name if ids is None else ids


# -------------------------------------------------------------------------------------------------------------- folders
def list_folder(path: str | os.PathLike[str]) -> Listing:
    """All files of a folder, sorted by their path in it; its sub-folders, if it has any, are the classes.

    Classes are numbered by their names: by value where all are whole numbers, else in the order of the text. Names with a
    leading dot, and what systems leave in folders (Thumbs.db, __MACOSX), are passed over. Links are followed, but no link
    to a folder that holds the link itself or that another link led to: such a link counts as a file, which cannot be read
    then. Where all names are different whole numbers (0017.jpg), these are the ids. Beside class folders, files with
    another ending than a picture's are passed over with a warning. Raises DataError on pictures there, on two folders of
    one number, and on a folder that may not be listed.
    """
    root = os.fspath(path)
    followed: set[str] = set()
    folders, names = _entries(root, "", followed)
    if folders and names:
        pictures = [name for name in names if name.lower().endswith(PICTURE_ENDINGS)]
        if pictures:
            raise DataError(
                f"{shown(path)} holds {_count(pictures, 'picture')} beside {_count(folders, 'folder')} "
                f"({shown(min(pictures))} beside {shown(min(folders))}); needs a folder for each class, or files alone"
            )
        warn(f"{shown(path)}: passed over {_count(names, 'file')} beside class folders (first: {shown(min(names))})")
        names = []
    todo = list(folders)
    while todo:
        below, here = _entries(root, todo.pop(), followed)
        todo += below
        names += here
    names.sort()
    if not folders:
        return Listing(root, names)
    class_of = _class_folders(folders, shown(path))
    class_names = tuple(in_order(set(class_of.values())))
    number = {name: c for c, name in enumerate(class_names)}
    classes = np.array([number[class_of[name.partition("/")[0]]] for name in names], np.int64)
    return Listing(root, names, class_names, classes)


def _class_folders(folders: list[str], name: str) -> dict[str, str]:
    """Class of each folder. Two folders are one class where they differ in the form of Unicode alone.

    Raises DataError where two folders name one class in any other way.
    """
    class_of = {folder: unicodedata.normalize("NFC", shown(folder)) for folder in folders}
    first: dict[str, str] = {}
    for folder in sorted(folders):
        other = first.setdefault(class_key(class_of[folder]), folder)
        if other == folder:
            continue
        if class_of[other] != class_of[folder]:
            raise DataError(f"{name}: class folders {shown(other)} and {shown(folder)} are one number; rename one")
        if unicodedata.normalize("NFC", other) != unicodedata.normalize("NFC", folder):
            raise DataError(f"{name}: names of class folders cannot be told apart in print; rename them")
        warn(f"{name}: two folders are called {class_of[folder]}, in two forms of Unicode; they are taken as one class")
    return class_of


def _count(names: list[str], what: str) -> str:
    return f"{len(names):,} {what}{'' if len(names) == 1 else 's'}"


def _entries(root: str, folder: str, followed: set[str]) -> tuple[list[str], list[str]]:
    """Folders and files of root/folder, by their names relative to root."""
    folders: list[str] = []
    files: list[str] = []
    here = os.path.join(root, folder)
    try:
        with os.scandir(here) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.name.lower() not in _LEFT_BY_SYSTEMS:
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    (folders if _leads_to_folder(entry, here, followed) else files).append(name)
    except OSError as error:
        raise DataError(f"{shown(here)}: this folder cannot be listed ({os.strerror(error.errno or 0)})") from error
    return folders, files


def _leads_to_folder(entry: os.DirEntry[str], here: str, followed: set[str]) -> bool:
    try:
        if not entry.is_dir():
            return False
    except OSError:  # a link that leads back to itself
        return False
    if not entry.is_symlink():
        return True
    target = os.path.realpath(entry.path)
    if target in followed or os.path.commonpath([target, os.path.realpath(here)]) == target:
        return False  # it would never end, or double with each further link
    followed.add(target)
    return True


def _numbers(names: list[str]) -> Ints | None:
    """The names as ids, where all are different whole numbers, whatever folder and ending they have."""
    stems = [os.path.splitext(name.rpartition("/")[2])[0] for name in names]
    if not stems or not all(stem.isascii() and stem.isdecimal() for stem in stems):
        return None
    numbers = [int(stem) for stem in stems]
    return np.array(numbers, np.int64) if max(numbers) <= MAX_ID and len(set(numbers)) == len(numbers) else None


def list_one(path: str | os.PathLike[str]) -> Listing:
    """One picture. Raises ConfigError where there is no such file, DataError where it is none that can be read."""
    OpenFile(path).release()
    root, name = os.path.split(os.fspath(path))
    return Listing(root, [name])


# ---------------------------------------------------------------------------------------------------------------- lists
def list_file(path: str | os.PathLike[str], *, labels_key: str | None = "labels", ids_key: str = "ids") -> Listing:
    """The pictures that a list names, in its order, paths being relative to its folder.

    .csv (UTF-8, a header first) has a column `path`, and may have `labels` (or `label`; several apart by ;) and `ids` (or
    `id`). .jsonl holds an object on each line, with the same keys; labels are a name, a number or a list. Whole numbers are
    class numbers; names are sorted into classes. Labels come out as (n,) where each picture has one, else as a matrix.
    labels_key and ids_key: columns of other names; labels_key=None leaves labels unread. Raises ConfigError where there is
    no such file, ResourceError on more than can be read whole, DataError that names the line on anything malformed.
    """
    name = shown(path)
    wanted = _Columns(name, labels_key, ids_key)
    raw = _as_utf8(_whole(path), name)
    lines = _csv_items(raw, wanted) if os.fspath(path).lower().endswith(".csv") else _json_items(raw, wanted)
    root = os.path.dirname(os.fspath(path))
    items = list(lines)
    for item in items:
        if not _may_be_path(item.path):
            raise DataError(f"{name}: line {item.line:,}: no file can have this path")
    check_labels(items, name)
    _ids(items, name)
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
        raise DataError(f"{where}: {shown(path)} is a path of Windows; write paths relative to the folder of the list")
    plain = path.replace("\\", "/")
    for form in (plain, unicodedata.normalize("NFC", plain), unicodedata.normalize("NFD", plain)):
        if os.path.lexists(os.path.join(root, form)):
            return form
    return plain


def _say_repeated(root: str, names: list[str], items: list[Item], name: str) -> None:
    """Warn of pictures that stand on several lines: each line is a picture of its own."""
    first: dict[str, int] = {}
    repeated: dict[str, tuple[int, int]] = {}
    for path, item in zip(names, items):
        line = first.setdefault(path := os.path.normpath(os.path.join(root, path)), item.line)
        if line != item.line:
            repeated.setdefault(path, (line, item.line))
    if repeated:
        lines = [f"{shown(os.path.relpath(path, root))} on lines {a:,} and {b:,}" for path, (a, b) in repeated.items()]
        warn(
            f"{name}: {_count(lines, 'picture')} {'stands' if len(lines) == 1 else 'stand'} on more than one line "
            f"({', '.join(lines[:5])}{', ...' if len(lines) > 5 else ''}): each line counts as a picture of its own; several "
            "labels of one picture belong on one line"
        )


def _whole(path: str | os.PathLike[str]) -> bytes:
    file = OpenFile(path)
    try:
        if file.size > LIST_BYTES:
            raise ResourceError(f"{file.name} has {size(file.size)}, a list may have at most {size(LIST_BYTES)}")
        raw = np.empty(file.size, np.uint8)
        file.read_into(raw, 0)
    except BaseException:
        file.release()
        raise
    file.close()
    return raw.tobytes()


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
                    f"{self.name}: line {line:,} has no '{shown(key or '')}'; "
                    f"it has {', '.join(shown(k) for k in keys[:8]) or 'nothing'}{_advice(keys)}"
                )
        found = [[key for key in wanted if key in keys] for wanted in (self._labels, self._ids)]
        for key in ("path", *found[0], *found[1]):
            if keys.count(key) > 1:
                raise DataError(f"{self.name}: line {line:,} has '{shown(key)}' twice")
        for twice in found:
            if len(twice) > 1:
                raise DataError(f"{self.name}: line {line:,} has both '{twice[0]}' and '{twice[1]}'")
        return next(iter(found[0]), None), next(iter(found[1]), None)


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
            raise DataError(f"{error}; a .csv lists pictures, rows of numbers need .npy or .h5") from None
        raise
    for line, fields in rows:
        if len(fields) != len(header):
            raise DataError(f"{name}: line {line:,} has {_count(fields, 'field')}, line {first:,} has {len(header)}")
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
        raise DataError(f"{name}: line {line:,}: '{shown(field[:40])}' holds an empty label")
    return words


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
    words = [label for label in given if isinstance(label, str) and label]
    if len(words) == len(given):
        return words
    numbers = [int(label) for label in given if type(label) is int or (isinstance(label, float) and label.is_integer())]
    if len(numbers) == len(given):
        return numbers
    raise DataError(f"{name}: line {line:,}: labels need to be names or class numbers, and all of one kind")


def _no_id(name: str, line: int, word: Any) -> DataError:
    return DataError(f"{name}: line {line:,}: '{shown(str(word)[:40])}' is no id (0 to {MAX_ID:,})")


def _line(raw: bytes, at: int) -> int:
    return raw.count(b"\n", 0, at) + 1


def _ids(items: list[Item], name: str) -> Ints | None:
    with_id = [item for item in items if item.id is not None]
    if not with_id:
        return None
    if len(with_id) < len(items):
        without = next(item.line for item in items if item.id is None)
        raise DataError(
            f"{name}: line {without:,} has no id, line {with_id[0].line:,} has one; give one to each or none"
        )
    return np.array([item.id for item in items], np.int64)
