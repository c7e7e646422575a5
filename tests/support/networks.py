"""Every transport, ready to be tested: certificates, addresses, pairs of channels."""

import asyncio
import itertools
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from delayed import DelayedTransport
from waiting import HANG, settled

from protocols.base.shares import Role
from puma_actors.base.certs import create_authority, issue
from puma_actors.base.identity import PeerIdentity
from puma_actors.transports import (
    Channel,
    MemoryTransport,
    TcpTransport,
    TlsTransport,
    Transport,
    UnixTransport,
)
from puma_actors.transports.delay.network import Route
from puma_actors.transports.frames import Frame, Limits
from puma_actors.transports.multiplexer import Mux, MuxChannel
from puma_actors.transports.stream import StreamOptions
from puma_actors.transports.tls import Credentials

LIMITS = Limits(frame=1 << 20)
STREAMS = ["tcp", "tls", "unix"]
NEARBY = Route(round_trip=0.5e-3, bandwidth=10e9, jitter=0.2e-3)
DELAYED = "-delayed"
DELAYABLE = ["memory", "memory-codec", *STREAMS]
SCHEMES = [*DELAYABLE, *(f"{scheme}{DELAYED}" for scheme in DELAYABLE), "mux"]
OPTIONS = StreamOptions(silence=HANG, timeout=HANG, linger=HANG, limits=LIMITS)
ALL = (Role.DEALER, Role.EVALUATOR_A, Role.EVALUATOR_B, Role.OWNER, Role.CLIENT)
_numbers = itertools.count()

Pair = tuple[Channel, Channel]


def make_certificates(folder: Path) -> Path:
    """An authority, and a certificate for each role under the role's own name."""
    create_authority(folder)
    for role in ALL:
        issue(folder, PeerIdentity(role, str(role)), ["localhost", "127.0.0.1"])
    return folder


def transport_of(
    scheme: str, certificates: Path, options: StreamOptions = OPTIONS, role: Role = Role.DEALER
) -> Transport:
    """A transport of a scheme; over TLS it is `role`'s."""
    if scheme.endswith(DELAYED):
        inner = transport_of(scheme.removesuffix(DELAYED), certificates, options, role)
        return DelayedTransport(inner, NEARBY)
    if scheme == "tcp":
        return TcpTransport(options, insecure_no_tls=True)
    if scheme == "tls":
        return TlsTransport(Credentials(certificates, role), options)
    if scheme == "unix":
        return UnixTransport(options)
    return MemoryTransport(limits=options.limits, codec=scheme == "memory-codec")


@asynccontextmanager
async def address_of(scheme: str) -> AsyncIterator[str]:
    """Where to listen."""
    scheme = scheme.removesuffix(DELAYED)
    if scheme in ("tcp", "tls"):
        yield f"{scheme}://127.0.0.1:0"
    elif scheme == "unix":
        with tempfile.TemporaryDirectory(prefix="puma-") as folder:
            yield f"unix://{folder}/socket"
    else:
        yield f"memory://contract-{next(_numbers)}"


@asynccontextmanager
async def connected(
    scheme: str, certificates: Path, options: StreamOptions = OPTIONS
) -> AsyncIterator[Pair]:
    """A caller and who was called. Nothing may be left behind."""
    if scheme == "mux":
        async with multiplexed(certificates, options) as (left_mux, right_mux):
            session = b"s" * 16
            yield Labelling(left_mux.open(session)), Labelling(right_mux.open(session))
        return
    transport = transport_of(scheme, certificates, options)
    before = len(asyncio.all_tasks())
    async with (
        address_of(scheme) as address,
        await transport.listen(address) as listener,
        await transport.connect(listener.address) as left,
        await listener.accept() as right,
    ):
        yield left, right
    assert len(asyncio.all_tasks()) <= before  # a reader of the pair before may have ended since


@asynccontextmanager
async def multiplexed(
    certificates: Path, options: StreamOptions = OPTIONS, scheme: str = "unix"
) -> AsyncIterator[tuple[Mux, Mux]]:
    """Both ends of a connection that sessions share."""
    async with connected(scheme, certificates, options) as (left, right):
        muxes = Mux(left, "right"), Mux(right, "left")
        begun, over = asyncio.Event(), asyncio.Event()

        async def serve() -> None:  # a separate task: fixtures begin and end in different ones
            async with muxes[0].running(), muxes[1].running():
                begun.set()
                await over.wait()

        task = asyncio.create_task(serve())
        await begun.wait()
        try:
            yield muxes
        finally:
            over.set()
            await task


class Labelling(Channel):
    """A session's channel for tests whose frames name no session."""

    def __init__(self, inner: MuxChannel) -> None:
        self.inner = inner
        self.local_address, self.peer_address = inner.local_address, inner.peer_address
        self.frame_bytes, self.chunk_bytes = inner.frame_bytes, inner.chunk_bytes

    def _label(self, frame: Frame) -> Frame:
        return replace(frame, session=self.inner.session)

    @property
    def sent_frames(self) -> int:  # type: ignore[override]
        return self.inner.sent_frames

    @property
    def sent_bytes(self) -> int:  # type: ignore[override]
        return self.inner.sent_bytes

    async def send(self, frame: Frame) -> None:
        await self.inner.send(self._label(frame))

    def try_send(self, frame: Frame) -> bool:
        return self.inner.try_send(self._label(frame))

    async def receive(self) -> Frame:
        return await self.inner.receive()

    async def pump(self, sink: Callable[[Frame], None]) -> None:
        await self.inner.pump(sink)

    async def send_eof(self) -> None:
        await self.inner.send_eof()

    async def aclose(self) -> None:
        await self.inner.aclose()


async def wait_until_quiet() -> None:
    """Let all tasks run as far as they can."""
    await settled(landed=True)
