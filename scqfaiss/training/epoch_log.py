"""What a training tells of itself, epoch by epoch: JSON lines, and TensorBoard where it is wanted and installed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..errors import ConfigError, WriteError, warn
from ..files import AtomicFile, PathLike, atomic_write, open_regular, parse_json


class Log:
    """Takes the facts of an epoch: stage, epoch (from 1), step, loss by term, lr, and what the method adds."""

    def __init__(self, output: AtomicFile | None = None, board: Any = None) -> None:
        self.output, self.board = output, board
        self.waiting = b""  # lines that found no room on the disk

    def start(self, step: int) -> None:
        """Begin at `step`: lines of later steps are those of a training that was cut off, and are written anew."""
        if self.output is not None:
            lines = []
            if step and self.output.path.is_file():
                for line in self.output.path.read_bytes().splitlines(keepends=True):
                    facts = parse_json(line)
                    if facts is not None and line.endswith(b"\n") and type(facts.get("step")) is int:
                        if facts["step"] <= step:
                            lines.append(line)
            self.output.write(lambda f: f.write(b"".join(lines)))

    def __call__(self, facts: Mapping[str, Any]) -> None:
        if self.output is not None:
            self.waiting += (json.dumps(facts) + "\n").encode()
            self.flush()
        if self.board is not None:
            for name, value in _scalars(facts):
                self.board.add_scalar(f"{facts['stage']}/{name}", value, facts["step"])

    def flush(self) -> None:
        """Write the lines that wait; where there is no room for them, say so: the training is worth more than its log."""
        if self.output is not None and self.waiting:
            first = self.waiting.count(b"\n") == 1
            try:
                self.output.append(self.waiting)
                self.waiting = b""
            except WriteError as error:
                if first:
                    warn(f"{error}; training goes on, and will try again after the next epoch")

    def close(self) -> None:
        """Write what waits, or say what is lost."""
        self.flush()
        if self.waiting:
            assert self.output is not None
            lost = self.waiting.count(b"\n")
            warn(f"{self.output.name}: the last {lost:,} epochs are missing, there was no room for them")


def _scalars(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, list):
            yield from _scalars({str(i): v for i, v in enumerate(value)}, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name not in ("epoch", "step"):
            yield f"{prefix}{name}", float(value)


def check_ours(output: AtomicFile) -> None:
    """Raise ConfigError where a file that is no log stands in the place of one: it is not ours to replace."""
    if output.path.is_file() and output.path.stat().st_size:
        with open_regular(output.path) as f:
            first = parse_json(f.readline(1 << 20))
        if first is None or "stage" not in first:
            raise ConfigError(f"{output.name} is there and holds no metrics; choose another name")


@contextmanager
def log_to(path: PathLike | None, tensorboard: PathLike | None) -> Iterator[Log]:
    """A Log that writes to these; None leaves one out. Raises ConfigError where TensorBoard is not installed, or where `path`
    is something else than metrics.
    """
    with ExitStack() as stack:
        output = stack.enter_context(atomic_write(path, what="written")) if path is not None else None
        if output is not None:
            check_ours(output)
        board = None
        if tensorboard is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter  # type: ignore[attr-defined,unused-ignore]
            except Exception as error:  # what it is built on breaks in ways of its own
                what = "is not installed" if isinstance(error, ImportError) else "does not load"
                raise ConfigError(f"tensorboard {what}: pip install tensorboard") from error
            board = SummaryWriter(str(Path(tensorboard)))
            stack.callback(board.close)
        log = Log(output, board)
        stack.callback(log.close)
        yield log
