"""A line for each request: sizes, times, status and its id, and nothing of what it holds."""

from __future__ import annotations

import json
import sys
import time
import traceback
from typing import Any, TextIO


class Log:
    """Lines as text or as JSON objects."""

    def __init__(self, form: str, stream: TextIO | None = None) -> None:
        self._json, self._stream = form == "json", stream or sys.stderr

    def request(
        self, request_id: str, method: str, route: str, status: int, seconds: float, size: int, sent: int
    ) -> None:
        self._write(
            "request", id=request_id, method=method, route=route, status=status, ms=round(1000 * seconds, 2), bytes_in=size,
            bytes_out=sent,
        )  # fmt: skip

    def event(self, event: str, **facts: Any) -> None:
        self._write(event, **facts)

    def fault(self, request_id: str, error: BaseException) -> None:
        """An exception that nobody expected: where it was raised, as module and line, without its words, which may hold rows."""
        frames = traceback.extract_tb(error.__traceback__)
        where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames[-8:]))
        self._write("fault", id=request_id, error=type(error).__name__, where=where)

    def _write(self, event: str, **facts: Any) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        if self._json:
            line = json.dumps({"time": now, "event": event, **facts})
        else:
            line = f"{now} {event} " + " ".join(f"{key}={value}" for key, value in facts.items())
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except OSError:  # a full disk or a closed pipe behind the log ends no service
            return
