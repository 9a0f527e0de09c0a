"""SIGINT and SIGTERM at any moment: 130 and the old file, or 0 and the new one."""

import importlib.util
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import scqfaiss
from scqfaiss import files, signals
from scqfaiss.comparison.results import Results, read_results
from scqfaiss.demo import digits as demo
from scqfaiss.files import atomic_write
from scqfaiss.training import engine
from scqfaiss.training import fitting as training

from .conftest import TINY

TOOLS = Path(__file__).parents[2] / "tools"
NUMBERS = [signal.SIGINT, signal.SIGTERM]
COMMANDS = {
    "export": ("export", "m.safetensors", "database.h5", "-o", "g.faissindex", "--target", "buckets"),
    "append": ("append", "g.faissindex", "query.h5", "--model", "m.safetensors"),
    "remove": ("remove", "g.faissindex", "--ids", "1000,1001"),
    "merge": ("merge", "a.faissindex", "b.faissindex", "-o", "g.faissindex"),
    "search": ("search", "p.faissindex", "query.h5", "--model", "m.safetensors", "-o", "hits.h5"),
    "train": ("train", "train.h5", "-o", "m.safetensors", *TINY, "--seed", "7"),
}
THREE = ("--train", "train.h5", "--query", "query.h5", "--database", "database.h5")
TARGETS = {"search": "hits.h5", "train": "m.safetensors"}
pytestmark = pytest.mark.filterwarnings("ignore::scqfaiss.errors.ScqWarning")


class Left(BaseException):
    """Stands for the end of the process: its code, and what lay in the folder then."""

    def __init__(self, code):
        super().__init__(code)
        self.code = code
        self.litter = [name for name in os.listdir() if ".tmp-" in name or name.endswith(".lock")]


@pytest.fixture
def program(here, monkeypatch):
    """The handlers of the program in this process -> what they said."""
    before, said = {number: signal.getsignal(number) for number in NUMBERS}, []

    def leave(code):
        raise Left(code)

    monkeypatch.setattr(signals, "_state", signals._State())
    monkeypatch.setattr(signals.atexit, "register", lambda _: None)
    monkeypatch.setattr(signals, "_say", said.append)
    monkeypatch.setattr(os, "_exit", leave)
    signals.take()
    yield said
    for number, handler in before.items():
        signal.signal(number, handler)


def sending(monkeypatch, owner, name, number):
    """Have the first call of owner.name send a signal to this process before it does anything."""
    real, sent = getattr(owner, name), []

    def call(*given, **named):
        if not sent:
            sent.append(True)
            os.kill(os.getpid(), number)
        return real(*given, **named)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("what", COMMANDS)
def test_before_the_rename_130_and_the_old_file(program, run, here, monkeypatch, what, number):
    """While the content is synced, the last slow moment before the rename."""
    half_galleries(run)
    target = here / TARGETS.get(what, "g.faissindex")
    old = target.read_bytes() if target.exists() else None
    names = sorted(os.listdir(here))
    sending(monkeypatch, os, "fsync", number)
    with pytest.raises(Left) as left:
        run(*COMMANDS[what])
    assert (left.value.code, left.value.litter) == (130, [])
    assert program == ["Error: stopped; nothing was left half-written\n"]
    assert (target.read_bytes() if target.exists() else None) == old
    assert sorted(os.listdir(here)) == names


@pytest.mark.parametrize("what", COMMANDS)
def test_from_the_rename_on_0_and_the_new_file(program, run, here, monkeypatch, what):
    """The signal is there before the rename is called, and waits for it."""
    half_galleries(run)
    target = here / TARGETS.get(what, "g.faissindex")
    old = target.read_bytes() if target.exists() else None
    sending(monkeypatch, os, "replace", signal.SIGINT)
    found = run(*COMMANDS[what])
    assert found.code == 0 and found.out.startswith(target.name if what != "search" else "20 queries")
    assert program == []
    assert target.read_bytes() != old


@pytest.mark.parametrize("point, done", [("_take", False), ("_sync_folder", True), ("_let_go", True)])
def test_around_it(program, run, here, monkeypatch, point, done):
    """While the lock is taken, while the folder is synced after the rename, and while the lock is removed."""
    old = (here / "g.faissindex").read_bytes()
    sending(monkeypatch, files, point, signal.SIGTERM)
    if done:
        assert run(*COMMANDS["export"]).code == 0
    else:
        with pytest.raises(Left) as left:
            run(*COMMANDS["export"])
        assert (left.value.code, left.value.litter) == (130, [])
    assert ((here / "g.faissindex").read_bytes() == old) is not done


def half_galleries(run):
    """a.faissindex and b.faissindex, which a merge takes."""
    for name, rows in (("a", "database.h5"), ("b", "query.h5")):
        assert run("export", "m.safetensors", rows, "-o", f"{name}.faissindex").code == 0
    signals._state.finished = None


def test_a_rename_that_fails_is_no_work_done(program, here, monkeypatch):
    def refuse(*_):
        os.kill(os.getpid(), signal.SIGINT)
        raise OSError(5, "input/output error")

    with pytest.raises(Left) as left, atomic_write("x") as output:
        output.prepare(lambda f: f.write(b"new"))
        monkeypatch.setattr(os, "replace", refuse)
        output.place()
    assert (left.value.code, left.value.litter) == (130, [])


def test_of_nested_files_the_first_reserved_counts(program, here):
    with pytest.raises(Left) as left, atomic_write("outer"), atomic_write("inner") as inner:
        inner.write(lambda f: f.write(b"a part"))
        os.kill(os.getpid(), signal.SIGINT)
    assert (left.value.code, left.value.litter) == (130, [])
    assert Path("inner").read_bytes() == b"a part" and not Path("outer").exists()


def test_whoever_asks_twice_need_not_wait_for_the_end(program, here):
    with pytest.raises(Left) as left, atomic_write("x") as output:
        output.write(lambda f: f.write(b"new"))
        os.kill(os.getpid(), signal.SIGINT)
        assert program == []
        os.kill(os.getpid(), signal.SIGINT)
    assert (left.value.code, left.value.litter) == (0, [])


def test_what_was_prepared_and_took_no_place_is_removed(here):
    with pytest.raises(KeyboardInterrupt), atomic_write("x") as output:
        output.prepare(lambda f: f.write(b"new"))
        raise KeyboardInterrupt
    assert not Path("x").exists() and not list(here.glob("x.tmp-*"))


def test_a_second_signal_during_the_last_words(program, here, monkeypatch):
    monkeypatch.setattr(signals, "_say", lambda text: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Left) as left, atomic_write("x"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert (left.value.code, left.value.litter) == (130, [])


def test_words_come_from_the_innermost_that_has_any(program, here):
    def broken():
        raise OSError

    with pytest.raises(Left), signals.saying(lambda: "outer"), signals.saying(lambda: None), signals.saying(broken):
        os.kill(os.getpid(), signal.SIGINT)
    assert program == ["Error: outer\n"]


@pytest.mark.parametrize("point, code", [("fsync", 130), ("replace", 0)])
def test_the_demo_is_done_with_its_last_file(program, run, here, monkeypatch, point, code):
    def rows(folder, say, progress):
        with atomic_write(folder / "model.safetensors") as output:  # a training of its own inside
            output.write(lambda f: f.write(b"a model"))
        sending(monkeypatch, os, point, signal.SIGINT)
        return []

    monkeypatch.setattr(demo, "rows_of_table", rows)
    if code:
        with pytest.raises(Left) as left:
            run("demo", "-o", "d")
        assert (left.value.code, os.listdir("d")) == (130, ["model.safetensors"])
    else:
        assert run("demo", "-o", "d").code == 0
        assert sorted(os.listdir("d")) == ["model.safetensors", "results.json"]


MEASURED = (*THREE, "--out", "out")
GROWING = {
    "attack": ("attack", "m.safetensors", "query.h5", "database.h5", "--attacks", "random", "--out", "out"),
    "compare": (
        "compare",
        *MEASURED,
        *"--methods scq --baselines pq --bits 8 --lists 1 --draws 0 --budget 0.01".split(),
    ),
    "compare-growth": (
        "compare-growth",
        *MEASURED,
        *"--rows 200,300 --targets ivfpq --queries 40 --budget 0.05".split(),
    ),
}


@pytest.mark.parametrize("what, number", [*zip(GROWING, NUMBERS), ("compare-growth", signal.SIGTERM)])
def test_results_that_grow_end_with_130_and_the_command_goes_on(program, run, here, monkeypatch, what, number):
    """After the first row is in its place the command is not done: a signal ends it, and what was measured is kept."""
    with monkeypatch.context() as patch:
        real, rows = Results.save, []

        def save(self, **more):
            if rows:
                os.kill(os.getpid(), number)
            real(self, **more)
            rows[:] = [row["key"] for row in self.document["rows"]]

        patch.setattr(Results, "save", save)
        with pytest.raises(Left) as left:
            run(*GROWING[what])
    assert (left.value.code, left.value.litter) == (130, []) and rows
    assert program == ["Error: stopped; the same command goes on from what it has measured\n"]
    assert [row["key"] for row in read_results(Path("out"))["rows"]] == rows
    signals._state.__init__()
    signals.take()
    assert run(*GROWING[what]).code == 0
    found = [row["key"] for row in read_results(Path("out"))["rows"]]
    assert set(rows) < set(found)


def test_a_training_with_checkpoints_says_how_to_go_on(program, run, here, monkeypatch):
    """Behind its steps, where the handler that waits for the end of a step is gone."""
    sending(monkeypatch, training, "outcome", signal.SIGTERM)
    with pytest.raises(Left) as left:
        run(*COMMANDS["train"], "--batch-size", "60", "--checkpoint-every", "2")
    assert (left.value.code, left.value.litter) == (130, [])
    assert program == ["Error: stopped; continue with --resume\n"]
    assert Path("m.checkpoints").is_dir()
    assert run(*COMMANDS["train"], "--batch-size", "60", "--resume").code == 0


def test_a_signal_after_the_last_look_of_a_stage_is_not_lost(tmp_path):
    running = engine.Engine(None, checkpoints=object())
    with pytest.raises(KeyboardInterrupt), running._signals() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_leaves_the_files_of_its_parent_alone(program, here):
    with atomic_write("x") as output:
        child = os.fork()
        if not child:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        assert Path(".x.lock").exists()
        output.write(lambda f: f.write(b"new"))


# ------------------------------------------------------------------------------------------------- processes of their own
IMPORTING = """
import os, runpy, sys
class Sender:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Sender())
sys.argv = ["scqfaiss", *{arguments!r}]
runpy.run_module("scqfaiss", run_name="__main__")
"""


def script(text, **values):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = text.format(**values)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "module, number",
    [
        ("click", signal.SIGINT),
        ("numpy", signal.SIGTERM),
        ("torch", signal.SIGINT),
        pytest.param("torch.nn", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("sympy.core", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("sympy.core", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("h5py", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_while_modules_are_imported(here, untouched, module, number):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not there")
    arguments = list(COMMANDS["train"])
    done = script(IMPORTING, module=module, number=int(number), arguments=arguments)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "Error: stopped; nothing was left half-written\n"
    untouched()


LATE = """
import atexit, os, runpy, sys
class Last:
    def __init__(self):
        self.kill, self.me = os.kill, os.getpid()
    def __del__(self):
        for number in (2, 15):
            self.kill(self.me, number)
sys.last = Last()  # goes with the sys module, behind everything else
sys.argv = ["scqfaiss", *{arguments!r}]
import scqfaiss.signals
scqfaiss.signals.take()
atexit.register(os.kill, os.getpid(), {number})
runpy.run_module("scqfaiss", run_name="__main__")
"""


@pytest.mark.parametrize("arguments, code", [(["--version"], 0), (["info", "missing.h5"], 2)])
def test_while_python_ends(here, arguments, code):
    """In the functions called at exit, and once Python has given up its handlers."""
    done = script(LATE, arguments=arguments, number=15)
    assert done.returncode == code, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("what", ["train", "export", "append"])
def test_real_signals_at_random_moments(tmp_path, what, monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    import interrupt

    found = interrupt.interrupt(tmp_path, what, count=6, rows=5_000)
    assert found["wrong"] == []
    assert sum(found["found"].values()) == 6


def test_what_was_ignored_stays_ignored(program, monkeypatch):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what runs in the background
    monkeypatch.setattr(signals, "_state", signals._State())
    signals.take()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is signals._handle


def test_both_ways_to_start_it_take_signals_first():
    text = Path(scqfaiss.__file__).with_name("__main__.py").read_text()
    assert text.index("signals.take()") < text.index("import program")
    assert "scqfaiss = scqfaiss.__main__:main" in (Path(scqfaiss.__file__).parents[1] / "setup.cfg").read_text()
