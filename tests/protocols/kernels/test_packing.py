"""Packing words for the wire, unpacking them and adding what was unpacked."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import RemoteProtocolError
from protocols.kernels import jit, packing

LIMIT = settings(max_examples=40, deadline=None)
compiled = pytest.mark.skipif(jit.MODE == "numpy", reason="nothing is compiled in this mode")


def words(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, shape, dtype=np.uint64)


@pytest.mark.parametrize("width", range(1, 65))
def test_packing_every_width(width):
    mask = np.uint64(2**width - 1)
    for count in (0, 1, 2, 63, 64, 65, 129):
        sent = words(count, count)
        packed = packing.pack(sent, width)
        assert packed.dtype == np.uint8
        assert packed.size == packing.packed_bytes(count, width) == -(-count * width // 8)
        np.testing.assert_array_equal(packed, packing.pack_numpy(sent, width))
        shifted = np.empty(packed.size + 1, np.uint8)  # frames put buffers anywhere
        shifted[1:] = packed
        shifted.flags.writeable = False
        for received in (packed, shifted[1:]):
            np.testing.assert_array_equal(packing.unpack(received, width, count), sent & mask)
        np.testing.assert_array_equal(packing.unpack_numpy(packed, width, count), sent & mask)


@LIMIT
@given(st.lists(st.integers(0, 2**64 - 1), max_size=40), st.integers(1, 64))
def test_packing_is_little_endian_bits(values, width):
    sent = np.array(values, dtype=np.uint64)
    joined = sum((value % 2**width) << (i * width) for i, value in enumerate(values))
    packed = packing.pack(sent, width)
    assert int.from_bytes(packed.tobytes(), "little") == joined
    received = packing.unpack(packed, width, len(values))
    assert received.tolist() == [value % 2**width for value in values]


@compiled
def test_full_words_are_not_copied():
    sent = words(1, 10)
    packed = packing.pack(sent, 64)
    assert np.shares_memory(packed, sent)
    assert np.shares_memory(packing.unpack(packed, 64, 10), sent)


@pytest.mark.parametrize("unpack", [packing.unpack, packing.unpack_numpy])
def test_unpack_refuses_malformed_buffers(unpack):
    packed = packing.pack(words(1, 5), 18)  # 90 bits: 12 bytes with 6 bits of padding
    for wrong in (packed[:-1], np.append(packed, packed[:1])):
        with pytest.raises(RemoteProtocolError, match="bytes, but 5 words of 18 bits"):
            unpack(wrong, 18, 5)
    packed[-1] |= 0x80
    with pytest.raises(RemoteProtocolError, match="padding"):
        unpack(packed, 18, 5)


@LIMIT
@given(
    st.integers(0, 2**32),
    st.lists(st.integers(0, 9), min_size=1, max_size=3),
    st.integers(1, 64),
    st.booleans(),
)
def test_sums_of_what_is_packed_have_the_shape_of_ones_own(seed, shape, width, xor):
    mine, sent = words(seed, *shape), words(seed + 1, *shape)
    packed = packing.pack(sent, width)
    theirs = sent & np.uint64(2**width - 1)
    expected = mine ^ theirs if xor else mine + theirs
    for add in (packing.unpack_sum, packing.unpack_sum_numpy):
        got = add(packed, width, mine, xor)
        assert got.shape == tuple(shape)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("add", [packing.unpack_sum, packing.unpack_sum_numpy])
def test_sums_refuse_malformed_buffers(add):
    mine = words(2, 5)
    packed = packing.pack(words(1, 5), 18)
    for wrong in (packed[:-1], np.append(packed, packed[:1])):
        with pytest.raises(RemoteProtocolError, match="bytes, but 5 words of 18 bits"):
            add(wrong, 18, mine, False)
    packed[-1] |= 0x80
    with pytest.raises(RemoteProtocolError, match="padding"):
        add(packed, 18, mine, False)
