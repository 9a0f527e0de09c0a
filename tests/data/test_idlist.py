"""Lists of ids as users give them."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from scqfaiss.data.idlist import read_ids
from scqfaiss.data.writing import write_rows
from scqfaiss.errors import ConfigError, DataError

MAX = 2**63 - 1


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "text, ids",
    [("7", [7]), ("1,2,3", [1, 2, 3]), ("1 , 2,  3", [1, 2, 3]), ("5,5,", [5, 5]), ("007", [7]), (str(MAX), [MAX])],
)
def test_ids_on_the_command_line(text, ids):
    found = read_ids(text)
    assert found.dtype == np.int64
    assert found.tolist() == ids


def test_what_looks_like_ids_is_never_a_file():
    """A file called 12 must not decide which rows `remove --ids 12` takes out."""
    Path("12").write_text("1 2")
    assert read_ids("12").tolist() == [12]
    assert read_ids("./12").tolist() == [1, 2]


@pytest.mark.parametrize("text", ["1 2 3", "1\n2\n3\n", "1,2,3", " 1,\t2\r\n3,", "\n\n1\n\n2 ,, 3"])
def test_text_files(text):
    Path("ids.txt").write_text(text)
    assert read_ids("ids.txt").tolist() == [1, 2, 3]
    assert read_ids(Path("ids.txt")).dtype == np.int64


def test_empty_text_is_an_empty_list():
    Path("ids.txt").write_text("")
    assert read_ids("ids.txt").shape == (0,)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int32, np.uint64, np.float32, ">i4"])
def test_arrays(dtype):
    np.save("ids.npy", np.array([3, 1, 3], dtype))
    assert read_ids("ids.npy").tolist() == [3, 1, 3]
    assert read_ids("ids.npy").dtype == np.int64
    os.rename("ids.npy", "IDS.NPY")
    assert read_ids("IDS.NPY").tolist() == [3, 1, 3]


def test_rows_stand_for_their_ids():
    x = np.zeros((3, 4), np.float32)
    with open("rows.h5", "x+b") as f:
        write_rows(f, x, ids=np.array([9, 4, MAX]))
    assert read_ids("rows.h5").tolist() == [9, 4, MAX]
    with open("bare.h5", "x+b") as f:
        write_rows(f, x)
    with pytest.raises(
        DataError, match=r"^bare\.h5 has no ids, and its row numbers are none; name their dataset 'ids'$"
    ):
        read_ids("bare.h5")
    with h5py.File("other.h5", "w") as f:
        f.create_dataset("features", data=x, fletcher32=True)
        f.create_dataset("numbers", data=[7, 8, 9], fletcher32=True)
    assert read_ids("other.h5", ids_key="numbers").tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    "text, message",
    [
        ("1 x 3", "ids.txt: entry 2 is 'x', needs an id (0 to 9,223,372,036,854,775,807)"),
        ("1 2.5", "ids.txt: entry 2 is '2.5', needs an id (0 to 9,223,372,036,854,775,807)"),
        ("-1", "ids.txt: entry 1 is '-1', needs an id (0 to 9,223,372,036,854,775,807)"),
        ("1 " + str(MAX + 1), f"ids.txt: entry 2 is '{MAX + 1}', needs an id (0 to 9,223,372,036,854,775,807)"),
        ("9" * 5000, f"ids.txt: entry 1 is '{'9' * 40}', needs an id (0 to 9,223,372,036,854,775,807)"),
        ("\u0661", "ids.txt: entry 1 is '\u0661', needs an id (0 to 9,223,372,036,854,775,807)"),
        ("1\0002", "ids.txt: entry 1 is '1\\x002', needs an id (0 to 9,223,372,036,854,775,807)"),
    ],
)
def test_text_that_holds_anything_else(text, message):
    Path("ids.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_ids("ids.txt")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "array, words",
    [
        (np.array([1, -1]), "ids.npy: row 1 is -1, ids are 0 or larger"),
        (np.array([1.5]), "ids.npy: row 0 is 1.5, not an id"),
        (np.array([2**63], np.uint64), "ids.npy: row 0 is 9223372036854775808, not an id"),
        (np.array([[1, 2]]), "ids.npy is (1, 2) int64"),
        (np.array(5), "ids.npy is () int64"),
        (np.array(["1"]), "ids.npy is (1,) <U1"),
        (np.array([True]), "ids.npy is (1,) bool"),
    ],
)
def test_arrays_that_hold_anything_else(array, words):
    np.save("ids.npy", array)
    with pytest.raises(DataError) as caught:
        read_ids("ids.npy")
    assert str(caught.value).startswith(words)


def test_arrays_cut_short_and_pickles():
    np.save("ids.npy", np.arange(100))
    data = Path("ids.npy").read_bytes()
    for part in (b"", data[:5], data[:60], data[:-3], b"1,2,3"):
        Path("ids.npy").write_bytes(part)
        with pytest.raises(DataError, match=r"^ids\.npy: not a readable \.npy array$"):
            read_ids("ids.npy")
    np.save("ids.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match=r"^ids\.npy: not a readable \.npy array$"):
        read_ids("ids.npy")


def test_files_that_are_not_there_or_are_none():
    os.mkdir("folder")
    os.mkfifo("fifo")
    for given in ("nope.txt", "", "-1", "1.5", "a\0b", "1;2", "x,1"):
        with pytest.raises(ConfigError, match="no such file"):
            read_ids(given)
    for given in ("folder", "fifo"):
        with pytest.raises(DataError, match="needs to be a regular file"):
            read_ids(given)
    Path("damaged.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(DataError, match=r"^damaged\.h5"):
        read_ids("damaged.h5")


@pytest.mark.parametrize("word", [MAX + 1, "x", -1, 1.5, "9" * 40])
def test_wrong_ids_on_the_command_line(word):
    text = ",".join(["17"] * 1000) + f",{word},3"
    with pytest.raises(
        DataError, match=rf"^ids: entry 1,001 is '{word}', needs an id \(0 to 9,223,372,036,854,775,807\)$"
    ):
        read_ids(text)
