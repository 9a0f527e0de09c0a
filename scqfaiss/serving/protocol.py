"""HTTP as uvicorn speaks it, with bounds that it lacks: connections at a time, seconds for a request to begin, and for an answer
to be read.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from .problems import Problem
from .settings import Settings

GRACE = 0.3  # seconds that a connection may still send a request once the server ends
YOUNG = 1.0  # seconds in which a connection that has sent nothing is not closed for a new one
WORDS = {400: b"Bad Request", 408: b"Request Timeout", 503: b"Service Unavailable"}
HEAD = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%sconnection: close\r\n\r\n"


class Joined:
    """A transport that sends the head of an answer together with what follows it: a system call costs as much as a search."""

    def __init__(self, transport: Any) -> None:
        self._transport, self._head = transport, b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):  # 100 Continue is waited for
            self._head = data
            return
        self._transport.write(data)

    def close(self) -> None:
        self.write(b"")
        self._transport.close()

    def forget(self) -> None:
        """Let go of a transport that is closed. asyncio's refers to itself by the callback that read from it: thousands of them
        would wait for a full collection, which looks at all open connections, too, and stops every answer meanwhile.
        """
        if hasattr(self._transport, "_read_ready_cb"):
            self._transport._read_ready_cb = None


class Protocol(H11Protocol):
    """One connection. A server has a class of its own, see protocol_of."""

    most = 1000
    seconds = 10.0
    idle: dict[Protocol, float]  # connections that wait for a request, since when, the longest waiting first

    def connection_made(self, transport: Any) -> None:  # type: ignore[override]
        # begun: when the client could begin the head of a request; 0 where it has sent one whole, or owes none.
        self.begun = self.loop.time()
        self.unread, self.unread_since = 0, 0.0
        full = len(self.connections) >= self.most and not self._make_room()
        super().connection_made(Joined(transport))  # type: ignore[arg-type]
        if full:
            self._end(503, f"{self.most:,} connections are open; ask again later", b"retry-after: 1\r\n")
        else:
            self.idle[self] = self.begun

    def connection_lost(self, exc: Exception | None) -> None:
        self.idle.pop(self, None)
        super().connection_lost(exc)
        self.transport.forget()  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if not self._under_way and not self.begun:
            self.begun = self.loop.time()
        super().data_received(data)
        if self._under_way:
            self.begun = 0.0
            self.idle.pop(self, None)

    def on_response_complete(self) -> None:
        self.begun = 0.0
        if not self.transport.is_closing():
            self.idle[self] = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        self._end(400, "this is no HTTP request, or its head is too long")

    def shutdown(self) -> None:
        if self._under_way:
            super().shutdown()
        else:  # a request may be on its way
            self.loop.call_later(GRACE, self._close_idle)

    def look(self, now: float) -> None:
        """End the connection of a client that is too slow. Called every now and then."""
        if self.begun and now - self.begun > self.seconds and not self.transport.is_closing():
            self._end(408, f"no request arrived within {self.seconds:g} s")
        unread = self.transport.get_write_buffer_size()
        if unread != self.unread:
            self.unread, self.unread_since = unread, now
        elif unread and now - self.unread_since > self.seconds:
            self.transport.abort()

    @property
    def _under_way(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _close_idle(self) -> None:
        if not self._under_way and not self.transport.is_closing():
            super().shutdown()

    def _make_room(self) -> bool:
        """End the connection that has been idle longest -> whether there was one."""
        for other, since in self.idle.items():
            if other.begun and self.loop.time() - since < YOUNG:
                return False
            del self.idle[other]
            self.connections.discard(other)
            other.transport.abort()
            return True
        return False

    def _end(self, status: int, message: str, headers: bytes = b"") -> None:
        body = Problem(status, message).body("")
        self.transport.write(HEAD % (status, WORDS[status], len(body), headers) + body)
        self.transport.close()


def protocol_of(settings: Settings) -> type[Protocol]:
    """The class of the connections of one server."""
    return type("Protocol", (Protocol,), {"most": settings.connections, "seconds": settings.timeout, "idle": {}})
