"""A client that closes its stream ends its work at every party: also in the middle of a step, which
would not end by itself.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest
from conversation import generated
from hosts import Hosts, hosts, quiet
from waiting import until

from protocols.base.lane import Settings
from protocols.base.shares import COMPUTING, EVALUATORS, Role
from puma_actors.api.remote import RemoteCluster
from puma_actors.hosts.together import joint
from puma_actors.roles import party
from puma_actors.session.port import Port

PROMPT, TOKENS = "I see the red cat", 4


class Stuck:
    """Calls at one party that never return.

    Attributes:
        reached: parties that have made such a call; the stuck one is in the middle of it.
    """

    def __init__(self, role: Role, calls: int) -> None:
        self.reached: set[Role] = set()
        self._role = role
        self._calls = calls

    def at(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """The call, given a lane first."""

        async def stuck(lane: Any, *rest: Any) -> Any:
            self.reached.add(lane.role)
            if lane.role is self._role and self._calls:
                self._calls -= 1
                await anyio.sleep_forever()
            return await call(lane, *rest)

        return stuck


class Ends:
    """What has ended at each party: requests and joint steps, in the log."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.counted: Counter[tuple[str, str]] = Counter()
        for module in (party, joint):
            patch.setattr(module, "log", self)

    def info(self, event: str, *, role: str, **_: object) -> None:
        self.counted[event, role] += 1

    def of(self, event: str, *roles: Role) -> list[int]:
        """How often it was said by each party, or by each of these."""
        return [self.counted[event, str(role)] for role in roles or COMPUTING]


async def session(cluster: Hosts) -> RemoteCluster:
    return await RemoteCluster.open(cluster.client, "tiny", settings=Settings())


async def closed(remote: RemoteCluster, stuck: Stuck) -> None:
    """Read a stream until all parties have come to the call, then close it."""
    scope = anyio.CancelScope()

    async def close() -> None:
        await until(lambda: stuck.reached == {*COMPUTING})
        scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(close)
        with scope:
            async with aclosing(remote.generate(PROMPT, max_new_tokens=TOKENS)) as stream:
                async for _ in stream:
                    pass


def running(cluster: Hosts) -> list[int]:
    """Joint steps that run at each party."""
    servers = [cluster.servers[role] for role in COMPUTING]
    return [sum(each._steps for each in server.joints._live.values()) for server in servers]


@pytest.mark.parametrize("slow", COMPUTING)
async def test_a_joint_step_that_nobody_wants_any_more_is_dropped_by_all(
    folder: Path, certificates: Path, model: Path, monkeypatch: pytest.MonkeyPatch, slow: Role
) -> None:
    stuck, ends = Stuck(slow, 1), Ends(monkeypatch)
    monkeypatch.setattr(joint, "evaluate_together", stuck.at(joint.evaluate_together))
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        async with await session(cluster) as remote:
            await closed(remote, stuck)
            assert len(remote.usage.token_ids) == 1  # that of the prompt
            assert ends.of("request ended") == [1, 1, 1]
            await until(lambda: running(cluster) == [0, 0, 0])
            # The dealer may have dealt all of it before.
            assert ends.of("joint step dropped", *EVALUATORS) == [1, 1]
            assert ends.of("joint step done", *EVALUATORS) == [0, 0]
            again = await generated(remote, PROMPT, max_new_tokens=TOKENS)
            await until(lambda: running(cluster) == [0, 0, 0])
            assert ends.of("joint step done", *EVALUATORS) == [TOKENS - 1] * 2
        async with await session(cluster) as other:
            assert await generated(other, PROMPT, max_new_tokens=TOKENS) == again
        await quiet(cluster)


@pytest.mark.parametrize("slow", COMPUTING)
async def test_a_prompt_that_is_being_read_is_given_up_by_all(
    folder: Path, certificates: Path, model: Path, monkeypatch: pytest.MonkeyPatch, slow: Role
) -> None:
    stuck, ends = Stuck(slow, 1), Ends(monkeypatch)
    monkeypatch.setattr(party, "step_alone", stuck.at(party.step_alone))
    withdrawn: set[tuple[Role, range]] = set()
    withdraw = Port.withdraw

    def noted(this: Port, numbers: range) -> None:
        withdrawn.add((this.role, numbers))
        withdraw(this, numbers)

    monkeypatch.setattr(Port, "withdraw", noted)
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        async with await session(cluster) as remote:
            await closed(remote, stuck)
            assert not remote.usage.token_ids
            # What waits for a slow line is not sent, to nobody.
            assert withdrawn == {(role, range(TOKENS)) for role in (*COMPUTING, Role.CLIENT)}
            assert ends.of("request ended") == [1, 1, 1]
            assert len(await generated(remote, PROMPT, max_new_tokens=TOKENS)) == TOKENS
        await quiet(cluster)
