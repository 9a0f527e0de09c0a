"""The model file: exact round trips, the same bytes for the same content."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scqfaiss import bundle
from scqfaiss.bundle import Bundle, from_bytes
from scqfaiss.errors import CheckpointError, ConfigError


def some():
    rng = np.random.default_rng(0)
    tensors = {
        "a": rng.standard_normal((3, 4)).astype(np.float32),
        "b.c": np.arange(5, dtype=np.int64),
        "none": np.zeros((0, 3), np.float32),
        "turned": rng.standard_normal((4, 3)).astype(np.float32).T,
    }
    return Bundle(tensors, {"method": "scq", "list": [1, 2.5, None, "ä\n"], "deep": {"x": True}})


def test_round_trip():
    b = some()
    found = from_bytes(b.to_bytes(), "x")
    assert found.config == b.config
    assert sorted(found.tensors) == sorted(b.tensors)
    for name, t in b.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], t)
        assert found.tensors[name].dtype == t.dtype
    assert found.digest() == b.digest()


def test_same_bytes_whatever_the_order():
    b = some()
    turned = Bundle(dict(reversed(list(b.tensors.items()))), dict(reversed(list(b.config.items()))))
    assert turned.to_bytes() == b.to_bytes()


def test_digest_sees_names_shapes_and_types():
    a = np.zeros(4, np.float32)
    digests = {
        Bundle({"a": t}, config).digest()
        for t in (a, a.reshape(2, 2), a.view(np.int32), a + 1)
        for config in ({}, {"x": 1}, {"x": "1"})
    }
    digests.add(Bundle({"b": a}, {}).digest())
    assert len(digests) == 13


def test_nan_in_the_config_is_not_json():
    with pytest.raises(ValueError):
        Bundle({}, {"loss": float("nan")}).to_bytes()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes(data):
    with pytest.raises(CheckpointError):
        from_bytes(data, "x")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_changed_byte_is_seen(data):
    good = some().to_bytes()
    i = data.draw(st.integers(0, len(good) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != good[i]))
    try:
        found = from_bytes(good[:i] + bytes([byte]) + good[i + 1 :], "x")
    except CheckpointError:
        return
    # White space for white space inside the header, which says nothing: the content is the same to the last bit.
    assert (found.digest(), found.config) == (some().digest(), some().config)


def test_a_missing_file_is_no_damage(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        bundle.read(tmp_path / "no.safetensors")


def test_types_numpy_does_not_have():
    """bfloat16 and the 8-bit floats of other programs end in our error, whatever safetensors makes of them."""
    import json
    import struct

    for dtype, width in (("BF16", 2), ("F8_E4M3", 1), ("NOPE", 4)):
        header = json.dumps({"a": {"dtype": dtype, "shape": [4], "data_offsets": [0, 4 * width]}}).encode()
        with pytest.raises(CheckpointError):
            from_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4 * width, "x")
