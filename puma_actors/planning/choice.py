"""Choose tree and lanes for each kind of step: those with the least predicted time.

    chooser = Chooser(plan, network)
    choice = chooser.choose(batch, steps, wished)
    choice.settings                  for the client, which tells the parties
    choice.first, choice.further     what was compared, the best first

A prediction takes a moment, so it is kept for later requests of the same shape.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from models.configs.architecture import ModelConfig
from models.drafts.drafter import computing
from models.programs.plan import Plan, draft_plan
from models.programs.predict import Prediction, outline, predict
from models.programs.program import Batch, Drafted
from models.programs.steps import RequestSettings, StepSettings
from protocols.base.lane import Settings
from protocols.base.shares import COMPUTING
from puma_actors.planning.machine import computation, exchanges_of
from puma_actors.planning.timing import Part, Step, Time, time_of
from puma_actors.transports.delay.network import Network, Route

EVEN = 0.5
"""Part of the evaluators' bytes in the busier direction, if nothing is recorded."""
DEALT = 0.76
"""Part of the dealer's bytes to the evaluator that gets more, if nothing is recorded: as recorded
with a small LLaMA and a prompt of 16 tokens. Least is 0.6, where activations are few."""
NOWHERE = Network("none", Route())
"""All roles in one process: nothing takes time in transit."""
Predicting: TypeAlias = Callable[[Plan, Batch, Sequence[Drafted], Settings], Sequence[Prediction]]
_DIGITS = 4
"""Binary digits of a text's length that matter for the choice."""
_KEPT = 64
"""Predictions that a chooser keeps."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way to take a step: settings, cost and predicted seconds."""

    settings: Settings
    predicted: Prediction
    time: Time

    def to_public(self) -> dict[str, Any]:
        """As JSON types."""
        cost = self.predicted.cost
        return {
            "tree": self.settings.tree,
            "lanes": self.settings.lanes,
            "rounds": cost.rounds,
            "online_bytes": cost.online,
            "offline_bytes": cost.offline,
            **self.time.to_public(),
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen for a request, and from what.

    Attributes:
        first, further: the options for the first step, and for those after it if there are any;
            the one with the least time first. Empty if nothing was left to choose.
    """

    settings: StepSettings
    first: tuple[Option, ...] = ()
    further: tuple[Option, ...] = ()


def chosen_public(settings: StepSettings, *, several: bool) -> dict[str, Any]:
    """Tree and lanes of each kind of step, as JSON types."""
    kinds = {"first": settings.first, **({"further": settings.further} if several else {})}
    return {kind: {"tree": each.tree, "lanes": each.lanes} for kind, each in kinds.items()}


class Chooser:
    """Args:
    plan: the model's plan; a configuration alone gets typical ranges.
    network: between the roles; None: there is none.
    apart: every party computes on a machine of its own.
    """

    def __init__(
        self, plan: Plan | ModelConfig, network: Network | None, *, apart: bool = False
    ) -> None:
        self._plan = plan if isinstance(plan, Plan) else draft_plan(plan)
        self._network = network or NOWHERE
        self._apart = apart
        self._known: OrderedDict[object, tuple[Prediction, ...]] = OrderedDict()

    def choose(self, batch: Batch, steps: int, wished: RequestSettings, draft: int = 0) -> Choice:
        """What is best for a request of `steps` steps, each of which proposes up to `draft` tokens.

        Costs are approximate, see `outline`: what is compared differs in much more.
        """
        variants = wished.variants()
        if len(variants) == 1:
            return Choice(StepSettings.of(variants[0]))
        rounded = self._rounded(batch, steps)
        return self._compare(rounded, steps, variants, draft, outline)

    def compare(
        self, batch: Batch, steps: int, variants: Sequence[Settings], draft: int = 0
    ) -> Choice:
        """As `choose`, with the exact cost of each of the variants."""
        return self._compare(batch, steps, variants, draft, predict)

    def lengthened(
        self, batch: Batch, steps: int, settings: Settings, most: int
    ) -> tuple[int, ...]:
        """By how many per cent of a decode step one is longer that proposes 0, 1, ... and `most`
        tokens, or as many as a request of so many steps has room for. What the network takes is
        predicted, and in between taken to grow evenly.
        """
        most, rounded = min(most, max(0, steps - 2)), self._rounded(batch, steps)
        times = {}
        for count in sorted({0, min(1, most), most}):
            later = (Drafted(count, 0),) * (steps > 1)
            found = self._traced(rounded, later, settings, outline)[-1]
            times[count] = self._option(settings, found, "decode").time
        whole = times[0].total
        outside = {count: time.total - time.computation for count, time in times.items()}
        slope = (outside[most] - outside[min(1, most)]) / max(1, most - 1)
        costs = [0]
        for count in range(1, most + 1):
            longer = outside[1] + slope * (count - 1) - outside[0]
            computed = computing(count) * times[0].computation / whole
            costs.append(max(costs[-1], math.ceil(100 * longer / whole + computed)))
        return tuple(costs)

    def _rounded(self, batch: Batch, steps: int) -> Batch:
        """A batch of about the same length, so that texts of many lengths share predictions."""
        if len(batch.lengths) > 1 or batch.types is not None:
            return batch
        length = batch.tokens
        unit = 1 << max(0, length.bit_length() - _DIGITS)
        most = self._plan.config.max_positions - steps + 1
        return replace(batch, lengths=(min(-(-length // unit) * unit, max(length, most)),))

    def _compare(
        self,
        batch: Batch,
        steps: int,
        variants: Sequence[Settings],
        draft: int,
        predicting: Predicting,
    ) -> Choice:
        proposed = min(draft, max(0, steps - 2))
        later = (Drafted(proposed, 0),) * (steps > 1)
        traced = {each: self._traced(batch, later, each, predicting) for each in variants}
        further: list[Option] = []
        if steps > 1:
            options = (self._option(each, found[1], "decode") for each, found in traced.items())
            further = _sorted(options)
        name = "prefill" if steps > 1 else "forward"
        first = _sorted(self._option(each, found[0], name) for each, found in traced.items())
        best = first[0].settings
        settings = StepSettings(best, further[0].settings if further else best)
        return Choice(settings, tuple(first), tuple(further))

    def _traced(
        self,
        batch: Batch,
        later: tuple[Drafted, ...],
        settings: Settings,
        predicting: Predicting,
    ) -> tuple[Prediction, ...]:
        """The first step, and one more if there are several."""
        key = batch, later, settings, predicting
        if key not in self._known:
            self._known[key] = tuple(predicting(self._plan, batch, later, settings))
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return self._known[key]

    def _option(self, settings: Settings, found: Prediction, name: str) -> Option:
        nbytes = found.cost.online + found.cost.offline
        exchanges = exchanges_of(found)
        spent = computation(self._plan.config, found.tokens, settings.tree, exchanges, nbytes)
        spent /= len(COMPUTING) if self._apart else 1
        return Option(settings, found, time_of(step_of(name, found, spent), self._network))


def _sorted(options: Iterable[Option]) -> list[Option]:
    """The least time first; of equal ones the first."""
    return sorted(options, key=lambda option: option.time.total)


def step_of(name: str, found: Prediction, spent: float) -> Step:
    """A predicted step as the model of time wants it, in one part."""
    cost = found.cost
    part = Part(name, cost.rounds, exchanges_of(found), EVEN * cost.online, DEALT * cost.offline)
    return Step(name, (part,), spent)
