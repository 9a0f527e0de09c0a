"""Calibrated models and galleries: what files keep, what searches promise, here and through plain FAISS."""

import warnings

import faiss
import h5py
import life
import numpy as np
import pytest
from conftest import blobs
from faults.conftest import TINY, here, made, run, write_h5  # noqa: F401

import scqfaiss
from scqfaiss.errors import CheckpointError, ConfigError, DataError, IndexFileError, ScqWarning
from scqfaiss.evaluation.galleries import evaluate
from scqfaiss.evaluation.promises import lines
from scqfaiss.footer import read_footer, write_sealed
from scqfaiss.targets.pretransform import unwrap_index

# ruff: noqa: F811  (fixtures are imported by name)
NAMES = ("product-4", "additive-4", "product-l2", "product-4 listed", "additive-4 listed", "additive-4 content")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("product-8", "product-0 listed", "product-8 content")]


X, Y = blobs(1000, spread=4.0)  # the classes of the models, and hard to tell apart
(XC, XB, XQ), (YC, YB, YQ) = (np.split(a[:900], [400, 700]) for a in (X, Y))


@pytest.mark.parametrize("name", [*NAMES, *SLOW])
def test_every_kind_of_codes_keeps_its_promises(tmp_path, name):
    plain = life.model(name)
    model = scqfaiss.calibrate(plain, XC, YC)
    assert model.origin == plain.origin and model.sha256 != plain.sha256
    model.save(tmp_path / "m.safetensors")
    again = scqfaiss.Model.load(tmp_path / "m.safetensors")
    assert again.to_bytes() == model.to_bytes() and again.calibration.pack() == model.calibration.pack()
    scqfaiss.export(again, XB, path=tmp_path / "g.faissindex")
    gallery = scqfaiss.open(tmp_path / "g.faissindex", model=plain)  # the same model but for its calibration
    relevant = YQ[:, None] == YB
    index = faiss.read_index(str(tmp_path / "g.faissindex"))
    if hasattr(unwrap_index(index), "nlist"):
        unwrap_index(index).nprobe = unwrap_index(index).nlist
    z = gallery.embed(XQ)
    recalls, sign = [], -1 if gallery.metadata["metric"] == "l2" else 1
    for asked in (0.4, 0.8):
        t = gallery.threshold(recall=asked, confidence=0.5)
        lims, D, I = gallery.range_search(XQ, t)
        _, of_faiss, _ = index.range_search(z, t)
        sure, maybe = (len(gallery.range_search(XQ, t + sign * 1e-5 * s)[1]) for s in (1, -1))
        assert sure <= len(of_faiss) <= maybe  # scores may differ in their last digit
        found = np.zeros_like(relevant)
        found[np.repeat(np.arange(len(XQ)), np.diff(lims)), I] = True
        recalls.append(((found & relevant).sum(1) / relevant.sum(1)).mean())
        p = gallery.probability(D)
        assert p.shape == D.shape and ((0 < p) & (p < 1)).all()
    assert (np.array(recalls) >= (0.3, 0.7)).all()  # many rows may share a score
    strict, loose = gallery.threshold(probability=0.3), gallery.threshold(probability=0.28)
    assert sign * strict >= sign * loose
    assert gallery.metadata["relevant_share"] == pytest.approx(1 / len(np.unique(YC)), rel=0.5)


def test_prefixes_are_calibrated_each():
    x, y = blobs(200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScqWarning)
        model = scqfaiss.train(
            x, y, method="dpq", bits=12, nbits=4, epochs=1, encoder="linear", calibrate=(XC[:80], YC[:80])
        )
    assert sorted(model.calibrations.lengths) == [4, 8, 12]
    short = model.prefix(8)
    assert short.calibration is model.calibrations.lengths[8] and short.origin == model.origin
    assert short.to_bytes() == scqfaiss.Model.from_bytes(short.to_bytes()).to_bytes()


def test_many_labels_take_the_share_of_the_calibration_rows():
    hot = np.zeros((len(YC), YC.max() + 1), np.uint8)
    hot[np.arange(len(YC)), YC] = 1
    hot[::3, 0] = 1
    model = scqfaiss.calibrate(life.model("product-4"), XC, hot)
    assert model.calibrations.means is None
    codes = np.zeros((1, model.codebooks.d), np.float32)
    assert model.calibrations.share(codes, np.ones(1), model.codebooks.bits) == model.calibration.share


def test_the_share_of_relevant_rows_follows_the_classes_of_a_gallery(tmp_path):
    """Queries mostly of class 0: where the gallery holds more of it, more of its rows are relevant."""
    x, y = blobs(400)
    kept = np.r_[np.flatnonzero(y == 0), np.flatnonzero(y != 0)[:40]]
    model = scqfaiss.calibrate(life.model("product-4"), x[kept], y[kept])
    shares = []
    for rows in (np.flatnonzero(y == 0), np.flatnonzero(y != 0)):
        scqfaiss.export(model, x[rows], path=tmp_path / "g.faissindex")
        shares.append(scqfaiss.open(tmp_path / "g.faissindex").metadata["relevant_share"])
    of_zero = (y[kept] == 0).mean()
    assert shares[0] == pytest.approx(of_zero, abs=0.1) and shares[1] < shares[0]


def test_what_breaks_a_promise_is_said(tmp_path):
    plain = life.model("product-4")
    scqfaiss.export(plain, XB, path=tmp_path / "g.faissindex")
    gallery = scqfaiss.open(tmp_path / "g.faissindex")
    assert not gallery.has_calibration
    with pytest.raises(ConfigError, match="does not say what its scores mean: neither it nor its model is calibrated"):
        gallery.threshold(recall=0.9)
    with pytest.raises(ConfigError, match="does not say what its scores mean"):
        gallery.probability([0.5])
    later = scqfaiss.open(
        tmp_path / "g.faissindex", model=scqfaiss.calibrate(plain, XC, YC)
    )  # an older file, a newer model
    assert later.has_calibration and 0 < later.probability(0.5) < 1
    with pytest.raises(ConfigError, match="nothing was asked for, needs one of precision, recall and probability"):
        later.threshold()
    with pytest.raises(ConfigError, match="precision and recall was asked for"):
        later.threshold(precision=0.5, recall=0.5)
    with pytest.raises(DataError, match="x has no labels, which a calibration needs"):
        scqfaiss.calibrate(plain, XC, None)
    with pytest.raises(ConfigError, match="rows have d=3, the model needs d=16"):
        scqfaiss.calibrate(plain, XC[:, :3], YC)
    with pytest.raises(DataError, match="needs 20 or more, and rows of other classes"):
        scqfaiss.calibrate(plain, XC[:5], YC[:5])


def test_damaged_calibrations_are_refused(tmp_path):
    model = scqfaiss.calibrate(life.model("product-4"), XC, YC)
    model.config["x"] = 1  # a model may be changed and hashed anew; its calibration stays
    assert model.origin == life.model("product-4").origin
    for change in ({"lengths": {}}, {"lengths": {"many": {}}}, {"model_sha256": "00"}, {"nearest": [1.0]}):
        tensors, packed = model.calibrations.pack()
        with pytest.raises(ConfigError):
            type(model.calibrations).unpack(tensors, packed | change)
        with pytest.raises(ConfigError):
            type(model.calibrations).unpack({}, packed)
    with pytest.raises(ConfigError, match=r"the calibration has means of d=16, the codes are of d=6"):
        model.calibrations.checked(6)
    scqfaiss.export(model, XB, path=tmp_path / "g.faissindex")
    with open(tmp_path / "g.faissindex", "rb") as f:
        found, stream = read_footer(f, "g")
        f.seek(0)
        index = f.read(stream)
    with open(tmp_path / "g.faissindex", "wb") as f:
        write_sealed(f, lambda put: put(index), found | {"relevant_share": 2.0})
    with pytest.raises(IndexFileError, match=r"relevant_share=2\.0, needs a number between 0 and 1"):
        scqfaiss.open(tmp_path / "g.faissindex")
    assert issubclass(CheckpointError, scqfaiss.ScqError)


def test_the_command_line(here, run):
    write_h5("cal.h5", XC, YC)
    assert run("train", "train.h5", "-o", "t.safetensors", *TINY, "--calibrate", "cal.h5").code == 0
    assert scqfaiss.Model.load("t.safetensors").calibration is not None
    result = run("train", "train.h5", "-o", "t.safetensors", *TINY, "--calibrate", "train.h5")
    assert result.code == 0 and "rows of train.h5 are training rows" in result.err
    before = scqfaiss.Model.load("m.safetensors")
    assert run("calibrate", "m.safetensors", "cal.h5", "-o", "c.safetensors").code == 0
    result = run("calibrate", "m.safetensors", "cal.h5")
    assert result.code == 0 and "calibrated by 400 rows" in result.out
    assert scqfaiss.Model.load("m.safetensors").origin == before.origin
    assert run("export", "c.safetensors", "database.h5", "-o", "c.faissindex").code == 0
    for file in ("c.safetensors", "c.faissindex"):
        assert "score  probability  precision  recall" in run("info", file).out
    search = ("search", "c.faissindex", "query.h5", "--model", "c.safetensors")
    for option in (("--recall", "0.8"), ("--precision", "0.3", "--confidence", "0.5"), ("--min-probability", "0.2")):
        result = run(*search, *option, "-o", "hits.h5")
        assert result.code == 0 and "which promises" in result.out, result.err
        with h5py.File("hits.h5") as f:
            assert f["probability"].shape == f["scores"].shape
    assert run(*search, "-o", "hits.h5").code == 0
    with h5py.File("hits.h5") as f:
        assert f["probability"].shape == f["ids"].shape and (f["probability"][:] > 0).all()
    evaluation = ("evaluate", "c.faissindex", "query.h5", "database.h5", "--model", "c.safetensors", "--promises")
    result = run(*evaluation)
    assert result.code == 0 and "promised precision, seen with confidence 0.9: 0.5 " in result.out
    for options, message in (
        (("--recall", "0.8", "-k", "3"), "leave -k out"),
        (("--recall", "0.8", "--threshold", "1"), "give one of them"),
        (("--threshold", "1", "--confidence", "0.9"), "--confidence is of a promise"),
        (("--recall", "2"), "recall is 2.0, needs a number between 0 and 1"),
    ):
        result = run(*search, *options)
        assert result.code == 2 and message in result.err


@pytest.mark.parametrize("name", ["additive-4", "product-l2"])
def test_what_an_evaluation_sees_is_what_range_search_finds(tmp_path, name):
    scqfaiss.export(scqfaiss.calibrate(life.model(name), XC, YC), XB, path=tmp_path / "g.faissindex")
    gallery = scqfaiss.open(tmp_path / "g.faissindex", model=life.model(name))
    found = evaluate(gallery, XQ, YQ, np.arange(len(XB)), YB, promises=0.5)["promises"]
    relevant, queries = YQ[:, None] == YB, np.arange(len(XQ))
    for kind in ("recall", "precision"):
        for asked, seen in found[kind].items():
            if seen is None:  # cannot be promised, or no query has a hit beyond it
                continue
            lims, _, I = gallery.range_search(XQ, gallery.threshold(**{kind: float(asked)}, confidence=0.5))
            right = relevant[np.repeat(queries, np.diff(lims)), I]
            of_query = np.bincount(np.repeat(queries, np.diff(lims)), right, len(XQ))
            want = (of_query / relevant.sum(1)).mean() if kind == "recall" else right.mean()
            assert seen == pytest.approx(want, abs=0.02)  # scores that equal a threshold but for their last digit
    D, I = gallery.search(XQ, 100)
    p, right, error = gallery.probability(D), np.take_along_axis(relevant, I, 1), 0.0
    for b in range(15):
        inside = np.minimum((p * 15).astype(int), 14) == b
        error += abs((p - right)[inside].sum()) / p.size
    assert found["ece"] == pytest.approx(error, abs=0.01)  # ties at the last rank count in parts
    curve = found["reliability"]
    of_first = sum(bin["hits"] for bin in curve)
    assert of_first == pytest.approx(p.size) and all(0 < bin["probability"] < 1 for bin in curve)
    of_curve = sum(abs(bin["probability"] - bin["right"]) * bin["hits"] for bin in curve) / of_first
    assert of_curve == pytest.approx(found["ece"])
    assert "confidence 0.5" in lines(found)[0] and len(lines(found)) == 3
