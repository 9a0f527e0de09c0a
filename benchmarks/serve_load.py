"""Load for a service on this machine, bounded in requests and seconds. Prints JSON.

    python benchmarks/serve_load.py throughput GALLERY MODEL QUERY.h5 [SECONDS]
    python benchmarks/serve_load.py swaps      GALLERY MODEL QUERY.h5 OTHER_GALLERY [SECONDS]
    python benchmarks/serve_load.py flat       GALLERY MODEL QUERY.h5 [REQUESTS]
    python benchmarks/serve_load.py hostile    GALLERY MODEL QUERY.h5 [SLOW] [IDLE] [SECONDS]

throughput: 32 clients with one query a request, JSON and binary, one after the other with an empty route of FastAPI under the
same clients and bodies: `json_ratio`, `binary_ratio` of requests a second, and of requests a second of the server's processor
time, `json_cpu_ratio`, `binary_cpu_ratio`, which do not depend on who else computes; `batch_ratio`: queries a second in binary
requests of 100, against Gallery.search in this process on one thread; `p50`, `p95`, `p99`: milliseconds of a JSON request at half
of the load. swaps: 100 requests a second, while the file is replaced every second by the other one and back: `errors`, `mixed`
(answers that are wholly of neither), `versions` seen. flat: `rss_first`, `rss_last`, bytes after a tenth of the requests and
after all; `fds`, open files. hostile: 95 of 100 of 50 requests a second took `p95_alone`, `p95_slow` beside 200 clients that
send a head byte by byte, `p95_idle` beside 10,000 connections that send nothing, as many as are allowed, `p95_over` beside half
as many again, `p95_after`. These clients live in a process of their own and connect again when they are cut off: `slow_held`,
..., how many were connected at most, `slow_cut`, ..., how often one was cut off. `rss_before`, `rss_slow`, ..., `rss_after`, and
so `fds`: memory and open files of the server after each.

Servers listen on 127.0.0.1 and end with the script.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import scqfaiss
from scqfaiss.data import open_rows

CLIENTS, K = 32, 10
COMING = 10  # seconds in which a crowd connects, as long as a service waits for a request to begin
EMPTY = """
import sys, uvicorn
from fastapi import FastAPI
app = FastAPI()
@app.post("/empty")
async def empty():
    return {}
uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False)
"""


class Client(asyncio.Protocol):
    """One connection, one request at a time: a stream of asyncio's would cost more than the answer."""

    def __init__(self) -> None:
        self.buffer, self.waiting = bytearray(), None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self.buffer[:end]).lower()
        at = head.index(b"content-length:") + 15
        size = int(head[at : head.find(b"\r\n", at) if head.find(b"\r\n", at) > 0 else len(head)])
        if len(self.buffer) >= end + 4 + size:
            body = bytes(self.buffer[end + 4 : end + 4 + size])
            del self.buffer[: end + 4 + size]
            waiting, self.waiting = self.waiting, None
            waiting.set_result((int(head[9:12]), body))

    def connection_lost(self, error: Any) -> None:
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_exception(ConnectionError("closed"))

    def ask(self, request: bytes) -> Any:
        self.waiting = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.waiting


def request(port: int, path: str, kind: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def connected(port: int, n: int) -> list[Client]:
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Client, "127.0.0.1", port))[1] for _ in range(n)]


async def hammer(port: int, requests: list[bytes], seconds: float, most: int = 1 << 60) -> int:
    """All clients at once, as fast as they are answered -> requests answered."""
    clients, done, end = await connected(port, CLIENTS), 0, time.perf_counter() + seconds

    async def one(number: int, client: Client) -> None:
        nonlocal done
        while time.perf_counter() < end and done < most:
            status, _ = await client.ask(requests[(done + number) % len(requests)])
            assert status == 200, status
            done += 1

    await asyncio.gather(*(one(i, c) for i, c in enumerate(clients)))
    for client in clients:
        client.transport.close()
    return done


async def paced(port: int, requests: list[bytes], rate: float, seconds: float, seen: Any = None) -> list[float]:
    """So many requests a second -> milliseconds of each. A request that comes late counts from when it was due."""
    clients = await connected(port, CLIENTS)
    free: asyncio.Queue[Client] = asyncio.Queue()
    for client in clients:
        free.put_nowait(client)
    start, times, tasks = time.perf_counter() + 0.05, [], []

    async def one(number: int) -> None:
        due = start + number / rate
        client = await free.get()
        status, body = await client.ask(requests[number % len(requests)])
        times.append(1000 * (time.perf_counter() - due))
        if seen is not None:
            seen(number, status, body)
        free.put_nowait(client)

    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(one(number)))
    await asyncio.gather(*tasks)
    return times


class Server:
    """A process that listens on a port of its own."""

    def __init__(self, command: list[str]) -> None:
        self.port = free_port()
        self.process = subprocess.Popen(
            [*command, str(self.port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.time() + 60
        while time.time() < end:
            try:
                asyncio.run(connected(self.port, 1))
                return
            except OSError:
                time.sleep(0.05)
        raise SystemExit("the server did not start")

    def cpu(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def fds(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def serving(gallery: str, model: str, *more: str) -> Server:
    own = [sys.executable, "-m", "scqfaiss", "serve", f"g={gallery}", "--model", model, *more, "--port"]
    return Server(own)


def bodies(xq: np.ndarray, port: int, path: str = "/v1/galleries/g/search") -> dict[str, list[bytes]]:
    rows = [np.ascontiguousarray(row, "<f4") for row in xq]
    as_json = [json.dumps({"queries": [row.tolist()], "k": K}).encode() for row in rows]
    return {
        "json": [request(port, path, "application/json", body) for body in as_json],
        "binary": [request(port, f"{path}?k={K}", "application/octet-stream", row.tobytes()) for row in rows],
    }


def throughput(gallery: str, model: str, query: str, seconds: str = "8") -> dict[str, Any]:
    xq, out = read(query)[:500], {}
    ours, empty = serving(gallery, model), Server([sys.executable, "-c", EMPTY])
    own, other = bodies(xq, ours.port), bodies(xq, empty.port, "/empty")
    for kind in ("json", "binary"):
        rates = {}
        for name, server, requests in (
            ("ours", ours, own),
            ("empty", empty, other),
        ) * 2:  # twice: neither is warm for both
            asyncio.run(hammer(server.port, requests[kind], 1))
            cpu, start = server.cpu(), time.perf_counter()
            done = asyncio.run(hammer(server.port, requests[kind], float(seconds) / 2))
            rates.setdefault(name, []).append((done / (time.perf_counter() - start), done / (server.cpu() - cpu)))
        means = {name: np.mean(found, axis=0) for name, found in rates.items()}
        out |= {f"{kind}_rate": means["ours"][0], f"{kind}_empty_rate": means["empty"][0]}
        out |= {
            f"{kind}_ratio": means["ours"][0] / means["empty"][0],
            f"{kind}_cpu_ratio": means["ours"][1] / means["empty"][1],
        }
    times = asyncio.run(paced(ours.port, own["json"], out["json_rate"] / 2, float(seconds)))
    out |= dict(zip(("p50", "p95", "p99"), np.percentile(times, (50, 95, 99))))
    hundred = np.ascontiguousarray(np.resize(xq, (100, xq.shape[1])), "<f4")
    batch = [request(ours.port, f"/v1/galleries/g/search?k={K}", "application/octet-stream", hundred.tobytes())]
    cpu = ours.cpu()
    done = asyncio.run(hammer(ours.port, batch, float(seconds) / 2))
    served = 100 * done / (ours.cpu() - cpu)
    out |= {"batch_cpu_rate": served, "batch_ratio": served / in_process(gallery, model, hundred, float(seconds) / 2)}
    ours.end(), empty.end()
    return out


def in_process(gallery: str, model: str, rows: np.ndarray, seconds: float) -> float:
    """Queries a second of processor time by Gallery.search on one thread."""
    import faiss
    from threadpoolctl import threadpool_limits

    opened = scqfaiss.open(gallery, model=model)
    faiss.omp_set_num_threads(1)
    with threadpool_limits(1):
        opened.search(rows, K)
        done, cpu = 0, time.process_time()
        while time.process_time() - cpu < seconds:
            opened.search(rows, K)
            done += len(rows)
        return done / (time.process_time() - cpu)


def swaps(gallery: str, model: str, query: str, other: str, seconds: str = "60") -> dict[str, Any]:
    xq = read(query)[:50]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "g.faissindex"
        shutil.copy(gallery, path)
        server = serving(str(path), model, "--reload", "0.2")
        expected = [scqfaiss.open(p, model=model).search(xq, K)[1].tolist() for p in (gallery, other)]
        found, errors, mixed = set(), 0, 0

        def seen(number: int, status: int, body: bytes) -> None:
            nonlocal errors, mixed
            errors += status != 200
            answer = json.loads(body)
            of = [i for i, ids in enumerate(expected) if answer["ids"][0] == ids[number % len(xq)]]
            mixed += not of
            found.add(answer["version"])

        async def swap() -> None:
            for i in range(int(float(seconds))):
                await asyncio.sleep(1)
                shutil.copy((other, gallery)[i % 2], f"{path}.new")
                os.replace(f"{path}.new", path)

        async def both() -> list[float]:
            times, _ = await asyncio.gather(
                paced(server.port, bodies(xq, server.port)["json"], 100, float(seconds), seen), swap()
            )
            return times

        times = asyncio.run(both())
        server.end()
    out = {"requests": len(times), "errors": errors, "mixed": mixed, "versions": len(found)}
    return out | {"p99": float(np.percentile(times, 99))}


def flat(gallery: str, model: str, query: str, requests: str = "200000") -> dict[str, Any]:
    server, n = serving(gallery, model), int(requests)
    asked = bodies(read(query)[:500], server.port)
    asyncio.run(hammer(server.port, asked["json"], 600, n // 10))
    first, fds = server.rss(), server.fds()
    asyncio.run(hammer(server.port, asked["json"], 600, n - n // 10))
    out = {"requests": n, "rss_first": first, "rss_last": server.rss(), "fds_first": fds, "fds": server.fds()}
    return out | {"exit": server.end()}


class Idler(asyncio.Protocol):
    """A connection that waits to be cut off."""

    def __init__(self) -> None:
        self.lost = asyncio.get_running_loop().create_future()

    def connection_lost(self, error: Any) -> None:
        if not self.lost.done():
            self.lost.set_result(None)


def crowd(port: str, kind: str, n: str) -> None:
    """So many clients that send a byte now and then (slow) or nothing (idle), until standard input ends. Prints `ready` once all
    have come, then JSON.
    """
    open_now = most = cut = 0

    async def one(number: int) -> None:
        nonlocal open_now, most, cut
        await asyncio.sleep(COMING * number / int(n))  # not all at once
        source = f"127.0.0.{2 + number // 20_000}", 0  # ports of one address do not suffice for many
        while True:
            try:
                transport, client = await asyncio.get_running_loop().create_connection(
                    Idler, "127.0.0.1", int(port), local_addr=source
                )
            except OSError:
                await asyncio.sleep(0.5)
                continue
            open_now += 1
            most = max(most, open_now)
            while not client.lost.done():
                if kind == "slow":
                    transport.write(b"G")
                await asyncio.wait([client.lost], timeout=0.3 if kind == "slow" else None)
            open_now, cut = open_now - 1, cut + 1
            await asyncio.sleep(0.5)

    async def all_of_them() -> None:
        clients = [asyncio.create_task(one(i)) for i in range(int(n))]
        await asyncio.sleep(COMING + 1)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for client in clients:
            client.cancel()

    asyncio.run(all_of_them())
    print(json.dumps({"held": most, "cut": cut}), flush=True)


def hostile(
    gallery: str, model: str, query: str, slow: str = "200", idle: str = "10000", seconds: str = "20"
) -> dict[str, Any]:
    server, out = serving(gallery, model, "--connections", str(int(idle) + CLIENTS)), {}
    asked = bodies(read(query)[:500], server.port)["json"]

    def p95() -> float:
        return float(np.percentile(asyncio.run(paced(server.port, asked, 50, float(seconds))), 95))

    p95()  # warm
    out |= {"rss_before": server.rss(), "fds_before": server.fds(), "p95_alone": p95()}
    for name, kind, n in (
        ("slow", "slow", int(slow)),
        ("idle", "idle", int(idle)),
        ("over", "idle", 3 * int(idle) // 2),
    ):
        command = [sys.executable, __file__, "crowd", str(server.port), kind, str(n)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as others:
            assert others.stdout is not None and others.stdout.readline() == "ready\n"
            out[f"p95_{name}"] = p95()
            told, _ = others.communicate("")
        time.sleep(3)
        out |= {f"{name}_{key}": value for key, value in json.loads(told).items()}
        out |= {f"rss_{name}": server.rss(), f"fds_{name}": server.fds()}
    out |= {"p95_after": p95(), "rss_after": server.rss(), "fds_after": server.fds()}
    return out | {"exit": server.end()}


def read(path: str) -> np.ndarray:
    with open_rows(path) as source:
        return source.read(0, len(source))


if __name__ == "__main__":
    if sys.argv[1] == "crowd":
        crowd(*sys.argv[2:])
        raise SystemExit
    found = {"throughput": throughput, "swaps": swaps, "flat": flat, "hostile": hostile}[sys.argv[1]](*sys.argv[2:])
    print(json.dumps({name: float(value) if isinstance(value, float) else value for name, value in found.items()}))
