"""The network between remote parties, from what they measured of their connections."""

import math
from collections.abc import Mapping, Sequence

from protocols.base.shares import COMPUTING, EVALUATORS, Role
from puma_actors.hosts.admission import LinkEntry
from puma_actors.transports.delay.network import LONGEST, SLOWEST, Ends, Network, Route

_MOST = len(COMPUTING) - 1
"""Connections of a party to others."""


def measured(told: Mapping[Role, Sequence[LinkEntry]]) -> Network | None:
    """The network that the parties told the client of; None if nothing usable is known of the
    connection between the evaluators, which matters most.

    What a party says is taken as it is only within the bounds of a `Route`: another figure is as
    good as none. The client's own connections are taken to be like the evaluators'.
    """
    links: list[tuple[Ends, Route]] = []
    for role, entries in told.items():
        for entry in entries[:_MOST]:
            route = _route(entry)
            if route is not None and entry.peer in COMPUTING and entry.peer != role:
                links.append(((str(role), entry.peer), route))
    between = next((route for ends, route in links if set(ends) == set(EVALUATORS)), None)
    return None if between is None else Network("as measured", between, tuple(links))


def _route(entry: LinkEntry) -> Route | None:
    trip, rate = entry.round_trip, entry.throughput
    if trip is None or rate is None or not 0 <= trip <= LONGEST:
        return None
    return Route(trip, 8 * rate) if SLOWEST <= 8 * rate < math.inf else None
