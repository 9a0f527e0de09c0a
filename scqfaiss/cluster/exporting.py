"""cluster export: a task for each shard, which encodes its rows on whatever node Ray chooses, and writes its file.

Ray starts a task again where its worker or its node is lost. Files appear whole or not at all, and a shard that is there is not
built again, so a task, and the whole command, may be repeated at any time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..contract import Progress, silent
from ..data.joined import Slice, open_several
from ..data.kinds import files_of
from ..errors import ConfigError, DataError, ResourceError, WriteError, printable
from ..files import PathLike
from ..galleries.exporting import check_target, cut
from ..galleries.gallery import open_gallery
from ..galleries.shards.exporting import Build, Made, allotted, finish, kept_of, told_of
from ..galleries.shards.folder import held
from ..galleries.shards.opening import check_repeats, pieces_of
from ..modality import ROWS
from ..model import Model
from .session import cause, connected

RETRIES = 20  # of a task whose worker or node was lost
PATIENCE = 60.0  # seconds that a task waits for another one, of a command that was killed, to let go of its shard


@dataclass(frozen=True)
class File:
    """A file of rows as it was first looked at. physical: rows, bad ones included; size: bytes."""

    path: str
    rows: int
    physical: int
    d: int
    has_ids: bool
    dropped: int
    size: int


@dataclass(frozen=True)
class Job:
    """One shard: rows i..j-1 of the files, joined. starts: number of the first row of each file, where they have no ids."""

    number: int
    files: tuple[File, ...]
    starts: tuple[int, ...]
    i: int
    j: int


def look_at(path: str, keys: Mapping[str, Any]) -> File:
    """Runs on a node: what a file of rows holds. Raises as open_rows, ConfigError for images and pairs."""
    size = _size(path)
    with open_several([path], **keys) as source:
        if source.modality != ROWS or source.pairs:
            raise ConfigError(f"{source.name} holds {source.modality.items}; scqfaiss features makes rows of them")
        return File(path, len(source), source.physical_rows, source.d, source.has_ids, source.dropped, size)


def build(job: Job, keys: Mapping[str, Any], model: bytes, bits: int | None, how: Build) -> Made:
    """Runs on a node: one shard, built or found. Memory: the model, the ids of its files, a block of rows, codes and index."""
    for file in job.files:
        if _size(file.path) != file.size:
            raise DataError(f"{printable(file.path)}: was changed while it was read")
    how = replace(how, model=cut(Model.from_bytes(model), bits))
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with open_several([file.path for file in job.files], starts=job.starts, **keys) as source:
                if len(source) != sum(file.rows for file in job.files):
                    raise DataError(f"{source.name}: was changed while it was read")
                return how.shard(job.number, Slice(source, job.i, job.j))
        except WriteError as error:
            if "by pid" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        node = os.uname().nodename
        raise ConfigError(f"{printable(path)}: is not seen by node {node}; rows need a folder that all see") from None


def jobs_of(files: Sequence[File], cuts: Sequence[tuple[int, int]]) -> Iterator[Job]:
    """The rows from..to of each shard, found in the files."""
    ends, starts = [0], [0]
    for file in files:
        ends.append(ends[-1] + file.rows)
        starts.append(starts[-1] + file.physical)
    for number, (i, j) in enumerate(cuts):
        first = next(f for f in range(len(files)) if ends[f + 1] > i)
        last = next(f for f in range(first, len(files)) if ends[f + 1] >= j)
        yield Job(
            number, tuple(files[first : last + 1]), tuple(starts[first : last + 1]), i - ends[first], j - ends[first]
        )


def export_cluster(
    model_path: PathLike,
    rows: Sequence[PathLike],
    out: PathLike,
    *,
    shards: int | None = None,
    rows_per_shard: int | None = None,
    target: str | None = None,
    bits: int | None = None,
    address: str | None = None,
    cpus: float = 1.0,
    keys: Mapping[str, Any],
    progress: Progress = silent,
    **options: Any,
) -> str:
    """Export files of rows into a folder of shards, on a Ray cluster; returns what to tell the user.

    Rows and the folder have to lie where all nodes see them under the same names. cpus: that a shard reserves while it is
    built. Raises as export does, ConfigError without Ray or its cluster, ResourceError where workers are lost again and again.
    """
    paths = [os.path.abspath(path) for path in files_of(rows)]
    of_all = {**keys, "labels_key": None, "role": "keys"}
    with held(out, [model_path, *paths], "exported", create=True) as (folder, output):
        loaded = Model.load(model_path)
        model = cut(loaded, bits)
        with connected(address) as ray:
            look, make = (ray.remote(f).options(num_cpus=cpus, max_retries=RETRIES) for f in (look_at, build))
            files = _gathered(ray, [look.remote(path, of_all) for path in paths], paths)
            n = check_files(files, model, str(model_path))
            container, _ = check_target(model, target, options, n)
            cuts = allotted(n, shards, rows_per_shard)
            output.check_space(container.nbytes(model.codebooks.shape, n))
            how = Build(model, target, options, folder, kept_of(folder), max(1, int(cpus)))
            shared = ray.put(loaded.to_bytes())
            jobs = list(jobs_of(files, cuts))
            without = replace(how, model=None)  # type: ignore[arg-type]  # it travels once, as `shared`
            refs = [make.remote(job, of_all, shared, bits, without) for job in jobs]
            names = [f"shard {job.number}" for job in jobs]
            made = _gathered(
                ray, refs, names, lambda done: progress("encode", sum(b - a for a, b in cuts[:done]), n, "")
            )
        check_made(folder, made)
        manifest = finish(
            folder, output, made, rows_per_shard or max(j - i for i, j in cuts), sum(file.dropped for file in files)
        )
        return told_of(manifest, sum(new for _, _, new in made), out, model)


def check_files(files: Sequence[File], model: Model, model_name: str) -> int:
    """How many rows the files hold together. Raises ConfigError or DataError where they do not go together."""
    first, n = files[0], sum(file.rows for file in files)
    for file in files:
        if file.d != model.d_in:
            raise ConfigError(
                f"{printable(file.path)}: rows have d={file.d}, {printable(model_name)} needs d={model.d_in}"
            )
        if file.has_ids != first.has_ids:
            a, b = (file, first) if file.has_ids else (first, file)
            raise ConfigError(f"{printable(a.path)} has ids, {printable(b.path)} has none; give all files ids, or none")
    if n == 0:
        raise DataError(f"{printable(first.path)} holds 0 rows, a gallery needs at least 1")
    return n


def check_made(folder: Path, made: Sequence[Made]) -> None:
    """Raise ResourceError where a shard is not seen here, DataError where an id stands in two of them."""
    names = [printable(folder / shard.name) for shard, _, _ in made]
    for (shard, _, _), name in zip(made, names):
        if not (folder / shard.name).exists():
            raise ResourceError(
                f"{name}: was written by another node, and is not here; shards need a folder that all nodes see"
            )
    opened = lambda s: pieces_of(open_gallery(folder / made[s][0].name, mmap=True, verify=False))  # noqa: E731
    check_repeats(names, [shard.ids for shard, _, _ in made], opened)


def _gathered(ray: Any, refs: Sequence[Any], names: Sequence[str], done: Any = lambda n: None) -> list[Any]:
    """What tasks return, in their order; the first that fails ends the others."""
    place, left = {ref: i for i, ref in enumerate(refs)}, list(refs)
    found: list[Any] = [None] * len(refs)
    try:
        while left:
            ready, left = ray.wait(left, num_returns=1)
            for ref in ready:
                try:
                    found[place[ref]] = ray.get(ref)
                except ray.exceptions.RayError as error:
                    raise cause(ray, error, names[place[ref]]) from error
            done(len(refs) - len(left))
    except BaseException:
        for ref in left:
            ray.cancel(ref, force=True)
        raise
    return found
