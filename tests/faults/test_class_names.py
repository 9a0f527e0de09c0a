"""Classes of one file that meet those of another: matched by name, by number, or by place with a warning; never in silence."""

import csv
import json
import os
import unicodedata
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest

from scqfaiss.arrays import Labels
from scqfaiss.data import classes, open_rows
from scqfaiss.data.writing import write_rows
from scqfaiss.errors import ConfigError, DataError, ScqWarning
from scqfaiss.evaluation.galleries import evaluate
from scqfaiss.evaluation.ranking import measure_vectors, same_classes
from scqfaiss.options import TrainOptions
from scqfaiss.training.planning import make_plan

from .conftest import TINY, blobs, write_h5

NFC, NFD = "caf\u00e9", "cafe\u0301"


def labels(y, names=None, C=None):
    y = np.asarray(y)
    return Labels(y, C or (len(names) if names else int(y.max()) + 1), names and tuple(names))


def told(found):
    """Each row's classes by name."""
    return [[found.class_name(int(c)) for c in np.flatnonzero(row)] for row in found.multi_hot()]


# -------------------------------------------------------------------------------------------------------------- names
def test_numbers_are_sorted_by_value_and_text_as_text():
    assert classes.in_order(["10", "9", "0", "11", "2"]) == ["0", "2", "9", "10", "11"]
    assert classes.in_order(["010", "9", "0"]) == ["0", "9", "010"]
    assert classes.in_order(["10", "9", "x"]) == ["10", "9", "x"]
    assert classes.in_order(["9" * 30, "1" + "0" * 30, "-1"]) == ["-1", "1" + "0" * 30, "9" * 30]


def test_what_is_one_name():
    assert classes.class_key(NFC) == classes.class_key(NFD)
    assert classes.class_key("007") == classes.class_key("7") != classes.class_key("70")
    assert classes.class_key("000") == classes.class_key("0")
    assert classes.class_key("\u0663") != classes.class_key("3")  # an Arabic digit is a letter like any other here


NUMBERS = ("0", "1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9")  # as older files of features name them
TOGETHER = {
    "numbers meet numbers as text": (([2, 10, 11], None), ([0, 2, 4], NUMBERS), [["2"], ["10"], ["11"]]),
    "numbers with gaps": (([0, 7, 2], None), ([0, 1, 2], ("0", "2", "7")), [["0"], ["7"], ["2"]]),
    "leading zeros": (([0, 1], ("00", "01")), ([0, 1], ("1", "0")), [["0"], ["1"]]),
    "leading zeros and numbers": (([12, 3], None), ([0, 1], ("03", "12")), [["12"], ["03"]]),
    "another order": (([0, 1], ("cat", "dog")), ([0, 1, 2], ("ant", "dog", "cat")), [["cat"], ["dog"]]),
    "letters composed otherwise": (([0], (NFD,)), ([0, 1], ("ant", NFC)), [[NFC]]),
}


@pytest.mark.parametrize("case", TOGETHER)
@pytest.mark.parametrize("multilabel", [False, True])
def test_queries_are_numbered_as_the_database(case, multilabel):
    (y, names), (yb, names_b), want = TOGETHER[case]
    a, b = labels(y, names), labels(yb, names_b)
    if multilabel:
        a, b = (Labels(x.multi_hot(), x.C, x.class_names) for x in (a, b))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScqWarning)
        a, again = classes.together(a, b, "q", "db")
    assert (again is b, a.C, a.multilabel, a.class_names, told(a)) == (True, b.C, multilabel, names_b, want)


def test_a_database_of_numbers_meets_queries_of_some_named_ones():
    a, b = classes.together(labels([0, 1], ("2", "10")), labels([0, 2, 5, 10]), "q", "db")
    assert told(a) == [["2"], ["10"]] and told(b) == [["0"], ["2"], ["5"], ["10"]]
    assert a.class_names == b.class_names and a.C == b.C == 4


def test_numbers_among_names_are_places_and_said_to_be():
    said = r"^q numbers its classes, db names them: 0 is taken for 'cat', 2 is taken for 'dog'$"
    with pytest.warns(ScqWarning, match=said):
        a, _ = classes.together(labels([2, 0]), labels([0], ("cat", "deer", "dog")), "q", "db")
    assert told(a) == [["dog"], ["cat"]]
    with pytest.warns(ScqWarning, match="^db numbers its classes, q names them: 0 is taken for 'cat'$"):
        _, b = classes.together(labels([0], ("cat", "deer")), labels([0]), "q", "db")
    assert told(b) == [["cat"]]


def test_numbers_that_might_be_places_among_numbers():
    said = (
        "^q numbers its classes, db names them by numbers: 1 is taken for the class named '1', not for '2' at place 1$"
    )
    with pytest.warns(ScqWarning, match=said):
        a, _ = classes.together(labels([1, 2]), labels([0], ("1", "2", "3")), "q", "db")
    assert told(a) == [["1"], ["2"]]


@pytest.mark.parametrize(
    "y, names, names_b, said",
    [
        (
            [0, 3],
            None,
            ("cat", "deer", "dog"),
            "q numbers its classes, up to 3, db names 3 (cat, deer, dog): which class is 3?",
        ),
        ([0, 3], None, ("0", "1", "2"), "q: class '3' is unknown here, where classes are 0, 1, 2"),
        (
            [0],
            ("cats",),
            ("cat", "dog"),
            "q: class 'cats' is unknown here, where classes are cat, dog; did you mean 'cat'?",
        ),
        ([0], ("1",), ("cat", "dog"), "q: class '1' is unknown here, where classes are cat, dog"),
        ([0], ("1",), ("1", "01"), "q: classes cannot be told apart by name, some share one"),
    ],
)
def test_what_does_not_match_is_refused(y, names, names_b, said):
    with pytest.raises(ConfigError) as caught:
        classes.together(labels(y, names), labels([0], names_b), "q", "db")
    assert str(caught.value).startswith(said)


def test_a_number_beyond_the_names_of_queries():
    with pytest.raises(
        ConfigError, match=r"^db numbers its classes, up to 9, q names 2 \(cat, deer\): which class is 9\?"
    ):
        classes.together(labels([0], ("cat", "deer")), labels([9]), "q", "db")


def test_both_without_names_stay_as_they_are():
    a, b = same_classes(labels([5, 0]), labels([1]), "q")
    assert (a.C, b.C, a.y.tolist(), b.y.tolist()) == (6, 6, [5, 0], [1])


def test_names_meet_numbers_that_stay():
    """As --start and --validation do, where a training without names knew its classes by number."""
    found = classes.unnamed(labels([1, 0, 2], ("10", "2", "0")), "new", "the model")
    assert (found.y.tolist(), found.C, found.class_names) == ([2, 10, 0], 11, None)
    found = classes.unnamed(Labels(np.eye(2, dtype=np.uint8), 2, ("3", "0")), "new", "the model")
    assert found.y.tolist() == [[0, 0, 0, 1], [1, 0, 0, 0]]
    with pytest.warns(ScqWarning, match="^the model numbers its classes, new names them: 0 is taken for 'cat'$"):
        assert classes.unnamed(labels([0, 0], ("cat", "dog")), "new", "the model").y.tolist() == [0, 0]
    with pytest.raises(
        ConfigError, match=r"^new: class '20261125' is no class number \(0 to 1,048,575\) of the model$"
    ):
        classes.unnamed(labels([0], ("20261125",)), "new", "the model")


def test_the_python_interface_matches_names_too():
    """Rows of the class 'b' are the only near ones; numbers alone would call them 'a'."""
    z = np.eye(3, dtype=np.float32)
    found = measure_vectors(z[1:2], labels([0], ("b",)), z, labels([0, 1, 2], ("a", "b", "c")))
    assert found["map"] == 1.0
    with pytest.raises(ConfigError, match="class 'x' is unknown here"):
        measure_vectors(z[1:2], labels([0], ("x",)), z, labels([0, 1, 2], ("a", "b", "c")))


# --------------------------------------------------------------------------------------------------------- files of rows
def renamed(path, y, names, out, **how):
    with h5py.File(path) as f:
        x, ids = f["features"][...], f["ids"][...]
    with open(out, "xb") as f:
        write_rows(f, x, y, ids, names)


def test_evaluate_rows_by_value(run, here):
    """Classes 0..3 under the names 0, 10, 2, 20: numbers mean these, whatever their places."""
    value, n = np.array([0, 10, 2, 20]), 200
    renamed("database.h5", np.arange(n) % 4, ("0", "10", "2", "20"), "named.h5")
    renamed("query.h5", value[np.arange(20) % 4], None, "numbers.h5")
    ask = ["evaluate", "g.faissindex", "--model", "m.safetensors", "--json"]
    want = json.loads(run(*ask, "query.h5", "database.h5").out)["map"]
    found = run(*ask, "numbers.h5", "named.h5")
    assert (found.code, json.loads(found.out)["map"]) == (0, want)
    assert not [line for line in found.warnings if "numbers its classes" in line]
    renamed("database.h5", value[np.arange(n) % 4], None, "numbered.h5")
    renamed("query.h5", np.arange(20) % 4, ("00", "10", "02", "20"), "words.h5")
    assert json.loads(run(*ask, "words.h5", "numbered.h5").out)["map"] == want
    renamed("query.h5", np.arange(20) % 4, None, "places.h5")
    found = run(*ask, "places.h5", "named.h5")
    assert (found.code, found.error[:40]) == (2, "Error: places.h5: class '1', '3' is unkn")


def test_evaluate_rows_by_place_is_said(run, here):
    renamed("database.h5", np.arange(200) % 4, ("cat", "deer", "dog", "emu"), "named.h5")
    ask = ["evaluate", "g.faissindex", "--model", "m.safetensors", "--json"]
    found = run(*ask, "query.h5", "named.h5")
    assert json.loads(found.out)["map"] == json.loads(run(*ask, "query.h5", "database.h5").out)["map"]
    assert "query.h5 numbers its classes, named.h5 names them: 0 is taken for 'cat', 1 is taken for 'deer'" in found.err
    renamed("query.h5", np.arange(20) % 5, None, "beyond.h5")
    found = run(*ask, "beyond.h5", "named.h5")
    assert (found.code, "which class is 4?" in found.error) == (2, True)
    renamed("query.h5", np.arange(20) % 4, ("cat", "deer", "d\u00f6g", "emu"), "c.h5")
    renamed("database.h5", np.arange(200) % 4, ("cat", "deer", "do\u0308g", "emu"), "d.h5")
    assert run(*ask, "c.h5", "d.h5").code == 0
    found = run(*ask, "c.h5", "named.h5")
    assert (found.code, found.error) == (2, "Error: class 2 is 'd\u00f6g' in c.h5 and 'dog' in named.h5")


def test_validation_rows(here, run):
    x, y = blobs(60, seed=5)
    write_h5("names.h5", x, y, names=["a", "b", "c", "d"])
    write_h5("swapped.h5", x, y, names=["b", "a", "c", "d"])
    write_h5("value.h5", *blobs(60, seed=6), names=["3", "2", "1", "0"])
    write_h5("five.h5", x, np.arange(60) % 5)
    train = ["train", "--method", "scq", *TINY, "--dry-run", "-o", "o.safetensors"]
    found = run(*train, "names.h5", "--validation", "swapped.h5")
    assert (found.code, found.error) == (2, "Error: class 0 is 'b' in swapped.h5 and 'a' in names.h5")
    assert (
        "train.h5 numbers its classes, names.h5 names them: 0 is taken for 'a'"
        in run(*train, "train.h5", "--validation", "names.h5").err
    )
    assert "which class is 4?" in run(*train, "names.h5", "--validation", "five.h5").error
    with open_rows("train.h5") as source, open_rows("value.h5") as held:
        make_plan(TrainOptions(bits=8, nbits=4, encoder="linear"), source, held)
        assert held.labels.y.tolist() == (3 - np.arange(60) % 4).tolist()


# -------------------------------------------------------------------------------------------------------------- images
@pytest.fixture
def images(tmp_path, monkeypatch):
    pytest.importorskip("PIL")
    from PIL import Image

    monkeypatch.chdir(tmp_path)

    def make(folder, *names):
        for k, name in enumerate(names):
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (k, 0, 0)).save(path)

    return make


def listed(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as f:
        csv.writer(f).writerows([("path", "labels"), *rows])


def test_class_folders_that_are_numbers(images):
    images("db", *(f"{c}/x{c}.png" for c in range(12)))
    images("gaps", "07/a.png", "00/b.png", "2/c.png")
    with open_rows("db") as source:
        assert source.labels.class_names == tuple(map(str, range(12)))
        assert [source.names[k] for k in np.flatnonzero(source.labels.y == 2)] == ["2/x2.png"]
    with open_rows("gaps") as source:
        assert source.labels.class_names == ("00", "2", "07")
        assert source.labels.y.tolist() == [0, 2, 1]
    images("gaps", "7/d.png")
    with pytest.raises(DataError, match="gaps: class folders 07 and 7 are one number; rename one"):
        open_rows("gaps")


def test_a_list_of_numbers_meets_class_folders(images):
    images("db", *(f"{c}/x{c}.png" for c in (0, 2, 7, 10)))
    listed("q.csv", [(f"db/{c}/x{c}.png", c) for c in (7, 10, 2)])
    for first, second in (("q.csv", "db"), ("db", "q.csv")):
        with open_rows(first) as a, open_rows(second) as b:
            classes.align(a, b)
            q, db = (a, b) if first == "q.csv" else (b, a)
            assert told(q.labels) == [["7"], ["10"], ["2"]]
            assert told(db.labels) == [[name.split("/")[0]] for name in db.names]
            assert q.labels.class_names == db.labels.class_names
    listed("q.csv", [("db/0/x0.png", 1)])
    with (
        open_rows("q.csv") as a,
        open_rows("db") as b,
        pytest.raises(ConfigError, match=r"^q\.csv: class '1' is unknown"),
    ):
        classes.align(a, b)


def test_a_list_of_numbers_meets_names(images):
    images("db", "cat/a.png", "dog/b.png")
    listed("q.csv", [("db/cat/a.png", 1)])
    with open_rows("q.csv") as a, open_rows("db") as b, pytest.warns(ScqWarning, match="1 is taken for 'dog'$"):
        classes.align(a, b)
        assert told(a.labels) == [["dog"]]


def test_lists_of_many_numbers_end_where_they_end(images):
    """The largest number in a list says nothing of the classes there are."""
    images("p", "a.png", "b.png")
    listed("q.csv", [("p/a.png", "0;2"), ("p/b.png", "1")])
    listed("db.csv", [("p/a.png", "0;5"), ("p/b.png", "1")])
    with open_rows("q.csv") as a, open_rows("db.csv") as b:
        classes.align(a, b)
        assert a.labels.C == b.labels.C == 6
    with open_rows("q.csv") as a, open_rows("db.csv") as b:
        classes.align_to(a, b)
        assert (a.labels.C, b.labels.C) == (6, 6)


def test_folders_of_one_name_in_two_forms_of_unicode(images):
    images("p", f"{NFC}/a.png", f"{NFD}/b.png", "ant/c.png")
    if len(os.listdir("p")) < 3:
        pytest.skip("this file system has one form of names")
    said = f"^p: two folders are called {NFC}, in two forms of Unicode; they are taken as one class$"
    with pytest.warns(ScqWarning, match=said), open_rows("p") as source:
        assert source.labels.class_names == ("ant", NFC)
        assert sorted(source.labels.y.tolist()) == [0, 1, 1]
    listed("l.csv", [(f"p/{NFC}/a.png", NFC), (f"p/{NFD}/b.png", NFD)])
    with open_rows("l.csv") as source:
        assert (source.labels.class_names, source.labels.y.tolist()) == ((NFC,), [0, 0])
        assert unicodedata.is_normalized("NFC", source.labels.class_names[0])


def test_evaluate_images_by_number(images, run):
    """From folders named by numbers to a list of numbers: 2 is '2', as its own folder says."""
    import images as drawn

    import scqfaiss

    model = drawn.model()
    model.save("m.safetensors")
    drawn.photos(Path("db"), each=2)
    for old, new in zip(drawn.COLOURS, ("2", "10", "11")):
        os.rename(f"db/{old}", f"db/{new}")
    os.rename("db/2/p0.png", "db/2/p9.png")
    names = sorted(f"{c}/{name}" for c in ("2", "10", "11") for name in os.listdir(f"db/{c}"))
    listed("q.csv", [(f"db/{name}", name.split("/")[0]) for name in names])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScqWarning)
        scqfaiss.export(model, drawn.network().features(decoded("db")), path="g.faissindex")
    ask = ["evaluate", "g.faissindex", "--model", "m.safetensors", "--json"]
    want, found = run(*ask, "db", "db"), run(*ask, "q.csv", "db")
    assert (want.code, found.code) == (0, 0), found.err
    assert json.loads(found.out)["map"] == json.loads(want.out)["map"]
    back = run(*ask, "db", "q.csv")
    assert json.loads(back.out)["map"] == json.loads(want.out)["map"]


def decoded(path):
    from images import SIZE

    with open_rows(path) as source:
        source.shaped(SIZE, "crop")
        return source.read(0, len(source))


def test_labels_given_to_evaluate_by_name(here):
    import scqfaiss

    gallery = scqfaiss.open("g.faissindex", model="m.safetensors")
    yb = blobs(200, seed=1)[1]
    xq, yq = blobs(20, seed=2)
    names = ("a", "b", "c", "d")
    want = evaluate(gallery, xq, yq, np.arange(200) + 1000, yb)["map"]
    turned = labels(3 - yq, names[::-1])
    assert evaluate(gallery, xq, turned, np.arange(200) + 1000, labels(yb, names))["map"] == want
