"""What a request is refused with: a status, a sentence, and nothing of the machine."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ..errors import ConfigError, DataError, ResourceError, ScqError


class Problem(Exception):
    """An answer that is an error. headers: such as Retry-After."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})

    def body(self, request_id: str) -> bytes:
        """The one form that all errors have."""
        error = {"status": self.status, "message": self.message, "request_id": request_id}
        return json.dumps({"error": error}).encode()


def busy(message: str) -> Problem:
    return Problem(503, message, {"Retry-After": "1"})


def problem_of(error: Exception) -> Problem:
    """What to answer of an exception. What the request caused is told; of anything else only that it happened."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ConfigError | DataError):
        return Problem(422, str(error))
    if isinstance(error, ResourceError):
        return busy("the server is out of memory for this request; ask for less, or later")
    if isinstance(error, ScqError):
        return Problem(500, "the gallery cannot be searched; the server's log says why")
    return Problem(500, "something went wrong in the server; its log says what, under this request_id")
