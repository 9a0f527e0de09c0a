"""Who may ask: everybody where there are no keys (which only loopback allows), else whoever holds one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import Depends, Request

from .problems import Problem
from .settings import Settings


class Keys:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def dependencies(self) -> Sequence[Any]:
        """Of routes that tell anything of a gallery."""
        return [Depends(self.check)] if self._settings.keys else []

    def check(self, request: Request) -> None:
        """Raise Problem 401 unless the request has a key: `Authorization: Bearer KEY`, or `X-API-Key: KEY`."""
        if not self._settings.keys:
            return
        kind, _, key = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer":
            key = request.headers.get("X-API-Key", "")
        if not key or not self._settings.knows(key.strip()):
            what = "no key is given" if not key else "the key is none of the server's"
            raise Problem(401, f"{what}; send Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})

    def check_write(self, request: Request) -> None:
        """Raise Problem unless the service may change galleries, and the request has a key."""
        if not self._settings.allow_writes:
            raise Problem(403, "this server changes no gallery; it was started without --allow-writes")
        self.check(request)
