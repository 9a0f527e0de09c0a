"""Real processes: signals, workers that die, files that are replaced or damaged while they are served."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import httpx
import life
import numpy as np
import pytest

import scqfaiss
from serving.conftest import descriptors, started

BODY = {"queries": life.XQ[:1].tolist(), "k": 3}
PATH = "/v1/galleries/sure/search"


@pytest.fixture
def files(shop, tmp_path):
    for name in ("sure.faissindex", "sure.safetensors", "other.faissindex"):
        shutil.copy(shop / name, tmp_path)
    return tmp_path


def put(source, target):
    """Another file under the name, as every writer does it."""
    shutil.copy(source, f"{target}.new")
    os.replace(f"{target}.new", target)


async def client(port, until, answers, lost, pause=0.0):
    """Ask again and again until the service takes no more connections. What was sent whole has to be answered."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
        while not until():
            try:
                answers.append(await http.post(PATH, json=BODY))
            except httpx.ConnectError:
                return
            except httpx.HTTPError as error:
                lost.append(repr(error))
            await asyncio.sleep(pause)


def load(port, clients, during, pause=0.0):
    """Clients beside a coroutine -> (answers, what was lost)."""
    answers, lost, ended = [], [], []

    async def run():
        tasks = [asyncio.create_task(client(port, lambda: bool(ended), answers, lost, pause)) for _ in range(clients)]
        await during()
        ended.append(True)
        await asyncio.gather(*tasks)

    asyncio.run(run())
    return answers, lost


def metric(port, name):
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    return float(next(line for line in text.splitlines() if line.startswith(name)).split()[-1])


def test_a_gallery_of_features_is_served_without_torch(files):
    code = f"""
import sys
from scqfaiss.serving.app import create_app
from scqfaiss.serving.settings import settings_of
create_app(settings_of(("{files}/sure.faissindex",), model=("{files}/sure.safetensors",)))
print(sorted({{"torch", "h5py", "PIL", "onnxruntime"}} & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stdout + done.stderr


@pytest.mark.slow
def test_what_cannot_be_served_ends_at_once(files):
    arguments = [sys.executable, "-m", "scqfaiss", "serve", "sure.faissindex", "--host", "0.0.0.0"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, cwd=files)
    message = "Error: --host 0.0.0.0 can be reached from outside; that takes --api-key-file\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


@pytest.mark.slow
def test_a_signal_under_load_loses_no_answer_and_files_are_swapped_meanwhile(files, tmp_path):
    want = {}
    for name in ("sure", "other"):
        gallery = scqfaiss.open(files / f"{name}.faissindex", model=str(files / "sure.safetensors"))
        want[gallery.checksum[:12]] = gallery.search(life.XQ[:1], 3)
    first = files / "first"
    shutil.copy(files / "sure.faissindex", first)
    with started(files, tmp_path / "log", "--reload", "0.05") as service:
        target = files / "sure.faissindex"

        async def swaps():
            versions = set()
            for i in range(8):
                put(files / "other.faissindex" if i % 2 == 0 else first, target)
                await asyncio.sleep(0.12)
                versions.add(metric_version(service))
            assert versions == set(want)
            # Cut off, then damaged, empty, then gone: the file before serves on, and /metrics says so.
            whole = first.read_bytes()
            for content in (whole[: len(whole) // 2], whole[:5000] + b"\0" * 64 + whole[5064:], b""):
                (files / "bad").write_bytes(content)
                os.replace(files / "bad", target)
                await wait(lambda: metric(service.port, 'scqfaiss_gallery_reload_failing{gallery="sure"}') == 1)
                put(first, target)
                await wait(lambda: metric(service.port, 'scqfaiss_gallery_reload_failing{gallery="sure"}') == 0)
            os.unlink(target)
            await wait(lambda: metric(service.port, 'scqfaiss_gallery_reload_failing{gallery="sure"}') == 1)
            assert metric(service.port, 'scqfaiss_gallery_reload_failures_total{gallery="sure"}') >= 4
            service.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(service.process.wait, 20)

        answers, lost = load(service.port, 8, swaps)
        assert lost == [] and len(answers) > 100
        assert {answer.status_code for answer in answers} == {200}
        for answer in answers:
            found = answer.json()
            D, I = want[found["version"]]
            assert found["ids"] == I.tolist()
            np.testing.assert_allclose(found["scores"], D, rtol=1e-5, atol=1e-5)
        assert service.process.returncode == 0
        served = len([e for e in service.events("request") if e["route"].endswith("search")])
        assert served == len(answers) + 8
        text = (tmp_path / "log").read_text()
        assert str(files) not in text and "Traceback" not in text and 'File "' not in text


def metric_version(service):
    return httpx.post(f"http://127.0.0.1:{service.port}{PATH}", json=BODY).json()["version"]


async def wait(true, seconds=10):
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(true):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


@pytest.mark.slow
def test_a_worker_that_is_killed_comes_back_also_once_a_damaged_file_is_whole_again(files, tmp_path):
    with started(files, tmp_path / "log", "--workers", "2", "--mmap") as service:
        service.until(lambda: len(service.events("ready")) == 2)
        first, second = (event["process"] for event in service.events("worker-started"))
        whole = (files / "sure.faissindex").read_bytes()
        (files / "bad").write_bytes(whole[:-9])
        os.replace(files / "bad", files / "sure.faissindex")
        os.kill(first, signal.SIGKILL)
        failed = service.until(lambda: service.events("worker-failed"))
        assert "sure.faissindex" in failed[0]["fault"] and str(files) not in failed[0]["fault"]
        for _ in range(5):
            assert httpx.post(f"http://127.0.0.1:{service.port}{PATH}", json=BODY).status_code == 200
        put(files / "other.faissindex", files / "sure.faissindex")
        service.until(lambda: len(service.events("ready")) == 3)
        assert {event["process"] for event in service.events("worker-died")} >= {first}
        assert service.process.poll() is None and os.path.exists(f"/proc/{second}")
        # Ctrl-C reaches every process of a terminal.
        for pid in (second, service.events("ready")[-1]["process"]):
            os.kill(pid, signal.SIGINT)
        assert service.stop(signal.SIGINT) == 0
        assert len(service.events("ended")) == 2
        assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_idle_clients_those_that_do_not_read_and_a_second_signal(files, tmp_path):
    many = json.dumps({"queries": life.XQ.tolist() * 60, "k": 400}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: ".encode()
    with ExitStack() as stack, started(files, tmp_path / "log", "--connections", "300", "--timeout", "3") as service:
        url, pid = f"http://127.0.0.1:{service.port}{PATH}", service.process.pid
        assert httpx.post(url, json=BODY).status_code == 200
        service.until(lambda: descriptors(pid))
        before, held = descriptors(pid), []
        for i in range(300):
            s = stack.enter_context(socket.socket())
            if i < 3:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.connect(("127.0.0.1", service.port))
            held.append(s)
        for s in held[:3]:  # ask for much, and read nothing
            s.sendall(head + f"{len(many)}\r\n\r\n".encode() + many)
        time.sleep(1.1)
        assert httpx.post(url, json=BODY, timeout=10).status_code == 200  # an idle one gave way
        service.until(lambda: descriptors(pid) <= before + 1)
        assert [e["status"] for e in service.events("request") if e["bytes_in"] > 10**4] in ([], [200] * 3)

        stuck = stack.enter_context(socket.create_connection(("127.0.0.1", service.port)))
        stuck.sendall(head + b"9\r\n\r\n{")  # a body that does not come holds the first signal up
        time.sleep(0.2)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(1.0)
        assert service.process.poll() is None
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", service.port))
        began = time.monotonic()
        assert service.stop() == 130 and time.monotonic() - began < 1
