"""How far a party is with a prompt, told to the client while it waits: by timings it could tell as
much itself.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from protocols.base.lane import Lane
from protocols.base.shares import Role
from puma_actors.base.concurrency import unwrap
from puma_actors.roles.messages import ProgressMessage
from puma_actors.session.session import RoundScheduler

EVERY = 0.5
"""Seconds between two messages."""


@asynccontextmanager
async def telling(
    scheduler: RoundScheduler, number: int, lane: Lane, *, first: bool
) -> AsyncIterator[None]:
    """Around a step: evaluator A tells the client how many rounds of it are done, unless both are
    in one process, where anybody can look.

    Args:
        first: it is the first step of its request; the others are short.
    """
    tells = first and scheduler.role is Role.EVALUATOR_A
    if not tells or scheduler.port(Role.CLIENT).channel.instant:
        yield
        return
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_tell, scheduler, number, lane)
            yield
            group.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        root = unwrap(errors)
        raise root from root.__cause__


async def _tell(scheduler: RoundScheduler, number: int, lane: Lane) -> None:
    told = 0
    while True:
        await anyio.sleep(EVERY)
        if lane.clock > told:
            told = lane.clock
            message = ProgressMessage(number=number, rounds=told)
            await scheduler.send_control(Role.CLIENT, message.header())
