"""Which column of a file of items is what, and what a line says of one item."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import DataError, printable

# What items have, by the names that a column may have for it. `labels` and `path` are those of a list of images.
NAMES = {"id": ("id", "ids"), "title": ("title", "name"), "label": ("label", "labels"), "image": ("image", "path")}
MAX_ID = (1 << 63) - 1
MAX_TEXT = 1000  # characters of a title or a label
MAX_PATH = 4096  # characters of the path of an image: no file system takes more
MAX_ITEM = 1 << 20  # bytes of a line, and of the further columns of an item

# One for all items: json.dumps would make one for each.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))

Row = tuple[int, str | None, str | None, str | None, str | None]  # id, title, label, image, further columns as JSON


class Columns:
    """Which of the columns `keys` is the id, the title, the label and the image; all others are kept by their own names.

    Raises DataError, which begins with `where`, where there is no id, or two columns for one thing.
    """

    def __init__(self, keys: Sequence[str], where: str) -> None:
        self.keys, found = tuple(keys), {}
        for meaning, names in NAMES.items():
            here = [key for key in keys if key in names]
            if len(here) > 1:
                raise DataError(f"{where} has both '{here[0]}' and '{here[1]}'; leave one of them out")
            found[meaning] = here[0] if here else None
        if found["id"] is None:
            has = ", ".join(printable(key[:40]) for key in keys[:8]) or "nothing"
            alone = len(keys) == 1 and any(mark in keys[0] for mark in ";\t|")
            raise DataError(f"{where} has no 'id'; it has {has}" + ("; columns stand apart by commas" if alone else ""))
        self.id: str = found["id"]
        self.title, self.label, self.image = found["title"], found["label"], found["image"]
        self.further = tuple(key for key in keys if key not in found.values())

    def row(self, values: Mapping[str, Any], where: str) -> Row:
        """The values of one line, by column -> what is kept of it. Raises DataError that begins with `where`."""
        title = as_text(values[self.title], MAX_TEXT, "title", where) if self.title is not None else None
        label = as_text(values[self.label], MAX_TEXT, "label", where) if self.label is not None else None
        image = as_text(values[self.image], MAX_PATH, "image", where) if self.image is not None else None
        further = {key: values[key] for key in self.further if values[key] is not None and values[key] != ""}
        return as_id(values[self.id], where), title, label, image, as_json(further, where) if further else None


def as_id(value: Any, where: str) -> int:
    """A whole number, or one as text -> int. Raises DataError."""
    if type(value) is str:
        word = value.strip()
        if word.isascii() and word.isdecimal() and len(word) < 40:
            value = int(word)
    if type(value) is not int or not 0 <= value <= MAX_ID:
        raise DataError(f"{where}: {printable(repr(value)[:40])} is no id (0 to {MAX_ID:,})")
    return value


def as_text(value: Any, most: int, what: str, where: str) -> str | None:
    """A text, a number or a list of them -> one text; None for what is empty. Raises DataError."""
    if type(value) is not str:
        if isinstance(value, list):
            value = "; ".join(as_text(part, most, what, where) or "" for part in value)
        elif value is None or value != value:  # NaN
            return None
        elif isinstance(value, (bool, dict)) or not isinstance(value, (int, float)):
            raise DataError(f"{where}: {what} is {printable(repr(value)[:40])}, needs to be text")
        else:
            value = str(value)
    if len(value) > most:
        raise DataError(
            f"{where}: {what} has {len(value):,} characters, at most {most:,} are kept; longer text needs a column of "
            "another name"
        )
    if not value.isascii():
        check_unicode([value], where)
    return value.strip() or None


def as_json(further: Mapping[str, Any], where: str) -> str:
    """Further columns as JSON. Raises DataError for what JSON cannot hold."""
    try:
        text = _ENCODER.encode(further)
    except (TypeError, ValueError, RecursionError) as error:
        bad = next((key for key, value in further.items() if not _fits_json(value)), "")
        raise DataError(
            f"{where}: '{printable(bad[:40])}' holds {printable(repr(further.get(bad))[:40])}, which JSON cannot hold"
        ) from error
    if len(text) > MAX_ITEM:
        raise DataError(f"{where}: further columns take {len(text):,} characters, at most {MAX_ITEM:,} are kept")
    if not text.isascii():
        check_unicode([text], where)
    return text


def check_unicode(texts: Iterable[str], where: str) -> None:
    """Raise DataError where a text holds half of a pair of surrogates, as broken JSON does."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: '{printable(text[:40])}' is no text that Unicode knows") from error


def _fits_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True
