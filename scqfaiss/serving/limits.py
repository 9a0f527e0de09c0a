"""What every request passes: a check of the host it asks for, an id, a bound on its size and on the time it may take to arrive,
a line in the log, a count.

Plain ASGI: a middleware of Starlette's own would cost more than the search of a small gallery. Searches are answered from here,
for the same reason: finding a route of FastAPI and filling its parameters costs as much again.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from itertools import count
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..errors import printable
from .problems import Problem, problem_of
from .routes import SEARCH_PATH, Service

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Search = Callable[[str, Request], Awaitable[Response]]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
HOST = re.compile(rb"(\[[^\]]*\]|[^:]*)(?::[0-9]*)?")  # and a port
ADDRESS = re.compile(r"/v1/galleries/([^/]+)/search")
ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")  # of a request, as a client may give it


class Limits:
    """The outermost layer of the app."""

    def __init__(self, app: Any, service: Service, search: Search) -> None:
        """search(name, request): what answers SEARCH_PATH."""
        self.app, self.service, self.search = app, service, search
        self.settings, self.log, self.metrics = service.settings, service.log, service.metrics
        hosts = service.settings.hosts
        self.hosts = None if hosts is None else {name.encode() for name in hosts}
        self.prefix, self.numbers = os.urandom(6).hex() + "-", count()  # ids of requests that bring none

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await _Request(self, scope, receive, send).run()


class _Request:
    def __init__(self, limits: Limits, scope: Scope, receive: Receive, send: Send) -> None:
        self.limits, self.scope, self._receive, self._send = limits, scope, receive, send
        self.started, self.size, self.sent, self.status = time.perf_counter(), 0, 0, 0
        self.route = ""
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        self.id = given.decode() if ID.fullmatch(given) else f"{limits.prefix}{next(limits.numbers):x}"
        self.length, self.host = headers.get(b"content-length"), headers.get(b"host", b"")
        scope["state"] = {**scope.get("state", {}), "request_id": self.id}

    async def run(self) -> None:
        most = self.limits.settings.max_body
        try:
            self._check_host()
            if self.length is not None and int(self.length) > most:  # h11 has checked that it is a number
                raise self._too_large(f"{int(self.length):,} bytes")
            found = ADDRESS.fullmatch(self.scope["path"]) if self.scope["method"] == "POST" else None
            if found is None:
                await self.limits.app(self.scope, self.receive, self.send)
            else:
                self.route = SEARCH_PATH
                response = await self.limits.search(found[1], Request(self.scope, self.receive))
                await response(self.scope, self.receive, self.send)
        except Exception as error:
            await self._refuse(error)
        finally:
            self._tell()

    async def receive(self) -> Message:
        left = self.limits.settings.timeout - (time.perf_counter() - self.started)
        if self.status:  # the answer has begun: nothing but a disconnection is to come
            return await self._receive()
        try:
            async with asyncio.timeout(max(left, 0.001)):
                message = await self._receive()
        except TimeoutError:
            raise Problem(408, f"the request did not arrive within {self.limits.settings.timeout:g} s", CLOSE) from None
        self.size += len(message.get("body", b""))
        if self.size > self.limits.settings.max_body:
            raise self._too_large("more")
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", []), (b"x-request-id", self.id.encode())]
        else:
            self.sent += len(message.get("body", b""))
        await self._send(message)

    def _check_host(self) -> None:
        hosts, found = self.limits.hosts, HOST.fullmatch(self.host)
        if hosts is not None and (found is None or found[1].lower() not in hosts):
            name = printable(self.host[:100].decode("latin-1"))
            raise Problem(
                421,
                f"this server does not answer for the host {name!r}; where it should, start it with --allow-host",
                CLOSE,
            )

    def _too_large(self, found: str) -> Problem:
        return Problem(413, f"the body is {found}, at most {self.limits.settings.max_body:,} bytes are taken", CLOSE)

    async def _refuse(self, error: Exception) -> None:
        problem = problem_of(error)
        if problem.status == 500:
            self.limits.log.fault(self.id, error)
        if self.status:  # too late to say so: the connection ends without the rest
            return
        body = problem.body(self.id)
        headers = {"content-type": "application/json", "content-length": str(len(body)), **problem.headers}
        encoded = [(key.lower().encode(), value.encode()) for key, value in headers.items()]
        await self.send({"type": "http.response.start", "status": problem.status, "headers": encoded})
        await self.send({"type": "http.response.body", "body": body})

    def _tell(self) -> None:
        # Never the address: it may hold what was asked.
        route = self.route or getattr(self.scope.get("route"), "path", "none")
        self.limits.metrics.requests.labels(route, self.status).inc()
        if route not in QUIET or self.status >= 400:
            seconds = time.perf_counter() - self.started
            method = self.scope["method"] if self.scope["method"].isalpha() else "?"
            self.limits.log.request(self.id, method, route, self.status, seconds, self.size, self.sent)


CLOSE = {"Connection": "close"}
QUIET = {"/healthz", "/readyz", "/metrics"}  # asked every few seconds
