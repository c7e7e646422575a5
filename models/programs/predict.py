"""The cost of an inference and the size of a shared model, before anything runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from models.configs.architecture import ModelConfig
from models.programs.families import parameters_of, shallow
from models.programs.inference import evaluate
from models.programs.plan import Plan, draft_plan
from models.programs.program import Batch, Cache, Drafted, next_batch
from models.programs.sharing import hold_parameter
from models.programs.steps import StepSettings
from protocols.base.cost import Cost
from protocols.base.lane import Lane, Link, Settings
from protocols.base.ring import RING_BITS
from protocols.base.shares import Role
from protocols.drivers.trace import trace

WORD_BYTES = RING_BITS // 8


@dataclass(frozen=True, slots=True)
class Prediction:
    """Cost of one step: prefill of a prompt, or decoding one token.

    Attributes:
        by_protocol: cost charged by each protocol; rounds are counted as if none overlapped.
    """

    tokens: int
    cost: Cost
    by_protocol: Mapping[str, Cost]


def predict(
    plan: Plan | ModelConfig,
    batch: Batch | int,
    decode: int | Sequence[Drafted] = 0,
    settings: Settings | StepSettings | None = None,
    *,
    lane_of: Callable[[Link], Lane] = Lane,
) -> list[Prediction]:
    """Cost of a batch (an integer means a prompt of that many tokens and the logits of its last
    one) and of each further step: of `decode` steps of one token, or of steps with drafts.

    An architecture without a plan gets typical ranges. `lane_of` creates each step's lane.
    """
    plan = plan if isinstance(plan, Plan) else draft_plan(plan)
    first = batch if isinstance(batch, Batch) else Batch((batch,), "last")
    config, chosen = plan.config, StepSettings.of(settings)
    parameters = {
        name: hold_parameter(Role.TRACE, number, parameter, None, {})
        for number, (name, parameter) in enumerate(parameters_of(config).items())
    }
    cache = Cache.empty(config.num_layers)
    steps: list[Prediction] = []
    rejected = 0
    later = [Drafted(0, 0)] * decode if isinstance(decode, int) else decode
    for part, (proposed, accepted) in [
        (first, Drafted(0, 0)),
        *((next_batch(drafted.proposed), drafted) for drafted in later),
    ]:
        kept = cache.length - rejected

        async def step(lane: Lane, part: Batch = part, kept: int = kept) -> None:
            await evaluate(lane, plan, parameters, part, cache, kept)

        cost, labels = trace(step, chosen.at(len(steps)), lane_of=lane_of)
        steps.append(Prediction(part.tokens, cost, labels))
        rejected = proposed - accepted
    return steps


def outline(
    plan: Plan, batch: Batch, decode: Sequence[Drafted], settings: Settings
) -> list[Prediction]:
    """As `predict`, but quick: only two layers are walked through, and all others are taken to cost
    as much as the second one. Layers with other ranges or windows may take some rounds less.
    """
    layers = plan.config.num_layers
    one, two = (
        predict(replace(plan, config=shallow(plan.config, most)), batch, decode, settings)
        for most in (1, 2)
    )
    if layers < 2:
        return one
    return [_extended(first, second, layers - 2) for first, second in zip(one, two, strict=True)]


def _extended(one: Prediction, two: Prediction, more: int) -> Prediction:
    """The cost of `two` layers and so many `more`, from that of one."""
    labels = {
        label: _further(one.by_protocol.get(label, Cost()), cost, more)
        for label, cost in two.by_protocol.items()
    }
    return Prediction(two.tokens, _further(one.cost, two.cost, more), labels)


def _further(one: Cost, two: Cost, more: int) -> Cost:
    each = two - one
    return two + Cost(more * each.rounds, more * each.online, more * each.offline)


def streamed_bytes(config: ModelConfig) -> int:
    """Bytes of a model's shares in the memory of each computing party if the factors of its
    matrices are made while they are used: half a word of each half of a table, two words of each
    entry of everything that is no matrix.
    """
    bytes_of = {"weight": 0, "table": WORD_BYTES}
    return sum(
        bytes_of.get(parameter.kind, 2 * WORD_BYTES) * prod(parameter.shape)
        for parameter in parameters_of(config).values()
    )


def owner_bytes(config: ModelConfig) -> int:
    """Bytes that an owner needs to share a model tensor by tensor: float32 values, in two copies
    while they are folded, their words, and what encoding them takes.
    """
    largest = max(prod(parameter.shape) for parameter in parameters_of(config).values())
    return largest * (2 * 4 + 3 * WORD_BYTES)


def share_bytes(config: ModelConfig) -> int:
    """Bytes of a model's shares in the memory of each computing party: one word per entry of a
    weight, half a word more of a table (for its look-ups), two words for everything else.
    """
    bytes_of = {"weight": WORD_BYTES, "table": WORD_BYTES * 3 // 2}
    return sum(
        bytes_of.get(parameter.kind, 2 * WORD_BYTES) * prod(parameter.shape)
        for parameter in parameters_of(config).values()
    )


def common_bytes(config: ModelConfig, *, on_disk: bool = False) -> int:
    """Bytes of a model's shares for three parties of one process, which do not hold twice what two
    of them know: two words per entry of a weight, two and a half of a table, two for each party of
    everything else.

    Args:
        on_disk: the factors of matrices are made while they are used.
    """
    bytes_of = {"weight": 2 * WORD_BYTES, "table": WORD_BYTES * 5 // 2}
    if on_disk:
        bytes_of = {"weight": 0, "table": WORD_BYTES * 3 // 2}
    return sum(
        bytes_of.get(parameter.kind, 6 * WORD_BYTES) * prod(parameter.shape)
        for parameter in parameters_of(config).values()
    )
