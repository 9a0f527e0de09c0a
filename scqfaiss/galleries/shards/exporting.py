"""Export into several files: each holds a run of the rows, and is not built again where it is there already."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...contract import Progress, silent
from ...data.joined import Slice, open_several
from ...data.source import Source
from ...errors import ConfigError, DataError, ScqError, format_bytes, printable
from ...features.source import FeatureSource, InferenceOptions, as_rows
from ...files import AtomicFile, PathLike, atomic_write
from ...model import Model, check_width
from ...targets.options import chosen
from ..exporting import ENCODER, SUFFIX, check_target, cut, encode_for, length, write
from ..reading import read_gallery
from .folder import clear, entry, held
from .manifest import Manifest, Shard, newer_name, numbers_of, read_manifest, shard_name, write_manifest
from .opening import check_repeats

ROWS_PER_SHARD = 10_000_000
Made = tuple[Shard, dict[str, Any], bool]  # a shard, its metadata, and whether it was built now


def allotted(n: int, shards: int | None, rows_per_shard: int | None) -> list[tuple[int, int]]:
    """(first row, row behind the last) of each shard. Raises ConfigError for both numbers, or one that does not fit."""
    if shards is not None and rows_per_shard is not None:
        raise ConfigError("give --shards or --rows-per-shard, not both")
    if shards is not None:
        if not 1 <= shards <= n:
            raise ConfigError(f"shards is {shards}, needs 1 to {n:,}, as many as there are rows")
        cuts = [n * s // shards for s in range(shards + 1)]
        return list(pairwise(cuts))
    step = ROWS_PER_SHARD if rows_per_shard is None else rows_per_shard
    if step < 1:
        raise ConfigError(f"rows-per-shard is {step}, needs 1 or more")
    return [(i, min(i + step, n)) for i in range(0, n, step)]


@dataclass(frozen=True)
class Build:
    """How shards are built. kept: what the manifest that stands there names, none of which may be written over. threads: that
    encode; 0: one a core.
    """

    model: Model
    target: str | None
    options: Mapping[str, Any]
    folder: Path
    kept: tuple[Shard, ...] = ()
    threads: int = 0

    def shard(self, number: int, rows: Slice, resume: bool = True, progress: Progress = silent) -> Made:
        """One shard of these rows -> what the manifest says of it, its metadata, and whether it was built now.

        A file of that number that verifies, and was made of the same rows, ids, model and options, is taken as it is: its
        metadata holds the hash of the rows.
        """
        if resume:
            for path in self._there(number):
                if self._fits(path, rows):
                    return *entry(path, rows.ids), False
        path = self.folder / newer_name(shard_name(number), self.kept)
        with atomic_write(path, suffix=SUFFIX, what="exported") as output:
            how = self.target, self.options, progress
            index, metadata, nbytes = encode_for(self.model, rows, output, *how, threads=self.threads)
            write(output, index, metadata | {"rows_sha256": rows.digest()}, nbytes)
        return *entry(path, rows.ids), True

    def _there(self, number: int) -> list[Path]:
        names = [name for name in os.listdir(self.folder) if (numbers_of(name) or (-1,))[0] == number]
        return [self.folder / name for name in sorted(names, key=lambda name: numbers_of(name) or (0, 0))]

    def _fits(self, path: Path, rows: Slice) -> bool:
        with suppress(ScqError):  # whatever is wrong with it, it is built again
            card = read_gallery(path).metadata or {}
            container, options = check_target(self.model, self.target, self.options, len(rows))
            wanted = {"model_sha256": self.model.origin, "n": len(rows), "bits": self.model.codebooks.bits}
            wanted |= {"target": container.INFO.name, "options": chosen(options)}
            return all(card.get(key) == value for key, value in wanted.items()) and (
                card.get("rows_sha256") == rows.digest()
            )
        return False


def kept_of(folder: Path) -> tuple[Shard, ...]:
    """The shards of the gallery that stands in a folder; none where there is none that can be read."""
    with suppress(ScqError):
        return read_manifest(folder).shards
    return ()


def export_source(
    model: Model,
    source: Source,
    out: PathLike,
    shards: int | None,
    rows_per_shard: int | None,
    target: str | None,
    options: Mapping[str, Any],
    *,
    inputs: Sequence[PathLike] = (),
    progress: Progress = silent,
) -> tuple[Manifest, int]:
    """Encode the rows of a source, shard by shard -> the manifest, and how many shards were built now. Closes the source.

    Memory: that of a source and of one shard. Raises as export does, DataError where an id would stand in two shards.
    """
    with source, held(out, inputs, "exported", create=True) as (folder, output):
        if len(source) == 0:
            raise DataError(f"{source.name} holds 0 rows, a gallery needs at least 1")
        container, _ = check_target(model, target, options, len(source))
        check_width(model, source)
        source.merge_copies()
        n, resume = len(source), not isinstance(source, FeatureSource)
        cuts = allotted(n, shards, rows_per_shard)
        check_apart(source, cuts)
        output.check_space(container.nbytes(model.codebooks.shape, n))
        build = Build(model, target, options, folder, kept_of(folder))
        made = [build.shard(s, Slice(source, i, j), resume, _further(progress, i, n)) for s, (i, j) in enumerate(cuts)]
        source.close()  # says whether the rows were changed while they were read: only then is there a gallery
        manifest = finish(folder, output, made, rows_per_shard or max(j - i for i, j in cuts), source.dropped)
        return manifest, sum(new for _, _, new in made)


def finish(folder: Path, output: AtomicFile, made: Sequence[Made], rows_per_shard: int, skipped: int = 0) -> Manifest:
    """Write the manifest of these shards, and remove what it does not name."""
    cards = [card for _, card, _ in made]
    cards[0] = cards[0] | {"skipped_rows": skipped}
    manifest = Manifest.of(cards, [shard for shard, _, _ in made], rows_per_shard)
    write_manifest(output, manifest)
    clear(folder, manifest)
    return manifest


def check_apart(source: Source, cuts: Sequence[tuple[int, int]]) -> None:
    """Raise DataError where the same id would stand in two shards."""
    ids = source.ids
    ranges = [(int(ids[i:j].min()), int(ids[i:j].max())) for i, j in cuts]
    names = [f"{source.name}, rows {i:,} to {j - 1:,}" for i, j in cuts]
    try:
        check_repeats(names, ranges, lambda s: [ids[slice(*cuts[s])]])
    except ScqError as error:
        raise DataError(str(error)) from None


def _further(progress: Progress, start: int, n: int) -> Progress:
    """Progress through all rows, from that through one shard."""
    return lambda stage, done, _, text: progress(stage, start + done, n, text)


def export_files(
    model_path: PathLike,
    paths: Sequence[PathLike],
    out: PathLike,
    bits: int | None,
    keys: Mapping[str, Any],
    inference_options: InferenceOptions,
    progress: Progress,
    shards: int | None,
    rows_per_shard: int | None,
    target: str | None,
    options: Mapping[str, Any],
) -> str:
    """Export files of rows, or images, into a folder of shards; returns what to tell the user."""
    model = cut(Model.load(model_path), bits)
    source = open_several(paths, **{**keys, "labels_key": None}, role="keys")
    try:
        rows = as_rows(source, model, inference_options, printable(model_path))
    except BaseException:
        source.close()
        raise
    inputs = [model_path, *paths]
    manifest, built = export_source(
        model, rows, out, shards, rows_per_shard, target, options, inputs=inputs, progress=progress
    )
    return told_of(manifest, built, out, model)


def told_of(manifest: Manifest, built: int, out: PathLike, model: Model) -> str:
    nbytes = sum((Path(out) / shard.name).stat().st_size for shard in manifest.shards)
    there = len(manifest.shards) - built
    return (
        f"{printable(out)}: {manifest.n:,} vectors in {len(manifest.shards):,} shards, {length(model)} each, target "
        f"{manifest.metadata['target']}, {format_bytes(nbytes)}, {ENCODER[manifest.metadata['encoder']]}"
        + (f"; {there:,} shards were there already" if there else "")
    )
