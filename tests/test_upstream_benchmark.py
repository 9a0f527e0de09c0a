"""The benchmark of training steps: both sides compute one loss, and what it writes is a document of results."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from scqfaiss.comparison.results import read_results
from scqfaiss.errors import ConfigError


@pytest.fixture
def upstream(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module("upstream")


def run(upstream, *words):
    done = CliRunner().invoke(upstream.main, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_prints_one_line_and_writes_a_training_document(upstream, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["upstream.py", "--out", str(tmp_path / "out")])
    printed = run(upstream, "--rounds", 3, "--batches", 8, "--out", tmp_path / "out")
    assert set(printed) == {
        "codebook_8_ours_rows_per_s",
        "codebook_8_plain_rows_per_s",
        "codebook_8_bare_rows_per_s",
        "codebook_8_ratio",
        "codebook_8_ours_to_bare",
        "feature_8_ours_rows_per_s",
        "feature_8_plain_rows_per_s",
        "feature_8_ratio",
    }
    found = read_results(tmp_path / "out")
    assert (found["kind"], found["seed"]) == ("training", 0)
    assert [(row["key"], row["what"], row["batch"], row["pairs"]) for row in found["rows"]] == [
        ("codebook-8", "codebook", 8, 3),
        ("feature-8", "feature", 8, 3),
    ]
    for row in found["rows"]:
        assert 0 < row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["ours_rows_per_s"] == printed[f"{row['what']}_8_ours_rows_per_s"]
        assert row["run"]["seed"] == 0
        assert row["run"]["command"] == "python benchmarks/upstream.py --out out"  # no folders of this machine


def test_ratios_are_taken_round_by_round(upstream):
    # A spell that slows both sides tenfold leaves the ratio of its round alone.
    seconds = {"ours": [1.0, 10.0, 1.0, 1.0, 1.0], "plain": [4.0, 40.0, 5.0, 6.0, 7.0]}
    printed, row = upstream.figures("feature", 2, seconds)
    assert (row["ratio_low"], row["ratio"], row["ratio_high"]) == (4.0, 5.0, 6.0)
    assert printed == {"feature_2_ours_rows_per_s": 2, "feature_2_plain_rows_per_s": 0, "feature_2_ratio": 6.0}


@pytest.mark.slow
def test_a_second_run_goes_into_the_same_document(upstream, tmp_path):
    run(upstream, "--rounds", 1, "--batches", "4", "--out", tmp_path)
    run(upstream, "--rounds", 1, "--batches", "4,6", "--out", tmp_path)
    keys = [row["key"] for row in read_results(tmp_path)["rows"]]
    assert keys == ["codebook-4", "feature-4", "codebook-6", "feature-6"]
    with pytest.raises(ConfigError, match="holds results with another seed"):
        run(upstream, "--rounds", 1, "--batches", "4", "--seed", 1, "--out", tmp_path)


@pytest.mark.parametrize("loss", ["plain_codebook_loss", "plain_feature_loss"])
def test_sides_that_differ_are_not_compared(upstream, monkeypatch, loss):
    plain = getattr(upstream, loss)
    monkeypatch.setattr(upstream, loss, lambda *args: 1.01 * plain(*args))
    step = upstream.codebook_step if loss == "plain_codebook_loss" else upstream.feature_step
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match="different losses"):
        step(8, 1)


@pytest.mark.parametrize("text", ["", "64,", "0", "-1", "6.5", "a"])
def test_batches_are_whole_numbers(upstream, text):
    done = CliRunner().invoke(upstream.main, ["--batches", text])
    assert done.exit_code == 2
    assert f"'{text}' is no list of whole numbers above 0" in done.stderr
