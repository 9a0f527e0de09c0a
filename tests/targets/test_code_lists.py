"""Lists that are part of the code, in the containers that have lists: every score is that of the codebooks, all lists visited."""

import itertools

import faiss
import numpy as np
import pytest

from scqfaiss.codebooks import Codebooks, Shape
from scqfaiss.errors import ConfigError
from scqfaiss.targets import REGISTRY, code_lists, list_bounds, make_options, target
from scqfaiss.targets.base import METRIC
from scqfaiss.targets.code_lists import needed_nprobe
from scqfaiss.targets.pretransform import unwrap_index
from scqfaiss.targets.validation import validate

from .conftest import assert_best, random_queries

# kind, M, nbits, d, metric
FORMS = [
    ("product", 2, 8, 8, "ip"),
    ("product", 4, 4, 8, "ip"),
    ("product", 3, 4, 9, "ip"),
    ("product", 2, 9, 8, "ip"),
    ("product", 2, 8, 8, "l2"),
    ("product", 4, 4, 8, "l2"),
    ("product", 0, 1, 8, "ip"),
    ("product", 0, 1, 2, "ip"),
    ("product", 0, 1, 8, "l2"),
    ("additive", 1, 8, 6, "ip"),
    ("additive", 3, 8, 6, "ip"),
    ("additive", 4, 4, 6, "ip"),
    ("additive", 3, 4, 6, "ip"),
]
NAMES = ["ivfpq", "lift", "buckets"]


def made(kind="product", M=2, nbits=8, d=8, metric="ip", L=7, n=200, seed=0):
    """Codebooks whose lists lie farther apart than their codewords reach, and codes."""
    rng = np.random.default_rng(seed)
    width = d // max(M, 1) if kind == "product" else d
    centroids = rng.standard_normal((M, 1 << nbits, width)).astype(np.float32)
    codebooks = Codebooks(kind, centroids, metric, 3 * rng.standard_normal((L, d)).astype(np.float32))
    words = rng.integers(0, 1 << nbits, (n, M))
    return codebooks, codebooks.check_codes(np.column_stack([rng.integers(0, L, n), words]))


def cases():
    for form in FORMS:
        kind, M, nbits, d, metric = form
        for name in NAMES:
            if target(name).supports(Shape(kind, M, nbits, d, metric, 7)) is None:
                yield pytest.param(name, *form, id="-".join(map(str, (name, *form))))


CASES = list(cases())


def sorted_by(ids, *arrays):
    order = np.argsort(ids, kind="stable")
    return [a[order] for a in (ids, *arrays)]


@pytest.mark.parametrize("name, kind, M, nbits, d, metric", CASES)
@pytest.mark.parametrize("L", [2, 7, 300])
def test_every_list_visited_scores_as_the_codebooks(name, kind, M, nbits, d, metric, L):
    codebooks, codes = made(kind, M, nbits, d, metric, L)
    ids, q = np.arange(200) * 3 + 2, random_queries(6, d)
    container = target(name)
    index = container.build(codebooks, codes, ids)
    core = unwrap_index(index)
    assert core.nlist == L and core.by_residual and 1 <= core.nprobe <= L
    assert container.holds(index) and container.disagreement(index) is None
    validate(index)
    scores = codebooks.scores(q, codes)
    assert_best(container.search(index, q, 20, nprobe=L), scores, ids, 20, metric)
    plain = faiss.deserialize_index(faiss.serialize_index(index))  # as anyone reads it
    unwrap_index(plain).nprobe = L
    assert_best(plain.search(q, 20), scores, ids, 20, metric)
    if name == "buckets":
        assert_best(container.search(index, q, 20), scores, ids, 20, metric)
    # A filter that leaves a few rows, anywhere: all of them are found, whatever is visited first.
    some = ids[::29]
    I = container.search(index, q, 20, sel=faiss.IDSelectorBatch(some))[1]
    assert (np.sort(np.where(I < 0, -1, I), 1)[:, -len(some) :] == some).all() and (I >= 0).sum() == 6 * len(some)
    radius = float(np.median(scores))
    lims, _, I = container.range_search(index, q, radius)
    for row, (low, high) in enumerate(itertools.pairwise(lims)):
        gap = np.abs(scores[row] - radius) > 1e-4 * np.abs(scores).max()
        inside = (scores[row] > radius) if metric == "ip" else (scores[row] < radius)
        found = np.isin(ids, I[low:high])
        np.testing.assert_array_equal(found[gap], inside[gap])
        assert len(set(I[low:high])) == high - low


@pytest.mark.parametrize("name, kind, M, nbits, d, metric", CASES)
@pytest.mark.parametrize("L", [7, 300])
def test_what_was_built_is_unpacked(name, kind, M, nbits, d, metric, L):
    codebooks, codes = made(kind, M, nbits, d, metric, L)
    ids = np.random.default_rng(5).permutation(200) * 3
    index = target(name).build(codebooks, codes, ids)
    shape = target(name).shape_of(index)
    assert shape.L == L and shape.M in (M, M // 2) and shape.d == d
    found, found_codes, found_ids = target(name).unpack(index, codebooks.shape)
    assert found.shape == codebooks.shape and found_codes.dtype == codes.dtype
    np.testing.assert_array_equal(found.lists, codebooks.lists)
    found_ids, found_codes = sorted_by(found_ids, found_codes)
    ids, codes = sorted_by(ids, codes)
    np.testing.assert_array_equal(found_ids, ids)
    np.testing.assert_array_equal(found_codes, codes)
    np.testing.assert_allclose(found.decode(found_codes), codebooks.decode(codes), rtol=1e-5, atol=1e-5)
    as_stored = target(name).unpack(index)
    again = target(name).build(*as_stored)
    np.testing.assert_array_equal(faiss.serialize_index(again), faiss.serialize_index(index))


@pytest.mark.parametrize("name, kind, M, nbits, d, metric", CASES)
def test_the_size_is_known_before(name, kind, M, nbits, d, metric):
    codebooks, codes = made(kind, M, nbits, d, metric, 300, n=2000)
    size = len(faiss.serialize_index(target(name).build(codebooks, codes, np.arange(2000))))
    told = target(name).nbytes(codebooks.shape, 2000)
    assert abs(told - size) < 4096, (told, size)


@pytest.mark.parametrize("name", sorted(REGISTRY))
@pytest.mark.parametrize("kind", ["product", "additive"])
def test_other_containers_say_where_lists_can_stand(name, kind):
    why = target(name).supports(Shape(kind, 4, 4, 8, "ip", 7))
    if name in ("pq", "fastscan", "residual") and kind in target(name).INFO.kinds:
        assert why.startswith("its rows stand in no lists, and lists are part of these codes; use ")
        assert why.endswith("ivfpq or buckets" if kind == "product" else "lift or buckets")
    elif kind in target(name).INFO.kinds:
        assert why is None
    else:
        assert why is not None


def test_tables_that_faiss_would_not_read_again_are_refused():
    codebooks, codes = made(L=7)
    assert "lists of 16 x 256 codewords" in target("ivfpq").supports(Shape("product", 16, 8, 32, "ip", 1 << 14))
    assert "lists of 16 x 256 codewords" in target("lift").supports(Shape("additive", 32, 4, 32, "ip", 1 << 14))
    assert target("ivfpq").supports(Shape("product", 16, 8, 32, "ip", (1 << 14) - 1)) is None
    with_it = faiss.get_deserialization_vector_byte_limit()
    try:
        faiss.set_deserialization_vector_byte_limit(4 * 7 * 2 * 256)
        stored = faiss.serialize_index(target("ivfpq").build(codebooks, codes, np.arange(200)))
        if tuple(map(int, faiss.__version__.split(".")[:2])) < (
            1,
            15,
        ):  # counts no tables: files are read everywhere else
            faiss.deserialize_index(stored)
            return
        with pytest.raises(RuntimeError, match="limit"):
            faiss.deserialize_index(stored)
    finally:
        faiss.set_deserialization_vector_byte_limit(with_it)


@pytest.mark.parametrize("name", ["ivfpq", "buckets"])
def test_lists_of_the_model_leave_no_room_for_others(name):
    codebooks, codes = made()
    for options, words in (({"nlist": 3}, "the model has 7 lists of its own"), ({"nprobe": 8}, "at most the 7 lists")):
        with pytest.raises(ConfigError, match=words):
            target(name).check(make_options(name, options), 200, 7)
        with pytest.raises(ConfigError, match=words):
            target(name).build(codebooks, codes, np.arange(200), make_options(name, options))
    index = target(name).build(codebooks, codes, np.arange(200), make_options(name, {"nprobe": 5}))
    assert index.nprobe == 5


def test_lift_takes_nprobe_for_lists_alone():
    lift = target("lift")
    with pytest.raises(ConfigError, match="nprobe is 2, and codes of target lift have lists only where the model has"):
        lift.check(make_options("lift", {"nprobe": 2}), 10)
    codebooks, codes = made("additive")
    index = lift.build(codebooks, codes, np.arange(200), make_options("lift", {"nprobe": 3}))
    assert unwrap_index(index).nprobe == 3


# ------------------------------------------------------------------------------------------------- how many to visit


def share_found(core, q, best, k, nprobe):
    D = core.search(q, k, params=faiss.SearchParametersIVF(nprobe=nprobe))[0]
    sign = 1 if core.metric_type == METRIC["ip"] else -1
    return (sign * D >= sign * best - 1e-6 * np.abs(best).max()).mean()


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("L", [2, 40, 129])
def test_the_file_says_the_fewest_lists_that_find_most(metric, L):
    codebooks, codes = made(metric=metric, L=L, n=900)
    index = target("ivfpq").build(codebooks, codes, np.arange(900))
    chosen = np.linspace(0, 900, code_lists.TRIED, endpoint=False).astype(int)
    rows = codebooks.decode(codes[np.lexsort((codes[:, 2], codes[:, 1], codes[:, 0]))])
    q = (rows[chosen] + np.roll(rows, -450, 0)[chosen]) / 2
    best = index.search(q, 10, params=faiss.SearchParametersIVF(nprobe=L))[0]
    best = np.repeat(best[:, -1:], 10, 1)
    shares = [share_found(index, q, best, 10, nprobe) for nprobe in range(1, L + 1)]
    assert index.nprobe == 1 + int(np.argmax(np.array(shares) >= 0.98))


@pytest.mark.parametrize("name, kind", [("ivfpq", "product"), ("lift", "additive")])
def test_how_many_to_visit_does_not_depend_on_the_order_of_the_rows(name, kind):
    codebooks, codes = made(kind, M=3, nbits=2, d=6, L=400, n=3000)
    found = set()
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(3000)
        index = target(name).build(codebooks, codes[order], order)
        found.add(unwrap_index(index).nprobe)
    assert len(found) == 1


@pytest.mark.parametrize("seed", range(3))
def test_queries_that_no_code_was_learned_from_find_most(seed):
    """Codes as FAISS learns them: rows find theirs sooner, by what codes lose of them, which is most of it here."""
    x = random_queries(4300, 8, seed)
    rows, q = x[:4000], x[4000:]
    clusters = faiss.Kmeans(8, 32, seed=1, niter=10)
    clusters.train(rows)
    left = rows - clusters.centroids[clusters.assign(rows)[1]]
    pq = faiss.ProductQuantizer(8, 2, 4)
    pq.train(left)
    codebooks = Codebooks("product", faiss.vector_to_array(pq.centroids).reshape(2, 16, 4), "ip", clusters.centroids)
    codes = codebooks.assign(rows, "l2")
    index = target("ivfpq").build(codebooks, codes, np.arange(4000))
    best = -np.sort(-codebooks.scores(q, codes), 1)[:, 9:10]
    assert 0.95 <= share_found(index, q, np.repeat(best, 10, 1), 10, index.nprobe)
    assert index.nprobe < 16


def test_few_rows_and_none():
    codebooks, codes = made(L=50)
    for n in (0, 1, 3):
        index = target("ivfpq").build(codebooks, codes[:n], np.arange(n))
        assert 1 <= index.nprobe <= 50 and index.ntotal == n
        I = target("ivfpq").search(index, random_queries(2, 8), 5)[1]
        assert (I[:, :n] >= 0).all() and (I[:, n:] == -1).all()
        assert needed_nprobe(index, codebooks, codes[:n]) == index.nprobe
    assert target("buckets").search(index, random_queries(2, 8), 5)[1].shape == (2, 5)


# ------------------------------------------------------------------------------------------------------ exact search


@pytest.mark.parametrize("kind", ["product", "additive"])
@pytest.mark.parametrize("k", [1, 10, 150])
def test_bounds_spare_lists_and_no_hit(kind, k, monkeypatch):
    codebooks, codes = made(kind, L=400, n=3000, d=6)
    codebooks = Codebooks(kind, codebooks.centroids / 8, lists=codebooks.lists)
    ids, q = np.arange(3000), random_queries(20, 6)
    index = target("buckets").build(codebooks, codes, ids)
    visited = []
    searched = faiss.IndexIVF.search_preassigned_c

    def counted(ivf, n, x, k, lists, *more):
        params = more[-1]
        visited.append((faiss.rev_swig_ptr(lists, n * params.nprobe) >= 0).sum())
        return searched(ivf, n, x, k, lists, *more)

    monkeypatch.setattr(faiss.IndexIVFPQ, "search_preassigned_c", counted, raising=False)
    assert_best(target("buckets").search(index, q, k), codebooks.scores(q, codes), ids, k)
    assert 0 < sum(visited) < 20 * 400


@pytest.mark.parametrize("scale", [2.0**-30, 1.0, 2.0**30])
def test_bounds_hold_at_any_scale_and_for_queries_of_zeros(scale):
    codebooks, codes = made(L=30, n=500)
    codebooks = Codebooks("product", codebooks.centroids * np.float32(scale), lists=codebooks.lists * np.float32(scale))
    q = random_queries(5, 8)
    q[2] = 0
    index = target("buckets").build(codebooks, codes, np.arange(500))
    assert_best(target("buckets").search(index, q, 12), codebooks.scores(q, codes), np.arange(500), 12)
    core = unwrap_index(index)
    table = codebooks.centroids.astype(np.float64)
    added = sum((q[:, 4 * m : 4 * m + 4] @ table[m].T).max(1) for m in range(2))
    found = list_bounds.most_added(core, q)
    assert (found >= added).all() and (found <= added + 1e-4 * np.abs(added).max()).all()


# ---------------------------------------------------------------------------------------------- files that are not so


def test_centroids_of_additive_codes_stand_before_zeros():
    codebooks, codes = made("additive", 2)
    index = target("lift").build(codebooks, codes, np.arange(200))
    core = unwrap_index(index)
    centroids = faiss.vector_to_array(faiss.downcast_index(core.quantizer).codes).view(np.float32).reshape(7, 16).copy()
    assert not centroids[:, 8:].any()
    centroids[3, 9] = 1
    faiss.copy_array_to_vector(centroids.view(np.uint8).ravel(), faiss.downcast_index(core.quantizer).codes)
    for name in ("lift", "buckets"):
        assert target(name).disagreement(index) == "the centroid of list 3 reaches beyond the first 8 dimensions"


@pytest.mark.parametrize("name", NAMES)
def test_lists_found_by_another_metric_are_seen(name):
    codebooks, codes = made("additive" if name == "lift" else "product")
    index = target(name).build(codebooks, codes, np.arange(200))
    faiss.downcast_index(unwrap_index(index).quantizer).metric_type = faiss.METRIC_L2
    assert target(name).disagreement(index) == "the lists have metric ip, their centroids l2"


def test_an_index_of_residuals_that_faiss_trained_is_unpacked():
    x = random_queries(300, 8)
    quantizer = faiss.IndexFlatL2(8)
    index = faiss.IndexIVFPQ(quantizer, 8, 4, 2, 4)
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
    index.train(x)
    index.add(x)
    index.nprobe = 4
    assert target("ivfpq").holds(index) and target("ivfpq").disagreement(index) is None
    codebooks, codes, ids = target("ivfpq").unpack(index)
    assert codebooks.shape == Shape("product", 2, 4, 8, "l2", 4)
    assert_best(index.search(x[:9], 30), codebooks.scores(x[:9], codes), ids, 30, "l2")
