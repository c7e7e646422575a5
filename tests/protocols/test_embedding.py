"""Secure embedding, and the results for the client."""

import numpy as np
import pytest
from helpers import A, B, D, generator, run, share_ints
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.base.lane import Settings
from protocols.base.ring import RESIDUAL_BITS, signed
from protocols.base.shares import COMPUTING, Role
from protocols.drivers.lockstep import combine, deal, run_parties
from protocols.embedding import LOOKUP_BITS, domain_bits, embed, request_rows, reveal, revealed
from protocols.errors import LocalProtocolError
from protocols.linear import Table


def share_table(words):
    return {role: Table.of(part) for role, part in deal(words, frac=RESIDUAL_BITS).items()}


def look_up(words, ids, chosen=None):
    """Outcome of one embedding; every computing party returns its share."""
    table = share_table(words)
    ids = np.asarray(ids, dtype=np.int64)

    async def party(lane):
        return await embed(lane, table[lane.role], ids.size)

    async def client(lane):
        await request_rows(lane, ids, words.shape[0])

    programs = dict.fromkeys(COMPUTING, party)
    return run_parties({**programs, Role.CLIENT: client}, chosen)


def random_table(rows, columns, seed=0):
    """Signed entries up to the largest that a look-up can carry."""
    limit = 2 ** (LOOKUP_BITS - 2)
    return generator(seed).integers(-limit + 1, limit, (rows, columns)).view(np.uint64)


def shares_of(outcome):
    return {role: outcome.results[role] for role in COMPUTING}


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 9, 64, 65, 300, 1025])
def test_rows_at_the_edges(rows):
    words = random_table(rows, 3)
    ids = [0, rows - 1, rows // 2, rows - 1, 0]
    outcome = look_up(words, ids)
    shares = shares_of(outcome)
    np.testing.assert_array_equal(combine(shares), words[ids])
    assert (shares[A].width, shares[A].frac) == (64, RESIDUAL_BITS)


def test_every_row_of_a_table():
    words = random_table(100, 2)
    np.testing.assert_array_equal(combine(shares_of(look_up(words, range(100)))), words)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 200).flatmap(
        lambda rows: st.tuples(
            st.just(rows), st.lists(st.integers(0, rows - 1), min_size=1, max_size=9)
        )
    ),
    st.integers(1, 6),
)
def test_any_ids(drawn, columns):
    rows, ids = drawn
    words = random_table(rows, columns, rows)
    np.testing.assert_array_equal(combine(shares_of(look_up(words, ids))), words[ids])


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 70), st.data())
def test_shifts_that_are_not_the_clients(rows, data):
    ids = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=5))
    words = random_table(rows, 2, rows)
    shares = shares_of(look_up(words, ids, Settings(prepared=True)))
    np.testing.assert_array_equal(combine(shares), words[ids])


@pytest.mark.parametrize(("rows", "bits"), [(1, 2), (4, 2), (5, 3), (49152, 16), (65537, 17)])
def test_domain(rows, bits):
    assert domain_bits(rows) == bits


def test_a_missing_client_is_noticed():
    table = share_table(random_table(8, 2))

    async def party(lane):
        return await embed(lane, table[lane.role], 1)

    with pytest.raises(LocalProtocolError, match="no key agreed with client"):
        run_parties(dict.fromkeys(COMPUTING, party))


# -- reveal ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 13, 24, 42, 64])
def test_the_client_gets_the_value_and_nobody_else_a_byte(width):
    words = generator().integers(0, 2**64, (3, 5), dtype=np.uint64)
    values = signed(words, width)
    shared = share_ints(values, width)

    async def party(lane):
        await reveal(lane, shared[lane.role])

    async def client(lane):
        return await revealed(lane, values.shape, width)

    outcome = run_parties({**dict.fromkeys(COMPUTING, party), Role.CLIENT: client})
    np.testing.assert_array_equal(signed(outcome.results[Role.CLIENT], width), values)
    assert set(outcome.views) == {Role.CLIENT}
    assert len(outcome.views[Role.CLIENT]) == 2
    assert outcome.cost.online == 2 * -(-15 * width // 8)
    assert outcome.cost.rounds == outcome.cost.offline == 0


def test_reveal_of_a_computed_value():
    async def program(lane, x):
        return x + x

    shared = run(program, share_ints([21, -4], 40)).results
    assert signed(combine(shared), 40).tolist() == [42, -8]
    assert {A, B, D} == set(shared)
