"""Seconds over networks, what would gain most, and two profiles side by side."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from protocols.errors import ConfigError
from puma_actors.planning.timing import Step, token_time
from puma_actors.profiling.whatif.path import critical_path
from puma_actors.profiling.whatif.variants import Request, Row, Variant, Work
from puma_actors.transports.delay.network import PRESETS, Network, Route, parse_network

ROUND_TRIPS = ("0.5ms", "2ms", "10ms", "20ms", "40ms", "80ms", "150ms", "300ms")
BANDWIDTHS = ("10mbit", "50mbit", "100mbit", "1gbit", "10gbit")
_TIME = re.compile(r"(\d{1,6}(?:\.\d{1,9})?)(ms|s)")
_MOST_CELLS = 2500
HALVED, DOUBLED, COMPUTED = "latency halved", "bandwidth doubled", "computation halved"


@dataclass(frozen=True, slots=True)
class Grid:
    """The networks of a question: named ones, and every round trip with every bandwidth."""

    named: tuple[Network, ...]
    round_trips: tuple[float, ...]
    bandwidths: tuple[float | None, ...]

    def cell(self, round_trip: float, bandwidth: float | None) -> Network:
        """A network of the grid."""
        return Network("grid", Route(round_trip, bandwidth))


@dataclass(frozen=True, slots=True)
class Gain:
    """What a change of the network or the machine would save in a step: seconds, and their share of
    the step.
    """

    what: str
    seconds: float
    share: float

    def to_public(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "what": self.what,
            "seconds": round(self.seconds, 6),
            "share": round(self.share, 6),
        }


def faster(network: Network, *, latency: float = 1.0, bandwidth: float = 1.0) -> Network:
    """The network with every latency and bandwidth multiplied."""

    def change(route: Route) -> Route:
        rate = None if route.bandwidth is None else route.bandwidth * bandwidth
        return Route(route.round_trip * latency, rate, route.jitter)

    links = tuple((ends, change(route)) for ends, route in network.links)
    return replace(network, default=change(network.default), links=links)


def gains(step: Step, network: Network) -> list[Gain]:
    """What would gain most, first."""
    now = token_time(step, network).total
    changed = {
        HALVED: token_time(step, faster(network, latency=0.5)),
        DOUBLED: token_time(step, faster(network, bandwidth=2.0)),
        COMPUTED: token_time(replace(step, computation=step.computation / 2), network),
    }
    saved = {what: max(0.0, now - time.total) for what, time in changed.items()}
    found = [Gain(what, value, value / now if now else 0.0) for what, value in saved.items()]
    return sorted(found, key=lambda gain: -gain.seconds)


def best(request: Request, index: int, network: Network) -> Variant:
    """The variant whose step `index` takes least; of equal ones the first."""
    return min(request.variants, key=lambda each: token_time(each.works[index].step, network).total)


def places(work: Work) -> list[tuple[Row, float, float, float | None]]:
    """Places with their shares of rounds, of all bytes and of the computation (None: unknown); the
    largest share of anything first.
    """
    rounds = sum(row.rounds for row in work.places) or 1.0
    nbytes = sum(row.online + row.offline for row in work.places) or 1.0
    spent = sum(row.seconds or 0.0 for row in work.places)
    found = []
    for row in work.places:
        part = row.seconds / spent if row.seconds is not None and spent else None
        found.append((row, row.rounds / rounds, (row.online + row.offline) / nbytes, part))
    return sorted(found, key=lambda item: -max(item[1], item[2]))


# -- the grid --------------------------------------------------------------------------------------


def grid_of(
    networks: Sequence[str] = (), round_trips: Sequence[str] = (), bandwidths: Sequence[str] = ()
) -> Grid:
    """The grid that the texts name; without texts the presets and the usual figures.

    Raises:
        ConfigError: a text cannot be parsed, or the grid is too large.
    """
    named = [network for text in networks if (network := parse_network(text)) is not None]
    trips = [_route(text, "round_trip").round_trip for text in round_trips or ROUND_TRIPS]
    rates = [_route(text, "bandwidth").bandwidth for text in bandwidths or BANDWIDTHS]
    check_size(len(trips) * len(rates))
    return Grid(
        tuple(named or PRESETS.values()),
        tuple(sorted(set(trips))),
        tuple(sorted(set(rates), key=lambda rate: rate or float("inf"))),
    )


def seconds_of(option: str, text: str) -> float:
    """Seconds in a text such as 600ms. Raises ConfigError."""
    figure = _TIME.fullmatch(text.strip().lower())
    if figure is None:
        raise ConfigError(f"{option} {text!r}: give a time such as 3s or 600ms")
    return float(figure[1]) / (1e3 if figure[2] == "ms" else 1.0)


def check_size(cells: int) -> None:
    """Raise ConfigError if the grid is too large to read."""
    if cells > _MOST_CELLS:
        raise ConfigError(f"a grid of {cells:,} networks: give at most {_MOST_CELLS:,}")


def _route(text: str, what: str) -> Route:
    """A route from one figure. Raises ConfigError if the text says anything else."""
    network = parse_network(text) or Network("", Route())
    route = network.default
    alone = replace(Route(), **{what: getattr(route, what)})
    empty = what == "bandwidth" and route.bandwidth is None
    if network.links or alone != route or empty:
        example = "40ms" if what == "round_trip" else "100mbit"
        raise ConfigError(f"{text!r} is no {what.replace('_', ' ')}: give figures like {example}")
    return route


# -- as JSON types ---------------------------------------------------------------------------------


def to_public(request: Request, grid: Grid, old: Request | None = None) -> dict[str, Any]:
    """Everything, for a request and one to compare it with.

    Raises:
        ConfigError: the other request has other steps.
    """
    found = {
        "model": request.model,
        "tokens_in": request.tokens_in,
        "recorded": request.recorded,
        "computation": request.source,
        "grid": {
            "round_trips_ms": [1e3 * each for each in grid.round_trips],
            "bandwidths_mbit": [None if b is None else b / 1e6 for b in grid.bandwidths],
        },
        "variants": [_variant(variant, grid) for variant in request.variants],
        "best": [_best(request, network) for network in grid.named],
    }
    if old is not None:
        found["compare"] = set_beside(request, grid, old)
    return found


def _variant(variant: Variant, grid: Grid) -> dict[str, Any]:
    return {
        **_settings(variant),
        "steps": [_step(work, grid) for work in variant.works],
    }


def _settings(variant: Variant) -> dict[str, Any]:
    return {"tree": variant.tree, "lanes": variant.lanes, "draft": variant.draft}


def _step(work: Work, grid: Grid) -> dict[str, Any]:
    step = work.step
    return {
        "name": step.name,
        "tokens": round(step.tokens, 6),
        "rounds": step.rounds,
        "exchanges": step.messages,
        "sent_bytes": round(step.sent),
        "dealt_bytes": round(step.dealt),
        "computation_seconds": round(step.computation, 6),
        "networks": [
            {
                **network.to_public(),
                **token_time(step, network).to_public(),
                "gains": [gain.to_public() for gain in gains(step, network)],
                "critical_path": [leg.to_public() for leg in critical_path(work, network)],
            }
            for network in grid.named
        ],
        "grid_seconds": [
            [round(token_time(step, grid.cell(trip, rate)).total, 6) for rate in grid.bandwidths]
            for trip in grid.round_trips
        ],
        "places": [
            {
                **row.to_public(),
                "rounds_share": round(rounds, 6),
                "bytes_share": round(nbytes, 6),
                "computation_share": None if spent is None else round(spent, 6),
            }
            for row, rounds, nbytes, spent in places(work)
        ],
    }


def _best(request: Request, network: Network) -> dict[str, Any]:
    found = {}
    for index, work in enumerate(request.variants[0].works):
        variant = best(request, index, network)
        found[work.step.name] = _settings(variant)
    return {"network": network.name, **found}


# -- two requests side by side ---------------------------------------------------------------------


def set_beside(request: Request, grid: Grid, old: Request) -> dict[str, Any]:
    """Another request beside one, as JSON types.

    Raises:
        ConfigError: it has other steps.
    """
    return {
        "model": old.model,
        "tokens_in": old.tokens_in,
        "computation": old.source,
        "variants": {
            "old": _settings(old.variants[0]),
            "new": _settings(request.variants[0]),
        },
        "steps": compared(request, old, grid),
    }


def compared(new: Request, old: Request, grid: Grid) -> list[dict[str, Any]]:
    """For each step of both: counts and seconds, old and new; the first variant of each.

    Raises:
        ConfigError: their steps differ.
    """
    pairs = list(zip(old.variants[0].works, new.variants[0].works, strict=False))
    names = [[work.step.name for work in each.variants[0].works] for each in (old, new)]
    if names[0][: len(pairs)] != names[1][: len(pairs)]:
        raise ConfigError(
            f"--compare: the old profile has {' and '.join(names[0])}, the new one "
            f"{' and '.join(names[1])}: compare profiles of models of one kind"
        )
    return [_compared(before, after, grid) for before, after in pairs]


def _compared(before: Work, after: Work, grid: Grid) -> dict[str, Any]:
    one, two = before.step, after.step
    figures = ("rounds", "messages", "sent", "dealt", "computation")
    old, new = ({row.name: row for row in work.places} for work in (before, after))
    nothing = Row("", 0.0, 0.0, 0.0, 0.0)
    return {
        "name": two.name,
        **{name: _pair(getattr(one, name), getattr(two, name)) for name in figures},
        "networks": [
            {
                "name": network.name,
                **_pair(token_time(one, network).total, token_time(two, network).total),
            }
            for network in grid.named
        ],
        "places": [
            {
                "name": name,
                "rounds": _pair(old.get(name, nothing).rounds, new.get(name, nothing).rounds),
                "bytes": _pair(*(_bytes(rows.get(name, nothing)) for rows in (old, new))),
            }
            for name in dict.fromkeys((*old, *new))
        ],
    }


def _bytes(row: Row) -> float:
    return row.online + row.offline


def _pair(old: float, new: float) -> dict[str, float | None]:
    ratio = round(new / old, 4) if old else None
    return {"old": round(old, 6), "new": round(new, 6), "ratio": ratio}
