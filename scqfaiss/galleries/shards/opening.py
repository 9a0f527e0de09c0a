"""Shards opened and compared, with the manifest and with one another: nothing is searched before all of them agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from ...arrays import Ints
from ...errors import ConfigError, IndexFileError, printable
from ...files import PathLike
from ...metadata import told
from ...targets.ids import SORTED_AT_A_TIME, id_bounds, id_pieces
from ..gallery import Gallery, open_gallery
from .manifest import COMMON, Manifest, Shard, missing, read_manifest

MOST_TRIES = 20  # of opening a gallery that others keep replacing


def open_shard(
    folder: PathLike,
    manifest: Manifest,
    shard: Shard,
    *,
    device: str = "cpu",
    mmap: bool = False,
    verify: bool = True,
) -> Gallery:
    """One file of a folder, held to its manifest. Raises IndexFileError naming it where it is damaged, missing or another."""
    path = Path(folder) / shard.name
    name = printable(path)
    if not path.exists():
        raise missing(path)
    gallery = open_gallery(path, device=device, mmap=mmap, verify=verify)
    card = gallery.metadata
    if card is None:
        raise IndexFileError(f"{name}: no checksum: written by another program, or cut off; export again")
    for key in COMMON:
        if card.get(key) != manifest.metadata.get(key):
            found, needed = (told(part.get(key)) for part in (card, manifest.metadata))
            cut = 12 if key == "model_sha256" else 80
            raise IndexFileError(
                f"{name}: {key} is {found[:cut]}, the manifest says {needed[:cut]}; it belongs elsewhere"
            )
    low, high = id_bounds(gallery.index)
    facts = {"rows": (gallery.ntotal, shard.rows), "ids": ((low, high), shard.ids)}
    facts |= {"checksum": ((gallery.checksum or "")[:12], shard.sha256[:12])}
    for key, (found_value, listed) in facts.items():
        if found_value != listed or (key == "checksum" and gallery.checksum != shard.sha256):
            raise IndexFileError(
                f"{name}: {key} is {_said(found_value)}, the manifest says {_said(listed)}; another file"
            )
    gallery.name = shard.name  # what searches call it
    return gallery


def _said(value: Any) -> str:
    return f"{value[0]} to {value[1]}" if isinstance(value, tuple) else str(value)


def each(parts: Sequence[Any], work: Callable[[Any], Any]) -> list[Any]:
    """work(part) of every part, in threads: as many as FAISS may use here, each of which runs FAISS on its share of them."""
    threads = faiss.omp_get_max_threads()
    if threads == 1 or len(parts) == 1:
        return [work(part) for part in parts]
    workers = min(len(parts), threads)
    with ThreadPoolExecutor(
        workers, initializer=faiss.omp_set_num_threads, initargs=(max(1, threads // workers),)
    ) as pool:
        return list(pool.map(work, parts))


def check_repeats(names: Sequence[str], ranges: Sequence[tuple[int, int]], pieces: Callable[[int], Any]) -> None:
    """Raise IndexFileError naming two shards that hold the same id. pieces(s): the ids of shard s, in arrays.

    Shards whose ranges of ids do not overlap are not looked at. Of the others about SORTED_AT_A_TIME ids are in memory at
    a time, 8 bytes each, whatever their number.
    """
    for group in _overlapping(ranges):
        total = sum(len(piece) for s in group for piece in pieces(s))
        parts = -(-total // SORTED_AT_A_TIME)
        for part in range(parts):
            some = [_distinct([p if parts == 1 else p[p % parts == part] for p in pieces(s)]) for s in group]
            ids, owner = np.concatenate(some), np.repeat(np.arange(len(group)), [len(a) for a in some])
            order = np.lexsort((owner, ids))
            same = np.flatnonzero(ids[order][1:] == ids[order][:-1])
            if len(same):
                a, b = (group[int(owner[order[same[0] + i]])] for i in (0, 1))
                raise IndexFileError(
                    f"{names[b]}: id {ids[order[same[0]]]} stands in {names[a]} too ({len(same):,} such ids); "
                    "every row of a gallery needs an id of its own"
                )


def _distinct(pieces: Sequence[Ints]) -> Ints:
    ids = np.sort(np.concatenate(pieces)) if pieces else np.zeros(0, np.int64)
    out: Ints = ids[np.append(True, ids[1:] != ids[:-1])[: len(ids)]]
    return out


def _overlapping(ranges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Groups of places whose ranges overlap, one after another; places that overlap with none are in no group."""
    groups: list[list[int]] = []
    reach = -1
    for place in sorted(range(len(ranges)), key=lambda s: ranges[s]):
        low, high = ranges[place]
        if low <= reach:
            groups[-1].append(place)
        else:
            groups.append([place])
        reach = max(reach, high)
    return [group for group in groups if len(group) > 1]


def pieces_of(gallery: Gallery) -> list[Ints]:
    """The ids of a gallery, in arrays that are its own where they can be."""
    return list(id_pieces(gallery.index)) or [np.arange(gallery.ntotal)]


def open_shards(
    folder: PathLike, *, device: str, mmap: bool, verify: bool, known: dict[str, Gallery] | None = None
) -> tuple[Manifest, tuple[Gallery, ...]]:
    """The manifest of a folder, and all its shards. known: galleries that are open already, by their checksums.

    Where another process replaces the gallery meanwhile, the new one is opened. Raises as read_manifest and open_shard, and
    check_repeats.
    """
    for attempt in range(MOST_TRIES):
        manifest = read_manifest(folder)
        there = known or {}

        def opened(shard: Shard, manifest: Manifest = manifest, there: dict[str, Gallery] = there) -> Gallery:
            if shard.sha256 in there:
                return there[shard.sha256]
            return open_shard(folder, manifest, shard, device=device, mmap=mmap, verify=verify)

        try:
            parts = tuple(each(manifest.shards, opened))
        except (IndexFileError, ConfigError):
            if attempt + 1 < MOST_TRIES and read_manifest(folder).checksum != manifest.checksum:
                continue
            raise
        ranges = [shard.ids for shard in manifest.shards]
        names = [printable(Path(folder) / shard.name) for shard in manifest.shards]
        check_repeats(names, ranges, lambda s, parts=parts: pieces_of(parts[s]))  # type: ignore[misc]
        return manifest, parts
    raise IndexFileError(f"{printable(folder)}: is replaced again and again while it is opened; try later")
