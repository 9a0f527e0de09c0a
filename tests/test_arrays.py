"""The border for arrays: what passes is unchanged in value, in one fixed form."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scqfaiss.arrays import as_features, as_ids, as_labels, bad_rows, dims
from scqfaiss.errors import DataError

quick = settings(max_examples=50, derandomize=True, deadline=None)
INTS = ["u1", "i2", "<u4", ">i4", "i8", "u8", "f4", "f8"]


def test_dims():
    assert dims(np.zeros(3)) == "(3,) float64"
    assert dims(np.zeros((3, 2), np.uint8)) == "(3, 2) uint8"
    assert dims(np.zeros(())) == "() float64"


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f4", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_features_become_float32_in_c_order(dtype, order):
    x = np.array([[1, 2.5], [-3, 0], [4, 65504]], dtype, order=order)
    out = as_features(x)
    assert (out.dtype, out.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_array_equal(out, x)


def test_features_in_form_are_not_copied():
    x = np.ones((3, 2), np.float32)
    assert as_features(x) is x


def test_features_may_be_let_through_unseen():
    x = np.array([[np.nan, 1e300]])
    np.testing.assert_array_equal(as_features(x, finite=False), np.array([[np.nan, np.inf]], np.float32))


@quick
@given(st.data())
def test_bad_rows_equal_a_loop(data):
    value = st.sampled_from([0.0, 1.0, -2.5, 60000.0, np.nan, np.inf, -np.inf, 3e38, -3e38, 1e39])
    dtype = data.draw(st.sampled_from([np.float16, np.float32, np.float64]))
    rows = data.draw(st.lists(st.lists(value, min_size=3, max_size=3), max_size=6))
    with np.errstate(over="ignore"):
        x = np.array(rows, np.float64).reshape(-1, 3).astype(dtype)
        want = [not all(np.isfinite(np.float32(v)) for v in row) for row in x]
    assert bad_rows(x).tolist() == want
    if any(want):
        with pytest.raises(
            DataError, match=rf"^q: row {want.index(True)}, column .* \({sum(want)} of {len(want)} rows"
        ):
            as_features(x, "q")


@quick
@given(st.lists(st.integers(0, 100), unique=True, max_size=20), st.sampled_from(INTS))
def test_ids_of_every_dtype_come_back_as_int64(values, dtype):
    out = as_ids(np.array(values, dtype), len(values))
    assert (out.dtype, out.tolist()) == (np.int64, values)


def test_largest_id():
    assert as_ids(np.array([2**63 - 1], np.uint64), 1).tolist() == [2**63 - 1]


@quick
@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.sampled_from(INTS))
def test_labels_of_every_dtype_and_their_multi_hot_form_agree(values, dtype):
    single = as_labels(np.array(values, dtype), len(values), C=10)
    assert (single.y.tolist(), single.C, single.multilabel) == (values, 10, False)
    multilabel = as_labels(single.multi_hot().astype(dtype), len(values), C=10)
    assert (multilabel.C, multilabel.multilabel, multilabel.y.dtype) == (10, True, np.uint8)
    np.testing.assert_array_equal(multilabel.multi_hot(), single.multi_hot())
    np.testing.assert_array_equal(multilabel.counts(), single.counts())
    assert single.counts().tolist() == [values.count(c) for c in range(10)]
    assert single.take([0]).y.tolist() == values[:1]


def test_number_of_classes():
    assert as_labels([0, 4], 2).C == 5
    assert as_labels([0, 4], 2, C=7).C == 7
    assert as_labels([], 0).C == 0
    named = as_labels([0, 1], 2, class_names=[b"cat", "d\u00f6g", "owl"])
    assert (named.C, named.class_names, named.class_name(1)) == (3, ("cat", "d\u00f6g", "owl"), "d\u00f6g")
    assert as_labels([0], 1).class_name(0) == "0"
