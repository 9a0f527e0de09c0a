"""Actors that hold a shard each, and several for each shard: who is asked, and what happens where one is lost."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from ..errors import ResourceError, ScqError
from ..files import PathLike
from ..galleries.gallery import Gallery
from ..galleries.shards.manifest import Manifest, Shard
from ..galleries.shards.opening import open_shard
from ..galleries.shards.sharded import Traits
from .session import cause

HEDGE = 1.0  # seconds after which another replica is asked beside one that has not answered
SILENT = 1.0  # seconds without an answer, while another replica answered, after which one counts as lost
PROBE, MOST_PAUSE = 0.25, 8.0  # seconds between looks whether a lost replica is back, first and at most
START = 120.0  # seconds that actors have to open their shards


class NotOpen(ScqError):
    """What an actor answers that could not open its shard: another replica may have it."""


class ShardActor:
    """Runs on a node: one open shard, or what keeps it from being opened; a later question tries again."""

    def __init__(self, folder: str, manifest: Manifest, shard: Shard, mmap: bool, threads: int) -> None:
        import faiss

        faiss.omp_set_num_threads(threads)
        self._open = partial(open_shard, folder, manifest, shard, mmap=mmap)
        self._gallery: Gallery | None = None
        with suppress(ScqError):
            self._gallery = self._open()

    def traits(self) -> tuple[Traits, int]:
        """What searches have to know, and the process that holds the shard. Raises what its opening raises."""
        self._gallery = self._gallery or self._open()
        return Traits.of(self._gallery), os.getpid()

    def ask(self, verb: str, rows: Any, arguments: Sequence[Any], options: dict[str, Any]) -> Any:
        """A method of the gallery. rows: its first argument, None for those that take no queries. Raises NotOpen."""
        if self._gallery is None:
            try:
                self._gallery = self._open()
            except ScqError as error:
                raise NotOpen(str(error)) from None
        given = arguments if rows is None else (rows, *arguments)
        return getattr(self._gallery, verb)(*given, **options)


class Replicas:
    """The actors of one shard. They end when nobody refers to this object any more."""

    def __init__(self, ray: Any, shard: Shard, make: Callable[[int], Any], count: int) -> None:
        """make(r): a new actor for replica r."""
        self.shard, self._ray, self._make = shard, ray, make
        self._actors = [make(r) for r in range(count)]
        self._probes: dict[int, Any] = {}  # replicas that were lost -> the call that tells when they are back
        self._looked, self._pauses = [0.0] * count, [PROBE] * count
        self._next, self._lock = 0, threading.Lock()

    def choose(self, tried: set[int]) -> int | None:
        """A replica that is not known to be lost, in turn; None where all were tried or are lost."""
        with self._lock:
            for r in range(len(self._actors)):
                self._look(r)
            alive = [r for r in range(len(self._actors)) if r not in self._probes and r not in tried]
            if not alive:
                return None
            self._next += 1
            return alive[self._next % len(alive)]

    def call(self, r: int, verb: str, rows: Any, arguments: Sequence[Any], options: dict[str, Any]) -> Any:
        return self._actors[r].ask.remote(verb, rows, arguments, options)

    def lost(self, r: int) -> None:
        """A call was not answered: leave the replica out until it is back. Ray starts it again, elsewhere if need be."""
        with self._lock:
            if r not in self._probes:
                self._probes[r], self._looked[r] = self._actors[r].traits.remote(), time.monotonic()

    def _look(self, r: int) -> None:
        """Whether a lost replica is back; one that Ray has given up is made anew. The longer it is lost, the rarer the looks."""
        if r not in self._probes or time.monotonic() - self._looked[r] < self._pauses[r]:
            return
        self._looked[r] = time.monotonic()
        ready, _ = self._ray.wait([self._probes[r]], timeout=0)
        if not ready:
            return
        try:
            self._ray.get(ready[0])
            del self._probes[r]
            self._pauses[r] = PROBE
            return
        except self._ray.exceptions.ActorDiedError:
            self._actors[r] = self._make(r)
        except self._ray.exceptions.RayError:  # not yet
            pass
        self._pauses[r] = min(2 * self._pauses[r], MOST_PAUSE)
        self._probes[r] = self._actors[r].traits.remote()

    def opened(self) -> Traits:
        """Wait until one replica has opened the shard. Raises what the opening raised; others may follow."""
        error: BaseException | None = None
        waiting = [actor.traits.remote() for actor in self._actors]
        deadline = time.monotonic() + START
        while waiting and (left := deadline - time.monotonic()) > 0:
            ready, waiting = self._ray.wait(waiting, timeout=left)
            for ref in ready:
                try:
                    traits: Traits = self._ray.get(ref)[0]
                    return traits
                except self._ray.exceptions.RayError as e:
                    error = e
        if error is None:
            raise ResourceError(f"{self.shard.name}: no node opened it in {START:g} seconds; the cluster may be full")
        raise cause(self._ray, error, self.shard.name)

    def processes(self) -> list[int]:
        """Of the replicas, in their order, by their ids on their nodes. Raises where one is lost."""
        return [self._ray.get(actor.traits.remote())[1] for actor in self._actors]


def maker(
    ray: Any, folder: PathLike, manifest: Manifest, shard: Shard, place: int, mmap: bool, cpus: float
) -> Callable[[int], Any]:
    """make(r) of one shard: its replicas go to different nodes where there are several, and elsewhere when theirs is lost."""
    actor = ray.remote(ShardActor)

    def make(r: int) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        alive = [node for node in ray.nodes() if node["Alive"]]
        nodes = sorted(node["NodeID"] for node in alive if node["Resources"].get("CPU")) or [alive[0]["NodeID"]]
        strategy = NodeAffinitySchedulingStrategy(nodes[(place + r) % len(nodes)], soft=True)
        how = {"num_cpus": cpus, "max_restarts": -1, "max_task_retries": 0, "scheduling_strategy": strategy}
        return actor.options(**how).remote(os.path.abspath(folder), manifest, shard, mmap, max(1, int(cpus)))

    return make


def ask_all(
    ray: Any,
    replicas: Sequence[Replicas],
    verb: str,
    rows: Any,
    arguments: Sequence[Sequence[Any]],
    options: dict[str, Any],
    patience: float,
    hedge: float = HEDGE,
) -> list[Any]:
    """verb(rows, *arguments of the shard, **options) of every shard, each from one of its replicas. rows: None for methods
    without; an array, or the reference of one in Ray's store.

    A replica that is lost is replaced by another; one that does not answer in `hedge` seconds has another asked beside it, and
    the first answer counts. -> for each shard (answer,), or () where no replica answered within `patience` seconds.
    """
    return _Call(ray, replicas, (verb, rows, arguments, options), hedge).run(patience)


class _Call:
    """One question to all shards."""

    def __init__(self, ray: Any, replicas: Sequence[Replicas], question: tuple[Any, ...], hedge: float) -> None:
        self._ray, self._replicas, self._question, self._hedge = ray, replicas, question, hedge
        self._waiting: dict[Any, tuple[int, int, float]] = {}  # reference -> shard, replica, when it was asked
        self._tried: list[set[int]] = [set() for _ in replicas]
        self._answers: list[Any] = [()] * len(replicas)
        self._open = set(range(len(replicas)))

    def _send(self, s: int) -> bool:
        verb, rows, arguments, options = self._question
        r = self._replicas[s].choose(self._tried[s])
        if r is None:
            return False
        self._tried[s].add(r)
        self._waiting[self._replicas[s].call(r, verb, rows, arguments[s], options)] = s, r, time.monotonic()
        return True

    def run(self, patience: float) -> list[Any]:
        for s in range(len(self._replicas)):
            self._send(s)
        deadline, hedge = time.monotonic() + patience, time.monotonic() + self._hedge
        while self._open:
            unasked = self._open - {s for s, _, _ in self._waiting.values()}
            for s in unasked:  # all of its replicas are lost, or were when they were asked
                self._tried[s].clear()
                self._send(s)
            if not self._waiting and time.monotonic() > deadline:
                break
            if time.monotonic() > hedge:
                hedge = time.monotonic() + self._hedge
                for s in self._open:
                    self._send(s)
            self._take(min(0.05 if unasked else self._hedge, max(0.001, hedge - time.monotonic())))
        return self._answers

    def _answered(self, s: int) -> None:
        """Whoever has been silent while another answered is left out until it speaks."""
        self._open.discard(s)
        for other, r, asked in self._waiting.values():
            if other == s and time.monotonic() - asked > SILENT:
                self._replicas[s].lost(r)

    def _take(self, seconds: float) -> None:
        """Whatever comes in within some seconds."""
        if not self._waiting:
            time.sleep(seconds)
            return
        ready, _ = self._ray.wait(list(self._waiting), num_returns=1, timeout=seconds)
        if ready:  # with all others that are there
            ready, _ = self._ray.wait(list(self._waiting), num_returns=len(self._waiting), timeout=0)
        for ref in ready:
            s, r, _ = self._waiting.pop(ref)
            if s not in self._open:
                continue
            try:
                self._answers[s] = (self._ray.get(ref),)
                self._answered(s)
            except self._ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, NotOpen):
                    self._replicas[s].lost(r)
                    continue
                raise cause(self._ray, error, self._replicas[s].shard.name) from error
            except self._ray.exceptions.RayError:
                self._replicas[s].lost(r)
