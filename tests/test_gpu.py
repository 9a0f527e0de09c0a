"""Codes on a GPU. Most of it runs anywhere, the CPU in the GPU's place; the rest needs a GPU and a FAISS built for one."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import pytest
from faults.conftest import blobs, here, made, run  # noqa: F401

import scqfaiss
from scqfaiss.codebooks import Codebooks, Shape
from scqfaiss.errors import ConfigError, DataError, ResourceError, ScqWarning
from scqfaiss.galleries.exporting import export
from scqfaiss.galleries.reading import Stored
from scqfaiss.galleries.snapshot import Snapshot
from scqfaiss.model import Model
from scqfaiss.targets import gpu, target
from scqfaiss.targets.pretransform import apply_transforms, prepend, unwrap_index

# ruff: noqa: F811  (fixtures are imported by name)
CPU_BUILD = "GPU" not in faiss.get_compile_options().split()
CHECK = Path(__file__).parents[1] / "tools" / "gpu_check.py"
needs_gpu = pytest.mark.skipif(gpu.count() == 0, reason="no GPU, or FAISS is built for the CPU")
needs_cpu_build = pytest.mark.skipif(not CPU_BUILD, reason="FAISS is built for GPUs")
FAR = 1 << 41

# kind, codebooks, bits of a codebook, dimensions of a codebook, metric, target
CASES = [
    ("product", 4, 8, 3, "ip", "ivfpq"),
    ("product", 4, 8, 3, "l2", "ivfpq"),
    ("product", 5, 8, 3, "ip", "pq"),
    ("product", 7, 8, 2, "ip", "ivfpq"),
    ("product", 13, 8, 2, "l2", "pq"),
    ("product", 8, 4, 2, "ip", "fastscan"),
    ("product", 26, 4, 2, "l2", "ivfpq"),
    ("product", 4, 8, 3, "ip", "buckets"),
    ("additive", 8, 8, 6, "ip", "lift"),
    ("additive", 5, 8, 6, "ip", "residual"),
    ("additive", 16, 4, 6, "ip", "lift"),
    ("additive", 10, 4, 6, "ip", "fastscan"),
    ("additive", 8, 4, 6, "ip", "buckets"),
]


def parts(kind, M, nbits, dsub, metric="ip", n=120, seed=0):
    """Random codebooks, codes, ids beyond 2^40, queries."""
    rng = np.random.default_rng(seed)
    codebooks = Codebooks(kind, rng.standard_normal((M, 1 << nbits, dsub)).astype(np.float32), metric)
    codes = codebooks.check_codes(rng.integers(0, 1 << nbits, (n, M)))
    return codebooks, codes, FAR + 3 * np.arange(n), rng.standard_normal((6, codebooks.d)).astype(np.float32)


def equals_oracle(hits, codebooks, codes, ids, q):
    """Scores are those of the returned ids, and the best there are; ids may differ in ties alone."""
    D, I = hits
    scores = codebooks.scores(q, codes)
    place = np.searchsorted(ids, I)
    np.testing.assert_array_equal(ids[place], I)
    assert all(len(set(row)) == len(row) for row in I.tolist())
    scale = np.abs(scores).max()
    sign = -1 if codebooks.metric == "ip" else 1
    np.testing.assert_allclose(np.take_along_axis(scores, place, 1), D, atol=1e-5 * scale, rtol=0)
    np.testing.assert_allclose(sign * np.sort(sign * scores, 1)[:, : D.shape[1]], D, atol=1e-5 * scale, rtol=0)


@pytest.fixture
def no_gpu(monkeypatch):
    """The CPU in the GPU's place: OnGpu runs as it is, and what it moves to the GPU is copied instead."""
    state = SimpleNamespace(devices=[], searches=[])

    def move(resources, number, index, options):
        assert resources == "resources" and options.use_cuvs is False
        # What GpuIndexIVFPQ asks for.
        assert isinstance(index, faiss.IndexIVFPQ) and index.by_residual and index.polysemous_ht == 0
        assert index.pq.nbits == 8 and index.pq.M in gpu.GPU_M and index.nprobe == min(index.nlist, gpu.MAX_NPROBE)
        state.devices.append(number)
        copy = faiss.clone_index(index)

        def search(n, *arguments):
            state.searches.append(n)
            copy.search_c(n, *arguments)

        return SimpleNamespace(d=copy.d, search_c=search)

    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "GpuClonerOptions", lambda: SimpleNamespace(use_cuvs=True), raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", move, raising=False)
    monkeypatch.setattr(gpu, "number_of", lambda device: int(device.partition(":")[2] or 0))
    return state


# ------------------------------------------------------------------------------------------------------------- the device
@pytest.mark.parametrize(
    "device", ["gpu", "CUDA", "cuda:", "cuda:-1", "cuda:x", "cuda:0:1", "cuda:²", "", "cuda:" + "9" * 5000]
)
def test_names_that_are_no_device(device):
    with pytest.raises(ConfigError, match=r"needs cpu, cuda or cuda:N$"):
        gpu.number_of(device)


@needs_cpu_build
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_faiss_for_the_cpu(device):
    with pytest.raises(ConfigError) as found:
        gpu.number_of(device)
    assert str(found.value) == f'device {device}: this FAISS is built for the CPU: pip install "scqfaiss[gpu]"'
    assert gpu.count() == 0


def test_fewer_gpus_than_asked_for(monkeypatch):
    monkeypatch.setattr(faiss, "get_compile_options", lambda: "OPTIMIZE AVX2 GPU ")
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda name: None)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2, raising=False)
    assert [gpu.number_of(device) for device in ("cuda", "cuda:0", "cuda:1")] == [0, 0, 1]
    with pytest.raises(ConfigError, match=r"^device cuda:2: FAISS sees 2 GPUs$"):
        gpu.number_of("cuda:2")


def test_without_a_driver_faiss_is_not_asked(monkeypatch):
    """It would end the process."""

    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(faiss, "get_compile_options", lambda: "OPTIMIZE AVX2 GPU ")
    monkeypatch.setattr(gpu.ctypes, "CDLL", missing)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: pytest.fail("asked"), raising=False)
    with pytest.raises(ConfigError, match=r"^device cuda: FAISS sees 0 GPUs$"):
        gpu.number_of("cuda")


@needs_cpu_build
def test_command_line_without_a_gpu(run, here):
    result = run("search", "folded.faissindex", "query.h5", "--device", "cuda:0")
    assert result.code == 2
    assert result.error == 'Error: device cuda:0: this FAISS is built for the CPU: pip install "scqfaiss[gpu]"'
    result = run("search", "folded.faissindex", "query.h5", "--device", "tpu")
    assert (result.code, result.error) == (2, "Error: device is 'tpu', needs cpu, cuda or cuda:N")


# --------------------------------------------------------------------------------------------------------------- the form
@pytest.mark.parametrize(
    "shape, why",
    [
        (Shape("product", 4, 8, 12), None),
        (Shape("product", 4, 8, 12, "l2"), None),
        (Shape("product", 8, 4, 16), None),
        (Shape("additive", 16, 4, 6), None),
        (Shape("product", 48, 8, 48), None),
        (Shape("product", 96, 4, 96), None),
        (Shape("product", 5, 4, 10), "the GPU kernels need nbits 8, or 4 in an even number of codebooks; got 5 x 4"),
        (Shape("product", 4, 6, 12), "the GPU kernels need nbits 8, or 4 in an even number of codebooks; got 4 x 6"),
        (Shape("additive", 4, 10, 12), "the GPU kernels need nbits 8, or 4 in an even number of codebooks; got 4 x 10"),
        (
            Shape("product", 49, 8, 49),
            "the look-up tables of 49 codebooks exceed the shared memory of the GPU; at most 48 fit",
        ),
        (
            Shape("product", 98, 4, 98),
            "the look-up tables of 49 codebooks exceed the shared memory of the GPU; at most 48 fit",
        ),
        (Shape("additive", 4, 8, 12, "l2"), "additive codes are searched there by inner product alone"),
    ],
)
def test_reason(shape, why):
    assert gpu.unsupported_reason(shape) == why
    if why is not None:
        dsub = shape.d if shape.kind == "additive" else shape.d // shape.M
        codebooks = Codebooks(shape.kind, np.zeros((shape.M, shape.K, dsub), np.float32), shape.metric)
        with pytest.raises(ConfigError) as found:
            gpu.form(codebooks, codebooks.check_codes(np.zeros((3, shape.M), int)), np.arange(3))
        assert str(found.value) == f"these codes cannot be searched on a GPU: {why}"


@pytest.mark.parametrize("nlist", [1, 16])
@pytest.mark.parametrize("kind, M, nbits, dsub, metric, name", CASES)
def test_form_scores_as_the_oracle(kind, M, nbits, dsub, metric, name, nlist):
    codebooks, codes, ids, q = parts(kind, M, nbits, dsub, metric)
    form = gpu.form(codebooks, codes, ids, nlist)
    core = unwrap_index(form)
    assert core.pq.nbits == 8 and core.pq.M in gpu.GPU_M
    assert core.by_residual and core.nprobe == core.nlist == nlist
    equals_oracle(form.search(q, len(codes)), codebooks, codes, ids, q)
    if kind == "additive" and nbits == 4:
        assert core.d == core.pq.M * dsub  # sums of pairs, not both side by side


def test_form_is_padded_to_the_next_number_of_codebooks():
    for M, stored in ((1, 1), (5, 8), (7, 8), (9, 12), (13, 16), (33, 40), (48, 48)):
        assert unwrap_index(gpu.form(*parts("product", M, 8, 1, n=3)[:3])).pq.M == stored


def test_form_of_few_rows_or_none():
    codebooks, codes, ids, q = parts("product", 4, 8, 3)
    assert unwrap_index(gpu.form(codebooks, codes[:3], ids[:3])).nlist == 3
    empty = gpu.form(codebooks, codes[:0], ids[:0])
    assert empty.ntotal == 0 and (empty.search(q, 2)[1] == -1).all()


# ------------------------------------------------------------------------------------------ lists that are part of codes
# kind, codebooks, bits of a codebook, dimensions of a codebook, metric, target
LISTED = [
    ("product", 4, 8, 3, "ip", "ivfpq"),
    ("product", 4, 8, 3, "l2", "ivfpq"),
    ("product", 5, 8, 3, "ip", "buckets"),
    ("product", 10, 4, 2, "ip", "ivfpq"),
    ("product", 0, 1, 12, "ip", "ivfpq"),
    ("product", 0, 1, 12, "l2", "ivfpq"),
    ("additive", 5, 8, 6, "ip", "lift"),
    ("additive", 10, 4, 6, "ip", "buckets"),
]


def listed_parts(kind, M, nbits, dsub, metric="ip", L=9, n=120, seed=0):
    """The same, of codes whose first number is a list."""
    rng = np.random.default_rng(seed)
    centroids = rng.standard_normal((M, 1 << nbits, dsub)).astype(np.float32)
    d = dsub * max(M, 1) if kind == "product" else dsub
    codebooks = Codebooks(kind, centroids, metric, 3 * rng.standard_normal((L, d)).astype(np.float32))
    codes = codebooks.check_codes(np.column_stack([rng.integers(0, L, n), rng.integers(0, 1 << nbits, (n, M))]))
    return codebooks, codes, FAR + 3 * np.arange(n), rng.standard_normal((6, d)).astype(np.float32)


@pytest.mark.parametrize("L", [2, 9, 300])
@pytest.mark.parametrize("kind, M, nbits, dsub, metric, name", LISTED)
def test_form_of_codes_with_lists_scores_as_the_oracle(no_gpu, kind, M, nbits, dsub, metric, name, L):
    codebooks, codes, ids, q = listed_parts(kind, M, nbits, dsub, metric, L)
    form = gpu.form(codebooks, codes, ids)
    core = unwrap_index(form)
    assert core.nprobe == core.nlist == L and core.by_residual
    equals_oracle(form.search(q, len(codes)), codebooks, codes, ids, q)
    index = target(name).build(codebooks, codes, ids)
    on = gpu.OnGpu(gpu.form(*target(name).unpack(index, codebooks.shape)), 0)
    equals_oracle(on.search(q, 50), codebooks, codes, ids, q)
    equals_oracle(on.search(apply_transforms(index, q), 50), codebooks, codes, ids, q)


def test_a_gpu_visits_the_lists_that_it_is_told_to(no_gpu, monkeypatch):
    codebooks, codes, ids, q = listed_parts("product", 4, 8, 3, L=300, n=900)
    index = target("ivfpq").build(codebooks, codes, ids)
    on = Snapshot.on_device(Stored.of(index), "cuda").on_gpu
    for nprobe in (1, 7, 300):
        np.testing.assert_array_equal(on.search(q, 4, nprobe)[1], target("ivfpq").search(index, q, 4, nprobe=nprobe)[1])
    np.testing.assert_array_equal(on.search(q, 4)[1], target("ivfpq").search(index, q, 4)[1])  # what the file says
    assert (on.search(q, 60, 2)[1] < 0).any()
    equals_oracle(on.search(q, 900), codebooks, codes, ids, q)  # few lists would not hold so many
    with pytest.raises(
        ConfigError, match=r"^nprobe is 2,049, a GPU search visits at most 2,048 lists; use device cpu$"
    ):
        on.search(q, 4, 2049)
    exact = Snapshot.on_device(Stored(index, None, target("buckets")), "cuda").on_gpu
    equals_oracle(exact.search(q, 50), codebooks, codes, ids, q)
    monkeypatch.setattr(gpu, "MAX_NPROBE", 100)
    with pytest.warns(ScqWarning, match="^a GPU search looks at 100 of the 300 lists: not exact, as on the cpu$"):
        Snapshot.on_device(Stored(index, None, target("buckets")), "cuda")


def test_a_gallery_on_a_gpu_takes_nprobe_where_codes_have_lists(no_gpu):
    codebooks, codes, ids, q = listed_parts("additive", 4, 8, 6, L=20)
    gallery = scqfaiss.Gallery(
        Snapshot.on_device(Stored.of(target("lift").build(codebooks, codes, ids)), "cuda"), None, "g"
    )
    equals_oracle(gallery.search(q, 50, nprobe=20), codebooks, codes, ids, q)
    assert (gallery.search(q, 100, nprobe=1)[1] < 0).any()


# -------------------------------------------------------------------------------------------------------------- searching
@pytest.mark.parametrize("kind, M, nbits, dsub, metric, name", CASES)
def test_every_target_through_the_gpus_door(no_gpu, kind, M, nbits, dsub, metric, name):
    codebooks, codes, ids, q = parts(kind, M, nbits, dsub, metric)
    container = target(name)
    index = container.build(codebooks, codes, ids)
    on = gpu.OnGpu(gpu.form(*container.unpack(index, codebooks.shape)), 1)
    equals_oracle(on.search(q, 50), codebooks, codes, ids, q)
    equals_oracle(
        on.search(apply_transforms(index, q), 50), codebooks, codes, ids, q
    )  # repeated, where the container asks for that
    assert no_gpu.devices == [1]


def test_long_batches_are_cut(no_gpu, monkeypatch):
    monkeypatch.setattr(gpu, "MAX_BATCH", 4)
    codebooks, codes, ids, _ = parts("product", 4, 8, 3)
    q = np.random.default_rng(3).standard_normal((10, 12)).astype(np.float32)
    on = gpu.OnGpu(gpu.form(codebooks, codes, ids), 0)
    equals_oracle(on.search(q, 5), codebooks, codes, ids, q)
    assert no_gpu.searches == [4, 4, 2]
    assert [a.shape for a in on.search(q[:0], 5)] == [(0, 5), (0, 5)]


def test_rows_that_are_not_finite(no_gpu):
    codebooks, codes, ids, q = parts("product", 4, 8, 3)
    index = target("ivfpq").build(codebooks, codes, ids)
    scale = faiss.LinearTransform(12, 12, False)
    faiss.copy_array_to_vector((1e30 * np.eye(12, dtype=np.float32)).ravel(), scale.A)
    scale.is_trained = True
    for stored, value, why in (
        (Stored.of(index), np.inf, "2, column 1 is infinite"),
        (Stored.of(prepend([scale], index)), 1e30, "2 is too large for the encoder of the index$"),
    ):
        q[2, 1] = value
        gallery = scqfaiss.Gallery(Snapshot(stored, gpu.OnGpu(gpu.form(codebooks, codes, ids), 0)), None, "g")
        with pytest.raises(DataError, match=f"^queries: row {why}"):
            gallery.search(q, 5)
    assert no_gpu.searches == []


def test_memory_that_is_short(no_gpu, monkeypatch):
    def full(*arguments):
        raise RuntimeError(
            "Error in virtual void* faiss::gpu::StandardGpuResourcesImpl::allocMemory(const AllocRequest&) at x.cpp:528: "
            "Error: 'err == cudaSuccess' failed: StandardGpuResources: alloc fail (cudaMalloc error out of memory [2])\n"
        )

    codebooks, codes, ids, q = parts("product", 4, 8, 3)
    on = gpu.OnGpu(gpu.form(codebooks, codes, ids), 0)
    on._core.search_c = full
    why = r"\(StandardGpuResources: alloc fail \(cudaMalloc error out of memory \[2\]\)\)"
    with pytest.raises(ResourceError, match=rf"^the GPU search failed {why}; use device cpu$"):
        on.search(q, 5)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", full)
    with pytest.raises(ResourceError, match=rf"^the GPU does not take the index {why}$"):
        gpu.OnGpu(gpu.form(codebooks, codes, ids), 0)


# -------------------------------------------------------------------------------------------------------------- galleries
def test_gallery_on_a_gpu(here, no_gpu):
    model, (xq, _) = Model.load("m.safetensors"), blobs(12, seed=5)
    for name in ("g", "p", "folded"):
        given = None if name == "folded" else model
        on, off = (scqfaiss.open(f"{name}.faissindex", model=given, device=d) for d in ("cuda:1", "cpu"))
        for a, b in zip(on.search(xq, 200), off.search(xq, 200)):
            np.testing.assert_allclose(np.sort(a, 1), np.sort(b, 1), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            on.search(off.embed(xq), 5, encoded=True)[0], off.search(xq, 5)[0], rtol=1e-5, atol=1e-5
        )
        ids = off.search(xq, 3)[1][0]
        np.testing.assert_array_equal(on.reconstruct(ids), off.reconstruct(ids))
        assert on.search(xq[:0], 4)[1].shape == (0, 4)
    assert set(no_gpu.devices) == {1}


def test_encoder_inside_the_file(here, no_gpu):
    """Linear layers and L2 norms run on the CPU, in front of codes that had to be padded and merged."""
    x, y = blobs(300)
    settings = {"cfa": "cosine", "codebooks.copies": 1}
    model = scqfaiss.train(x, y, bits=24, nbits=4, encoder="linear", epochs=1, **settings)
    export(model, x, path="inside.faissindex", ids=np.arange(300) + FAR)
    gallery = scqfaiss.open("inside.faissindex", device="cuda")
    assert gallery.metadata["encoder"] == "folded"
    hits = gallery.search(x[:20], 40)
    codebooks, codes, ids = gallery.unpack()
    order = np.argsort(ids)
    equals_oracle(hits, codebooks, codes[order], ids[order], model.embed(x[:20]))


def test_what_a_gpu_refuses(here, no_gpu):
    gallery, (xq, _) = scqfaiss.open("folded.faissindex", device="cuda"), blobs(3)
    for filters in ({"allow": [1000, 1001]}, {"deny": [1000]}):
        with pytest.raises(
            ConfigError, match=r"^filters need device cpu: FAISS's GPU search takes them and ignores them$"
        ):
            gallery.search(xq, 4, **filters)
        with pytest.raises(ConfigError):
            gallery.range_search(xq, 0.5, **filters)
    with pytest.raises(ConfigError, match=r"^a GPU has no range search; use device cpu$"):
        gallery.range_search(xq, 0.5)
    x, _ = blobs(2100)
    export(Model.load("pq.safetensors"), x, path="long.faissindex")
    gallery = scqfaiss.open("long.faissindex", device="cuda")
    assert gallery.search(xq, 2048)[1].min() >= 0
    with pytest.raises(ConfigError, match=r"^k is 2,049, a GPU search gives at most 2,048; use device cpu$"):
        gallery.search(xq, 2049)


def test_approximate_containers_say_that_they_are_exact_there(here, no_gpu):
    x, _ = blobs(200, seed=1)
    model = Model.load("pq.safetensors")
    export(model, x, path="fast.faissindex", target="fastscan")
    with pytest.warns(ScqWarning, match=r"^on a GPU the codes of target fastscan are searched exactly"):
        gallery = scqfaiss.open("fast.faissindex", device="cuda")
    codebooks, codes, ids = gallery.unpack()
    equals_oracle(gallery.search(x[:9], 30), codebooks, codes, ids, model.embed(x[:9]))


def test_codes_that_no_gpu_takes(here, no_gpu):
    x, _ = blobs(200)
    with pytest.warns(ScqWarning, match="rows are few"):
        model = scqfaiss.train(x, method="pq", bits=12, nbits=6)
    export(model, x, path="six.faissindex")
    with pytest.raises(ConfigError, match=r"^these codes cannot be searched on a GPU: the GPU kernels need nbits 8"):
        scqfaiss.open("six.faissindex", device="cuda")
    with open("flat.faissindex", "x+b") as f:
        index = faiss.IndexFlatL2(4)
        f.write(faiss.serialize_index(index).tobytes())
    with pytest.warns(ScqWarning, match="no checksum"), pytest.raises(ConfigError, match=r"stays on the cpu$"):
        scqfaiss.open("flat.faissindex", device="cuda")


def test_refresh_stays_on_its_gpu(here, no_gpu):
    gallery, (xq, _) = scqfaiss.open("folded.faissindex", device="cuda:2"), blobs(4, seed=7)
    before = gallery.search(xq, 5)[1]
    x, _ = blobs(50, seed=8)
    export(Model.load("pq.safetensors"), x, path="folded.faissindex", ids=np.arange(50) + FAR)
    np.testing.assert_array_equal(gallery.search(xq, 5)[1], before)
    assert gallery.refresh() and not gallery.refresh()
    assert no_gpu.devices == [2, 2] and (gallery.search(xq, 5)[1] >= FAR).all()


def test_threads_share_a_gpu(no_gpu):
    codebooks, codes, ids, q = parts("product", 4, 8, 3)
    on = gpu.OnGpu(gpu.form(codebooks, codes, ids), 0)
    search, busy = on._core.search_c, []

    def alone(*arguments):
        busy.append(1)
        assert len(busy) == 1
        search(*arguments)
        busy.pop()

    on._core.search_c = alone
    with ThreadPoolExecutor(4) as pool:
        for D, I in pool.map(lambda _: on.search(q, 9), range(16)):
            equals_oracle((D, I), codebooks, codes, ids, q)


# --------------------------------------------------------------------------------------------------------------- the tool
@pytest.mark.slow
def test_the_tool_rehearses(tmp_path):
    out = tmp_path / "table.txt"
    done = subprocess.run(
        [sys.executable, CHECK, "--rehearse", "--rows", "small", "--out", out],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert out.read_text() == done.stdout
    results = [line.split()[1] for line in done.stdout.splitlines() if line[:2].strip().isdigit()]
    assert results == "pass pass pass skipped skipped skipped skipped pass skipped pass pass pass".split()
    assert "codes read" in done.stdout and "CPU fastscan" in done.stdout


def test_the_tool_without_a_gpu():
    helped = subprocess.run([sys.executable, CHECK, "--help"], capture_output=True, text=True, timeout=50)
    assert (helped.returncode, helped.stderr) == (0, "")
    if gpu.count():
        return
    done = subprocess.run([sys.executable, CHECK], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("Error: no GPU 0 to ask: FAISS ")


# ------------------------------------------------------------------------------------------------------------ with a GPU
@needs_gpu
@pytest.mark.parametrize("nlist", [1, 16])
@pytest.mark.parametrize("kind, M, nbits, dsub, metric, name", CASES)
def test_a_gpu_scores_as_the_cpu(kind, M, nbits, dsub, metric, name, nlist):
    codebooks, codes, ids, q = parts(kind, M, nbits, dsub, metric, n=3000)
    container = target(name)
    index = container.build(codebooks, codes, ids)
    form = gpu.form(*container.unpack(index, codebooks.shape), nlist)
    on = gpu.OnGpu(form, 0)
    for k in (1, 100, 2048):
        D, I = on.search(apply_transforms(index, q), k)
        equals_oracle((D, I), codebooks, codes, ids, q)
        np.testing.assert_allclose(form.search(q, k)[0], D, rtol=1e-5, atol=1e-4)


@needs_gpu
def test_a_gpu_visits_each_of_equal_centroids_once():
    for metric in ("ip", "l2"):
        codebooks, codes, ids, q = parts("product", 4, 8, 3, metric, n=2000)
        for nlist in (1, 2, 16, 64):
            equals_oracle(
                gpu.OnGpu(gpu.form(codebooks, codes, ids, nlist), 0).search(q, 2000), codebooks, codes, ids, q
            )


@needs_gpu
def test_threads_on_a_gpu(here):
    on, (xq, _) = scqfaiss.open("folded.faissindex", device="cuda"), blobs(12, seed=5)
    want = scqfaiss.open("folded.faissindex").search(xq, 50)[0]
    with ThreadPoolExecutor(8) as pool:
        for D, _ in pool.map(lambda _: on.search(xq, 50), range(64)):
            np.testing.assert_allclose(D, want, rtol=1e-5, atol=1e-5)


@needs_gpu
def test_a_gpu_takes_long_batches():
    codebooks, codes, ids, q = parts("product", 1, 8, 3, n=5)
    multilabel = np.tile(q, (12_000, 1))
    D, I = gpu.OnGpu(gpu.form(codebooks, codes, ids, 1), 0).search(multilabel, 5)
    equals_oracle((D[-6:], I[-6:]), codebooks, codes, ids, q)
