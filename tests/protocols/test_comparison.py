"""Comparison, selection and maxima against integers: exhaustive where the ring is small."""

import numpy as np
import pytest
from helpers import (
    A,
    B,
    D,
    bits,
    declared,
    generator,
    ints,
    run,
    share,
    share_bits,
    share_ints,
    words,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import compare
from protocols.base.lane import Settings
from protocols.base.ring import canonical, signed
from protocols.base.shares import SecretTensor, constant
from protocols.compare import comparison_tree, less, maximum
from protocols.drivers.lockstep import combine
from protocols.errors import LocalProtocolError
from protocols.selection import Term, select

TREES = ["rounds", "traffic"]
tree = pytest.mark.parametrize("tree", TREES)


def with_masks(m, lam, width):
    """The sharing with these public words and these masks."""
    m, lam = (np.asarray(v, dtype=np.uint64) for v in (m, lam))
    one = generator().integers(0, 2**64, lam.shape, dtype=np.uint64)
    two = lam - one
    return {
        D: SecretTensor(D, one, two, width, 0),
        A: SecretTensor(A, m, one, width, 0),
        B: SecretTensor(B, m, two, width, 0),
    }


# -- comparison ------------------------------------------------------------------------------------


@tree
def test_less_for_every_mask_and_every_value_of_a_byte(tree):
    m, lam = (v.reshape(-1) for v in np.meshgrid(np.arange(256), np.arange(256)))
    expected = signed(words(m - lam), 8) < 0

    async def program(lane, x):
        return await less(lane, x, digits=2)

    got = bits(program, with_masks(m, lam, 8), settings=Settings(tree=tree))
    np.testing.assert_array_equal(got, expected)


@tree
def test_thresholds_for_every_mask_and_every_value_of_a_byte(tree):
    m, lam = (v.reshape(-1) for v in np.meshgrid(np.arange(256), np.arange(256)))
    x = signed(words(m - lam), 8).astype(int)
    thresholds = [-5, 0, 1, 63, -100]

    async def program(lane, x):
        return await less(lane, x, thresholds, digits=2)

    got = bits(program, with_masks(m, lam, 8), settings=Settings(tree=tree))
    assert got.shape == (65536, len(thresholds))
    for column, threshold in enumerate(thresholds):
        inside = np.abs(x - threshold) < 128
        assert inside.sum() > 39000
        np.testing.assert_array_equal(got[inside, column], x[inside] < threshold)


@pytest.mark.parametrize("shift", [1, 3, 4])
def test_shifted_comparison_of_every_mask_and_value(shift):
    """One digit of a small ring, from bit `shift` up."""
    width = shift + 4
    side = np.arange(1 << width)
    m, lam = (v.reshape(-1) for v in np.meshgrid(side, side))
    x = signed(words(m - lam), width)

    async def program(lane, x):
        return await less(lane, x, digits=1, shift=shift)

    got = bits(program, with_masks(m, lam, width)).astype(bool)
    limit = 2 ** (width - 1) - 2**shift  # the carry may cost a unit at the far end
    sure = (np.abs(x) < limit) & ((x >= 0) | (x <= -(2**shift)))
    np.testing.assert_array_equal(got[sure], (x < 0)[sure])
    unsure = (x < 0) & (x > -(2**shift))
    assert 0 < got[unsure].mean() < 1


@tree
@pytest.mark.parametrize("digits", range(1, 13))
def test_less_of_any_number_of_digits(digits, tree):
    width = 4 * digits
    limit = 2 ** (width - 1)
    x = generator(digits).integers(-limit, limit, 4000)
    special = [0, 1, -1, limit - 1, -limit, limit // 2, -limit // 2]
    x[: len(special)] = special

    async def program(lane, x):
        return await less(lane, x, digits=digits)

    settings = Settings(tree=tree)
    np.testing.assert_array_equal(bits(program, share_ints(x, width), settings=settings), x < 0)
    if width < 64:  # the same numbers in a larger ring
        np.testing.assert_array_equal(bits(program, share_ints(x), settings=settings), x < 0)


@tree
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(0, 16), st.integers(0, 1000))
def test_shifted_comparison_is_wrong_within_one_unit_alone(tree, digits, shift, seed):
    rng = generator(seed)
    limit = 2 ** (shift + 4 * digits - 1) - 2**shift
    x = rng.integers(-limit + 1, limit, 200)
    near = rng.integers(-3 * 2**shift, 3 * 2**shift + 1, 200)
    x = np.concatenate([x, near[np.abs(near) < limit], [0, -(2**shift)]])
    x = x[np.abs(x) < limit] if limit > 2**shift else x[:0]

    async def program(lane, x):
        return await less(lane, x, digits=digits, shift=shift)

    got = bits(program, share_ints(x), settings=Settings(tree=tree))
    assert not got[x >= 0].any()
    assert got[x <= -(2**shift)].all()


@tree
def test_many_thresholds_of_a_fixed_point_number(tree):
    cuts = [-8.0, -4.0, 0.0, 4.0, 15.5]
    x = generator().uniform(-1000, 1000, 500)
    x[:5] = np.array(cuts) + 0.1

    async def program(lane, x):
        return await less(lane, x, [round(c * 2**18) for c in cuts], digits=5, shift=14)

    got = bits(program, share(x, width=44), settings=Settings(tree=tree))
    sure = np.abs(x[:, None] - cuts) > 1 / 16
    np.testing.assert_array_equal(got[sure], (x[:, None] < cuts)[sure])
    assert sure[:5].all()


def test_less_refuses_digits_that_do_not_fit():
    async def program(lane, x):
        return await less(lane, x, digits=5, shift=10)

    with pytest.raises(LocalProtocolError, match="5 digits from bit 10 do not fit the 20-bit ring"):
        run(program, share_ints([1], 20))


def test_trees_have_the_levels_they_promise():
    assert [len(comparison_tree(d, 5).levels) for d in (1, 5, 6, 12)] == [1, 1, 2, 2]
    assert [len(comparison_tree(d, 3).levels) for d in (1, 3, 4, 9, 10)] == [1, 1, 2, 2, 3]


# -- selection -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize("width", [20, 64])
def test_select_by_several_bits(count, public, width):
    rng = generator(count)
    chosen = rng.integers(0, 2, (count, 300), dtype=np.uint8)
    y = signed(canonical(rng.integers(0, 2**64, 300, dtype=np.uint64), width), width)

    async def program(lane, flags, y):
        term = Term(tuple(flags), words(y) if public else y)
        return await select(lane, [term], width=width, frac=0, shape=(300,))

    flags = [share_bits(row) for row in chosen]
    got = ints(program, flags, y if public else share_ints(y, width))
    np.testing.assert_array_equal(got, np.where(chosen.all(axis=0), y, 0))


def test_select_adds_up_terms_and_broadcasts():
    rng = generator(7)
    row, whole = rng.integers(0, 2, (4, 1), dtype=np.uint8), rng.integers(0, 2, (4, 6))
    x = rng.integers(-1000, 1000, (4, 6))
    y = rng.integers(-1000, 1000, 6)

    async def program(lane, one, two, x):
        terms = [Term((one,), x), Term((one, two), words(y)), Term((two,), -x)]
        return await select(lane, terms, width=64, frac=0, shape=(4, 6))

    got = ints(program, share_bits(row), share_bits(whole), share_ints(x))
    np.testing.assert_array_equal(got, row * x + row * whole * y - whole * x)


def test_select_sums_over_the_last_axis():
    rng = generator(8)
    chosen = rng.integers(0, 2, (5, 3), dtype=np.uint8)
    y = rng.integers(-1000, 1000, (5, 3))

    async def program(lane, flags, y):
        return await select(lane, [Term((flags,), y)], width=64, frac=0, shape=(5,), total=True)

    got = ints(program, share_bits(chosen), share_ints(y))
    np.testing.assert_array_equal(got, (chosen * y).sum(-1))


# -- maximum ---------------------------------------------------------------------------------------


async def best(lane, x):
    return (await maximum(lane, x))[0]


async def place(lane, x):
    index = np.broadcast_to(np.arange(x.shape[-1], dtype=np.uint64), x.shape).copy()
    return (await maximum(lane, x, constant(x.role, index, x.width)))[1]


@pytest.mark.parametrize("size", [*range(1, 22), 31, 63, 64, 65])
def test_maximum_and_its_first_place(size):
    rng = generator(size)
    x = rng.integers(-(2**18), 2**18, (6, size))
    x[1] = rng.integers(-2, 2, size)  # ties
    x[2] = -7
    x[3] = np.arange(size)
    x[4] = -np.arange(size)
    x[5] = rng.integers(-(2**19) + 1, -(2**18), size)
    shared = share_ints(x, 20)
    np.testing.assert_array_equal(ints(best, shared), x.max(axis=1))
    np.testing.assert_array_equal(ints(place, shared), x.argmax(axis=1))


@tree
def test_maximum_of_both_trees_and_other_widths(tree):
    x = generator(1).integers(-(2**30), 2**30, (2, 3, 7))
    for width in (32, 44, 48):
        got = ints(best, share_ints(x, width), settings=Settings(tree=tree))
        np.testing.assert_array_equal(got, x.max(axis=-1))


@pytest.mark.parametrize("kind", ["balanced", "traffic"])
@pytest.mark.parametrize("size", [2, 3, 17, 64])
def test_many_entries_meet_in_pairs(size, kind, monkeypatch):
    """The same result, and the first of equals; fewer bytes; not with the fewest rounds."""
    x = generator(size).integers(-3, 3, (5, size))
    few = Settings(tree=kind)
    quads = run(best, share_ints(x, 20), settings=few).cost
    monkeypatch.setattr(compare, "MANY", 2 * size)
    shared = share_ints(x, 20)
    np.testing.assert_array_equal(ints(best, shared, settings=few), x.max(axis=1))
    np.testing.assert_array_equal(ints(place, shared, settings=few), x.argmax(axis=1))
    pairs = run(best, shared, settings=few).cost
    assert pairs == declared(best, shared, settings=few)
    if size == 64:  # two levels of pairs, then 16 entries are left, and one in eight less
        most = {"balanced": 0.62, "traffic": 0.78}[kind]
        assert pairs.online + pairs.offline < most * (quads.online + quads.offline)
    assert run(best, shared).cost == run(best, shared, settings=Settings(tree="rounds")).cost
    rounds = run(best, shared, settings=Settings(tree="rounds")).cost.rounds
    assert rounds == 3 * next(n for n in range(4) if 4**n >= size)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-(2**10), 2**10 - 1), min_size=1, max_size=40))
def test_maximum_of_any_list(values):
    """Differences stay below 2^11 in a ring of 12 bits."""
    shared = share_ints([values], 12)
    assert ints(best, shared).tolist() == [max(values)]
    assert ints(place, shared).tolist() == [values.index(max(values))]


def test_the_payload_is_the_winners():
    x = generator(3).integers(-100, 100, (4, 10))
    payload = generator(4).integers(-(2**18), 2**18, (4, 10))

    async def program(lane, x, payload):
        return (await maximum(lane, x, payload))[1]

    got = ints(program, share_ints(x, 20), share_ints(payload, 20))
    np.testing.assert_array_equal(got, payload[np.arange(4), x.argmax(axis=1)])


def test_maximum_of_one_entry_is_free():
    outcome = run(best, share_ints([[5], [-3]], 20))
    assert outcome.cost.rounds == 0
    assert signed(combine(outcome.results), 20).tolist() == [5, -3]


def test_maximum_refuses_odd_widths():
    with pytest.raises(LocalProtocolError, match="a multiple of 4 bits, not 46"):
        run(best, share_ints([[1, 2]], 46))
