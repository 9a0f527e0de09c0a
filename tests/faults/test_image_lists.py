"""Folders and lists of images as other systems and programs leave them: taken where they mean one thing, else refused."""

import io
import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from scqfaiss.data import open_rows
from scqfaiss.errors import ConfigError, DataError, ScqWarning

NFC, NFD = "caf\u00e9", "cafe\u0301"
quietly = pytest.mark.filterwarnings("ignore::scqfaiss.errors.ScqWarning")


def encoded(k=0):
    f = io.BytesIO()
    Image.new("RGB", (4, 4), (k, 0, 0)).save(f, "PNG")
    return f.getvalue()


def put(name, data=None):
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    with open(name, "wb") as f:
        f.write(encoded() if data is None else data)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png", "17.jpg", "18.jpg", "sub/c.png"):
        put(name)
    put("bad.png", b"no image")


def listed(name, text, form="utf-8"):
    put(name, text.encode(form))
    return name


def refused(name, text, error=DataError, **options):
    listed(name, text)
    with pytest.raises(error) as caught:
        open_rows(name, **options)
    return str(caught.value)


# ------------------------------------------------------------------------------------- what is told once bad files are out
@quietly
@pytest.mark.parametrize("bad", ["Thumbs.db", "note.txt", "x.jpg", "sub/y.jpg"])
def test_ids_are_the_names_of_the_images_kept(bad):
    for name in ("17.jpg", "18.jpg", "40.jpg"):
        put(f"p/{'sub/' if bad.startswith('sub') else ''}{name}")
    put(f"p/{bad}", b"no image")
    with open_rows("p", skip_bad_rows=True) as source:
        assert (source.ids.tolist(), source.has_ids) == ([17, 18, 40], True)


def test_ids_of_a_list_are_its_names():
    with open_rows(listed("l.csv", "path\n18.jpg\n./17.jpg\n")) as source:
        assert (source.ids.tolist(), source.has_ids) == ([18, 17], True)
    with open_rows(listed("l.jsonl", '{"path": "18.jpg"}\n{"path": "a.png"}\n')) as source:
        assert (source.ids.tolist(), source.has_ids) == ([0, 1], False)
    with open_rows(listed("l.csv", "path,id\n18.jpg,3\n17.jpg,5\n")) as source:
        assert source.ids.tolist() == [3, 5]


@quietly
def test_what_a_bad_image_says_is_left_out_with_it():
    """Its id, its class, its name of a class where others have numbers, its several labels where others have one."""

    def left(text):
        with open_rows(listed("l.csv", text), skip_bad_rows=True) as source:
            return source.ids.tolist(), source.labels.y.tolist(), source.labels.C, source.labels.class_names

    assert left("path,labels,id\na.png,1,5\nbad.png,7,5\nb.png,0,6\n") == ([5, 6], [1, 0], 2, None)
    assert left("path,labels\na.png,1\nbad.png,zz\nb.png,0\n") == ([0, 2], [1, 0], 2, None)
    assert left("path,labels\na.png,1\nbad.png,0;9\nb.png,0\n") == ([0, 2], [1, 0], 2, None)
    assert left("path,labels\na.png,x\nbad.png,w\nb.png,y\n") == ([0, 2], [0, 1], 2, ("x", "y"))
    assert left("path,labels\na.png,0;1\nbad.png,9\nb.png,0\n") == ([0, 2], [[1, 1], [1, 0]], 2, None)
    with pytest.raises(DataError, match="5 stands more than once"):
        open_rows(listed("l.csv", "path,id\na.png,5\nbad.png,6\nb.png,5\n"), skip_bad_rows=True)


@quietly
def test_classes_of_images_in_hdf5_are_those_kept():
    data = [encoded(), b"no image", encoded()]
    with h5py.File("p.h5", "w") as f:
        images = f.create_dataset("images", (3,), h5py.vlen_dtype(np.uint8))
        for k, one in enumerate(data):
            images[k] = np.frombuffer(one, np.uint8)
        f["labels"], f["ids"] = [1, 900, 0], [5, 6, 7]
    with open_rows("p.h5", skip_bad_rows=True) as source:
        assert (source.labels.C, source.labels.y.tolist(), source.ids.tolist()) == (2, [1, 0], [5, 7])


# --------------------------------------------------------------------------------------------------- labels in other forms
ROWS_OF_ONES = [
    (
        "l.jsonl",
        '{"path": "a.png", "labels": [2]}\n{"path": "b.png", "labels": [0, 1, 0]}\n',
        "line 2: labels 0, 1, 0",
        "(1)",
    ),
    ("l.jsonl", '{"path": "a.png", "labels": [0.0, 0.0]}\n', "line 1: labels 0, 0", "(none)"),
    ("l.jsonl", '{"path": "a.png", "labels": [1, 1, 0, 1]}\n', "line 1: labels 1, 1, 0, 1", "(0, 1, 3)"),
    ("l.csv", "path,labels\na.png,0;0;1\n", "line 2: labels 0, 0, 1", "(2)"),
]


@pytest.mark.parametrize("name, text, where, ones", ROWS_OF_ONES)
def test_rows_of_zeros_and_ones_are_no_class_numbers(name, text, where, ones):
    message = refused(name, text)
    assert message.startswith(f"{name}: {where} hold ")
    assert message.endswith(f"a row of zeros and ones is written as the numbers of its ones {ones}")


def test_a_repeated_class_number():
    assert refused("l.csv", "path,labels\na.png,7;3;7\n") == (
        "l.csv: line 2: labels 7, 3, 7 hold 7 more than once; give each class number once"
    )


def test_rows_of_zeros_and_ones_of_two_classes():
    two = '{"path": "a.png", "labels": [0, 1]}\n{"path": "b.png", "labels": [1, 0]}\n'
    assert refused("l.jsonl", two).startswith(
        "l.jsonl: all labels are 0, 1 (line 1) and 1, 0 (line 2): as class numbers"
    )
    with pytest.warns(ScqWarning, match=r"^l\.jsonl: all images have the labels 0, 1: taken as classes 0 and 1$"):
        open_rows(listed("l.jsonl", two.replace("[1, 0]", "[0, 1]")))
    for fine in (two.split("\n")[0], two + '{"path": "17.jpg", "labels": [1]}'):  # a query; no matrix
        with open_rows(listed("l.jsonl", fine)) as source:
            assert source.labels.y[0].tolist() == [1, 1]


@pytest.mark.parametrize(
    "label, held", [("a|b", "'|'"), ("0,1", "','"), ("0 1", "a blank between numbers"), ("a\tb", "a tab")]
)
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_what_may_stand_between_labels_is_named(label, held, ending):
    text = f'path,labels\na.png,x\nb.png,"{label}"\n'
    if ending == "jsonl":
        text = "\n".join(json.dumps({"path": p, "labels": [name]}) for p, name in (("a.png", "x"), ("b.png", label)))
    with pytest.warns(ScqWarning) as caught:
        open_rows(listed(f"l.{ending}", text))
    (said,) = [str(w.message) for w in caught]
    assert f"; 1 such) holds {held} and is taken as one class; several labels are " in said


def test_names_of_several_words_are_names():
    with open_rows(listed("l.csv", "path,labels\na.png,polar bear\nb.png,7 days;x\n")) as source:
        assert source.labels.class_names == ("7 days", "polar bear", "x")


def test_one_number_in_two_forms_is_no_two_classes():
    text = '{"path": "a.png", "labels": "07"}\n{"path": "b.png", "labels": "7"}\n'
    assert refused("l.jsonl", text) == "l.jsonl: labels '07' and '7' are one number; write it in one way"
    with open_rows(listed("l.csv", "path,labels\na.png,07\nb.png,7\n")) as source:
        assert source.labels.y.tolist() == [7, 7]


def test_one_image_on_several_lines_is_named():
    text = "path,labels\na.png,x\nb.png,y\n./a.png,y\nsub/../b.png,x\n"
    said = (
        r"^l\.csv: 2 images stand on more than one line \(a\.png on lines 2 and 4, b\.png on lines 3 and 5\): each line counts "
        "as an image of its own; several labels of one image belong on one line$"
    )
    with pytest.warns(ScqWarning, match=said), open_rows(listed("l.csv", text)) as source:
        assert len(source) == 4


# ------------------------------------------------------------------------------------------------------- of other systems
def test_paths_of_windows():
    put("x\\y.png", encoded(9))  # here a name like any other
    with open_rows(listed("l.csv", "path\nsub\\c.png\n.\\a.png\nx\\y.png\n")) as source:
        source.prove()
        assert source.names == ["sub/c.png", "./a.png", "x\\y.png"]
    for path in ("C:\\p\\c.png", "d:/p/c.png", "\\\\host\\p\\c.png"):
        message = refused("l.csv", f"path\na.png\n{path}\n", skip_bad_rows=True)
        assert message == f"l.csv: line 3: {path} is a path of Windows; write paths relative to the folder of the list"


def test_paths_in_another_form_of_unicode():
    put(f"{NFD}/1.png")
    with open_rows(listed("l.csv", f"path\n{NFC}/1.png\n")) as source:
        source.prove()


def test_what_systems_leave_in_folders_is_passed_over():
    for name in ("cat/1.png", "dog/2.png", "cat/deep/3.png"):
        put(f"p/{name}")
    for name in (
        *(
            "__MACOSX/cat/._1.png",
            "cat/._1.png",
            ".DS_Store",
            "Thumbs.db",
            "cat/Thumbs.db",
            "dog/desktop.ini",
            "DESKTOP.INI",
        ),
        *("@eaDir/1.png", "cat/@eaDir/1.png", "$RECYCLE.BIN/x", "System Volume Information/y"),
    ):
        put(f"p/{name}", b"no image")
    with open_rows("p") as source:
        source.prove()
        assert (source.names, source.labels.class_names) == (
            ["cat/1.png", "cat/deep/3.png", "dog/2.png"],
            ("cat", "dog"),
        )
        assert source.ids.tolist() == [1, 3, 2]


@pytest.mark.parametrize("form", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_lists_that_begin_with_a_byte_order_mark(form):
    mark = "\ufeff" if form == "utf-16-be" else ""
    with open_rows(listed("l.csv", f"{mark}path,labels,id\na.png,{NFC},5\n", form)) as source:
        assert (source.ids.tolist(), source.labels.class_names) == ([5], (NFC,))
    lines = ['{"path": "a.png", "id": 5}', '{"path": "b.png", "id": 6}']
    text = mark + ("\n\ufeff" if form == "utf-8-sig" else "\n").join(lines)  # two such files one behind the other
    with open_rows(listed("l.jsonl", text, form)) as source:
        assert source.ids.tolist() == [5, 6]


def test_a_list_that_is_not_what_it_begins_as():
    put("l.csv", b"\xff\xfep\0a\0t")
    with pytest.raises(DataError, match=r"^l\.csv begins as UTF-16 and is not; save it as UTF-8$"):
        open_rows("l.csv")


@pytest.mark.parametrize("text, skip", [("0.1,0.2\n0.3,0.4\n", ""), ("x0,x1,label\n0.1,-2e3,7\n", ", skiprows=1")])
def test_a_csv_of_numbers_is_no_list_of_images(text, skip, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "PIL", None)  # which is not what is missing
    assert refused("l.csv", text).endswith(
        "; a .csv lists images, of numbers make rows: "
        f"python -c \"import numpy; numpy.save('l.npy', numpy.loadtxt('l.csv', delimiter=','{skip}))\""
    )


def test_columns_that_stand_apart_otherwise():
    for mark in ";\t|":
        assert refused("l.csv", f"path{mark}labels\na.png{mark}x\n").endswith("; columns stand apart by commas")


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".JPG", ".mpo", ".dib", ".apng"])
def test_endings_of_sound_images(ending):
    put(f"x{ending}")
    with open_rows(f"x{ending}") as source:
        source.prove()
    Path("x.heic").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"ending '\.heic' is unknown"):
        open_rows("x.heic")


def test_nothing_heavy_is_imported_before_a_request_is_known_to_be_possible(tmp_path):
    import subprocess
    import sys

    code = """
import sys
from scqfaiss.data import open_rows
from scqfaiss.errors import ScqError
for path in ("x.heic", "no.jpg", "no/", "numbers.csv", "no.csv"):
    try:
        open_rows(path)
    except ScqError:
        continue
    sys.exit(path)
print(*sorted({"torch", "faiss", "PIL", "h5py", "sklearn"} & set(sys.modules)))
"""
    listed("numbers.csv", "0.1,0.2\n0.3,0.4\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr
