"""A party's joint sessions: which there are, which of its clients' sessions take part, their life.

    joints = Joints(config, role, compute)
    group.start_soon(joints.run)
    with joints.company(session, links, model) as company:     around a client's session
        ...                                                    `Company` of roles.company, or None

There is one joint session for each model in use. Its channels are those that the parties open, for
every client's session, under an id that follows from that session's: each has opened them before it
admits the client, so nobody is called before it listens. Evaluator A decides whose are used. Keys
are agreed on anew, so an id that others can tell is no secret.
"""

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import anyio
import structlog
from anyio.abc import TaskGroup

from protocols.base.shares import Role
from protocols.errors import LocalProtocolError, PumaError, RemoteProtocolError
from puma_actors.base.compute import Compute
from puma_actors.base.logs import log
from puma_actors.hosts.config import ClusterConfig
from puma_actors.hosts.together.joint import Joint, ended
from puma_actors.hosts.together.meeting import meet
from puma_actors.hosts.together.seats import Seat
from puma_actors.roles.actor import ActorOptions
from puma_actors.roles.upload import Model
from puma_actors.session.handshake import Identity
from puma_actors.transports import Channel
from puma_actors.transports.frames import SESSION_BYTES
from puma_actors.transports.multiplexer import Mux


def joint_id(session: bytes) -> bytes:
    """The id of the joint session that begins with a client's session."""
    return hashlib.sha256(b"puma-actors joint session" + session).digest()[:SESSION_BYTES]


class Joints:
    """See the module docstring.

    Args:
        compute: where computation runs.
    """

    def __init__(self, config: ClusterConfig, role: Role, compute: Compute) -> None:
        self.role = role
        self.most = config.limits.max_batch
        self._config = config
        self._compute = compute
        self._companies: dict[bytes, SessionCompany] = {}
        self._live: dict[bytes, Joint] = {}  # by the session that each began with
        self._group: TaskGroup | None = None

    async def run(self) -> None:
        """Carry joint sessions, until cancelled."""
        async with anyio.create_task_group() as group:
            self._group = group
            await anyio.sleep_forever()

    @property
    def running(self) -> int:
        """Number of joint sessions."""
        return len(self._live)

    @asynccontextmanager
    async def company(
        self, session: bytes, links: Mapping[Role, Mux], model: Model
    ) -> AsyncIterator["SessionCompany | None"]:
        """What a client's session needs to take part; None if requests step alone here.

        Raises:
            TransportError: a link is lost.
        """
        if self.most == 1:
            yield None
            return
        ways = {peer: link.open(joint_id(session)) for peer, link in links.items()}
        company = self._companies[session] = SessionCompany(self, session, ways, model)
        try:
            yield company
        finally:
            del self._companies[session]
            company.end()
            if company.take_ways() is not None:
                await _close(ways)

    def seat_of(self, session: bytes) -> Seat | None:
        """The seat of a client's session that this party has now."""
        company = self._companies.get(session)
        return None if company is None else company.seat

    def choose(self, company: "SessionCompany") -> bytes:
        """The session that a joint session on the same model began with, or the caller's own."""
        for session, joint in self._live.items():
            if joint.open and _same(joint.model, company.model):
                return session
        return company.seat.session

    def joint(self, session: bytes, model: Model) -> Joint:
        """The joint session that began with a client's session, or that begins with it now.

        Raises:
            PeerFailed: it has ended. RemoteProtocolError: it is on another model.
        """
        joint = self._live.get(session)
        if joint is None:
            founder = self._companies.get(session)
            ways = None if founder is None else founder.take_ways()
            if ways is None:
                raise ended("the session that it began with is gone")
            options = ActorOptions(compute=self._compute.share())
            joint = Joint(self.role, options, model, self.most, self.seat_of)
            self._live[session] = joint
            if self._group is None:
                raise LocalProtocolError("joint sessions need `run`")
            self._group.start_soon(self._carry, session, joint, ways)
        if not _same(joint.model, model):
            raise RemoteProtocolError("the joint session is on another model")
        return joint

    async def _carry(self, session: bytes, joint: Joint, ways: Mapping[Role, Channel]) -> None:
        """Run a joint session to its end. No error gets out."""
        me = Identity(self.role, self._config.identity(self.role).name, joint_id(session))
        structlog.contextvars.clear_contextvars()  # of the client's session that it began with
        failure = ended("no session is left on it")
        try:
            joint.attach(await meet(me, ways, self._config.timeouts.handshake))
            log.info("joint session begins", role=str(self.role))
            await joint.run()
            log.info("joint session ends", role=str(self.role))
        except PumaError as error:
            failure = ended(str(error))
            log.warning("joint session failed", role=str(self.role), reason=str(error))
        except Exception as error:  # a bug here must not end the sessions of other models
            failure = ended(type(error).__name__)
            log.error("joint session failed", error=type(error).__name__)
        finally:
            joint.end(failure)
            del self._live[session]
            await _close(ways)


class SessionCompany:
    """`Company` of `puma_actors.roles.serving.company`, for one client's session.

    Args:
        ways: channels to the other parties, on which nothing has been sent.
    """

    def __init__(
        self, joints: Joints, session: bytes, ways: Mapping[Role, Channel], model: Model
    ) -> None:
        self.model = model
        self.seat = Seat(session)
        self._joints = joints
        self._ways: Mapping[Role, Channel] | None = ways
        self._joint: Joint | None = None

    @property
    def most(self) -> int:
        """As the protocol."""
        return self._joints.most

    def choose(self) -> bytes:
        """As the protocol."""
        return self._joints.choose(self)

    def sit(self, session: bytes, over: Callable[[int], bool]) -> Seat:
        """As the protocol."""
        self._joint = self._joints.joint(session, self.model)
        self._joint.seat(self.seat, over)
        return self.seat

    def take_ways(self) -> Mapping[Role, Channel] | None:
        """The channels, once: for a joint session, which closes them."""
        ways, self._ways = self._ways, None
        return ways

    def end(self) -> None:
        """The client's session has ended here."""
        self.seat.end()
        if self._joint is not None:
            self._joint.unseat(self.seat)


def _same(one: Model, other: Model) -> bool:
    """Whether parts of both may be computed together: shares of two uploads do not fit."""
    return (one.upload, one.content) == (other.upload, other.content)


async def _close(ways: Mapping[Role, Channel]) -> None:
    with anyio.CancelScope(shield=True):
        for way in ways.values():
            await way.aclose()
