"""A cluster's life with links of every kind: how it begins, fails and ends."""

from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import pytest
from message_samples import CONFIG, PLAN
from reference import leaves_nothing
from waiting import in_time

from protocols.base.lane import Settings
from protocols.base.shares import COMPUTING, Role
from protocols.errors import ConfigError, PeerFailed
from puma_actors.api.life import Cluster
from puma_actors.roles.actor import Actor, connect_all
from puma_actors.roles.client import Client
from puma_actors.roles.messages import CloseMessage, ReadyMessage, parse


class Trouble(Exception):
    """What goes wrong."""


class Serving(Actor):
    """A party that is ready at once, until the client closes the session or it is to fail."""

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.fail = anyio.Event()
        self.closed = False

    async def main(self) -> None:
        await self.scheduler.send_control(Role.CLIENT, ReadyMessage(digest=PLAN.digest()).header())
        async with anyio.create_task_group() as group:
            group.start_soon(self._fail)
            message = parse((await self.scheduler.control())[1])
            self.closed = isinstance(message, CloseMessage)
            group.cancel_scope.cancel()

    async def _fail(self) -> None:
        await self.fail.wait()
        raise Trouble


async def at_once() -> None:
    """Nothing is to be waited for."""


class FakeLinks:
    """Three parties, of which the cluster is told or not; notes what it is asked for."""

    once = "it runs once"

    def __init__(
        self, *, here: bool = True, settle: Callable[[], Awaitable[None]] = at_once
    ) -> None:
        self.parties = [Serving(role) for role in COMPUTING]
        self.actors = self.parties if here else []
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []
        self.problem: Exception | None = None
        self._settle = settle

    async def connect(self, client: Client) -> None:
        self.notes.append("connect")
        if self.problem is not None:
            raise self.problem
        await connect_all([client, *self.parties])

    async def settle(self) -> None:
        self.notes.append("settle")
        await self._settle()

    async def aclose(self) -> None:
        self.notes.append("close")

    def cluster(self) -> Cluster:
        return Cluster(CONFIG, None, Client(plan=PLAN), Settings(), self, None)


async def test_it_is_entered_and_left_once() -> None:
    links = FakeLinks()
    cluster = links.cluster()
    async with leaves_nothing():
        async with cluster:
            assert cluster.running
            assert links.notes == ["connect", "settle"]
        assert not cluster.running
        assert all(party.closed for party in links.parties)
        with pytest.raises(ConfigError, match="it runs once"):
            await cluster.__aenter__()
    assert links.notes == ["connect", "settle", "close"]


async def test_links_that_do_not_come_about_are_closed() -> None:
    links = FakeLinks()
    links.problem = Trouble()
    cluster = links.cluster()
    async with leaves_nothing():
        with pytest.raises(Trouble):
            await cluster.__aenter__()
    assert not cluster.running
    assert links.notes == ["connect", "close"]


async def test_one_that_is_never_entered_can_be_closed() -> None:
    links = FakeLinks()
    await links.cluster().aclose()
    assert links.notes == ["close"]


@pytest.mark.parametrize("number", range(len(COMPUTING)))
async def test_an_actor_that_fails_before_all_is_settled(number: int) -> None:
    async def forever() -> None:
        links.parties[number].fail.set()
        await anyio.sleep_forever()

    links = FakeLinks(settle=forever)
    async with leaves_nothing():
        with in_time(), pytest.raises(Trouble):
            await links.cluster().__aenter__()
    assert links.notes == ["connect", "settle", "close"]


async def broken(cluster: Cluster) -> None:
    """Wait until the client has heard that the session has failed."""
    with pytest.raises(PeerFailed):
        await cluster.client.scheduler.wait_left(Role.DEALER)


@pytest.mark.parametrize(
    ("own", "seen"), [(None, Trouble), (PeerFailed("news"), Trouble), (KeyError(), KeyError)]
)
async def test_what_an_actor_failed_with_explains_the_end(
    own: Exception | None, seen: type[Exception]
) -> None:
    """Unless the user has an error of another kind."""
    links = FakeLinks()
    cluster = links.cluster()
    async with leaves_nothing():
        with pytest.raises(seen):
            async with cluster:
                links.parties[1].fail.set()
                await broken(cluster)
                if own is not None:
                    raise own
    assert links.notes == ["connect", "settle", "close"]


async def test_of_a_party_elsewhere_there_is_the_news() -> None:
    links = FakeLinks(here=False)
    cluster = links.cluster()

    async def run(party: Serving) -> None:
        with pytest.raises((Trouble, PeerFailed)):
            await party.run()

    async def connect(usual: Callable[[Client], Awaitable[None]], client: Client) -> None:
        await usual(client)
        for party in links.parties:
            group.start_soon(run, party)

    links.connect = partial(connect, links.connect)  # type: ignore[method-assign]
    async with leaves_nothing(), anyio.create_task_group() as group:
        with pytest.raises(PeerFailed, match="evaluator-b failed"):
            async with cluster:
                links.parties[2].fail.set()
                await broken(cluster)
