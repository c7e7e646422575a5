"""An event loop that keeps no order that asyncio does not promise: `pytest --shuffle-loop SEED`.

What is ready at the same time runs in random order, some tasks are slow for a while, sockets become
readable late, threads linger before they return, and Python switches threads at another pace. All
of it may happen on a loaded machine. A test that fails by it has a race, or has found one.

What asyncio does promise is kept: callbacks of transports run in the order in which they were
asked for, and so does each task by itself. Nor does a step of a task overtake a callback that was
asked for before it: when a connect has ended, asyncio takes its socket off the selector first, and
lets the task close it afterwards. The other way round, the next socket has the same number, asyncio
takes it for one that the selector knows already, and its connect never ends. Tests marked
`in_order` count on asyncio's own order (they count frames, say) and are left alone.
"""

import asyncio
import random
import sys
import time
from asyncio.selector_events import BaseSelectorEventLoop
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from anyio._backends._asyncio import AsyncIOBackend
from waiting import POLL

from puma_actors.base.compute import _Call

PACES = [0.0] * 6 + [0.5] * 2 + [0.9, 0.98]
"""How likely a task is passed over in a turn of the loop."""
SWITCHES = (1e-6, 1e-4, 5e-3, 2e-2)


def _task_of(handle: asyncio.Handle) -> "asyncio.Task[Any] | None":
    """Whose step this is; None for any other callback."""
    if handle._cancelled:
        return None
    callback = handle._callback  # type: ignore[attr-defined]
    owner = getattr(callback, "__self__", None)
    return owner if isinstance(owner, asyncio.Task) else None


class Chaos:
    """Makes every event loop of this process run in another order, by a seed."""

    def __init__(self, seed: int) -> None:
        self._seed, self._still = seed, False
        self._random = random.Random(seed)
        self._paces: WeakKeyDictionary[asyncio.Task[Any], float] = WeakKeyDictionary()

    def begin(self, test: str, *, still: bool) -> None:
        """The same test has the same luck, as far as threads and processes allow. `still`: it is
        left alone.
        """
        self._still = still
        self._random.seed(f"{self._seed} {test}")
        sys.setswitchinterval(self._random.choice(SWITCHES))

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """For as long as the patch is in place."""
        process = BaseSelectorEventLoop._process_events  # type: ignore[attr-defined]
        on_thread = AsyncIOBackend.run_sync_in_worker_thread.__func__  # type: ignore[attr-defined]

        def process_some(loop: Any, events: list[Any]) -> None:
            if self._still:
                process(loop, events)
                return
            late = [event for event in events if self._random.random() < 0.3]
            process(loop, [event for event in events if event not in late])
            self._reorder(loop)
            if late:  # they are still ready in the next turn, which must come
                loop._ready.append(asyncio.Handle(int, (), loop))

        async def linger(cls: type, function: Callable[..., Any], *rest: Any, **named: Any) -> Any:
            pause = POLL * self._random.choice((0, 0, 0, 0.1, 1))

            def lingering(*arguments: Any) -> Any:
                try:
                    return function(*arguments)
                finally:
                    time.sleep(pause)

            return await on_thread(cls, lingering, *rest, **named)

        work = _Call.work

        def lingering(call: _Call) -> None:
            time.sleep(POLL * self._random.choice((0, 0, 0, 0.1, 1)))
            work(call)

        patch.setattr(_Call, "work", lingering)
        patch.setattr(BaseSelectorEventLoop, "_process_events", process_some)
        patch.setattr(AsyncIOBackend, "run_sync_in_worker_thread", classmethod(linger))

    def _reorder(self, loop: Any) -> None:
        """Let steps of tasks change places with each other, and pass some of them over; they come
        after all callbacks that were ready before them.
        """
        ready = [loop._ready.popleft() for _ in range(len(loop._ready))]  # threads may append
        held: list[Any] = []  # steps that may come now, or after a further callback
        for handle in ready:
            if _task_of(handle):
                held.append(handle)
                continue
            held = self._release(loop, held, 0.5)
            loop._ready.append(handle)
        self._release(loop, held, 1.0)

    def _release(self, loop: Any, held: list[Any], share: float) -> list[Any]:
        """Queue about a share of the steps, in random order; those that are kept."""
        self._random.shuffle(held)
        kept = []
        for handle in held:
            if self._random.random() >= share:
                kept.append(handle)
                continue
            late = self._random.random() < self._pace(handle)
            again = asyncio.Handle(loop._ready.append, (handle,), loop)
            loop._ready.append(again if late else handle)
        return kept

    def _pace(self, handle: asyncio.Handle) -> float:
        task = _task_of(handle)
        assert task
        if task not in self._paces or self._random.random() < 0.02:
            self._paces[task] = self._random.choice(PACES)
        return self._paces[task]
