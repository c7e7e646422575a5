"""A party's part in making units: a session of the three parties, at somebody's request.

    maker = Maker(role, options, asker, made_for, shelf)
    maker.attach(peers)
    await maker.run()

One unit after the other. Evaluator A draws its id; all begin a file and say so; then the dealer
runs its part of every step, and its words go to the evaluators' files; each evaluator deals what
only the embedding needs. Once all three have their whole part on the disk, they let it be used.
The caller takes no part: the keys are the three parties' own, new for each unit.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import anyio

from models.programs.inference import embed_only, evaluate
from models.programs.program import Cache, next_batch
from protocols.base.lane import Lane
from protocols.base.prf import KeyRing
from protocols.base.shares import COMPUTING, Role
from protocols.embedding import deal_rows
from protocols.errors import (
    Busy,
    ConfigError,
    PeerFailed,
    PumaError,
    RemoteProtocolError,
    StoreError,
)
from puma_actors.base.concurrency import unwrap
from puma_actors.base.logs import log
from puma_actors.base.texts import TEXT_CHARS
from puma_actors.hosts.prepared.incoming import Incoming
from puma_actors.hosts.prepared.messages import (
    BeginMessage,
    HeldMessage,
    IndexMessage,
    MadeMessage,
    MakeMessage,
    ProgressMessage,
    ReadyMessage,
    RefusedMessage,
    WholeMessage,
    WordsMessage,
    parse,
)
from puma_actors.prepare.file import KEY_BYTES, UnitWriter
from puma_actors.prepare.links import PART_BYTES, DealtLink, unit_key, unit_keys
from puma_actors.prepare.shelf import Shelf
from puma_actors.prepare.sizes import Sizes, unit_sizes
from puma_actors.prepare.unit import ID_BYTES, Label, origin_of
from puma_actors.roles.actor import Actor, ActorOptions
from puma_actors.roles.messages import InferMessage, infer_message
from puma_actors.roles.serving.accepted import Admission, check_request
from puma_actors.roles.upload import Model
from puma_actors.session.handshake import Peer


@dataclass
class _Heard:
    """What has been heard of one unit."""

    begun: BeginMessage | None = None
    ready: frozenset[Role] = frozenset()
    whole: frozenset[Role] = frozenset()


class Maker(Actor):
    """See the module docstring.

    Args:
        asker: the role of the caller.
        model: what the units are for.
        admission: whether there is memory for a request of the shape, as for clients.
        idle: seconds that may pass without a message before the session is given up.

    Raises (from `run`): PeerFailed if the caller or a party left; whole units stay.
    """

    def __init__(
        self,
        role: Role,
        options: ActorOptions,
        asker: Role,
        model: Model,
        shelf: Shelf,
        admission: Admission,
        idle: float,
    ) -> None:
        super().__init__(role, options)
        self._asker = asker
        self._model = model
        self._shelf = shelf
        self._admission = admission
        self._idle = idle
        self._origin = origin_of(model.upload, model.plan)
        self._others = tuple(other for other in COMPUTING if other is not role)
        self._secrets: dict[Role, bytes] = {}
        self._asked: MakeMessage | None = None
        self._lists: dict[Role, set[str]] = {}  # of the units that others have
        self._heard: defaultdict[int, _Heard] = defaultdict(_Heard)
        self._incoming: Incoming | None = None
        self._number = 0

    def attach(self, peers: Iterable[Peer]) -> None:
        """As `Actor.attach`."""
        peers = list(peers)
        self._secrets = {peer.role: peer.secret for peer in peers}
        super().attach(peers)

    async def main(self) -> None:
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._watch)
                await self._serve()
                group.cancel_scope.cancel()
        except BaseExceptionGroup as errors:
            root = unwrap(errors)
            raise root from root.__cause__
        await self.scheduler.wait_left(self._asker)

    async def _watch(self) -> None:
        """End the session when the caller has left: nobody waits for more units."""
        await self.scheduler.wait_left(self._asker)
        raise PeerFailed("the caller left: whole units stay")

    async def _serve(self) -> None:
        await self._until(lambda: self._asked is not None)
        asked = self._asked
        assert asked is not None
        request = self._request(asked)
        try:
            sizes = await self._accept(asked, request)
        except (Busy, ConfigError, StoreError) as error:
            await self._refuse(error)
            return
        try:
            await self._tidy()
            for self._number in range(asked.count):
                await self._make(asked, sizes)
        finally:
            self._admission.release(request.number)

    async def _tidy(self) -> None:
        """Remove what a crash has left at some parties, but not at all."""
        mine = self._shelf.units(self._origin)
        await self._tell_parties(HeldMessage(units=sorted(mine)))
        await self._until(lambda: len(self._lists) == len(self._others))
        gone = mine - mine.intersection(*self._lists.values())
        await self.scheduler.compute.offload(self._shelf.remove, gone)

    def _request(self, asked: MakeMessage) -> InferMessage:
        """A request that would use such a unit."""
        shape = asked.shape
        return infer_message(0, shape.batch(), shape.steps, shape.settings())

    async def _accept(self, asked: MakeMessage, request: InferMessage) -> Sizes:
        offload = self.scheduler.compute.offload
        self._admission.check(request)
        check_request(request, self._model.plan)
        sizes = await offload(unit_sizes, self._model.plan, asked.shape, self.role)
        self._shelf.check_room((asked.count - 1) * sizes.expected + sizes.most)
        self._admission.admit(request, self._model.plan)
        return sizes

    async def _refuse(self, error: PumaError) -> None:
        log.warning("no units prepared", role=str(self.role), reason=str(error))
        refused = RefusedMessage(
            text=str(error)[:TEXT_CHARS],
            busy=isinstance(error, Busy),
            full=isinstance(error, StoreError),
        )
        await self._tell(self._asker, refused)

    # -- messages ---------------------------------------------------------------------------------

    async def _tell(self, to: Role, message: Any, buffers: Sequence[Any] = ()) -> None:
        await self.scheduler.send_control(to, message.header(), buffers)

    async def _tell_parties(self, message: Any) -> None:
        for other in self._others:
            await self._tell(other, message)

    async def _until(self, condition: Any) -> None:
        """Take messages until a condition holds."""
        while not condition():
            sent, taken = self.scheduler.wire, None
            with anyio.move_on_after(self._idle):
                taken = await self.scheduler.control()
            if taken is not None:
                role, header, buffers = taken
                await self._take(role, parse(header), buffers)
            elif self.scheduler.wire == sent:  # this party does not deal either
                raise RemoteProtocolError(f"nothing came for {self._idle:g} s while units are made")

    async def _take(self, role: Role, message: Any, buffers: Sequence[memoryview]) -> None:
        if role is self._asker:
            if not isinstance(message, MakeMessage) or self._asked is not None:
                raise RemoteProtocolError(f"{role} may not send a {message.do!r} request now")
            self._asked = message
            return
        if isinstance(message, HeldMessage) and role not in self._lists:
            self._lists[role] = set(message.units)
            return
        known = (BeginMessage, ReadyMessage, WholeMessage, WordsMessage, IndexMessage)
        if not isinstance(message, known) or not 0 <= message.number - self._number <= 1:
            raise RemoteProtocolError(f"{role} may not send a {message.do!r} request now")
        heard = self._heard[message.number]
        if isinstance(message, BeginMessage):
            if role is not Role.EVALUATOR_A or heard.begun is not None:
                raise RemoteProtocolError(f"{role} may not begin unit {message.number}")
            heard.begun = message
            heard.ready |= {role}
        elif isinstance(message, ReadyMessage):
            heard.ready |= {role}
        elif isinstance(message, WholeMessage):
            heard.whole |= {role}
        else:
            await self._words(role, message, buffers)

    async def _words(
        self,
        role: Role,
        message: WordsMessage | IndexMessage,
        buffers: Sequence[memoryview],
    ) -> None:
        incoming = self._incoming
        if incoming is None or message.number != self._number:
            raise RemoteProtocolError(f"{role} sent words of a unit that has not begun")
        offload = self.scheduler.compute.offload
        if isinstance(message, WordsMessage):
            await offload(incoming.words, role, message.step, buffers)
        else:
            await offload(incoming.index, role, message.step, buffers, message.last)

    # -- a unit -----------------------------------------------------------------------------------

    async def _make(self, asked: MakeMessage, sizes: Sizes) -> None:
        label = await self._begin(asked)
        keys = {
            peer: unit_key(self._secrets[peer], label.unit, self._number) for peer in self._others
        }
        keys[self.role] = os.urandom(KEY_BYTES)
        offload = self.scheduler.compute.offload
        writer = await offload(self._shelf.begin, label, keys, sizes.most)
        try:
            await self._fill(writer, asked, sizes, keys)
            with anyio.CancelScope(shield=True):  # the others have it, too
                await offload(self._shelf.publish, writer)
        finally:
            with anyio.CancelScope(shield=True):
                await offload(self._shelf.abandon, writer, sizes.most)
        log.info("unit prepared", role=str(self.role), unit=label.unit, nbytes=writer.size)
        self._heard.pop(self._number, None)
        made = MadeMessage(number=self._number, nbytes=writer.size)
        await self._tell(self._asker, made)

    async def _begin(self, asked: MakeMessage) -> Label:
        """Agree on the unit's id."""
        heard = self._heard[self._number]
        mine = BeginMessage(
            number=self._number,
            unit=os.urandom(ID_BYTES).hex(),
            origin=self._origin,
            shape=asked.shape,
        )
        if self.role is Role.EVALUATOR_A:
            heard.begun = mine
        else:
            await self._until(lambda: heard.begun is not None)
        begun = heard.begun
        assert begun is not None
        if begun.model_copy(update={"unit": mine.unit}) != mine:
            raise RemoteProtocolError(
                f"evaluator-a and {self.role} were asked for units of different models or shapes"
            )
        return Label(unit=begun.unit, role=self.role, origin=begun.origin, shape=begun.shape)

    async def _fill(
        self,
        writer: UnitWriter,
        asked: MakeMessage,
        sizes: Sizes,
        keys: Mapping[Role, bytes],
    ) -> None:
        """Deal, and write what the others deal, until all three have their whole part."""
        heard, others = self._heard[self._number], set(self._others)
        incoming = Incoming(self.role, writer, asked.shape.steps, sizes.small)
        self._incoming = incoming
        begun = heard.begun if self.role is Role.EVALUATOR_A else None
        await self._tell_parties(begun or ReadyMessage(number=self._number))
        await self._until(lambda: heard.ready >= others)
        async with anyio.create_task_group() as group:
            group.start_soon(self._deal, asked, unit_keys(self.role, keys))
            await self._until(lambda: incoming.complete)
        self._incoming = None
        await self.scheduler.compute.offload(incoming.finish)
        await self._tell_parties(WholeMessage(number=self._number))
        await self._until(lambda: heard.whole >= others)

    async def _deal(self, asked: MakeMessage, keys: KeyRing) -> None:
        """This party's part of every step that needs nobody's input."""
        shape, plan, parameters = asked.shape, self._model.plan, self._model.parameters
        cache = Cache.empty(plan.config.num_layers)
        for step in range(shape.steps):
            batch = next_batch() if step else shape.batch()
            settings = replace(shape.settings().at(step), prepared=True)
            deliver = partial(self._deliver, step)
            link = DealtLink(self.role, settings, keys, step, self.scheduler.compute, deliver)
            if self.role.is_dealer:
                await evaluate(Lane(link), plan, parameters, batch, cache)
            else:
                await embed_only(Lane(link), plan, parameters, batch, deal_rows)
            for other in self._others:
                await self._end_step(step, other, await link.finish(other))
            if self.role.is_dealer:
                progress = ProgressMessage(number=self._number, steps=step + 1)
                await self._tell(self._asker, progress)

    async def _deliver(self, step: int, to: Role, data: bytes) -> None:
        await self._tell(to, WordsMessage(number=self._number, step=step), [data])

    async def _end_step(self, step: int, to: Role, index: bytes) -> None:
        for start in range(0, max(1, len(index)), PART_BYTES):
            part = index[start : start + PART_BYTES]
            last = start + PART_BYTES >= len(index)
            message = IndexMessage(number=self._number, step=step, last=last)
            await self._tell(to, message, [part])
