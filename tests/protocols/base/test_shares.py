"""Local operations on sharings: exact, or within the bound that their docstrings give."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import A, B, D, combine_bits, generator, local, share, share_bits, share_ints, words
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.base.ring import canonical, signed
from protocols.base.shares import COMPUTING, SecretBits, SecretTensor, concat, constant
from protocols.drivers.lockstep import combine, deal
from protocols.errors import LocalProtocolError

shapes = st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple)
WIDTHS = st.integers(1, 64)


def random_words(shape, seed=0, width=64):
    return canonical(generator(seed).integers(0, 2**64, shape, dtype=np.uint64), width)


@settings(max_examples=60, deadline=None)
@given(shapes, WIDTHS, st.integers(0, 1000))
def test_deal_and_combine(shape, width, seed):
    values = random_words(shape, seed, width)
    np.testing.assert_array_equal(combine(deal(values, width)), values)


@settings(max_examples=60, deadline=None)
@given(shapes, WIDTHS, st.integers(0, 1000))
def test_linear_operations_are_exact(shape, width, seed):
    x, y, c = (random_words(shape, seed + i, width) for i in range(3))
    shared_x, shared_y = deal(x, width), deal(y, width)
    cases = [
        ({r: shared_x[r] + shared_y[r] for r in COMPUTING}, x + y),
        ({r: shared_x[r] - shared_y[r] for r in COMPUTING}, x - y),
        (local(shared_x, lambda t: -t), np.uint64(0) - x),
        (local(shared_x, lambda t: t.add_public(c)), x + c),
        (local(shared_x, lambda t: t.times(c, 3)), x * c),
    ]
    for got, expected in cases:
        np.testing.assert_array_equal(combine(got), canonical(expected, width))
    assert local(shared_x, lambda t: t.times(c, 3))[A].frac == 3


def test_shape_operations():
    x = random_words((2, 3, 4))
    shared = deal(x)
    index = np.array([[2, 0], [1, 1]])
    cases = [
        (lambda t: t[:, index], x[:, index]),
        (lambda t: t[..., -1], x[..., -1]),
        (lambda t: t.reshape(6, -1), x.reshape(6, -1)),
        (lambda t: t.transpose(2, 0, 1), x.transpose(2, 0, 1)),
        (lambda t: t[:, :1].broadcast((2, 3, 4)), np.broadcast_to(x[:, :1], (2, 3, 4))),
        (lambda t: t.sum(1), x.sum(1, dtype=np.uint64)),
        (lambda t: concat([t, t[:1]], axis=0), np.concatenate([x, x[:1]])),
    ]
    for function, expected in cases:
        np.testing.assert_array_equal(combine(local(shared, function)), expected)
    assert shared[A].size == 24


def test_scatter_writes_into_zeros():
    x = random_words((3,))
    expected = np.zeros((2, 4), dtype=np.uint64)
    where = (np.array([0, 1, 1]), np.array([3, 0, 2]))
    expected[where] = x
    scattered = local(deal(x), lambda t: t.scatter((2, 4), where))
    np.testing.assert_array_equal(combine(scattered), expected)


def test_constant_needs_no_masks():
    values = random_words((5,), width=24)
    shared = {role: constant(role, values, 24, 3) for role in COMPUTING}
    np.testing.assert_array_equal(combine(shared), values)
    assert not shared[D].a.any()


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 64), st.integers(1, 63), st.integers(0, 1000))
def test_drop_is_within_two_units(width, bits, seed):
    if bits >= width:
        return
    x = random_words((300,), seed, width)
    x[:4] = words([0, -1, 2 ** (width - 1) - 1, -(2 ** (width - 1))])
    dropped = local(deal(x, width, 30), lambda t: t.drop(bits))
    assert (dropped[A].width, dropped[A].frac) == (width - bits, 30 - bits)
    for got, value in zip(combine(dropped).tolist(), canonical(x, width).tolist(), strict=True):
        error = (got * 2**bits - value) % 2**width  # in units of 2^-bits
        assert min(error, 2**width - error) <= 2 * 2**bits


@pytest.mark.parametrize(("value", "bits"), [(5, 1), (12345, 4), (-12345, 9), (2**40 + 77, 30)])
def test_drop_is_unbiased(value, bits):
    """Over uniform masks; off by 2^-(bits + 1) units, the resolution of half a unit."""
    count = 200_000
    dropped = local(share_ints(np.full(count, value)), lambda t: t.drop(bits))
    errors = signed(combine(dropped), 64 - bits) - value / 2**bits
    assert np.abs(errors).max() <= 2
    assert abs(errors.mean()) < 5 * errors.std() / np.sqrt(count) + 2.0 ** -(bits + 1) + 1e-9


def test_drop_of_nothing_is_the_tensor_itself():
    shared = share([1.5])
    assert shared[A].drop(0) is shared[A]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 64), st.integers(1, 64), st.integers(0, 1000))
def test_narrow_keeps_what_fits(width, to, seed):
    if to > width:
        with pytest.raises(LocalProtocolError, match="use lift"):
            share_ints([0], width)[A].narrow(to)
        return
    small = signed(random_words((50,), seed, to), to)
    narrowed = local(share_ints(small, width), lambda t: t.narrow(to))
    np.testing.assert_array_equal(signed(combine(narrowed), to), small)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 64), st.integers(0, 64), st.integers(0, 1000))
def test_scale_up(width, bits, seed):
    x = signed(random_words((50,), seed, width), width)
    scaled = local(share_ints(x, width, 5), lambda t: t.scale_up(bits))
    grown = min(64, width + bits)
    assert (scaled[A].width, scaled[A].frac) == (grown, 5 + bits)
    expected = [int(v) * 2**bits % 2**grown for v in x]
    assert combine(scaled).tolist() == expected


def test_reinterpret_changes_the_point_alone():
    shared = share([3.0])
    moved = local(shared, lambda t: t.reinterpret(20))
    np.testing.assert_array_equal(combine(moved), combine(shared))
    assert moved[B].frac == 20


def test_what_a_party_may_not_do():
    shared = share([1.0, 2.0])
    with pytest.raises(LocalProtocolError, match="does not know the mask"):
        _ = shared[A].lam
    with pytest.raises(LocalProtocolError, match="does not know the mask"):
        _ = share_bits([1])[B].mask
    with pytest.raises(LocalProtocolError, match="a product of secrets is a round"):
        shared[A] * shared[A]
    with pytest.raises(LocalProtocolError, match="a product of secrets is a round"):
        shared[A] @ shared[A]


@pytest.mark.parametrize("other", [share([1.0], frac=17)[A], share([1.0], width=40)[A]])
def test_sums_want_one_ring_and_one_point(other):
    tensor = share([1.0])[A]
    for function in (
        lambda: tensor + other,
        lambda: tensor - other,
        lambda: concat([tensor, other], axis=0),
    ):
        with pytest.raises(LocalProtocolError, match="lift, drop or narrow"):
            function()


def test_combine_catches_parties_that_disagree():
    shared = share([1.0, 2.0])
    for role, name in ((A, "m"), (B, "lam2"), (D, "lam1")):
        wrong = shared[role]
        field = "b" if role is B else "a"
        broken = replace(wrong, **{field: getattr(wrong, field) + np.uint64(1)})
        with pytest.raises(LocalProtocolError, match=f"disagree about {name}"):
            combine({**shared, role: broken})
    with pytest.raises(LocalProtocolError, match="fraction bits"):
        combine({**shared, D: replace(shared[D], frac=3)})


def test_bits():
    rng = generator()
    x, y = rng.integers(0, 2, (2, 4, 6), dtype=np.uint8)
    one, two = share_bits(x), share_bits(y)
    np.testing.assert_array_equal(combine_bits(one), x)
    np.testing.assert_array_equal(combine_bits({r: ~one[r] for r in COMPUTING}), 1 - x)
    np.testing.assert_array_equal(combine_bits({r: one[r] ^ two[r] for r in COMPUTING}), x ^ y)
    np.testing.assert_array_equal(combine_bits({r: one[r][:, 2] for r in COMPUTING}), x[:, 2])
    reshaped = {r: one[r].reshape(-1) for r in COMPUTING}
    np.testing.assert_array_equal(combine_bits(reshaped), x.reshape(-1))
    np.testing.assert_array_equal(one[D].mask, one[A].b ^ one[B].b)
    assert isinstance(one[A], SecretBits)
    assert isinstance(share([1.0])[A], SecretTensor)
