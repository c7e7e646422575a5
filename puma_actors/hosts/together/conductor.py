"""Evaluator A's choice: which requests take their next step together, and when.

    conductor = Conductor(most, parties)
    conductor.expect(place) · .ready(place) · .leave(place)         from the steps themselves
    await conductor.run()                                           announces joint steps, forever
    await conductor.close()                                         nothing more will be announced

Requests with the same settings step together, those first that were ready first. While some are
between two steps, at their clients, those that are ready wait for them: at most a quarter of the
time that the last joint step took, and not for one that a step has begun without. Before the first
step they wait as long as a look-up takes. A request that is alone never waits.

The dealer needs no input for a step, so it is told of the next one as soon as its members can be
guessed: a request that is in a step will probably take its next one. A guess that turns out wrong
is dropped, with its number and all that was dealt under it.
"""

from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from protocols.base.lane import Settings
from puma_actors.base.concurrency import Signal
from puma_actors.hosts.together.group import Group, Guess
from puma_actors.hosts.together.messages import JointMessage
from puma_actors.hosts.together.seats import Coming, Place

PATIENCE = 0.25
"""Part of the last step's time for which those that are ready wait for others."""
_MOST_GROUPS = 64
_MOST_GUESSES = 8
"""Groups whose next step the dealer may work for, as what it has dealt takes memory."""


class Parties(Protocol):
    """The other parties. They are told in the order of the calls."""

    async def announce(self, message: JointMessage) -> bool:
        """Tell all, and take the step; returns at its end whether it was taken, False if it was
        dropped since all its members were gone.
        """

    async def foretell(self, message: JointMessage) -> None:
        """Tell the dealer of a step that will probably be announced."""

    async def withdraw(self, number: int) -> None:
        """Tell all that a step which was foretold will not be announced."""


class Conductor:
    """See the module docstring.

    Args:
        most: members of a step, at most.
        parties: who is told.
    """

    def __init__(self, most: int, parties: Parties) -> None:
        self._most = most
        self._parties = parties
        self._groups: dict[Settings, Group] = {}
        self._next = 0
        self._closed = False
        self._changed = Signal()

    def expect(self, place: Place) -> None:
        """A step has begun to look up its input."""
        self._group(place).expect(place)
        self._changed.notify()

    def ready(self, place: Place) -> None:
        """A step has its input."""
        self._group(place).has_input(place)
        self._changed.notify()

    def leave(self, place: Place) -> None:
        """A step has its result, or was given up."""
        self._group(place).leave(place)
        self._changed.notify()

    def note(self) -> None:
        """A request is over."""
        for group in self._groups.values():
            group.changed.notify()
        self._changed.notify()

    def _group(self, place: Place) -> Group:
        if place.settings not in self._groups:
            if len(self._groups) >= _MOST_GROUPS:
                self._groups = {s: each for s, each in self._groups.items() if not each.empty}
            self._groups[place.settings] = Group()
        return self._groups[place.settings]

    async def run(self) -> None:
        """Announce joint steps, forever. Groups do not wait for each other."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._foresee)
            while True:
                self._start(tasks)
                await self._changed.wait()

    async def close(self) -> None:
        """Drop all guesses, and make no more."""
        self._closed = True
        for group in list(self._groups.values()):
            guess, group.guess = group.guess, None
            await self._drop(guess)

    # -- steps ------------------------------------------------------------------------------------

    def _start(self, tasks: TaskGroup) -> None:
        for settings, group in self._groups.items():
            if group.ready and not group.leads:
                group.leads = True
                tasks.start_soon(self._lead, settings, group)

    async def _lead(self, settings: Settings, group: Group) -> None:
        """Take steps while some are ready."""
        while group.ready:
            with anyio.move_on_after(group.patience(PATIENCE)):
                while group.awaited and not group.complete(self._most):
                    await group.changed.wait()
            choice = group.choose(self._most)
            if not choice.places:
                continue  # they were given up meanwhile
            if choice.guess is None:
                message = self._message(settings, [place.coming for place in choice.places])
            else:
                message = choice.guess.taken_by(choice.places)
            self._changed.notify()
            await self._drop(choice.wrong)
            began = anyio.current_time()
            if await self._parties.announce(message):
                group.last = anyio.current_time() - began
        group.leads = False

    def _message(self, settings: Settings, members: list[Coming]) -> JointMessage:
        number = self._next
        self._next += 1
        return JointMessage(
            number=number,
            members=[each.member for each in members],
            approximation=settings.approximation,
            tree=settings.tree,
            lanes=settings.lanes,
            block=settings.block,
        )

    # -- guesses ----------------------------------------------------------------------------------

    async def _foresee(self) -> None:
        """Keep the dealer at work on what will probably be next, forever."""
        while True:
            if not await self._revise():
                await self._changed.wait()

    async def _revise(self) -> bool:
        """Drop a guess, or make one. False if there was nothing to do; then nothing has happened
        meanwhile.
        """
        for group in self._groups.values():
            if group.misguided(self._most):
                wrong, group.guess = group.guess, None
                await self._drop(wrong)
                return True
        guesses = sum(group.guess is not None for group in self._groups.values())
        if self._closed or guesses >= _MOST_GUESSES:
            return False
        for settings, group in self._groups.items():
            if group.guess is None and (likely := group.likely(self._most)):
                group.guess = Guess(self._message(settings, likely), likely)
                await self._parties.foretell(group.guess.message)
                return True
        return False

    async def _drop(self, guess: Guess | None) -> None:
        if guess is not None:
            await self._parties.withdraw(guess.message.number)
