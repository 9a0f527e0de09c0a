"""Pictures as rows: a network turns them into features on the way to wherever rows go, or into a file of rows once.

Only what is asked for runs: a source of pictures is decoded, seen by the network and handed on block by block, the next block
being read meanwhile. Neither torch nor the network is loaded before there are pictures.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .. import __version__, bundle, signals
from ..arrays import Floats, bad_rows
from ..contract import Progress, silent
from ..data import HDF5_ENDINGS, Source, open_rows
from ..errors import CheckpointError, ConfigError, DataError, ScqError, Stopped, WriteError, shown, size, warn
from ..files import PathLike, clear_folder, make_folder, numbered, reserve
from ..model import Model, read_ahead

if TYPE_CHECKING:
    from ..data.images import ImageSource
    from ..encoders.backbone import Backbone

AT_A_TIME = 256  # pictures read while the network works on as many
PART = 1024  # pictures of a part that is kept: seconds to minutes of work
DTYPES = ("float32", "float16")
_PART = re.compile(r"part-(\d+)\.safetensors")
_LITTER = re.compile(r"(part-\d+\.safetensors\.tmp-\d+|\.part-\d+\.safetensors\.lock)")


@dataclass(frozen=True)
class Seeing:
    """How a model's network looks at pictures.

    encoder: the factory 'package.module:function' that a model file may have imported and called, where it is none of our own.
    device: auto, cpu, cuda or cuda:N. precision: float32 or bfloat16.
    """

    encoder: str | None = None
    device: str = "auto"
    precision: str = "float32"


USUAL = Seeing()


class FeatureSource(Source):
    """A source of pictures as rows of features, d = width of the network; everything else is as in the source.

    Rows are computed anew whenever they are read. Closes the source it wraps. Raises DataError where the network gives NaN or
    infinity for a picture.
    """

    def __init__(self, source: ImageSource, network: Backbone) -> None:
        source.shaped(network.size, network.fit)
        self.source, self.network = source, network
        self.name, self.path, self.features_name = source.name, source.path, source.features_name
        self.physical_rows, self.d = len(source), network.width
        self.labels, self.has_ids, self.dropped, self.copies = (
            source.labels,
            source.has_ids,
            source.dropped,
            source.copies,
        )
        self._ids = source.ids

    @property
    def names(self) -> list[str]:
        """File names of the pictures, as their source gives them."""
        names = self.source.names
        return names if self._kept is None else [names[i] for i in self._kept]

    @property
    def block_rows(self) -> int:
        return AT_A_TIME

    def fetch(self, i: int, j: int) -> NDArray[Any]:
        return np.concatenate([np.zeros((0, self.d), np.float32), *(x for _, x in self._seen(i, j))])

    def blocks(self, rows: int | None = None) -> Iterator[tuple[int, Floats]]:
        if rows is None and self._kept is None:
            yield from self._seen(0, len(self))
        else:
            yield from super().blocks(rows)

    def close(self) -> None:
        self.source.close()

    def _seen(self, i: int, j: int) -> Iterator[tuple[int, Floats]]:
        """(first row, features) of pictures i..j-1 of the source, in blocks."""
        for first, pictures in read_ahead(self._pictures(i, j)):
            x = self.network.features(pictures)
            bad = np.flatnonzero(bad_rows(x))
            if len(bad):
                name = shown(self.source.names[first + int(bad[0])])
                raise DataError(f"{self.name}: the network gives features of {name} that are not finite")
            yield first, x

    def _pictures(self, i: int, j: int) -> Iterator[tuple[int, Any]]:
        for first in range(i, j, AT_A_TIME):
            yield first, self.source.read(first, min(first + AT_A_TIME, j))


def backbone_of(model: Model, seeing: Seeing = USUAL, name: str = "the model") -> Backbone:
    """The network of a model for pictures, ready to see.

    Raises ConfigError where the model has none, where its factory is neither ours nor the one that `seeing` names, and on an
    unknown device or precision.
    """
    if model.backbone is None:
        raise ConfigError(f"{name} has no network for pictures, it takes rows of d={model.d_in}")
    from ..encoders import inference
    from ..encoders.record import from_record

    network = from_record(model.backbone, model.config["backbone"], trusted=seeing.encoder)
    if network.width != model.d_in:
        raise CheckpointError(f"{name}: its network gives d={network.width}, what follows needs d={model.d_in}")
    return inference.ready(network, seeing.device, seeing.precision)


def as_rows(source: Source, model: Model, seeing: Seeing = USUAL, name: str = "the model") -> Source:
    """What `model` encodes: rows as they are, pictures as a FeatureSource. Raises ConfigError where the model has no
    network for them, and as backbone_of does.

    >>> with open_rows("photos/") as source:                            # doctest: +SKIP
    ...     codes = encode_source(model, as_rows(source, model))
    """
    if not source.pictures:
        return source
    if not model.takes_pictures:
        raise ConfigError(
            f"{source.name} holds pictures, {name} takes rows of d={model.d_in}: make rows with `scqfaiss features`"
        )
    return FeatureSource(source, backbone_of(model, seeing, name))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ files of features
@dataclass(frozen=True)
class _Eye:
    """A network and all that tells it apart from others."""

    network: Backbone
    facts: dict[str, Any]

    @classmethod
    def of_model(cls, path: PathLike, seeing: Seeing) -> _Eye:
        model = Model.load(path)
        return cls._of(backbone_of(model, seeing, shown(path)), seeing, {"model_sha256": model.sha256})

    @classmethod
    def of_factory(
        cls, arguments: Mapping[str, str], weights: PathLike | None, settings: Mapping[str, Any], seeing: Seeing
    ) -> _Eye:
        from ..encoders import inference

        assert seeing.encoder is not None
        network, sha256 = inference.of_factory(seeing.encoder, arguments, weights, settings)
        facts = {"weights_sha256": sha256} if sha256 else {}
        return cls._of(inference.ready(network, seeing.device, seeing.precision), seeing, facts)

    @classmethod
    def _of(cls, network: Backbone, seeing: Seeing, facts: dict[str, Any]) -> _Eye:
        tensors, record = network.record()
        facts |= {
            "encoder": network.factory,
            "encoder_args": json.dumps(dict(network.arguments), sort_keys=True),
            "size": network.size,
            "fit": network.fit,
            "layers": ",".join(network.names),
            "pool": network.config.pool,
            "network_sha256": bundle.Bundle(tensors, record).digest(),
            "precision": seeing.precision,
        }
        return cls(network, facts)


class _Parts:
    """The finished parts of an unfinished file of features, in a folder beside it.

    identity: everything that decides the features; a part of any other request is refused.
    """

    def __init__(self, out: Path, rows: FeatureSource, identity: Mapping[str, Any], dtype: str, step: int) -> None:
        self.folder = out.with_name(f"{out.name}.parts")
        self.name = shown(self.folder.name)
        self.rows, self.dtype, self.step = rows, np.dtype(dtype), step
        self.identity = dict(json.loads(json.dumps(dict(identity))))
        self.count = -(-len(rows) // step)

    def path(self, k: int) -> Path:
        return self.folder / f"part-{k}.safetensors"

    def there(self) -> list[int]:
        """Numbers of the parts in the folder, sound or not."""
        return numbered(self.folder, _PART)

    def check_start(self, resume: bool) -> None:
        """Raise ConfigError where parts of an unfinished file would be lost, or say that there are none.

        Raises WriteError where none could be written.
        """
        there = next(path for path in (self.folder, self.folder.parent) if os.path.lexists(path))
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise WriteError(f"{self.name}: parts cannot be written in {shown(there)}")
        found = self.there()
        if found and not resume:
            raise ConfigError(
                f"{self.name} holds {len(found):,} parts of an unfinished file; continue with --resume, or delete it"
            )
        if resume and not found:
            warn(f"{self.name} holds no part: the work starts at the beginning")

    def range(self, k: int) -> range:
        """The pictures of part k."""
        return range(k * self.step, min((k + 1) * self.step, len(self.rows)))

    def pictures(self, k: int) -> str:
        """SHA-256 of the files of part k's pictures."""
        rows = self.range(k)
        sha256: str = self.rows.source.digest(np.arange(rows.start, rows.stop))
        return sha256

    @cached_property
    def sound(self) -> set[int]:
        """The parts that need not be computed again; damaged ones are named and passed over.

        Raises ConfigError naming every field in which a part's request differs from this one.
        """
        out = set()
        for k in self.there():
            try:
                found, _ = bundle.read(self.path(k))
                identity, pictures = dict(found.config["identity"]), found.config["pictures"]
            except (ScqError, KeyError, TypeError, ValueError):
                warn(f"{self.name}: part {k} is damaged and is computed again")
                continue
            wrong = bundle.differences(identity, self.identity)
            if not wrong and k < self.count and pictures != (here := self.pictures(k)):
                rows = self.range(k)
                theirs, ours = bundle.short(pictures), bundle.short(here)
                wrong = [f"pictures {rows.start:,} to {rows.stop - 1:,} are {theirs} there and {ours} here"]
            if wrong:
                raise ConfigError(f"{self.name} holds parts of another request: {', '.join(wrong)}")
            out.add(k)
        return out

    def compute(self, k: int, progress: Progress) -> None:
        """Compute part k and write it, whole or not at all."""
        rows = self.range(k)
        x = np.empty((len(rows), self.rows.d), self.dtype)
        begun = time.monotonic()
        for i, seen in self.rows._seen(rows.start, rows.stop):
            here = slice(i - rows.start, i - rows.start + len(seen))
            with np.errstate(over="ignore"):
                x[here] = seen
            bad = np.flatnonzero(bad_rows(x[here]))
            if len(bad):
                name = shown(self.rows.source.names[i + int(bad[0])])
                raise DataError(f"{self.rows.name}: features of {name} are too large for float16; use --dtype float32")
            done = i + len(seen)
            speed = (done - rows.start) / max(time.monotonic() - begun, 1e-9)
            progress("features", done, len(self.rows), f"{speed:,.0f} pictures a second")
        config = {"identity": self.identity, "pictures": self.pictures(k)}
        data = bundle.Bundle({"features": x}, config).to_bytes()
        make_folder(self.folder)
        with reserve(self.path(k), what="written") as slot:
            slot.write(lambda f: f.write(data), _check_part, len(data))

    def read(self, k: int) -> NDArray[Any]:
        """Features of part k. Raises CheckpointError where it is damaged by now."""
        x = bundle.read(self.path(k))[0].tensors["features"]
        if x.shape != (len(self.range(k)), self.rows.d) or x.dtype != self.dtype:
            raise CheckpointError(f"{self.name}: part {k} changed while it was in use")
        return x

    def clear(self) -> None:
        """Remove the parts; a folder with anything else in it stays."""
        # What a kill left of writing one goes too: whoever computes holds the lock of the file.
        clear_folder(self.folder, _PART, _LITTER)


def _check_part(path: Path) -> None:
    bundle.read(path)


def features_file(
    images: PathLike,
    out: PathLike,
    *,
    model: PathLike | None = None,
    seeing: Seeing = USUAL,
    encoder_args: Mapping[str, str] | None = None,
    weights: PathLike | None = None,
    settings: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    resume: bool = False,
    part_rows: int = PART,
    keys: Mapping[str, Any],
    progress: Progress = silent,
) -> str:
    """Write what a network sees in pictures as HDF5 rows; returns what to tell the user.

    Datasets features, names, and labels and ids where the pictures have them; attributes class_names and how they were made.

    The network is that of `model`, or the one that seeing.encoder names, with encoder_args, weights and settings (of
    encoders.backbone.Settings). Finished parts of part_rows pictures lie in OUT.parts until the file is whole: with resume a
    run that was killed goes on from there, and the file comes out byte for byte as without the break. keys: arguments of
    open_rows.
    Raises ConfigError on a request that cannot be met, DataError on bad pictures, WriteError where nothing can be written;
    parts that are finished stay.
    """
    _check_request(model, seeing, encoder_args, weights, settings, dtype, out, part_rows)
    inputs = [p for p in (images, model, weights) if p is not None]
    with reserve(out, inputs=inputs, what="computed") as slot:
        with open_rows(images, **keys) as source:
            if not source.pictures:
                raise ConfigError(f"{source.name} holds rows already, needs pictures")
            if len(source) == 0:
                raise DataError(f"{source.name} holds 0 pictures, needs at least 1")
            if model is not None:
                eye = _Eye.of_model(model, seeing)
            else:
                eye = _Eye.of_factory(encoder_args or {}, weights, settings or {}, seeing)
            rows = FeatureSource(source, eye.network)  # type: ignore[arg-type]
            parts = _Parts(slot.path, rows, _identity(eye, rows, dtype, part_rows), dtype, part_rows)
            parts.check_start(resume)
            nbytes = len(rows) * rows.d * parts.dtype.itemsize
            slot.check_space(nbytes + nbytes * (parts.count - len(parts.sound)) // parts.count)
            with _resumable(parts):
                for k in sorted({*range(parts.count)} - parts.sound):
                    parts.compute(k, progress)
        # Closing says whether the pictures were changed while they were read: only then is the file written.
        with _resumable(parts):
            slot.write(lambda f: _fill(f, parts, eye.facts), nbytes=nbytes)
        parts.clear()
        done = f"{slot.name}: {len(rows):,} pictures, features of d={rows.d}, {size(slot.path.stat().st_size)}"
        return done + (f", {len(parts.sound):,} of {parts.count:,} parts were there" if parts.sound else "")


def _check_request(
    model: PathLike | None,
    seeing: Seeing,
    encoder_args: Mapping[str, str] | None,
    weights: PathLike | None,
    settings: Mapping[str, Any] | None,
    dtype: str,
    out: PathLike,
    part_rows: int,
) -> None:
    if model is None and seeing.encoder is None:
        raise ConfigError("features need a network: give --encoder, or --model of a model for pictures")
    for option, given in (("--encoder-arg", encoder_args), ("--weights", weights), ("--set", settings)):
        if model is not None and given:
            raise ConfigError(f"{option} goes with --encoder; with --model the network is as the model has it")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is '{dtype}', needs one of {', '.join(DTYPES)}")
    if part_rows < 1:
        raise ConfigError(f"a part holds {part_rows} pictures, needs 1 or more")
    if Path(out).suffix.lower() not in HDF5_ENDINGS:
        raise ConfigError(f"{shown(out)}: files of features end in one of {' '.join(HDF5_ENDINGS)}")


def _identity(eye: _Eye, rows: FeatureSource, dtype: str, part_rows: int) -> dict[str, Any]:
    from ..encoders.inference import versions

    made_by = {"scqfaiss": __version__, **versions(eye.network)}  # another torch, or a GPU, rounds otherwise
    return eye.facts | made_by | {"dtype": dtype, "pictures": len(rows), "pictures of a part": part_rows}


@contextmanager
def _resumable(parts: _Parts) -> Iterator[None]:
    """Say how to go on where somebody interrupts, or the disk is full, and there are finished parts."""

    def done() -> str | None:
        count = sum(len(parts.range(k)) for k in parts.there())
        return f"stopped at {count:,} of {len(parts.rows):,} pictures; continue with --resume" if count else None

    try:
        with signals.saying(done):
            yield
    except KeyboardInterrupt:
        text = done()
        if text is None:
            raise
        raise Stopped(text) from None
    except WriteError as error:
        there = len(parts.there())
        if not there:
            raise
        raise WriteError(
            f"{error}; {there:,} of {parts.count:,} parts stay: make room, then the same command with --resume goes on"
        ) from error


def _fill(f: BinaryIO, parts: _Parts, facts: Mapping[str, Any]) -> None:
    """Write the finished file from its parts."""
    from ..data.hdf5 import write_features

    rows, stop = parts.rows, threading.Event()
    labels = rows.labels
    names = labels.class_names if labels is not None else None
    small = {
        "labels": None if labels is None else labels.y,
        # Numbers of rows are no ids: two files of them would seem to hold the same pictures.
        "ids": rows.ids if rows.has_ids or rows.dropped else None,
        "names": [shown(name) for name in rows.names],
    }
    attrs = {**facts, **({} if names is None else {"class_names": list(names)})}

    def each() -> Iterator[NDArray[Any]]:
        for k in range(parts.count):
            if stop.is_set():
                raise OSError("stopped")
            yield parts.read(k)

    # Ctrl-C reaches the main thread alone, and so never comes up inside a call of HDF5, which would crash.
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write_features, f, each(), (len(rows), rows.d), parts.dtype, parts.step, small, attrs)
        try:
            writing.result()
        except BaseException:
            stop.set()
            raise
