"""Faults of labels and ids, rows B1 to B4 and B11 of the fault table, through files and through arrays alike."""

import h5py
import numpy as np
import pytest

from scqfaiss.data import ArraySource, open_rows
from scqfaiss.data.writing import write_rows
from scqfaiss.errors import DataError, ScqWarning

X = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)


@pytest.fixture(params=["file", "arrays"])
def rows(request, tmp_path, monkeypatch):
    """rows(labels, ids, class_names) -> Source called 'x.h5', once from a file and once from memory."""
    monkeypatch.chdir(tmp_path)

    def build(labels=None, ids=None, class_names=None, **options):
        if request.param == "arrays":
            return ArraySource(X, labels, ids, class_names, name="x.h5", **options)
        with open("x.h5", "w+b") as f:
            write_rows(f, X, labels, ids, class_names)
        return open_rows("x.h5", **options)

    build.option = "" if request.param == "arrays" else " or pass --allow-duplicate-ids"
    return build


def refuse(rows, message, *args, **options):
    with pytest.raises(DataError) as caught:
        rows(*args, **options)
    assert str(caught.value) == message
    assert caught.value.exit_code == 3


def changed(values, where, what, dtype=None):
    out = np.array(values, dtype)
    out[where] = what
    return out


def test_b1_lengths_differ(rows):
    refuse(rows, "x.h5: labels has 19 rows, features has 20", np.zeros(19, np.int64))
    refuse(rows, "x.h5: labels has 21 rows, features has 20", np.zeros((21, 3), np.uint8))
    refuse(rows, "x.h5: ids is (19,) int64, needs (20,) int64, one for each row of features", None, np.arange(19))
    refuse(
        rows,
        "x.h5: ids is (20, 2) int64, needs (20,) int64, one for each row of features",
        None,
        np.eye(20, 2, dtype=int),
    )


def test_b2_label_out_of_range(rows):
    names = [str(c) for c in range(10)]
    y = changed(np.arange(20) % 10, [12, 13, 19], 10)
    refuse(rows, "x.h5: labels: row 12 is 10, classes run 0 to 9 (3 such rows)", y, None, names)
    y = changed(np.arange(20) % 10, 3, -2)
    none = "-1 says that a row has no label"
    refuse(rows, f"x.h5: labels: row 3 is -2, classes run 0 upwards (1 such rows); {none}", y)
    matrix = np.zeros((20, 3), np.uint8)
    refuse(rows, "x.h5: labels has 3 columns, needs one for each of the 10 classes", matrix, None, names)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_b3_whole_floats_convert(rows, dtype):
    with rows((np.arange(20) % 3).astype(dtype)) as source:
        np.testing.assert_array_equal(source.labels.y, np.arange(20) % 3)
        assert source.labels.y.dtype == np.int64


@pytest.mark.parametrize("value, printable", [(0.5, "0.5"), (np.inf, "inf")])
def test_b3_other_floats(rows, value, printable):
    y = changed(np.zeros(20), 4, value)
    refuse(rows, f"x.h5: labels: row 4 is {printable}, not a class number", y)


def test_b3_no_numbers(rows):
    refuse(rows, "x.h5: labels is (20,) bool, needs whole numbers", np.zeros(20, bool))


@pytest.mark.parametrize("words", [np.array([b"cat", b"ant"]), np.array(["cat", "a\u0308nt"], object)])
def test_b3_names_are_classes(tmp_path, words):
    given = words[np.arange(20) % 2]
    plain = [w.decode() if isinstance(w, bytes) else w.replace("a\u0308", "\u00e4") for w in given.tolist()]
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f["features"], f["labels"] = X, given
    for source in (open_rows(tmp_path / "x.h5"), ArraySource(X, given), ArraySource(X, given.tolist())):
        with source:
            assert source.labels.class_names == tuple(sorted(set(plain)))
            assert [source.labels.class_names[c] for c in source.labels.y] == plain
    with pytest.raises(DataError, match=r"labels: row 1 is '.*nt', which class_names does not name$"):
        ArraySource(X, given, class_names=["cat", "dog"])
    assert ArraySource(X, given, class_names=["dog", "cat", words[1]]).labels.y.tolist() == [1, 2] * 10
    with pytest.raises(DataError, match=r"row 7 is 3, not a class name \(1 such rows\)"):
        ArraySource(X, changed(given, 7, 3, object))
    with pytest.raises(DataError, match="class_names holds 'cat' more than once"):
        ArraySource(X, np.zeros(20, int), class_names=["cat", "cat"])


@pytest.mark.parametrize(
    "labels",
    [
        changed(np.arange(20) % 3, [2, 7], -1),
        changed(np.arange(20) % 3, [2, 7], np.nan, np.float64),
        changed(np.array([b"a", b"b", b"c"])[np.arange(20) % 3], [2, 7], b""),
    ],
)
def test_b3_rows_without_a_label_are_left_out(rows, labels):
    with pytest.warns(ScqWarning, match="^x.h5: left out 2 of 20 rows without a label$"):
        source = rows(labels)
    with source:
        rest = np.delete(np.arange(20), [2, 7])
        np.testing.assert_array_equal(source.labels.y, rest % 3)
        np.testing.assert_array_equal(source.ids, rest)
        np.testing.assert_array_equal(source.read(0, 18), X[rest])
    with rows(labels, keep_unlabelled=True) as source:
        assert source.labels.without_label().tolist() == [2, 7]
        assert source.labels.counts().tolist() == np.bincount(rest % 3).tolist()
        assert source.labels.multi_hot().sum(1).tolist() == [int(row not in (2, 7)) for row in range(20)]
        assert source.labels.among(np.array([0, 2])).y[[2, 5, 7]].tolist() == [-1, 1, -1]
    with rows(np.full(20, -1)) as source:
        assert source.labels is None


@pytest.mark.parametrize("words", [["a", None, "b"], ["a", float("nan"), "b"], [1, None, 2]])
def test_b3_what_python_has_for_nothing(words):
    source = ArraySource(X[:3], words, keep_unlabelled=True)
    assert source.labels.y.tolist() == ([0, -1, 1] if words[0] == "a" else [1, -1, 2])


def test_b4_row_without_label_passes(rows):
    y = np.eye(20, 3, dtype=np.uint8)
    with rows(y) as source:
        np.testing.assert_array_equal(source.labels.y, y)
        assert (source.labels.multilabel, source.labels.C) == (True, 3)


@pytest.mark.parametrize("value, printable", [(2, "2.0"), (np.nan, "nan"), (0.5, "0.5")])
def test_b4_other_values(rows, value, printable):
    y = changed(np.zeros((20, 3)), ([7, 9], 1), value)
    refuse(rows, f"x.h5: labels: row 7 holds {printable}, needs 0 or 1 (2 such rows)", y)


def test_b4_shapes(rows):
    needs = "needs (n,) class numbers or an (n, C) matrix of 0 and 1 with C >= 2"
    column = "class numbers in one column are y.ravel()"
    refuse(rows, f"x.h5: labels is (20, 1) int64, {needs}; {column}", np.zeros((20, 1), np.int64))
    refuse(rows, f"x.h5: labels is (20, 2, 2) int64, {needs}", np.zeros((20, 2, 2), np.int64))


ID = "not an id (0 to 9,223,372,036,854,775,807)"


@pytest.mark.parametrize(
    "ids, message",
    [
        (changed(range(20), [3, 5], -1), "row 3 is -1, ids are 0 or larger (2 such rows)"),
        (changed(range(20), 4, 1.5, np.float64), f"row 4 is 1.5, {ID}"),
        (changed(range(20), 4, np.nan, np.float64), f"row 4 is nan, {ID}"),
        (changed(range(20), 6, 2**63, np.uint64), f"row 6 is 9223372036854775808, {ID}"),
        (changed(range(20), 6, 2.0**63, np.float64), f"row 6 is 9.223372036854776e+18, {ID}"),
    ],
)
def test_b11_bad_ids(rows, ids, message):
    refuse(rows, f"x.h5: ids: {message}", None, ids)


def test_b11_duplicates_name_the_first_five(rows):
    give = f"give every row its own id{rows.option}"
    refuse(rows, f"x.h5: ids: 7 stands more than once (1 such ids); {give}", None, changed(range(20), [1, 2], 7))
    ids = np.arange(20) // 2 * 10
    refuse(rows, f"x.h5: ids: 0, 10, 20, 30, 40 stand more than once (10 such ids); {give}", None, ids)


def test_b11_duplicates_when_allowed(rows):
    ids = np.arange(20) // 2
    with pytest.warns(ScqWarning) as caught:
        source = rows(None, ids, allow_duplicate_ids=True)
    assert [str(w.message) for w in caught] == ["x.h5: ids: 10 rows repeat an id"]
    with source:
        np.testing.assert_array_equal(source.ids, ids)
