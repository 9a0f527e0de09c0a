"""Faults F1 to F5 and F9: a training that is killed, stopped, resumed, misled or deserted."""

import json
import os
import signal
import socket
import subprocess
import time

import numpy as np
import pytest

import scqfaiss
from scqfaiss.cli import program as cli
from scqfaiss.errors import CheckpointError, ScqWarning
from scqfaiss.training import checkpoints
from scqfaiss.training.checkpoints import Checkpoints

from .conftest import blobs, command, write_h5

# Seven steps an epoch, sixty in all, over two stages with epochs.
SMALL = ("train", "train.h5", "-o", "m.safetensors", "--bits", "8", "--nbits", "4", "--encoder", "linear")
SMALL += ("--batch-size", "43", "--epochs", "8", "--set", "codebooks.copies=1", "--set", "quantizer=arsq")
KEPT = (*SMALL, "--checkpoint-every", "5")
pytestmark = pytest.mark.filterwarnings("ignore::scqfaiss.errors.ScqWarning")


class Cut(Exception):
    """Stands for a kill between two steps."""


def train(folder, cut=None, resume=True, every=7, **settings):
    """A training of 64 steps that is cut off after step `cut`, if that is given."""
    steps = [0]

    def progress(what, done, total, detail):
        steps[0] += what in ("features", "codebooks") and detail != ""
        if steps[0] == cut:
            raise Cut

    x, y = blobs(300)
    asked = {"bits": 8, "nbits": 4, "epochs": 8, "batch_size": 75, "encoder": "linear", "quantizer": "arsq"} | settings
    return scqfaiss.train(
        x,
        y,
        checkpoints=folder,
        checkpoint_every=every,
        resume=resume and folder is not None,
        progress=progress,
        **asked,
    )


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory):
    """The model file of SMALL, trained without a break."""
    folder = tmp_path_factory.mktemp("whole")
    arguments = [str(made / "train.h5"), "-o", str(folder / "m.safetensors")]
    assert cli.run(["train", *arguments, *SMALL[4:]]) == 0
    return (folder / "m.safetensors").read_bytes()


def cut_off(folder, *cuts, **settings):
    for cut in cuts:
        with pytest.raises(Cut):
            train(folder, cut, **settings)


@pytest.mark.slow
# ------------------------------------------------------------------------------------------------------------------- F1
@pytest.mark.parametrize(
    "settings", [{}, {"lists": 16}, {"recipe": "reference", "clip_norm": 1.0, "precision": "bfloat16"}]
)
def test_f1_cut_off_anywhere_and_resumed(tmp_path, settings):
    whole = train(None, **settings).to_bytes()
    rng = np.random.default_rng(0)
    for name, cuts in enumerate([*rng.integers(8, 64, (3, 1)).tolist(), [8, 9, 30, 10]]):
        folder = tmp_path / str(name)
        cut_off(folder, *cuts, **settings)
        assert Checkpoints(folder).steps()
        assert train(folder, **settings).to_bytes() == whole, cuts


@pytest.mark.slow
def test_f1_killed_and_resumed(here, start, whole):
    before = (here / "m.safetensors").read_bytes()
    process = subprocess.Popen(command(*KEPT, "--resume"), stderr=subprocess.DEVNULL, cwd=here)
    folder = here / "m.checkpoints"
    while process.poll() is None and not Checkpoints(folder).steps():
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it ended before the kill"
    assert (here / "m.safetensors").read_bytes() == before
    assert start(*KEPT, "--resume").code == 0
    assert not folder.exists()
    assert (here / "m.safetensors").read_bytes() == whole
    assert not [p.name for p in here.iterdir() if ".tmp-" in p.name or p.name.endswith(".lock")]


@pytest.mark.slow
def test_f1_a_finished_training_leaves_no_checkpoint(run, here):
    assert run(*KEPT).code == 0
    assert not (here / "m.checkpoints").exists()


# ------------------------------------------------------------------------------------------------------------------- F2
@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_f2_stopped_and_resumed(here, run, whole, sign):
    slow = (*SMALL, "--metrics", "m.jsonl")
    process = subprocess.Popen(command(*slow), stderr=subprocess.PIPE, text=True, cwd=here)
    while process.poll() is None and not ((here / "m.jsonl").exists() and (here / "m.jsonl").read_bytes()):
        time.sleep(0.001)
    process.send_signal(sign)
    _, err = process.communicate(timeout=50)
    assert process.returncode == 130, err
    (step,) = Checkpoints(here / "m.checkpoints").steps()
    assert err.splitlines()[-1] == f"Error: stopped at step {step:,}; continue with --resume"
    assert run(*slow, "--resume").code == 0
    assert (here / "m.safetensors").read_bytes() == whole
    lines = [json.loads(line) for line in (here / "m.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(7, 113, 7))  # each epoch once, those before the stop too


@pytest.mark.slow
# ------------------------------------------------------------------------------------------------------------------- F3
@pytest.mark.parametrize(
    "change, said",
    [
        (("--bits", "16"), "bits is 8 there and 16 here"),
        (("--seed", "3"), "seed is 0 there and 3 here"),
        (("--set", "omega=0.2"), "setting omega is 0.1 there and 0.2 here"),
        (("--clip-norm", "1"), "clip_norm is 0.0 there and 1.0 here"),
    ],
)
def test_f3_another_configuration(run, here, untouched, change, said):
    interrupted(here)
    found = run(*KEPT, *change, "--resume")
    assert found.code == 2
    assert found.error == f"Error: m.checkpoints holds step 60 of another training: {said}"
    untouched(here / "m.checkpoints")


def test_f3_other_rows(run, here):
    interrupted(here)
    (here / "train.h5").unlink()
    write_h5(here / "train.h5", *blobs(300, seed=5), np.arange(300))
    found = run(*KEPT, "--resume")
    assert found.code == 2
    assert "of another training: training rows is " in found.error


def test_f3_what_cannot_change_the_result_may_differ(run, here):
    interrupted(here)
    assert run(*SMALL, "--checkpoint-every", "9", "--metrics", "m.jsonl", "--resume").code == 0


def test_an_unfinished_training_is_not_overwritten(run, here):
    interrupted(here)
    found = run(*KEPT)
    assert (found.code, found.error) == (
        2,
        "Error: m.checkpoints holds step 60 of an unfinished training; continue with --resume, or delete it",
    )


def test_resume_without_a_checkpoint_starts_at_the_beginning(run, here):
    found = run(*KEPT, "--resume")
    assert found.code == 0
    assert "m.checkpoints holds no checkpoint: training starts at the beginning" in found.warnings


@pytest.mark.slow
def test_f3_other_contents_of_a_file_that_a_setting_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    asked = {"cfa": "reference", "d": 4, "class_vectors": "v.npy", "target": "plain"}
    np.save("v.npy", rng.standard_normal((4, 5)))
    cut_off(tmp_path / "c", 9, **asked)
    np.save("v.npy", rng.standard_normal((4, 5)))
    with pytest.raises(scqfaiss.ConfigError, match=r"another training: contents of v\.npy is "):
        train(tmp_path / "c", **asked)


def test_f3_other_names_of_the_classes(run, here):
    interrupted(here)
    write_h5("named.h5", *blobs(300), np.arange(300), names=["a", "b", "c", "d"])
    os.replace("named.h5", "train.h5")
    found = run(*KEPT, "--resume")
    assert found.code == 2
    assert "class names is [] there and ['a', 'b', 'c', 'd'] here" in found.error


@pytest.mark.slow
def test_f3_rows_are_held_or_streamed_as_they_were(tmp_path):
    """What memory is free decides the order of rows: a resumed training keeps that of the first."""
    from scqfaiss import options
    from scqfaiss.data import ArraySource
    from scqfaiss.training import fitting, planning

    class Blocks(ArraySource):
        block_rows = 16

    x, y = blobs(300)
    request = options.TrainOptions(bits=8, nbits=4, encoder="linear", batch_size=75, epochs=3)

    def fit(memory, cut=None, resume=False):
        def progress(what, done, total, detail):
            if what == "features" and done == cut:
                raise Cut

        source = Blocks(x, y)
        traces = options.RunOptions(checkpoints=tmp_path / "c", checkpoint_every=2, resume=resume)
        return fitting.fit(planning.make_plan(request, source), run=traces, memory=memory, progress=progress).to_bytes()

    held = fit(None)
    Checkpoints(tmp_path / "c").clear()
    streamed = fit(16 * 4 * 16 * 9)
    Checkpoints(tmp_path / "c").clear()
    assert held != streamed
    with pytest.raises(Cut):
        fit(16 * 4 * 16 * 9, cut=5)
    assert fit(None, resume=True) == streamed


# ------------------------------------------------------------------------------------------------------------------- F4
def test_f4_newest_damaged(run, here):
    interrupted(here)
    newest, before = Checkpoints(here / "m.checkpoints").steps()
    flip(here / f"m.checkpoints/step-{newest}.safetensors")
    found = run(*KEPT, "--resume")
    assert found.code == 0
    assert f"m.checkpoints: step-{newest} is damaged, resumed from step-{before}" in found.warnings


def test_f4_all_damaged(run, here, untouched):
    interrupted(here)
    for path in (here / "m.checkpoints").iterdir():
        flip(path)
    found = run(*KEPT, "--resume")
    assert found.code == 3
    assert "no sound checkpoint is left" in found.error


def interrupted(here):
    """Checkpoints of steps 55 and 60 of KEPT in m.checkpoints."""
    from scqfaiss import options
    from scqfaiss.training import interface

    def progress(what, done, total, detail):
        if what == "codebooks" and done == 5:
            raise Cut

    settings = {"codebooks.copies": "1", "quantizer": "arsq"}
    request = options.TrainOptions(bits=8, nbits=4, encoder="linear", batch_size=43, epochs=8, settings=settings)
    with pytest.raises(Cut):
        traces = options.RunOptions(checkpoint_every=5)
        interface.train_file("train.h5", "m.safetensors", request, run=traces, keys={}, progress=progress)
    assert Checkpoints(here / "m.checkpoints").steps() == [60, 55]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


# ------------------------------------------------------------------------------------------------------------------- F5
def test_f5_divergence_names_the_last_step_kept(tmp_path):
    with pytest.raises(
        scqfaiss.ConfigError,
        match=r"^loss is (NaN|infinite) at step \d+ \(stage features.*; step \d+ is the last kept$",
    ):
        train(tmp_path / "c", every=1, **{"features.lr": 2e9})


# -------------------------------------------------------------------------------------------------- what must not be lost
@pytest.mark.parametrize("name", ["train.h5", "query.h5", "g.faissindex"])
def test_metrics_replace_no_file_that_holds_anything_else(run, here, untouched, name):
    untouched()
    found = run(*SMALL[:3], "x.safetensors", *SMALL[4:], "--metrics", name)
    assert (found.code, found.error) == (2, f"Error: {name} is there and holds no metrics; choose another name")
    untouched()


@pytest.mark.slow
def test_metrics_of_an_older_training_are_replaced(run, here):
    for _ in range(2):
        assert run(*SMALL, "--metrics", "m.jsonl").code == 0
    assert len((here / "m.jsonl").read_text().splitlines()) == 16


def test_checkpoints_have_a_folder_of_their_own_from_the_start(run, here, untouched):
    untouched()
    out = (*SMALL[:3], "x.safetensors", *SMALL[4:])
    found = run(*out, "--checkpoints", "g.faissindex")
    assert (found.code, found.error) == (4, "Error: g.faissindex: checkpoints cannot be written in g.faissindex")
    found = run(*out, "--checkpoints", "x.safetensors")
    assert (found.code, found.error) == (
        2,
        "Error: x.safetensors is the model; choose another folder for checkpoints",
    )
    untouched()


@pytest.mark.slow
def test_a_full_disk_loses_checkpoints_not_the_training(run, here, whole, monkeypatch):
    from scqfaiss.errors import WriteError
    from scqfaiss.files import AtomicFile

    write = AtomicFile.write

    def refuse(self, fill, check=None, nbytes=0):
        if self.path.name.startswith("step-"):
            raise WriteError(f"{self.name}: no space left, 0 bytes free")
        write(self, fill, check, nbytes)

    monkeypatch.setattr(AtomicFile, "write", refuse)
    found = run(*KEPT)
    assert found.code == 0 and "no space left, 0 bytes free; training goes on, and will try again" in found.warnings[0]
    assert (here / "m.safetensors").read_bytes() == whole


# ------------------------------------------------------------------------------------------------------------------- F9
def processes(here, n, *arguments):
    """n processes of one training, as torchrun starts them."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shared = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": here}
    return [
        subprocess.Popen(command(*arguments), env=os.environ | shared | {"RANK": str(r), "LOCAL_RANK": str(r)}, **pipes)
        for r in range(n)
    ]


def losses(path):
    return [(line["stage"], *line["loss"].values()) for line in map(json.loads, path.read_text().splitlines())]


@pytest.mark.slow
def test_two_processes_train_as_one(here, run):
    whole = ("--batch-size", "300", "--epochs", "20", "--set", "input_dropout=0", "--set", "codebooks.copies=1")
    asked = (*SMALL[:2], *SMALL[4:-8], *whole, "--set", "quantizer=arsq")
    assert run(*asked, "-o", "one.safetensors", "--metrics", "one.jsonl").code == 0
    both = processes(here, 2, *asked, "-o", "two.safetensors", "--metrics", "two.jsonl")
    answers = [p.communicate(timeout=50) for p in both]
    assert [p.returncode for p in both] == [0, 0], answers
    assert answers[0][0].startswith("two.safetensors: scq") and answers[1][0] == ""
    one, two = losses(here / "one.jsonl"), losses(here / "two.jsonl")
    assert len(one) == len(two) == 40  # a step an epoch
    for a, b in zip(one, two):
        assert a[0] == b[0]
        np.testing.assert_allclose(a[1:], b[1:], atol=1e-4)


@pytest.mark.slow
def test_two_processes_stopped_within_an_epoch_and_resumed(here):
    asked = (*SMALL[:2], *SMALL[4:], "--metrics", "m.jsonl")
    both = processes(here, 2, *asked, "-o", "whole.safetensors")
    assert [p.communicate(timeout=50)[0] != "" for p in both] == [True, False]
    both = processes(here, 2, *asked, "-o", "two.safetensors", "--checkpoint-every", "3")
    while not Checkpoints(here / "two.checkpoints").steps():
        assert [p.poll() for p in both] == [None, None]
        time.sleep(0.001)
    both[1].send_signal(signal.SIGTERM)
    answers = [p.communicate(timeout=50)[1] for p in both]
    assert [p.returncode for p in both] == [130, 130], answers
    steps = Checkpoints(here / "two.checkpoints").steps()
    assert all("stopped at step" in a for a in answers)
    while steps[0] % 7 == 0:  # at the end of an epoch: the one before it, then
        (here / f"two.checkpoints/step-{steps.pop(0)}.safetensors").unlink()
    both = processes(here, 2, *asked, "-o", "two.safetensors", "--resume")
    assert [p.communicate(timeout=50)[0] != "" for p in both] == [True, False]
    assert (here / "two.safetensors").read_bytes() == (here / "whole.safetensors").read_bytes()
    lines = [json.loads(line)["step"] for line in (here / "m.jsonl").read_text().splitlines()]
    assert lines == list(range(7, 113, 7))


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_f9_a_process_is_lost(here, lost):
    both = processes(here, 2, *KEPT[:-4], "--epochs", "100000", "--metrics", "m.jsonl", "--checkpoint-every", "50")
    try:
        while not Checkpoints(here / "m.checkpoints").steps():
            assert [p.poll() for p in both] == [None, None], both[0].communicate()[1] + both[1].communicate()[1]
            time.sleep(0.01)
        both[lost].kill()
        out, err = both[1 - lost].communicate(timeout=50)
        both[lost].communicate()
    finally:
        for process in both:
            process.kill()  # they would train for hours
    assert (both[1 - lost].returncode, out) == (5, "")
    assert f"process {1 - lost} of 2 lost process {lost}; --resume goes on from the last checkpoint" in err
    assert Checkpoints(here / "m.checkpoints").steps()
    for left in (
        *here.glob(".*.lock"),
        *here.glob("*.tmp-*"),
    ):  # of the one that was killed; the next training takes them
        left.unlink()


def test_tree_of_a_checkpoint_and_back():
    import torch

    tree = {
        "a": [torch.arange(6).view(2, 3), (torch.tensor(2.5), None, True)],
        0: {"x": 1.5, 3: "text"},
        "b": torch.zeros(0, 4, dtype=torch.float64),
        "c": torch.tensor([True, False]),
    }
    tensors = {}
    back = checkpoints.restore_tree(json.loads(json.dumps(checkpoints.flatten(tree, "t", tensors))), tensors)
    assert list(back) == list(tree) and back[0] == tree[0] and back["a"][1][1:] == (None, True)
    for new, old in ((back["a"][0], tree["a"][0]), (back["a"][1][0], tree["a"][1][0]), (back["b"], tree["b"])):
        assert new.shape == old.shape and new.dtype == old.dtype and torch.equal(new, old)
    with pytest.raises(TypeError, match=r"^t is a set, which no checkpoint holds$"):
        checkpoints.flatten({1}, "t", {})


def test_only_the_newest_are_kept(tmp_path):
    kept = Checkpoints(tmp_path / "c", lambda: {"seed": 0}, every=2)
    for step in (2, 4, 6):
        kept.save(step, {"n": step})
    assert kept.steps() == [6, 4]
    assert kept.newest() == (6, {"n": 6})
    os.utime(kept.path(4), (2**32, 2**32))  # clocks decide nothing
    assert kept.newest() == (6, {"n": 6})
    (tmp_path / "c/step-8.safetensors").write_bytes(b"")
    with pytest.warns(ScqWarning, match=r"^c: step-8 is damaged, resumed from step-6$"):
        kept.newest()
    for step in (4, 6):
        kept.path(step).write_bytes(b"junk")
    with pytest.raises(CheckpointError, match=r"^c: step-8, step-6, step-4 damaged, no sound checkpoint is left"):
        kept.newest()
    kept.clear()
    assert not (tmp_path / "c").exists()
