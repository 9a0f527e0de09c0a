"""Several processes that serve one address, and the one that looks after them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from socket import socket
from typing import Any

import uvicorn
from prometheus_client import multiprocess
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from .logs import Log
from .run import Server

AGAIN = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)  # seconds before a worker is started anew, the longer the more often it ended early
EARLY = 10.0  # seconds


class _WorkerServer(Server):
    worker = True


class Worker(Process):
    """A process that serves."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket]) -> None:
        super().__init__(config, sockets)
        self.began = time.monotonic()

    @property
    def server(self) -> uvicorn.Server:
        if self._server is None:
            self._server = _WorkerServer(config=self.config)
        return self._server


class Workers(Multiprocess):
    """uvicorn's supervisor. A worker that dies is started anew, again and again: a file that is damaged now may be whole
    later, and meanwhile the others serve. A second signal ends workers that still answer.
    """

    def __init__(self, config: uvicorn.Config, sockets: list[socket], log: Log, ready: Callable[[], Any]) -> None:
        super().__init__(config, sockets)
        self._log, self._ready, self._early, self._due = log, ready, 0, 0.0

    def run_all(self) -> bool:
        """Until a signal comes -> whether workers were ended before they had answered everything."""
        self._forced = False
        self.run()
        return self._forced

    def init_processes(self) -> None:
        self.processes = [self._start() for _ in range(self.processes_num)]
        self._ready()

    def keep_subprocess_alive(self) -> None:
        for i, worker in enumerate(self.processes):
            if worker.process.is_alive() or self.should_exit.is_set():
                continue
            assert isinstance(worker, Worker)
            now = time.monotonic()
            if not self._due:
                multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
                self._early = self._early + 1 if now - worker.began < EARLY else 0
                self._due = now + AGAIN[min(self._early, len(AGAIN) - 1)]
                self._log.event("worker-died", process=worker.pid, code=worker.exitcode)
            if now >= self._due:
                self._due = 0.0
                self.processes[i] = self._start()
            return  # one after the other

    def join_all(self) -> None:
        while any(worker.process.is_alive() for worker in self.processes):
            if self.signal_queue and not self._forced:  # what came first was taken out already
                self._forced = True
                for worker in self.processes:
                    worker.process.kill()
            time.sleep(0.05)

    def handle_hup(self) -> None:
        self.handle_term()

    def handle_ttin(self) -> None:
        """uvicorn would add a worker."""

    def handle_ttou(self) -> None:
        """uvicorn would end one."""

    def _start(self) -> Worker:
        worker = Worker(self.config, self.sockets)
        worker.start()
        self._log.event("worker-started", process=worker.pid, supervisor=os.getpid())
        return worker
