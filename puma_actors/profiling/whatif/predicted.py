"""The request that would be made, from the shapes of a model: nothing of it runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import anyio

from models.checkpoints.checkpoint import Checkpoint
from models.configs.architecture import ModelConfig
from models.programs.head_layers import default_rows
from models.programs.plan import draft_plan
from models.programs.program import Batch
from protocols.base.lane import Settings
from protocols.base.meter import Meter
from protocols.errors import ConfigError
from puma_actors.profiling.profile import GENERATES, traced
from puma_actors.profiling.whatif.moment import Speed, computation, measure
from puma_actors.profiling.whatif.variants import (
    COMPARED,
    DEALT,
    EVEN,
    Request,
    TracedPhase,
    Variant,
    Work,
    led,
    traced_of,
    work_of,
)

_RATIOS = EVEN, DEALT


@dataclass(frozen=True, slots=True)
class Computing:
    """Seconds of computation that the caller knows: of the first step, and of a further one."""

    first: float
    further: float


def predicted(
    checkpoint: Checkpoint,
    tokens_in: int,
    settings: Settings,
    lanes: Sequence[int],
    computing: Computing | None,
) -> Request:
    """A prompt of so many tokens, and one further token if the model generates.

    Args:
        settings: those of the request; its tree and lanes are replaced by each one asked for.
        computing: None: measured for a moment.

    Raises:
        ConfigError: the model cannot take so many tokens.
    """
    config = checkpoint.config
    generates = config.head == GENERATES
    _check(config, tokens_in, generates)
    batch = Batch((tokens_in,), "last" if generates else default_rows(config))
    speed = anyio.run(measure) if computing is None else None
    plan, variants = draft_plan(config), []
    for tree in COMPARED:
        for count in lanes:
            each = replace(settings, tree=tree, lanes=count)
            meters = traced(plan, batch, 2 if generates else 1, each)
            known = traced_of(each, meters, "prefill" if generates else "forward")
            spent = _spent(meters, config, tokens_in, computing, speed)
            works = list(map(_work, known.phases, spent))
            variants.append(Variant(tree, count, led(works)))
    return Request(checkpoint.where, tokens_in, False, _source(speed), tuple(variants))


def _check(config: ModelConfig, tokens: int, generates: bool) -> None:
    most = config.max_positions - generates
    if not 1 <= tokens <= most:
        raise ConfigError(f"{tokens} tokens in: this model takes 1 to {most}")


def _spent(
    meters: Sequence[Meter],
    config: ModelConfig,
    tokens: int,
    computing: Computing | None,
    speed: Speed | None,
) -> list[float]:
    """Seconds of computation of each step."""
    if computing is not None:
        return [computing.first, computing.further][: len(meters)]
    assert speed is not None
    return [
        computation(meter, speed, config, rows)
        for meter, rows in zip(meters, (tokens, 1), strict=False)
    ]


def _source(speed: Speed | None) -> str:
    if speed is None:
        return "given"
    return (
        "estimated from a moment's measurement of this machine, all roles on it: "
        f"{speed.exchange * 1e6:.0f} us a round, {speed.byte * 1e9:.2g} ns a byte, and the "
        "products with the weights; a recorded profile says more"
    )


def _work(phase: TracedPhase, spent: float) -> Work:
    work = work_of(phase.name, phase.steps, phase.layers, phase.places, _RATIOS)
    return replace(work, step=replace(work.step, computation=spent))
