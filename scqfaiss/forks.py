"""Processes made by fork: OpenMP and locks do not survive one.

The threads that OpenMP keeps for its parallel loops stay behind in the parent, and the child waits for them for ever. One
thread needs none of them. Locks that another thread of the parent held stay locked in the child.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from weakref import WeakSet

OPENMP = frozenset({"faiss", "sklearn", "torch"})  # libraries whose loops run on OpenMP, and may share one copy of it
FORKED_WITHOUT_EXEC = 0x40  # PF_FORKNOEXEC of the kernel

_alone = False
_locks: WeakSet[Lock] = WeakSet()


def one_thread(set_threads: Callable[[int], object]) -> None:
    """In a child made by fork from a process with such a library: have `set_threads` set one thread. Else nothing."""
    if _alone:
        set_threads(1)


class Lock:
    """A threading.Lock for `with`, which a child made by fork finds open, whoever held it in the parent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()


def _look() -> None:
    global _alone
    _alone = _alone or not OPENMP.isdisjoint(sys.modules)


def _in_child() -> None:
    _look()
    for lock in list(_locks):
        lock._lock = threading.Lock()


def _made_by_fork() -> bool:
    try:
        with open("/proc/self/stat", "rb") as f:
            return bool(int(f.read().rpartition(b")")[2].split()[6]) & FORKED_WITHOUT_EXEC)
    except (OSError, ValueError, IndexError):  # no such system
        return False


os.register_at_fork(after_in_child=_in_child)
if _made_by_fork():  # before this package was loaded
    _look()
