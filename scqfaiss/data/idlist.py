"""Lists of ids as a user gives them: on the command line, or in a file."""

from __future__ import annotations

import codecs
import io
import os
import re
from pathlib import Path

import numpy as np

from ..arrays import Ints, as_ids
from ..errors import DataError, printable
from . import HDF5_ENDINGS, open_rows
from .kinds import IDS, NPZ_ENDINGS, PARQUET_ENDINGS
from .open_file import OpenFile

WITH_IDS = (*HDF5_ENDINGS, *PARQUET_ENDINGS, *NPZ_ENDINGS)
_INLINE = re.compile(r" *\d+ *(,.*)?", re.DOTALL)  # what follows the first comma is for the message, if it is no id


def read_ids(given: str | os.PathLike[str], ids_key: str = IDS) -> Ints:
    """'1,2,3', or a file of ids -> (n,) int64; an id may stand twice. ./123 names a file, 123 an id.

    A text file holds ids apart by white space or commas, a .npy file an array (n,) of integers, a .h5, .parquet or .npz file
    rows, whose ids are meant. Raises ConfigError where there is no such file, DataError where it holds anything else.
    """
    text = os.fspath(given)
    if _INLINE.fullmatch(text):
        return _parsed(text, "ids")
    name, ending = printable(given), Path(text).suffix.lower()
    if ending in WITH_IDS:
        with open_rows(text, labels_key=None, ids_key=ids_key, allow_duplicate_ids=True) as source:
            if not source.has_ids:
                raise DataError(
                    f"{name} has no ids, and its row numbers are none; name their dataset '{printable(ids_key)}'"
                )
            return source.ids
    file = OpenFile(text)
    try:
        content = file.read()
    finally:
        file.close()
    if ending == ".npy":
        try:
            a = np.load(io.BytesIO(content), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise DataError(f"{name}: not a readable .npy array") from error
        return as_ids(a, None, name, allow_duplicates=True)
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as PowerShell and Notepad write text
    try:
        return _parsed(content.decode("utf-16" if wide else "utf-8-sig"), name)
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not a text file of ids") from error


def _parsed(text: str, name: str) -> Ints:
    words = text.replace(",", " ").split()
    for number, word in enumerate(words):
        if not (word.isascii() and word.isdecimal()) or len(word) > 19 or int(word) >= 1 << 63:
            raise DataError(
                f"{name}: entry {number + 1:,} is '{printable(word[:40])}', needs an id (0 to {(1 << 63) - 1:,})"
            )
    return np.array([int(word) for word in words], np.int64)
