"""Buckets: the exact best of the oracle, in both forms, for any k, query and filter."""

import faiss
import numpy as np
import pytest

from scqfaiss.codebooks import Codebooks
from scqfaiss.errors import ConfigError, ScqWarning
from scqfaiss.targets import bounding_boxes, buckets, target
from scqfaiss.targets.bounding_boxes import best_boxes, cut_lists, signed_parts, visit_lists
from scqfaiss.targets.buckets import _holds_unique_codes
from scqfaiss.targets.lists import rows_of
from scqfaiss.targets.options import ListOptions
from scqfaiss.targets.pretransform import unwrap_index

from .conftest import assert_best, random_codebooks, random_codes, random_queries

BUCKETS = target("buckets")
pytestmark = pytest.mark.filterwarnings("ignore:these codes do not gather")  # random ones, most of them


def rows(kind, n, classes, noise, M=4, nbits=8, d=16, seed=0):
    """Codes around `classes` points: of M codewords a row has its class's, but for a share `noise` of them."""
    codebooks = random_codebooks(kind, M, nbits, d, seed=seed)
    rng = np.random.default_rng(seed + 1)
    codes = rng.integers(0, codebooks.K, (classes, M))[rng.integers(0, classes, n)]
    other = rng.random((n, M)) < noise
    codes[other] = rng.integers(0, codebooks.K, int(other.sum()))
    return codebooks, codebooks.check_codes(codes)


def queries(codebooks, codes, nq=24, seed=5):
    """Rows with noise, their negatives, positive ones, zeros, and pure noise."""
    rng = np.random.default_rng(seed)
    q = codebooks.decode(codes[rng.integers(0, len(codes), nq)]) + 0.3 * rng.standard_normal((nq, codebooks.d))
    q[4:8] *= -1
    q[8:11] = np.abs(q[8:11])
    q[11:14] = -np.abs(q[11:14])
    q[14:16] = 0
    q[16:20] = rng.standard_normal((4, codebooks.d))
    return q.astype(np.float32)


# What the codes are -> the form they take.
MADE = {
    "words": {"kind": "product", "n": 6000, "classes": 40, "noise": 0.0},
    "words, additive": {"kind": "additive", "n": 6000, "classes": 40, "noise": 0.0, "d": 8},
    "few rows": {"kind": "product", "n": 900, "classes": 10, "noise": 0.5},
    "boxes": {"kind": "product", "n": 8000, "classes": 30, "noise": 0.3},
    "boxes, no structure": {"kind": "product", "n": 5000, "classes": 5000, "noise": 0.0},
    "boxes, additive": {"kind": "additive", "n": 6000, "classes": 30, "noise": 0.3, "d": 8},
    "boxes, pairs": {"kind": "product", "n": 6000, "classes": 30, "noise": 0.3, "M": 8, "nbits": 4},
    "boxes, odd": {"kind": "product", "n": 5000, "classes": 30, "noise": 0.3, "M": 5, "nbits": 4, "d": 20},
}
_made = {}


def made(name):
    """codebooks, codes, ids, index, queries, scores of a case, built once."""
    if name not in _made:
        codebooks, codes = rows(**MADE[name])
        ids = np.random.default_rng(7).permutation(len(codes)) * 3 + 10**12
        q = queries(codebooks, codes)
        _made[name] = codebooks, codes, ids, BUCKETS.build(codebooks, codes, ids), q, codebooks.scores(q, codes)
    return _made[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_the_form_follows_from_the_codes(name):
    codebooks, codes, ids, index, _, _ = made(name)
    core = unwrap_index(index)
    assert _holds_unique_codes(core) == (not name.startswith("boxes"))
    assert BUCKETS.holds(index) and index.ntotal == len(codes)
    if _holds_unique_codes(core):
        assert core.nlist == len(np.unique(codes, axis=0))
    found, held, held_ids = BUCKETS.unpack(index, codebooks.shape)
    np.testing.assert_array_equal(held_ids[np.argsort(held_ids)], np.sort(ids))
    np.testing.assert_array_equal(held[np.argsort(held_ids)], codes[np.argsort(ids)])
    np.testing.assert_allclose(found.decode(held[:50]), codebooks.decode(held[:50]), atol=1e-5)


@pytest.mark.parametrize("k", [1, 10, 1000, "n"])
@pytest.mark.parametrize("name", MADE)
def test_the_best_are_the_oracles(name, k):
    _, codes, ids, index, q, scores = made(name)
    k = len(codes) if k == "n" else min(k, len(codes))
    some = slice(None) if k <= 10 else slice(2, None, 4)  # one of each sort of query
    assert_best(BUCKETS.search(index, q[some], k), scores[some], ids, k)


@pytest.mark.parametrize("name", MADE)
def test_one_query_at_a_time_and_more_than_there_are(name):
    _, codes, ids, index, q, scores = made(name)
    for i in (0, 5, 12, 15, 18):
        assert_best(BUCKETS.search(index, q[i : i + 1], 10), scores[i : i + 1], ids, 10)
    assert_best(BUCKETS.search(index, q[15:17], len(codes) + 9), scores[15:17], ids, len(codes) + 9)


@pytest.mark.parametrize("share", [0.5, 0.01, "three rows", "none"])
@pytest.mark.parametrize("name", MADE)
def test_a_filter_leaves_the_best_of_what_it_leaves(name, share):
    _, codes, ids, index, q, scores = made(name)
    n = len(codes)
    kept = np.zeros(n, bool)
    count = {"three rows": 3, "none": 0}.get(share) if isinstance(share, str) else int(share * n)
    kept[np.random.default_rng(3).choice(n, count, replace=False)] = True
    batch = faiss.IDSelectorBatch(ids[kept])
    for k in (1, 10, 40):
        D, I = BUCKETS.search(index, q, k, sel=batch)
        if share == "none":
            assert (I == -1).all()
        else:
            assert_best((D, I), scores[:, kept], ids[kept], k)
    if share == 0.01:
        assert_best(BUCKETS.search(index, q, 10, sel=faiss.IDSelectorNot(batch)), scores[:, ~kept], ids[~kept], 10)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 1.0])
def test_a_range_is_every_row_above_it(name, share):
    _, _, ids, index, q, scores = made(name)
    values = np.sort(scores[:8], axis=None)
    i = min(max(int((1 - share) * len(values)), 1), len(values) - 20)
    radius = {0.0: values[-1] + 1, 1.0: min(values[0], 0) - 1}.get(share)
    if radius is None:
        j = i + np.diff(values[i : i + 20]).argmax()
        radius = values[j : j + 2].mean()
    batch = faiss.IDSelectorBatch(ids[::3])
    for sel, some in ((None, slice(None)), (batch, slice(None, None, 3))):
        lims, D, I = BUCKETS.range_search(index, q[:8], float(radius), sel=sel)
        for r in range(8):
            part = slice(lims[r], lims[r + 1])
            here = scores[r, some]
            wanted = here > radius
            near = np.abs(here - radius) < 1e-5 * np.abs(scores).max()
            found = np.isin(ids[some], I[part])
            assert len(set(I[part])) == found.sum() == lims[r + 1] - lims[r]
            np.testing.assert_array_equal(found[~near], wanted[~near])
            place = np.argsort(ids[some])[np.searchsorted(np.sort(ids[some]), I[part])]
            np.testing.assert_allclose(D[part], here[place], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["words", "boxes"])
def test_one_word_of_four_tenths_of_the_rows(form):
    codebooks, codes = rows("product", 9000, 200, 0.4 if form == "boxes" else 0.0)
    codes[np.random.default_rng(2).random(9000) < 0.4] = codes[0]
    index = BUCKETS.build(codebooks, codes, np.arange(9000))
    assert _holds_unique_codes(unwrap_index(index)) == (form == "words")
    q = queries(codebooks, codes)
    q[0] = codebooks.decode(codes[:1])[0]
    scores = codebooks.scores(q, codes)
    for k in (1, 10, 3000, 4000):
        some = slice(None) if k <= 10 else slice(0, None, 6)
        assert_best(BUCKETS.search(index, q[some], k), scores[some], np.arange(9000), k)
    few = faiss.IDSelectorBatch(np.arange(0, 9000, 90))
    assert_best(BUCKETS.search(index, q, 20, sel=few), scores[:, ::90], np.arange(0, 9000, 90), 20)
    if form == "boxes":
        sizes = np.bincount(rows_of(unwrap_index(index))[0])
        assert sizes.max() <= -(-bounding_boxes.LONGEST * 9000 // 256)  # cut in pieces
        # Pieces of one word stand side by side: no list but the first and the last holds others beside it.
        numbers, held, _ = rows_of(unwrap_index(index))
        alike = (held == codes[0]).all(1)
        mixed = set(numbers[alike]) & set(numbers[~alike])
        assert len(mixed) <= 2


@pytest.fixture(scope="module")
def two_levels():
    """20,000 rows in about 5,000 lists: boxes in lists of their own."""
    codebooks, codes = rows("product", 20_000, 300, 0.4)
    index = BUCKETS.build(codebooks, codes, np.arange(20_000) + 4, ListOptions(nlist=5000, nprobe=50))
    q = queries(codebooks, codes)
    return codebooks, codes, index, q, codebooks.scores(q, codes)


@pytest.mark.slow
def test_many_boxes_stand_in_lists_of_their_own(two_levels):
    codebooks, _, index, q, scores = two_levels
    core = unwrap_index(index)
    boxes = unwrap_index(core.quantizer)
    assert isinstance(boxes, faiss.IndexIVFFlat) and bounding_boxes.FLAT_BOXES < core.nlist < 6000
    assert (core.nprobe, boxes.nprobe) == (50, boxes.nlist)
    ids = np.arange(20_000) + 4
    for k in (1, 10, 1000):
        some = slice(None) if k <= 10 else slice(0, None, 4)
        assert_best(BUCKETS.search(index, q[some], k), scores[some], ids, k)
    for step in (2, 100, 7000):
        kept = slice(None, None, step)
        assert_best(BUCKETS.search(index, q, 10, sel=faiss.IDSelectorBatch(ids[kept])), scores[:, kept], ids[kept], 10)
    lims, _, I = BUCKETS.range_search(index, q[:4], float(np.quantile(scores[:4], 0.999)))
    for r in range(4):
        wanted = np.flatnonzero(scores[r] > np.quantile(scores[:4], 0.999)) + 4
        assert len(np.setxor1d(I[lims[r] : lims[r + 1]], wanted)) <= 1  # a score may lie on the threshold itself
    # The best boxes are those of a plain look at all of them.
    corners, _ = all_corners(core)
    flat = faiss.IndexFlatIP(corners.shape[1])
    flat.add(corners)
    p = signed_parts(q, codebooks.d)
    for width in (1, 32, 500, core.nlist):
        np.testing.assert_allclose(
            best_boxes(boxes, p, width)[0], flat.search(p, width)[0], rtol=1e-5, atol=1e-4 * np.abs(scores).max()
        )


def all_corners(core):
    """(high, low) of every list as the file has them, (nlist, 2 d), and whether they come from two levels."""
    boxes = unwrap_index(core.quantizer)
    if isinstance(boxes, faiss.IndexFlat):
        return boxes.reconstruct_n(0, boxes.ntotal), False
    boxes.make_direct_map()
    found = boxes.reconstruct_n(0, boxes.ntotal)
    boxes.set_direct_map_type(faiss.DirectMap.NoMap)
    return found, True


@pytest.mark.parametrize("name", [n for n in MADE if n.startswith("boxes")])
def test_no_row_scores_above_the_bound_of_its_list(name):
    codebooks, codes, ids, index, q, scores = made(name)
    check_bounds(codebooks, codes, ids, unwrap_index(index), q, scores)


def test_no_row_scores_above_the_bound_of_its_list_in_two_levels(two_levels):
    codebooks, codes, index, q, scores = two_levels
    check_bounds(codebooks, codes, np.arange(20_000) + 4, unwrap_index(index), q, scores)
    # Nor does a box above the bound of the larger box around it.
    boxes = unwrap_index(unwrap_index(index).quantizer)
    larger = faiss.downcast_index(boxes.quantizer).reconstruct_n(0, boxes.nlist)
    corners, d = all_corners(unwrap_index(index))[0], codebooks.d
    for number in range(boxes.nlist):
        size = boxes.invlists.list_size(number)
        held = faiss.rev_swig_ptr(boxes.invlists.get_ids(number), size)
        assert (corners[held, :d] <= larger[number, :d]).all() and (corners[held, d:] >= larger[number, d:]).all()


def check_bounds(codebooks, codes, ids, core, q, scores):
    numbers, _, held = rows_of(core)
    place = np.argsort(ids)[np.searchsorted(np.sort(ids), held)]
    corners, d = all_corners(core)[0].astype(np.float64), codebooks.d
    x = codebooks.decode(codes)[place]
    eps = 1e-5 * np.abs(x).max()  # additive sums of merged pairs round otherwise
    assert (x <= corners[numbers, :d] + eps).all() and (x >= corners[numbers, d:] - eps).all()
    bounds = signed_parts(q, d).astype(np.float64) @ corners.T
    assert (scores[:, place] <= bounds[:, numbers] + 1e-5 * np.abs(scores).max()).all()
    # They are the smallest boxes: every side is touched.
    for number in np.unique(numbers)[::17]:
        part = x[numbers == number]
        np.testing.assert_allclose(np.r_[part.max(0), part.min(0)], corners[number], atol=eps)


@pytest.mark.parametrize("name", [n for n in MADE if n.startswith("boxes")])
def test_plain_faiss_finds_nearly_all_with_the_nprobe_stored(name):
    """For queries like the rows, which is what it was tuned on."""
    codebooks, codes, ids, index, _, _ = made(name)
    q = codebooks.decode(codes[::80]) + random_queries(len(codes[::80]), codebooks.d) * 0.1
    scores = codebooks.scores(q, codes)
    D, I = faiss.deserialize_index(faiss.serialize_index(index)).search(q, 10)
    best = -np.sort(-scores, axis=1)[:, :10]
    assert (D >= best - 1e-5 * np.abs(scores).max()).mean() >= 0.99
    place = np.argsort(ids)[np.searchsorted(np.sort(ids), I)]
    np.testing.assert_allclose(D, np.take_along_axis(scores, place, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_distances_stay_in_words_whatever_repeats(metric):
    codebooks = random_codebooks("product", 4, 8, 16, metric)
    codes = random_codes(codebooks, 5000)
    index = BUCKETS.build(codebooks, codes, np.arange(5000))
    assert _holds_unique_codes(unwrap_index(index)) == (metric == "l2")
    q = random_queries(10, 16)
    scores = codebooks.scores(q, codes)
    assert_best(BUCKETS.search(index, q, 100), scores, np.arange(5000), 100, metric)
    sel = faiss.IDSelectorBatch(np.arange(0, 5000, 500))
    assert_best(BUCKETS.search(index, q, 12, sel=sel), scores[:, ::500], np.arange(0, 5000, 500), 12, metric)
    if metric == "l2":
        with pytest.raises(ConfigError, match=r"^lists of neighbours have bounds for inner products only; leave "):
            BUCKETS.build(codebooks, codes, np.arange(5000), ListOptions(nlist=10))


def test_building_anew_with_more_rows_may_change_the_form_and_no_answer():
    codebooks, codes = rows("product", 12_000, 500, 0.0)
    ids = np.arange(12_000)
    index = BUCKETS.build(codebooks, codes, ids)
    assert _holds_unique_codes(unwrap_index(index))
    held_codebooks, held, held_ids = BUCKETS.unpack(index, codebooks.shape)
    more = random_codes(codebooks, 6000)
    codes, ids = np.concatenate([held, more]), np.concatenate([held_ids, np.arange(6000) + 50_000])
    index = BUCKETS.build(held_codebooks, codes, ids, like=index)
    assert not _holds_unique_codes(unwrap_index(index))
    q = queries(codebooks, codes)
    scores = codebooks.scores(q, codes)
    assert_best(BUCKETS.search(index, q, 10), scores, ids, 10)
    # And back, once the new ones are gone.
    _, held, held_ids = BUCKETS.unpack(index, codebooks.shape)
    old = held_ids < 50_000
    index = BUCKETS.build(codebooks, held[old], held_ids[old], like=index)
    assert _holds_unique_codes(unwrap_index(index))
    assert_best(BUCKETS.search(index, q, 10), codebooks.scores(q, held[old]), held_ids[old], 10)


def test_a_search_that_says_nprobe_is_plain_faiss():
    _, _, _, index, q, _ = made("boxes")
    core = unwrap_index(index)
    before, core.nprobe = core.nprobe, 3
    plain = index.search(q, 5)
    core.nprobe = before
    for a, b in zip(BUCKETS.search(index, q, 5, nprobe=3), plain):
        np.testing.assert_array_equal(a, b)


def test_lists_asked_for_are_made_whatever_repeats():
    codebooks, codes, ids, _, q, scores = made("words")
    index = BUCKETS.build(codebooks, codes, ids, ListOptions(nlist=30))
    assert not _holds_unique_codes(unwrap_index(index)) and 20 <= unwrap_index(index).nlist <= 60
    assert_best(BUCKETS.search(index, q, 10), scores, ids, 10)
    one = BUCKETS.build(codebooks, codes[:7], ids[:7], ListOptions(nlist=500))
    assert_best(BUCKETS.search(one, q, 7), scores[:, :7], ids[:7], 7)
    assert unwrap_index(one).nlist <= 7


def test_many_bits_above_eight_bytes():
    codebooks, codes = rows("product", 5000, 20, 0.3, M=12, nbits=8, d=24)
    index = BUCKETS.build(codebooks, codes, np.arange(5000))
    q = queries(codebooks, codes)
    assert_best(BUCKETS.search(index, q, 10), codebooks.scores(q, codes), np.arange(5000), 10)


# --------------------------------------------------------------------------------------------------------------- parts
@pytest.mark.parametrize("dtype", ["u8", "V9"])
@pytest.mark.parametrize("longest", [1, 3, 50])
def test_cut_lists_hold_no_more_than_they_may_and_keep_equal_words_together(longest, dtype):
    rng = np.random.default_rng(0)
    lists, numbers = rng.integers(0, 12, 200) * 3, rng.integers(0, 5, 200)
    words = numbers.astype("<u8") if dtype == "u8" else np.array([b"%09d" % w for w in numbers], "S9").view("V9")
    found = cut_lists(lists, words, longest)
    wanted, number = np.empty(200, int), 0
    for old in np.unique(lists):
        mine = np.flatnonzero(lists == old)
        if dtype == "u8":
            mine = mine[np.argsort(numbers[mine], kind="stable")]
        for i in range(0, len(mine), longest):
            wanted[mine[i : i + longest]] = number
            number += 1
    np.testing.assert_array_equal(found, wanted)
    assert np.bincount(found).max() <= longest and found.max() + 1 == number


def test_corners_are_the_parts_of_a_query_once():
    q = np.array([[1, -2, 0, 1, -2, 0]], np.float32)  # repeated, as for additive codes
    np.testing.assert_array_equal(signed_parts(q, 3), [[1, 0, 0, 0, -2, 0]])


class FakeLists:
    """Lists of scores for one number a query: enough for visit_lists, and it counts what is visited."""

    def __init__(self, scores, numbers, nlist):
        self.scores, self.numbers, self.nlist = scores, numbers, nlist
        self.visited = []

    def best(self, every_bound):
        order = np.argsort(-every_bound, axis=1, kind="stable")

        def get(rows, width):
            chosen = order[rows][:, :width]
            return np.take_along_axis(every_bound[rows], chosen, 1), chosen

        return get

    def search(self, ivf, x, k, bounds, lists, sel):
        D, I = np.full((len(x), k), -np.inf, np.float32), np.full((len(x), k), -1)
        for r, (q, row) in enumerate(zip(x[:, 0].astype(int), lists)):
            self.visited.append((q, [int(n) for n in row if n >= 0]))
            mine = np.flatnonzero(np.isin(self.numbers, row[row >= 0]) & (sel is None or sel))
            mine = mine[np.argsort(-self.scores[q, mine], kind="stable")][:k]
            D[r, : len(mine)], I[r, : len(mine)] = self.scores[q, mine], mine
        return D, I


@pytest.mark.slow
@pytest.mark.parametrize("tightness", [0.0, 0.3, 5.0])
@pytest.mark.parametrize("nlist", [1, 3, 20, 200, 700])
@pytest.mark.parametrize("k", [1, 7, 60])
@pytest.mark.parametrize("kept", [1.0, 0.05])
def test_visits_end_where_no_other_list_can_be_better(k, nlist, tightness, kept, monkeypatch):
    rng = np.random.default_rng(nlist)
    n, nq = 900, 5
    numbers = np.concatenate([np.arange(nlist), rng.integers(0, nlist, n - nlist)])
    level = rng.standard_normal((nq, nlist))
    scores = np.round(level[:, numbers] + 0.3 * rng.standard_normal((nq, n)), 1).astype(np.float32)  # ties
    bounds = np.stack([[scores[q, numbers == i].max() for i in range(nlist)] for q in range(nq)])
    bounds = (bounds + tightness * rng.random(bounds.shape)).astype(np.float32)
    sel = None if kept == 1.0 else rng.random(n) < kept
    fake = FakeLists(scores, numbers, nlist)
    monkeypatch.setattr(bounding_boxes, "_search_preassigned", fake.search)
    D, I = visit_lists(fake, np.arange(nq, dtype=np.float32)[:, None], k, sel, fake.best(bounds))
    left = np.arange(n) if sel is None else np.flatnonzero(sel)
    for q in range(nq):
        best = -np.sort(-scores[q, left])[:k]
        held = min(k, len(left))
        np.testing.assert_array_equal(D[q, :held], best)
        assert (I[q, held:] == -1).all() and len(set(I[q, :held])) == held
        if held == k:  # lists beyond the certificate are visited by no query, but for the first few
            visited = set().union(*(lists for who, lists in fake.visited if who == q))
            sure = set(np.flatnonzero(bounds[q] > best[-1]))
            first = set(np.argsort(-bounds[q], kind="stable")[: bounding_boxes.FIRST])
            assert sure <= visited
            if sel is None and tightness == 0.0 and k == 1:
                assert visited <= sure | first


# ---------------------------------------------------------------------------------------------- what it says and takes
def test_codes_that_do_not_gather_are_told_of():
    codebooks = random_codebooks("product", 8, 8, 64)
    with pytest.warns(
        ScqWarning, match=r"^these codes do not gather: buckets look at most rows of them, targets ivfpq"
    ):
        BUCKETS.build(codebooks, random_codes(codebooks, 6000), np.arange(6000))


def test_small_numbers_are_tuned_like_large_ones():
    """The lists that plain FAISS visits do not depend on the unit of the features."""
    codebooks, codes = rows("product", 6000, 60, 0.3)
    found = []
    for scale in (1.0, 2.0**-20, 2.0**20):
        scaled = Codebooks("product", codebooks.centroids * np.float32(scale))
        found.append(unwrap_index(BUCKETS.build(scaled, codes, np.arange(6000), ListOptions(nlist=200))).nprobe)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("pairs", [1, 5 * 300])
def test_queries_in_blocks_are_the_same_queries(pairs, monkeypatch):
    """A search whose filter leaves little would hold a number for every query and list."""
    _, _, ids, index, q, _ = made("boxes")
    allow = faiss.IDSelectorBatch(ids[:3])
    want = BUCKETS.search(index, q, 20), BUCKETS.search(index, q, 20, sel=allow)
    monkeypatch.setattr(buckets, "MOST_PAIRS", pairs)
    for a, b in zip(want, (BUCKETS.search(index, q, 20), BUCKETS.search(index, q, 20, sel=allow))):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])


@pytest.mark.slow
@pytest.mark.parametrize("n, d", [(8500, 512), (20000, 64), (4097, 8)])
def test_the_bytes_announced_are_enough(n, d):
    codebooks = random_codebooks("product", 4, 8, d)
    index = BUCKETS.build(codebooks, random_codes(codebooks, n), np.arange(n))
    assert len(faiss.serialize_index(index)) <= BUCKETS.nbytes(codebooks.shape, n)
