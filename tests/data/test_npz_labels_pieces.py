"""Rows of .npz files, labels in files of their own, and rows in several files."""

import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scqfaiss.data import ArraySource, open_rows
from scqfaiss.data.concatenated import Concatenated
from scqfaiss.data.kinds import check_kind
from scqfaiss.data.label_files import read_labels
from scqfaiss.data.writing import write_rows
from scqfaiss.errors import ConfigError, DataError, ScqWarning

RNG = np.random.default_rng(0)
X = RNG.standard_normal((300, 5)).astype(np.float32)
Y = np.array(["cat", "dog", "eel"])[RNG.integers(0, 3, 300)]
IDS = RNG.permutation(900)[:300]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_h5(name, rows, names=None, ids=True):
    y = Y[rows] if names is None else np.searchsorted(names, Y[rows])
    with open(name, "w+b") as f:
        write_rows(f, X[rows], y.astype("S") if names is None else y, IDS[rows] if ids else None, names)


def write_parquet(name, rows):
    table = {"embedding": pa.array(list(X[rows])), "label": Y[rows], "id": IDS[rows]}
    pq.write_table(pa.table(table), name)


def check(source, rows=slice(None)):
    with source:
        np.testing.assert_array_equal(np.concatenate([x for _, x in source.blocks(70)]), X[rows])
        assert [source.labels.class_name(c) for c in source.labels.y] == Y[rows].tolist()
        assert source.ids.tolist() == IDS[rows].tolist()
        for i, j in [(250, 300), (3, 3), (10, 280), (99, 101)]:
            np.testing.assert_array_equal(source.read(i, j), X[rows][i:j])


# --------------------------------------------------------------------------------------------------------------- .npz
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("names", [("features", "labels", "ids"), ("x", "y", "id"), ("embeddings", "label", "ids")])
def test_npz(save, names):
    save("x.npz", **dict(zip(names, (X, Y, IDS))))
    check(open_rows("x.npz"))


def test_npz_in_other_forms():
    np.savez("x.npz", X.astype(np.float64))
    with open_rows("x.npz") as source:
        np.testing.assert_array_equal(source.read(0, 300), X)
        assert (source.features_name, source.labels, source.has_ids) == ("arr_0", None, False)
    np.savez("x.npz", x=np.asfortranarray(X), y=np.arange(300) % 2, class_names=["no", "yes"])
    with open_rows("x.npz") as source:
        np.testing.assert_array_equal(source.read(7, 30), X[7:30])
        assert source.labels.class_names == ("no", "yes")
    np.savez("x.npz", x=X[:3], other=X, text=Y)
    with open_rows("x.npz", features_key="other", labels_key="text") as source:
        assert source.labels.class_names == ("cat", "dog", "eel")
    q = RNG.integers(0, 255, (20, 3)).astype(np.uint8)
    np.savez_compressed("q.npz", x=q)
    with open_rows("q.npz", scale=0.5) as source:
        np.testing.assert_array_equal(source.read(4, 20), q[4:].astype(np.float32) / 2)


def test_npz_that_is_refused():
    np.savez("x.npz", a=X, b=Y)
    with pytest.raises(
        DataError, match=r"no array 'features'; it holds a \(300, 5\) float32, b \(300,\) <U3; choose with"
    ):
        open_rows("x.npz")
    with pytest.raises(DataError, match="no array 'z'; it holds"):
        open_rows("x.npz", features_key="a", ids_key="z")
    np.savez("x.npz", x=X, y=Y.astype(object))
    with pytest.raises(DataError, match=r"x.npz: y holds Python objects, which are not read, .* save y.astype"):
        open_rows("x.npz")
    np.savez("x.npz", x=X, features=X)
    with pytest.raises(DataError, match="has arrays 'features' and 'x'; choose with --features-key"):
        open_rows("x.npz")
    np.savez_compressed("x.npz", x=np.asfortranarray(X))
    with pytest.raises(DataError, match="is compressed and stored column by column"):
        open_rows("x.npz")
    np.savez_compressed("x.npz", x=X)
    with open("x.npz", "rb") as f:
        whole = f.read()
    for content, message in [
        (b"nothing", "x.npz is not a .npz file"),
        (whole[:-30], "the file is damaged"),
        (whole[:900] + b"\0" * 200 + whole[1100:], "x is damaged"),
    ]:
        with open("x.npz", "wb") as f:
            f.write(content)
        with pytest.raises(DataError, match=message), open_rows("x.npz") as source:
            source.read(0, 300)


# ------------------------------------------------------------------------------------------------------------- labels
def test_labels_beside_features():
    np.save("x.npy", X)
    np.save("y.npy", Y)
    with open("y.txt", "w") as f:
        f.write("\n".join(Y) + "\n")
    for name in ("y.npy", "y.txt"):
        with open_rows("x.npy", labels_file=name) as source:
            assert [source.labels.class_name(c) for c in source.labels.y] == Y.tolist()
    with open_rows("x.npy", labels_file="y.npy", labels_key=None) as source:
        assert source.labels is None
    np.save("y.npy", Y[1:])
    with pytest.raises(DataError, match=r"x.npy: labels of y.npy has 299 rows, features has 300"):
        open_rows("x.npy", labels_file="y.npy")


def test_what_a_file_of_labels_may_hold():
    for text, want in [
        ("3\n\n-1\n2", [3, -1, -1, 2]),
        ("a\n\n3\n-1", ["a", "", "3", ""]),
        ("\ufeff1\r\n2\r\n", [1, 2]),
    ]:
        with open("y.csv", "w", encoding="utf-8", newline="") as f:
            f.write(text)
        assert read_labels("y.csv").tolist() == want
    np.save("y.npy", np.array(["a", None], object), allow_pickle=True)
    with pytest.raises(DataError, match="holds Python objects"):
        read_labels("y.npy")
    with open("y.npy", "wb") as f:
        f.write(b"x")
    with pytest.raises(DataError, match=r"not a readable \.npy array"):
        read_labels("y.npy")
    with open("y.json", "w") as f:
        f.write("[]")
    with pytest.raises(ConfigError, match=r"labels come as .npy, or as text"):
        read_labels("y.json")
    with pytest.raises(ConfigError, match="no such file"):
        read_labels("z.npy")


# ------------------------------------------------------------------------------------------------------------- pieces
PARTS = [slice(0, 100), slice(100, 101), slice(101, 300)]


@pytest.mark.parametrize("write", [write_h5, write_parquet])
@pytest.mark.parametrize("path", ["rows", "rows/part-*"])
def test_a_folder_is_read_as_one_file(tmp_path, write, path):
    (tmp_path / "rows").mkdir()
    ending = "h5" if write is write_h5 else "parquet"
    for k, rows in enumerate(PARTS):
        write(f"rows/part-{k}.{ending}", rows)
    (tmp_path / "rows/_SUCCESS").touch()
    (tmp_path / "rows/README.md").touch()
    check(open_rows(path if path == "rows" else f"{path}.{ending}"))


def test_pieces_name_their_classes_alike(tmp_path):
    (tmp_path / "rows").mkdir()
    names = np.array(["cat", "dog", "eel", "fox"])
    for k, rows in enumerate(PARTS):
        write_h5(f"rows/{k}.h5", rows, names)
    with open_rows("rows") as source:
        assert source.labels.class_names == tuple(names)
    check(open_rows("rows"))
    write_h5("rows/2.h5", PARTS[2], np.array(["cat", "dog", "eel", "gnu"]))
    with open_rows("rows") as source:
        assert source.labels.class_names == ("cat", "dog", "eel", "fox", "gnu")
    check(open_rows("rows"))
    with open("rows/3.h5", "w+b") as f:
        write_rows(f, X[:2], None, [1000, 1001])
    with pytest.warns(ScqWarning, match="^rows: left out 2 of 302 rows without a label$"):
        check(open_rows("rows"))


def test_bad_rows_and_ids_are_those_of_all_pieces(tmp_path):
    (tmp_path / "rows").mkdir()
    x = X.copy()
    x[150, 2] = np.nan
    for k, rows in enumerate(PARTS):
        np.save(f"rows/{k}.npy", x[rows])
    np.save("y.npy", Y)
    with pytest.warns(ScqWarning, match="^rows: left out 1 of 300 rows that are not finite$"):
        source = open_rows("rows", skip_bad_rows=True, labels_file="y.npy")
    with source:
        assert source.ids.tolist() == np.delete(np.arange(300), 150).tolist()
        assert [source.labels.class_name(c) for c in source.labels.y] == np.delete(Y, 150).tolist()
    with open_rows("rows") as source, pytest.raises(DataError, match="rows: array: row 150, column 2 is NaN"):
        source.read(140, 160)


def test_pieces_that_do_not_fit_together(tmp_path):
    (tmp_path / "rows").mkdir()
    write_h5("rows/a.h5", PARTS[0])
    write_h5("rows/b.h5", PARTS[1], ids=False)
    with pytest.raises(ConfigError, match=r"rows/a.h5 has ids, rows/b.h5 has none; give all files ids, or none"):
        open_rows("rows")
    write_h5("rows/b.h5", PARTS[0])
    with pytest.raises(DataError, match=r"rows: ids: .* more than once"):
        open_rows("rows")
    with open("rows/b.h5", "w+b") as f:
        write_rows(f, X[:3, :2], np.arange(3), np.arange(1000, 1003))
    with pytest.raises(ConfigError, match=r"rows/b.h5 has d=2, rows/a.h5 has d=5; they do not go together"):
        open_rows("rows")
    with open("rows/b.h5", "w+b") as f:
        write_rows(f, X[:3], np.arange(3), np.arange(1000, 1003))
    with pytest.raises(DataError, match="some of its files have names of classes, and some have not"):
        open_rows("rows")
    np.save("rows/c.npy", X)
    with pytest.raises(
        ConfigError, match=r"holds files of several kinds \(.h5, .npy\); .* give a pattern: 'rows/\*.h5'"
    ):
        check_kind("rows")
    with pytest.raises(ConfigError, match=r"none-\*.h5: no file matches"):
        check_kind("none-*.h5")


def test_a_name_with_marks_of_a_pattern_is_a_name():
    np.save("x[1].npy", X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with open_rows("x[1].npy") as source:
            assert len(source) == 300


@pytest.mark.parametrize("kept", [True, False])
def test_any_stretch_of_several_sources_is_that_of_one_array(kept):
    """Also where one of them is empty, and where rows of one were left out."""
    bad = X[60:90].copy()
    bad[[3, 17]] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScqWarning)
        parts = [ArraySource(x, skip_bad_rows=True) for x in (X[:40], X[:0], X[40:60], bad, X[90:])]
    whole = Concatenated(parts, kept=kept)
    want = np.concatenate([X[:60], np.delete(bad, [3, 17], 0) if kept else bad, X[90:]])
    assert (len(whole), whole.d, whole.known_finite) == (len(want), X.shape[1], kept)
    rng = np.random.default_rng(0)
    for i, j in [(0, 0), (40, 40), (0, len(want)), *(sorted(rng.integers(0, len(want) + 1, 2)) for _ in range(60))]:
        np.testing.assert_array_equal(whole.fetch(i, j), want[i:j])


def test_several_sources_are_closed_all_and_tell_the_first_fault():
    class Watched(ArraySource):
        def rest(self):
            calls.append(("rest", self.name))

        def close(self):
            calls.append(("close", self.name))
            if self.name in "bc":
                raise DataError(f"{self.name} changed")

    calls = []
    whole = Concatenated([Watched(X[:10], name=name) for name in "abcd"], kept=True)
    whole.read(0, 25)
    assert calls == [("rest", "a"), ("rest", "b")]
    with pytest.raises(DataError, match=r"^b changed$"):
        whole.close()
    assert sorted(calls[2:]) == [("close", name) for name in "abcd"]
