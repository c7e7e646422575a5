"""What to do about a request's time: another tree, another network, another machine."""

from collections.abc import Sequence

from puma_actors.planning.choice import NOWHERE
from puma_actors.planning.timing import Step, time_of, token_time
from puma_actors.profiling.whatif.answer import COMPUTED, DOUBLED, HALVED, best, faster, gains
from puma_actors.profiling.whatif.variants import Request
from puma_actors.profiling.whatif.words import duration
from puma_actors.transports.delay.network import Network

_LEAST = 0.05
"""Parts of a step's time below this are not worth a word."""
_CLOSER = "bring the parties closer together"
_WORDS = {
    HALVED: _CLOSER,
    DOUBLED: "give the evaluators a faster line, or send less (--approximation fast)",
    COMPUTED: "take faster machines, one for each party; if the model is open, --public-weights",
}
_DEALER = "give the dealer a faster line, or have it deal beforehand (puma prepare, on hosts)"
_SHORTER = "give the evaluators a faster line, or send less (a shorter text, --approximation fast)"
_SEVERAL = f"{_CLOSER}, or let a step yield several tokens (--draft ngram)"


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
        f"use tree {least.tree} for {which}: {duration(less)} predicted instead of "
        f"{duration(spent)}; "
        "--tree auto chooses for each kind of step"
    ]


def _changes(request: Request, index: int, network: Network) -> Sequence[str]:
    variant = request.variants[0]
    step = variant.works[index].step
    words = dict(_WORDS)
    if not step.further:
        words[DOUBLED] = _SHORTER
    elif not variant.draft:
        words[HALVED] = _SEVERAL
    if _dealer_holds_up(step, network):
        words[DOUBLED] = _DEALER
    return [
        f"{words[gain.what]}: {gain.what}, it would take {duration(gain.seconds)} less "
        f"({gain.share:.0%})"
        for gain in gains(step, network)
        if gain.share >= _LEAST
    ]


def _dealer_holds_up(step: Step, network: Network) -> bool:
    """Whether most of what twice the bandwidth saves is waiting for the dealer."""
    now, then = (time_of(step, each) for each in (network, faster(network, bandwidth=2.0)))
    return now.waiting - then.waiting > now.transfer - then.transfer
