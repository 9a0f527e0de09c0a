"""Checkpoints: the whole state of a training after some step, from which it goes on as if it had never stopped.

One .safetensors file a step, `MODEL.checkpoints/step-1240.safetensors`, written by the rules of files.py: whole or not at all,
and read back before an older one goes. No pickle: tensors as they are, everything else as JSON.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import bundle, files
from ..errors import CheckpointError, ConfigError, ScqError, WriteError, format_bytes, printable, warn
from ..files import AtomicFile, PathLike, atomic_write, make_folder

KEPT = 2  # a damaged newest one leaves the one before it
SECONDS = 60.0  # between two checkpoints, unless steps are asked for: a short training writes none
_NAME = re.compile(r"step-(\d+)\.safetensors")
_FINISHED = "finished.safetensors"  # the model of a training that is over and could not be written
_LITTER = re.compile(r"((step-\d+|finished)\.safetensors\.tmp-\d+|\.(step-\d+|finished)\.safetensors\.lock)")


def flatten(value: Any, path: str, tensors: dict[str, NDArray[Any]]) -> Any:
    """A tree of dicts, lists, tuples, numbers, text and tensors as JSON; the tensors go into `tensors`, by path."""
    if isinstance(value, Tensor):
        # A file of tensors has no place for one without dimensions.
        tensors[path] = value.detach().cpu().reshape(-1 if value.ndim == 0 else value.shape).numpy().copy()
        return {"tensor": path, "scalar": value.ndim == 0}
    if isinstance(value, Mapping):
        return {"dict": [[k, flatten(v, f"{path}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [flatten(v, f"{path}.{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path} is a {type(value).__name__}, which no checkpoint holds")


def restore_tree(value: Any, tensors: Mapping[str, NDArray[Any]]) -> Any:
    """The inverse of flatten. Raises KeyError, TypeError or ValueError where the JSON is not its work."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        t = torch.from_numpy(np.array(tensors[value["tensor"]]))
        return t.reshape(()) if value["scalar"] else t
    kind, items = next(iter(value.items()))
    if kind == "dict":
        return {k: restore_tree(v, tensors) for k, v in items}
    return {"list": list, "tuple": tuple}[kind](restore_tree(v, tensors) for v in items)


class Checkpoints:
    """The checkpoints of one training in a folder of their own.

    identity: gives everything that decides the result (method, settings, seed, hashes of the rows), as JSON values, asked for
    when it is first needed; a checkpoint of any other training is refused. every: steps between two; 0: one after each
    minute. writes=False: reads only, as all processes but the first do. hints: plain values kept beside, never compared.
    """

    def __init__(
        self, folder: PathLike, identity: Callable[[], Mapping[str, Any]] = dict, every: int = 0, writes: bool = True
    ) -> None:
        self.folder, self.name, self.every, self.writes = Path(folder), printable(Path(folder).name), every, writes
        self._identity = identity
        self.hints: dict[str, Any] = {}
        self._last = (0, time.monotonic())

    @cached_property
    def identity(self) -> dict[str, Any]:
        """As given, in the form it has after a file."""
        return dict(json.loads(json.dumps(dict(self._identity()))))

    def check_start(self, resume: bool) -> None:
        """Raise ConfigError where checkpoints of an unfinished training, or its model, would be lost, or say that there are none.

        Raises WriteError where none could be written.
        """
        there = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise WriteError(f"{self.name}: checkpoints cannot be written in {printable(there)}")
        steps = self.steps()
        if steps and not resume:
            raise ConfigError(
                f"{self.name} holds step {steps[0]:,} of an unfinished training; continue with --resume, or delete it"
            )
        over = (self.folder / _FINISHED).exists()
        if over and not resume:
            raise ConfigError(
                f"{self.name} holds the model of a finished training; have it written with --resume, or delete it"
            )
        if resume and not steps and not over:
            warn(f"{self.name} holds no checkpoint: training starts at the beginning")

    def check_room(self, nbytes: int, output: AtomicFile | None, model: int) -> None:
        """Raise WriteError unless as many checkpoints of `nbytes` find room as stand side by side for a moment.

        output, model: where the model goes, if into a file, and its bytes, for which there must be room on the same disk.
        """
        if not self.writes:
            return
        there = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        need = nbytes * max(KEPT + 1 - len(self.steps()), 1)
        try:
            if output is not None and os.stat(there).st_dev == os.stat(output.path.parent).st_dev:
                need += model
            free = shutil.disk_usage(there).free
        except OSError as error:
            raise WriteError(f"{self.name}: {os.strerror(error.errno or 0)}") from error
        if need > free:
            raise WriteError(
                f"{self.name}: checkpoints of {format_bytes(nbytes)} need {format_bytes(need)}, {format_bytes(free)} free; "
                "make room, or name a folder on another disk with --checkpoints"
            )

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, newest first. By name: clocks change."""
        return files.numbered(self.folder, _NAME)[::-1]

    def path(self, step: int) -> Path:
        """The file of a step."""
        return self.folder / f"step-{step}.safetensors"

    def due(self, step: int) -> bool:
        """Whether it is time for the next one."""
        last, when = self._last
        return step - last >= self.every if self.every else time.monotonic() - when >= SECONDS

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write the checkpoint of a step, then let go of all but the newest. Raises WriteError."""
        if self.writes:
            tensors: dict[str, NDArray[Any]] = {}
            tree = flatten(state, "state", tensors)
            self._write(self.path(step), tensors, {"step": step, "state": tree})
            for old in self.steps()[KEPT:]:
                with suppress(OSError):
                    self.path(old).unlink()
        self._last = step, time.monotonic()

    def _write(self, path: Path, tensors: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
        data = bundle.Bundle(dict(tensors), {"identity": self.identity, "hints": self.hints, **facts}).to_bytes()

        def check(temporary: Path) -> None:
            bundle.read(temporary)

        make_folder(self.folder)
        with atomic_write(path, suffix=".safetensors", what="written") as output:
            output.write(lambda f: f.write(data), check, len(data))

    def keep(self, model: bytes) -> str:
        """Keep the model of a training that is over -> where what is left stands, for a message; "" where nothing is left.

        On a full disk the older of two checkpoints makes room for it, the newest stays.
        """
        held = {"model": np.frombuffer(model, np.uint8)}
        older = self.steps()[1:]
        while True:
            try:
                self._write(self.folder / _FINISHED, held, {})
                return f"the finished model is kept in {printable(self.folder)}"
            except WriteError:
                if not older:
                    break
                with suppress(OSError):
                    self.path(older.pop()).unlink()
        with suppress(OSError):  # made in vain; one with checkpoints stays
            self.folder.rmdir()
        steps = self.steps()
        return f"step {steps[0]:,} is kept in {printable(self.folder)}" if steps else ""

    def finished(self) -> bytes | None:
        """The model that `keep` kept, if there is one; a damaged one is named and passed over.

        Raises ConfigError naming every field in which the training differs.
        """
        path = self.folder / _FINISHED
        if not path.exists():
            return None
        try:
            found, _ = bundle.read(path)
            identity, model = found.config["identity"], found.tensors["model"].tobytes()
        except (ScqError, KeyError):
            warn(f"{self.name}: {_FINISHED} is damaged")
            return None
        wrong = bundle.differences(identity, self.identity)
        if wrong:
            raise ConfigError(f"{self.name} holds the model of another training: {', '.join(wrong)}")
        return model

    def last_hints(self) -> dict[str, Any]:
        """The hints of the newest sound checkpoint of whatever training."""
        for path in (self.folder / _FINISHED, *map(self.path, self.steps())):
            try:
                return dict(bundle.read(path)[0].config["hints"])
            except (ScqError, KeyError, TypeError, ValueError):
                continue
        return {}

    def newest(self) -> tuple[int, dict[str, Any]] | None:
        """(step, state) of the newest sound checkpoint, None where there is none; damaged ones are named and passed over.

        Raises CheckpointError where all are damaged, ConfigError naming every field in which the training differs.
        """
        damaged: list[str] = []
        for step in self.steps():
            try:
                found, _ = bundle.read(self.path(step))
                identity, tree = found.config["identity"], found.config["state"]
                wrong = bundle.differences(identity, self.identity)
                state = None if wrong else restore_tree(tree, found.tensors)
            except (ScqError, KeyError, TypeError, ValueError, StopIteration):
                damaged.append(f"step-{step}")
                continue
            if state is None:
                raise ConfigError(f"{self.name} holds step {step:,} of another training: {', '.join(wrong)}")
            if damaged:
                warn(f"{self.name}: {' and '.join(damaged)} is damaged, resumed from step-{step}")
            self._last = step, time.monotonic()
            return step, state
        if damaged:
            raise CheckpointError(f"{self.name}: {', '.join(damaged)} damaged, no sound checkpoint is left; train anew")
        return None

    def clear(self) -> None:
        """Remove all checkpoints, once their training is whole; a folder with anything else in it stays."""
        if self.writes:
            # What a kill left of writing one goes too: whoever trains holds the lock of the model.
            files.clear_folder(self.folder, _NAME, re.compile(re.escape(_FINISHED)), _LITTER)
