"""Faults of index files, rows C1 to C8 of the fault table."""

import ast
import io
import itertools
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import faiss
import numpy as np
import pytest

import scqfaiss
from scqfaiss import files, footer
from scqfaiss.errors import ConfigError, IndexFileError, ResourceError, ScqError, ScqWarning
from scqfaiss.galleries import gallery, reading

from .conftest import blobs, write_h5

PACKAGE = Path(scqfaiss.__file__).parent
MISMATCH = "g.faissindex: checksum mismatch; export again or restore a copy"


def read(data, name="g.faissindex"):
    """Read a gallery that holds these bytes, in the current folder."""
    with open(name, "wb") as f:
        f.write(data)
    return reading.read_gallery(name)


def rejected(data, message=None):
    with pytest.raises(ScqError) as caught:
        read(data)
    assert caught.value.exit_code in (3, 5)
    if message:
        assert (caught.value.exit_code, str(caught.value)) == (3, message)


def sealed(index, metadata, change=None):
    """A FAISS index under a valid metadata and trailer; change(stream) forges the stream first."""
    stream = index if isinstance(index, bytes) else faiss.serialize_index(index).tobytes()
    if change is not None:
        stream = change(stream)
    f = io.BytesIO()
    footer.write_sealed(f, lambda put: put(stream), dict(metadata))
    return f.getvalue()


@pytest.fixture
def good(here):
    """(bytes, stored) of a sound gallery; the current folder is a scratch one."""
    return (here / "g.faissindex").read_bytes(), reading.read_gallery("g.faissindex")


@pytest.mark.slow
def test_c1_every_bit(good):
    """Through read_footer alone, which decides before FAISS sees a byte; the files themselves are sampled below."""
    data = bytearray(good[0])
    shared = open("g.faissindex", "r+b", buffering=0)
    accepted = 0
    with shared:
        for bit in range(8 * len(data)):
            i = bit // 8
            os.pwrite(shared.fileno(), bytes([data[i] ^ 1 << bit % 8]), i)
            try:
                # Without the magic it is no footer: the stream is then read to its end, and something follows it.
                if footer.has_footer(shared):
                    footer.read_footer(shared, "g.faissindex")
                    accepted += 1
                else:
                    reading.read_gallery("g.faissindex")
                    accepted += 1
            except IndexFileError:
                pass
            os.pwrite(shared.fileno(), bytes([data[i]]), i)
    assert accepted == 0
    assert reading.read_gallery("g.faissindex").index.ntotal == 200


@pytest.mark.slow
def test_c1_random_flips_of_whole_files(good):
    rng = np.random.default_rng(0)
    for name in ("g.faissindex", "p.faissindex", "folded.faissindex"):
        data = Path(name).read_bytes()
        for bit in rng.choice(8 * len(data), 700, replace=False):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            rejected(flipped)


@pytest.mark.slow
def test_c1_every_truncation(good):
    """One cut is sound: at the exact end of the FAISS stream. It warns and answers right."""
    data, stored = good
    with open("g.faissindex", "rb") as f:
        stream = footer.read_footer(f, "g.faissindex")[1]
    passed = []
    for n in range(len(data)):
        try:
            found = read(data[:n])
        except IndexFileError:
            continue
        passed.append(n)
        assert found.metadata is None
    assert passed == [stream]
    read(data[:stream])
    with pytest.warns(ScqWarning, match=r"^g\.faissindex: no checksum: written by another program, or cut off$"):
        cut = gallery.open_gallery("g.faissindex")
    z = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    for a, b in zip(cut.search(z, 7), stored.index.search(z, 7)):
        np.testing.assert_array_equal(a, b)


def test_c1_words(good):
    data = good[0]
    rejected(data[:1000] + bytes([data[1000] ^ 4]) + data[1001:], MISMATCH)
    behind = "g.faissindex: bytes follow the index without a valid footer; export again or restore a copy"
    rejected(data + b"\0", behind)
    rejected(data + data, MISMATCH)
    rejected(data[:-1], behind)
    rejected(data[: len(data) // 3], "g.faissindex: not a FAISS index, or damaged")
    rejected(b"", "g.faissindex: not a FAISS index, or damaged")
    rejected(b"SCQFAISS", "g.faissindex: not a FAISS index, or damaged")
    rejected(b"\0" * 48 + b"SCQFAISS", MISMATCH)
    rejected(b"\xff" * 48 + b"SCQFAISS", MISMATCH)


def test_c1_spliced_halves(good, here):
    a, b = good[0], (here / "other.faissindex").read_bytes()
    assert a != b
    for cut in (len(a) // 4, len(a) // 2, len(a) - 100):
        rejected(a[:cut] + b[cut - len(a) :], MISMATCH)


def test_c1_through_the_commands(run, here, untouched):
    data = bytearray((here / "g.faissindex").read_bytes())
    data[700] ^= 16
    (here / "g.faissindex").write_bytes(data)
    untouched(again=True)
    for arguments in (
        ["verify", "g.faissindex"],
        ["info", "g.faissindex"],
        ["info", "g.faissindex", "--json"],
        ["search", "g.faissindex", "query.h5", "--model", "m.safetensors", "-o", "hits.h5"],
        ["evaluate", "g.faissindex", "query.h5", "database.h5", "--model", "m.safetensors"],
    ):
        result = run(*arguments)
        assert (result.code, result.error) == (3, f"Error: {MISMATCH}")
    untouched()


@pytest.mark.parametrize("factory", ["Flat", "PQ4x4np", "IVF1,PQ4x4np"])
def test_c2_plain_faiss_file(run, here, factory):
    x, _ = blobs(200)
    index = faiss.index_factory(16, factory)
    for pq in [getattr(index, "pq", None)]:
        if pq is not None:
            pq.cp.min_points_per_centroid = 1
    if hasattr(index, "cp"):
        index.cp.min_points_per_centroid = 1
    index.train(x)
    index.add(x)
    faiss.write_index(index, "plain.faissindex")
    words = "plain.faissindex: no checksum: written by another program, or cut off"
    result = run("search", "plain.faissindex", "query.h5", "-k", "3", "-o", "hits.h5")
    assert (result.code, result.warnings) == (0, [words])
    with pytest.warns(ScqWarning):
        D, I = scqfaiss.open("plain.faissindex").search(x[:9], 5)
    for ours, theirs in zip((D, I), faiss.read_index("plain.faissindex").search(x[:9], 5)):
        np.testing.assert_array_equal(ours, theirs)
    result = run("verify", "plain.faissindex")
    assert result.code == 3
    assert result.error == (
        "Error: plain.faissindex: no checksum, nothing to verify: written by another program, or cut off"
    )


def hnsw():
    index = faiss.IndexHNSWFlat(4, 8)
    index.add(np.eye(4, dtype=np.float32))
    return index


def remap(entry):
    """A transform that reads element `entry` of a query of 4."""
    flat = faiss.IndexFlatIP(4)
    flat.add(np.eye(4, dtype=np.float32))
    t = faiss.RemapDimensionsTransform(4, 4, False)
    faiss.copy_array_to_vector(np.array([0, 1, 2, entry], np.int32), t.map)
    out = faiss.IndexPreTransform(flat)
    out.prepend_transform(t)
    return out


def test_c3_forged_streams(good):
    _, stored = good
    metadata = {k: v for k, v in stored.metadata.items() if k != "format"}
    for index, message in (
        (hnsw(), "class IndexHNSWFlat is not one that scqfaiss writes"),
        (remap(10**6), "RemapDimensionsTransform: places"),
        (remap(4), "RemapDimensionsTransform: places"),
        (remap(-2), "RemapDimensionsTransform: places"),
        (remap(3), "the metadata says target=ivfpq, the index is a IndexFlatIP"),
        (faiss.index_factory(4, "LSHt"), "class IndexLSH is not one that scqfaiss writes"),
        (faiss.index_factory(4, "SQ8"), "class IndexScalarQuantizer is not one that scqfaiss writes"),
        (faiss.index_factory(4, "Flat"), "the metadata says target=ivfpq, the index is a IndexFlatL2"),
        (b"hello, this is text\n" * 20, "not a FAISS index, or damaged"),
        (b"", "not a FAISS index, or damaged"),
    ):
        rejected(sealed(index, metadata), f"g.faissindex: {message}")
    for where in ("codebooks", "coarse"):
        index = faiss.clone_index(stored.index)
        vector = index.pq.centroids if where == "codebooks" else faiss.downcast_index(index.quantizer).codes
        values = faiss.vector_to_array(vector).copy()
        values.view(np.float32)[1] = np.nan
        faiss.copy_array_to_vector(values, vector)
        what = "IndexIVFPQ: codebooks" if where == "codebooks" else "IndexFlatIP: vectors"
        with pytest.raises(IndexFileError, match=f"{what} are not finite"):
            read(sealed(index, metadata))


def test_c3_nested_transforms(good):
    """A few are only a strange index of ours; more than FAISS is willing to follow are refused, not a stack overflow."""
    _, stored = good
    metadata = {k: v for k, v in stored.metadata.items() if k != "format"}
    flat = faiss.IndexFlatIP(4)
    flat.add(np.eye(4, dtype=np.float32))
    inside = faiss.serialize_index(flat).tobytes()
    outer = faiss.IndexPreTransform(flat)
    outer.prepend_transform(faiss.NormalizationTransform(4, 2.0))
    one = faiss.serialize_index(outer).tobytes()
    head = one[: one.index(inside)]
    for depth in (3, 50, 100_000):
        rejected(sealed(head * depth + inside, metadata))


def test_c3_lists_in_another_file(good, here):
    """Lists on disk name a file that FAISS would open: neither opened nor taken."""
    _, stored = good
    metadata = {k: v for k, v in stored.metadata.items() if k != "format"}
    index = faiss.clone_index(stored.index)
    lists = faiss.OnDiskInvertedLists(index.nlist, index.code_size, "elsewhere.bin")
    index.replace_invlists(lists)
    rejected(sealed(index, metadata), "g.faissindex: not a FAISS index, or damaged")


SIZES = """
import resource, sys
from scqfaiss.galleries import reading
from scqfaiss.errors import ScqError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    try:
        reading.read_gallery(name)
        print("accepted", name)
    except ScqError as error:
        print(error.exit_code, error)
print("grew", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1000)
"""


def test_c3_claims_of_size(good, here):
    """Vectors of 200 GB and of just what the limit lets through, a table that exists in memory only, a wide transform."""
    _, stored = good
    metadata = {k: v for k, v in stored.metadata.items() if k != "format"}
    stream = faiss.serialize_index(stored.index).tobytes()
    floats = np.uint64(256 * 4).tobytes()  # the length in front of the codebooks
    assert stream.count(floats) >= 1
    for name, claim in (("a", 50 * 10**9), ("b", (255 << 20) // 4)):
        forged = stream.replace(floats, np.uint64(claim).tobytes())
        Path(f"{name}.faissindex").write_bytes(sealed(forged, metadata))
    wide = faiss.IndexPreTransform(faiss.IndexFlatIP(4))
    wide.prepend_transform(faiss.LinearTransform(4, 4))
    forged = faiss.serialize_index(wide).tobytes()
    four = np.int32(4).tobytes()
    Path("c.faissindex").write_bytes(sealed(forged.replace(four, np.int32(2**31 - 1).tobytes()), metadata))
    Path("d.faissindex").write_bytes(sealed(forged.replace(four, np.int32(-4).tobytes()), metadata))
    done = subprocess.run(
        [sys.executable, "-c", SIZES, *(f"{n}.faissindex" for n in "abcd")], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    *lines, grew = done.stdout.splitlines()
    assert lines[0] == f"5 a.faissindex: claims more data than a file of {len(good[0]):,} bytes can hold"
    assert all(line[0] in "35" for line in lines), lines
    assert int(grew.split()[1]) < 300


FUZZ = """
import sys
import numpy as np, faiss, io, warnings
from scqfaiss import footer
from scqfaiss.galleries import reading
from scqfaiss.errors import ScqError
warnings.simplefilter("ignore")
faiss.omp_set_num_threads(1)
path, out, seed, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
stored = reading.read_gallery(path)
metadata = {k: v for k, v in stored.metadata.items() if k != "format"}
with open(path, "rb") as f:
    stream = footer.read_footer(f, path)[1]
    f.seek(0)
    stream = f.read(stream)
rng, rejected = np.random.default_rng(seed), 0
for i in range(count):
    forged = bytearray(stream)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(min(len(forged), 400) if i % 2 else len(forged)))
        forged[at] = int(rng.integers(256)) if i % 3 else forged[at] ^ 1 << int(rng.integers(8))
    with open(out, "w+b") as f:
        footer.write_sealed(f, lambda put: put(bytes(forged)), metadata)
    try:
        index = reading.read_gallery(out).index
    except ScqError:
        rejected += 1
        continue
    index.search(np.ones((3, index.d), np.float32), 5)
print(rejected, count - rejected)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["g", "p", "folded"])
def test_c3_fuzzed_streams_under_valid_trailers(here, name):
    """1,000 forged files each: refused, or searched without a crash. The hash cannot help here, the walk has to."""
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, f"{name}.faissindex", "fuzz.faissindex", "0", "1000"],
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert done.returncode == 0, done.stderr
    refused, accepted = map(int, done.stdout.split())
    assert refused > 100
    assert accepted > 100  # most bytes are numbers, and another finite number is another sound index


def recarded(data, **changes):
    """The same stream under a metadata with other entries, hashed anew."""
    stream_bytes, metadata_bytes, _, _ = footer.TRAILER.unpack(data[-footer.TRAILER.size :])
    metadata = json.loads(data[stream_bytes : stream_bytes + metadata_bytes]) | changes
    metadata = {k: v for k, v in metadata.items() if v is not ...}
    f = io.BytesIO()
    footer.write_sealed(f, lambda put: put(data[:stream_bytes]), metadata)
    return f.getvalue()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"metric": "l2"}, "the metadata says metric=l2, the index has ip"),
        ({"n": 201}, "the metadata says n=201, the index has 200"),
        ({"d": 5}, "the metadata says d=5, the index has 4"),
        ({"M": 1}, "the metadata says nbits=4, the index has 8"),
        ({"M": 3}, "the metadata says M=3, the index has 1"),
        ({"nbits": 8}, "the metadata says M=2, the index has 1"),
        ({"kind": "additive"}, "the metadata says kind=additive, the index has product"),
        ({"K": 256}, "the metadata says K=256, the index has 16"),
        ({"target": "pq"}, "the metadata says target=pq, the index has ivfpq"),
        ({"target": "lift"}, "the metadata says target=lift, the index has ivfpq"),
        ({"target": ...}, "the metadata says target=None, needs text"),
        ({"encoder": "none"}, "the metadata says d_in=16, the index has 4"),
        ({"encoder": "shell"}, "the metadata does not say how queries are encoded"),
        ({"encoder": ...}, "the metadata does not say how queries are encoded"),
        ({"d_in": ...}, "the metadata does not say how queries are encoded"),
        ({"d_in": "16"}, "the metadata does not say how queries are encoded"),
    ],
)
def test_c4_card_and_index_disagree(good, run, changes, message):
    rejected(recarded(good[0], **changes), f"g.faissindex: {message}")
    for command in ("verify", "info"):
        result = run(command, "g.faissindex")
        assert (result.code, result.error) == (3, f"Error: g.faissindex: {message}")


def test_c4_index_of_another_metric(good):
    """The metadata is right and the index was changed under it."""
    _, stored = good
    index = faiss.clone_index(stored.index)
    index.metric_type = faiss.METRIC_L2
    metadata = {k: v for k, v in stored.metadata.items() if k != "format"}
    rejected(sealed(index, metadata), "g.faissindex: the metadata says metric=ip, the index has l2")


def test_c4_cards_that_are_none(good):
    stream = faiss.serialize_index(good[1].index).tobytes()

    def with_card(text):
        import hashlib
        import struct

        body = stream + text + struct.pack("<QQ", len(stream), len(text))
        return body + hashlib.sha256(body).digest() + footer.MAGIC

    for text in (b"", b"{}", b"[1]", b"null", b'{"format": "1"}', b'{"format": true}', b'{"format": 1, "format": 1}'):
        rejected(with_card(text), "g.faissindex: the index metadata is not a JSON object with a format number")
    for text in (b"\xff\xfe", b"[" * 100_000, b"{" * 1000):
        rejected(with_card(text), "g.faissindex: the index metadata is not a JSON object with a format number")
    rejected(with_card(b" " * (footer.MAX_METADATA + 1)), MISMATCH)


def test_c5_newer_format(good, run):
    message = "g.faissindex: made by a newer scqfaiss: format 2, this version reads 1"
    rejected(recarded(good[0], format=2), message)
    result = run("verify", "g.faissindex")
    assert (result.code, result.error) == (3, f"Error: {message}")


def calls(tree):
    """(name of the function or method, its arguments) of every call in a parsed module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            f = node.func
            yield f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", ""), node


@pytest.mark.slow
def test_c7_calls_that_abort_are_not_made():
    """add_sa_codes on IVF fast-scan corrupts the heap, LSQ's norm_from_LUT and adding to MMAP_IFC abort: never written."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        tree = ast.parse(text)
        names = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        names |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        assert "norm_from_LUT" not in names, path
        if {"IO_FLAG_MMAP_IFC", "IO_FLAG_MMAP"} & names:  # what is mapped is never added to
            assert path.name == "index_reader.py"
            assert not [n for n in names if n.startswith(("add", "build"))]
        if "add_sa_codes" in names:
            assert not [n for n in names if "FastScan" in n], path
        for name, call in calls(tree):
            # By path a small index on a full disk raises nothing, and a killed write destroys the old file.
            if name in ("write_index", "read_index"):
                last = call.args[-1]
                # A comparison measures how FAISS opens the file that it has just written.
                own = path.name in ("digits.py", "index_reader.py") or path.parent.name == "comparison"
                plain = own and name == "read_index"
                assert plain or (isinstance(last, ast.Call) and "PyCallbackIO" in ast.dump(last)), (path, name)
            assert not (isinstance(call.func, ast.Name) and name in ("eval", "exec", "__import__")), path
            if name == "load" and "torch" in ast.dump(call.func):  # tensors alone, no code
                assert [k.value.value for k in call.keywords if k.arg == "weights_only"] == [True], path
            for keyword in call.keywords:
                assert keyword.arg != "allow_pickle" or keyword.value.value is False, path
        assert "import pickle" not in text, path


def test_c8_codes_are_not_encoded_again_and_tables_are_fresh(here):
    """What is stored is what was given, and FAISS's own scores are those of the decoded codes, L2 table included."""
    from scqfaiss.codebooks import Codebooks
    from scqfaiss.targets import REGISTRY, target

    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (60, 2)).astype(np.uint8)
    xq = rng.standard_normal((7, 8)).astype(np.float32)
    checked = []
    for kind, metric, name in itertools.product(("product", "additive"), ("ip", "l2"), REGISTRY):
        dsub = 4 if kind == "product" else 8
        codebooks = Codebooks(kind, rng.standard_normal((2, 16, dsub)).astype(np.float32), metric)
        if target(name).supports(codebooks.shape) is not None:
            continue
        index = target(name).build(codebooks, codes, np.arange(60) + 5)
        again = faiss.deserialize_index(faiss.serialize_index(index))
        for i in (index, faiss.downcast_index(again)):
            _, stored, ids = target(name).unpack(i, codebooks.shape)
            np.testing.assert_array_equal(stored[np.argsort(ids)], codes)
            D, I = target(name).search(i, xq, 60)
            scores = codebooks.scores(xq, codes)
            np.testing.assert_allclose(D, np.take_along_axis(scores, I - 5, 1), rtol=1e-4, atol=1e-4)
        checked.append((kind, metric, name))
    assert {name for _, _, name in checked} == set(REGISTRY)
    assert len(checked) == 13


def test_reading_stops_on_ctrl_c_and_says_what_a_failing_disk_says(here, monkeypatch):
    """An exception inside FAISS's read callback is neither swallowed nor taken for damage."""

    class Failing:
        def __init__(self, f, error):
            self.f, self.error, self.armed = f, error, False

        def __getattr__(self, name):
            return getattr(self.f, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.f.close()

        def seek(self, *a):
            self.armed = a == (0,)
            return self.f.seek(*a)

        def read(self, n):
            if self.armed:
                raise self.error
            return self.f.read(n)

    real = files.open_regular
    for error, wanted, message in (
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (OSError(5, "io"), IndexFileError, "g.faissindex: cannot be read (Input/output error)"),
    ):
        monkeypatch.setattr(files, "open_regular", lambda path, e=error: Failing(real(path), e))
        with pytest.raises(wanted) as caught:
            reading.read_gallery("g.faissindex", verify=False)
        if message:
            assert str(caught.value) == message


def test_g4_faiss_too_old(run, here, monkeypatch, untouched):
    monkeypatch.delattr(faiss, "set_deserialization_vector_byte_limit")
    monkeypatch.setattr(faiss, "__version__", "1.14.1")
    result = run("verify", "g.faissindex")
    message = 'FAISS 1.14.1 is too old, needs 1.14.2 or newer: pip install -U "scqfaiss[cpu]"'
    assert (result.code, result.error) == (2, f"Error: {message}")
    untouched()


def test_read_limits_are_put_back(good):
    before = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
    for data in (good[0], good[0][:700]):
        try:
            read(data)
        except (IndexFileError, ResourceError):
            pass
    assert (faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()) == before


def test_another_model_or_none(here):
    with pytest.raises(ConfigError):
        gallery.open_gallery("g.faissindex", model="other.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_h5("x.h5", blobs(3)[0])
        opened = gallery.open_gallery("g.faissindex")
    with pytest.raises(ConfigError, match=r"^g\.faissindex needs the model its codes came from; give --model$"):
        opened.embed(np.zeros((1, opened.d), np.float32))
