"""Sound HDF5 files, read and written; the unsound ones are in faults/test_a_feature_files.py."""

import io
import time

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scqfaiss.data import open_rows
from scqfaiss.data.writing import write_hits, write_rows
from scqfaiss.errors import DataError, ScqWarning

X = np.random.default_rng(0).standard_normal((301, 12)).astype(np.float16)
Y = np.arange(301) % 5
IDS = np.arange(301)[::-1] * 3

STORED = {
    "contiguous": {},
    "rows": {"chunks": (32, 12), "compression": "gzip", "shuffle": True},
    "columns": {"chunks": (301, 5), "compression": "lzf"},
    "larger than the data": {"chunks": (1000, 12), "maxshape": (None, 12), "fletcher32": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
def test_any_partition_into_blocks_equals_the_whole(tmp_path, stored, dtype):
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f.create_dataset("features", data=X.astype(dtype), **STORED[stored])
    with open_rows(tmp_path / "x.h5") as source:
        assert (len(source), source.d, source.labels, source.has_ids) == (301, 12, None, False)
        np.testing.assert_array_equal(source.ids, np.arange(301))

        @settings(max_examples=20, derandomize=True, deadline=None)
        @given(st.integers(1, 400))
        def check(step):
            blocks = [x for _, x in source.blocks(step)]
            assert all(x.dtype == np.float32 and x.flags.c_contiguous for x in blocks)
            np.testing.assert_array_equal(np.concatenate(blocks), X)

        check()


def test_blocks_hold_whole_chunks(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f.create_dataset(
            "features", data=np.zeros((5000, 4096), "f2"), chunks=(300, 4096), compression="gzip", fletcher32=True
        )
    with open_rows(tmp_path / "x.h5") as source:
        assert source.block_rows == 900  # 16 MiB as float32 would be 1,024 rows


@pytest.mark.parametrize("labels", [Y, np.eye(301, 5, dtype=np.uint8)])
def test_round_trip(tmp_path, labels):
    with open(tmp_path / "x.h5", "w+b") as f:
        write_rows(f, X, labels, IDS, ["cat", "d\u00f6g", "owl", "", "fly"], {"split": "train", "seed": 3})
    with open_rows(tmp_path / "x.h5") as source:
        np.testing.assert_array_equal(source.read(0, 301), X)
        np.testing.assert_array_equal(source.labels.y, labels)
        np.testing.assert_array_equal(source.ids, IDS)
        assert source.labels.class_names == ("cat", "d\u00f6g", "owl", "", "fly")
        assert source.has_ids
    with h5py.File(tmp_path / "x.h5") as f:
        assert (f.attrs["split"].decode(), f.attrs["seed"]) == ("train", 3)
        assert f["features"].dtype == np.float16


def test_other_keys_and_names_as_h5py_writes_them(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f["g/emb"], f["g/deep/y"], f["nr"] = X, Y, IDS
        f.attrs["class_names"] = ["a", "b", "c", "d", "\u00e9"]
    keys = {"features_key": "g/emb", "labels_key": "/g/deep/y", "ids_key": "nr"}
    with open_rows(tmp_path / "x.h5", **keys) as source:
        np.testing.assert_array_equal(source.read(0, 301), X)
        np.testing.assert_array_equal(source.labels.y, Y)
        np.testing.assert_array_equal(source.ids, IDS)
        assert source.labels.class_names == ("a", "b", "c", "d", "\u00e9")


@pytest.mark.parametrize("names", ["cat", 3.5, np.zeros((2, 2))])
def test_class_names_that_are_no_list(tmp_path, names):
    with open(tmp_path / "x.h5", "w+b") as f:
        write_rows(f, X, Y, attrs={"class_names": names})
    with pytest.raises(DataError) as caught:
        open_rows(tmp_path / "x.h5")
    words = "attribute class_names needs to be a list of names, one for each class"
    assert str(caught.value) == f"{tmp_path}/x.h5: {words}"


def test_one_warning_a_file_names_the_first_without_checksum(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f.create_dataset("features", data=X, fletcher32=True)
        f["labels"], f["ids"] = Y, IDS
    open_rows(tmp_path / "x.h5").close()  # says nothing: every file of plain h5py is like this
    with pytest.warns(ScqWarning) as caught, open_rows(tmp_path / "x.h5", verbose=True) as source:
        assert not source.sealed
    words = "labels has no checksum, bit errors cannot be seen"
    assert [str(w.message) for w in caught] == [f"{tmp_path}/x.h5: {words}"]


def hits(nq, k):
    f = io.BytesIO()
    scores = np.random.default_rng(0).standard_normal((nq, k)).astype(np.float32)
    write_hits(f, scores, np.arange(nq * k).reshape(nq, k), np.arange(nq))
    return f.getvalue(), scores


def rows():
    f = io.BytesIO()
    write_rows(f, X, Y, IDS, ["a", "b", "c", "d", "e"], {"split": "train"})
    return f.getvalue()


@pytest.mark.parametrize("nq, k", [(7, 3), (0, 3), (7, 0)])
def test_hits(nq, k):
    content, scores = hits(nq, k)
    with h5py.File(io.BytesIO(content)) as f:
        assert {name: (ds.shape, str(ds.dtype)) for name, ds in f.items()} == {
            "scores": ((nq, k), "float32"),
            "ids": ((nq, k), "int64"),
            "query_ids": ((nq,), "int64"),
        }
        assert all(ds.fletcher32 == (ds.size > 0) for ds in f.values())
        np.testing.assert_array_equal(f["scores"], scores)
        np.testing.assert_array_equal(f["query_ids"], np.arange(nq))


def test_same_input_same_bytes_a_second_later():
    first, second = (hits(7, 3)[0], rows()), int(time.time())
    while int(time.time()) == second:  # HDF5 counts time in whole seconds
        pass
    assert (hits(7, 3)[0], rows()) == first
