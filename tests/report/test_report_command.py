"""`scqfaiss report`: files, exit codes, messages."""

import json
import re
import sys
from pathlib import Path

import pytest
from faults.conftest import run  # noqa: F401

from .conftest import comparison, scale

# ruff: noqa: F811  (fixtures are imported by name)


def refused(result, code, message):
    assert (result.code, result.error) == (code, f"Error: {message}")


@pytest.mark.slow
def test_a_page_of_everything(run, files):
    asked = ("report", "comparison.json", "scale.json", "training.json")
    result = run(*asked, "-o", "a.html", "--png", "charts")
    assert (result.code, result.warnings) == (0, [])
    done, missing = result.out.splitlines()
    assert re.fullmatch(r"a\.html: 3 results, 11 charts, [\d.]+ [kM]B; 11 PNG files in charts", done)
    assert missing == "missing: cifar10: lsq/raw/32 (out of time)"
    page = Path("a.html").read_bytes()
    assert len(page) < 3_000_000 and page.startswith(b"<!doctype html>")
    images = sorted(path.name for path in Path("charts").iterdir())
    assert len(images) == 11 and {"cifar10-map-bits.png", "scale-scale-time.png", "upstream-training.png"} <= {*images}
    assert all((Path("charts") / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for name in images)
    assert run(*asked, "-o", "b.html", "--png", "charts").code == 0
    assert Path("b.html").read_bytes() == page  # and over what is there
    assert not [path.name for path in Path().rglob(".*")]


def test_folders_titles_and_names_that_no_file_should_have(run, files, plain_charts):
    Path("some results").mkdir()
    Path("some results/results.json").write_text(json.dumps({**comparison(), "name": "../a b/<c>"}))
    # The page may lie beside the results that it is drawn from.
    result = run(
        "report", "some results", "some results", "-o", "some results/r.html", "--title", "My <page>", "--png", "p"
    )
    assert result.code == 0
    assert result.out.startswith("some results/r.html: 2 results, 2 charts, ")
    assert "<h1>My &lt;page&gt;</h1>" in Path("some results/r.html").read_text()
    assert sorted(p.name for p in Path("p").iterdir()) == ["a-b-c-2-map-bits.png", "a-b-c-map-bits.png"]


def test_a_message_is_a_line_for_each_part_that_is_missing(run, files, plain_charts):
    files(odd={**scale(), "name": "a\nb\u2028c\x1b[31m", "rows": [{"key": "k\n\n", "reason": "why\nnot"}]})
    result = run("report", "odd.json", "-o", "a.html")
    assert result.code == 0 and "\x1b" not in result.out
    first, *missing = result.out.splitlines()
    assert first.startswith("a.html: 1 result, ") and len(missing) == 4
    assert all(line.startswith("missing: a b c[31m: ") for line in missing) and missing[2].endswith(": k (why not)")
    files(many={**scale(), "rows": [{"key": f"k{i}", "reason": "no time"} for i in range(30)]})
    lines = run("report", "many.json", "-o", "a.html").out.splitlines()
    assert len(lines) == 22 and lines[-1] == "and 13 more"
    assert sum(line.startswith("missing: scale: ") for line in lines) == 20


def test_a_title_that_is_no_text(run, files, plain_charts):
    assert run("report", "scale.json", "-o", "a.html", "--title", "bad \udcff").code == 0
    assert "<h1>bad ?</h1>" in Path("a.html").read_text()


def test_nothing_missing_is_one_line(run, files, monkeypatch):
    from scqfaiss.report import page

    monkeypatch.setattr(page, "charts", lambda document: [])
    assert re.fullmatch(r"a\.html: 1 result, 0 charts, [\d.]+ kB\n", run("report", "scale.json", "-o", "a.html").out)


@pytest.mark.parametrize(
    "text, code, message",
    [
        ("", 3, "x.json is no results file: not a JSON object with a format and a kind, comparison, scale, training"),
        ('{"format": 1, "kind": "comp', 3, "x.json is no results file: not a JSON object with a format and a kind, "),
        ("[" * 10**5, 3, "x.json is no results file: not a JSON object with a format and a kind, "),
        ('{"format": 2, "kind": "scale"}', 2, "x.json: made by a newer scqfaiss: format 2, this version reads 1"),
        ('{"format": 1, "kind": "scale", "rows": [1]}', 3, "x.json: rows are not a list of objects with a key each"),
    ],
)
def test_results_that_cannot_be_read(run, files, text, code, message):
    Path("x.json").write_text(text)
    result = run("report", "scale.json", "x.json", "-o", "a.html")
    assert result.code == code and result.error.startswith(f"Error: {message}")
    assert not Path("a.html").exists()


def test_requests_that_cannot_be_met(run, files, plain_charts):
    before = sorted(Path().iterdir())
    refused(run("report"), 2, "Missing argument 'RESULTS...'.")
    refused(run("report", "scale.json"), 2, "Missing option '-o' / '--out'.")
    refused(run("report", "no.json", "-o", "a.html"), 2, "no.json: no such file")
    refused(run("report", ".", "-o", "a.html"), 2, ". holds no results.json")
    refused(run("report", "scale.json", "-o", "a.txt"), 2, "a.txt: these files end in .html; write a.html")
    result = run("report", "scale.json", "-o", "no/a.html")
    assert result.code == 4 and result.error.endswith("does not exist; create it first")
    refused(
        run("report", "scale.json", "-o", "a.html", "--png", "training.json"),
        4,
        "training.json: cannot create this folder (File exists)",
    )
    assert sorted(Path().iterdir()) == before


def test_results_are_not_written_over(run, files, plain_charts):
    Path("scale.html").write_bytes(Path("scale.json").read_bytes())
    refused(
        run("report", "scale.html", "-o", "scale.html"),
        2,
        "scale.html is an input of this command; choose another output",
    )


@pytest.mark.parametrize("library", ["jinja2", "matplotlib", "pydantic"])
def test_a_library_that_is_not_installed(run, files, monkeypatch, library):
    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == library:
                raise ModuleNotFoundError(f"No module named '{library}'", name=library)

    for name in [name for name in sys.modules if re.match(rf"scqfaiss\.(report|comparison)\b|{library}\b", name)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    result = run("report", "scale.json", "-o", "a.html")
    assert result.code == 2
    assert result.error == f'Error: {library} is not installed: pip install "scqfaiss[report]"'
