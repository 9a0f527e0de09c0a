"""Reading: whole or memory-mapped, a gallery is checked alike and answers alike."""

import os
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest

import scqfaiss
from scqfaiss import footer
from scqfaiss.errors import ConfigError, IndexFileError
from scqfaiss.galleries.reading import read_gallery, stamp_of, target_of
from scqfaiss.targets import REGISTRY, make_options, target
from scqfaiss.targets.pretransform import unwrap_index

from .conftest import LISTED, LISTS, VALID, random_codebooks, random_codes, random_queries, valid, write


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """saved(name) -> g.faissindex in the current folder holds that valid gallery; its metadata."""
    monkeypatch.chdir(tmp_path)

    def call(name, path="g.faissindex"):
        index, metadata = valid(name)
        write(path, index, metadata)
        return metadata

    return call


@pytest.mark.parametrize("name", VALID)
def test_a_mapped_gallery_answers_as_one_that_was_read(name, saved):
    metadata = saved(name)
    read, mapped = (read_gallery("g.faissindex", mmap=mmap) for mmap in (False, True))
    assert read.target.INFO == mapped.target.INFO and read.stamp == mapped.stamp and read.metadata == mapped.metadata
    assert read.target.INFO.name == metadata["target"]
    container, q = read.target, random_queries(5, metadata["d"])
    for k in (1, 9, metadata["n"]):
        for a, b in zip(*(container.search(stored.index, q, k) for stored in (read, mapped))):
            np.testing.assert_array_equal(a, b)
    if container.INFO.filter:
        few = faiss.IDSelectorBatch(np.arange(9, 90, 4))
        for a, b in zip(*(container.search(stored.index, q, 9, sel=few) for stored in (read, mapped))):
            np.testing.assert_array_equal(a, b)
    if name != "fastscan alone":
        for a, b in zip(*(container.range_search(stored.index, q, 1.0) for stored in (read, mapped))):
            np.testing.assert_array_equal(a, b)
    for a, b in zip(*(container.unpack(stored.index, stored.shape) for stored in (read, mapped))):
        np.testing.assert_array_equal(getattr(a, "centroids", a), getattr(b, "centroids", b))


@pytest.mark.parametrize("name", VALID)
def test_whose_index_it_is_follows_from_the_index(name, saved):
    metadata = saved(name)
    index = read_gallery("g.faissindex").index
    held_by = [n for n in REGISTRY if target(n).holds(index)]
    if name in LISTED:  # searched exactly or not, they are stored alike
        assert metadata["target"] in held_by and set(held_by) <= {"ivfpq", "lift", "buckets"}
        assert target_of(index, metadata["target"]).INFO.name == metadata["target"]
        assert target_of(index, "pq").INFO.name == ("lift" if metadata["kind"] == "additive" else "ivfpq")
        return
    assert held_by == [metadata["target"]]
    for told in (None, metadata["target"], "pq", "no such"):  # a wrong word does not make it another's
        assert target_of(index, told).INFO.name == metadata["target"]
    assert target_of(faiss.IndexFlatIP(4)) is None


def test_lists_that_are_mapped_start_no_threads(saved):
    saved("ivfpq")
    for mmap, kind in ((False, faiss.ArrayInvertedLists), (True, faiss.OnDiskInvertedLists)):
        stored = read_gallery("g.faissindex", mmap=mmap)
        lists = faiss.downcast_InvertedLists(unwrap_index(stored.index).invlists)
        assert isinstance(lists, kind)
        if mmap:
            assert lists.prefetch_nthread == 0


GROWTH = """
import sys, warnings
import numpy as np
import faiss
from scqfaiss.galleries.reading import read_gallery
warnings.simplefilter("ignore")
faiss.omp_set_num_threads(1)
def anonymous():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("RssAnon")) / 1000
for path in sys.argv[1:]:
    small = read_gallery("small.faissindex", mmap=True)  # what the first of all costs
    small.index.search(np.ones((1, small.index.d), np.float32), 10)
    before = anonymous()
    stored = read_gallery(path, mmap=True, verify=False)
    stored.index.search(np.ones((1, stored.index.d), np.float32), 10)
    print(anonymous() - before)
"""


@pytest.mark.slow
def test_what_is_mapped_takes_no_memory(saved, tmp_path):
    """Lists, and codes without lists: files of 40 MB."""
    saved("ivfpq", "small.faissindex")
    rng = np.random.default_rng(0)
    for name, kind, n in (
        ("ivfpq", "product", 1_700_000),
        ("pq", "product", 2_500_000),
        ("residual", "additive", 2_500_000),
    ):
        codebooks = random_codebooks(kind, 16, 8, 16)
        codes = rng.integers(0, 256, (n, 16), np.uint8)
        index = target(name).build(codebooks, codes, np.arange(n))
        s = codebooks.shape
        metadata = {"target": name, "n": n, "kind": kind, "M": 16, "nbits": 8, "K": s.K, "d": 16, "metric": "ip"}
        with open(f"{name}.faissindex", "x+b") as f:
            writer = lambda put, index=index: faiss.write_index(index, faiss.PyCallbackIOWriter(put))  # noqa: E731
            footer.write_sealed(f, writer, metadata | {"encoder": "none", "d_in": 16})
        del index, codes
        assert os.stat(f"{name}.faissindex").st_size > 40e6
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, "ivfpq.faissindex", "pq.faissindex", "residual.faissindex"],
        capture_output=True,
        text=True,
        timeout=50,
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(scqfaiss.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert all(float(grew) < 8 for grew in done.stdout.split()), done.stdout
    assert len(done.stdout.split()) == 3


@pytest.mark.parametrize("name", ["ivfpq", "pq", "boxes", "residual", "fastscan"])
def test_a_mapped_gallery_answers_from_the_old_file_when_another_takes_its_place(name, saved):
    metadata = saved(name)
    mapped = read_gallery("g.faissindex", mmap=True)
    q = random_queries(5, metadata["d"])
    before = mapped.target.search(mapped.index, q, 20)
    which, kind, M, nbits, d, metric, n, options = VALID[name]
    codebooks = random_codebooks(kind, M, nbits, d, metric, seed=77)
    write(
        "new.faissindex",
        target(which).build(codebooks, random_codes(codebooks, n), np.arange(n), make_options(which, options)),
        metadata,
    )
    os.replace("new.faissindex", "g.faissindex")
    for a, b in zip(mapped.target.search(mapped.index, q, 20), before):
        np.testing.assert_array_equal(a, b)
    other = read_gallery("g.faissindex", mmap=True)
    assert other.stamp != mapped.stamp
    assert not np.array_equal(other.target.search(other.index, q, 20)[0], before[0])
    os.unlink("g.faissindex")
    np.testing.assert_array_equal(mapped.target.search(mapped.index, q, 20)[0], before[0])


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_lists_in_another_file_are_refused(mmap, there, saved):
    saved("ivfpq")
    index, metadata = valid("ivfpq")
    lists = faiss.OnDiskInvertedLists(1, index.code_size, "elsewhere.bin")
    lists.merge_from_1(index.invlists)
    index.replace_invlists(lists)
    stream = faiss.serialize_index(index)
    assert b"ilod" in stream.tobytes()
    write("forged.faissindex", index, metadata)
    del index, lists
    if there:
        assert os.path.exists("elsewhere.bin")
    else:
        os.unlink("elsewhere.bin")
        os.mkfifo("elsewhere.bin")  # opening it would wait for ever
    with pytest.raises(IndexFileError, match=r"^forged\.faissindex: not a FAISS index, or damaged$"):
        read_gallery("forged.faissindex", mmap=mmap)


@pytest.mark.parametrize("mmap", [False, True])
def test_lists_in_another_file_behind_lists_that_are_here_are_refused(mmap, saved):
    saved("ivfpq")
    index, metadata = valid("many boxes")
    ivf = unwrap_index(index)
    lists = faiss.OnDiskInvertedLists(ivf.nlist, ivf.code_size, "elsewhere.bin")
    lists.merge_from_1(ivf.invlists)
    ivf.replace_invlists(lists)
    write("forged.faissindex", index, metadata)
    del index, ivf, lists
    os.unlink("elsewhere.bin")
    os.mkfifo("elsewhere.bin")
    with pytest.raises(IndexFileError, match=r"^forged\.faissindex: "):
        read_gallery("forged.faissindex", mmap=mmap)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("name", ["ivfpq", "residual l2", "fastscan", "many boxes"])
def test_damage_is_found_mapped_or_not(name, mmap, saved):
    saved(name)
    data = Path("g.faissindex").read_bytes()
    with open("g.faissindex", "rb") as f:
        stream = footer.read_footer(f, "g.faissindex")[1]
    for place in np.linspace(0, len(data) - 49, 25).astype(int):
        Path("x.faissindex").unlink(missing_ok=True)
        Path("x.faissindex").write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        with pytest.raises(IndexFileError, match=r"^x\.faissindex: checksum mismatch; export again or restore a copy$"):
            read_gallery("x.faissindex", mmap=mmap)
    for cut in (0, 4, 100, stream // 2, stream - 1, stream + 1, len(data) - 1):
        Path("x.faissindex").unlink()
        Path("x.faissindex").write_bytes(data[:cut])
        with pytest.raises(IndexFileError):
            read_gallery("x.faissindex", mmap=mmap)
    Path("x.faissindex").unlink()
    Path("x.faissindex").write_bytes(data[:stream])
    plain = read_gallery("x.faissindex", mmap=mmap)
    assert (plain.metadata, plain.shape) == (None, None)


@pytest.mark.parametrize("mmap", [False, True])
def test_without_the_hash_lengths_and_card_are_checked_all_the_same(mmap, saved):
    saved("ivfpq")
    data = bytearray(Path("g.faissindex").read_bytes())
    with open("g.faissindex", "rb") as f:
        stream = footer.read_footer(f, "g.faissindex")[1]
    data[stream - 3] ^= 1  # of an id
    Path("bit.faissindex").write_bytes(data)
    with pytest.raises(IndexFileError, match="checksum mismatch"):
        read_gallery("bit.faissindex", mmap=mmap)
    assert read_gallery("bit.faissindex", mmap=mmap, verify=False).index.ntotal == 60
    Path("junk.faissindex").write_bytes(bytes(data[:stream]) + b"junk" + bytes(data[stream:]))
    with pytest.raises(IndexFileError, match="checksum mismatch"):
        read_gallery("junk.faissindex", mmap=mmap, verify=False)
    index, metadata = valid("ivfpq")
    write("card.faissindex", index, metadata | {"n": 61})
    with pytest.raises(IndexFileError, match=r"the metadata says n=61, the index has 60$"):
        read_gallery("card.faissindex", mmap=mmap, verify=False)
    unwrap_index(index).pq.centroids.at(0)
    faiss.copy_array_to_vector(np.full(4 * 256 * 2, np.nan, np.float32), index.pq.centroids)
    write("nan.faissindex", index, metadata)
    with pytest.raises(IndexFileError, match="codebooks are not finite"):
        read_gallery("nan.faissindex", mmap=mmap, verify=False)


@pytest.mark.parametrize("mmap", [False, True])
def test_what_is_no_file(mmap, saved):
    saved("pq")
    with pytest.raises(ConfigError, match=r"^no\.faissindex: no such file$"):
        read_gallery("no.faissindex", mmap=mmap)
    os.mkdir("folder.faissindex")
    os.mkfifo("pipe.faissindex")
    for name in ("folder", "pipe"):
        with pytest.raises(IndexFileError, match=f"^{name}\\.faissindex: is no plain file$"):
            read_gallery(f"{name}.faissindex", mmap=mmap)


def stamp(path):
    with open(path, "rb") as f:
        return stamp_of(f)


def test_a_stamp_tells_content_from_content(saved):
    saved("pq")
    first = stamp("g.faissindex")
    saved("pq", "twin.faissindex")
    saved("fastscan", "other.faissindex")
    assert stamp("twin.faissindex") == first  # the same bytes, whatever the file
    os.utime("twin.faissindex", (0, 0))
    assert stamp("twin.faissindex") == first
    assert stamp("other.faissindex") != first
    assert read_gallery("g.faissindex").stamp == first


def test_a_file_without_footer_has_no_stamp(tmp_path):
    """No one can tell then whether it is another."""
    index, _ = valid("pq")
    faiss.write_index(index, str(tmp_path / "g.faissindex"))
    assert stamp(tmp_path / "g.faissindex") is None
    assert read_gallery(tmp_path / "g.faissindex").stamp is None


def test_the_shape_of_the_card_tells_of_merged_codebooks(saved):
    saved("words")
    stored = read_gallery("g.faissindex")
    assert (stored.shape.M, stored.shape.nbits) == (2, 4)
    held = stored.target.shape_of(stored.index)
    assert (held.M, held.nbits) == (1, 8)
    codebooks, codes, _ = stored.target.unpack(stored.index, stored.shape)
    assert codebooks.shape == stored.shape and codes.shape == (300, 2)


@pytest.mark.parametrize("name", LISTED)
def test_lists_are_what_the_metadata_says(name, saved):
    metadata = saved(name)
    assert read_gallery("g.faissindex").shape.L == LISTS
    index, _ = valid(name)
    for said, words in ((LISTS + 1, "lists=8, the index has 7"), (None, "lists=None, the index has 7")):
        changed = {k: v for k, v in (metadata | {"lists": said}).items() if v is not None}
        write(f"{said}.faissindex", index, changed)
        with pytest.raises(IndexFileError, match=f"the metadata says {words}"):
            read_gallery(f"{said}.faissindex")


@pytest.mark.parametrize("name", ["ivfpq", "lift", "ivfpq lists", "words", "boxes", "pq"])
def test_lists_that_are_not_there_are_missed(name, saved):
    metadata = saved(name)
    index, _ = valid(name)
    write("w.faissindex", index, metadata | {"lists": 2})
    with pytest.raises(IndexFileError, match="the metadata says lists=2, the index has 1"):
        read_gallery("w.faissindex")


def test_additive_centroids_that_reach_into_other_codebooks_are_refused(saved):
    metadata = saved("lift listed")
    index, _ = valid("lift listed")
    core = unwrap_index(index)
    flat = faiss.downcast_index(core.quantizer)
    rows = faiss.vector_to_array(flat.codes).view(np.float32).reshape(LISTS, -1).copy()
    rows[2, -1] = 1
    faiss.copy_array_to_vector(rows.view(np.uint8).ravel(), flat.codes)
    write("w.faissindex", index, metadata)
    with pytest.raises(IndexFileError, match="the centroid of list 2 reaches beyond the first 6 dimensions"):
        read_gallery("w.faissindex")
