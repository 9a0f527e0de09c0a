"""What FAISS does on a GPU with our codes, asked of the machine itself: a table of answers, and of speeds.

    python tools/gpu_check.py --out gpu.txt            # on a machine with a CUDA GPU and a GPU build of FAISS
    python tools/gpu_check.py --rehearse --rows small  # anywhere: the CPU plays the GPU, so that this script is known to run

Needs FAISS, NumPy and this package on the path; torch, if there, measures the memory bandwidth. Each question runs in a
process of its own with a time limit, because a CUDA error ends the process it happens in. Results: `pass`, as was read from
FAISS's source; `news`, otherwise, but nothing of ours depends on it; `fail`, wrong or dead; `skipped`, not for this machine.
Exit codes: 0; 1 where anything failed; 2 where there is no GPU to ask.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PASS, NEWS, FAIL, SKIPPED = "pass", "news", "fail", "skipped"
MARK = "RESULT "
FAR = 1 << 41  # added to ids: beyond 32 bits and beyond float64's way of hiding it
ERROR = {"ip": 1e-5, "l2": 1e-4}  # of the largest score; wide codebooks under L2 go through ||a||^2 - 2 ab + ||b||^2
BANDWIDTH = {  # bytes a second by the maker's word, where torch cannot measure it
    "H200": 4.8e12, "H100 PCIe": 2.0e12, "H100": 3.35e12, "A100-SXM4-80GB": 2.04e12, "A100": 1.555e12, "V100": 0.9e12,
    "L40S": 0.864e12, "L4": 0.3e12, "A10": 0.6e12, "T4": 0.32e12, "RTX 4090": 1.008e12, "RTX 3090": 0.936e12,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ the machine
def facts(asked):
    """What this process can see of the machine; run on its own, for counting GPUs may end a process."""
    import faiss

    from scqfaiss.targets import gpu

    options = faiss.get_compile_options().split()
    out = {"faiss": faiss.__version__, "options": " ".join(options), "gpus": gpu.count()}
    out["cuvs"] = any("CUVS" in option for option in options)
    out["name"], out["bandwidth"], out["source"] = "no GPU", None, ""
    if not out["gpus"]:
        return out
    try:
        query = ["nvidia-smi", f"--id={asked.device}", "--query-gpu=name,memory.total,driver_version"]
        answer = subprocess.run([*query, "--format=csv,noheader"], capture_output=True, text=True, timeout=30)
        out["name"] = answer.stdout.strip() or "unknown GPU"
    except (OSError, subprocess.TimeoutExpired):
        out["name"] = "unknown GPU"
    for model, speed in BANDWIDTH.items():
        if model in out["name"]:
            out["bandwidth"], out["source"] = speed, "maker's figure"
            break
    try:
        import torch

        if torch.cuda.is_available():
            out["name"] = out["name"] if out["name"] != "unknown GPU" else torch.cuda.get_device_name(asked.device)
            x = torch.zeros(1 << 28, device=f"cuda:{asked.device}")  # 1 GiB
            y = torch.empty_like(x)
            y.copy_(x)
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(10):
                y.copy_(x)
            torch.cuda.synchronize()
            out["bandwidth"] = 20 * x.nbytes / (time.perf_counter() - start)
            out["source"] = "measured: a copy on the device"
    except Exception as error:  # any trouble of torch's is none of ours
        out["torch"] = str(error).splitlines()[0] if str(error) else type(error).__name__
    return out


def rehearse():
    """Put the CPU in the place of the GPU: moving an index there copies it."""
    import faiss

    faiss.StandardGpuResources = lambda: None
    faiss.GpuClonerOptions = lambda: SimpleNamespace(use_cuvs=True)
    faiss.index_cpu_to_gpu = lambda resources, number, index, options=None: faiss.clone_index(index)


# -------------------------------------------------------------------------------------------------------------- the parts
def made(kind, M, nbits, d, n, metric="ip", seed=0, words=0, lists=0):
    """Random codebooks of vectors of dimension d, n codes, their ids, 33 queries; words: how many codes are distinct.

    lists: of so many, each with a centroid, one is part of every code.
    """
    import numpy as np

    from scqfaiss.codebooks import Codebooks

    rng = np.random.default_rng(seed)
    dsub = d if kind == "additive" else d // max(M, 1)
    centroids = rng.standard_normal((M, 1 << nbits, dsub)).astype(np.float32)
    if lists:
        stored = 3 * rng.standard_normal((lists, d)).astype(np.float32)
        codebooks = Codebooks(kind, centroids, metric, stored)
        codes = codebooks.joined(rng.integers(0, lists, n), rng.integers(0, 1 << nbits, (n, M)))
        return codebooks, codes, FAR + 3 * np.arange(n), rng.standard_normal((33, d)).astype(np.float32)
    codebooks = Codebooks(kind, centroids, metric)
    codes = rng.integers(0, 1 << nbits, (words or n, M), dtype=np.uint8)
    codes = codebooks.check_codes(codes[rng.integers(0, words, n)] if words else codes)
    return codebooks, codes, FAR + 3 * np.arange(n), rng.standard_normal((33, d)).astype(np.float32)


def error_of(hits, codebooks, codes, ids, q):
    """Largest error of hits against the oracle, relative to the largest score; inf where an id is none of ours or twice."""
    import numpy as np

    D, I = hits
    place = np.searchsorted(ids, I)
    if (place >= len(ids)).any() or (ids[np.minimum(place, len(ids) - 1)] != I).any():
        return float("inf")
    if any(len(set(row)) < len(row) for row in I.tolist()):
        return float("inf")
    scores = codebooks.scores(q, codes)
    own = np.abs(np.take_along_axis(scores, place, 1) - D)  # the score of the id that was returned
    sign = -1 if codebooks.metric == "ip" else 1
    best = np.abs(sign * np.sort(sign * scores, 1)[:, : D.shape[1]] - D)  # and the best there are
    return float(max(own.max(), best.max()) / np.abs(scores).max())


def moved(asked, index, **options):
    """The index behind the transforms of `index`, on the GPU, with cloner options of our choice."""
    import faiss

    from scqfaiss.targets.pretransform import unwrap_index

    chosen = faiss.GpuClonerOptions()
    for name, value in ({"use_cuvs": False} | options).items():
        if hasattr(chosen, name):
            setattr(chosen, name, value)
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), asked.device, unwrap_index(index), chosen)


def judged(rows):
    """[(what, error, limit)] -> result and text."""
    bad = [f"{what}: {error:.1e}" for what, error, limit in rows if not error <= limit]
    worst = max(error for _, error, _ in rows)
    return (
        (FAIL, "; ".join(bad)) if bad else (PASS, f"{len(rows)} forms, largest error {worst:.1e} of the largest score")
    )


def compare(asked, cases, lists=(16,), k=100):
    """Each case, a tuple of arguments of `made`, through form and OnGpu against the oracle."""
    from scqfaiss.targets import gpu

    rows = []
    for case in cases:
        parts = made(*case)
        for L in lists:
            found = gpu.OnGpu(gpu.form(*parts[:3], nlist=L), asked.device).search(parts[3], k)
            kind, M, nbits, d, _, *metric = case
            what = f"{kind} {M}x{nbits} d={d} {' '.join(metric)} L={L}"
            rows.append((what, error_of(found, *parts), ERROR[parts[0].metric]))
    return judged(rows)


# ----------------------------------------------------------------------------------------------------------- the questions
def clones(asked):
    n = asked.n
    cases = [("product", 4, 8, 4 * dsub, n) for dsub in (4, 32, 64, 768)]
    cases += [("additive", 4, 8, dsub, n) for dsub in (4, 32, 64, 768)]
    cases += [("product", 4, 8, 12, n, "l2"), ("product", 4, 8, 4 * 64, n, "l2")]
    result, text = compare(asked, cases if asked.n > 5000 else cases[::3], lists=(1, 4, 16))
    # All rows of a small gallery at once: had a list been visited twice, or not at all, ids would be twice, or missing.
    whole = compare(asked, [("product", 4, 8, 12, 2000), ("product", 4, 8, 12, 2000, "l2")], lists=(16, 64), k=2000)
    if whole[0] != PASS:
        return FAIL, f"equal centroids: {whole[1]}"
    return result, text + "; each of L equal centroids is visited once"


def shapes(asked):
    cases = [("product", M, 8, 3 * M, asked.n) for M in (1, 5, 7, 13, 48)]
    cases += [("product", 8, 4, 16, asked.n), ("product", 26, 4, 52, asked.n), ("product", 8, 4, 16, asked.n, "l2")]
    cases += [("additive", 16, 4, 12, asked.n), ("additive", 5, 8, 12, asked.n)]
    return compare(asked, cases)


def listed(asked):
    """Real centroids, also where nothing is coded beside them, and as many lists as the kernels choose among."""
    import numpy as np

    from scqfaiss.targets import gpu

    forms = [("product", 4, 8, 12, "ip"), ("product", 7, 8, 21, "ip"), ("product", 8, 4, 16, "ip")]
    forms += [("product", 4, 8, 12, "l2"), ("product", 0, 1, 12, "ip"), ("product", 0, 1, 64, "ip")]
    forms += [("additive", 4, 8, 12, "ip"), ("additive", 5, 8, 64, "ip"), ("additive", 16, 4, 12, "ip")]
    rows = []
    for kind, M, nbits, d, metric in forms:
        for L in (7, 2048):
            codebooks, codes, ids, q = made(kind, M, nbits, d, asked.n, metric, lists=L)
            form = gpu.form(codebooks, codes, ids)
            on = gpu.OnGpu(form, asked.device)
            what = f"{kind} {M}x{nbits} d={d} {metric} L={L}"
            rows.append((what, error_of(on.search(q, 100), codebooks, codes, ids, q), ERROR[metric]))
            few = on.search(q, 10, nprobe=3)[0]
            gpu.unwrap_index(form).nprobe = 3
            off = np.abs(np.where(np.isfinite(few), few, 0) - form.search(q, 10)[0])
            scale = np.abs(codebooks.scores(q, codes)).max()
            full = on.search(q, 10, nprobe=3)[1] >= 0
            rows.append((f"{what}, 3 lists visited", float((off * full).max() / scale), ERROR[metric]))
    return judged(rows)


def interleaved(asked):
    import faiss

    from scqfaiss.targets.ivfpq import one_list

    rows = []
    for M, nbits in ((6, 8), (8, 4)):
        codebooks, codes, ids, q = made("product", M, nbits, 24, asked.n)
        config = faiss.GpuIndexIVFPQConfig()
        config.device, config.interleavedLayout = asked.device, True
        if hasattr(config, "use_cuvs"):
            config.use_cuvs = False
        resources, core = faiss.StandardGpuResources(), one_list(codebooks, codes, ids, 4)
        index = faiss.GpuIndexIVFPQ(resources, core, config)
        rows.append((f"{M}x{nbits}", error_of(index.search(q, 100), codebooks, codes, ids, q), ERROR["ip"]))
    result, text = judged(rows)
    return (result if result == PASS else NEWS), f"interleavedLayout, which we do not use: {text}"


def shards(asked):
    import faiss

    from scqfaiss.targets import gpu

    codebooks, codes, ids, q = made("product", 4, 8, 12, asked.n)
    options = faiss.GpuMultipleClonerOptions()
    options.shard, options.shard_type = True, 1
    if hasattr(options, "use_cuvs"):
        options.use_cuvs = False
    devices = [0, 1] if faiss.get_num_gpus() > 1 else [asked.device] * 2
    resources = [faiss.StandardGpuResources() for _ in devices]
    core = gpu.form(codebooks, codes, ids, 4)
    index = faiss.index_cpu_to_gpu_multiple_py(resources, core, options, devices)
    error = error_of(index.search(q, 100), codebooks, codes, ids, q)
    return (PASS if error <= ERROR["ip"] else NEWS), f"two shards on GPUs {devices}: error {error:.1e}"


def selectors(asked):
    import faiss
    import numpy as np

    from scqfaiss.targets import gpu

    codebooks, codes, ids, q = made("product", 4, 8, 12, asked.n)
    seen, expected = [], True
    builds = [("classical", False)] + ([("cuVS", True)] if asked.cuvs else [])
    for name, use_cuvs in builds:
        for what, own in (("ids 0..n-1", np.arange(len(ids))), ("other ids", ids)):
            index = moved(asked, gpu.form(codebooks, codes, own, 4), use_cuvs=use_cuvs)
            few = own[:50]
            params = faiss.SearchParametersIVF(nprobe=4, sel=faiss.IDSelectorBatch(few))
            try:
                I = index.search(q, 100, params=params)[1]
                hits = I[I >= 0]
                kept = "obeyed" if len(hits) and np.isin(hits, few).all() else "ignored" if len(hits) else "no hits"
            except RuntimeError as error:
                kept = f"refused ({str(error).splitlines()[-1][:60]})"
            seen.append(f"{name}, {what}: {kept}")
            expected &= kept == ("ignored" if not use_cuvs else "obeyed" if what == "ids 0..n-1" else "no hits")
    return (PASS if expected else NEWS), "; ".join(seen)


def cuvs(asked):
    if not asked.cuvs:
        return SKIPPED, "this FAISS is built without cuVS"
    from scqfaiss.targets import gpu

    rows = []
    for kind, d in (("product", 32), ("additive", 64)):
        codebooks, codes, ids, q = made(kind, 8, 8, d, asked.n)
        index = moved(asked, form := gpu.form(codebooks, codes, ids, 4), use_cuvs=True, interleavedLayout=True)
        wide = form.chain.at(0).apply(q) if kind == "additive" else q
        rows.append((f"{kind} 8x8", error_of(index.search(wide, 100), codebooks, codes, ids, q), 1e-3))
    result, text = judged(rows)
    return (result if result == PASS else NEWS), f"cuVS kernels, which we do not use: {text}"


def folded(asked):
    import faiss
    import numpy as np

    from scqfaiss.targets import gpu
    from scqfaiss.targets.ivfpq import one_list
    from scqfaiss.targets.pretransform import apply_transforms, chain, wrap_index

    codebooks, codes, ids, _ = made("product", 4, 8, 12, asked.n)
    rng = np.random.default_rng(5)
    x = rng.standard_normal((33, 20)).astype(np.float32)
    layers = [("linear", {"A": rng.standard_normal((12, 20)).astype(np.float32), "b": np.ones(12, np.float32)})]
    layers.append(("normalize", {}))
    whole = wrap_index(one_list(codebooks, codes, ids), 20, layers)
    z = apply_transforms(whole, x)
    ours = gpu.OnGpu(gpu.form(codebooks, codes, ids), asked.device).search(z, 100)
    rows = [("our transforms on the CPU", error_of(ours, codebooks, codes, ids, z), ERROR["ip"])]
    core = moved(asked, one_list(codebooks, codes, ids, 4))
    rewrapped = faiss.IndexPreTransform(core)
    for t in reversed(chain(whole)):
        rewrapped.prepend_transform(t)
    rows.append(
        ("the chain around the GPU index", error_of(rewrapped.search(x, 100), codebooks, codes, ids, z), ERROR["ip"])
    )
    try:
        faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), asked.device, whole)
        cloned = "FAISS's cloner takes the whole chain"
    except RuntimeError:
        cloned = "FAISS's cloner refuses the L2 norm"
    result, text = judged(rows)
    return result, f"{text}; {cloned}"


def buckets(asked):
    from scqfaiss.targets import target

    seen = []
    for what, words in (("words", 50), ("boxes", 0)):
        codebooks, codes, ids, _ = made("product", 4, 8, 12, 5000, words=words)
        try:
            moved(asked, target("buckets").build(codebooks, codes, ids))
            seen.append(f"{what}: taken")
        except RuntimeError as error:
            seen.append(f"{what}: refused ({str(error).splitlines()[-1][-70:]})")
    return (PASS if all("refused" in s for s in seen) else NEWS), "; ".join(seen)


def many_hits(asked):
    from scqfaiss.errors import ConfigError
    from scqfaiss.targets import gpu

    n = max(asked.n, 5000)
    result, text = compare(asked, [("product", 4, 8, 12, n)], k=gpu.MAX_K)
    codebooks, codes, ids, q = made("product", 4, 8, 12, n)
    form = gpu.form(codebooks, codes, ids)
    try:
        gpu.OnGpu(form, asked.device).search(q, gpu.MAX_K + 1)
        return FAIL, "k = 2,049 was not refused by us"
    except ConfigError:
        pass
    if asked.rehearse:
        return result, f"k = 2,048: {text}; k = 2,049 is refused by us (FAISS was not asked)"
    try:
        moved(asked, form).search(q, gpu.MAX_K + 1)
        return NEWS, f"k = 2,048: {text}; FAISS takes k = 2,049"
    except RuntimeError:
        return result, f"k = 2,048: {text}; k = 2,049 is refused by FAISS with an exception"


def service(asked):
    import numpy as np

    from scqfaiss.errors import DataError
    from scqfaiss.galleries.gallery import Gallery
    from scqfaiss.galleries.reading import Stored
    from scqfaiss.galleries.snapshot import Snapshot
    from scqfaiss.targets import gpu
    from scqfaiss.targets.ivfpq import one_list

    codebooks, codes, ids, q = made("product", 4, 8, 12, asked.n)
    on = gpu.OnGpu(gpu.form(codebooks, codes, ids), asked.device)
    want = on.search(q, 10)
    with ThreadPoolExecutor(8) as pool:
        same = [np.array_equal(D, want[0]) for D, _ in pool.map(lambda _: on.search(q, 10), range(40))]
    small = gpu.OnGpu(gpu.form(codebooks, codes[:5], ids[:5], nlist=1), asked.device)
    multilabel = np.tile(q, (70_000 // len(q) + 1, 1))
    long = np.array_equal(small.search(multilabel, 5)[0][-len(q) :], small.search(q, 5)[0])
    try:
        gallery = Gallery(Snapshot(Stored.of(one_list(codebooks, codes, ids)), on), None, "g")
        gallery.search(np.where(np.arange(12) == 3, np.nan, q), 10)
        refused = False
    except DataError:
        refused = True
    parts = {"8 threads agree": all(same), "70,000 queries in one call": long, "NaN is refused": refused}
    return (PASS if all(parts.values()) else FAIL), "; ".join(f"{k}: {'yes' if v else 'NO'}" for k, v in parts.items())


def speeds(asked):
    import faiss
    import numpy as np

    from scqfaiss.targets import gpu, target

    def timed(search, q, k, seconds):
        """Milliseconds a query: the best of a few runs, or one where it takes long."""
        search(q[: min(len(q), 16)], k)
        best, end = float("inf"), time.perf_counter() + seconds
        for _ in range(20):
            start = time.perf_counter()
            search(q, k)
            best = min(best, time.perf_counter() - start)
            if time.perf_counter() > end:
                break
        return 1000 * best / len(q)

    small = asked.rows == "small"
    batches = (1, 100) if small else (1, 100, 10_000)
    table = []
    for n in (2000, 4000) if small else (1_000_000, 10_000_000):
        for kind, M, d in (("product", 4, 12), ("additive", 8, 64)):
            codebooks, codes, ids, _ = made(kind, M, 8, d, n, words=min(10_000, n // 20))
            q = np.random.default_rng(1).standard_normal((batches[-1], d)).astype(np.float32)
            for L in (1, 4, 16, 64):
                start = time.perf_counter()
                on = gpu.OnGpu(gpu.form(codebooks, codes, ids, nlist=L), asked.device)
                ready = time.perf_counter() - start
                ms = [timed(on.search, q[:b], 10, 0.05 if small else 1.0) for b in batches]
                share = n * M / (ms[-1] / 1000)  # bytes of codes a second
                table.append(["GPU", f"{kind} {M}x8 d={d}", n, L, [round(x, 6) for x in ms], share, round(ready, 1)])
                del on
            # The CPU's best on the same bytes: 4-bit codebooks with a second look, and distinct codes once.
            narrow = made(kind, 2 * M, 4, d if kind == "additive" else 4 * M, n, words=min(10_000, n // 20))
            for name, (b, c, i) in (("fastscan", narrow[:3]), ("buckets", (codebooks, codes, ids))):
                found = target(name)
                index = found.build(b, c, i)
                x = np.random.default_rng(1).standard_normal((100, b.d)).astype(np.float32)
                search = partial(found.search, index)
                ms = [timed(search, x[:m], 10, 0.05 if small else 1.0) for m in (1, 100)]
                table.append([f"CPU {name}", f"{kind} {b.M}x{b.nbits} d={b.d}", n, 0, [round(x, 6) for x in ms], 0, 0])
    best = {}
    for where, what, n, L, ms, _, _ in table:
        if where == "GPU":
            for batch, value in zip(batches, ms):
                best.setdefault((what, n, batch), []).append((value, L))
    fastest = ", ".join(map(str, sorted({min(values)[1] for values in best.values()})))
    threads = faiss.omp_get_max_threads()
    text = f"{len(table)} rows below; the fastest numbers of lists are {fastest}; the CPU has {threads} threads"
    return PASS, text, {"batches": batches, "table": table}


# name, question, whether it is about GPUs alone, and cannot be rehearsed
QUESTIONS = [
    (
        clones,
        "ivfpq and lift on the GPU: scores of the oracle at dsub 4, 32, 64, 768, L = 1, 4, 16, ids above 2^40",
        False,
    ),
    (shapes, "padded codebooks and merged 4-bit codebooks", False),
    (listed, "lists that are part of the code: all of them and 3 of them, up to 2,048", False),
    (interleaved, "interleavedLayout with 6 codebooks and with nbits 4", True),
    (shards, "ivfpq in two shards", True),
    (selectors, "an ID selector: ignored by classical kernels, matched by position by cuVS", True),
    (cuvs, "cuVS kernels: scores of lifted codes (its rotation must be the identity)", True),
    (folded, "an encoder with an L2 norm around an index on the GPU", False),
    (buckets, "target buckets is refused with an exception", True),
    (many_hits, "k = 2048 and 2049", False),
    (speeds, "milliseconds a query against the CPU, and share of the memory bandwidth", False),
    (service, "beyond the list: threads, 70,000 queries, NaN", False),
]


# ------------------------------------------------------------------------------------------------------------- the parent
def ask(number, asked):
    """One question in a process of its own -> (result, seen, seconds, more)."""
    command = [sys.executable, __file__, "--question", str(number), "--rows", asked.rows, "--device", str(asked.device)]
    command += ["--rehearse"] * asked.rehearse + ["--cuvs"] * asked.cuvs
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=asked.limit)
    except subprocess.TimeoutExpired:
        return FAIL, f"no answer within {asked.limit} s", asked.limit, {}
    took = time.perf_counter() - start
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            result, seen, *more = json.loads(line[len(MARK) :])
            return result, seen, took, more[0] if more else {}
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if done.returncode < 0:
        return FAIL, f"ended by {signal.Signals(-done.returncode).name}: {last}", took, {}
    return FAIL, last, took, {}


def speed_lines(found, machine):
    """The speeds as a table of text."""
    lines = ["", "milliseconds a query" + "".join(f", batch {b:,}" for b in found["batches"])]
    lines.append(
        f"{'where':13} {'codes':22} {'rows':>11} {'L':>3}  ms a query" + " " * 22 + "codes read   of the bandwidth"
    )
    for where, what, n, L, ms, share, ready in found["table"]:
        text = " ".join(f"{value:10.5f}" for value in ms)
        if where == "GPU":
            peak = machine["bandwidth"]
            part = f"{share / peak:8.1%}" if peak else "  unknown"
            text = f"{text:33} {share / 1e9:8.1f} GB/s {part}   ({ready} s to move)"
        lines.append(f"{where:13} {what:22} {n:11,} {L or '-':>3}  {text}")
    return lines


def report(machine, answers, asked):
    head = "rehearsal: the CPU plays the GPU" if asked.rehearse else machine["name"]
    lines = [f"machine: {head}", f"FAISS {machine['faiss']}, compiled with: {machine['options']}"]
    if machine["bandwidth"]:
        lines.append(f"memory bandwidth: {machine['bandwidth'] / 1e9:,.0f} GB/s ({machine['source']})")
    lines.append("")
    for number, (result, seen, took, _) in answers.items():
        lines.append(f"{number:>2}  {result:8} {took:6.1f} s  {QUESTIONS[number - 1][1]}")
        lines.append(f"{'':24}{seen}")
    for *_, more in answers.values():
        if more:
            lines += speed_lines(more, machine)
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: the CPU takes its place")
    parser.add_argument(
        "--rows", choices=("full", "small"), default="full", help="full: speeds at 1 and 10 million rows"
    )
    parser.add_argument(
        "--only", type=int, nargs="+", choices=range(1, len(QUESTIONS) + 1), help="these questions alone"
    )
    parser.add_argument("--limit", type=int, default=900, help="seconds for each question (default 900)")
    parser.add_argument("--device", type=int, default=0, help="number of the GPU")
    for hidden, kind in (("--question", {"type": int}), ("--cuvs", {"action": "store_true"})):
        parser.add_argument(hidden, help=argparse.SUPPRESS, **kind)
    asked = parser.parse_args()
    asked.n = 2000 if asked.rows == "small" else 20_000
    if asked.question is not None:
        if asked.rehearse:
            rehearse()
        print(
            MARK + json.dumps(QUESTIONS[asked.question - 1][0](asked) if asked.question else [PASS, "", facts(asked)])
        )
        return 0
    result, seen, _, machine = ask(0, asked)
    if result != PASS or not (machine["gpus"] > asked.device or asked.rehearse):
        options = machine.get("options", "")
        why = seen if result != PASS else f"FAISS {machine['faiss']} ({options}) sees {machine['gpus']} GPUs"
        print(f"Error: no GPU {asked.device} to ask: {why}; --rehearse runs without one", file=sys.stderr)
        return 2
    asked.cuvs = machine["cuvs"]

    def answer(number):
        if asked.rehearse and QUESTIONS[number - 1][2]:
            return SKIPPED, "about GPUs alone", 0.0, {}
        found = ask(number, asked)
        print(f"{number:>2}  {found[0]}", file=sys.stderr, flush=True)
        return found

    numbers = asked.only or range(1, len(QUESTIONS) + 1)
    with ThreadPoolExecutor(2 if asked.rehearse else 1) as pool:  # one after another where they share a GPU
        answers = dict(zip(numbers, pool.map(answer, numbers)))
    text = report(machine, answers, asked)
    print(text, end="")
    if asked.out:
        asked.out.write_text(text)
    return int(any(result == FAIL for result, *_ in answers.values()))


if __name__ == "__main__":
    sys.exit(main())
