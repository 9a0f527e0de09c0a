"""Routes of the page: itself, what it has to know of each gallery, and the images of items."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response

from ..data.decoding import Refused
from ..items.store import Items
from .thumbnails import NoImage, Thumbnail, Thumbnails

FILES = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "grid.js": "text/javascript",
    "server.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
# Nothing inline, nothing from elsewhere; blob: is an image that the user chose, or one that was fetched with a key.
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
IMAGE_THREADS = 2  # that make thumbnails, beside those that search
IMAGES_WAITING = 256  # thumbnails asked for and not made yet; more are turned away
MOST_ITEMS = 100  # of one request
EXAMPLES = 24  # items that the page begins with
IMAGE_AGE = 300  # seconds that a browser shows an image without asking again


@dataclass(frozen=True)
class Shown:
    """What the page has to know of a gallery. takes: of 'ids', 'image' and 'numbers'; known, probability: whether it has
    content codes, and a calibration; items, images: whether it has items, and these may have images.
    """

    name: str
    n: int
    d: int
    takes: tuple[str, ...]
    known: bool
    probability: bool
    items: bool
    images: bool


class _Images:
    """Thumbnails, made by few threads of their own: whoever searches need not wait for them."""

    def __init__(self, thumbnails: Thumbnails) -> None:
        self._thumbnails, self._waiting = thumbnails, 0
        self._pool = ThreadPoolExecutor(IMAGE_THREADS, "scqfaiss-images")

    async def get(self, path: str) -> Thumbnail:
        if self._waiting >= IMAGES_WAITING:
            raise HTTPException(503, "too many images are asked for at once", {"Retry-After": "1"})
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._thumbnails.get, path)
        except NoImage:
            raise HTTPException(404, "there is no such image") from None
        except Refused as refused:
            raise HTTPException(422, f"this image cannot be shown: {refused.fault}") from None
        finally:
            self._waiting -= 1


def page_router(
    galleries: Callable[[], Sequence[Shown]],
    items: Callable[[str], Items | None],
    thumbnails: Thumbnails | None,
    protected: Sequence[Any] = (),
) -> APIRouter:
    """Routes for an app. galleries(): those to choose from; items(name): of a gallery, None where it has none, KeyError where
    there is no such gallery. protected: dependencies of the routes that tell anything of a gallery.
    """
    router = APIRouter(include_in_schema=False)
    folder = resources.files("scqfaiss.serving") / "page"
    held = {name: (folder / name).read_bytes() for name in ("index.html", *FILES)}
    images = None if thumbnails is None else _Images(thumbnails)

    def _items_of(name: str) -> Items | None:
        try:
            return items(name)
        except KeyError:
            raise HTTPException(404, "there is no such gallery") from None

    @router.get("/")
    def page() -> Response:
        return _static(held["index.html"], "text/html; charset=utf-8")

    @router.get("/page/galleries.json", dependencies=list(protected))
    def galleries_shown() -> dict[str, Any]:
        return {"galleries": [{**asdict(one), "examples": _examples(items(one.name))} for one in galleries()]}

    @router.get("/page/items/{name}", dependencies=list(protected))
    def items_shown(name: str, ids: str = "") -> dict[str, Any]:
        numbers = [i for word in ids.split(",")[:MOST_ITEMS] if (i := _id(word)) >= 0]
        known = _items_of(name)
        return {"items": [None] * len(numbers) if known is None else known.get(numbers)}

    @router.get("/page/{name}")
    def page_file(name: str) -> Response:
        if name not in FILES:
            raise HTTPException(404, "there is no such file")
        return _static(held[name], FILES[name])

    @router.get("/v1/galleries/{name}/images/{id}", dependencies=list(protected))
    async def image(name: str, id: str, request: Request) -> Response:
        known = _items_of(name)
        item = known.get([_id(id)])[0] if known is not None and images is not None else None
        if images is None or item is None or not item["image"]:
            raise HTTPException(404, "there is no such image")
        found = await images.get(item["image"])
        headers = {"ETag": f'"{found.etag}"', "Cache-Control": f"private, max-age={IMAGE_AGE}", **SECURITY}
        if _matches(request.headers.get("If-None-Match", ""), found.etag):
            return Response(status_code=304, headers=headers)
        return Response(found.content, media_type=found.media_type, headers=headers)

    return router


def _examples(known: Items | None) -> list[dict[str, Any]]:
    """Items to begin with: nobody knows ids by heart."""
    ids = known.some(EXAMPLES) if known is not None else []
    return [{"id": id, "item": item} for id, item in zip(ids, known.get(ids))] if known is not None else []


def _id(word: str) -> int:
    """An id as it stands in an address, -1 for what is none."""
    return int(word) if word.isascii() and word.isdecimal() and len(word) < 20 else -1


def _static(content: bytes, media_type: str) -> Response:
    return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache", **SECURITY})


def _matches(asked: str, etag: str) -> bool:
    """Whether If-None-Match names this tag; one that a proxy made weak (W/) will do."""
    return asked.strip() == "*" or f'"{etag}"' in [tag.strip().removeprefix("W/") for tag in asked.split(",")]
