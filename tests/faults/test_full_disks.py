"""Disks that fill up while long work runs: a small disk of memory, filled to the last byte at a chosen point."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from scqfaiss import files
from scqfaiss.errors import WriteError
from scqfaiss.files import atomic_write
from scqfaiss.training import checkpoints
from scqfaiss.training import fitting as training
from scqfaiss.training.checkpoints import Checkpoints
from scqfaiss.training.epoch_log import Log

from .conftest import TINY, blobs, write_h5

TRAIN = ("train", "train.h5", "-o", "disk/m.safetensors", *TINY, "--batch-size", "60")
pytestmark = pytest.mark.filterwarnings("ignore::scqfaiss.errors.ScqWarning")


@pytest.fixture
def disk(here):
    """disk() mounts a disk of so many kB at `disk`."""
    folder, mounted = here / "disk", []
    folder.mkdir()

    def mount(kilobytes):
        options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        done = subprocess.run(["mount", *options], capture_output=True)
        if done.returncode:
            pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.decode().strip()}")
        mounted.append(True)
        return folder

    yield mount
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder):
    """Take the last byte that is free."""
    with open(folder / "filler", "ab", buffering=0) as f:
        for size in (4096, 1):
            try:
                while True:
                    f.write(b"x" * size)
            except OSError:
                pass


def full_at_the_end(monkeypatch, folder):
    real = training.prepared

    def prepared(*rest):
        fill(folder)
        return real(*rest)

    monkeypatch.setattr(training, "prepared", prepared)


def whole(run):
    """The model of TRAIN, written where there is room."""
    assert run(*TRAIN[:3], "whole.safetensors", *TRAIN[4:]).code == 0
    return Path("whole.safetensors").read_bytes()


def untrained(monkeypatch):
    """From here on no step is trained any more."""

    def run(*_):
        raise AssertionError("it trains again")

    monkeypatch.setattr(training.Engine, "run", run)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_finished_model_waits_in_the_folder_of_checkpoints(run, here, disk, monkeypatch, elsewhere):
    """A full disk at the end: the older checkpoint makes room for the model; --resume finishes, without a step."""
    expected, folder = whole(run), disk(500)
    (folder / "m.safetensors").write_bytes(b"of before")
    with monkeypatch.context() as patch:
        full_at_the_end(patch, folder)
        patch.setattr(files.AtomicFile, "hold", files.AtomicFile.check_space)  # as on a file system that cannot
        found = run(*TRAIN, "--checkpoint-every", "2")
    assert found.code == 4
    assert (
        found.error.startswith("Error: disk/m.safetensors: needs ")
        and " 0 bytes free; the finished model" in found.error
    )
    kept = folder.resolve() / "m.checkpoints"
    assert f"is kept in {kept}: make room and type the same with --resume, or with" in found.error
    assert sorted(p.name.partition("-")[0] for p in kept.iterdir()) == ["finished.safetensors", "step"]
    assert (folder / "m.safetensors").read_bytes() == b"of before"
    assert run(*TRAIN).error == (
        f"Error: m.checkpoints holds step {Checkpoints(kept).steps()[0]} of an unfinished training; continue with --resume, "
        "or delete it"
    )
    untrained(monkeypatch)
    if elsewhere:
        assert run(*TRAIN[:3], "other.safetensors", *TRAIN[4:], "--resume", "--checkpoints", str(kept)).code == 0
        assert Path("other.safetensors").read_bytes() == expected
    else:
        (folder / "filler").unlink()
        assert run(*TRAIN, "--resume").code == 0
        assert (folder / "m.safetensors").read_bytes() == expected
    assert not kept.exists()


def test_checkpoints_on_another_disk_keep_the_model_of_a_short_training(run, here, disk, monkeypatch):
    """No checkpoint was due yet, and nothing could be held; where a folder with room is named, nothing is lost either."""
    expected, folder = whole(run), disk(500)
    with monkeypatch.context() as patch:
        full_at_the_end(patch, folder)
        patch.setattr(files.AtomicFile, "hold", files.AtomicFile.check_space)  # as on a file system that cannot
        assert "the finished model is kept in kept: make room" in run(*TRAIN, "--checkpoints", "kept").error
    assert os.listdir("kept") == ["finished.safetensors"]
    refused = run(*TRAIN, "--checkpoints", "kept")
    assert (refused.code, refused.error) == (
        2,
        "Error: kept holds the model of a finished training; have it written with --resume, or delete it",
    )
    (folder / "filler").unlink()
    other = run(*TRAIN, "--checkpoints", "kept", "--resume", "--seed", "3")
    assert (other.code, other.error) == (
        2,
        "Error: kept holds the model of another training: seed is 0 there and 3 here",
    )
    untrained(monkeypatch)
    assert run(*TRAIN, "--checkpoints", "kept", "--resume").code == 0
    assert (folder / "m.safetensors").read_bytes() == expected and not Path("kept").exists()


def test_the_room_for_the_model_is_held_from_the_first_step_on(run, here, disk, monkeypatch):
    """A short training, without checkpoints, on a disk that others fill meanwhile: its model is written all the same."""
    expected, folder = whole(run), disk(500)
    full_at_the_end(monkeypatch, folder)
    assert run(*TRAIN).code == 0
    assert (folder / "m.safetensors").read_bytes() == expected
    assert sorted(os.listdir(folder)) == ["filler", "m.safetensors"]


def test_a_damaged_finished_model_is_passed_over(run, here, disk, monkeypatch):
    expected, folder = whole(run), disk(500)
    with monkeypatch.context() as patch:
        full_at_the_end(patch, folder)
        patch.setattr(files.AtomicFile, "hold", files.AtomicFile.check_space)  # as on a file system that cannot
        run(*TRAIN, "--checkpoints", "kept")
    Path("kept/finished.safetensors").write_bytes(b"junk")
    (folder / "filler").unlink()
    found = run(*TRAIN, "--checkpoints", "kept", "--resume")
    assert found.code == 0 and any("finished.safetensors is damaged" in w for w in found.warnings)
    assert (folder / "m.safetensors").read_bytes() == expected


def test_room_is_asked_for_before_the_first_step(run, here, disk, monkeypatch):
    folder = disk(200)
    untrained(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "KEPT", 1000)
        found = run(*TRAIN)
    assert found.code == 4 and found.error.startswith("Error: m.checkpoints: checkpoints of ")
    assert found.error.endswith(" free; make room, or name a folder on another disk with --checkpoints")
    fill(folder)
    for more in ((), ("--checkpoints", "kept")):
        found = run(*TRAIN, *more)
        assert found.code == 4 and found.error.startswith("Error: disk/m.safetensors: needs ")
    assert os.listdir(folder) == ["filler"]


@pytest.mark.slow
def test_a_limit_on_files_is_asked_for_before_the_first_step(here, untouched, start):
    found = start("train", "train.h5", "-o", "x.safetensors", *TINY, "--epochs", "1000000", limit=1000)
    assert found.code == 4 and found.error.endswith("grew past the largest file allowed here (ulimit -f)")
    untouched()


def test_metrics_that_find_no_room_end_no_training(run, here, disk, monkeypatch):
    folder = disk(64)
    asked = ("train", "train.h5", "-o", "x.safetensors", *TINY, "--set", "quantizer=arsq", "--metrics", "disk/m.jsonl")
    real, lines = Log.__call__, []

    def full(log, facts):
        fill(folder) if not lines else (folder / "filler").unlink(missing_ok=True)
        lines.append(facts)
        real(log, facts)

    monkeypatch.setattr(Log, "__call__", full)
    found = run(*asked)
    assert found.code == 0 and len(lines) > 1
    assert [w for w in found.warnings if w.startswith("disk/m.jsonl: needs ")] != []
    assert len((folder / "m.jsonl").read_bytes().splitlines()) == len(lines)  # made up for
    lines.clear()
    monkeypatch.setattr(Log, "__call__", lambda log, facts: (fill(folder), lines.append(facts), real(log, facts)))
    found = run(*asked)
    assert found.code == 0
    assert f"disk/m.jsonl: the last {len(lines)} epochs are missing, there was no room for them" in found.warnings


def test_a_line_that_finds_half_of_its_room_leaves_no_half_line(disk):
    folder = disk(16)
    with atomic_write(folder / "log") as output:
        output.append(b"a\n")
        fill(folder)
        with pytest.raises(WriteError, match=r"free$"):
            output.append(b"b" * 10_000 + b"\n")
        (folder / "filler").unlink()
        output.append(b"c\n")
    assert (folder / "log").read_bytes() == b"a\nc\n"


@pytest.mark.parametrize("what", ["search", "export", "append", "export-encoder"])
def test_other_commands_ask_for_room_before_their_work(run, here, disk, monkeypatch, what):
    folder = disk(64)
    shutil.copy("g.faissindex", folder)
    write_h5("large.h5", blobs(9000)[0])
    fill(folder)
    model = ("--model", "m.safetensors")
    command, work = {
        "search": (
            ("search", "g.faissindex", "large.h5", *model, "-o", "disk/hits.h5"),
            "galleries.searching.search_source",
        ),
        "export": (
            ("export", "m.safetensors", "large.h5", "-o", "disk/n.faissindex"),
            "galleries.exporting.encode_source",
        ),
        "append": (("append", "disk/g.faissindex", "large.h5", *model), "galleries.editing.encode_source"),
        "export-encoder": (("export-encoder", "m.safetensors", "-o", "disk/m.onnx"), "galleries.onnx_export.to_bytes"),
    }[what]
    monkeypatch.setattr(f"scqfaiss.{work}", lambda *_, **__: pytest.fail("it works first"))
    found = run(*command)
    assert found.code == 4 and " needs " in found.error and found.error.endswith(" free")
    assert sorted(os.listdir(folder)) == ["filler", "g.faissindex"]
