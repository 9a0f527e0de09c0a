"""Rows that come and go after the export, and galleries that are joined, in every target."""

import shutil
import threading
from pathlib import Path

import faiss
import numpy as np
import pytest
from life import IDS, LISTED, MODELS, XQ, X, all_rows, assert_same, cases, export, model, opened

import scqfaiss
from scqfaiss import files, footer
from scqfaiss.errors import ConfigError, DataError, IndexFileError, WriteError
from scqfaiss.galleries import editing
from scqfaiss.galleries.exporting import SUFFIX
from scqfaiss.targets.ids import behind_ids

GOLDEN = Path(__file__).parent / "golden"
NEW = slice(370, 400)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files.os, "fsync", lambda _: None)  # hundreds of small files
    yield tmp_path
    assert [p.name for p in tmp_path.iterdir() if ".tmp-" in p.name or p.name.endswith(".lock")] == []


@pytest.fixture
def unchanged():
    """After the test g.faissindex is as it is after the call."""
    held = []
    yield lambda: held.append(Path("g.faissindex").read_bytes())
    assert held and Path("g.faissindex").read_bytes() == held[-1]


def centroids(path, name):
    gallery = opened(path, name)
    return faiss.extract_index_ivf(gallery.index).quantizer.reconstruct_n()


@pytest.mark.parametrize("name, target, options", cases())
def test_appended_rows_stand_as_if_exported_with_the_others(name, target, options):
    export(name, "g.faissindex", slice(370), target, **options)
    export(name, "all.faissindex", slice(400), target, **options)
    lists = centroids("g.faissindex", name) if target == "ivfpq" else None
    assert scqfaiss.append("g.faissindex", X[NEW], ids=IDS[NEW], model=model(name)) == 400
    assert_same("g.faissindex", "all.faissindex", name, options)
    if target == "ivfpq":
        np.testing.assert_array_equal(centroids("g.faissindex", name), lists)
    metadata = scqfaiss.open("g.faissindex", model=model(name)).metadata
    assert metadata == scqfaiss.open("all.faissindex", model=model(name)).metadata


@pytest.mark.parametrize("name, target, options", cases())
def test_removed_rows_are_as_if_never_exported(name, target, options):
    export(name, "g.faissindex", slice(400), target, **options)
    export(name, "few.faissindex", slice(370), target, **options)
    absent = [0, 1, 2**63 - 1]
    assert scqfaiss.remove("g.faissindex", [*IDS[NEW], *absent, IDS[399]]) == (30, 370)
    assert_same("g.faissindex", "few.faissindex", name, options)
    # Their ids are free again.
    assert scqfaiss.append("g.faissindex", X[NEW], ids=IDS[NEW], model=model(name)) == 400
    export(name, "all.faissindex", slice(400), target, **options)
    assert_same("g.faissindex", "all.faissindex", name, options)


@pytest.mark.parametrize("name, target, options", cases())
def test_shards_merged_equal_one_export(name, target, options):
    export(name, "all.faissindex", slice(400), target, **options)
    rows = (slice(150), slice(150, 380), slice(380, 400))
    for number, part in enumerate(rows):
        export(name, f"{number}.faissindex", part, target, **options)
    assert scqfaiss.merge([f"{number}.faissindex" for number in range(3)], "g.faissindex") == 400
    assert_same("g.faissindex", "all.faissindex", name, options)
    if target == "ivfpq":
        np.testing.assert_array_equal(centroids("g.faissindex", name), centroids("0.faissindex", name))
    # Two of them, over a gallery that is there.
    export(name, "few.faissindex", slice(380), target, **options)
    assert scqfaiss.merge(["0.faissindex", "1.faissindex"], "g.faissindex") == 380
    assert_same("g.faissindex", "few.faissindex", name, options)


@pytest.mark.slow
@pytest.mark.parametrize("name, target, options", [case for case in cases() if "-4" in case.values[0]])
def test_a_long_life_does_not_drift(name, target, options):
    """4-bit codebooks stand merged in pairs; taken apart and joined again and again they stay what they were."""
    export(name, "g.faissindex", slice(300), target, **options)
    for _ in range(2):
        scqfaiss.append("g.faissindex", X[300:350], ids=IDS[300:350], model=model(name))
        scqfaiss.remove("g.faissindex", IDS[300:350])
        export(name, "shard.faissindex", slice(350, 400), target, **options)
        scqfaiss.merge(["g.faissindex", "shard.faissindex"], "both.faissindex")
        scqfaiss.remove("both.faissindex", IDS[350:400])
        shutil.copy("both.faissindex", "g.faissindex")
    export(name, "all.faissindex", slice(300), target, **options)
    assert_same("g.faissindex", "all.faissindex", name, options)
    D, _ = all_rows("g.faissindex", name)
    m = model(name)
    want = m.codebooks.scores(m.embed(XQ), m.encode(X[:300]))
    if options != {"refine": -1}:
        np.testing.assert_allclose(D, want, rtol=1e-4, atol=1e-4)


def test_lists_stay_when_few_rows_do():
    export("product-8", "g.faissindex", slice(400), "ivfpq", nlist=8)
    lists = centroids("g.faissindex", "product-8")
    assert scqfaiss.remove("g.faissindex", IDS[2:]) == (398, 2)
    np.testing.assert_array_equal(centroids("g.faissindex", "product-8"), lists)
    assert scqfaiss.append("g.faissindex", X[2:], ids=IDS[2:]) == 400
    export("product-8", "all.faissindex", slice(400), "ivfpq", nlist=8)
    assert_same("g.faissindex", "all.faissindex", "product-8", {"nlist": 8})


def test_options_of_the_export_stay():
    export("product-4", "g.faissindex", slice(300), "fastscan", refine=3)
    scqfaiss.append("g.faissindex", X[300:], ids=IDS[300:])
    gallery = scqfaiss.open("g.faissindex")
    assert behind_ids(gallery.index).k_factor == 3
    export("product-8", "g.faissindex", slice(300), "ivfpq", nlist=16, nprobe=5)
    scqfaiss.remove("g.faissindex", IDS[:10])
    gallery = scqfaiss.open("g.faissindex")
    assert faiss.extract_index_ivf(gallery.index).nprobe == 5


def test_rows_without_ids_are_numbered_on():
    export("product-8", "g.faissindex", slice(300))
    assert scqfaiss.append("g.faissindex", X[300:]) == 400
    _, _, ids = scqfaiss.open("g.faissindex").unpack()
    np.testing.assert_array_equal(ids, [*IDS[:300], *range(IDS[299] + 1, IDS[299] + 101)])
    scqfaiss.remove("g.faissindex", [IDS[299] + 100])
    scqfaiss.append("g.faissindex", X[:1])
    assert scqfaiss.open("g.faissindex").unpack()[2].max() == IDS[299] + 100


def test_numbers_run_out(unchanged):
    scqfaiss.export(model("product-8"), X[:3], ids=[1, 2, 2**63 - 2], path="g.faissindex")
    unchanged()
    words = r"^g\.faissindex holds id 9223372036854775806, no 2 numbers follow it; give ids$"
    with pytest.raises(DataError, match=words):
        scqfaiss.append("g.faissindex", X[:2])


def test_ids_that_are_taken(unchanged):
    export("product-8", "g.faissindex", slice(400))
    unchanged()
    rows = np.repeat(X, 3, axis=0)[:1000]
    ids = np.arange(10_000, 11_000)
    ids[17::80] = IDS[30:43][::-1]
    words = r"^ids 95, 98, 101, 104, 107 are already in g\.faissindex \(13 of 1,000\); remove them first$"
    with pytest.raises(DataError, match=words):
        scqfaiss.append("g.faissindex", rows, ids=ids)
    with pytest.raises(DataError, match=r"^xb: ids: 7 stands more than once"):
        scqfaiss.append("g.faissindex", X[:2], ids=[7, 7])


def test_rows_that_cannot_be_appended(unchanged):
    export("product-8", "g.faissindex", slice(400))
    unchanged()
    with pytest.raises(ConfigError, match=r"^xb: rows have d=15, g\.faissindex needs d=16$"):
        scqfaiss.append("g.faissindex", X[:, :15])
    with pytest.raises(DataError, match=r"^xb holds 0 rows, nothing to append$"):
        scqfaiss.append("g.faissindex", X[:0])
    with pytest.raises(DataError, match=r"^xb: row 1, column 0 is NaN"):
        scqfaiss.append("g.faissindex", np.where(np.arange(64).reshape(4, 16) == 16, np.nan, X[:4]))
    with pytest.raises(DataError, match=r"^xb: ids is \(3,\) int64, needs \(4,\) int64"):
        scqfaiss.append("g.faissindex", X[:4], ids=np.arange(3))
    with pytest.raises(ConfigError, match=r"^nope\.faissindex: no such file$"):
        scqfaiss.append("nope.faissindex", X)


def test_another_model_is_refused(unchanged):
    export("additive-8", "g.faissindex", slice(400))
    unchanged()
    other, own = model("additive-4").sha256[:12], model("additive-8").sha256[:12]
    words = rf"^the model is {other}, g\.faissindex was made by {own}; give that model$"
    with pytest.raises(ConfigError, match=words):
        scqfaiss.append("g.faissindex", X, ids=IDS + 10_000, model=model("additive-4"))
    model("additive-4").save("other.safetensors")
    with pytest.raises(ConfigError, match=words):
        scqfaiss.append("g.faissindex", X, ids=IDS + 10_000, model="other.safetensors")


@pytest.mark.parametrize("name", [*MODELS, *LISTED])
def test_the_model_is_asked_for_only_where_the_file_does_not_say_enough(name, here):
    export(name, "g.faissindex", slice(370), "residual" if name == "additive-l2" else None)
    old = Path("g.faissindex").read_bytes()
    if name.startswith("product"):
        assert scqfaiss.append("g.faissindex", X[NEW], ids=IDS[NEW]) == 400
        export(name, "all.faissindex", slice(400))
        assert Path("g.faissindex").read_bytes() == Path("all.faissindex").read_bytes()
        return
    words = rf"^g\.faissindex: new rows need the model its codes came from \({model(name).sha256[:12]}\); give --model$"
    with pytest.raises(ConfigError, match=words):
        scqfaiss.append("g.faissindex", X[NEW], ids=IDS[NEW])
    assert Path("g.faissindex").read_bytes() == old
    model(name).save("m.safetensors")
    assert scqfaiss.append("g.faissindex", X[NEW], ids=IDS[NEW], model="m.safetensors") == 400


def test_galleries_of_version_0_1_take_rows_with_their_model():
    shutil.copy(GOLDEN / "ivfpq_folded.faissindex", "g.faissindex")
    gallery = scqfaiss.open("g.faissindex")
    n, d = gallery.ntotal, gallery.d
    m = scqfaiss.Model.load(GOLDEN / "model_folded.safetensors")
    if "rule" not in gallery.metadata:
        with pytest.raises(ConfigError, match="new rows need the model its codes came from"):
            scqfaiss.append("g.faissindex", np.ones((1, d), np.float32))
    assert scqfaiss.append("g.faissindex", np.ones((1, d), np.float32), model=m) == n + 1
    assert scqfaiss.open("g.faissindex").search(np.ones((2, d), np.float32), n + 1)[1].shape == (2, n + 1)


def test_nothing_to_remove_changes_nothing(unchanged):
    export("product-8", "g.faissindex", slice(400))
    unchanged()
    assert scqfaiss.remove("g.faissindex", [1, 2, 3]) == (0, 400)
    assert scqfaiss.remove("g.faissindex", []) == (0, 400)


def test_a_gallery_is_never_emptied(unchanged):
    export("product-8", "g.faissindex", slice(400))
    unchanged()
    words = r"^g\.faissindex: nothing would be left; delete the file instead$"
    with pytest.raises(DataError, match=words):
        scqfaiss.remove("g.faissindex", IDS)
    with pytest.raises(DataError, match=words):
        scqfaiss.remove("g.faissindex", np.arange(5000))


@pytest.mark.parametrize("ids", [[-1], [1.5], [2**64], ["a"], [[1]], "1,2", [2**63], np.array([1, 2**63], np.uint64)])
def test_bad_ids_remove_nothing(unchanged, ids):
    export("product-8", "g.faissindex", slice(400))
    unchanged()
    with pytest.raises(DataError, match=r"^ids"):
        scqfaiss.remove("g.faissindex", ids)


def test_an_id_that_stands_twice_goes_as_a_whole():
    from scqfaiss.data import ArraySource
    from scqfaiss.files import atomic_write
    from scqfaiss.galleries.exporting import encode_for, write

    with pytest.warns(scqfaiss.ScqWarning, match="1 rows repeat an id"):
        source = ArraySource(X[:4], ids=[7, 8, 7, 9], allow_duplicate_ids=True)
    with atomic_write("g.faissindex") as output:
        write(output, *encode_for(model("product-8"), source, output, None, {}, lambda *_: None))
    export("product-8", "other.faissindex", slice(10, 20))
    assert scqfaiss.merge(["g.faissindex", "other.faissindex"], "both.faissindex") == 14  # twice in one is not in two
    assert scqfaiss.remove("g.faissindex", [7]) == (2, 2)


def test_merge_refuses_what_does_not_belong_together(unchanged):
    export("product-8", "g.faissindex", slice(200))
    export("product-8", "next.faissindex", slice(150, 400))
    export("product-8", "pq.faissindex", slice(200, 400), "pq")
    export("product-4", "other.faissindex", slice(200, 400))
    unchanged()
    words = r"^ids 455, 458, 461, 464, 467 stand in more than one of the galleries \(50 such ids\)$"
    with pytest.raises(DataError, match=words):
        scqfaiss.merge(["g.faissindex", "next.faissindex"], "out.faissindex")
    with pytest.raises(ConfigError, match=r"^pq\.faissindex has target pq, g\.faissindex has ivfpq$"):
        scqfaiss.merge(["g.faissindex", "pq.faissindex"], "out.faissindex")
    with pytest.raises(ConfigError, match=r"^other\.faissindex has model_sha256 \w{12}, g\.faissindex has \w{12}$"):
        scqfaiss.merge(["g.faissindex", "other.faissindex"], "out.faissindex")
    with pytest.raises(ConfigError, match=r"^a merge needs at least 2 galleries$"):
        scqfaiss.merge(["g.faissindex"], "out.faissindex")
    with pytest.raises(DataError, match="stand in more than one"):
        scqfaiss.merge(["g.faissindex", "g.faissindex"], "out.faissindex")
    with pytest.raises(ConfigError, match=r"^g\.faissindex is an input of this command; choose another output$"):
        scqfaiss.merge(["g.faissindex", "next.faissindex"], "g.faissindex")
    with pytest.raises(ConfigError, match=r"^nope\.faissindex: no such file$"):
        scqfaiss.merge(["g.faissindex", "nope.faissindex"], "out.faissindex")
    with pytest.raises(ConfigError, match="galleries end in"):
        scqfaiss.merge(["g.faissindex", "next.faissindex"], "out.index")
    assert not Path("out.faissindex").exists()


def test_damaged_and_foreign_files_are_not_edited(here):
    export("product-8", "g.faissindex", slice(400))
    data = bytearray(Path("g.faissindex").read_bytes())
    faiss.write_index(scqfaiss.open("g.faissindex").index, "plain.faissindex")
    data[len(data) // 2] ^= 1
    Path("damaged.faissindex").write_bytes(data)
    for name, words in (("plain", "no checksum"), ("damaged", "checksum mismatch")):
        path = f"{name}.faissindex"
        old = Path(path).read_bytes()
        for edit in (
            lambda path=path: scqfaiss.append(path, X),
            lambda path=path: scqfaiss.remove(path, [1]),
            lambda path=path: scqfaiss.merge(["g.faissindex", path], "out.faissindex"),
        ):
            with pytest.raises(IndexFileError, match=f"^{name}.faissindex: {words}"):
                edit()
        assert Path(path).read_bytes() == old
    assert not Path("out.faissindex").exists()


@pytest.mark.parametrize(
    "change",
    [{"model_sha256": None}, {"model_sha256": 5}, {"method": None}, {"options": "x"}, {"options": {"nlist": 1 << 60}}]
    + [{"options": o} for o in ({"nprobe": -3}, {"refine": 1}, {"nlist": 2.5}, {"more": 1}, [1], 7)],
)
def test_cards_that_lie(change):
    """A metadata with a sound hash, as whoever can write the file can make it."""
    export("product-8", "g.faissindex", slice(400))
    gallery = scqfaiss.open("g.faissindex")
    metadata = {k: v for k, v in ({**gallery.metadata, **change}).items() if v is not None}
    with files.atomic_write("g.faissindex", suffix=SUFFIX) as output:
        output.write(
            lambda f: footer.write_sealed(f, lambda put: put(faiss.serialize_index(gallery.index).tobytes()), metadata)
        )
    for edit in (lambda: scqfaiss.append("g.faissindex", X[:1]), lambda: scqfaiss.remove("g.faissindex", [5])):
        words = (
            "g.faissindex: the metadata says options=.*, which no export writes$"
            if "options" in change
            else "does not say|needs a SHA-256"
        )
        with pytest.raises(IndexFileError, match=words):
            edit()


def test_two_edits_at_once_are_kept_apart(monkeypatch):
    """The second finds the lock; what the first did is whole."""
    export("product-8", "g.faissindex", slice(300))
    entered, go = threading.Event(), threading.Event()
    real = editing.encode_source

    def slow(*arguments):
        entered.set()
        assert go.wait(20)
        return real(*arguments)

    monkeypatch.setattr(editing, "encode_source", slow)
    first = threading.Thread(target=scqfaiss.append, args=("g.faissindex", X[300:]), kwargs={"ids": IDS[300:]})
    first.start()
    assert entered.wait(20)
    try:
        for edit in (
            lambda: scqfaiss.append("g.faissindex", X[:5]),
            lambda: scqfaiss.remove("g.faissindex", [5]),
            lambda: export("product-8", "g.faissindex", slice(5)),
        ):
            with pytest.raises(WriteError, match=r"^g\.faissindex is being changed by pid \d+$"):
                edit()
    finally:
        go.set()
        first.join()
    export("product-8", "all.faissindex", slice(400))
    assert Path("g.faissindex").read_bytes() == Path("all.faissindex").read_bytes()
