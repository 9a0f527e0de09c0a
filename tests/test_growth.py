"""Time and memory against rows, scqfaiss compare-growth: every target is measured, and an interrupted run goes on."""

import json
import math

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from close import assert_as_good
from conftest import blobs

import scqfaiss
from scqfaiss.cli.commands import cli
from scqfaiss.cli.program import run as run_command
from scqfaiss.codebooks import Codebooks
from scqfaiss.comparison import growth, growth_codes, growth_fits, measuring, options
from scqfaiss.comparison.results import read_results
from scqfaiss.errors import ConfigError
from scqfaiss.targets import REGISTRY

# So few rows fill no codebook, and lists of theirs say little.
pytestmark = pytest.mark.filterwarnings("ignore::scqfaiss.errors.ScqWarning")
TARGETS = ["ivfpq", "ivfpq-lists", "pq", "buckets", "fastscan", "lift", "residual"]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(growth_codes, "PIECE", 1500)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows of 4 classes around the same 4 points."""
    folder = tmp_path_factory.mktemp("data")
    x, y = blobs(1000)
    for name, rows in (("train", slice(400)), ("query", slice(400, 460)), ("database", slice(460, 1000))):
        with h5py.File(folder / f"{name}.h5", "w") as f:
            f["features"], f["labels"] = x[rows], y[rows]
    return folder


def files(data):
    return [f"--{name}={data / name}.h5" for name in ("train", "query", "database")]


def run(data, out, *words):
    words = ["compare-growth", *files(data), "--out", str(out), "--queries", "40", "--budget", "0.05", *words]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def test_every_target_of_the_package_is_measured():
    assert list(options.DEFAULT_CASES) == TARGETS == list(options.CASES)[:7]
    assert {target for target, *_ in options.CASES.values()} == set(REGISTRY)


@pytest.mark.slow
def test_rows_fits_and_extrapolation(data, tmp_path):
    done = run(data, tmp_path / "out", "--rows", "2500,1200", "--baseline")
    found = read_results(tmp_path / "out")
    assert found["kind"] == "scale"
    names = [*TARGETS, "faiss-ivfpq", "faiss-ivfpq-l2"]
    assert [row["key"] for row in found["rows"]] == [f"{name}-{n}" for n in (1200, 2500) for name in names]
    for row in found["rows"]:
        assert row["ms"] > 0 and row["single_ms"] > 0 and row["build_seconds"] > 0
        # Codes alone take 4 bytes a row.
        assert row["memory"] > 4 * row["rows"] and row["disk"] > 4 * row["rows"]
        assert row["recall"] >= (0.95 if "lists" in row["key"] or "faiss" in row["key"] else 1)
        assert set(row["run"]["data"]) == {"train", "query", "database"}
        assert row["target"].startswith("faiss-ivfpq") or 1 < row["distinct"] <= row["rows"]
    lists = {row["key"]: (row["nlist"], row["nprobe"]) for row in found["rows"] if "nlist" in row}
    assert lists["ivfpq-1200"] == lists["lift-1200"] == (1, 1)
    assert lists["ivfpq-lists-1200"][0] == lists["faiss-ivfpq-1200"][0] == 128 == growth.list_count(1200)
    assert set(found["fits"]) == set(found["extrapolation"]["targets"]) == set(names)
    assert found["extrapolation"]["rows"] == 10**9
    for name in names:
        far = found["extrapolation"]["targets"][name]
        for what in ("ms", "single_ms", "build_seconds"):
            fitted = found["fits"][name][what]
            assert far[what] == pytest.approx(fitted["factor"] * 1e9 ** fitted["exponent"], rel=1e-3)
        # Never below the codes and ids, as the fit over small galleries is.
        memory = next(row["memory"] for row in found["rows"] if row["key"] == f"{name}-2500")
        assert far["memory"] == pytest.approx(memory * 1e9 / 2500)
    assert "drawn with replacement" in found["how"] and all(text.endswith(".") for text in found["assumptions"])
    printed = json.loads(done.stdout.splitlines()[-1])
    assert printed["buckets_exponent"] == found["fits"]["buckets"]["ms"]["exponent"]
    assert printed["ivfpq_lists_rows"] == 2500 and printed["buckets_recall"] == 1
    assert not (tmp_path / "out" / "work").exists()


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_what_is_there(data, tmp_path, monkeypatch):
    out, work = tmp_path / "out", tmp_path / "work"
    measured, really = [], growth.measure

    def breaks(made, name, rows, *rest):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append((name, rows))
        return really(made, name, rows, *rest)

    monkeypatch.setattr(growth, "measure", breaks)
    words = [
        "compare-growth",
        *files(data),
        "--out",
        str(out),
        "--work",
        str(work),
        "--rows",
        "1000,1600",
        "--targets",
        "pq,lift",
    ]
    words += ["--queries", "40", "--budget", "0.05"]
    assert CliRunner().invoke(cli, words).exit_code == 1
    held = read_results(out)
    assert [row["key"] for row in held["rows"]] == ["pq-1000", "lift-1000"]
    assert held["how"]
    made = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    assert len([path for path in made if path.suffix == ".npy"]) == 6  # z, wide, additive of two pieces
    monkeypatch.setattr(growth, "measure", lambda *args: measured.append(args[1:3]) or really(*args))
    run(data, out, "--work", str(work), "--rows", "1000,1600", "--targets", "pq,lift")
    assert measured == [("pq", 1000), ("lift", 1000), ("pq", 1600), ("lift", 1600)]
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()} == made
    after = read_results(out)
    assert after["rows"][:2] == held["rows"]
    assert set(after["fits"]) == {"pq", "lift"}


@pytest.mark.slow
def test_other_rows_do_not_go_into_the_same_results(data, tmp_path):
    run(data, tmp_path, "--rows", "1000", "--targets", "pq")
    with pytest.raises(ConfigError, match="holds results with another noise"):
        run(data, tmp_path, "--rows", "1000", "--targets", "pq", "--noise", "0.2")


@pytest.mark.slow
def test_the_first_rows_are_the_same_whatever_is_asked_for(data, tmp_path):
    """And codes made later from stored z are those made with it."""
    asked = options.GrowthOptions(
        **{name: data / f"{name}.h5" for name in ("train", "query", "database")},
        out=tmp_path,
        bits=16,
        members=1,
    )
    work = [growth_codes.Work(tmp_path / name, asked, print) for name in "ab"]
    work[0].make(3100, {"wide", "narrow"})
    work[1].make(1000, {"wide"})
    work[1].make(1000, {"wide", "narrow"})
    for name in ("z", "wide", "narrow"):
        np.testing.assert_array_equal(work[0].load(name, 3100)[:1000], work[1].load(name, 1000))
    z, model = work[0].load("z", 3100), work[0].models["narrow"]
    assert model.codebooks.shape == scqfaiss.codebooks.Shape("product", 4, 4, 4)
    assert_as_good(work[0].load("narrow", 3100), model.assign(z), model.codebooks, z)
    assert len(np.unique(z, axis=0)) == 3100  # noise makes every row a new one


def test_fit_finds_the_exponent_of_a_power_law():
    rows = np.array([1e5, 1e6, 1e7])
    found = growth_fits.fit(rows, 3e-4 * rows**0.4)
    assert found["exponent"] == 0.4 and found["error"] == 0
    assert found["factor"] == pytest.approx(3e-4)
    assert "error" not in growth_fits.fit(rows[:2], rows[:2])


def test_fit_error_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    rows = np.logspace(5, 7, 9)
    values = rows**0.5 * np.exp(0.1 * rng.standard_normal(9))
    (slope, constant), covariance = np.polyfit(np.log(rows), np.log(values), 1, cov=True)
    found = growth_fits.fit(rows, values)
    assert found["exponent"] == pytest.approx(slope, abs=1e-4)
    assert found["factor"] == pytest.approx(math.exp(constant))
    assert found["error"] == pytest.approx(math.sqrt(covariance[0, 0]), abs=1e-4)


def test_lists_grow_with_the_root_of_the_rows():
    rows = [10, 1023, 1024, 10**5, 316_228, 10**6, 3_162_278, 10**7, 2**60]
    assert [growth.list_count(n) for n in rows] == [8, 64, 128, 1024, 2048, 2048, 4096, 8192, 2**32]


def test_nprobe_is_the_least_power_of_two_that_finds_enough():
    shares = {1: 0.5, 2: 0.9, 4: 0.951, 8: 1.0}
    assert growth.least_nprobe(shares.__getitem__, 64) == (4, 0.951)
    assert growth.least_nprobe(lambda nprobe: 0.0, 8) == (8, 0.0)


@pytest.fixture
def clock(monkeypatch):
    """[wall, running]: seconds that pass only when a test says so."""
    clock = [0.0, 0.0]
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(measuring.time, "thread_time", lambda: clock[1])
    return clock


def test_slow_searches_get_smaller_batches_within_the_budget(clock):
    def search(z):
        clock[0] += 0.125 * len(z)
        clock[1] += 0.125 * len(z)

    z = np.zeros((200, 2), np.float32)
    found = measuring.timed_within(search, z, 16.0)
    assert found == {"ms": 125.0, "single_ms": 125.0, "batch": 25, "repeats": 5, "single_repeats": 8, "core": 1.0}
    found = measuring.timed_within(search, z, 0.001)  # the least there is
    assert (found["batch"], found["repeats"], found["single_repeats"]) == (16, 1, 1)


def test_a_disturbed_timing_is_taken_again_and_the_least_disturbed_stands(clock, monkeypatch):
    tries = []

    def calls(search, z, batch, budget, most):
        tries.append(batch)
        core = [0.5, 0.7, 0.6][(len(tries) - 1) // 2]
        return [1.0 / core] * 5, core

    monkeypatch.setattr(measuring, "_calls", calls)
    found = measuring.timed_within(lambda z: None, np.zeros((200, 2), np.float32), 8.0)
    assert len(tries) == 6 and (found["core"], found["single_ms"]) == (0.7, 1429.0)
    tries.clear()
    monkeypatch.setattr(measuring, "QUIET", 0.5)
    assert measuring.timed_within(lambda z: None, np.zeros((200, 2), np.float32), 8.0)["core"] == 0.5
    assert len(tries) == 2


def test_ties_count_as_found():
    """Exact is by scores: any of the rows that share the 10th one's code will do."""
    codebooks = Codebooks("product", np.eye(2, dtype=np.float32)[None])
    best = np.full((1, 10), 1.0, np.float32)
    hits = np.arange(10, 20)[None]
    scores = growth.scored(
        np.array([[1.0, 0.0]], np.float32), hits, lambda rows: codebooks.decode(np.zeros((10, 1), int))
    )
    assert growth.recall(best, scores) == 1


@pytest.mark.parametrize(
    "words, message",
    [
        (["--targets", "flat"], "'flat' is no target measured here; needs some of ivfpq, ivfpq-lists"),
        (["--rows", "1e6"], "'1e6' is no list of whole numbers above 0"),
        (["--rows", "9"], "9 rows are fewer than the 10 that are looked for"),
        (["--bits", "12"], "12 is no multiple of 8"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(data, tmp_path, words, message, capsys):
    assert run_command(["compare-growth", *files(data), "--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
