"""The NumPy forward pass against torch, and everything a chain refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from close import assert_close, roundings

from scqfaiss.arrays import Labels
from scqfaiss.contract import Task
from scqfaiss.data import ArraySource
from scqfaiss.encoders import chain as chains
from scqfaiss.encoders import encoder_class
from scqfaiss.encoders.base import Stats, standardising
from scqfaiss.encoders.chain import Chain, unpack
from scqfaiss.errors import CheckpointError, ConfigError, DataError
from scqfaiss.methods import cfa
from scqfaiss.methods.label import LabelCode
from scqfaiss.training.rows import SourceRows, statistics

RNG = np.random.default_rng(0)
X = RNG.standard_normal((50, 6)).astype(np.float32)
SIGNED, POSITIVE = X, np.abs(X)
ONE = Labels(np.arange(50) % 4, 4)
MANY = Labels((RNG.random((50, 4)) < 0.5).astype(np.uint8) | np.eye(4, dtype=np.uint8)[np.arange(50) % 4], 4)


def features(x, labels, encoder, config, encoder_config=None):
    torch.manual_seed(1)
    rows = SourceRows(ArraySource(x), "cpu")
    cls, settings = encoder_class(encoder), cfa.Settings(**{"similarity": "identity", **config})
    made = cls(cls.Config(**(encoder_config or {})), statistics(rows), cfa.members(settings, encoder))
    task = Task(rows=rows, labels=labels, M=2, nbits=4, encoder=made, encoder_name=encoder)
    d = cfa.smallest_d(settings, 6, 4, 2, encoder)
    f = cfa.Features(settings, task, d, labels)
    if f.sigmoid:
        with torch.no_grad():
            f.bias += torch.arange(4) - 1.5
    f.calibrate()
    return f.eval()


CASES = {
    "identity": (SIGNED, ONE, "identity", {}),
    "linear calibrated": (SIGNED, ONE, "linear", {}),
    "linear of cosines": (SIGNED, ONE, "linear", {"logits": "cosine", "kappa": 5.0}),
    "linear cosine": (SIGNED, ONE, "linear", {"cfa": "cosine"}),
    "linear released": (SIGNED, ONE, "linear", {"cfa": "reference", "d": 12}),
    "linear sigmoid": (SIGNED, MANY, "linear", {"multi": "sigmoid"}),
    "mlp of 1": (SIGNED, ONE, "mlp", {"members": 1}),
    "mlp of 4": (SIGNED, ONE, "mlp", {"members": 4, "kappa": 3.0}),
    "mlp, square root": (POSITIVE, ONE, "mlp", {}),
    "mlp of cosines, square root": (POSITIVE, ONE, "mlp", {"logits": "cosine"}),
    "mlp, square root of either sign": (SIGNED, ONE, "mlp", {}, {"power": "on"}),
    "mlp cosine": (POSITIVE, ONE, "mlp", {"cfa": "cosine"}),
    "mlp released": (POSITIVE, MANY, "mlp", {"cfa": "reference", "d": 12}),
    "mlp sigmoid": (SIGNED, MANY, "mlp", {"multi": "sigmoid", "logits": "inner", "kappa": 3.0}),
    "mlp sigmoid of cosines": (SIGNED, MANY, "mlp", {"multi": "sigmoid"}),
    "mlp of 1 sigmoid": (SIGNED, MANY, "mlp", {"multi": "sigmoid", "members": 1}),
}
OPS = {
    "identity": [],
    "linear cosine": ["linear", "normalize"],
    "linear released": ["linear", "tanh"],
    "linear calibrated": ["linear", "softmax", "linear"],
    "linear of cosines": ["linear", "normalize", "linear", "softmax", "linear"],
    "mlp of 1": ["linear", "relu", "linear", "softmax", "linear"],
    "mlp, square root": ["power", "linear", "relu", "heads", "softmax", "average", "linear"],
    "mlp of cosines, square root": [
        *["power", "linear", "relu", "heads", "normalize", "linear", "softmax", "average", "linear"]
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_numpy_and_torch_agree(case):
    x, labels, encoder, config, *encoder_config = CASES[case]
    if encoder == "mlp":
        encoder_config = [{"hidden": 7} | (encoder_config[0] if encoder_config else {})]
    f = features(x, labels, encoder, config, *encoder_config)
    chain = Chain(6).then(*f.layers())
    with torch.no_grad():
        want = f(torch.from_numpy(x)).numpy()
    found = chain(x)
    assert (found.dtype, found.shape, chain.d_out) == (np.float32, want.shape, want.shape[1])
    # Beyond the chain's own roundings: torch standardises rows first, NumPy folds that into the first layer.
    assert_close(found, want, roundings(chain, inputs=16), max(1, np.abs(want).max()))
    assert want.std(0).max() > 1e-3
    if case in OPS:
        assert [op for op, _ in chain.layers] == OPS[case]
    assert chain.foldable == (case in ("identity", "linear cosine"))
    # What was packed comes back the same.
    again = unpack(*chain.pack())
    assert [op for op, _ in again.layers] == [op for op, _ in chain.layers]
    np.testing.assert_array_equal(again(x), found)
    # Few rows or none.
    assert_close(chain(x[:1]), found[:1], roundings(chain), max(1, np.abs(want).max()))
    assert chain(x[:0]).shape == (0, chain.d_out)


@pytest.mark.parametrize("labels", [ONE, MANY], ids=["one", "many"])
def test_the_label_code_stops_at_the_posterior(labels):
    rows = SourceRows(ArraySource(X), "cpu")
    cls = encoder_class("mlp")
    torch.manual_seed(0)
    encoder = cls(cls.Config(hidden=7), statistics(rows), 3)
    method = LabelCode(LabelCode.Config(), Task(rows, labels, 1, 2, encoder=encoder, encoder_name="mlp")).eval()
    chain = Chain(6).then(*method.layers())
    p = chain(X)
    with torch.no_grad():
        assert_close(p, method.features.posterior(torch.from_numpy(X)), roundings(chain, inputs=16), 1)
    assert p.shape == (50, 4)
    assert_close(p.sum(1) if not labels.multilabel else 1, np.ones(50 if not labels.multilabel else ()), terms=16)


def test_any_block_size_gives_the_same_rows(monkeypatch):
    f = features(POSITIVE, ONE, "mlp", {}, {"hidden": 7})
    chain = Chain(6).then(*f.layers())
    whole = chain(POSITIVE)
    for rows in (1, 7, 49):
        monkeypatch.setattr(chains, "BLOCK_ROWS", (rows, rows))
        assert chain.block_rows == rows
        assert_close(chain(POSITIVE), whole, roundings(chain), 1)


@pytest.mark.parametrize("op", ["relu", "tanh"])
def test_the_rows_of_the_caller_stay_as_they_are(op):
    x = X.copy()
    Chain(6, [(op, {})])(x)
    np.testing.assert_array_equal(x, X)


def test_each_layer_does_what_its_name_says():
    x = np.array([[3, -4], [0, 0]], np.float32)

    def one(op, **arrays):
        return Chain(2, [(op, {k: np.array(v, np.float32) for k, v in arrays.items()})])(x).tolist()

    assert one("linear", A=[[1, 2], [0, 1], [1, 0]]) == [[-5, -4, 3], [0, 0, 0]]
    assert one("linear", A=[[1, 2]], b=[7]) == [[2], [7]]
    assert one("center", mean=[1, 2]) == [[2, -6], [-1, -2]]
    np.testing.assert_allclose(one("normalize"), [[0.6, -0.8], [0, 0]], atol=1e-7)
    np.testing.assert_allclose(one("power"), [[np.sqrt(3), -2], [0, 0]], atol=1e-6)
    assert one("relu") == [[3, 0], [0, 0]]
    np.testing.assert_allclose(one("tanh"), np.tanh(x), atol=1e-6)
    np.testing.assert_allclose(one("softmax"), [[1 / (1 + np.exp(-7)), 1 / (1 + np.exp(7))], [0.5, 0.5]], rtol=1e-5)
    np.testing.assert_allclose(one("sigmoid"), 1 / (1 + np.exp(-x.astype(np.float64))), rtol=1e-4)
    huge = Chain(1, [("sigmoid", {})])(np.array([[-1e4], [1e4]], np.float32))
    assert huge.tolist() == [[0], [1]]


def test_heads_run_side_by_side_and_average_by_weight():
    A = RNG.standard_normal((3, 4, 2)).astype(np.float32)
    b = RNG.standard_normal((3, 4)).astype(np.float32)
    weights = np.array([0.5, 0.2, 0.3], np.float32)
    chain = Chain(6, [("heads", {"A": A, "b": b}), ("average", {"weights": weights})])
    want = np.zeros((50, 4))
    for e in range(3):
        want += weights[e] * (X[:, 2 * e : 2 * e + 2] @ A[e].T + b[e])
    np.testing.assert_allclose(chain(X), want, atol=1e-5)
    assert chain.d_out == 4


def test_attention_draws_a_row_to_the_keys_that_it_is_near():
    keys = np.random.default_rng(5).standard_normal((4, 6)).astype(np.float32)
    share, scale, null = 0.5, 3.0, 0.7
    chain = Chain(6, [("attend", {"keys": keys, "mix": np.array([share, scale, null], np.float32)})])
    for x, found in zip(X, chain(X)):
        terms = [np.exp(scale * float(np.dot(x, key))) for key in keys.astype(np.float64)]
        drawn = sum(t * key for t, key in zip(terms, keys)) / (sum(terms) + np.exp(scale * null))
        np.testing.assert_allclose(found, (1 - share) * x + share * drawn, atol=1e-4)
    # Far from every key nothing draws, and on a key all do.
    cold = Chain(6, [("attend", {"keys": keys, "mix": np.array([0.5, 1e4, 1e2], np.float32)})])
    np.testing.assert_array_equal(cold(X), np.float32(0.5) * X)
    axes = np.eye(4, 6, dtype=np.float32)
    hot = Chain(6, [("attend", {"keys": axes, "mix": np.array([1, 100, 0], np.float32)})])
    np.testing.assert_allclose(hot(3 * axes), axes, atol=1e-5)


def test_neighbouring_affine_layers_become_one():
    A, B = RNG.standard_normal((5, 6)).astype(np.float32), RNG.standard_normal((3, 5)).astype(np.float32)
    a = RNG.standard_normal(5).astype(np.float32)
    chain = Chain(6).then(("linear", {"A": A, "b": a}), ("linear", {"A": B}))
    assert [op for op, _ in chain.layers] == ["linear"]
    np.testing.assert_allclose(chain(X), (X @ A.T + a) @ B.T, atol=1e-4)
    longer = chain.then(("normalize", {}), ("linear", {"A": np.eye(3, dtype=np.float32)}))
    assert [op for op, _ in longer.layers] == ["linear", "normalize", "linear"]


def f32(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    "layers, words",
    [
        ([("conv", {})], r"^encoder layer 0 \(conv\) is unknown, this version runs linear, center, "),
        ([("linear", {})], r"^encoder layer 0 \(linear\) holds no arrays$"),
        ([("linear", {"A": f32(2, 6), "c": f32(2)})], r"^encoder layer 0 \(linear\) holds A, c$"),
        ([("relu", {"A": f32(2, 6)})], r"^encoder layer 0 \(relu\) holds A$"),
        ([("linear", {"A": f32(2, 6).astype(float)})], r"^encoder layer 0 \(linear\): A is float64 or not finite"),
        ([("linear", {"A": f32(2, 6) * np.nan})], r"^encoder layer 0 \(linear\): A is float32 or not finite"),
        ([("linear", {"A": f32(2, 5)})], r"^encoder layer 0 \(linear\) is \(2, 5\), needs 6 columns"),
        ([("relu", {}), ("linear", {"A": f32(2, 5)})], r"^encoder layer 1 \(linear\) is \(2, 5\), needs 6 columns"),
        ([("linear", {"A": f32(6)})], r"^encoder layer 0 \(linear\) is \(6,\), needs 6 columns"),
        ([("linear", {"A": f32(2, 6), "b": f32(3)})], r"^encoder layer 0 \(linear\) is .* a bias of its rows$"),
        (
            [("attend", {"keys": f32(3, 5), "mix": f32(3)})],
            r"^encoder layer 0 \(attend\) is \(3, 5\) and \(3,\), needs keys of 6 columns and \(3,\)$",
        ),
        ([("attend", {"keys": f32(3, 6), "mix": f32(2)})], r"^encoder layer 0 \(attend\) is .* and \(2,\), needs keys"),
        ([("center", {"mean": f32(5)})], r"^encoder layer 0 \(center\) is \(5,\), needs \(6,\)$"),
        ([("heads", {"A": f32(2, 3, 4), "b": f32(2, 3)})], r"^encoder layer 0 \(heads\) is \(2, 3, 4\), needs heads"),
        ([("heads", {"A": f32(2, 3, 3), "b": f32(3, 2)})], r"^encoder layer 0 \(heads\) is \(2, 3, 3\), needs heads"),
        ([("heads", {"A": f32(2, 6), "b": f32(2)})], r"^encoder layer 0 \(heads\) is \(2, 6\), needs heads"),
        ([("heads", {"A": f32(2, 4, 3), "b": f32(2, 4)})], r"^the encoder ends in 2 heads, needs their average$"),
        (
            [("heads", {"A": f32(2, 4, 3), "b": f32(2, 4)}), ("heads", {"A": f32(1, 4, 4), "b": f32(1, 4)})],
            r"^encoder layer 1 \(heads\) is \(1, 4, 4\), needs heads",
        ),
        (
            [("heads", {"A": f32(2, 4, 3), "b": f32(2, 4)}), ("average", {"weights": f32(3)})],
            r"^encoder layer 1 \(average\) is \(3,\), needs \(2,\)$",
        ),
        ([("average", {"weights": f32(2)})], r"^encoder layer 0 \(average\) is \(2,\), needs \(1,\)$"),
    ],
)
def test_layers_that_do_not_fit_are_refused(layers, words):
    with pytest.raises(CheckpointError, match=words):
        Chain(6, layers)


@pytest.mark.parametrize(
    "tensors, config, words",
    [
        ({}, {}, "^the encoder's config needs d_in and a list of layers$"),
        ({}, {"d_in": 6, "layers": "linear"}, "^the encoder's config needs"),
        ({}, {"d_in": 0, "layers": []}, "^the encoder's config needs"),
        ({}, {"d_in": True, "layers": []}, "^the encoder's config needs"),
        ({}, {"d_in": 6.0, "layers": []}, "^the encoder's config needs"),
        (
            {"encoder.1.A": f32(2, 6)},
            {"d_in": 6, "layers": ["relu"]},
            "^tensor encoder.1.A belongs to no encoder layer$",
        ),
        ({"encoder.A": f32(2, 6)}, {"d_in": 6, "layers": ["relu"]}, "^tensor encoder.A belongs to no encoder layer$"),
        ({"encoder.x.A": f32(2, 6)}, {"d_in": 6, "layers": ["relu"]}, "^tensor encoder.x.A belongs to no"),
        ({}, {"d_in": 6, "layers": [["linear"]]}, "is unknown, this version runs"),
        ({}, {"d_in": 6, "layers": ["linear"]}, "holds no arrays$"),
    ],
)
def test_packed_encoders_that_no_one_packed_are_refused(tensors, config, words):
    with pytest.raises(CheckpointError, match=words):
        unpack(tensors, config)


def test_tensors_of_other_parts_are_left_alone():
    assert unpack({"codebooks.centroids": f32(1, 2, 3)}, {"d_in": 6, "layers": ["relu"]}).d_out == 6


def test_an_unknown_encoder_comes_with_the_nearest_known_one():
    with pytest.raises(ConfigError, match=r"^unknown encoder 'linaer'; did you mean 'linear'.; there are identity, "):
        encoder_class("linaer")


def test_standardising_leaves_constant_columns_alone():
    mean, sd = np.array([5.0, -3.0, 1e6, 2.0]), np.array([2.0, 0.0, 1e-2, 1e-9])
    scale, shift = standardising(mean, sd)
    np.testing.assert_allclose(scale, [0.5, 0, 0, 0])
    np.testing.assert_allclose(shift, [-2.5, 0, 0, 0])
    np.testing.assert_array_equal(standardising(np.zeros(2), np.zeros(2)), np.zeros((2, 2)))


def test_statistics_of_no_spread_make_a_finite_encoder():
    cls = encoder_class("linear")
    still = Stats(3, np.ones(2), np.zeros(2), np.ones(2), np.zeros(2), 1.0)
    assert torch.isfinite(cls(cls.Config(), still)(torch.ones(3, 2))).all()


@pytest.mark.parametrize(
    "hidden, members, n, multilabel, width",
    [
        *[(0, 1, 50, False, 1024), (0, 2, 50, False, 256), (0, 3, 8_000, False, 256), (0, 3, 8_001, False, 512)],
        *[(0, 3, 16_001, False, 1024), (0, 3, 50, True, 1024), (7, 1, 50, False, 7), (7, 3, 50, True, 7)],
    ],
)
def test_members_that_are_averaged_are_as_wide_as_their_rows_teach(hidden, members, n, multilabel, width):
    made, stats = encoder_class("mlp"), statistics(SourceRows(ArraySource(X), "cpu"))
    encoder = made(made.Config(hidden=hidden), replace(stats, n=n, multilabel=multilabel), members)
    assert encoder.width == width
    assert encoder(torch.from_numpy(X)).shape == (members, len(X), width)
    assert encoder.layers()[0][1]["A"].shape == (members * width, X.shape[1])


@pytest.mark.parametrize("at", [0, 3, 49])
def test_sums_that_overflow_are_no_rows_that_do(at):
    """The rows are finite one by one; all of them added up are not."""
    large = np.float32(2e38)
    x = np.zeros((50, 2), np.float32)
    x[:, 0] = 1
    chain = Chain(2, [("linear", {"A": np.array([[large, 0], [0, large]], np.float32)})])
    np.testing.assert_array_equal(chain(x), x * large)
    x[at, 1] = 2
    with pytest.raises(DataError, match=f"^queries: row 1{at:02d} is too large for the encoder \\(layer 0, linear\\)$"):
        chain(x, "queries", 100)
