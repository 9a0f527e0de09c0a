"""SIGINT and SIGTERM, from the first line of the program to its last: it ends with 130 and nothing half-written, or with 0 and
its work done.

An exception out of a signal handler comes up inside whatever runs at that moment. Imports of torch and NumPy make other errors of
it or swallow it, and so do callbacks from C++. The handler here raises nothing: it removes the files that are unfinished, says
that it stopped, and ends the process. Once the command's own file has taken its place, a signal changes nothing any more.

Only the program takes signals (`take`). In a process that merely imports the package all of this is without effect, and Ctrl-C
is Python's KeyboardInterrupt. Hardly anything is imported here, dataclasses neither: in every millisecond before `take` a signal
does what Python lets it do, which is a traceback or death by the signal.
"""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

TAKEN = (signal.SIGINT, signal.SIGTERM)
STOPPED = 130  # exit code
MESSAGE = "stopped; nothing was left half-written"


class _State:
    def __init__(self) -> None:
        self.process = 0  # whose signals are taken: not those of a child that was forked off
        self.held = 0  # blocks that a signal has to wait for
        self.waiting = False  # one does
        self.leaving = False
        self.finished: int | None = None  # the exit code, once nothing can change it
        self.late = 0  # signals that came after that
        self.unfinished: list[str] = []  # files to remove
        self.words: list[Callable[[], str | None]] = []


_state = _State()


def take() -> None:
    """Handle SIGINT and SIGTERM from now on; one that whoever started the program had it ignore stays ignored."""
    if _state.process == os.getpid():
        return
    _state.process = os.getpid()
    for number in TAKEN:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)
    # Registered first, hence called last. Python gives up its handlers in the end, and a signal would kill it then.
    atexit.register(_ignore)


@contextmanager
def held() -> Iterator[None]:
    """A block of a few system calls that a signal waits for, so that what is known of a file is what is true of it."""
    _state.held += 1
    try:
        yield
    finally:
        _state.held -= 1
        if _state.waiting and not _state.held:
            _state.waiting = False
            _stop()


def unfinished(path: str | os.PathLike[str]) -> bool:
    """Have a signal remove this file, for as long as it is not settled -> whether there was none before it. Call it held."""
    _state.unfinished.append(os.fspath(path))
    return len(_state.unfinished) == 1


def settled(path: str | os.PathLike[str]) -> None:
    """The file is gone, or has taken its place."""
    with suppress(ValueError):
        _state.unfinished.remove(os.fspath(path))


def finish(code: int = 0) -> None:
    """The work is done: the program ends with this code, whatever signal comes."""
    _state.finished = code


@contextmanager
def saying(words: Callable[[], str | None]) -> Iterator[None]:
    """Within this block a signal has its message from `words`, or, where that gives None, from the block around it."""
    _state.words.append(words)
    try:
        yield
    finally:
        _state.words.remove(words)


def _handle(number: int, frame: Any) -> None:
    if os.getpid() != _state.process:  # a child: the files are not its own
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    elif _state.held:
        _state.waiting = True
    else:
        _stop()


def _stop() -> None:
    if _state.leaving:  # the first one is at its last words, for which a full pipe may have no room
        os._exit(STOPPED)
    elif _state.finished is not None:
        _state.late += 1
        if _state.late > 1:  # whoever asks twice does not want to wait for what is left: words, and the end of Python
            _clean()
            os._exit(_state.finished)
    else:
        message = _message()
        _clean()
        _state.leaving = True
        _say(f"Error: {message}\n")
        os._exit(STOPPED)


def _clean() -> None:
    _state.held += 1
    while _state.unfinished:
        with suppress(OSError):  # the folder may be gone, or read-only by now
            os.unlink(_state.unfinished[-1])
        _state.unfinished.pop()
    _state.held -= 1


def _message() -> str:
    for words in reversed(_state.words):
        with suppress(Exception):  # words look into folders, for instance, and anything may have become of those
            text = words()
            if text is not None:
                return text
    return MESSAGE


def _say(text: str) -> None:
    """Write to stderr past Python, whose own stderr may be in the middle of a write."""
    with suppress(OSError):
        if os.isatty(2):
            text = f"\r\x1b[K{text}"  # over the bar
        os.write(2, text.encode("utf-8", "backslashreplace"))


def _ignore() -> None:
    for number in TAKEN:
        if signal.getsignal(number) is _handle:
            signal.signal(number, signal.SIG_IGN)
