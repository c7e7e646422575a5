"""Whose turn it is, whatever happens in which order."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from puma_actors.serve.turns.places import Places


class Session:
    """Stands for a cluster."""


class Queue(RuleBasedStateMachine):
    """Sessions come and go; requests come, are refused for lack of room, are tried again, end."""

    def __init__(self):
        super().__init__()
        self.places = Places()
        self.came, self.lost = [], []

    @precondition(lambda self: len(self.places.sessions) < 3)
    @rule()
    def open(self):
        self.places.add(Session())

    @precondition(lambda self: self.places.sessions)
    @rule(data=st.data())
    def lose(self, data):
        self.lost.append(data.draw(st.sampled_from(self.places.sessions)))
        self.places.drop(self.lost[-1])

    @precondition(lambda self: len(self.came) < 6)
    @rule()
    def ask(self):
        self.came.append(self.places.queue())

    @precondition(lambda self: self.came)
    @rule(data=st.data())
    def leave(self, data):
        place = data.draw(st.sampled_from(self.came))
        self.came.remove(place)
        self.places.leave(place)
        self.places.leave(place)  # twice is once

    @precondition(lambda self: self.places.running)
    @rule(data=st.data())
    def refuse(self, data):
        self.places.back(data.draw(st.sampled_from([p for p in self.came if p.cluster])))

    @precondition(lambda self: self.places.running)
    @rule(data=st.data())
    def end_before_use(self, data):
        place = data.draw(st.sampled_from([p for p in self.came if p.cluster]))
        self.lost.append(place.cluster)
        self.places.again(place)

    @precondition(lambda self: self.places.held)
    @rule(data=st.data())
    def retry(self, data):
        self.places.retry(data.draw(st.sampled_from([p for p in self.came if p.held])))

    @invariant()
    def one_request_a_session(self):
        used = [place.cluster for place in self.came if place.cluster is not None]
        assert len({id(each) for each in used}) == len(used) == self.places.running
        assert {*used} <= {*self.places.sessions, *self.lost}

    @invariant()
    def nobody_waits_for_nothing_or_overtakes(self):
        waiting = [place for place in self.came if place.cluster is None]
        assert len(waiting) == self.places.waiting
        free = [each for each in self.places.sessions if self.places.free(each)]
        if free and waiting:
            first_held = next((p for p in waiting if p.held), None)
            assert waiting[0] is first_held

    @invariant()
    def positions_are_those_of_arrival(self):
        assert [self.places.ahead_of(p) for p in self.came] == [*range(len(self.came))]


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=40, stateful_step_count=30)
