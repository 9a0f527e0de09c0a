"""Items in an SQLite file: made in one pass, opened read-only, looked up by id. None of it is held in memory."""

from __future__ import annotations

import errno
import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..arrays import Ints
from ..contract import Progress, silent
from ..errors import DataError, IndexFileError, printable
from ..files import AtomicFile, PathLike, open_regular
from ..forks import Lock
from .columns import MAX_ID, Row
from .reading import Line

APPLICATION, FORMAT = 0x53435149, 1  # PRAGMA application_id ("SCQI") and user_version
SCHEMA = {
    "items": "CREATE TABLE items (id INTEGER PRIMARY KEY, title TEXT, label TEXT, image TEXT, further TEXT)",
    "source": "CREATE TABLE source (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID",
}
CACHE_KB = 65_536  # pages held while a file is made: ids may come in any order
INSERTED = 2000  # rows at a time
ASKED = 500  # ids at a time
_QUERY = "SELECT id, title, label, image, further FROM items WHERE id IN ({})"
_FULL = {sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_TOOBIG: errno.EFBIG}

_HEADER = re.compile(rb"SQLite format 3\0.{52}" + re.escape(APPLICATION.to_bytes(4)), re.DOTALL)

Item = dict[str, Any]


class DamagedItems(IndexFileError):
    """A file of items that is ours by its header, and damaged behind it."""


class Items:
    """Items by id, out of an SQLite file that `write_items` made. Any number of threads may ask at a time.

    Raises ConfigError where there is no such file, IndexFileError where it is damaged, foreign or of a newer format.
    """

    def __init__(self, path: PathLike) -> None:
        self.name, self._path, self._lock, self._process = printable(path), os.path.abspath(path), Lock(), 0
        with open_regular(path) as f:
            if not _HEADER.match(f.read(72)):
                raise IndexFileError(f"{self.name} is no file of items that scqfaiss made")
        with self._reading():
            (form,) = self._one("PRAGMA user_version")
            if form != FORMAT:
                raise IndexFileError(f"{self.name} is of format {form}, this version reads {FORMAT}")
            made = dict(self._connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
            if made != SCHEMA:
                raise IndexFileError(f"{self.name} holds other tables than scqfaiss makes")
            self.source: dict[str, str] = dict(self._connection.execute("SELECT key, value FROM source"))

    def __len__(self) -> int:
        text = self.source.get("rows", "")
        return int(text) if text.isdecimal() else 0

    def get(self, ids: Sequence[int] | Ints) -> list[Item | None]:
        """ids -> title, label, image (text or None) and the further columns of each; None for ids that have no item.

        Raises IndexFileError where the file is damaged.
        """
        wanted = [int(i) for i in ids]
        known = list({i for i in wanted if 0 <= i <= MAX_ID})
        found: dict[int, Item] = {}
        with self._lock, self._reading():
            for at in range(0, len(known), ASKED):
                part = known[at : at + ASKED]
                for id, title, label, image, further in self._connection.execute(_marks(len(part)), part):
                    item = {"title": title, "label": label, "image": image}
                    found[id] = {**json.loads(further), **item} if further is not None else item
        return [found.get(i) for i in wanted]

    def some(self, n: int) -> list[int]:
        """Up to n ids that have an item, from all over the ids; ascending, always the same ones."""
        with self._lock, self._reading():
            low, high = self._one("SELECT min(id), max(id) FROM items")
            if low is None:
                return []
            points = sorted({low + (high - low) * i // max(n - 1, 1) for i in range(n)})
            nearest = "SELECT id FROM items WHERE id >= ? LIMIT 1"
            return sorted({self._connection.execute(nearest, (point,)).fetchone()[0] for point in points})

    def close(self) -> None:
        """Close the file. May be called twice."""
        with self._lock:
            if self._process == os.getpid():
                self._connection.close()

    def _connect(self) -> sqlite3.Connection:
        # immutable: the file is replaced, never changed, so nothing needs a lock. What a forged file would run is off.
        connection = sqlite3.connect(
            f"file:{quote(self._path)}?mode=ro&immutable=1", uri=True, check_same_thread=False, isolation_level=None
        )
        self._process = os.getpid()
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.execute("PRAGMA query_only = ON")
        return connection

    def _one(self, query: str) -> Any:
        return self._connection.execute(query).fetchone()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            if self._process != os.getpid():  # SQLite's connections do not survive a fork
                self._connection = self._connect()
            yield
        except (sqlite3.DatabaseError, UnicodeDecodeError, ValueError) as error:
            if isinstance(error, sqlite3.ProgrammingError):  # closed, by our own hand
                raise
            raise DamagedItems(f"{self.name} is damaged ({_short(error)}); remove it, and it is made anew") from error


def write_items(output: AtomicFile, lines: Iterable[Line], source: dict[str, Any], progress: Progress = silent) -> int:
    """Make the file of items -> how many there are. source: what they were made of, as text; size: its bytes.

    Raises DataError that names the line of an id that stands on an earlier one too, and WriteError.
    """
    count = 0

    def fill(_: object) -> None:
        nonlocal count
        with _refusals(), closing(_empty(output.temporary)) as connection:
            connection.execute("BEGIN")
            count = _insert(connection, lines, int(source["size"]), progress)
            about = {**source, "rows": count}
            connection.executemany("INSERT INTO source VALUES (?, ?)", [(k, str(v)) for k, v in sorted(about.items())])
            connection.execute("COMMIT")

    output.write(fill, check=_check)
    return count


def _empty(path: Path) -> sqlite3.Connection:
    """A file with empty tables. It is thrown away where anything fails, and synced as a whole at its end: no journal."""
    connection = sqlite3.connect(path, isolation_level=None)
    for name, value in (
        ("journal_mode", "OFF"),
        ("synchronous", "OFF"),
        ("locking_mode", "EXCLUSIVE"),
        ("cache_size", -CACHE_KB),
        ("application_id", APPLICATION),
        ("user_version", FORMAT),
    ):
        connection.execute(f"PRAGMA {name} = {value}")
    for create in SCHEMA.values():
        connection.execute(create)
    return connection


def _insert(connection: sqlite3.Connection, lines: Iterable[Line], size: int, progress: Progress) -> int:
    count, at = 0, 0
    batch: list[Row] = []
    where: list[str] = []

    def flush() -> None:
        nonlocal count
        before = connection.total_changes
        try:
            connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?)", batch)
        except sqlite3.IntegrityError as error:
            bad = connection.total_changes - before  # those before it went in
            raise DataError(
                f"{where[bad]}: id {batch[bad][0]} stands on an earlier line too; ids occur once"
            ) from error
        count += len(batch)
        batch.clear()
        where.clear()
        progress("bytes of items", min(at, size), size, f"{count:,} items")

    for place, row, at in lines:  # noqa: B007
        batch.append(row)
        where.append(place)
        if len(batch) == INSERTED:
            flush()
    at = size
    flush()
    return count


@contextmanager
def _refusals() -> Iterator[None]:
    """What the disk refuses, as the OSError that files.py has words for."""
    try:
        yield
    except sqlite3.OperationalError as error:
        code = _FULL.get(error.sqlite_errorcode & 0xFF, errno.EIO)
        raise OSError(code, os.strerror(code)) from error


def _check(path: Path) -> None:
    with closing(Items(path)) as items:
        last = items._one("SELECT count(*), max(id) FROM items")
        if last[0] != len(items) or (last[1] is not None and items.get([last[1]]) == [None]):
            raise IndexFileError(f"{items.name} was not written as it should be; the disk may be bad")


def _marks(n: int) -> str:
    return _QUERY.format(",".join("?" * n))


def _short(error: BaseException) -> str:
    return printable(" ".join(str(error).split())[:200])
