"""Files of items, line by line: .csv, .jsonl and .parquet. None is read whole."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from ..dependencies import missing
from ..errors import ConfigError, DataError, printable
from ..files import parse_json
from .columns import MAX_ITEM, Columns, Row

BATCH = 4096  # rows of a Parquet file at a time

# (what it is called in messages, its row, the bytes of the file that were read until here)
Line = tuple[str, Row, int]


def read_csv(f: BinaryIO, name: str) -> Iterator[Line]:
    """Rows of a CSV file in UTF-8 whose first line names the columns. Raises DataError that names the line."""
    reader = csv.reader(_texts(f, name), strict=True)
    columns: Columns | None = None
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{name}: line {line:,} is no line of a CSV file ({error})") from error
        if fields is None:
            break
        if not fields:
            continue
        if columns is None:
            header = [field.strip() for field in fields]
            if repeated := [key for key in header if header.count(key) > 1]:
                raise DataError(f"{name}: line {line:,} has '{printable(repeated[0][:40])}' twice")
            columns = Columns(header, f"{name}: line {line:,}")
            continue
        where = f"{name}: line {line:,}"
        if len(fields) != len(columns.keys):
            raise DataError(f"{where} has {len(fields):,} fields, the header has {len(columns.keys):,}")
        yield where, columns.row(dict(zip(columns.keys, fields)), where), f.tell()
    if columns is None:
        raise DataError(f"{name} is empty; its first line has to name the columns")


def read_jsonl(f: BinaryIO, name: str) -> Iterator[Line]:
    """Rows of a file with a JSON object on each line. Raises DataError that names the line."""
    columns = None
    for number, text in enumerate(_lines(f, name), 1):
        text = text.removeprefix(codecs.BOM_UTF8)  # anywhere: files are put together from several
        if not text.strip():
            continue
        where = f"{name}: line {number:,}"
        values = parse_json(text)
        if values is None:
            raise DataError(f"{where} is not a JSON object")
        if columns is None or columns.keys != tuple(values):
            columns = Columns(tuple(values), where)
        yield where, columns.row(values, where), f.tell()


def read_parquet(f: BinaryIO, name: str) -> Iterator[Line]:
    """Rows of a Parquet file, a few at a time. Raises ConfigError without pyarrow, DataError that names the row."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise missing(error, name) or error from error
    size = f.seek(0, 2)
    try:
        with parquet.ParquetFile(f) as file:
            keys = file.schema_arrow.names
            if repeated := [key for key in keys if keys.count(key) > 1]:
                raise DataError(f"{name} has '{printable(repeated[0][:40])}' twice")
            columns, row, rows = Columns(keys, name), 0, max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(batch_size=BATCH):
                lists = [_plain(column.to_pylist()) for column in batch.columns]
                for values in zip(*lists):
                    row += 1
                    where = f"{name}: row {row:,}"
                    yield where, columns.row(dict(zip(keys, values)), where), size * row // rows
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{name} is no Parquet file that can be read ({_short(error)})") from error


READERS: dict[str, Callable[[BinaryIO, str], Iterator[Line]]] = {
    ".csv": read_csv,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}


def reader_of(name: str) -> Callable[[BinaryIO, str], Iterator[Line]]:
    """What reads a file of this name. Raises ConfigError for endings that nothing reads."""
    for ending, reader in READERS.items():
        if name.lower().endswith(ending):
            return reader
    raise ConfigError(f"{name}: items are read from {', '.join(READERS)} and .sqlite files")


def _lines(f: BinaryIO, name: str) -> Iterator[bytes]:
    """Lines as they stand, their ends included: not with `for`, which would read a file without line ends whole."""
    number = 0
    while text := f.readline(MAX_ITEM + 1):
        number += 1
        if len(text) > MAX_ITEM:
            raise DataError(f"{name}: line {number:,} has more than {MAX_ITEM:,} bytes")
        yield text


def _texts(f: BinaryIO, name: str) -> Iterator[str]:
    for number, text in enumerate(_lines(f, name), 1):
        try:
            yield text.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{name}: line {number:,} is not UTF-8; save it as UTF-8") from error


def _plain(values: list[Any]) -> list[Any]:
    """Values of a column of Arrow in Python's plain types: days and times, decimals and the like as text, NaN as nothing."""
    return [
        value
        if value is None or type(value) in (int, str, bool, list, dict, bytes)
        else (value if value == value else None)
        if type(value) is float
        else str(value)
        for value in values
    ]


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}..."
