"""Routes of the service, but for those of the page. Bodies are read by hand: a schema would cost more than a search."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request, Response

from ..arrays import Floats
from ..errors import WriteError
from . import queries
from .answers import BINARY, as_bytes, as_json
from .batching import Batcher
from .galleries import Answer, OpenGallery
from .keys import Keys
from .logs import Log
from .metrics import Metrics
from .problems import Problem, busy
from .queries import Asked
from .settings import Settings

JSON, FORM = "application/json", "multipart/form-data"
SEARCH_PATH = "/v1/galleries/{name}/search"
CURL = "application/x-www-form-urlencoded"  # what `curl -d` says where nobody tells it better
MOST_IMAGES = 64  # of one request
SEARCH = (
    'One of three bodies. JSON: {"queries": [[...], ...]}, or {"ids": [...]} of stored vectors to search like; and k, threshold, '
    "precision, recall, allow, deny, known, probability, nprobe. application/octet-stream: float32 rows, options in the address; "
    "the answer is binary too. multipart/form-data: encoded images as `images`, options in the address."
)


@dataclass(eq=False)
class Service:
    """What the routes work with."""

    settings: Settings
    galleries: dict[str, OpenGallery]
    batcher: Batcher
    metrics: Metrics
    log: Log
    draining: bool = False  # a signal came: what is under way is still answered

    def of(self, name: str) -> OpenGallery:
        found = self.galleries.get(name)
        if found is None:
            raise Problem(404, f"there is no gallery of this name; there are {', '.join(self.galleries)}")
        return found

    def look(self) -> None:
        self.metrics.look(self.galleries.values(), self.batcher.waiting)

    async def search(self, g: OpenGallery, asked: Asked) -> Answer:
        """Through the threads, together with whatever else waits."""
        started = time.perf_counter()
        job = self.batcher.submit((g.name, asked.kind), asked, asked.n, g.search)
        answer: Answer = await job.future
        seconds = time.perf_counter() - started
        self.metrics.searched(g.name, job, answer, asked.n, seconds)
        return answer


def api_router(service: Service, keys: Keys) -> APIRouter:
    """The routes under /v1, and those for whoever watches the service."""
    router = APIRouter()
    _galleries(router, service, keys)
    _watching(router, service)
    _items(router, service, keys)
    return router


def _watching(router: APIRouter, service: Service) -> None:
    @router.get("/healthz", summary="Whether the process is alive.")
    async def healthz() -> Response:
        return Response(b'{"status":"ok"}', media_type=JSON)

    @router.get("/readyz", summary="Whether galleries are open and requests are taken.")
    async def readyz() -> Response:
        if service.draining:
            raise busy("the server is ending")
        if service.batcher.waiting >= service.settings.queue:
            raise busy("too many requests wait")
        return Response(b'{"status":"ready"}', media_type=JSON)

    @router.get("/metrics", summary="Figures for Prometheus.")
    async def metrics() -> Response:
        service.look()
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _galleries(router: APIRouter, service: Service, keys: Keys) -> None:
    @router.get("/v1/galleries", dependencies=list(keys.dependencies), summary="The galleries.")
    async def galleries() -> dict[str, Any]:
        return {
            "galleries": [
                {"name": g.name, "vectors": g.gallery.ntotal, "query_d": g.gallery.d, "version": g.version}
                for g in service.galleries.values()
            ]
        }

    @router.get(
        "/v1/galleries/{name}", dependencies=list(keys.dependencies), summary="What `scqfaiss info` tells of one."
    )
    def gallery(name: str) -> Response:
        return Response(json.dumps(service.of(name).facts(), sort_keys=True), media_type=JSON)

    body = {"description": SEARCH, "required": True, "content": {kind: {} for kind in (JSON, BINARY, FORM)}}

    @router.post(
        SEARCH_PATH,
        summary="The nearest vectors of each query.",
        openapi_extra={"requestBody": body},
    )
    async def search(name: str, request: Request) -> Response:
        return await answered(service, keys, name, request)


async def answered(service: Service, keys: Keys, name: str, request: Request) -> Response:
    """The answer to a search. Raises Problem."""
    keys.check(request)
    g = service.of(name)
    kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if kind == FORM:
        asked = await _images(service, g, request)
    elif kind == BINARY:
        asked = queries.of_binary(await request.body(), request.query_params, service.settings, g.gallery.d)
    elif kind in (JSON, "", CURL):
        asked = queries.of_json(await request.body(), service.settings, g.gallery.d)
    else:
        raise Problem(415, f"the content type is {kind[:40]!r}, needs {JSON}, {BINARY} or {FORM}")
    answer = await service.search(g, asked)
    if kind == BINARY:
        content, headers = as_bytes(answer)
        return Response(content, headers=headers, media_type=BINARY)
    return Response(as_json(answer), media_type=JSON)


async def _images(service: Service, g: OpenGallery, request: Request) -> Asked:
    """Images of a form, decoded and encoded in the threads."""
    if g.images is None:
        raise Problem(422, f"gallery {g.name} takes rows of {g.gallery.d} numbers or ids, no images")
    files = []
    async with request.form(max_files=MOST_IMAGES, max_fields=8) as form:
        for value in form.getlist("images"):
            if isinstance(value, str):
                raise Problem(422, "images need files")
            files.append(await value.read())
    if not files:
        raise Problem(422, "the form holds no `images`")
    images = g.images
    job = service.batcher.submit(
        (f"{g.name} images", object()), files, len(files), lambda many: [images.rows(part) for part in many]
    )
    rows: Floats = await job.future
    asked = queries.asked(queries.of_address(request.query_params), service.settings, rows)
    return replace(asked, encoded=images.encoded, kind=(*asked.kind, "images"))


def _items(router: APIRouter, service: Service, keys: Keys) -> None:
    from fastapi import Depends

    may_write = [Depends(keys.check_write)]

    async def written(work: Any, *arguments: Any) -> int:
        try:
            n: int = await asyncio.get_running_loop().run_in_executor(None, work, *arguments)
        except WriteError as error:
            service.log.event("write-failed", error=type(error).__name__)
            raise Problem(409, "the gallery cannot be changed now; another process may be changing it") from None
        service.look()
        return n

    @router.post(
        "/v1/galleries/{name}/items", dependencies=may_write, summary='Append {"rows": [[...]], "ids": [...]}.'
    )
    async def append(name: str, request: Request) -> dict[str, Any]:
        g = service.of(name)
        value = _object(await request.body(), "rows", "ids")
        rows = queries.rows_of(value.get("rows"), g.gallery.d, service.settings)
        ids = queries.ids_of(value.get("ids"), "ids", service.settings)
        if ids is not None and len(ids) != len(rows):
            raise Problem(422, f"{len(ids)} ids are given for {len(rows)} rows")
        return {"vectors": await written(g.append, rows, ids), "version": g.version}

    @router.delete("/v1/galleries/{name}/items", dependencies=may_write, summary='Remove {"ids": [...]}.')
    async def remove(name: str, request: Request) -> dict[str, Any]:
        g = service.of(name)
        ids = queries.ids_of(_object(await request.body(), "ids").get("ids"), "ids", service.settings)
        if ids is None:
            raise Problem(422, "give ids, those to remove")
        return {"vectors": await written(g.remove, ids), "version": g.version}


def _object(body: bytes, *known: str) -> Mapping[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem(400, "the body is no JSON") from None
    if not isinstance(value, dict) or set(value) - set(known):
        raise Problem(422, f"the body needs to be an object of {' and '.join(known)}")
    return value
