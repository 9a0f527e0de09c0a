"""Faults in the life of a gallery: rows that come and go, galleries joined, files mapped into memory."""

import errno
import os
import shutil
import signal
import subprocess
from pathlib import Path

import faiss
import numpy as np
import pytest

import scqfaiss
from scqfaiss import files, footer
from scqfaiss.errors import ConfigError, IndexFileError
from scqfaiss.galleries import editing
from scqfaiss.galleries.inspection import verify_file
from scqfaiss.galleries.snapshot import Snapshot

from .conftest import blobs, checked, command, write_h5
from .test_d_writing import DISK, hold, refused, tool

APPEND = ("append", "folded.faissindex", "query.h5")
REMOVE = ("remove", "folded.faissindex", "--ids", "1000,1001,7")
MERGE = ("merge", "folded.faissindex", "half.faissindex", "-o", "both.faissindex")
EDITS = {"append": APPEND, "remove": REMOVE, "merge": MERGE}
TARGETS = {"append": "folded.faissindex", "remove": "folded.faissindex", "merge": "both.faissindex"}


@pytest.fixture
def there(here, run, untouched):
    """A second shard, and a gallery where the merge will write."""
    scqfaiss.export("pq.safetensors", blobs(30)[0], ids=np.arange(30), path="half.faissindex")
    shutil.copy("half.faissindex", "both.faissindex")
    untouched(again=True)
    return untouched


@pytest.mark.slow
@pytest.mark.parametrize("what", ["append", "remove"])
def test_d1_kill_during_an_edit(tmp_path, what):
    found = tool("kill_export").kill_exports(tmp_path, kills=4, rows=20_000, what=what)
    assert found["old"] + found["new"] == 4
    assert (found["damaged"], found["litter"]) == (0, 0)


@pytest.mark.parametrize("what", EDITS)
def test_d2_stop_inside_the_fill(run, there, monkeypatch, what):
    real, blocks = faiss.PyCallbackIOWriter, []

    def writer(put):
        def stopping(block):
            blocks.append(len(block))
            if len(blocks) == 5:
                assert [p for p in os.listdir() if ".faissindex.tmp-" in p]
                os.kill(os.getpid(), signal.SIGINT)
            put(block)

        return real(stopping)

    monkeypatch.setattr(faiss, "PyCallbackIOWriter", writer)
    refused(run(*EDITS[what]), 130, "stopped; nothing was left half-written")
    assert len(blocks) >= 5
    there()


@pytest.mark.parametrize("what", EDITS)
@pytest.mark.parametrize("when", ["write", "fsync", "replace"])
def test_d3_disk_full(run, there, monkeypatch, what, when):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "full")

    if when == "write":
        monkeypatch.setattr(footer, "write_sealed", refuse)
    else:
        monkeypatch.setattr(files.os, when, refuse)
    result = run(*EDITS[what])
    assert result.code == 4
    name = TARGETS[what]
    assert result.error.startswith(f"Error: {name}: needs ") and result.error.endswith(" free"), result.error
    there()


def test_d3_words_before_any_row_is_encoded(run, there, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: DISK(0, 0, 1000))
    monkeypatch.setattr(editing, "encode_source", None)
    result = run(*APPEND)
    assert result.code == 4
    assert result.error.startswith("Error: folded.faissindex: needs ") and result.error.endswith("1.0 kB free")
    there()


@pytest.mark.slow
@pytest.mark.parametrize("what", EDITS)
def test_d3_file_size_limit(start, there, what):
    message = f"{TARGETS[what]}: grew past the largest file allowed here (ulimit -f)"
    refused(start(*EDITS[what], limit=2000), 4, message)
    there()


@pytest.mark.parametrize("what", EDITS)
def test_d4_read_only(run, there, here, monkeypatch, what):
    real = os.open

    def refuse(path, flags, *rest, **more):
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, "read-only")
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(files.os, "open", refuse)
    monkeypatch.setattr(editing, "read_gallery", None)  # not reached
    refused(run(*EDITS[what]), 4, f"{TARGETS[what]}: cannot write in folder {here} (Read-only file system)")
    there()


def test_d7_the_gallery_itself_as_an_input(run, there):
    os.link("folded.faissindex", "hard.h5")
    os.symlink("folded.faissindex", "soft.faissindex")
    there(again=True)
    another = "is an input of this command; choose another output"
    gallery = "folded.faissindex"
    assert run("append", gallery, gallery).error.startswith(f"Error: {gallery}: ending '.faissindex' is unknown")
    refused(run("append", gallery, "hard.h5"), 2, f"hard.h5 {another}")
    refused(run("append", gallery, "query.h5", "--model", gallery), 2, f"{gallery} {another}")
    refused(run("remove", gallery, "--ids", gallery), 2, f"{gallery} {another}")
    refused(run("remove", "soft.faissindex", "--ids", "hard.h5"), 2, f"hard.h5 {another}")
    refused(run("merge", gallery, "half.faissindex", "-o", gallery), 2, f"{gallery} {another}")
    refused(run("merge", gallery, "half.faissindex", "-o", "soft.faissindex"), 2, f"{gallery} {another}")
    search = ("search", gallery, "query.h5", "-o")
    refused(run(*search, "hard.h5"), 2, f"{gallery} {another}")
    Path("some.txt").write_text("1000")
    refused(run(*search, "some.txt", "--filter-ids", "some.txt"), 2, f"some.txt {another}")
    refused(run(*search, "some.txt", "--deny-ids", "some.txt"), 2, f"some.txt {another}")
    os.unlink("some.txt")
    there()


def test_d7_edits_through_a_link_change_the_file_it_leads_to(run, here):
    os.rename("folded.faissindex", "real.faissindex")
    os.symlink("real.faissindex", "folded.faissindex")
    os.chmod("real.faissindex", 0o640)
    assert run(*APPEND).code == run(*REMOVE).code == 0
    assert os.path.islink("folded.faissindex")
    assert os.stat("real.faissindex").st_mode & 0o777 == 0o640
    assert verify_file("real.faissindex").startswith("real.faissindex: valid, 218 vectors")


def test_d8_edits_while_another_process_holds_the_lock(run, there):
    with hold("folded.faissindex", "exported") as holder:
        for edit in (APPEND, REMOVE):
            refused(run(*edit), 4, f"folded.faissindex is being exported by pid {holder.pid}")
        assert run("search", "folded.faissindex", "query.h5").code == 0
        holder.kill()
        holder.wait()
    assert run(*REMOVE).code == 0
    assert not Path(".folded.faissindex.lock").exists()


@pytest.mark.slow
def test_d8_two_appends_at_once(here):
    """Both are started at once: each ends with 0, or with 4 and the words of the lock; what succeeded is inside, whole."""
    shards = []
    for number in range(2):
        ids = np.arange(50) + 9000 + 100 * number
        write_h5(f"{number}.h5", blobs(50, seed=number)[0], ids=ids)
        shards.append(ids)
    both = [
        subprocess.Popen(
            command("append", "folded.faissindex", f"{number}.h5"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    inside = set(range(1000, 1200))
    for process, ids in zip(both, shards):
        out, err = process.communicate(timeout=50)
        result = checked(process.returncode, out, err)
        if result.code == 0:
            inside |= set(ids.tolist())
        else:
            assert result.code == 4
            assert result.error.startswith("Error: folded.faissindex is being changed by pid ")
    assert len(inside) > 200
    assert set(scqfaiss.open("folded.faissindex").unpack()[2].tolist()) == inside


@pytest.mark.parametrize("how", ["replaced", "removed", "longer"])
def test_rows_that_change_while_they_are_read_are_not_appended(run, here, monkeypatch, how):
    np.save("rows.npy", blobs(20)[0])
    old = Path("folded.faissindex").read_bytes()
    real = editing.encode_source

    def change(*arguments):
        codes = real(*arguments)
        if how == "longer":
            with open("rows.npy", "ab") as f:
                f.write(b"more")
        else:
            os.unlink("rows.npy")
        if how == "replaced":
            np.save("rows.npy", blobs(20, seed=1)[0])
        return codes

    monkeypatch.setattr(editing, "encode_source", change)
    result = run("append", "folded.faissindex", "rows.npy")
    assert result.code == 3
    assert "while it was read" in result.error
    assert Path("folded.faissindex").read_bytes() == old


# ----------------------------------------------------------------------------------------------------------- mapped files
@pytest.fixture(scope="module")
def forms(made, tmp_path_factory):
    """A gallery of every way a file can be mapped: one list, many lists, lists inside lists, flat codes."""
    folder = tmp_path_factory.mktemp("forms")
    x = blobs(300)[0]
    for name, target, more in (
        ("one", "ivfpq", {}),
        ("lists", "ivfpq", {"nlist": 8}),
        ("words", "buckets", {}),
        ("boxes", "buckets", {"nlist": 8}),
        ("flat", "pq", {}),
    ):
        path = folder / f"{name}.faissindex"
        scqfaiss.export(made / "pq.safetensors", x, ids=np.arange(300) + 7, path=path, target=target, **more)
    return folder


@pytest.mark.parametrize("name", ["one", "lists", "words", "boxes", "flat"])
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.filterwarnings("ignore::scqfaiss.errors.ScqWarning")
def test_c_mapped_files_cut_short_are_refused(here, forms, name, verify):
    """FAISS checks that mapped lists begin inside the file; that they end there is for us to see."""
    data = (forms / f"{name}.faissindex").read_bytes()
    stream = len(data) - footer.TRAILER.size - footer.TRAILER.unpack(data[-footer.TRAILER.size :])[1]
    cuts = [*range(0, stream, 997), *range(stream - 9, stream), stream + 1, stream + 200, len(data) - 8, len(data) - 1]
    for cut in cuts:
        Path("cut.faissindex").write_bytes(data[:cut])
        with pytest.raises(IndexFileError):
            scqfaiss.open("cut.faissindex", mmap=True, verify=verify)
    # Cut to the byte behind the index it is a plain FAISS file.
    Path("cut.faissindex").write_bytes(data[:stream])
    assert scqfaiss.open("cut.faissindex", mmap=True, verify=verify).ntotal == 300


@pytest.mark.parametrize("name", ["one", "lists", "words", "boxes", "flat"])
def test_c_mapped_files_with_other_sizes_are_refused(here, forms, name):
    """Every 8 bytes that could be a size, made large, under a footer that is sound."""
    with open(forms / f"{name}.faissindex", "rb") as f:
        metadata, stream = footer.read_footer(f, name)
        f.seek(0)
        data = f.read(stream)
    refusals = 0
    tail = data.rfind(b"ilar") if name != "flat" else 0
    places = range(tail + 4, min(tail + 120, stream - 8), 4)
    for place in places:
        for value in (2**63, 2**64 - 1, 301, 10**9):
            bad = bytearray(data)
            bad[place : place + 8] = value.to_bytes(8, "little")
            with open("bad.faissindex", "w+b") as f:
                footer.write_sealed(f, lambda put, bad=bytes(bad): put(bad), metadata)
            try:
                gallery = scqfaiss.open("bad.faissindex", mmap=True)
                gallery.search(blobs(2)[0], 5)
            except scqfaiss.ScqError:
                refusals += 1
    assert refusals


def test_c_sizes_that_wrap_are_refused(here, forms):
    """Two lists whose sizes sum up right modulo 2^64, and so do their places in the file."""
    with open(forms / "lists.faissindex", "rb") as f:
        metadata, stream = footer.read_footer(f, "lists")
        f.seek(0)
        data = bytearray(f.read(stream))
    place = data.rfind(b"full") + 12
    sizes = np.frombuffer(data, "<u8", 8, place).copy()
    assert sizes.sum() == 300
    with np.errstate(over="ignore"):
        sizes[0] -= np.uint64(1000)
        sizes[1] += np.uint64(1000)
    data[place : place + 64] = sizes.tobytes()
    with open("bad.faissindex", "w+b") as f:
        footer.write_sealed(f, lambda put: put(bytes(data)), metadata)
    for mmap in (True, False):
        with pytest.raises(scqfaiss.ScqError):
            scqfaiss.open("bad.faissindex", mmap=mmap)


def test_g3_a_mapped_file_that_is_replaced_or_removed_goes_on(here, forms):
    for name in ("one", "lists", "words", "boxes", "flat"):
        shutil.copy(forms / f"{name}.faissindex", "live.faissindex")
        gallery = scqfaiss.open("live.faissindex", mmap=True)
        want = gallery.search(blobs(9)[0], 20)
        scqfaiss.remove("live.faissindex", np.arange(100))
        os.unlink("live.faissindex")
        for a, b in zip(gallery.search(blobs(9)[0], 20), want):
            np.testing.assert_array_equal(a, b)


def test_mapping_leaves_no_descriptor_open(here, forms):
    before = len(os.listdir("/proc/self/fd"))
    for name in ("one", "boxes", "flat"):
        for _ in range(3):
            scqfaiss.open(forms / f"{name}.faissindex", mmap=True)
    assert len(os.listdir("/proc/self/fd")) == before


# ------------------------------------------------------------------------------------------------------------------- GPU
def test_e5_filters_and_ranges_on_a_gpu_are_refused(here):
    """FAISS's GPU search takes a selector and ignores it."""
    gallery = scqfaiss.open("folded.faissindex")
    gallery._snapshot = Snapshot(gallery._snapshot.stored, on_gpu=object())
    xq = blobs(2)[0]
    for more in ({"allow": [1000]}, {"deny": [1000]}):
        with pytest.raises(ConfigError, match=r"^filters need device cpu: "):
            gallery.search(xq, 3, **more)
    with pytest.raises(ConfigError, match=r"^a GPU has no range search; use device cpu$"):
        gallery.range_search(xq, 0.0)
