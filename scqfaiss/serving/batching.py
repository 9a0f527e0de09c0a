"""Requests that arrive together are searched together.

What one turn of the event loop brings in makes a batch. A batch that will take a moment runs in the loop itself: handing it to a
thread costs more than the search of a small gallery, as Python runs one thread at a time. Longer ones go to threads, which take
the oldest request and all others that ask in the same way, so that batches grow with the load. Nobody waits for company.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import faiss
from threadpoolctl import threadpool_limits

from .problems import busy

MOST_ROWS = 1024  # of a batch: larger ones are no faster a row
AT_ONCE = 0.005  # seconds that a batch may keep the loop
GATHER = 0.0005  # seconds in which a batch gathers while requests come side by side
MOST_KINDS = 1000  # whose seconds are known
FORGET = 0.8  # how much of the seconds known before stays, with every batch measured


@dataclass(eq=False)
class Job:
    """One request of `rows` queries. payload: what `run` gets of it; waited, searched: seconds; together: rows of its
    batch; first: whether it is the first one of it.
    """

    payload: Any
    rows: int
    future: asyncio.Future[Any]
    arrived: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    searched: float = 0.0
    together: int = 0
    first: bool = False

    def expires(self, seconds: float) -> None:
        """Give up after so many seconds."""

        def late() -> None:
            if not self.future.done():
                self.future.set_exception(busy(f"the search took longer than {seconds:g} s"))

        timer = self.future.get_loop().call_later(seconds, late)
        self.future.add_done_callback(lambda future: timer.cancel())


Run = Callable[[Sequence[Any]], Sequence[Any]]  # payloads -> an answer, or an exception, of each
Kind = tuple[str, Hashable]  # the name of what is searched, and how
Waiting = OrderedDict[Kind, list[tuple[Job, Run]]]


class Batcher:
    """Jobs of one kind are run together, kinds in the order in which they came."""

    def __init__(self, threads: int, limit: int, timeout: float, in_loop: bool = True) -> None:
        """limit: jobs that may wait; timeout: seconds after which one that waits, or is searched, is given up. in_loop: whether
        short batches may run in the event loop; no where a search waits for others.
        """
        self._in_loop = in_loop
        self._limit, self._timeout, self._closed, self._flushing = limit, timeout, False, False
        self._arrived: Waiting = OrderedDict()  # in this turn of the loop
        self._waiting: Waiting = OrderedDict()  # for a thread
        self._queued, self._company = 0, 0  # jobs for a thread; jobs of the last turn
        # Of a batch, by its kind and the power of two of its rows: what a range or a large k takes tells nothing of others.
        self._seconds: dict[tuple[Kind, int], float] = {}
        self._ready = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"scqfaiss-search-{i}", daemon=True) for i in range(threads)
        ]
        faiss.omp_set_num_threads(1)  # of the loop's own thread
        self._one_thread = threadpool_limits(1)
        for thread in self._threads:
            thread.start()

    def submit(self, kind: Kind, payload: Any, rows: int, run: Run) -> Job:
        """A job whose `future` will hold its answer. Raises Problem 503 at once where too many wait."""
        if self.waiting >= self._limit or self._closed:
            raise busy("too many requests wait")
        loop = asyncio.get_running_loop()
        job = Job(payload, rows, loop.create_future())
        self._arrived.setdefault(kind, []).append((job, run))
        if not self._flushing:
            self._flushing = True
            if self._company > 1:
                loop.call_later(GATHER, self._flush)
            else:
                loop.call_soon(self._flush)
        return job

    @property
    def waiting(self) -> int:
        return self._queued + sum(map(len, self._arrived.values()))

    def close(self) -> None:
        """End the threads once nothing waits."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()
        for thread in self._threads:
            thread.join(timeout=5)

    # -------------------------------------------------------------------------------------------------------- the loop
    def _flush(self) -> None:
        """Run what is short, and queue the rest. Called by the loop, once what arrived together has been read."""
        self._flushing, arrived, self._arrived = False, self._arrived, OrderedDict()
        self._company = sum(map(len, arrived.values()))
        for kind, jobs in arrived.items():
            rows = sum(job.rows for job, _ in jobs)
            if (
                self._in_loop
                and rows <= MOST_ROWS
                and self._expected(kind, rows) <= AT_ONCE
                and kind not in self._waiting
            ):
                self._run(kind, [job for job, _ in jobs], jobs[0][1], _answer)
                continue
            for job, _ in jobs:
                job.expires(self._timeout)
            with self._ready:
                self._waiting.setdefault(kind, []).extend(jobs)
                self._queued += len(jobs)
                self._ready.notify()

    def _expected(self, kind: Kind, rows: int) -> float:
        """Seconds; without end where no batch of about so many rows was measured."""
        return self._seconds.get((kind, rows.bit_length()), float("inf"))

    # ------------------------------------------------------------------------------------------------------ the threads
    def _take(self) -> tuple[Kind, list[Job], Run] | None:
        with self._ready:
            while not self._waiting:
                if self._closed:
                    return None
                self._ready.wait()
            kind, jobs = next(iter(self._waiting.items()))
            rows, n = 0, 0
            while n < len(jobs) and (n == 0 or rows + jobs[n][0].rows <= MOST_ROWS):
                rows += jobs[n][0].rows
                n += 1
            taken, left = jobs[:n], jobs[n:]
            if left:
                self._waiting[kind] = left
                self._ready.notify()
            else:
                del self._waiting[kind]
            self._queued -= n
            return kind, [job for job, _ in taken], taken[0][1]

    def _work(self) -> None:
        faiss.omp_set_num_threads(1)  # of this thread: requests run side by side, their searches need not
        while (found := self._take()) is not None:
            kind, jobs, run = found
            self._run(kind, [job for job in jobs if not job.future.done()], run, _answer_from_thread)

    # ---------------------------------------------------------------------------------------------------------- both
    def _run(self, kind: Kind, jobs: list[Job], run: Run, answer: Callable[[list[Job], Sequence[Any]], None]) -> None:
        if not jobs:
            return
        started, own = time.perf_counter(), time.thread_time()
        try:
            answers: Sequence[Any] = run([job.payload for job in jobs])
        except Exception as error:
            answers = [error] * len(jobs)
            if len(jobs) > 1:  # whose fault it was is told by each alone
                answers = [self._alone(job, run) for job in jobs]
        seconds, together = time.perf_counter() - started, sum(job.rows for job in jobs)
        # Of the processor: what a thread waits for others does not count.
        key, own = (kind, together.bit_length()), time.thread_time() - own
        if len(self._seconds) >= MOST_KINDS:
            self._seconds.clear()
        self._seconds[key] = FORGET * self._seconds.get(key, own) + (1 - FORGET) * own
        for job in jobs:
            job.waited, job.searched, job.together = started - job.arrived, seconds, together
        jobs[0].first = True
        answer(jobs, answers)

    def _alone(self, job: Job, run: Run) -> Any:
        try:
            return run([job.payload])[0]
        except Exception as error:
            return error


def _answer_from_thread(jobs: list[Job], answers: Sequence[Any]) -> None:
    """One call a batch: waking the loop costs more than the rest of an answer."""
    try:
        jobs[0].future.get_loop().call_soon_threadsafe(_answer, jobs, answers)
    except RuntimeError:  # the loop has ended, and nobody waits any more
        return


def _answer(jobs: list[Job], answers: Sequence[Any]) -> None:
    for job, answer in zip(jobs, answers, strict=True):
        if job.future.done():  # its client has gone, or its time was up
            continue
        if isinstance(answer, Exception):
            job.future.set_exception(answer)
        else:
            job.future.set_result(answer)
