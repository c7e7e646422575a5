"""Structured concurrency: `gather` and `unwrap` over anyio task groups, and `Signal`, a light
condition.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import anyio

from protocols.errors import PeerFailed


def unwrap(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that explains a group: the first that is not just another party's failure."""
    leaves = list(_leaves(group))
    for leaf in leaves:
        if not isinstance(leaf, PeerFailed):
            return leaf
    return leaves[0]


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found


async def gather(tasks: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Run tasks concurrently and return the results in order; the first runs in the caller's task.

    If one fails, the others are cancelled, and once they have ended the error itself (not a group)
    is raised.
    """
    if len(tasks) == 1:
        return [await tasks[0]]
    results: list[Any] = [None] * len(tasks)

    async def keep(index: int, task: Coroutine[Any, Any, Any]) -> None:
        results[index] = await task

    try:
        async with anyio.create_task_group() as group:
            for index, task in enumerate(tasks[1:], start=1):
                group.start_soon(keep, index, task)
            if tasks:
                results[0] = await tasks[0]
    except BaseExceptionGroup as errors:
        root = unwrap(errors)
        raise root from root.__cause__
    finally:
        for task in tasks:
            task.close()  # some were cancelled before they began
    return results


async def in_turn(tasks: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Run tasks one after the other; after an error the rest are closed."""
    try:
        return [await task for task in tasks]
    finally:
        for task in tasks:
            task.close()


class Signal:
    """Wakes all waiting tasks. Lighter than `anyio.Event`, reusable, without memory of the past."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def __len__(self) -> int:
        return len(self._waiters)

    async def wait(self) -> None:
        """Wait until the next `notify`."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def notify(self) -> None:
        """Wake the tasks that are waiting now."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
