"""Content codes as a training learns them: axes, centroids, the gate's folds and regression, weights; against slow twins."""

import itertools
from dataclasses import replace

import faiss
import numpy as np
import pytest
from conftest import blobs

import scqfaiss
from scqfaiss.codebooks import Codebooks
from scqfaiss.content import Content
from scqfaiss.encoders.chain import Chain
from scqfaiss.errors import ConfigError
from scqfaiss.options import TrainOptions
from scqfaiss.training import content_codes, gate
from scqfaiss.training.dry_run import dry_run

X, Y = blobs(n=360, d=16, C=6, seed=3)
QUICK = {"epochs": 2, "hidden": 8, "members": 1}


def rng(seed=0):
    return np.random.default_rng(seed)


def test_axes_are_those_of_largest_variance_dealt_evenly():
    x = (rng().standard_normal((500, 6)) * [9, 5, 4, 3, 0.1, 0.01]).astype(np.float32)
    A = content_codes.principal_axes(x, 4, 2)
    axes = np.linalg.eigh(np.cov(x.T, bias=True))[1]
    found = np.abs(A @ axes[:, ::-1][:, :4])
    assert sorted(found.argmax(1)) == [0, 1, 2, 3]
    np.testing.assert_allclose(found.max(1), 1, atol=1e-5)
    # The largest and the smallest share a sub-vector: no other dealing of two and two has products as near to one another.
    assert sorted(map(sorted, found.argmax(1).reshape(2, 2).tolist())) == [[0, 3], [1, 2]]
    # More dimensions than there are: the rest is zeros.
    wide = content_codes.principal_axes(x, 8, 4)
    assert wide.shape == (8, 6)
    assert (np.abs(wide).sum(1) > 0).sum() == 6


@pytest.mark.parametrize("drawn", [False, True])
def test_v_is_what_the_layers_say(drawn):
    chain = content_codes.content_chain(X, 4, drawn, 0)
    layers = dict(chain.layers)
    centered = X.astype(np.float64) - X.astype(np.float64).mean(0)
    u = centered / np.linalg.norm(centered, axis=1, keepdims=True)
    v = u @ layers["linear"]["A"].T
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    if drawn:
        keys, (share, scale, null) = layers["attend"]["keys"].astype(np.float64), layers["attend"]["mix"]
        np.testing.assert_allclose(np.linalg.norm(keys, axis=1), 1, atol=1e-6)
        assert null == pytest.approx(np.quantile((v @ keys.T).max(1), content_codes.NULL), abs=1e-5)
        w = np.exp(scale * (v @ keys.T))
        v = (1 - share) * v + share * (w / (w.sum(1, keepdims=True) + np.exp(scale * null))) @ keys
        v /= np.linalg.norm(v, axis=1, keepdims=True)
    np.testing.assert_allclose(chain(X), v, atol=1e-4)
    assert chain.d_out == 16


@pytest.mark.parametrize("kind", ["product", "additive"])
@pytest.mark.parametrize("bits, lists", [(8, "1"), (0, "8")])
def test_a_training_comes_to_joint_codes(kind, bits, lists, tmp_path):
    options = {"codebooks": {"kind": kind}} | QUICK
    model = scqfaiss.train(X, Y, bits=bits, nbits=4, lists=lists, content_bits=8, codebook_rows=X[::2], **options)
    assert model.content is not None
    assert (model.content.bits, model.codebooks.bits, model.semantic.bits) == (8, bits + 8, bits)
    if (kind, bits) == ("product", 8):
        again = scqfaiss.train(X, Y, bits=8, nbits=4, lists=lists, content_bits=8, codebook_rows=X[::2], **options)
        assert again.sha256 == model.sha256
    if lists != "1":  # centroids are means of the rows' own v
        numbers = model.semantic.assign(
            model.chain(X[::2]), "l2", model.config.get("beam", 1), model.config.get("list_beam", 1)
        )[:, 0]
        v = model.content.chain(X[::2])
        for number in np.unique(numbers):
            np.testing.assert_allclose(model.content.codebooks.lists[number], v[numbers == number].mean(0), atol=1e-5)
    # What FAISS alone finds with weighted queries is what the codes say.
    scqfaiss.export(model, X, path=tmp_path / "g.faissindex")
    index = faiss.read_index(str(tmp_path / "g.faissindex"))
    if hasattr(index, "nprobe"):
        index.nprobe = index.nlist
    for known in (0.0, 1.0, "auto"):
        queries = model.embed(X[:9], known=known)
        D, I = index.search(queries, 5)
        S = model.codebooks.scores(queries, model.encode(X))
        np.testing.assert_allclose(D, np.take_along_axis(S, I, 1), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(D[:, 0], S.max(1), rtol=1e-3, atol=1e-3)


def test_folds_leave_every_class_out_once_and_hold_rows_of_the_others():
    y = np.repeat([3, 5, 7, 11, 20], [8, 8, 8, 1, 4])
    left_out = []
    for trained, seen, known in gate.deal(y, seed=1):
        assert not set(trained) & set(seen)
        out = set(y[seen[~known]])
        left_out += list(out)
        assert not out & set(y[trained])
        assert set(y[trained]) == {3, 5, 7, 11, 20} - out
        for c in set(y[trained]):
            held = (y[seen[known]] == c).sum()
            assert held == {8: 2, 4: 1, 1: 0}[(y == c).sum()]
            assert held + (y[trained] == c).sum() == (y == c).sum()
    assert sorted(left_out) == [3, 5, 7, 11, 20]


def test_what_a_gate_knows_of_its_rows():
    random = rng(2)
    z, v, bank_z, bank_v = (random.standard_normal((n, 3)).astype(np.float32) for n in (20, 20, 50, 50))
    y, clusters = np.arange(20) % 4, content_codes.unit(random.standard_normal((5, 3)))
    found = gate.gate_of(z, v, y, bank_z, bank_v, clusters)

    def near(row):
        e = np.exp(clusters.astype(np.float64) @ row / gate.TEMPERATURE)
        return e / e.sum()

    classes = [np.mean([z[i] for i in range(20) if y[i] == c], 0) for c in range(4)]
    classes = [c / np.linalg.norm(c) for c in classes]
    counts, training, tops = np.zeros(5), np.zeros(5), np.zeros(5)
    for row_z, row_v in zip(bank_z, bank_v):
        counts += near(row_v)
        tops += near(row_v) * max(row_z @ c for c in classes)
    for row in v:
        training += near(row)
    shares = np.log((training + 1) / (counts + 1))
    shares -= np.mean([near(row) @ shares for row in v])
    np.testing.assert_allclose(found.classes_z, classes, atol=1e-6)
    np.testing.assert_allclose(found.tops, tops / counts, atol=1e-5)
    np.testing.assert_allclose(found.shares, shares, atol=1e-5)


def test_the_regression_is_at_its_optimum():
    random = rng(4)
    x = random.standard_normal((200, 3)) * [1, 10, 0] + [5, -3, 2]
    known = x[:, 0] + 0.1 * x[:, 1] + random.standard_normal(200) > 5.5
    b = gate.logistic(x, known)

    def loss(b):
        weight = np.where(known, 100 / known.sum(), 100 / (~known).sum())
        t = np.where(known, 1, -1) * (x @ b[:-1] + b[-1])
        return (weight * np.logaddexp(0, -t)).sum() + gate.RIDGE / 2 * np.square(b[:-1] * x.std(0)).sum()

    assert b[2] == 0  # a feature that never varies
    for i, step in itertools.product((0, 1, 3), (1e-3, -1e-3)):
        moved = b.copy()
        moved[i] += step
        assert loss(moved) > loss(b)


def test_area_under_curve_counts_pairs():
    scores, known = np.array([1, 2, 2, 3, 0.5, 2]), np.array([True, True, False, True, False, False])
    pairs = [(a > b) + (a == b) / 2 for a in scores[known] for b in scores[~known]]
    assert gate.area_under_curve(scores, known) == pytest.approx(np.mean(pairs))
    assert gate.area_under_curve(scores[:2], known[:2]) == 0.5


def test_average_precision_leaves_the_query_out():
    random = rng(5)
    y, rows = np.array([0, 0, 1, 1, 1, 2]), np.array([1, 3, 5])
    scores = random.standard_normal((3, 6)).astype(np.float32)
    want = []
    for q, row in enumerate(rows[:2]):  # the last has no other row of its class
        order = [i for i in np.argsort(-scores[q]) if i != row]
        hits = [rank + 1 for rank, i in enumerate(order) if y[i] == y[row]]
        want.append(np.mean([(n + 1) / rank for n, rank in enumerate(hits)]))
    np.testing.assert_allclose(gate.average_precision(scores, rows, y), want)


def folds_of(separable, useful):
    """Two folds of rows on corners: `separable` features tell unknown classes, `useful` v tells all classes apart."""
    folds = []
    for seed in (0, 1):
        random, y = rng(seed), np.arange(60) % 6
        known = y < 4
        z = np.eye(4)[np.where(known, y, random.integers(0, 4, 60))] + 0.01 * random.standard_normal((60, 4))
        v = (np.eye(6)[y] if useful else np.eye(6)[random.integers(0, 6, 60)]) + 0.01 * random.standard_normal((60, 6))
        features = random.standard_normal((60, 4)) + 20 * separable * known[:, None]
        folds.append(gate.Fold(features, known, *(a.astype(np.float32) for a in (z, v)), y))
    return folds


def test_the_gate_is_on_where_it_earns_it():
    (low, high), _, facts = gate.choose(folds_of(True, True))
    assert 0 < low < high
    assert facts["on"] and facts["auc"] == 1
    assert facts["loss"] <= gate.MAX_LOSS and facts["gain"] > 0.3
    for separable, useful in ((False, False), (True, False)):
        _, _, facts = gate.choose(folds_of(separable, useful))
        assert facts["on"] == (facts["gain"] >= gate.MIN_GAIN)
        assert facts["loss"] <= gate.MAX_LOSS
    assert gate.choose(folds_of(False, True))[2]["loss"] <= gate.MAX_LOSS


def test_weights_look_at_folds_whose_unlabelled_rows_hold_unknown_classes():
    """Rows of unknown classes are told from others where the unlabelled rows hold them, and seem the surest where they do not."""
    folds = folds_of(True, True)
    misled = [replace(f, absent=f.features - 60 * f.known[:, None]) for f in folds]
    plain, both = gate.choose(folds), gate.choose(misled)
    assert plain[:2] == both[:2] and both[2]["gain"] == plain[2]["gain"]
    assert both[2]["auc"] < plain[2]["auc"] == 1  # what is said is fitted to both


def test_few_classes_or_many_labels_have_no_gate():
    two = Y < 2
    model = scqfaiss.train(X[two], Y[two], bits=4, nbits=4, content_bits=8, codebook_rows=X, **QUICK)
    assert model.content.gate is None
    many = np.eye(6, dtype=np.uint8)[Y] | np.eye(6, dtype=np.uint8)[(Y + 1) % 6]
    model = scqfaiss.train(X, many, bits=4, nbits=4, content_bits=8, codebook_rows=X, **QUICK)
    assert model.content.gate is None
    assert 0 < model.content.weights[0] < model.content.weights[1]


def test_refusals():
    with pytest.raises(ConfigError, match=r"^content bits are 6, need a multiple of nbits=4 up to 4,096$"):
        scqfaiss.train(X, Y, bits=4, nbits=4, content_bits=6, **QUICK)
    with pytest.raises(ConfigError, match=r"method mopq learns from pairs; content codes go with rows"):
        scqfaiss.train(X, keys=X, method="mopq", bits=8, content_bits=8)
    with pytest.warns(scqfaiss.ScqWarning, match=r"give --codebook-rows$"):
        scqfaiss.train(X, Y, bits=4, nbits=4, content_bits=8, **QUICK)


def test_a_dry_run_tells_the_whole_code(tmp_path):
    import h5py

    with h5py.File(tmp_path / "x.h5", "w") as f:
        f["features"], f["labels"], f["ids"] = X, Y, np.arange(len(X))
    text = dry_run(
        tmp_path / "x.h5", tmp_path / "m.safetensors", TrainOptions(bits=8, nbits=4, content_bits=8), keys={}
    )
    assert "codes: 4 x 4 bits, 2 bytes a vector" in text
    assert "8 bits of them content codes" in text


def test_joint_shapes_are_those_of_joint_codebooks():
    from scqfaiss.content import Joint

    for kind, M, content_bits in itertools.product(("product", "additive"), (2, 3), (8, 20)):
        d = 6
        centroids = np.ones((M, 16, d // M if kind == "product" else d), np.float32)
        semantic = Codebooks(kind, centroids, "ip")
        shape = content_codes.joint_shape(semantic.shape, content_bits, 4, 7)
        width = content_codes.dimension(7, content_bits // 4)
        words = np.ones(
            (content_bits // 4, 16, width // (content_bits // 4) if kind == "product" else width), np.float32
        )
        content = Content(
            Chain(7, [("linear", {"A": np.ones((width, 7), np.float32)})]), Codebooks(kind, words, "ip"), (1.0, 1.0)
        )
        assert Joint(semantic, content.codebooks).codebooks.shape == shape


def test_folds_are_trained_with_the_settings_of_the_whole(monkeypatch):
    from scqfaiss.training import content

    asked = []
    whole = content._options_of_folds
    monkeypatch.setattr(content, "_options_of_folds", lambda plan: asked.append(whole(plan)) or asked[-1])
    model = scqfaiss.train(X, Y, bits=8, nbits=4, lists=8, content_bits=8, codebook_rows=X, accumulate=2, **QUICK)
    assert model.content.gate is not None
    (found,) = asked
    assert (found.bits, found.lists, found.content_bits, found.epochs, found.accumulate) == (4, "1", 0, 2, 2)
    assert found.settings == {"hidden": 8, "members": 1}
