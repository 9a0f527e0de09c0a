"""How the comparisons measure: times of single calls on a given number of threads, bytes and opening times in fresh processes."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import faiss
import numpy as np
from threadpoolctl import threadpool_limits

from ..arrays import Floats
from .options import SMALL_BATCH
from .results import machine

PERCENTILES = (50, 95, 99)
REPEATS = 7  # calls at least, of a batch of many queries
SINGLES = 300  # calls at least, of one query
OPENS = 5
LEAST = 5  # calls of a timing within a budget
BUDGET_SINGLES = 100  # searches with one query in it, at most
QUIET = 0.9  # of the time of a timing on the core
TRIES = 3

# What a process holds after it has read an index. glibc counts the bytes handed out and not given back, so that neither what
# importing took nor what the kernel has cached is in the figure.
FOOTPRINT = """
import ctypes, json, sys, time
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
def held():
    info = libc.mallinfo2()
    return info.uordblks + info.hblkhd
path, reader, model, opens = sys.argv[1], sys.argv[2], sys.argv[3] or None, int(sys.argv[4])
if reader == "faiss":
    import faiss
    read = lambda: faiss.read_index(path)
else:
    import scqfaiss.galleries.gallery
    if model is not None:
        model = scqfaiss.galleries.gallery.Model.load(model)
    read = lambda: scqfaiss.galleries.gallery.open_gallery(path, model=model)
before = held()
start = time.perf_counter()
index = read()
times, memory = [time.perf_counter() - start], held() - before
for _ in range(opens - 1):
    del index
    start = time.perf_counter()
    index = read()
    times.append(time.perf_counter() - start)
print(json.dumps({"memory": memory, "open_ms": 1e3 * sorted(times)[len(times) // 2]}))
"""


@contextmanager
def threads(n: int) -> Iterator[None]:
    """FAISS and the linear algebra of NumPy on n threads; 0: as many as there are cores."""
    n = n or len(os.sched_getaffinity(0))
    before = faiss.omp_get_max_threads()
    with threadpool_limits(n):
        faiss.omp_set_num_threads(n)
        try:
            yield
        finally:
            faiss.omp_set_num_threads(before)


def latency(
    call: Callable[[Floats], Any], xq: Floats, batch: int, threads_used: int = 1, seconds: float = 0.5
) -> dict[str, float]:
    """Milliseconds a query of call(queries), `batch` queries at a time -> {"p50", "p95", "p99"} over the calls.

    xq (nq, d) is walked through again and again, for `seconds` or REPEATS calls (SINGLES of one query), whatever is longer.
    """
    blocks = np.resize(xq, (max(1, -(-len(xq) // batch)) * batch, xq.shape[1])).reshape(-1, batch, xq.shape[1])
    least = SINGLES if batch == 1 else REPEATS
    times: list[float] = []
    with threads(threads_used):
        call(blocks[0])
        end = time.perf_counter() + seconds
        while len(times) < least or time.perf_counter() < end:
            block = blocks[len(times) % len(blocks)]
            start = time.perf_counter()
            call(block)
            times.append(time.perf_counter() - start)
    found = np.percentile(times, PERCENTILES) * 1e3 / batch
    return {f"p{p}": float(f"{value:.4g}") for p, value in zip(PERCENTILES, found)}


def latencies(call: Callable[[Floats], Any], xq: Floats, seconds: float = 0.5) -> dict[str, Any]:
    """The table `ms` of a row: batches of 1 and 1,000, on one thread and on all."""
    return {
        str(batch): {name: latency(call, xq, batch, n, seconds) for name, n in (("one", 1), ("all", 0))}
        for batch in (1, 1000)
    }


def timed_within(search: Callable[[Floats], Any], z: Floats, budget: float) -> dict[str, Any]:
    """Milliseconds a query of search(z) on one thread: in batches, and one query at a time; medians.

    "core": the share of the measured time that this process had the core for itself. Where other work took more than a tenth of
    it, both are measured again, and the least disturbed of TRIES stands.
    """
    tries: list[dict[str, Any]] = []
    with threads(1):
        search(z[:1])
        while not tries or (tries[-1]["core"] < QUIET and len(tries) < TRIES):
            singles, core = _calls(search, z, 1, budget, BUDGET_SINGLES)
            one = median(singles)
            fits = int(budget / (LEAST * one))  # were a batch no faster than its queries one by one
            batch = min(len(z), max(SMALL_BATCH, fits))
            search(z[:batch])
            batches, also = _calls(search, z, batch, budget, math.inf)
            tries.append(
                {
                    "ms": short(1e3 * median(batches) / batch),
                    "single_ms": short(1e3 * one),
                    "batch": batch,
                    "repeats": len(batches),
                    "single_repeats": len(singles),
                    "core": round(min(core, also), 3),
                }
            )
    return max(tries, key=lambda one: one["core"])


def _calls(
    search: Callable[[Floats], Any], z: Floats, batch: int, budget: float, most: float
) -> tuple[list[float], float]:
    """Seconds of each call: `most` or a second of them, LEAST at least, but none begins when the budget is spent; and what
    share of that time the thread was running.
    """
    seconds: list[float] = []
    begun, begun_running = time.perf_counter(), time.thread_time()
    while True:
        first = len(seconds) * batch % max(1, len(z) - batch + 1)
        part = z[first : first + batch]
        start = time.perf_counter()
        search(part)
        end = time.perf_counter()
        seconds.append(end - start)
        enough = len(seconds) >= most or (len(seconds) >= LEAST and end - begun >= min(1.0, budget))
        if enough or end - begun >= budget:
            return seconds, min(1.0, (time.thread_time() - begun_running) / max(end - begun, 1e-9))


def short(value: float) -> float:
    return float(f"{value:.4g}")


def footprint(path: Path, reader: str = "faiss", model: Path | None = None) -> dict[str, Any]:
    """Of an index file, in a fresh process -> {"memory": bytes it allocates, "disk": bytes, "open_ms": median of OPENS}.

    reader: 'faiss' (faiss.read_index) or 'scqfaiss' (scqfaiss.open, which verifies the file), with the model if it needs one.
    """
    words = [sys.executable, "-c", FOOTPRINT, str(path), reader, str(model or ""), str(OPENS)]
    # Small pieces that were given back count as held while they wait in a cache of their own: no such caches.
    quiet = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"}
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=quiet)
    return {**json.loads(done.stdout.splitlines()[-1]), "disk": path.stat().st_size}


def run_facts(command: str, seed: int, hashes: Mapping[str, str]) -> dict[str, Any]:
    """What every row says of how it was measured."""
    found = machine()
    return {
        "command": command,
        "seed": seed,
        "versions": found["versions"],
        "cpu": found["cpu"],
        "cores": found["cores"],
        "gpu": found["gpu"],
        "data": dict(hashes),
    }


def typed(command: str) -> str:
    """The command as it was typed, folders by their own names: where they lie on this machine is nobody's business.

    command: how it begins where no script of benchmarks/ was started, such as 'scqfaiss compare'.
    """
    words, program, asked = sys.argv[1:], Path(sys.argv[0]), command.split()
    words = words[1:] if words[:1] == asked[-1:] else words
    if program.parent.name == "benchmarks":  # a script that takes the same options
        asked = ["python", f"benchmarks/{program.name}"]
    return shlex.join([*asked, *map(_without_folders, words)])


def _without_folders(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + (Path(value).name if Path(value).is_absolute() else value)
