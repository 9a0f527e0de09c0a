"""Shards on a Ray cluster of this machine: equality, overhead, kills. Prints JSON; exit code 1 where anything differs.

    python benchmarks/cluster.py export [--rows 1000000] [--files 20] [--shards 8]
    python benchmarks/cluster.py kills  [--rounds 20]
    python benchmarks/cluster.py search [--searches 3000]
    python benchmarks/cluster.py serve  [--swaps 60]

Ray's own test cluster: two nodes of one CPU each on one machine, so correctness and overhead are measured, not speed-up. Rows of
64 numbers around 100 centres; 4 codebooks of 8 bits. export also says how much memory a worker took at most, and compares with
one `scqfaiss export` of all rows on as many threads as there are nodes.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import click
import numpy as np

import scqfaiss
from scqfaiss.cluster.session import keep_quiet, load_ray

ROOT = Path(__file__).resolve().parents[1]
D = 64
SOON = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
    "worker_niceness": 0,  # Ray's 15 would leave workers what others on this machine leave
}
warnings.simplefilter("ignore")


def rows_of(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = 2 * np.random.default_rng(9).standard_normal((100, D), dtype=np.float32)
    return centres[rng.integers(0, 100, n)] + rng.standard_normal((n, D), dtype=np.float32)


def prepare(folder: Path, n: int, files: int, method: str = "pq") -> np.ndarray:
    """A model, and n rows in files."""
    x = rows_of(n)
    y = np.arange(min(n, 20_000)) % 10
    how = {"epochs": 1, "forecast": "off"} if method == "scq" else {}
    scqfaiss.train(x[: len(y)], y, method=method, bits=32, **how).save(folder / "m.safetensors")
    (folder / "rows").mkdir()
    for s, part in enumerate(np.array_split(x, files)):
        np.save(folder / "rows" / f"{s:03}.npy", part)
    return x


@contextmanager
def cluster(nodes: int = 2):
    """Ray's test cluster; the first node is the head."""
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    ray = load_ray()
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 150 << 20}
    made = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, "_system_config": SOON, **small})
    made.others = [made.add_node(**small) for _ in range(nodes - 1)]
    made.again = lambda: made.others.append(made.add_node(**small))
    ray.init(address=made.address, log_to_driver=False, logging_level="CRITICAL")
    keep_quiet(ray)
    try:
        yield ray, made
    finally:
        ray.shutdown()
        made.shutdown()


def workers(what: bytes = b"ray::build") -> list[int]:
    """Processes of Ray that do this now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if path.read_bytes().startswith(what):
                found.append(int(path.parent.name))
    return found


def watch(peak: list[int], stop: threading.Event) -> None:
    """The largest resident memory of a worker that builds, in bytes."""
    while not stop.wait(0.05):
        for pid in workers():
            with suppress(OSError, IndexError):
                text = Path(f"/proc/{pid}/status").read_text()
                peak[0] = max(peak[0], int(text.split("VmHWM:")[1].split()[0]) * 1024)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@click.group()
def main() -> None:
    """Shards on a cluster of this machine."""


def finish(out: dict[str, object], good: bool) -> None:
    print(json.dumps(out | {"equal": int(good)}))
    sys.exit(0 if good else 1)


@main.command()
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--files", default=20, show_default=True)
@click.option("--shards", default=8, show_default=True)
@click.option(
    "--method", default="scq", show_default=True, help="Its encoder sets the work: scq an MLP, pq a projection."
)
@click.option("--rounds", default=3, show_default=True, help="Times that each is measured, in turn; the best counts.")
def export(rows: int, files: int, shards: int, method: str, rounds: int) -> None:
    """cluster export against one export of all rows."""
    from scqfaiss.cluster.exporting import export_cluster
    from scqfaiss.galleries.exporting import export_file

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, rows, files, method)
        peak, stop = [0], threading.Event()
        threading.Thread(target=watch, args=(peak, stop), daemon=True).start()
        single, many = [], []
        with cluster() as (ray, _):
            warm = ray.remote(lambda: __import__("scqfaiss.cluster.exporting"))
            ray.get([warm.remote() for _ in range(4)])
            for r in range(rounds):
                start = time.perf_counter()
                export_file(folder / "m.safetensors", folder / "rows", folder / "one.faissindex", keys={})
                single.append(time.perf_counter() - start)
                start = time.perf_counter()
                export_cluster(
                    folder / "m.safetensors", [folder / "rows"], folder / f"{r}.shards", shards=shards, keys={}
                )
                many.append(time.perf_counter() - start)
        stop.set()
        one = scqfaiss.open(folder / "one.faissindex", model=folder / "m.safetensors")
        sharded = scqfaiss.open(folder / "0.shards", model=folder / "m.safetensors")
        (_, a, i), (_, b, j) = one.unpack(), sharded.unpack()
        codes = np.array_equal(i.argsort(), np.arange(rows)) and float((a[i.argsort()] == b[j.argsort()]).all(1).mean())
        xq = rows_of(1000, seed=1)
        hits = np.abs(one.search(xq, 10)[0] - sharded.search(xq, 10)[0]).max()
        out = {
            "rows": rows,
            "single_rows_s": round(rows / min(single)),
            "cluster_rows_s": round(rows / min(many)),
            "ratio": round(min(single) / min(many), 3),
            "worker_peak_bytes": peak[0],
            "rows_with_equal_codes": codes,
            "largest_difference_of_scores": float(hits),
            "same_bytes_each_time": bytes_of(folder / "0.shards") == bytes_of(folder / f"{rounds - 1}.shards"),
        }
    finish(
        out,
        codes == 1.0 and np.array_equal(np.sort(i), np.sort(j)) and bool(out["same_bytes_each_time"]) and hits < 1e-4,
    )


@main.command()
@click.option("--rounds", default=20, show_default=True)
@click.option("--rows", default=200_000, show_default=True)
@click.option("--shards", default=8, show_default=True)
def kills(rounds: int, rows: int, shards: int) -> None:
    """kill -9 of a worker, a node and the driver, in turn: the command, or its repetition, ends with the same bytes."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        x = prepare(folder, rows, 5, "scq")
        scqfaiss.export(folder / "m.safetensors", x, path=folder / "want.shards", shards=shards)
        want = bytes_of(folder / "want.shards")
        whole, seen = 0, {"worker": 0, "node": 0, "driver": 0}
        half, repeated = 0, 0
        with cluster(3) as (_, made):
            for r in range(rounds):
                kind, out = list(seen)[r % 3], folder / f"{r}.shards"
                words = [sys.executable, "-m", "scqfaiss", "cluster", "export", "m.safetensors", "rows", "-o", out.name]
                words += ["--shards", str(shards), "--address", made.address]
                driver = subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                while not workers() and driver.poll() is None:
                    time.sleep(0.02)
                time.sleep(rng.uniform(0, 1.5))
                if kind == "worker":
                    for pid in rng.sample(found, 1) if (found := workers()) else []:
                        os.kill(pid, signal.SIGKILL)
                        seen[kind] += 1
                elif kind == "node":
                    made.remove_node(made.others.pop(0), allow_graceful=False)
                    made.again()
                    seen[kind] += 1
                elif driver.poll() is None:
                    driver.kill()
                    seen[kind] += 1
                code = driver.wait()
                if code:
                    half += (out / "manifest.json").exists()
                    repeated += 1
                    code = subprocess.run(words, cwd=folder, capture_output=True).returncode
                whole += code == 0 and bytes_of(out) == want
        out_values = {
            "rounds": rounds,
            "whole": whole,
            "killed": seen,
            "repeated": repeated,
            "manifests_too_early": half,
        }
    finish(out_values, whole == rounds and half == 0)


@main.command()
@click.option("--searches", default=3000, show_default=True)
@click.option("--rows", default=200_000, show_default=True)
@click.option("--shards", default=4, show_default=True)
def search(searches: int, rows: int, shards: int) -> None:
    """Searches with two replicas; an actor is killed every 500, and once a node."""
    from scqfaiss.cluster.gallery import open_remote

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        x = prepare(folder, rows, 1)
        scqfaiss.export(folder / "m.safetensors", x, path=folder / "x.shards", shards=shards)
        xq = rows_of(100, seed=1)
        want, _ = scqfaiss.open(folder / "x.shards").search(xq, 10)
        wrong = short = errors = actors = 0
        seconds = []
        with cluster(3) as (ray, made):
            gallery = open_remote(ray, folder / "x.shards", replicas=2)
            for part in gallery._opened.parts:
                part.processes()  # all are open
            for s in range(searches):
                if s % 500 == 250:
                    part = gallery._opened.parts[(s // 500) % shards]
                    with suppress(Exception):
                        os.kill(part.processes()[s // 500 % 2], signal.SIGKILL)
                        actors += 1
                if s == searches // 2:
                    made.remove_node(made.others.pop(0), allow_graceful=False)
                start = time.perf_counter()
                try:
                    found, ids = gallery.search(xq[s % 100 : s % 100 + 1], 10)
                    wrong += not np.allclose(found, want[s % 100], rtol=1e-5, atol=1e-5)
                    short += bool((ids < 0).any()) or ids.shape != (1, 10)
                except scqfaiss.ScqError:
                    errors += 1
                seconds.append(time.perf_counter() - start)
        out = {
            "searches": searches,
            "wrong": wrong,
            "short": short,
            "errors": errors,
            "actors_killed": actors,
            "nodes_killed": 1,
        }
        out |= {f"ms_p{p}": round(1000 * float(np.percentile(seconds, p)), 2) for p in (50, 99)}
        out["ms_longest"] = round(1000 * max(seconds))
    finish(out, not (wrong or short or errors))


@main.command()
@click.option("--swaps", default=60, show_default=True)
@click.option("--rows", default=20_000, show_default=True)
def serve(swaps: int, rows: int) -> None:
    """cluster serve while the manifest is swapped, under load of four clients."""
    import httpx

    from scqfaiss.cluster.gallery import open_remote
    from scqfaiss.serving.run import in_background
    from scqfaiss.serving.settings import settings_of

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        x = prepare(folder, rows, 1)
        scqfaiss.export(folder / "m.safetensors", x, path=folder / "x.shards", shards=4)
        with cluster() as (ray, _):
            settings = settings_of((f"x={folder}/x.shards",), port=0, reload=0.2, timeout=60)
            thread, server, port = in_background(settings, partial(open_remote, ray, replicas=2))
            statuses, stop, body = {}, threading.Event(), {"queries": x[:1].tolist(), "k": 5}

            def load() -> None:
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=90) as client:
                    while not stop.is_set():
                        try:
                            found = client.post("/v1/galleries/x/search", json=body)
                            status = found.status_code if len(found.json().get("ids", [[]])[0]) == 5 else "short"
                        except httpx.HTTPError as error:
                            status = type(error).__name__
                        statuses[status] = statuses.get(status, 0) + 1

            clients = [threading.Thread(target=load) for _ in range(4)]
            for client in clients:
                client.start()
            g, seen = server.service.galleries["x"], set()
            for swap in range(swaps):
                scqfaiss.remove(folder / "x.shards", [rows - 1 - swap])
                deadline = time.monotonic() + 30
                while g.gallery.ntotal != rows - 1 - swap and time.monotonic() < deadline:
                    time.sleep(0.02)
                seen.add(g.version)
            stop.set()
            for client in clients:
                client.join()
            out = {"swaps": swaps, "versions_served": len(seen), "statuses": statuses, "reloads_failed": g.failures}
            server.should_exit = True
            thread.join(30)
    finish(out, set(statuses) == {200} and len(seen) == swaps)


if __name__ == "__main__":
    main()
