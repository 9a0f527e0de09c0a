"""Faults of writing, crashes and races, rows D1 to D12 of the fault table."""

import ast
import errno
import fcntl
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import faiss
import pytest

import scqfaiss
from scqfaiss import files
from scqfaiss.errors import ConfigError, ScqWarning, WriteError
from scqfaiss.galleries.inspection import verify_file
from scqfaiss.galleries.reading import read_gallery

from .conftest import TINY, blobs, checked, command, write_h5

TOOLS = Path(__file__).parents[2] / "tools"
EXPORT = ("export", "m.safetensors", "database.h5", "-o")
DISK = namedtuple("DISK", "total used free")


def tool(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refused(result, code, message):
    assert (result.code, result.error) == (code, f"Error: {message}")


def as_user_nobody():
    """For a child: rights are checked for everybody but root."""
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


@pytest.mark.slow
def test_d1_kill_during_export(tmp_path):
    found = tool("kill_export").kill_exports(tmp_path, kills=20, rows=20_000)
    assert found["old"] + found["new"] == 20
    assert (found["damaged"], found["litter"]) == (0, 0)
    assert found["old"] and found["new"]


def test_flipping_tool_reports(tmp_path, made):
    found = tool("flip_bits").flip_bits(made / "folded.faissindex", 300)
    assert found == {"verify": {"refused": 300}, "open": {"refused": 300}}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_d2_signal_inside_the_fill(run, here, untouched, monkeypatch, number):
    """The signal arrives while FAISS hands over its blocks, inside a callback from C++."""
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    real, blocks = faiss.PyCallbackIOWriter, []

    def writer(put):
        def slow(block):
            blocks.append(len(block))
            if len(blocks) == 5:
                assert [p for p in os.listdir() if ".faissindex.tmp-" in p]
                os.kill(os.getpid(), number)
            put(block)

        return real(slow)

    monkeypatch.setattr(faiss, "PyCallbackIOWriter", writer)
    try:
        refused(run(*EXPORT, "g.faissindex"), 130, "stopped; nothing was left half-written")
        assert len(blocks) >= 5
        blocks.clear()
        refused(run(*EXPORT, "new.faissindex"), 130, "stopped; nothing was left half-written")
    finally:
        signal.signal(signal.SIGTERM, before)
    untouched()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_d2_signal_to_a_process(here, untouched, number):
    process = subprocess.Popen(
        command("train", "train.h5", "-o", "m.safetensors", "--epochs", "100000", *TINY[:4]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: locked("m.safetensors"))
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()  # it would train for hours
    refused(checked(process.returncode, out, err), 130, "stopped; nothing was left half-written")
    untouched()


def locked(name):
    return Path(f".{name}.lock").exists()


def wait_for(what, seconds=30.0):
    """Poll until what() holds."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 100, 2000])
def test_d3_file_size_limit(here, untouched, start, limit):
    grew = "grew past the largest file allowed here (ulimit -f)"
    refused(start(*EXPORT, "g.faissindex", limit=limit), 4, f"g.faissindex: {grew}")
    arguments = ("search", "g.faissindex", "query.h5", "--model", "m.safetensors", "-k", "200", "-o", "query.hits.h5")
    refused(start(*arguments, limit=limit), 4, f"query.hits.h5: {grew}")
    untouched()


@pytest.mark.parametrize("what", ["export", "hits", "model"])
@pytest.mark.parametrize("when", ["write", "fsync", "replace"])
def test_d3_disk_full(run, here, untouched, monkeypatch, what, when):
    """The disk refuses in the middle; small files too, whose bytes may fit into one buffer."""
    real = open

    class Full:
        def __init__(self, f):
            self.f = f

        def __getattr__(self, name):
            return getattr(self.f, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.f.close()

        def write(self, block):
            raise OSError(errno.ENOSPC, "full")

    def refuse(*_):
        raise OSError(errno.ENOSPC, "full")

    if when == "write":
        monkeypatch.setattr(
            files, "open", lambda p, m: Full(real(p, m)) if m in ("x+b", "w+b") else real(p, m), raising=False
        )
    else:
        monkeypatch.setattr(files.os, when, refuse)
    arguments = {
        "export": (*EXPORT, "g.faissindex"),
        "hits": ("search", "g.faissindex", "query.h5", "--model", "m.safetensors", "-o", "database.h5"),
        "model": ("train", "train.h5", "-o", "m.safetensors", "--method", "pq", "--bits", "8", "--nbits", "4"),
    }[what]
    result = run(*arguments)
    assert result.code == 4
    name = {"export": "g.faissindex", "hits": "database.h5", "model": "m.safetensors"}[what]
    assert result.error.startswith(f"Error: {name}: needs ") and result.error.endswith(" free"), result.error
    untouched()


def test_d3_words_before_any_work(run, here, untouched, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: DISK(0, 0, 1000))
    monkeypatch.setattr("scqfaiss.galleries.exporting.build", None)  # not reached
    refused(run(*EXPORT, "g.faissindex"), 4, "g.faissindex: needs 7.3 kB, 1.0 kB free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: DISK(0, 0, 80 * 10**6))
    with files.atomic_write("x.bin") as output, pytest.raises(WriteError) as caught:
        output.check_space(1_142_857_143)
    assert str(caught.value) == "x.bin: needs 1.2 GB, 80.0 MB free"
    untouched()


@pytest.mark.slow
def test_d3_small_tmpfs(here, start):
    disk = here / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.decode().strip()}")
    try:
        shutil.copy("g.faissindex", disk)
        (disk / "filler").write_bytes(b"x" * 40_000)
        write_h5("large.h5", blobs(9000)[0])
        for name in ("g.faissindex", "new.faissindex"):
            result = start("export", "m.safetensors", "large.h5", "-o", f"disk/{name}")
            assert result.code == 4
            assert f"disk/{name}: needs " in result.error and result.error.endswith(" free")
        assert sorted(os.listdir(disk)) == ["filler", "g.faissindex"]
        assert (disk / "g.faissindex").read_bytes() == Path("g.faissindex").read_bytes()
        # Full to the last byte: not even the text inside the lock fits.
        with open(disk / "filler", "ab") as f:
            while True:
                try:
                    os.write(f.fileno(), b"x" * 512)
                except OSError:
                    break
        result = start("search", "g.faissindex", "query.h5", "--model", "m.safetensors", "-o", "disk/hits.h5")
        assert result.code == 4
        assert sorted(os.listdir(disk)) == ["filler", "g.faissindex"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_d4_folder_missing_or_a_file(run, here, untouched, monkeypatch):
    for name in ("encode_source", "build"):
        monkeypatch.setattr(f"scqfaiss.galleries.exporting.{name}", None)  # no slow step is reached
    monkeypatch.setattr("scqfaiss.training.interface.fit", None)
    folder = here / "no"
    refused(run(*EXPORT, "no/g.faissindex"), 4, f"no/g.faissindex: folder {folder} does not exist; create it first")
    refused(run(*EXPORT, "train.h5/g.faissindex"), 4, "train.h5/g.faissindex: Not a directory")
    result = run("train", "train.h5", "-o", "no/m.safetensors")
    refused(result, 4, f"no/m.safetensors: folder {folder} does not exist; create it first")
    long = "y" * 300 + ".faissindex"
    refused(run(*EXPORT, long), 4, f"{long}: File name too long")
    result = run("demo", "-o", "train.h5")
    refused(result, 4, "train.h5: cannot make this folder (File exists)")
    untouched()


def test_d4_read_only(run, here, untouched, monkeypatch):
    real = os.open

    def refuse(path, flags, *rest, **more):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, "read-only")
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(files.os, "open", refuse)
    monkeypatch.setattr("scqfaiss.galleries.exporting.encode_source", None)
    result = run(*EXPORT, "g.faissindex")
    refused(result, 4, f"g.faissindex: cannot write in folder {here} (Read-only file system)")
    untouched()


@pytest.mark.skipif(os.getuid() != 0, reason="needs to become another user")
def test_d4_folder_without_rights(tmp_path):
    """In a child that is not root; only the seam is run, as the rest of the way there may be closed to it."""
    folder = tmp_path / "shut"
    folder.mkdir(mode=0o555)
    (folder / "g.faissindex").write_bytes(b"old")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for parent in (tmp_path, *tmp_path.parents):
                parent.chmod(0o755)
                if parent.name.startswith("pytest-of-"):
                    break
            as_user_nobody()
            try:
                with files.atomic_write(folder / "g.faissindex", suffix=".faissindex"):
                    code = 2
            except WriteError as error:
                code = 0 if f"cannot write in folder {folder} (Permission denied)" in str(error) else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert os.listdir(folder) == ["g.faissindex"]


def test_d4_folder_that_goes_away(run, here, untouched, monkeypatch):
    """Between the checks and the write somebody removes the folder, or puts a file in its place."""
    import scqfaiss.galleries.exporting as exporting

    real = exporting.encode_source
    for replace in (False, True):
        folder = here / "gone"
        folder.mkdir()

        def remove(*a, folder=folder, replace=replace, **more):
            shutil.rmtree(folder)
            if replace:
                folder.write_bytes(b"a file")
            return real(*a, **more)

        monkeypatch.setattr(exporting, "encode_source", remove)
        result = run(*EXPORT, "gone/x.faissindex")
        assert result.code == 4
        assert result.error.startswith("Error: gone/x.faissindex: cannot write (N"), result.error
        if replace:
            folder.unlink()
    untouched()


def test_d4_fsync_of_the_folder_fails_after_the_file_is_whole(here, monkeypatch):
    def refuse(_):
        raise OSError(errno.EIO, "io")

    monkeypatch.setattr(files, "_sync_folder", refuse)
    with files.atomic_write("x.bin") as output, pytest.raises(WriteError) as caught:
        output.write(lambda f: f.write(b"whole"))
    assert str(caught.value) == "x.bin: written whole, but a power cut may undo it (Input/output error)"
    assert Path("x.bin").read_bytes() == b"whole"


def test_d5_folder_fifo_device(run, here, untouched):
    (here / "x.faissindex").mkdir()
    os.mkfifo("f.faissindex")
    os.mkfifo("f.h5")
    os.mkfifo("f.toml")
    os.symlink("/dev/full", "d.faissindex")
    os.symlink("/dev/zero", "z.faissindex")
    untouched(again=True)
    for name in ("x", "f", "d", "z"):
        plain = "is no plain file, nothing can be written there"
        refused(run(*EXPORT, f"{name}.faissindex"), 4, f"{name}.faissindex: {plain}")
        for arguments in (["verify"], ["info"]):
            refused(run(*arguments, f"{name}.faissindex"), 3, f"{name}.faissindex: is no plain file")
    arguments = ("search", "g.faissindex", "query.h5", "--model", "m.safetensors", "-o")
    refused(run(*arguments, "/dev/full"), 4, "/dev/full: is no plain file, nothing can be written there")
    refused(run("info", "f.h5"), 3, "f.h5 is a FIFO, needs to be a regular file")
    refused(run("train", "train.h5", "-o", "n.safetensors", "--config", "f.toml"), 2, "f.toml: is no plain file")
    refused(run("verify", here), 3, f"{here}: is no plain file")
    untouched()


def test_d6_symlinks(run, here):
    shutil.copy("g.faissindex", "real.faissindex")
    os.symlink("real.faissindex", "link.faissindex")
    (here / "deep").mkdir()
    os.symlink("deep/there.faissindex", "dangling.faissindex")
    os.symlink("loop.faissindex", "loop.faissindex")
    os.symlink("nowhere/x.faissindex", "astray.faissindex")
    old = Path("real.faissindex").read_bytes()
    assert run("export", "other.safetensors", "database.h5", "-o", "link.faissindex").code == 0
    assert os.path.islink("link.faissindex")
    assert Path("real.faissindex").read_bytes() != old
    assert run(*EXPORT, "dangling.faissindex").code == 0
    assert os.path.islink("dangling.faissindex") and not os.path.islink("deep/there.faissindex")
    assert run("verify", "deep/there.faissindex").code == 0
    assert os.listdir("deep") == ["there.faissindex"]
    before = sorted(os.listdir())
    refused(run(*EXPORT, "loop.faissindex"), 4, "loop.faissindex: Too many levels of symbolic links")
    folder = here / "nowhere"
    refused(run(*EXPORT, "astray.faissindex"), 4, f"astray.faissindex: folder {folder} does not exist; create it first")
    assert sorted(os.listdir()) == before
    refused(run("verify", "loop.faissindex"), 3, "loop.faissindex: cannot be read (Too many levels of symbolic links)")


def test_d6_link_into_another_file_system(run, here):
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat(here).st_dev:
        pytest.skip("no second file system")
    other = Path(f"/dev/shm/scqfaiss-test-{os.getpid()}")
    other.mkdir()
    try:
        os.symlink(other / "x.faissindex", "far.faissindex")
        assert run(*EXPORT, "far.faissindex").code == 0
        assert os.listdir(other) == ["x.faissindex"]
        assert run("verify", "far.faissindex").code == 0
    finally:
        shutil.rmtree(other)


def test_d7_target_is_an_input(run, here, untouched):
    os.link("train.h5", "hard.safetensors")
    os.link("database.h5", "hard.faissindex")
    os.link("query.h5", "hard.h5")
    os.symlink("m.safetensors", "soft.h5")
    untouched(again=True)
    another = "is an input of this command; choose another output"
    refused(run("train", "train.h5", "-o", "hard.safetensors"), 2, f"train.h5 {another}")
    refused(run(*EXPORT, "hard.faissindex"), 2, f"database.h5 {another}")
    search = ("search", "g.faissindex", "query.h5", "--model", "m.safetensors", "-o")
    refused(run(*search, "query.h5"), 2, f"query.h5 {another}")
    refused(run(*search, "hard.h5"), 2, f"query.h5 {another}")
    refused(run(*search, "soft.h5"), 2, f"m.safetensors {another}")
    refused(run(*search, "g.faissindex"), 2, f"g.faissindex {another}")
    refused(run(*search, here / ".." / here.name / "query.h5"), 2, f"query.h5 {another}")
    codebooks = ("--codebook-rows", "train.h5")
    refused(run("train", "database.h5", "-o", "hard.safetensors", *codebooks), 2, f"train.h5 {another}")
    untouched()


def test_d7_wrong_suffix(run, here, untouched):
    refused(run(*EXPORT, "x.index"), 2, "x.index: galleries end in .faissindex; write x.faissindex")
    refused(run(*EXPORT, ""), 2, ".: galleries end in .faissindex")
    refused(run(*EXPORT, ".faissindex"), 2, ".faissindex: galleries end in .faissindex")
    refused(run("train", "train.h5", "-o", "train.h5"), 2, "train.h5: models end in .safetensors")
    with pytest.raises(ConfigError):
        scqfaiss.Model.load("m.safetensors").save("x.pt")
    with pytest.raises(WriteError, match="no file can have this name"):
        scqfaiss.Model.load("m.safetensors").save("x\0.safetensors")
    untouched()


HOLD = """
import sys, time
from scqfaiss import files
with files.atomic_write(sys.argv[1], what=sys.argv[2] if len(sys.argv) > 2 else "") as slot:
    print("held", flush=True)
    sys.stdin.readline()
"""


def hold(name, *what):
    """A process that holds the lock of a target until it is told to stop or is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, name, *what], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_d8_lock_of_another_process(run, here, untouched):
    with hold("g.faissindex") as holder:
        refused(run(*EXPORT, "g.faissindex"), 4, f"g.faissindex: locked by pid {holder.pid}")
        assert run("verify", "g.faissindex").code == 0  # readers need no lock
        assert run(*EXPORT, "elsewhere.faissindex").code == 0
        (here / "elsewhere.faissindex").unlink()
        holder.kill()  # SIGKILL: nobody cleans up
        holder.wait()
        assert Path(".g.faissindex.lock").exists()
        assert run("export", "other.safetensors", "database.h5", "-o", "g.faissindex").code == 0
        assert not Path(".g.faissindex.lock").exists()
    with hold("g.faissindex", "exported") as holder:
        refused(run(*EXPORT, "g.faissindex"), 4, f"g.faissindex is being exported by pid {holder.pid}")
        holder.communicate("stop\n")
    assert run(*EXPORT, "g.faissindex").code == 0
    untouched()


def test_d8_two_exporters_race(here):
    """20 races of two threads for one target, at the seam: one at a time gets in, every write is whole."""
    outcomes, barrier = [], threading.Barrier(2, timeout=10)
    Path("race.bin").write_bytes(b"\1" * 10_000)

    def export(n):
        for _ in range(20):
            barrier.wait()
            try:
                with files.atomic_write("race.bin") as output:
                    output.write(lambda f: f.write(bytes([n]) * 10_000))
                outcomes.append("wrote")
            except WriteError as error:
                # The lock is taken a moment before the pid stands in it.
                outcomes.append("locked" if "race.bin: locked by pid " in str(error) else str(error))
            if Path("race.bin").read_bytes() not in (b"\1" * 10_000, b"\2" * 10_000):
                outcomes.append("damaged")

    threads = [threading.Thread(target=export, args=(n,)) for n in (1, 2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert set(outcomes) <= {"wrote", "locked"}
    assert len(outcomes) == 40
    assert outcomes.count("wrote") >= 20


@pytest.mark.slow
def test_d8_two_export_processes_race(here):
    """Both are started at once: each ends with 0, or with 4 and the words of the lock; the file is one of the two."""
    wholes = {}
    for model in ("m", "other"):
        shutil.copy(f"{model if model == 'other' else 'g'}.faissindex", "whole")
        wholes[Path("whole").read_bytes()] = model
    os.unlink("whole")
    for _ in range(4):
        both = [
            subprocess.Popen(
                command("export", f"{m}.safetensors", "database.h5", "-o", "race.faissindex"),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for m in ("m", "other")
        ]
        codes = []
        for p in both:
            out, err = p.communicate(timeout=50)
            result = checked(p.returncode, out, err)
            codes.append(result.code)
            if result.code:
                assert result.error.startswith("Error: race.faissindex is being exported by pid ")
        assert 0 in codes and set(codes) <= {0, 4}
        assert Path("race.faissindex").read_bytes() in wholes
        verify_file("race.faissindex")


def test_d8_file_system_without_locks(here, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    words = r"^x\.bin: this file system has no locks; do not write the same file twice at a time$"
    with pytest.warns(ScqWarning, match=words), files.atomic_write("x.bin") as output:
        output.write(lambda f: f.write(b"whole"))
    assert Path("x.bin").read_bytes() == b"whole"


def test_temporaries_of_the_dead_are_removed_and_nothing_else(run, here):
    """What looks like one but is a folder, or somebody's file of a similar name, stays."""
    Path("g.faissindex.tmp-123").write_bytes(b"dead")
    (here / "g.faissindex.tmp-7").mkdir()
    Path("g.faissindex.tmp-mine.faissindex").write_bytes(b"mine")
    Path("g.faissindex.tmp-5.txt").write_bytes(b"mine")
    assert run(*EXPORT, "g.faissindex").code == 0
    left = sorted(p for p in os.listdir() if ".tmp-" in p)
    assert left == ["g.faissindex.tmp-5.txt", "g.faissindex.tmp-7", "g.faissindex.tmp-mine.faissindex"]
    os.rmdir("g.faissindex.tmp-7")
    os.unlink("g.faissindex.tmp-mine.faissindex")
    os.unlink("g.faissindex.tmp-5.txt")


def test_target_keeps_its_mode(run, here):
    os.chmod("g.faissindex", 0o640)
    assert run(*EXPORT, "g.faissindex").code == 0
    assert stat.S_IMODE(os.stat("g.faissindex").st_mode) == 0o640


@pytest.mark.slow
def test_d9_second_training_while_the_first_runs(run, here):
    first = ("train", "train.h5", "-o", "x.safetensors", *TINY[:-4], "--epochs", "10", "--set", "codebooks.copies=1")
    process = subprocess.Popen(command(*first), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # The lock file exists before it holds the pid, hence the text is waited for.
    wait_for(lambda: locked("x.safetensors") and Path(".x.safetensors.lock").read_bytes())
    refused(run("train", "train.h5", "-o", "x.safetensors"), 4, f"x.safetensors is being trained by pid {process.pid}")
    out, err = process.communicate(timeout=50)
    assert checked(process.returncode, out, err).code == 0
    assert run(*first[:3], "alone.safetensors", *first[4:]).code == 0
    assert Path("alone.safetensors").read_bytes() == Path("x.safetensors").read_bytes()


def test_d10_readers_during_re_export(here):
    """Two readers, 60 swaps of the file beneath them: every read is the old gallery or the new one."""
    old, new = Path("g.faissindex").read_bytes(), Path("other.faissindex").read_bytes()
    wanted = {read_gallery(n).metadata["model_sha256"] for n in ("g.faissindex", "other.faissindex")}
    shutil.copy("g.faissindex", "live.faissindex")
    done, errors, reads = threading.Event(), [], []

    def read():
        while not done.is_set():
            try:
                reads.append(read_gallery("live.faissindex").metadata["model_sha256"])
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for t in threads:
        t.start()
    for i in range(60):
        with files.atomic_write("live.faissindex") as output:
            output.write(lambda f, i=i: f.write(old if i % 2 else new))
    done.set()
    for t in threads:
        t.join()
    assert errors == []
    assert reads and set(reads) <= wanted


@pytest.mark.slow
def test_d11_no_decision_uses_the_clock():
    """Durations are monotonic and nothing looks at a file's time: a clock that jumps changes nothing.

    A service may: it tells times to Prometheus and browsers, and looks at its files every few seconds.
    """
    package = Path(scqfaiss.__file__).parent
    for path in package.rglob("*.py"):
        if path.is_relative_to(package / "serving"):
            continue
        names = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
        for name in ("st_mtime", "st_mtime_ns", "getmtime", "st_ctime", "utime", "now", "utcnow", "today", "time_ns"):
            assert name not in names, (path, name)
        assert "time.time(" not in path.read_text(), path


def test_d11_same_bytes_whenever_they_are_made(run, here, monkeypatch):
    old = Path("g.faissindex").read_bytes()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    os.utime("m.safetensors", (0, 0))
    os.utime("database.h5", (2**31, 2**31))
    assert run(*EXPORT, "again.faissindex").code == 0
    assert Path("again.faissindex").read_bytes() == old


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["info", "g.faissindex"], ["--help"], ["search", "--help"]])
def test_d12_stdout_closed_early(here, arguments):
    """Nobody reads: the pipe is closed before the first byte. And a disk that is full, in its place."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        done = subprocess.run(command(*arguments), stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=50)
    refused(checked(done.returncode, "", done.stderr), 4, "standard output was closed")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command(*arguments), stdout=full, stderr=subprocess.PIPE, text=True, timeout=50)
    words = "standard output cannot be written (No space left on device)"
    refused(checked(done.returncode, "", done.stderr), 4, words)


def test_d12_head_and_files_already_written(here):
    line = " ".join(
        command("search", "g.faissindex", "query.h5", "--model", "m.safetensors", "-k", "200", "-o", "h.h5")
    )
    done = subprocess.run(
        ["bash", "-c", f"{line} 2>err | head -1; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, timeout=50
    )
    assert done.returncode in (0, 4)
    assert "Traceback" not in Path("err").read_text()
    assert done.stdout == "20 queries, 200 hits each, written to h.h5\n"
    assert scqfaiss.data.hdf5 and Path("h.h5").stat().st_size > 1000


@pytest.mark.slow
def test_d12_stderr_gone_changes_nothing(here):
    """Progress and warnings that nobody can see stop no work; the exit code is all that is left."""
    for redirect in ("2>&-", "2>/dev/full", ">&- 2>&- <&-"):
        line = " ".join(command("export", "m.safetensors", "database.h5", "-o", "y.faissindex"))
        done = subprocess.run(["bash", "-c", f"{line} {redirect}"], capture_output=True, text=True, timeout=50)
        assert done.returncode == 0
        assert Path("y.faissindex").read_bytes() == Path("g.faissindex").read_bytes()
        line = " ".join(command("verify", "train.h5"))
        done = subprocess.run(["bash", "-c", f"{line} {redirect}"], capture_output=True, text=True, timeout=50)
        assert done.returncode == 3
