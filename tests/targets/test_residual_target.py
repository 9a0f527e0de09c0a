"""Additive codes as they are: a norm behind each for distances, codes of any number of bits."""

import faiss
import numpy as np
import pytest

from scqfaiss.targets import target
from scqfaiss.targets.base import pack
from scqfaiss.targets.ids import behind_ids

from .conftest import assert_best, random_codebooks, random_codes, random_queries

RESIDUAL = target("residual")
SHAPES = [(1, 8), (3, 5), (2, 12), (5, 1), (7, 3), (4, 4), (2, 8)]  # 15, 24, 5, 21 bits: not all are whole bytes


@pytest.mark.parametrize("n", [0, 1, 100])
@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("M, nbits", SHAPES)
def test_codes_of_any_number_of_bits_come_back_and_score(M, nbits, metric, n):
    codebooks = random_codebooks("additive", M, nbits, 6, metric)
    codes, ids = random_codes(codebooks, n), np.arange(n)[::-1] + 10**12
    index = RESIDUAL.build(codebooks, codes, ids)
    index = faiss.deserialize_index(faiss.serialize_index(index))
    found, found_codes, found_ids = RESIDUAL.unpack(index)
    np.testing.assert_array_equal(found.centroids, codebooks.centroids)
    np.testing.assert_array_equal(found_codes, codes)
    np.testing.assert_array_equal(found_ids, ids)
    assert (RESIDUAL.shape_of(index), found.metric, found_codes.dtype) == (codebooks.shape, metric, codes.dtype)
    if n:
        q = random_queries(5, 6)
        assert_best(RESIDUAL.search(index, q, 10), codebooks.scores(q, codes), ids, 10, metric) if n >= 10 else None
        np.testing.assert_allclose(
            np.sort(RESIDUAL.search(index, q, n)[0], axis=1),
            np.sort(codebooks.scores(q, codes), axis=1),
            rtol=1e-4,
            atol=1e-4,
        )


@pytest.mark.parametrize("M, nbits", SHAPES)
def test_the_bytes_are_the_packed_code_and_for_distances_its_squared_norm(M, nbits):
    for metric, extra in (("ip", 0), ("l2", 32)):
        codebooks = random_codebooks("additive", M, nbits, 6, metric)
        codes = random_codes(codebooks, 20)
        built = RESIDUAL.build(codebooks, codes, np.arange(20))  # the index inside lives as long as this
        index = behind_ids(built)
        assert index.code_size == (M * nbits + extra + 7) // 8
        held = faiss.vector_to_array(index.codes).reshape(20, -1)
        for row, code, x in zip(held, pack(codes, nbits), codebooks.decode(codes).astype(np.float64)):
            number = int.from_bytes(row.tobytes(), "little")
            assert number & (1 << M * nbits) - 1 == int.from_bytes(code.tobytes(), "little")
            if extra:  # the bits of a float32 follow those of the code
                norm = np.array([number >> M * nbits & 0xFFFFFFFF], np.uint32).view(np.float32)[0]
                np.testing.assert_allclose(norm, (x * x).sum(), rtol=1e-6)


def test_distances_hold_far_from_the_origin():
    """Where squares are a million times the distances: no further off than float32 is."""
    codebooks = random_codebooks("additive", 2, 4, 6, "l2")
    codebooks.centroids[0] += 300
    codes = random_codes(codebooks, 60)
    q = codebooks.decode(codes[:5]) + 0.01
    D, I = RESIDUAL.search(RESIDUAL.build(codebooks, codes, np.arange(60)), q, 60)
    scores = codebooks.scores(q, codes)
    np.testing.assert_allclose(np.take_along_axis(scores, I, 1), np.sort(scores, axis=1), atol=0.5)
    np.testing.assert_allclose(D, np.sort(scores, axis=1), atol=0.5)  # float32 of terms of half a million


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_loading_computes_no_tables_of_products(metric):
    index = RESIDUAL.build(b := random_codebooks("additive", 4, 8, 6, metric), random_codes(b, 9), np.arange(9))
    again = faiss.deserialize_index(faiss.serialize_index(index))
    assert again.rq.codebook_cross_products.size() == 0
    assert again.rq.max_beam_size == 1


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_a_range_of_scores(metric):
    codebooks = random_codebooks("additive", 3, 4, 6, metric)
    codes, q = random_codes(codebooks, 80), random_queries(4, 6)
    scores = codebooks.scores(q, codes)
    values = np.sort(scores, axis=None)
    i = 100 + np.diff(values[100:150]).argmax()
    radius = float(values[i : i + 2].mean())
    lims, D, I = RESIDUAL.range_search(RESIDUAL.build(codebooks, codes, np.arange(80) + 5), q, radius)
    for r in range(4):
        part = slice(lims[r], lims[r + 1])
        wanted = np.flatnonzero(scores[r] > radius if metric == "ip" else scores[r] < radius)
        np.testing.assert_array_equal(np.sort(I[part]), wanted + 5)
        np.testing.assert_allclose(D[part], scores[r, I[part] - 5], rtol=1e-4, atol=1e-4)
