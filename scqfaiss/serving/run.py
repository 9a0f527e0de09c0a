"""Starting and ending a service: sockets, signals, workers."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from .. import signals
from ..errors import ConfigError, ResourceError
from ..galleries.opening import open_any
from . import metrics
from .app import ENVIRONMENT, create_app
from .galleries import Opener
from .logs import Log
from .protocol import Protocol, protocol_of
from .routes import Service
from .settings import Settings, is_loopback, settings_of

LINGER = 0.4  # seconds after a signal in which connections are still taken
SWITCH = 0.0005  # seconds after which a thread that searches lets the loop go on; Python's own are ten times as many
# Objects before a collection, and how many of these before an older generation is looked at. By Python's own, (700, 10, 10), a
# full collection, which beside 10,000 connections stops every answer for 0.1 to 0.4 s, comes every 2 s where they come and go.
COLLECT = (2_000, 10, 500)
LOOKS = 50  # connections that are looked at, and ended, before others' requests have their turn
KEEP_ALIVE = 30  # seconds that a connection may be idle between two requests
BACKLOG = 2048
HEAD_BYTES = 1 << 16  # of a request
APP = "scqfaiss.serving.app:from_environment"
SPARE_FILES = 200  # descriptors beside those of connections


class Server(uvicorn.Server):
    """One process that serves. The first SIGINT or SIGTERM ends it once what is under way is answered, a second one at once."""

    # Whether a supervisor speaks to it: signals that come twice, from it and from the system, are then one.
    worker = False
    own_process = True
    service: Service | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop, self._parent = asyncio.get_running_loop(), os.getppid()
        self.service = service = self.config.loaded_app.service  # type: ignore[union-attr]
        self.config.http_protocol_class = protocol_of(service.settings)
        if self.own_process:
            sys.setswitchinterval(SWITCH)
            gc.collect()
            gc.freeze()  # what stands here stays: no collection need look at it again
            gc.set_threshold(*COLLECT)
        await super().startup(sockets)
        self._looking = self._loop.create_task(self._look_after_clients(service.settings.timeout))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.worker and sig == signal.SIGINT:  # Ctrl-C reaches every process; the supervisor tells what follows
            return
        if self.service is None or (self.service.draining and not self.worker):
            os._exit(signals.STOPPED)
        self.drain()

    def drain(self) -> None:
        """End soon: every answer from now on closes its connection, and new ones are taken for LINGER seconds more."""
        if self.service is None or self.service.draining:
            return
        self.service.draining = True
        close = (b"connection", b"close")
        self.config.encoded_headers.append(close)
        self.server_state.default_headers.append(close)
        self._loop.call_soon_threadsafe(self._loop.call_later, LINGER, self._stop)

    def _stop(self) -> None:
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        if self.worker and os.getppid() != self._parent:  # nobody is left to end this process
            self.drain()
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # only that one has signals
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in signals.TAKEN}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listening in sockets or ():
            await self._accept_the_last(listening)
        await super().shutdown(sockets)
        self._looking.cancel()

    async def _accept_the_last(self, listening: socket.socket) -> None:
        """Take the connections that the system has accepted already: closing would reset them."""
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:  # BlockingIOError as a rule: there is none left
                return
            connection.setblocking(False)
            await self._loop.connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg, assignment]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made

    async def _look_after_clients(self, timeout: float) -> None:
        while True:
            await asyncio.sleep(min(timeout / 4, 1.0))
            now = self._loop.time()
            for i, connection in enumerate(list(self.server_state.connections)):
                if i % LOOKS == LOOKS - 1:
                    await asyncio.sleep(0)
                if isinstance(connection, Protocol):
                    connection.look(now)


def serve(galleries: tuple[str, ...], say: Callable[[str], Any], **options: Any) -> None:
    """Serve until a signal comes. options: those of the command line, see settings_of. Raises as settings_of and OpenGallery,
    ConfigError where the address is taken.
    """
    run(settings_of(galleries, **options), say)


def run(settings: Settings, say: Callable[[str], Any], opener: Opener = open_any) -> None:
    """The same with settings. opener: see create_app; of another one than open_any there can be one process alone."""
    _more_files(settings.connections + SPARE_FILES)
    listening = _listen(settings)
    try:
        host, port = listening.getsockname()[:2]
        shown = "localhost" if is_loopback(settings.host) else host
        if settings.workers == 1:
            app = create_app(settings, opener)
            say(
                f"http://{shown}:{port}/ serves {', '.join(served.name for served in settings.galleries)}; Ctrl-C ends it"
            )
            Server(configuration(app, settings)).run([listening])
        else:
            _supervise(settings, listening, lambda: say(f"http://{shown}:{port}/, {settings.workers} workers"))
    finally:
        listening.close()


def configuration(app: Any, settings: Settings, **more: Any) -> uvicorn.Config:
    """How uvicorn is to run an app."""
    return uvicorn.Config(
        app,
        http=Protocol,
        loop="asyncio",
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(2 * settings.timeout) + 5,
        h11_max_incomplete_event_size=HEAD_BYTES,
        **more,
    )


def _supervise(settings: Settings, listening: socket.socket, ready: Callable[[], Any]) -> None:
    from .workers import Workers

    create_app(settings).service.batcher.close()  # whatever is wrong is said once, before any worker starts
    with tempfile.TemporaryDirectory(prefix="scqfaiss-") as folder:
        os.environ |= {ENVIRONMENT: settings.to_json(), metrics.FOLDER: folder}
        config = configuration(APP, settings, factory=True, workers=settings.workers)
        forced = Workers(config, [listening], Log(settings.log), ready).run_all()
    if forced:
        sys.exit(signals.STOPPED)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    found = socket.socket(family)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((settings.host, settings.port))
        found.listen(BACKLOG)
        found.setblocking(False)
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


def in_background(settings: Settings, opener: Opener = open_any) -> tuple[threading.Thread, Server, int]:
    """A service in a thread of this process -> (thread, server, port). `server.should_exit = True` ends it."""
    listening = _listen(settings)
    server = Server(configuration(create_app(settings, opener), settings))
    server.own_process = False
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    return thread, server, listening.getsockname()[1]
