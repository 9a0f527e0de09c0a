"""Faults of row files, rows A1 to A12 of the fault table: every one is refused, with exactly these words."""

import os
import struct
import subprocess
import sys
import warnings

import h5py
import numpy as np
import pytest

from scqfaiss.data import open_rows
from scqfaiss.data.writing import write_rows
from scqfaiss.errors import ConfigError, DataError, ResourceError, ScqWarning

X = np.random.default_rng(0).standard_normal((1000, 32)).astype(np.float32)
Y = np.arange(1000) % 7


@pytest.fixture
def train(tmp_path, monkeypatch):
    """The name of a file yet to be made in the current folder, so that messages hold no path."""
    monkeypatch.chdir(tmp_path)
    return "train.h5"


def make(path, features=X, **datasets):
    """A file as users write it: no compression, no checksums."""
    with h5py.File(path, "w") as f:
        for name, value in ({"features": features} | datasets).items():
            f[name] = value


def make_sealed(path, **options):
    with open(path, "w+b") as f:
        write_rows(f, X, Y, **options)


def flip(path, at, bits=4):
    with open(path, "r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ bits]))


def refuse(path, message, error=DataError, *, read=False, **options):
    """Opening (and reading) `path` fails with this error and these words, and with nothing of h5py in them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScqWarning)
        with pytest.raises(error) as caught, open_rows(path, **options) as source:
            for _ in source.blocks() if read else ():
                pass
    assert (type(caught.value), str(caught.value)) == (error, message)
    assert caught.value.exit_code == {ConfigError: 2, DataError: 3, ResourceError: 5}[error]


@pytest.mark.parametrize("userblock", [0, 512])
@pytest.mark.parametrize("libver", [("earliest", "v110"), ("v110", "v110")])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.999])
def test_a1_truncated_names_both_sizes(train, part, libver, userblock):
    with h5py.File(train, "w", libver=libver, userblock_size=userblock) as f:
        f["features"] = X
    whole = os.path.getsize(train)
    os.truncate(train, int(part * whole))
    refuse(train, f"train.h5: file is truncated, {int(part * whole):,} of {whole:,} bytes")


def test_a1_cut_inside_the_header(train):
    make_sealed(train)
    os.truncate(train, 20)
    refuse(train, "train.h5: file is truncated, 20 bytes do not hold its header")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG" * 1000])
def test_a1_no_hdf5_file_at_all(train, content):
    with open(train, "wb") as f:
        f.write(content)
    refuse(train, "train.h5 is not an HDF5 file")


def test_a1_damaged_header(train):
    make_sealed(train)
    flip(train, 36)
    refuse(train, "train.h5 is damaged; restore a copy")


def test_a2_bit_rot_names_dataset_and_rows(train):
    with h5py.File(train, "w") as f:
        f.create_dataset("features", data=X, chunks=(100, 16), fletcher32=True)
        f.create_dataset("labels", data=Y, chunks=(250,), fletcher32=True)
        at = f["features"].id.get_chunk_info_by_coord((300, 16)).byte_offset
        label = f["labels"].id.get_chunk_info_by_coord((750,)).byte_offset
    flip(train, at + 50)
    refuse(train, "train.h5: features: rows 300 to 399 are damaged; restore a copy", read=True)
    flip(train, label)
    refuse(train, "train.h5: labels: rows 750 to 999 are damaged; restore a copy")


def test_a2_without_checksum_one_warning(train):
    make(train, labels=Y)
    with pytest.warns(ScqWarning) as caught, open_rows(train, verbose=True) as source:
        source.read(0, 1000)
    assert [str(w.message) for w in caught] == ["train.h5: features has no checksum, bit errors cannot be seen"]


def test_a2_what_we_write_has_checksums(train):
    make_sealed(train)
    with open_rows(train) as source:  # a warning would be an error here
        np.testing.assert_array_equal(source.read(0, 1000), X)


@pytest.mark.slow
def test_a2_no_flipped_bit_of_our_files_goes_unseen(train):
    with open(train, "w+b") as f:
        write_rows(f, X[:40, :4], Y[:40], np.arange(40), [str(c) for c in range(7)])
    with open(train, "rb") as f:
        good = f.read()
    for bit in np.random.default_rng(0).integers(0, 8 * len(good), 400).tolist():
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        with open(train, "wb") as f:
            f.write(bad)
        with pytest.raises(DataError), open_rows(train) as source:
            source.read(0, 40)


GROWTH = """
import re, sys, warnings
def peak():  # not ru_maxrss, which a child takes over from the process that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
from scqfaiss.data import open_rows
import scqfaiss.data.hdf5
before = peak()
try:
    with open_rows("train.h5") as source:
        print(sum(len(x) for _, x in source.blocks()))
except Exception as error:
    print(error.exit_code, error)
print(int(peak() - before))
"""


def grow():
    """What reading train.h5 says, and by how many MB the memory of its process grows."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)}
    out = subprocess.run(
        [sys.executable, "-c", GROWTH], env=env, capture_output=True, text=True, timeout=60, check=True
    ).stdout.splitlines()
    return out[0], int(out[1])


linux = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")


@linux
@pytest.mark.parametrize("chunks", [None, (1000, 512)])
def test_a3_declared_bomb(train, chunks):
    with h5py.File(train, "w") as f:
        f.create_dataset("features", (10**10, 512), np.float32, chunks=chunks)
    assert os.path.getsize(train) < 5000
    said, grown = grow()
    assert said == "5 train.h5: features declares 20.5 TB, holds 0 bytes"
    assert grown < 200


@linux
def test_a3_one_huge_chunk(train):
    with h5py.File(train, "w") as f:
        ds = f.create_dataset("features", (1 << 20, 512), np.float32, chunks=(1 << 20, 512), compression="gzip")
        ds.id.write_direct_chunk((0, 0), b"zlib stream that must not be looked at")
    said, grown = grow()
    assert said == (
        "5 train.h5: features has chunks of 2.1 GB, at most 268 MB can be read; write it again with smaller chunks"
    )
    assert grown < 200


@pytest.mark.slow
@linux
def test_a3_zeros_at_900_to_1_stream_through(train):
    import zlib

    rows = 4096
    chunk = zlib.compress(bytes(rows * 512 * 4), 9)
    assert len(chunk) * 900 < rows * 512 * 4
    with h5py.File(train, "w") as f:
        ds = f.create_dataset("features", (64 * rows, 512), np.float32, chunks=(rows, 512), compression="gzip")
        for k in range(64):
            ds.id.write_direct_chunk((k * rows, 0), chunk)
    said, grown = grow()
    assert said == str(64 * rows)  # 537 MB of rows
    assert grown < 200


def test_a3_bombs_in_labels_and_in_one_row(train):
    with h5py.File(train, "w") as f:
        f["features"] = X
        f.create_dataset("labels", (1000, 10**9), np.uint8, chunks=(1, 10**6))
    refuse(train, "train.h5: labels declares 1.0 TB, holds 0 bytes", ResourceError)
    with h5py.File(train, "w") as f:
        f.create_dataset("features", (1, 10**9), np.float32, chunks=(1, 10**6))
    refuse(train, "train.h5: one row of features takes 4.0 GB, at most 268 MB can be read", ResourceError)


def test_a4_chunks_never_written(train):
    with h5py.File(train, "w") as f:
        f.create_dataset("features", (1000, 32), np.float32, chunks=(100, 32))[:500] = X[:500]
    refuse(train, "train.h5: features: 5 of 10 chunks were never written")


def test_a4_never_written_at_all(train):
    with h5py.File(train, "w") as f:
        f.create_dataset("features", (1000, 32), np.float32)
    refuse(train, "train.h5: features: its rows were never written")


def test_a4_holes_in_labels_and_ids(train):
    for name in ("labels", "ids"):
        with h5py.File(train, "w") as f:
            f["features"] = X
            f.create_dataset(name, (1000,), np.int64, chunks=(300,))[:300] = 0
        refuse(train, f"train.h5: {name}: 3 of 4 chunks were never written")


def link(f, where):
    f["features"] = h5py.ExternalLink(where, "features")


def link_of_group(f, where):
    f["far"] = h5py.ExternalLink(where, "/")
    f["features"] = h5py.SoftLink("/far/features")


def virtual(f, where):
    layout = h5py.VirtualLayout((1000, 32), np.float32)
    layout[:] = h5py.VirtualSource(where, "features", (1000, 32))
    f.create_virtual_dataset("features", layout)


def external(f, where):
    f.create_dataset("features", (1000, 32), np.float32, external=[(where, 0, 128000)])


@pytest.mark.parametrize("put", [link, link_of_group, virtual, external])
def test_a5_data_outside_the_file_is_refused_and_never_opened(train, put):
    with h5py.File(train, "w") as f:
        put(f, "other.h5")
    if os.path.exists("other.h5"):
        os.unlink("other.h5")
    os.mkfifo("other.h5")  # who opens it waits for ever
    code = "from scqfaiss.data import open_rows\ntry: open_rows('train.h5')\nexcept Exception as e: print(e)"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=30, check=True)
    assert out.stdout == "features lies outside train.h5 (other.h5); copy it in\n"
    refuse(train, "features lies outside train.h5 (other.h5); copy it in")


def test_a4_virtual_dataset_of_gone_source(train):
    with h5py.File(train, "w") as f:
        virtual(f, "gone.h5")
    refuse(train, "features lies outside train.h5 (gone.h5); copy it in")


def test_a5_virtual_dataset_of_the_file_itself(train):
    with h5py.File(train, "w") as f:
        f["parts"] = X
        layout = h5py.VirtualLayout((1000, 32), np.float32)
        layout[:] = h5py.VirtualSource(".", "parts", (1000, 32))
        f.create_virtual_dataset("features", layout)
    refuse(train, "train.h5: features is a virtual dataset, needs to hold the rows itself")


def test_a5_soft_links(train):
    with h5py.File(train, "w") as f:
        f.create_dataset("g/real", data=X, fletcher32=True)
        f["g/features"] = h5py.SoftLink("real")
        f["features"] = h5py.SoftLink("/g/features")
        f["labels"] = h5py.SoftLink("/labels")
    refuse(train, "train.h5: 'labels' is a link that leads back to itself")
    with h5py.File(train, "r+") as f:
        del f["labels"]
    with open_rows(train) as source:
        np.testing.assert_array_equal(source.read(0, 1000), X)
    with h5py.File(train, "r+") as f:
        f["labels"] = h5py.SoftLink("/nowhere")
    refuse(
        train,
        "train.h5 has no dataset 'labels'; it holds g/real (1000, 32) float32; choose with --labels-key",
    )


def test_a6_other_names(train):
    with h5py.File(train, "w") as f:
        f["emb"], f["g/x"] = np.ones((8, 8), np.float32), np.arange(3)
    held = "it holds emb (8, 8) float32, g/x (3,) int64"
    refuse(train, f"train.h5 has no dataset 'features'; {held}; choose with --features-key")
    key = {"features_key": "emb"}
    refuse(train, f"train.h5 has no dataset 'z'; {held}; choose with --labels-key", labels_key="z", **key)
    refuse(train, f"train.h5 has no dataset 'g/z'; {held}; choose with --ids-key", ids_key="g/z", **key)
    refuse(train, f"train.h5: 'g' is a group, not a dataset; {held}; choose with --labels-key", labels_key="g", **key)
    refuse(train, f"train.h5 has no dataset 'emb/x'; {held}; choose with --features-key", features_key="emb/x")


def test_a6_empty_and_crowded_files(train):
    with h5py.File(train, "w"):
        pass
    refuse(train, "train.h5 has no dataset 'features'; it holds no dataset; choose with --features-key")
    with h5py.File(train, "w") as f:
        for c in "abcdefghijk":
            f[c] = 1.0
    held = ", ".join(f"{c} () float64" for c in "abcdefgh")
    refuse(train, f"train.h5 has no dataset 'features'; it holds {held} and more; choose with --features-key")


@pytest.mark.parametrize(
    "features, form",
    [
        (np.arange(1000), "(1000,) int64"),
        (np.ones((2, 2, 2), np.float32), "(2, 2, 2) float32"),
        (np.ones((3, 2), np.complex64), "(3, 2) complex64"),
        ([["a", "b"]], "(1, 2) object"),
        (np.ones((3, 0), np.float32), "(3, 0) float32"),
        (1.5, "() float64"),
    ],
)
def test_a7_wrong_shape_or_type(train, features, form):
    make(train, features)
    refuse(train, f"train.h5: features is {form}, needs (n, d) float16, float32 or float64")


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64])
def test_a7_whole_numbers_say_how_they_become_features(train, dtype):
    make(train, np.ones((3, 2), dtype))
    how = "say what 1 stands for: --scale 0.0078125 for numbers of [-1, 1) times 128, --scale 1 as they are"
    if dtype == np.int64:
        how = "convert them to float32, times their scale where they were quantized"
    form = f"(3, 2) {np.dtype(dtype)}"
    refuse(train, f"train.h5: features is {form}, needs (n, d) float16, float32 or float64; {how}")


def test_a7_no_shape(train):
    make(train, h5py.Empty("f4"))
    refuse(train, "train.h5: features has no shape, needs rows")


def test_a7_too_large_for_float32(train):
    x = X.astype(np.float64)
    x[17, 2] = 1e300
    make(train, x)
    refuse(
        train,
        "train.h5: features: row 17, column 2 is 1e+300, too large for float32 (1 of 1,000 rows is not finite); "
        "--skip-bad-rows leaves them out",
        read=True,
    )


def test_a8_nan_is_named_or_dropped_with_its_label_and_id(train):
    x = X.copy()
    x[5, 3], x[900, 0] = np.nan, np.inf
    with open(train, "w+b") as f:
        write_rows(f, x, Y, np.arange(1000) + 50)
    refuse(
        train,
        "train.h5: features: row 5, column 3 is NaN (2 of 1,000 rows are not finite); --skip-bad-rows leaves them out",
        read=True,
    )
    with pytest.warns(ScqWarning) as caught:
        source = open_rows(train, skip_bad_rows=True)
    assert [str(w.message) for w in caught] == ["train.h5: left out 2 of 1,000 rows that are not finite"]
    with source:
        kept = np.delete(np.arange(1000), [5, 900])
        assert (len(source), source.dropped) == (998, 2)
        np.testing.assert_array_equal(source.read(0, 998), X[kept])
        np.testing.assert_array_equal(source.labels.y, Y[kept])
        np.testing.assert_array_equal(source.ids, kept + 50)


@pytest.mark.parametrize("n", [0, 1])
def test_a10_no_row_and_one_row(train, n):
    with open(train, "w+b") as f:
        write_rows(f, X[:n], Y[:n], np.arange(n))
    with open_rows(train) as source:
        assert (len(source), source.d) == (n, 32)
        assert [len(x) for _, x in source.blocks()] == [1] * n
        np.testing.assert_array_equal(source.read(0, n), X[:n])


def test_a11_open_for_writing_elsewhere(train):
    make(train)
    code = "import h5py, sys; f = h5py.File('train.h5', 'r+'); print('open', flush=True); sys.stdin.read()"
    env = {k: v for k, v in os.environ.items() if k != "HDF5_USE_FILE_LOCKING"}
    with subprocess.Popen([sys.executable, "-c", code], env=env, stdin=-1, stdout=-1, text=True) as writer:
        assert writer.stdout.readline() == "open\n"
        refuse(train, "train.h5 is open for writing in another program")
        writer.communicate()


def test_a11_open_for_writing_here(train):
    make(train)
    with h5py.File(train, "r+") as f:
        refuse(train, "train.h5 is open for writing in this program")
        assert f["features"].shape == (1000, 32)  # the writer goes on unharmed


@pytest.mark.parametrize("name", ["train.h5", "train.npy", "train.fvecs"])
def test_a11_no_regular_file(train, name):
    refuse(name, f"{name}: no such file", ConfigError)
    refuse(f"{name}/{name}", f"{name}/{name}: no such file", ConfigError)
    os.mkfifo(name)
    refuse(name, f"{name} is a FIFO, needs to be a regular file")
    os.unlink(name)
    os.mkdir(name)
    refuse(name, f"{name} is a folder, needs to be a regular file")
    os.rmdir(name)
    os.symlink("/dev/zero", name)
    refuse(name, f"{name} is a device, needs to be a regular file")
    os.unlink(name)
    os.symlink(name, name)
    refuse(name, f"{name}: cannot be opened (Too many levels of symbolic links)")


def test_a11_no_right_to_read(train, monkeypatch):
    make(train)

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("scqfaiss.files.os.open", denied)  # a test run by root may read everything
    refuse(train, "train.h5: no right to read it")


def append(name):
    with open(name, "ab") as f:
        f.write(b"12345")


def replace(name):
    with open(name, "rb") as old, open("new", "wb") as new:
        new.write(old.read())
    os.replace("new", name)


@pytest.mark.parametrize("name", ["train.h5", "train.fvecs"])
@pytest.mark.parametrize(
    "change, what",
    [
        (append, "changed from {:,} to {:,} bytes while it was read"),
        (replace, "was replaced by another file while it was read"),
        (os.unlink, "was removed while it was read"),
    ],
)
def test_a11_change_while_reading_is_named_at_the_end(train, name, change, what):
    make_sealed(train)
    np.hstack([np.full((1000, 1), 32, np.int32).view(np.float32), X]).tofile("train.fvecs")
    size = os.path.getsize(name)
    source = open_rows(name)
    source.read(0, 10)
    change(name)
    with pytest.raises(DataError) as caught:
        source.close()
    assert str(caught.value) == f"{name} {what.format(size, size + 5)}"
    source.close()  # the second time it has nothing left to say


def test_a11_cut_while_reading(train):
    np.save("train.npy", X)
    with pytest.raises(DataError) as caught, open_rows("train.npy") as source:
        os.truncate("train.npy", 1000)
        source.read(0, 1000)
    assert str(caught.value) == "train.npy changed from 128,128 to 1,000 bytes while it was read"


def test_a12_object_npy_is_refused_and_nothing_runs(train):
    class Evil:
        def __reduce__(self):
            return os.mkdir, ("marker",)

    np.save("x.npy", np.array([[Evil()]], object), allow_pickle=True)
    refuse("x.npy", "x.npy: array is (1, 1) object, needs (n, d) float16, float32 or float64")
    assert not os.path.exists("marker")


def vecs(path, rows):
    code = "B" if path.endswith(".bvecs") else "f"
    with open(path, "wb") as f:
        f.writelines(struct.pack(f"<i{len(row)}{code}", d, *row) for d, row in rows)


@pytest.mark.parametrize("name", ["x.fvecs", "x.bvecs"])
def test_a12_rows_of_different_width(train, name):
    words = f"{name}: row 17 says d=31, row 0 says d=32"
    vecs(name, [(32 - (i == 17), [1] * 32) for i in range(40)])
    refuse(name, words, read=True)
    vecs(name, [(32 - (i == 17), [1] * (32 - (i == 17))) for i in range(40)])  # the lengths do not add up either
    refuse(name, words)


def test_a12_truncated(train):
    vecs("x.fvecs", [(32, [1] * 32)] * 40)
    os.truncate("x.fvecs", 40 * 132 - 1)
    refuse("x.fvecs", "x.fvecs: file is truncated, 5,279 of 5,280 bytes")
    os.truncate("x.fvecs", 3)
    refuse("x.fvecs", "x.fvecs has 3 bytes, needs at least one row")
    np.save("x.npy", X)
    os.truncate("x.npy", 64_000)
    refuse("x.npy", "x.npy: file is truncated, 64,000 of 128,128 bytes")
    np.save("x.npy", X)
    append("x.npy")
    refuse("x.npy", "x.npy: 128,133 bytes, needs 128,128 for its array")


@pytest.mark.parametrize("d", [0, -5])
def test_a12_impossible_width(train, d):
    vecs("x.fvecs", [(d, [1] * 4)])
    refuse("x.fvecs", f"x.fvecs: row 0 says d={d}, needs 1 or more")


def npy(header, version=(1, 0)):
    length = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + length + header


DAMAGED = "x.npy: its header is damaged or of a version other than 1.0 and 2.0"


@pytest.mark.parametrize(
    "content, words",
    [
        (b"hello", "x.npy is not a .npy file"),
        (b"\x93NUMPY\x01", DAMAGED),
        (npy(b"{", (9, 9)), DAMAGED),
        (npy(b"{" * 5000), DAMAGED),
        (npy(b"{'descr': '\\xzz'}"), DAMAGED),
        (npy(b"__import__('os').mkdir('marker')"), DAMAGED),
        (npy(b" " * 15000), DAMAGED),
        (
            npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-3, 4)}"),
            "x.npy: its header is damaged, shape (-3, 4)",
        ),
        (
            npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000, 512)}"),
            "x.npy: file is truncated, 79 of 20,480,000,000,079 bytes",
        ),
    ],
)
def test_a12_damaged_npy_header(train, content, words):
    with open("x.npy", "wb") as f:
        f.write(content)
    refuse("x.npy", words)
    assert not os.path.exists("marker")


def test_filter_that_is_not_installed(train):
    with h5py.File(train, "w") as f:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((10, 32))
        plan.set_filter(60_000, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((10, 32))
        ds = h5py.h5d.create(f.id, b"features", h5py.h5t.IEEE_F32LE, space, plan)
        ds.write_direct_chunk((0, 0), b"?")
    refuse(train, "train.h5: features is packed by HDF5 filter 60000, which is not installed here; use gzip")


def test_messages_stay_on_one_line_whatever_the_names(train):
    name = b"a \xff'\n.h5"
    with h5py.File(name, "w") as f:
        f["x\ny"] = 1.0
    refuse(
        os.fsdecode(name),
        "a \\udcff'\\n.h5 has no dataset 'features'; it holds x\\ny () float64; choose with --features-key",
    )
