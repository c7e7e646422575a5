"""A single party's view is uniform and the same for all inputs; a broken mask is noticed."""

import os

import numpy as np
import pytest
from helpers import A, B, D, local, own, share, share_ints
from privacy_cases import (
    COUNT,
    NAMES,
    OTHER_SETTINGS,
    RUNS,
    check_case,
    column,
    inputs_of,
    run_once,
    table_of,
)
from uniformity import (
    NotUniform,
    SimulatedLink,
    check_alike,
    check_uniform,
    check_words,
    observe,
    recording,
    rest_by_words,
)

from protocols import compare, spline
from protocols.arithmetic import mul
from protocols.base import blocks
from protocols.base.cost import Traffic
from protocols.base.fields import join
from protocols.base.lane import Lane, Settings
from protocols.base.prf import KeyRing, Stream
from protocols.base.shares import COMPUTING, EVALUATORS, Role
from protocols.drivers import lockstep
from protocols.drivers.lockstep import Exchange, LockstepLink, run_parties
from protocols.drivers.trace import run_now
from protocols.embedding import embed, request_rows, reveal, revealed
from protocols.functions import histogram, scaled
from protocols.kernels.packing import unpack


@pytest.mark.parametrize("name", NAMES)
def test_views_are_uniform_and_the_dealer_receives_nothing(name):
    check_case(lambda variant: run_once(name, variant))


@pytest.mark.parametrize(("name", "settings"), OTHER_SETTINGS)
def test_views_under_other_settings(name, settings):
    check_case(lambda variant: run_once(name, variant, settings))


@pytest.mark.parametrize("tree", ["balanced", "traffic"])
def test_a_maximum_in_pairs_is_uniform_too(tree, monkeypatch):
    """As it is found among many entries."""
    monkeypatch.setattr(compare, "MANY", 1)
    check_case(lambda variant: run_once("maximum", variant, Settings(tree=tree)))


@pytest.mark.parametrize("name", ["silu", "exp"])
def test_many_entries_with_the_balanced_tree(name, monkeypatch):
    """They are worked on as with the least traffic, but for some levels."""
    monkeypatch.setattr(blocks, "MANY", 1)
    check_case(lambda variant: run_once(name, variant, Settings(tree="balanced")))


def embed_once(variant, prepared=False):
    """Eight rows of a small table, all the first or all the last."""
    values = np.full((5, 2), variant << 30)
    table = table_of(values)
    ids = np.full(COUNT, 0 if variant == 0 else 4)

    async def party(lane):
        return await embed(lane, table[lane.role], COUNT)

    async def client(lane):
        await request_rows(lane, ids, 5)

    programs = {**dict.fromkeys(COMPUTING, party), Role.CLIENT: client}
    return run_parties(programs, Settings(prepared=prepared))


@pytest.mark.parametrize("prepared", [False, True])
def test_embedding_hides_ids_and_rows_from_all_three(prepared):
    check_case(lambda variant: embed_once(variant, prepared), COMPUTING)


def test_the_dealer_hears_in_embedding_from_client_and_evaluators():
    with recording() as records:
        embed_once(0)
    assert {sender for sender, _ in records[D].sizes} == {Role.CLIENT, A, B}
    assert not records[Role.CLIENT].received


def test_reveal_sends_uniform_words_whose_difference_is_the_value():
    values = np.arange(COUNT) - 3

    def once():
        shared = share_ints(values, 40)

        async def party(lane):
            await reveal(lane, shared[lane.role])

        async def client(lane):
            return await revealed(lane, (COUNT,), 40)

        run_parties({**dict.fromkeys(COMPUTING, party), Role.CLIENT: client})

    seen = observe(once, RUNS)
    halves = np.split(seen[Role.CLIENT].received, 2, axis=1)
    for half in halves:
        check_uniform(half, "a message to the client")
    assert all(seen[role].received.shape[1] == 0 for role in COMPUTING)


# -- jointly with what the party knows already -----------------------------------------------------

WORD_PROTOCOLS = ["mul by one bit", "mul", "square_sum", "mul3", "poly", "select", "matmul"]


def joint_words(name, role, runs=RUNS):
    """(runs, words): the party's input shares, what it drew and what it received."""
    rows = []
    for _ in range(runs):
        function, inputs = inputs_of(name, 1)
        shares = [own(value, role) for value in inputs if isinstance(value, dict)]
        held = [np.ascontiguousarray(t.a) for t in shares if t.a.dtype == np.uint64]
        held += [np.ascontiguousarray(t.b) for t in shares if t.b.dtype == np.uint64]
        unique = dict.fromkeys(part.tobytes() for part in held)  # a tensor given twice, once

        def program(party, function=function, inputs=inputs):
            return lambda lane: function(lane, *(own(value, party) for value in inputs))

        with recording() as records:
            run_parties({party: program(party) for party in COMPUTING})
        record = records[role]
        known = [*unique, *record.drawn, *record.received]
        rows.append(np.concatenate([whole_words(part) for part in known]))
    return np.stack(rows)


def whole_words(part):
    """The words of a message; those of a narrower ring are filled up with coins."""
    if len(part) % 8 == 0:
        return np.frombuffer(part, dtype=np.uint64)
    width = 8 * len(part) // COUNT
    narrow = unpack(np.frombuffer(part, dtype=np.uint8), width, COUNT)
    coins = np.frombuffer(os.urandom(8 * COUNT), dtype=np.uint64)
    return narrow | coins << np.uint64(width)


@pytest.mark.parametrize("role", EVALUATORS)
@pytest.mark.parametrize("name", WORD_PROTOCOLS)
def test_messages_are_not_tied_to_what_the_party_knows(name, role):
    known = joint_words(name, role)
    data = np.ascontiguousarray(known).view(np.uint8)
    # The words of one element at most: all pairs of all elements would be many.
    check_words(np.ascontiguousarray(known[:, :: COUNT // 2]), f"{name} at {role}")
    check_uniform(data, f"{name} at {role}, jointly")


@pytest.mark.parametrize("role", EVALUATORS)
@pytest.mark.parametrize(
    "name",
    [
        "mul",
        "lift",
        "less",
        "select",
        "spline",
        "silu",
        "waves",
        "exp part",
        "mul3, narrow",
        "rsqrt",
    ],
)
def test_a_simulator_without_inputs_makes_the_same_view(name, role):
    """The party's own code, run on random shares against messages made of coins, opens values with
    the same statistics as in a real run.
    """
    with recording() as records:
        run_once(name, 1)
    sizes = records[role].sizes
    keys = lockstep.pair_secrets(COMPUTING)[role]

    def simulate():
        function, inputs = inputs_of(name, 0)  # for the shapes: the words are replaced
        like = LockstepLink(role, Exchange(traffic=Traffic()), KeyRing(role, keys), Settings())
        link = SimulatedLink(like, sizes)
        mine = [own(local_noise(value), role) for value in inputs]
        run_now(function(Lane(link), *mine))

    real = observe(lambda: run_once(name, 1), RUNS)[role]
    ideal = observe(simulate, RUNS)[role]
    assert ideal.opened.shape == real.opened.shape
    check_uniform(ideal.opened, "simulated")
    check_alike(real.opened, ideal.opened, f"{name} at {role}: real beside simulated")


def local_noise(value):
    """A sharing with every word replaced by coins."""
    if not isinstance(value, dict):
        return value

    def noise(part):
        if part.dtype == np.uint8:
            return np.frombuffer(os.urandom(part.size), np.uint8).reshape(part.shape) & np.uint8(1)
        return np.frombuffer(os.urandom(part.nbytes), np.uint64).reshape(part.shape)

    return local(value, lambda t: type(t)(t.role, noise(t.a), noise(t.b), *_rest(t)))


def _rest(tensor):
    return (tensor.width, tensor.frac) if hasattr(tensor, "width") else ()


# -- negative controls: what a broken mask looks like ----------------------------------------------


def fails(name, settings=None):
    with pytest.raises(NotUniform):
        check_case(lambda variant: run_once(name, variant, settings))


BROKEN = [
    *("mul", "lift", "less", "select", "and", "silu", "rms_norm", "waves", "exp part"),
    *("rsqrt", "histogram"),
]
LEAST = [(name, Settings(tree="traffic")) for name in ("silu", "waves", "rms_norm")]


@pytest.mark.parametrize(("name", "settings"), [*((name, None) for name in BROKEN), *LEAST])
def test_masks_of_zeros_are_noticed(name, settings, monkeypatch):
    whole = Lane.draw

    def mask(self, shape, width=64):
        return whole(self, D, shape, width) * np.uint64(0)

    def masks(self, shape, width=64):
        return tuple(
            whole(self, evaluator, shape, width) * np.uint64(0) for evaluator in EVALUATORS
        )

    monkeypatch.setattr(Lane, "mask", mask)
    monkeypatch.setattr(Lane, "masks", masks)
    fails(name, settings)


@pytest.mark.parametrize(
    "name", ["less", "and", "select", "lift", "waves", "exp part", "mul3, narrow"]
)
def test_unmasked_shares_from_the_dealer_are_noticed(name, monkeypatch):
    whole, rests = Lane._draw_fields, Lane._rests

    def zeros(self, peer, fields):
        return [half * np.uint64(0) for half in whole(self, peer, fields)]

    def unmasked(self, drawer, fields, values):
        rests(self, drawer, fields, values)
        return join(fields, values)

    monkeypatch.setattr(Lane, "_draw_fields", zeros)
    monkeypatch.setattr(Lane, "_rests", unmasked)
    fails(name)


@pytest.mark.parametrize("name", ["mul", "less", "spline", "rsqrt"])
def test_keys_used_for_two_runs_are_noticed(name, monkeypatch):
    fixed = {
        (one, two): bytes(sorted((one + two).encode()))[:32].ljust(32)
        for one in COMPUTING
        for two in COMPUTING
    }
    monkeypatch.setattr(
        lockstep, "pair_secrets", lambda roles: {r: {p: fixed[r, p] for p in roles} for r in roles}
    )
    monkeypatch.setattr(lockstep.os, "urandom", lambda count: bytes(range(count)))
    fails(name)


def test_a_stream_that_repeats_is_noticed(monkeypatch):
    """Every element of a draw under the same mask; the keys are fresh."""
    whole = Stream.words

    def repeating(self, shape, width=64):
        return np.resize(whole(self, (1,), width), shape)

    monkeypatch.setattr(Stream, "words", repeating)
    monkeypatch.setattr(Stream, "rest", rest_by_words)
    fails("mul by one bit")
    fails("lift")


def test_two_lanes_with_one_stream_are_noticed(monkeypatch):
    """Two products side by side under the same masks: the opened words repeat."""

    def once(variant):
        x, y = share(column(variant, 1.0, 3.0)), share(column(variant, 1.0, 3.0))

        async def program(lane):
            return await lane.both(
                lambda s: mul(s, x[lane.role], x[lane.role], 8),
                lambda s: mul(s, y[lane.role], y[lane.role], 8),
            )

        run_parties(dict.fromkeys(COMPUTING, program))

    check_case(once)
    whole = LockstepLink.stream
    monkeypatch.setattr(KeyRing, "stream", forgetful(KeyRing.stream))
    monkeypatch.setattr(LockstepLink, "stream", lambda self, peer, path: whole(self, peer, ()))
    with pytest.raises(NotUniform, match="opened"):
        check_case(once)


def forgetful(stream):
    """A key ring that does not remember the streams it opened."""

    def opened_again(self, peer, path):
        self._opened.clear()
        return stream(self, peer, path)

    return opened_again


def test_roots_used_again_are_noticed(monkeypatch):
    monkeypatch.setattr(
        spline, "draw_roots", lambda lane, peer, count: np.full((count, 16), 5, dtype=np.uint8)
    )
    fails("spline")


def test_roots_of_ladders_used_again_are_noticed(monkeypatch):
    monkeypatch.setattr(
        scaled, "draw_roots", lambda lane, peer, count: np.full((count, 16), 5, dtype=np.uint8)
    )
    fails("rsqrt")


def test_roots_of_buckets_used_again_are_noticed(monkeypatch):
    monkeypatch.setattr(
        histogram, "draw_roots", lambda lane, peer, count: np.full((count, 16), 5, dtype=np.uint8)
    )
    fails("histogram")


def test_words_tied_by_an_addition_are_noticed():
    known = np.random.default_rng(0).integers(0, 2**64, (RUNS, 3), dtype=np.uint64)
    check_words(known, "independent")
    for tied in (known[:, :1] + np.uint64(12345), np.uint64(7) - known[:, 2:]):
        with pytest.raises(NotUniform, match="beside another"):
            check_words(np.concatenate([known, tied], axis=1), "tied")


def test_each_statistic_has_its_own_control():
    rng = np.random.default_rng(1)
    views = rng.integers(0, 256, (RUNS, 64), dtype=np.uint8)
    check_uniform(views, "coins")
    check_alike(views[:64], views[64:], "coins")
    complement = np.concatenate([views, ~views], axis=1)
    with pytest.raises(NotUniform, match="at distance 512 agree"):
        check_uniform(complement, "complement")
    stuck = views.copy()
    stuck[:, 9] |= 16
    with pytest.raises(NotUniform, match="bit 76 of 512 is biased"):
        check_uniform(stuck, "stuck")
    leaning = views | (rng.integers(0, 8, views.shape, dtype=np.uint8) == 0) * np.uint8(255)
    with pytest.raises(NotUniform, match="on the whole"):
        check_uniform(leaning, "leaning")
    few = np.frombuffer(bytes.fromhex("00ff0ff03cc35aa5"), dtype=np.uint8)  # balanced bits
    with pytest.raises(NotUniform, match="chi-square"):
        check_uniform(few[rng.integers(0, 8, views.shape)], "few")
    with pytest.raises(NotUniform, match="depends on the input"):
        check_alike(stuck, ~stuck, "other")
    with pytest.raises(NotUniform, match="64 bytes for one input, 63 for another"):
        check_alike(views, views[:, 1:], "other")
