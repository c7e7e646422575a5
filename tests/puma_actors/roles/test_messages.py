"""Requests between roles: their form."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from message_samples import ALL

from models.programs.program import Batch
from models.programs.steps import StepSettings
from protocols.base.lane import APPROXIMATIONS, Settings
from protocols.errors import ConfigError, RemoteProtocolError
from puma_actors.roles.messages import (
    InferMessage,
    infer_message,
    parse,
)


@pytest.mark.parametrize("message", ALL, ids=lambda message: message.do)
def test_round_trip(message):
    header = message.header()
    assert header["do"] == message.do
    assert parse(header) == message
    for name in header:
        assert parse({**header}) == message
        if name != "do" and not (
            message.do == "infer" and name not in ("number", "lengths", "steps")
        ):
            with pytest.raises(RemoteProtocolError, match=name):
                parse({key: value for key, value in header.items() if key != name})
        with pytest.raises(RemoteProtocolError, match="malformed request"):
            parse({**header, name: object()})
    with pytest.raises(RemoteProtocolError, match="extra"):
        parse({**header, "extra": 1})


@pytest.mark.parametrize(
    "change",
    [
        {"number": -1},
        {"number": 1 << 62},
        {"number": True},
        {"number": 1.0},
        {"lengths": []},
        {"lengths": [0]},
        {"lengths": 4},
        {"lengths": [4, (1 << 20) + 1]},
        {"lengths": [1] * ((1 << 12) + 1)},
        {"lengths": [True]},
        {"rows": "some"},
        {"rows": 1},
        {"types": [-1]},
        {"types": [1 << 16]},
        {"types": "0"},
        {"steps": 0},
        {"steps": "2"},
        {"lanes": 0},
        {"lanes": 1025},
        {"further_lanes": 0},
        {"further_lanes": 1.0},
        {"further_tree": "auto"},
        {"further_tree": None},
        {"approximation": "loose"},
        {"tree": ""},
        {"tree": "auto"},
        {"reveal": "everything"},
    ],
    ids=str,
)
def test_inferences_out_of_bounds(change):
    header = InferMessage(number=0, lengths=[1], steps=1).header()
    with pytest.raises(RemoteProtocolError, match=f"malformed request, .*{next(iter(change))}"):
        parse({**header, **change})


@given(
    st.dictionaries(
        st.sampled_from(["do", "number", "plan", "which", "steps", "digest"]) | st.text(max_size=3),
        st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.binary(max_size=9),
        max_size=5,
    )
    | st.sampled_from([message.do for message in ALL]).map(lambda do: {"do": do})
)
def test_any_header_is_a_message_or_refused(header):
    try:
        message = parse(header)
    except RemoteProtocolError as error:
        assert "\n" not in str(error)
    else:
        assert parse(message.header()) == message


def test_refusals_never_repeat_what_was_sent():
    secret = "a text that nobody else may read"
    for header in ({"do": secret}, {"do": "infer", "number": secret}, {secret: 1}):
        with pytest.raises(RemoteProtocolError) as caught:
            parse({"lengths": [1], "steps": 1, **header})
        if secret not in header:
            assert secret not in str(caught.value)


@pytest.mark.parametrize("kind", APPROXIMATIONS)
def test_every_set_of_approximations_travels(kind):
    message = infer_message(0, Batch((1,)), 1, Settings(approximation=kind))
    assert parse(message.header()).settings().further.approximation == kind


def test_settings_travel():
    first = Settings("puma", "traffic", 3, "argmax")
    settings = StepSettings(first, replace(first, tree="rounds", lanes=1))
    for batch, steps in (
        (Batch((4,), "last"), 2),
        (Batch((4,)), 1),
        (Batch((3, 1, 2), "unit"), 1),
        (Batch((2, 1), "first", (0, 1, 1)), 1),
    ):
        message = parse(infer_message(7, batch, steps, settings).header())
        assert message.settings() == settings
        assert message.batch() == batch
        assert (message.number, message.steps) == (7, steps)
    for bad in (
        Settings(approximation="loose"),
        Settings(tree="x"),
        Settings(lanes=0),
        Settings(reveal="x"),
        Settings(lanes="2"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError, match="unusable request"):
            infer_message(0, Batch((1,)), 1, bad)


@pytest.mark.parametrize(
    "changes",
    [
        {"lengths": [2, 1], "steps": 2},
        {"lengths": [1 << 20, 1]},
        {"lengths": [2, 1], "types": [0, 1]},
        {"lengths": [2], "types": [0, 1, 1]},
    ],
    ids=str,
)
def test_parts_that_do_not_fit_together(changes):
    message = parse(InferMessage(**{"number": 0, "steps": 1, **changes}).header())
    with pytest.raises(RemoteProtocolError):
        message.batch()
