"""What never reaches the gateway's own code: other pages, other names, strangers, floods."""

import asyncio
import socket
from contextlib import ExitStack
from functools import partial

import anyio
import anyio.lowlevel
import pytest
from gateway import KEY, NAME, gateway
from waiting import in_time, settled, until

from puma_actors.serve import guard, server
from puma_actors.serve.guard import Guard
from puma_actors.serve.streams import Gone, unless_gone

HOST = "127.0.0.1:8642"
SHOWN = {"host": HOST, "authorization": f"Bearer {KEY}"}
JSON = {**SHOWN, "content-type": "application/json"}


async def asked(headers, *, method="GET", path="/v1/models", parts=(b"",), later=None):
    """The status with which the guard answers, and what the gateway itself was given."""
    seen, sent = [], []

    async def inner(scope, receive, send):
        seen.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    left = list(parts)

    async def receive():
        if not left and later is not None:
            await later()
        if not left:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left or later)}

    async def send(message):
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers]
    scope = {"type": "http", "method": method, "path": path, "headers": raw}
    await Guard(inner, [HOST, "localhost:8642"], KEY)(scope, receive, send)
    return sent[0]["status"], seen, dict(sent[0]["headers"])


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({}, 200),
        ({"host": "localhost:8642"}, 200),
        ({"host": "LOCALHOST:8642"}, 200),
        ({"origin": f"http://{HOST}"}, 200),
        ({"host": "evil.example:8642"}, 421),
        ({"host": "127.0.0.1"}, 421),
        ({"host": "127.0.0.1:80"}, 421),
        ({"host": f"{HOST}.evil.example"}, 421),
        ({"host": None}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:3000"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"authorization": None}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": "Bearer puma-a-key-for-the-test"}, 401),
        ({"authorization": f"Basic {KEY}"}, 401),
        ({"authorization": "Bearer kéy"}, 401),
    ],
)
async def test_headers(changed, status):
    headers = {**SHOWN, **changed}
    found, seen, _ = await asked([(k, v) for k, v in headers.items() if v is not None])
    assert found == status
    assert len(seen) == (status == 200)


async def test_two_hosts_or_two_keys_are_none():
    assert (await asked([*SHOWN.items(), ("host", HOST)]))[0] == 421
    assert (await asked([*SHOWN.items(), ("authorization", f"Bearer {KEY}")]))[0] == 401


async def test_the_page_and_the_health_check_need_no_key():
    for path in ("/", "/health", "/ready"):
        assert (await asked([("host", HOST)], path=path))[0] == 200
    for path in ("/v1/models", "/metrics", "//", "/health/"):
        assert (await asked([("host", HOST)], path=path))[0] == 401


async def test_answers_are_not_stored():
    for headers in ([("host", HOST)], SHOWN.items()):
        found = (await asked(headers, path="/"))[2]
        assert found[b"cache-control"] == b"no-store"
        assert found[b"x-content-type-options"] == b"nosniff"


async def test_bodies(monkeypatch):
    monkeypatch.setattr(guard, "BODY_BYTES", 10)

    async def post(parts, **changed):
        headers = {**JSON, **changed}
        given = [(name.replace("_", "-"), value) for name, value in headers.items()]
        return (await asked(given, method="POST", parts=parts))[:2]

    assert await post([b"1234", b"567890"]) == (200, [b"1234567890"])
    assert await post([b"1234", b"5678901"]) == (413, [])
    assert await post([b""], content_length="11") == (413, [])
    assert await post([b""], content_length="-1") == (413, [])
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert (await post([b"{}"], **{"content-type": kind}))[0] == 415
    assert (await post([]))[0] == 400


async def test_a_body_that_does_not_come(monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.01)
    found = await asked(JSON.items(), method="POST", parts=[b"{"], later=anyio.sleep_forever)
    assert found[:2] == (408, [])


async def test_web_sockets_are_closed():
    sent = []

    async def send(message):
        sent.append(message)

    await Guard(None, [HOST], KEY)({"type": "websocket"}, None, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


# -- connections -----------------------------------------------------------------------------------


async def connect(port: int) -> anyio.abc.SocketStream:
    return await anyio.connect_tcp("127.0.0.1", port)


async def closed(stream: anyio.abc.SocketStream) -> bool:
    """Whether the gateway closes a connection without a word."""
    try:
        with in_time():
            return not await stream.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return True


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: 127"])
async def test_connections_that_are_slow_are_closed(folder, monkeypatch, sent):
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.05)
    async with gateway(folder) as served, await connect(served.port) as stream:
        if sent:
            await stream.send(sent)
        assert await closed(stream)
        assert served.models[NAME].ready


async def test_a_used_connection_that_is_slow_afterwards_is_closed(folder, monkeypatch):
    async with gateway(folder) as served, await connect(served.port) as stream:
        monkeypatch.setattr(server, "HEADER_SECONDS", 0.05)
        host = f"127.0.0.1:{served.port}"
        await stream.send(f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert b'"ok"' in await stream.receive()
        await stream.send(b"GET /health HTTP/1.1\r\n")
        assert await closed(stream)


async def test_too_many_connections_are_closed_and_the_gateway_lives(folder, monkeypatch):
    monkeypatch.setattr(server, "CONNECTIONS", 5)
    async with gateway(folder) as served:
        held = [await connect(served.port) for _ in range(5)]
        await settled()
        for _ in range(50):
            async with await connect(served.port) as extra:
                assert await closed(extra)
        for stream in held:
            await stream.aclose()
        models = None
        with in_time():
            while models is None:
                try:
                    models = await served.client().models.list()
                except OSError:
                    await settled()
        assert models.data


def flood(port: int, count: int) -> int:
    """Open and leave connections, a thousand at a time; return how many came through."""
    reached = 0
    for _ in range(0, count, 1000):
        with ExitStack() as stack:
            for _ in range(1000):
                stream = stack.enter_context(socket.socket())
                stream.connect(("127.0.0.1", port))
                reached += 1
    return reached


async def test_ten_thousand_connections_leave_the_gateway_alive(folder):
    async with gateway(folder) as served:
        tasks = len(asyncio.all_tasks())
        with in_time():
            assert await anyio.to_thread.run_sync(flood, served.port, 10_000) == 10_000
            await until(lambda: len(asyncio.all_tasks()) <= tasks)
            async with await connect(served.port) as stream:
                host = f"127.0.0.1:{served.port}"
                await stream.send(f"GET /ready HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                assert b'"ready":true' in await stream.receive()


async def test_a_client_that_stops_reading_is_closed_and_blocks_nobody(monkeypatch):
    monkeypatch.setattr(server, "STALLED_SECONDS", 0.05)
    sent, gone, part = [0], anyio.Event(), bytes(1 << 14)

    async def endless(scope, receive, send):
        if scope["path"] == "/short":
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})

        async def words():
            while True:
                await send({"type": "http.response.body", "body": part, "more_body": True})
                sent[0] += len(part)
                await anyio.lowlevel.checkpoint()  # uvicorn takes all once nobody is there

        try:
            await unless_gone(receive, words)
        except Gone:
            gone.set()

    with server.listen(0) as socket_:
        port = socket_.getsockname()[1]
        running = server._server(endless)
        async with anyio.create_task_group() as group:
            group.start_soon(partial(running.serve, sockets=[socket_]))
            await until(lambda: running.started)
            async with await connect(port) as silent, await connect(port) as other:
                await silent.send(b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
                await until(lambda: sent[0])
                await other.send(b"GET /short HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b"204" in await other.receive()
                with in_time():
                    await gone.wait()
            running.should_exit = True
    assert sent[0] < 32 << 20  # what the kernel's buffers hold, and no more


async def test_the_gateway_says_nothing_of_a_bug(folder, monkeypatch):
    async with gateway(folder) as served:

        def broken(*args):
            raise ValueError("the secret prompt")

        monkeypatch.setattr(served.models[NAME], "cluster", broken)
        async with await connect(served.port) as stream:
            host = f"127.0.0.1:{served.port}"
            body = '{"model": "tiny", "messages": [{"role": "user", "content": "x"}]}'
            await stream.send(
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n"
                f"Authorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            answer = await stream.receive()
    assert b"500" in answer
    assert b"secret" not in answer
