"""What a closed connection leaves behind: nothing that waits for a full collection, which stops every answer."""

import asyncio
import gc
import socket

import uvicorn

from scqfaiss.serving.protocol import Protocol


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def test_closed_connections_are_freed_at_once():
    own = type("Own", (Protocol,), {"most": 10, "seconds": 0.0, "idle": {}})
    config = uvicorn.Config(app, log_level="critical", access_log=False, http=own, lifespan="off", port=0)
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))

    def talk(asked: bytes) -> bytes:
        with socket.create_connection(listening.getsockname()) as client:
            client.settimeout(10)
            client.sendall(asked)
            return client.recv(1000) if asked else b""

    async def garbage():
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started:
            await asyncio.sleep(0.01)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            assert (await asyncio.to_thread(talk, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")).endswith(b"ok")
            await asyncio.to_thread(talk, b"")
            while server.server_state.connections:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            gc.collect()
            return [o for o in gc.garbage if isinstance(o, (Protocol, asyncio.Transport))]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
            server.should_exit = True
            await serving

    assert asyncio.run(garbage()) == []
