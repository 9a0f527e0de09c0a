"""HTTP as uvicorn speaks it, with bounds that it lacks: connections at a time, seconds for a request to begin and to be whole."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

_BODY = b'{"error":{"status":503,"message":"too many connections","request_id":""}}'
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: " + str(len(_BODY)).encode() + b"\r\n\r\n" + _BODY
)


class Protocol(H11Protocol):
    """One connection. most, seconds: set for all by the app."""

    most = 1000
    seconds = 10.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._draining = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.write(FULL)
            transport.close()
        else:
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._under_way:
            self._disarm()
            if self._draining:
                self.cycle.keep_alive = False
        elif self._timer is None:
            self._arm()

    def drain(self) -> None:
        """Answer what is under way, and what was on its way already, and take nothing after that."""
        self._draining = True
        if self._under_way:
            self.cycle.keep_alive = False

    @property
    def _under_way(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _arm(self) -> None:
        self._timer = self.loop.call_later(self.seconds, self._late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if not self._under_way and not self.transport.is_closing():
            self.transport.close()
