"""Rows into shards and out of them. What changes is written under another name, and then the manifest: whatever happens in
between, the gallery is the old one or the new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...arrays import Ints
from ...codebooks import Codes
from ...contract import Progress, silent
from ...data import Source, open_rows
from ...errors import ConfigError, DataError, IndexFileError, printable
from ...features.source import DEFAULT_INFERENCE, InferenceOptions
from ...files import AtomicFile, PathLike, atomic_write
from ...model import Model, encode_source
from ..editing import Content, among, new_rows, rewrite
from ..exporting import SUFFIX
from ..extending import extends
from .folder import card_of, clear, entry, held
from .manifest import Manifest, Shard, newer_name, numbers_of, read_manifest, shard_name, write_manifest
from .opening import open_shard


def append_source(
    gallery: PathLike,
    source: Source,
    model: Model | PathLike | None,
    *,
    inputs: Sequence[PathLike] = (),
    inference_options: InferenceOptions = DEFAULT_INFERENCE,
    progress: Progress = silent,
) -> tuple[Ints, int, int]:
    """Encode rows and add them -> (their ids, vectors the gallery now holds, shards that were written). Closes the source.

    The last shard is filled up to the manifest's rows_per_shard, then others follow. Raises as editing.append.
    """
    with source, held(gallery, inputs, "changed") as (folder, output):
        manifest = read_manifest(folder)
        last = manifest.shards[-1]
        content = _content(folder, manifest, last)
        loaded = Model.load(model) if model is not None and not isinstance(model, Model) else model
        if loaded is not None and extends(loaded, content.metadata):
            raise ConfigError(
                f"the model extends that of {printable(gallery)}; scqfaiss merge makes one file of the shards, which takes it"
            )
        near = _ids_near(folder, manifest, source.ids) if source.has_ids else []
        highest = max(shard.ids[1] for shard in manifest.shards)
        how = printable(gallery), [content.ids, *near], highest
        encoder, rows, ids = new_rows(content, source, loaded, inference_options, *how)
        output.check_space(content.target.nbytes(encoder.codebooks.shape, len(content.ids) + len(ids)))
        codes = encode_source(encoder, rows, progress)
        source.close()  # says whether the rows were changed while they were read: only then is anything written
        room = max(0, manifest.rows_per_shard - last.rows)
        shards, written = list(manifest.shards), 0
        if room:
            path = folder / newer_name(last.name, manifest.shards)
            joined = np.concatenate([content.codes, codes[:room]]), np.concatenate([content.ids, ids[:room]])
            shards[-1] = _written(path, content, *joined)
            written += 1
        number = 1 + max((numbers_of(shard.name) or (0, 0))[0] for shard in manifest.shards)
        for i in range(room, len(ids), manifest.rows_per_shard):
            part = slice(i, i + manifest.rows_per_shard)
            shards.append(_written(folder / shard_name(number + written - bool(room)), content, codes[part], ids[part]))
            written += 1
        after = _replaced(folder, output, manifest, shards)
        return ids, after.n, written


def append_rows(
    gallery: PathLike,
    rows: PathLike,
    model: PathLike | None,
    keys: Mapping[str, Any],
    inference_options: InferenceOptions,
    progress: Progress,
) -> str:
    """Append a file of rows, or images; returns what to tell the user."""
    source = open_rows(rows, **{**keys, "labels_key": None}, role="keys")
    inputs = [path for path in (rows, model) if path is not None]
    ids, n, written = append_source(
        gallery, source, model, inputs=inputs, inference_options=inference_options, progress=progress
    )
    added = f"{len(ids):,} vectors added (ids {ids.min()} to {ids.max()}) in {written:,} shards"
    return f"{printable(gallery)}: {added}, {n:,} in all"


def remove_ids(gallery: PathLike, ids: Ints) -> tuple[int, int, int]:
    """Take rows out by their ids -> (how many were there, ids that were not, vectors left). A shard without rows goes.

    Raises DataError where no row would be left.
    """
    with held(gallery, [], "changed") as (folder, output):
        manifest, ids = read_manifest(folder), np.unique(ids)
        shards: list[Shard] = []
        removed = found = 0
        for shard in manifest.shards:
            content = _content(folder, manifest, shard, as_stored=True) if _within(ids, shard).any() else None
            gone = None if content is None else among(content.ids, ids)
            if content is None or gone is None or not gone.any():
                shards.append(shard)
                continue
            removed += int(gone.sum())
            found += len(np.unique(content.ids[gone]))
            if not gone.all():
                path = folder / newer_name(shard.name, manifest.shards)
                shards.append(_written(path, content, content.codes[~gone], content.ids[~gone]))
        if not shards:
            raise DataError(f"{printable(gallery)}: nothing would be left; delete the folder instead")
        if not removed:
            return 0, len(ids), manifest.n
        after = _replaced(folder, output, manifest, shards)
        return removed, len(ids) - found, after.n


def _content(folder: Path, manifest: Manifest, shard: Shard, as_stored: bool = False) -> Content:
    """A shard taken apart. Raises IndexFileError where it is missing, damaged, or another than the manifest says."""
    open_shard(folder, manifest, shard, mmap=True, verify=False)
    content = Content(folder / shard.name, as_stored=as_stored)
    if content.stored.stamp is None or bytes(content.stored.stamp).hex() != shard.sha256:
        raise IndexFileError(f"{printable(folder / shard.name)}: was replaced while it was read")
    return content


def _within(ids: Ints, shard: Shard) -> Any:
    return (shard.ids[0] <= ids) & (ids <= shard.ids[1])


def _ids_near(folder: Path, manifest: Manifest, ids: Ints) -> list[Ints]:
    """The ids of all shards but the last that could hold one of `ids`; their files are verified."""
    near = [shard for shard in manifest.shards[:-1] if _within(ids, shard).any()]
    return [open_shard(folder, manifest, shard, mmap=True).ids() for shard in near]


def _written(path: Path, content: Content, codes: Codes, ids: Ints) -> Shard:
    with atomic_write(path, suffix=SUFFIX, what="changed") as output:
        rewrite(output, content, content.codebooks, codes, ids)
    return entry(path, ids)[0]


def _replaced(folder: Path, output: AtomicFile, before: Manifest, shards: Sequence[Shard]) -> Manifest:
    """The manifest of these shards, put in place of the one before."""
    cards = [card_of(folder / shard.name) for shard in shards]
    cards[0] = cards[0] | {"skipped_rows": before.metadata.get("skipped_rows", 0)}
    manifest = Manifest.of(cards, shards, before.rows_per_shard)
    write_manifest(output, manifest)
    clear(folder, manifest)
    return manifest
