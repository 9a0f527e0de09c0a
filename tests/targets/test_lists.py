"""Inverted lists: codes go in as they are, rows are dealt to lists by their vectors, and lists may be taken over."""

import faiss
import numpy as np
import pytest

from scqfaiss.errors import ConfigError
from scqfaiss.faiss_calls import nearest
from scqfaiss.targets import lists, target
from scqfaiss.targets.ivfpq import one_list
from scqfaiss.targets.lists import Partition, code_keys, decoded, kmeans, list_sizes, rows_of
from scqfaiss.targets.options import ListOptions

from .conftest import KINDS, assert_best, random_codebooks, random_codes, random_queries

IVFPQ = target("ivfpq")


def brute_nearest(x, centroids):
    return np.square(x[:, None].astype(np.float64) - centroids[None]).sum(2).argmin(1)


def test_nearest_is_the_nearest_by_distance():
    x, centroids = random_queries(200, 5), random_queries(17, 5, seed=4)
    np.testing.assert_array_equal(nearest(x, centroids), brute_nearest(x, centroids))


def test_kmeans_of_few_rows_is_the_rows():
    x = random_queries(5, 3)
    np.testing.assert_array_equal(kmeans(x, 5), x)
    np.testing.assert_array_equal(kmeans(x, 8), x[[0, 1, 2, 3, 4, 0, 0, 0]])


def test_kmeans_lowers_the_distance_and_repeats_itself():
    x = np.concatenate([random_queries(300, 4, seed=i) / 9 + random_queries(1, 4, seed=50 + i) for i in range(6)])
    first = kmeans(x, 6)
    np.testing.assert_array_equal(first, kmeans(x, 6))
    spread = np.square(x - first[nearest(x, first)]).sum(1).mean()
    assert first.shape == (6, 4)
    assert spread < 0.5 * np.square(x - x.mean(0)).sum(1).mean()


@pytest.mark.parametrize("nlist", [1, 7, 40])
def test_a_partition_of_one_level_is_the_nearest_centroid(nlist):
    x = random_queries(500, 6)
    part = Partition(x, nlist)
    assert part.below == [] and len(part.top) == nlist
    np.testing.assert_array_equal(part(x), brute_nearest(x, part.top))


def test_a_partition_of_two_levels_is_the_nearest_below_the_nearest(monkeypatch):
    monkeypatch.setattr(lists, "FLAT_LISTS", 16)
    x = random_queries(2000, 4)
    part = Partition(x, 64)
    assert len(part.top) == 8 == len(part.below)
    assert 48 <= part.first[-1] <= 80
    y = np.concatenate([x[:300], random_queries(50, 4, seed=8) * 5])  # rows far from the sample too
    top = brute_nearest(y, part.top)
    wanted = [part.first[t] + brute_nearest(row[None], part.below[t])[0] for t, row in zip(top, y)]
    np.testing.assert_array_equal(part(y), wanted)
    np.testing.assert_array_equal(part(y[:1]), wanted[:1])
    assert len(part(y[:0])) == 0


def test_a_partition_holds_every_row_where_many_are_equal(monkeypatch):
    monkeypatch.setattr(lists, "FLAT_LISTS", 16)
    x = random_queries(3000, 4)
    x[:2000] = x[0]
    part = Partition(x, 100)
    found = part(x)
    assert found.min() >= 0 and found.max() < part.first[-1]
    assert len(set(found[:2000])) == 1


@pytest.mark.parametrize("M, nbits", [(1, 1), (3, 4), (5, 3), (8, 8), (9, 8), (4, 16), (5, 16), (20, 4)])
def test_words_are_equal_where_codes_are(M, nbits):
    codebooks = random_codebooks("product", M, min(nbits, 8), M)
    codes = random_codes(codebooks, 300).astype(np.uint8 if nbits <= 8 else np.uint16)
    codes[100:200] = codes[:100]
    codes[250:, : M - 1] = codes[0, : M - 1]  # that differ in the last codebook alone
    words = code_keys(codes, nbits)
    assert words.shape == (300,)
    assert words.dtype.kind == ("V" if M * nbits > 64 else "u")
    _, by_words = np.unique(words, return_inverse=True)
    _, by_codes = np.unique(codes, axis=0, return_inverse=True)
    pairs = set(zip(by_words.ravel().tolist(), by_codes.ravel().tolist()))
    assert len(pairs) == by_words.max() + 1 == by_codes.max() + 1


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_in_blocks_is_decoding(kind, monkeypatch):
    codebooks = random_codebooks(kind, 4, 4, 8)
    codes = random_codes(codebooks, 101)
    monkeypatch.setattr(lists, "DECODED_BYTES", 4 * 8 * 30)
    parts = list(decoded(codebooks, codes))
    assert [i for i, _ in parts] == [0, 30, 60, 90]
    np.testing.assert_array_equal(np.concatenate([x for _, x in parts]), codebooks.decode(codes))


@pytest.mark.parametrize("nlist", [1, 3, 257])
@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_lists_around_the_origin_change_no_score(nlist, metric):
    codebooks = random_codebooks("product", 4, 8, 8, metric)
    codes, q = random_codes(codebooks, 300), random_queries(9, 8)
    index = one_list(codebooks, codes, np.arange(300) + 5, nlist)
    sizes = list_sizes(index)
    assert (len(sizes), sizes.sum()) == (nlist, 300) and sizes.max() - sizes.min() <= 1
    assert_best(index.search(q, 20), codebooks.scores(q, codes), np.arange(300) + 5, 20, metric)
    numbers, held, ids = rows_of(index)
    np.testing.assert_array_equal(held[np.argsort(ids)], codes)
    np.testing.assert_array_equal(numbers, (ids - 5) % nlist)


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("M, nbits", [(4, 8), (4, 4), (3, 4)])
def test_real_lists_route_and_the_scores_stay_exact(M, nbits, metric):
    codebooks = random_codebooks("product", M, nbits, 4 * M, metric)
    codes, ids = random_codes(codebooks, 800), np.random.default_rng(3).permutation(800) + 10**10
    index = IVFPQ.build(codebooks, codes, ids, ListOptions(nlist=20))
    assert (index.nlist, index.nprobe, index.by_residual) == (20, 2, False)
    assert IVFPQ.build(codebooks, codes, ids, ListOptions(nlist=20, nprobe=7)).nprobe == 7
    for i in (index, faiss.deserialize_index(faiss.serialize_index(index))):
        assert IVFPQ.holds(i)
        found, found_codes, found_ids = IVFPQ.unpack(i, codebooks.shape)
        np.testing.assert_array_equal(found.centroids, codebooks.centroids)
        np.testing.assert_array_equal(found_ids[np.argsort(found_ids)], np.sort(ids))
        np.testing.assert_array_equal(found_codes[np.argsort(found_ids)], codes[np.argsort(ids)])
        q = random_queries(10, codebooks.d)
        scores = codebooks.scores(q, codes)
        assert_best(IVFPQ.search(i, q, 10, nprobe=20), scores, ids, 10, metric)
        # What few lists hold is scored exactly, and nothing but it.
        D, I = IVFPQ.search(i, q, 10)
        place = np.argsort(ids)[np.searchsorted(np.sort(ids), I)]
        np.testing.assert_allclose(D, np.take_along_axis(scores, place, 1), rtol=1e-4, atol=1e-4)
        # Every row lies in the list of the nearest centroid.
        numbers, _, held = rows_of(i)
        centroids = i.quantizer.reconstruct_n(0, 20)
        x = codebooks.decode(codes)[np.argsort(ids)[np.searchsorted(np.sort(ids), held)]]
        np.testing.assert_array_equal(numbers, nearest(x, centroids))
        # A range looks into every list, whatever nprobe the file has.
        radius = float(np.quantile(scores, 0.5)) + 1e-3
        lims, _, _ = IVFPQ.range_search(i, q, radius)
        close = np.abs(scores - radius) < 1e-4
        counts = ((scores > radius) if metric == "ip" else (scores < radius)).sum(1)
        assert (np.abs(np.diff(lims) - counts) <= close.sum(1)).all()


def test_lists_are_taken_over_from_an_index_like_it():
    codebooks = random_codebooks("product", 4, 8, 8)
    first = IVFPQ.build(codebooks, random_codes(codebooks, 600), np.arange(600), ListOptions(nlist=10))
    second = IVFPQ.build(
        codebooks, random_codes(codebooks, 50, seed=9), np.arange(50), ListOptions(nlist=10), like=first
    )
    np.testing.assert_array_equal(second.quantizer.reconstruct_n(0, 10), first.quantizer.reconstruct_n(0, 10))
    third = IVFPQ.build(codebooks, random_codes(codebooks, 50, seed=9), np.arange(50), ListOptions(nlist=10))
    assert not np.array_equal(third.quantizer.reconstruct_n(0, 10), first.quantizer.reconstruct_n(0, 10))


def test_more_lists_than_rows_or_more_visits_than_lists_are_refused():
    codebooks = random_codebooks()
    codes = random_codes(codebooks, 30)
    with pytest.raises(ConfigError, match=r"^nlist is 31, needs at most the 30 rows$"):
        IVFPQ.build(codebooks, codes, np.arange(30), ListOptions(nlist=31))
    with pytest.raises(ConfigError, match=r"^nprobe is 6, needs at most the 5 lists$"):
        IVFPQ.build(codebooks, codes, np.arange(30), ListOptions(nlist=5, nprobe=6))


def test_codes_of_residuals_are_not_taken_for_codes_of_vectors():
    x = random_queries(300, 8)
    quantizer = faiss.IndexFlatL2(8)
    index = faiss.IndexIVFPQ(quantizer, 8, 1, 2, 4)  # several lists may be part of the code, see test_code_lists.py
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
    index.train(x)
    index.add(x)
    assert IVFPQ.holds(index)
    with pytest.raises(ConfigError, match=r"^the codes stand for residuals of coarse centroids, not for vectors$"):
        IVFPQ.unpack(index)
