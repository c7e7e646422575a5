"""The model of time: how long a step takes on a network.

    seconds = flights x one-way latency + bytes / bandwidth + computation + waiting for the dealer

Flights are the rounds in a row, the client's request and the answer to it. Bytes are those of the
busier direction between the evaluators, which send at the same time, with the heads of their
frames. Nothing is counted as hidden: transfers that run beside computation make a step faster.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from protocols.base.shares import EVALUATORS, Role
from puma_actors.roles.party import DEALER_LEAD
from puma_actors.transports.delay.channel import PIPE_BYTES
from puma_actors.transports.delay.network import Network, Route
from puma_actors.transports.frames import SESSION_BYTES, Frame, Kind, wire_bytes

_HALVINGS = 50
_LEFT = 0.25
"""Of a layer, when the last that is dealt for it has come: what follows its activation, for which
most is dealt.
"""
OUTSIDE = 2
"""Flights of a step that are no round: the client's request, and the answer."""


@dataclass(frozen=True, slots=True)
class Part:
    """A layer, or what comes before or after the layers, in one step.

    Attributes:
        rounds: on the longest chain. messages: of an evaluator to the other, also beside others.
        sent: bytes of the busier direction between the evaluators, without heads.
        dealt: bytes from the dealer to the evaluator that gets more.
    """

    name: str
    rounds: float
    messages: float
    sent: float
    dealt: float


@dataclass(frozen=True, slots=True)
class Step:
    """A prefill, a forward pass, or the mean of several decode steps.

    Attributes:
        name: "prefill", "forward" or "decode". parts: in the order of the program.
        computation: seconds that the step would take on a network without delays.
        tokens: that it yields on average, more than one with a draft.
        count: how many decode steps it is the mean of; 0: so many that the first does not matter.
        after: the step before those.
    """

    name: str
    parts: tuple[Part, ...]
    computation: float = 0.0
    tokens: float = 1.0
    count: int = 0
    after: "Step | None" = None

    @property
    def further(self) -> bool:
        """Whether the dealer has run ahead, during the steps before."""
        return self.name == "decode"

    @property
    def rounds(self) -> float:
        """On the longest chain."""
        return sum(part.rounds for part in self.parts)

    @property
    def messages(self) -> float:
        """Of one evaluator to the other."""
        return sum(part.messages for part in self.parts)

    @property
    def sent(self) -> float:
        """Bytes of the busier direction between the evaluators."""
        return sum(part.sent for part in self.parts)

    @property
    def dealt(self) -> float:
        """Bytes to the evaluator that gets more."""
        return sum(part.dealt for part in self.parts)


@dataclass(frozen=True, slots=True)
class Time:
    """Seconds of a step, by cause."""

    latency: float
    transfer: float
    computation: float
    waiting: float

    @property
    def total(self) -> float:
        """Seconds until the answer."""
        return self.latency + self.transfer + self.computation + self.waiting

    def of_each(self, tokens: float) -> "Time":
        """The share of one of so many tokens."""
        causes = (self.latency, self.transfer, self.computation, self.waiting)
        return Time(*(seconds / tokens for seconds in causes))

    def to_public(self) -> dict[str, float]:
        """As JSON types."""
        return {
            "seconds": round(self.total, 6),
            "latency": round(self.latency, 6),
            "transfer": round(self.transfer, 6),
            "computation": round(self.computation, 6),
            "waiting": round(self.waiting, 6),
        }


def transfer_seconds(nbytes: float, route: Route) -> float:
    """Seconds until a link has taken in so many bytes."""
    return 8 * nbytes / route.bandwidth if route.bandwidth else 0.0


def one_way(route: Route) -> float:
    """Mean seconds that an empty frame takes; each way draws up to half of the jitter."""
    return route.latency + route.jitter / 4


def chain_seconds(rounds: float, nbytes: float, route: Route) -> float:
    """Least seconds of rounds in a row: both evaluators send at once, so each takes one latency."""
    return rounds * one_way(route) + transfer_seconds(nbytes, route)


@cache
def head_bytes() -> int:
    """Bytes of a frame with one message besides the message; tags have some four numbers."""
    header = {"tags": [(1 << 10, 0, 0, 1 << 10)], "dealt": False}
    return wire_bytes(Frame(Kind.BATCH, bytes(SESSION_BYTES), (), header, [b""]))


def time_of(step: Step, network: Network) -> Time:
    """How long the step takes on the network."""
    chains = _chains(step, network)
    outside = OUTSIDE * one_way(network.route(Role.CLIENT, EVALUATORS[0]))
    latency = outside + sum(latency for latency, _ in chains)
    transfer = sum(transfer for _, transfer in chains)
    busy = latency + transfer + step.computation
    if step.further:
        waiting = max(0.0, _flow(step.dealt, network) - busy) + _behind(step, network)
    else:
        waiting = max(0.0, _first(step, network) - busy)
    return Time(latency, transfer, step.computation, waiting)


def token_time(step: Step, network: Network) -> Time:
    """How long the step takes for each token that it yields."""
    return time_of(step, network).of_each(step.tokens)


def sent_bytes(step: Step) -> float:
    """Bytes of the busier direction between the evaluators, with the heads of frames."""
    return step.sent + step.messages * head_bytes()


def _chains(step: Step, network: Network) -> list[tuple[float, float]]:
    """Seconds of latency and of transfer of each part."""
    route = network.route(*EVALUATORS)
    heads = head_bytes()
    return [
        (
            chain_seconds(part.rounds, 0, route),
            transfer_seconds(part.sent + part.messages * heads, route),
        )
        for part in step.parts
    ]


def _dealer(network: Network) -> Route:
    """The slower link of the dealer."""
    return max(
        (network.route(Role.DEALER, role) for role in EVALUATORS),
        key=lambda route: transfer_seconds(1, route),
    )


def _flow(nbytes: float, network: Network) -> float:
    return transfer_seconds(nbytes, _dealer(network))


def _first(step: Step, network: Network) -> float:
    """Seconds of a step that the dealer begins when the evaluators do.

    They begin with its answer for the embedding, which it sends before it deals for what follows.
    If they wait for what is dealt, a part of the rounds is left when the last of it is there.
    """
    client = one_way(network.route(Role.CLIENT, EVALUATORS[0]))
    begin = client + one_way(_dealer(network))
    now, dealt, total = begin if step.dealt else client, 0.0, step.rounds
    for part, (latency, transfer) in zip(step.parts, _chains(step, network), strict=True):
        dealt += part.dealt
        share = part.rounds / total if total else 1 / len(step.parts)
        spent = latency + transfer + share * step.computation
        now = max(now + spent, begin + _flow(dealt, network) + _LEFT * spent)
    return now + client


def _behind(step: Step, network: Network) -> float:
    """Seconds that the first decode step waits for the dealer's answer, in the mean of all: the
    dealer is steps ahead, and the answer is behind what it has dealt and is still on its way, at
    most as much as a link holds. Both the dealt bytes and the answer are late by as many flights.
    """
    if step.after is None or not step.count:
        return 0.0
    ahead = min(DEALER_LEAD, step.count) * step.dealt
    left = _flow(step.after.dealt + ahead, network) - time_of(step.after, network).total
    return min(max(0.0, left), _flow(PIPE_BYTES, network)) / step.count


def fitted(step: Step, wall: float, network: Network | None, least: float) -> Step:
    """The step with the least computation that explains its measured time on the network.

    Args:
        wall: measured seconds. network: where; None: in memory, without delays.
        least: seconds that an evaluator was seen to compute, which the rest cannot be less than.
    """
    if network is None:
        return replace(step, computation=wall)

    def computing(seconds: float) -> Step:
        return replace(step, computation=seconds)

    return _least_that_takes(wall, computing, least, max(least, wall), network)


def _least_that_takes(
    wall: float, made: Callable[[float], Step], low: float, high: float, network: Network
) -> Step:
    """The step made with the least figure, between two, with which it takes as long as `wall`: some
    of it may be hidden while the dealer is waited for.
    """
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if time_of(made(middle), network).total < wall:
            low = middle
        else:
            high = middle
    return made(high)
