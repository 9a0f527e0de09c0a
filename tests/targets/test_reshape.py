"""Codes in another form have the same scores, and mostly the same bytes."""

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scqfaiss.codebooks import Codebooks, Shape
from scqfaiss.targets.base import pack, unpack_codes
from scqfaiss.targets.reshape import (
    _shares,
    as_product,
    gathered,
    merged,
    merged_shape,
    padded,
    parts_of,
    split,
    spread,
)

from .conftest import KINDS, random_codebooks, random_codes, random_queries


def merged_slowly(codebooks, codes):
    """One pair of codewords at a time."""
    M, C = codebooks.M // 2, codebooks.centroids
    width = C.shape[2] * (2 if codebooks.kind == "product" else 1)
    table, out = np.empty((M, 256, width), np.float32), np.empty((len(codes), M), np.uint8)
    for m in range(M):
        for i in range(16):
            for j in range(16):
                a, b = C[2 * m, i], C[2 * m + 1, j]
                table[m, i + 16 * j] = np.concatenate([a, b]) if codebooks.kind == "product" else a + b
        for n, row in enumerate(codes):
            out[n, m] = row[2 * m] + 16 * row[2 * m + 1]
    return table, out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("M, d", [(2, 4), (4, 12), (6, 6)])
def test_merged_codebooks_are_every_pair_of_codewords(kind, M, d):
    codebooks = random_codebooks(kind, M, 4, d)
    codes = random_codes(codebooks, 40)
    found, found_codes = merged(codebooks, codes)
    table, wanted = merged_slowly(codebooks, codes)
    np.testing.assert_array_equal(found.centroids, table)
    np.testing.assert_array_equal(found_codes, wanted)
    assert found_codes.dtype == np.uint8
    assert found.shape == merged_shape(codebooks.shape) == Shape(kind, M // 2, 8, d, "ip")
    np.testing.assert_array_equal(pack(found_codes, 8), pack(codes, 4))  # not a byte of the codes changes
    q = random_queries(5, d)
    np.testing.assert_allclose(found.scores(q, found_codes), codebooks.scores(q, codes), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("M, nbits", [(3, 4), (1, 4), (2, 8), (4, 5), (4, 2), (2, 10)])
def test_other_codebooks_are_left_alone(kind, M, nbits):
    codebooks = random_codebooks(kind, M, nbits, 2 * M)
    codes = random_codes(codebooks, 5)
    found, found_codes = merged(codebooks, codes)
    assert found is codebooks and found_codes is codes
    assert merged_shape(codebooks.shape) == codebooks.shape
    assert split(codebooks, codes, codebooks.shape) == (codebooks, codes)


@pytest.mark.parametrize("n", [0, 1, 33])
@pytest.mark.parametrize("M", [2, 6])
@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_split_undoes_merged(M, n, metric):
    codebooks = random_codebooks("product", M, 4, 3 * M, metric)
    codes = random_codes(codebooks, n)
    found, found_codes = split(*merged(codebooks, codes), codebooks.shape)
    np.testing.assert_array_equal(found.centroids, codebooks.centroids)
    np.testing.assert_array_equal(found_codes, codes)
    assert (found.shape, found_codes.dtype) == (codebooks.shape, np.uint8)


@pytest.mark.parametrize("M", [2, 6])
def test_split_additive_codebooks_have_the_old_sums_for_any_codes(M):
    codebooks = random_codebooks("additive", M, 4, 5)
    codes = random_codes(codebooks, 50)
    found, found_codes = split(*merged(codebooks, codes), codebooks.shape)
    np.testing.assert_array_equal(found_codes, codes)
    assert found.shape == codebooks.shape
    other = random_codes(codebooks, 200, seed=9)  # not only for the rows that were there
    np.testing.assert_allclose(found.decode(other), codebooks.decode(other), atol=1e-5)
    again = merged(found, found_codes)
    np.testing.assert_allclose(again[0].centroids, merged(codebooks, codes)[0].centroids, atol=1e-5)
    np.testing.assert_array_equal(again[1], merged(codebooks, codes)[1])


def test_split_without_a_word_about_merging_changes_nothing():
    codebooks, codes = merged(*(b := random_codebooks(M=4), random_codes(b, 6)))
    for shape in (
        None,
        codebooks.shape,
        Shape("product", 4, 2, 8),
        Shape("product", 8, 4, 8),
        Shape("additive", 4, 4, 8),
    ):
        found, found_codes = split(codebooks, codes, shape)
        assert found is codebooks and found_codes is codes


@settings(max_examples=40, deadline=None)
@given(
    M=st.integers(1, 4), n=st.integers(0, 9), d=st.integers(1, 4), seed=st.integers(0, 99), kind=st.sampled_from(KINDS)
)
def test_scores_survive_merging_and_splitting(M, n, d, seed, kind):
    codebooks = random_codebooks(kind, 2 * M, 4, d * 2 * M, seed=seed)
    codes, q = random_codes(codebooks, n, seed), random_queries(2, codebooks.d, seed)
    wide = merged(codebooks, codes)
    narrow = split(*wide, codebooks.shape)
    for found, found_codes in (wide, narrow):
        np.testing.assert_allclose(found.scores(q, found_codes), codebooks.scores(q, codes), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("M, nbits, d", [(1, 8, 4), (3, 4, 5), (4, 2, 1)])
def test_additive_codebooks_are_product_codebooks_for_a_query_repeated(M, nbits, d):
    codebooks = random_codebooks("additive", M, nbits, d)
    codes, q = random_codes(codebooks, 20), random_queries(4, d)
    found, (tile,) = as_product(codebooks)
    assert found.shape == Shape("product", M, nbits, M * d, "ip")
    assert found.centroids.tobytes() == codebooks.centroids.tobytes()
    repeated = tile.apply(q)
    np.testing.assert_array_equal(repeated, np.tile(q, M))
    np.testing.assert_allclose(found.scores(repeated, codes), codebooks.scores(q, codes), rtol=1e-5, atol=1e-5)


def test_product_codebooks_are_product_codebooks_already():
    codebooks = random_codebooks()
    assert as_product(codebooks) == (codebooks, [])


@pytest.mark.parametrize("M, to", [(5, 8), (7, 8), (3, 3)])
@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_codebooks_of_zeros_change_no_score(M, to, metric):
    codebooks = random_codebooks("product", M, 8, 2 * M, metric)
    codes, q = random_codes(codebooks, 30), random_queries(4, codebooks.d)
    found, found_codes, transforms = padded(codebooks, codes, to)
    assert (found.M, found.d, found_codes.shape) == (to, 2 * to, (30, to))
    assert not found.centroids[M:].any() and not found_codes[:, M:].any()
    np.testing.assert_array_equal(found_codes[:, :M], codes)
    wide = q
    for t in transforms:
        assert isinstance(t, faiss.RemapDimensionsTransform)
        wide = t.apply(wide)
    np.testing.assert_array_equal(wide, np.hstack([q, np.zeros((4, 2 * (to - M)), np.float32)]))
    np.testing.assert_allclose(found.scores(wide, found_codes), codebooks.scores(q, codes), rtol=1e-5, atol=1e-5)
    assert bool(transforms) == (to != M)


@settings(max_examples=60, deadline=None)
@given(M=st.integers(1, 9), nbits=st.integers(1, 16), n=st.integers(0, 5), seed=st.integers(0, 99))
def test_packed_codes_are_little_endian_bits_and_come_back(M, nbits, n, seed):
    codes = np.random.default_rng(seed).integers(0, 1 << nbits, (n, M)).astype(np.uint8 if nbits <= 8 else np.uint16)
    packed = pack(codes, nbits)
    assert packed.shape == (n, -(-M * nbits // 8))
    for row, held in zip(codes, packed):
        number = sum(int(c) << nbits * m for m, c in enumerate(row))
        assert int.from_bytes(held.tobytes(), "little") == number
    back = unpack_codes(packed, M, nbits)
    np.testing.assert_array_equal(back, codes)
    assert back.dtype == codes.dtype


# ------------------------------------------------------------------------------------------------------ codebooks in parts
def parts_by_hand(centroids):
    """How many parts each codebook gets: one more for the widest part, again and again."""
    width = [max(np.linalg.norm(w - codebook.mean(0)) for w in codebook) for codebook in centroids.astype(np.float64)]
    parts = [1] * len(width)
    while sum(parts) < 2 * round(0.875 * len(width)):
        m = max(range(len(width)), key=lambda m: width[m] / parts[m])
        parts[m] += 1
    return parts


@pytest.mark.parametrize("M", [1, 2, 3, 5, 8, 13])
def test_codebooks_are_spread_by_width_and_come_back(M):
    rng = np.random.default_rng(M)
    C = (rng.standard_normal((M, 16, 6)) * 0.5 ** np.arange(M)[:, None, None]).astype(np.float32)
    codebooks = Codebooks("additive", C)
    codes = codebooks.check_codes(rng.integers(0, 16, (50, M)))
    wide, wide_codes = spread(codebooks, codes)
    parts = parts_by_hand(C)
    assert wide.M == sum(parts) and (wide.M % 2 == 0 or M == 1)
    np.testing.assert_array_equal(wide_codes, np.repeat(codes, parts, axis=1))
    np.testing.assert_allclose(wide.decode(wide_codes), codebooks.decode(codes), atol=1e-5)
    first = np.cumsum([0, *parts])
    np.testing.assert_array_equal(parts_of(wide.centroids), first[:-1])
    back, back_codes = gathered(wide, wide_codes)
    np.testing.assert_array_equal(back.centroids, C)  # to the bit: a gallery that is edited often must not drift
    np.testing.assert_array_equal(back_codes, codes)


@pytest.mark.parametrize("r", range(1, 12))
def test_shares_of_a_codebook(r):
    shares = _shares(r)
    assert len(shares) == r and shares.sum() == pytest.approx(1)
    assert np.log2(shares[0]) == np.round(np.log2(shares[0]))
    assert shares.max() <= 1.6 / r
    assert len(np.unique(shares[1:])) == max(r - 1, 0) or r < 3  # what rounds up in one part may round down in another


def test_codebooks_that_differ_are_never_taken_for_parts():
    rng = np.random.default_rng(0)
    C = rng.standard_normal((6, 16, 4)).astype(np.float32)
    C[2] = 0  # an idle codebook: no part of any other
    C[3] = -C[4]  # mirrored is not a part either
    assert parts_of(C).tolist() == [0, 1, 2, 3, 4, 5]
    assert parts_of(np.stack([C[0], 0.5 * C[0], C[1]])).tolist() == [0, 2]


def test_spreading_narrows_the_widest_table():
    rng = np.random.default_rng(1)
    C = (rng.standard_normal((8, 16, 10)) * 0.5 ** np.arange(8)[:, None, None]).astype(np.float32)
    codebooks = Codebooks("additive", C)
    wide, _ = spread(codebooks, np.zeros((1, 8), np.uint8))

    def widest(table):
        scores = np.einsum("qd,mkd->qmk", rng.standard_normal((50, 10)), table)
        return (scores.max(2) - scores.min(2)).max(1).mean()

    assert widest(wide.centroids) < 0.5 * widest(C)
