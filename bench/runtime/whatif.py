"""Measured and predicted times over networks and comparison trees: what `puma what-if` is worth.

A small model is profiled once, over a fast network. From that profile alone the times on slower
networks are predicted, then measured there.
"""

import os
from collections.abc import Iterator

import anyio

from bench.tools.harness import Benchmark, Options, Result, Spread
from bench.tools.moment import small_model
from models.programs.program import Batch
from protocols.base.lane import TREES, Settings
from puma_actors.api.local import LocalCluster
from puma_actors.planning.timing import time_of
from puma_actors.profiling.profile import Profile, profile_cluster, record, without_upload
from puma_actors.profiling.whatif.recorded import request_of
from puma_actors.profiling.whatif.variants import Request
from puma_actors.session.recorder import Recorder
from puma_actors.transports.delay.network import parse_network

ALLOWED = 0.1
"""Allowed distance of the prediction, as a part of the measured time."""
POINTS = (
    ("10ms,1gbit", "rounds"),
    ("20ms,20mbit", "traffic"),
    ("wan", "rounds"),
    ("wan", "balanced"),
    ("wan", "traffic"),
    ("40ms,5mbit", "rounds"),
    ("intercontinental", "rounds"),
    ("100ms,20mbit", "balanced"),
    ("150ms,10mbit", "traffic"),
)
_BASE = "paper"
_NAME = "waiting.whatif"
_PROMPT, _TOKENS = 16, 2


async def profiled(network: str, settings: Settings) -> Profile:
    """A request on a warm cluster."""
    recorder = Recorder(network=True)
    behind = without_upload(parse_network(network))
    async with LocalCluster(
        small_model(), None, network=behind, settings=settings, recorder=recorder
    ) as cluster:
        await record(cluster, Batch((_PROMPT,), "last"), 1)
        return await profile_cluster(cluster, recorder, _PROMPT, _TOKENS)


def beside(request: Request, network: str, tree: str, measured: Profile) -> Iterator[Result]:
    """Each step of the measured request, with its prediction from another one's profile."""
    variant = next(each for each in request.variants if each.tree == tree)
    between = parse_network(network)
    assert between is not None
    for phase, work in zip(measured.phases, variant.works, strict=True):
        seconds = phase.wall / phase.steps
        time = time_of(work.step, between)
        ratio = time.total / seconds
        details = {
            "predicted": time.to_public(),
            "ratio": ratio,
            "allowed": ALLOWED,
            "load": os.getloadavg()[0],
        }
        note = f"{time.total:.3f} s predicted, {ratio:.3f} of it, load {details['load']:.1f}"
        case = f"{phase.name}, {network}, {tree}"
        yield Result(_NAME, case, Spread.of([seconds]), note=note, details=details)


def whatif(options: Options) -> Iterator[Result]:
    """All points, or the first one."""
    base = anyio.run(profiled, _BASE, Settings())
    request = request_of(base.to_public(), "the profile")
    for network, tree in POINTS[: 1 if options.quick else None]:
        settings = Settings(tree=next(each for each in TREES if each == tree))
        measured = anyio.run(profiled, network, settings)
        yield from beside(request, network, tree, measured)


BENCHMARKS = [Benchmark(_NAME, "what-if's predictions beside measured times", whatif, False)]
