"""Requests that should not be: each has its answer, and others are served as before."""

import json
import re
import socket
import threading
import time

import life
import numpy as np
import pytest

from scqfaiss.serving.settings import settings_of
from serving.conftest import client_of, exchange

XQ = life.XQ
BODY = json.dumps({"queries": XQ[:1].tolist(), "k": 3}).encode()
PATH = "/v1/galleries/sure/search"
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()


@pytest.fixture(scope="module")
def client(shop):
    settings = settings_of(
        (f"sure={shop}/sure.faissindex",),
        model=(f"{shop}/sure.safetensors",),
        port=0,
        reload=0,
        timeout=0.5,
        connections=8,
        max_body="100kB",
        threads=1,
        allow_host=("Search.example",),
    )
    with client_of(settings) as found:
        found.shop = shop
        yield found


def refused(client, status, body=None, path=PATH, capfd=None, **more):
    found = client.post(path, content=body if isinstance(body, bytes) else json.dumps(body).encode(), **more)
    assert found.status_code == status, (found.status_code, found.text)
    error = found.json()["error"]
    assert set(error) == {"status", "message", "request_id"} and error["status"] == status
    assert error["request_id"] == found.headers["x-request-id"]
    for word in ("Traceback", 'File "', str(client.shop), "site-packages"):
        assert word not in found.text
    return error["message"]


@pytest.mark.parametrize(
    "status, body, message",
    [
        (400, b"{", "the body is no JSON at byte 1"),
        (400, b"", "the body is no JSON"),
        (400, b"\xff\xfe\x00", "the body is no JSON"),
        (400, b"[" * 50_000, "the body is no JSON"),
        (400, b"[]", "needs an object"),
        (422, {}, "give queries (rows of numbers) or ids"),
        (422, {"queries": [[0.0] * 16], "ids": [5]}, "one of them"),
        (422, {"queries": []}, "queries need a list of rows"),
        (422, {"queries": [[0.0] * 15]}, "query 0 is 15 numbers, needs a list of 16"),
        (422, {"queries": [[0.0] * 16, [0.0]]}, "query 1 is 1 numbers, needs a list of 16"),
        (422, {"queries": [["x"] * 16]}, "no number"),
        (422, {"queries": [[None] * 16]}, "no number"),
        (422, {"queries": [[[0.0]] * 16]}, "no number"),
        (422, b'{"queries": [[' + b"NaN," * 15 + b"0]]}", "query 0 holds NaN, infinity or a number beyond float32"),
        (422, b'{"queries": [[' + b"1e39," * 15 + b"0]]}", "query 0 holds NaN, infinity or a number beyond float32"),
        (422, b'{"queries": [[' + b"9" * 400 + b"," + b"0," * 14 + b"0]]}", "number"),
        (422, {"queries": [[0.0] * 16], "k": 10**9}, "k is 1000000000, needs a whole number from 1 to 10,000"),
        (422, {"queries": [[0.0] * 16], "k": 0}, "k is 0"),
        (422, {"queries": [[0.0] * 16], "k": 1.5}, "k is 1.5"),
        (422, {"queries": [[0.0] * 16], "k": True}, "k is True"),
        (422, {"queries": [[0.0] * 16], "nprobe": -1}, "nprobe is -1"),
        (422, {"queries": [[0.0] * 16], "threshold": "x"}, "threshold is x, needs a number"),
        (422, b'{"queries": [[0]], "threshold": Infinity}', "query 0 is 1 numbers"),
        (422, {"queries": [[0.0] * 16], "precision": 1.0}, "precision is 1, needs a number between 0 and 1"),
        (422, {"queries": [[0.0] * 16], "precision": 0.5, "recall": 0.5}, "precision and recall are given"),
        (422, {"queries": [[0.0] * 16], "known": 2}, "known is 2, needs a number from 0 to 1"),
        (422, {"queries": [[0.0] * 16], "known": [0.5, 0.5]}, "known holds 2 numbers for 1 queries"),
        (422, {"queries": [[0.0] * 16], "known": 0, "probability": True}, 'probability holds where known is "auto"'),
        (422, {"queries": [[0.0] * 16], "known": [0.5], "recall": 0.5}, 'recall holds where known is "auto"'),
        (422, {"queries": [[0.0] * 16], "probability": "yes"}, "probability is yes, needs true or false"),
        (422, {"queries": [[0.0] * 16], "allow": [-1]}, "allow need a list of whole numbers"),
        (422, {"queries": [[0.0] * 16], "deny": "5"}, "deny need a list of whole numbers"),
        (422, {"ids": []}, "0 ids are given"),
        (422, {"ids": [2**63]}, "ids need a list of whole numbers from 0 to"),
        (404, {"ids": [1]}, "ids 1 are not in sure"),
        (422, {"queries": [[0.0] * 16], "K": 3}, "unknown key 'K'"),
    ],
)
def test_bodies(client, status, body, message):
    assert message in refused(client, status, body)


def test_other_requests(client):
    binary = {"Content-Type": "application/octet-stream"}
    assert "needs rows of 16 float32, 64 bytes each" in refused(client, 422, b"x" * 63, headers=binary)
    nan = np.full((1, 16), np.nan, "<f4").tobytes()
    assert "query 0 holds NaN" in refused(client, 422, nan, headers=binary)
    assert "k is '1e9' in the address" in refused(client, 422, b"x" * 64, PATH + "?k=1e9", headers=binary)
    assert "unknown option" in refused(client, 422, b"x" * 64, PATH + "?q=1", headers=binary)
    assert "content type is 'text/html'" in refused(client, 415, b"<", headers={"Content-Type": "text/html"})
    assert "takes rows of 16 numbers or ids" in refused(
        client, 422, b"", headers={"Content-Type": "multipart/form-data"}
    )
    assert "there is no gallery of this name; there are sure" in refused(client, 404, BODY, "/v1/galleries/b/search")
    for path in ("/v1/galleries/..%2f..%2fetc/search", "/nothing", "/static/..%2f..%2fapp.py"):
        assert refused(client, 404, BODY, path)
    found = client.get(PATH)
    assert found.status_code == 405 and found.json()["error"]["status"] == 405


def test_bodies_over_the_limit_are_not_read(client):
    assert "the body is 100,001 bytes, at most 100,000 bytes are taken" in refused(client, 413, b" " * 100_001)
    began = time.monotonic()
    answer = exchange(client.port, HEAD + b"Content-Length: 1000000000\r\n\r\n" + BODY)
    assert answer.startswith(b"HTTP/1.1 413") and b"1,000,000,000 bytes" in answer
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
    answer = exchange(client.port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + 40 * chunk)
    assert answer.startswith(b"HTTP/1.1 413") and time.monotonic() - began < 3
    for length in (b"-5", b"1e9", b"5\r\nContent-Length: 6"):
        assert exchange(client.port, HEAD + b"Content-Length: " + length + b"\r\n\r\n").startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "status, hosts",
    [
        (200, ("localhost", "LOCALHOST:1", "127.0.0.1:8080", "[::1]", "[::1]:80", "search.example:443", "localhost:")),
        (
            421,
            (
                "evil.example",
                "localhost.evil.example",
                "evil.example:8080",
                "localhost@evil.example",
                "127.0.0.1.nip.io",
            ),
        ),
        (421, ("localhost:80:80", "[::1", "::1", "0.0.0.0", "localhost:x", "", "\xff")),
    ],
)
def test_only_own_names_are_answered(client, status, hosts):
    """A page whose name points at loopback gets nothing, of any route, whatever else the request is."""
    for host in hosts:
        line = b"Host: " + host.encode("latin-1") + b"\r\nConnection: close\r\n"
        for data in (
            b"GET /healthz HTTP/1.1\r\n" + line + b"\r\n",
            HEAD.replace(b"Host: localhost\r\n", line) + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY,
        ):
            head, _, body = exchange(client.port, data).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 %d" % status), (host, head)
            assert status == 200 or json.loads(body)["error"]["status"] == 421
    if status == 421:
        huge = HEAD.replace(b"localhost", b"evil.example") + b"Content-Length: 1000000000\r\n\r\n"
        assert exchange(client.port, huge).startswith(b"HTTP/1.1 421")
        assert exchange(client.port, b"GET /metrics HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 421")


def test_headers_are_not_injected(client):
    headers = {"X-Request-ID": "a b", "Content-Type": "application/json"}
    assert re.fullmatch(
        r"[0-9a-f]{12}-[0-9a-f]+", client.post(PATH, content=BODY, headers=headers).headers["x-request-id"]
    )
    assert client.post(PATH, content=BODY, headers={"X-Request-ID": "mine-1"}).headers["x-request-id"] == "mine-1"
    raw = HEAD + b"X-Request-ID: x\r\n y: z\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
    for data in (
        raw,
        raw.replace(b"x\r\n y", b"x\ry"),
        raw.replace(PATH.encode(), PATH.encode() + b"%0d%0aSet-Cookie:a"),
    ):
        answer = exchange(client.port, data)
        head = answer.partition(b"\r\n\r\n")[0].lower()
        assert answer.startswith(b"HTTP/1.1 ") and b"set-cookie" not in head and b"\r\ny" not in head
    answer = exchange(client.port, b"what is this\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400") and b'{"error": {"status": 400' in answer
    assert exchange(client.port, b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_slow_clients_time_out_and_hold_nobody(client):
    """Four clients that send a head, or a body, byte by byte; others are answered meanwhile."""
    found = []
    head = [(0.15, b"X")] * 8
    late = [
        (b"POST / HTTP/1.1\r\n", head),
        (HEAD + b"Content-Length: 100\r\n\r\n", [(0.15, b"{")] * 8),
        (HEAD, ()),
        (HEAD + b"Content-Length: 100\r\n\r\n{", ()),
    ]
    threads = [
        threading.Thread(target=lambda d=data, m=more: found.append(exchange(client.port, d, more=m)))
        for data, more in late
    ]
    for thread in threads:
        thread.start()
    seconds = []
    while any(thread.is_alive() for thread in threads):
        began = time.perf_counter()
        assert client.post(PATH, content=BODY).status_code == 200
        seconds.append(time.perf_counter() - began)
        time.sleep(0.05)
    assert [answer.split(b"\r\n")[0] for answer in found] == [b"HTTP/1.1 408 Request Timeout"] * 4
    assert np.median(seconds) < 0.2


def test_idle_connections_give_way_and_young_ones_do_not(client):
    client.get("/healthz")
    held = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(7)]
    try:
        deadline = time.monotonic() + 3
        while len(client.server.server_state.connections) < 8 and time.monotonic() < deadline:
            time.sleep(0.01)
        # The eighth is idle since its answer: it gives way to the first that is too many; those that have just come do not.
        answer = exchange(client.port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200")
        held.append(socket.create_connection(("127.0.0.1", client.port)))
        answer = exchange(client.port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 1.0)
        assert answer == b"" or (answer.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in answer)
    finally:
        for s in held:
            s.close()
    deadline = time.monotonic() + 3
    while len(client.server.server_state.connections) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert client.post(PATH, content=BODY).status_code == 200


def test_too_many_that_wait_are_told_at_once(client, monkeypatch):
    monkeypatch.setattr(client.service.batcher, "_limit", 0)
    found = client.post(PATH, content=BODY)
    assert (found.status_code, found.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize("page", ["/", "/docs"])
def test_pages_load_nothing_from_elsewhere(client, page):
    """What a page of the service runs comes from the service: it works without an internet, and nobody else reads keys."""
    answer = client.get(page)
    assert answer.status_code == 200
    found = re.findall(r"""(?:src|href)=["']([^"']+)["']""", answer.text)
    assert len(found) >= 3
    for link in found:
        assert link.startswith("/") or "//" not in link, link
        part = client.get(link)
        assert part.status_code == 200 and len(part.content) > 100, link
    assert not re.findall(r"""https?://""", answer.text)


def test_a_fault_tells_nothing(client, monkeypatch, capsys):
    g = client.service.galleries["sure"]

    def fails(asked):
        raise RuntimeError(f"secret at {client.shop}")

    monkeypatch.setattr(g, "search", fails)
    assert "something went wrong in the server" in refused(client, 500, BODY)
