"""Rows in several files of one kind, one after another: a folder of them, or a pattern of names."""

from __future__ import annotations

import os
import warnings
from bisect import bisect_right
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import NO_LABEL, Ints, Labels
from ..errors import ConfigError, DataError, ScqWarning, printable
from ..modality import ROWS
from .kinds import RowOptions, pieces_of
from .source import Source

MAX_PIECES = 400  # all are open at a time, some by two handles; systems let a program open 1,024


def open_pieces(path: str | os.PathLike[str], options: RowOptions) -> Source:
    """The rows of all files of a folder, or that a pattern names, in the order of their names.

    Raises as open_rows, ConfigError where they differ in dimension, DataError where some have ids and others have none.
    """
    from . import open_rows

    names = pieces_of(path)
    if len(names) > MAX_PIECES:
        raise ConfigError(
            f"{printable(path)} holds {len(names):,} files of rows, at most {MAX_PIECES:,} can be read; join some of them"
        )
    # What is wrong with a row or a label is told once, for all pieces together.
    given = {
        **vars(options),
        "skip_bad_rows": False,
        "repeated_ids": True,
        "keep_unlabelled": True,
        "labels_file": None,
    }
    pieces: list[Source] = []
    with ExitStack() as stack:
        for name in names:
            with warnings.catch_warnings():
                if pieces:  # the first one has said it
                    warnings.simplefilter("ignore", ScqWarning)
                pieces.append(stack.enter_context(open_rows(name, **given)))
        source = PiecesSource(path, pieces, options)
        stack.pop_all()
    return source


class PiecesSource(Source):
    """Rows of several sources, which are closed with this one."""

    def __init__(self, path: str | os.PathLike[str], pieces: list[Source], options: RowOptions) -> None:
        self._pieces = pieces
        self.path, self.name = os.fspath(path), printable(path)
        first = pieces[0]
        for piece in pieces:
            if piece.modality != ROWS or piece.pairs:
                raise ConfigError(f"{piece.name} holds {piece.modality.noun}, files of which are not joined")
            if piece.d != first.d:
                raise ConfigError(f"{piece.name}: rows have d={piece.d}, {first.name} has d={first.d}")
        self.features_name, self.d, self.named = first.features_name, first.d, any(piece.named for piece in pieces)
        self._starts = [0, *np.cumsum([piece.physical_rows for piece in pieces]).tolist()]
        self.physical_rows = self._starts[-1]
        lacking = next((piece for piece in pieces if piece.has_ids != first.has_ids), None)
        if lacking is not None:
            having = (first, lacking) if first.has_ids else (lacking, first)
            raise DataError(f"{having[0].name} has ids, {having[1].name} has none; give all files ids, or none")
        self.labels = joined([piece.labels for piece in pieces], [len(piece) for piece in pieces], self.name)
        ids = np.concatenate([piece.ids for piece in pieces]) if first.has_ids else None
        self.settle_as(options, None, ids, None, "labels", "ids")

    def fetch(self, i: int, j: int) -> NDArray[Any]:
        k, parts = bisect_right(self._starts, i) - 1, []
        if i == j:
            return self._pieces[0].fetch(0, 0)
        while i < j:
            start, end = self._starts[k], min(j, self._starts[k + 1])
            if end > i:
                parts.append(self._pieces[k].fetch(i - start, end - start))
            i, k = max(i, end), k + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def close(self) -> None:
        with ExitStack() as stack:
            for piece in self._pieces:
                stack.callback(piece.close)

    @property
    def sealed(self) -> bool:
        return all(piece.sealed for piece in self._pieces)


def joined(labels: list[Labels | None], lengths: list[int], name: str) -> Labels | None:
    """Labels of pieces of n rows each as one, classes by name where they have names; None where no piece has any.

    A piece without labels has rows without a label. Raises DataError where some have names and others numbers, or some several
    labels a row.
    """
    given = [part for part in labels if part is not None and (part.C or part.multilabel)]
    if not given:
        return None
    for what, differs in (
        ("names of classes", [part.class_names is not None for part in given]),
        ("several labels a row", [part.multilabel for part in given]),
    ):
        if len(set(differs)) > 1:
            raise DataError(f"{name}: some of its files have {what}, and some have not; write all of them alike")
    names: tuple[str, ...] | None = None
    tables: list[Ints] = [np.arange(part.C) for part in given]
    if given[0].class_names is not None:
        lists = {part.class_names for part in given}
        names = given[0].class_names if len(lists) == 1 else tuple(sorted({c for n in lists for c in n or ()}))
        number = {text: c for c, text in enumerate(names)}
        tables = [np.array([number[text] for text in part.class_names or ()], np.int64) for part in given]
    C = len(names) if names is not None else max(part.C for part in given)
    moved = iter(zip(given, tables))
    out = []
    for part, n in zip(labels, lengths):
        y = np.zeros((n, C), np.uint8) if given[0].multilabel else np.full(n, NO_LABEL)
        if part is not None and (part.C or part.multilabel):
            part, table = next(moved)
            if part.multilabel:
                y[:, table] = part.y
            else:
                y = np.append(table, NO_LABEL)[part.y]  # -1 is the last place
        out.append(y)
    return Labels(np.concatenate(out), C, names)
