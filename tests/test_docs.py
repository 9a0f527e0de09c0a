"""What docs/production.md shows runs as it stands; what the other pages name is there."""

import json
import re
import shlex
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from faults.conftest import TINY, blobs, run, write_h5  # noqa: F401

import scqfaiss
from scqfaiss.cli import program as cli
from scqfaiss.errors import ScqWarning

# ruff: noqa: F811  (fixtures are imported by name)
PAGE = Path(__file__).parents[1] / "docs" / "production.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """The files that the page names."""
    monkeypatch.chdir(tmp_path)
    x, y = blobs(300, seed=1)
    ids = np.r_[1000:1200, 3000:3050, 70:73, 5000:5047]
    write_h5("train.h5", *blobs(300))
    write_h5("rows.h5", x[:200], ids=ids[:200])
    write_h5("others.h5", x[200:250], ids=ids[200:250])
    write_h5("database.h5", x, y, ids)  # every row that ever is in a gallery
    write_h5("new.h5", x[253:], ids=ids[253:])
    write_h5("labelled.h5", *blobs(20, seed=2))
    np.save("queries.npy", blobs(20, seed=2)[0])
    np.save("new.npy", x[250:253])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScqWarning)
        folding = ("--method", "pq", "--bits", "8", "--nbits", "4")
        for name, how in (("model", TINY), ("folding", folding)):
            assert cli.run(["train", "train.h5", "-o", f"{name}.safetensors", *how]) == 0
    for model, rows, name in (
        ("model", "rows", "gallery"),
        ("model", "others", "other"),
        ("folding", "rows", "folded"),
    ):
        assert cli.run(["export", f"{model}.safetensors", f"{rows}.h5", "-o", f"{name}.faissindex"]) == 0
    return tmp_path


def test_the_page_shows_what_it_should():
    assert {"python", "console", "cpp"} <= {kind for kind, _ in BLOCKS}
    for target in ("ivfpq", "pq", "fastscan", "buckets", "lift", "residual"):
        assert f"| `{target}`" in PAGE.read_text()


def test_every_block_runs_in_order(shop, run):
    space, lines = {}, 0
    try:
        for kind, text in BLOCKS:
            if kind == "python":
                exec(compile(text, str(PAGE), "exec"), space)
            elif kind == "console":
                for line in text.splitlines():
                    assert line.startswith("$ scqfaiss ")
                    result = run(*shlex.split(line)[2:])
                    assert (result.code, result.warnings) == (0, []), line + "\n" + result.err
                    lines += 1
                    if "--json" in line:
                        json.loads(result.out)
    finally:
        if "stop" in space:
            space["stop"].set()
            space["watcher"].join(10)
    assert lines == 5
    # 200 rows, and 47, less 2, and 3, less 2.
    assert (space["found"], space["total"]) == (2, 246)
    assert space["gallery"].refresh() or space["gallery"].ntotal == 246
    assert scqfaiss.open("both.faissindex").ntotal == 245 + 50
    assert space["I"].shape and space["vectors"].shape == (2, 4)
    assert 0 < space["distinct"] <= 1 and space["short"] == 0
    assert len(space["served"]) == 64 and not space["watcher"].is_alive()


def test_the_cpp_program_compiles(tmp_path):
    """Where a compiler and FAISS's headers are there; elsewhere, that it is shown."""
    (text,) = [text for kind, text in BLOCKS if kind == "cpp"]
    assert "faiss::read_index" in text and "SearchParametersIVF" in text and "int main" in text
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    probe = subprocess.run(
        [compiler, "-E", "-x", "c++", "-"], input="#include <faiss/IVFlib.h>", capture_output=True, text=True
    )
    if probe.returncode:
        pytest.skip("no headers of FAISS")
    (tmp_path / "search.cpp").write_text(text)
    done = subprocess.run(
        [compiler, "-std=c++20", "-fsyntax-only", "search.cpp"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------------- the other pages
ROOT = PAGE.parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]


def commands_of(text):
    """The lines of fenced blocks, continued ones joined, without what follows a #."""
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        if kind not in ("", "bash", "console"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            yield from re.split("&&", line.partition("  #")[0])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_commands_and_files_that_a_page_names_are_there(page):
    text, seen = page.read_text("utf-8"), 0
    for command in commands_of(text):
        words = shlex.split(command.replace("...", ""))
        if "scqfaiss" in words and words[0] != "pip":
            name, *rest = words[words.index("scqfaiss") + 1 :]
            found = cli.cli.commands[name]
            if hasattr(found, "commands"):  # a group
                found, rest = found.commands[rest[0]], rest[1:]
            options = {option for p in found.params for option in (*p.opts, *p.secondary_opts)}
            unknown = {word for word in rest if re.match("-(-|[a-z]$)", word)} - options
            assert not unknown, command
            seen += 1
    for path in re.findall(r"(?<![\w/])((?:docs|benchmarks|tools|tests|scqfaiss)/[\w/]+\.(?:md|py|toml|html))", text):
        assert (ROOT / path).is_file(), path
    assert seen or page.stem not in ("README", "images", "training")
