"""The finished parts of an unfinished file of features, so that a run that was killed goes on where it was."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import bundle, signals
from ..arrays import bad_rows
from ..contract import Progress
from ..errors import CheckpointError, ConfigError, DataError, ScqError, Stopped, WriteError, printable, warn
from ..files import atomic_write, clear_folder, make_folder, numbered
from .source import FeatureSource

_PART = re.compile(r"part-(\d+)\.safetensors")
_LEFTOVERS = re.compile(r"(part-\d+\.safetensors\.tmp-\d+|\.part-\d+\.safetensors\.lock)")


class Parts:
    """The finished parts of an unfinished file of features, in a folder beside it.

    identity: everything that decides the features; a part of any other request is refused.
    """

    def __init__(self, out: Path, rows: FeatureSource, identity: Mapping[str, Any], dtype: str, step: int) -> None:
        self.folder = out.with_name(f"{out.name}.parts")
        self.name = printable(self.folder.name)
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
        folder = next(path for path in (self.folder, self.folder.parent) if os.path.lexists(path))
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise WriteError(f"{self.name}: parts cannot be written in {printable(folder)}")
        existing = self.there()
        if existing and not resume:
            raise ConfigError(
                f"{self.name} holds {len(existing):,} parts of an unfinished file; continue with --resume, or delete it"
            )
        if resume and not existing:
            warn(f"{self.name} holds no part: the work starts at the beginning")

    def range(self, k: int) -> range:
        """The images of part k."""
        return range(k * self.step, min((k + 1) * self.step, len(self.rows)))

    def images(self, k: int) -> str:
        """SHA-256 of the files of part k's images."""
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
                part, _ = bundle.read(self.path(k))
                identity, images = dict(part.config["identity"]), part.config["pictures"]
            except (ScqError, KeyError, TypeError, ValueError):
                warn(f"{self.name}: part {k} is damaged and is computed again")
                continue
            wrong = bundle.differences(identity, self.identity)
            if not wrong and k < self.count and images != (current := self.images(k)):
                rows = self.range(k)
                theirs, ours = bundle.short(images), bundle.short(current)
                wrong = [f"images {rows.start:,} to {rows.stop - 1:,} are {theirs} there and {ours} here"]
            if wrong:
                raise ConfigError(f"{self.name} holds parts of another request: {', '.join(wrong)}")
            out.add(k)
        return out

    def compute(self, k: int, progress: Progress) -> None:
        """Compute part k and write it, whole or not at all."""
        rows = self.range(k)
        x = np.empty((len(rows), self.rows.d), self.dtype)
        begun = time.monotonic()
        for i, features in self.rows.encoded(rows.start, rows.stop):
            here = slice(i - rows.start, i - rows.start + len(features))
            with np.errstate(over="ignore"):
                x[here] = features
            bad = np.flatnonzero(bad_rows(x[here]))
            if len(bad):
                name = printable(self.rows.source.names[i + int(bad[0])])
                raise DataError(f"{self.rows.name}: features of {name} are too large for float16; use --dtype float32")
            done = i + len(features)
            speed = (done - rows.start) / max(time.monotonic() - begun, 1e-9)
            progress("features", done, len(self.rows), f"{speed:,.0f} images a second")
        config = {"identity": self.identity, "pictures": self.images(k)}
        data = bundle.Bundle({"features": x}, config).to_bytes()
        make_folder(self.folder)
        with atomic_write(self.path(k), what="written") as output:
            output.write(lambda f: f.write(data), _check_part, len(data))

    def read(self, k: int) -> NDArray[Any]:
        """Features of part k. Raises CheckpointError where it is damaged by now."""
        x = bundle.read(self.path(k))[0].tensors["features"]
        if x.shape != (len(self.range(k)), self.rows.d) or x.dtype != self.dtype:
            raise CheckpointError(f"{self.name}: part {k} changed while it was in use")
        return x

    def clear(self) -> None:
        """Remove the parts; a folder with anything else in it stays."""
        # What a kill left of writing one goes too: whoever computes holds the lock of the file.
        clear_folder(self.folder, _PART, _LEFTOVERS)


def _check_part(path: Path) -> None:
    bundle.read(path)


@contextmanager
def resumable(parts: Parts) -> Iterator[None]:
    """Say how to go on where somebody interrupts, or the disk is full, and there are finished parts."""

    def done() -> str | None:
        count = sum(len(parts.range(k)) for k in parts.there())
        return f"stopped at {count:,} of {len(parts.rows):,} images; continue with --resume" if count else None

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
