"""Forged index files under valid footers: the hash cannot help, the allow-list refuses them before any search."""

import json
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest

import scqfaiss
from scqfaiss.errors import IndexFileError
from scqfaiss.galleries.reading import read_gallery
from scqfaiss.targets import target
from scqfaiss.targets.ids import behind_ids
from scqfaiss.targets.pretransform import chain, unwrap_index, wrap_index
from scqfaiss.targets.validation import validate

from .conftest import VALID, random_codebooks, random_codes, random_queries, valid, write


def core(index):
    return behind_ids(index)


def scan_of(index):
    found = core(index)
    return faiss.downcast_index(found.base_index) if isinstance(found, faiss.IndexRefine) else found


def exact_of(index):
    return faiss.downcast_index(core(index).refine_index)


def coarse_of(index):
    return faiss.downcast_index(unwrap_index(index).quantizer)


def boxes_of(index):
    return unwrap_index(coarse_of(index))


def put(vector, place, value):
    """One number of a FAISS float vector replaced."""
    values = faiss.vector_to_array(vector)
    values.view(np.float32)[place] = value
    faiss.copy_array_to_vector(values, vector)


def shorten(vector, by=1):
    faiss.copy_array_to_vector(faiss.vector_to_array(vector)[:-by].copy(), vector)


def larger_of(index):
    return faiss.downcast_index(boxes_of(index).quantizer)


def ids_of_list(lists, number):
    return faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number))


def set_to(find, **values):
    def spoil(index):
        for name, value in values.items():
            setattr(find(index), name, value)

    return spoil


def nan_at(find, place=1, value=np.nan):
    return lambda index: put(find(index), place, value)


def cut(find, by=1):
    return lambda index: shorten(find(index), by)


def remap(entry):
    def spoil(index):
        places = faiss.vector_to_array(chain(index)[-1].map)
        places[2] = entry
        faiss.copy_array_to_vector(places, chain(index)[-1].map)

    return spoil


def remap_boxes(entry):
    def spoil(index):
        first = chain(coarse_of(index))[0]
        places = faiss.vector_to_array(first.map)
        places[-1] = entry
        faiss.copy_array_to_vector(places, first.map)

    return spoil


def same_number_twice(index):
    lists = boxes_of(index).invlists
    full = [i for i in range(boxes_of(index).nlist) if lists.list_size(i)]
    ids_of_list(lists, full[0])[0] = ids_of_list(lists, full[1])[0]


def number_beyond(index):
    lists = boxes_of(index).invlists
    full = next(i for i in range(boxes_of(index).nlist) if lists.list_size(i))
    ids_of_list(lists, full)[0] = 10**9


def corner_of_nan(index):
    lists = boxes_of(index).invlists
    full = next(i for i in range(boxes_of(index).nlist) if lists.list_size(i))
    size = lists.list_size(full) * boxes_of(index).code_size
    faiss.rev_swig_ptr(lists.get_codes(full), size).view(np.float32)[3] = np.nan


def other_coarse(n, d=8, metric=faiss.METRIC_INNER_PRODUCT):
    def spoil(index):
        ivf, flat = unwrap_index(index), faiss.IndexFlat(d, metric)
        flat.add(np.zeros((n, d), np.float32))
        ivf.quantizer, ivf.referenced_objects = flat, [flat]
        ivf.own_fields = False

    return spoil


def other_exact(make):
    def spoil(index):
        refine, found = core(index), make()
        refine.refine_index, refine.own_refine_index, refine.referenced_objects = found, False, [found]

    return spoil


def flat_of(n, d):
    index = faiss.IndexFlatIP(d)
    index.add(np.ones((n, d), np.float32))
    return index


def nbits_of(values):
    return lambda index: faiss.copy_array_to_vector(np.array(values, np.uint64), core(index).rq.nbits)


AQ = faiss.AdditiveQuantizer
# valid gallery, what spoils it, what is said
SPOILT = {
    "NaN in ivfpq": ("ivfpq", nan_at(lambda i: i.pq.centroids), "IndexIVFPQ: codebooks are not finite"),
    "inf in merged codebooks": ("ivfpq l2", nan_at(lambda i: i.pq.centroids, -1, np.inf), "codebooks are not finite"),
    "NaN in a centroid": ("ivfpq lists", nan_at(lambda i: coarse_of(i).codes), "vectors are not finite"),
    "NaN in pq": ("pq", nan_at(lambda i: core(i).pq.centroids), "IndexPQ: codebooks are not finite"),
    "NaN in a scan": ("fastscan", nan_at(lambda i: scan_of(i).pq.centroids), "IndexPQFastScan: codebooks are not fin"),
    "NaN behind a scan": ("fastscan", nan_at(lambda i: exact_of(i).pq.centroids), "IndexPQ: codebooks are not finite"),
    "NaN in a word": ("words", nan_at(lambda i: coarse_of(i).pq.centroids), "IndexPQ: codebooks are not finite"),
    "NaN in a dummy": ("words", nan_at(lambda i: i.pq.centroids), "IndexIVFPQ: codebooks are not finite"),
    "NaN in codebooks of boxes": ("boxes", nan_at(lambda i: i.pq.centroids), "IndexIVFPQ: codebooks are not finite"),
    "NaN in a box": ("boxes", nan_at(lambda i: boxes_of(i).codes), "IndexFlatIP: vectors are not finite"),
    "NaN in one of many boxes": ("many boxes", corner_of_nan, "IndexIVFFlat: vectors are not finite"),
    "NaN in a larger box": ("many boxes", nan_at(lambda i: larger_of(i).codes), "IndexFlatIP: vectors are not finite"),
    "NaN in lift": ("lift", nan_at(lambda i: unwrap_index(i).pq.centroids), "IndexIVFPQ: codebooks are not finite"),
    "NaN in residual": ("residual", nan_at(lambda i: core(i).rq.codebooks), "codebooks are not finite"),
    "tile beyond d": ("lift", remap(6), "RemapDimensionsTransform: places"),
    "tile far beyond d": ("fastscan additive", remap(10**6), "RemapDimensionsTransform: places"),
    "tile before 0": ("words additive", remap(-2), "RemapDimensionsTransform: places"),
    "tile of another place": ("lift", remap(5), "the metadata says target=lift, the index has ivfpq"),
    "first half beyond d": ("boxes", remap_boxes(8), "RemapDimensionsTransform: places"),
    "k_factor 0": ("fastscan", set_to(core, k_factor=0.0), "IndexRefine: k_factor 0"),
    "k_factor below 0": ("fastscan", set_to(core, k_factor=-8.0), "IndexRefine: k_factor -8"),
    "k_factor of a memory": ("fastscan", set_to(core, k_factor=1e9), "IndexRefine: k_factor 1000000000"),
    "k_factor NaN": ("fastscan", set_to(core, k_factor=np.nan), "IndexRefine: k_factor nan"),
    "other rows behind a scan": ("fastscan", other_exact(lambda: flat_of(59, 8)), "number of rows differs inside"),
    "other width behind a scan": ("fastscan", other_exact(lambda: flat_of(60, 9)), "d differs inside"),
    "other class behind a scan": ("fastscan", other_exact(lambda: hnsw(60, 8)), "class IndexHNSWFlat is not one"),
    "other metric behind a scan": ("fastscan", lambda i: set_metric(exact_of(i)), "metric differs inside"),
    "bbs": ("fastscan", set_to(scan_of, bbs=64), "IndexPQFastScan: layout"),
    "bbs 0": ("fastscan alone", set_to(scan_of, bbs=0), ""),
    "implem": ("fastscan", set_to(scan_of, implem=14), "IndexPQFastScan: implem or qbs"),
    "implem that prints": ("fastscan alone", set_to(scan_of, implem=1), "IndexPQFastScan: implem or qbs"),
    "qbs": ("fastscan odd", set_to(scan_of, qbs=0x4444), "IndexPQFastScan: implem or qbs"),
    "M2": ("fastscan odd", set_to(scan_of, M2=6), ""),
    "ntotal2": ("fastscan", set_to(scan_of, ntotal2=96), ""),
    "rows of a scan": ("fastscan alone", set_to(scan_of, ntotal=10**6), ""),
    "search type": ("residual", lambda i: set_search_type(i, AQ.ST_decompress), "search type 0 is not one"),
    "search type norm_from_LUT": ("residual", lambda i: set_search_type(i, AQ.ST_norm_from_LUT), "search type "),
    "search type qint8": ("residual l2", lambda i: set_search_type(i, AQ.ST_norm_qint8), "search type "),
    "norms for products": ("residual", lambda i: set_search_type(i, AQ.ST_norm_float), "norms"),
    "no norms for distances": ("residual l2", lambda i: set_search_type(i, AQ.ST_LUT_nonorm), "norms"),
    "codebooks of residual cut": ("residual", cut(lambda i: core(i).rq.codebooks), ""),
    "codes of residual cut": ("residual", cut(lambda i: core(i).codes), ""),
    "bits of residual": ("residual", nbits_of([5, 5, 4]), ""),
    "many bits of residual": ("residual", nbits_of([40, 40, 40]), ""),
    "a codebook of residual too few": ("residual", nbits_of([5, 5]), ""),
    "search type that leaves ids unset": ("pq", set_to(core, search_type=77), "IndexPQ: search type"),
    "search type of words": ("words", set_to(coarse_of, search_type=1), "IndexPQ: search type"),
    "search type behind a scan": ("fastscan", set_to(exact_of, search_type=2), "IndexPQ: search type"),
    "signs": ("pq", set_to(core, encode_signs=True), "IndexPQ: search type"),
    "codes of pq cut": ("pq", cut(lambda i: core(i).codes), ""),
    "rows of pq": ("pq", set_to(core, ntotal=61), ""),
    "vectors of coarse cut": ("ivfpq lists", cut(lambda i: coarse_of(i).codes, 4), ""),
    "fewer centroids than lists": ("ivfpq lists", other_coarse(4), ""),
    "more centroids than lists": ("ivfpq lists", other_coarse(6), ""),
    "wider centroids": ("ivfpq lists", other_coarse(5, 9), ""),
    "more lists than there are": ("ivfpq lists", set_to(unwrap_index, nlist=6), ""),
    "nprobe 0": ("ivfpq lists", set_to(unwrap_index, nprobe=0), "coarse d or nprobe"),
    "nprobe beyond": ("words", set_to(unwrap_index, nprobe=10**9), "coarse d or nprobe"),
    "rows of lists": ("ivfpq", set_to(unwrap_index, ntotal=10**9), "says 1,000,000,000 rows, its lists hold 60"),
    "rows of words": ("words", set_to(unwrap_index, ntotal=299), "says 299 rows, its lists hold 300"),
    "box number twice": ("many boxes", same_number_twice, "IndexIVFFlat: numbers of lists"),
    "box number beyond": ("many boxes", number_beyond, "IndexIVFFlat: numbers of lists"),
    "boxes visited 0 times": ("many boxes", set_to(boxes_of, nprobe=0), "IndexIVFFlat: coarse d or nprobe"),
    "ids cut": ("pq", cut(lambda i: i.id_map), "number of ids differs"),
    "ids of a scan cut": ("fastscan", cut(lambda i: i.id_map), "number of ids differs"),
    "rows behind ids": ("residual", set_to(lambda i: i, ntotal=61), "number of rows differs inside: 61 and 60"),
    "metric": ("pq", lambda i: set_metric(core(i), faiss.METRIC_L1), "metric differs inside: ip and 2"),
    "untrained": ("residual", set_to(core, is_trained=False), "is not trained"),
    "rows in front": ("lift", set_to(lambda i: i, ntotal=61), "number of rows differs inside"),
}


def hnsw(n, d):
    index = faiss.IndexHNSWFlat(d, 4, faiss.METRIC_INNER_PRODUCT)
    index.add(np.ones((n, d), np.float32))
    return index


def set_metric(index, metric=faiss.METRIC_L2):
    index.metric_type = metric


def set_search_type(index, kind):
    core(index).rq.search_type = kind


def nested(depth):
    index, metadata = valid("pq")
    for _ in range(depth):
        outer = faiss.IndexIDMap(faiss.IndexFlat(index.d, index.metric_type))
        outer.index, outer.own_fields, outer.referenced_objects = index, False, [index]
        faiss.copy_array_to_vector(np.arange(index.ntotal), outer.id_map)
        outer.ntotal, outer.is_trained = index.ntotal, True
        index = outer
    return index, metadata


def boxes_alone():
    index, metadata = valid("many boxes")
    return faiss.clone_index(boxes_of(index)), metadata


def encoder_of_nan(op, arrays):
    index, metadata = valid("pq")
    return wrap_index(index, 9, [(op, arrays)]), metadata | {"encoder": "folded"}


# Made as a whole.
STRANGE = {
    "nine in one another": (lambda: nested(8), "class IndexIDMap cannot stand behind ids"),
    "ninety in one another": (lambda: nested(90), ""),
    "boxes and nothing else": (boxes_alone, "class IndexIVFFlat cannot stand in a file"),
    "ids of a graph": (lambda: (id_map_of(hnsw(60, 9)), valid("pq")[1]), "class IndexHNSWFlat is not one"),
    "NaN in an encoder": (
        lambda: encoder_of_nan("linear", {"A": np.full((9, 9), np.nan, np.float32)}),
        "LinearTransform: coefficients are not finite",
    ),
    "NaN in a mean": (
        lambda: encoder_of_nan("center", {"mean": np.full(9, np.nan, np.float32)}),
        "CenteringTransform: mean are not finite",
    ),
    "lists of lists": (lambda: lists_of_lists(), "class IndexIVFPQ cannot stand as coarse quantizer"),
}


def id_map_of(index):
    outer = faiss.IndexIDMap(faiss.IndexFlat(index.d, index.metric_type))
    outer.index, outer.own_fields, outer.referenced_objects = index, False, [index]
    faiss.copy_array_to_vector(np.arange(index.ntotal), outer.id_map)
    outer.ntotal = index.ntotal
    return outer


def lists_of_lists():
    """Real lists, routed by an IndexIVFPQ: sizes agree, but no target of ours builds it."""
    index, metadata = valid("ivfpq lists")
    codebooks = random_codebooks("product", 2, 8, 8)
    coarse = target("ivfpq").build(codebooks, random_codes(codebooks, 5), np.arange(5))
    index.quantizer, index.own_fields, index.referenced_objects = coarse, False, [coarse]
    return index, metadata


READ = """
import json, resource, sys, warnings
from pathlib import Path
import numpy as np
from scqfaiss.errors import ScqError
from scqfaiss.galleries.reading import read_gallery
warnings.simplefilter("ignore")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path(sys.argv[1]).glob("*.faissindex")):
    said = []
    for mmap in (False, True):
        try:
            read_gallery(path, mmap=mmap)
            said.append([0, "accepted"])
        except ScqError as error:
            said.append([error.exit_code, str(error)])
    print(json.dumps([path.stem, said]), flush=True)
print(json.dumps(["grew", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1000]))
"""


@pytest.fixture(scope="module")
def read_elsewhere(tmp_path_factory):
    """name -> [[exit code, message] read whole, the same memory-mapped], by another process: a crash would be seen."""
    folder = tmp_path_factory.mktemp("forged")
    for name, (base, spoil, _) in SPOILT.items():
        index, metadata = valid(base)
        spoil(index)
        write(folder / f"{name}.faissindex", index, metadata)
    for name, (make, _) in STRANGE.items():
        index, metadata = make()
        write(folder / f"{name}.faissindex", index, metadata)
    for name in VALID:
        index, metadata = valid(name)
        write(folder / f"valid {name}.faissindex", index, metadata)
    package = Path(scqfaiss.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", READ, folder], capture_output=True, text=True, timeout=60, cwd=package, check=False
    )
    said = dict(json.loads(line) for line in done.stdout.splitlines())
    assert done.returncode == 0, (done.returncode, list(said)[-1:], done.stderr)
    return said


@pytest.mark.parametrize("name", VALID)
def test_valid_galleries_pass(name, read_elsewhere):
    assert read_elsewhere[f"valid {name}"] == [[0, "accepted"]] * 2


@pytest.mark.parametrize("name", [*SPOILT, *STRANGE])
def test_forged_galleries_are_refused(name, read_elsewhere):
    for code, said in read_elsewhere[name]:
        assert code in (3, 5), said
        assert f"{name}.faissindex: " in said


@pytest.mark.parametrize("name", [*SPOILT, *STRANGE])
def test_the_walk_itself_says_what_is_wrong(name):
    """FAISS's reader finds some of it first; which, its version decides."""
    if name in STRANGE:
        make, message = STRANGE[name]
        index, _ = make()
    else:
        base, spoil, message = SPOILT[name]
        index, _ = valid(base)
        validate(index)
        spoil(index)
    if message.startswith("the metadata"):  # a valid index, of another target
        validate(index)
        return
    with pytest.raises(IndexFileError) as caught:
        validate(index)
    assert message in str(caught.value)


@pytest.mark.slow
def test_forged_galleries_take_no_memory(read_elsewhere):
    assert read_elsewhere["grew"] < 300


def test_what_is_wrong_comes_with_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    index, metadata = hnsw(60, 9), valid("pq")[1]
    write("g.faissindex", index, metadata)
    with pytest.raises(IndexFileError, match=r"^g\.faissindex: class IndexHNSWFlat is not one that scqfaiss writes$"):
        read_gallery("g.faissindex")


FUZZ = """
import os, sys, warnings
import numpy as np, faiss
from scqfaiss import footer
from scqfaiss.errors import ScqError
from scqfaiss.galleries.reading import read_gallery
warnings.simplefilter("ignore")
faiss.omp_set_num_threads(1)
path, out, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with open(path, "rb") as f:
    metadata, stream = footer.read_footer(f, path)
    f.seek(0)
    stream = f.read(stream)
metadata.pop("format")
x = np.ones((3, metadata["d"]), np.float32)
x[1] = -1
rng, refused = np.random.default_rng(0), 0
for i in range(count):
    forged = bytearray(stream)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(min(len(forged), 400) if i % 2 else len(forged)))
        forged[at] = int(rng.integers(256)) if i % 3 else forged[at] ^ 1 << int(rng.integers(8))
    if os.path.exists(out):
        os.unlink(out)  # not written over: it may be mapped
    with open(out, "x+b") as f:
        footer.write_sealed(f, lambda put: put(bytes(forged)), metadata)
    try:
        stored = read_gallery(out, mmap=i % 4 == 0)
    except ScqError:
        refused += 1
        continue
    try:
        stored.target.search(stored.index, x, 5)
        stored.index.search(x, 5)
        stored.target.unpack(stored.index, stored.shape)
    except ScqError:
        pass
print(refused, count - refused)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [name for name in VALID if name not in ("ivfpq", "ivfpq l2", "ivfpq lists", "pq", "residual", "words additive")],
)
def test_fuzzed_streams_under_valid_footers_never_crash(name, tmp_path):
    """Refused, or searched and taken apart: whatever the bytes say."""
    index, metadata = valid(name)
    write(tmp_path / "g.faissindex", index, metadata)
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, "g.faissindex", "fuzz.faissindex", "400"],
        capture_output=True,
        text=True,
        timeout=55,
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(scqfaiss.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    refused, accepted = map(int, done.stdout.split())
    # What holds both stages of fast scan, or boxes and rows, against one another refuses nearly every change of either.
    assert refused > 40 and accepted > 3


@pytest.mark.parametrize("name", VALID)
def test_a_valid_gallery_answers_after_the_validation_as_before(name, tmp_path):
    index, metadata = valid(name)
    write(tmp_path / "g.faissindex", index, metadata)
    stored = read_gallery(tmp_path / "g.faissindex")
    q = random_queries(4, metadata["d"])
    for a, b in zip(stored.target.search(stored.index, q, 7), target(metadata["target"]).search(index, q, 7)):
        np.testing.assert_array_equal(a, b)
