"""The line that explains a measured time is a sum."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.base.events import Key
from puma_actors.planning.timing import Part, Step, time_of
from puma_actors.profiling.reconcile import line, lines
from puma_actors.profiling.sweep import COMPUTE, DEALER, HIDDEN, NETWORK, PROCESSOR
from puma_actors.profiling.whatif.variants import Work
from puma_actors.profiling.whatif.words import duration
from puma_actors.transports.delay.network import PRESETS

WAN = PRESETS["wan"]
STEP = Step("prefill", (Part("layers.0", 100, 100, 1e6, 1e6),), computation=9.0)
PLACE = Key("layers.0", "lift")


def terms(text):
    """The signed seconds of the sum's terms, and what they are said to add up to."""
    sums, _, measured = text.removesuffix(" measured").rpartition(" = ")
    first, *others = re.split(r" ([+-]) ", re.sub(r", [^,]* of it for the processor", "", sums))
    signs = [1, *(1 if sign == "+" else -1 for sign in others[::2])]
    found = [sign * seconds(term) for sign, term in zip(signs, [first, *others[1::2]], strict=True)]
    return found, seconds(measured)


def seconds(term):
    value, unit = re.findall(r"([\d.]+) (s|ms|µs)\b", term)[-1]
    return float(value) * {"s": 1, "ms": 1e-3, "µs": 1e-6}[unit]


@given(st.floats(0, 1e5))
def test_a_duration_keeps_three_digits(value):
    text = duration(value)
    assert re.fullmatch(r"(\d{1,3}(,\d{3})*|\d\.\d{1,3}|\d\d\.\d) (s|ms|µs)", text)
    assert seconds(text.replace(",", "")) == pytest.approx(value, rel=0.0051, abs=1e-6)


@given(
    st.floats(0.01, 60),
    st.floats(0, 3),
    st.floats(0, 3),
    st.sampled_from([None, *PRESETS.values()]),
)
def test_the_terms_add_up(measured, computed, dealer, network):
    """Whatever is measured, each term to three digits."""
    found, total = terms(line(STEP, network, measured, {COMPUTE: computed, DEALER: dealer}))
    assert sum(found) == pytest.approx(measured, abs=0.02 * max(map(abs, [*found, total])) + 1e-9)
    assert total == pytest.approx(measured, rel=0.005)


def test_what_was_seen_is_said_and_not_what_is_predicted():
    """The model of time expects other computation, and more waiting for the dealer."""
    seen = {(COMPUTE, PLACE): 0.2, (HIDDEN, PLACE): 5.0, (DEALER, PLACE): 0.1, (NETWORK, PLACE): 2}
    phase = SimpleNamespace(keys=seen, wall=4.8, steps=2)
    (text,) = lines([phase], [Work(STEP, ())], WAN)
    assert time_of(STEP, WAN).waiting != 0.05
    assert "computation 100 ms + waiting for the dealer 50 ms + waiting for each other " in text
    assert text.endswith(" = 2.4 s measured")


def test_what_ran_at_the_same_time_is_taken_off():
    text = line(STEP, WAN, 1.5, {COMPUTE: 0.1})
    assert re.search(r" - \d+ ms that ran at the same time = 1\.5 s measured$", text)


def test_without_a_network_the_processor_is_named():
    text = line(replace(STEP, computation=0.0), None, 1.0, {COMPUTE: 0.2, PROCESSOR: 0.3})
    assert text.startswith("100 rounds x 0 s and 2 ways of the client x 0 s = 0 s + ")
    assert "+ waiting for each other 800 ms, 300 ms of it for the processor = 1 s measured" in text
