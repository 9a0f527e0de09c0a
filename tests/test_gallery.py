"""Opening and searching, in Python."""

import importlib.util
import itertools
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import life
import numpy as np
import pytest
from close import assert_close, roundings
from faults.conftest import blobs, here, made  # noqa: F401
from life import IDS, XQ, X

import scqfaiss
from scqfaiss import files
from scqfaiss.errors import CheckpointError, ConfigError, DataError, IndexFileError, ScqWarning
from scqfaiss.galleries import inspection
from scqfaiss.galleries.inspection import verify_file
from scqfaiss.galleries.reading import Stored
from scqfaiss.galleries.snapshot import Snapshot
from scqfaiss.targets import base, lists, pq, residual
from scqfaiss.targets.pretransform import unwrap_index


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files.os, "fsync", lambda _: None)  # hundreds of small files


def test_search_equals_the_oracle(here):  # noqa: F811
    model = scqfaiss.Model.load("m.safetensors")
    xq, _ = blobs(12, seed=5)
    for name in ("g", "p"):
        gallery = scqfaiss.open(f"{name}.faissindex", model=model)
        codebooks, codes, ids = gallery.unpack()
        D, I = gallery.search(xq, k=200)
        scores = codebooks.scores(model.embed(xq), codes)
        place = {int(i): n for n, i in enumerate(ids)}
        for q in range(len(xq)):
            want = [scores[q, place[int(i)]] for i in I[q]]
            assert_close(D[q], want, 2 * codebooks.d, np.abs(scores).max())
            assert sorted(I[q].tolist()) == sorted(ids.tolist())


def test_plain_faiss_reads_every_file(here):  # noqa: F811
    model = scqfaiss.Model.load("m.safetensors")
    xq, _ = blobs(12, seed=5)
    for name, z in (("g", model.embed(xq)), ("p", model.embed(xq)), ("folded", xq)):
        ours = scqfaiss.open(f"{name}.faissindex", model=None if name == "folded" else model).search(xq, 9)
        for a, b in zip(faiss.read_index(f"{name}.faissindex").search(z, 9), ours):
            np.testing.assert_array_equal(a, b)


def test_one_row_answers_as_inside_a_batch(here):  # noqa: F811
    gallery = scqfaiss.open("g.faissindex", model="m.safetensors")
    xq, _ = blobs(12, seed=5)
    D, _ = gallery.search(xq, 5)
    terms = roundings(gallery.model.chain) + 2 * gallery.model.codebooks.d
    for q in range(len(xq)):
        assert_close(gallery.search(xq[q : q + 1], 5)[0][0], D[q], terms, np.abs(D).max())


def test_searches_in_several_threads(here):  # noqa: F811
    gallery = scqfaiss.open("g.faissindex", model="m.safetensors")
    xq, _ = blobs(50, seed=5)
    want = gallery.search(xq, 5)
    with ThreadPoolExecutor(4) as pool:
        for D, I in pool.map(lambda _: gallery.search(xq, 5), range(20)):
            np.testing.assert_array_equal(D, want[0])
            np.testing.assert_array_equal(I, want[1])


def test_odd_queries(here):  # noqa: F811
    gallery = scqfaiss.open("g.faissindex", model="m.safetensors")
    x, _ = blobs(3)
    D, I = gallery.search(np.zeros((0, 16), np.float32), 4)
    assert (D.shape, I.shape) == ((0, 4), (0, 4))
    assert gallery.search(x.tolist() and x.astype(np.float16), 4)[0].shape == (3, 4)
    with pytest.raises(ConfigError, match=r"^queries: queries have d=15, g\.faissindex needs d=16$"):
        gallery.search(x[:, :15], 4)
    with pytest.raises(DataError, match=r"^queries: row 1, column 2 is infinite \(1 of 3 rows is not finite\)$"):
        gallery.search(np.where(np.arange(48).reshape(3, 16) == 18, np.inf, x), 4)
    for k in (0, -1):
        with pytest.raises(ConfigError, match=f"^k is {k}, needs 1 or more$"):
            gallery.search(x, k)
    with pytest.warns(ScqWarning, match=r"^k=10,000,000,000 is more than the 200 vectors of g\.faissindex"):
        assert gallery.search(x, 10**10)[1].shape == (3, 200)
    with pytest.raises(ConfigError, match=r"^queries: encoded queries have d=16, the index needs d=4$"):
        gallery.search(x, 4, encoded=True)
    with pytest.raises(DataError, match="needs"):
        gallery.search([[1.0, 2.0], [3.0]], 4)


def test_opening(here):  # noqa: F811
    with pytest.raises(ConfigError, match=r"^nope\.faissindex: no such file$"):
        scqfaiss.open("nope.faissindex")
    with pytest.raises(ConfigError, match=r"^nope\.safetensors: no such file$"):
        scqfaiss.open("g.faissindex", model="nope.safetensors")
    with pytest.raises(CheckpointError, match=r"^g\.faissindex is a gallery"):
        scqfaiss.open("g.faissindex", model="g.faissindex")
    with pytest.raises(IndexFileError, match=r"^m\.safetensors is a model: scqfaiss export m"):
        scqfaiss.open("m.safetensors")
    for device in ("gpu", "cuda:x", "cuda:-1", "", "cpu:0"):
        with pytest.raises(ConfigError, match=f"^device is '{device}', needs cpu, cuda or cuda:N$"):
            scqfaiss.open("g.faissindex", device=device)
    if "GPU" not in faiss.get_compile_options().split():
        words = r'^device cuda: this FAISS is built for the CPU: pip install "scqfaiss\[gpu\]"$'
        with pytest.raises(ConfigError, match=words):
            scqfaiss.open("g.faissindex", device="cuda")


def test_without_the_hash_a_sound_file_opens_the_same(here):  # noqa: F811
    xq, _ = blobs(5)
    a, b = (scqfaiss.open("g.faissindex", model="m.safetensors", verify=v).search(xq, 5) for v in (True, False))
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])


def test_verify_says_what_it_found(here):  # noqa: F811
    assert verify_file("g.faissindex") == "g.faissindex: valid, 200 vectors, checksum and metadata agree"
    sha = scqfaiss.Model.load("m.safetensors").sha256[:12]
    assert verify_file("m.safetensors") == f"m.safetensors: valid, model of method scq, SHA-256 {sha}"


# ----------------------------------------------------------------------------------------------- filters, ranges, rows
def scores_of(name, rows=slice(400)):
    """The oracle: scores (nq, n) of the codes, and the codes."""
    m = life.model(name)
    codes = m.encode(X[rows])
    return m.codebooks.scores(m.embed(XQ), codes), codes


def every_list(name, target, options):
    if "listed" in name:
        return life.LISTS
    return options["nlist"] if target == "ivfpq" and options else None


def best(scores, k, name):
    """(nq, k) the best scores of each row."""
    return np.sort(scores, 1)[:, :k] if "l2" in name else -np.sort(-scores, 1)[:, :k]


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("name, target, options", life.cases(filter=True))
def test_filters(empty, name, target, options, mmap):
    life.export(name, "g.faissindex", slice(400), target, **options)
    gallery, nprobe = life.opened("g.faissindex", name, mmap=mmap), every_list(name, target, options)
    scores, _ = scores_of(name)
    allow, deny = IDS[::3], IDS[::2]
    for more, rows in (
        ({"allow": allow}, np.isin(IDS, allow)),
        ({"deny": deny}, ~np.isin(IDS, deny)),
        ({"allow": allow, "deny": deny}, np.isin(IDS, allow) & ~np.isin(IDS, deny)),
        ({"allow": [*allow, 0, 1, 2**63 - 1, allow[0]], "deny": [2]}, np.isin(IDS, allow)),
        ({"allow": [IDS[17]]}, IDS == IDS[17]),
        ({"allow": []}, IDS < 0),
        ({"allow": [0, 1, 2]}, IDS < 0),
        ({"deny": []}, IDS > 0),
        ({"deny": IDS}, IDS < 0),
        ({"deny": IDS[:-2]}, np.isin(IDS, IDS[-2:])),
    ):
        D, I = gallery.search(XQ, 20, nprobe=nprobe, **more)
        assert I.shape == (len(XQ), 20)
        left = min(20, int(rows.sum()))
        assert (I[:, :left] >= 0).all() and (I[:, left:] == -1).all()
        assert np.isin(I[:, :left], IDS[rows]).all()
        assert all(len(set(hits)) == left for hits in I[:, :left].tolist())
        np.testing.assert_allclose(D[:, :left], best(scores[:, rows], left, name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name, target, options", life.cases(filter=False))
def test_filters_are_refused_where_faiss_would_pass_over_them(empty, name, target, options):
    life.export(name, "g.faissindex", slice(400), target, **options)
    gallery = life.opened("g.faissindex", name)
    able = {"product": "ivfpq or buckets", "additive": "buckets or lift"}[life.shape(name).kind]
    for more in ({"allow": [5]}, {"deny": [5]}, {"allow": [], "deny": []}):
        with pytest.raises(ConfigError) as caught:
            gallery.search(XQ, 3, **more)
        assert str(caught.value) == f"g.faissindex: target {target} cannot filter by id; export with {able}"
        with pytest.raises(ConfigError, match="cannot filter by id"):
            gallery.range_search(XQ, 0.0, **more)


def test_bad_filters(empty):
    life.export("product-8", "g.faissindex", slice(400))
    gallery = scqfaiss.open("g.faissindex")
    for what in ("allow", "deny"):
        for ids in ([-1], [1.5], "5", [[1, 2]], [2**64], ["a"], {"a": 1}):
            with pytest.raises(DataError, match=f"^{what}"):
                gallery.search(XQ, 3, **{what: ids})
            with pytest.raises(DataError, match=f"^{what}"):
                gallery.range_search(XQ, 0.0, **{what: ids})
    assert gallery.search(XQ[:0], 3, allow=[5])[1].shape == (0, 3)
    assert (
        gallery.search(XQ[:2], 1, allow=int(gallery.unpack()[2][7]))[1].ravel().tolist() == [gallery.unpack()[2][7]] * 2
    )


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("name, target, options", life.cases(range=True))
def test_all_hits_beyond_a_threshold(empty, name, target, options, mmap):
    life.export(name, "g.faissindex", slice(400), target, **options)
    gallery = life.opened("g.faissindex", name, mmap=mmap)
    if options == {"refine": -1}:
        with pytest.raises(
            ConfigError, match=r"^fast scan without refine has no range search; export without --refine -1$"
        ):
            gallery.range_search(XQ, 0.0)
        return
    scores, _ = scores_of(name)
    order = np.sort(scores.ravel())
    gap = len(order) // 4 + int(np.diff(order[len(order) // 4 : -len(order) // 4]).argmax())
    threshold = float(order[gap : gap + 2].mean())  # where no rounding moves a score across
    near = (lambda s: s < threshold) if "l2" in name else (lambda s: s > threshold)
    filters = [{}]
    if gallery.exact and target != "pq" and target != "residual":
        filters += [{"allow": IDS[::3], "deny": IDS[::2]}, {"allow": []}]
    for more in filters:
        rows = np.isin(IDS, more.get("allow", IDS)) & ~np.isin(IDS, more.get("deny", []))
        lims, D, I = gallery.range_search(XQ, threshold, **more)
        assert lims[0] == 0 and lims[-1] == len(D) == len(I) and lims.shape == (len(XQ) + 1,)
        assert (lims.dtype, D.dtype, I.dtype) == (np.int64, np.float32, np.int64)
        for q in range(len(XQ)):
            ids, found = I[lims[q] : lims[q + 1]], D[lims[q] : lims[q + 1]]
            assert sorted(ids) == sorted(IDS[rows & near(scores[q])])
            np.testing.assert_allclose(found, scores[q][(ids - 5) // 3], rtol=1e-4, atol=1e-4)
            step = np.diff(found) if "l2" in name else -np.diff(found)
            assert (step >= 0).all()
            assert (np.diff(ids)[step == 0] > 0).all()  # ties by id
    nothing = -1.0 if "l2" in name else 1e9
    lims, D, I = gallery.range_search(XQ, nothing)
    assert not lims.any() and len(D) == len(I) == 0
    assert gallery.range_search(XQ, 1e9 if "l2" in name else -1e9)[0][-1] == scores.size
    assert gallery.range_search(XQ[:0], threshold)[0].tolist() == [0]


def test_odd_thresholds(empty):
    life.export("product-8", "g.faissindex", slice(400))
    gallery = scqfaiss.open("g.faissindex")
    for threshold in (np.nan, np.inf, -np.inf):
        with pytest.raises(ConfigError, match=f"^threshold is {threshold}, needs a number$"):
            gallery.range_search(XQ, threshold)
    with pytest.raises(ConfigError, match=r"^queries: queries have d=15, g\.faissindex needs d=16$"):
        gallery.range_search(XQ[:, :15], 0.0)
    assert gallery.range_search(XQ, np.float64(1e300))[0][-1] == 0


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("name, target, options", life.cases())
def test_codes_decoded_by_id(empty, monkeypatch, name, target, options, mmap):
    """Behind a folded encoder and behind repeated queries too, where FAISS's own reconstruct is wrong."""
    unpacked, unpack = [], base.unpack_codes
    for module in (lists, pq, residual):
        monkeypatch.setattr(
            module, "unpack_codes", lambda packed, *s: (unpacked.append(len(packed)), unpack(packed, *s))[1]
        )
    life.export(name, "g.faissindex", slice(400), target, **options)
    gallery = life.opened("g.faissindex", name, mmap=mmap)
    codes = scores_of(name)[1]
    want = life.model(name).codebooks.decode(codes)
    rows = np.array([399, 0, 17, 17, 230])
    unpacked.clear()
    np.testing.assert_allclose(gallery.reconstruct(IDS[rows]), want[rows], rtol=1e-5, atol=1e-5)
    if mmap and target != "fastscan":
        assert unpacked and max(unpacked) <= 4  # of other rows no code is looked at
    np.testing.assert_allclose(gallery.reconstruct(int(IDS[5])), want[5:6], rtol=1e-5, atol=1e-5)
    assert gallery.reconstruct([]).shape == (0, want.shape[1])
    for ids, words in (([5, 6, 7, 8], "ids 6, 7 are"), (np.arange(2**62, 2**62 + 9), f"ids {2**62}, {2**62 + 1}, ")):
        with pytest.raises(DataError, match=rf"^{words}.*not in g\.faissindex \(\d of \d\)$"):
            gallery.reconstruct(ids)
    with pytest.raises(DataError, match=r"^ids: row 0 is -1"):
        gallery.reconstruct([-1])


@pytest.mark.parametrize("name, target, options", life.cases())
def test_mapped_and_unhashed_files_answer_alike(empty, name, target, options):
    life.export(name, "g.faissindex", slice(400), target, **options)
    os.chmod("g.faissindex", 0o444)
    os.chmod(".", 0o555)
    try:
        plain = life.opened("g.faissindex", name)
        want = plain.search(XQ, 30)
        for how in ({"mmap": True}, {"mmap": True, "verify": False}, {"verify": False}):
            gallery = life.opened("g.faissindex", name, **how)
            for a, b in zip(gallery.search(XQ, 30), want):
                np.testing.assert_array_equal(a, b)
            for a, b in zip(gallery.unpack()[1:], plain.unpack()[1:]):
                np.testing.assert_array_equal(a, b)
            assert (gallery.target, gallery.metadata, gallery.exact) == (plain.target, plain.metadata, plain.exact)
    finally:
        os.chmod(".", 0o755)
    assert sorted(os.listdir()) == ["g.faissindex"]


@pytest.mark.parametrize("name, target, options", life.cases())
def test_a_mapped_gallery_leaves_its_lists_in_the_file(empty, name, target, options):
    life.export(name, "g.faissindex", slice(400), target, **options)
    gallery = life.opened("g.faissindex", name, mmap=True)
    core = unwrap_index(gallery.index)
    if isinstance(core, faiss.IndexIVF):
        assert isinstance(faiss.downcast_InvertedLists(core.invlists), faiss.OnDiskInvertedLists)
    for a, b in zip(gallery.search(XQ, 30), life.opened("g.faissindex", name).search(XQ, 30)):
        np.testing.assert_array_equal(a, b)


def test_lists_to_visit(empty):
    life.export("product-8", "g.faissindex", slice(400), "ivfpq", nlist=8)
    life.export("product-8", "p.faissindex", slice(400), "pq")
    gallery = scqfaiss.open("g.faissindex")
    scores, _ = scores_of("product-8")
    found = [gallery.search(XQ, 30, nprobe=n)[0] for n in (1, 4, 8)]
    for few, more in itertools.pairwise(found):
        np.testing.assert_array_less(np.where(np.isfinite(few), few, -1e30) - 1e-4, more)
    np.testing.assert_allclose(found[-1], best(scores, 30, "product-8"), rtol=1e-4, atol=1e-4)
    # A sixteenth of the lists, at least one, and more where these hold fewer than k rows.
    D, I = gallery.search(XQ, 30)
    full = (gallery.search(XQ, 30, nprobe=1)[1] >= 0).all(1)
    np.testing.assert_array_equal(D[full], found[0][full])
    assert (I >= 0).all() and full.any() and not full.all()
    allowed = IDS[::50]
    assert np.isin(allowed, gallery.search(XQ, 30, allow=allowed)[1]).all()
    _, I = gallery.search(XQ, 400, nprobe=1)
    assert (I == -1).any() and (I[:, 0] >= 0).all()
    with pytest.warns(ScqWarning, match=r"^nprobe=9 is more than the 8 lists of g\.faissindex: visited all of them$"):
        np.testing.assert_array_equal(gallery.search(XQ, 30, nprobe=9)[0], found[-1])
    for n in (0, -1):
        with pytest.raises(ConfigError, match=f"^nprobe is {n}: needs 1 or more$"):
            gallery.search(XQ, 3, nprobe=n)
    with pytest.raises(ConfigError, match=r"^nprobe is 2: p\.faissindex has no lists$"):
        scqfaiss.open("p.faissindex").search(XQ, 3, nprobe=2)
    assert not gallery.exact and scqfaiss.open("p.faissindex").exact


# ------------------------------------------------------------------------------------------------ another file, same name
def swap(path):
    os.replace(path, "g.faissindex")


@pytest.mark.parametrize("mmap", [False, True])
def test_refresh_serves_the_file_that_stands_there_now(empty, mmap):
    life.export("product-8", "g.faissindex", slice(400))
    gallery = scqfaiss.open("g.faissindex", mmap=mmap)
    assert gallery.refresh() is False
    shutil.copy("g.faissindex", "same.faissindex")
    swap("same.faissindex")
    assert gallery.refresh() is False  # another file, the same content
    before = gallery.search(XQ, 400)
    scqfaiss.remove("g.faissindex", IDS[100:])
    for a, b in zip(gallery.search(XQ, 400), before):
        np.testing.assert_array_equal(a, b)  # until it is told
    np.testing.assert_array_equal(gallery.reconstruct(IDS[399:]).shape, (1, 16))
    assert gallery.refresh() is True
    assert (gallery.ntotal, gallery.metadata["n"]) == (100, 100)
    assert np.isin(gallery.search(XQ, 100)[1], IDS[:100]).all()
    with pytest.raises(DataError, match=r"^ids 1202 are not in g\.faissindex"):
        gallery.reconstruct(IDS[399:])
    assert gallery.refresh() is False
    # Into another container of the same codes.
    life.export("product-8", "next.faissindex", slice(400), "pq")
    swap("next.faissindex")
    assert gallery.refresh() is True
    assert gallery.target == "pq"
    np.testing.assert_allclose(gallery.search(XQ, 400)[0], before[0], rtol=1e-5, atol=1e-5)


def test_refresh_after_a_change_of_folder(empty):
    life.export("product-8", "g.faissindex", slice(400))
    gallery = scqfaiss.open("g.faissindex")
    scqfaiss.remove("g.faissindex", IDS[:1])
    os.mkdir("elsewhere")
    os.chdir("elsewhere")
    assert gallery.refresh() is True
    assert gallery.ntotal == 399


@pytest.mark.parametrize("mmap", [False, True])
def test_refresh_that_fails_goes_on_with_what_it_has(empty, mmap):
    life.export("additive-8", "g.faissindex", slice(400))
    gallery = life.opened("g.faissindex", "additive-8", mmap=mmap)
    want = gallery.search(XQ, 20)

    def same():
        for a, b in zip(gallery.search(XQ, 20), want):
            np.testing.assert_array_equal(a, b)
        assert gallery.ntotal == 400

    data = bytearray(Path("g.faissindex").read_bytes())
    os.rename("g.faissindex", "kept.faissindex")
    with pytest.raises(ConfigError, match=r"no such file$"):
        gallery.refresh()
    same()
    for damaged in (
        data[:-1],
        data[:1000],
        b"",
        bytes(100),
        data[: len(data) // 2] + b"\xff" + data[len(data) // 2 + 1 :],
    ):
        Path("next.faissindex").write_bytes(damaged)
        swap("next.faissindex")
        if damaged[-8:] == data[-8:]:  # its footer says that it is the file we have
            assert gallery.refresh() is False
        else:
            with pytest.raises(IndexFileError):
                gallery.refresh()
        same()
    os.unlink("g.faissindex")
    os.mkdir("g.faissindex")
    with pytest.raises(IndexFileError, match=r"is no plain file$"):
        gallery.refresh()
    os.rmdir("g.faissindex")
    life.export("additive-4", "g.faissindex", slice(300))
    words = rf"^the model is {gallery.model.sha256[:12]}, g\.faissindex was made by \w{{12}}; give that model$"
    with pytest.raises(ConfigError, match=words):
        gallery.refresh()
    same()
    os.rename("kept.faissindex", "g.faissindex")
    assert gallery.refresh() is False
    same()


def test_refresh_refuses_files_that_take_other_queries(empty):
    life.export("additive-8", "g.faissindex", slice(400))
    gallery = scqfaiss.open("g.faissindex")  # queries are encoded elsewhere
    z = life.model("additive-8").embed(XQ)
    want = gallery.search(z, 20, encoded=True)
    for other in ("additive-4", "product-8"):
        life.export(other, "next.faissindex", slice(400))
        swap("next.faissindex")
        words = r"^g\.faissindex: the new file takes other queries than the one that is open$"
        with pytest.raises(ConfigError, match=words):
            gallery.refresh()
        for a, b in zip(gallery.search(z, 20, encoded=True), want):
            np.testing.assert_array_equal(a, b)
    # Where the encoder stands inside, rows are rows, and a newer model may come with its file.
    life.export("product-8", "g.faissindex", slice(400))
    gallery = scqfaiss.open("g.faissindex")
    life.export("product-4", "g.faissindex", slice(400))
    assert gallery.refresh() is True
    assert gallery.metadata["nbits"] == 4


def test_plain_faiss_files(empty):
    """No checksum, hence a warning, and nothing to tell an old one from a new one by."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 16)).astype(np.float32)
    index = faiss.IndexPQ(16, 4, 4)
    index.train(x)
    index.add(x)
    faiss.write_index(index, "plain.faissindex")
    with pytest.warns(ScqWarning, match=r"^plain\.faissindex: no checksum: written by another program, or cut off$"):
        gallery = scqfaiss.open("plain.faissindex")
    assert (gallery.target, gallery.metadata, gallery.needs_model) == ("pq", None, False)
    for a, b in zip(gallery.search(XQ, 20), index.search(XQ, 20)):
        np.testing.assert_array_equal(a, b)
    index.add(x)
    faiss.write_index(index, "plain.faissindex")  # in place
    assert gallery.refresh() is True
    assert gallery.ntotal == 600
    assert gallery.refresh() is True
    flat = faiss.IndexFlatL2(16)
    flat.add(x)
    faiss.write_index(flat, "flat.faissindex")
    with pytest.warns(ScqWarning, match="no checksum"):
        gallery = scqfaiss.open("flat.faissindex")
    for a, b in zip(gallery.search(XQ, 20), flat.search(XQ, 20)):
        np.testing.assert_array_equal(a, b)
    foreign = r"^flat\.faissindex: IndexFlat(L2)? holds no codes of ours; needs one of ivfpq, "
    for call in (
        lambda: gallery.search(XQ, 3, allow=[1]),
        lambda: gallery.range_search(XQ, 3.0),
        lambda: gallery.reconstruct([1]),
        lambda: gallery.unpack(),
    ):
        with pytest.raises(ConfigError, match=foreign):
            call()
    with pytest.raises(IndexFileError, match="no checksum, nothing to verify"):
        verify_file("flat.faissindex")


def test_refresh_needs_a_file(empty):
    life.export("product-8", "g.faissindex", slice(400))
    gallery = scqfaiss.open("g.faissindex")
    with pytest.raises(ConfigError, match=r"^memory was not opened from a file$"):
        scqfaiss.Gallery(Snapshot(Stored.of(gallery.index, gallery.metadata)), None, "memory").refresh()


@pytest.mark.slow
@pytest.mark.parametrize("mmap", [False, True])
def test_hot_swaps_under_load_never_mix_two_files(tmp_path, mmap):
    spec = importlib.util.spec_from_file_location("hot_swap", Path(__file__).parents[1] / "benchmarks" / "hot_swap.py")
    hot_swap = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hot_swap)
    found = hot_swap.measure(tmp_path, rows=500, swaps=3, threads=3, rate=300, seconds=0.3, mmap=mmap)
    assert (found["swaps"], found["errors"], found["mixed"]) == (3, 0, 0)
    assert found["searches"] > 0


def test_numbers_of_numpy_are_numbers(empty):
    life.export("product-8", "g.faissindex", slice(400), "ivfpq", nlist=np.int64(8), nprobe=np.int32(8))
    gallery = scqfaiss.open("g.faissindex")
    want = gallery.search(XQ, 5)
    for k, nprobe in ((np.int64(5), None), (np.int32(5), np.int64(8)), (5, 8)):
        np.testing.assert_array_equal(gallery.search(XQ, k, nprobe=nprobe)[1], want[1])
    for k in (5.5, "a", None):
        with pytest.raises(ConfigError, match=r"^k is .*, needs a whole number$"):
            gallery.search(XQ, k)
    with pytest.raises(ConfigError, match=r"^nprobe is 1\.5, needs a whole number$"):
        gallery.search(XQ, 5, nprobe=1.5)
    with pytest.raises(ConfigError, match=r"^threshold is None, needs a number$"):
        gallery.range_search(XQ, None)
    for nlist in (2.5, "2"):
        with pytest.raises(ConfigError, match=f"^nlist is {nlist!r}, needs a whole number from 0 to 16,777,216$"):
            life.export("product-8", "x.faissindex", slice(400), "ivfpq", nlist=nlist)


def test_the_card_says_how_lists_are_kept(empty):
    life.export("product-8", "g.faissindex", slice(400), "ivfpq", nlist=8)
    metadata = scqfaiss.open("g.faissindex").metadata
    assert (metadata["nlist"], metadata["nprobe"], metadata["by_residual"]) == (8, 1, False)
    facts = inspection.gallery_facts("g.faissindex")
    assert (facts["exact"], facts["range_search"]) == (False, True)
    life.export("product-8", "h.faissindex", slice(400), "ivfpq")
    assert scqfaiss.open("h.faissindex").metadata["by_residual"] is True
    life.export("product-4", "f.faissindex", slice(400), "fastscan", refine=-1)
    assert inspection.gallery_facts("f.faissindex")["range_search"] is False


@pytest.mark.parametrize(
    "name, target", [("product-8", "pq"), ("product-4", "fastscan"), ("additive-4", "lift"), ("product-l2", "ivfpq")]
)
def test_decoded_queries_pass_the_encoder_of_the_file(name, target, empty):
    life.export(name, "g.faissindex", slice(400), target=target)
    gallery = scqfaiss.open("g.faissindex", model=life.model(name))
    codebooks, codes, ids = gallery.unpack()
    xq = gallery.reconstruct(ids[[7, 3, 7]])
    scores = codebooks.scores(xq, codes)
    best = np.sort(scores if codebooks.metric == "l2" else -scores, 1)[:, :9] * (1 if codebooks.metric == "l2" else -1)
    D, I = gallery.search(xq, 9, decoded=True)
    exact = gallery.exact
    if exact:
        np.testing.assert_allclose(D, best, atol=1e-5 * np.abs(scores).max())
    assert (I[:, 0] == I[[2, 1, 0], 0]).all()
    threshold = float(best[:, :4].mean())
    lims, _, _ = gallery.range_search(xq, threshold, decoded=True)
    if exact:
        beyond = scores < threshold if codebooks.metric == "l2" else scores > threshold
        np.testing.assert_array_equal(np.diff(lims), beyond.sum(1))
    with pytest.raises(ConfigError, match=r"queries: encoded queries have d=1, the index needs d=\d+"):
        gallery.search(xq[:, :1], decoded=True)
