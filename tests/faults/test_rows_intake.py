"""Rows, labels and ids in the forms in which people have them: taken where the meaning is plain, else with a way onward."""

import os
import re
import signal
import subprocess
import sys
import zlib
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import scqfaiss
from scqfaiss.data import open_rows
from scqfaiss.data.classes import align
from scqfaiss.data.idlist import read_ids
from scqfaiss.data.kinds import check_kind
from scqfaiss.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore::scqfaiss.errors.ScqWarning")


@pytest.fixture
def model(here):
    return scqfaiss.Model.load("m.safetensors")


@pytest.fixture
def x(here):
    with open_rows("query.h5") as source:
        return source.read(0, len(source))


def memory(name):
    """A figure of this process in bytes: VmRSS, now, or VmHWM, the largest since it was reset."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10


@contextmanager
def peak_memory(most):
    """Asserts that memory never grows by more than `most` bytes inside."""
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")
    before = memory("VmRSS")
    yield
    assert memory("VmHWM") - before < most


# ------------------------------------------------------------------------------------------------- options that name data
@pytest.mark.parametrize("option", ["--ids-key", "--labels-key", "--features-key"])
@pytest.mark.parametrize("rows", ["x.npy", "x.fvecs", "photos"])
def test_a_key_without_a_use_is_refused(run, here, x, rows, option):
    np.save("x.npy", x)
    prefix = np.full((len(x), 1), x.shape[1], "<i4")
    np.hstack([prefix.view("<f4"), x]).tofile("x.fvecs")
    os.mkdir("photos")
    commands = [("train", rows, "-o", "new.safetensors"), ("info", rows), ("evaluate", "g.faissindex", rows, rows)]
    if option != "--labels-key":  # which the others do not read
        commands += [("export", "m.safetensors", rows, "-o", "new.faissindex"), ("append", "g.faissindex", rows)]
        commands += [("search", "g.faissindex", rows)]
    before = (here / "g.faissindex").read_bytes()
    for command in commands:
        done = run(*command, option, "mine", *(["--model", "m.safetensors"] if "g.faissindex" in command else []))
        assert done.code == 2
        assert done.error.startswith(f"Error: {rows}: {option} mine names nothing: ")
        assert done.error.endswith("HDF5 files (.h5) have features, labels and ids under any name")
    assert not (here / "new.faissindex").exists() and (here / "g.faissindex").read_bytes() == before


def test_a_key_that_was_given_must_be_there_even_under_its_usual_name(run, here, x):
    with h5py.File("bare.h5", "w") as f:
        f["features"] = x
    assert run("export", "m.safetensors", "bare.h5", "-o", "new.faissindex").code == 0
    done = run("export", "m.safetensors", "bare.h5", "-o", "new.faissindex", "--ids-key", "ids")
    assert (done.code, done.error[:36]) == (3, "Error: bare.h5 has no dataset 'ids';")


# ---------------------------------------------------------------------------------------------------------- transposed
def test_rows_stored_the_other_way_round(run, here, x):
    with open_rows("train.h5") as source:
        whole, y = source.read(0, 300), source.labels.y
    with h5py.File("t.h5", "w") as f:
        f["features"] = whole.T
    np.save("t.npy", x.T[:, :12])
    for rows, form in (("t.h5", "(16, 300)"), ("t.npy", "(16, 12)")):
        done = run("train", rows, "-o", "t.safetensors", "--method", "pq", "--bits", "4", "--nbits", "4")
        wide = [w for w in done.warnings if "more dimensions than rows" in w]
        assert len(wide) == (rows == "t.h5"), done.err
        assert all(f"is (n, d) = {form}" in w and w.endswith("write the transpose") for w in wide)
    how = r"; they are stored as \(d, n\) = \(16, \d+\), write the transpose$"
    assert run("export", "m.safetensors", "t.h5", "-o", "n.faissindex").error.endswith("(16, 300), write the transpose")
    assert run("append", "g.faissindex", "t.h5", "--model", "m.safetensors").error.endswith("write the transpose")
    assert run("search", "folded.faissindex", "t.h5").error.endswith("write the transpose")
    with pytest.raises(ConfigError, match=how):
        scqfaiss.Model.load("m.safetensors").embed(whole.T)
    scqfaiss.train(whole[:10], y[:10], bits=8, nbits=4, epochs=1, hidden=8)  # arrays speak for themselves


# ---------------------------------------------------------------------------------------------------------- arrays
def forms(x):
    yield "list of lists", x.tolist()
    yield "list of rows", list(x)
    column = np.empty(len(x), object)
    column[:] = list(x)
    yield "column of arrays", column
    yield "tensor with gradient", torch.from_numpy(x.copy()).requires_grad_()
    yield "list of tensors with gradient", list(torch.from_numpy(x.copy()).requires_grad_())
    yield "Fortran order", np.asfortranarray(x)
    yield "parameter", torch.nn.Parameter(torch.from_numpy(x.copy()))
    yield "float64", x.astype(np.float64)


def test_every_usual_form_of_rows_is_taken(model, x):
    gallery = scqfaiss.open("g.faissindex", model=model)
    z, I = model.embed(x), gallery.search(x, 5)[1]
    for name, given in forms(x):
        np.testing.assert_array_equal(model.embed(given), z, err_msg=name)
        np.testing.assert_array_equal(gallery.search(given, 5)[1], I, err_msg=name)
    half = torch.from_numpy(x).bfloat16()
    np.testing.assert_array_equal(model.embed(half), model.embed(half.float().numpy()))
    np.testing.assert_array_equal(model.embed(x[3]), model.embed(x[3:4]))
    np.testing.assert_array_equal(gallery.search(x[3], 5)[1], gallery.search(x[3:4], 5)[1])
    np.testing.assert_array_equal(gallery.search(z[3], 5, encoded=True)[1], I[3:4])


def test_labels_and_ids_of_other_libraries(here, model):
    with open_rows("train.h5") as source:
        x, y, ids = source.read(0, 300), source.labels.y, source.ids
    settings = {"bits": 8, "nbits": 4, "epochs": 1, "hidden": 8}
    plain = scqfaiss.train(x, y, **settings)
    for given in (torch.from_numpy(y), y.tolist(), y.astype(object), y.astype(np.float32)):
        assert scqfaiss.train(x, given, **settings).to_bytes() == plain.to_bytes()
    named = scqfaiss.train(x, np.array(list("abcd"))[y], **settings)
    assert named.config["class_names"] == list("abcd")
    np.testing.assert_array_equal(named.encode(x), plain.encode(x))
    gallery = scqfaiss.open("g.faissindex", model=model)
    wanted = gallery.search(x[:4], 3, allow=[1000, 1005, 1010])[1]
    for allow in ({1010, 1000, 1005}, frozenset([1000, 1005, 1010]), torch.tensor([1000, 1005, 1010])):
        np.testing.assert_array_equal(gallery.search(x[:4], 3, allow=allow)[1], wanted)
    assert scqfaiss.remove("g.faissindex", {1000, 1005}) == (2, 198)
    with pytest.raises(DataError, match=r"^xb: ids is a set, which has no order; needs"):
        scqfaiss.export(model, x, ids=set(ids.tolist()), path="new.faissindex")


NO_ARRAYS = [
    ("train.h5", "is a name, 'train.h5', needs an array; read the file first"),
    (b"train.h5", "is a name, 'train.h5', needs an array"),
    ({1.0, 2.0}, "is a set, which has no order"),
    ({"a": [1.0]}, "is a dict, which has no order"),
    ((i for i in range(3)), "is a generator, no array"),
    (None, "is a NoneType, no array"),
    ([[1.0, 2.0], [3.0]], "is no array: rows of unequal length or no numbers"),
    (np.ma.masked_invalid([[1.0, np.nan]]), "holds masked values"),
    ([["a", "b"]], r"is \(1, 2\) <U1, needs \(n, d\)"),
    (np.ones((2, 16), np.uint8), "convert them to float32, times their scale"),
    (np.ones((2, 3, 4), np.float32), r"is \(2, 3, 4\) float32, needs \(n, d\)"),
]


@pytest.mark.parametrize("given, words", NO_ARRAYS)
def test_what_is_no_array_says_what_it_is(model, given, words):
    gallery = scqfaiss.open("g.faissindex", model=model)
    for call in (model.embed, model.encode, gallery.search, lambda a: scqfaiss.train(a, [0, 1])):
        with pytest.raises(DataError, match=words):
            call(given)
    with pytest.raises(DataError, match=words):
        scqfaiss.export(model, given, path="new.faissindex")


# ----------------------------------------------------------------------------------------------------------- files
def test_ids_in_text_of_other_programs(tmp_path):
    for encoding in ("ascii", "utf-8-sig", "utf-16"):
        (tmp_path / "ids.txt").write_text("17\r\n18, 40\r\n", encoding)
        assert read_ids(tmp_path / "ids.txt").tolist() == [17, 18, 40]


ENDINGS = ["x.arrow", "x.pt", "x.pkl", "x.mat", "x.txt", "x.ivecs"]


def test_other_files_come_with_a_way_onward(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ENDINGS:
        (tmp_path / name).write_bytes(b"something")
        with pytest.raises(ConfigError, match=f"^{name}: ending '.*' is unknown, needs one of .*; [a-z]"):
            check_kind(name)
    with h5py.File("y.mat", "w") as f:
        f["features"] = np.ones((3, 2))
    with pytest.raises(ConfigError, match=r"it is an HDF5 file: give it the ending \.h5"):
        open_rows("y.mat")
    os.mkdir("parts")
    np.save("parts/0.npy", np.ones((3, 2)))
    np.save("parts/1.npy", np.ones((3, 2)))
    with open_rows("parts") as source:
        assert len(source) == 6
    os.mkfifo("x.fifo")
    with pytest.raises(ConfigError, match=r"ending '\.fifo' is unknown"):
        open_rows("x.fifo")


COMMANDS = [
    ("train", "x.foo", "-o", "m.safetensors"),
    ("export", "m.safetensors", "x.foo", "-o", "g.faissindex"),
    ("append", "g.faissindex", "x.foo"),
    ("search", "g.faissindex", "x.foo"),
    ("evaluate", "g.faissindex", "x.foo", "x.foo"),
    ("features", "x.foo", "-o", "f.h5"),
]


def test_a_refusal_by_name_loads_nothing_heavy(tmp_path):
    code = f"""
import sys
from scqfaiss.cli.program import run
for words in {COMMANDS!r}:
    assert run(list(words)) == 2, words
print(sorted({{"torch", "faiss", "h5py", "PIL", "sklearn"}} & set(sys.modules)))"""
    (tmp_path / "x.foo").write_bytes(b"")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=50)
    assert done.stdout == "[]\n", done.stderr
    assert done.stderr.count("ending '.foo' is unknown") == len(COMMANDS)


# ------------------------------------------------------------------------------------------------------------ HDF5
WRITER = """
import os, signal, sys
import h5py, numpy as np
f = h5py.File(sys.argv[1], "w", libver="latest")
f["features"] = np.ones((10, 4), np.float32)
f.flush()
print("ready", flush=True)
if sys.argv[2] == "crash":
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""


def test_a_crashed_writer_is_not_a_busy_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for how, words in (
        ("crash", "was not closed by the program that wrote it; if none is writing it, `h5clear -s crash.h5` makes it"),
        ("busy", "busy.h5 is open for writing in another program$"),
    ):
        writer = [sys.executable, "-c", WRITER, f"{how}.h5", how]
        with subprocess.Popen(writer, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            if how == "crash":
                assert process.wait(20) == -signal.SIGKILL
            with pytest.raises(DataError, match=words):
                open_rows(f"{how}.h5")
            process.stdin.close()


def odd_types(f):
    time = h5py.h5t.UNIX_D32LE.copy()
    space = h5py.h5s.create_simple((3,))
    h5py.h5d.create(f.id, b"times", time, space)
    f.create_dataset("refs", data=np.array([f["features"].ref], h5py.ref_dtype))
    f["pairs"] = np.zeros(3, [("a", "i4"), ("b", "f4")])
    f["kinds"] = np.zeros(3, h5py.enum_dtype({"a": 0, "b": 1}, "i1"))
    f["raw"] = np.zeros(3, "V5")


def test_what_stands_beside_the_rows_is_not_looked_at(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with h5py.File("x.h5", "w") as f:
        f["features"] = np.ones((30, 4), np.float32)
        odd_types(f)
    for role in (None, "queries", "keys", "any"):
        with open_rows("x.h5", role=role) as source:
            assert source.read(0, 30).shape == (30, 4)
    assert run("info", "x.h5").code == 0
    with pytest.raises(
        DataError, match=r"x\.h5 has no dataset 'emb'; it holds .*times of another type.*; choose with --features-key$"
    ):
        open_rows("x.h5", features_key="emb")
    with pytest.raises(DataError, match=r"^x\.h5: times is of a type that is neither number nor text$"):
        open_rows("x.h5", features_key="times")
    with h5py.File("y.h5", "w") as f:
        f["features"] = np.ones((3, 4), np.float32)
        h5py.h5d.create(f.id, b"ids", h5py.h5t.UNIX_D32LE.copy(), h5py.h5s.create_simple((3,)))
    with pytest.raises(DataError, match=r"^y\.h5: ids is of a type that is neither number nor text$"):
        open_rows("y.h5")


@cache
def deflated(nbytes):
    """A deflate stream of `nbytes` zeros, made without holding them."""
    packer, out, block = zlib.compressobj(9), [], bytes(1 << 20)
    for at in range(0, nbytes, len(block)):
        out.append(packer.compress(block[: nbytes - at]))
    return b"".join([*out, packer.flush()])


@pytest.mark.slow
@pytest.mark.parametrize("key", ["features", "labels", "ids"])
def test_chunks_that_unpack_to_more_than_they_declare(tmp_path, key):
    path = tmp_path / "x.h5"
    bomb = deflated(200 << 20)
    with h5py.File(path, "w") as f:
        for name, shape, chunks, dtype in (
            ("features", (1024, 4), (256, 4), "f4"),
            ("labels", (1024,), (512,), "i8"),
            ("ids", (1024,), (512,), "i8"),
        ):
            made = f.create_dataset(name, shape, dtype, chunks=chunks, compression="gzip")
            made[:] = np.arange(1024).reshape(-1, 1) if len(shape) == 2 else np.arange(1024)
        f[key].id.write_direct_chunk((512, 0) if key == "features" else (512,), bomb)
    assert len(bomb) > 200_000
    with (
        peak_memory(100 << 20),
        pytest.raises(DataError, match=rf"x.h5: {key}: the chunk at row 512 declares 4.1 kB, holds 20[0-9] kB stored"),
        open_rows(path) as source,
    ):
        source.read(0, 1024)


def test_a_chunk_as_long_as_it_declares_is_proven_before_it_is_unpacked(tmp_path):
    path, rows = tmp_path / "x.h5", 1 << 15
    bomb = deflated(200 << 20)
    noise = np.random.default_rng(0).standard_normal((rows, 16)).astype(np.float32)
    with h5py.File(path, "w") as f:  # of 2 MB, which noise nearly fills
        f.create_dataset("features", data=noise, chunks=(rows, 16), compression="gzip", fletcher32=True)
    with open_rows(path) as source:
        np.testing.assert_array_equal(source.read(5, 900), noise[5:900])
    with h5py.File(path, "w") as f:
        f.create_dataset("features", data=noise, chunks=(rows, 16), compression="gzip")
        f["features"].id.write_direct_chunk((0, 0), bomb)
    with peak_memory(100 << 20), open_rows(path) as source:
        with pytest.raises(DataError, match=r"the chunk at row 0 declares 2.1 MB, holds more than 2.1 MB unpacked"):
            source.read(0, 10)
    with h5py.File(path, "w") as f:
        f.create_dataset("features", data=noise, chunks=(rows // 2, 16), compression="gzip", shuffle=True)
        f["features"].id.write_direct_chunk((rows // 2, 0), deflated(4000))
    with open_rows(path) as source:
        np.testing.assert_array_equal(source.read(0, rows // 2), noise[: rows // 2])
        with pytest.raises(DataError, match=r"the chunk at row 16,384 declares 1.0 MB, holds 4.0 kB unpacked"):
            source.read(0, rows)


def test_rows_without_ids_are_no_list_of_ids(tmp_path, run, here, x):
    with h5py.File("bare.h5", "w") as f:
        f["features"] = x
    for command in (("remove", "g.faissindex", "--ids"), ("search", "folded.faissindex", "query.h5", "--filter-ids")):
        done = run(*command, "bare.h5")
        assert (done.code, done.error) == (
            3,
            "Error: bare.h5 has no ids, and its row numbers are none; name their dataset 'ids'",
        )


def test_classes_given_as_names_meet_by_name(tmp_path):
    x, words = np.ones((6, 2), np.float32), np.array(["ant", "bee", "cat", "dog", "eel", "fox"], object)
    for name, some in (("all", words), ("few", words[[3, 1, 5]])):
        with h5py.File(tmp_path / f"{name}.h5", "w") as f:
            f["features"], f["labels"] = x[: len(some)], some
    with open_rows(tmp_path / "few.h5") as few, open_rows(tmp_path / "all.h5") as every:
        align(few, every)
        assert few.labels.y.tolist() == [3, 1, 5] and few.labels.class_names == every.labels.class_names


def test_packed_twice_is_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as f:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((8, 4))
        plan.set_deflate(4)
        plan.set_filter(h5py.h5z.FILTER_DEFLATE, h5py.h5z.FLAG_OPTIONAL, (4,))
        made = h5py.h5d.create(f.id, b"features", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((8, 4)), plan)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ones((8, 4), np.float32))
    with pytest.raises(DataError, match=r"x.h5: features is packed twice, needs gzip once at most$"):
        open_rows(tmp_path / "x.h5")


@pytest.mark.slow
def test_a_matrix_of_labels_takes_a_byte_each(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f.create_dataset("features", (20_000, 1), "f2", chunks=(20_000, 1), compression="gzip")[:] = 1
        made = f.create_dataset("labels", (20_000, 1000), "f8", chunks=(1000, 1000), compression="gzip")
        for i in range(0, 20_000, 1000):
            made[i : i + 1000] = np.eye(1000)
    assert (tmp_path / "x.h5").stat().st_size < 600_000
    with peak_memory(120 << 20), open_rows(tmp_path / "x.h5") as source:
        assert source.labels.y.nbytes == 20_000_000
