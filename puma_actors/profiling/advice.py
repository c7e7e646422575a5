"""What to do about a request's time: another tree, another network, another machine."""

from collections.abc import Sequence

from puma_actors.planning.choice import NOWHERE
from puma_actors.planning.timing import token_time
from puma_actors.profiling.whatif.answer import COMPUTED, DOUBLED, HALVED, best, gains
from puma_actors.profiling.whatif.variants import Request
from puma_actors.transports.delay.network import Network

_LEAST = 0.05
"""Parts of a step's time below this are not worth a word."""
_WORDS = {
    HALVED: "bring the parties closer together, or let a step yield several tokens (--draft ngram)",
    DOUBLED: "give the evaluators a faster line, or send less (--approximation fast)",
    COMPUTED: "take faster machines, one for each party; if the model is open, --public-weights",
}
_OF_FIRST = {HALVED: "bring the parties closer together, or cut the text"}
"""For steps that a draft does not change."""


def actions(request: Request, network: Network | None) -> list[list[str]]:
    """For each step of the request what to do, the most useful first."""
    return [
        [*_trees(request, index, network or NOWHERE), *_changes(request, index, network or NOWHERE)]
        for index in range(len(request.variants[0].works))
    ]


def _trees(request: Request, index: int, network: Network) -> Sequence[str]:
    """Another tree, if one is predicted to take clearly less."""
    now, least = request.variants[0], best(request, index, network)
    spent, less = (token_time(each.works[index].step, network).total for each in (now, least))
    if least is now or not spent or 1 - less / spent < _LEAST:
        return []
    which = "the first step" if index == 0 else "further steps"
    return [
        f"use tree {least.tree} for {which}: {less:.3g} s predicted instead of {spent:.3g} s; "
        "--tree auto chooses for each kind of step"
    ]


def _changes(request: Request, index: int, network: Network) -> Sequence[str]:
    step = request.variants[0].works[index].step
    words = _WORDS if step.further else _WORDS | _OF_FIRST
    return [
        f"{words[gain.what]}: {gain.what}, it would take {gain.seconds:.3g} s less "
        f"({gain.share:.0%})"
        for gain in gains(step, network)
        if gain.share >= _LEAST
    ]
