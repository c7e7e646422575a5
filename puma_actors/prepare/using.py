"""Which unit a request uses: the three parties agree, and each takes its part off its disk first.

    units = Units(role, shelf)
    with await units.take(scheduler, number, ...) as use:     None if the request does without
        link = await use.link(scheduler, number, settings, bound, step)
    units.heard(scheduler, role, message)                     another party's word on a request

Once the others have said that they take part (a party that refuses the request does not), evaluator
A names a unit that it has taken. The others take theirs, and each tells both others whether it has
it. Only when all three have theirs is the first word sent that depends on the unit.
Otherwise nobody uses it, and A may name another one.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

from models.programs.plan import Plan
from protocols.base.lane import Path, Settings
from protocols.base.prf import KeyRing
from protocols.base.shares import COMPUTING, Role
from protocols.errors import Busy, RemoteProtocolError, StoreError
from puma_actors.base.concurrency import Signal
from puma_actors.base.logs import log
from puma_actors.prepare.file import UnitFile
from puma_actors.prepare.links import PreparedLink, unit_keys
from puma_actors.prepare.shelf import Shelf
from puma_actors.prepare.unit import Origin, Prepared, Shape, UnitMessage, origin_of

if TYPE_CHECKING:
    from puma_actors.session.session import RoundScheduler

MOST_NAMED = 4
"""Units that may be named for a request."""
_MOST_TALKS = 128
"""Requests that other parties may speak of before this one has heard of them."""


@dataclass(frozen=True, slots=True)
class Use:
    """A unit that all parties have taken for one request: what is left of it is freed at the end of
    its `with` block.
    """

    file: UnitFile
    keys: KeyRing = field(repr=False)

    async def link(
        self,
        scheduler: "RoundScheduler",
        number: int,
        settings: Settings,
        bound: Path,
        step: int,
    ) -> PreparedLink:
        """The link of inference `number`, which is step `step` of the request.

        Raises:
            StoreError: the unit is damaged.
        """
        index = await scheduler.compute.offload(self.file.index, step)
        scheduler.numbers.begin(number)
        settings = replace(settings, prepared=True)
        return PreparedLink(scheduler, number, settings, bound, self.file, self.keys, step, index)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


class _Talk:
    """What the other parties have said about one request."""

    def __init__(self) -> None:
        self._said: dict[Role, deque[UnitMessage]] = {role: deque() for role in COMPUTING}
        self._changed = Signal()

    def add(self, role: Role, message: UnitMessage) -> None:
        if len(self._said[role]) > MOST_NAMED:
            raise RemoteProtocolError(f"{role} speaks of too many prepared units")
        self._said[role].append(message)
        self._changed.notify()

    async def next(self, role: Role) -> UnitMessage:
        while not self._said[role]:
            await self._changed.wait()
        return self._said[role].popleft()


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A request that waits for a unit."""

    scheduler: "RoundScheduler"
    number: int
    talk: _Talk
    origin: Origin
    shape: Shape


class Units:
    """See the module docstring. One for each session.

    Args:
        shelf: the party's units; None if it keeps none, which must hold for all parties.
    """

    def __init__(self, role: Role, shelf: Shelf | None) -> None:
        self._role = role
        self._shelf = shelf
        self._others = tuple(other for other in COMPUTING if other is not role)
        self._talks: dict[int, _Talk] = {}

    def heard(self, scheduler: "RoundScheduler", role: Role, message: UnitMessage) -> None:
        """Take what another party says about a request, which may not have come here yet.

        Raises:
            RemoteProtocolError: it says too much.
        """
        number = message.number
        if scheduler.numbers.over(number):
            return
        if number not in self._talks and len(self._talks) >= _MOST_TALKS:
            raise RemoteProtocolError(f"{role} speaks of too many requests")
        self._talk(number).add(role, message)

    def _talk(self, number: int) -> _Talk:
        return self._talks.setdefault(number, _Talk())

    def forget(self, number: int) -> None:
        """The request has ended."""
        self._talks.pop(number, None)

    async def take(
        self,
        scheduler: "RoundScheduler",
        number: int,
        prepared: Prepared,
        upload: str,
        plan: Plan,
        shape: Shape | None,
    ) -> Use | None:
        """The unit for a request; None if it does without.

        Args:
            prepared: what the client wants. shape: of the request, if there can be units for it.
            upload, plan: what the session serves.

        Raises:
            Busy: it needs one, and the parties have none in common that fits.
            RemoteProtocolError: another party breaks the rules.
        """
        use = None
        if self._shelf is not None and shape is not None and prepared != "never":
            talk, origin = self._talk(number), origin_of(upload, plan)
            use = await self._agree(_Wanted(scheduler, number, talk, origin, shape))
        if use is None and prepared == "require":
            raise Busy(
                "no prepared unit is left for this request: run `puma prepare` with exactly its "
                "number of tokens, or do not require one"
            )
        return use

    async def _agree(self, wanted: _Wanted) -> Use | None:
        await self._meet(wanted)
        for _ in range(MOST_NAMED):
            name, file = await self._named(wanted)
            if not name:
                return None
            try:
                if await self._all_have(wanted, name, file) and file is not None:
                    log.info("prepared unit in use", role=str(self._role), unit=name)
                    kept, file = file, None
                    return Use(kept, unit_keys(self._role, kept.keys))
            finally:
                if file is not None:
                    file.close()
            log.warning("prepared unit given up", role=str(self._role), unit=name)
        return None

    async def _meet(self, wanted: _Wanted) -> None:
        """Let evaluator A wait until all take part: else it would take a unit in vain."""
        if self._role is not Role.EVALUATOR_A:
            await self._say(wanted, "", held=False, to=(Role.EVALUATOR_A,))
            return
        for other in self._others:
            await wanted.talk.next(other)

    async def _named(self, wanted: _Wanted) -> tuple[str, UnitFile | None]:
        """A unit's name ("" if there is no more), and this party's part, which it has taken."""
        assert self._shelf is not None
        if self._role is not Role.EVALUATOR_A:
            name = (await wanted.talk.next(Role.EVALUATOR_A)).unit
            return name, await self._claim(name, wanted) if name else None
        while (found := self._shelf.find(wanted.origin, wanted.shape)) is not None:
            if (file := await self._claim(found, wanted)) is not None:
                return found, file
        await self._say(wanted, "", held=False)
        return "", None

    async def _claim(self, name: str, wanted: _Wanted) -> UnitFile | None:
        assert self._shelf is not None
        offload = wanted.scheduler.compute.offload
        try:
            return await offload(self._shelf.claim, name, wanted.origin, wanted.shape)
        except (Busy, StoreError) as error:
            log.warning("no prepared unit", role=str(self._role), reason=str(error))
            return None

    async def _all_have(self, wanted: _Wanted, name: str, file: UnitFile | None) -> bool:
        """Tell the others whether this party has its part; return whether all three have."""
        await self._say(wanted, name, held=file is not None)
        having = [file is not None]
        for other in self._others:
            if other is Role.EVALUATOR_A:
                continue  # it names what it has
            answer = await wanted.talk.next(other)
            if answer.unit != name:
                raise RemoteProtocolError(f"{other} speaks of unit {answer.unit}, not of {name}")
            having.append(answer.held)
        return all(having)

    async def _say(
        self, wanted: _Wanted, unit: str, *, held: bool, to: Sequence[Role] = ()
    ) -> None:
        """Tell these parties, or both others."""
        header = UnitMessage(number=wanted.number, unit=unit, held=held).header()
        for other in to or self._others:
            await wanted.scheduler.send_control(other, header)
