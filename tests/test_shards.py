"""Galleries in several files: results as those of one, changes that touch few files, faults named before any search."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
import warnings
from functools import cache
from pathlib import Path

import faiss
import h5py
import numpy as np
import pytest
from contents import with_content
from life import IDS, OF_CONTENT, XQ, X, Y
from life import model as of_life

import scqfaiss
from scqfaiss.cli import program
from scqfaiss.data.joined import open_several
from scqfaiss.galleries.shards import opening
from scqfaiss.galleries.shards.manifest import Manifest, Shard, read_manifest, write_manifest
from scqfaiss.galleries.shards.merging import merge_hits, merge_ranges


@cache
def model(name):
    """As those of life.py, but without the training of OPQ, which takes seconds."""
    if name in ("product-8", "product-4"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", scqfaiss.ScqWarning)
            return scqfaiss.train(X, method="pq", bits=16, nbits=int(name[-1]))
    return with_content(model("product-8"), X, Y, M=OF_CONTENT) if name == "product-8 content" else of_life(name)


FORMS = [
    ("product-8", "ivfpq"),
    ("product-8", "buckets"),
    ("product-l2", "pq"),
    ("additive-4", "lift"),
    ("product-4", "fastscan"),
    ("product-l2 listed", "ivfpq"),
    ("product-8 content", "ivfpq"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The rows of X in one file and in three shards, a model that folds, and rows to append."""
    folder = tmp_path_factory.mktemp("shards")
    of_all = model("product-8")
    of_all.save(folder / "m.safetensors")
    scqfaiss.export(of_all, X, ids=IDS, path=folder / "one.faissindex")
    scqfaiss.export(of_all, X, ids=IDS, path=folder / "x.shards", shards=3)
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "d")
    monkeypatch.chdir(tmp_path / "d")
    return tmp_path / "d"


def names(folder="x.shards"):
    return sorted(os.listdir(folder))


def equal(D, I, D1, I1, ip):
    """Whether hits are the same: every score, and every id whose score is not that of the last place, in the order of ids."""
    assert np.allclose(D, D1, rtol=1e-5, atol=1e-5)
    for d, i, i1 in zip(D, I, I1):
        sure = np.abs(d - d[-1]) > 1e-4
        assert set(i[sure]) <= set(i1)
        order = np.lexsort((i, -d if ip else d))
        assert (order == np.arange(len(i))).all()


# ----------------------------------------------------------------------------------------------------------------- merging
def test_merged_hits_are_the_best_of_all():
    rng = np.random.default_rng(0)
    for metric in ("ip", "l2"):
        parts, everything = [], [[] for _ in range(4)]
        for s, k in enumerate((3, 1, 5)):
            D = rng.integers(0, 4, (4, k)).astype(np.float32)  # many ties
            I = 100 * s + rng.permuted(np.tile(np.arange(50), (4, 1)), axis=1)[:, :k]
            I[2, -1] = -1  # a place without a hit, whatever its score says
            parts.append((D, I))
            for q in range(4):
                everything[q] += [(d if metric == "l2" else -d, i) for d, i in zip(D[q], I[q]) if i >= 0]
        D, I = merge_hits(parts, 7, metric)
        for q in range(4):
            want = sorted(everything[q])[:7]
            assert [i for i in I[q] if i >= 0] == [i for _, i in want]
            assert [d for d, i in zip(D[q], I[q]) if i >= 0] == [d if metric == "l2" else -d for d, _ in want]
        assert (I[2] == -1).sum() == 1
    assert merge_hits([(np.ones((1, 2), np.float32), np.array([[3, 2]]))], 4, "ip")[1].tolist() == [[2, 3, -1, -1]]


def test_merged_ranges_are_those_of_all():
    parts = [
        (np.array([0, 2, 2]), np.array([5, 1], np.float32), np.array([7, 1])),
        (np.array([0, 1, 3]), np.array([5, 9, 9], np.float32), np.array([3, 8, 2])),
    ]
    lims, D, I = merge_ranges(parts, 2, "ip")
    assert (lims.tolist(), D.tolist(), I.tolist()) == ([0, 3, 5], [5, 5, 1, 9, 9], [3, 7, 1, 2, 8])


# ----------------------------------------------------------------------------------------------------------------- searching
@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("name, target", FORMS)
def test_shards_answer_as_one_gallery(tmp_path, name, target, mmap):
    of_all = model(name)
    scqfaiss.export(of_all, X, ids=IDS, path=tmp_path / "one.faissindex", target=target)
    scqfaiss.export(of_all, X, ids=IDS, path=tmp_path / "x.shards", target=target, rows_per_shard=150)
    one = scqfaiss.open(tmp_path / "one.faissindex", model=of_all)
    many = scqfaiss.open(tmp_path / "x.shards", model=of_all, mmap=mmap)
    assert [s.rows for s in many.manifest.shards] == [150, 150, 100] and many.ntotal == len(X)
    how = {} if one.every_list is None else {"nprobe": one.every_list}
    threads = faiss.omp_get_max_threads()
    try:
        for n in (1, 2):
            faiss.omp_set_num_threads(n)
            equal(*many.search(XQ, 12, **how), *one.search(XQ, 12, **how), of_all.codebooks.metric == "ip")
    finally:
        faiss.omp_set_num_threads(threads)
    assert (many.exact, many.every_list, many.d, many.index_d) == (one.exact, one.every_list, one.d, one.index_d)
    if target not in ("fastscan", "pq"):
        allow = IDS[::40]
        D, I = many.search(XQ, 12, allow=allow, **how)
        assert (I[:, :10] >= 0).all() and (I[:, 10:] == -1).all() and set(I[:, :10].ravel()) <= set(allow)
        beyond = float(np.median(one.search(XQ, 30, **how)[0]))
        lims, D, I = many.range_search(XQ, beyond)
        assert np.array_equal(lims, one.range_search(XQ, beyond)[0])
        assert np.allclose(D, one.range_search(XQ, beyond)[1], rtol=1e-5, atol=1e-5)
    some = IDS[[399, 3, 200]]
    assert np.array_equal(many.reconstruct(some), one.reconstruct(some))
    assert sorted(many.ids()) == sorted(IDS)
    codes, ids = many.unpack()[1:]
    order = one.unpack()[2].argsort()
    assert np.array_equal(codes[ids.argsort()], one.unpack()[1][order])


def test_every_shard_is_a_plain_faiss_file(made):
    for file in sorted((made / "x.shards").glob("*.faissindex")):
        assert faiss.read_index(str(file)).search(XQ, 3)[1].shape == (9, 3)


def test_the_manifest_is_as_the_format_page_says(made):
    values = json.loads((made / "x.shards" / "manifest.json").read_text())
    told = values.pop("sha256")
    assert hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest() == told
    assert values["rows_per_shard"] == 134 and values["metadata"]["n"] == 400
    i = 0
    for shard in values["shards"]:
        data = (made / "x.shards" / shard["name"]).read_bytes()
        assert data[-40:-8].hex() == shard["sha256"] == hashlib.sha256(data[:-40]).hexdigest()
        ids, j = IDS[i : i + shard["rows"]], i + shard["rows"]
        assert shard["ids"] == [ids[0], ids[-1]]
        length = int.from_bytes(data[-48:-40], "little")
        card = json.loads(data[-56 - length : -56])
        of_rows = X[i:j].astype("<f4").tobytes() + ids.astype("<i8").tobytes() + (16).to_bytes(8, "little")
        assert card["rows_sha256"] == hashlib.sha256(of_rows).hexdigest()
        i = j


def test_a_sharded_gallery_is_asked_like_any_other(here):
    many = scqfaiss.open("x.shards")
    assert many.search(np.zeros((0, 16), np.float32), 3)[1].shape == (0, 3)
    with pytest.warns(scqfaiss.ScqWarning, match="k=500 is more than the 400 vectors of x.shards"):
        I = many.search(XQ, 500)[1]
    assert I.shape == (9, 400) and (np.sort(I, 1) == IDS).all()
    for wrong, message in (
        (lambda: many.search(XQ[:, :4]), "queries have d=4, x.shards needs d=16"),
        (lambda: many.search(XQ, 0), "k is 0"),
        (lambda: many.search(XQ, nprobe=0), "nprobe is 0"),
        (lambda: many.range_search(XQ, float("nan")), "threshold is nan"),
        (lambda: many.search(XQ, known=0.5), "known is given"),
        (lambda: many.reconstruct([5, 6, 7]), r"ids 6, 7 are not in x.shards \(2 of 3\)"),
    ):
        with pytest.raises(scqfaiss.ScqError, match=message):
            wrong()
    with pytest.raises(scqfaiss.ConfigError, match="was made by"):
        scqfaiss.open("x.shards", model=model("product-4"))
    again = pickle.loads(pickle.dumps(many))
    assert np.array_equal(again.search(XQ)[1], many.search(XQ)[1])


def test_id_ranges_that_interleave_are_compared_in_parts(monkeypatch):
    monkeypatch.setattr(opening, "SORTED_AT_A_TIME", 10)
    ids = [np.arange(0, 60, 3), np.arange(1, 60, 3), np.arange(100, 110), np.arange(2, 60, 3)]
    ranges = [(int(a.min()), int(a.max())) for a in ids]
    opening.check_repeats(list("abcd"), ranges, lambda s: [ids[s]])
    ids[3] = np.append(ids[3], 4)
    with pytest.raises(scqfaiss.IndexFileError, match=r"^d: id 4 stands in b too"):
        opening.check_repeats(list("abcd"), ranges, lambda s: [ids[s][:7], ids[s][7:]])


# ----------------------------------------------------------------------------------------------------------------- writing
def rows_file(path, i, j, ids=True):
    with h5py.File(path, "w") as f:
        f["features"] = X[i:j]
        if ids:
            f["ids"] = IDS[i:j]


def test_rows_in_many_files(here, capsys):
    os.mkdir("rows")
    for s in range(4):
        rows_file(f"rows/{s}.h5", 100 * s, 100 * s + 100)
    assert program.run(["export", "m.safetensors", "rows", "-o", "y.shards", "--shards", "3"]) == 0
    for name in names():  # the same rows in one piece make the same bytes
        assert Path("x.shards", name).read_bytes() == Path("y.shards", name).read_bytes()
    assert program.run(["export", "m.safetensors", "rows/[01].h5", "rows/2.h5", "rows/3.h5", "-o", "y.faissindex"]) == 0
    assert Path("y.faissindex").read_bytes() == Path("one.faissindex").read_bytes()
    np.save("a.npy", X[:150])
    np.save("b.npy", X[150:])
    with open_several(["a.npy", "b.npy"], skip_bad_rows=True) as joined:
        assert np.array_equal(joined.ids, np.arange(400)) and np.array_equal(joined.read(140, 160), X[140:160])
    capsys.readouterr()
    rows_file("rows/4.h5", 0, 5)
    np.save("rows/5.npy", X[:5, :4])
    for given, message in (
        (["rows/*.h5"], "ids"),
        (["rows/0.h5", "a.npy"], "rows/0.h5 has ids, a.npy has none; give all files ids, or none"),
        (["a.npy", "rows/5.npy"], "rows/5.npy has d=4, a.npy has d=16; they do not go together"),
        (["a.npy", "a.npy"], "a.npy is given twice"),
        (["none*.h5"], "none*.h5: no file matches"),
    ):
        assert program.run(["export", "m.safetensors", *given, "-o", "z.shards", "--shards", "2"]) in (2, 3)
        assert message in capsys.readouterr().err
        assert not os.path.exists("z.shards")


def test_a_shard_that_is_there_is_not_built_again(here, monkeypatch):
    before = {name: os.stat(f"x.shards/{name}").st_ino for name in names()}
    whole = {name: Path("x.shards", name).read_bytes() for name in names()}
    again = lambda **more: scqfaiss.export("m.safetensors", X, ids=IDS, path="x.shards", shards=3, **more)  # noqa: E731
    again()
    assert {n for n in names() if os.stat(f"x.shards/{n}").st_ino != before[n]} == {"manifest.json"}
    # Killed before the manifest, and a shard damaged meanwhile: that one alone is built.
    os.unlink("x.shards/manifest.json")
    Path("x.shards/shard-00001.faissindex").write_bytes(whole["shard-00001.faissindex"][:-100])
    Path("x.shards/shard-00002.faissindex.tmp-99").write_bytes(b"half")
    again()
    assert {n: Path("x.shards", n).read_bytes() for n in names()} == whole
    # Other rows, or other options, are other shards: they take other names until the manifest names them.
    scqfaiss.export("m.safetensors", X + 1, ids=IDS, path="x.shards", shards=3)
    assert names() == ["manifest.json", *(f"shard-0000{s}-1.faissindex" for s in range(3))]
    again(target="pq")
    assert scqfaiss.open("x.shards").target == "pq"


def test_append_fills_the_last_shard_and_begins_others(here, capsys):
    rng = np.random.default_rng(0)
    more = X[:240] + rng.standard_normal((240, 16)).astype(np.float32) / 10
    scqfaiss.append("x.shards", more[:100], ids=np.arange(5000, 5100))  # the last one is full
    assert names()[-1] == "shard-00003.faissindex"
    assert scqfaiss.append("x.shards", more[100:]) == 640
    assert [s.rows for s in read_manifest("x.shards").shards] == [133, 133, 134, 134, 106]
    assert names() == ["manifest.json", *(f"shard-0000{s}.faissindex" for s in (0, 1, 2)), "shard-00003-1.faissindex",
                       "shard-00004.faissindex"]  # fmt: skip
    scqfaiss.append("one.faissindex", more, ids=np.arange(5000, 5240))
    equal(*scqfaiss.open("x.shards").search(XQ, 9), *scqfaiss.open("one.faissindex").search(XQ, 9), True)
    before = names()
    for wrong in ({"ids": [IDS[3]]}, {"ids": [5003]}, {"model": model("product-4")}):
        with pytest.raises(scqfaiss.ScqError, match=r"already in x.shards|was made by"):
            scqfaiss.append("x.shards", more[:1], **wrong)
    assert names() == before
    assert program.run(["remove", "x.shards", "--ids", ",".join(map(str, [5001, 5239, 5239, 1]))]) == 0
    assert "x.shards: 2 vectors removed, 1 ids were not there, 638 left" in capsys.readouterr().out
    assert names()[4:] == ["shard-00003-2.faissindex", "shard-00004-1.faissindex"]
    assert scqfaiss.remove("x.shards", IDS[:133]) == (133, 505)  # a shard without rows goes
    assert "shard-00000.faissindex" not in names()
    with pytest.raises(scqfaiss.DataError, match="nothing would be left"):
        scqfaiss.remove("x.shards", scqfaiss.open("x.shards").ids())


def test_killed_between_shard_and_manifest(here, monkeypatch):
    """Whatever is written before the manifest changes nothing; the next change removes it."""
    from scqfaiss.galleries.shards import editing

    I = scqfaiss.open("x.shards").search(XQ)[1]

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(editing, "write_manifest", die)
        with pytest.raises(KeyboardInterrupt):
            scqfaiss.remove("x.shards", IDS[:3])
    assert "shard-00000-1.faissindex" in names()
    assert np.array_equal(scqfaiss.open("x.shards").search(XQ)[1], I)
    scqfaiss.remove("x.shards", IDS[-3:])
    assert names()[1:] == ["shard-00000.faissindex", "shard-00001.faissindex", "shard-00002-1.faissindex"]


def test_one_writer_at_a_time(here):
    from scqfaiss.files import atomic_write

    whole = names()
    with atomic_write("x.shards/manifest.json", what="changed"):
        for work in (
            lambda: scqfaiss.remove("x.shards", IDS[:3]),
            lambda: scqfaiss.append("x.shards", X[:3]),
            lambda: scqfaiss.export("m.safetensors", X, path="x.shards", shards=2),
        ):
            with pytest.raises(scqfaiss.WriteError, match="is being changed by pid"):
                work()
    assert names() == whole


ENDLESS = """
import numpy as np, scqfaiss
x = np.load("x.npy")
print("begun", flush=True)
while True:
    scqfaiss.append("x.shards", x[:50], ids=np.arange(50) + 10_000)
    scqfaiss.remove("x.shards", np.arange(50) + 10_000)
"""


@pytest.mark.slow
def test_kill_9_while_shards_change(here):
    """At any moment the folder is a gallery of the rows before, or of those after; the next change removes what is left over."""
    np.save("x.npy", X)
    rng = np.random.default_rng(0)
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE)
        assert child.stdout.readline() == b"begun\n"
        time.sleep(rng.uniform(0, 0.6))
        child.kill()
        child.communicate()
        gallery = scqfaiss.open("x.shards")
        assert gallery.ntotal in (400, 450) and len(set(gallery.ids())) == gallery.ntotal
        scqfaiss.remove("x.shards", [10_000, 10_001])  # where they are there
        scqfaiss.remove("x.shards", np.arange(50) + 10_000)
    scqfaiss.append("x.shards", X[:1])
    manifest = read_manifest("x.shards")
    assert names() == ["manifest.json", *sorted(shard.name for shard in manifest.shards)]


def test_merge_makes_one_file(here):
    assert program.run(["merge", "x.shards", "-o", "y.faissindex"]) == 0
    assert Path("y.faissindex").read_bytes() == Path("one.faissindex").read_bytes()
    assert program.run(["merge", "x.shards", "one.faissindex", "-o", "z.faissindex"]) == 3


def test_refresh_opens_what_changed(here):
    many = scqfaiss.open("x.shards")
    parts = many._opened.parts
    assert many.refresh() is False
    scqfaiss.remove("x.shards", IDS[-3:])
    assert many.refresh() is True and many.ntotal == 397
    assert [a is b for a, b in zip(parts, many._opened.parts)] == [True, True, False]
    os.unlink("x.shards/shard-00000.faissindex")
    scqfaiss.export(model("product-4"), X, path="y.shards", shards=2)
    shutil.copytree("y.shards", "x.shards", dirs_exist_ok=True)
    many.model = model("product-8")
    with pytest.raises(scqfaiss.ConfigError, match="was made by"):
        many.refresh()
    assert len(many.search(XQ)[0]) == 9


def test_commands_take_shards(here, capsys):
    rows_file("q.h5", 0, 5)
    for command, said in (
        (["info", "x.shards"], "shard-00001.faissindex: 133 rows, ids 404 to 800"),
        (["verify", "x.shards"], "x.shards: valid, 400 vectors in 3 shards, checksums and manifest agree"),
        (["search", "x.shards", "q.h5", "-k", "3", "--mmap"], "5 queries, 3 hits each"),
        (["evaluate", "x.shards", "q.h5", "db.h5", "--json"], '"search_agreement": 1.0'),
        (["export", "m.safetensors", "q.h5", "-o", "v.shards", "--dry-run", "--shards", "2"], "2 files: about"),
    ):
        if command[0] == "evaluate":
            with h5py.File("q.h5", "a") as f, h5py.File("db.h5", "w") as g:
                f["labels"], f["ids"][...] = np.zeros(5, int), 9000 + np.arange(5)
                g["features"], g["labels"], g["ids"] = X, np.zeros(400, int), IDS
        assert program.run(command) == 0
        assert said in capsys.readouterr().out
    assert program.run(["info", "x.shards", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shards"][2]["ids"] == [801 + 2, 1202]
    for wrong, message in (
        (["--shards", "2", "--rows-per-shard", "3"], "not both"),
        (["--shards", "0"], "shards is 0, needs 1 to 5"),
        (["--shards", "9"], "shards is 9, needs 1 to 5"),
        (["--rows-per-shard", "0"], "rows-per-shard is 0"),
    ):
        assert program.run(["export", "m.safetensors", "q.h5", "-o", "v.shards", *wrong]) == 2
        assert message in capsys.readouterr().err and not os.path.exists("v.shards")
    assert program.run(["export", "m.safetensors", "q.h5", "-o", "v.faissindex", "--shards", "2"]) == 2
    assert "ends in .shards" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------------- faults
def forged(change, folder="x.shards"):
    """The manifest with other shards, under a sound checksum."""
    from scqfaiss.files import atomic_write

    m = read_manifest(folder)
    shards = change(list(m.shards))
    made = Manifest({**m.metadata, "n": sum(s.rows for s in shards)}, m.rows_per_shard, tuple(shards))
    with atomic_write(f"{folder}/manifest.json") as output:
        write_manifest(output, made)


def second(name, data):
    Path("x.shards/shard-00001.faissindex").write_bytes(data(Path(name).read_bytes()))


def twice(shards):
    return [*shards, Shard("shard-00009.faissindex", shards[0].rows, shards[0].ids, shards[0].sha256)]


def repeated():
    """A shard that holds ids of another."""
    scqfaiss.export("m.safetensors", X[133:266], ids=IDS[130:263], path="r.shards", shards=1)
    shutil.copy("r.shards/shard-00000.faissindex", "x.shards/shard-00001.faissindex")
    (other,) = read_manifest("r.shards").shards
    forged(lambda s: [s[0], Shard("shard-00001.faissindex", 133, other.ids, other.sha256), s[2]])


def of_another_model():
    scqfaiss.export(model("product-4"), X[133:266], ids=IDS[133:266], path="o.faissindex")
    second("o.faissindex", lambda b: b)


SECOND = "x.shards/shard-00001.faissindex"
FAULTS = {
    "damaged": (lambda: second(SECOND, lambda b: b[:500] + bytes([b[500] ^ 1]) + b[501:]), f"{SECOND}: checksum mismatch"),
    "cut off": (lambda: second(SECOND, lambda b: b[:-50]), f"{SECOND}: "),
    "missing": (lambda: os.unlink(SECOND), f"{SECOND}: is missing"),
    "another's": (lambda: second("x.shards/shard-00000.faissindex", lambda b: b), f"{SECOND}: ids is 5 to 401"),
    "of another model": (of_another_model, f"{SECOND}: (model_sha256|nbits|method)"),
    "listed twice": (lambda: forged(lambda s: [*s, s[1]]), "manifest.json: shard-00001.faissindex is listed twice;"),
    "listed twice by content": (lambda: forged(twice), "shard-00009.faissindex is listed twice, as shard-00000"),
    "repeated ids": (repeated, f"{SECOND}: id 395 stands in x.shards/shard-00000.faissindex too"),
    "no manifest": (lambda: os.unlink("x.shards/manifest.json"), "x.shards: has no manifest.json"),
    "a manifest changed": (
        lambda: Path("x.shards/manifest.json").write_text(Path("x.shards/manifest.json").read_text().replace("133", "134", 1)),
        "manifest.json: checksum mismatch",
    ),
    "no JSON": (lambda: Path("x.shards/manifest.json").write_text("{"), "manifest.json: is not a JSON object"),
    "newer": (lambda: Path("x.shards/manifest.json").write_text('{"format": 2}'), "made by a newer scqfaiss: format 2"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_shard_is_named_before_the_first_search(here, fault, capsys):
    make, message = FAULTS[fault]
    if fault.startswith("listed twice"):
        with pytest.raises(scqfaiss.IndexFileError, match=message):
            make()
            scqfaiss.open("x.shards")
    else:
        make()
        with pytest.raises(scqfaiss.IndexFileError, match=message):
            scqfaiss.open("x.shards")
    for command in (["verify", "x.shards"], ["info", "x.shards"]):
        assert program.run(command) == 3
    if fault not in ("repeated ids",):
        assert program.run(["merge", "x.shards", "-o", "bad.faissindex"]) in (2, 3)
    assert "Traceback" not in capsys.readouterr().err and not os.path.exists("bad.faissindex")


def test_a_name_that_leads_elsewhere_is_refused(here):
    text = Path("x.shards/manifest.json").read_text().replace("shard-00001.faissindex", "../one.faissindex")
    Path("x.shards/manifest.json").write_text(text)
    with pytest.raises(scqfaiss.IndexFileError, match=r"a shard is called \.\./one.faissindex"):
        scqfaiss.open("x.shards")
