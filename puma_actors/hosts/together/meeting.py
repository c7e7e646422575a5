"""The parties of a session shake hands with each other, over the links between them."""

from collections.abc import Mapping
from contextlib import suppress

import anyio

from protocols.base.shares import Role
from protocols.errors import PumaError
from puma_actors.base.concurrency import gather
from puma_actors.hosts.admission import refuse
from puma_actors.session.handshake import Identity, Peer, handshake, naming
from puma_actors.transports import Channel


async def meet(me: Identity, ways: Mapping[Role, Channel], timeout: float) -> list[Peer]:
    """Shake hands with every party at the other end of `ways`. If that fails with one, the others
    are told the reason before everything is cancelled and their channels are closed.

    Args:
        timeout: seconds.

    Raises:
        As `handshake`.
    """

    async def one(role: Role) -> Peer:
        try:
            with naming(role):
                return await handshake(ways[role], me, {role}, timeout=timeout)
        except PumaError as error:
            for other in ways.keys() - {role}:
                with suppress(PumaError), anyio.move_on_after(timeout):
                    await refuse(ways[other], me.session, error)
            raise

    return await gather([one(role) for role in ways])
