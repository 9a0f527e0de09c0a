"""Sound .npy, .fvecs and .bvecs files; the unsound ones are in faults/test_a_feature_files.py."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scqfaiss.data import open_rows
from scqfaiss.errors import ScqWarning

X = np.random.default_rng(0).integers(0, 256, (301, 12)).astype(np.float32)


def write(path, kind):
    """X as a file of this kind; the path, with its ending."""
    if kind in ("fvecs", "bvecs"):
        numbers = X.view(np.uint8) if kind == "fvecs" else X.astype(np.uint8)
        prefix = np.full((len(X), 1), 12, "<i4").view(np.uint8)
        path = path.with_suffix(f".{kind}")
        np.hstack([prefix, numbers]).tofile(path)
    else:
        dtype, order = kind.split()
        path = path.with_suffix(".NPY")
        with open(path, "wb") as f:
            np.save(f, np.array(X, dtype, order=order))
    return path


KINDS = ["<f2 C", "<f4 C", ">f4 C", "<f8 C", "<f4 F", ">f8 F", "fvecs", "bvecs"]


@pytest.mark.parametrize("kind", KINDS)
def test_any_partition_into_blocks_equals_the_whole(tmp_path, kind):
    with open_rows(write(tmp_path / "x", kind)) as source:
        assert (len(source), source.d, source.labels, source.has_ids) == (301, 12, None, False)
        np.testing.assert_array_equal(source.ids, np.arange(301))

        @settings(max_examples=20, derandomize=True, deadline=None)
        @given(st.integers(1, 400))
        def check(step):
            blocks = [x for _, x in source.blocks(step)]
            assert all(x.dtype == np.float32 and x.flags.c_contiguous for x in blocks)
            np.testing.assert_array_equal(np.concatenate(blocks), X)

        check()


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_anywhere(tmp_path, kind):
    with open_rows(write(tmp_path / "x", kind)) as source:
        for i, j in [(0, 0), (5, 5), (301, 301), (0, 1), (300, 301), (17, 113)]:
            np.testing.assert_array_equal(source.read(i, j), X[i:j])


def test_bad_rows_may_be_left_out(tmp_path):
    x = X.copy()
    x[5, 3] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.warns(ScqWarning, match="left out 1 of 301 rows that are not finite$"):
        source = open_rows(tmp_path / "x.npy", skip_bad_rows=True)
    with source:
        np.testing.assert_array_equal(source.read(0, 300), np.delete(X, 5, 0))
        np.testing.assert_array_equal(source.ids, np.delete(np.arange(301), 5))


def test_no_rows(tmp_path):
    np.save(tmp_path / "x.npy", X[:0])
    with open_rows(tmp_path / "x.npy") as source:
        assert (len(source), source.d, list(source.blocks())) == (0, 12, [])


def test_version_2_header(tmp_path):
    with open(tmp_path / "x.npy", "wb") as f:
        np.lib.format.write_array(f, X, version=(2, 0))
    with open_rows(tmp_path / "x.npy") as source:
        np.testing.assert_array_equal(source.read(0, 301), X)
