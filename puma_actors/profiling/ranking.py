"""What to improve first: the causes of waiting and computing, by their share of the time."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from protocols.base.lane import Settings
from protocols.base.shares import Role
from puma_actors.profiling.analysis import Phase
from puma_actors.profiling.counts import protocol_of
from puma_actors.profiling.sweep import CLIENT, COMPUTE, DEALER, HELD, HIDDEN, NETWORK, PROCESSOR
from puma_actors.transports.delay.network import Network, Route

_LEAST = 0.01  # shares of the time below this are not listed
_MOST = 8


@dataclass(frozen=True, slots=True)
class Advice:
    """Attributes:
    what: cause and protocol. seconds: of an evaluator. share: of the time until the answer.
    reason: one line.
    """

    what: str
    seconds: float
    share: float
    reason: str

    def to_public(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "what": self.what,
            "seconds": round(self.seconds, 6),
            "share": round(self.share, 6),
            "reason": self.reason,
        }


def rank(phase: Phase, network: Network | None, settings: Settings) -> list[Advice]:
    """The largest shares of the evaluators' time, with reasons."""
    spent: defaultdict[tuple[str, str], float] = defaultdict(float)
    for (cause, key), seconds in phase.keys.items():
        if cause in (NETWORK, COMPUTE, HIDDEN):
            kind = NETWORK if cause == NETWORK else COMPUTE
            spent[kind, protocol_of(key) or "the program"] += seconds
        else:
            spent[cause, ""] += seconds
    found = []
    for (cause, protocol), seconds in sorted(spent.items(), key=lambda item: -item[1])[:_MOST]:
        share = seconds / phase.wall if phase.wall else 0.0
        if share >= _LEAST:
            what, reason = _explain(phase, cause, protocol, seconds, network, settings)
            found.append(Advice(what, seconds, share, reason))
    return found


def _explain(
    phase: Phase,
    cause: str,
    protocol: str,
    seconds: float,
    network: Network | None,
    settings: Settings,
) -> tuple[str, str]:
    if cause == NETWORK:
        return f"rounds of {protocol}", _of_rounds(phase, protocol, seconds, network, settings)
    if cause == COMPUTE:
        return f"computing {protocol}", _of_computing(phase, protocol)
    return _OTHERS[cause][0], _OTHERS[cause][1](phase)


def _of_rounds(
    phase: Phase, protocol: str, seconds: float, network: Network | None, settings: Settings
) -> str:
    row = next(row for row in phase.protocols if row.name == protocol)
    if not row.rounds:
        return "not on the longest chain"
    # Concurrent rounds wait at the same time, and that time is counted once.
    each = seconds / row.exchanges
    beside = f" ({row.exchanges:,} with concurrent ones)" if row.exchanges > row.rounds else ""
    text = f"{row.rounds:,} in a row{beside}, {_time(each)} of waiting each"
    route = network.route(Role.EVALUATOR_A, Role.EVALUATOR_B) if network else Route()
    size = row.online / 2 / row.exchanges
    transfer = 8 * size / route.bandwidth if route.bandwidth else 0.0
    late = each - route.latency - transfer
    if late > max(route.latency, transfer):
        return f"{text}: mostly for the other evaluator, which was not there yet"
    if transfer > route.latency:
        spent = f"{_time(transfer)} are the transfer of {size / 1e3:,.1f} kB"
        return f"{text}, of which {spent}: less traffic (--tree traffic) helps"
    way = f"{row.rounds:,} x {_time(route.latency)} of latency"
    if settings.tree != "rounds":
        return f"{text}: {way}; fewer rounds (--tree rounds) help"
    return f"{text}: {way}; only parties closer together help"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"


def _of_computing(phase: Phase, protocol: str) -> str:
    row = next((row for row in phase.protocols if row.name == protocol), None)
    if row is None:
        return "the runtime between protocols"
    hidden, whole = row.seconds[HIDDEN], row.seconds[HIDDEN] + row.seconds[COMPUTE]
    text = f"{hidden / whole:.0%} of it while messages are in transit" if whole else ""
    if row.exchanges:
        text += f"; {_time(whole / row.exchanges)} for each of {row.exchanges:,} exchanges"
    return text


def _of_dealer(phase: Phase) -> str:
    lead = phase.lead
    return (
        f"{lead.late:,} of {lead.messages:,} dealt messages came after they were wanted: a faster "
        "link from the dealer, or dealing beforehand (puma prepare, on hosts), helps"
    )


_OTHERS = {
    DEALER: ("waiting for the dealer", _of_dealer),
    CLIENT: (
        "waiting for the client",
        lambda phase: "the client's tokens were in transit: nothing can hide that between steps",
    ),
    PROCESSOR: (
        "waiting for the processor",
        lambda phase: "messages were there, but another role computed: all share this machine",
    ),
    HELD: (
        "held back while sending",
        lambda phase: (
            "the channel or the receiver's window was full: bandwidth, or a larger window"
        ),
    ),
}
