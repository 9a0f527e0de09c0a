"""Files written once must read for ever, with the answers they gave then. Made by tools/make_golden.py."""

from pathlib import Path

import faiss
import h5py
import numpy as np
import pytest

import scqfaiss
from scqfaiss import Model
from scqfaiss.errors import IndexFileError
from scqfaiss.gallery import verify_file

HERE = Path(__file__).parent
MODEL_OF = {"ivfpq": "model", "pq": "model", "ivfpq_folded": "model_folded"}


@pytest.fixture(scope="module")
def expected():
    with h5py.File(HERE / "expected.h5", "r") as f:
        found = {}
        f.visititems(lambda name, node: found.update({name: node[()]}) if isinstance(node, h5py.Dataset) else None)
    return found


@pytest.mark.parametrize("name", MODEL_OF)
def test_a_golden_gallery_gives_its_old_answers(name, expected):
    model = Model.load(HERE / f"{MODEL_OF[name]}.safetensors")
    gallery = scqfaiss.open(HERE / f"{name}.faissindex", model=model)
    xq, scores, ids = expected["queries"], expected[f"{name}/scores"], expected[f"{name}/ids"]
    D, I = gallery.search(xq, ids.shape[1])
    scale = np.abs(scores).max()
    assert scale > 0.1
    np.testing.assert_allclose(D / scale, scores / scale, atol=1e-5)
    books, codes, held = gallery.unpack()
    np.testing.assert_array_equal(codes, expected[f"{name}/codes"])
    np.testing.assert_array_equal(held, expected[f"{name}/held"])
    # Ids up to ties: those named then and now have the scores they should.
    of = books.scores(expected[f"{name}/z"], codes)
    place = {int(i): j for j, i in enumerate(held)}
    for found in (I, ids):
        for q, row in enumerate(found):
            np.testing.assert_allclose(of[q, [place[int(i)] for i in row]] / scale, scores[q] / scale, atol=1e-5)


@pytest.mark.parametrize("name", MODEL_OF)
def test_a_golden_model_embeds_and_encodes_as_it_did(name, expected):
    model = Model.load(HERE / f"{MODEL_OF[name]}.safetensors")
    np.testing.assert_allclose(model.embed(expected["queries"]), expected[f"{name}/z"], atol=1e-5)
    codes, before = model.encode(expected["rows"]), expected[f"{name}/codes"]
    assert (codes != before).any(1).sum() <= 1  # a row between two codewords may fall to either side


@pytest.mark.parametrize("name", MODEL_OF)
def test_plain_faiss_reads_a_golden_gallery(name, expected):
    index = faiss.read_index(str(HERE / f"{name}.faissindex"))
    q = expected["queries"] if name == "ivfpq_folded" else expected[f"{name}/z"]
    scores = expected[f"{name}/scores"]
    np.testing.assert_allclose(index.search(q, scores.shape[1])[0], scores, atol=1e-5 * np.abs(scores).max())


def test_golden_files_verify():
    for name, model in MODEL_OF.items():
        assert ": sound, 120 vectors, checksum and card agree" in verify_file(HERE / f"{name}.faissindex")
        assert ": sound, model of method scq, SHA-256 " in verify_file(HERE / f"{model}.safetensors")


def test_a_golden_gallery_with_one_wrong_bit_does_not(tmp_path):
    data = bytearray((HERE / "pq.faissindex").read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "pq.faissindex").write_bytes(data)
    with pytest.raises(IndexFileError, match=r"checksum mismatch"):
        verify_file(tmp_path / "pq.faissindex")


def test_golden_files_stay_small():
    assert sum(p.stat().st_size for p in HERE.iterdir() if p.suffix != ".py" and p.is_file()) < 60_000
