"""New classes for a trained model: what stays as it was, what is found, what is refused."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import blobs

import scqfaiss
from scqfaiss.cli.commands import cli
from scqfaiss.codebooks import Codebooks
from scqfaiss.data.writing import write_rows
from scqfaiss.errors import ConfigError, DataError
from scqfaiss.galleries.inspection import facts
from scqfaiss.training.extending import padded, with_room

X, Y = blobs(n=700, d=24, C=7)
OLD, NEW = (0, 1, 3, 5, 6), (2, 4)  # numbers of new classes lie among those of the old
IS_OLD = np.isin(Y, OLD)
FEW = np.concatenate([np.flatnonzero(c == Y)[:8] for c in NEW])
REST = np.setdiff1d(np.flatnonzero(~IS_OLD), FEW)
KINDS = {
    "product": {"bits": 16, "nbits": 8},
    "four bits": {"bits": 16, "nbits": 4},
    "additive": {"bits": 16, "codebooks": {"kind": "additive"}},
    "lists": {"bits": 8, "lists": 8},
    "lists alone": {"bits": 0, "lists": 8},
}
_made = {}


def models(kind):
    if kind not in _made:
        old = scqfaiss.train(X[IS_OLD], Y[IS_OLD], features={"epochs": 20}, hidden=32, **KINDS[kind])
        _made[kind] = old, scqfaiss.extend(old, X[FEW], Y[FEW], lists=3)
    return _made[kind]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def words(codebooks, codes):
    return codebooks.split(codes)[1]


@pytest.mark.parametrize("kind", KINDS)
def test_old_codes_stay_and_decode_as_they_did(kind):
    old, new = models(kind)
    codes = old.encode(X)
    later = codes if old.codebooks.lists is not None else np.insert(codes, 0, 0, axis=1)
    decoded, before = new.codebooks.decode(later), old.codebooks.decode(codes)
    parts = old.codebooks.M if old.codebooks.kind == "product" and old.codebooks.M else 1
    e = (new.codebooks.d - old.codebooks.d) // parts
    assert e == -(-len(NEW) // parts)
    assert np.array_equal(decoded, padded(before, parts, e))
    assert new.codebooks.bits == old.codebooks.bits
    assert new.codebooks.L == max(old.codebooks.L, 1) + 6


def test_old_logits_are_the_same_and_new_ones_stand_by_class_number():
    old, new = models("product")
    (a, b), C = (model.chain.layers[-4][1] for model in (old, new)), len(OLD)
    assert b["A"].shape[1] == C + len(NEW)
    assert np.array_equal(b["A"][:, list(OLD)], a["A"]) and np.array_equal(b["b"][:, list(OLD)], a["b"])
    # An independent twin in float64: the posterior, and z of centers of their own.
    h = np.asarray(X[:20], np.float64)
    for op, arrays in new.chain.layers[:-4]:
        if op == "linear":
            h = h @ arrays["A"].T.astype(np.float64) + arrays["b"]
        else:
            assert op == "relu"
            h = np.maximum(h, 0)
    p = np.zeros((20, 7))
    for e in range(len(b["A"])):
        width = b["A"].shape[2]
        logits = h[:, e * width : (e + 1) * width] @ b["A"][e].T.astype(np.float64) + b["b"][e]
        exps = np.exp(logits - logits.max(1, keepdims=True))
        p += exps / exps.sum(1, keepdims=True) / len(b["A"])
    centers = new.chain.layers[-1][1]["A"].T
    assert np.allclose(new.embed(X[:20]), p @ centers, atol=1e-5)
    gram = centers @ centers.T
    for c in NEW:  # a center is orthogonal to those of all other classes
        assert gram[c, c] == pytest.approx(np.diag(gram)[list(OLD)].mean())
        assert np.allclose(np.delete(gram[c], c), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_new_classes_are_found_and_old_ones_stay_found(kind):
    old, new = models(kind)
    predicted = (new.embed(X) @ new.chain.layers[-1][1]["A"]).argmax(1)
    assert (predicted[REST] == Y[REST]).mean() > 0.75
    assert (predicted[IS_OLD] == Y[IS_OLD]).mean() > 0.75
    first = max(old.codebooks.L, 1)
    lists = new.encode(X)[:, 0]
    assert (lists[REST] >= first).mean() > 0.7  # new rows stand in new lists
    assert (lists[IS_OLD] < first).mean() > 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_a_gallery_of_the_old_model_is_searched_and_grows_with_the_new(kind):
    old, new = models(kind)
    rows = np.flatnonzero(IS_OLD)
    scqfaiss.export(old, X[rows], ids=rows, path="g.faissindex")
    data = Path("g.faissindex").read_bytes()
    gallery = scqfaiss.open("g.faissindex", model=new)
    assert Path("g.faissindex").read_bytes() == data
    _, stored, at = scqfaiss.open("g.faissindex", model=old).unpack()
    stored = stored[np.argsort(at)]
    assert np.array_equal(np.sort(gallery.ids()), rows)
    assert scqfaiss.append("g.faissindex", X[REST], ids=REST, model=new) == len(rows) + len(REST)
    gallery = scqfaiss.open("g.faissindex", model=new)
    codebooks, codes, ids = gallery.unpack()
    order = np.argsort(ids)
    codes, ids = codes[order], ids[order]
    assert np.array_equal(words(codebooks, codes[np.isin(ids, rows)]), words(old.codebooks, stored))
    z = new.embed(X[:50])
    D, I = gallery.search(X[:50], k=20, nprobe=new.codebooks.L)
    scores = new.codebooks.scores(z, codes)
    assert np.allclose(D, -np.sort(-scores, 1)[:, :20], atol=1e-5)
    assert np.allclose(np.take_along_axis(scores, np.searchsorted(ids, I), 1), D, atol=1e-5)
    assert np.allclose(codebooks.decode(codes), new.codebooks.decode(codes), atol=1e-6)
    with pytest.raises(ConfigError, match="give that model"):
        scqfaiss.append("g.faissindex", X[:2], model=old)


def test_targets_without_lists_say_so_and_the_file_stays():
    old, new = models("product")
    scqfaiss.export(old, X[IS_OLD], path="g.faissindex", target="pq")
    data = Path("g.faissindex").read_bytes()
    with pytest.raises(ConfigError, match=r"target pq cannot serve these codes.*lists"):
        scqfaiss.append("g.faissindex", X[FEW], model=new)
    assert Path("g.faissindex").read_bytes() == data


def test_extending_twice_keeps_the_first_galleries():
    old, _ = models("product")
    one = scqfaiss.extend(old, X[Y == 2], Y[Y == 2], lists=2)
    two = scqfaiss.extend(one, X[Y == 4], Y[Y == 4], lists=2)
    assert [step["sha256"] for step in two.config["extends"]] == [one.origin, old.origin]
    assert two.codebooks.L == 5 and two.config["C"] == 7 and "classes" not in two.config
    scqfaiss.export(old, X[IS_OLD], path="g.faissindex")
    stored, codes = (scqfaiss.open("g.faissindex", model=model).unpack()[1] for model in (old, two))
    assert not codes[:, 0].any() and np.array_equal(codes[:, 1:], stored)


def test_the_same_rows_and_seed_give_the_same_model():
    old, new = models("product")
    assert scqfaiss.extend(old, X[FEW], Y[FEW], lists=3).sha256 == new.sha256


def test_room_is_at_the_end_of_every_sub_vector():
    w = np.arange(1, 25, dtype=np.float32).reshape(2, 4, 3)
    room = with_room(Codebooks("product", w), 3, np.ones((2, 10), np.float32))
    assert room.centroids.shape == (2, 4, 5) and not room.centroids[:, :, 3:].any()
    assert np.array_equal(room.centroids[:, :, :3], w)
    assert not room.lists[0].any() and room.lists[1:].all()


def test_class_names_tell_classes_apart():
    names = np.array(list("abcde"))
    old = scqfaiss.train(
        X[IS_OLD], np.searchsorted(OLD, Y[IS_OLD]), class_names=list(names), features={"epochs": 5}, hidden=16
    )
    new = scqfaiss.extend(old, X[FEW], np.searchsorted(NEW, Y[FEW]), class_names=["x", "y"], lists=1)
    assert new.config["class_names"] == [*names, "x", "y"] and new.config["C"] == 7
    with pytest.raises(ConfigError, match="knows class b already"):
        scqfaiss.extend(old, X[FEW], np.searchsorted(NEW, Y[FEW]), class_names=["x", "b"])


def test_what_cannot_be_extended_is_refused():
    old, _ = models("product")
    with pytest.raises(ConfigError, match="knows class 0, 1 already"):
        scqfaiss.extend(old, X[:60], np.arange(60) % 2)
    with pytest.raises(DataError, match="class 2 has 1 row, a new class needs 2"):
        scqfaiss.extend(old, X[:3], np.array([2, 4, 4]))
    with pytest.raises(ConfigError, match="d=23, the model needs d=24"):
        scqfaiss.extend(old, X[FEW][:, :23], Y[FEW])
    with pytest.raises(DataError, match="no labels"):
        scqfaiss.extend(old, X[FEW], None)
    with pytest.raises(DataError, match="many labels"):
        scqfaiss.extend(old, X[FEW], np.eye(8, dtype=np.uint8)[Y[FEW]])
    with pytest.raises(ConfigError, match="lists is 0"):
        scqfaiss.extend(old, X[FEW], Y[FEW], lists=0)
    plain = scqfaiss.train(X[IS_OLD], Y[IS_OLD], bits=8, encoder="identity")
    with pytest.raises(ConfigError, match=r"classifier is calibrated.*no layers"):
        scqfaiss.extend(plain, X[FEW], Y[FEW])


def test_the_command_writes_what_the_function_gives():
    old, new = models("product")
    old.save("m.safetensors")
    with open("new.h5", "x+b") as f:
        write_rows(f, X[FEW], Y[FEW], FEW)
    args = ["extend", "m.safetensors", "new.h5", "-o", "m2.safetensors", "--lists", "3"]
    result = CliRunner().invoke(cli, args, catch_exceptions=False)
    assert "2 classes more, 7 in all, 6 lists more, codes of 16 bits as before" in result.output
    told = facts("m2.safetensors", {})
    assert told["sha256"] == new.sha256 and told["extends"][0]["sha256"] == old.origin
    assert told["extends"][0]["new_classes"] == list(NEW)
