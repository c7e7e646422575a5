"""Every error class has an exit code and a remedy."""

import inspect
import re
from pathlib import Path

import pytest

from protocols import errors
from protocols.errors import ConfigError, PumaError, StoreError, StoreNameError, TransportError

ROOT = Path(__file__).parents[2]
CLASSES = [
    found
    for _, found in inspect.getmembers(errors, inspect.isclass)
    if issubclass(found, PumaError)
]
CODES = {
    "PumaError": 1,
    "ConfigError": 2,
    "ModelError": 2,
    "TransportError": 1,
    "ConnectError": 1,
    "NoAnswerError": 1,
    "ConnectionLostError": 1,
    "ProtocolError": 1,
    "LocalProtocolError": 1,
    "RemoteProtocolError": 1,
    "PeerFailed": 1,
    "RangeError": 1,
    "StoreError": 4,
    "StoreNameError": 2,
    "Busy": 3,
    "WorkersError": 1,
}


def test_exit_codes_are_a_promise():
    assert {each.__name__: each.exit_code for each in CLASSES} == CODES


@pytest.mark.parametrize("kind", CLASSES)
def test_each_says_what_it_is_and_what_to_do(kind):
    assert kind.__doc__
    assert "remedy" in vars(kind)  # its own, not what all have
    assert len({each.remedy for each in CLASSES}) == len(CLASSES)


def test_the_pages_have_them_all():
    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (\d) \|$", page, re.M))
    others = {"PumaError", "LocalProtocolError", "RemoteProtocolError"}  # named in the text
    assert {name: int(code) for name, code in rows.items()} == {
        name: code for name, code in CODES.items() if name not in others
    }
    table = (ROOT / "docs" / "hosts.md").read_text("utf-8")
    known = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.M)}
    assert known == {0, *CODES.values(), errors.EXIT_INTERRUPTED}


def test_a_damaged_store_is_nothing_a_user_can_correct():
    assert not issubclass(StoreError, ConfigError)
    assert StoreError.exit_code != ConfigError.exit_code == StoreNameError.exit_code


def test_trouble_with_connections_has_three_kinds():
    kinds = {each.__name__ for each in TransportError.__subclasses__()}
    assert {"ConnectError", "NoAnswerError", "ConnectionLostError"} <= kinds
