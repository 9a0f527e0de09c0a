"""Classes of one file as another numbers them: by their names where both have names, by number where neither has.

Two names are one class where they differ in nothing but the form in which Unicode composes their letters, or are the same
whole number (7, 007). A number without a name is the class whose name is that number, where the names are whole numbers;
where they are not, it can only be a place among them, and a warning says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import MAX_CLASSES, NO_LABEL, Ints, Labels, class_text
from ..errors import ConfigError, printable, suggestion, warn
from .source import Source

NAMED = 5  # classes that a message names


def class_key(name: str) -> str:
    """What two names of one class have in common.

    >>> class_key("007"), class_key("cafe\\u0301") == class_key("caf\\u00e9")
    ('7', True)
    """
    if _whole(name):
        return name.lstrip("0") or "0"
    return class_text(name)


def in_order(names: Iterable[str]) -> list[str]:
    """Names of classes, sorted: by value where all are whole numbers, else as text.

    >>> in_order(["10", "9"]), in_order(["10", "9", "a"])
    (['9', '10'], ['10', '9', 'a'])
    """
    names = list(names)
    if _all_whole(names):
        return sorted(names, key=lambda name: (len(class_key(name)), class_key(name), name))
    return sorted(names)


def _whole(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def _all_whole(names: Iterable[str]) -> bool:
    return all(_whole(name) for name in names)


def numbered_as(labels: Labels, names: Sequence[str], name: str, other: str) -> Labels:
    """`labels` of file `name` with the classes numbered as in `names`, those of `other`.

    Raises ConfigError on a class that has rows and stands not among them.
    """
    number = {class_key(known): c for c, known in enumerate(names)}
    if len(number) < len(names):
        raise ConfigError(f"{name}: classes cannot be told apart by name, some share one")
    used = np.flatnonzero(labels.counts())
    if labels.class_names is not None:
        name_of = {int(c): labels.class_names[int(c)] for c in used}
    elif _all_whole(names):
        name_of = {int(c): str(c) for c in used}
    else:
        _say_places(used, names, name, other)
        name_of = {int(c): names[int(c)] for c in used}
    unknown = [text for text in name_of.values() if class_key(text) not in number]
    if unknown:
        listed = ", ".join(f"'{printable(text)}'" for text in unknown[:NAMED])
        raise ConfigError(
            f"{name}: class {listed}{' and more' if len(unknown) > NAMED else ''} is unknown here, where classes "
            f"are {_listed(names)}{suggestion(unknown[0], names)}"
        )
    if labels.class_names is None:
        _say_values(used, names, name, other)
    place = np.zeros(labels.C, np.int64)
    place[used] = [number[class_key(name_of[int(c)])] for c in used]
    return Labels(*_moved(labels, used, place, len(names)), tuple(names))


def _say_values(used: Ints, names: Sequence[str], name: str, other: str) -> None:
    """Warn where numbers might as well be places among names that are numbers, and would mean something else then."""
    if not _all_whole(names) or not len(used) or used[-1] >= len(names):
        return
    apart = [int(c) for c in used if class_key(names[c]) != str(c)]
    if apart:
        warn(
            f"{name} numbers its classes, {other} names them by numbers: {apart[0]} is taken for the class named "
            f"'{apart[0]}', not for '{printable(names[apart[0]])}' at place {apart[0]}"
        )


def _say_places(used: Ints, names: Sequence[str], name: str, other: str) -> None:
    beyond = used[used >= len(names)]
    if len(beyond):
        raise ConfigError(
            f"{name} numbers its classes, up to {used[-1]}, {other} names {len(names)} ({_listed(names)}): which class is "
            f"{beyond[0]}? Name the classes in both"
        )
    taken = ", ".join(f"{c} is taken for '{printable(names[c])}'" for c in used[:NAMED])
    if taken:
        warn(f"{name} numbers its classes, {other} names them: {taken}{', ...' if len(used) > NAMED else ''}")


def _moved(labels: Labels, used: Ints, place: Ints, C: int) -> tuple[NDArray[Any], int]:
    """Labels with class c of `used` at place[c] of C."""
    if not labels.multilabel:
        return np.where(labels.y < 0, NO_LABEL, place[labels.y]), C
    y = np.zeros((len(labels), C), np.uint8)
    for c in used:
        y[:, place[c]] |= labels.y[:, c]
    return y, C


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(printable(text) for text in names[:NAMED])}{', ...' if len(names) > NAMED else ''}"


def together(a: Labels, b: Labels, name: str, other: str) -> tuple[Labels, Labels]:
    """Labels of files `name` and `other` with one numbering, b's where it has names.

    Where neither has names nothing changes. Raises ConfigError where a class of a is unknown to b's names, and where
    numbers go beyond names.
    """
    if b.class_names is not None:
        same = a.class_names is not None and same_names(a.class_names, b.class_names)
        return (a if same else numbered_as(a, b.class_names, name, other)), b
    if a.class_names is None:
        return a, b
    names, used = list(a.class_names), np.flatnonzero(b.counts())
    if _all_whole(names):  # b may well have classes that a lacks
        _say_values(used, names, other, name)
        known = {class_key(text) for text in names}
        names += [str(c) for c in used if str(c) not in known]
        every = np.arange(a.C)
        a = Labels(*_moved(a, every, every, len(names)), tuple(names))
        b = Labels(b.y, b.C, tuple(map(str, range(b.C))))
    return a, numbered_as(b, names, other, name)


def unnamed(labels: Labels, name: str, other: str) -> Labels:
    """`labels` of file `name`, whose classes have names, with the class numbers of `other`, which names none.

    Names that are whole numbers are these; any others are taken in their order, with a warning. Raises ConfigError on a
    name that is too large for a class number.
    """
    assert labels.class_names is not None
    used = np.flatnonzero(labels.counts())
    if not _all_whole(labels.class_names):
        _say_places(used, labels.class_names, other, name)
        return Labels(labels.y, labels.C)
    place = np.zeros(labels.C, np.int64)
    for c in used:
        key = class_key(labels.class_names[c])
        if len(key) > len(str(MAX_CLASSES)) or int(key) >= MAX_CLASSES:
            raise ConfigError(
                f"{name}: class '{printable(key[:40])}' is no class number (0 to {MAX_CLASSES - 1:,}) of {other}"
            )
        place[c] = int(key)
    return Labels(*_moved(labels, used, place, 1 + int(place[used].max(initial=-1))))


def same_names(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether both name the same classes in the same order."""
    return len(a) == len(b) and all(class_key(p) == class_key(q) for p, q in zip(a, b))


def align(a: Source, b: Source) -> None:
    """Number the classes of two sources alike, as together() does; those of labels given as names, and those without names.

    Numbers that have names on both sides stay as they are: check_classes() refuses what does not fit.
    """
    if a.labels is None or b.labels is None or a.labels.multilabel != b.labels.multilabel:
        return
    if a.labels.class_names and b.labels.class_names and not (a.named or b.named):
        return
    b.labels = with_unknown(a.labels, b.labels, a.name, b.name)
    a.labels, b.labels = together(a.labels, b.labels, a.name, b.name)
    _widen(a, b.labels.C)
    _widen(b, a.labels.C)


def with_unknown(a: Labels, b: Labels, name: str, other: str) -> Labels:
    """b, the labels of `other`, with the names that a alone has behind its own, and a warning that says so.

    As it is where either has no names, or they share none: then they are not of the same classes.
    """
    if not a.class_names or not b.class_names:
        return b
    known = {class_key(text) for text in b.class_names}
    used = [a.class_names[int(c)] for c in np.flatnonzero(a.counts())]
    unknown = [text for text in used if class_key(text) not in known]
    if not unknown or len(unknown) == len(used):
        return b
    warn(f"{other} has no row of class {_listed(unknown)}, which {name} names{suggestion(unknown[0], b.class_names)}")
    names = (*b.class_names, *unknown)
    y = np.pad(b.y, ((0, 0), (0, len(unknown)))) if b.multilabel else b.y
    return Labels(y, len(names), names)


def align_to(a: Source, b: Source) -> None:
    """Number the classes of `a` as `b` does, which stays as it is. Raises ConfigError where a class of a is unknown to b."""
    if a.labels is None or b.labels is None or a.labels.multilabel != b.labels.multilabel:
        return
    if b.labels.class_names is None:
        if a.labels.class_names is not None:
            a.labels = unnamed(a.labels, a.name, b.name)
        _widen(a, b.labels.C)
    elif a.labels.class_names is None or a.named:
        a.labels, _ = together(a.labels, b.labels, a.name, b.name)
    else:
        check_classes(a, b)


def _widen(source: Source, C: int) -> None:
    """A matrix of a list of images ends with the largest number in it, which says nothing of the classes there are."""
    labels = source.labels
    if (
        source.modality.needs_encoder
        and labels is not None
        and labels.multilabel
        and labels.class_names is None
        and labels.C < C
    ):
        source.labels = Labels(np.pad(labels.y, ((0, 0), (0, C - labels.C))), C)


def check_classes(a: Source, b: Source) -> None:
    """Raise ConfigError where two files name the same class differently."""
    x, y = (s.labels.class_names if s.labels else None for s in (a, b))
    if x is not None and y is not None:
        for c, (p, q) in enumerate(zip(x, y)):
            if class_key(p) != class_key(q):
                raise ConfigError(f"class {c} is '{p}' in {a.name} and '{q}' in {b.name}")
        if len(x) != len(y):
            raise ConfigError(f"{a.name} names {len(x)} classes, {b.name} names {len(y)}")
