"""Files of results: nothing measured is lost, nothing foreign is taken for ours."""

import hashlib
import json

import pytest

from scqfaiss.comparison.results import FILE, FORMAT, Results, file_hash, machine, read_results
from scqfaiss.errors import ConfigError, DataError
from scqfaiss.files import atomic_write

FACTS = {"seed": 0, "data": {"train": {"sha256": "ab"}}, "left_out": ("dog", "ship")}


def opened(path, kind="comparison", facts=FACTS, command="first"):
    """Results of a slot that lives on: what a script that holds it does."""
    with atomic_write(path) as output:
        return Results(output, kind, "name", command, facts)


def test_every_row_is_on_disk_before_the_next_and_a_second_run_goes_on(tmp_path):
    path = tmp_path / FILE
    results = opened(path)
    results.add({"key": "a", "map": 0.5})
    assert [row["key"] for row in read_results(path)["rows"]] == ["a"]
    results.add({"key": "b"})
    again = opened(path, command="second")
    assert "a" in again and "b" in again and "c" not in again
    again.add({"key": "a", "map": 0.7})  # measured anew: in the same place
    found = read_results(tmp_path)
    assert [row["key"] for row in found["rows"]] == ["a", "b"] and found["rows"][0]["map"] == 0.7
    assert found["command"] == "second" and found["format"] == FORMAT and found["left_out"] == ["dog", "ship"]


@pytest.mark.parametrize("facts", [FACTS | {"seed": 1}, FACTS | {"data": {}}])
def test_results_of_other_data_or_settings_are_not_mixed(tmp_path, facts):
    opened(tmp_path / FILE).add({"key": "a"})
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(ConfigError, match=r"another (seed|data); choose another --out"):
        opened(tmp_path / FILE, facts=facts)
    with pytest.raises(ConfigError, match="another kind"):
        opened(tmp_path / FILE, kind="scale")
    assert (tmp_path / FILE).read_bytes() == before


def test_a_figure_that_is_no_number_is_not_written(tmp_path):
    results = opened(tmp_path / FILE)
    results.add({"key": "a"})
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        results.add({"key": "b", "map": float("nan")})
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": 1}',
        b'{"format": 1, "kind": "other"}',
        b'{"format": "1", "kind": "scale"}',
        b'{"format": 1, "kind": "scale", "rows": {}}',
        b'{"format": 1, "kind": "scale", "rows": [{}]}',
        b'{"format": 1, "kind": "scale", "kind": "scale", "rows": []}',
        b"\xff\xfe",
    ],
)
def test_what_is_no_results_file_is_refused(tmp_path, text):
    (tmp_path / FILE).write_bytes(text)
    with pytest.raises(DataError, match=r"results\.json"):
        read_results(tmp_path)


def test_missing_and_newer_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no results\.json"):
        read_results(tmp_path)
    with pytest.raises(ConfigError, match="no such file"):
        read_results(tmp_path / "other.json")
    (tmp_path / FILE).write_text(json.dumps({"format": FORMAT + 1, "kind": "scale", "rows": []}))
    with pytest.raises(ConfigError, match=f"newer scqfaiss: format {FORMAT + 1}"):
        read_results(tmp_path)


def test_machine_and_hashes(tmp_path):
    found = machine()
    assert found["cores"] >= 1 and found["memory"] > 1 << 28 and found["cpu"]
    assert {"python", "torch", "faiss", "numpy"} <= set(found["versions"])
    (tmp_path / "a").write_bytes(b"rows")
    assert file_hash(tmp_path / "a") == hashlib.sha256(b"rows").hexdigest()
    folder = file_hash(tmp_path)
    (tmp_path / "b").write_bytes(b"")
    assert file_hash(tmp_path) != folder
    (tmp_path / "a.npy").write_bytes(b"rows")
    pattern = file_hash(tmp_path / "*.npy")
    (tmp_path / "b.npy").write_bytes(b"rows")
    assert file_hash(tmp_path / "*.npy") != pattern
