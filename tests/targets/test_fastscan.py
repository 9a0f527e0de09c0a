"""Fast scan: codes in blocks of 32 come back, and the second look puts the best in exact order."""

import faiss
import numpy as np
import pytest

from scqfaiss.codebooks import Codebooks
from scqfaiss.errors import ConfigError
from scqfaiss.targets import fastscan, target
from scqfaiss.targets.fastscan import _layout, unblocked
from scqfaiss.targets.options import RefineOptions
from scqfaiss.targets.pq import index_pq
from scqfaiss.targets.pretransform import chain, unwrap_index

from .conftest import KINDS, assert_best, random_codebooks, random_codes, random_queries

FASTSCAN = target("fastscan")
CASES = [("product", "ip"), ("product", "l2"), ("additive", "ip")]


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 64, 1000])
@pytest.mark.parametrize("M", [1, 2, 3, 8, 13, 16, 33])
def test_blocks_give_their_codes_back(M, n):
    codebooks = random_codebooks("product", M, 4, M)
    codes = random_codes(codebooks, n)
    scan = faiss.IndexPQFastScan(index_pq(codebooks, codes))
    found = unblocked(scan)
    np.testing.assert_array_equal(found, codes)
    assert found.shape == (n, M) and found.dtype == np.uint8 and found.flags.c_contiguous


def test_every_codeword_of_a_block_has_a_place_of_its_own():
    for M in (1, 2, 5, 16):
        place, shift = _layout(M)
        assert len(set(zip(place.ravel().tolist(), shift.ravel().tolist()))) == 32 * M
        assert place.max() < 16 * (M + M % 2)


@pytest.mark.parametrize("kind, metric", CASES)
@pytest.mark.parametrize("M", [3, 8])
@pytest.mark.parametrize("refine", [0, 3, -1])
def test_what_a_refine_option_builds(kind, metric, M, refine):
    codebooks = random_codebooks(kind, M, 4, 2 * M, metric)
    codes, ids = random_codes(codebooks, 75), np.arange(75)[::-1] * 2 + 1
    index = FASTSCAN.build(codebooks, codes, ids, RefineOptions(refine=refine))
    core = unwrap_index(index)
    assert isinstance(core, faiss.IndexIDMap) and not isinstance(core, faiss.IndexIDMap2)
    core = faiss.downcast_index(core.index)
    if refine < 0:
        assert isinstance(core, faiss.IndexPQFastScan)
    else:
        assert (type(core), core.k_factor) == (faiss.IndexRefine, refine or {"product": 256, "additive": 32}[kind])
        exact = faiss.downcast_index(core.refine_index)
        # 8-bit codebooks are scored faster; an odd number of codebooks cannot be merged.
        odd = M % 2 and kind == "product"  # additive ones are spread to an even number
        assert (type(exact), exact.pq.nbits) == (faiss.IndexPQ, 4 if odd else 8)
    assert len(chain(index)) == (kind == "additive")
    for i in (index, faiss.deserialize_index(faiss.serialize_index(index))):
        found, found_codes, found_ids = FASTSCAN.unpack(i, codebooks.shape)
        np.testing.assert_array_equal(found.centroids, codebooks.centroids)
        np.testing.assert_array_equal(found_codes, codes)
        np.testing.assert_array_equal(found_ids, ids)
        assert FASTSCAN.shape_of(i) == codebooks.shape  # never merged: the scan wants 4 bits


@pytest.mark.parametrize("kind, metric", CASES)
def test_the_refined_best_are_exact(kind, metric):
    codebooks = random_codebooks(kind, 16, 4, 32, metric)
    codes, q = random_codes(codebooks, 3000), random_queries(30, 32)
    index = FASTSCAN.build(codebooks, codes, np.arange(3000) + 7)
    assert_best(FASTSCAN.search(index, q, 10), codebooks.scores(q, codes), np.arange(3000) + 7, 10, metric)


@pytest.mark.parametrize("refine", [0, -1])
@pytest.mark.parametrize("kind, metric", CASES)
@pytest.mark.parametrize("M", [2, 5])
def test_what_the_scan_passes_over_is_found_all_the_same(kind, metric, M, refine):
    """FAISS's scan gives no row of the lowest rounded score: none at all for a query of zeros, a few where k is near n."""
    codebooks = random_codebooks(kind, M, 4, 4 * M, metric)
    codes, ids = random_codes(codebooks, 333), np.arange(333) * 3 + 1
    index = FASTSCAN.build(codebooks, codes, ids, RefineOptions(refine=refine))
    q = random_queries(6, codebooks.d)
    q[1] = q[4] = 0
    scores = codebooks.scores(q, codes)
    for k in (1, 10, 333, 400):
        D, I = FASTSCAN.search(index, q, k)
        held = min(k, 333)
        assert (I[:, :held] >= 0).all() and (I[:, held:] == -1).all()
        assert all(len(set(row)) == held for row in I[:, :held].tolist())
        if refine == 0 or k >= 333:
            atol = 1e-5 if refine == 0 else 0.05
            of_ids = np.take_along_axis(scores, (I[:, :held] - 1) // 3, 1)
            np.testing.assert_allclose(D[:, :held], of_ids, atol=atol * np.abs(scores).max())
    # One code for all rows: they tie, and each is found.
    codes[:] = codes[0]
    D, I = FASTSCAN.search(FASTSCAN.build(codebooks, codes, ids, RefineOptions(refine=refine)), q, 333)
    np.testing.assert_array_equal(np.sort(I, axis=1), np.tile(ids, (6, 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_four_bits_and_nothing_else(kind):
    for nbits in (2, 5, 8):
        reason = FASTSCAN.supports(random_codebooks(kind, 2, nbits, 8).shape)
        assert reason == f"fast scan needs 4-bit codebooks (--nbits 4), these have {nbits}"
    assert FASTSCAN.supports(random_codebooks(kind, 3, 4, 9).shape) is None


def test_ranges_come_from_the_exact_stage():
    codebooks = Codebooks("product", np.arange(64, dtype=np.float32).reshape(2, 16, 2))
    codes, q = random_codes(codebooks, 50), np.ones((2, 4), np.float32)
    scores = codebooks.scores(q, codes)
    radius = float(np.median(scores)) + 0.5
    index = FASTSCAN.build(codebooks, codes, np.arange(50) + 100)
    lims, D, I = FASTSCAN.range_search(index, q, radius)
    for i in range(2):
        part = slice(lims[i], lims[i + 1])
        assert set(I[part]) == set(np.flatnonzero(scores[i] > radius) + 100)
        np.testing.assert_allclose(D[part], scores[i, I[part] - 100])
    scan_alone = FASTSCAN.build(codebooks, codes, np.arange(50), RefineOptions(refine=-1))
    with pytest.raises(
        ConfigError, match=r"^fast scan without refine has no range search; export without --refine -1$"
    ):
        FASTSCAN.range_search(scan_alone, q, radius)


@pytest.mark.parametrize("kind, metric", CASES)
def test_no_more_candidates_than_rows_are_asked_for(kind, metric, monkeypatch):
    """FAISS would take memory for refine * k rows a query, however few there are."""
    codebooks = random_codebooks(kind, 8, 4, 16, metric)
    codes, q = random_codes(codebooks, 90), random_queries(7, 16)
    index = FASTSCAN.build(codebooks, codes, np.arange(90), RefineOptions(refine=1000))
    scores = codebooks.scores(q, codes)
    for k in (1, 10, 90):
        assert_best(FASTSCAN.search(index, q, k), scores, np.arange(90), k, metric)
    whole = FASTSCAN.search(index, q, 10)
    monkeypatch.setattr(fastscan, "MOST_CANDIDATES", 100)  # a query at a time
    for a, b in zip(whole, FASTSCAN.search(index, q, 10)):
        np.testing.assert_array_equal(a, b)


def test_codebooks_that_cannot_be_told_apart_are_refused():
    C = np.random.default_rng(0).standard_normal((4, 16, 6)).astype(np.float32)
    codes = np.zeros((5, 4), np.uint8)
    idle = C.copy()
    idle[1:] = 0  # what few rows leave: codebooks that add nothing
    found, found_codes, _ = FASTSCAN.unpack(FASTSCAN.build(Codebooks("additive", idle), codes, np.arange(5)))
    np.testing.assert_array_equal(found.centroids, idle)
    np.testing.assert_array_equal(found_codes, codes)
    C[1] = 0.5 * C[0]
    with pytest.raises(ConfigError, match=r"^one additive codebook is a multiple of another: .* use target lift$"):
        FASTSCAN.build(Codebooks("additive", C), codes, np.arange(5))
