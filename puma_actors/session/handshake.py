"""Two actors on a channel prove to each other that they share a fresh secret.

    peer = await handshake(channel, Identity(role, name, session), {Role.DEALER}, timeout=10)
    peer.role, peer.name, peer.channel
    peer.secret       32 bytes, for protocols.base.prf.KeyRing(role, {peer.role: ...})

Both sides send HELLO (version, role, name, session, nonce, digests of the public tables, ephemeral
X25519 key), derive keys from the shared point with HKDF-SHA256 salted by the hash of both hellos
(lower role first, so that both hash the same), and send an HMAC-SHA256 over their own role and that
hash. An attacker who changes, replays or reflects a hello does not know the keys, and the HMAC
fails. Parties that would compute with different tables refuse each other. The shape is that of
SIGMA without the signatures; the transport must vouch for *who* the other side is (one process, or
TLS with certificates: then the hello must match the certificate's identity). A side that refuses
gives its reason in an ERROR frame, so that both ends have it.
"""

import hashlib
import hmac
import os
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocols.base.shares import COMPUTING, Role
from protocols.drivers.public import Digests, differing, refusal, table_digests
from protocols.errors import (
    LocalProtocolError,
    NoAnswerError,
    RemoteProtocolError,
    TransportError,
)
from puma_actors.base.build import program_digest
from puma_actors.base.identity import NAME_CHARS
from puma_actors.base.texts import told
from puma_actors.transports.base import Channel
from puma_actors.transports.frames import SESSION_BYTES, Frame, Kind

HANDSHAKE_VERSION = 2
SECRET_BYTES = 32
_NONCE_BYTES = 32
_KEY_BYTES = 32
_LABEL = b"puma-actors handshake"


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity that this party claims.

    Attributes:
        role: its part in the session.
        name: for display, at most 64 characters.
        session: 16 bytes that all parties of the session know.
    """

    role: Role
    name: str
    session: bytes

    def __post_init__(self) -> None:
        if len(self.session) != SESSION_BYTES:
            raise LocalProtocolError(
                f"session id has {len(self.session)} bytes: use {SESSION_BYTES}"
            )
        if len(self.name) > NAME_CHARS:
            raise LocalProtocolError(f"a name has at most {NAME_CHARS} characters")


@dataclass(frozen=True, slots=True)
class Peer:
    """A party on the other end of a channel, and the secret shared with it."""

    role: Role
    name: str
    session: bytes
    channel: Channel = field(repr=False)
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Hello:
    role: Role
    name: str
    session: bytes
    nonce: bytes
    key: bytes
    tables: Digests

    def frame(self) -> Frame:
        header = {
            "version": HANDSHAKE_VERSION,
            "build": program_digest(),
            "role": str(self.role),
            "name": self.name,
            "nonce": self.nonce,
            "tables": dict(self.tables),
        }
        return Frame(Kind.HELLO, self.session, (), header, [self.key])

    def encoded(self) -> bytes:
        parts = (str(self.role).encode(), self.name.encode(), self.session, self.nonce, self.key)
        return b"".join(struct.pack("<I", len(part)) + part for part in parts)


@contextmanager
def naming(peer: Role) -> Iterator[None]:
    """Name the party in errors: an address alone, or none, tells a reader little."""
    try:
        yield
    except (TransportError, RemoteProtocolError) as error:
        raise type(error)(f"{peer}: {error}") from None


async def handshake(
    channel: Channel,
    identity: Identity,
    expected: Collection[Role],
    *,
    timeout: float = 10.0,
) -> Peer:
    """Agree on a secret with the party on the other end. On failure the channel is closed.

    Args:
        channel: a channel on which nothing has been sent.
        identity: this party.
        expected: the roles that the other side may have.
        timeout: seconds.

    Raises:
        RemoteProtocolError: wrong version, session or role, a role or name that differs from the
        peer's certificate, or a hello that was changed, replayed or reflected; or the peer refused
        for such a reason.
        TransportError: the connection broke, or time ran out.
    """
    try:
        with anyio.fail_after(timeout):
            try:
                return await _handshake(channel, identity, expected)
            except TransportError as error:
                raise await _last_word(channel) or error from None
    except TimeoutError:
        await channel.aclose()
        raise NoAnswerError(
            f"no handshake with {channel.peer_address} within {timeout:g} s: is it running?"
        ) from None
    except BaseException:
        with anyio.CancelScope(shield=True):
            await channel.aclose()
        raise


async def _handshake(channel: Channel, identity: Identity, expected: Collection[Role]) -> Peer:
    private = X25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    nonce = os.urandom(_NONCE_BYTES)
    tables = table_digests() if identity.role in COMPUTING else {}
    mine = _Hello(identity.role, identity.name, identity.session, nonce, public, tables)
    await channel.send(mine.frame())
    theirs = _read_hello(await channel.receive())
    _check_hello(mine, theirs, expected)
    await _check_certificate(channel, mine, theirs)
    transcript = _transcript(mine, theirs)
    secret, confirm = _derive(private, theirs, transcript)
    proof = _proof(confirm, mine.role, transcript)
    await channel.send(Frame(Kind.CONFIRM, identity.session, (), {}, [proof]))
    answer = _single_buffer(await channel.receive(), Kind.CONFIRM, hashlib.sha256().digest_size)
    if not hmac.compare_digest(answer, _proof(confirm, theirs.role, transcript)):
        raise RemoteProtocolError(
            f"{theirs.role} could not prove the shared key: a hello was changed or replayed"
        )
    return Peer(theirs.role, theirs.name, identity.session, channel, secret)


async def _check_certificate(channel: Channel, mine: _Hello, theirs: _Hello) -> None:
    proven = channel.peer_identity
    if proven is None or (proven.role, proven.name) == (theirs.role, theirs.name):
        return
    reason = (
        f"{theirs.role} {theirs.name!r} called with the certificate of {proven}: start the party "
        "with its own certificate, or issue one with `puma certs issue`"
    )
    await channel.send(Frame(Kind.ERROR, mine.session, (), {"text": reason}))
    raise RemoteProtocolError(reason)


async def _last_word(channel: Channel) -> RemoteProtocolError | None:
    """The reason why the other side hung up, if it sent one."""
    try:
        while True:
            frame = await channel.receive()
            if frame.kind is Kind.ERROR:
                return _refusal(frame)
    except (TransportError, RemoteProtocolError):
        return None


def _refusal(frame: Frame) -> RemoteProtocolError:
    reason = told(frame.header) or "it gave no reason"
    return RemoteProtocolError(f"the other side refused the handshake: {reason}")


def _single_buffer(frame: Frame, kind: Kind, size: int) -> bytes:
    if frame.kind is Kind.ERROR:
        raise _refusal(frame)
    if frame.kind is not kind:
        raise RemoteProtocolError(f"{frame.kind.name} during the handshake, {kind.name} expected")
    if len(frame.buffers) != 1 or memoryview(frame.buffers[0]).nbytes != size:
        raise RemoteProtocolError(f"{kind.name} must hold one buffer of {size} bytes")
    return bytes(frame.buffers[0])


def _read_hello(frame: Frame) -> _Hello:
    key = _single_buffer(frame, Kind.HELLO, _KEY_BYTES)
    header: dict[str, Any] = frame.header
    version, role, name, nonce = (header.get(k) for k in ("version", "role", "name", "nonce"))
    if version != HANDSHAKE_VERSION:
        raise RemoteProtocolError(
            f"the peer's handshake has version {repr(version)[:16]}, this side's"
            f" {HANDSHAKE_VERSION}: install the same"
        )
    if header.get("build") != program_digest():
        raise RemoteProtocolError(
            "the peer runs a different program: install the same version on both"
        )
    if not (isinstance(role, str) and role in set(Role)):
        raise RemoteProtocolError("the peer's role is unknown")
    if not (isinstance(name, str) and len(name) <= NAME_CHARS):
        raise RemoteProtocolError(f"the peer's name must be text of at most {NAME_CHARS} letters")
    if not (isinstance(nonce, bytes) and len(nonce) == _NONCE_BYTES):
        raise RemoteProtocolError(f"the peer's nonce must be {_NONCE_BYTES} bytes")
    tables = header.get("tables")
    if not isinstance(tables, dict):
        raise RemoteProtocolError("the peer's public tables must be names with digests")
    return _Hello(Role(role), name, frame.session, nonce, key, tables)


def _check_hello(mine: _Hello, theirs: _Hello, expected: Collection[Role]) -> None:
    if theirs.role is mine.role or theirs.key == mine.key:
        raise RemoteProtocolError(f"the peer claims this party's own role, {mine.role}")
    if theirs.role not in expected:
        names = ", ".join(sorted(expected)) or "nobody"
        raise RemoteProtocolError(f"{theirs.role} connected where {names} was expected")
    if theirs.session != mine.session:
        raise RemoteProtocolError(
            f"{theirs.role} is in session {theirs.session.hex()},"
            f" this party in {mine.session.hex()}: start both with one session id"
        )
    if _compute(mine, theirs) and (odd := differing(mine.tables, theirs.tables)):
        raise RemoteProtocolError(refusal(str(theirs.role), odd))


def _compute(mine: _Hello, theirs: _Hello) -> bool:
    """Whether both sides compute, and so must have the same public tables."""
    return {mine.role, theirs.role} <= set(COMPUTING)


def _transcript(mine: _Hello, theirs: _Hello) -> bytes:
    lower, higher = sorted((mine, theirs), key=lambda hello: str(hello.role))
    head = _LABEL + struct.pack("<I", HANDSHAKE_VERSION) + program_digest().encode()
    if _compute(mine, theirs):
        head += "".join(f"{name}={value};" for name, value in sorted(mine.tables.items())).encode()
    return hashlib.sha256(head + lower.encoded() + higher.encoded()).digest()


def _derive(private: X25519PrivateKey, theirs: _Hello, transcript: bytes) -> tuple[bytes, bytes]:
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(theirs.key))
    except ValueError:  # raised by the library for an all-zero shared secret
        raise RemoteProtocolError(f"{theirs.role} sent a public key of low order") from None
    keys = HKDF(hashes.SHA256(), 2 * SECRET_BYTES, salt=transcript, info=_LABEL).derive(shared)
    return keys[:SECRET_BYTES], keys[SECRET_BYTES:]


def _proof(key: bytes, role: Role, transcript: bytes) -> bytes:
    return hmac.digest(key, str(role).encode() + transcript, "sha256")
