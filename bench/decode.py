"""A decode step over a slow network, compared with the bound from rounds, bytes and computation."""

import gc
import statistics
from collections.abc import Iterator

import anyio

from bench.tools.harness import Benchmark, Options, Result, Spread
from models.files.locate import demo_model_path
from models.programs.program import Batch
from protocols.base.lane import Settings
from protocols.base.shares import EVALUATORS
from puma_actors.api.local import LocalCluster
from puma_actors.planning.timing import chain_seconds
from puma_actors.profiling.analysis import Phase, analyse, window_of
from puma_actors.profiling.profile import record, traced, without_upload
from puma_actors.session.recorder import Recorder
from puma_actors.transports.delay.network import PRESETS, Network

NETWORKS = ("wan", "intercontinental")
ALLOWED = 1.2
"""A step may take this many times the bound."""
_NAME = "waiting.decode"
_PROMPT = 8
_STEPS = 4  # without a network; over one, the prefill and a single step


def bound(phase: Phase, network: Network, computing: float) -> float:
    """Lower bound on the seconds of a step: one one-way latency per round, since both evaluators
    send at once; the bytes of the busier direction; and the time without a network.
    """
    one, two = EVALUATORS
    route = network.route(one, two)
    most = max(phase.sent[one, two][0], phase.sent[two, one][0])
    return chain_seconds(phase.rounds, most, route) + computing


async def _steps(network: Network | None, count: int, recorder: Recorder) -> tuple[Phase, float]:
    """The last step's phase, and the median seconds of all decode steps."""
    async with LocalCluster.from_pretrained(
        demo_model_path(), network=without_upload(network), recorder=recorder
    ) as cluster:
        batch = Batch((_PROMPT,), "last")
        number = await record(cluster, batch, 1 + count)
        meters = traced(cluster.plan, batch, count, Settings())
        phase = analyse(recorder, "decode", [number + count], meters[-1:])
        windows = [window_of(recorder, number + step) for step in range(1, 1 + count)]
    return phase, statistics.median(end - start for start, end in windows)


def decode(options: Options) -> Iterator[Result]:
    """The time without a network, then each network's with its ratio to the bound."""
    _, computing = anyio.run(_steps, None, 1 if options.quick else _STEPS, Recorder())
    yield Result(_NAME, "in memory", Spread.of([computing]))
    for name in NETWORKS[: 1 if options.quick else None]:
        gc.collect()  # the previous cluster is full of reference cycles, and takes 5 GB
        phase, seconds = anyio.run(_steps, PRESETS[name], 1, Recorder())
        ratio = seconds / bound(phase, PRESETS[name], computing)
        details = {
            "bound_seconds": seconds / ratio,
            "ratio": ratio,
            "allowed": ALLOWED,
            "rounds": phase.rounds,
            "online_bytes": phase.online,
            "busy_seconds": {str(role): value for role, value in phase.busy.items()},
            "hidden_share": phase.hidden_share,
        }
        note = f"{ratio:.3f} of the bound, {ALLOWED} allowed"
        yield Result(_NAME, name, Spread.of([seconds]), note=note, details=details)


BENCHMARKS = [Benchmark(_NAME, "a decode step over slow networks and its bound", decode, False)]
