"""What long work shows on stderr: a bar on a terminal, a plain line per finished part elsewhere."""

from __future__ import annotations

import os
import sys
import time

import click

from .errors import printable

WIDTH = 30
REDRAW_SECONDS = 0.1
PLAIN_SECONDS = 10.0  # without a terminal: a sign of life this often


def to_stderr(text: str, nl: bool = True) -> None:
    """Print to stderr; a stderr that cannot be written any more stops nothing, it only goes silent."""
    try:
        click.echo(text, err=True, nl=nl)
    except OSError:
        # Python flushes it once more at exit, and would then end with a code of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class Meter:
    """A Progress (see contract.py): call it with (what, done, total, detail)."""

    def __init__(self) -> None:
        self.terminal = sys.stderr is not None and sys.stderr.isatty()
        self.what, self.drawn, self.started = "", 0.0, 0.0
        self.open_line = False

    def __call__(self, what: str, done: int, total: int, detail: str) -> None:
        now = time.monotonic()
        if what != self.what:
            self.close()
            self.what, self.drawn, self.started = what, now, now
        finished = done >= total
        if not finished and now - self.drawn < (REDRAW_SECONDS if self.terminal else PLAIN_SECONDS):
            return
        self.drawn = now
        text = printable(f"{what}: {done:,} of {total:,}" + (f", {detail}" if detail else ""))
        if self.terminal:
            filled = WIDTH * done // max(total, 1)
            left = (now - self.started) / done * (total - done) if done else 0.0
            ahead = f", {left:.0f} s left" if not finished and left >= 1 else ""
            to_stderr(f"\r\x1b[K[{'#' * filled}{'.' * (WIDTH - filled)}] {text}{ahead}", nl=False)
            self.open_line = True
            if finished:
                self.close()
        elif not finished or total > 1:
            to_stderr(text)

    def close(self) -> None:
        """End a line that is being redrawn, so that whatever comes next starts on its own."""
        if self.open_line:
            to_stderr("")
            self.open_line = False
