"""Labels in a file of their own, beside a file that holds features alone."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError, ResourceError, format_bytes
from .open_file import OpenFile

WHOLE_BYTES = 8 << 30  # largest file of labels
TEXT_ENDINGS = (".txt", ".csv", ".tsv")


def read_labels(path: str | os.PathLike[str]) -> NDArray[Any]:
    """A .npy array of class numbers or names (n,), or of 0 and 1 (n, C); or a text file in UTF-8 with a label on each line.

    Lines are names, or class numbers where all are whole numbers; an empty line, or -1, is a row without a label. Raises
    ConfigError where there is no such file or it has another ending, DataError where it is damaged, ResourceError where it is
    too large.
    """
    ending = Path(path).suffix.lower()
    file = OpenFile(path)
    try:
        if file.size > WHOLE_BYTES:
            raise ResourceError(
                f"{file.name} has {format_bytes(file.size)}, at most {format_bytes(WHOLE_BYTES)} can be read"
            )
        if ending != ".npy" and ending not in TEXT_ENDINGS:
            raise ConfigError(
                f"{file.name}: labels come as .npy, or as text with a label on each line ({', '.join(TEXT_ENDINGS)}); write "
                "them with numpy.save"
            )
        content = file.read()
    finally:
        file.close()
    return array_of(io.BytesIO(content), file.name) if ending == ".npy" else _lines(content, file.name)


def array_of(f: Any, name: str) -> NDArray[Any]:
    """The array of a .npy file, whatever it holds but Python objects. Raises DataError."""
    try:
        return np.asarray(np.lib.format.read_array(f, allow_pickle=False))
    except (ValueError, EOFError, OSError, TypeError, SyntaxError, MemoryError) as error:
        if "Object arrays" in str(error):
            raise DataError(
                f"{name} holds Python objects, which are not read, as they run code; save y.astype(str)"
            ) from error
        raise DataError(f"{name}: not a readable .npy array") from error


def _lines(content: bytes, name: str) -> NDArray[Any]:
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8; save it as UTF-8") from error
    words = [line.strip() for line in lines]
    if all(word.lstrip("-").isdecimal() and word.isascii() and len(word) < 19 for word in words if word):
        return np.array([int(word) if word else -1 for word in words], np.int64)
    return np.array(["" if word == "-1" else word for word in words], str)
