"""Starting and ending a service: sockets, signals, workers."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from ..errors import ConfigError, ResourceError
from . import metrics
from .app import ENVIRONMENT, create_app
from .protocol import Protocol
from .settings import Settings, is_loopback, settings_of

GRACE = 0.3  # seconds in which requests that are on their way are still answered
APP = "scqfaiss.serving.app:from_environment"
SPARE_FILES = 200  # descriptors beside those of connections


class Server(uvicorn.Server):
    """Ends with 0 on the first SIGINT or SIGTERM, when all that is under way is answered, and at once on a second one."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            if isinstance(connection, Protocol):
                connection.drain()
        await asyncio.sleep(0 if self.force_exit else GRACE)
        await super().shutdown(sockets)


class Workers(Multiprocess):
    """uvicorn's supervisor: a worker that dies is started anew. A second signal ends workers that still answer."""

    def join_all(self) -> None:
        asked = len(self.signal_queue)
        while any(p.process.is_alive() for p in self.processes):
            if len(self.signal_queue) > asked:
                for process in self.processes:
                    process.process.kill()
            time.sleep(0.05)


def serve(galleries: tuple[str, ...], say: Callable[[str], Any], **options: Any) -> None:
    """Serve until a signal comes. options: those of the command line, see settings_of. Raises as settings_of and OpenGallery,
    ConfigError where the address is taken.
    """
    run(settings_of(galleries, **options), say)


def run(settings: Settings, say: Callable[[str], Any]) -> None:
    """The same with settings."""
    _more_files(settings.connections + SPARE_FILES)
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # what happens to requests stands in the service's own log
    listening = _listen(settings)
    try:
        host, port = listening.getsockname()[:2]
        shown = "localhost" if is_loopback(settings.host) else host
        config: dict[str, Any] = {
            "http": Protocol,
            "log_config": None,
            "access_log": False,
            "server_header": False,
            "lifespan": "on",
            "proxy_headers": False,  # who asks plays no part
            "timeout_keep_alive": 30,
            "timeout_graceful_shutdown": int(settings.timeout) + 1,
        }
        if settings.workers == 1:
            app = create_app(settings)
            say(
                f"http://{shown}:{port}/ serves {', '.join(served.name for served in settings.galleries)}; Ctrl-C ends it"
            )
            Server(uvicorn.Config(app, **config)).run([listening])
        else:
            _supervise(settings, config, listening, lambda: say(f"http://{shown}:{port}/, {settings.workers} workers"))
    finally:
        listening.close()


def _supervise(settings: Settings, config: dict[str, Any], listening: socket.socket, ready: Callable[[], Any]) -> None:
    create_app(settings).service.batcher.close()  # whatever is wrong is said once, before any worker starts
    with tempfile.TemporaryDirectory(prefix="scqfaiss-") as folder:
        os.environ |= {ENVIRONMENT: settings.to_json(), metrics.FOLDER: folder}
        ready()
        Workers(uvicorn.Config(APP, factory=True, workers=settings.workers, **config), [listening]).run()


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    found = socket.socket(family)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((settings.host, settings.port))
        found.listen(2048)
    except OSError as error:
        found.close()
        raise ConfigError(
            f"{settings.host} port {settings.port} cannot be listened on ({error.strerror}); choose another --port"
        ) from error
    found.set_inheritable(True)
    return found


def _more_files(needed: int) -> None:
    """Allow as many open files as connections need. Raises ResourceError where the system does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise ResourceError(
                f"{needed:,} open files are needed, the system allows {hard:,}; lower --connections, or ulimit -n"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def in_background(settings: Settings) -> tuple[threading.Thread, Server, int]:
    """A service in a thread of this process -> (thread, server, port). `server.should_exit = True` ends it."""
    listening = _listen(settings)
    server = Server(
        uvicorn.Config(create_app(settings), http=Protocol, log_config=None, access_log=False, lifespan="on")
    )
    server.capture_signals = _no_signals  # type: ignore[method-assign]  # only the main thread has signals
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    return thread, server, listening.getsockname()[1]


@contextmanager
def _no_signals() -> Iterator[None]:
    yield
