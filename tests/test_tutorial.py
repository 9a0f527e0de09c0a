"""docs/tutorial.md, from the first line to the last, as a newcomer types it."""

import json
import re
import shlex
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
from faults.conftest import run  # noqa: F401
from serving.conftest import Process

import scqfaiss

# ruff: noqa: F811  (fixtures are imported by name)
PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


class Typed:
    """Runs blocks in order in the current folder. Commands run in this process, but for `serve`."""

    def __init__(self, run):
        self.run, self.space, self.answers, self.service = run, {}, [], None

    def python(self, text):
        if self.service is not None:
            text = text.replace("localhost:8080", f"127.0.0.1:{self.service.port}")
        exec(compile(text, str(PAGE), "exec"), self.space)

    def console(self, line):
        words = shlex.split(line.removeprefix("$ ").removeprefix("PYTHONPATH=. "))
        assert words[0] == "scqfaiss", line
        if words[1] == "serve":
            self.service = Process(
                [sys.executable, "-m", "scqfaiss", *words[1:], "--port", "0", "--log", "json"], Path("serve.log")
            )
            self.service.until(lambda: self.service.events("ready"))
            return
        result = self.run(*words[1:])
        assert result.code == 0, line + "\n" + result.err
        self.answers.append((words[1], result.out))

    def measured(self):
        """mAP of every evaluation so far."""
        return [float(re.search(r"mAP@[\d,]+ +([\d.]+)", out)[1]) for name, out in self.answers if name == "evaluate"]


@pytest.mark.slow
def test_the_tutorial_runs_as_it_stands(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    typed = Typed(run)
    try:
        for kind, text in BLOCKS:
            if kind == "python":
                typed.python(text)
            for line in text.splitlines() if kind == "console" else ():
                typed.console(line)
        _reloaded(typed.service.port)
    finally:
        sys.modules.pop("small", None)
        if typed.service is not None:
            assert typed.service.stop() == 0
            typed.service.process.stdout.close()
    labels, plain, digits = typed.measured()
    assert labels > 0.95 > 0.7 > plain and digits > 0.7
    space = typed.space
    found = space["I"][0].tolist()
    assert len(found) == 5 and set(found) <= set(space["oslo"])
    assert {space["topics"][i] for i in found} == {"flight"}
    (items,) = space["hits"]["items"]
    assert [item["label"] for item in items] == ["alarm"] * 5
    assert not {i for (row,) in [space["hits"]["ids"]] for i in row} & set(space["oslo"])
    assert scqfaiss.open("gallery.faissindex").ntotal == 1020


def _reloaded(port):
    """The server has noticed the rows that were appended."""
    deadline = time.monotonic() + 10
    while json.load(urlopen(f"http://127.0.0.1:{port}/v1/galleries/gallery"))["n"] != 1020:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_tutorial_is_short():
    assert len(PAGE.read_text().split()) < 1600  # ten minutes
