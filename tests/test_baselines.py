"""PQ, OPQ and RQ as FAISS trains them."""

import faiss
import numpy as np
import pytest
from close import assert_as_good, assert_close, roundings

import scqfaiss
from scqfaiss.baselines import one_thread
from scqfaiss.errors import ConfigError, DataError, ScqWarning

pytestmark = pytest.mark.filterwarnings("ignore::scqfaiss.errors.ScqWarning")
X = (np.random.default_rng(0).standard_normal((700, 8)) * np.arange(1, 9) + 3).astype(np.float32)


def prepared(x=X):
    out = x - X.mean(0, dtype=np.float64).astype(np.float32)
    faiss.normalize_L2(out)
    return out


def error(model, x=X):
    return float(np.square(model.embed(x) - model.codebooks.decode(model.encode(x))).mean())


def test_rows_are_centered_and_normalised_unless_raw():
    model = scqfaiss.train(X, method="pq", bits=8, nbits=4)
    assert_close(model.embed(X), prepared(), roundings(model.chain), 1)
    assert [op for op, _ in model.chain.layers] == ["center", "normalize"]
    raw = scqfaiss.train(X, method="pq", bits=8, nbits=4, raw=True)
    np.testing.assert_array_equal(raw.embed(X), X)
    assert raw.config["encoder"] == "identity"


def test_codebooks_are_those_of_the_product_quantizer_of_faiss():
    model = scqfaiss.train(X, method="pq", bits=8, nbits=4, iterations=10)
    pq = faiss.ProductQuantizer(8, 2, 4)
    pq.cp.seed, pq.cp.niter = 1, 10
    with one_thread():
        pq.train(prepared())
    table = faiss.vector_to_array(pq.centroids).reshape(2, 16, 4)
    np.testing.assert_array_equal(
        model.codebooks.centroids, table
    )  # of the same rows, in the same order, by one thread
    index = faiss.IndexPQ(8, 2, 4)
    index.pq, index.is_trained = pq, True
    z = model.embed(X)
    assert_as_good(model.encode(X), faiss.unpack_bitstrings(index.sa_encode(z), 2, 4), model.codebooks, z)


def test_the_rotation_keeps_lengths_and_lowers_the_error():
    pq, opq = (scqfaiss.train(X, method=m, bits=8, nbits=4) for m in ("pq", "opq"))
    A = opq.chain.layers[-1][1]["A"]
    np.testing.assert_allclose(A @ A.T, np.eye(8), atol=1e-4)
    assert error(opq) < error(pq)


def test_opq_brings_any_width_to_a_multiple_of_the_codebooks():
    model = scqfaiss.train(X, method="opq", bits=12, nbits=4)
    assert (model.d_in, model.codebooks.d, model.codebooks.M) == (8, 6, 3)
    A = model.chain.layers[-1][1]["A"]
    np.testing.assert_allclose(A @ A.T, np.eye(6), atol=1e-4)


def test_more_bits_lose_less():
    errors = [error(scqfaiss.train(X, method="pq", bits=b, nbits=4)) for b in (4, 8, 16)]
    assert errors[0] > 1.2 * errors[1] > 1.4 * errors[2]


def test_too_few_rows_are_refused_and_few_are_a_notice():
    with pytest.raises(ConfigError, match=r"^200 rows cannot train K=256 codewords; need --nbits 7 or less$"):
        scqfaiss.train(X[:200], method="pq", bits=8)
    with pytest.warns(ScqWarning, match=r"^300 rows are few for 16 codewords a codebook; FAISS advises 624$"):
        scqfaiss.train(X[:300], method="pq", bits=8, nbits=4)


@pytest.mark.parametrize("method", ["pq", "opq"])
def test_equal_seeds_give_equal_codebooks_on_any_number_of_threads(method):
    first = scqfaiss.train(X, method=method, bits=8, nbits=4).codebooks.centroids
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    try:
        np.testing.assert_array_equal(scqfaiss.train(X, method=method, bits=8, nbits=4).codebooks.centroids, first)
        assert faiss.omp_get_max_threads() == 2  # left as it was
    finally:
        faiss.omp_set_num_threads(before)
    assert not np.array_equal(scqfaiss.train(X, method=method, bits=8, nbits=4, seed=1).codebooks.centroids, first)


def test_residual_codebooks_and_codes_are_those_of_faiss():
    model = scqfaiss.train(X, method="rq", bits=12, nbits=4)
    rq = faiss.ResidualQuantizer(8, 3, 4)
    rq.max_beam_size, rq.cp.seed, rq.cp.niter = 5, 1, 25
    with one_thread():
        rq.train(prepared())
    table = faiss.vector_to_array(rq.codebooks).reshape(3, 16, 8)
    assert (model.codebooks.kind, model.config["beam"]) == ("additive", 5)
    np.testing.assert_array_equal(model.codebooks.centroids, table)
    z = model.embed(X)
    assert_as_good(model.encode(X), faiss.unpack_bitstrings(rq.compute_codes(z), 3, 4), model.codebooks, z, beam=5)
    assert error(model) < error(scqfaiss.train(X, method="rq", bits=8, nbits=4))


@pytest.mark.parametrize("method", ["pq", "opq", "rq"])
def test_the_largest_seed_works_and_larger_ones_are_refused(method):
    assert scqfaiss.train(X, method=method, bits=8, nbits=4, seed=2**31 - 1).config["seed"] == 2**31 - 1
    for seed in (2**31, -1):
        with pytest.raises(ConfigError, match=f"^seed is {seed}, needs 0 "):
            scqfaiss.train(X, method=method, bits=8, nbits=4, seed=seed)


def test_a_rotation_needs_as_many_rows_as_dimensions():
    with pytest.raises(DataError, match=r"^40 rows cannot train a rotation of d=64; need 64 or more, or method pq$"):
        scqfaiss.train(np.random.default_rng(0).random((40, 64), np.float32), method="opq", bits=4, nbits=2)
