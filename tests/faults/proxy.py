"""A TCP proxy that cuts, stalls and corrupts its traffic. It sees TLS records, not frames."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from waiting import HANG

_LINGER_ZERO = struct.pack("ii", 1, 0)
_LEAST = 25
"""Shorter chunks are not corrupted: an alert, which ends the connection anyway, has 24 bytes."""


class Pair:
    """Two sockets, one to each end, and the tasks that read them."""

    def __init__(self, caller: socket.socket, party: socket.socket) -> None:
        self.sockets = caller, party
        self.tasks: list[asyncio.Task[None]] = []
        self.lost = False  # bytes: TCP never goes on after that

    def close(self, *, reset: bool = False) -> None:
        """Both ends at once; `reset` sends RST instead of FIN."""
        loop = asyncio.get_running_loop()
        for task in self.tasks:
            task.cancel()
        for end in self.sockets:
            if end.fileno() < 0:
                continue
            loop.remove_reader(end)  # its number may belong to another socket soon
            loop.remove_writer(end)
            with contextlib.suppress(OSError):
                if reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
                else:
                    end.shutdown(socket.SHUT_RDWR)
            end.close()


class Proxy:
    """One way from a caller to a party.

    Attributes:
        port: where it listens. target: (host, port) that it forwards to; may be changed.
        half_open: what the party says is thrown away. stalled: nothing is carried either way.
        corrupting: the next chunk from the party gets one bit flipped.
        carried: bytes so far.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, target: tuple[str, int]) -> None:
        self.target = target
        self.half_open = self.stalled = self.corrupting = False
        self.carried = 0
        self._loop = loop
        self._pairs: set[Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.setblocking(False)
        self.port: int = self._listening.getsockname()[1]
        self._loop.call_soon_threadsafe(self._run, self._serve())

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _serve(self) -> None:
        while True:
            caller, _ = await self._loop.sock_accept(self._listening)
            self._run(self._connect(caller))

    async def _connect(self, caller: socket.socket) -> None:
        party = socket.socket()
        party.setblocking(False)
        pair = Pair(caller, party)
        try:
            await self._loop.sock_connect(party, self.target)
        except OSError:
            pair.close(reset=True)
            return
        for end in pair.sockets:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pairs.add(pair)
        for source, sink, answers in ((caller, party, False), (party, caller, True)):
            pair.tasks.append(self._run(self._carry(pair, source, sink, answers)))

    async def _carry(
        self, pair: Pair, source: socket.socket, sink: socket.socket, answers: bool
    ) -> None:
        try:
            while data := await self._loop.sock_recv(source, 1 << 16):
                while self.stalled:
                    await asyncio.sleep(0.02)
                if answers and self.half_open:
                    pair.lost = True
                    continue
                if answers and self.corrupting and len(data) >= _LEAST:
                    self.corrupting = False
                    data = data[:-1] + bytes([data[-1] ^ 1])
                self.carried += len(data)
                await self._loop.sock_sendall(sink, data)
        except (OSError, ValueError):  # ValueError: closed meanwhile
            pass
        finally:
            self._pairs.discard(pair)
            pair.close()

    def _soon(self, function: Callable[[], None]) -> None:
        """Run in the proxy's thread, and wait until that has been done."""
        done = threading.Event()

        def run() -> None:
            function()
            done.set()

        self._loop.call_soon_threadsafe(run)
        if not done.wait(HANG):
            raise TimeoutError("the proxy's thread does not answer")

    def cut(self) -> None:
        """Reset every connection."""
        self._soon(lambda: _close_all(self._pairs))

    def heal(self) -> bool:
        """Carry everything again, over new connections where bytes were thrown away; whether there
        were such.
        """
        self.half_open = self.stalled = self.corrupting = False
        lossy: set[Pair] = set()

        def cut() -> None:
            lossy.update(pair for pair in self._pairs if pair.lost)
            _close_all(lossy)

        self._soon(cut)
        return bool(lossy)

    def close(self) -> None:
        """Stop listening, and drop every connection."""

        def stop() -> None:
            for task in self._tasks:
                task.cancel()
            for pair in set(self._pairs):
                pair.close()
            self._listening.close()

        self._soon(stop)


def _close_all(pairs: set[Pair]) -> None:
    for pair in set(pairs):
        pair.close(reset=True)


class Proxies:
    """An event loop in a thread, for all proxies."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._made: list[Proxy] = []

    def to(self, port: int) -> Proxy:
        """A proxy in front of a port of this machine."""
        done: list[Proxy] = [Proxy(self._loop, ("127.0.0.1", port))]
        self._made += done
        return done[0]

    def close(self) -> None:
        """Stop all."""
        for proxy in self._made:
            proxy.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(HANG)
        self._loop.close()
