"""Requests with the same settings, as evaluator A's conductor sees them: who is where between two
joint steps, who steps next, and who will probably step after that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import anyio

from puma_actors.base.concurrency import Signal
from puma_actors.hosts.together.messages import JointMessage
from puma_actors.hosts.together.seats import Coming, Place


@dataclass(frozen=True, slots=True)
class Guess:
    """A step that the dealer was told to deal for.

    Attributes:
        message: what is announced if it is taken.
        coming: its members, in order.
    """

    message: JointMessage
    coming: Sequence[Coming]

    @property
    def keys(self) -> set[tuple[str, int]]:
        """Its members' steps."""
        return {each.key for each in self.coming}

    @property
    def void(self) -> bool:
        """Whether none of its members will come."""
        return all(each.gone for each in self.coming)

    def taken_by(self, ready: Sequence[Place]) -> JointMessage:
        """What to announce when those that are ready step; the others are gone."""
        keys = {place.coming.key for place in ready}
        gone = [place for place, each in enumerate(self.coming) if each.key not in keys]
        return self.message.model_copy(update={"gone": gone})


@dataclass(frozen=True, slots=True)
class Choice:
    """Who steps now.

    Attributes:
        places: their steps.
        guess: the guess that foretold them, if one did.
        wrong: the guess that foretold others, if one did.
    """

    places: Sequence[Place]
    guess: Guess | None
    wrong: Guess | None


class Group:
    """See the module docstring.

    Attributes:
        looking: steps that look up their input, which needs their clients, and since when, in
            seconds; None: late.
        ready: steps that have it, in this order.
        stepping: steps in joint steps that run.
        between: the last steps of requests that have not begun the next one yet.
        guess: what the dealer was told of the next step.
        last: seconds that the last joint step took; None before its end.
        leads: whether a task takes its steps.
    """

    def __init__(self) -> None:
        self.looking: dict[Place, float | None] = {}
        self.ready: dict[Place, None] = {}
        self.stepping: dict[Place, None] = {}
        self.between: dict[Place, None] = {}
        self.guess: Guess | None = None
        self.last: float | None = None
        self.changed = Signal()
        self.leads = False
        self._asked = 0.0

    @property
    def empty(self) -> bool:
        """Whether nothing is known of it but its last step's time."""
        there = self.looking or self.ready or self.stepping or self.between
        return not (there or self.leads or self.guess)

    # -- what happens -----------------------------------------------------------------------------

    def expect(self, place: Place) -> None:
        """A step has begun to look up its input."""
        self.looking[place] = anyio.current_time()
        self.between = {each: None for each in self.between if not each.precedes(place)}

    def has_input(self, place: Place) -> None:
        """A step is ready."""
        if (since := self.looking.pop(place, None)) is not None:
            self._asked = anyio.current_time() - since
        self.ready[place] = None
        self.changed.notify()

    def leave(self, place: Place) -> None:
        """A step has its result, or was given up."""
        self.looking.pop(place, None)
        self.ready.pop(place, None)
        self.stepping.pop(place, None)
        if place.continues:
            self.between[place] = None
        self.changed.notify()

    # -- who steps --------------------------------------------------------------------------------

    def patience(self, part: float) -> float:
        """Seconds for which those that are ready wait for others: part of the last step's; before
        the first one, those that the look-up took of the one that was ready last.
        """
        return self._asked if self.last is None else part * self.last

    def complete(self, most: int) -> bool:
        """Whether nobody else is waited for, however soon they may come."""
        if not self.ready:
            return True
        return len(self.ready) >= most if self.guess is None else self._foretold(self.guess, most)

    def _foretold(self, guess: Guess, most: int) -> bool:
        """Whether all of the guess are ready that will come, and no other could step with them."""
        ready, keys = {place.coming.key for place in self.ready}, guess.keys
        if not all(each.key in ready or each.gone for each in guess.coming):
            return False
        return bool(ready & keys) and (len(keys) >= most or ready <= keys)

    @property
    def awaited(self) -> bool:
        """Whether a request may be ready soon, and no step has begun without it."""
        self.between = {place: None for place in self.between if place.continues}
        return bool(self.between) or any(each is not None for each in self.looking.values())

    def choose(self, most: int) -> Choice:
        """Those that step now; those that do not are not waited for any more."""
        if not self.ready:
            return Choice((), None, None)
        guess, self.guess = self.guess, None
        right = guess is not None and self._foretold(guess, most)
        keys = guess.keys if guess is not None and right else set()
        places = [place for place in self.ready if not right or place.coming.key in keys][:most]
        for place in places:
            del self.ready[place]
            self.stepping[place] = None
        self.looking = dict.fromkeys(self.looking)
        self.between.clear()
        return Choice(places, guess if right else None, None if right else guess)

    # -- who will step ----------------------------------------------------------------------------

    def likely(self, most: int) -> list[Coming]:
        """Who will probably step next, after what runs now: first those that have not stepped."""
        soon = [place for place, since in self.looking.items() if since is not None]
        found = [place.coming for place in (*self.ready, *soon) if not place.coming.gone]
        after = [place.following for place in (*self.between, *self.stepping)]
        return [*found, *(each for each in after if each is not None)][:most]

    def misguided(self, most: int) -> bool:
        """Whether the dealer works for a step that would not be the best choice: nobody of it will
        come, or somebody else will who could step with them.
        """
        guess = self.guess
        if guess is None:
            return False
        keys = guess.keys
        others = any(each.key not in keys for each in self.likely(most))
        return guess.void or (len(keys) < most and others)
