"""A folder of shards whose files lie open in the actors of a cluster: asked like any other gallery."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..arrays import Floats
from ..errors import ConfigError, IndexFileError, ResourceError, ScqError, printable
from ..files import PathLike
from ..galleries.hits import Hits, RangeHits
from ..galleries.shards.manifest import Manifest, is_sharded, read_manifest
from ..galleries.shards.opening import MOST_TRIES, check_repeats
from ..galleries.shards.sharded import Opened, Sharded, model_for
from ..galleries.snapshot import Origin
from ..model import Model
from .replicas import HEDGE, Replicas, ask_all, maker

PATIENCE = 10.0  # seconds that a search waits for a shard none of whose replicas answers: Ray starts them again
BY_REFERENCE = 100_000  # bytes of queries from which on they travel once to a node, not once to a shard


@dataclass(frozen=True)
class Way:
    """How shards are held and asked. cpus: see open_remote. partial: leave out shards none of whose replicas answers, and name
    them in `missing`, instead of raising an error. patience: seconds that a search waits for one of them. hedge: seconds after
    which another replica is asked beside one that has not answered.
    """

    ray: Any
    replicas: int = 2
    cpus: float = 0.0
    mmap: bool = False
    partial: bool = False
    patience: float = PATIENCE
    hedge: float = HEDGE


class RemoteSharded(Sharded):
    """As Sharded, with Replicas as its parts."""

    def __init__(self, opened: Opened, model: Model | None, name: str, origin: Origin, way: Way) -> None:
        super().__init__(opened, model, name, origin)
        self._way = way
        self.missing: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        raise ConfigError(f"{self.name} cannot be pickled: it is open in the actors of a cluster; open it there")

    def __copy__(self) -> RemoteSharded:
        made = RemoteSharded(self._opened, self.model, self.name, self._origin, self._way)
        made.missing = self.missing
        return made

    def search(self, *arguments: Any, **options: Any) -> Hits:
        """As Sharded.search. Raises ResourceError naming shards none of whose replicas answers."""
        return self._again(super().search, *arguments, **options)  # type: ignore[no-any-return]

    def range_search(self, *arguments: Any, **options: Any) -> RangeHits:
        """As Sharded.range_search. Raises as search does."""
        return self._again(super().range_search, *arguments, **options)  # type: ignore[no-any-return]

    def _again(self, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """work, and once more where it met lost actors and another manifest was put in place: they cannot open their files."""
        try:
            return work(*arguments, **options)
        except ResourceError:
            try:
                changed = self.refresh()
            except ScqError:
                changed = False
            if not changed:
                raise
        return work(*arguments, **options)

    def _ask(
        self, opened: Opened, verb: str, z: Floats, wanted: Sequence[Any], options: Mapping[str, Any]
    ) -> list[Any]:
        rows = self._way.ray.put(z) if z.nbytes > BY_REFERENCE else z
        return self._answers(opened, verb, rows, [(value,) for value in wanted], dict(options))

    def _of_each(self, opened: Opened, verb: str, *arguments: Any) -> list[Any]:
        return self._answers(opened, verb, None, [arguments] * len(opened.parts), {})

    def _ask_one(self, opened: Opened, s: int, verb: str, *arguments: Any) -> Any:
        way, part = self._way, opened.parts[s : s + 1]
        return self._whole(part, ask_all(way.ray, part, verb, None, [arguments], {}, way.patience, way.hedge))[0]

    def _answers(
        self, opened: Opened, verb: str, rows: Any, arguments: Sequence[Any], options: dict[str, Any]
    ) -> list[Any]:
        way = self._way
        found = ask_all(way.ray, opened.parts, verb, rows, arguments, options, way.patience, way.hedge)
        if way.partial and any(found):
            self.missing |= {part.shard.name for part, answer in zip(opened.parts, found) if not answer}
            return [answer[0] for answer in found if answer]
        return self._whole(opened.parts, found)

    def _whole(self, parts: Sequence[Replicas], found: Sequence[Any]) -> list[Any]:
        lost = [part.shard.name for part, answer in zip(parts, found) if not answer]
        if lost:
            count = self._way.replicas
            each = "its only replica does not" if count == 1 else f"none of its {count} replicas does"
            raise ResourceError(
                f"{self.name}: {', '.join(lost[:5])} does not answer, {each}; wait for nodes, or search with --partial"
            )
        return [answer[0] for answer in found]

    def _open_again(self, before: Opened) -> Opened:
        known = {shard.sha256: part for shard, part in zip(before.manifest.shards, before.parts)}
        return open_parts(self._origin.path, self._way, known)


def open_parts(folder: PathLike, way: Way, known: Mapping[str, Replicas]) -> Opened:
    """Actors for all shards of a folder; known: those that hold one already, by its checksum. Raises as open_shards does."""
    for attempt in range(MOST_TRIES):
        manifest = read_manifest(folder)
        try:
            return _opened(folder, manifest, way, known)
        except (IndexFileError, ConfigError, ResourceError):
            if attempt + 1 == MOST_TRIES or read_manifest(folder).checksum == manifest.checksum:
                raise
    raise IndexFileError(f"{printable(folder)}: is replaced again and again while it is opened; try later")


def _opened(folder: PathLike, manifest: Manifest, way: Way, known: Mapping[str, Replicas]) -> Opened:
    ray, shards = way.ray, manifest.shards
    parts = [known.get(shard.sha256) for shard in shards]
    made = tuple(
        Replicas(ray, shard, maker(ray, folder, manifest, shard, s, way.mmap, way.cpus), way.replicas)
        if part is None
        else part
        for s, (shard, part) in enumerate(zip(shards, parts))
    )
    traits = [new.opened() if part is None else None for new, part in zip(made, parts)]
    names = [printable(Path(folder) / shard.name) for shard in shards]

    def ids(s: int) -> list[Any]:
        (answer,) = ask_all(ray, made[s : s + 1], "ids", None, [()], {}, PATIENCE)
        if not answer:
            raise ResourceError(f"{names[s]}: its actors were lost while it was opened")
        return [answer[0]]

    check_repeats(names, [shard.ids for shard in shards], ids)
    return Opened(manifest, made, next((t for t in traits if t is not None), None) or made[0].opened())


def open_remote(
    ray: Any,
    path: PathLike,
    *,
    model: Model | PathLike | None = None,
    device: str = "cpu",
    mmap: bool = False,
    replicas: int = 2,
    cpus: float = 0.0,
    partial: bool = False,
    patience: float = PATIENCE,
    hedge: float = HEDGE,
) -> RemoteSharded:
    """Open a folder of shards in actors of a cluster, `replicas` for each shard. The folder lies where all nodes see it.

    cpus: that an actor reserves, and from 2 on threads of its searches. partial, patience, hedge:
    see Way. Raises as open_sharded does, ResourceError where actors do not start.
    """
    name = printable(path)
    if not is_sharded(path):
        raise ConfigError(f"{name}: a cluster searches folders of shards (.shards); scqfaiss cluster export makes one")
    if replicas < 1:
        raise ConfigError(f"replicas is {replicas}, needs 1 or more")
    if hedge <= 0:
        raise ConfigError(f"hedge is {hedge}, needs seconds above 0")
    if device != "cpu":
        raise ConfigError("a cluster searches on CPUs; leave --device out")
    way = Way(ray, replicas, cpus, mmap, partial, patience, hedge)
    loaded = model_for(model, read_manifest(path).metadata, name)
    return RemoteSharded(
        open_parts(path, way, {}), loaded, name, Origin(os.path.abspath(path), device, mmap, True), way
    )
