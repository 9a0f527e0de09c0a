"""Requests that arrive together are searched together.

Threads take what waits: the oldest request, and all others that ask in the same way. While they search, more arrive, so batches
grow with the load by themselves, and a request that comes alone waits for nobody.
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


@dataclass(eq=False)
class Job:
    """One request. rows: how many it holds; payload: what `run` gets of it. waited, searched: seconds."""

    payload: Any
    rows: int
    future: asyncio.Future[Any]
    arrived: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    searched: float = 0.0
    together: int = 0  # rows of the batch it was in


Run = Callable[[Sequence[Any]], Sequence[Any]]  # payloads -> an answer, or an exception, of each


class Batcher:
    """Threads for jobs of many kinds. Jobs of one kind are run together, kinds in the order in which they came."""

    def __init__(self, threads: int, limit: int) -> None:
        """limit: jobs that may wait."""
        self._limit, self._count, self._closed = limit, 0, False
        self._waiting: OrderedDict[Hashable, list[tuple[Job, Run]]] = OrderedDict()
        self._ready = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"scqfaiss-search-{i}", daemon=True) for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, kind: Hashable, payload: Any, rows: int, run: Run) -> Job:
        """A job whose `future` will hold its answer. Raises Problem 503 at once where too many wait."""
        job = Job(payload, rows, asyncio.get_running_loop().create_future())
        with self._ready:
            if self._count >= self._limit or self._closed:
                raise busy("too many requests wait")
            self._count += 1
            self._waiting.setdefault(kind, []).append((job, run))
            self._ready.notify()
        return job

    @property
    def waiting(self) -> int:
        return self._count

    def close(self) -> None:
        """End the threads once nothing waits."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()
        for thread in self._threads:
            thread.join(timeout=5)

    def _take(self) -> tuple[list[Job], Run] | None:
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
            self._count -= n
            return [job for job, _ in taken], taken[0][1]

    def _work(self) -> None:
        faiss.omp_set_num_threads(1)  # of this thread: requests run side by side, their searches need not
        with threadpool_limits(1):
            while (found := self._take()) is not None:
                jobs = [job for job in found[0] if not job.future.cancelled()]
                if jobs:
                    self._run(jobs, found[1])

    def _run(self, jobs: list[Job], run: Run) -> None:
        started = time.perf_counter()
        try:
            answers: Sequence[Any] = run([job.payload for job in jobs])
        except Exception as error:
            answers = [error] * len(jobs)
            if len(jobs) > 1:  # whose fault it was is told by each alone
                answers = [self._alone(job, run) for job in jobs]
        seconds, together = time.perf_counter() - started, sum(job.rows for job in jobs)
        for job in jobs:
            job.waited, job.searched, job.together = started - job.arrived, seconds, together
        # One call a batch: waking the loop costs more than the rest of an answer.
        try:
            jobs[0].future.get_loop().call_soon_threadsafe(_answer, jobs, answers)
        except RuntimeError:  # the loop has ended, and nobody waits any more
            return

    def _alone(self, job: Job, run: Run) -> Any:
        try:
            return run([job.payload])[0]
        except Exception as error:
            return error


def _answer(jobs: list[Job], answers: Sequence[Any]) -> None:
    for job, answer in zip(jobs, answers, strict=True):
        if job.future.done():  # its client has gone, or its time was up
            continue
        if isinstance(answer, Exception):
            job.future.set_exception(answer)
        else:
            job.future.set_result(answer)
