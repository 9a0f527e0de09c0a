"""Shards on a cluster of Ray on this machine: the same bytes and hits, whatever is killed. Everything skips without Ray."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import httpx
import numpy as np
import pytest
from conftest import blobs

import scqfaiss
from scqfaiss.cli import program
from scqfaiss.cluster import exporting
from scqfaiss.cluster.replicas import NotOpen, Replicas, ask_all
from scqfaiss.cluster.session import keep_quiet, load_ray
from scqfaiss.codebooks import Codebooks
from scqfaiss.encoders.chain import Chain
from scqfaiss.galleries.shards.manifest import Shard

ROOT = Path(__file__).parents[1]
SHARDS = 4
X, _ = blobs(20_000, d=8)
XQ, _ = blobs(40, d=8, seed=5)
IDS = 3 * np.arange(len(X)) + 5


def by_hand():
    """A model whose codewords are rows."""
    centroids = X[:512].reshape(256, 2, 2, 4).transpose(1, 2, 0, 3)[0]
    config = {"method": "pq", "rule": "l2", "encoder": "identity"}
    return scqfaiss.Model(Chain(8), Codebooks("product", np.ascontiguousarray(centroids), "ip"), config)


# --------------------------------------------------------------------------------------------------- without a cluster
def test_without_ray_the_pip_line_is_shown(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    by_hand().save("m.safetensors")
    np.save("x.npy", X[:100])
    scqfaiss.export("m.safetensors", X[:100], path="x.shards", shards=2)
    for command in (
        ["export", "m.safetensors", "x.npy", "-o", "y.shards"],
        ["search", "x.shards", "x.npy"],
        ["serve", "x.shards"],
    ):
        assert program.run(["cluster", *command]) == 2
        assert capsys.readouterr().err.endswith(
            'a cluster needs ray, which is not installed: pip install "scqfaiss[ray]"\n'
        )
    assert not os.path.exists("y.shards")


def test_rows_are_dealt_over_files():
    files = [exporting.File(f"{n}", rows, rows + 1, 8, False, 1, 0) for n, rows in enumerate((3, 5, 4))]
    jobs = list(exporting.jobs_of(files, [(0, 2), (2, 8), (8, 12)]))
    assert [[file.path for file in job.files] for job in jobs] == [["0"], ["0", "1"], ["2"]]
    assert [(job.starts, job.i, job.j) for job in jobs] == [((0,), 0, 2), ((0, 4), 2, 8), ((10,), 0, 4)]


class Lost(Exception):
    """Stands for Ray's errors of every kind."""

    cause = None


@dataclass(frozen=True, eq=False)
class Reference:
    """at: when it is ready; value: or an error."""

    at: float
    value: object


class FakeRay:
    """As much of Ray as asking replicas takes."""

    exceptions = SimpleNamespace(
        RayError=Lost, RayTaskError=type("Refused", (Lost,), {}), ActorDiedError=type("Died", (Lost,), {})
    )

    def wait(self, refs, num_returns=1, timeout=None):
        end = time.monotonic() + (10 if timeout is None else timeout)
        while True:
            ready = [ref for ref in refs if ref.at <= time.monotonic()][: max(1, num_returns)]
            if ready or time.monotonic() >= end:
                return ready, [ref for ref in refs if ref not in ready]
            time.sleep(0.001)

    def get(self, ref):
        if isinstance(ref.value, Exception):
            raise ref.value
        return ref.value


def actor(*answers):
    """An actor that gives these (seconds, value) in turn, the last one again and again; made and asked: how often."""
    calls = []

    def remote(*_):
        calls.append(1)
        seconds, value = answers[min(len(calls), len(answers)) - 1]
        return Reference(time.monotonic() + seconds, value)

    return SimpleNamespace(ask=SimpleNamespace(remote=remote), traits=SimpleNamespace(remote=remote), calls=calls)


def asked(*actors, patience=0.3, hedge=0.05):
    """What one shard with these replicas answers, and who was asked."""
    ray = FakeRay()
    shard = Shard("shard-00000.faissindex", 1, (0, 0), "0" * 64)
    replicas = Replicas(ray, shard, lambda r: actors[r], len(actors))
    replicas._next = -1  # the first one first
    (answer,) = ask_all(ray, [replicas], "search", None, [()], {}, patience, hedge)
    return answer, [len(a.calls) for a in actors]


def test_who_is_asked_where_replicas_are_lost():
    good, lost, slow = (0, "hits"), (0, Lost()), (9, "late")
    assert asked(actor(good), actor(good)) == (("hits",), [1, 0])
    assert asked(actor(lost), actor(good))[0] == ("hits",)
    assert asked(actor(slow), actor(good)) == (("hits",), [1, 1])  # the second one is asked beside it
    assert asked(actor(lost), actor(lost))[0] == ()  # within `patience`
    assert asked(actor(lost, good), patience=3)[0] == ("hits",)  # lost, then back
    died = actor((0, FakeRay.exceptions.ActorDiedError()), (0, FakeRay.exceptions.ActorDiedError()), good)
    assert asked(died, patience=3)[0] == ("hits",)  # made anew
    refused = FakeRay.exceptions.RayTaskError()
    refused.cause = scqfaiss.ConfigError("k is 0")
    with pytest.raises(scqfaiss.ConfigError, match="k is 0"):
        asked(actor((0, refused)), actor(good))
    refused.cause = NotOpen("gone")
    assert asked(actor((0, refused)), actor(good))[0] == ("hits",)


# ------------------------------------------------------------------------------------------------------- with a cluster
pytestmark_slow = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]


def slow(test):
    for mark in pytestmark_slow:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, one of which can be killed."""
    pytest.importorskip("ray", reason='pip install "scqfaiss[ray]"')
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    ray = load_ray()
    from ray.cluster_utils import Cluster

    how = {"include_dashboard": False, "object_store_memory": 80 << 20}
    soon = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_timeout_ms": 500}
    soon["health_check_failure_threshold"] = 3
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": soon, **how})
    made.other = made.add_node(num_cpus=1, object_store_memory=80 << 20)
    ray.init(address=made.address, log_to_driver=False, logging_level="CRITICAL")
    keep_quiet(ray)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, rows in five files, and the same in one gallery and, without Ray, in shards."""
    made = tmp_path_factory.mktemp("cluster")
    by_hand().save(made / "m.safetensors")
    (made / "rows").mkdir()
    for s in range(5):
        with h5py.File(made / "rows" / f"{s}.h5", "w") as f:
            f["features"], f["ids"] = X[4000 * s : 4000 * (s + 1)], IDS[4000 * s : 4000 * (s + 1)]
    np.save(made / "q.npy", XQ)
    scqfaiss.export(made / "m.safetensors", X, ids=IDS, path=made / "one.faissindex")
    scqfaiss.export(made / "m.safetensors", X, ids=IDS, path=made / "x.shards", shards=SHARDS)
    scqfaiss.export(made / "m.safetensors", X, ids=IDS, path=made / "two.shards", shards=2)
    return made


def bytes_of(path):
    return {p.name: p.read_bytes() for p in sorted(Path(path).iterdir())}


def command(cluster, folder, out, *more):
    words = [sys.executable, "-m", "scqfaiss", "cluster", "export", "m.safetensors", "rows", "-o", out]
    return [*words, "--shards", str(SHARDS), "--address", cluster.address, *more]


@slow
def test_a_cluster_writes_what_one_process_writes(cluster, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    words = command(cluster, folder, "y.shards")[3:]
    assert program.run(words) == 0
    assert "20,000 vectors in 4 shards" in capsys.readouterr().out
    assert bytes_of("y.shards") == bytes_of("x.shards")
    assert program.run(words) == 0
    assert "4 shards were there already" in capsys.readouterr().out
    np.save("narrow.npy", X[:10, :3])
    for wrong, code, message in (
        (["m.safetensors", "narrow.npy"], 2, "rows have d=3, m.safetensors needs d=8"),
        (["m.safetensors", "rows/0.h5", "q.npy"], 2, "has ids"),
    ):
        assert program.run(["cluster", "export", *wrong, "-o", "z.shards"]) == code
        assert message in capsys.readouterr().err and not os.path.exists("z.shards")


@slow
def test_a_command_that_is_killed_goes_on(cluster, folder):
    """kill -9 of a worker, then of the driver, in the middle: a repetition ends with the same bytes."""
    # A task that waits for a lock is alive for sure while it is killed.
    from scqfaiss.files import atomic_write

    (folder / "k.shards").mkdir()
    with atomic_write(folder / "k.shards" / "shard-00001.faissindex"):
        driver = subprocess.Popen(command(cluster, folder, "k.shards"), cwd=folder, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 40
        while not (folder / "k.shards" / "shard-00000.faissindex").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        workers = killed_workers()
        time.sleep(0.3)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert workers and not (folder / "k.shards" / "manifest.json").exists()
    with pytest.raises(scqfaiss.IndexFileError, match="did not finish"):
        scqfaiss.open(folder / "k.shards")
    done = subprocess.run(command(cluster, folder, "k.shards"), cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "shards were there already" in done.stdout
    assert bytes_of(folder / "k.shards") == bytes_of(folder / "x.shards")


def killed_workers():
    """kill -9 of every worker of Ray that builds a shard now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::build"):
                found.append(int(path.parent.name))
                os.kill(found[-1], signal.SIGKILL)
        except OSError:
            continue
    return found


@slow
def test_searches_while_actors_and_a_node_are_lost(cluster, folder, monkeypatch):
    from scqfaiss.cluster.gallery import open_remote

    ray = load_ray()
    monkeypatch.chdir(folder)
    one = scqfaiss.open("one.faissindex")
    D, _ = scqfaiss.open("two.shards").search(XQ, 10)
    assert np.allclose(one.search(XQ, 10)[0], D, rtol=1e-5, atol=1e-5)
    many = open_remote(ray, "two.shards", replicas=2)
    wrong, done, stop = [], [], threading.Event()

    def ask():
        while not stop.is_set():
            q = len(done) % len(XQ)
            d, i = many.search(XQ[q : q + 1], 10)
            if not (np.allclose(d, D[q], rtol=1e-5, atol=1e-5) and (i >= 0).all() and i.shape == (1, 10)):
                wrong.append((d, i))
            done.append(q)

    faults = []
    threads = [threading.Thread(target=lambda: faults.append(caught(ask))) for _ in range(2)]
    for thread in threads:
        thread.start()
    part = many._opened.parts[1]
    os.kill(part.processes()[0], signal.SIGKILL)
    wait_for(done, 100)
    cluster.remove_node(cluster.other, allow_graceful=False)
    wait_for(done, 300)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == [] and faults == [None, None] and len(done) >= 400


def wait_for(done, more):
    start, deadline = len(done), time.monotonic() + 30
    while len(done) < start + more and time.monotonic() < deadline:
        time.sleep(0.02)


def caught(work):
    try:
        work()
    except Exception as error:
        return repr(error)


@slow
def test_a_shard_that_no_replica_holds_is_named(cluster, folder, tmp_path, monkeypatch):
    from scqfaiss.cluster.gallery import open_remote

    ray = load_ray()
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "two.shards", "x.shards")
    gallery = open_remote(ray, "x.shards", patience=0.5)
    lost = Path("x.shards/shard-00001.faissindex")
    data = lost.read_bytes()
    processes = gallery._opened.parts[1].processes()  # both have opened it
    lost.unlink()
    for process in processes:
        os.kill(process, signal.SIGKILL)
    time.sleep(0.2)
    with pytest.raises(scqfaiss.ResourceError, match=r"shard-00001.faissindex does not answer, none of its 2 replicas"):
        gallery.search(XQ)
    way = gallery._way
    gallery._way = replace(way, partial=True)
    found = gallery.search(XQ, 10)[1]
    assert gallery.missing == {"shard-00001.faissindex"}
    assert found.shape == (40, 10) and not np.isin(found, IDS[10_000:]).any()
    with pytest.raises(scqfaiss.IndexFileError, match=r"shard-00001.faissindex: is missing"):
        open_remote(ray, "x.shards", replicas=1)
    lost.write_bytes(data)  # and it comes back by itself
    gallery._way, deadline = way, time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            D, _ = gallery.search(XQ)
            break
        except scqfaiss.ResourceError:
            continue
    assert np.allclose(D, scqfaiss.open("x.shards").search(XQ)[0], rtol=1e-5, atol=1e-5)


@slow
def test_a_cluster_serves_while_the_manifest_is_swapped(cluster, folder, tmp_path, monkeypatch, capsys):
    from functools import partial

    from scqfaiss.cluster.gallery import open_remote
    from scqfaiss.serving.run import in_background
    from scqfaiss.serving.settings import settings_of

    monkeypatch.chdir(tmp_path)
    scqfaiss.export(folder / "m.safetensors", X[:2000], ids=IDS[:2000], path="s.shards", shards=2)
    opener = partial(open_remote, load_ray(), replicas=1)
    thread, server, port = in_background(settings_of(("s.shards",), port=0, reload=0.2, timeout=30), opener)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=40) as client:
            assert client.get("/").status_code == 200
            answers = []
            for swap in range(3):
                scqfaiss.remove("s.shards", [IDS[swap]])
                deadline = time.monotonic() + 15
                while time.monotonic() < deadline:
                    found = client.post("/v1/galleries/s/search", json={"queries": XQ[:2].tolist(), "k": 5})
                    answers.append(found.status_code)
                    told = json.loads(client.get("/v1/galleries").content)["galleries"][0]
                    if told["vectors"] == 1999 - swap:
                        break
            assert set(answers) == {200} and told["vectors"] == 1997
    finally:
        server.should_exit = True
        thread.join(20)
    assert program.run(["cluster", "search", "s.shards", str(folder / "q.npy"), "--replicas", "1"]) == 0
    assert "40 queries, 10 hits each" in capsys.readouterr().out
    assert program.run(["cluster", "search", str(folder / "one.faissindex"), str(folder / "q.npy")]) == 2
