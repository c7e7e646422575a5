"""Descriptions of networks: presets, texts, files, and how bad ones are refused."""

import json
from pathlib import Path

import pytest

from protocols.base.shares import Role
from protocols.errors import ConfigError
from puma_actors.transports.delay.network import PRESETS, Network, Route, parse_network

A, B, D = Role.EVALUATOR_A, Role.EVALUATOR_B, Role.DEALER
FAR_DEALER = """
round_trip = "0.5ms"
bandwidth = "10gbit/s"
seed = 7

[[links]]
between = ["*", "dealer"]
round_trip = "40ms"

[[links]]
between = ["client", "dealer"]
bandwidth = "100mbit"
jitter = "2 ms"
"""


def parsed(text: str) -> Network:
    network = parse_network(text)
    assert network is not None
    return network


@pytest.mark.parametrize(
    ("name", "route"),
    [
        ("lan", Route(0.0005, 10e9)),
        ("paper", Route(0.001, 5e9)),
        ("wan", Route(0.040, 100e6)),
        ("intercontinental", Route(0.150, 50e6)),
    ],
)
def test_presets_give_round_trips(name: str, route: Route) -> None:
    network = parsed(f" {name.upper()} ")
    assert network is PRESETS[name]
    assert network.route(A, D) == network.route(D, A) == route
    assert route.latency == route.round_trip / 2


@pytest.mark.parametrize(
    ("text", "route", "seed"),
    [
        ("40ms,100mbit", Route(0.04, 100e6), 0),
        ("100Mbit/s, 40 ms", Route(0.04, 100e6), 0),
        ("40ms,100mbit,jitter=2ms,seed=7", Route(0.04, 100e6, 0.002), 7),
        ("wan,jitter=500us", Route(0.04, 100e6, 0.0005), 0),
        ("wan, 1gbit", Route(0.04, 1e9), 0),
        ("round_trip=.25s,bandwidth=9600bit", Route(0.25, 9600), 0),
        ("250µs", Route(0.00025), 0),
        ("5kbit", Route(0, 5000), 0),
        ("0ms", Route(), 0),
    ],
)
def test_texts(text: str, route: Route, seed: int) -> None:
    network = parsed(text)
    found = network.default
    assert (found.round_trip, found.jitter) == pytest.approx((route.round_trip, route.jitter))
    assert (found.bandwidth, network.seed, network.links) == (route.bandwidth, seed, ())


def test_nothing_and_a_network_pass_through() -> None:
    assert parse_network(None) is None
    assert parse_network(PRESETS["wan"]) is PRESETS["wan"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not known: use lan, paper, wan, intercontinental; or a round-trip time"),
        ("wlan", "'wlan' is not known: use lan"),
        ("40,100mbit", r"'40' is not known: use .* \(40ms\)"),
        ("40ms,", "'' is not known"),
        ("-4ms", "'-4ms' is not known"),
        ("40ms,100MB", "'100mb' is not known"),
        ("40ms,loss=1", "'loss=1' is not known: .* jitter=2ms and seed=7"),
        ("jitter=2", "jitter '2' must be a number with one of the units us, µs, ms, s, like 40ms"),
        ("bandwidth=2ms", "bandwidth '2ms' must .* bit, kbit, mbit, gbit, like 100mbit"),
        ("seed=x", "seed 'x' must be a whole number"),
        ("40ms,50ms", "'40ms,50ms' gives round_trip twice"),
        ("40s", "round_trip of 40 s: use 0 to 10 s"),
        ("jitter=11s", "jitter of 11 s"),
        ("1bit", "bandwidth of 1 bit/s: use at least 1kbit"),
        ("0mbit", "bandwidth of 0 bit/s"),
    ],
)
def test_bad_texts_are_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_network(text)


def write(folder: Path, text: str) -> str:
    file = folder / "net.toml"
    file.write_text(text, "utf-8")
    return str(file)


def test_files_with_links_of_their_own(tmp_path: Path) -> None:
    network = parsed(write(tmp_path, FAR_DEALER))
    near, far = Route(0.0005, 10e9), Route(0.04, 10e9)
    assert network.name == "net.toml"
    assert network.seed == 7
    assert network.route(A, B) == network.route(Role.OWNER, A) == near
    assert network.route(A, D) == network.route(D, A) == network.route(D, Role.OWNER) == far
    # The last matching entry counts; missing values come from the default, not another entry.
    last = Route(0.0005, 100e6, 0.002)
    assert network.route(D, Role.CLIENT) == network.route(Role.CLIENT, D) == last
    assert parse_network(tmp_path / "net.toml") == network


def test_public_form_and_words(tmp_path: Path) -> None:
    network = parsed(write(tmp_path, FAR_DEALER))
    public = json.loads(json.dumps(network.to_public()))
    assert public == {
        "name": "net.toml",
        "round_trip_ms": 0.5,
        "bandwidth_mbit": 10000.0,
        "jitter_ms": 0.0,
        "seed": 7,
        "links": [
            {
                "between": ["*", "dealer"],
                "round_trip_ms": 40.0,
                "bandwidth_mbit": 10000.0,
                "jitter_ms": 0.0,
            },
            {
                "between": ["client", "dealer"],
                "round_trip_ms": 0.5,
                "bandwidth_mbit": 100.0,
                "jitter_ms": 2.0,
            },
        ],
    }
    assert network.describe() == (
        "net.toml: 0.5 ms round trip, 10 Gbit/s; * to dealer 40 ms round trip, 10 Gbit/s; "
        "client to dealer 0.5 ms round trip, 100 Mbit/s, up to 2 ms jitter"
    )
    assert parsed("40ms").to_public()["bandwidth_mbit"] is None
    assert parsed("40ms").describe() == "40ms: 40 ms round trip"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latency = '4ms'", "unknown key latency: use round_trip, bandwidth, jitter, seed, links"),
        (
            "[[links]]\nbetween=['*', '*']\nloss='1'",
            r"unknown key links\.0\.loss: use round_trip, bandwidth, jitter, between",
        ),
        ("[[links]]\njitter='1ms'", r"links\.0\.between is missing: use .*between"),
        ("round_trip = 40", 'round_trip = 40: write figures as text with a unit .*"40ms"'),
        ("seed = -1", "seed = -1: .* a seed as a whole number >= 0"),
        ("seed = '1'", "seed = '1'"),
        ("links = 3", "links = 3"),
        ("bandwidth = 'fast'", r"bandwidth 'fast' must be a number .*net\.toml"),
        (
            "[[links]]\nbetween=['dealer']",
            r"between = \['dealer'\] must name two of \*, dealer",
        ),
        ("[[links]]\nbetween=['dealer', 'bob']", "must name two of"),
        ("[[links]]\nbetween=['dealer', 'trace']", "must name two of"),
        ("round_trip = ", r"net\.toml is not TOML"),
    ],
)
def test_bad_files_are_refused_by_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_network(write(tmp_path, text))


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*missing\.toml \(No such file"):
        parse_network(str(tmp_path / "missing.toml"))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not TOML"):
        parse_network(binary)
