"""Content codes: the gate, the weights, how the two parts stand in one vector, and the file."""

import json
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
from close import assert_close, assert_encodes_as
from conftest import blobs
from contents import FACTS, asked, content_of, gate_of, unit, with_content

from scqfaiss import Model
from scqfaiss.bundle import Bundle, from_bytes
from scqfaiss.codebooks import Codebooks
from scqfaiss.content import Content, Joint, as_known, parse_known
from scqfaiss.data import ArraySource
from scqfaiss.encoders.chain import Chain
from scqfaiss.errors import CheckpointError, ConfigError, DataError
from scqfaiss.galleries.inspection import facts
from scqfaiss.model import encode_source

X, Y = blobs(300, d=8)
CONFIG = {"method": "scq", "rule": "l2", "encoder": "identity"}


def plain(kind="product", M=2, lists=0, nbits=4, d=8, metric="ip", seed=0):
    rng = np.random.default_rng(seed)
    centroids = rng.standard_normal((M, 1 << nbits if M else 2, d // max(M, 1) if kind == "product" else d))
    of_lists = X[:lists, :d].copy() if lists else None
    chain = Chain(8, [] if d == 8 else [("linear", {"A": rng.standard_normal((d, 8)).astype(np.float32)})])
    return Model(chain, Codebooks(kind, centroids.astype(np.float32), metric, of_lists), CONFIG)


# kind, semantic codebooks, lists, d_z, content codebooks, d_v: in either part the longer sub-vectors
LAYOUTS = [
    ("product", 2, 0, 8, 3, 6),
    ("product", 4, 0, 8, 2, 12),
    ("product", 2, 5, 8, 2, 8),
    ("additive", 3, 0, 8, 2, 5),
    ("additive", 2, 5, 6, 3, 9),
    ("product", 0, 5, 8, 3, 6),
]


def made(kind, M, lists, d, M_c, d_v, **how):
    return with_content(plain(kind, M, lists, d=d), X, Y, M=M_c, d=d_v, **how)


# ------------------------------------------------------------------------------------------------------------- the gate
def test_the_gate_is_logistic_regression_on_four_features():
    rng = np.random.default_rng(3)
    z, v = rng.standard_normal((50, 5)).astype(np.float32), unit(rng.standard_normal((50, 7)))
    gate = gate_of(z, v, np.arange(50) % 6, G=4)
    found, probabilities = gate.features(z, v), gate(z, v)
    assert found.shape == (50, 4) and probabilities.dtype == np.float32
    for i in range(50):
        near = [sum(float(a) * float(b) for a, b in zip(v[i], c)) / gate.temperature for c in gate.clusters]
        a = [math.exp(n - max(near)) for n in near]
        want = [
            max(sum(float(p) * float(q) for p, q in zip(row, c)) for c in classes)
            for row, classes in ((z[i], gate.classes_z), (v[i], gate.classes_v))
        ]
        want += [sum(p * float(t) for p, t in zip(a, of)) / sum(a) for of in (gate.tops, gate.shares)]
        assert_close(found[i], np.array(want), terms=64, scale=10, dtype=np.float64)
        logit = sum(w * float(c) for w, c in zip(want, gate.coefficients)) + float(gate.coefficients[-1])
        assert abs(probabilities[i] - 1 / (1 + math.exp(-logit))) < 2e-7
    assert np.ptp(probabilities) > 0.02


def test_the_gate_holds_at_its_ends(monkeypatch):
    gate = gate_of(X, unit(X), Y)
    far = replace(gate, coefficients=np.array([0, 0, 0, 0, 3e38], np.float32))
    assert (far(X, unit(X)) == 1).all()
    assert (replace(far, coefficients=-far.coefficients)(X, unit(X)) == 0).all()
    sharp = replace(gate, temperature=1e-300).features(X, unit(X))
    nearest = (unit(X).astype(np.float64) @ gate.clusters.astype(np.float64).T).argmax(1)
    np.testing.assert_allclose(sharp[:, 2], gate.tops[nearest], atol=1e-6)
    assert gate(X[:0], unit(X)[:0]).shape == (0,)
    whole = gate(X, unit(X))
    monkeypatch.setattr("scqfaiss.content.GATE_ELEMENTS", 1)
    np.testing.assert_allclose(gate(X, unit(X)), whole, atol=2e-7)


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"classes_z": np.zeros((3, 8), np.float32)}, ConfigError, r"classes_v are \(4, 8\), need \(3, 8\)$"),
        ({"classes_z": np.zeros((4, 8))}, ConfigError, r"classes_z are \(4, 8\) float64, need float32 in 2 dim"),
        ({"clusters": np.zeros(8, np.float32)}, ConfigError, r"clusters are \(8,\) float32, need float32 in 2"),
        ({"clusters": np.zeros((0, 8), np.float32)}, ConfigError, r"clusters are \(0, 8\)"),
        ({"clusters": np.zeros((3, 9), np.float32)}, ConfigError, r"classes_v are \(4, 8\), need \(4, 9\)$"),
        ({"tops": np.zeros(2, np.float32)}, ConfigError, r"tops are \(2,\), need \(3,\)$"),
        ({"shares": np.full(3, np.nan, np.float32)}, DataError, r"shares are not finite$"),
        ({"coefficients": np.zeros(4, np.float32)}, ConfigError, r"coefficients are \(4,\), need \(5,\)$"),
        ({"temperature": 0.0}, ConfigError, r"the temperature is 0.0, needs a number above 0$"),
        ({"temperature": True}, ConfigError, r"the temperature is True, needs"),
        ({"facts": FACTS | {"on": 1}}, ConfigError, r"on is 1, needs true or false$"),
        ({"facts": {"on": True}}, ConfigError, r"auc is None, needs a number$"),
        ({"facts": FACTS | {"loss": math.inf}}, ConfigError, r"loss is inf, needs a number$"),
    ],
)
def test_a_gate_of_other_parts_is_refused(change, error, words):
    with pytest.raises(error, match=f"^gate: {words}"):
        replace(gate_of(X, unit(X), Y), **change)


# ---------------------------------------------------------------------------------------------------------- the weights
def test_weights_lie_evenly_in_their_logarithms():
    content = content_of(plain(), X, weights=(0.01, 4.0))
    assert_close(content.weight(np.array([1.0, 0.0, 0.5])), [0.01, 4.0, 0.2], terms=8)


def test_known_is_told_or_asked_of_the_gate():
    base = plain()
    model, off, without = (with_content(base, X, y, on=on) for y, on in ((Y, True), (Y, False), (None, True)))
    p = model.known(X[:20])
    np.testing.assert_array_equal(p, model.content.gate(base.embed(X[:20]), model.content.chain(X[:20])))
    # Coefficients of their own and the caution set the weights, and nothing of them is said.
    z, v, gate = base.embed(X[:20]), model.content.chain(X[:20]), model.content.gate
    weighed = asked(gate, z, v)
    assert np.abs(weighed - p).max() > 0.01
    np.testing.assert_allclose(model.content.known(z, v), weighed, rtol=1e-9)
    older = replace(gate, weighing=None)  # as in files without them: those of the probability
    odds = p.astype(np.float64) / (1 - p.astype(np.float64)) * np.exp(gate.caution)
    np.testing.assert_allclose(replace(model.content, gate=older).known(z, v), odds / (1 + odds), rtol=1e-4)
    for value in (None, "auto"):
        by_hand = model.embed(X[:20], known=weighed)
        np.testing.assert_allclose(model.embed(X[:20], known=value), by_hand, rtol=1e-5, atol=1e-6)
        for certain in (off, without):
            np.testing.assert_array_equal(certain.embed(X[:20], known=value), certain.embed(X[:20], known=1))
    np.testing.assert_array_equal(off.known(X[:20]), p)  # it can still be asked
    mixed = np.linspace(0, 1, 20)
    whole = model.embed(X[:20], known=mixed)
    for i in range(20):
        np.testing.assert_allclose(whole[i], model.embed(X[i], known=mixed[i])[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match=r"^the model cannot tell known classes from others: it has no gate, which"):
        without.known(X)
    with pytest.raises(ConfigError, match=r"it has no content codes; train it with --content-bits$"):
        base.known(X)
    for value in (1, "auto"):
        with pytest.raises(
            ConfigError, match=r"^known is given, and the model has no content codes; .*--content-bits$"
        ):
            base.embed(X, known=value)


@pytest.mark.parametrize(
    "known, words",
    [
        (1.5, "known is 1.5, needs 'auto', a number from 0 to 1, or 3 of them$"),
        (-0.1, "known is -0.1, needs"),
        (math.nan, "known is nan, needs"),
        ("yes", "known is 'yes', needs"),
        ("0.5", "known is '0.5', needs"),
        (True, r"known is \(\) bool, needs"),
        ([0.1, 0.2], r"known is \(2,\) float64, needs"),
        ([0.1, 0.2, 2], "known is 2, needs"),
        ([[0.1], [0.2], [0.3]], r"known is \(3, 1\) float64, needs"),
        ([[0.1], [0.2, 0.3]], "known is a list that is no array, needs"),
        (["a", "b", "c"], r"known is \(3,\) <U1, needs"),
    ],
)
def test_anything_else_is_not_known(known, words):
    with pytest.raises(ConfigError, match=f"^{words}"):
        as_known(known, 3)
    with pytest.raises(ConfigError, match=f"^{words}"):
        made(*LAYOUTS[0]).embed(X[:3], known=known)


def test_known_as_it_is_typed():
    assert (parse_known("auto"), parse_known("0.25"), parse_known("1")) == ("auto", 0.25, 1.0)
    for text, words in (("2", "known is 2, needs"), ("nan", "known is nan"), ("x", "known is 'x', needs 'auto' or")):
        with pytest.raises(ConfigError, match=f"^{words}"):
            parse_known(text)


# ----------------------------------------------------------------------------------------------------------- the layout
@pytest.mark.parametrize("layout", LAYOUTS)
def test_joint_vectors_and_codebooks_are_the_two_parts(layout):
    model = made(*layout)
    kind, M, lists, d, M_c, d_v = layout
    base, content, joint = model.semantic, model.content, model.codebooks
    z, v = model.chain(X), content.chain(X)
    codes = model.encode(X)
    assert (joint.M, joint.K, joint.metric, joint.L) == (M + M_c, content.codebooks.K, "ip", lists or 1)
    additive = kind == "additive" or not M
    assert joint.d == (d + d_v if additive else (M + M_c) * max(d // M, d_v // M_c))
    # The codes: those of z by themselves, and those of v less the centroid of the row's list.
    columns = M + bool(lists)
    semantic = plain(kind, M, lists, d=d).encode(X)
    np.testing.assert_array_equal(codes[:, :columns], semantic)
    left = v - content.codebooks.lists[semantic[:, 0].astype(int)] if lists else v
    words = content.codebooks.residual.assign(left, "l2", content.beam)
    np.testing.assert_array_equal(codes[:, columns:], words)
    # The scores: of the two parts, added up row by row.
    z_hat, w = base.decode(codes[:, :columns]), content.weight(np.full(len(X), 0.3))
    v_hat = content.codebooks.residual.decode(words) + (v - left)
    got = model.codebooks.scores(model.embed(X[:9], known=0.3), codes)
    for q in range(9):
        for i in range(0, 300, 37):
            want = sum(float(a) * float(b) for a, b in zip(z[q], z_hat[i]))
            want += float(w[q]) * sum(float(a) * float(b) for a, b in zip(v[q], v_hat[i]))
            assert abs(got[q, i] - want) < 1e-5 * np.abs(got).max()
    # Back and forth, also of none and of one.
    halves = Joint(base, content.codebooks)
    for n in (0, 1, 300):
        for a, b in zip(halves.split(halves.join(z[:n], v[:n])), (z, v)):
            np.testing.assert_array_equal(a, b[:n])
    np.testing.assert_array_equal(model.vectors(X), halves.join(z, v))
    np.testing.assert_array_equal(
        np.sort(halves.join(z, v), 1)[:, ::-1][:, :3], np.sort(model.vectors(X), 1)[:, ::-1][:, :3]
    )


def test_lists_need_no_content_centroids():
    base = plain("product", 2, 5)
    content = content_of(base, X)
    bare = replace(content, codebooks=content.codebooks.residual)
    model = Model(base.chain, base.codebooks, CONFIG, None, bare)
    np.testing.assert_array_equal(model.encode(X)[:, 3:], bare.codebooks.assign(bare.chain(X), "l2"))
    assert Model.from_bytes(model.to_bytes()).content.codebooks.lists is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_encode_alike_in_any_company_and_from_a_source(layout, monkeypatch):
    model = made(*layout)
    whole = model.encode(X)
    for n in (0, 1, 7):
        assert_encodes_as(model, X[:n], whole[:n])
    monkeypatch.setattr(ArraySource, "block_rows", 70)
    assert_encodes_as(model, X, encode_source(model, ArraySource(X)))


@pytest.mark.parametrize(
    "base, change, words",
    [
        (plain(metric="l2"), {}, "content codes need codebooks of metric 'ip', these are of 'l2'$"),
        (plain("additive"), {}, "content codebooks are of kind 'product', beside these codes they need 'additive'$"),
        (
            plain("product", 0, 5),
            {},
            "content codebooks are of kind 'product', beside these codes they need 'additive'$",
        ),
        (plain(nbits=5), {}, "content codebooks hold 16 codewords each, the others 32: all need the same number$"),
        (
            plain(),
            {"lists": np.zeros((5, 6), np.float32)},
            "there are 5 content centroids for 1 lists, needs one for each$",
        ),
        (plain("product", 2, 4), {"lists": np.zeros((5, 6), np.float32)}, "there are 5 content centroids for 4 lists"),
    ],
)
def test_content_codes_of_another_form_are_refused(base, change, words):
    content = content_of(plain(), X)
    content = replace(content, codebooks=replace(content.codebooks, **change))
    with pytest.raises(ConfigError, match=f"^{words}"):
        Model(base.chain, base.codebooks, CONFIG, None, content)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"weights": (0.0, 1.0)}, r"the content weights are \(0.0, 1.0\), need two numbers from 1e-18 to 1e\+18$"),
        ({"weights": (1.0,)}, r"the content weights are \(1.0,\), need"),
        ({"weights": (1.0, math.inf)}, r"the content weights are \(1.0, inf\), need"),
        ({"beam": 0}, "the beam of content codes is 0, needs a whole number from 1 to 64$"),
        ({"beam": 2}, "the beam of content codes is 2, and their codebooks are of kind 'product'$"),
        ({"chain": Chain(8)}, "the content encoder gives d=8, its codebooks need d=6$"),
        (
            {"codebooks": Codebooks.of_lists(np.zeros((2, 6), np.float32))},
            "content codes have no codebooks, need 1 or more$",
        ),
        ({"gate": gate_of(X, unit(X), Y)}, "the gate takes v of d=8, the content encoder gives d=6$"),
    ],
)
def test_content_of_other_parts_is_refused(change, words):
    content = content_of(plain(), X)
    with pytest.raises(ConfigError, match=f"^{words}"):
        replace(content, **change)
    with pytest.raises(ConfigError, match=r"^content codebooks are of metric 'l2', need 'ip'$"):
        replace(content, codebooks=replace(content.codebooks, metric="l2"))


def test_parts_of_another_width_are_refused():
    base = plain()
    content = content_of(base, X, Y)
    other = Chain(9, [("linear", {"A": np.ones((6, 9), np.float32)})])
    with pytest.raises(CheckpointError, match=r"^the content encoder takes d=9, the other one d=8$"):
        Model(base.chain, base.codebooks, CONFIG, None, replace(content, chain=other))
    gate = replace(content.gate, classes_z=np.ones((4, 7), np.float32))
    with pytest.raises(CheckpointError, match=r"^the gate takes z of d=7, the codebooks need d=8$"):
        Model(base.chain, base.codebooks, CONFIG, None, replace(content, gate=gate))


# ------------------------------------------------------------------------------------------------------------- the file
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gate", [True, False])
def test_a_saved_model_is_the_same_model(layout, gate, tmp_path):
    model = with_content(plain(*layout[:3], d=layout[3]), X, Y if gate else None, M=layout[4], d=layout[5])
    path = tmp_path / "m.safetensors"
    model.save(path)
    assert from_bytes(path.read_bytes(), "m").format == 3
    for again in (Model.load(path), pickle.loads(pickle.dumps(model))):
        assert again.to_bytes() == model.to_bytes() and again.config == model.config
        assert again.sha256 == again.origin == model.sha256
        np.testing.assert_array_equal(again.embed(X, known=0.5), model.embed(X, known=0.5))
        np.testing.assert_array_equal(again.encode(X), model.encode(X))
        if gate:
            np.testing.assert_array_equal(again.known(X), model.known(X))
            assert again.content.gate.facts == FACTS
            np.testing.assert_array_equal(again.embed(X), model.embed(X))
    told = facts(path, {})
    assert (told["content_bits"], told["content_d"]) == (model.content.bits, layout[5])
    assert told["content_weights"] == {"known": 0.05, "unknown": 2.0}
    assert told.get("gate") == (FACTS if gate else None) and not told["encoder_folds_into_index"]


def test_models_without_content_are_of_the_formats_they_were():
    for lists, number in ((0, 1), (5, 2)):
        assert from_bytes(plain("product", 2, lists).to_bytes(), "m").format == number


def forged(change, lists=5, number=3):
    stored = from_bytes(made("product", 2, lists, 8, 2, 8).to_bytes(), "m")
    tensors, config = dict(stored.tensors), json.loads(json.dumps(stored.config))
    change(tensors, config)
    return Bundle(tensors, config, number).to_bytes()


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t, c: t.pop("content.codebooks.centroids"), "a model without 'codebooks.centroids'$"),
        (lambda t, c: t.pop("content.gate.tops"), "a model without 'gate.tops'$"),
        (lambda t, c: t.pop("content.encoder.1.A"), "encoder layer 1 .linear. holds no arrays$"),
        (lambda t, c: t.update({"content.encoder.7.A": t["content.encoder.1.A"]}), "belongs to no encoder layer$"),
        (lambda t, c: t.update({"content.gate.more": t["content.gate.tops"]}), "content.gate.more belongs to no gate$"),
        (lambda t, c: c["content"].pop("gate"), "tensor content.gate.classes_v belongs to no gate$"),
        (lambda t, c: c["content"].pop("weights"), "a model without 'weights'$"),
        (lambda t, c: c["content"].pop("kind"), "a model without 'kind'$"),
        (lambda t, c: c["content"].update(weights=3), "a model without"),
        (lambda t, c: c["content"].update(weights=[1, -1]), r"the content weights are \(1, -1\), need"),
        (lambda t, c: c["content"].update(beam="2"), "the beam of content codes is '2', needs"),
        (lambda t, c: c["content"].update(kind="additive"), r"lists are \(5, 8\) float32, need \(L, 4\) float32$"),
        (lambda t, c: c["content"]["gate"].update(temperature=-1), "the temperature is -1, needs"),
        (lambda t, c: c["content"]["gate"].update(facts=3), "a model without"),
        (lambda t, c: c.update(content=3), "content=3, needs an object$"),
        (lambda t, c: c.pop("content"), "content codes and format 3 need one another, the file is of format 3$"),
        (
            lambda t, c: t.update({"content.codebooks.lists": np.zeros((4, 8), np.float32)}),
            "there are 4 content centroids for 5 lists",
        ),
        (
            lambda t, c: t.update({"content.gate.tops": np.zeros(9, np.float32)}),
            r"gate: tops are \(9,\), need \(3,\)$",
        ),
        (lambda t, c: t.update({"content.gate.tops": np.full(3, 1e19, np.float32)}), "holds numbers above 1e\\+18$"),
        (lambda t, c: t.pop("codebooks.lists"), "there are 5 content centroids for 1 lists"),
    ],
)
def test_a_forged_model_is_refused(change, words):
    with pytest.raises(CheckpointError, match=f"^m: .*{words}"):
        Model.from_bytes(forged(change), "m")


@pytest.mark.parametrize("lists, number", [(0, 1), (5, 2), (0, 2), (5, 1)])
def test_content_codes_in_an_older_format_are_refused(lists, number):
    """Such a file would be encoded without its content codes by readers of that time."""
    with pytest.raises(CheckpointError, match=f"need one another, the file is of format {number}$"):
        Model.from_bytes(forged(lambda t, c: None, lists, number), "m")
    with pytest.raises(CheckpointError, match=f"need one another, the file is of format {number}$"):
        Model.from_bytes(forged(lambda t, c: c.pop("content"), lists, number), "m")


def test_any_flipped_bit_is_seen():
    whole = made(*LAYOUTS[2]).to_bytes()
    for bit in np.random.default_rng(0).choice(8 * len(whole), 100, replace=False):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CheckpointError):
            Model.from_bytes(bytes(data))


def test_no_prefix_leaves_the_content_out():
    base = Model(Chain(8), plain("additive").codebooks, CONFIG | {"nested": True})
    model = with_content(base, X)
    assert base.prefix(4).codebooks.bits == 4 and model.prefix(16) is model
    with pytest.raises(
        ConfigError, match=r"^the last 8 bits are content codes, which every prefix would leave out: codes of 4"
    ):
        model.prefix(4)
    assert isinstance(model.content, Content)
