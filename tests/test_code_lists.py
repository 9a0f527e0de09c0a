"""Codes whose first number is a list: decoding, scores and assignment against loops, and the model that holds them."""

import itertools

import numpy as np
import pytest
from close import assert_close

from scqfaiss.codebooks import MAX_BEAM, Codebooks, Shape
from scqfaiss.encoders.chain import Chain
from scqfaiss.errors import CheckpointError, ConfigError, DataError
from scqfaiss.model import Model

D = 6


def grid(shape, seed):
    """Multiples of 1/4, whose squares and sums float32 holds exactly: ties are ties, whatever adds them up."""
    return (np.random.default_rng(seed).integers(-8, 9, shape) / 4).astype(np.float32)


def made(kind="product", M=2, nbits=3, L=5, metric="ip", seed=0):
    width = D // max(M, 1) if kind == "product" else D
    lists = grid((L, D), seed + 1) if L else None
    return Codebooks(kind, grid((M, 1 << (nbits if M else 1), width), seed), metric, lists)


def random_codes(codebooks, n=40, seed=1):
    rng = np.random.default_rng(seed)
    words = rng.integers(0, codebooks.K, (n, codebooks.M))
    return codebooks.check_codes(np.column_stack([rng.integers(0, codebooks.L, n), words]))


def slow_vector(codebooks, number, words):
    parts = [codebooks.centroids[m, k].astype(np.float64) for m, k in enumerate(words)]
    if not parts:
        return codebooks.lists[number].astype(np.float64)
    return codebooks.lists[number] + (np.concatenate(parts) if codebooks.kind == "product" else sum(parts))


def slow_words(codebooks, left):
    """Codebook by codebook, each nearest to its part of the residual or to what is left of it."""
    words, dsub = [], codebooks.centroids.shape[2]
    for m, codebook in enumerate(codebooks.centroids.astype(np.float64)):
        part = left[m * dsub : (m + 1) * dsub] if codebooks.kind == "product" else left
        words.append(int(np.argmin([((part - w) ** 2).sum() for w in codebook])))
        if codebooks.kind == "additive":
            left = left - codebook[words[-1]]
    return words


def slow_assign(codebooks, z, list_beam):
    codes = []
    for row in z.astype(np.float64):
        near = sorted(range(codebooks.L), key=lambda j: (((row - codebooks.lists[j]) ** 2).sum(), j))[:list_beam]
        tried = [(j, slow_words(codebooks, row - codebooks.lists[j])) for j in near]
        errors = [((row - slow_vector(codebooks, j, words)) ** 2).sum() for j, words in tried]
        best, words = tried[int(np.argmin(errors))]
        codes.append([best, *words])
    return np.array(codes)


FORMS = [("product", 2), ("product", 3), ("additive", 1), ("additive", 2), ("product", 0)]


@pytest.mark.parametrize("kind, M", FORMS)
@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_vectors_and_scores_equal_a_loop(kind, M, metric):
    codebooks = made(kind, M, metric=metric)
    codes, q = random_codes(codebooks), np.random.default_rng(2).standard_normal((5, D))
    want = np.array([slow_vector(codebooks, row[0], row[1:]) for row in codes])
    np.testing.assert_array_equal(codebooks.decode(codes), want)  # on the grid sums are exact
    assert codebooks.decode(codes[:0]).shape == (0, D)
    scores = [[(a * b).sum() if metric == "ip" else ((a - b) ** 2).sum() for b in want] for a in q]
    assert_close(codebooks.scores(q, codes), scores, 4 * D, np.abs(q).max() ** 2 + D * 100, np.float64)


@pytest.mark.parametrize("kind, M", FORMS)
@pytest.mark.parametrize("list_beam", [1, 2, 5, 64])
def test_assignment_equals_a_loop_ties_included(kind, M, list_beam):
    codebooks, z = made(kind, M), grid((80, D), 7)
    found = codebooks.assign(z, "l2", list_beam=list_beam)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, slow_assign(codebooks, z, list_beam))
    assert codebooks.assign(z[:0], "l2", list_beam=list_beam).shape == (0, 1 + M)


@pytest.mark.parametrize("kind, M", FORMS)
def test_all_lists_and_sums_kept_find_the_nearest_of_all_codes(kind, M):
    codebooks, z = made(kind, M, nbits=2), grid((40, D), 8)
    every = itertools.product(range(5), *[range(codebooks.K)] * M)
    vectors = np.array([slow_vector(codebooks, code[0], code[1:]) for code in every])
    least = [((row - vectors) ** 2).sum(1).min() for row in z.astype(np.float64)]
    codes = codebooks.assign(z, "l2", 4**M, 5)
    np.testing.assert_array_equal(np.square(z - codebooks.decode(codes).astype(np.float64)).sum(1), least)


def test_of_equal_sums_the_nearer_list_wins_and_of_equal_lists_the_first():
    lists = np.array([[4.0], [1.0], [1.0]], np.float32)
    codebooks = Codebooks("product", np.array([[[-4.0], [0.0], [-1.0], [9.0]]], np.float32), lists=lists)
    z = np.zeros((1, 1), np.float32)  # 1 - 1 and 4 - 4
    for list_beam in (1, 2, 3):
        assert codebooks.assign(z, "l2", list_beam=list_beam).tolist() == [[1, 2]]


def test_trying_more_lists_never_raises_the_error():
    rng = np.random.default_rng(3)
    for kind in ("product", "additive"):
        width = 3 if kind == "product" else D
        codebooks = Codebooks(
            kind, rng.standard_normal((2, 4, width), np.float32), lists=rng.standard_normal((9, D), np.float32)
        )
        z = rng.standard_normal((200, D), np.float32)
        errors = [
            np.square(z - codebooks.decode(codebooks.assign(z, "l2", list_beam=b)), dtype=np.float64).sum(1)
            for b in (1, 2, 4, 9)
        ]
        for fewer, more in itertools.pairwise(errors):
            assert (more <= fewer * (1 + 1e-5)).all()
        assert errors[-1].sum() < errors[0].sum()


@pytest.mark.parametrize("kind, M", FORMS)
@pytest.mark.parametrize("power", [-120, -70, 50, 120])
def test_scaling_by_a_power_of_two_changes_no_code(kind, M, power):
    codebooks, z = made(kind, M), grid((50, D), 9)
    scaled = Codebooks(kind, np.ldexp(codebooks.centroids, power), lists=np.ldexp(codebooks.lists, power))
    for list_beam in (1, 3):
        np.testing.assert_array_equal(
            scaled.assign(np.ldexp(z, power), "l2", 2, list_beam), codebooks.assign(z, "l2", 2, list_beam)
        )


def test_residuals_far_smaller_than_their_rows_are_still_told_apart():
    tiny = np.ldexp(np.array([[[-1.0], [1.0]]], np.float32), -20)  # squares of it vanish beside those of the lists
    codebooks = Codebooks("product", tiny, lists=np.array([[-1.0], [1.0]], np.float32))
    z = np.array([[1 + 2.0**-20], [1 - 2.0**-20], [-1 - 2.0**-20]], np.float32)
    for list_beam in (1, 2):
        assert codebooks.assign(z, "l2", list_beam=list_beam).tolist() == [[1, 1], [1, 0], [0, 0]]
    still = Codebooks("product", np.zeros((1, 2, 1), np.float32), lists=np.ldexp(codebooks.lists, -100))
    assert still.assign(np.ldexp(z, -100), "l2")[:, 0].tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    "L, nbits, dtype", [(5, 8, np.uint8), (257, 3, np.uint16), (70_000, 9, np.uint32), (5, 9, np.uint16)]
)
def test_codes_are_of_the_smallest_type_that_holds_list_and_codewords(L, nbits, dtype):
    codebooks = made("additive", 1, nbits, L)
    z = grid((30, D), 4)
    codes = codebooks.assign(z, "l2")
    assert codes.dtype == dtype
    lists, words = codebooks.split(codes)
    assert lists.dtype == np.int64 and words.shape == (30, 1)
    np.testing.assert_array_equal(codebooks.joined(lists, words), codes)
    assert codebooks.joined(lists, words).dtype == dtype
    assert codebooks.residual.lists is None
    np.testing.assert_array_equal(codebooks.residual.assign(z - codebooks.lists[lists], "l2"), words)


def test_codebooks_without_lists_split_into_none_and_the_codes():
    codebooks = made(L=0)
    codes = codebooks.assign(grid((10, D), 1), "l2")
    lists, words = codebooks.split(codes)
    assert lists is None and words is codes and codebooks.residual is codebooks
    np.testing.assert_array_equal(codebooks.joined(None, words), codes)
    assert (codebooks.L, codebooks.columns) == (1, 2) and codebooks.shape == Shape("product", 2, 3, D)


def test_the_numbers_of_codebooks_with_lists_agree():
    codebooks = made("product", 2, 3, 5)
    assert (codebooks.M, codebooks.L, codebooks.columns, codebooks.bits, codebooks.d) == (2, 5, 3, 6, D)
    assert codebooks.shape == Shape("product", 2, 3, D, "ip", 5)
    alone = made("product", 0, L=5)
    assert (alone.M, alone.K, alone.nbits, alone.bits, alone.d, alone.columns) == (0, 2, 1, 0, D, 1)
    assert alone.shape.code_size == 0
    with pytest.raises(ConfigError):
        _ = alone.residual


ZERO = np.zeros((2, 4, 3), np.float32)
LISTS = np.zeros((2, D), np.float32)


@pytest.mark.parametrize(
    "centroids, lists, error, words",
    [
        (ZERO, LISTS[0], ConfigError, r"lists are \(6,\) float32, need \(L, 6\)"),
        (ZERO, LISTS[:, :5], ConfigError, r"lists are \(2, 5\) float32, need \(L, 6\)"),
        (ZERO, LISTS.astype(np.float64), ConfigError, "float64, need"),
        (ZERO, LISTS[:1], ConfigError, "there are 1 lists, need 2"),
        (ZERO, np.vstack([LISTS, np.full((1, D), np.inf, np.float32)]), DataError, "centroid of list 2 is not finite"),
        (ZERO[:0], None, ConfigError, r"centroids are \(0, 4, 3\)"),
        (ZERO[:0], LISTS[:, :3], ConfigError, "K=4, need kind 'product' and K=2"),
        (ZERO[:0, :2, :0], LISTS[:, :0], ConfigError, r"centroids are \(0, 2, 0\)"),
    ],
)
def test_impossible_lists_are_refused(centroids, lists, error, words):
    with pytest.raises(error, match=words):
        Codebooks("product", centroids, lists=lists)


def test_lists_alone_are_of_kind_product():
    with pytest.raises(ConfigError, match="need kind 'product'"):
        Codebooks("additive", np.zeros((0, 2, 3), np.float32), lists=LISTS[:, :3])


@pytest.mark.parametrize(
    "codes, words",
    [
        ([[5, 0, 0]], "row 0 is .*there are lists 0 to 4"),
        ([[0, 0, 0], [-1, 0, 0]], "row 1 is .*there are lists 0 to 4"),
        ([[0, 8, 0]], "codebooks hold codewords 0 to 7"),
        ([[0, 0]], r"codes are \(1, 2\) int64, need \(n, 3\) integers"),
    ],
)
def test_impossible_codes_are_refused(codes, words):
    with pytest.raises(DataError, match=words):
        made().check_codes(np.array(codes))


def test_assignments_that_make_no_sense_are_refused():
    z = grid((3, D), 1)
    with pytest.raises(ConfigError, match="lists need the assignment rule 'l2', got 'ip'"):
        made().assign(z, "ip")
    with pytest.raises(ConfigError, match="list_beam=2 needs codebooks with lists"):
        made(L=0).assign(z, "l2", list_beam=2)
    with pytest.raises(ConfigError, match="list_beam is 0"):
        made().assign(z, "l2", list_beam=0)


# ---------------------------------------------------------------------------------------------------------- the model


def model(kind="product", M=2, nbits=3, L=5, **config):
    codebooks = made(kind, M, nbits, L)
    facts = {"method": "scq", "rule": "l2", "encoder": "identity", "bits": codebooks.bits}
    return Model(Chain(D, []), codebooks, facts | config)


@pytest.mark.parametrize("kind, M", FORMS)
def test_a_model_with_lists_is_saved_and_encodes_by_its_beams(kind, M, tmp_path):
    m, x = model(kind, M, beam=3 if kind == "additive" else 1, list_beam=2), grid((60, D), 3)
    m.save(tmp_path / "m.safetensors")
    again = Model.load(tmp_path / "m.safetensors")
    assert again.to_bytes() == m.to_bytes() and again.config == m.config
    np.testing.assert_array_equal(again.codebooks.lists, m.codebooks.lists)
    np.testing.assert_array_equal(again.codebooks.centroids, m.codebooks.centroids)
    beam = 3 if kind == "additive" else 1
    np.testing.assert_array_equal(again.encode(x), m.codebooks.assign(x, "l2", beam, 2))


def test_lists_are_part_of_the_hash_of_a_model_and_none_change_no_file():
    assert model().sha256 != model(L=6).sha256
    assert b"codebooks.lists" not in model(L=0).to_bytes()


@pytest.mark.parametrize(
    "config, L, words",
    [
        ({"list_beam": 0}, 5, f"the beam of lists is 0, needs a whole number from 1 to {MAX_BEAM}"),
        ({"list_beam": MAX_BEAM + 1}, 5, "the beam of lists is 65"),
        ({"list_beam": True}, 5, "the beam of lists is True"),
        ({"list_beam": 2}, 0, "the beam of lists is 2, and the codebooks have no lists"),
        ({"rule": "ip"}, 5, "the assignment rule is 'ip', codebooks with lists need 'l2'"),
    ],
)
def test_a_config_that_does_not_fit_its_lists_is_refused(config, L, words):
    with pytest.raises(CheckpointError, match=words):
        model(L=L, **config)


def test_prefixes_keep_the_lists_down_to_the_lists_alone():
    whole, x = model("additive", 3, nested=True, training={"codewords_used": [8, 7, 6]}), grid((60, D), 5)
    codes = whole.encode(x)
    for M in (2, 1, 0):
        cut = whole.prefix(3 * M)
        np.testing.assert_array_equal(cut.encode(x), codes[:, : 1 + M])
        np.testing.assert_array_equal(cut.codebooks.lists, whole.codebooks.lists)
        assert cut.origin == whole.sha256 and cut.config["bits"] == 3 * M
        assert cut.config["training"]["codewords_used"] == [8, 7, 6][:M]
    assert Model.from_bytes(cut.to_bytes()).codebooks.shape == Shape("product", 0, 1, D, "ip", 5)
    assert cut.prefix(0) is cut


def test_the_lists_of_any_model_are_a_prefix_unless_codewords_chose_them():
    m, x = model("product", 2), grid((60, D), 5)
    np.testing.assert_array_equal(m.prefix(0).encode(x), m.encode(x)[:, :1])
    with pytest.raises(ConfigError, match="product codebooks of method scq"):
        m.prefix(3)
    with pytest.raises(ConfigError, match="the 2 nearest lists, and chooses list and codewords together"):
        model("additive", 3, nested=True, list_beam=2).prefix(0)
    with pytest.raises(ConfigError, match="bits is 0, needs a multiple"):
        model("additive", 3, L=0, nested=True).prefix(0)
