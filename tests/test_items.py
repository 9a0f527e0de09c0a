"""Items: what an id means to a person, from three kinds of files, through SQLite, to the hits of a search."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import h5py
import numpy as np
import pytest
from conftest import blobs

import scqfaiss
from scqfaiss.cli import program
from scqfaiss.errors import ConfigError, DataError, IndexFileError, WriteError
from scqfaiss.items.opening import items_path, open_items
from scqfaiss.items.store import Items
from scqfaiss.model import Model

ROWS = [
    {"id": 7, "title": "Café, “crème”", "label": "cup", "image": "a/7.jpg", "price": 2.5},
    {"id": 3, "title": "Two\nlines", "label": None, "image": None, "price": None},
    {"id": 2**63 - 1, "title": None, "label": "cup", "image": "b.png", "price": 1.0},
]


def write(path, rows=ROWS):
    if path.suffix == ".csv":
        import csv

        with open(path, "w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def imported(path):
    with closing(open_items(path, path.with_name("g.faissindex"))) as items:
        return items.get([row["id"] for row in ROWS]), len(items)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_each_kind_of_file_says_the_same(tmp_path, ending):
    found, n = imported(write(tmp_path / f"items.{ending}"))
    want = [{key: value for key, value in row.items() if key not in ("id", "price")} for row in ROWS]
    for row, item in zip(ROWS, want):
        if row["price"] is not None:
            item["price"] = str(row["price"]) if ending == "csv" else row["price"]
    assert (found, n) == (want, 3)


def test_ids_without_an_item_are_none_and_repeated_ones_repeat(tmp_path):
    path = write(tmp_path / "items.csv", [{"id": i, "title": f"t{i}"} for i in range(1200)])
    with closing(open_items(path, tmp_path / "g")) as items:
        assert items.get([5, -1, 5, 2**63 - 1]) == [{"title": "t5", "label": None, "image": None}, None] * 2
        found = items.get(np.r_[np.arange(1199, -1, -1), 1200, 5])
        assert [item and item["title"] for item in found] == [f"t{i}" for i in range(1199, -1, -1)] + [None, "t5"]
        assert items.get([]) == [] and len(items) == 1200
        assert (
            items.some(5) == [0, 299, 599, 899, 1199] and items.some(1) == [0] and items.some(5000) == list(range(1200))
        )


def test_columns_of_a_list_of_images_will_do(tmp_path):
    (tmp_path / "list.csv").write_text("\ufeffpath,labels,ids,name\nx/1.png,cat;dog,1,One\n\n", encoding="utf-8")
    with closing(open_items(tmp_path / "list.csv", tmp_path / "g")) as items:
        assert items.get([1]) == [{"title": "One", "label": "cat;dog", "image": "x/1.png"}]
    (tmp_path / "list.jsonl").write_text('{"ids": 1, "labels": ["cat", 3]}\n{"id": "2", "more": {"a": [1, null]}}\n')
    with closing(open_items(tmp_path / "list.jsonl", tmp_path / "g")) as items:
        assert items.get([1, 2]) == [
            {"title": None, "label": "cat; 3", "image": None},
            {"title": None, "label": None, "image": None, "more": {"a": [1, None]}},
        ]


BAD = {
    "empty.csv": (b"", "is empty; its first line has to name the columns"),
    "no_id.csv": (b"a,b\n1,2\n", "line 1 has no 'id'; it has a, b"),
    "semicolons.csv": (b"id;title\n1;2\n", "line 1 has no 'id'; it has id;title; columns stand apart by commas"),
    "both.csv": (b"id,ids\n1,2\n", "line 1 has both 'id' and 'ids'; leave one of them out"),
    "twice.csv": (b"id,a,a\n1,2,3\n", "line 1 has 'a' twice"),
    "word.csv": (b"id\n1\nabc\n", "line 3: 'abc' is no id (0 to 9,223,372,036,854,775,807)"),
    "negative.csv": (b"id\n-1\n", "line 2: '-1' is no id"),
    "float.jsonl": (b'{"id": 1.5}\n', "line 1: 1.5 is no id"),
    "true.jsonl": (b'{"id": true}\n', "line 1: True is no id"),
    "huge.jsonl": (b'{"id": 9223372036854775808}\n', "line 1: 9223372036854775808 is no id"),
    "repeated.csv": (b"id,title\n5,a\n6,b\n5,c\n", "line 4: id 5 stands on an earlier line too; ids occur once"),
    "fields.csv": (b"id,title\n5\n", "line 2 has 1 fields, the header has 2"),
    "quote.csv": (b'id,title\n1,"a\n', "line 2 is no line of a CSV file"),
    "latin.csv": (b"id,title\n1,a\n2,caf\xe9\n", "line 3 is not UTF-8; save it as UTF-8"),
    "json.jsonl": (b'{"id": 1}\n{"id": 2\n', "line 2 is not a JSON object"),
    "key_twice.jsonl": (b'{"id": 1, "id": 2}\n', "line 1 is not a JSON object"),
    "no_id.jsonl": (b'{"id": 1}\n{"title": "a"}\n', "line 2 has no 'id'; it has title"),
    "nan.jsonl": (b'{"id": 1, "x": NaN}\n', "line 1: 'x' holds nan, which JSON cannot hold"),
    "half.jsonl": (b'{"id": 1, "title": "\\ud800"}\n', "is no text that Unicode knows"),
    "object.jsonl": (b'{"id": 1, "title": {}}\n', "line 1: title is {}, needs to be text"),
    "long.jsonl": (b'{"id": 1, "title": "%s"}\n' % (b"x" * 1001), "line 1: title has 1,001 characters, at most 1,000"),
    "one_line.csv": (b"id\n" + b"1" * (1 << 20) + b"1\n", "line 2 has more than 1,048,576 bytes"),
    "no.parquet": (b"PAR1 and no more", "is no Parquet file that can be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named_by_its_line_and_nothing_is_left(tmp_path, name):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        open_items(tmp_path / name, tmp_path / "g")
    assert message in str(error.value) and name in str(error.value)
    assert os.listdir(tmp_path) == [name]


def test_other_endings_and_missing_files(tmp_path):
    with pytest.raises(ConfigError, match=r"items are read from \.csv, \.jsonl, \.parquet and \.sqlite files"):
        open_items(tmp_path / "a.xlsx", tmp_path / "g")
    for name in ("a.csv", "a.sqlite"):
        with pytest.raises(ConfigError, match="no such file"):
            open_items(tmp_path / name, tmp_path / "g")


def test_parquet_without_pyarrow_says_what_to_type(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    code = "import sys; sys.modules['pyarrow'] = None\nfrom scqfaiss.items.opening import open_items\n"
    code += "try:\n    open_items('a.parquet', 'g')\nexcept Exception as e:\n    print(type(e).__name__, e)\n"
    code += "assert 'torch' not in sys.modules and 'faiss' not in sys.modules"
    path = os.pathsep.join(filter(None, (os.path.dirname(os.path.dirname(scqfaiss.__file__)), os.getenv("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    want = 'ConfigError a.parquet needs pyarrow, which is not installed: pip install "scqfaiss[arrow]"\n'
    assert done.stdout == want, done.stderr


def test_they_are_made_anew_only_where_the_file_changed(tmp_path):
    path = write(tmp_path / "items.csv", [{"id": 1, "title": "old"}])
    made = items_path(tmp_path / "g.faissindex")

    def title():
        with closing(open_items(path, tmp_path / "g.faissindex")) as items:
            return items.get([1])[0]["title"], made.stat().st_ino

    first = title()
    assert first[0] == "old" and title() == first
    os.utime(path, (1, 1))  # other times, the same bytes
    assert title() == first
    write(path, [{"id": 1, "title": "new"}])  # as long as before
    os.utime(path, (1, 1))
    second = title()
    assert second[0] == "new" and second[1] != first[1]
    made.write_bytes(made.read_bytes()[:5000])  # damaged: made anew
    assert title()[0] == "new"


def test_a_file_there_that_is_not_ours_stays(tmp_path):
    path, made = write(tmp_path / "items.csv"), items_path(tmp_path / "g")
    for content in (b"text", None):
        if content is None:
            made.unlink()
            with closing(sqlite3.connect(made)) as other:
                other.execute("CREATE TABLE items (id INTEGER PRIMARY KEY)")
        else:
            made.write_bytes(content)
        before = made.read_bytes()
        with pytest.raises(IndexFileError, match="is no file of items that scqfaiss made"):
            open_items(path, tmp_path / "g")
        assert made.read_bytes() == before


def test_forged_tables_newer_formats_and_damage_are_refused(tmp_path):
    path = write(tmp_path / "items.csv", [{"id": i, "title": "x" * 900} for i in range(50)])
    open_items(path, tmp_path / "g").close()
    whole = items_path(tmp_path / "g").read_bytes()
    bad = tmp_path / "bad.sqlite"
    for change, message in (
        ("CREATE TRIGGER t AFTER INSERT ON items BEGIN SELECT 1; END", "other tables"),
        ("PRAGMA user_version = 2", "is of format 2, this version reads 1"),
    ):
        bad.write_bytes(whole)
        with closing(sqlite3.connect(bad, isolation_level=None)) as other:
            other.execute(change)
        with pytest.raises(IndexFileError, match=message):
            Items(bad)
    for kept in (8192, 5 * 4096):  # the pages of the tables, and then some of the items
        bad.write_bytes(whole[:kept] + b"\xff" * (len(whole) - kept))
        with pytest.raises(IndexFileError, match="is damaged"), closing(Items(bad)) as items:
            items.get(range(50))


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    import scqfaiss.items.store as store

    real = store._empty

    def small(path):
        connection = real(path)
        connection.execute("PRAGMA max_page_count = 10")
        return connection

    monkeypatch.setattr(store, "_empty", small)
    path = write(tmp_path / "items.csv", [{"id": i, "title": "x" * 900} for i in range(2000)])
    with pytest.raises(WriteError, match=r"g\.items\.sqlite: no space left"):
        open_items(path, tmp_path / "g")
    assert os.listdir(tmp_path) == ["items.csv"]


def test_threads_and_a_fork_may_ask(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    path = write(tmp_path / "items.csv", [{"id": i, "title": f"t{i}"} for i in range(300)])
    with closing(open_items(path, tmp_path / "g")) as items:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda i: items.get([i])[0]["title"], range(300))) == [f"t{i}" for i in range(300)]
        process = os.fork()
        if process == 0:
            os._exit(0 if items.get([5])[0]["title"] == "t5" else 1)
        assert os.waitpid(process, 0)[1] == 0


# -------------------------------------------------------------------------------------------------------------- search
@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A gallery of 100 rows, queries, and items of all rows but one."""
    folder = tmp_path_factory.mktemp("shop")
    x, _ = blobs(100)
    model: Model = scqfaiss.train(x, method="pq", bits=8, nbits=4)
    model.save(folder / "m.safetensors")
    scqfaiss.export(model, x, path=folder / "g.faissindex")
    np.save(folder / "q.npy", x[:3])
    rows = [{"id": i, "title": f"Thing {i}", "label": f"kind {i % 4}"} for i in range(100) if i != 1]
    write(folder / "items.csv", rows)
    return folder


@pytest.mark.filterwarnings("ignore::scqfaiss.errors.ScqWarning")
def test_a_search_tells_titles_and_labels(shop, capsys, monkeypatch):
    monkeypatch.chdir(shop)
    search = ["search", "g.faissindex", "q.npy", "--model", "m.safetensors", "--items", "items.csv"]
    assert program.run([*search, "-k", "100", "-o", "hits.h5"]) == 0
    out = capsys.readouterr().out
    with h5py.File("hits.h5") as f:
        ids, titles, labels = f["ids"][:], f["titles"].asstr()[:], f["labels"].asstr()[:]
        scores = f["scores"][:]
    want = np.array([["" if i == 1 else f"Thing {i}" for i in row] for row in ids])
    assert (titles == want).all() and (
        labels == [["" if i == 1 else f"kind {i % 4}" for i in row] for row in ids]
    ).all()
    assert f"query 0\n  {ids[0, 0]:>10}  {scores[0, 0]:.4f}  Thing {ids[0, 0]}  |  kind {ids[0, 0] % 4}\n" in out
    assert program.run([*search, "--filter-ids", "1", "-k", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[1:3] == ["query 0", f"  {1:>10}  {scores[0][ids[0] == 1][0]:.4f}  -"]
    assert program.run([*search, "--threshold", "-1e9", "-o", "far.h5"]) == 0
    with h5py.File("far.h5") as f:
        assert f["labels"].shape == f["ids"].shape
        assert list(f["titles"].asstr()[:5]) == [f"Thing {i}" if i != 1 else "" for i in f["ids"][:5]]


def test_bad_items_stop_a_search_with_nothing_written(shop, capsys, monkeypatch):
    monkeypatch.chdir(shop)
    (shop / "bad.csv").write_text("id\n1\n1\n")
    search = ["search", "g.faissindex", "q.npy", "--model", "m.safetensors", "--items", "bad.csv", "-o", "none.h5"]
    assert program.run(search) == 3
    assert "Error: bad.csv: line 3: id 1 stands on an earlier line too" in capsys.readouterr().err
    assert not (shop / "none.h5").exists()
