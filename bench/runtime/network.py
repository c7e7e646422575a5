"""Check the modelled network: requested and delivered round-trip times and throughput."""

import time
from collections.abc import Callable, Coroutine, Iterator
from itertools import pairwise
from typing import Any

import anyio

from bench.tools.harness import Benchmark, Options, Result, Spread
from puma_actors.base.concurrency import Signal
from puma_actors.transports import Channel
from puma_actors.transports.delay.channel import DelayedChannel, Line
from puma_actors.transports.delay.network import PRESETS, Route
from puma_actors.transports.frames import Frame, Kind, wire_bytes
from puma_actors.transports.memory import memory_pair

_NAME = "network.delivered"
_PART = bytes(256 << 10)
_SECONDS = 1.0  # spent on the round trips of one preset, and on keeping its link busy


Sink = Callable[[Frame], None]


async def _over_memory(
    route: Route,
    work: Callable[[Channel, Channel], Coroutine[Any, Any, None]],
    at_left: Sink,
    at_right: Sink,
) -> float:
    """Run `work` with both ends of a slow channel, which pump meanwhile; returns the fraction of
    one core that was used.
    """
    inner = memory_pair()
    async with (
        DelayedChannel(inner[0], Line(route)) as left,
        DelayedChannel(inner[1], Line(route)) as right,
        anyio.create_task_group() as group,
    ):
        group.start_soon(left.pump, at_left)
        group.start_soon(right.pump, at_right)
        await anyio.wait_all_tasks_blocked()
        began, busy = time.perf_counter(), time.process_time()
        await work(left, right)
        fraction = (time.process_time() - busy) / (time.perf_counter() - began)
        group.cancel_scope.cancel()
    return fraction


def round_trips(route: Route, count: int) -> tuple[Spread, float]:
    """Seconds from sending a small frame to its echo; the fraction of a core that was used."""
    frame = Frame(Kind.DATA, tag=(1, 1), header={"dealt": False})
    ends: list[Channel] = []
    times: list[float] = []
    done = Signal()

    def again(echo: Frame | None) -> None:
        times.append(time.perf_counter())
        if len(times) <= count:
            ends[0].try_send(frame)
        else:
            done.notify()

    async def work(*pair: Channel) -> None:
        ends.extend(pair)
        again(None)
        await done.wait()

    def echo(frame: Frame) -> None:
        ends[1].try_send(frame)

    cores = anyio.run(_over_memory, route, work, again, echo)
    return Spread.of([after - before for before, after in pairwise(times)]), cores


def stream(route: Route, seconds: float) -> tuple[float, float, float]:
    """Keep one direction busy: bytes after the first frame, the seconds in which they arrived, and
    the fraction of a core that was used.
    """
    assert route.bandwidth is not None
    frame = Frame(Kind.DATA, tag=(1, 1), buffers=[_PART])
    size = wire_bytes(frame)
    count = 1 + max(2, round(seconds * route.bandwidth / 8 / size))
    times: list[float] = []
    whole = Signal()

    def arrived(frame: Frame) -> None:
        times.append(time.perf_counter())
        if len(times) == count:
            whole.notify()

    async def work(left: Channel, right: Channel) -> None:
        for _ in range(count):
            await left.send(frame)
        while len(times) < count:
            await whole.wait()

    cores = anyio.run(_over_memory, route, work, lambda frame: None, arrived)
    return float(size * (count - 1)), times[-1] - times[0], cores


def _details(asked: float, delivered: float, cores: float) -> dict[str, Any]:
    return {"asked": asked, "delivered": delivered, "ratio": delivered / asked, "cores": cores}


def _delivered(options: Options) -> Iterator[Result]:
    for name, network in PRESETS.items():
        route = network.default
        assert route.bandwidth is not None
        scale = 0.1 if options.quick else 1.0
        count = options.runs(max(3, min(1000, round(_SECONDS / route.round_trip))))
        spread, cores = round_trips(route, count)
        details = _details(route.round_trip, spread.median, cores)
        yield Result(_NAME, f"{name}: round trip", spread, details=details)
        nbytes, seconds, cores = stream(route, _SECONDS * scale)
        details = _details(route.bandwidth, nbytes * 8 / seconds, cores)
        spread = Spread.of([seconds])
        yield Result(_NAME, f"{name}: throughput", spread, nbytes * 8, "bit", details=details)


BENCHMARKS = [Benchmark(_NAME, "modelled networks: asked and delivered", _delivered)]
