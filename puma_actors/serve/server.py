"""Runs the gateway on a port of this machine, or a Unix socket, until SIGTERM or Ctrl-C."""

import asyncio
import logging
import os
import resource
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import anyio
import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from protocols.errors import ConfigError
from puma_actors.base.concurrency import unwrap
from puma_actors.base.logs import log
from puma_actors.serve.app import application
from puma_actors.serve.facts import Models
from puma_actors.serve.served import Served
from puma_actors.transports.unix import UnixTransport

ADDRESS = "127.0.0.1"
CONNECTIONS = 512
"""Connections at a time; more are closed at once."""
HEADER_SECONDS = 15.0
"""How long a connection may take to send the head of a request, or to do nothing."""
STALLED_SECONDS = 30.0
"""How long a client may leave unread what has been written to it."""
DRAIN_SECONDS = 60
"""How long running requests may take after SIGTERM."""


class _Careful(H11Protocol):
    """Closes connections that send nothing, or that send the head of a request slowly, or whose
    client does not read: uvicorn keeps at most 64 KiB for it, and the request waits meanwhile.
    """

    _timer: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
        else:
            self._expect()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self._go_on()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._go_on()
        self._stalled = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._go_on()

    def _go_on(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _waits(self) -> bool:
        """Whether the head of a request is what comes next."""
        return self.conn.their_state is h11.IDLE

    def _expect(self) -> None:
        if not self._waits():
            self._forget()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._late)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self._waits() and not self.transport.is_closing():
            self.transport.abort()


def listen(port: int) -> socket.socket:
    """A socket on the loopback address; port 0: any free one.

    Raises:
        ConfigError: the port is taken.
    """
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((ADDRESS, port))
    except OSError as error:
        found.close()
        raise ConfigError(
            f"--port {port} cannot be used ({error.strerror}): choose another one"
        ) from None
    return found


@contextmanager
def listen_at(path: Path) -> Iterator[socket.socket]:
    """A Unix socket in a folder that is this user's alone; the folder is made if there is none.
    The socket is removed at the end.

    Raises:
        ConfigError: others have access to the folder, or the path cannot be used.
    """
    path = path.absolute()
    folder = path.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise ConfigError(
                f"--socket {path}: others have access to its folder: run `chmod 700 {folder}` if "
                "it is yours, or name a folder that does not exist"
            )
        found, _ = UnixTransport().bind(urlsplit(f"unix://{quote(str(path))}"))
    except OSError as error:
        raise ConfigError(
            f"--socket {path} cannot be used ({error.strerror}): choose another one"
        ) from None
    try:
        yield found
    finally:
        found.close()
        path.unlink(missing_ok=True)


def hosts_of(port: int) -> list[str]:
    """What `Host` may say."""
    return [f"{name}:{port}" for name in (ADDRESS, "localhost")]


def _reached(socket_: socket.socket) -> tuple[str, list[str]]:
    """The base address of what listens on a socket, and what `Host` may say."""
    if socket_.family == socket.AF_UNIX:
        return "http://localhost", ["localhost"]
    port = socket_.getsockname()[1]
    return f"http://{ADDRESS}:{port}", hosts_of(port)


async def serve(
    models: Models,
    key: str,
    socket_: socket.socket,
    *,
    ready: Callable[[str], Awaitable[None]],
) -> None:
    """Serve until a signal. The first one lets running requests end, the second ends them.

    Args:
        ready: called with the base address when all models are ready and connections are accepted.

    Raises:
        PumaError: a model could not be opened.
    """
    with suppress(OSError, ValueError):  # what the memory holds must not land in a file
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    base, hosts = _reached(socket_)
    server = _server(application(models, hosts, key))
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_obey, server, models.served, group.cancel_scope)
            for served in models.served.values():
                await group.start(served.run)
            group.start_soon(_announce, server, partial(ready, base))
            await server.serve(sockets=[socket_])
            group.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        root = unwrap(errors)
        raise root from root.__cause__
    finally:
        _hang_up(server)


def _hang_up(server: uvicorn.Server) -> None:
    """Close what is still open when the gateway is cancelled instead of ending by itself."""
    for listening in getattr(server, "servers", ()):
        listening.close()
    for connection in list(server.server_state.connections):
        if connection.transport is not None:
            connection.transport.abort()


async def _announce(server: uvicorn.Server, ready: Callable[[], Awaitable[None]]) -> None:
    while not server.started:
        await anyio.sleep(0.01)
    await ready()


async def _obey(
    server: uvicorn.Server, served: Mapping[str, Served], scope: anyio.CancelScope
) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("signal", number=int(number))
            if server.should_exit or not server.started:
                scope.cancel()
            for each in served.values():
                each.close()
            server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn without its own handlers of signals."""

    def capture_signals(self) -> Any:
        return nullcontext()


def _server(app: ASGIApp) -> uvicorn.Server:
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    return _Server(
        uvicorn.Config(
            app,
            http=_Careful,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            limit_concurrency=None,
            timeout_keep_alive=int(HEADER_SECONDS),
            timeout_graceful_shutdown=DRAIN_SECONDS,
            h11_max_incomplete_event_size=16 << 10,
        )
    )
