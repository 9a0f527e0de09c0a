"""Files written once must read for ever, with the answers they gave then. Made by tools/make_golden.py.

The folder itself holds the first files; `targets` those of every target, with codebooks of 4 bits merged, and with the rule of
encoding in their metadata; `lists` those of models with lists, `content` those of models with content codes.
"""

from dataclasses import dataclass
from pathlib import Path

import faiss
import h5py
import numpy as np
import pytest
from close import assert_close, assert_encodes_as, roundings

import scqfaiss
from scqfaiss import Model
from scqfaiss.errors import IndexFileError
from scqfaiss.features.source import InferenceOptions, front_encoder_of
from scqfaiss.galleries.inspection import verify_file
from scqfaiss.targets import REGISTRY

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Golden:
    """A gallery; its model; the prefix under which the queries as the model encodes them stand in expected.h5."""

    folder: Path
    name: str
    model: str
    z: str

    @property
    def path(self):
        return self.folder / f"{self.name}.faissindex"

    @property
    def folded(self):
        return self.name == "ivfpq_folded"

    def load_model(self):
        return Model.load(self.folder / f"{self.model}.safetensors")

    def expected(self):
        with h5py.File(self.folder / "expected.h5", "r") as f:
            both = {name: f[name][()] for name in ("queries", "rows")} | {"z": f[f"{self.z}/z"][()]}
            return both | {name: node[()] for name, node in f[self.name].items()}


FIRST = [Golden(HERE, n, m, n) for n, m in (("ivfpq", "model"), ("pq", "model"), ("ivfpq_folded", "model_folded"))]
MODEL_OF = {
    "product": ("ivfpq", "ivfpq_lists", "pq", "fastscan", "fastscan_alone", "buckets_words", "buckets_boxes"),
    "additive": ("buckets_additive", "fastscan_additive", "lift", "residual"),
    "folded": ("ivfpq_folded",),
}
TARGETS = [Golden(HERE / "targets", name, model, model) for model, names in MODEL_OF.items() for name in names]
LISTED_BY = {"product": ("ivfpq", "buckets"), "additive": ("lift",), "alone": ("ivfpq_alone",)}
LISTED = [Golden(HERE / "lists", name, model, model) for model, names in LISTED_BY.items() for name in names]
CONTENT_BY = {"product": ("ivfpq", "fastscan", "buckets"), "listed": ("ivfpq_listed",), "alone": ("lift_alone",)}
CONTENT = [Golden(HERE / "content", name, model, model) for model, names in CONTENT_BY.items() for name in names]
GOLDEN = [pytest.param(g, id=f"{g.folder.name}-{g.name}") for g in FIRST + TARGETS + LISTED + CONTENT]


def tolerance(golden):
    """Of the largest score. Fast scan by itself rounds its tables to one of 255 steps."""
    return 0.02 if golden.name == "fastscan_alone" else 1e-5


@pytest.mark.parametrize("golden", GOLDEN)
def test_a_golden_gallery_gives_its_old_answers(golden):
    expected = golden.expected()
    gallery = scqfaiss.open(golden.path, model=golden.load_model())
    scores, ids = expected["scores"], expected["ids"]
    D, I = gallery.search(expected["queries"], ids.shape[1])
    scale = np.abs(scores).max()
    assert scale > 0.1
    np.testing.assert_allclose(D / scale, scores / scale, atol=tolerance(golden))
    codebooks, codes, held = gallery.unpack()
    np.testing.assert_array_equal(codes, expected["codes"])
    np.testing.assert_array_equal(held, expected["held"])
    # Ids up to ties: those named then and now have the scores they should.
    of = codebooks.scores(expected["z"], codes)
    place = {int(i): j for j, i in enumerate(held)}
    for found in (I, ids):
        for q, row in enumerate(found):
            named = of[q, [place[int(i)] for i in row]]
            np.testing.assert_allclose(named / scale, scores[q] / scale, atol=tolerance(golden))


@pytest.mark.parametrize("golden", GOLDEN)
def test_a_golden_model_embeds_and_encodes_as_it_did(golden):
    model, expected = golden.load_model(), golden.expected()
    terms = roundings(model.chain)
    if model.content is not None:  # what the gate is off by, the weights are off by
        terms = 8 * (terms + roundings(model.content.chain))
        with h5py.File(golden.folder / "expected.h5", "r") as f:
            assert_close(model.known(expected["queries"]), f[f"{golden.z}/known"][()], terms, 1)
    assert_close(model.embed(expected["queries"]), expected["z"], terms, 1)
    # Rows may stand in lists: those of a plain container stand in the order in which they came.
    with h5py.File(golden.folder / "expected.h5", "r") as f:
        ids = f["row_ids" if "row_ids" in f else "pq/held"][()]
    place = {int(i): j for j, i in enumerate(expected["held"])}
    assert_encodes_as(model, expected["rows"], expected["codes"][[place[int(i)] for i in ids]])


@pytest.mark.parametrize("golden", GOLDEN)
def test_plain_faiss_reads_a_golden_gallery(golden):
    index, expected = faiss.read_index(str(golden.path)), golden.expected()
    scores = expected["scores"]
    D = index.search(expected["queries"] if golden.folded else expected["z"], scores.shape[1])[0]
    np.testing.assert_allclose(D, scores, atol=tolerance(golden) * np.abs(scores).max())


@pytest.mark.parametrize("golden", GOLDEN)
def test_golden_files_verify(golden):
    assert ": valid, 120 vectors, checksum and metadata agree" in verify_file(golden.path)
    model = golden.folder / f"{golden.model}.safetensors"
    assert ": valid, model of method scq, SHA-256 " in verify_file(model)


@pytest.mark.parametrize("golden", TARGETS + LISTED + CONTENT, ids=lambda g: f"{g.folder.name}-{g.name}")
def test_a_golden_gallery_can_still_be_edited(golden, tmp_path):
    path = tmp_path / "g.faissindex"
    path.write_bytes(golden.path.read_bytes())
    expected, model = golden.expected(), golden.load_model()
    gone = expected["held"][:20]
    assert scqfaiss.remove(path, gone) == (20, 100)
    assert scqfaiss.append(path, expected["rows"][:7], ids=gone[:7], model=model) == 107
    gallery = scqfaiss.open(path, model=model)
    _, codes, held = gallery.unpack()
    assert set(held) == (set(expected["held"]) - set(gone)) | set(gone[:7])
    kept = ~np.isin(expected["held"], gone)
    order = {int(i): j for j, i in enumerate(held)}
    np.testing.assert_array_equal(codes[[order[int(i)] for i in expected["held"][kept]]], expected["codes"][kept])
    assert_encodes_as(model, expected["rows"][:7], codes[[order[int(i)] for i in gone[:7]]])
    assert gallery.target == golden.name.partition("_")[0]


def test_every_target_has_a_golden_file():
    assert {g.name.partition("_")[0] for g in TARGETS} == set(REGISTRY)
    for folder, golden in (("targets", TARGETS), ("lists", LISTED), ("content", CONTENT)):
        assert {p.stem for p in (HERE / folder).glob("*.faissindex")} == {g.name for g in golden}
    assert {g.name.partition("_")[0] for g in LISTED} == {"ivfpq", "buckets", "lift"}


def test_a_golden_gallery_with_one_wrong_bit_does_not(tmp_path):
    data = bytearray((HERE / "pq.faissindex").read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "pq.faissindex").write_bytes(data)
    with pytest.raises(IndexFileError, match=r"checksum mismatch"):
        verify_file(tmp_path / "pq.faissindex")


def test_golden_files_stay_small():
    assert sum(p.stat().st_size for p in HERE.rglob("*") if p.suffix not in (".py", ".pyc") and p.is_file()) < 330_000


# --------------------------------------------------------------------------------------------------------------- images
def test_a_phpq_model_with_a_head_of_its_own(monkeypatch):
    """images/: of the time before phpq became scq with pool=pyramid, when it pooled by pool=hybrid."""
    folder = HERE / "images"
    monkeypatch.syspath_prepend(str(folder))
    with h5py.File(folder / "expected.h5", "r") as f:
        images, queries = f["images"][()], f["queries"][()]
        expected = {name: node[()] for name, node in f["phpq"].items()}
    assert ": valid, model of method phpq, SHA-256 " in verify_file(folder / "phpq.safetensors")
    model = Model.load(folder / "phpq.safetensors")
    g = front_encoder_of(model, InferenceOptions(encoder="golden_network:small")).features(images)
    np.testing.assert_allclose(g, queries, atol=1e-5)
    np.testing.assert_allclose(model.embed(g), expected["z"], atol=1e-4 * np.abs(expected["z"]).max())
    gallery = scqfaiss.open(folder / "phpq.faissindex", model=model)
    D, _ = gallery.search(queries, expected["ids"].shape[1])
    np.testing.assert_allclose(D, expected["scores"], atol=1e-5 * np.abs(expected["scores"]).max())
    np.testing.assert_array_equal(gallery.unpack()[1], expected["codes"])
