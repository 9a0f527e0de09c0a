"""The simulation of tail latency against cases whose answer is known."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner


@pytest.fixture
def tail(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    found = importlib.import_module("tail_latency")
    monkeypatch.setattr(found, "DRAWS", 20_000)
    return found


def test_known_cases(tail):
    made = lambda *how, **more: tail.searches(*how, np.random.default_rng(0), **more)  # noqa: E731
    same = np.full((3, 50), 2.0)
    assert np.allclose(made(same, 8, 1, 1.0, 0.0, 10.0, 0.5), 2.5)
    assert np.allclose(made(same, 8, 1, 1.0, 0.0, 10.0, 0.5, together=np.add), 16.5)
    # Of S shards none straggles with (1 - p)^S; a second replica helps unless both do.
    slow = made(same, 8, 1, 1.0, 0.1, 10.0, 0.0) > 2
    assert abs(slow.mean() - (1 - 0.9**8)) < 0.02
    slow = made(same, 8, 2, 1.0, 0.1, 10.0, 0.0) > 3
    assert abs(slow.mean() - (1 - 0.99**8)) < 0.02
    # Hard queries are hard in all shards: their spread does not make the longest of many longer.
    hard = np.tile(np.array([1.0] * 90 + [5.0] * 10), (4, 1))
    assert abs((made(hard, 64, 1, 1.0, 0.0, 10.0, 0.0) > 4.9).mean() - 0.1) < 0.02


def test_a_file_of_times(tail, tmp_path):
    rng = np.random.default_rng(1)
    times = rng.gamma(9.0, 1e-3, (4, 500))
    values = {"of_shards": times.tolist(), "merge": 0.0}
    values |= {"searches": times.max(0).tolist(), "one_core": times.sum(0).tolist()}
    (tmp_path / "t.json").write_text(json.dumps(values))
    done = CliRunner().invoke(tail.main, [str(tmp_path / "t.json"), "--shards", "4", "--shards", "64"])
    out = json.loads(done.stdout)
    assert [row["shards"] for row in out["simulated"]] == [4, 64]
    assert out["simulated"][0]["p50_ms"] < out["simulated"][1]["p50_ms"]
    for name in ("searches", "one_core"):
        assert all(abs(off) < 0.2 for off in out[name]["simulated_off_by"].values())
