"""Fault J: a file of features whose making is killed, stopped, resumed, misled, or meets a full disk."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from images import COLOURS, NETWORK, draw, photos

from scqfaiss.data import writing
from scqfaiss.features.files import features_file
from scqfaiss.features.source import InferenceOptions

from .conftest import command

pytest.importorskip("PIL", reason="images need Pillow")

EACH, PART = 40, 8  # images a class, and a part: 15 parts
MAKE = ("features", "db", "-o", "f.h5", *NETWORK, "--part", str(PART))
pytestmark = pytest.mark.filterwarnings("ignore::scqfaiss.errors.ScqWarning")


class Cut(Exception):
    """Stands for a kill between two blocks of images."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with db/, and the bytes of f.h5 made without a break."""
    folder = tmp_path_factory.mktemp("features")
    photos(folder / "db", EACH)
    make(folder)
    return folder, (folder / "f.h5").read_bytes()


@pytest.fixture
def whole(prepared):
    return prepared[1]


@pytest.fixture
def here(prepared, tmp_path, monkeypatch):
    """A folder with db/ alone; fails if anything is left behind but parts."""
    shutil.copytree(prepared[0] / "db", tmp_path / "db")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    left = [p.name for p in tmp_path.rglob("*") if ".tmp-" in p.name or p.name.endswith(".lock")]
    assert not left, left


def make(folder, cut=None, **options):
    """features_file as MAKE asks for it; cut: stop dead when so many images are done."""

    def progress(what, done, total, detail):
        if done == cut:
            raise Cut

    options = {
        "settings": {"size": "32"},
        "inference_options": InferenceOptions("squeezenet"),
        "part_rows": PART,
    } | options
    return features_file(folder / "db", folder / "f.h5", keys={}, progress=progress, **options)


def cut_off(folder, done=5 * PART, **options):
    """An unfinished run: its last part was computed, and not written."""
    with pytest.raises(Cut):
        make(folder, done, **options)


def parts(folder=Path()):
    return sorted((folder / "f.h5.parts").glob("part-*.safetensors"))


def wait_for(process, count):
    """Until the folder holds that many parts."""
    while process.poll() is None and len(parts()) < count:
        time.sleep(0.001)


# ---------------------------------------------------------------------------------------------------- killed and stopped
@pytest.mark.slow
def test_j1_killed_and_resumed(here, start, whole):
    for count in (2, 5, 9):
        process = subprocess.Popen(command(*MAKE, "--resume"), stderr=subprocess.DEVNULL, cwd=here)
        wait_for(process, count)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it ended before the kill"
        assert not Path("f.h5").exists()
        assert len(parts()) >= count
    found = start(*MAKE, "--resume")
    assert found.code == 0
    assert " of 15 parts were there" in found.out
    assert Path("f.h5").read_bytes() == whole
    assert sorted(os.listdir(here)) == ["db", "f.h5"]


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_j2_stopped_and_resumed(here, run, whole, sign):
    process = subprocess.Popen(command(*MAKE), stderr=subprocess.PIPE, text=True, cwd=here)
    wait_for(process, 2)
    process.send_signal(sign)
    _, err = process.communicate(timeout=50)
    assert process.returncode == 130, err
    done = PART * len(parts())
    assert err.splitlines()[-1] == f"Error: stopped at {done} of 120 images; continue with --resume"
    assert run(*MAKE, "--resume").code == 0
    assert Path("f.h5").read_bytes() == whole


@pytest.mark.slow
def test_j2_stopped_while_the_file_is_written(here, run, whole, monkeypatch):
    real = writing.write_features

    def interrupted(f, parts, *rest):
        def each():
            for k, part in enumerate(parts):
                if k == 3:
                    os.kill(os.getpid(), signal.SIGINT)
                yield part

        real(f, each(), *rest)

    monkeypatch.setattr(writing, "write_features", interrupted)
    found = run(*MAKE)
    assert (found.code, found.error) == (130, "Error: stopped at 120 of 120 images; continue with --resume")
    monkeypatch.undo()
    os.chdir(here)
    assert run(*MAKE, "--resume").code == 0
    assert Path("f.h5").read_bytes() == whole


@pytest.mark.slow
@pytest.mark.parametrize("cuts", [[1], [2, 3, 14], [15]])
def test_j1_cut_off_anywhere(here, whole, cuts):
    for k in cuts:
        cut_off(here, k * PART, resume=k > cuts[0])
        assert len(parts()) == k - 1
    make(here, resume=True)
    assert Path("f.h5").read_bytes() == whole
    assert sorted(os.listdir(here)) == ["db", "f.h5"]


@pytest.mark.slow
def test_j1_killed_with_the_file_in_place_and_the_parts_still_there(here, run, whole, monkeypatch):
    monkeypatch.setattr("scqfaiss.features.parts.Parts.clear", lambda self: None)
    make(here)
    monkeypatch.undo()
    os.chdir(here)
    parts()[3].unlink()
    assert run(*MAKE, "--resume").out.endswith(", 14 of 15 parts were there\n")
    assert Path("f.h5").read_bytes() == whole
    assert sorted(os.listdir(here)) == ["db", "f.h5"]


def test_j1_what_a_kill_left_of_writing_a_part_goes_too(here, run, whole):
    cut_off(here)
    (here / "f.h5.parts" / "part-4.safetensors.tmp-99999").write_bytes(b"half")
    (here / "f.h5.parts" / ".part-4.safetensors.lock").write_bytes(b"99999 written")
    (here / "f.h5.parts" / "part-9.safetensors.tmp-99999").write_bytes(b"half")
    assert run(*MAKE, "--resume").code == 0
    assert Path("f.h5").read_bytes() == whole
    assert sorted(os.listdir(here)) == ["db", "f.h5"]


@pytest.mark.slow
# --------------------------------------------------------------------------------------------------------------- damage
@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[:-20] + bytes([data[-20] ^ 1]) + data[-19:],
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"something else",
    ],
)
def test_j3_a_damaged_part_is_computed_again(here, run, whole, harm):
    cut_off(here)
    part = parts()[2]
    part.write_bytes(harm(part.read_bytes()))
    found = run(*MAKE, "--resume")
    assert found.code == 0
    assert found.warnings[-1] == "f.h5.parts: part 2 is damaged and is computed again"
    assert ", 3 of 15 parts were there" in found.out
    assert Path("f.h5").read_bytes() == whole


@pytest.mark.slow
# ------------------------------------------------------------------------------------------------------- another request
@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--dtype", "float16"), "dtype is float32 there and float16 here"),
        (("--set", "fit=pad"), "fit is crop there and pad here, network_sha256 is "),
        (("--precision", "bfloat16"), "precision is float32 there and bfloat16 here"),
        (("--part", "16"), "images of a part is 8 there and 16 here"),
    ],
)
def test_j4_another_request(here, run, arguments, said):
    cut_off(here)
    before = {p: p.read_bytes() for p in parts()}
    found = run(*MAKE, *arguments, "--resume")
    assert found.code == 2
    assert found.error.startswith(f"Error: f.h5.parts holds parts of another request: {said}")
    assert {p: p.read_bytes() for p in parts()} == before
    assert not Path("f.h5").exists()


@pytest.mark.slow
def test_j4_other_images(here, run, whole):
    from PIL import Image

    cut_off(here)
    last = here / "db" / max(COLOURS) / "p9.png"
    Image.fromarray(draw("red", 77)).save(last)  # of no finished part: nothing is known of it yet
    assert run(*MAKE, "--resume").code == 0
    assert Path("f.h5").read_bytes() != whole

    cut_off(here)
    first = here / "db" / min(COLOURS) / "p0.png"
    Image.fromarray(draw("red", 78)).save(first)
    found = run(*MAKE, "--resume")
    assert found.code == 2
    assert found.error.startswith("Error: f.h5.parts holds parts of another request: images 0 to 7 are ")
    last.unlink()
    assert "images is 120 there and 119 here" in run(*MAKE, "--resume").error


def test_j5_an_unfinished_file_is_not_begun_anew(here, run):
    cut_off(here)
    before = {p: p.read_bytes() for p in parts()}
    found = run(*MAKE)
    assert (found.code, found.error) == (
        2,
        "Error: f.h5.parts holds 4 parts of an unfinished file; continue with --resume, or delete it",
    )
    assert {p: p.read_bytes() for p in parts()} == before


def test_j5_nothing_to_resume(here, run, whole):
    found = run(*MAKE, "--resume")
    assert found.code == 0
    assert found.warnings[-1] == "f.h5.parts holds no part: the work starts at the beginning"
    assert Path("f.h5").read_bytes() == whole


@pytest.mark.slow
# ----------------------------------------------------------------------------------------------------------------- disk
def test_j6_no_room_for_the_file_keeps_the_parts(here, run, start, whole):
    Path("f.h5").write_bytes(b"before")
    found = start(*MAKE, limit=100_000)
    stay = "15 of 15 parts stay: make room, then the same command with --resume goes on"
    assert (found.code, found.error) == (4, f"Error: f.h5: grew past the largest file allowed here (ulimit -f); {stay}")
    assert Path("f.h5").read_bytes() == b"before"
    assert len(parts()) == 15
    assert run(*MAKE, "--resume").out.endswith(", 15 of 15 parts were there\n")
    assert Path("f.h5").read_bytes() == whole


@pytest.mark.slow
def test_j6_no_room_for_a_part(here, start):
    found = start(*MAKE, limit=10_000)
    assert found.code == 4
    assert found.error.endswith("f.h5.parts/part-0.safetensors: grew past the largest file allowed here (ulimit -f)")
    assert not parts() and not Path("f.h5").exists()


def test_j6_room_is_looked_for_first(here, run, monkeypatch):
    real = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=400_000))
    found = run(*MAKE)
    assert (found.code, found.error) == (4, "Error: f.h5: needs 516 kB, 400 kB free")
    assert sorted(os.listdir(here)) == ["db"]


def test_j6_a_file_in_the_place_of_the_folder(here, run):
    Path("f.h5.parts").write_bytes(b"mine")
    found = run(*MAKE)
    assert (found.code, found.error) == (4, f"Error: f.h5.parts: parts cannot be written in {here}/f.h5.parts")
    assert Path("f.h5.parts").read_bytes() == b"mine"
