"""Labels of a list of images: what its lines say, made into class numbers or a matrix, and what looks like another form."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import MAX_CLASSES, NO_LABEL, class_text
from ..errors import DataError, ResourceError, format_bytes, printable, warn
from .classes import class_key, in_order

LABEL_BYTES = 8 << 30  # largest matrix of labels
SEPARATORS = {"|": "'|'", ",": "','", ";": "';'", "\t": "a tab"}  # that lists use, and how messages write them
_NUMBER = re.compile(
    r"[+-]?[0-9]{1,400}(\.0*)?"
)  # 3.0 is how programs write a class number that once stood beside a gap


@dataclass(frozen=True)
class Item:
    """What one line says. labels: names, or numbers, one kind in a line; text: they are words that may mean numbers.

    several: the line may have more than one label.
    """

    line: int
    path: str
    labels: Sequence[int] | Sequence[str]
    several: bool
    id: int | None
    text: bool = False


def check_labels(items: Sequence[Item], name: str) -> None:
    """Raise DataError on labels that cannot be, or that are no class numbers but zeros and ones of a row of a matrix.

    Warns of names in which several seem to stand.
    """
    items = _numbered(items)
    labelled = [item for item in items if item.labels]
    kinds = ("number", "name")
    for item in labelled:
        named = isinstance(labelled[0].labels[0], str)
        if isinstance(item.labels[0], str) is not named:
            raise DataError(
                f"{name}: line {item.line:,} gives labels by {kinds[not named]}, line {labelled[0].line:,} by {kinds[named]}"
            )
        for label in item.labels:
            if not isinstance(label, str) and not 0 <= label < MAX_CLASSES:
                raise DataError(
                    f"{name}: line {item.line:,}: label {label} is no class number (0 to {MAX_CLASSES - 1:,})"
                )
        if not named and len(set(item.labels)) < len(item.labels):
            raise _no_numbers(name, item)
    if labelled and isinstance(labelled[0].labels[0], str):
        _check_names({_named(label) for item in labelled for label in item.labels}, name)
    _check_pairs(labelled, name)
    _say_separators(labelled, name)


def _numbered(items: Sequence[Item]) -> Sequence[Item]:
    """Text cannot tell 3 the number from 3 the name: only where all are numbers are they meant as numbers."""
    if not all(item.text for item in items):
        return items
    if not all(_NUMBER.fullmatch(str(label)) for item in items for label in item.labels):
        return items
    return [
        Item(item.line, item.path, [int(str(label).partition(".")[0]) for label in item.labels], item.several, item.id)
        for item in items
    ]


def _no_numbers(name: str, item: Item) -> DataError:
    numbers = [int(label) for label in item.labels]
    twice = next(n for n in numbers if numbers.count(n) > 1)
    advice = "give each class number once"
    if set(numbers) <= {0, 1}:
        places = ", ".join(str(c) for c, there in enumerate(numbers[:20]) if there)
        advice = f"a row of zeros and ones is written as the numbers of its ones ({places or 'none'})"
    listed = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return DataError(f"{name}: line {item.line:,}: labels {listed} hold {twice} more than once; {advice}")


def _check_names(names: set[str], name: str) -> None:
    first: dict[str, str] = {}
    for text in sorted(names):
        other = first.setdefault(class_key(text), text)
        if other != text:
            raise DataError(f"{name}: labels '{other}' and '{text}' are one number; write it in one way")


def _check_pairs(labelled: Sequence[Item], name: str) -> None:
    """Of two classes a row of zeros and ones repeats nothing; but as numbers 0, 1 and 1, 0 would say the same."""
    pairs: dict[tuple[Any, ...], Item] = {}
    for item in labelled:
        pair = tuple(item.labels)
        if pair not in ((0, 1), (1, 0)):
            return
        pairs.setdefault(pair, item)
    if len(pairs) == 2:
        lines = " and ".join(f"{', '.join(map(str, pair))} (line {item.line:,})" for pair, item in pairs.items())
        raise DataError(
            f"{name}: all labels are {lines}: as class numbers these say the same; a row of zeros and ones is written as "
            "the numbers of its ones"
        )
    if len(labelled) > 1:
        warn(f"{name}: all images have the labels {', '.join(map(str, next(iter(pairs))))}: taken as classes 0 and 1")


def _say_separators(labelled: Sequence[Item], name: str) -> None:
    """Warn of names that hold what may stand between several labels."""
    examples: dict[str, tuple[int, str, set[str]]] = {}
    for item in labelled:
        for label in item.labels:
            if not isinstance(label, str):
                continue
            mark = next((mark for mark in SEPARATORS if mark in label), None)
            words = label.split()
            if mark is None and len(words) > 1 and all(map(_NUMBER.fullmatch, words)):
                mark = " "  # 'polar bear' is one name, '0 1' is not
            if mark is not None:
                examples.setdefault(mark, (item.line, label, set()))[2].add(label)
    for mark, (line, label, labels) in examples.items():
        separator = SEPARATORS.get(mark, "a blank between numbers")
        several = "a list as JSON holds them, or text with ; between in .csv"
        warn(
            f"{name}: label '{printable(label[:40])}' (line {line:,}; {len(labels):,} such) holds {separator} and is taken "
            f"as one class; several labels are {several}"
        )


def classes_of(items: Sequence[Item], name: str) -> tuple[Any, tuple[str, ...] | None]:
    """Class numbers (n,), -1 where a line has none, or a matrix (n, C) where a line has several, and the names of classes; None
    where no line has a label.

    Raises ResourceError where the matrix would be too large.
    """
    items = _numbered(items)
    labelled = [item for item in items if item.labels]
    if not labelled:
        return None, None
    class_names = None
    number: Callable[[Any], int] = int
    if isinstance(labelled[0].labels[0], str):
        class_names = tuple(in_order({_named(label) for item in labelled for label in item.labels}))
        known = {class_name: c for c, class_name in enumerate(class_names)}
        number = lambda label: known[_named(label)]  # noqa: E731
    classes = [[number(label) for label in item.labels] for item in items]
    if not any(item.several for item in items):
        return np.array([numbers[0] if numbers else NO_LABEL for numbers in classes], np.int64), class_names
    C = 1 + max(max(numbers) for numbers in classes if numbers)
    if len(items) * C > LABEL_BYTES:
        raise ResourceError(
            f"{name}: labels need a matrix of {format_bytes(len(items) * C)}, at most {format_bytes(LABEL_BYTES)} can be held"
        )
    y = np.zeros((len(items), C), np.uint8)
    rows = np.repeat(np.arange(len(items)), [len(numbers) for numbers in classes])
    y[rows, [c for numbers in classes for c in numbers]] = 1
    return y, class_names


def _named(label: Any) -> str:
    return class_text(printable(str(label)))
