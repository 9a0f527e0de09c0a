"""cluster search and cluster serve: the commands of one machine, with galleries that lie open in the actors of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..errors import ConfigError
from ..files import PathLike
from ..galleries.base import AnyGallery
from ..galleries.searching import search_file
from .gallery import RemoteSharded, open_remote
from .replicas import HEDGE
from .session import connected


def search_cluster(
    path: PathLike,
    queries: PathLike,
    *,
    replicas: int = 2,
    allow_missing: bool = False,
    address: str | None = None,
    cpus: float = 0.0,
    hedge: float = HEDGE,
    **options: Any,
) -> str:
    """searching.search_file with actors; returns what to tell the user. allow_missing: answer without shards that no replica
    holds any more, and say which.
    """
    opened: list[RemoteSharded] = []
    with connected(address) as ray:

        def opener(gallery: PathLike, **how: Any) -> AnyGallery:
            given: dict[str, Any] = {"replicas": replicas, "partial": allow_missing, "cpus": cpus, "hedge": hedge}
            opened.append(open_remote(ray, gallery, **given, **how))
            return opened[-1]

        text = search_file(path, queries, opener=opener, **options)
    missing = sorted(opened[0].missing)
    if not missing:
        return text
    return f"NOT SEARCHED, no replica answered: {', '.join(missing)}\n{text}"


def serve_cluster(
    galleries: tuple[str, ...],
    say: Callable[[str], Any],
    *,
    replicas: int = 2,
    address: str | None = None,
    cpus: float = 0.0,
    hedge: float = HEDGE,
    **options: Any,
) -> None:
    """serving.run.serve with actors, in one process. Raises as that and open_remote do."""
    from ..serving.run import run
    from ..serving.settings import settings_of

    settings = settings_of(galleries, **options)
    if settings.workers != 1:
        raise ConfigError("cluster serve is one process, and its actors do the work; leave --workers out")
    with connected(address) as ray:
        run(settings, say, partial(open_remote, ray, replicas=replicas, cpus=cpus, hedge=hedge))
