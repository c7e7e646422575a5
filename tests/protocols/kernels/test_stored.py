"""Products with stored matrices equal their twins, and exact integers made another way."""

import mmap
from threading import Thread

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_matrices import KINDS, PLAIN, SCALES, SUPER, read, stored

from protocols.errors import LocalProtocolError
from protocols.kernels import jit
from protocols.kernels.stored import matrix, panels, product, vectors
from protocols.kernels.stored.formats import FORMATS
from protocols.kernels.stored.matrix import Stored

LIMIT = settings(max_examples=40, deadline=None)
SEEDS = st.integers(0, 2**32)
SCALE = np.float32(2.0**20)
compiled = pytest.mark.skipif(jit.MODE == "numpy", reason="nothing is compiled in this mode")


def words(seed, *shape):
    """Ring words, edges among them."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 2**64, shape, dtype=np.uint64)
    edges = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1], dtype=np.uint64)
    chosen = rng.integers(0, 4, shape) == 0
    found[chosen] = rng.choice(edges, chosen.sum())
    return found


def made(seed, kind, inputs, outputs, across=False, order=None):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((inputs, outputs) if across else (outputs, inputs)) * 0.1
    rows = (1 + 0.2 * rng.standard_normal(inputs)).astype(np.float32)
    columns = SCALE * rng.choice(np.float32([1, 0.5, 0.07216878]), outputs)
    data = stored(values, kind)
    return Stored.of(data, FORMATS[kind], rows, columns, across=across, order=order)


def exact(stored_matrix, kind):
    """The integers (outputs, inputs) by the definition, from what another reader reads."""
    inputs, outputs = stored_matrix.shape
    values = read(stored_matrix.data, kind)
    values = values.T if stored_matrix.across else values[stored_matrix.order.astype(int)]
    scaled = (values * stored_matrix.inputs[:inputs]) * stored_matrix.outputs[:outputs, None]
    return np.rint(scaled.astype(np.float64)).astype(np.int64)


@st.composite
def matrices(draw):
    kind = draw(st.sampled_from(KINDS))
    across = kind in PLAIN and draw(st.booleans())
    outputs = draw(st.integers(1, 230 if across else 60))
    block = FORMATS[kind].entries
    inputs = block * draw(st.integers(1, {1: 170, 32: 5, 256: 2}[block]))
    seed = draw(SEEDS)
    order = None if across else np.random.default_rng(seed).permutation(outputs)
    return kind, made(seed, kind, inputs, outputs, across, order)


@LIMIT
@given(matrices(), SEEDS, st.integers(1, 6), st.integers(0, 2), st.data())
def test_products_equal_the_twin_and_exact_integers(drawn, seed, rows, more, data):
    kind, weight = drawn
    inputs, outputs = weight.shape
    lo = data.draw(st.integers(0, outputs))
    hi = data.draw(st.integers(lo, outputs))
    at = data.draw(st.integers(0, 3))
    x = words(seed, rows, inputs + more)  # more columns, such as the one for a bias
    found, twin = (np.full((rows, outputs + 5), 7, np.uint64) for _ in range(2))
    product.multiply_into(x, weight, found, at, lo, hi)
    product.multiply_into_numpy(x, weight, twin, at, lo, hi)
    np.testing.assert_array_equal(found, twin)
    integers = exact(weight, kind)[lo:hi]
    expected = x[:, :inputs] @ integers.T.astype(np.int64).view(np.uint64)
    np.testing.assert_array_equal(found[:, at + lo : at + hi], expected)
    untouched = np.delete(found, np.s_[at + lo : at + hi], axis=1)
    assert (untouched == 7).all()


@LIMIT
@given(matrices(), st.data())
def test_integers_equal_the_twin(drawn, data):
    kind, weight = drawn
    lo = data.draw(st.integers(0, weight.shape[1]))
    hi = data.draw(st.integers(lo, weight.shape[1]))
    found = panels.integers(weight, lo, hi)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, matrix.integers_numpy(weight, lo, hi))
    np.testing.assert_array_equal(found, exact(weight, kind)[lo:hi])
    for decode in (panels.integers, matrix.integers_numpy):
        room = matrix.room_for(weight, hi - lo + 2)
        assert np.shares_memory(decode(weight, lo, hi, room), room) or not found.size
        np.testing.assert_array_equal(room[: hi - lo, : weight.shape[0]], found)
    assert panels.largest(weight, lo, hi) == matrix.largest_numpy(weight, lo, hi)


@pytest.mark.parametrize("kind", ["bf16", "f16", "f32", "q4_0", "q4_k"])
@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_deeper_than_a_panel(kind, rows):
    order = np.random.default_rng(3).permutation(51)
    weight = made(1, kind, 4352, 51, order=order)
    x, found = words(2, rows, 4352), np.empty((rows, 51), np.uint64)
    product.multiply_into(x, weight, found, 0, 0, 51)
    expected = x @ exact(weight, kind).T.view(np.uint64)
    np.testing.assert_array_equal(found, expected)


def test_integers_at_the_edge_of_their_range():
    values = np.float32([[2**31 - 128, 128 - 2**31, 2**24 + 2, -1, 0.5, 1.5, 2.5, -0.5]]).T
    ones = np.ones(1, np.float32)
    weight = Stored.of(stored(values, "f32"), FORMATS["f32"], ones, np.ones(8, np.float32))
    expected = [2**31 - 128, 128 - 2**31, 2**24 + 2, -1, 0, 2, 2, 0]
    assert panels.integers(weight, 0, 8)[:, 0].tolist() == expected
    x = words(3, 40, 1)
    found = np.empty((40, 8), np.uint64)
    product.multiply_into(x, weight, found, 0, 0, 8)
    np.testing.assert_array_equal(found, x @ np.array([expected]).view(np.uint64))


def test_single_products_are_rounded_one_by_one():
    """One float32 rounding after each factor: a fused or reordered product differs here."""
    rng = np.random.default_rng(5)
    values, rows = (rng.uniform(1, 2, n).astype(np.float32) for n in (4096, 4096))
    weight = Stored.of(stored(values[None], "f32"), FORMATS["f32"], rows, np.float32([2**20 / 3]))
    once = (values * rows) * weight.outputs[0]
    other = values * (rows * weight.outputs[0])
    assert (np.rint(once) != np.rint(other)).any()
    np.testing.assert_array_equal(panels.integers(weight, 0, 1)[0], np.rint(once).astype(np.int32))


def every_half():
    raw = np.arange(2**16, dtype=np.uint16)
    return raw[np.isfinite(raw.view(np.float16))]


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_every_number_of_sixteen_bits(kind):
    raw = every_half() if kind == "f16" else np.arange(2**16, dtype=np.uint16)
    values = read(raw.view(np.uint8)[None], kind)[0]
    kept = np.abs(values) < 2**10  # infinities and NaN, too, are left out
    raw, values = raw[kept], values[kept]
    ones = np.ones(raw.size, np.float32)
    for frac in (0, 20):
        weight = Stored.of(raw.view(np.uint8)[None], FORMATS[kind], ones, np.float32([2.0**frac]))
        expected = np.rint(values.astype(np.float64) * 2.0**frac).astype(np.int32)
        np.testing.assert_array_equal(panels.integers(weight, 0, 1)[0], expected)


@compiled
def test_halves_without_the_processors_help():
    """Infinities and NaN included; the sign of NaN is nobody's business."""
    op = vectors.make_decode(FORMATS["f16"], across=False, ahead=0, native=False).compiled()
    from numba import njit

    @njit
    def decode(stored, count, along, out):
        op(stored, 0, count, along, 0, np.float32(1), out, 0)

    raw = np.arange(2**16, dtype=np.uint16)
    out = np.empty(2**16, np.float32)
    decode(raw.view(np.uint8), raw.size, np.ones(raw.size, np.float32), out)
    expected = raw.view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(out, expected)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(out[finite].view("u4"), expected[finite].view("u4"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 33, 63])
def test_one_number_that_is_not_finite_is_found(kind, bad, place):
    outputs = 30
    inputs = 256 if kind in SUPER else 64
    data = stored(np.random.default_rng(1).standard_normal((outputs, inputs)), kind)
    if kind in PLAIN:
        size = FORMATS[kind].nbytes
        data[17, size * place : size * (place + 1)] = stored([[bad]], kind)[0]
    else:  # a scale of its block
        start = place // FORMATS[kind].entries * FORMATS[kind].nbytes
        start += SCALES.get(kind, (0,))[place % len(SCALES.get(kind, (0,)))]
        data[17, start : start + 2] = stored([[bad]], "f16")[0]
    ones = np.ones(inputs, np.float32)
    weight = Stored.of(data, FORMATS[kind], ones, np.ones(outputs, np.float32))
    for find in (panels.largest, matrix.largest_numpy):
        assert find(weight, 0, outputs) == np.inf
        assert find(weight, 18, outputs) < 10


def test_the_largest_of_no_numbers_is_zero():
    weight = made(1, "bf16", 40, 7)
    assert panels.largest(weight, 3, 3) == matrix.largest_numpy(weight, 3, 3) == 0


@pytest.mark.parametrize("inputs", [33, 64])
def test_a_memory_map_that_ends_with_the_matrix(inputs, tmp_path):
    """The last byte of the file is the last one that is read."""
    outputs = mmap.PAGESIZE // 64
    weight = made(1, "bf16", inputs, outputs)
    raw = weight.data.tobytes()
    before = -len(raw) % mmap.PAGESIZE
    (tmp_path / "matrix").write_bytes(b"\xff" * before + raw)
    data = np.memmap(tmp_path / "matrix", np.uint8, "r", before, (outputs, 2 * inputs))
    mapped = Stored.of(
        data, weight.kind, weight.inputs[:inputs], weight.outputs[:outputs], order=None
    )
    x, found = words(1, 2, inputs), np.empty((2, outputs), np.uint64)
    product.multiply_into(x, mapped, found, 0, 0, outputs)
    np.testing.assert_array_equal(found, x @ exact(weight, "bf16").T.view(np.uint64))


def test_threads_fill_ranges_of_one_result():
    weight = made(1, "q8_0", 64, 100)
    x, found = words(1, 3, 64), np.empty((3, 100), np.uint64)
    x.flags.writeable = False
    ranges = [(0, 37), (37, 61), (61, 100)]
    threads = [
        Thread(target=product.multiply_into, args=(x, weight, found, 0, *part)) for part in ranges
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found, x @ exact(weight, "q8_0").T.view(np.uint64))


@pytest.mark.parametrize("multiply", [product.multiply_into, product.multiply_into_numpy])
def test_shapes_that_do_not_fit_are_refused(multiply):
    weight = made(1, "bf16", 40, 7)
    x, out = words(1, 2, 40), np.empty((2, 7), np.uint64)
    for bad in (
        (x[:, :39], weight, out, 0, 0, 7),
        (x, weight, out[:1], 0, 0, 7),
        (x, weight, out, 1, 0, 7),
        (x, weight, out, -1, 0, 7),
        (x, weight, np.empty((7, 2), "u8").T, 0, 0, 7),
        (x, weight, out, 0, 0, 8),
        (x, weight, out, 0, 5, 4),
    ):
        with pytest.raises(LocalProtocolError, match=r"do not fit|not within|contiguous"):
            multiply(*bad)


def test_bytes_that_do_not_fit_are_refused():
    ones, bf16 = np.ones(64, np.float32), FORMATS["bf16"]
    data = np.zeros((64, 128), np.uint8)
    Stored.of(data, bf16, ones, ones)
    for bad in (data[:, :127], data[:63], data.view(np.uint16), np.zeros((128, 64), "u1").T):
        with pytest.raises(LocalProtocolError, match="bytes without gaps"):
            Stored.of(bad, bf16, ones, ones)
    blocks = np.zeros((64, 68), np.uint8)
    Stored.of(blocks, FORMATS["q8_0"], ones, ones)
    with pytest.raises(LocalProtocolError, match="stored by outputs"):
        Stored.of(blocks, FORMATS["q8_0"], ones, ones, across=True)
    with pytest.raises(LocalProtocolError, match="stored by outputs"):
        Stored.of(data, bf16, ones, ones, across=True, order=np.arange(64))
    with pytest.raises(LocalProtocolError, match="blocks of 32"):
        Stored.of(blocks[:, :34], FORMATS["q8_0"], ones[:33], ones)
    for order in (np.zeros(64, int), np.arange(63), np.arange(1, 65)):
        with pytest.raises(LocalProtocolError, match="permutation"):
            Stored.of(data, bf16, ones, ones, order=order)
