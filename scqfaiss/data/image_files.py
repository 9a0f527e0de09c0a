"""Which image files there are: those of a folder, with a sub-folder for each class or none, or one file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Ints, class_text
from ..errors import DataError, printable, warn
from .classes import class_key, in_order
from .image_labels import Item, classes_of
from .kinds import IMAGE_ENDINGS
from .open_file import OpenFile

MAX_ID = (1 << 63) - 1

# What systems leave beside images, in small letters; also passed over: all names with a leading dot.
_LEFT_BY_SYSTEMS = {
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"),
    *("__macosx", "@eadir", "$recycle.bin", "system volume information"),
}


@dataclass(frozen=True)
class Listing:
    """Images by name, in order: n names relative to `root`, and what is known of them.

    Either `classes`, which names the class folder that each lies in, or `items`, a line of the list `list_name` each.
    """

    root: str
    names: list[str]
    class_names: tuple[str, ...] | None = None
    classes: Ints | None = None
    items: list[Item] | None = None
    list_name: str = ""
    single: bool = False  # the path itself is the image

    def facts(self, rows: Ints | None = None) -> tuple[Any, tuple[str, ...] | None, Ints | None]:
        """Of the images `rows`, or all, as if there were no others: class numbers (n,) or a matrix (n, C) of 0 and 1,
        names of classes, ids (n,); None where they are not given."""
        kept = range(len(self.names)) if rows is None else rows.tolist()
        by_name = _numbers([self.names[k] for k in kept])
        if self.items is None:
            return None if self.classes is None else self.classes[list(kept)], self.class_names, by_name
        items = [self.items[k] for k in kept]
        ids = ids_of(items, self.list_name)
        return *classes_of(items, self.list_name), by_name if ids is None else ids


# -------------------------------------------------------------------------------------------------------------- folders
def list_folder(path: str | os.PathLike[str]) -> Listing:
    """All files of a folder, sorted by their path in it; its sub-folders, if it has any, are the classes.

    Classes are numbered by their names: by value where all are whole numbers, else in the order of the text. Names with a
    leading dot, and what systems leave in folders (Thumbs.db, __MACOSX), are passed over. Links are followed, but no link
    to a folder that holds the link itself or that another link led to: such a link counts as a file, which cannot be read
    then. Where all names are different whole numbers (0017.jpg), these are the ids. Beside class folders, files with
    another ending than an image's are passed over with a warning. Raises DataError on images there, on two folders of
    one number, and on a folder that may not be listed.
    """
    root = os.fspath(path)
    followed: set[str] = set()
    folders, names = _entries(root, "", followed)
    if folders and names:
        images = [name for name in names if name.lower().endswith(IMAGE_ENDINGS)]
        if images:
            raise DataError(
                f"{printable(path)} holds {counted(images, 'image')} beside {counted(folders, 'folder')} "
                f"({printable(min(images))} beside {printable(min(folders))}); needs a folder for each class, or files alone"
            )
        warn(
            f"{printable(path)}: passed over {counted(names, 'file')} beside class folders (first: {printable(min(names))})"
        )
        names = []
    todo = list(folders)
    while todo:
        below, here = _entries(root, todo.pop(), followed)
        todo += below
        names += here
    names.sort()
    if not folders:
        return Listing(root, names)
    class_of = _class_folders(folders, printable(path))
    class_names = tuple(in_order(set(class_of.values())))
    number = {name: c for c, name in enumerate(class_names)}
    classes = np.array([number[class_of[name.partition("/")[0]]] for name in names], np.int64)
    return Listing(root, names, class_names, classes)


def _class_folders(folders: list[str], name: str) -> dict[str, str]:
    """Class of each folder. Two folders are one class where they differ in the form of Unicode alone.

    Raises DataError where two folders name one class in any other way.
    """
    class_of = {folder: class_text(printable(folder)) for folder in folders}
    first: dict[str, str] = {}
    for folder in sorted(folders):
        other = first.setdefault(class_key(class_of[folder]), folder)
        if other == folder:
            continue
        if class_of[other] != class_of[folder]:
            raise DataError(
                f"{name}: class folders {printable(other)} and {printable(folder)} are one number; rename one"
            )
        if class_text(other) != class_text(folder):
            raise DataError(f"{name}: names of class folders cannot be told apart in print; rename them")
        warn(f"{name}: two folders are called {class_of[folder]}, in two forms of Unicode; they are taken as one class")
    return class_of


def counted(names: list[str], noun: str) -> str:
    return f"{len(names):,} {noun}{'' if len(names) == 1 else 's'}"


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
        raise DataError(f"{printable(here)}: this folder cannot be listed ({os.strerror(error.errno or 0)})") from error
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
    """One image. Raises ConfigError where there is no such file, DataError where it is none that can be read."""
    OpenFile(path).release()
    root, name = os.path.split(os.fspath(path))
    return Listing(root, [name], single=True)


def ids_of(items: list[Item], name: str) -> Ints | None:
    with_id = [item for item in items if item.id is not None]
    if not with_id:
        return None
    if len(with_id) < len(items):
        without = next(item.line for item in items if item.id is None)
        raise DataError(
            f"{name}: line {without:,} has no id, line {with_id[0].line:,} has one; give one to each or none"
        )
    return np.array([item.id for item in items], np.int64)
