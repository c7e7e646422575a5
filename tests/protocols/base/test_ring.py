"""Ring words, fixed point, and the packing of narrow elements."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.base import ring
from protocols.errors import RangeError
from protocols.kernels.packing import pack, unpack

WIDTHS = st.integers(1, 64)
WORD = st.integers(0, 2**64 - 1)


@settings(max_examples=200, deadline=None)
@given(WORD, WIDTHS)
def test_canonical_and_signed(value, width):
    word = np.array([value], dtype=np.uint64)
    low = value % 2**width
    assert int(ring.canonical(word, width)[0]) == low
    expected = low - 2**width if low >= 2 ** (width - 1) else low
    assert int(ring.signed(word, width)[0]) == expected


@settings(max_examples=200, deadline=None)
@given(WORD, WIDTHS, st.integers(0, 80))
def test_shifts(value, width, bits):
    word = np.array([value], dtype=np.uint64)
    assert int(ring.shift_left(word, bits)[0]) == value * 2**bits % 2**64
    if bits < width:
        assert int(ring.shift_right(word, bits, width)[0]) == value % 2**width >> bits


def test_bit_mask_ends():
    assert int(ring.bit_mask(0)) == 0
    assert int(ring.bit_mask(1)) == 1
    assert int(ring.bit_mask(64)) == 2**64 - 1


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e6, 1e6), st.integers(0, 26), st.integers(48, 64))
def test_fixed_point_rounds_to_the_nearest(value, frac, width):
    word = ring.encode(np.array([value]), frac, width)
    assert int(word[0]) < 2**width
    assert abs(float(ring.decode(word, frac, width)[0]) - value) <= 2.0 ** -(frac + 1)


@pytest.mark.parametrize("width", [8, 20, 44, 64])
def test_encode_at_the_ends_of_the_ring(width):
    largest = 2.0 ** (width - 1) - 2.0 ** max(0, width - 54)
    ends = np.array([largest, -largest])
    np.testing.assert_array_equal(ring.decode(ring.encode(ends, 0, width), 0, width), ends)
    for beyond in (2.0 ** (width - 1), -(2.0 ** (width - 1)), np.inf, -np.inf, np.nan):
        with pytest.raises(RangeError, match="does not fit"):
            ring.encode(np.array([0.0, beyond]), 0, width)


def test_the_error_names_the_value_and_the_limit():
    with pytest.raises(RangeError, match=r"300\.5 does not fit a 16-bit ring .* below 128"):
        ring.encode(np.array([1.0, 300.5]), 8, 16)


def test_encode_of_nothing_and_of_a_scalar():
    assert ring.encode(np.zeros((0, 3))).shape == (0, 3)
    assert int(ring.encode(-1.0, 4)) == 2**64 - 16


@settings(max_examples=150, deadline=None)
@given(WIDTHS, st.integers(0, 70), st.integers(0, 2**32))
def test_packing_keeps_the_low_bits(width, count, seed):
    values = np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)
    data = np.frombuffer(memoryview(pack(values, width)), dtype=np.uint8)
    assert data.size == ring.packed_bytes(count, width) == -(-count * width // 8)
    np.testing.assert_array_equal(unpack(data, width, count), ring.canonical(values, width))
