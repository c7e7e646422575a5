"""The emulated network between the roles: round-trip times and bandwidths of the links.

    network = parse_network("wan")                                 a preset
    network = parse_network("40ms,100mbit,jitter=2ms,seed=7")      a round trip and a bandwidth
    network = parse_network("wan,jitter=2ms")                      a preset, changed
    network = parse_network("far-dealer.toml")                     links that differ
    network.route(Role.DEALER, Role.CLIENT)                        -> Route
    network.describe(), network.to_public()                        for people, for JSON

A time is always that of a ROUND TRIP; each way takes half of it. A bandwidth is that of one link in
one direction. In a file:

    round_trip = "0.5ms"               # of every link without its own entry
    bandwidth = "10gbit"
    seed = 7

    [[links]]
    between = ["dealer", "*"]          # "*" is any role; the last matching entry counts
    round_trip = "40ms"                # missing values are taken from above
    bandwidth = "100mbit"

`puma_actors.transports.delay.channel` makes channels behave so.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import Field, ValidationError

from protocols.base.shares import Role
from protocols.errors import ConfigError
from puma_actors.base.strict import Strict, config_error, first_fault, read_toml

LONGEST = 10.0
"""Seconds; a longer round trip or jitter is taken for a wrong unit."""
SLOWEST = 1e3
"""Bits per second; a slower link is taken for a wrong unit too."""
ANY = "*"

_TIMES = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_RATES = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_FIGURE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-zµ]+)(?:/s)?")


@dataclass(frozen=True, slots=True)
class Route:
    """The connection between two roles.

    Attributes:
        round_trip: seconds there and back, for an empty frame; each way takes half.
        bandwidth: bits per second in each direction; None: unlimited.
        jitter: most extra seconds of a round trip; each way draws uniformly from half of it.

    Raises:
        ConfigError: a figure is out of range.
    """

    round_trip: float = 0.0
    bandwidth: float | None = None
    jitter: float = 0.0

    def __post_init__(self) -> None:
        for name in ("round_trip", "jitter"):
            value = getattr(self, name)
            if not 0 <= value <= LONGEST:
                raise ConfigError(f"network: {name} of {value:g} s: use 0 to {LONGEST:g} s")
        if self.bandwidth is not None and not SLOWEST <= self.bandwidth < math.inf:
            raise ConfigError(
                f"network: bandwidth of {self.bandwidth:g} bit/s: use at least 1kbit, or none"
            )

    @property
    def latency(self) -> float:
        """Seconds one way."""
        return self.round_trip / 2

    def describe(self) -> str:
        """A readable description, like "40 ms round trip, 100 Mbit/s"."""
        words = [f"{self.round_trip * 1e3:g} ms round trip"]
        if self.bandwidth is not None:
            unit, factor = ("Gbit/s", 1e9) if self.bandwidth >= 1e9 else ("Mbit/s", 1e6)
            words.append(f"{self.bandwidth / factor:g} {unit}")
        if self.jitter:
            words.append(f"up to {self.jitter * 1e3:g} ms jitter")
        return ", ".join(words)

    def to_public(self) -> dict[str, Any]:
        """As JSON types; `bandwidth_mbit` is null where it is unlimited."""
        return {
            "round_trip_ms": self.round_trip * 1e3,
            "bandwidth_mbit": None if self.bandwidth is None else self.bandwidth / 1e6,
            "jitter_ms": self.jitter * 1e3,
        }


Ends: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Network:
    """A route for every pair of roles.

    Attributes:
        name: the preset, the text or the file it comes from.
        default: the route between roles that no entry of `links` names.
        links: two roles (or `ANY`) and the route between them; the last matching entry counts.
        seed: seed of the jitter. Equal seeds draw equal sequences.
    """

    name: str
    default: Route
    links: tuple[tuple[Ends, Route], ...] = ()
    seed: int = 0

    def route(self, one: Role, two: Role) -> Route:
        """The route between two roles, the same in both directions."""
        for (a, b), route in reversed(self.links):
            if (_fits(a, one) and _fits(b, two)) or (_fits(a, two) and _fits(b, one)):
                return route
        return self.default

    def describe(self) -> str:
        """A readable description in one line."""
        words = [f"{self.name}: {self.default.describe()}"]
        words += [f"{a} to {b} {route.describe()}" for (a, b), route in self.links]
        return "; ".join(words)

    def to_public(self) -> dict[str, Any]:
        """As JSON types."""
        links = [{"between": list(ends), **route.to_public()} for ends, route in self.links]
        return {"name": self.name, **self.default.to_public(), "seed": self.seed, "links": links}


def _fits(end: str, role: Role) -> bool:
    return end in (ANY, role)


PRESETS: dict[str, Network] = {
    name: Network(name, route)
    for name, route in {
        "lan": Route(0.5e-3, 10e9),
        "paper": Route(1e-3, 5e9),
        "wan": Route(40e-3, 100e6),
        "intercontinental": Route(150e-3, 50e6),
    }.items()
}
"""`paper` is the setting of PUMA's experiments."""


# -- text -----------------------------------------------------------------------------------------


def parse_network(given: "str | Path | Network | None") -> Network | None:
    """A network from a preset's name, a text or a TOML file; see the module docstring.

    Raises:
        ConfigError: it cannot be parsed; the message says what is possible.
    """
    if given is None or isinstance(given, Network):
        return given
    if not isinstance(given, str | Path):
        raise ConfigError(f"a network is {type(given).__name__}: give a text, a path or a Network")
    if isinstance(given, Path) or given.strip().lower().endswith(".toml"):
        return read_network(Path(given))
    return _parse_text(given.strip().lower())


def _parse_text(text: str) -> Network:
    if text in PRESETS:
        return PRESETS[text]
    first, _, rest = text.partition(",")
    preset = PRESETS.get(first.strip())
    route = preset.default if preset else Route()
    found: dict[str, Any] = {}
    for piece in (rest if preset else text).split(","):
        key, value = _read_piece(piece.strip())
        if key in found:
            raise ConfigError(f"network {text!r} gives {key} twice: give it once")
        found[key] = value
    seed = found.pop("seed", 0)
    return Network(text, replace(route, **found), seed=seed)


def _read_piece(piece: str) -> tuple[str, Any]:
    """Parse `jitter=2ms`, or a figure whose unit says what it is."""
    key, equals, value = (part.strip() for part in piece.partition("="))
    if equals and key in _READERS:
        return key, _READERS[key](key, value)
    figure = _FIGURE.fullmatch(piece)
    if figure and figure[2] in _TIMES:
        return "round_trip", _read_time("round_trip", piece)
    if figure and figure[2] in _RATES:
        return "bandwidth", _read_rate("bandwidth", piece)
    raise ConfigError(
        f"network: {piece!r} is not known: use {', '.join(PRESETS)}; or a round-trip time (40ms) "
        f"and a bandwidth (100mbit), optionally jitter=2ms and seed=7, separated by commas; or a "
        "file NAME.toml"
    )


def _read_time(key: str, text: str) -> float:
    return _read_figure(key, text, _TIMES, "40ms")


def _read_rate(key: str, text: str) -> float:
    return _read_figure(key, text, _RATES, "100mbit")


def _read_figure(key: str, text: str, units: Mapping[str, float], example: str) -> float:
    figure = _FIGURE.fullmatch(text.strip().lower())
    if figure is None or figure[2] not in units:
        raise ConfigError(
            f"network: {key} {text!r} must be a number with one of the units {', '.join(units)}, "
            f"like {example}"
        )
    return float(figure[1]) * units[figure[2]]


def _read_seed(key: str, text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"network: {key} {text!r} must be a whole number, like 7")
    return int(text)


_READERS: dict[str, Callable[[str, str], Any]] = {
    "round_trip": _read_time,
    "bandwidth": _read_rate,
    "jitter": _read_time,
    "seed": _read_seed,
}


# -- files ----------------------------------------------------------------------------------------


class _Table(Strict):
    """The figures in a file."""

    round_trip: str | None = None
    bandwidth: str | None = None
    jitter: str | None = None

    def over(self, route: Route) -> Route:
        """`route` with the figures given here."""
        figures = self.model_dump(include=set(_Table.model_fields), exclude_none=True)
        return replace(route, **{key: _READERS[key](key, text) for key, text in figures.items()})


class _LinkTable(_Table):
    between: list[str]

    def ends(self) -> Ends:
        """The two roles."""
        known = [ANY, *(role for role in Role if role is not Role.TRACE)]
        if len(self.between) != 2 or not set(self.between) <= set(known):
            raise ConfigError(
                f"network: between = {self.between} must name two of {', '.join(known)}"
            )
        return self.between[0], self.between[1]


class _File(_Table):
    seed: int = Field(default=0, ge=0)
    links: list[_LinkTable] = Field(default_factory=list)


def read_network(path: Path) -> Network:
    """A network from a TOML file; see the module docstring.

    Raises:
        ConfigError: it cannot be read, or a key or value in it is unusable.
    """
    data = read_toml(path, "network: ")
    try:
        file = _File.model_validate(data)
        default = file.over(Route())
        links = tuple((table.ends(), table.over(default)) for table in file.links)
    except ValidationError as error:
        raise _unusable(error, path) from None
    except ConfigError as error:
        raise ConfigError(f"{error} (in {path})") from None
    return Network(path.name, default, links, file.seed)


def _unusable(error: ValidationError, path: Path) -> ConfigError:
    fault = first_fault(error)
    table = _LinkTable if fault.keys[0] == "links" and len(fault.keys) > 1 else _File
    return config_error(
        fault,
        f"network: {path}",
        f"use {', '.join(table.model_fields)}",
        'write figures as text with a unit ("40ms", "100mbit"), a seed as a whole number >= 0',
    )
