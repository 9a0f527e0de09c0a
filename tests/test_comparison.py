"""scqfaiss compare: measures against slow twins, FAISS's own codes against FAISS's own scores, and the command itself."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import pytest
from click.testing import CliRunner

from scqfaiss import faiss_calls
from scqfaiss.arrays import Labels
from scqfaiss.cli.commands import cli
from scqfaiss.cli.program import run as run_command
from scqfaiss.comparison import compare, models, rows, unknown
from scqfaiss.comparison.faiss_codes import build, lists_for, read_coding, takes
from scqfaiss.comparison.measuring import footprint, latency
from scqfaiss.comparison.ranking import Coding, Task, hits_map, hits_precision, hits_recall, ranking, shared
from scqfaiss.comparison.selection import best_baseline, best_ours, fastest, pair, unknown_means
from scqfaiss.data.writing import write_rows
from scqfaiss.demo import digits
from scqfaiss.evaluation import measures
from scqfaiss.evaluation.ranking import Relevance, Words, measure
from scqfaiss.evaluation.ties import LEVELS, precision_at_levels
from scqfaiss.files import atomic_write
from scqfaiss.training.interface import train


def made(n=400, nq=12, d=8, C=4, multilabel=False, seed=0):
    rng = np.random.default_rng(seed)
    xb, xq = (rng.normal(size=(k, d)).astype(np.float32) for k in (n, nq))
    if multilabel:
        yb, yq = (Labels((rng.random((k, C)) < 0.4).astype(np.uint8), C) for k in (n, nq))
    else:
        yb, yq = (Labels(rng.integers(0, C, k), C) for k in (n, nq))
    return Task(xq, xb, yq, yb, n, 50)


def coded(task, K=16, seed=1):
    """One codebook of K words, so that codes tie."""
    rng = np.random.default_rng(seed)
    codebooks = rng.normal(size=(K, task.xb.shape[1])).astype(np.float32)
    codes = rng.integers(0, K, (len(task.xb), 1)).astype(np.uint8)
    words = Words.of(codes)
    return Coding(task.xq, task.xb, words, codebooks[words.codes[:, 0]], codes, K)


@pytest.mark.parametrize("multilabel", [False, True])
def test_ranking_is_that_of_rows_in_random_order(multilabel):
    task = made(multilabel=multilabel)
    coding = coded(task)
    found, kth = ranking(task, coding)
    rng = np.random.default_rng(0)
    x = coding.decoded[coding.words.inverse].astype(np.float64)
    maps, firsts = [], []
    hot_q, hot_b = task.queries.multi_hot().astype(int), task.database.multi_hot().astype(int)
    for q, z in enumerate(task.xq.astype(np.float64)):
        scores = x @ z
        for _ in range(200):
            order = np.lexsort((rng.random(len(x)), -scores))
            hits = (hot_b @ hot_q[q] > 0)[order]
            precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
            maps.append((precision * hits).sum() / max(hits.sum(), 1))
            firsts.append((hot_b @ hot_q[q] > 0)[order[:10]].mean())
        assert kth[q] == pytest.approx(np.sort(scores)[-10], rel=1e-5)
    assert found["map"] == pytest.approx(np.mean(maps), abs=0.004)
    assert found["precision_at_k"]["10"] == pytest.approx(np.mean(firsts), abs=0.01)
    assert found["mse"] == pytest.approx(((x - task.xb) ** 2).sum(1).mean(), rel=1e-5)
    assert coding.usage() == [np.bincount(coding.codes[:, 0], minlength=16).tolist()]


def test_precision_where_recall_reaches_a_level():
    rng = np.random.default_rng(3)
    hits = (rng.random(300) < 0.3).astype(np.int64)
    hits = np.concatenate([hits, np.ones(100 - hits.sum() % 50, np.int64)])
    total = int(hits.sum())
    found = precision_at_levels(np.ones(len(hits), np.int64), hits)
    places = np.flatnonzero(hits)
    for level, value in zip(LEVELS, found):
        wanted = level * total
        if wanted >= 1 and abs(wanted - round(wanted)) < 1e-9:  # between two relevant rows it lies between
            assert value == pytest.approx(round(wanted) / (places[round(wanted) - 1] + 1))
    assert found[0] == pytest.approx(1 / (places[0] + 1))
    # A tie of everything: the share of relevant rows, at every level.
    tied = precision_at_levels(np.array([40]), np.array([10]))
    assert tied[LEVELS * 10 > 1] == pytest.approx(0.25)
    # The first of them is expected before the fourth place: the mean of 1 / rank over many orders.
    order = rng.permuted(np.tile(np.arange(40) < 10, (20_000, 1)), axis=1)
    assert tied[0] == pytest.approx((1 / (order.argmax(1) + 1)).mean(), abs=0.01)
    assert not precision_at_levels(np.array([5, 5]), np.array([0, 0])).any()


def test_lists_of_hits_against_plain_loops():
    task = made()
    coding = coded(task)
    _, kth = ranking(task, coding)
    rng = np.random.default_rng(5)
    I = np.stack([rng.permutation(len(task.xb))[:50] for _ in task.xq])
    I[0, 20:] = -1
    maps = []
    for q, row in enumerate(I):
        right = [i >= 0 and task.database.y[i] == task.queries.y[q] for i in row]
        hits, total = 0, 0.0
        for rank, one in enumerate(right, 1):
            hits += one
            total += one * hits / rank
        maps.append(total / min(50, int((task.database.y == task.queries.y[q]).sum())))
    assert hits_map(task, I) == pytest.approx(np.mean(maps))
    same = [[i >= 0 and task.database.y[i] == task.queries.y[q] for i in row[:10]] for q, row in enumerate(I)]
    assert hits_precision(task, I) == pytest.approx(np.mean(same))
    # The codes' own first ten are found whole, in whatever order ties stand; others are not.
    scores = task.xq.astype(np.float64) @ coding.decoded[coding.words.inverse].T.astype(np.float64)
    best = np.argsort(-scores, axis=1)[:, :10]
    assert hits_recall(coding, best, kth) == 1
    worst = np.argsort(scores, axis=1)[:, :10]
    assert hits_recall(coding, worst, kth) == 0
    half = np.concatenate([best[:, :5], worst[:, :5]], 1)
    assert hits_recall(coding, half, kth) == 0.5
    assert shared(best, best)["10"] == 1 and shared(best, worst)["10"] == 0


LEVELS_OF = {
    "ivf": [(0, 8)],
    "pq": [(8, 1), (32, 1)],
    "opq": [(8, 1), (32, 8)],
    "ivfpq": [(8, 8), (32, 8)],
    "rq": [(8, 1), (32, 1)],
    "ivfrq": [(8, 8), (32, 8)],
    "lsq": [(8, 1), (16, 8)],
    "fastscan": [(8, 1), (32, 1)],
    "rabitq": [(72, 1), (72, 8), (256, 8)],
}


@pytest.mark.slow
@pytest.mark.parametrize("method", LEVELS_OF)
@pytest.mark.parametrize(("d", "unit"), [(16, False), (30, True)])
def test_codes_read_back_from_faiss_rank_as_faiss_does(method, d, unit):
    task = made(n=600, d=d)
    if unit:
        faiss.normalize_L2(task.xb)
    for bits, lists in LEVELS_OF[method]:
        assert takes(method, bits, lists)
        built = build(method, task.xb, bits, lists, 0, 600)
        assert ("(L2)" in built.factory) == (lists > 1 and not unit)
        coding = read_coding(method, built.index, bits, task.xq, task.xb)
        columns = {"fastscan": bits // 4, "ivf": 1}.get(method, bits // 8)
        assert coding.codes.shape == (600, columns) and coding.codes.max() < coding.K
        if method != "rabitq":
            assert all(len(np.unique(column)) > 1 for column in coding.codes.T)  # no codebook without a dimension
        if lists > 1:
            ivf = faiss.extract_index_ivf(built.index)
            ivf.nprobe = lists
            assert len(set(coding.words.inverse.tolist())) == len(coding.decoded) > 1
            norms = np.linalg.norm(faiss_calls.stored_rows(faiss.downcast_index(ivf.quantizer)), axis=1)
            if method in ("ivfpq", "ivfrq", "ivf"):  # spherical k-means for rows of length 1 alone
                assert np.allclose(norms, 1, atol=1e-5) == unit
        D, I = built.index.search(task.xq, 10)
        found = coding.scores_of(I) - D
        if method == "rabitq":  # a projection that takes the mean away changes all scores of a query alike
            found -= found.mean(1, keepdims=True)
        loose = method == "fastscan"  # its tables are rounded to 8 bits
        np.testing.assert_allclose(found, 0, rtol=0, atol=0.1 if loose else 2e-5 * max(1, np.abs(D).max()))
        _, kth = ranking(task, coding)
        assert hits_recall(coding, I, kth) >= (0.9 if loose else 1)


def test_the_codes_that_faiss_has_at_a_length_and_number_of_lists():
    """Lists cost no byte: IVFPQ of one list is PQ, and a code of 0 bits is a list."""
    methods = tuple(LEVELS_OF)
    assert [m for m in methods if takes(m, 8, 1)] == ["pq", "opq", "rq", "lsq", "fastscan"]
    assert [m for m in methods if takes(m, 8, 64)] == ["opq", "ivfpq", "ivfrq", "lsq"]
    assert [m for m in methods if takes(m, 64, 64)] == ["opq", "ivfpq", "ivfrq", "lsq", "rabitq"]
    assert [m for m in methods if takes(m, 0, 64)] == ["ivf"] and not any(takes(m, 0, 1) for m in methods)


def test_lists_alone_are_their_centroids():
    task = made(n=300, d=6)
    built = build("ivf", task.xb, 0, 5, 0, 300)
    ivf = faiss.extract_index_ivf(built.index)
    centroids = faiss_calls.stored_rows(faiss.downcast_index(ivf.quantizer))
    coding = read_coding("ivf", built.index, 0, task.xq, task.xb)
    nearest = ((task.xb[:, None].astype(np.float64) - centroids) ** 2).sum(2).argmin(1)
    assert built.factory == "IVF5(L2),centroids" and coding.codes[:, 0].tolist() == nearest.tolist()
    np.testing.assert_array_equal(coding.decoded[coding.words.inverse], centroids[nearest])


def test_a_baseline_that_cannot_be_says_why():
    x = np.zeros((200, 8), np.float32)
    with pytest.raises(ValueError, match="200 rows cannot train 256 codewords"):
        build("pq", x, 8, 1, 0, 300)
    with pytest.raises(ValueError, match="8 codebooks cannot share d=4"):
        build("pq", np.zeros((300, 4), np.float32), 64, 1, 0, 300)
    with pytest.raises(ValueError, match="300 rows cannot train a rotation of d=512"):
        build("opq", np.zeros((600, 512), np.float32), 8, 1, 0, 300)
    with pytest.raises(ValueError, match="codes of RaBitQ have 9 bytes or more"):
        build("rabitq", np.zeros((300, 4), np.float32), 56, 1, 0, 300)
    with pytest.raises(ValueError, match="300 rows cannot train 301 lists"):
        build("ivfpq", np.zeros((300, 4), np.float32), 8, 301, 0, 300)
    nine = build("rabitq", made(d=16).xb, 64, 4, 0, 400)
    assert nine.factory == "PCAR8,IVF4(L2),RaBitQ (9 bytes)" and faiss.extract_index_ivf(nine.index).code_size == 9
    assert [lists_for(n) for n in (10, 1000, 54_000, 1_000_000)] == [1, 16, 1024, 4096]


def test_percentiles_and_footprint(tmp_path):
    calls = []
    found = latency(lambda x: calls.append(x.shape), np.zeros((5, 3), np.float32), 4, 1, 0.0)
    assert set(calls) == {(4, 3)} and len(calls) >= 7 and 0 < found["p50"] <= found["p95"] <= found["p99"]
    index = faiss.IndexFlatL2(64)
    index.add(np.zeros((20_000, 64), np.float32))
    faiss.write_index(index, str(tmp_path / "flat.index"))
    held = footprint(tmp_path / "flat.index")
    assert held["disk"] == (tmp_path / "flat.index").stat().st_size
    assert 20_000 * 64 * 4 <= held["memory"] <= 1.05 * 20_000 * 64 * 4 and held["open_ms"] > 0


@pytest.fixture
def short(monkeypatch):
    """Trainings of a comparison in a few epochs: what is measured of their models is the same."""
    for module in (models, unknown):
        monkeypatch.setattr(module, "train", partial(train, epochs=3))


@pytest.fixture(autouse=True)
def one_footprint(monkeypatch):
    """Only the first index of a test is opened in a process of its own, which takes most of a second."""
    found = {}

    def once(path, *rest):
        if not found:
            found.update(footprint(path, *rest))
        return found | {"disk": path.stat().st_size}

    monkeypatch.setattr(rows, "footprint", once)


def write_parts(folder):
    """The digits as files, with a quarter of the queries -> their arrays."""
    parts = digits.write_parts(folder)
    x, labels, ids = parts["query"]
    parts["query"] = x[::4], labels.take(slice(None, None, 4)), ids[::4]
    x, labels, ids = parts["query"]
    with atomic_write(folder / "query.h5") as output:
        output.write(lambda f: write_rows(f, x.astype(np.float16), labels.y, ids))
    return parts


def words(folder, out, *more):
    return [*(f"--{name}={folder / name}.h5" for name in ("train", "query", "database")), "--out", str(out), *more]


def run(*asked):
    return CliRunner().invoke(cli, ["compare", *words(*asked)])


QUICK = ("--map-rows=60", "--budget=0.01", "--image-shape=8x8", "--draws=0")


def read(out):
    return json.loads((out / "results.json").read_text())


@pytest.mark.slow
def test_the_command_writes_results_and_goes_on(tmp_path, short):
    write_parts(tmp_path)
    asked = (*QUICK, "--bits=8", "--methods=label", "--baselines=ivfpq,pq", "--lists=1,12", "--containers=pq,ivfpq")
    done = run(tmp_path, tmp_path / "out", *asked, "--spaces=raw")
    assert done.exit_code == 0, done.output
    document = read(tmp_path / "out")
    ours = {"label/trained/pq", "label/trained/ivfpq", "label/trained/ivfpq 16 lists"}
    theirs = {"flat/raw/faiss", "ivfpq/raw/8 in 12 lists/faiss", "pq/raw/8/faiss"}
    assert {row["key"] for row in document["rows"]} == ours | theirs
    assert document["lists"] == [1, 12]
    assert all(row["lists"] == (12 if "in 12 lists" in row["key"] else 1) for row in document["rows"])
    for row in document["rows"]:
        assert row["run"]["data"].keys() == {"train", "query", "database"} and row["run"]["seed"] == 0
        assert row["ms"]["1"]["one"]["p50"] > 0 and row["bytes"]["disk"] > 0 and row["points"]
        assert 0 < row["map"] <= 1
        assert row["neighbours"]["raw"].keys() == {"1", "10", "100"}
    assert best_ours(document, 8) is None and pair(document) == (None, None)
    base = next(row for row in document["rows"] if row["method"] == "ivfpq")
    points = {point["nprobe"]: point for point in base["points"]}
    assert set(points) == {1, 2, 4, 8, 12} and points[12]["recall"] == 1 and points[1]["recall"] < 1
    assert base["nlist"] == 12 and base["nprobe"] in points
    assert sum(base["usage"][0]) == 997 and len(base["plane"]["features"]) == 60
    assert fastest(document, "ivfpq", "raw", 8, 12)[1]["recall"] >= 0.95

    again = run(tmp_path, tmp_path / "out", *asked, "--spaces=raw")
    assert again.exit_code == 0 and "mAP" not in again.output  # nothing is measured twice
    more = run(tmp_path, tmp_path / "out", *asked)  # the embedding as well
    assert more.exit_code == 0 and more.output.count("mAP") == 3, more.output
    document = read(tmp_path / "out")
    assert document["embedding"] == {"method": "label", "bits": 8, "lists": 1}
    trained = [row for row in document["rows"] if row["role"] == "baseline" and row["space"] == "trained"]
    assert {row["method"] for row in trained} == {"ivfpq", "pq"}


@pytest.mark.parametrize("C, draw, out", [(10, 0, [0, 1]), (10, 4, [8, 9]), (10, 5, [0, 1]), (6, 2, [4, 5])])
def test_draws_of_few_classes_go_through_all_of_them(C, draw, out):
    classes = np.arange(C) * 2
    assert unknown.drawn(classes, draw).tolist() == [2 * k for k in out]


def test_no_draw_is_measured_twice():
    assert [unknown.distinct(C) for C in (6, 8, 10)] == [3, 4, 5] and unknown.distinct(150) > 1000
    for C in (6, 8, 10):
        draws = [tuple(unknown.drawn(np.arange(C), draw)) for draw in range(unknown.distinct(C))]
        assert len(set(draws)) == len(draws)


def test_draws_of_many_classes():
    drawn = [unknown.drawn(np.arange(150), draw) for draw in (0, 1)]
    assert [len(set(out.tolist())) for out in drawn] == [30, 30] and set(drawn[0]) != set(drawn[1])
    assert drawn[0].tolist() == unknown.drawn(np.arange(150), 0).tolist()


def test_means_over_draws_of_what_every_draw_has():
    maps = [
        {"auto": {"unseen": 0.2, "seen": 0.6, "all": 0.5}, "pq": {"unseen": 0.3}},
        {"auto": {"unseen": 0.3, "seen": 0.8, "all": 0.7}},
    ]
    found = unknown_means({"unknown": {"draws": [{"maps": m} for m in maps]}})
    assert found.keys() == {"auto"} and found["auto"]["unseen"] == pytest.approx((0.25, 0.5**0.5 / 10))
    assert found["auto"]["seen"] == pytest.approx((0.7, 2**0.5 / 10))
    other = [{"bits": 8, "maps": {"auto": {"unseen": 0.9, "seen": 0.9, "all": 0.9}}}] + [
        {"bits": 16, "maps": m} for m in maps
    ]
    assert unknown_means({"unknown": {"draws": other}}) == found  # of the codes that were measured last
    assert unknown_means({}) == unknown_means({"unknown": None}) == unknown_means({"unknown": {"draws": []}}) == {}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_draws_are_measured_one_by_one_and_go_on(tmp_path, short):
    """Each figure anew from the model of the draw: by plain sorting, the mean over the orders of ties aside."""
    parts = write_parts(tmp_path)
    asked = (*QUICK[:-1], "--bits=8", "--lists=1", "--methods=scq", "--baselines=,", "--spaces=raw", "--containers=pq")
    asked = (*asked, "--content-bits=16")
    assert run(tmp_path, tmp_path / "out", *asked, "--draws=1").exit_code == 0
    first = read(tmp_path / "out")["unknown"]
    done = run(tmp_path, tmp_path / "out", *asked, "--draws=2")
    assert done.exit_code == 0, (done.output, done.exception)
    assert (
        done.output.count("unseen classes, draw") == 1
        and "queries of classes that the training has not seen" in done.output
    )
    held = read(tmp_path / "out")["unknown"]
    other = [word.replace("--methods=scq", "--methods=label") for word in asked]
    assert run(tmp_path, tmp_path / "out", *other, "--draws=2").exit_code == 0
    assert read(tmp_path / "out")["unknown"] == held  # another command has nothing to measure, and takes nothing away
    assert held["reason"] is None and held["draws"][0] == first["draws"][0] and len(held["draws"]) == 2
    row = held["draws"][1]
    assert row["left_out"] == ["2", "3"] and (row["bits"], row["content_bits"], row["lists"]) == (8, 16, 1)
    (xt, yt, _), (xq, yq, _), (xb, yb, _) = (parts[name] for name in ("train", "query", "database"))
    order = np.random.default_rng(0).permutation(len(xb))
    xb, yb = xb[order].astype(np.float16).astype(np.float32), yb.y[order]
    xq, kept = xq.astype(np.float16).astype(np.float32), ~np.isin(yt.y, [2, 3])
    y = np.unique(yt.y[kept], return_inverse=True)[1]
    xt = xt.astype(np.float16).astype(np.float32)
    model = unknown.trained(xt[kept], y, xb, unknown.Setting("scq", 8, 16, 1, 0))
    decoded, rare = model.codebooks.decode(model.encode(xb)), np.isin(yq.y, [2, 3])
    for name, known in (("auto", None), ("told", np.where(rare, 0.0, 1.0))):
        scores = model.embed(xq, known=known) @ decoded.T
        precisions = []
        for s, label in zip(scores, yq.y):
            hits = (yb == label)[np.argsort(-s, kind="stable")]
            precisions.append((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())
        unseen, seen = (np.asarray(precisions)[rows].mean() for rows in (rare, ~rare))
        assert row["maps"][name]["unseen"] == pytest.approx(unseen, abs=0.01)
        assert row["maps"][name]["seen"] == pytest.approx(seen, abs=0.01)
        assert row["maps"][name]["all"] == pytest.approx(np.mean(precisions), abs=0.01)
    assert row["maps"].keys() == {"auto", "told", "semantic", "rows", "pq", "opq"}


@pytest.mark.slow
def test_ours_at_a_length_with_lists_fast_scan_and_a_gallery(tmp_path, short):
    write_parts(tmp_path)
    asked = (*QUICK, "--bits=16", "--lists=1", "--methods=scq:4", "--baselines=pq", "--spaces=raw")
    done = run(tmp_path, tmp_path / "out", *asked)
    assert done.exit_code == 0, done.output
    assert "16 bits: scq:4" in done.output
    said = json.loads(done.output.splitlines()[-1])
    assert said["gain_16"] > 0 and "ratio_16" not in said  # no IVFPQ was asked for
    document = read(tmp_path / "out")
    (row,) = [row for row in document["rows"] if row["role"] == "ours"]
    assert row["container"] == "fastscan" and row["refine"] in (1, 4, 16, 64, 256)
    assert [point["refine"] for point in row["points"]] == [1, 4, 16, 64, 256]
    assert row["map"] > best_baseline(document, 16)["map"]
    labels = {name: dict(zip(ids.tolist(), y.y.tolist())) for name, (_, y, ids) in write_parts(tmp_path).items()}
    sides = document["gallery"]["sides"]
    assert [side["key"] for side in sides] == ["scq:4/trained/16/fastscan", "pq/raw/16/faiss"]
    for side in sides:
        for query, hits in zip(document["gallery"]["queries"], side["hits"], strict=True):
            assert query["labels"] == [labels["query"][query["id"]]] and query["picture"] in document["pictures"]
            for hit in hits:
                assert hit["labels"] == [labels["database"][hit["id"]]]
                assert hit["right"] == (hit["labels"] == query["labels"])


@pytest.mark.slow
def test_ours_in_lists_stand_beside_faiss_in_as_many(tmp_path):
    """Also the list alone, a code of 0 bits; methods that have no lists say so."""
    write_parts(tmp_path)
    asked = (*QUICK, "--bits=0", "--lists=16", "--methods=scq,mecoq", "--baselines=ivf", "--containers=ivfpq,pq")
    done = run(tmp_path, tmp_path / "out", *asked, "--spaces=trained")
    assert done.exit_code == 0, (done.output, done.exception)
    rows = {row["key"]: row for row in read(tmp_path / "out")["rows"]}
    ours, alone = rows["scq/trained/0 in 16 lists/ivfpq"], rows["ivf/trained/0 in 16 lists/faiss"]
    for row in (ours, alone):
        assert (row["bits"], row["lists"]) == (0, 16) and row["distinct_codes"] <= 16
        assert {point["nprobe"] for point in row["points"]} == {1, 2, 4, 8, 16}
        assert len(row["usage"]) == 1 and len(row["usage"][0]) == 16 and sum(row["usage"][0]) == 997
    assert ours["map"] > 0.9
    refused = rows["mecoq/trained/0 in 16 lists/none"]
    assert "lists" in refused["reason"] and refused["lists"] == 16 and "map" not in refused
    assert read(tmp_path / "out")["embedding"] == {"method": "scq", "bits": 0, "lists": 16}


@pytest.mark.slow
def test_codes_that_no_container_takes_say_so(tmp_path, short):
    write_parts(tmp_path)
    asked = (*QUICK, "--bits=8", "--methods=label", "--baselines=,", "--spaces=raw", "--containers=residual")
    done = run(tmp_path, tmp_path / "out", *asked)
    assert done.exit_code == 0, (done.output, done.exception)
    row = read(tmp_path / "out")["rows"][0]
    assert row["reason"] == "none of residual takes 1 codebooks of 4 bits (product)" and row["reason"] in done.output


@pytest.mark.slow
def test_what_does_not_fit_is_refused_and_nothing_is_lost(tmp_path):
    write_parts(tmp_path)
    small = (*QUICK, "--bits=8", "--lists=1", "--methods=,", "--baselines=,", "--spaces=raw")
    assert run(tmp_path, tmp_path / "out", *small).exit_code == 0
    before = (tmp_path / "out" / "results.json").read_bytes()
    for asked, said in (
        ("--seed=1", "another seed"),
        ("--budget=0.02", "another budget"),
        ("--bits=9", "multiples of 8"),
        ("--bits=-8", "multiples of 8"),
        ("--lists=0", "--lists: '0' needs auto, or whole numbers above 0"),
        ("--bits=0", "--bits 0 leaves the list of a row alone"),
        ("--methods=pq", "one of --baselines"),
        ("--methods=scq:x", "--methods names 'scq:x'"),
        ("--baselines=hnsw", "'hnsw' is unknown"),
        ("--lists=1000", "1 to 997"),
        ("--draws=-1", "--draws"),
        ("--content-bits=33", "--content-bits: 33 is no multiple of 8"),
        ("--image-shape=9x9", "needs rows of that many numbers"),
    ):
        done = run(tmp_path, tmp_path / "out", *small, asked)
        assert said in (done.output + str(done.exception)) and done.exit_code, asked
        assert (tmp_path / "out" / "results.json").read_bytes() == before, asked


@pytest.mark.slow
def test_queries_of_one_class_leave_none_out(tmp_path, short, capsys):
    parts = write_parts(tmp_path)
    x, labels, ids = parts["query"]
    one = np.flatnonzero(labels.y == 5)[:1]
    with atomic_write(tmp_path / "query.h5") as output:
        output.write(lambda f: write_rows(f, x[one].astype(np.float16), labels.y[one], ids[one]))
    asked = (*QUICK, "--bits=8", "--lists=1", "--methods=scq", "--baselines=,", "--spaces=raw", "--containers=pq")
    done = run(tmp_path, tmp_path / "out", *asked, "--draws=2")
    assert done.exit_code == 0, (done.output, done.exception)
    assert read(tmp_path / "out")["unknown"] == {"reason": "1 classes are too few to leave some out", "draws": []}
    asked = (*QUICK, "--bits=8", "--lists=1", "--methods=,", "--baselines=pq", "--spaces=raw")
    assert run_command(["compare", *words(tmp_path, tmp_path / "out", *asked, "--seed=1")]) == 2
    assert "another seed" in capsys.readouterr().err


@pytest.mark.slow
def test_results_that_tell_no_lists_are_not_added_to(tmp_path):
    write_parts(tmp_path)
    small = (*QUICK, "--bits=8", "--lists=1", "--methods=,", "--baselines=,", "--spaces=raw")
    assert run(tmp_path, tmp_path / "out", *small).exit_code == 0
    path = tmp_path / "out" / "results.json"
    old = json.loads(path.read_text())
    del old["rows"][0]["lists"]
    path.write_text(json.dumps(old))
    done = run(tmp_path, tmp_path / "out", *small)
    assert "results.json: made by an older scqfaiss, which told no lists; choose another --out" in str(done.exception)
    assert json.loads(path.read_text()) == old


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_and_a_fresh_one_begins_anew(tmp_path, monkeypatch, short):
    write_parts(tmp_path)
    asked = (
        *QUICK,
        "--bits=8",
        "--methods=label",
        "--baselines=pq,opq",
        "--lists=1",
        "--spaces=raw",
        "--containers=pq",
    )
    measured, really = [], rows.baseline

    def breaks(c, method, *rest):
        if method == "opq" and len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(method)
        return really(c, method, *rest)

    monkeypatch.setattr(compare, "baseline", breaks)
    assert run(tmp_path, tmp_path / "out", *asked).exit_code == 1  # pq is measured by then
    assert measured == ["pq"]
    before = read(tmp_path / "out")["rows"]
    assert [row["key"] for row in before] == ["label/trained/pq", "flat/raw/faiss", "pq/raw/8/faiss"]
    measured.clear()
    monkeypatch.setattr(compare, "baseline", really)
    assert run(tmp_path, tmp_path / "out", *asked).exit_code == 0
    after = read(tmp_path / "out")["rows"]
    assert after[:3] == before and [row["key"] for row in after[3:]] == ["opq/raw/8/faiss"]

    fresh = run(
        tmp_path, tmp_path / "out", *QUICK, "--methods=,", "--baselines=,", "--spaces=raw", "--seed=1", "--fresh"
    )
    assert fresh.exit_code == 0, (fresh.output, fresh.exception)
    assert [row["key"] for row in read(tmp_path / "out")["rows"]] == ["flat/raw/faiss"]


def test_a_measure_is_one_file_and_one_line(tmp_path, monkeypatch):
    """In evaluations by labels and in rows of comparisons alike."""
    (tmp_path / "toy_measure.py").write_text("def best_tie(ranking):\n    return float(ranking.rows[0])\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(measures.BY_LABELS, "best_tie", "toy_measure:best_tie")
    task = made()
    coding = coded(task)
    row, _ = ranking(task, coding)
    sizes = np.bincount(coding.words.inverse)
    assert row["best_tie"] == np.mean([sizes[scores.argmax()] for scores in coding.scores()])
    relevance = Relevance(task.database, coding.words.inverse, len(sizes))
    assert measure(coding.scores(), task.queries, relevance)["best_tie"] == row["best_tie"]


def test_methods_of_other_rows_are_refused_before_anything_is_read(tmp_path, capsys):
    asked = ["compare", *words(tmp_path, tmp_path / "out", "--methods=label,mopq")]
    assert run_command(asked) == 2
    said = "Error: --methods names 'mopq', which learns from pairs; a comparison has labelled rows"
    assert capsys.readouterr().err.strip() == said


def test_the_script_and_the_command_take_the_same_options(tmp_path):
    script = Path(__file__).parents[1] / "benchmarks" / "ivfpq.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, timeout=50, check=True)
    own = CliRunner().invoke(cli, ["compare", "--help"], prog_name="scqfaiss").stdout
    assert "".join(done.stdout.split()) == "".join(own.split())  # the width of lines is the terminal's
    growth = subprocess.run(
        [sys.executable, script.with_name("scale.py"), tmp_path, "--out", tmp_path / "out", "--rows", "9"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (
        growth.returncode == 2 and growth.stderr == "Error: --rows: 9 rows are fewer than the 10 that are looked for\n"
    )
