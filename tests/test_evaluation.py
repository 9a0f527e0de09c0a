"""Measures against their definitions: every order of small ties, brute force over rows."""

import itertools
import json

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import scqfaiss
from scqfaiss.arrays import Labels, as_labels
from scqfaiss.codebooks import Codebooks
from scqfaiss.encoders.chain import Chain
from scqfaiss.errors import ConfigError, DataError, IndexFileError, ScqWarning
from scqfaiss.evaluation.files import report_text
from scqfaiss.evaluation.galleries import evaluate
from scqfaiss.evaluation.ranking import Relevance, Words, measure, measure_vectors, scores_in_blocks
from scqfaiss.evaluation.ties import average_precision, precision_at, recall_at, tie_blocks
from scqfaiss.galleries.exporting import build
from scqfaiss.galleries.gallery import Gallery
from scqfaiss.galleries.reading import Stored
from scqfaiss.galleries.snapshot import Snapshot
from scqfaiss.model import Model
from scqfaiss.targets import target as find_target
from scqfaiss.targets.pretransform import unwrap_index


def plain_ap(order, at, found_only=True):
    """The definition: order is 0/1 in ranked order. -> (sum of precisions at hits within `at`, hits within `at`)."""
    hits, total = 0, 0.0
    for rank, relevant in enumerate(order[:at], 1):
        if relevant:
            hits += 1
            total += hits / rank
    return total, hits


def orders_within_ties(rows, relevant):
    """Every ranked 0/1 list of blocks, each distinct arrangement of a block as often as any other."""
    blocks = [sorted(set(itertools.permutations([1] * r + [0] * (n - r)))) for n, r in zip(rows, relevant)]
    for choice in itertools.product(*blocks):
        yield list(itertools.chain(*choice))


small_blocks = st.lists(
    st.integers(0, 4).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), min_size=1, max_size=4
)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(small_blocks, st.integers(1, 20))
def test_measures_are_means_over_every_order_within_ties(blocks, at):
    rows, relevant = np.array([b[0] for b in blocks]), np.array([b[1] for b in blocks])
    n = int(rows.sum())
    at = min(at, n)
    if n == 0:
        assert average_precision(rows, relevant) == 0
        return
    orders = list(orders_within_ties(rows, relevant))
    sums, hits = (np.mean(v) for v in zip(*(plain_ap(o, at) for o in orders)))
    want = sums / hits if hits else 0.0
    np.testing.assert_allclose(average_precision(rows, relevant, at), want, atol=1e-12)
    every = min(at, relevant.sum())
    np.testing.assert_allclose(
        average_precision(rows, relevant, at, divide_by="all"), sums / every if every else 0, atol=1e-12
    )
    np.testing.assert_allclose(precision_at(rows, relevant, at), hits / at, atol=1e-12)
    recall = hits / relevant.sum() if relevant.sum() else 0
    np.testing.assert_allclose(recall_at(rows, relevant, at), recall, atol=1e-12)
    full = [plain_ap(o, n)[0] / max(relevant.sum(), 1) for o in orders]
    np.testing.assert_allclose(average_precision(rows, relevant), np.mean(full), atol=1e-12)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 60))
def test_without_ties_it_is_the_plain_definition(order, at):
    order = [int(o) for o in order]
    rows = np.ones(len(order), int)
    total, hits = plain_ap(order, min(at, len(order)))
    np.testing.assert_allclose(average_precision(rows, order, at), total / hits if hits else 0, atol=1e-12)
    np.testing.assert_allclose(precision_at(rows, np.array(order), at), hits / min(at, len(order)), atol=1e-12)
    np.testing.assert_allclose(recall_at(rows, np.array(order), at), hits / max(sum(order), 1), atol=1e-12)


def test_large_ties_equal_many_random_orders():
    rows, relevant = np.array([30, 200, 5, 100]), np.array([3, 60, 5, 10])
    rng = np.random.default_rng(0)
    flat = [np.r_[np.ones(r), np.zeros(n - r)] for n, r in zip(rows, relevant)]
    for at in (20, 150, 335):
        found = []
        for _ in range(800):
            order = np.concatenate([rng.permutation(b) for b in flat])[:at]
            precision = np.cumsum(order) / np.arange(1, at + 1)
            found.append(((precision * order).sum(), order.sum()))
        sums, hits = np.array(found).T
        error = 4 * sums.std() / np.sqrt(len(sums)) / hits.mean()
        # Both are divided by the expected hits.
        assert abs(average_precision(rows, relevant, at) - sums.mean() / hits.mean()) < error + 0.01


def test_known_values():
    assert average_precision([1, 1], [0, 1]) == 0.5
    assert average_precision([2], [1]) == 0.75
    assert average_precision([3, 2], [3, 0]) == 1.0
    assert average_precision([3, 2], [0, 0]) == 0.0
    assert average_precision([], []) == 0.0
    np.testing.assert_allclose(average_precision([1, 1, 1], [1, 0, 1]), (1 + 2 / 3) / 2)
    assert average_precision([1, 1, 1], [1, 0, 1], 2) == 1.0
    assert average_precision([1, 1, 1], [1, 0, 1], 2, divide_by="all") == 0.5


def test_impossible_blocks_are_named():
    with pytest.raises(DataError, match=r"^block 1 has 3 relevant rows of 2$"):
        average_precision([2, 2], [2, 3])
    with pytest.raises(DataError, match=r"^block 0 has -1 relevant rows of 2$"):
        average_precision([2, 2], [-1, 3])


def test_equal_scores_form_one_block_best_first():
    rows, relevant = tie_blocks(np.float32([0.5, 2, 0.5, -1, 2]), np.array([1, 2, 3, 4, 5]), np.array([1, 0, 2, 3, 4]))
    assert (rows.tolist(), relevant.tolist()) == ([7, 4, 4], [4, 3, 3])
    rows, _ = tie_blocks(np.zeros(0, np.float32), np.zeros(0, int), np.zeros(0, int))
    assert rows.tolist() == []


@pytest.mark.parametrize("dtype, M", [(np.uint8, m) for m in range(1, 10)] + [(np.uint16, m) for m in range(1, 6)])
def test_words_are_the_distinct_codes(dtype, M):
    rng = np.random.default_rng(M)
    few = rng.integers(0, np.iinfo(dtype).max + 1, (13, M)).astype(dtype)
    codes = few[rng.integers(0, 13, 200)]
    words = Words.of(codes)
    np.testing.assert_array_equal(words.codes[words.inverse], codes)
    assert len(words.codes) == len({tuple(c) for c in codes.tolist()})
    assert words.inverse.shape == (200,)


@pytest.mark.parametrize("multilabel", [False, True])
def test_relevant_rows_per_word_equal_a_loop(multilabel):
    rng = np.random.default_rng(0)
    inverse = rng.integers(0, 9, 150)
    if multilabel:
        database = Labels((rng.random((150, 5)) < 0.3).astype(np.uint8), 5)  # some rows without any label
        queries = Labels(np.r_[(rng.random((9, 5)) < 0.3).astype(np.uint8), np.zeros((1, 5), np.uint8)], 5)
    else:
        database, queries = Labels(rng.integers(0, 4, 150), 5), Labels(np.arange(5), 5)
    relevance = Relevance(database, inverse, 10)
    assert relevance.rows.tolist() == [(inverse == w).sum() for w in range(10)]
    for label, multi_hot in zip(queries.y, queries.multi_hot()):
        want = [
            sum(1 for row in range(150) if inverse[row] == w and (database.multi_hot()[row] & multi_hot).any())
            for w in range(10)
        ]
        for _ in range(2):  # the second answer comes from the cache
            assert relevance.per_word(label).tolist() == want


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_scores_are_large_for_near_rows_and_equal_for_equal_ones(metric):
    rng = np.random.default_rng(0)
    q, x = rng.standard_normal((300, 7)), rng.standard_normal((50, 7)).astype(np.float32)
    x = np.concatenate([x, x])
    scores = np.array(list(scores_in_blocks(q, x, metric)))
    want = q @ x.T if metric == "ip" else -np.square(q[:, None] - x).sum(2)
    np.testing.assert_allclose(scores, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(scores[:, :50], scores[:, 50:])  # ties stay ties, wherever they stand


def brute_force(scores, queries, database, at, at_k):
    """Means of AP, precision and recall over rows: ties by their expectation, block by block over rows."""
    ap, precision, recall, none = [], [], [], 0
    for s, multi_hot in zip(scores, queries):
        shares = (database @ multi_hot.astype(int)) > 0
        levels = sorted(set(s.tolist()), reverse=True)
        rows = [int((s == v).sum()) for v in levels]
        hits = [int(shares[s == v].sum()) for v in levels]
        ap.append(average_precision(rows, hits, at))
        # Expected hits among the first k, counted row by row.
        weight = np.concatenate([np.full(n, h / n) for n, h in zip(rows, hits)])
        precision.append([weight[:k].sum() / k for k in at_k])
        recall.append([weight[:k].sum() / max(shares.sum(), 1) for k in at_k])
        none += not shares.any()
    return np.mean(ap), np.mean(precision, 0), np.mean(recall, 0), none


def gallery_of(codes, ids, metric="ip", nbits=4, seed=0, target="ivfpq"):
    rng = np.random.default_rng(seed)
    # Small whole numbers: scores are exact, hence ties are exact too.
    table = rng.integers(-3, 4, (codes.shape[1], 1 << nbits, 3)).astype(np.float32)
    codebooks = Codebooks("product", table, metric)
    model = Model(Chain(codebooks.d), codebooks, {"method": "scq", "rule": "l2"})
    index, metadata = build(model, codes, ids, target)
    return Gallery(Snapshot(Stored.of(index, metadata)), None, "g.faissindex"), codebooks


@pytest.mark.parametrize("at", [None, 5, 60])
@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("target", ["ivfpq", "pq"])
def test_a_gallery_is_measured_as_by_brute_force(target, multilabel, metric, at):
    rng = np.random.default_rng(1)
    n, ids = 130, np.random.default_rng(2).permutation(130) * 11 + 3
    codes = rng.integers(0, 16, (40, 2)).astype(np.uint8)[rng.integers(0, 40, n)]
    gallery, codebooks = gallery_of(codes, ids, metric, target=target)
    xq = rng.integers(-2, 3, (25, 6)).astype(np.float32)
    if multilabel:
        yb, yq = (
            Labels((rng.random((n, 4)) < 0.3).astype(np.uint8), 4),
            Labels(np.eye(4, dtype=np.uint8)[rng.integers(0, 4, 25)], 4),
        )
    else:
        yb, yq = Labels(rng.integers(0, 4, n), 5), Labels(rng.integers(0, 5, 25), 5)
    found = evaluate(gallery, xq, yq, ids, yb, at=at)
    scores = codebooks.scores(xq, codes) * (1 if metric == "ip" else -1)
    ap, precision, recall, none = brute_force(scores, yq.multi_hot(), yb.multi_hot().astype(int), at, (1, 10, 100))
    np.testing.assert_allclose(found["map"], ap, atol=1e-12)
    np.testing.assert_allclose(list(found["precision_at_k"].values()), precision, atol=1e-12)
    np.testing.assert_allclose(list(found["recall_at_k"].values()), recall, atol=1e-12)
    assert list(found["precision_at_k"]) == ["1", "10", "100"]
    facts = {k: found[k] for k in ("at", "bits", "distinct_codes", "queries", "database", "queries_without_relevant")}
    assert facts == {
        "at": at or n,
        "bits": 8,
        "distinct_codes": len({tuple(c) for c in codes.tolist()}),
        "queries": 25,
        "database": n,
        "queries_without_relevant": none,
    }
    assert found["search_agreement"] == 1.0
    # The order of the database file, and that inside the gallery, decide nothing.
    mix, inside = rng.permutation(n), rng.permutation(n)
    assert evaluate(gallery, xq, yq, ids[mix], yb.take(mix), at=at)["map"] == found["map"]
    shuffled, _ = gallery_of(codes[inside], ids[inside], metric, target=target)
    np.testing.assert_allclose(evaluate(shuffled, xq, yq, ids, yb, at=at)["map"], found["map"], atol=1e-12)


@pytest.mark.parametrize("target", ["ivfpq", "buckets"])
@pytest.mark.parametrize("M", [0, 2])
def test_lists_are_part_of_what_is_ranked(target, M):
    rng = np.random.default_rng(6)
    lists = rng.standard_normal((30, 6)).astype(np.float32)
    centroids = rng.standard_normal((M, 16 if M else 2, 6 // max(M, 1))).astype(np.float32) / 2
    codebooks = Codebooks("product", centroids, lists=lists)
    codes = codebooks.joined(rng.integers(0, 30, 300), rng.integers(0, 16, (300, M)))
    index = find_target(target).build(codebooks, codes, np.arange(300))
    unwrap_index(index).nprobe = 1
    gallery = Gallery(Snapshot(Stored.of(index, None)), None, "g")
    if target == "buckets":
        gallery = Gallery(Snapshot(Stored(index, None, find_target("buckets"))), None, "g")
    xq, queries, database = rng.standard_normal((9, 6)).astype(np.float32), np.arange(9) % 3, rng.integers(0, 3, 300)
    found = evaluate(gallery, xq, queries, np.arange(300), database)
    scores = codebooks.scores(xq, codes).astype(np.float32)
    relevance = Relevance(as_labels(database, 300, "y"), np.arange(300), 300)
    wanted = measure(list(scores), as_labels(queries, 9, "q"), relevance)
    assert found["map"] == pytest.approx(wanted["map"], abs=1e-3)
    assert (found["lists"], found["bits"], found["distinct_codes"]) == (30, 4 * M, len(np.unique(codes, axis=0)))
    # What a search finds in one list is told; figures are of all rows.
    # (Rows of lists alone tie, and a search goes on until it has k of them.)
    exact = target == "buckets" or M == 0
    assert (found["search_agreement"] == 1) if exact else (0 < found["search_agreement"] < 1)
    faiss.downcast_index(unwrap_index(index).quantizer).reset()
    faiss.downcast_index(unwrap_index(index).quantizer).add(lists[::-1].copy())
    stored = Stored(index, None, find_target(target))
    gallery = Gallery(Snapshot(stored), None, "g")
    gallery._unpack = lambda snapshot: (codebooks, codes, np.arange(300))  # as if FAISS scored by other lists
    with pytest.raises(IndexFileError, match="of FAISS's scores are not those of its own codes"):
        evaluate(gallery, xq, queries, np.arange(300), database)


def test_a_perfect_ranking_gives_one_and_the_worst_what_it_must():
    codes = np.repeat(np.arange(4, dtype=np.uint8), 10)[:, None]
    codebooks = Codebooks("product", np.eye(4, dtype=np.float32)[None].repeat(1, 0))
    model = Model(Chain(4), codebooks, {"method": "label", "rule": "ip"})
    gallery = Gallery(Snapshot(Stored.of(*build(model, codes, np.arange(40), "ivfpq"))), None, "g")
    labels = Labels(codes[:, 0].astype(np.int64), 4)
    found = evaluate(gallery, np.eye(4, dtype=np.float32), Labels(np.arange(4), 4), np.arange(40), labels)
    assert (found["map"], found["precision_at_k"]["10"], found["recall_at_k"]["10"]) == (1.0, 1.0, 1.0)
    assert found["recall_at_k"]["1"] == 0.1
    worst = evaluate(gallery, -np.eye(4, dtype=np.float32), Labels(np.arange(4), 4), np.arange(40), labels)
    np.testing.assert_allclose(worst["map"], np.mean([j / (30 + j) for j in range(1, 11)]))


def test_vectors_are_measured_by_their_inner_products():
    rng = np.random.default_rng(0)
    zq, zb = rng.standard_normal((9, 4)).astype(np.float32), rng.standard_normal((70, 4)).astype(np.float32)
    yq, yb = Labels(rng.integers(0, 3, 9), 3), Labels(rng.integers(0, 3, 70), 3)
    found = measure_vectors(zq, yq, zb, yb)
    want = []
    for q, y in zip(zq, yq.y):
        order = (yb.y == y)[np.argsort(-(zb @ q), kind="stable")]
        total, hits = plain_ap(order, 70)
        want.append(total / hits)
    np.testing.assert_allclose(found["map"], np.mean(want), atol=1e-12)
    said = []
    measure(scores_in_blocks(zq, zb), yq, Relevance(yb, np.arange(70), 70), progress=lambda *a: said.append(a))
    assert said == [("evaluate", 9, 9, "")]


def small():
    gallery, _ = gallery_of(np.zeros((4, 2), np.uint8), np.arange(4) * 2)
    return gallery, np.zeros((1, 6), np.float32)


@pytest.mark.parametrize(
    "queries, ids, database, more, words",
    [
        (
            Labels(np.array([0]), 2),
            np.arange(4),
            Labels(np.zeros(4, int), 2),
            {},
            "^g.faissindex holds 4 ids, the database has 2",
        ),
        (
            Labels(np.array([0]), 2),
            np.arange(4) * 2,
            Labels(np.zeros(4, int), 2),
            {"at": 0},
            "^R is 0, needs 1 or more$",
        ),
        (
            Labels(np.array([[1, 0]], np.uint8), 2),
            np.arange(4) * 2,
            Labels(np.zeros(4, int), 3),
            {"name": "q.h5"},
            "^q.h5 has many labels a row and 2 classes, the database has one label a row and 3$",
        ),
    ],
)
def test_files_that_do_not_fit_together_are_refused(queries, ids, database, more, words):
    gallery, xq = small()
    with pytest.raises(ConfigError, match=words):
        evaluate(gallery, xq, queries, ids, database, **more)


def test_class_numbers_without_names_need_not_reach_as_far_on_both_sides():
    gallery, xq = small()
    found = evaluate(gallery, xq, Labels(np.array([0]), 1), np.arange(4) * 2, Labels(np.array([0, 1, 2, 0]), 3))
    np.testing.assert_allclose(found["map"], average_precision([4], [2]))
    assert list(found["precision_at_k"]) == ["1"]  # fewer rows than the other depths


def test_rows_without_a_label_are_relevant_to_no_query_and_classes_may_be_unknown():
    rng = np.random.default_rng(4)
    gallery, codebooks = gallery_of(rng.integers(0, 16, (30, 2)).astype(np.uint8), np.arange(30))
    xq = rng.integers(-2, 3, (8, 6)).astype(np.float32)
    yb = np.array(["b", "", "c"])[rng.integers(0, 3, 30)]
    yq = np.array(["b", "c", "a", "", "b", "c", "b", "c"])
    with pytest.warns(ScqWarning) as said:
        found = evaluate(gallery, xq, yq, np.arange(30), yb, name="q", database_name="db")
    assert [str(w.message) for w in said] == [
        "q: left out 1 of 8 queries without a label",
        "db has no row of class a, which q names",
    ]
    kept = np.flatnonzero(yq != "")
    multi_hot = [np.array([[name == c for c in "abc"] for name in y], int) for y in (yq[kept], yb)]
    ap, *_, none = brute_force(codebooks.scores(xq[kept], gallery.unpack()[1]), *multi_hot, None, (1,))
    np.testing.assert_allclose(found["map"], ap, atol=1e-12)
    assert (found["queries"], found["queries_without_relevant"], none) == (7, 1, 1)


def test_a_report_is_text_or_one_json_object():
    gallery, xq = small()
    found = evaluate(gallery, xq, Labels(np.array([2]), 3), np.arange(4) * 2, Labels(np.array([0, 1, 1, 0]), 3))
    assert json.loads(report_text(found, True)) == found
    assert report_text(found, False).splitlines() == [
        "mAP@4  0.0000   (1 queries, 4 vectors)",
        "precision  @1 0.0000",
        "recall     @1 0.0000",
        "8 bits, 1 distinct codes",
        "1 queries share no label with any row and count as 0",
    ]


def test_a_trained_gallery_ranks_its_classes(one, tmp_path):
    x, y = one
    model = scqfaiss.train(x[:300], y[:300], bits=16, nbits=4, encoder="linear", epochs=4)
    scqfaiss.export(model, x, path=tmp_path / "g.faissindex")
    gallery = scqfaiss.open(tmp_path / "g.faissindex", model=model)
    labels = Labels(y, 4)
    found = scqfaiss.evaluate(gallery, x[300:], labels.take(np.arange(300, 400)), np.arange(400), labels)
    assert found["map"] > 0.95
    assert found["search_agreement"] == 1.0
    assert found["distinct_codes"] == len({tuple(c) for c in model.encode(x).tolist()})
