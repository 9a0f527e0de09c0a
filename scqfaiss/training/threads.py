"""Threads that wait for one another give up their core soon, where other processes want it.

A thread of GNU's OpenMP runtime, which torch brings, looks for some 3 ms whether the others are done before it sleeps. On cores
of its own that is the fastest way. Beside a busy process it takes the core from whoever it waits for, and a training takes three
times as long. How long threads look is read when the runtime is loaded (GOMP_SPINCOUNT); but where the process has more OpenMP
threads than cores, they sleep after some 100 looks (see GOMP_SPINCOUNT in the runtime's manual). So, while cores are
wanted by others, threads are kept that have a team of their own and do nothing. Results do not depend on it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

import torch

SAID = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}  # variables by which users say how threads wait
PERIOD = 0.2  # seconds between two looks at how long our threads waited for a core
CROWDED = 0.1  # seconds of that in each second, of all threads together; alone it is a hundredth of it
PATIENCE = 10  # looks without before the cores are our own again
MOST = 8  # teams kept at most; machines with many more cores than threads have one for everybody
PIECE = 1 << 15  # elements below which torch leaves all work to one thread


@contextmanager
def considerate() -> Iterator[None]:
    """Look after the threads of torch in this process while something runs on them, unless the user said how they wait.

    Linux alone; elsewhere nothing happens.
    """
    if SAID & os.environ.keys():
        yield
        return
    done = Event()
    watch = Thread(target=_watch, args=(done,), name="scqfaiss-cores", daemon=True)
    try:
        watch.start()
    except RuntimeError:  # no more threads to be had
        yield
        return
    try:
        yield
    finally:
        done.set()
        watch.join()


def waited() -> int | None:
    """Nanoseconds for which the threads of this process were ready to run and had no core; None where nobody counts them."""
    total = 0
    try:
        for task in os.listdir("/proc/self/task"):
            try:
                with open(f"/proc/self/task/{task}/schedstat") as f:
                    total += int(f.read().split()[1])
            except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
                continue
    except (OSError, ValueError, IndexError):
        return None
    return total or None


def teams_needed(threads: int, cores: int) -> int:
    """How many more teams of `threads` threads make more of them than there are cores; 0 where that would be too many."""
    if threads < 2:  # nobody waits for anybody
        return 0
    needed = max(1, (cores - 1) // (threads - 1))
    return needed if needed <= MOST else 0


def _watch(done: Event) -> None:
    before, since, quiet = waited(), time.monotonic(), 0
    kept: list[tuple[Event, Thread]] = []
    while before is not None and not done.wait(PERIOD):
        after, now = waited(), time.monotonic()
        if after is None:
            break
        crowded = after - before > CROWDED * 1e9 * (now - since)
        before, since, quiet = after, now, 0 if crowded else quiet + 1
        if kept and (quiet >= PATIENCE or torch.get_num_threads() < 2):
            _dissolve(kept)
        elif crowded and not kept:
            kept = _teams(teams_needed(torch.get_num_threads(), len(os.sched_getaffinity(0))))
    _dissolve(kept)


def _teams(count: int) -> list[tuple[Event, Thread]]:
    kept = []
    for _ in range(count):
        over = Event()
        thread = Thread(target=_idle, args=(over,), name="scqfaiss-team", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            break
        kept.append((over, thread))
    return kept


def _dissolve(kept: list[tuple[Event, Thread]]) -> None:
    for over, thread in kept:
        over.set()
        thread.join()
    kept.clear()


def _idle(over: Event) -> None:
    """Work once on all of torch's threads, which makes the team, and keep it: it ends with this thread."""
    torch.zeros(torch.get_num_threads() * PIECE).add_(1)
    over.wait()
