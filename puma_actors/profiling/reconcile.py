"""One line that says where a measured time went, as a sum.

    rounds x latency + bytes / bandwidth + computation + waiting for the dealer, then for each other

The first two terms are those of the model of time; computation and waiting for the dealer are what
was seen, the mean of both evaluators. What they leave of the measured time is waiting for each
other; it is less than nothing where the first terms ran beside each other.
"""

from collections.abc import Sequence

from protocols.base.shares import EVALUATORS, Role
from puma_actors.planning.choice import NOWHERE
from puma_actors.planning.timing import OUTSIDE, Step, one_way, sent_bytes, time_of
from puma_actors.profiling.analysis import Phase
from puma_actors.profiling.sweep import COMPUTE, DEALER, PROCESSOR
from puma_actors.profiling.whatif.variants import Work
from puma_actors.profiling.whatif.words import duration
from puma_actors.transports.delay.network import Network, Route


def lines(phases: Sequence[Phase], works: Sequence[Work], network: Network | None) -> list[str]:
    """For each phase, a step of it (their mean)."""
    return [
        line(work.step, network, phase.wall / phase.steps, _seen(phase))
        for phase, work in zip(phases, works, strict=True)
    ]


def _seen(phase: Phase) -> dict[str, float]:
    """Seconds of an evaluator in one step, by cause."""
    found: dict[str, float] = {}
    for (cause, _), seconds in phase.keys.items():
        found[cause] = found.get(cause, 0.0) + seconds / phase.steps
    return found


def line(step: Step, network: Network | None, measured: float, seen: dict[str, float]) -> str:
    """The sum for one step, whose terms add up to what was measured.

    Args:
        measured: its seconds. seen: seconds of an evaluator, by cause (see `sweep`).
    """
    where = network or NOWHERE
    time = time_of(step, where)
    between, client = where.route(*EVALUATORS), where.route(Role.CLIENT, EVALUATORS[0])
    computed, dealer = seen.get(COMPUTE, 0.0), seen.get(DEALER, 0.0)
    rest = measured - time.latency - time.transfer - computed - dealer
    terms = [
        f"{step.rounds:,.0f} rounds x {duration(one_way(between))} and {OUTSIDE} ways of the "
        f"client x {duration(one_way(client))} = {duration(time.latency)}",
        f"{sent_bytes(step) / 1e6:,.2f} MB / {_rate(between)} = {duration(time.transfer)}",
        f"computation {duration(computed)}",
        f"waiting for the dealer {duration(dealer)}",
    ]
    return f"{' + '.join(terms)} {_other(rest, seen)} = {duration(measured)} measured"


def _other(rest: float, seen: dict[str, float]) -> str:
    """What the terms leave of the measured time: an evaluator was late, or all share a machine."""
    if rest < 0:
        return f"- {duration(-rest)} that ran at the same time"
    processor = min(rest, seen.get(PROCESSOR, 0.0))
    of_it = f", {duration(processor)} of it for the processor" if processor > rest / 10 else ""
    return f"+ waiting for each other {duration(rest)}{of_it}"


def _rate(route: Route) -> str:
    if route.bandwidth is None:
        return "unlimited bandwidth"
    return f"{route.bandwidth / 1e6:,g} Mbit/s"
