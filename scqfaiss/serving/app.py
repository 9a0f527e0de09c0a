"""The app: galleries, threads that search, routes, and what happens when it starts and ends."""

from __future__ import annotations

import asyncio
import logging
import os
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI, HTTPException, Request
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response

from .. import __version__
from ..errors import ScqError, ScqWarning
from ..galleries.opening import open_any
from .batching import Batcher
from .galleries import Opener, OpenGallery, plain
from .keys import Keys
from .limits import Limits
from .logs import Log
from .metrics import Metrics
from .page_routes import Shown, page_router
from .problems import Problem, problem_of
from .routes import Service, answered, api_router
from .settings import Settings
from .thumbnails import ImageFolder, Thumbnails

ENVIRONMENT = "SCQFAISS_SERVE"  # settings as JSON, for workers


def create_app(settings: Settings, opener: Opener = open_any) -> Limits:
    """The service as an ASGI app; galleries are opened here, by `opener`. Raises as OpenGallery does."""
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # what happens to requests stands in the service's own log
    warnings.simplefilter("ignore", ScqWarning)  # of requests: answers say what concerns their client
    log, metrics = Log(settings.log), Metrics()
    galleries = {served.name: OpenGallery(served, settings, opener) for served in settings.galleries}
    thumbnails = None if settings.images is None else Thumbnails(ImageFolder(settings.images))
    service = Service(
        settings,
        galleries,
        Batcher(settings.threads or _cores(), settings.queue, settings.timeout, in_loop=opener is open_any),
        metrics,
        log,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: log.event("loop-fault", error=type(context.get("exception")).__name__)
        )
        service.look()
        task = asyncio.create_task(_reload(service, settings.reload)) if settings.reload else None
        log.event("ready", galleries=",".join(galleries), process=os.getpid())
        yield
        if task is not None:
            task.cancel()
        service.batcher.close()
        log.event("ended", process=os.getpid())

    about = __doc__.splitlines()[0]
    # Its page of the routes brings its scripts along: FastAPI's own loads them from elsewhere, where keys are typed in.
    app = FastAPIOffline(redoc_url=None, title="scqfaiss", version=__version__, lifespan=lifespan, description=about)
    keys = Keys(settings)
    app.include_router(api_router(service, keys))
    app.include_router(
        page_router(lambda: shown(service), lambda name: galleries[name].items, thumbnails, keys.dependencies)
    )
    for kind in (Problem, ScqError, StarletteHTTPException, HTTPException, Exception):
        app.add_exception_handler(kind, _refused)
    return Limits(app, service, partial(answered, service, keys))


def from_environment() -> Limits:
    """The app of a worker, which ends where it cannot serve: its supervisor starts another one later."""
    settings = Settings.from_json(os.environ[ENVIRONMENT])
    try:
        return create_app(settings)
    except (ScqError, OSError, MemoryError) as error:
        Log(settings.log).event("worker-failed", process=os.getpid(), fault=plain(str(error), settings.galleries))
        raise SystemExit(3) from None


def shown(service: Service) -> list[Shown]:
    """What the page has to know."""
    found = []
    for name, g in service.galleries.items():
        takes = ("ids", *(["image"] if g.images is not None else []), *(["numbers"] if g.images is None else []))
        has_images = service.settings.images is not None and g.items is not None
        known = g.gallery.model is not None and g.gallery.model.content is not None
        found.append(
            Shown(
                name,
                g.gallery.ntotal,
                g.gallery.d,
                takes,
                known,
                g.gallery.has_calibration,
                g.items is not None,
                has_images,
            )
        )
    return found


async def _refused(request: Request, error: Exception) -> Response:
    """Every error in the one form."""
    if isinstance(error, StarletteHTTPException):
        problem = Problem(error.status_code, str(error.detail), error.headers)
    else:
        problem = problem_of(error)
    body = problem.body(request.scope["state"]["request_id"])
    return Response(body, problem.status, problem.headers, media_type="application/json")


async def _reload(service: Service, seconds: float) -> None:
    """Look at the files again and again, one after the other, in a thread."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(seconds)
        for g in service.galleries.values():
            failures = g.failures
            if await loop.run_in_executor(None, g.reload):
                service.log.event("reloaded", gallery=g.name, version=g.version, vectors=g.gallery.ntotal)
            if g.failures > failures:
                service.log.event("reload-failed", gallery=g.name, fault=g.fault)
        service.look()


def _cores() -> int:
    return len(os.sched_getaffinity(0))
