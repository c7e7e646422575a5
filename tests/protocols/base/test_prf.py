"""Random streams: deterministic, uniform, agreed between two parties, never opened twice."""

import asyncio
import hashlib

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from helpers import A, B, D, run, share
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_models import infer, tiny_config, tiny_model

from protocols.base import prf
from protocols.base.lane import Lane, Settings
from protocols.base.prf import KeyRing, Stream, derive, kernel_source, library_source
from protocols.base.shares import COMPUTING, Role
from protocols.drivers import lockstep
from protocols.errors import LocalProtocolError
from protocols.functions.activations import SILU, activate
from protocols.kernels.aes.aesni import available
from protocols.kernels.packing import pack

KEY = bytes(range(16))


SOURCES = [kernel_source, library_source] if available() else [library_source]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 511, 512, 513, 4096, (1 << 17) - 1, (1 << 17) + 5])
def test_a_source_is_aes_in_counter_mode(source, count):
    cipher = Cipher(algorithms.AES(KEY), modes.CTR(bytes(16))).encryptor()
    assert source(KEY)(count, 64).tobytes() == cipher.update(bytes(8 * count))


draws = st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 64)), max_size=12)


@pytest.mark.skipif(not available(), reason="no AES instructions: there is one source only")
@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=16, max_size=16), draws)
def test_both_sources_draw_alike(key, sizes):
    one, two = kernel_source(key), library_source(key)
    for count, width in sizes:
        np.testing.assert_array_equal(one(count, width), two(count, width))


@pytest.mark.parametrize("source", SOURCES)
@settings(max_examples=50, deadline=None)
@given(sizes=draws)
def test_a_draw_takes_whole_words_of_the_stream(source, sizes):
    stream = source(KEY)
    start, whole = 0, source(KEY)(12 * 3000, 64).view(np.uint8)
    for count, width in sizes:
        size = next(size for size in (1, 2, 4, 8) if 8 * size >= width)
        taken = whole[start : start + size * count].view(f"<u{size}").astype(np.uint64)
        np.testing.assert_array_equal(stream(count, width), taken & np.uint64(2**width - 1))
        start += -(-size * count // 8) * 8


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1500), st.integers(1, 64), st.booleans()), max_size=8))
def test_what_completes_values_is_packed(fields):
    """As if it were drawn first, in one stream with plain draws."""
    stream, again = Stream(KEY), Stream(KEY)
    for count, width, xor in fields:
        values = Stream(KEY[::-1]).words((2, count))
        half = again.words((2, count), width)
        expected = pack(values ^ half if xor else values - half, width)
        np.testing.assert_array_equal(stream.rest(values, width, xor=xor), expected)
        np.testing.assert_array_equal(stream.words((3,)), again.words((3,)))


def test_what_is_drawn_is_its_owners():
    """Writing to an array changes nothing that is drawn later."""
    for source in SOURCES:
        stream, again = source(KEY), source(KEY)
        for width in (64, 40, 8):
            stream(3, width)[:] = 7
            again(3, width)
        np.testing.assert_array_equal(stream(5, 64), again(5, 64))


@pytest.mark.parametrize("width", [1, 7, 8, 9, 16, 17, 31, 32, 33, 63, 64])
def test_words_have_their_width_and_are_uniform(width):
    count = 20000
    words = Stream(KEY).words((4, count // 4), width)
    assert words.shape == (4, count // 4)
    assert words.dtype == np.uint64
    assert int(words.max()) < 2**width
    for bit in range(width):
        ones = int(((words >> np.uint64(bit)) & np.uint64(1)).sum())
        assert abs(ones - count / 2) < 6 * np.sqrt(count) / 2


def test_bits():
    drawn = Stream(KEY).bits((3, 5, 1001))
    assert drawn.shape == (3, 5, 1001)
    assert set(np.unique(drawn)) == {0, 1}
    assert abs(int(drawn.sum()) - drawn.size / 2) < 6 * np.sqrt(drawn.size) / 2


paths = st.lists(st.integers(0, 2**64 - 1), max_size=5).map(tuple)


@settings(max_examples=200, deadline=None)
@given(paths, paths)
def test_derive_is_injective(one, two):
    same = derive(KEY, b"label", one) == derive(KEY, b"label", two)
    assert same == (one == two)


def test_derive_separates_labels_and_keys():
    keys = {
        derive(KEY, b"label", (1,)),
        derive(KEY, b"other", (1,)),
        derive(bytes(16), b"label", (1,)),
        derive(KEY, b"label", ()),
        derive(KEY, b"label", (0,)),
        derive(KEY, b"label", (0, 0)),
    }
    assert len(keys) == 6
    assert all(len(key) == 16 for key in keys)


def test_peers_agree_and_others_do_not():
    secrets = lockstep.pair_secrets(COMPUTING)
    rings = {role: KeyRing(role, secrets[role]) for role in COMPUTING}
    streams = {
        (one, two): rings[one].stream(two, (7, 1)).fill(32).tobytes()
        for one in COMPUTING
        for two in COMPUTING
    }
    for one in COMPUTING:
        for two in COMPUTING:
            assert streams[one, two] == streams[two, one]
    assert len(set(streams.values())) == 6  # three pairs and three private streams


def test_a_stream_is_opened_once():
    ring = KeyRing(A, {B: KEY, D: KEY})
    ring.stream(B, (1, 2))
    ring.stream(B, (1, 3))
    ring.stream(D, (1, 2))
    with pytest.raises(LocalProtocolError, match=r"random stream \(1, 2\) .* opened twice"):
        ring.stream(B, (1, 2))


def test_no_key_no_stream():
    with pytest.raises(LocalProtocolError, match="no key agreed with client"):
        KeyRing(A, {B: KEY}).stream(Role.CLIENT, ())


def test_forget_drops_one_inference_only():
    ring = KeyRing(A, {B: KEY})
    for path in ((1, 5), (1, 5, 2), (2, 5)):
        ring.stream(B, path)
    ring.forget((1,))
    ring.stream(B, (1, 5))
    with pytest.raises(LocalProtocolError):
        ring.stream(B, (2, 5))


def test_two_lanes_at_one_place_are_refused():
    async def program(lane):
        for _ in range(2):
            Lane(lane.link, (3, 1)).stream(lane.peer)

    with pytest.raises(LocalProtocolError, match="opened twice"):
        run(program)


@pytest.fixture
def derived(monkeypatch):
    """Every key derived for a lane, with the path it was derived for."""
    record: list[tuple[bytes, tuple[int, ...]]] = []

    def recording(key, label, path):
        made = derive(key, label, path)
        if label == b"puma lane":
            record.append((made, path))
        return made

    monkeypatch.setattr(prf, "derive", recording)
    return record


def _assert_no_key_twice(record):
    """Two parties derive each pair's key once each, and a private key is derived once."""
    counts: dict[bytes, int] = {}
    for key, _ in record:
        counts[key] = counts.get(key, 0) + 1
    assert set(counts.values()) <= {1, 2}
    places: dict[bytes, set[tuple[int, ...]]] = {}
    for key, path in record:
        places.setdefault(key, set()).add(path)
    assert all(len(paths) == 1 for paths in places.values())
    return counts


def test_hundreds_of_lanes_forked_three_deep(derived):
    async def leaf(lane):
        one = lane.mask((4,)) if not lane.is_dealer else lane.masks((4,))[0]
        lane.private((4,))
        return hashlib.sha256(one.tobytes()).digest()

    async def program(lane):
        async def middle(strand):
            return await strand.parallel([inner] * 6)

        async def inner(strand):
            first = await strand.parallel([leaf] * 4)
            return first + await strand.parallel([leaf] * 2)  # a second fork of one lane

        nested = await lane.parallel([middle] * 8)
        return [digest for group in nested for part in group for digest in part]

    results = run(program).results
    counts = _assert_no_key_twice(derived)
    # The first task of a fork stays on its lane, and a second fork takes the lanes of the first
    # again: 4 + 2 leaves on 4 lanes.
    lanes = 8 * 6 * 4
    # Of a lane: keys D-A and D-B, derived at both ends, and three private ones.
    assert sum(n == 2 for n in counts.values()) == 2 * lanes
    assert sum(n == 1 for n in counts.values()) == 3 * lanes
    for role in COMPUTING:
        assert len(set(results[role])) == 8 * 6 * 6
    assert results[D] == results[A]


def test_a_model_draws_no_key_twice(derived):
    model = tiny_model(tiny_config())
    derived.clear()
    infer(model, [[1, 2, 3], [4], [5]], Settings(lanes=2, reveal="argmax"), rows="last")
    counts = _assert_no_key_twice(derived)
    assert len(counts) > 50


def test_the_record_catches_a_repeated_key(derived, monkeypatch):
    """Negative control: forks that all land on one path."""
    monkeypatch.setattr(
        KeyRing, "stream", lambda s, p, path: Stream(prf.derive(KEY, b"puma lane", ()))
    )
    run(lambda lane, x: activate(lane, x, SILU), share(np.zeros(2)))
    with pytest.raises(AssertionError):
        _assert_no_key_twice(derived)


def test_another_inference_has_other_masks():
    """One key ring, two inferences told apart by the number in front of their paths."""
    secrets = lockstep.pair_secrets(COMPUTING)

    class Numbered:
        role, settings = D, Settings()

        def __init__(self, ring, number):
            self.ring, self.number = ring, number

        def stream(self, peer, path):
            return self.ring.stream(peer, (self.number, *path))

    ring = KeyRing(D, secrets[D])
    masks = []
    for number in (1, 2):
        one, two = Lane(Numbered(ring, number), (4, 2)).masks((64,))
        masks += [one, two]
    drawn = np.concatenate(masks)
    assert np.unique(drawn).size == drawn.size
    with pytest.raises(LocalProtocolError):
        Lane(Numbered(ring, 2), (4, 2)).masks((64,))


async def test_under_an_event_loop_the_ring_still_refuses():
    ring = KeyRing(A, {B: KEY})
    opened = []

    async def task(index):
        await asyncio.sleep(0)
        ring.stream(B, (index // 2,))
        opened.append(index)

    outcome = await asyncio.gather(*(task(i) for i in range(20)), return_exceptions=True)
    assert len(opened) == 10
    assert sum(isinstance(error, LocalProtocolError) for error in outcome) == 10
