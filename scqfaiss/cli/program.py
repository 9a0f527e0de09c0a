"""The program: one command in, an exit code out; errors and warnings as one line each."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from typing import Any, NoReturn

import click

from .. import signals
from ..dependencies import missing
from ..errors import ScqError, ScqWarning, printable
from ..progress import to_stderr
from .arguments import meter
from .commands import cli
from .completion import VARIABLE


def show_warning(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
    """A ScqWarning as one line; any other warning in Python's own form."""
    meter.close()
    if issubclass(category, ScqWarning):
        to_stderr(f"Warning: {one_line(str(message))}")
    else:
        lines = warnings.formatwarning(message, category, *rest[:2]).split("\n")
        to_stderr("\n".join(map(printable, lines)), nl=False)


def one_line(message: str) -> str:
    """A message as one printable line, whatever names and texts out of files stand in it."""
    return printable(" ".join(message.splitlines()))


def run(arguments: list[str] | None = None) -> int:
    """One command -> its exit code: 0; 2, 3, 4, 5 (see errors.py); 130 stopped. Errors are one line on stderr."""
    try:
        try:
            cli.main(arguments, prog_name="scqfaiss", standalone_mode=False)
        except Exception as error:
            lacking = missing(error)
            if lacking is None:
                raise
            raise lacking from error
        if sys.stdout is not None:
            sys.stdout.flush()
        return 0
    except ScqError as error:
        return fail(str(error), error.exit_code, error)
    except click.exceptions.NoArgsIsHelpError as error:
        to_stderr(error.format_message())
        return 2
    except click.ClickException as error:
        return fail(error.format_message(), 2, error)
    except (KeyboardInterrupt, click.exceptions.Abort):
        return fail(signals.MESSAGE, signals.STOPPED)
    except MemoryError as error:
        return fail("out of memory; use smaller batches or fewer rows", 5, error)
    except SystemExit as error:  # click's answer to a closed pipe, and to a shell that completes a command
        if VARIABLE in os.environ:
            return error.code if isinstance(error.code, int) else 0
        return lost_output("was closed", error)
    except OSError as error:
        if error.errno is None:
            raise
        if error.filename is not None:
            return fail(f"{printable(error.filename)}: {os.strerror(error.errno)}", 4, error)
        # All files go through files.py and data/, which have words of their own: what is left is standard output.
        why = "was closed" if error.errno == errno.EPIPE else f"cannot be written ({os.strerror(error.errno)})"
        return lost_output(why, error)


def lost_output(what: str, error: BaseException) -> int:
    # Python flushes stdout once more at exit: give it somewhere to go.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return fail(f"standard output {what}", 4, error)


def fail(message: str, code: int, error: BaseException | None = None) -> int:
    meter.close()
    if error is not None and os.environ.get("SCQFAISS_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    to_stderr(f"Error: {one_line(message)}")
    return code


def main() -> NoReturn:
    """The `scqfaiss` program, but for its signals, which are taken before this module is imported."""
    signals.take()
    for fd in (0, 1, 2):  # one that was closed would be given to the next file opened, and prints would land in it
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names beyond the locale's letters
    warnings.simplefilter("always", ScqWarning)
    warnings.showwarning = show_warning  # type: ignore[assignment]
    code = run()
    signals.finish(code)
    sys.exit(code)
