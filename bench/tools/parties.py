"""The three computing parties (and a client) as real actors over `memory://`, for timing."""

import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import anyio

from protocols.base.cost import Cost
from protocols.base.lane import Lane, Settings
from protocols.base.shares import COMPUTING, Role
from puma_actors.base.compute import Compute
from puma_actors.base.concurrency import unwrap
from puma_actors.profiling.sweep import message_of
from puma_actors.roles.actor import Actor, ActorOptions, connect_all
from puma_actors.session.mailbox import Flow
from puma_actors.session.recorder import Recorder
from puma_actors.transports.delay.network import Network

Program = Callable[[Lane], Coroutine[Any, Any, Any]]
_WINDOW = 4 << 30
"""Bytes the dealer may be ahead: a whole workload, so that the online part can be timed alone."""


@dataclass(frozen=True, slots=True)
class Run:
    """Attributes:
    seconds: until all parties had finished.
    results: the return value of each party's program.
    cost: counted over all parties together; rounds of the longest chain.
    """

    seconds: float
    results: dict[Role, Any]
    cost: Cost


class Parties:
    """Connected actors that run one program after another:
    `async with Parties(roles) as parties: run = await parties.run(programs, settings)`.

    Args:
        network: the network between them. recorder: records the events on their lanes.

    Attributes:
        number: number of the last run, for the recorder.
    """

    def __init__(
        self,
        roles: Sequence[Role] = COMPUTING,
        *,
        network: Network | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        options = ActorOptions(compute=Compute(), flow=Flow(window=_WINDOW), recorder=recorder)
        self._actors = {role: Actor(role, options) for role in roles}
        self._network = network
        self._recorder = recorder
        self._stack = AsyncExitStack()
        self._number = 0
        self.number = 0

    async def __aenter__(self) -> Self:
        await connect_all(list(self._actors.values()), network=self._network)
        for actor in self._actors.values():
            await self._stack.enter_async_context(actor)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    async def run(
        self, programs: Mapping[Role, Program], settings: Settings, *, dealer_first: bool = False
    ) -> Run:
        """Run one program per role, as one inference.

        Args:
            dealer_first: time only the others, after the dealer has sent everything.

        Raises:
            Any error that a program raises.
        """
        number, self._number = self._number, self._number + 1
        results: dict[Role, Any] = {}
        costs: list[Cost] = []

        async def party(role: Role) -> None:
            async with self._actors[role].scheduler.link(number, settings) as link:
                lane = self._actors[role].lane(link)
                results[role] = await lane.watch(programs[role](lane))
            traffic = link.traffic
            costs.append(Cost(lane.clock, traffic.online_bytes, traffic.offline_bytes))

        if dealer_first:
            await party(Role.DEALER)
            await self._dealt(number)
        started = time.perf_counter()
        try:
            async with anyio.create_task_group() as group:
                for role in programs:
                    if not (dealer_first and role is Role.DEALER):
                        group.start_soon(party, role)
        except BaseExceptionGroup as errors:
            root = unwrap(errors)
            raise root from root.__cause__
        seconds = time.perf_counter() - started
        self.number = number
        total = Cost()
        for cost in costs:
            total = total.beside(cost)
        return Run(seconds, results, total)

    async def _dealt(self, number: int) -> None:
        """Wait until everything dealt has arrived, if there is a recorder to check it."""
        if self._recorder is None:
            return
        meter = self._recorder.meters[Role.DEALER, number]
        while any(
            message_of(Role.DEALER, number, send) not in self._recorder.arrivals
            for send in meter.sends[-2:]
        ):
            await anyio.sleep(0.005)
