"""The first words on a connection to a party: what the caller wants, and whether it may.

    answer = await enter(channel, Request(purpose="session", ...), session)       the caller's side
    request, session = await hear(channel, timeout)                              the party's side
    await admit(channel, session, Answer(...), buffers) / await refuse(channel, session, error)

Both are control frames under the session's id, before any handshake. Who the caller is, the
connection's certificate says; where there is none (unix://, tcp://), the request is believed.

A caller may go on only after an `Answer`. Being refused with `Busy` means: later.
"""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal

import anyio
from pydantic import Field, ValidationError

from protocols.base.shares import Role
from protocols.errors import (
    Busy,
    ConfigError,
    NoAnswerError,
    PumaError,
    RemoteProtocolError,
    StoreError,
)
from puma_actors.base.build import program_digest
from puma_actors.base.identity import NAME_CHARS, PeerIdentity
from puma_actors.base.strict import Strict
from puma_actors.base.texts import TEXT_CHARS, printable, told
from puma_actors.transports import Channel
from puma_actors.transports.frames import NO_SESSION, Frame, Kind

VERSION = 2
"""Of these first words and all that follows them."""

Purpose = Literal["link", "session", "upload", "list", "remove", "ping"]
_MAY: dict[Purpose, tuple[Role, ...]] = {
    "link": (Role.DEALER, Role.EVALUATOR_A, Role.EVALUATOR_B),
    "session": (Role.CLIENT,),
    "upload": (Role.OWNER,),
    "list": (Role.OWNER, Role.CLIENT),
    "remove": (Role.OWNER,),
}
Named = Annotated[str, Field(max_length=NAME_CHARS)]
_SEEN = r"^\P{C}*$"
"""No line breaks and no escape sequences: these texts are shown on terminals."""
Short = Annotated[str, Field(max_length=NAME_CHARS, pattern=_SEEN)]
Problem = Annotated[str, Field(max_length=TEXT_CHARS, pattern=_SEEN)]


def software() -> str:
    """The version of this program."""
    try:
        return version("puma-actors")
    except PackageNotFoundError:
        return "unknown"


class Request(Strict):
    """What a caller wants. `build`: `program_digest`; `files`: with the answer, what the owner
    published with the model; `measure`: how far the party finds the others.
    """

    version: int = VERSION
    software: Named = Field(default_factory=software)
    build: Named = Field(default_factory=program_digest)
    role: Named
    name: Named
    purpose: Purpose
    model: Named = ""
    files: bool = False
    measure: bool = False


class ModelEntry(Strict):
    """A model that a party holds. `problem` is empty if nothing is known to be wrong with it;
    `verified`: all of its files had the right checksum when they were last read, and have not
    changed since.
    """

    name: Short
    upload: Short = ""
    digest: Short = ""
    created: Short = ""
    architecture: Short = ""
    head: Short = ""
    bytes: int = 0
    loaded: bool = False
    verified: bool = False
    problem: Problem = ""


class LinkEntry(Strict):
    """What a party measured to another one: seconds there and back, bytes a second."""

    peer: Short
    round_trip: float | None = None
    throughput: float | None = None
    problem: Problem = ""


class FilePart(Strict):
    """A published file. Its content is in the answer's buffers if it was asked for."""

    name: Short
    sha256: Short
    bytes: int = Field(ge=0)


class Answer(Strict):
    """What a party grants. `days`: until its certificate expires, if it was asked and has one."""

    software: Short = Field(default_factory=software)
    build: Short = Field(default_factory=program_digest)
    role: Short
    name: Short
    model: ModelEntry | None = None
    plan: dict[str, Any] | None = None
    tokens: int = Field(default=0, ge=0)
    files: list[FilePart] = Field(default_factory=list)
    models: list[ModelEntry] = Field(default_factory=list)
    links: list[LinkEntry] = Field(default_factory=list)
    sessions: int = 0
    days: float | None = None


# -- the caller's side -----------------------------------------------------------------------------


async def enter(
    channel: Channel, request: Request, session: bytes = NO_SESSION
) -> tuple[Answer, list[memoryview]]:
    """Ask a party for something; its answer and the buffers that came with it.

    Raises:
        Busy: it has no place now. StoreError: what it has stored is of no use. ConfigError: it
        refuses for another reason, and says why. RemoteProtocolError: it answers something else.
        TransportError: it is gone.
    """
    header = {"do": "enter", **request.model_dump()}
    await channel.send(Frame(Kind.CONTROL, session, (), header))
    frame = await channel.receive()
    fits = frame.session == session and frame.kind in (Kind.CONTROL, Kind.ERROR)
    # Who does not understand the request, of another version, does not know its session either.
    if not (fits or (frame.session == NO_SESSION and frame.kind is Kind.ERROR)):
        raise RemoteProtocolError(f"{channel.peer_address} answered with another kind of frame")
    content = dict(frame.header)
    if frame.kind is Kind.ERROR:
        text = told(content) or "it gave no reason"
        raise _refusal(content)(text)
    if content.pop("do", None) != "entered":
        raise RemoteProtocolError(f"{channel.peer_address} answered something else than asked")
    try:
        answer = Answer.model_validate(content)
    except ValidationError:
        raise RemoteProtocolError(
            f"the answer of {channel.peer_address} is malformed: install the same version"
        ) from None
    return answer, [memoryview(buffer) for buffer in frame.buffers]


# -- the party's side ------------------------------------------------------------------------------


async def hear(channel: Channel, timeout: float) -> tuple[Request, bytes]:
    """What a caller wants, and under which session's id.

    Raises:
        RemoteProtocolError: it says something else. TransportError: it is gone, or says nothing.
    """
    try:
        with anyio.fail_after(timeout):
            frame = await channel.receive()
    except TimeoutError:
        raise NoAnswerError(f"the caller said nothing for {timeout:g} s") from None
    content = dict(frame.header)
    if frame.kind is not Kind.CONTROL or content.pop("do", None) != "enter":
        raise RemoteProtocolError("a connection must begin with a request to enter")
    if content.get("version") != VERSION:
        theirs = printable(str(content.get("software"))[:32])
        raise RemoteProtocolError(
            f"the caller speaks version {repr(content.get('version'))[:16]} (software {theirs}), "
            f"this party {VERSION} (software {software()}): install the same version on both"
        )
    try:
        return Request.model_validate(content), frame.session
    except ValidationError:
        raise RemoteProtocolError("malformed request to enter") from None


def caller_of(channel: Channel, request: Request) -> PeerIdentity:
    """Who asks.

    Raises:
        RemoteProtocolError: the request names somebody else than the certificate, or a role that
            may not ask for this.
    """
    try:
        said = PeerIdentity(Role(request.role), request.name)
    except (ConfigError, ValueError):
        raise RemoteProtocolError("the caller's role or name is unusable") from None
    proven = channel.peer_identity
    if proven is not None and proven != said:
        raise RemoteProtocolError(
            f"{said} called with the certificate of {proven}: use its own certificate"
        )
    allowed = _MAY.get(request.purpose)
    if allowed is not None and said.role not in allowed:
        raise RemoteProtocolError(
            f"{said} may not ask for {request.purpose!r}: that is for {', '.join(allowed)}"
        )
    return said


def check_programs(request: Request, role: Role) -> None:
    """Refuse who computes with other programs: what comes out would be noise.

    Raises:
        RemoteProtocolError: the text names both.
    """
    if request.build != program_digest():
        raise RemoteProtocolError(
            f"{request.role} runs version {request.software} (programs {request.build[:16]}), "
            f"{role} version {software()} (programs {program_digest()}): install the same version "
            "on both"
        )


def _refusal(content: Mapping[str, object]) -> type[PumaError]:
    """What it is at this side; a party of another version may say less."""
    if content.get("busy") is True:
        return Busy
    return StoreError if content.get("damaged") is True else ConfigError


async def admit(
    channel: Channel, session: bytes, answer: Answer, buffers: list[bytes] | None = None
) -> None:
    """Grant what was asked for."""
    header = {"do": "entered", **answer.model_dump()}
    await channel.send(Frame(Kind.CONTROL, session, (), header, buffers or []))


async def refuse(channel: Channel, session: bytes, error: PumaError) -> None:
    """Say why not."""
    damaged = error.exit_code == StoreError.exit_code
    header = {
        "text": str(error)[:TEXT_CHARS],
        "busy": isinstance(error, Busy),
        "damaged": damaged,
    }
    await channel.send(Frame(Kind.ERROR, session, (), header))
