"""Forged files under sound hashes: a small run of tools/forge_files.py, and single cases of every kind."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
from targets.conftest import valid, write

import scqfaiss
from scqfaiss import bundle, footer
from scqfaiss.codebooks import Codebooks
from scqfaiss.encoders.chain import Chain
from scqfaiss.errors import CheckpointError, IndexFileError, ResourceError
from scqfaiss.galleries.reading import read_gallery
from scqfaiss.metadata import check_card, check_config
from scqfaiss.model import Model
from scqfaiss.targets.pretransform import unwrap_index

from .conftest import command

ROOT = Path(scqfaiss.__file__).parents[1]


@pytest.mark.filterwarnings("ignore::scqfaiss.errors.ScqWarning")
@pytest.mark.parametrize("mmap", [False, True])
def test_tables_of_products_that_no_limit_of_faiss_knows_of(mmap, tmp_path):
    """131 kB that FAISS would turn into 1.9 GB of products between codewords."""
    index = faiss.IndexResidualQuantizer(1, 8, 12, faiss.METRIC_INNER_PRODUCT, faiss.AdditiveQuantizer.ST_LUT_nonorm)
    faiss.copy_array_to_vector(np.zeros(8 * 4096, np.float32), index.rq.codebooks)
    index.rq.is_trained = index.is_trained = True
    write(tmp_path / "g.faissindex", index, valid("residual")[1])
    with pytest.raises(ResourceError, match="claims more data than a file of"):
        read_gallery(tmp_path / "g.faissindex", mmap=mmap)


@pytest.mark.slow
def test_a_few_forged_files_do_no_harm():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "forge_files.py", "--nestings", "25", "--fields", "36"],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "answers right" in done.stdout and "refused" in done.stdout


@pytest.mark.parametrize("value", [None, True, -1, 10**400, float("nan"), "x", ["x"], {"x": 1}])
@pytest.mark.parametrize("key", ["target", "kind", "M", "d", "n", "metric", "options", "encoder", "d_in", "bits"])
def test_a_value_of_the_card_is_looked_at_before_it_is_used(key, value, tmp_path):
    index, metadata = valid("pq")
    check_card(metadata, "g")
    forged = metadata | {key: value}
    try:
        write(tmp_path / "g.faissindex", index, forged)
    except ValueError:  # NaN is no JSON: what writes refuses it
        with pytest.raises(IndexFileError):
            check_card(forged, "g")
        return
    with pytest.raises(IndexFileError):
        read_gallery(tmp_path / "g.faissindex")


@pytest.mark.parametrize("key", ["method", "encoder", "chain", "codebooks", "settings", "training", "class_names"])
def test_a_value_of_the_config_is_looked_at_before_it_is_used(key):
    config = {"method": "dpq", "encoder": "mlp", "chain": {}, "codebooks": {}}
    check_config(config, "m")
    for value in (True, -1, 10**400, float("nan"), [1]):
        with pytest.raises(CheckpointError):
            check_config(config | {key: value}, "m")


@pytest.mark.parametrize("stream", [b"null", b"IxPTnull"])
@pytest.mark.parametrize("mmap", [False, True])
def test_an_absent_index_is_refused(stream, mmap, tmp_path):
    write_stream(tmp_path / "g.faissindex", stream)
    with pytest.raises(IndexFileError):
        read_gallery(tmp_path / "g.faissindex", mmap=mmap)


def write_stream(path, stream):

    with open(path, "x+b") as f:
        footer.write_sealed(f, lambda put: put(stream), dict(valid("pq")[1]))


def ids_of(index):
    lists = unwrap_index(index).invlists
    return faiss.rev_swig_ptr(lists.get_ids(0), lists.list_size(0))


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize(
    "new, message", [(-1, "the index holds id -1"), (11, "the metadata says 0 rows repeat an id, in the index 1 do")]
)
def test_ids_are_held_against_the_card(new, message, mmap, tmp_path):
    index, metadata = valid("ivfpq")
    ids_of(index)[0] = new
    write(tmp_path / "g.faissindex", index, metadata | {"repeated_ids": 0})
    with pytest.raises(IndexFileError, match=message):
        read_gallery(tmp_path / "g.faissindex", mmap=mmap)
    if new == 11:
        for name, told in (("told", {"repeated_ids": 1}), ("older", {})):  # older galleries do not count them
            write(tmp_path / f"{name}.faissindex", index, metadata | told)
            assert read_gallery(tmp_path / f"{name}.faissindex", mmap=mmap).index.ntotal == 60


def large_codeword(index):
    faiss.copy_array_to_vector(np.full(index.pq.centroids.size(), 3e38, np.float32), index.pq.centroids)


def other_stage(index):
    exact = faiss.downcast_index(faiss.downcast_index(index.index).refine_index)
    values = faiss.vector_to_array(exact.pq.centroids)
    values[0] += 1
    faiss.copy_array_to_vector(values, exact.pq.centroids)


def unmerge(index):
    values = faiss.vector_to_array(index.pq.centroids)
    values[5] += 1
    faiss.copy_array_to_vector(values, index.pq.centroids)


@pytest.mark.parametrize(
    "name, spoil, message",
    [
        ("ivfpq", large_codeword, "codebooks have norm"),
        ("fastscan", other_stage, "codebook 0 of the scan says"),
        ("ivfpq l2", unmerge, "the two 4-bit codewords make"),
    ],
)
def test_parts_of_a_file_are_held_against_each_other(name, spoil, message, tmp_path):
    index, metadata = valid(name)
    spoil(index)
    write(tmp_path / "g.faissindex", index, metadata)
    with pytest.raises(IndexFileError, match=message):
        read_gallery(tmp_path / "g.faissindex")


FORGED = "pq\x1b[2J\nforged: sound\u202e"


def seen_on_a_terminal(*arguments):
    """All that a command prints where it believes that a person looks on."""
    leader, follower = pty.openpty()
    with subprocess.Popen(command(*arguments), stdout=follower, stderr=follower, stdin=subprocess.DEVNULL) as process:
        os.close(follower)
        data = b""
        try:
            while block := os.read(leader, 1 << 16):
                data += block
        except OSError:  # the other end is closed
            pass
        process.wait(60)
    os.close(leader)
    return data.decode().replace("\r\n", "\n").replace("\r\x1b[K", "")


@pytest.mark.slow
def test_texts_of_files_on_a_terminal(here):
    found, _ = bundle.read("m.safetensors")
    for change in ({"method": FORGED}, {FORGED: FORGED, "settings": {FORGED: FORGED}, "class_names": [FORGED]}):
        Path("forged.safetensors").write_bytes(bundle.Bundle(found.tensors, {**found.config, **change}).to_bytes())
        for name in ("verify", "info"):
            said = seen_on_a_terminal(name, "forged.safetensors").split("\n")
            assert len(said) > 1 and all(line.isprintable() for line in said), said
            assert not any(line.strip().startswith("forged: sound") for line in said), said


@pytest.mark.parametrize("d", [255, 256, 257, 700])
def test_codebooks_that_faiss_reads_in_several_parts_are_read(d, tmp_path):
    """Of a residual quantizer: FAISS reads a mebibyte at a time, which 4 codebooks of 256 words have at d=256."""
    rng = np.random.default_rng(d)
    codebooks = Codebooks("additive", rng.standard_normal((4, 256, d)).astype(np.float32), "ip")
    model = Model(Chain(d, []), codebooks, {"method": "scq", "rule": "l2", "encoder": "identity"})
    x = rng.standard_normal((40, d)).astype(np.float32)
    scqfaiss.export(model, x, path=tmp_path / "g.faissindex", target="residual")
    gallery = scqfaiss.open(tmp_path / "g.faissindex", model=model)
    found, codes, ids = gallery.unpack()
    np.testing.assert_array_equal(codes[np.argsort(ids)], model.encode(x))
    np.testing.assert_array_equal(found.centroids, codebooks.centroids)
