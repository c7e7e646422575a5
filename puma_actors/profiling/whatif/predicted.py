"""The request that would be made, from the shapes of a model: nothing of it runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from models.checkpoints.checkpoint import Checkpoint
from models.configs.architecture import ModelConfig
from models.programs.head_layers import default_rows
from models.programs.plan import draft_plan
from models.programs.program import Batch, Drafted
from protocols.base.lane import TREES, Settings
from protocols.base.meter import Meter
from protocols.errors import ConfigError
from puma_actors.planning.choice import DEALT, EVEN
from puma_actors.planning.machine import computation, pace
from puma_actors.profiling.counts import declared
from puma_actors.profiling.profile import GENERATES, traced
from puma_actors.profiling.whatif.variants import (
    Draft,
    Request,
    TracedPhase,
    Variant,
    Work,
    traced_of,
    work_of,
    yielding,
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
    draft: Draft | None = None,
) -> Request:
    """A prompt of so many tokens, and one further step if the model generates.

    Args:
        settings: those of the request; its tree and lanes are replaced by each one asked for.
        computing: None: estimated, see `puma_actors.planning.machine`.
        draft: also a further step that proposes tokens.

    Raises:
        ConfigError: the model cannot take so many tokens.
    """
    config = checkpoint.config
    generates = config.head == GENERATES
    _check(config, tokens_in, generates)
    batch = Batch((tokens_in,), "last" if generates else default_rows(config))
    plan, variants = draft_plan(config), []
    drafts = [Draft(0, 0.0), *([draft] if draft and draft.proposed and generates else [])]
    for each, step in product(_each(settings, lanes), drafts):
        later = [Drafted(step.proposed, 0)] * generates
        meters = traced(plan, batch, later, each)
        known = traced_of(each, meters, "prefill" if generates else "forward")
        spent = _spent(meters, config, (tokens_in, 1 + step.proposed), each, computing)
        works = yielding(list(map(_work, known.phases, spent)), 1 + step.accepted)
        variants.append(Variant(each.tree, each.lanes, works, step.proposed))
    return Request(checkpoint.where, tokens_in, False, _source(computing), tuple(variants))


def _each(settings: Settings, lanes: Sequence[int]) -> list[Settings]:
    return [replace(settings, tree=tree, lanes=count) for tree in TREES for count in lanes]


def _check(config: ModelConfig, tokens: int, generates: bool) -> None:
    most = config.max_positions - generates
    if not 1 <= tokens <= most:
        raise ConfigError(f"{tokens} tokens in: this model takes 1 to {most}")


def _spent(
    meters: Sequence[Meter],
    config: ModelConfig,
    tokens: tuple[int, int],
    settings: Settings,
    computing: Computing | None,
) -> list[float]:
    """Seconds of computation of each step."""
    if computing is not None:
        return [computing.first, computing.further][: len(meters)]
    return [
        computation(config, rows, settings.tree, *sizes(meter))
        for meter, rows in zip(meters, tokens, strict=False)
    ]


def sizes(meter: Meter) -> tuple[int, int]:
    """Rounds, also beside others, and bytes of all parties, as declared."""
    counts = declared(meter)
    nbytes = sum(counts.online.values()) + sum(counts.offline.values())
    return sum(counts.exchanges.values()), nbytes


def _source(computing: Computing | None) -> str:
    if computing is not None:
        return "given"
    return (
        "estimated from measurements of another machine, all roles on it; this one takes "
        f"{pace():.2f} times as long for a fixed piece of work; a recorded profile says more"
    )


def _work(phase: TracedPhase, spent: float) -> Work:
    work = work_of(phase.name, phase.steps, phase.layers, phase.places, _RATIOS)
    return replace(work, step=replace(work.step, computation=spent))
