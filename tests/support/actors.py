"""Actors that run a function, for tests of how they are wired and end."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import anyio
import numpy as np
from waiting import HANG

from protocols.base.fields import Field
from protocols.base.lane import Lane
from protocols.base.shares import Role
from puma_actors.roles.actor import Actor, ActorOptions
from puma_actors.session.mailbox import Flow

ALL = (Role.DEALER, Role.EVALUATOR_A, Role.EVALUATOR_B, Role.OWNER, Role.CLIENT)


class Scripted(Actor):
    """Runs a function as its `main` and keeps its result."""

    script: Callable[[Actor], Awaitable[Any]]
    result: Any = None

    async def main(self) -> None:
        self.result = await self.script(self)


def scripted(
    scripts: dict[Role, Callable[[Actor], Awaitable[Any]]], **kwargs: Any
) -> list[Scripted]:
    """They may take as long as they need to say their last words."""
    kwargs["flow"] = replace(kwargs.get("flow") or Flow(), farewell=HANG)
    actors = []
    for role, script in scripts.items():
        actor = Scripted(role, ActorOptions(**kwargs))
        actor.script = script  # type: ignore[method-assign]
        actors.append(actor)
    return actors


async def run_all(actors: list[Scripted]) -> dict[Role, BaseException | None]:
    """Run every actor to its end; the errors by role. Nothing may be left behind."""
    before = asyncio.all_tasks()
    errors: dict[Role, BaseException | None] = {}

    async def run(actor: Scripted) -> None:
        try:
            await actor.run()
            errors[actor.role] = None
        except Exception as error:
            errors[actor.role] = error

    async with anyio.create_task_group() as group:
        for actor in actors:
            group.start_soon(run, actor)
    assert asyncio.all_tasks() == before
    return errors


async def exchange(actor: Actor) -> list[int]:
    """Evaluators swap on three levels of lanes while the dealer deals; others wait."""
    if actor.role in (Role.OWNER, Role.CLIENT):
        return []
    async with actor.scheduler.link(1) as link:
        lane = Lane(link)
        fields, values = [Field((6,))], [np.arange(6, dtype=np.uint64)]

        async def strand(inner: Lane) -> list[int]:
            halves = await inner.share(fields, values if inner.is_dealer else ())
            if inner.is_dealer:
                return []
            (opened,) = await inner.open(fields, halves)
            return [int(word) for word in opened]

        async def branch(inner: Lane) -> list[int]:
            return list(itertools.chain(*await inner.parallel([strand] * 2)))

        return list(itertools.chain(*await lane.parallel([branch] * 2)))
