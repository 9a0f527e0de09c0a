"""Where pictures lie as files: a folder, with a sub-folder for each class or none, a list (.csv, .jsonl), or one file."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import MAX_CLASSES, Ints
from ..errors import DataError, ResourceError, shown, size
from ..files import parse_json
from .source import OpenFile

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LIST_ENDINGS = (".csv", ".jsonl")
LIST_BYTES = 1 << 30  # longest list, which is read whole
LABEL_BYTES = 8 << 30  # largest matrix of labels
MAX_ID = (1 << 63) - 1

_NUMBER = re.compile(
    r"[+-]?[0-9]{1,400}(\.0*)?"
)  # 3.0 is how programs write a class number that once stood beside a gap


@dataclass(frozen=True)
class Listing:
    """Pictures by name, in order: n names relative to `root`, class numbers (n,) or a matrix (n, C) of 0 and 1, ids (n,)."""

    root: str
    names: list[str]
    y: Any = None
    class_names: tuple[str, ...] | None = None
    ids: Ints | None = None


# -------------------------------------------------------------------------------------------------------------- folders
def list_folder(path: str | os.PathLike[str]) -> Listing:
    """All files of a folder, sorted by their path in it; class c is the c-th of its sub-folders by name, if it has any.

    Names with a leading dot are passed over. Links are followed, but no link to a folder that holds the link itself or
    that another link led to: such a link counts as a file, which cannot be read then. Where all names are different whole
    numbers (0017.jpg), these are the ids. Raises DataError on files beside class folders, and on a folder that may not be
    listed.
    """
    root = os.fspath(path)
    followed: set[str] = set()
    folders, names = _entries(root, "", followed)
    if folders and names:
        raise DataError(
            f"{shown(path)} holds {_count(names, 'file')} beside {_count(folders, 'folder')} ({shown(min(names))} beside "
            f"{shown(min(folders))}); needs a folder for each class, or files alone"
        )
    classes = sorted(folders)
    todo = list(folders)
    while todo:
        below, here = _entries(root, todo.pop(), followed)
        todo += below
        names += here
    names.sort()
    if not classes:
        return Listing(root, names, ids=_numbers(names))
    class_names = tuple(shown(name) for name in classes)
    if len(set(class_names)) < len(classes):
        raise DataError(f"{shown(path)}: names of class folders cannot be told apart in print; rename them")
    number = {name: c for c, name in enumerate(classes)}
    y = np.array([number[name.partition("/")[0]] for name in names], np.int64)
    return Listing(root, names, y, class_names, _numbers(names))


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
                if not entry.name.startswith("."):
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
    return Listing(root, [name], ids=_numbers([name]))


# ---------------------------------------------------------------------------------------------------------------- lists
@dataclass(frozen=True)
class _Item:
    """What one line says. labels: numbers or names, one kind in a line; several: they may be more than one."""

    line: int
    path: str
    labels: list[int] | list[str]
    several: bool
    id: int | None


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
    raw = _whole(path)
    lines = _csv_items(raw, wanted) if os.fspath(path).lower().endswith(".csv") else _json_items(raw, wanted)
    items = list(lines)
    for item in items:
        if not _may_be_path(item.path):
            raise DataError(f"{name}: line {item.line:,}: no file can have this path")
    y, class_names = _labels(items, name)
    return Listing(os.path.dirname(os.fspath(path)), [item.path for item in items], y, class_names, _ids(items, name))


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
                    f"it has {', '.join(shown(k) for k in keys[:8]) or 'nothing'}"
                )
        found = [[key for key in wanted if key in keys] for wanted in (self._labels, self._ids)]
        for key in ("path", *found[0], *found[1]):
            if keys.count(key) > 1:
                raise DataError(f"{self.name}: line {line:,} has '{shown(key)}' twice")
        for twice in found:
            if len(twice) > 1:
                raise DataError(f"{self.name}: line {line:,} has both '{twice[0]}' and '{twice[1]}'")
        return next(iter(found[0]), None), next(iter(found[1]), None)


def _csv_items(raw: bytes, wanted: _Columns) -> Iterator[_Item]:
    name = wanted.name
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: line {_line(raw, error.start):,} is not UTF-8") from error
    rows = _csv_rows(text, name)
    first, header = next(rows, (1, []))
    header = [column.strip() for column in header]
    labels_key, ids_key = wanted.find(header, first)
    everything = []
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
        everything.append(_Item(line, row["path"], labels, len(labels) > 1, id))
    # Text cannot tell 3 the number from 3 the name: only where all are numbers are they meant as numbers.
    numbers = all(_NUMBER.fullmatch(str(label)) for item in everything for label in item.labels)
    for item in everything:
        yield (
            _Item(
                item.line,
                item.path,
                [int(str(label).partition(".")[0]) for label in item.labels],
                item.several,
                item.id,
            )
            if numbers
            else item
        )


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


def _json_items(raw: bytes, wanted: _Columns) -> Iterator[_Item]:
    name = wanted.name
    for number, text in enumerate(raw.split(b"\n")):
        line = number + 1
        if number == 0:
            text = text.removeprefix(b"\xef\xbb\xbf")
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
        yield _Item(line, path, labels, several, id)


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


def _labels(items: list[_Item], name: str) -> tuple[Any, tuple[str, ...] | None]:
    """Class numbers (n,) or a matrix (n, C), and the names of classes; None where no line has a label."""
    labelled = [item for item in items if item.labels]
    if not labelled:
        return None, None
    named = isinstance(labelled[0].labels[0], str)
    kinds = ("number", "name")
    for item in labelled:
        if isinstance(item.labels[0], str) is not named:
            raise DataError(
                f"{name}: line {item.line:,} gives labels by {kinds[not named]}, line {labelled[0].line:,} by {kinds[named]}"
            )
        for label in item.labels:
            if not isinstance(label, str) and not 0 <= label < MAX_CLASSES:
                raise DataError(
                    f"{name}: line {item.line:,}: label {label} is no class number (0 to {MAX_CLASSES - 1:,})"
                )
    class_names = None
    if named:
        class_names = tuple(sorted({shown(str(label)) for item in labelled for label in item.labels}))
        number = {class_name: c for c, class_name in enumerate(class_names)}
        classes = [[number[shown(str(label))] for label in item.labels] for item in items]
    else:
        classes = [[int(label) for label in item.labels] for item in items]
    if all(len(own) == 1 for own in classes) and not any(item.several for item in items):
        return np.array(classes, np.int64)[:, 0], class_names
    C = 1 + max(max(own) for own in classes if own)
    if len(items) * C > LABEL_BYTES:
        raise ResourceError(
            f"{name}: labels need a matrix of {size(len(items) * C)}, at most {size(LABEL_BYTES)} can be held"
        )
    y = np.zeros((len(items), C), np.uint8)
    rows = np.repeat(np.arange(len(items)), [len(own) for own in classes])
    y[rows, [c for own in classes for c in own]] = 1
    return y, class_names


def _ids(items: list[_Item], name: str) -> Ints | None:
    with_id = [item for item in items if item.id is not None]
    if not with_id:
        return None
    if len(with_id) < len(items):
        without = next(item.line for item in items if item.id is None)
        raise DataError(
            f"{name}: line {without:,} has no id, line {with_id[0].line:,} has one; give one to each or none"
        )
    return np.array([item.id for item in items], np.int64)
