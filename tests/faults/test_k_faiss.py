"""FAISS beside others: what replaces its methods, and processes made by fork or started anew."""

import ast
import hashlib
import importlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import faiss
import numpy as np
import pytest

import scqfaiss
from scqfaiss import faiss_calls, forks
from scqfaiss.codebooks import Codebooks
from scqfaiss.targets import REGISTRY, make_options, target

from .conftest import blobs

PACKAGE = Path(scqfaiss.__file__).parent


# ------------------------------------------------------------------------------------------------- methods laid over FAISS's
@pytest.fixture
def torch_utils():
    """faiss.contrib.torch_utils loaded, and taken away again."""
    owners = [faiss, *{id(c): c for c in vars(faiss).values() if isinstance(c, type)}.values()]
    before = [dict(vars(owner)) for owner in owners]
    importlib.import_module("faiss.contrib.torch_utils")
    assert faiss.IndexPQ.search.__name__ == "torch_replacement_search"
    yield
    for owner, names in zip(owners, before):
        for name, value in list(vars(owner).items()):
            if name not in names:
                delattr(owner, name)
            elif value is not names[name]:
                setattr(owner, name, names[name])
    sys.modules.pop("faiss.contrib.torch_utils")
    assert faiss.IndexPQ.search.__name__ == "replacement_search"


def answers(folder):
    """A hash over what every target, every baseline and a gallery answer."""
    rng, sha = np.random.default_rng(0), hashlib.sha256()

    def put(*arrays):
        for a in arrays:
            assert isinstance(a, np.ndarray), type(a)
            sha.update(f"{a.dtype} {a.shape}".encode() + np.ascontiguousarray(a).tobytes())

    q = rng.standard_normal((5, 8)).astype(np.float32)
    for name in REGISTRY:
        t = target(name)
        for kind, metric in (("product", "ip"), ("product", "l2"), ("additive", "ip"), ("additive", "l2")):
            table = rng.standard_normal((4, 16, 2 if kind == "product" else 8)).astype(np.float32)
            codebooks = Codebooks(kind, table, metric)
            if t.supports(codebooks.shape) is not None:
                continue
            codes = codebooks.check_codes(rng.integers(0, 16, (900, 4)))
            for values in [{}] + [{"nlist": 8}] * (name in ("ivfpq", "buckets") and metric == "ip"):
                options = make_options(name, values)
                index = t.build(codebooks, codes, np.arange(900) + 7, options)
                put(*t.search(index, q, 6), *t.range_search(index, q, 0.5), *t.unpack(index)[1:])
                put(*t.search(t.build(codebooks, codes, np.arange(900), options, like=index), q, 6))
                if t.INFO.filter:
                    put(*t.search(index, q, 6, sel=faiss.IDSelectorBatch(np.arange(9, 900))))
    x = rng.standard_normal((100, 8)).astype(np.float32)
    for method in ("pq", "opq", "rq"):
        model = scqfaiss.train(x, method=method, bits=8, nbits=4)
        path = folder / f"{method}.faissindex"
        scqfaiss.export(model, x, path=path)
        scqfaiss.append(path, x[:3], ids=[900, 901, 902], model=model)
        for mmap in (False, True):
            gallery = scqfaiss.open(path, mmap=mmap)
            put(*gallery.search(x, 7), *gallery.range_search(x, 0.9), gallery.reconstruct([0, 900]))
        put(np.array(scqfaiss.evaluate_pairs(gallery, x, np.arange(100))["mrr"]))
    return sha.hexdigest()


@pytest.mark.filterwarnings("ignore::scqfaiss.ScqWarning")
def test_the_same_answers_beside_torch_utils(tmp_path, request):
    plain = answers(tmp_path)
    request.getfixturevalue("torch_utils")
    assert answers(tmp_path) == plain


# What FAISS's Python layer lays over methods of C++ classes, and torch_utils over these.
LAID_OVER = {
    "search",
    "range_search",
    "add_with_ids",
    "add_sa_codes",
    "sa_encode",
    "sa_decode",
    "search_and_reconstruct",
}
LAID_OVER |= {
    "search_preassigned",
    "reconstruct_n",
    "reconstruct_batch",
    "remove_ids",
    "update_vectors",
    "knn",
    "Kmeans",
}


def test_only_one_place_calls_what_may_be_laid_over():
    ours = {
        "gallery",
        "g",
        "target",
        "plain",
        "target(container)",
        "snapshot.on_gpu",
        "faiss_calls",
        "super()",
        "alone",
        "re",
        "open_gallery",
    }
    seen = 0
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text("utf-8")
        if "import faiss" not in text or path.name in (
            "faiss_calls.py",
            "digits.py",
        ):  # the demo searches as plain FAISS does
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LAID_OVER:
                assert ast.unparse(node.func.value) in ours, f"{path.name}: {ast.unparse(node)}"
                seen += 1
    assert seen > 10


# ---------------------------------------------------------------------------------------------------------------- forks
@pytest.fixture(scope="module")
def galleries(tmp_path_factory):
    """A model, its gallery, one with its encoder inside; queries and their hits."""
    folder = tmp_path_factory.mktemp("galleries")
    x, y = blobs(400)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scqfaiss.ScqWarning)
        model = scqfaiss.train(x, y, bits=8, nbits=4, encoder="linear", epochs=1)
        scqfaiss.train(x, method="pq", bits=8, nbits=4).save(folder / "pq.safetensors")
    model.save(folder / "m.safetensors")
    scqfaiss.export(model, x, path=folder / "g.faissindex")
    scqfaiss.export(folder / "pq.safetensors", x, path=folder / "folded.faissindex")
    np.save(folder / "x.npy", x)
    return folder


def searched(folder):
    """Open and search here: what a worker does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scqfaiss.ScqWarning)
        x = np.load(Path(folder) / "x.npy")
        gallery = scqfaiss.open(Path(folder) / "g.faissindex", model=Path(folder) / "m.safetensors")
        return gallery.search(np.repeat(x, 5, axis=0), 5)[1]


def child(work, limit=30):
    """Exit code of `work` in a child made by fork: 0, or 1 where it raised; 'hangs' after `limit` seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads beside a fork, which is what is tried
        pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.__stderr__)
            os._exit(1)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return "hangs"


@pytest.fixture
def two_threads():
    """FAISS's loops on two threads, which this process then keeps."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    yield
    faiss.omp_set_num_threads(before)


def test_a_child_made_by_fork(galleries, two_threads, tmp_path):
    x = np.load(galleries / "x.npy")
    model = scqfaiss.Model.load(galleries / "m.safetensors")
    gallery = scqfaiss.open(galleries / "g.faissindex", model=model)
    wanted = searched(galleries)  # with two threads

    def opens():
        assert (searched(galleries) == wanted).all()
        assert faiss.omp_get_max_threads() == 1

    def holds():
        faiss.omp_set_num_threads(4)  # does not know better
        assert (gallery.search(np.repeat(x, 5, axis=0), 5)[1] == wanted).all()
        lims, _, _ = gallery.range_search(x, -1e30)
        assert lims[-1] == len(x) ** 2

    def writes():
        scqfaiss.export(model, x, path=tmp_path / "new.faissindex", nlist=8)
        scqfaiss.append(tmp_path / "new.faissindex", x[:5], ids=np.arange(5) + 5000, model=model)

    def measures():
        y = np.arange(400) % 4
        assert scqfaiss.evaluate(gallery, x, y, np.arange(400), y)["map"] > 0.5

    def grandchild():
        assert child(opens) == 0

    for work in (opens, holds, writes, measures, grandchild):
        assert child(work) == 0, work.__name__
    assert faiss.omp_get_max_threads() == 2  # the parent keeps its own


def test_a_lock_held_elsewhere_is_open_in_the_child(galleries):
    gallery = scqfaiss.open(galleries / "folded.faissindex")
    held, release = threading.Event(), threading.Event()

    def hold():
        from scqfaiss.galleries import index_reader

        with index_reader._limits_lock, gallery._reconstructing, gallery._refreshing:
            held.set()
            release.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(30)

        def work():
            scqfaiss.open(galleries / "folded.faissindex")
            gallery.reconstruct([0])
            gallery.refresh()

        assert child(work) == 0
    finally:
        release.set()
        thread.join()


def test_a_process_that_forked_before_it_loads_anything_keeps_its_threads(monkeypatch):
    monkeypatch.setattr(forks, "_alone", False)
    monkeypatch.setattr(forks.sys, "modules", {})
    forks._look()
    asked = []
    forks.one_thread(asked.append)
    assert asked == []
    monkeypatch.setattr(forks.sys, "modules", {"faiss": None})
    forks._look()
    forks.one_thread(asked.append)
    assert asked == [1]


@pytest.mark.slow
def test_faiss_alone_was_there_before_the_fork(galleries):
    # scqfaiss comes into the child only: nothing saw the fork.
    code = f"""
import os, sys, time
import faiss, numpy as np
faiss.omp_set_num_threads(2)
index = faiss.IndexFlatIP(16)
index.add(np.ones((5000, 16), "f4"))
index.search(np.ones((1000, 16), "f4"), 5)
pid = os.fork()
if pid == 0:
    import scqfaiss
    x = np.load({str(galleries / "x.npy")!r})
    gallery = scqfaiss.open({str(galleries / "g.faissindex")!r}, model={str(galleries / "m.safetensors")!r})
    os._exit(0 if gallery.search(np.repeat(x, 9, axis=0), 5)[1].min() >= 0 else 1)
for _ in range(3000):
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        sys.exit(os.waitstatus_to_exitcode(status))
    time.sleep(0.01)
os.kill(pid, 9)
sys.exit(9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_training_in_a_child_made_by_fork(two_threads):
    import torch

    x, y = blobs(3000)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (torch.ones(1000, 1000) @ torch.ones(1000, 1000)).relu().sum()

        def trains():
            scqfaiss.train(x, y, bits=8, nbits=4, epochs=1)
            scqfaiss.train(x, method="opq", bits=8, nbits=4)

        assert child(trains) == 0
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_workers_open_and_search(galleries, two_threads, how):
    wanted = searched(galleries)
    with multiprocessing.get_context(how).Pool(2) as pool:
        for found in pool.map_async(searched, [galleries] * 4).get(timeout=50):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")  # on one core
def test_workers_of_a_data_loader(galleries, two_threads, how):
    from torch.utils.data import DataLoader

    wanted = searched(galleries)
    loader = DataLoader(Searches(galleries), batch_size=None, num_workers=2, multiprocessing_context=how, timeout=50)
    for found in loader:
        np.testing.assert_array_equal(found, wanted)


class Searches:
    """A data set whose rows are searches."""

    def __init__(self, folder):
        self.folder = folder

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return searched(self.folder)


def test_calls_check_what_cpp_would_not():
    index = faiss.IndexFlatIP(4)
    with pytest.raises(ValueError, match=r"rows are \(2, 3\), FAISS needs \(n, 4\)"):
        faiss_calls.search(index, np.zeros((2, 3), np.float32), 1)
    with pytest.raises(ValueError, match=r"needs \(n, 16\) and an id for each"):
        faiss_calls.add_codes(index, np.zeros((2, 15), np.uint8))
