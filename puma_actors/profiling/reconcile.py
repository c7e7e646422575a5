"""One line that says where a measured time went: the terms of the model of time, added up."""

from collections.abc import Sequence

from protocols.base.shares import EVALUATORS, Role
from puma_actors.planning.choice import NOWHERE
from puma_actors.planning.timing import OUTSIDE, Step, one_way, sent_bytes, time_of
from puma_actors.profiling.analysis import Phase
from puma_actors.profiling.whatif.variants import Work
from puma_actors.transports.delay.network import Network, Route


def lines(phases: Sequence[Phase], works: Sequence[Work], network: Network | None) -> list[str]:
    """For each phase, a step of it (their mean)."""
    return [
        line(work.step, network, phase.wall / phase.steps)
        for phase, work in zip(phases, works, strict=True)
    ]


def line(step: Step, network: Network | None, measured: float) -> str:
    """The sum for one step. `measured`: its seconds.

    The computation is what the other terms leave unexplained, and never less than was seen.
    """
    where = network or NOWHERE
    time = time_of(step, where)
    between = where.route(*EVALUATORS)
    client = where.route(Role.CLIENT, EVALUATORS[0])
    terms = [
        f"{step.rounds:,.0f} rounds x {_short(one_way(between))} and {OUTSIDE} ways of the client "
        f"x {_short(one_way(client))} = {_short(time.latency)}",
        f"{sent_bytes(step) / 1e6:,.2f} MB / {_rate(between)} = {_short(time.transfer)}",
        f"computation {_short(time.computation)}",
        f"waiting for the dealer {_short(time.waiting)}",
    ]
    return f"{' + '.join(terms)}; together {_short(time.total)}, measured {_short(measured)}"


def _short(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 or not seconds else f"{1e3 * seconds:.3g} ms"


def _rate(route: Route) -> str:
    if route.bandwidth is None:
        return "unlimited bandwidth"
    return f"{route.bandwidth / 1e6:,g} Mbit/s"
