"""The only writer. A target is the old file or the new one, whole; damage is refused, never answered from.

Every file of the package is written by `atomic_write(...)`: the target is checked and locked before any slow work, then
filled beside it, synced, read back, and renamed over it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from . import signals
from .errors import ConfigError, IndexFileError, ScqError, WriteError, format_bytes, printable, warn

_BLOCK = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)

PathLike = str | os.PathLike[str]


# ------------------------------------------------------------------------------------------------------------- writing
class AtomicFile:
    """A locked place for one file. `write` may be called more than once; each call replaces the file as a whole.

    outermost: reserved while no other was, hence what a command is for; with it in its place the command's work is done, unless
    it is `growing`: written again and again, each time with more.
    durable: synced before it takes its place; False for one of many files that can be made anew, which a power cut may empty.
    """

    durable = True
    growing = False

    def __init__(self, path: Path, name: str, outermost: bool = False) -> None:
        self.path, self.name, self.outermost = path, name, outermost
        self.temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
        self._holds, self._nbytes = False, 0

    def check_space(self, nbytes: int) -> None:
        """Raise WriteError unless the disk can take `nbytes` and 5 % more."""
        try:
            free = shutil.disk_usage(self.path.parent).free
        except OSError as error:  # the folder went away
            raise self._refused(error, nbytes) from error
        if nbytes * 1.05 > free:
            raise WriteError(f"{self.name}: needs {format_bytes(nbytes * 1.05)}, {format_bytes(free)} free")

    def hold(self, nbytes: int) -> None:
        """Take the room for `nbytes` and 5 % more now, where the file system can: others may fill the disk until it is needed.

        Raises WriteError where there is none.
        """
        self.check_space(nbytes)
        try:
            with signals.held():
                f = open(self.temporary, "x+b")
                self._holds = True
                signals.unfinished(self.temporary)
            with f:
                os.posix_fallocate(f.fileno(), 0, max(int(nbytes * 1.05), 1))
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                self.drop()
                raise self._refused(error, nbytes) from error

    def write(
        self, fill: Callable[[BinaryIO], object], check: Callable[[Path], None] | None = None, nbytes: int = 0
    ) -> None:
        """Prepare the file, and have it take its place."""
        self.prepare(fill, check, nbytes)
        self.place()

    def prepare(
        self, fill: Callable[[BinaryIO], object], check: Callable[[Path], None] | None = None, nbytes: int = 0
    ) -> None:
        """fill(f) writes the content; check(path) reads the finished temporary file back and raises if it is wrong.

        nbytes: the expected size, tested against the free space first. On any exception, KeyboardInterrupt included,
        the temporary file is removed and the target is as it was. Raises WriteError on what the disk refuses.
        """
        self._nbytes = nbytes
        try:
            with signals.held():
                f = open(self.temporary, "w+b" if self._holds else "x+b")  # "w" gives up what is held
                if not self._holds:
                    signals.unfinished(self.temporary)
                self._holds = True
            with f:
                self.check_space(nbytes)
                if self.path.exists():
                    os.fchmod(f.fileno(), stat.S_IMODE(self.path.stat().st_mode))
                fill(f)
                f.flush()
                if self.durable:
                    os.fsync(f.fileno())
            if check is not None:
                check(self.temporary)
        except BaseException as error:
            self.drop()
            if isinstance(error, OSError):
                raise self._refused(error, nbytes) from error
            raise

    def place(self) -> None:
        """Have the prepared file take its place, which needs no room on the disk. Raises WriteError."""
        try:
            with signals.held():
                os.replace(self.temporary, self.path)
                signals.settled(self.temporary)
                self._holds = False
                if self.outermost and not self.growing:
                    signals.finish()
        except BaseException as error:
            self.drop()
            if isinstance(error, OSError):
                raise self._refused(error, self._nbytes) from error
            raise
        try:
            if self.durable:
                _sync_folder(self.path.parent)
        except OSError as error:
            why = os.strerror(error.errno or errno.EIO)
            raise WriteError(f"{self.name}: written whole, but a power cut may undo it ({why})") from error

    def drop(self) -> None:
        """Remove the temporary file, if there is one."""
        with signals.held():
            with suppress(OSError):  # the folder may be gone, or read-only by now
                self.temporary.unlink()
            signals.settled(self.temporary)
            self._holds = False

    def append(self, data: bytes) -> None:
        """Add to the end of the file, for logs alone: whoever reads one must pass over a last line that was cut off.

        Raises WriteError; the file then ends where it ended.
        """
        try:
            with open(self.path, "ab", buffering=0) as f:
                end = f.tell()
                try:
                    if f.write(data) != len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # the rest found no room
                except OSError:
                    f.truncate(end)
                    raise
        except OSError as error:
            raise self._refused(error, len(data)) from error

    def _refused(self, error: OSError, nbytes: int) -> WriteError:
        if error.errno in _FULL:
            need = f"needs {format_bytes(nbytes * 1.05)}, " if nbytes else "no space left, "
            return WriteError(f"{self.name}: {need}{format_bytes(shutil.disk_usage(self.path.parent).free)} free")
        if error.errno == errno.EFBIG:
            return WriteError(f"{self.name}: grew past the largest file allowed here (ulimit -f)")
        why = os.strerror(error.errno) if error.errno else "the disk refused it"
        return WriteError(f"{self.name}: cannot write ({why})")


def check_target(path: PathLike, *, inputs: Sequence[PathLike] = (), suffix: str | None = None) -> Path:
    """The place that `path` leads to through links, once nothing that can be seen beforehand stands against writing there.

    Raises as `atomic_write` does, but for the lock.
    """
    name = printable(path)
    if "\0" in os.fsdecode(path):
        raise WriteError(f"{name}: no file can have this name")
    real = Path(os.path.realpath(path))
    if suffix and Path(path).suffix != suffix:
        kind = {".faissindex": "galleries", ".safetensors": "models"}.get(suffix, "these files")
        stem = Path(path).stem
        how = (
            f"; write {printable(stem)}{suffix}"
            if stem.strip(".") and stem != suffix and not os.path.lexists(path)
            else ""
        )
        raise ConfigError(f"{name}: {kind} end in {suffix}{how}")
    try:
        there: os.stat_result | None = os.stat(real)
    except FileNotFoundError:
        there = None
    except OSError as error:  # a loop of links, or a file where a folder should be
        raise WriteError(f"{name}: {os.strerror(error.errno or 0)}") from error
    if os.path.islink(path) and there is None and os.path.islink(real):
        raise WriteError(f"{name}: {os.strerror(errno.ELOOP)}")
    if there is not None:
        if not stat.S_ISREG(there.st_mode):
            raise WriteError(f"{name}: is no plain file, nothing can be written there")
        for other in inputs:
            if os.path.exists(other) and os.path.samestat(there, os.stat(other)):
                raise ConfigError(f"{printable(other)} is an input of this command; choose another output")
    for other in inputs:
        if os.path.isdir(other) and real.is_relative_to(os.path.realpath(other)):
            raise ConfigError(
                f"{name} lies in {printable(other)}, which is an input of this command and would count it in; "
                "choose an output elsewhere"
            )
    if not real.parent.is_dir():
        raise WriteError(f"{name}: folder {printable(real.parent)} does not exist; create it first")
    return real


def make_folder(path: PathLike) -> None:
    """Create a folder, unless it is there. Raises WriteError."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{printable(path)}: cannot create this folder ({os.strerror(error.errno or 0)})") from error


def numbered(folder: Path, pattern: re.Pattern[str]) -> list[int]:
    """The numbers, group 1 of `pattern`, of the files in a folder whose whole names match; ascending. None without a folder."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return []
    return sorted(int(m[1]) for name in names if (m := pattern.fullmatch(name)))


def clear_folder(folder: Path, *patterns: re.Pattern[str]) -> None:
    """Remove the files whose whole names match, then the folder; with anything else in it, it stays."""
    with suppress(OSError):
        for path in list(folder.iterdir()):
            if any(pattern.fullmatch(path.name) for pattern in patterns):
                path.unlink()
        folder.rmdir()


@contextmanager
def atomic_write(
    path: PathLike, *, inputs: Sequence[PathLike] = (), suffix: str | None = None, what: str = ""
) -> Iterator[AtomicFile]:
    """Check that `path` can be written, lock it, and yield the AtomicFile to write it with; all before any slow work.

    inputs: files that the command reads, none of which may be the target, and folders, in which it may not lie. suffix: the
    ending the name must have.
    what: "trained" and the like, for the message another process gets while this one holds the lock.
    Raises ConfigError on an input as target or a wrong ending; WriteError on a folder that is missing or not writable,
    on a target that is no plain file, and while another process holds the lock.
    """
    real, name = check_target(path, inputs=inputs, suffix=suffix), printable(path)
    with _locked(real, name, what) as outermost:
        own = re.compile(re.escape(real.name) + r"\.tmp-\d+")
        with suppress(OSError):  # a folder that may be written but not listed
            for leftover in os.listdir(real.parent):
                if own.fullmatch(leftover):  # we hold the lock: nobody alive owns it
                    with suppress(OSError):
                        os.unlink(real.parent / leftover)
        output = AtomicFile(real, name, outermost)
        try:
            yield output
        finally:
            output.drop()  # what was prepared and took no place


@contextmanager
def _locked(real: Path, name: str, what: str) -> Iterator[bool]:
    """Hold `.NAME.lock` beside the target -> whether this process holds no other one.

    The kernel drops the lock with the process, so no lock is ever stale.
    """
    lock = real.with_name(f".{real.name}.lock")
    fd, outermost = None, False
    try:  # KeyboardInterrupt may come at any line from here on, and must not leave the lock file
        while fd is None:
            with signals.held():
                fd = _open_lock(real, name, lock)
                outermost = fd is not None and signals.unfinished(lock)
        with suppress(OSError):  # the text serves a message only: a full disk is reported where it matters
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()} {what}".strip().encode(), 0)
        yield outermost
    finally:
        if fd is not None:
            with signals.held():
                _let_go(fd, lock)
                signals.settled(lock)


def _open_lock(real: Path, name: str, lock: Path) -> int | None:
    """Open and lock the lock file; None where it was another's, and that one removed it between our open and our lock."""
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise WriteError(
            f"{name}: cannot write in folder {printable(real.parent)} ({os.strerror(error.errno or 0)})"
        ) from error
    same = False
    try:
        _take(fd, name)
        with suppress(FileNotFoundError):
            same = os.path.samestat(os.fstat(fd), os.stat(lock))
        return fd if same else None
    finally:
        if not same:
            _let_go(fd, lock)


def _take(fd: int, name: str) -> None:
    """Lock an open lock file. Raises WriteError that tells who holds it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        for _ in range(50):  # the holder writes its pid a moment after it has the lock
            text = os.pread(fd, 200, 0)
            if text:
                break
            time.sleep(0.002)
        holder, _, doing = text.decode("utf-8", "replace").partition(" ")
        state = f"is being {doing} by pid {holder}" if doing else f"locked by pid {holder or 'unknown'}"
        raise WriteError(f"{name} {state}" if doing else f"{name}: {state}") from None
    except OSError:
        warn(f"{name}: this file system has no locks; do not write the same file twice at a time")


def _let_go(fd: int, lock: Path) -> None:
    """Remove the lock file, unless it is somebody else's by now, and close it."""
    with suppress(OSError):  # the folder may be gone, or read-only by now
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held already, as a rule
            ours = os.path.samestat(os.fstat(fd), os.stat(lock))
        except OSError as error:
            ours = not isinstance(error, BlockingIOError)  # a file system without locks
        if ours:
            lock.unlink()
    os.close(fd)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class NotRegular(OSError):
    """A path that leads to something else than a regular file: a `kind` of thing, as messages name it."""

    def __init__(self, mode: int) -> None:
        super().__init__(errno.EINVAL, "it is no regular file")
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
        self.kind = kinds.get(stat.S_IFMT(mode), "a device")


def open_descriptor(path: PathLike) -> int:
    """A descriptor of a regular file, open for reading: the one place that opens files. Never waits, whatever is there.

    Raises NotRegular, OSError, and ValueError on a NUL byte in the name.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise NotRegular(mode)
    # A FIFO put here since that look would block for ever without O_NONBLOCK.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise NotRegular(mode)
    return fd


def open_regular(path: PathLike, error: type[ScqError] = IndexFileError) -> BinaryIO:
    """Open a file for reading; ConfigError where it is missing, `error` where it is no plain file or not readable."""
    try:
        return open(open_descriptor(path), "rb")
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL byte in the name
        raise ConfigError(f"{printable(path)}: no such file") from None
    except NotRegular as e:
        raise error(f"{printable(path)}: is no plain file") from e
    except OSError as e:
        raise error(f"{printable(path)}: cannot be read ({os.strerror(e.errno or 0)})") from e


def parse_json(text: bytes | str) -> dict[str, Any] | None:
    """One JSON object without repeated keys, or None."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    try:
        out = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError):
        return None
    return out if isinstance(out, dict) else None
