"""What is changed inside a role's process: it can be stopped at a moment, told to send something
wrong there, and made to find its disk full. Everything is driven by files in one folder:

    hold      "ROLE MOMENT": that role stops there until the file is gone
    reached   made by the role when it has stopped
    wrong     {"to": ROLE, "what": KIND}: sent when the role goes on
    full      "ROLE": its disk is full
"""

import asyncio
import errno
import json
import os
from pathlib import Path
from typing import Any

from protocols.base.shares import Role
from puma_actors.hosts import server
from puma_actors.hosts.receiver import Receiver
from puma_actors.hosts.stores import draft
from puma_actors.roles.client import Client
from puma_actors.roles.messages import TensorMessage
from puma_actors.roles.sending import Sending
from puma_actors.session import inference as link
from puma_actors.session import port
from puma_actors.transports.frames import _PRELUDE, MAGIC, NO_SESSION, VERSION, Frame, Kind, encode

PREFILL_STEP, DECODE_STEP = 0, 2
_PLACES = {PREFILL_STEP: "prefill", DECODE_STEP: "decode"}
_OVERSIZE = 1 << 40


class Gate:
    """See the module docstring."""

    def __init__(self, folder: Path, role: str) -> None:
        self.folder = folder
        self.role = role
        self.session: Any = None  # the last one with a client

    def _says(self, name: str) -> str:
        try:
            return (self.folder / name).read_text()
        except FileNotFoundError:
            return ""

    @property
    def full(self) -> bool:
        """The disk of this role is full."""
        return self._says("full") == self.role

    async def at(self, moment: str, scheduler: Any = None) -> None:
        """This role is at a moment."""
        if self._says("hold") != f"{self.role} {moment}":
            return
        (self.folder / "reached").touch()
        while (self.folder / "hold").exists():
            await asyncio.sleep(0.01)
        if (wrong := self._says("wrong")) and scheduler is not None:
            (self.folder / "wrong").unlink()
            order = json.loads(wrong)
            to = Role(order["to"])
            known = scheduler if to in scheduler.ports else self.session
            send_wrong(known.port(to), order["what"])


def wrong_bytes(what: str, session: bytes = NO_SESSION) -> bytes:
    """A malformed frame: "garbage", "truncated", "oversize" or "version"."""
    if what == "garbage":
        return os.urandom(256)
    if what == "oversize":
        return _PRELUDE.pack(MAGIC, VERSION, Kind.BATCH, 1, 16, _OVERSIZE, session)
    whole = b"".join(encode(Frame(Kind.CONTROL, session, (), {"do": "x"}, [bytes(64)])))
    if what == "version":
        return whole[:4] + bytes([VERSION + 1]) + whole[5:]
    return whole[: len(whole) // 2]


def send_wrong(to: port.Port, what: str) -> None:
    """Send something wrong to a peer, below the session."""
    if what == "replayed":
        frame: Frame = to._last  # type: ignore[attr-defined]
        to.channel.try_send(frame)
        return
    channel: Any = to.channel
    stream = channel._mux.channel if hasattr(channel, "_mux") else channel
    stream._transport.write(wrong_bytes(what, to.session))
    if what == "truncated":
        stream._transport.close()


def install(folder: Path, role: str) -> None:
    """Change this process."""
    gate = Gate(folder, role)
    _watch_sends(gate)
    _watch_handshakes(gate)
    _watch_uploads(gate)
    _watch_requests(gate)
    _watch_disk(gate)


def _watch_sends(gate: Gate) -> None:
    usual, emit = link.InferenceLink.send, port.Port._emit
    place = 1 if gate.role == Role.CLIENT else 30

    async def send(self: Any, *args: Any, **options: Any) -> None:
        # A joint session, which has no client, begins with the first decoding step.
        alone = gate.role != Role.CLIENT and Role.CLIENT not in self._scheduler.ports
        if not alone:
            gate.session = self._scheduler
        if (step := self.number + alone) in _PLACES:
            self.sends = getattr(self, "sends", 0) + 1
            if self.sends == place:
                await gate.at(_PLACES[step], self._scheduler)
        await usual(self, *args, **options)

    def remember(self: Any, frame: Frame) -> None:
        if frame.kind in (Kind.BATCH, Kind.DATA, Kind.CONTROL):
            self._last = frame
        emit(self, frame)

    link.InferenceLink.send = send  # type: ignore[method-assign]
    port.Port._emit = remember  # type: ignore[method-assign]


def _watch_handshakes(gate: Gate) -> None:
    usual = server.PartyServer._shake_hands

    async def shake_hands(self: Any, *args: Any) -> Any:
        await gate.at("handshake")
        return await usual(self, *args)

    server.PartyServer._shake_hands = shake_hands  # type: ignore[method-assign]


def _watch_uploads(gate: Gate) -> None:
    usual, upload = Receiver._take, Sending.tensor
    disk = Receiver._disk

    async def take(self: Any, message: Any, buffers: Any) -> None:
        if isinstance(message, TensorMessage) and message.number == 3:
            await gate.at("upload", self.scheduler)
        await usual(self, message, buffers)

    async def send_tensor(self: Any, number: int, *rest: Any) -> None:
        if number == 3:
            await gate.at("upload", self.scheduler)
        await upload(self, number, *rest)

    async def to_disk(self: Any, function: Any, *args: Any) -> None:
        if function == self._draft.keep:
            await gate.at("commit")
        await disk(self, function, *args)

    Receiver._take = take  # type: ignore[method-assign]
    Receiver._disk = to_disk  # type: ignore[method-assign]
    Sending.tensor = send_tensor  # type: ignore[method-assign]


def _watch_requests(gate: Gate) -> None:
    usual = Client.begin

    async def begin(self: Any, *args: Any, **options: Any) -> Any:
        await gate.at("idle", self.scheduler)
        return await usual(self, *args, **options)

    Client.begin = begin  # type: ignore[method-assign]


def _watch_disk(gate: Gate) -> None:
    class Watched:
        """`os`, as the store sees it."""

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def write(self, handle: int, data: Any) -> int:
            if gate.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return os.write(handle, data)

    draft.os = Watched()  # type: ignore[assignment]
