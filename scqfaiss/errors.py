"""Every error a user can meet, each with the exit code of the command that stops on it.

A message is one line: file, what was found, what is needed, then what to do. Exit code 1 is never chosen here: a command
that ends with 1 has met an uncaught exception, hence a bug of ours.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable


class ScqError(Exception):
    """Base of all errors that scqfaiss raises on purpose."""

    exit_code = 3


class ConfigError(ScqError):
    """The request cannot be met: unknown option, missing part, or sound files that do not fit together."""

    exit_code = 2


class DataError(ScqError):
    """A file or array of rows is bad by itself."""

    exit_code = 3


class IndexFileError(ScqError):
    """A .faissindex file is damaged, forged, foreign or of a newer format."""

    exit_code = 3


class CheckpointError(ScqError):
    """A model or checkpoint file is damaged, forged or of a newer format."""

    exit_code = 3


class WriteError(ScqError):
    """Nothing could be written or locked; what stood at the target is as it was."""

    exit_code = 4


class ResourceError(ScqError):
    """Memory, GPU or a worker is lacking or lost."""

    exit_code = 5


class Stopped(ScqError):
    """A training that was asked to stop by a signal, and did so after saving where it stands."""

    exit_code = 130


class ScqWarning(UserWarning):
    """A notice about data or settings that does not stop the work; the command line prints it to stderr."""


def warn(message: str) -> None:
    """Issue `message` (one line) as a ScqWarning that points at the caller's caller."""
    warnings.warn(message, ScqWarning, stacklevel=3)


def printable(name: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> str:
    """A file name for a message: always one printable line, whatever bytes the name holds."""
    text = os.fsdecode(name)
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def suggestion(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the known word nearest to `word`, or ""."""
    from difflib import get_close_matches  # with re behind it, which the program's first milliseconds do without

    near = get_close_matches(word, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def format_bytes(nbytes: float) -> str:
    """Bytes in the unit a person would choose: 180 bytes, 1.2 GB, 20.5 TB (powers of 1,000)."""
    if nbytes < 1000:
        return f"{nbytes:.0f} bytes"
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        nbytes /= 1000
        if nbytes < 999.95 or unit == "PB":
            break
    return f"{nbytes:.1f} {unit}" if nbytes < 100 else f"{nbytes:.0f} {unit}"
