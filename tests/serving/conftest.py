"""Files to serve, and clients for a service in this process or in its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager, suppress

import life
import pytest

import scqfaiss
from scqfaiss.errors import ScqWarning

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

KEY = "k" * 32
# Name -> model of life.py. The encoder of the first stands in the file.
GALLERIES = {"folded": "product-4", "content": "product-4 content"}


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    """A folder with galleries, their models, items of one of them, and keys."""
    folder = tmp_path_factory.mktemp("served")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScqWarning)
        for name, model in GALLERIES.items():
            life.model(model).save(folder / f"{name}.safetensors")
            life.export(model, folder / f"{name}.faissindex", slice(400))
        calibrated = scqfaiss.calibrate(life.model("product-4"), life.XQ.repeat(8, 0), life.Y[:9].repeat(8))
        calibrated.save(folder / "sure.safetensors")
        scqfaiss.export(calibrated, life.X, ids=life.IDS, path=folder / "sure.faissindex")
        scqfaiss.export(calibrated, life.X[::-1], ids=life.IDS, path=folder / "other.faissindex")
    (folder / "sure.csv").write_text("id,title\n" + "".join(f"{i},number {i}\n" for i in life.IDS))
    keys = folder / "keys"
    keys.write_text(f"# of the tests\n{KEY}\n")
    keys.chmod(0o600)
    return folder


@contextmanager
def client_of(settings):
    """A client of a service in this process; client.server and client.port are the service's."""
    from scqfaiss.serving.run import in_background

    thread, server, port = in_background(settings)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            client.server, client.service, client.port = server, server.service, port
            yield client
    finally:
        server.should_exit = True
        thread.join(10)
    assert not thread.is_alive()


def command(folder, *options, galleries=("sure",)):
    """What is typed to serve some of the galleries."""
    found = [sys.executable, "-m", "scqfaiss", "serve", *(f"{n}={folder}/{n}.faissindex" for n in galleries)]
    for name in galleries:
        found += ["--model", f"{name}={folder}/{name}.safetensors"]
    return [*found, "--port", "0", "--log", "json", *options]


class Process:
    """A service in processes of its own."""

    def __init__(self, arguments, log):
        self.log = log
        with open(log, "wb") as err:
            self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=err, text=True)
        line = self.process.stdout.readline()
        assert line.startswith("http://localhost:"), (line, log.read_text())
        self.port = int(line.split(":")[2].split("/")[0])

    def events(self, kind=None):
        """Lines of the log so far."""
        found = [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]
        return [event for event in found if kind in (None, event["event"])]

    def until(self, true, seconds=20):
        """Wait until something is true -> what it is."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := true():
                return found
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        raise AssertionError(self.log.read_text())

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(20)


@contextmanager
def started(folder, log, *options, **more):
    """A service in processes of its own, which has begun to answer."""
    service = Process(command(folder, *options, **more), log)
    try:
        service.until(lambda: service.events("ready"))
        yield service
    finally:
        if service.process.poll() is None:
            service.process.kill()
        service.process.wait(10)
        service.process.stdout.close()


def exchange(port, data, seconds=5.0, more=()):
    """Send bytes, and more after each pause -> everything that comes until the service closes, or `seconds` are over."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as s:
        found = b""
        with suppress(TimeoutError, ConnectionError):  # what came before may still be read
            s.sendall(data)
            for pause, part in more:
                time.sleep(pause)
                s.sendall(part)
        with suppress(TimeoutError, ConnectionError):
            while part := s.recv(1 << 16):
                found += part
    return found


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))
