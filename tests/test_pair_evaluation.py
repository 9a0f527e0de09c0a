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
from scqfaiss.evaluation.files import report_text
from scqfaiss.evaluation.galleries import evaluate_pairs
from scqfaiss.evaluation.ties import first_hit

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
    multilabel = first_hit(3, 10**6, 2, 10**7)
    j = np.arange(10**6 - 1.0)  # P(first at place j) = 2 (n - 1 - j) / (n (n - 1))
    np.testing.assert_allclose(
        multilabel[0], (2 * (10**6 - 1 - j) / (10**6 * (10**6 - 1.0)) / (4 + j)).sum(), rtol=1e-9
    )
    np.testing.assert_allclose(multilabel[2], 1 - (1 - 7e-6) * (1 - 7 / (10**6 - 1)), rtol=1e-6)


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


@pytest.mark.slow
@pytest.mark.parametrize("at", [None, 5])
@pytest.mark.parametrize("metric, target", [("ip", "ivfpq"), ("l2", "pq"), ("ip", "buckets")])
@pytest.mark.parametrize("repeated", [False, True])
def test_a_gallery_is_measured_as_by_drawn_orders(metric, target, at, repeated):
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 16, (25, 2)).astype(np.uint8)[rng.integers(0, 25, 130)]  # ties everywhere
    held = rng.permutation(130) * 11 + 3
    if repeated:
        held = held // 40  # several vectors of one id: the best counts
    gallery, codebooks = gallery_of(codes, held, metric, target=target)
    xq, ids = rng.integers(-2, 3, (12, 6)).astype(np.float32), rng.choice(held, 12)
    found = evaluate_pairs(gallery, xq, ids, at=at)
    scores = codebooks.scores(xq, codes) * (1 if metric == "ip" else -1)
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
        (1, [0], {"at": 2.5}, ConfigError, "^R is 2.5, needs a whole number$"),
        (1, [0], {"at": "3"}, ConfigError, "^R is '3', needs a whole number$"),
    ],
)
def test_what_does_not_fit_is_refused(n, ids, more, error, words):
    gallery, _ = gallery_of(np.zeros((4, 2), np.uint8), np.arange(4) * 2)
    with pytest.raises(error, match=words):
        evaluate_pairs(gallery, np.zeros((n, 6), np.float32), np.array(ids, int), **more)
    if "at" in more:
        with pytest.raises(error, match=words):
            scqfaiss.evaluate(gallery, np.zeros((n, 6), np.float32), [0], np.arange(4) * 2, np.zeros(4, int), **more)


def test_ranks_may_be_numbers_of_numpy():
    gallery, _ = gallery_of(np.zeros((4, 2), np.uint8), np.arange(4) * 2)
    found = evaluate_pairs(gallery, np.ones((1, 6), np.float32), [0], at=np.int64(3))
    assert json.loads(report_text(found, True))["at"] == 3


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
    twice = json.loads(run("evaluate", "g.faissindex", "twice.h5", "--json").out)
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
        "  checksums: of all that is read",
    ]
    assert json.loads(run("info", "test.h5", "--json", "--features-key", "keys").out)["kind"] == "rows"


def test_what_the_command_line_refuses(run, files):
    def refused(result, code, words):
        assert (result.code, result.error) == (code, f"Error: {words}")

    write("rows.h5", features=files[0])
    message = "train.h5 holds pairs, queries and keys, where rows are needed; choose one with --features-key keys"
    refused(run("train", "train.h5", "-o", "x.safetensors", "--method", "pq"), 3, message)
    message = (
        "rows.h5 has no dataset 'keys', and method mopq needs pairs, queries and keys; it holds features (380, 8) float32; "
        "choose with --features-key"
    )
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
        "or give DATABASE, both with labels"
    )
    refused(run("evaluate", "g.faissindex", "rows.h5"), 3, message)
    message = "rows.h5 has no ids or labels, which an evaluation needs; name them with --ids-key or --labels-key"
    for queries, option in (("rows.h5", "--labels"), ("train.h5", "--database-labels")):
        bring = f"{message}, or bring labels with {option} FILE"
        refused(run("evaluate", "g.faissindex", queries, "rows.h5"), 3, bring)
    for key in ("keys", "queries"):  # plain methods on one half
        plain = ("--method", "pq", "--bits", "8", "--nbits", "4", "--features-key", key, "--set", "raw=true")
        assert run("train", "train.h5", "-o", f"{key}.safetensors", *plain).code == 0
        assert run("export", f"{key}.safetensors", "train.h5", "-o", f"{key}.faissindex").code == 0
        assert json.loads(run("evaluate", f"{key}.faissindex", "train.h5", "--json").out)["recall_at_k"]["100"] > 0.5


@pytest.fixture
def shared(run, files):
    """shared.h5: two queries of each of 80 keys, whose ids and rows repeat; and m.safetensors, trained on them."""
    keys, queries = files[0][300:], files[1][300:]
    more = queries + 0.1 * np.random.default_rng(1).standard_normal(queries.shape).astype(np.float32)
    write(
        "shared.h5",
        queries=np.concatenate([queries, more]),
        keys=np.tile(keys, (2, 1)),
        ids=np.tile(np.arange(80), 2) + 9,
    )
    assert run("train", "shared.h5", "-o", "m.safetensors", *TRAIN).code == 0
    return keys, queries


def test_ids_that_play_no_part_in_a_training_may_repeat(run, shared):
    plain = ("--method", "pq", "--bits", "8", "--nbits", "4", "--set", "raw=true")
    write("one_id.h5", features=shared[0], ids=np.zeros(80, int), labels=np.arange(80) % 4)
    for command in (
        ("shared.h5", *plain, "--features-key", "keys"),
        ("shared.h5", *plain, "--features-key", "queries"),
        ("one_id.h5", *plain, "--validation", "one_id.h5"),
        ("shared.h5", *TRAIN, "--codebook-rows", "shared.h5", "--validation", "shared.h5"),
        ("shared.h5", *TRAIN, "--codebook-rows", "twice.h5"),
        ("twice.h5", "--method", "mecoq", "--bits", "8", "--nbits", "4", "--epochs", "1", "--validation", "twice.h5"),
        ("shared.h5", *TRAIN, "--validation", "shared.h5", "--dry-run"),
    ):
        result = run("train", *command, "-o", "x.safetensors")
        assert result.code == 0
        assert "ids" not in " ".join(result.warnings)


def test_a_gallery_holds_each_key_once(run, shared):
    said = "shared.h5: merged 160 keys into 80, one for each id"
    result = run("export", "m.safetensors", "shared.h5", "-o", "g.faissindex")
    assert (result.code, result.warnings) == (0, [said])
    assert result.out.startswith("g.faissindex: 80 vectors")
    dry = run("export", "m.safetensors", "shared.h5", "-o", "x.faissindex", "--dry-run")
    assert (dry.out.splitlines()[0], dry.warnings) == ("rows: 80 of d=8", [])  # which says so without reading them
    # What the option leaves out may be said.
    found = [
        run("evaluate", "g.faissindex", "shared.h5", *more, "--json") for more in ((), ("--features-key", "queries"))
    ]
    assert found[0].out == found[1].out and json.loads(found[0].out)["queries"] == 160
    assert json.loads(run("evaluate", "g.faissindex", "shared.h5", "shared.h5", "--json").out) == json.loads(
        found[0].out
    )
    search = run("search", "g.faissindex", "shared.h5", "--features-key", "queries")
    assert search.out == run("search", "g.faissindex", "shared.h5").out and search.warnings == []
    everything = run("export", "m.safetensors", "shared.h5", "-o", "all.faissindex", "--allow-duplicate-ids")
    assert everything.out.startswith("all.faissindex: 160 vectors")
    assert everything.warnings == ["shared.h5: ids: 80 rows repeat an id"]
    # Appended as exported.
    with h5py.File("shared.h5") as f:
        write("more.h5", queries=f["queries"][:], keys=f["keys"][:], ids=f["ids"][:] + 1000)
    result = run("append", "g.faissindex", "more.h5")
    assert result.out.startswith("g.faissindex: 80 vectors added (ids 1009 to 1088), 160 in all")
    assert result.warnings == [said.replace("shared", "more")]
    # Queries of one key are no copies, and of two keys under one id neither may be lost.
    for command in (
        ("export", "m.safetensors", "more.h5", "--features-key", "queries", "-o", "x.faissindex"),
        ("append", "g.faissindex", "other.h5"),
    ):
        with h5py.File("more.h5") as f:
            keys = f["keys"][:]
            keys[100] = 0
            if command[0] == "append":
                write("other.h5", queries=f["queries"][:], keys=keys, ids=f["ids"][:] + 1000)
        result = run(*command)
        assert result.code == 3 and "give each its own id or pass --allow-duplicate-ids" in result.error
    assert "other.h5: keys of id 2029 differ (rows 20 and 100; 1 such ids)" in result.error
    assert json.loads(run("info", "g.faissindex", "--json").out)["vectors"] == 160


def test_queries_whose_keys_were_bad_are_left_out(run, files):
    keys, queries = files[0][300:].copy(), files[1][300:].copy()
    keys[7, 2] = queries[30, 0] = np.nan
    write("bad.h5", queries=queries, keys=keys, ids=np.arange(80))
    assert run("train", "bad.h5", "-o", "m.safetensors", "--skip-bad-rows", *TRAIN).code == 0
    result = run("export", "m.safetensors", "bad.h5", "-o", "g.faissindex", "--skip-bad-rows")
    assert result.out.startswith("g.faissindex: 79 vectors")  # a key is good whatever is asked
    result = run("evaluate", "g.faissindex", "bad.h5", "--skip-bad-rows", "--json")
    assert json.loads(result.out)["queries"] == 78
    assert result.warnings == [
        "bad.h5: left out 1 of 80 rows that are not finite",
        "bad.h5: left out 1 of 79 queries: g.faissindex lacks their ids",
    ]
    result = run("evaluate", "g.faissindex", "test.h5", "--skip-bad-rows")
    assert result.code == 2 and "lacks the ids of 80 of 80 rows of test.h5" in result.error


def test_pairs_without_ids_go_by_their_row_numbers(run, files):
    keys, queries = (a[300:] for a in files)
    write("bare.h5", queries=queries, keys=keys)
    write("named.h5", queries=queries, keys=keys, ids=np.arange(80))
    assert run("train", "bare.h5", "-o", "m.safetensors", *TRAIN).code == 0
    assert run("export", "m.safetensors", "bare.h5", "-o", "g.faissindex").code == 0
    want = run("evaluate", "g.faissindex", "named.h5", "--json")
    assert want.warnings == []
    for more in ((), ("--features-key", "queries"), ("bare.h5",)):
        found = run("evaluate", "g.faissindex", "bare.h5", *more, "--json")
        assert found.out == want.out
        assert found.warnings == ["bare.h5 has no ids: a query belongs to the vector whose id is its row number"]


def test_labels_without_a_database_are_not_passed_over_in_silence(run, shared):
    queries = shared[1]
    assert run("export", "m.safetensors", "shared.h5", "-o", "g.faissindex").code == 0
    write("held.h5", features=queries, ids=np.arange(80) + 9, labels=np.arange(80) % 4)
    result = run("evaluate", "g.faissindex", "held.h5")
    assert result.out.startswith("MRR@80")
    assert result.warnings == ["held.h5: without DATABASE only ids are looked at, not labels"]
    write("absent.h5", features=queries, ids=np.arange(80), labels=np.arange(80) % 4)
    result = run("evaluate", "g.faissindex", "absent.h5")
    assert (result.code, result.warnings) == (2, [])
    assert result.error.endswith("append their keys, or give DATABASE to evaluate by labels")
