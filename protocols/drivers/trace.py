"""Predict the cost of a program from shapes alone: run it over a lane whose link only counts."""

from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any, NoReturn, TypeVar

from protocols.base.cost import Cost, Traffic
from protocols.base.fields import Buffer
from protocols.base.lane import Lane, Link, Path, Settings
from protocols.base.prf import Stream
from protocols.base.shares import Role
from protocols.errors import LocalProtocolError

T = TypeVar("T")


class TraceLink:
    """A `Link` that cannot send: protocols charge their declared cost instead."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.role = Role.TRACE
        self.settings = settings or Settings()
        self.traffic = Traffic()
        self.known: dict[Hashable, tuple[Cost, dict[str, Cost], Any]] = {}
        """Parts of the program seen before: cost, cost by protocol, result."""

    def stream(self, peer: Role, path: Path) -> Stream:
        return self._refuse()

    async def send(self, to: Role, tag: Path, data: Sequence[Buffer], *, online: bool) -> int:
        return self._refuse()

    async def receive(self, sender: Role, tag: Path) -> Buffer:
        return self._refuse()

    async def gather(self, tasks: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        return [await task for task in tasks]

    async def defer(self, task: Coroutine[Any, Any, None]) -> None:
        task.close()
        self._refuse()

    async def run(self, work: int, function: Callable[..., T], *args: Any) -> T:
        return self._refuse()

    def _refuse(self) -> NoReturn:
        raise LocalProtocolError("a protocol went on after charging its cost under TRACE")


async def traced_once(
    lane: Lane, key: Hashable, task: Callable[[Lane], Coroutine[Any, Any, T]]
) -> T:
    """`task(lane)`; over a plain tracing lane, tasks with the same key are traced only once. The
    layers of a model are alike, and tracing a long text's blocks takes a while.

    Args:
        key: everything that the cost and the result depend on, except the settings.
    """
    link = lane.link
    if not isinstance(link, TraceLink) or type(lane) is not Lane:
        return await task(lane)
    traffic = link.traffic
    if key in link.known:
        cost, labels, known = link.known[key]
        traffic.online_bytes += cost.online
        traffic.offline_bytes += cost.offline
        lane.clock += cost.rounds
        for label, part in labels.items():
            traffic.note(label, part)
        again: T = known
        return again
    start = Cost(lane.clock, traffic.online_bytes, traffic.offline_bytes)
    before = dict(traffic.by_label)
    result = await task(lane)
    cost = Cost(lane.clock, traffic.online_bytes, traffic.offline_bytes) - start
    labels = {
        label: part - before.get(label, Cost())
        for label, part in traffic.by_label.items()
        if part != before.get(label)
    }
    link.known[key] = cost, labels, result
    return result


def run_now(task: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits: a program over a tracing lane, or over `Plain`."""
    try:
        task.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        task.close()
    raise LocalProtocolError("the program waited for a message that no party sends")


def trace(
    program: Callable[[Lane], Coroutine[Any, Any, Any]],
    settings: Settings | None = None,
    *,
    lane_of: Callable[[Link], Lane] = Lane,
) -> tuple[Cost, dict[str, Cost]]:
    """Cost of a program, in total and by protocol. The protocols' rounds add up to more than the
    total where some run side by side.

    Args:
        lane_of: creates the program's lane.
    """
    link = TraceLink(settings)
    lane = lane_of(link)
    run_now(program(lane))
    total = Cost(lane.clock, link.traffic.online_bytes, link.traffic.offline_bytes)
    return total, link.traffic.by_label
