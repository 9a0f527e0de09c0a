"""The seam: decoding and scores against loops, assignment against FAISS, packing against bits."""

import faiss
import numpy as np
import pytest
from close import assert_as_good, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

import scqfaiss.codebooks
from scqfaiss.codebooks import Codebooks, Shape
from scqfaiss.errors import ConfigError, DataError
from scqfaiss.targets.base import pack, unpack_codes


def made(kind="product", M=3, nbits=4, d=6, metric="ip", seed=0):
    rng = np.random.default_rng(seed)
    width = d // M if kind == "product" else d
    return Codebooks(kind, rng.standard_normal((M, 1 << nbits, width)).astype(np.float32), metric)


def random_codes(codebooks, n=40, seed=1):
    return codebooks.check_codes(np.random.default_rng(seed).integers(0, codebooks.K, (n, codebooks.M)))


def slow_decode(codebooks, codes):
    out = []
    for row in codes:
        parts = [codebooks.centroids[m, k] for m, k in enumerate(row)]
        out.append(np.concatenate(parts) if codebooks.kind == "product" else sum(p.astype(np.float64) for p in parts))
    return np.array(out, np.float64)


@pytest.mark.parametrize("kind", ["product", "additive"])
@pytest.mark.parametrize("nbits", [1, 4, 8, 9])
def test_decode_equals_a_loop(kind, nbits):
    codebooks = made(kind, nbits=nbits)
    codes = random_codes(codebooks)
    assert codes.dtype == (np.uint8 if nbits <= 8 else np.uint16)
    assert_close(codebooks.decode(codes), slow_decode(codebooks, codes), codebooks.M)
    assert codebooks.decode(codes[:0]).shape == (0, 6)


@pytest.mark.parametrize("kind", ["product", "additive"])
@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_scores_equal_a_loop(kind, metric):
    codebooks = made(kind, metric=metric)
    codes, q = random_codes(codebooks), np.random.default_rng(2).standard_normal((5, 6)).astype(np.float32)
    found, largest = codebooks.scores(q, codes), np.abs(slow_decode(codebooks, codes)).max()
    for i, a in enumerate(q.astype(np.float64)):
        for j, b in enumerate(slow_decode(codebooks, codes)):
            want = a @ b if metric == "ip" else ((a - b) ** 2).sum()
            # In float64, of vectors that are sums of M in float32.
            assert_close(found[i, j], want, codebooks.M, 2 * np.abs(a).sum() * largest + 2 * 6 * largest**2)
    assert found.shape == (5, 40)


def slow_assign(codebooks, z, rule):
    codes = np.zeros((len(z), codebooks.M), int)
    for i, row in enumerate(z.astype(np.float64)):
        left = row.copy()
        for m, codebook in enumerate(codebooks.centroids.astype(np.float64)):
            dsub = codebook.shape[1]
            part = row[m * dsub : (m + 1) * dsub] if codebooks.kind == "product" else left
            cost = [((part - w) ** 2).sum() if rule == "l2" else -(part @ w) for w in codebook]
            codes[i, m] = int(np.argmin(cost))
            if codebooks.kind == "additive":
                left = left - codebook[codes[i, m]]
    return codes


@pytest.mark.parametrize("kind", ["product", "additive"])
@pytest.mark.parametrize("rule", ["l2", "ip"])
def test_assign_equals_a_loop(kind, rule):
    codebooks = made(kind)
    z = np.random.default_rng(3).standard_normal((60, 6)).astype(np.float32)
    assert_as_good(codebooks.assign(z, rule), slow_assign(codebooks, z, rule), codebooks, z, rule)
    assert codebooks.assign(z[:0], rule).shape == (0, 3)


@pytest.mark.parametrize("M, nbits, d", [(1, 8, 4), (4, 8, 16), (3, 4, 6), (2, 6, 10)])
def test_assign_equals_the_encoder_of_faiss(M, nbits, d):
    codebooks = made(M=M, nbits=nbits, d=d)
    z = np.random.default_rng(4).standard_normal((500, d)).astype(np.float32)
    index = faiss.IndexPQ(d, M, nbits)
    faiss.copy_array_to_vector(codebooks.centroids.ravel(), index.pq.centroids)
    index.is_trained = True
    assert_as_good(codebooks.assign(z, "l2"), unpack_codes(index.sa_encode(z), M, nbits), codebooks, z)


@pytest.mark.parametrize("M, nbits", [(1, 6), (3, 4), (4, 8)])
def test_greedy_assign_equals_the_residual_quantizer_of_faiss(M, nbits):
    codebooks = made("additive", M=M, nbits=nbits, d=8)
    z = np.random.default_rng(5).standard_normal((400, 8)).astype(np.float32)
    rq = faiss.ResidualQuantizer(8, M, nbits)
    rq.max_beam_size = 1
    faiss.copy_array_to_vector(codebooks.centroids.ravel(), rq.codebooks)
    rq.is_trained = True
    assert_as_good(codebooks.assign(z, "l2"), unpack_codes(rq.compute_codes(z), M, nbits), codebooks, z)


def test_assign_takes_the_lowest_index_on_ties():
    codebooks = Codebooks("product", np.array([[[1.0], [0.0], [1.0], [0.0]]], np.float32))
    z = np.array([[1.0], [0.0], [0.5]], np.float32)
    assert codebooks.assign(z, "l2").ravel().tolist() == [0, 1, 0]
    assert codebooks.assign(z, "ip").ravel().tolist() == [0, 0, 0]


def grid(shape, seed):
    """Multiples of 1/4, whose squares and sums float32 holds exactly: ties are ties, whatever adds them up."""
    return (np.random.default_rng(seed).integers(-8, 9, shape) / 4).astype(np.float32)


def slow_beam(codebooks, z, beam):
    """All partial sums sorted by distance, then by the rank of what they extend, then by codeword."""
    codes = []
    for row in z.astype(np.float64):
        kept = [((), row)]
        for codebook in codebooks.centroids.astype(np.float64):
            longer = [
                (((left - w) ** 2).sum(), rank, k, (*code, k), left - w)
                for rank, (code, left) in enumerate(kept)
                for k, w in enumerate(codebook)
            ]
            kept = [c[3:] for c in sorted(longer, key=lambda c: c[:3])[:beam]]
        codes.append(kept[0][0])
    return np.array(codes)


def additive(M, K, d, seed=0):
    return Codebooks("additive", grid((M, K, d), seed))


# d from 8 M on: by tables of products between codewords; below, by products with what is left.
BEAMS = [(1, 8, 3), (2, 8, 3), (3, 16, 2), (4, 4, 5), (2, 8, 16), (3, 4, 24), (3, 2, 30)]


@pytest.mark.parametrize("beam", [2, 3, 8, 64])
@pytest.mark.parametrize("M, K, d", BEAMS)
def test_beam_search_equals_a_loop_ties_included(M, K, d, beam):
    codebooks, z = additive(M, K, d), grid((60, d), 1)
    found = codebooks.assign(z, "l2", beam)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, slow_beam(codebooks, z, beam))
    assert codebooks.assign(z[:0], "l2", beam).shape == (0, M)


@pytest.mark.parametrize("M, K, d", BEAMS)
def test_a_beam_of_one_is_the_greedy_rule(M, K, d):
    codebooks, z = additive(M, K, d), grid((60, d), 1)
    np.testing.assert_array_equal(codebooks.assign(z, "l2", 1), codebooks.assign(z, "l2"))
    np.testing.assert_array_equal(codebooks.assign(z, "l2", 1), slow_beam(codebooks, z, 1))


@pytest.mark.parametrize("M, K, d", [(2, 8, 3), (3, 4, 24)])
def test_a_beam_that_keeps_everything_finds_the_nearest_of_all_sums(M, K, d):
    codebooks, z = (
        made("additive", M=M, nbits=K.bit_length() - 1, d=d),
        np.random.default_rng(6).standard_normal((80, d)),
    )
    every = np.stack(np.meshgrid(*[np.arange(K)] * M, indexing="ij"), -1).reshape(-1, M)
    nearest = every[np.square(z[:, None] - slow_decode(codebooks, every)).sum(2).argmin(1)]
    assert_as_good(codebooks.assign(z.astype(np.float32), "l2", K ** (M - 1)), nearest, codebooks, z, beam=K ** (M - 1))


@pytest.mark.parametrize("d", [6, 40])
def test_wider_beams_lower_the_distortion(d):
    codebooks = made("additive", M=4, nbits=4, d=d)
    z = np.random.default_rng(7).standard_normal((500, d)).astype(np.float32)
    errors = [np.square(z - codebooks.decode(codebooks.assign(z, "l2", beam))).sum() for beam in (1, 2, 4, 8, 16)]
    assert (np.diff(errors) < 0).all()


@pytest.mark.parametrize("M, K, d", BEAMS)
def test_beam_search_codes_rows_alike_in_any_company(M, K, d, monkeypatch):
    codebooks, z = additive(M, K, d), grid((60, d), 1)
    whole = codebooks.assign(z, "l2", 4)
    for elements in (1, 100, 1000):  # a row at a time, a few rows
        monkeypatch.setattr(scqfaiss.codebooks, "BEAM_ELEMENTS", elements)
        np.testing.assert_array_equal(codebooks.assign(z, "l2", 4), whole)
    np.testing.assert_array_equal(
        np.concatenate([codebooks.assign(z[i : i + 7], "l2", 4) for i in range(0, 60, 7)]), whole
    )


def test_tables_change_the_speed_and_no_code(monkeypatch):
    z = grid((60, 40), 1)
    with_tables = additive(3, 8, 40).assign(z, "l2", 4)
    monkeypatch.setattr(scqfaiss.codebooks, "TABLE_ELEMENTS", 10)
    without = additive(3, 8, 40)
    np.testing.assert_array_equal(without.assign(z, "l2", 4), with_tables)
    assert (without._tables, additive(3, 8, 3)._tables) == (None, None)


@pytest.mark.parametrize("M, nbits, d", [(3, 4, 8), (4, 6, 8), (2, 4, 40)])
def test_beam_search_is_as_good_as_the_residual_quantizer_of_faiss(M, nbits, d):
    codebooks = made("additive", M=M, nbits=nbits, d=d)
    z = np.random.default_rng(5).standard_normal((400, d)).astype(np.float32)
    rq = faiss.ResidualQuantizer(d, M, nbits)
    rq.max_beam_size = 5
    faiss.copy_array_to_vector(codebooks.centroids.ravel(), rq.codebooks)
    rq.is_trained = True
    assert_as_good(codebooks.assign(z, "l2", 5), unpack_codes(rq.compute_codes(z), M, nbits), codebooks, z, beam=5)


def test_beams_that_make_no_sense_are_refused_and_product_codebooks_need_none():
    codebooks, z = made("additive"), np.zeros((1, 6), np.float32)
    with pytest.raises(ConfigError, match=r"^beam is 0, needs 1 or more$"):
        codebooks.assign(z, "l2", 0)
    with pytest.raises(ConfigError, match=r"^beam=2 needs the assignment rule 'l2', got 'ip'$"):
        codebooks.assign(z, "ip", 2)
    assert codebooks.assign(z, "ip", 1).shape == (1, 3)
    z = np.random.default_rng(3).standard_normal((60, 6)).astype(np.float32)
    for rule in ("l2", "ip"):
        np.testing.assert_array_equal(made().assign(z, rule, 8), made().assign(z, rule))


@settings(max_examples=30, derandomize=True, deadline=None)
@given(st.integers(-20, 20), st.integers(0, 99))
def test_scaling_by_a_power_of_two_changes_no_code(power, seed):
    codebooks = made(seed=seed)
    z = np.random.default_rng(seed).standard_normal((20, 6)).astype(np.float32)
    g = np.float32(2.0**power)
    scaled = Codebooks("product", codebooks.centroids * g)
    np.testing.assert_array_equal(scaled.assign(z * g, "l2"), codebooks.assign(z, "l2"))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("tree", np.zeros((1, 2, 3), np.float32)), "^codebooks are of kind 'tree', need one of product, additive$"),
        (("product", np.zeros((1, 2, 3), np.float32), "cos"), "^metric is 'cos', needs one of ip, l2$"),
        (("product", np.zeros((1, 2, 3))), r"^centroids are \(1, 2, 3\) float64, need \(M, K, dsub\) float32$"),
        (("product", np.zeros((2, 3), np.float32)), r"^centroids are \(2, 3\) float32, need"),
        (("product", np.zeros((0, 2, 3), np.float32)), r"^centroids are \(0, 2, 3\) float32, need"),
        (
            ("product", np.zeros((1, 3, 2), np.float32)),
            "^a codebook holds K=3 codewords, needs a power of two from 2 to 65536$",
        ),
        (("product", np.zeros((1, 1, 2), np.float32)), "^a codebook holds K=1 codewords"),
        (("product", np.zeros((1, 1 << 17, 1), np.float32)), "^a codebook holds K=131072 codewords"),
    ],
)
def test_impossible_codebooks_are_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        Codebooks(*arguments)


def test_a_codeword_that_is_not_finite_is_named():
    c = np.zeros((3, 4, 2), np.float32)
    c[1, 3, 0] = np.nan
    with pytest.raises(DataError, match=r"^codeword 3 of codebook 1 is not finite$"):
        Codebooks("product", c)


@pytest.mark.parametrize(
    "codes, words",
    [
        (np.zeros((2, 3)), r"^codes are \(2, 3\) float64, need \(n, 3\) integers$"),
        (np.zeros((2, 4), int), r"^codes are \(2, 4\) int64, need \(n, 3\) integers$"),
        (np.zeros(3, int), r"^codes are \(3,\) int64, need"),
        (np.array([[0, 0, 0], [0, 16, 1]]), r"^codes: row 1 is \[0, 16, 1\], codebooks hold codewords 0 to 15$"),
        (np.array([[0, -1, 0]]), r"^codes: row 0 is \[0, -1, 0\], codebooks hold"),
        (np.array([[0, 300, 0]], np.uint16), r"^codes: row 0 is \[0, 300, 0\], codebooks hold"),
    ],
)
def test_impossible_codes_are_refused(codes, words):
    with pytest.raises(DataError, match=words):
        made().check_codes(codes)


def test_codes_of_any_integer_type_come_back_small():
    for dtype in (np.int8, np.int64, np.uint32):
        found = made().check_codes(np.array([[0, 15, 3]], dtype))
        assert (found.dtype, found.tolist()) == (np.uint8, [[0, 15, 3]])
    assert made().check_codes(np.zeros((0, 3), int)).shape == (0, 3)


def test_an_unknown_rule_or_width_is_refused():
    with pytest.raises(ConfigError, match=r"^assignment rule is 'cos', needs one of l2, ip$"):
        made().assign(np.zeros((1, 6), np.float32), "cos")
    with pytest.raises(ConfigError, match=r"^features have d=5, the codebooks need d=6$"):
        made().assign(np.zeros((1, 5), np.float32), "l2")


def test_the_numbers_of_a_codebook_agree():
    product, additive = made(M=3, nbits=5, d=6), made("additive", M=3, nbits=5, d=7)
    assert (product.M, product.K, product.nbits, product.bits, product.d) == (3, 32, 5, 15, 6)
    assert (additive.d, additive.bits, additive.shape) == (7, 15, Shape("additive", 3, 5, 7))
    assert (product.shape.K, product.shape.code_size) == (32, 2)


def bits_of(codes, nbits):
    """Independent packer: all bits of a row, lowest first, codebook after codebook; bytes filled from their lowest bit."""
    bits = [[(int(c) >> b) & 1 for c in row for b in range(nbits)] for row in codes]
    return np.packbits(np.array(bits, np.uint8), axis=1, bitorder="little")


@pytest.mark.parametrize("nbits", range(1, 17))
@pytest.mark.parametrize("M", [1, 3, 8])
def test_packing_is_that_of_the_bits(M, nbits):
    dtype = np.uint8 if nbits <= 8 else np.uint16
    codes = np.random.default_rng(nbits).integers(0, 1 << nbits, (20, M)).astype(dtype)
    codes[0], codes[1] = 0, (1 << nbits) - 1
    packed = pack(codes, nbits)
    assert packed.dtype == np.uint8
    np.testing.assert_array_equal(packed, bits_of(codes, nbits))
    again = unpack_codes(packed, M, nbits)
    assert again.dtype == dtype
    np.testing.assert_array_equal(again, codes)
    assert unpack_codes(pack(codes[:0], nbits), M, nbits).shape == (0, M)
