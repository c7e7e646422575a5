"""Evaluator A's choice: which requests take their next step together, and when.

    conductor = Conductor(most, announce)
    conductor.expect(place) · .ready(place) · .leave(place)         from the steps themselves
    await conductor.run()                                           announces joint steps, forever

Requests with the same settings step together, those first that were ready first. While some are
between two steps, at their clients, those that are ready wait for them: at most a quarter of the
time that the last joint step took, and not for one that a step has begun without. A request that is
alone never waits.
"""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import anyio
from anyio.abc import TaskGroup

from protocols.base.lane import Settings
from puma_actors.base.concurrency import Signal
from puma_actors.hosts.together.messages import JointMessage
from puma_actors.hosts.together.seats import Place

PATIENCE = 0.25
"""Part of the last step's time for which those that are ready wait for others."""
_MOST_GROUPS = 64

Announce: TypeAlias = Callable[[JointMessage], Awaitable[None]]
"""Tells the other parties, and takes the step; returns at its end."""


class _Group:
    """Requests with the same settings.

    Attributes:
        looking: steps that look up their input, which needs their clients; True: late.
        ready: steps that have it, in this order.
        between: the last steps of requests that have not begun the next one yet.
        last: seconds that the last joint step took.
        leads: whether a task takes its steps.
    """

    def __init__(self) -> None:
        self.looking: dict[Place, bool] = {}
        self.ready: dict[Place, None] = {}
        self.between: dict[Place, None] = {}
        self.last = 0.0
        self.changed = Signal()
        self.leads = False

    @property
    def empty(self) -> bool:
        """Whether nothing is known of it but its last step's time."""
        return not (self.looking or self.ready or self.between or self.leads)

    @property
    def awaited(self) -> bool:
        """Whether a request may be ready soon, and no step has begun without it."""
        self.between = {place: None for place in self.between if place.continues}
        return bool(self.between) or not all(self.looking.values())

    def choose(self, most: int) -> list[Place]:
        """Those that step now; those that do not are not waited for any more."""
        chosen = list(self.ready)[:most]
        for place in chosen:
            del self.ready[place]
        self.looking = dict.fromkeys(self.looking, True)
        self.between.clear()
        return chosen


class Conductor:
    """See the module docstring.

    Args:
        most: members of a step, at most.
        announce: tells the other parties, and takes the step; returns at its end.
    """

    def __init__(self, most: int, announce: Announce) -> None:
        self._most = most
        self._announce = announce
        self._groups: dict[Settings, _Group] = {}
        self._next = 0
        self._changed = Signal()

    def expect(self, place: Place) -> None:
        """A step has begun to look up its input."""
        group = self._group(place)
        group.looking[place] = False
        group.between = {each: None for each in group.between if not each.precedes(place)}

    def ready(self, place: Place) -> None:
        """A step has its input."""
        group = self._group(place)
        group.looking.pop(place, None)
        group.ready[place] = None
        group.changed.notify()
        self._changed.notify()

    def leave(self, place: Place) -> None:
        """A step has its result, or was given up."""
        group = self._group(place)
        group.looking.pop(place, None)
        group.ready.pop(place, None)
        if place.continues:
            group.between[place] = None
        group.changed.notify()

    def note(self) -> None:
        """A request is over."""
        for group in self._groups.values():
            group.changed.notify()

    def _group(self, place: Place) -> _Group:
        if place.settings not in self._groups:
            if len(self._groups) >= _MOST_GROUPS:
                self._groups = {s: each for s, each in self._groups.items() if not each.empty}
            self._groups[place.settings] = _Group()
        return self._groups[place.settings]

    async def run(self) -> None:
        """Announce joint steps, forever. Groups do not wait for each other."""
        async with anyio.create_task_group() as tasks:
            while True:
                self._start(tasks)
                await self._changed.wait()

    def _start(self, tasks: TaskGroup) -> None:
        for settings, group in self._groups.items():
            if group.ready and not group.leads:
                group.leads = True
                tasks.start_soon(self._lead, settings, group)

    async def _lead(self, settings: Settings, group: _Group) -> None:
        """Take steps while some are ready."""
        while group.ready:
            with anyio.move_on_after(PATIENCE * group.last):
                while group.awaited and 0 < len(group.ready) < self._most:
                    await group.changed.wait()
            if not (chosen := group.choose(self._most)):
                continue  # they were given up meanwhile
            began = anyio.current_time()
            await self._announce(self._message(settings, chosen))
            group.last = anyio.current_time() - began
        group.leads = False

    def _message(self, settings: Settings, chosen: list[Place]) -> JointMessage:
        number = self._next
        self._next += 1
        return JointMessage(
            number=number,
            members=[place.member for place in chosen],
            approximation=settings.approximation,
            tree=settings.tree,
            lanes=settings.lanes,
            block=settings.block,
        )
