"""The first messages on a connection to a party: a caller's request, and whether it is granted.

    answer = await enter(channel, Request(purpose="session", ...), session)       the caller's side
    request, session = await hear(channel, timeout)                              the party's side
    await admit(channel, session, Answer(...), buffers) / await refuse(channel, session, error)

Both are control frames under the session's id, before any handshake. The connection's certificate
proves the caller's identity; without one (unix://, tcp://), the request is believed.

A caller may continue only after an `Answer`. A refusal with `Busy` means: try again later.
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
from puma_actors.prepare.unit import Shape
from puma_actors.transports import Channel
from puma_actors.transports.frames import NO_SESSION, Frame, Kind

VERSION = 2
"""Version of these first messages and of everything after them."""

Purpose = Literal["link", "session", "prepare", "upload", "list", "remove", "ping"]
_MAY: dict[Purpose, tuple[Role, ...]] = {
    "link": (Role.DEALER, Role.EVALUATOR_A, Role.EVALUATOR_B),
    "session": (Role.CLIENT,),
    "prepare": (Role.OWNER, Role.CLIENT),
    "upload": (Role.OWNER,),
    "list": (Role.OWNER, Role.CLIENT),
    "remove": (Role.OWNER,),
}
Named = Annotated[str, Field(max_length=NAME_CHARS)]
_SEEN = r"^\P{C}*$"
"""Text without line breaks and escape sequences: it is shown on terminals."""
Short = Annotated[str, Field(max_length=NAME_CHARS, pattern=_SEEN)]
Problem = Annotated[str, Field(max_length=TEXT_CHARS, pattern=_SEEN)]


def software() -> str:
    """The version of this program."""
    try:
        return version("puma-actors")
    except PackageNotFoundError:
        return "unknown"


class Request(Strict):
    """A caller's request. `build`: `program_digest`; `files`: include the files published with the
    model in the answer; `measure`: tell how fast the party's connections to the others are;
    `upload`: the id of the upload to begin, to continue, or to take back instead of removing the
    model.
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
    upload: str = Field(default="", pattern=r"^(?:[0-9a-f]{32})?$")


class StockEntry(Strict):
    """Prepared units of one shape: how many a party has, and their bytes there."""

    shape: Shape
    count: int = Field(ge=0)
    bytes: int = Field(ge=0)


class ModelEntry(Strict):
    """A model that a party holds. `problem` is empty if no problem is known; `verified`: all its
    files had the right checksum when they were last read, and have not changed since. `content`: a
    digest of public weights at an evaluator. `prepared`: units for requests on it.
    """

    name: Short
    upload: Short = ""
    digest: Short = ""
    created: Short = ""
    architecture: Short = ""
    head: Short = ""
    weights: Short = ""
    content: Short = ""
    bytes: int = 0
    loaded: bool = False
    verified: bool = False
    problem: Problem = ""
    prepared: list[StockEntry] = Field(default_factory=list, max_length=4096)


class LinkEntry(Strict):
    """A party's measurement to another one: round trip in seconds, bytes per second."""

    peer: Short
    round_trip: float | None = None
    throughput: float | None = None
    problem: Problem = ""


class FilePart(Strict):
    """A published file. Its content is in the answer's buffers if requested."""

    name: Short
    sha256: Short
    bytes: int = Field(ge=0)


class Answer(Strict):
    """A party's answer. `days`: until its certificate expires, if requested and there is one.
    `tasks`: of its event loop.
    """

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
    tasks: int = 0
    days: float | None = None


# -- the caller's side -----------------------------------------------------------------------------


async def enter(
    channel: Channel, request: Request, session: bytes = NO_SESSION
) -> tuple[Answer, list[memoryview]]:
    """Send a party a request; return its answer and the buffers that came with it.

    Raises:
        Busy: it is full now. StoreError: its stored model is unusable. ConfigError: it refuses for
        another reason, which the message gives. RemoteProtocolError: it answers something else.
        TransportError: the connection is lost.
    """
    header = {"do": "enter", **request.model_dump()}
    await channel.send(Frame(Kind.CONTROL, session, (), header))
    frame = await channel.receive()
    fits = frame.session == session and frame.kind in (Kind.CONTROL, Kind.ERROR)
    # A party of another version may not understand the request, and so not know its session.
    if not (fits or (frame.session == NO_SESSION and frame.kind is Kind.ERROR)):
        raise RemoteProtocolError(f"{channel.peer_address} answered with another kind of frame")
    content = dict(frame.header)
    if frame.kind is Kind.ERROR:
        text = told(content) or "it gave no reason"
        raise _refusal(content)(text)
    if content.pop("do", None) != "entered":
        raise RemoteProtocolError(f"{channel.peer_address} answered a different request")
    try:
        answer = Answer.model_validate(content)
    except ValidationError:
        raise RemoteProtocolError(
            f"the answer of {channel.peer_address} is malformed: install the same version"
        ) from None
    return answer, [memoryview(buffer) for buffer in frame.buffers]


# -- the party's side ------------------------------------------------------------------------------


async def hear(channel: Channel, timeout: float) -> tuple[Request, bytes]:
    """Receive a caller's request and its session id.

    Raises:
        RemoteProtocolError: it sends something else. TransportError: it is gone, or sends nothing.
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
    """The caller's identity.

    Raises:
        RemoteProtocolError: the request and the certificate differ, or the role may not make this
        request.
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
    """Refuse a caller with a different program: the results would be noise.

    Raises:
        RemoteProtocolError: the programs differ; the text names both.
    """
    if request.build != program_digest():
        raise RemoteProtocolError(
            f"{request.role} runs version {request.software} (programs {request.build[:16]}), "
            f"{role} version {software()} (programs {program_digest()}): install the same version "
            "on both"
        )


def _refusal(content: Mapping[str, object]) -> type[PumaError]:
    """The class of a refusal at this side; a party of another version may send less."""
    if content.get("busy") is True:
        return Busy
    return StoreError if content.get("damaged") is True else ConfigError


async def admit(
    channel: Channel, session: bytes, answer: Answer, buffers: list[bytes] | None = None
) -> None:
    """Grant a request."""
    header = {"do": "entered", **answer.model_dump()}
    await channel.send(Frame(Kind.CONTROL, session, (), header, buffers or []))


async def refuse(channel: Channel, session: bytes, error: PumaError) -> None:
    """Refuse a request, with the reason."""
    damaged = error.exit_code == StoreError.exit_code
    header = {
        "text": str(error)[:TEXT_CHARS],
        "busy": isinstance(error, Busy),
        "damaged": damaged,
    }
    await channel.send(Frame(Kind.ERROR, session, (), header))
