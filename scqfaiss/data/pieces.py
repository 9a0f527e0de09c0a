"""Rows in several files of one kind, one after another: a folder of them, or a pattern of names."""

from __future__ import annotations

import os
import warnings
from contextlib import ExitStack

import numpy as np

from ..arrays import NO_LABEL, Ints, Labels
from ..errors import ConfigError, DataError, ScqWarning, printable
from .concatenated import Concatenated
from .kinds import RowOptions, pieces_of
from .source import Source

MAX_PIECES = 400  # all are open at a time, some by two handles; systems let a program open 1,024


def open_pieces(path: str | os.PathLike[str], options: RowOptions) -> Source:
    """The rows of all files of a folder, or that a pattern names, in the order of their names.

    Raises as open_rows, ConfigError where they differ in dimension, or some have ids and others have none.
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


class PiecesSource(Concatenated):
    """Rows of the files of a folder, or that a pattern names; labels, ids and bad rows are looked at for all of them together."""

    def __init__(self, path: str | os.PathLike[str], pieces: list[Source], options: RowOptions) -> None:
        super().__init__(pieces, kept=False)
        self.path, self.name = os.fspath(path), printable(path)
        self.named = any(piece.named for piece in pieces)
        self.labels = joined([piece.labels for piece in pieces], [len(piece) for piece in pieces], self.name)
        ids = np.concatenate([piece.ids for piece in pieces]) if pieces[0].has_ids else None
        self.settle_as(options, None, ids, None, "labels", "ids")


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
