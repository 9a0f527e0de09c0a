"""Rows of Parquet files, and of tables in memory: the same rows, labels, ids and messages as HDF5 gives."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faults.conftest import run  # noqa: F401

from scqfaiss.data import ArraySource, open_rows
from scqfaiss.data.idlist import read_ids
from scqfaiss.data.writing import write_rows
from scqfaiss.errors import ConfigError, DataError, ScqWarning

# ruff: noqa: F811  (fixtures are imported by name)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((700, 6)).astype(np.float32)
Y = np.array(["cat", "dog", "eel"])[RNG.integers(0, 3, 700)]
IDS = RNG.permutation(2000)[:700]
FIXED = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 6)
LISTS = {
    "list": pa.array(list(X)),
    "large list": pa.array(list(X), pa.large_list(pa.float32())),
    "fixed size": FIXED,
    "float64": pa.array(list(X.astype(np.float64))),
}


class Capsule:
    """What pandas, polars and others hand over: a stream of Arrow, and nothing else that is known here."""

    def __init__(self, table):
        self._table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name="x.parquet", groups=256, metadata=None, **columns):
    table = pa.table({key: pa.array(list(c)) if getattr(c, "ndim", 1) == 2 else c for key, c in columns.items()})
    pq.write_table(table.replace_schema_metadata(metadata), name, row_group_size=groups)
    return table


def everything(source):
    with source:
        x = np.concatenate([block for _, block in source.blocks(100)])
        return x, [source.labels.class_name(c) for c in source.labels.y], source.ids


@pytest.mark.parametrize("form", LISTS)
@pytest.mark.parametrize("way", ["file", "table", "capsule"])
def test_rows_labels_and_ids(form, way):
    table = write(embedding=LISTS[form], label=Y, id=IDS)
    given = {"table": table, "capsule": Capsule(table)}
    x, y, ids = everything(open_rows("x.parquet") if way == "file" else ArraySource(given[way]))
    np.testing.assert_array_equal(x, X)
    assert (y, ids.tolist()) == (Y.tolist(), IDS.tolist())


def test_any_rows_in_any_order():
    write(embedding=X, groups=64)
    with open_rows("x.parquet") as source:
        source._batch_rows = 50
        for i, j in [(0, 10), (10, 200), (690, 700), (3, 4), (3, 3), (100, 130), (640, 700), (63, 65)]:
            np.testing.assert_array_equal(source.read(i, j), X[i:j])


def test_several_columns_of_numbers():
    write(**{f"f{i}": X[:, i].astype(np.float32 if i else np.float64) for i in range(6)}, label=Y, row=IDS)
    with pytest.warns(
        ScqWarning, match=r"^x.parquet: no column of lists; features are its 6 columns of floats, f0, f1"
    ):
        x, y, ids = everything(open_rows("x.parquet"))
    np.testing.assert_array_equal(x, X)
    assert (y, ids.tolist()) == (Y.tolist(), list(range(700)))
    for key in ("f*", "f0,f1,f2,f3,f4,f5"):
        x, _, ids = everything(open_rows("x.parquet", features_key=key, ids_key="row"))
        np.testing.assert_array_equal(x, X)
        assert ids.tolist() == IDS.tolist()


def test_the_only_column_of_lists_is_the_features():
    write(vector=X, text=Y)
    with open_rows("x.parquet") as source:
        assert (source.d, source.labels, source.features_name) == (6, None, "vector")


def test_what_lacks_is_not_finite_and_can_be_left_out():
    rows = [*X[:5], None, [1.0, None, 3, 4, 5, 6]]
    write(embedding=pa.array(rows, pa.list_(pa.float32())), id=np.arange(10, 17))
    with open_rows("x.parquet") as source, pytest.raises(DataError) as caught:
        source.read(0, 7)
    assert str(caught.value) == (
        "x.parquet: embedding: row 5, column 0 is NaN (2 of 7 rows are not finite); --skip-bad-rows leaves them out"
    )
    with pytest.warns(ScqWarning, match="left out 2 of 7 rows"), open_rows("x.parquet", skip_bad_rows=True) as source:
        assert source.ids.tolist() == [10, 11, 12, 13, 14]


@pytest.mark.parametrize("kind, low", [(np.int8, -128), (np.uint8, 0)])
def test_numbers_of_a_byte_need_a_scale(kind, low):
    q = RNG.integers(low, low + 256, (50, 4)).astype(kind)
    with open("q.h5", "w+b") as f:
        write_rows(f, q, np.arange(50) % 2)
    np.save("q.npy", q)
    write("q.parquet", embedding=q)
    for name in ("q.h5", "q.npy", "q.parquet"):
        with pytest.raises(
            DataError, match=rf"is \(50, 4\) {np.dtype(kind)}, needs .*; say what 1 stands for: --scale"
        ):
            open_rows(name)
        with open_rows(name, scale=0.25) as source:
            np.testing.assert_array_equal(source.read(0, 50), q.astype(np.float32) / 4)
    np.save("x.npy", X)
    with pytest.raises(ConfigError, match="a scale is of int8 and uint8; leave --scale out"):
        open_rows("x.npy", scale=2.0)
    with pytest.raises(ConfigError, match="needs a number above 0"):
        open_rows("q.npy", scale=0.0)


def labels(column, **metadata):
    write(embedding=X[: len(column)], label=column, metadata=metadata.get("told"))
    with open_rows("x.parquet", keep_unlabelled=True) as source:
        return source.labels


def test_labels_in_every_form():
    assert labels(pa.array([2, None, 0])).y.tolist() == [2, -1, 0]
    assert labels(pa.array([2.0, None, float("nan")])).y.tolist() == [2, -1, -1]
    named = labels(pa.array(["b", None, ""]).dictionary_encode())
    assert (named.y.tolist(), named.class_names) == ([0, -1, -1], ("b",))
    told = {
        "huggingface": json.dumps({"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}})
    }
    named = labels(pa.array([1, -1, 1]), told=told)
    assert (named.y.tolist(), named.class_names) == ([1, -1, 1], ("no", "yes"))
    several = labels(pa.array([["b", "a"], [], ["c"]]))
    assert (several.y.tolist(), several.class_names) == ([[1, 1, 0], [0, 0, 0], [0, 0, 1]], ("a", "b", "c"))
    assert labels(pa.array([[0, 2], None, [1]])).y.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    matrix = pa.FixedSizeListArray.from_arrays(pa.array([0, 1, 1, 1]), 2)
    assert labels(matrix).y.tolist() == [[0, 1], [1, 1]]
    with pytest.raises(DataError, match="label: row 1 names a class twice; lists hold the classes of a row"):
        labels(pa.array([[0, 2], [0, 1, 0]]))
    with pytest.raises(DataError, match="needs lists of class numbers"):
        labels(pa.array([[0.5], [1.0]]))


def test_ids_that_are_text_are_said_and_not_taken():
    write(embedding=X, id=np.array([f"a{i}" for i in range(700)]))
    with pytest.warns(
        ScqWarning, match=r"id is string, and FAISS knows ids as whole numbers: rows are numbered from 0"
    ):
        with open_rows("x.parquet") as source:
            assert source.ids.tolist() == list(range(700))
    with pytest.raises(DataError, match="number the rows, and keep these in a file of items"):
        open_rows("x.parquet", ids_key="id")
    write(embedding=X[:3], id=pa.array([1, None, 3]))
    with pytest.raises(DataError, match=r"x.parquet: id: row 1 has no id \(1 such rows\)"):
        open_rows("x.parquet")


REFUSED = {
    "no column 'x'; it holds text (string); choose with --features-key": ({"features_key": "x"}, {"text": Y}),
    "has no column 'embedding'; it holds text (string); choose": ({}, {"text": Y}),
    "has no column 'y'; it holds embedding (list<": ({"labels_key": "y"}, {"embedding": X}),
    "has columns 'embedding' and 'features'; choose with --features-key": ({}, {"embedding": X, "features": X}),
    "embedding is string, needs numbers, or lists of numbers of one length": ({}, {"embedding": Y}),
    "embedding: row 1 holds 3 numbers, the first row holds 2": ({}, {"embedding": pa.array([[1.0, 2], [1.0, 2, 3]])}),
    "embedding is (2, 2) int64, needs (n, d) float16": ({}, {"embedding": pa.array([[1, 2], [3, 4]])}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message):
    options, columns = REFUSED[message]
    write(**columns)
    with pytest.raises(DataError) as caught, open_rows("x.parquet", **options) as source:
        source.read(0, len(source))
    assert message in str(caught.value)


def test_damaged_files():
    pq.write_table(pa.table({"embedding": FIXED}), "x.parquet", write_page_checksum=True)
    with open("x.parquet", "rb") as f:
        whole = bytearray(f.read())
    for content, message in [
        (b"nothing of the kind", "x.parquet is not a Parquet file"),
        (whole[:-500], "file is truncated"),
        (whole[:-60] + bytes(52) + whole[-8:], "x.parquet: the file is damaged"),
        (whole[:-2000] + b"\xff" * 1000 + whole[-1000:], "damaged"),
    ]:
        with open("x.parquet", "wb") as f:
            f.write(content)
        with pytest.raises(DataError, match=message), open_rows("x.parquet") as source:
            source.read(0, 700)
    whole[1500:1700] = b"\xff" * 200
    with open("x.parquet", "wb") as f:
        f.write(whole)
    with pytest.raises(DataError, match=r"embedding.* damaged.*; restore a copy"):
        with open_rows("x.parquet") as source:
            source.read(0, 700)


def test_a_table_reads_in_pieces_and_only_what_is_asked():
    table = pa.table({"embedding": FIXED, "label": pa.array([None] * 700, pa.string()), "id": IDS})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = ArraySource(table, read_labels=False)
    assert (source.labels, source.known_finite, len(source)) == (None, False, 700)
    bad = table.set_column(0, "embedding", pa.array([[float("inf")] * 6] * 700))
    with pytest.raises(DataError, match="x: embedding: row 0, column 0 is infinite"):
        ArraySource(bad).read(0, 1)
    with pytest.raises(DataError, match="needs a Dataset; choose a split"):
        ArraySource(type("DatasetDict", (), {"__module__": "datasets.dataset_dict"})())


READ = """
import sys
from scqfaiss.data import open_rows
with open_rows(sys.argv[1]) as source:
    assert sum(len(x) for _, x in source.blocks()) == len(source)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_memory_does_not_follow_the_file():
    peaks = []
    for n in (50_000, 400_000):
        x = RNG.standard_normal((n, 64), dtype=np.float32)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 64).cast(pa.list_(pa.float32()))
        pq.write_table(pa.table({"embedding": lists}), "x.parquet", row_group_size=n)
        done = subprocess.run([sys.executable, "-c", READ, "x.parquet"], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1000)
    assert peaks[1] - peaks[0] < 45  # MB; the file has 90 more


def test_info_tells_what_a_table_holds(run):
    write(embedding=X, label=pa.array(["a", None] * 350), id=IDS)
    told = json.loads(run("info", "x.parquet", "--json").out)
    assert (told["rows"], told["d"], told["class_names"], told["ids"]) == (700, 6, ["a"], "given")
    assert told["without_label"] == 350


def test_columns_are_told_only_where_some_are_passed_over():
    frame = Capsule(pa.table({f"f{i}": X[:, i] for i in range(6)} | {"label": Y}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(everything(ArraySource(frame))[0], X)


def test_a_column_of_pandas_needs_no_pyarrow(monkeypatch):
    class Series(Capsule):
        ndim = 1

        def __array__(self, dtype=None, copy=None):
            return np.arange(700) % 2

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert ArraySource(X, Series(None)).labels.y.tolist() == [0, 1] * 350
    with pytest.raises(ConfigError, match=r'x, a Capsule, needs pyarrow, .*: pip install "scqfaiss\[arrow\]"$'):
        ArraySource(Capsule(None))


def test_ids_are_read_from_tables():
    write(embedding=X, id=IDS)
    np.savez("x.npz", x=X, ids=IDS)
    for name in ("x.parquet", "x.npz"):
        assert read_ids(name).tolist() == IDS.tolist()


MAKE = {
    "pandas": lambda pandas, table: table.to_pandas(),
    "polars": lambda polars, table: polars.from_arrow(table),
    "datasets": lambda datasets, table: datasets.Dataset(table),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("library", MAKE)
def test_frames_and_datasets_of_others(library):
    frame = MAKE[library](pytest.importorskip(library), pa.table({"embedding": FIXED, "label": Y, "id": IDS}))
    x, y, ids = everything(ArraySource(frame))
    np.testing.assert_array_equal(x, X)
    assert (y, ids.tolist()) == (Y.tolist(), IDS.tolist())
    source = ArraySource(frame["embedding"], frame["label"])
    np.testing.assert_array_equal(source.read(0, 700), X)
    assert [source.labels.class_name(c) for c in source.labels.y] == Y.tolist()
