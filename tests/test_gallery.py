"""Opening and searching, in Python."""

from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest
from faults.conftest import blobs, here, made  # noqa: F401

import scqfaiss
from scqfaiss.errors import CheckpointError, ConfigError, DataError, IndexFileError, ScqWarning
from scqfaiss.gallery import verify_file


def test_search_equals_the_oracle(here):  # noqa: F811
    model = scqfaiss.Model.load("m.safetensors")
    xq, _ = blobs(12, seed=5)
    for name in ("g", "p"):
        gallery = scqfaiss.open(f"{name}.faissindex", model=model)
        codebooks, codes, ids = gallery.unpack()
        D, I = gallery.search(xq, k=200)
        scores = codebooks.scores(model.embed(xq), codes)
        place = {int(i): n for n, i in enumerate(ids)}
        for q in range(len(xq)):
            want = [scores[q, place[int(i)]] for i in I[q]]
            np.testing.assert_allclose(D[q], want, rtol=1e-5, atol=1e-6)
            assert sorted(I[q].tolist()) == sorted(ids.tolist())


def test_plain_faiss_reads_every_file(here):  # noqa: F811
    model = scqfaiss.Model.load("m.safetensors")
    xq, _ = blobs(12, seed=5)
    for name, z in (("g", model.embed(xq)), ("p", model.embed(xq)), ("folded", xq)):
        ours = scqfaiss.open(f"{name}.faissindex", model=None if name == "folded" else model).search(xq, 9)
        for a, b in zip(faiss.read_index(f"{name}.faissindex").search(z, 9), ours):
            np.testing.assert_array_equal(a, b)


def test_one_row_answers_as_inside_a_batch(here):  # noqa: F811
    gallery = scqfaiss.open("g.faissindex", model="m.safetensors")
    xq, _ = blobs(12, seed=5)
    D, _ = gallery.search(xq, 5)
    for q in range(len(xq)):
        np.testing.assert_allclose(gallery.search(xq[q : q + 1], 5)[0][0], D[q], rtol=1e-5, atol=1e-6)


def test_searches_in_several_threads(here):  # noqa: F811
    gallery = scqfaiss.open("g.faissindex", model="m.safetensors")
    xq, _ = blobs(50, seed=5)
    want = gallery.search(xq, 5)
    with ThreadPoolExecutor(4) as pool:
        for D, I in pool.map(lambda _: gallery.search(xq, 5), range(20)):
            np.testing.assert_array_equal(D, want[0])
            np.testing.assert_array_equal(I, want[1])


def test_odd_queries(here):  # noqa: F811
    gallery = scqfaiss.open("g.faissindex", model="m.safetensors")
    x, _ = blobs(3)
    D, I = gallery.search(np.zeros((0, 16), np.float32), 4)
    assert (D.shape, I.shape) == ((0, 4), (0, 4))
    assert gallery.search(x.tolist() and x.astype(np.float16), 4)[0].shape == (3, 4)
    with pytest.raises(ConfigError, match=r"^queries: queries have d=15, g\.faissindex needs d=16$"):
        gallery.search(x[:, :15], 4)
    with pytest.raises(DataError, match=r"^queries: row 1, column 2 is infinite \(1 of 3 rows is not finite\)$"):
        gallery.search(np.where(np.arange(48).reshape(3, 16) == 18, np.inf, x), 4)
    for k in (0, -1):
        with pytest.raises(ConfigError, match=f"^k is {k}, needs 1 or more$"):
            gallery.search(x, k)
    with pytest.warns(ScqWarning, match=r"^k=10,000,000,000 is more than the 200 vectors of g\.faissindex"):
        assert gallery.search(x, 10**10)[1].shape == (3, 200)
    with pytest.raises(ConfigError, match=r"^queries: encoded queries have d=16, the index needs d=4$"):
        gallery.search(x, 4, encoded=True)
    with pytest.raises(DataError, match="needs"):
        gallery.search([[1.0, 2.0], [3.0]], 4)


def test_opening(here):  # noqa: F811
    with pytest.raises(ConfigError, match=r"^nope\.faissindex: no such file$"):
        scqfaiss.open("nope.faissindex")
    with pytest.raises(ConfigError, match=r"^nope\.safetensors: no such file$"):
        scqfaiss.open("g.faissindex", model="nope.safetensors")
    with pytest.raises(CheckpointError, match=r"^g\.faissindex: not a sound"):
        scqfaiss.open("g.faissindex", model="g.faissindex")
    with pytest.raises(IndexFileError, match=r"^m\.safetensors: not a FAISS index, or damaged$"):
        scqfaiss.open("m.safetensors")
    with pytest.raises(ConfigError, match=r"^device is 'cuda', this version searches on cpu$"):
        scqfaiss.open("g.faissindex", device="cuda")


def test_without_the_hash_a_sound_file_opens_the_same(here):  # noqa: F811
    xq, _ = blobs(5)
    a, b = (scqfaiss.open("g.faissindex", model="m.safetensors", verify=v).search(xq, 5) for v in (True, False))
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])


def test_verify_says_what_it_found(here):  # noqa: F811
    assert verify_file("g.faissindex") == "g.faissindex: sound, 200 vectors, checksum and card agree"
    sha = scqfaiss.Model.load("m.safetensors").sha256[:12]
    assert verify_file("m.safetensors") == f"m.safetensors: sound, model of method scq, SHA-256 {sha}"
