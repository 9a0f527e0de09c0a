"""Faults of images, row A12 and beyond: none stops with less than a full account, hangs, or takes the memory it asks for."""

import errno
import io
import os
import socket
import struct
import subprocess
import sys
import threading
import zlib

import h5py
import numpy as np
import pytest
from PIL import Image

from scqfaiss.data import images, open_rows
from scqfaiss.data.images import ImageSource
from scqfaiss.errors import ConfigError, DataError, ResourceError, ScqWarning

ADVICE = "; --skip-bad-rows leaves them out"
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


def encoded(format="PNG", pixels=PIXELS, **options):
    f = io.BytesIO()
    Image.fromarray(pixels).save(f, format, **options)
    return f.getvalue()


def put(name, data=None):
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    with open(name, "xb") as f:
        f.write(encoded() if data is None else data)


def png(width, height):
    """A PNG of one bit a pixel, as its header says; its pixels a few kB of zeros that go on for ever."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder, so that messages hold no path."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refuse(path, message, error=DataError, *, read=True, **options):
    with pytest.raises(error) as caught, open_rows(path, **options) as source:
        source.shaped(8, "crop")
        for _ in source.blocks() if read else ():
            pass
    assert (type(caught.value), str(caught.value)) == (error, message)


@pytest.fixture(autouse=True)
def threads_are_used(monkeypatch):
    """However small the images."""
    monkeypatch.setattr(images, "LOCKED", 1e-9)


def descriptors():
    return len(os.listdir("/proc/self/fd"))


# -------------------------------------------------------------------------------------------------- a folder as they are
@pytest.fixture
def photos(folder):
    """photos/: 1,000 files, 200 in each of 5 classes: 10 cut off, 10 empty, 8 of text, 5 that cannot be read."""
    sound = [encoded(), encoded("JPEG"), encoded("GIF"), encoded("BMP"), encoded("WEBP")]
    names = [f"{c}/{i:03}.jpg" for c in ("cat", "deer", "dog", "frog", "ship") for i in range(200)]
    bad = {}
    for k, kind in enumerate(["damaged"] * 10 + ["empty"] * 10 + ["no image"] * 8 + ["unreadable"] * 5):
        bad[names[17 + 29 * k]] = kind
    odd = iter([lambda p: os.symlink("nowhere", p), lambda p: os.symlink(os.path.basename(p), p), os.mkfifo])
    for k, name in enumerate(names):
        path, kind = f"photos/{name}", bad.get(name)
        if kind == "unreadable":
            make = next(odd, None)
            if make is not None:
                make(path)
            elif os.geteuid():
                put(path)
                os.chmod(path, 0)
            else:  # nothing is closed to root
                os.symlink("/dev/zero" if k % 2 else "/", path)
        else:
            cut = sound[k % 2]
            content = {"damaged": cut[: len(cut) * 2 // 3], "empty": b"", "no image": b"These are my photos.\n" * 9}
            put(path, content[kind] if kind else sound[k % 5])
    return names, bad


COUNTS = "10 damaged, 10 empty, 8 no image, 5 unreadable"
ACCOUNT = (
    f"photos: 33 of 1,000 files cannot be used: {COUNTS} "
    f"(first: cat/017.jpg: damaged, its pixels are broken or cut off){ADVICE}"
)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "3"])
def test_a_folder_with_bad_images_stops_with_a_full_account(photos, run, workers):
    before = descriptors()
    result = run("info", "photos", "--workers", workers)
    assert (result.code, result.error, result.warnings) == (3, f"Error: {ACCOUNT}", [])
    assert descriptors() == before


@pytest.mark.slow
def test_the_first_bad_image_met_in_use_counts_all(photos):
    before = descriptors()
    with open_rows("photos") as source:
        source.shaped(8, "crop")
        assert source.read(0, 17).shape == (17, 3, 8, 8)
        for rows in ([17], [999, 3, 17, 17], range(1000)):
            with pytest.raises(DataError) as caught:
                source.take(np.array(rows))
            assert str(caught.value) == ACCOUNT
    refuse("photos", ACCOUNT, workers=1)
    assert descriptors() == before


def test_so_many_bad_images_are_not_all_named(photos, monkeypatch):
    monkeypatch.setattr(images, "LEFT_OUT", 5)
    first = ", ".join(list(photos[1])[:5])
    with pytest.warns(ScqWarning, match=rf"\({first} and 28 more\)$"):
        open_rows("photos", skip_bad_rows=True).close()


@pytest.mark.slow
def test_bad_images_are_left_out_with_the_exact_count(photos, run):
    names, bad = photos
    said = f"photos: left out 33 of 1,000 files: {COUNTS} ({', '.join(bad)})"
    result = run("info", "photos", "--skip-bad-rows")
    assert (result.code, result.warnings) == (0, [said])
    assert "images: 967\n" in result.out
    with pytest.warns(ScqWarning) as caught:
        source = open_rows("photos", skip_bad_rows=True)
    assert [str(w.message) for w in caught] == [said]
    with source:
        source.shaped(8, "crop")
        kept = [k for k, name in enumerate(names) if name not in bad]
        assert (len(source), source.dropped, source.names) == (967, 33, [names[k] for k in kept])
        np.testing.assert_array_equal(source.ids, kept)
        np.testing.assert_array_equal(source.labels.y, np.array(kept) // 200)
        assert sum(len(x) for _, x in source.blocks()) == 967
        source.digest()


def test_digest_of_images_that_cannot_be_read(photos):
    with open_rows("photos") as source, pytest.raises(DataError) as caught:
        source.digest()
    assert str(caught.value) == ACCOUNT


# ------------------------------------------------------------------------------------------------------ single images
def test_a_image_of_too_many_pixels_takes_no_memory(folder):
    put("photos/a.png")
    put("photos/big.png", png(50_000, 50_000))
    assert os.path.getsize("photos/big.png") < 5000
    why = "too large, it has more than 178,956,970 pixels"
    refuse("photos", f"photos: 1 of 2 files cannot be used: 1 too large (first: big.png: {why}){ADVICE}")
    refuse("photos/big.png", f"photos/big.png cannot be used: {why}")
    code = """
import sys
from scqfaiss.cli.program import run
before = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
code = run(["info", "photos"])
print(int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))) - before)
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert (
        int(done.stdout) < 100_000
    )  # kB: the libraries that are loaded; the pixels would be 312,500, and 7.5 GB as RGB


def test_too_many_pixels_whatever_pillow_is_set_to(folder, monkeypatch):
    put("big.png", png(20_000, 10_000))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    refuse("big.png", "big.png cannot be used: too large, it has more than 178,956,970 pixels")


def test_a_file_of_too_many_bytes_is_not_read(folder):
    put("photos/a.webp", b"RIFF\0\0\0\0WEBP")
    os.truncate("photos/a.webp", (1 << 30) + 1)
    refuse("photos/a.webp", "photos/a.webp cannot be used: too large, it has 1.1 GB, at most 1.1 GB are read")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_cut_image_is_named_wherever_it_is_cut(folder, format, capfd):
    data = encoded(format, np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    found = set()
    for k, part in enumerate([0.01, 0.1, 0.3, 0.6, 0.9]):
        name = f"photos/{k}.jpg"
        put(name, data[: max(1, int(part * len(data)))])
        with pytest.raises(DataError, match=rf"^{name} cannot be used: (damaged|no image), ") as caught:
            open_rows(name).read(0, 1)
        found.add("damaged" in str(caught.value))
    assert True in found
    with pytest.raises(DataError, match=r"5 of 5 files cannot be used"):
        open_rows("photos").prove()
    assert capfd.readouterr() == ("", "")  # libraries below Pillow must not speak to the user


@pytest.mark.slow
@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damage_anywhere_is_refused_or_passes_but_nothing_else(folder, format, capfd):
    """Flipped bits: an image comes out, or DataError; no other error, no warning, no word on stderr."""
    data, rng, refused = encoded(format), np.random.default_rng(1), 0
    os.mkdir("photos")
    for k in range(60):
        broken = bytearray(data)
        for at in rng.integers(0, len(data) if k % 2 else 60, 4):
            broken[at] ^= 1 << int(rng.integers(0, 8))
        put(f"photos/{k}", bytes(broken))
    source = open_rows("photos", workers=2)
    source.shaped(8, "pad")
    for k in range(60):
        try:
            assert source.take(np.array([k])).shape == (1, 3, 8, 8)
        except DataError as error:
            refused += 1
            assert "files cannot be used" in str(error)
    assert refused > 5
    assert capfd.readouterr() == ("", "")


def test_one_file_that_is_none(folder):
    refuse("no.jpg", "no.jpg: no such file", ConfigError)
    refuse("no/no.jpg", "no/no.jpg: no such file", ConfigError)
    refuse("photos", "photos: no such file or folder", ConfigError)
    os.mkfifo("a.jpg")
    refuse("a.jpg", "a.jpg is a FIFO, needs to be a regular file")
    put("b.jpg", b"")
    refuse("b.jpg", "b.jpg cannot be used: empty, it has 0 bytes")
    put("c.jpg", b"hello")
    refuse("c.jpg", "c.jpg cannot be used: no image, it is neither JPEG, PNG, WebP, GIF, BMP nor TIFF")
    put("d.gif", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")  # Pillow would start ghostscript
    refuse("d.gif", "d.gif cannot be used: no image, it is neither JPEG, PNG, WebP, GIF, BMP nor TIFF")


@pytest.mark.parametrize("kind", ["FIFO", "socket", "loop", "dangling", "device", "folder"])
def test_nothing_that_is_no_file_is_waited_for(folder, kind):
    put("photos/a.png")
    if kind == "FIFO":
        os.mkfifo("photos/b.png")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as s:
            s.bind("photos/b.png")
    else:
        os.symlink({"loop": "b.png", "dangling": "c", "device": "/dev/zero", "folder": "."}[kind], "photos/b.png")
    why = {
        "FIFO": "it is no regular file",
        "socket": "it is no regular file",
        "loop": os.strerror(errno.ELOOP),
        "dangling": os.strerror(errno.ENOENT),
        "device": "it is no regular file",
        "folder": "it is no regular file",
    }[kind]
    refuse("photos", f"photos: 1 of 2 files cannot be used: 1 unreadable (first: b.png: unreadable, {why}){ADVICE}")


def test_names_of_any_bytes_are_one_printable_line(folder):
    os.mkdir("photos")
    put(b"photos/a\n\xff.jpg", b"")
    refuse(
        "photos",
        f"photos: 1 of 1 files cannot be used: 1 empty (first: a\\n\\udcff.jpg: empty, it has 0 bytes){ADVICE}",
    )


# ------------------------------------------------------------------------------------------------------ while it is used
def test_a_image_that_becomes_a_fifo_after_opening(folder):
    for k in range(3):
        put(f"photos/{k}.png")
    with open_rows("photos") as source:
        source.shaped(8, "crop")
        os.unlink("photos/1.png")
        os.mkfifo("photos/1.png")
        why = "unreadable, it is no regular file"
        with pytest.raises(DataError) as caught:
            source.read(0, 3)
        assert str(caught.value) == (f"photos: 1 of 3 files cannot be used: 1 unreadable (first: 1.png: {why}){ADVICE}")


@pytest.mark.parametrize("what", ["removed", "FIFO", "longer", "replaced", "emptied"])
@pytest.mark.parametrize("seen_by", ["prove", "digest", "read"])
def test_a_image_that_changes_after_it_was_read(folder, what, seen_by):
    for k in range(3):
        put(f"photos/{k}.png")
    before = descriptors()
    with open_rows("photos", workers=1) as source:
        source.shaped(8, "crop")
        {"prove": source.prove, "digest": source.digest, "read": lambda: source.read(0, 3)}[seen_by]()
        name = "photos/1.png"
        if what == "longer":
            with open(name, "ab") as f:
                f.write(b"x")
        elif what == "emptied":
            os.truncate(name, 0)
        elif what == "replaced":
            put("other.png")  # while the first is still there: another inode
            os.rename("other.png", name)
        else:
            os.unlink(name)
            if what == "FIFO":
                os.mkfifo(name)
        for use in (lambda: source.read(1, 2), source.digest, lambda: source.take(np.array([2, 1]))):
            with pytest.raises(DataError) as caught:
                use()
            assert str(caught.value) == "photos: 1.png was changed or removed while it was in use"
        assert source.read(2, 3).shape == (1, 3, 8, 8)
    assert descriptors() == before


def test_a_image_that_changes_while_it_is_read(folder, monkeypatch):
    put("photos/a.png")
    true = images.decode

    def slow(f, *rest):
        with open("photos/a.png", "ab") as g:
            g.write(b"x")
        return true(f, *rest)

    monkeypatch.setattr(images, "decode", slow)
    refuse("photos", "photos: a.png was changed or removed while it was in use")


def test_what_is_not_the_images_fault_is_not_laid_to_it(folder, monkeypatch):
    """Neither too many open files nor too little memory may count as a bad image, which --skip-bad-rows would drop."""
    for k in range(40):
        put(f"photos/{k}.png")
    true = os.open

    def full(path, *rest, **options):
        if "17.png" in os.fspath(path):
            raise OSError(errno.EMFILE, "Too many open files")
        return true(path, *rest, **options)

    with monkeypatch.context() as m:
        m.setattr(os, "open", full)
        with pytest.raises(ResourceError, match=r"^photos: cannot open its files \(Too many open files\)$"):
            open_rows("photos", skip_bad_rows=True)

    before = set(threading.enumerate())

    def memory(*_, **__):
        raise MemoryError

    with monkeypatch.context() as m:
        m.setattr(Image, "open", memory)
        with pytest.raises(MemoryError):
            open_rows("photos", skip_bad_rows=True, workers=3)
    assert set(threading.enumerate()) <= before


def test_thousands_of_files_are_not_open_at_a_time(folder):
    import resource

    for k in range(300):
        put(f"photos/{k}.png")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 20, hard))
    try:
        with open_rows("photos", workers=4) as source:
            source.shaped(8, "crop")
            assert source.read(0, 300).shape == (300, 3, 8, 8)
            source.digest()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -------------------------------------------------------------------------------------------------------------- folders
def test_files_beside_class_folders(folder):
    for name in ("photos/cat/1.png", "photos/dog/2.png", "photos/readme.txt", "photos/labels.csv"):
        put(name)
    passed = r"^photos: passed over 2 files beside class folders \(first: labels.csv\)$"
    with pytest.warns(ScqWarning, match=passed), open_rows("photos") as source:
        assert (source.names, source.labels.class_names) == (["cat/1.png", "dog/2.png"], ("cat", "dog"))
    put("photos/x.JPEG")
    refuse(
        "photos",
        "photos holds 1 image beside 2 folders (x.JPEG beside cat); needs a folder for each class, or files alone",
        read=False,
    )


def test_a_folder_that_may_not_be_listed(folder, monkeypatch):
    put("photos/cat/1.png")
    true = os.scandir

    def closed(path):
        if os.fspath(path).endswith("cat"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return true(path)

    monkeypatch.setattr(os, "scandir", closed)
    refuse("photos", "photos/cat: this folder cannot be listed (Permission denied)", read=False)


def test_links_of_folders_that_would_double_without_end(folder):
    put("photos/cat/1.png")
    for k in range(30):  # followed all, they would lead to 2^30 images
        os.mkdir(f"d{k}")
        for name in "ab":
            os.symlink(f"../d{k + 1}", f"d{k}/{name}")
    os.mkdir("d30")
    put("d30/2.png")
    os.symlink("../../d0", "photos/cat/more")
    os.symlink("../..", "photos/cat/up")
    with open_rows("photos") as source:
        assert len(source) == 1 + 30 + 1 + 1
        with pytest.raises(DataError, match="31 of 33 files cannot be used: 31 unreadable"):
            source.prove()


# ---------------------------------------------------------------------------------------------------------------- lists
CSV = {
    "path,labels\na.png,x\nb.png\n": "line 3 has 1 field, line 1 has 2",
    "path,labels\na.png,x,y\n": "line 2 has 3 fields, line 1 has 2",
    "file,labels\na.png,x\n": "line 1 has no 'path'; it has file, labels",
    "": "line 1 has no 'path'; it has nothing",
    "path,path\na.png,a.png\n": "line 1 has 'path' twice",
    "path,label,labels\na.png,x,y\n": "line 1 has both 'labels' and 'label'",
    'path\n"a.png\nb.png\n': "line 2 is no line of a CSV file",
    'path\n"a"b.png\n': "line 2 is no line of a CSV file",
    "path,labels\na.png,x;;y\n": "line 2: 'x;;y' holds an empty label",
    "path,labels\na.png,1;-1\n": "line 2: -1 says that there is no label, and stands beside others; leave it out there",
    "path,labels\na.png,1\nb.png,-2\n": "line 3: label -2 is no class number (0 to 1,048,575)",
    f"path,labels\na.png,{10**30}.0\n": f"line 2: label {10**30} is no class number (0 to 1,048,575)",
    "path,labels\na.png,1048576\n": "line 2: label 1048576 is no class number (0 to 1,048,575)",
    "path,id\na.png,1\nb.png,\n": "line 3: '' is no id (0 to 9,223,372,036,854,775,807)",
    "path,id\na.png,9223372036854775808\n": "line 2: '9223372036854775808' is no id (0 to 9,223,372,036,854,775,807)",
    "path,id\na.png,1e3\n": "line 2: '1e3' is no id (0 to 9,223,372,036,854,775,807)",
    "path,labels\n,x\n": "line 2: no file can have this path",
    "path\na\0.png\n": "line 2: no file can have this path",
}
JSON = {
    '{"path": "a.png"}\n{"path": "b.png"\n': "line 2 is not a JSON object",
    '["a.png"]': "line 1 is not a JSON object",
    '{"path": "a.png", "path": "b.png"}': "line 1 is not a JSON object",
    "[" * 100_000: "line 1 is not a JSON object",
    '{"path": "a.png"}\n{"labels": "x"}\n': "line 2 has no 'path'; it has labels",
    '{"path": 5}': "line 1: path is no text",
    '{"path": ""}': "line 1: no file can have this path",
    '{"path": "\\ud800"}': "line 1: no file can have this path",
    '{"path": "a.png", "labels": true}': "line 1: labels need to be names or class numbers, and all of one kind",
    '{"path": "a.png", "labels": 0.5}': "line 1: labels need to be names or class numbers, and all of one kind",
    '{"path": "a.png", "labels": ["x", 3]}': "line 1: labels need to be names or class numbers, and all of one kind",
    '{"path": "a.png", "labels": ["x", ""]}': "line 1: labels need to be names or class numbers, and all of one kind",
    '{"path": "a.png", "labels": {"x": 1}}': "line 1: labels need to be names or class numbers, and all of one kind",
    '{"path": "a.png", "labels": 1}\n{"path": "a.png", "labels": "x"}': "line 2 gives labels by name, line 1 by number",
    '{"path": "a.png", "labels": -2}': "line 1: label -2 is no class number (0 to 1,048,575)",
    '{"path": "a.png", "labels": [0, -1]}': "line 1: "
    "-1 says that there is no label, and stands beside others; leave it out there",
    '{"path": "a.png", "id": true}': "line 1: 'True' is no id (0 to 9,223,372,036,854,775,807)",
    '{"path": "a.png", "id": -1}': "line 1: '-1' is no id (0 to 9,223,372,036,854,775,807)",
    '{"path": "a.png", "id": 4}\n\n{"path": "b.png"}': "line 3 has no id, line 1 has one; give one to each or none",
}


MALFORMED = [*(("l.csv", *item) for item in CSV.items()), *(("l.jsonl", *item) for item in JSON.items())]


@pytest.mark.parametrize("name, text, wrong", MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_list_is_refused_by_its_line(folder, name, text, wrong):
    put(name, text.encode())
    refuse(name, f"{name}: {wrong}")


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_list_that_is_no_text(folder, ending):
    put(f"l.{ending}", b"path\na.png\n\xff\xfe.png" if ending == "csv" else b'{"path": "a"}\n\n{"path": "\xff\xfe"}')
    refuse(
        f"l.{ending}", f"l.{ending}: line 3 is not {'UTF-8; save it as UTF-8' if ending == 'csv' else 'a JSON object'}"
    )
    refuse(f"no.{ending}", f"no.{ending}: no such file", ConfigError)
    os.mkfifo(f"f.{ending}")
    refuse(f"f.{ending}", f"f.{ending} is a FIFO, needs to be a regular file")


def test_columns_asked_for_have_to_be_there(folder):
    put("l.csv", b"path,labels,id\na.png,x,3\n")
    refuse("l.csv", "l.csv: line 1 has no 'kind'; it has path, labels, id", labels_key="kind")
    refuse("l.csv", "l.csv: line 1 has no 'key'; it has path, labels, id", ids_key="key")


@pytest.mark.slow
def test_a_list_that_asks_for_too_much_memory(folder):
    put("l.csv", b"path,labels\n" + b"".join(b"%d.png,1048575;0\n" % k for k in range(9000)))
    refuse("l.csv", "l.csv: labels need a matrix of 9.4 GB, at most 8.6 GB can be held", ResourceError)
    put("m.csv", b"")
    os.truncate("m.csv", (1 << 30) + 1)
    refuse("m.csv", "m.csv has 1.1 GB, a list may have at most 1.1 GB", ResourceError)


def test_images_of_a_list_that_are_missing(folder, run):
    put("photos/a.png")
    put("photos/l.csv", b"path,labels\na.png,x\nb.png,y\n../photos/a.png,y\n")
    why = "unreadable, No such file or directory"
    result = run("info", "photos/l.csv")
    assert (result.code, result.error) == (
        3,
        f"Error: photos/l.csv: 1 of 3 files cannot be used: 1 unreadable (first: b.png: {why}){ADVICE}",
    )
    assert "images: 2\n" in run("info", "photos/l.csv", "--skip-bad-rows").out


# ----------------------------------------------------------------------------------------------------------------- HDF5
def test_hdf5_of_another_form(folder):
    for value, form in [
        (np.zeros((3, 8, 8, 3), np.uint8), "(3, 8, 8, 3) uint8"),
        (np.zeros((3, 8), np.int64).view(np.uint16), "(3, 32) uint16"),
    ]:
        with h5py.File("p.h5", "w") as f:
            f["images"] = value
        refuse("p.h5", f"p.h5: images is {form}, needs (n,) encoded images: uint8 of variable length, opaque or bytes")
    with h5py.File("p.h5", "w") as f:
        f.create_dataset("images", (3,), h5py.string_dtype())
    with pytest.raises(DataError, match=r"^p.h5: images is \(3,\) object, needs \(n,\) encoded images"):
        open_rows("p.h5")
    with h5py.File("p.h5", "w") as f:
        f.create_group("images")
    with pytest.raises(DataError, match=r"^p.h5 has no dataset 'features'"):
        open_rows("p.h5")


def test_hdf5_undergoes_the_checks_of_rows(folder):
    data = np.array([encoded()] * 40)
    with h5py.File("other.h5", "w") as f:
        f["images"] = data
    with h5py.File("p.h5", "w") as f:
        f["images"] = h5py.ExternalLink("other.h5", "images")
    refuse("p.h5", "images lies outside p.h5 (other.h5); copy it in")
    with h5py.File("p.h5", "w") as f:
        f.create_dataset("images", (1000,), data.dtype, chunks=(100,))[:500] = data[0]
    refuse("p.h5", "p.h5: images: 5 of 10 chunks were never written")
    with h5py.File("p.h5", "w") as f:
        f.create_dataset("images", (10**10,), data.dtype, chunks=(100,))
    with pytest.raises(ResourceError, match=r"^p.h5: images declares 2.* TB, holds 0 bytes$"):
        open_rows("p.h5")
    with h5py.File("p.h5", "w") as f:
        f["images"], f["labels"] = data, np.arange(39)
    refuse("p.h5", "p.h5: labels has 39 rows, features has 40")
    with h5py.File("p.h5", "w") as f:
        f.create_dataset("images", data=data, chunks=(10,), fletcher32=True)
        at = f["images"].id.get_chunk_info_by_coord((20,)).byte_offset
    whole = os.path.getsize("p.h5")
    with open("p.h5", "r+b") as f:
        f.seek(at + 50)
        f.write(b"XXXX")
    for skip in (False, True):  # a damaged file is not a bad image
        refuse("p.h5", "p.h5: images: rows 20 to 29 are damaged; restore a copy", skip_bad_rows=skip)
    os.truncate("p.h5", whole // 2)
    refuse("p.h5", f"p.h5: file is truncated, {whole // 2:,} of {whole:,} bytes")
    put("photos/cat/1.png")
    os.mkdir("q.h5")
    refuse("q.h5", "q.h5 is a folder, needs to be a regular file")


def test_hdf5_that_changes_while_it_is_read(folder):
    with h5py.File("p.h5", "w") as f:
        f.create_dataset("images", data=np.array([encoded()] * 4), fletcher32=True, chunks=True)
    source = open_rows("p.h5")
    assert isinstance(source, ImageSource)
    source.shaped(8, "crop")
    source.read(0, 4)
    with open("p.h5", "ab") as f:
        f.write(b"x")
    with pytest.raises(DataError, match=r"^p.h5 changed from"):
        source.close()


# --------------------------------------------------------------------------------------------------------- command line
def test_info_of_a_folder(folder, run):
    for name in ("photos/cat/1.png", "photos/dog/2.png", "photos/dog/3.png"):
        put(name)
    result = run("info", "photos")
    assert (result.code, result.out, result.err) == (
        0,
        "photos: images\n  images: 3\n  labels: one\n  classes: 2\n  class names: cat, dog\n  ids: given\n",
        "",
    )
    result = run("info", "photos/cat/1.png")
    assert result.out == "photos/cat/1.png: images\n  images: 1\n  labels: none\n  classes: 0\n  ids: given\n"
    assert run("info", "photos", "--workers", "-1").code == 2
    assert run("info", "photos/").out.startswith("photos: images\n")


def test_without_pillow_the_line_to_type(folder, run, monkeypatch):
    put("photos/1.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    result = run("info", "photos")
    assert (result.code, result.error) == (
        2,
        'Error: PIL is not installed: pip install "scqfaiss[images]"',
    )
