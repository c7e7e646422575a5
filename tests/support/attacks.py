"""Fixtures and means of the tests with hostile callers."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hosts import Hosts, quiet
from waiting import in_time

from protocols.base.shares import Role
from puma_actors.api.remote import RemoteCluster
from puma_actors.session.session import RoundScheduler
from puma_actors.transports import Channel

IDS = [1, 3, 7]
A, B, D = Role.EVALUATOR_A, Role.EVALUATOR_B, Role.DEALER
Change = Callable[[Role, dict[str, Any], Sequence[Any]], Any]


def liar(monkeypatch: pytest.MonkeyPatch) -> Callable[[Role, Change], None]:
    """Lets a role change its requests on their way out: (header, buffers) or None for the same."""
    send = RoundScheduler.send_control

    def lie(role: Role, change: Change) -> None:
        async def sending(
            self: RoundScheduler, to: Role, header: Any, buffers: Sequence[Any] = ()
        ) -> None:
            if self.role is role:
                header, buffers = change(to, dict(header), buffers) or (header, buffers)
            await send(self, to, header, buffers)

        monkeypatch.setattr(RoundScheduler, "send_control", sending)

    return lie


async def serves(cluster: Hosts, name: str = "tiny") -> None:
    """Nothing of the attack is left, and an honest client gets its answer."""
    await quiet(cluster)
    with in_time():
        async with await RemoteCluster.open(cluster.client, name) as remote:
            assert (await remote.forward(IDS)).shape[0] == len(IDS)
    await quiet(cluster)


async def connect(cluster: Hosts, role: Role = Role.CLIENT, peer: Role = D) -> Channel:
    address = cluster.addresses[peer]
    return await cluster.client.transport(address, role).connect(address)
