"""Turns, several requests at once, and parties that are lost and come back."""

from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import httpx2 as httpx
import pytest
from conversation import PROMPT
from gateway import KEY, NAME, gateway
from hosts import hosts
from openai import APIStatusError
from waiting import in_time, settled, until

from protocols.base.shares import COMPUTING, Role
from protocols.errors import Busy, ConfigError, PeerFailed, PumaError
from puma_actors.api.remote import RemoteCluster
from puma_actors.api.usage import Usage
from puma_actors.serve import served as module
from puma_actors.serve.pace import Pace
from puma_actors.serve.served import Served
from puma_actors.serve.turns.places import MAX_WAITING


class Fake:
    """A session that fails when it is told to."""

    def __init__(self):
        self.failed = anyio.Event()
        self.closed = False
        self.running = True

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        self.closed, self.running = True, False
        if self.failed.is_set():
            raise PeerFailed("dealer has gone")

    async def wait_failed(self):
        await self.failed.wait()


class Parties:
    """They open as many sessions as they have places."""

    def __init__(self, places=16):
        self.places = places
        self.made = []
        self.refused = 0

    @property
    def open(self):
        return [each for each in self.made if not each.closed]

    async def opener(self):
        await anyio.lowlevel.checkpoint()
        if len(self.open) >= self.places:
            self.refused += 1
            raise Busy("dealer is busy")
        self.made.append(Fake())
        return self.made[-1]


@asynccontextmanager
async def served_by(parties, at_once=1):
    served = Served("m", parties.opener, at_once)
    async with anyio.create_task_group() as group:
        await group.start(served.run)
        yield served
        group.cancel_scope.cancel()


class Work:
    """Requests that take until they are told to end."""

    def __init__(self, served, group):
        self._served, self._group = served, group
        self.places, self.sessions, self.ends, self.errors = [], {}, {}, {}

    def ask(self, *, begun=False):
        number, place = len(self.places), self._served.queue()
        self.places.append(place)
        self.ends[number] = anyio.Event()
        self._group.start_soon(self._run, number, place, begun)
        return number

    def end(self, number, error=None):
        if error is not None:
            self.errors[number] = error
        self.ends[number].set()

    async def _run(self, number, place, begun):
        async def work(session):
            self.sessions[number] = session
            place.begun = begun
            try:
                await self.ends[number].wait()
            finally:
                del self.sessions[number]
            if number in self.errors:
                self.ends[number] = anyio.Event()
                raise self.errors.pop(number)
            return number

        try:
            assert await self._served.compute(place, work) == number
        except PumaError as error:
            self.errors[number] = error


async def test_requests_take_turns_in_order():
    async with served_by(Parties()) as served, anyio.create_task_group() as group:
        work = Work(served, group)
        for _ in range(3):
            work.ask()
        for number in range(3):
            await settled()
            assert [*work.sessions] == [number]
            waits = [served.ahead_of(place) for place in work.places[number:]]
            assert waits == [*range(3 - number)]
            work.end(number)
    assert (served.running, served.waiting) == (0, 0)


async def test_a_session_that_ends_before_its_request_has_begun_costs_nothing(monkeypatch):
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.0)
    used = []

    async def work(session):
        used.append(session)
        if len(used) == 1:  # the request was given a session that was lost at the same moment
            session.failed.set()
            await until(lambda: session.closed)
            raise ConfigError("the cluster is not running")
        return "an answer"

    async with served_by(Parties()) as served:
        with in_time():
            assert await served.compute(served.queue(), work) == "an answer"
            used.clear()
            begun = served.queue()
            begun.begun = True  # a part of its answer has been given away
            with pytest.raises(ConfigError):
                await served.compute(begun, work)


async def test_several_requests_run_at_once_each_in_its_own_session():
    parties = Parties()
    async with served_by(parties, at_once=3) as served, anyio.create_task_group() as group:
        work = Work(served, group)
        assert len(parties.made) == 1  # no more than are needed
        for _ in range(5):
            work.ask()
        await settled()
        assert sorted(work.sessions) == [0, 1, 2]
        assert len({id(session) for session in work.sessions.values()}) == 3
        assert (served.running, served.waiting) == (3, 2)
        assert served.ahead_of(work.places[4]) == 4
        work.end(1)
        await settled()
        assert sorted(work.sessions) == [0, 2, 3]
        assert served.ahead_of(work.places[4]) == 3
        for number in (0, 2, 3, 4):
            work.end(number)
    assert len(parties.made) == 3


async def test_parties_without_a_place_for_another_session_let_requests_wait(monkeypatch):
    monkeypatch.setattr(module, "_FULL_PAUSE", 0.0)
    parties = Parties(places=1)
    async with served_by(parties, at_once=2) as served, anyio.create_task_group() as group:
        work = Work(served, group)
        first, second = work.ask(), work.ask()
        with in_time():
            await until(lambda: parties.refused > 1)
        assert [*work.sessions] == [first]
        parties.places = 2
        with in_time():
            await until(lambda: second in work.sessions)
        work.end(first)
        work.end(second)
    assert not work.errors


async def test_a_request_that_the_parties_have_no_room_for_keeps_its_place():
    async with served_by(Parties(), at_once=2) as served, anyio.create_task_group() as group:
        work = Work(served, group)
        for _ in range(3):
            work.ask()
        await settled()
        work.end(1, Busy("no memory"))
        await settled()
        assert [*work.sessions] == [0]  # the third one does not overtake it
        assert [served.ahead_of(place) for place in work.places] == [0, 1, 2]
        assert served.waiting == 2
        work.end(0)  # makes room
        await settled()
        assert sorted(work.sessions) == [1, 2]
        work.end(1)
        work.end(2)
    assert not work.errors


async def test_a_request_that_never_has_room_is_refused(monkeypatch):
    monkeypatch.setattr(module, "_FULL_PAUSE", 0.0)
    tried = []

    async def work(session):
        tried.append(session)
        raise Busy("no memory")

    async with served_by(Parties()) as served:
        with pytest.raises(Busy, match="no memory"), in_time():
            await served.compute(served.queue(), work)
    assert len(tried) == module._MOST_REFUSALS + 1


async def test_an_answer_that_has_begun_does_not_begin_again():
    async with served_by(Parties()) as served, anyio.create_task_group() as group:
        work = Work(served, group)
        number = work.ask(begun=True)
        await settled()
        work.end(number, Busy("no memory"))
        await settled()
        assert "no memory" in str(work.errors[number])


async def test_a_session_that_fails_takes_only_its_own_request(monkeypatch):
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.0)
    parties = Parties()
    async with served_by(parties, at_once=2) as served, anyio.create_task_group() as group:
        work = Work(served, group)
        for _ in range(3):
            work.ask()
        await settled()
        lost = work.sessions[0]
        work.end(0, PeerFailed("dealer has gone"))  # the request sees it first
        await settled()
        assert lost.closed
        assert lost is not work.sessions.get(2)  # nobody else gets it
        lost.failed.set()
        with in_time():
            await until(lambda: 2 in work.sessions)
        work.end(1)
        work.end(2)
    assert {*work.errors} == {0}


async def test_a_further_session_is_given_back_when_nobody_uses_it(monkeypatch):
    monkeypatch.setattr(module, "_KEPT", 0.0)
    parties = Parties()
    async with served_by(parties, at_once=2) as served, anyio.create_task_group() as group:
        work = Work(served, group)
        work.ask()
        work.ask()
        await settled()
        assert served.sessions == 2
        work.end(0)
        work.end(1)
        with in_time():
            await until(lambda: parties.open == [parties.made[0]])
        assert served.sessions == 1
        assert served.ready


async def test_a_place_that_is_given_up_lets_the_next_one_in():
    async with served_by(Parties()) as served:

        async def work(session):
            return session

        first, second = served.queue(), served.queue()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await served.compute(first, work)
        assert await served.compute(second, work) is served.cluster()


async def test_a_full_queue_and_a_closed_one():
    async with served_by(Parties()) as served:
        for _ in range(MAX_WAITING + 1):
            served.queue()
        with pytest.raises(Busy, match="32 requests are waiting"):
            served.queue()
        served.close()
        assert not served.ready
        with pytest.raises(Busy, match="is ending"):
            served.cluster()


async def test_a_lost_cluster_is_opened_again(monkeypatch):
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.0)
    made = []

    async def opener():
        if len(made) == 1:  # the parties are not back yet
            made.append(None)
            raise ConfigError("not there")
        made.append(Fake())
        return made[-1]

    served = Served("m", opener)
    async with anyio.create_task_group() as group:
        await group.start(served.run)
        assert served.cluster() is made[0]
        made[0].failed.set()
        with in_time():
            await until(lambda: len(made) == 3 and served.ready)
        assert served.cluster() is made[2]
        group.cancel_scope.cancel()
    with pytest.raises(Busy, match="not available yet"):
        served.cluster()


async def test_a_model_that_cannot_be_opened_ends_the_gateway():
    async def opener():
        raise ConfigError("no such model")

    with pytest.raises(ExceptionGroup) as errors:
        async with anyio.create_task_group() as group:
            await group.start(Served("m", opener).run)
    assert "no such model" in str(errors.value.exceptions[0])


def test_the_pace_of_answers():
    pace = Pace()
    assert pace.seconds(10, 5) is None
    pace.note(Usage(prompt_ids=[1] * 10, token_ids=[1] * 5, seconds={"prefill": 4, "decode": 2}))
    assert pace.seconds(10, 5) == 6.0
    assert pace.seconds(5, 1) == 4.0
    assert pace.seconds(20, 1) == 8.0


async def test_over_hosts_with_certificates_and_a_party_that_is_restarted(
    folder, certificates, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.0)
    monkeypatch.setattr(module, "_LONGEST_PAUSE", 0.01)
    async with hosts(tmp_path, certificates) as cluster:
        await cluster.upload(folder, "chat")

        async def opener():
            return await RemoteCluster.open(cluster.client, "chat")

        async with gateway(remote={NAME: opener}) as served:
            client, model = served.client(), served.models[NAME]

            async def ask():
                got = await client.chat.completions.create(
                    model=NAME, messages=[{"role": "user", "content": PROMPT}], max_tokens=3
                )
                return got.choices[0].message.content

            before = await ask()
            facts = await client.get("/puma/session", cast_to=object)
            parties = facts["models"][0]["parties"]
            assert {len(party["certificate"]) for party in parties} == {64}
            assert len({party["certificate"] for party in parties}) == 3
            days = facts["models"][0]["certificate_days_left"]
            holders = {str(role) for role in (*COMPUTING, Role.CLIENT)} | {"authority"}
            assert days.keys() == holders
            assert all(left > 0 for left in days.values())
            async with httpx.AsyncClient(headers={"authorization": f"Bearer {KEY}"}) as raw:
                numbers = (await raw.get(f"{served.base}/metrics")).text
            for holder in holders:
                assert f'puma_certificate_expiry_days{{holder="{holder}"' in numbers

            lost = model.cluster()
            await cluster.kill(Role.DEALER)
            with in_time():
                await until(lambda: not model.ready)
            with pytest.raises(APIStatusError) as refused:
                await ask()
            assert refused.value.status_code in (502, 503)
            await cluster.start(Role.DEALER)
            with in_time():
                await until(lambda: model.ready and model.cluster() is not lost)
            assert await ask() == before
            await settled()
