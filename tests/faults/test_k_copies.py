"""Galleries and models as copies and pickles: the same answers, or the reason why not."""

import copy
import pickle
from dataclasses import replace

import faiss
import numpy as np
import pytest

import scqfaiss
from scqfaiss.errors import CheckpointError, ConfigError, ScqWarning
from scqfaiss.galleries.gallery import Gallery
from scqfaiss.galleries.reading import Stored
from scqfaiss.galleries.snapshot import Snapshot

from .conftest import blobs

X = blobs(12, seed=5)[0]


@pytest.mark.parametrize("how", [{}, {"mmap": True}, {"verify": False}])
def test_a_gallery_is_opened_again(here, how):
    gallery = scqfaiss.open("g.faissindex", model="m.safetensors", **how)
    again = pickle.loads(pickle.dumps(gallery))
    for a, b in zip(gallery.search(X, 5), again.search(X, 5)):
        np.testing.assert_array_equal(a, b)
    assert again._origin == gallery._origin and again.model.sha256 == gallery.model.sha256


def test_copies_share_the_index_and_are_refreshed_by_themselves(here):
    gallery = scqfaiss.open("folded.faissindex")
    copies = copy.copy(gallery), copy.deepcopy(gallery), copy.deepcopy([gallery])[0]
    scqfaiss.remove("folded.faissindex", [1000])
    assert gallery.refresh() and gallery.ntotal == 199
    for other in copies:
        assert other.ntotal == 200 and other.search(X, 3)[1].shape == (12, 3)
        assert other.refresh() and other.ntotal == 199


def test_another_file_under_the_name(here):
    data = pickle.dumps(scqfaiss.open("folded.faissindex"))
    scqfaiss.remove("folded.faissindex", [1000])
    with pytest.raises(ConfigError, match=r"folded\.faissindex is another file than the one whose gallery was pickled"):
        pickle.loads(data)
    (here / "folded.faissindex").unlink()
    with pytest.raises(ConfigError, match=r"folded\.faissindex: no such file$"):
        pickle.loads(data)


def test_what_cannot_be_pickled_says_why(here):
    index = scqfaiss.open("p.faissindex", model="m.safetensors").index
    with pytest.raises(ConfigError, match=r"^x cannot be pickled: it was not opened from a file; pass the path"):
        pickle.dumps(Gallery(Snapshot(Stored.of(index)), None, "x"))
    faiss.write_index(index, "plain.faissindex")
    with pytest.warns(ScqWarning, match="no checksum"):
        plain = scqfaiss.open("plain.faissindex")
    with pytest.raises(ConfigError, match=r"it is a plain FAISS file, without a hash to know it by; pass the path"):
        pickle.dumps(plain)
    gallery = scqfaiss.open("g.faissindex", model="m.safetensors")
    gallery._snapshot = replace(gallery._snapshot, on_gpu=object())
    gallery._origin = replace(gallery._origin, device="cuda:0")
    with pytest.raises(ConfigError, match=r"it lies on cuda:0, which another process has to open itself"):
        pickle.dumps(gallery)


def test_a_model_is_pickled_as_its_file(here):
    model = scqfaiss.Model.load("m.safetensors")
    for again in (pickle.loads(pickle.dumps(model)), copy.copy(model), copy.deepcopy(model)):
        assert again.to_bytes() == model.to_bytes() and again.sha256 == model.sha256
        np.testing.assert_array_equal(again.encode(X), model.encode(X))
    data = bytearray(model.to_bytes())
    data[-1] ^= 1
    with pytest.raises(CheckpointError, match=r"^the model: checksum mismatch"):
        scqfaiss.Model.from_bytes(bytes(data))


@pytest.mark.slow
def test_a_pool_takes_a_gallery(here):
    import multiprocessing

    gallery = scqfaiss.open("g.faissindex", model="m.safetensors")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply_async(Gallery.search, (gallery, X, 5)).get(timeout=50)
    np.testing.assert_array_equal(found[1], gallery.search(X, 5)[1])
