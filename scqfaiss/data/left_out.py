"""Rows that a training leaves out: the .csv file that `scqfaiss check` writes, or a list of ids.

Each line of the .csv names a row by its id, and proves by the column `row`, a hash of its features, that it is the row that was
checked. Lines may be removed; columns other than `id` may lack.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..arrays import Ints, Labels
from ..errors import DataError, printable
from .idlist import read_ids
from .open_file import OpenFile
from .source import Source, row_digests

ENDING = ".csv"
COLUMNS = ("id", "reason", "label", "seems", "row")


@dataclass(frozen=True)
class LeftOut:
    """One row: why it should be left out, its label, the class it seems to be ('' where unknown), and a hash of its features."""

    id: int
    reason: str
    label: str
    seems: str
    row: str


def write_left_out(f: BinaryIO, rows: Iterable[LeftOut]) -> None:
    """Write rows as .csv into f, a binary file open for writing: UTF-8, a header first."""
    text = io.StringIO(newline="")
    out = csv.writer(text, lineterminator="\n")
    out.writerow(COLUMNS)
    out.writerows([r.id, r.reason, r.label, r.seems, r.row] for r in rows)
    f.write(text.getvalue().encode())


def read_left_out(path: str | os.PathLike[str]) -> list[LeftOut]:
    """The rows that a .csv file, or a list of ids as read_ids takes it, names.

    Raises ConfigError where there is no such file, DataError where it is of another form.
    """
    if Path(path).suffix.lower() != ENDING:
        return [LeftOut(int(id), "", "", "", "") for id in read_ids(path)]
    file = OpenFile(path)
    try:
        content = file.read()
    finally:
        file.close()
    try:
        lines = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file.name}: not a .csv file in UTF-8") from error
    out = []
    for number, line in enumerate(lines, 2):
        word = line.get("id")
        if word is None:
            raise DataError(f"{file.name} has no column id; `scqfaiss check ROWS -o FILE{ENDING}` writes one")
        if not (word.isascii() and word.isdecimal()) or int(word) >= 1 << 63:
            raise DataError(f"{file.name}: line {number:,}: '{printable(word[:40])}' is no id (0 to {(1 << 63) - 1:,})")
        out.append(LeftOut(int(word), *(line.get(column) or "" for column in COLUMNS[1:])))
    return out


def leave_out(source: Source, path: str | os.PathLike[str]) -> int:
    """Go on without the rows that the file `path` names -> how many these were.

    Raises DataError where an id is none of the rows', or where row or label are not those that were checked.
    """
    listed, name = read_left_out(path), printable(path)
    if not listed:
        return 0
    wanted = np.unique(np.array([entry.id for entry in listed], np.int64))
    lost = np.setdiff1d(wanted, source.ids)
    if len(lost):
        raise DataError(
            f"{name}: {source.name} has no row of id {lost[0]} ({len(lost):,} such ids); is it of other rows?"
        )
    rows = np.flatnonzero(np.isin(source.ids, wanted))
    found = as_text(digests_of(source, rows)) if any(entry.row for entry in listed) else [""] * len(rows)
    places: dict[int, list[int]] = {}
    for place, id in enumerate(source.ids[rows].tolist()):
        places.setdefault(id, []).append(place)
    out: set[int] = set()
    for entry in listed:
        same = [place for place in places[entry.id] if not entry.row or found[place] == entry.row]
        if not same:
            raise DataError(
                f"{name}: the row of id {entry.id} in {source.name} is not the one that was checked; check again"
            )
        if entry.label and source.labels is not None:
            kept = [place for place in same if label_text(source.labels, int(rows[place])) == entry.label]
            if not kept:
                now = label_text(source.labels, int(rows[same[0]]))
                raise DataError(
                    f"{name}: the label of id {entry.id} in {source.name} is '{printable(now)}', it was "
                    f"'{printable(entry.label)}' when it was checked; check again"
                )
            same = kept
        out.update(same)
    left_out = rows[sorted(out)]
    if len(left_out) == len(source):
        raise DataError(f"{name} names all {len(source):,} rows of {source.name}: none is left to train on")
    source.leave_out(left_out)
    return len(left_out)


def digests_of(source: Source, rows: Ints) -> NDArray[np.uint64]:
    """(k, 2) hashes of `rows` (k,), ascending, finite or not."""
    parts = [np.zeros((0, 2), np.uint64)]
    for i, x in source.unchecked_blocks():
        here = rows[slice(*np.searchsorted(rows, [i, i + len(x)]))]
        if len(here):
            parts.append(row_digests(x[here - i]))
    return np.concatenate(parts)


def as_text(digests: NDArray[np.uint64]) -> list[str]:
    """(k, 2) -> 32 hexadecimal digits of each."""
    return [row.astype("<u8").tobytes().hex() for row in digests]


def label_text(labels: Labels, row: int) -> str:
    """The label of a row, or its labels joined by ;."""
    y = labels.y[row]
    return (
        ";".join(labels.class_name(int(c)) for c in np.flatnonzero(y))
        if labels.multilabel
        else labels.class_name(int(y))
    )
