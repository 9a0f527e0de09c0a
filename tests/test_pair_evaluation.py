"""Recall of the paired key: against rankings written out, every order of ties, files on the command line."""

import itertools
import json

import h5py
import numpy as np
import pytest
from faults.conftest import run  # noqa: F401
from test_evaluation import gallery_of

import scqfaiss
from scqfaiss.errors import ConfigError, DataError
from scqfaiss.evaluation import evaluate_pairs, first_hit, report_text

# ruff: noqa: F811  (fixtures are imported by name)


# ------------------------------------------------------------------------------------------------------------ measures
def slow_first_hit(before, rows, relevant, at, at_k):
    """Every arrangement of the tie written out: means of 1 / rank of the first relevant row and of its being within k."""
    found = []
    for order in set(itertools.permutations([1] * relevant + [0] * (rows - relevant))):
        rank = before + 1 + order.index(1)
        found.append([1 / rank if rank <= at else 0.0, *(float(rank <= k) for k in at_k)])
    return np.mean(found, 0)


@pytest.mark.parametrize("before", [0, 1, 7, 98, 120])
@pytest.mark.parametrize("rows, relevant", [(1, 1), (5, 1), (6, 1), (2, 2), (6, 2), (7, 3), (5, 5), (6, 5)])
def test_the_first_hit_is_the_mean_over_every_order_within_the_tie(before, rows, relevant):
    for at in (1, 3, before + 1, before + 3, before + rows, 1000):
        want = slow_first_hit(before, rows, relevant, at, (1, 10, 100))
        np.testing.assert_allclose(first_hit(before, rows, relevant, at), want, atol=1e-12)


def test_large_ties_cost_no_more_than_their_rows():
    found = first_hit(3, 10**6, 1, 10**7)
    np.testing.assert_allclose(found[0], (1 / np.arange(4, 4 + 10**6)).mean(), rtol=1e-9)
    np.testing.assert_allclose(found[1:], [0, 7e-6, 97e-6])
    many = first_hit(3, 10**6, 2, 10**7)
    j = np.arange(10**6 - 1.0)  # P(first at place j) = 2 (n - 1 - j) / (n (n - 1))
    np.testing.assert_allclose(many[0], (2 * (10**6 - 1 - j) / (10**6 * (10**6 - 1.0)) / (4 + j)).sum(), rtol=1e-9)
    np.testing.assert_allclose(many[2], 1 - (1 - 7e-6) * (1 - 7 / (10**6 - 1)), rtol=1e-6)


# ------------------------------------------------------------------------------------------------------------- gallery
def slow_pairs(scores, ids, held, at, draws=400):
    """Means over drawn orders of the whole gallery, sorted anew each time."""
    rng, found = np.random.default_rng(0), []
    for s, own in zip(scores, ids):
        for _ in range(draws):
            mix = rng.permutation(len(held))
            ranked = held[mix][np.argsort(-s[mix], kind="stable")]
            rank = 1 + int(np.argmax(ranked == own))
            found.append([1 / rank if rank <= at else 0.0, *(float(rank <= k) for k in (1, 10, 100))])
    return np.mean(found, 0)


@pytest.mark.parametrize("at", [None, 5])
@pytest.mark.parametrize("metric, target", [("ip", "ivfpq"), ("l2", "pq"), ("ip", "buckets")])
@pytest.mark.parametrize("repeated", [False, True])
def test_a_gallery_is_measured_as_by_drawn_orders(metric, target, at, repeated):
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 16, (25, 2)).astype(np.uint8)[rng.integers(0, 25, 130)]  # ties everywhere
    held = rng.permutation(130) * 11 + 3
    if repeated:
        held = held // 40  # several vectors of one id: the best counts
    gallery, books = gallery_of(codes, held, metric, target=target)
    xq, ids = rng.integers(-2, 3, (12, 6)).astype(np.float32), rng.choice(held, 12)
    found = evaluate_pairs(gallery, xq, ids, at=at)
    scores = books.scores(xq, codes) * (1 if metric == "ip" else -1)
    want = slow_pairs(scores, ids, held, at or 130)
    np.testing.assert_allclose([found["mrr"], *found["recall_at_k"].values()], want, atol=0.01)
    facts = {k: found[k] for k in ("at", "queries", "database", "bits", "search_agreement")}
    assert facts == {"at": at or 130, "queries": 12, "database": 130, "bits": 8, "search_agreement": 1.0}
    assert found["distinct_codes"] == len(np.unique(codes, axis=0))
    # Exactly, without draws: the tie of each query by its definition.
    exact = []
    for s, own in zip(scores, ids):
        best = s[held == own].max()
        rows, relevant = int((s == best).sum()), int((s[held == own] == best).sum())
        exact.append(first_hit(int((s > best).sum()), rows, relevant, at or 130))
    np.testing.assert_allclose([found["mrr"], *found["recall_at_k"].values()], np.mean(exact, 0), atol=1e-12)


def test_every_vector_its_own_query():
    gallery, _ = gallery_of(np.zeros((4, 2), np.uint8), np.arange(4) * 2)
    found = evaluate_pairs(gallery, np.ones((3, 6), np.float32), [0, 2, 2])
    # Four vectors that nothing tells apart; depths of 10 and 100 say nothing of so few.
    assert found["recall_at_k"] == {"1": 0.25}
    np.testing.assert_allclose(found["mrr"], (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert json.loads(report_text(found, True)) == found
    assert report_text(found, False).splitlines() == [
        "MRR@4  0.5208   (3 queries, 4 vectors)",
        "recall     @1 0.2500",
        "8 bits, 1 distinct codes",
    ]


@pytest.mark.parametrize(
    "n, ids, more, error, words",
    [
        (
            2,
            [0, 5],
            {},
            ConfigError,
            r"^g.faissindex lacks the ids of 1 of 2 rows of queries \(first 5\); append their keys",
        ),
        (3, [9, 1, 9], {}, ConfigError, r"lacks the ids of 3 of 3 rows of queries \(first 1, 9\); "),
        (0, [], {}, DataError, "^queries holds 0 rows, an evaluation needs at least 1$"),
        (2, [0], {}, DataError, r"^queries: ids is \(1,\) int64, needs \(2,\) int64"),
        (1, [0], {"at": 0}, ConfigError, "^R is 0, needs 1 or more$"),
    ],
)
def test_what_does_not_fit_is_refused(n, ids, more, error, words):
    gallery, _ = gallery_of(np.zeros((4, 2), np.uint8), np.arange(4) * 2)
    with pytest.raises(error, match=words):
        evaluate_pairs(gallery, np.zeros((n, 6), np.float32), np.array(ids, int), **more)


# -------------------------------------------------------------------------------------------------------- command line
def write(path, **datasets):
    with h5py.File(path, "w") as f:
        for name, value in datasets.items():
            f.create_dataset(name, data=value, chunks=(16, *value.shape[1:]), fletcher32=True)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """train.h5 and test.h5 with pairs; their ids do not meet. Two queries of test.h5 belong to each of its keys."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((380, 8)).astype(np.float32)
    queries = (keys + 0.3 * rng.standard_normal(keys.shape)).astype(np.float32)
    write("train.h5", queries=queries[:300], keys=keys[:300], ids=np.arange(300))
    write("test.h5", queries=queries[300:], keys=keys[300:], ids=np.arange(300, 380))
    write("twice.h5", features=np.concatenate([queries[300:]] * 2), ids=np.tile(np.arange(300, 380), 2))
    return keys, queries


TRAIN = ("--method", "mopq", "--bits", "16", "--nbits", "4", "--epochs", "2")


def test_pairs_from_training_to_evaluation(run, files):
    keys, queries = files
    result = run("train", "train.h5", "-o", "m.safetensors", "--validation", "test.h5", *TRAIN)
    assert (result.code, result.warnings) == (0, [])
    assert result.out.startswith("m.safetensors: mopq, 16 bits (4 x 4), rows of d=8 to z of d=8, codewords used")
    model = scqfaiss.Model.load("m.safetensors")
    assert (model.config["encoder"], model.config["training"]["rows"]) == ("linear", 300)
    dry = run("train", "train.h5", "-o", "n.safetensors", "--dry-run", *TRAIN).out
    assert dry.startswith("pairs: 300 of d=8 (19.2 kB as float32)\n") and "stage pairs: 2 epochs, 2 steps" in dry
    # Keys fill the gallery, queries search it.
    assert run("export", "m.safetensors", "train.h5", "-o", "g.faissindex").out.startswith("g.faissindex: 300 vectors")
    assert run("export", "m.safetensors", "train.h5", "-o", "h.faissindex", "--dry-run").out.startswith(
        "rows: 300 of d=8"
    )
    assert run("append", "g.faissindex", "test.h5").out.startswith(
        "g.faissindex: 80 vectors added (ids 300 to 379), 380"
    )
    assert run("search", "g.faissindex", "test.h5", "-k", "10", "-o", "hits.h5").code == 0
    with h5py.File("hits.h5") as f:
        ids, query_ids = f["ids"][:], f["query_ids"][:]
    np.testing.assert_array_equal(query_ids, np.arange(300, 380))
    z, codes = model.embed(queries[300:]), model.encode(keys)
    scores = model.codebooks.scores(z, codes)
    own = scores[np.arange(80), np.arange(300, 380)][:, None]
    result = run("evaluate", "g.faissindex", "test.h5", "--json")
    found = json.loads(result.out)
    assert result.warnings == []
    assert found["queries"] == 80 and found["database"] == 380
    above, ties = (scores > own + 1e-6).sum(1), (np.abs(scores - own) <= 1e-6).sum(1)
    want = np.clip((10 - above) / ties, 0, 1).mean()
    np.testing.assert_allclose(found["recall_at_k"]["10"], want, atol=1e-9)
    hits = (ids == query_ids[:, None]).any(1).mean()
    assert abs(hits - want) < 0.05  # but for ties that were cut off
    # A database without labels changes nothing; neither do queries as plain rows, of which each stands twice.
    assert json.loads(run("evaluate", "g.faissindex", "test.h5", "train.h5", "--json").out) == found
    twice = json.loads(run("evaluate", "g.faissindex", "twice.h5", "--allow-duplicate-ids", "--json").out)
    assert twice["recall_at_k"] == pytest.approx(found["recall_at_k"]) and twice["queries"] == 160
    text = run("evaluate", "g.faissindex", "test.h5", "--at", "10").out.splitlines()
    assert text[0].startswith("MRR@10  0.") and text[1].startswith("recall     @1 ")


def test_info_describes_both_halves(run, files):
    assert run("info", "test.h5").out.splitlines() == [
        "test.h5: pairs",
        "  pairs: 80",
        "  d: 8",
        "  ids: given",
        "  distinct keys: 80",
    ]
    assert json.loads(run("info", "test.h5", "--json", "--features-key", "keys").out)["kind"] == "rows"


def test_what_the_command_line_refuses(run, files):
    def refused(result, code, words):
        assert (result.code, result.error) == (code, f"Error: {words}")

    write("rows.h5", features=files[0])
    message = "train.h5 holds pairs, queries and keys, where rows are needed; choose one with --features-key keys"
    refused(run("train", "train.h5", "-o", "x.safetensors", "--method", "pq"), 3, message)
    message = "rows.h5 has no dataset 'keys'; it holds features (380, 8) float32; choose with --features-key"
    refused(run("train", "rows.h5", "-o", "x.safetensors", *TRAIN), 3, message)
    message = "--features-key is 'keys', pairs need two datasets: queries,keys"
    refused(run("train", "train.h5", "-o", "x.safetensors", "--features-key", "keys", *TRAIN), 2, message)
    assert run("train", "train.h5", "-o", "m.safetensors", "--features-key", "queries,keys", *TRAIN).code == 0
    assert run("export", "m.safetensors", "train.h5", "-o", "g.faissindex").code == 0
    message = (
        "g.faissindex lacks the ids of 80 of 80 rows of test.h5 (first 300, 301, 302, 303, 304); "
        "append their keys, or evaluate other queries"
    )
    refused(run("evaluate", "g.faissindex", "test.h5"), 2, message)
    refused(run("evaluate", "g.faissindex", "train.h5", "test.h5"), 2, message)
    message = (
        "rows.h5 has no ids, which say what vector of g.faissindex belongs to a query; name them with --ids-key, "
        "or give DATABASE with labels"
    )
    refused(run("evaluate", "g.faissindex", "rows.h5"), 3, message)
    message = "rows.h5 has no labels, which an evaluation needs; name them with --labels-key"
    refused(run("evaluate", "g.faissindex", "rows.h5", "rows.h5"), 3, message)
    for key in ("keys", "queries"):  # plain methods on one half
        plain = ("--method", "pq", "--bits", "8", "--nbits", "4", "--features-key", key, "--set", "raw=true")
        assert run("train", "train.h5", "-o", f"{key}.safetensors", *plain).code == 0
        assert run("export", f"{key}.safetensors", "train.h5", "-o", f"{key}.faissindex").code == 0
        assert json.loads(run("evaluate", f"{key}.faissindex", "train.h5", "--json").out)["recall_at_k"]["100"] > 0.5
