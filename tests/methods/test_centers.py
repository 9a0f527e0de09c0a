"""Centers (SCA) against loops written from the definition, and the closed form against what is known of it."""

import numpy as np
import pytest
import torch
from close import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from scqfaiss.arrays import Labels
from scqfaiss.data import ArraySource
from scqfaiss.errors import ConfigError, DataError
from scqfaiss.methods import centers as sca


def off_diagonal(a):
    return a[~np.eye(len(a), dtype=bool)]


def slow_loss(u, T):
    C, every, worst = len(u), 0.0, 0.0
    for i in range(C):
        gaps = []
        for j in range(C):
            if i != j:
                cos = sum(a * b for a, b in zip(u[i], u[j])) / np.sqrt((u[i] ** 2).sum() * (u[j] ** 2).sum())
                gaps.append((T[i][j] - cos) ** 2)
        every += sum(gaps) / (C * (C - 1))
        worst += max(gaps) / C
    return every + worst


def slow_jaccard(multi_hot):
    C = multi_hot.shape[1]
    S = np.zeros((C, C))
    for i in range(C):
        for j in range(C):
            both = sum(1 for row in multi_hot if row[i] and row[j])
            either = sum(1 for row in multi_hot if row[i] or row[j])
            S[i, j] = 1.0 if i == j else both / either if either else 0.0
    return S


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-10), (torch.float32, 2e-5)])
@pytest.mark.parametrize("C, d", [(2, 1), (3, 5), (7, 4)])
def test_loss_equals_slow_twin(C, d, dtype, rtol):
    rng = np.random.default_rng(C)
    u, T = rng.standard_normal((C, d)), rng.uniform(-1, 1, (C, C))
    found = sca.loss(torch.tensor(u, dtype=dtype), torch.tensor(T, dtype=dtype))
    np.testing.assert_allclose(found.item(), slow_loss(u, T), rtol=rtol)


@pytest.mark.parametrize("C, d", [(2, 1), (2, 4), (3, 2), (5, 4), (10, 36), (101, 100)])
def test_all_cosines_of_the_simplex_are_equal(C, d):
    c = sca.simplex(C, d, seed=3)
    assert c.shape == (C, d)
    np.testing.assert_allclose(np.linalg.norm(c, axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(off_diagonal(c @ c.T), -1 / (C - 1), atol=1e-6)
    np.testing.assert_allclose(c.sum(0), 0, atol=1e-10)


def test_the_simplex_is_turned_so_that_no_piece_of_it_is_zero():
    c = sca.simplex(4, 32)
    assert np.linalg.norm(c.reshape(4, 8, 4), axis=2).min() > 0.01
    np.testing.assert_array_equal(c, sca.simplex(4, 32))
    assert np.abs(c - sca.simplex(4, 32, seed=1)).max() > 0.1


@pytest.mark.parametrize("C, d", [(1, 3), (5, 3)])
def test_a_simplex_without_room_is_refused(C, d):
    with pytest.raises(ConfigError, match=rf"^{C} classes need centers of at least {max(C - 1, 1)} dim.*, got d={d}$"):
        sca.simplex(C, d)


@pytest.mark.parametrize("C, d", [(2, 2), (4, 4), (10, 12), (7, 64)])
def test_the_aligned_simplex_gives_each_class_its_own_axis(C, d):
    c = sca.aligned_simplex(C, d)
    np.testing.assert_allclose(np.linalg.norm(c, axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(off_diagonal(c @ c.T), -1 / (C - 1), atol=1e-6)
    own = c.argmax(1)
    assert (np.diff(own) > 0).all()
    assert (own[0], own[-1]) == (0, d - 1)
    assert ((c != 0).sum(0) > 0).sum() == C  # the other places stay empty


@pytest.mark.slow
def test_the_optimiser_finds_the_simplex():
    C = 10
    c = sca.optimise(2 * np.eye(C) - 1, 36, steps=2000, decay_every=400)
    np.testing.assert_allclose(np.linalg.norm(c, axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(off_diagonal(c @ c.T), -1 / (C - 1), atol=2e-2)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.integers(2, 9), st.integers(1, 12), st.integers(0, 999))
def test_no_vectors_beat_the_simplex(C, d, seed):
    target = torch.from_numpy(2 * np.eye(C) - 1)
    bound = 2 * ((C - 2) / (C - 1)) ** 2
    u = torch.from_numpy(np.random.default_rng(seed).standard_normal((C, d)))
    assert sca.loss(u, target).item() >= bound - 1e-12
    np.testing.assert_allclose(sca.loss(torch.from_numpy(sca.simplex(C, C - 1)), target).item(), bound, atol=1e-12)


@pytest.mark.slow
def test_the_optimiser_comes_nearer_to_an_attainable_similarity():
    # Cosines of real vectors can be met exactly, so the errors reported must be small.
    v = np.random.default_rng(1).standard_normal((5, 3))
    S = sca.from_vectors(v)
    found = sca.class_centers(S, "vectors", "plain", 3, 3, 0)
    T = 2 * S - 1
    gap = off_diagonal(found.centers.astype(np.float64) @ found.centers.T - T)
    assert found.max_error < 0.02
    np.testing.assert_allclose(found.rms_error, np.sqrt((gap**2).mean()), atol=1e-6)
    np.testing.assert_allclose(found.max_error, np.abs(gap).max(), atol=1e-6)


def test_class_centers_take_the_aligned_simplex_where_every_class_fits():
    found = sca.class_centers(np.eye(4), "identity", "plain", 8, 2, 0)
    np.testing.assert_array_equal(found.centers, sca.aligned_simplex(4, 8).astype(np.float32))
    assert found.max_error < 1e-12
    # No axis for every class, or more codebooks than classes: the turned simplex.
    np.testing.assert_array_equal(
        sca.class_centers(np.eye(4), "identity", "plain", 3, 3, 5).centers, sca.simplex(4, 3, 5).astype(np.float32)
    )
    np.testing.assert_array_equal(
        sca.class_centers(np.eye(4), "identity", "plain", 8, 8, 5).centers, sca.simplex(4, 8, 5).astype(np.float32)
    )


@pytest.mark.slow
def test_target_simplex_is_met_better_than_plain():
    S = np.full((4, 4), 0.1) + 0.9 * np.eye(4)
    plain, simplex = (sca.class_centers(S, "s", target, 6, 2, 0) for target in ("plain", "simplex"))
    # All similarities equal: whatever is asked for, nothing beats the simplex, whose cosines are -1/3.
    np.testing.assert_allclose(off_diagonal(plain.centers @ plain.centers.T), -1 / 3, atol=0.02)
    np.testing.assert_allclose(off_diagonal(simplex.centers @ simplex.centers.T), 0.1 - 0.9 / 3, atol=0.02)
    assert simplex.rms_error < 0.02 < plain.rms_error


def test_cooccurrence_equals_slow_twin():
    multi_hot = (np.random.default_rng(0).random((60, 5)) < 0.4).astype(np.uint8)
    multi_hot[:, 3] = 0  # a class without rows is like no other
    np.testing.assert_allclose(sca.cooccurrence(Labels(multi_hot, 5)), slow_jaccard(multi_hot), atol=1e-12)
    np.testing.assert_array_equal(sca.cooccurrence(Labels(np.array([0, 1, 1, 2]), 4)), np.eye(4))


def test_turning_keeps_every_cosine_and_comes_nearest():
    rng = np.random.default_rng(2)
    found, wanted = rng.standard_normal((6, 8)), sca.aligned_simplex(6, 8)
    turned = sca.turned_onto(found, wanted)
    np.testing.assert_allclose(turned @ turned.T, found @ found.T, atol=1e-12)
    best = np.square(turned - wanted).sum()
    for _ in range(50):
        turn = np.linalg.qr(rng.standard_normal((8, 8)))[0]
        assert best <= np.square(found @ turn - wanted).sum()
    # A rotation is undone exactly.
    np.testing.assert_allclose(sca.turned_onto(wanted @ turn, wanted), wanted, atol=1e-12)


def test_from_vectors_equals_the_definition():
    v = np.random.default_rng(3).standard_normal((4, 3))
    S = sca.from_vectors(v)
    for i in range(4):
        for j in range(4):
            cos = v[i] @ v[j] / np.sqrt(v[i] @ v[i] * (v[j] @ v[j]))
            np.testing.assert_allclose(S[i, j], (1 + cos) / 2, atol=1e-12)


def test_a_zero_class_vector_is_named():
    v = np.ones((3, 2))
    v[1] = 0
    with pytest.raises(DataError, match=r"^the vector of class dog is zero, it has no direction$"):
        sca.from_vectors(v, Labels(np.array([0, 1, 2]), 3, ("cat", "dog", "owl")))
    with pytest.raises(DataError, match=r"^the vector of class 1 is zero"):
        sca.from_vectors(v)


def test_class_means_equal_a_loop():
    x = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    y = np.arange(50) % 3
    means = sca.class_means(ArraySource(x), Labels(y, 4))
    for c in range(3):
        assert_close(means[c], x[y == c].mean(0, dtype=np.float64), 50, np.abs(x).max(), np.float64)
    np.testing.assert_allclose(means[3], means[:3].mean(0), atol=1e-12)  # no rows: the middle of the others


@pytest.mark.parametrize(
    "S, words",
    [
        ([[1, 1.5], [1.5, 1]], "^s holds 1 to 1.5, similarities run from 0 to 1$"),
        ([[1, -0.5], [0, 1]], "^s holds -0.5 to 1, similarities run from 0 to 1$"),
        ([[1, 0], [0, 0.5]], "^s: class 1 has similarity 0.5 to itself, needs 1$"),
    ],
)
def test_impossible_similarities_are_refused(S, words):
    with pytest.raises(DataError, match=words):
        sca.check_similarity(np.array(S), "s")


LABELS = Labels(np.arange(3), 3)


def test_a_matrix_file_is_checked(tmp_path):
    def read(a, square=True):
        np.save(tmp_path / "s.npy", a)
        return sca.read_matrix(str(tmp_path / "s.npy"), LABELS, square)

    matrix, sha = read(np.eye(3, dtype=np.int64))
    np.testing.assert_array_equal(matrix, np.eye(3))
    assert (matrix.dtype, len(sha)) == (np.float64, 64)
    assert read(np.eye(3))[1] == sha  # the hash is of the numbers, not of the file
    assert read(np.ones((3, 7)), square=False)[0].shape == (3, 7)
    with pytest.raises(DataError, match=r"s.npy is \(4, 4\) float64, needs \(3, 3\) numbers, a row for each class$"):
        read(np.eye(4))
    with pytest.raises(DataError, match=r"s.npy is \(2, 7\) float64, needs \(3, e\) numbers"):
        read(np.ones((2, 7)), square=False)
    with pytest.raises(DataError, match=r"s.npy: row 1 is not finite$"):
        read(np.array([[1, 0, 0], [0, np.nan, 0], [0, 0, 1]]))
    with pytest.raises(DataError, match=r"s.npy: not a sound .npy file$"):
        read(np.array([[object()]]))
    (tmp_path / "s.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"s.npy: not a sound .npy file$"):
        sca.read_matrix(str(tmp_path / "s.npy"), LABELS, True)
    with pytest.raises(ConfigError, match=r"none.npy: no such file$"):
        sca.read_matrix(str(tmp_path / "none.npy"), LABELS, True)
