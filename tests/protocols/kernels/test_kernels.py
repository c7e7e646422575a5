"""Every kernel equals its NumPy twin; packing refuses malformed buffers."""

import os
import subprocess
import sys
from itertools import pairwise
from threading import Thread

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given, settings
from hypothesis import strategies as st

import protocols.kernels
from bench.kernels import PANEL, column_ranges
from protocols.errors import ConfigError, LocalProtocolError
from protocols.kernels import (
    elementwise,
    forest,
    jit,
    matmul,
    packing,
    select,
    sums,
    warm_up,
    waves,
)
from protocols.kernels.aes import aesni, ctr
from protocols.kernels.aes.fixed_key import fixed_key, mmo
from protocols.kernels.stored import halves

LIMIT = settings(max_examples=40, deadline=None)
compiled = pytest.mark.skipif(jit.MODE == "numpy", reason="nothing is compiled in this mode")
SEEDS = st.integers(0, 2**32)


def words(seed: int, *shape: int, dtype: type = np.uint64) -> np.ndarray:
    high = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, high, shape, dtype=dtype, endpoint=True)


@LIMIT
@given(SEEDS, st.integers(1, 7), st.integers(0, 40), st.sampled_from([1, 7, 2048, 2061]))
def test_few_rows_read_the_matrix_once(seed, rows, depth, columns):
    """Runs of columns of any length, and a sum of matrices as if it were one."""
    x, first = words(seed, rows, depth), words(seed + 1, depth, columns)
    second = words(seed + 2, depth, columns)
    out = np.full((rows, columns), 7, np.uint64)
    matmul.matmul_into(x, first, out, 0, columns)
    np.testing.assert_array_equal(out, x @ first)
    expected = matmul.matmul_of_sum_numpy(x, first, second)
    np.testing.assert_array_equal(expected, out + x @ second + x @ second)
    np.testing.assert_array_equal(matmul.matmul_of_sum(x, first, second), expected)


@LIMIT
@given(SEEDS, st.integers(1, 11), st.integers(0, 70), st.integers(1, 150), st.data())
def test_matmul_ranges_equal_the_twin(seed, rows, depth, columns, data):
    lo = data.draw(st.integers(0, columns))
    hi = data.draw(st.integers(lo, columns))
    x, w = words(seed, rows, depth), words(seed + 1, depth, columns)
    got, expected = np.full((rows, columns), 7, np.uint64), np.full((rows, columns), 7, "u8")
    matmul.matmul_into(x, w, got, lo, hi)
    matmul.matmul_into_numpy(x, w, expected, lo, hi)
    np.testing.assert_array_equal(got, expected)


@LIMIT
@given(SEEDS, st.integers(5, 9), st.integers(0, 300), st.integers(1, 40))
def test_matmul_carries_between_the_halves_of_words(seed, rows, depth, columns):
    """Words next to those where the sum of two, or a half's, wraps."""
    ends = np.array([0, 2**31, 2**32, 2**33, 2**63], np.uint64)
    edges = np.concatenate([ends - np.uint64(1), ends, ends + np.uint64(1)])
    rng = np.random.default_rng(seed)
    x, w = rng.choice(edges, (rows, depth)), rng.choice(edges, (depth, columns))
    out = np.empty((rows, columns), np.uint64)
    matmul.matmul_into(x, w, out, 0, columns)
    np.testing.assert_array_equal(out, x @ w)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 37, 261])
def test_matmul_larger_than_a_panel(rows):
    x, w = words(1, rows, 1100), words(2, 1100, 200)
    out = np.empty((rows, 200), np.uint64)
    matmul.matmul_into(x, w, out, 0, 200)
    np.testing.assert_array_equal(out, x @ w)


@pytest.mark.parametrize("count", [0, 1, 20, 21, 40])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (8, 192), (77, 5), (53, 200), (16, 577)])
def test_chosen_sums_equal_the_twin(count, rows, columns):
    rng = np.random.default_rng(count + rows + columns)
    chosen = rng.integers(0, 2, (count, rows), dtype=np.uint8)
    table = rng.integers(0, 2**32, (rows, columns), dtype=np.uint32)
    got = sums.chosen_sums(chosen, table)
    assert got.dtype == np.uint32
    np.testing.assert_array_equal(got, sums.chosen_sums_numpy(chosen, table))


@LIMIT
@given(SEEDS, *[st.integers(1, top) for top in (4, 9, 66, 70)], st.booleans(), st.booleans())
def test_batched_matmul_takes_any_strides(seed, batch, rows, depth, columns, turn_x, turn_y):
    x, y = words(seed, batch, rows, depth), words(seed + 1, batch, depth, columns)
    if turn_x:
        x = words(seed, batch, depth, rows).transpose(0, 2, 1)
    if turn_y:
        y = words(seed, columns, batch, depth).transpose(1, 2, 0)
    got = matmul.batched_matmul(x, y)
    np.testing.assert_array_equal(got, matmul.batched_matmul_numpy(x, y))


@pytest.mark.parametrize(("rows", "depth"), [(1, 64), (3, 64), (4, 8), (2, 20), (5, 64)])
def test_batched_matmul_with_rows_of_keys(rows, depth):
    x, keys = words(1, 3, rows, depth), words(2, 3, 37, depth)
    got = matmul.batched_matmul(x, keys.transpose(0, 2, 1))
    np.testing.assert_array_equal(got, np.matmul(x, keys.transpose(0, 2, 1)))


def test_matmul_takes_frozen_operands_and_fills_ranges_from_threads():
    x, w = words(1, 6, 64), words(2, 64, 300)
    x.flags.writeable = w.flags.writeable = False
    out = np.empty((6, 300), np.uint64)
    ranges = column_ranges(300, 3)
    threads = [Thread(target=matmul.matmul_into, args=(x, w, out, *part)) for part in ranges]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(out, x @ w)


@given(st.integers(1, 5000), st.integers(1, 9))
def test_column_ranges_cover_without_overlap(n, parts):
    ranges = column_ranges(n, parts)
    assert len(ranges) <= parts
    assert ranges[0][0] == 0 and ranges[-1][1] == n
    assert all(lo < hi for lo, hi in ranges)
    assert all(a[1] == b[0] and b[0] % PANEL == 0 for a, b in pairwise(ranges))


def test_matmul_refuses_shapes_that_do_not_fit():
    out = np.empty((2, 4), np.uint64)
    with pytest.raises(LocalProtocolError, match="do not fit"):
        matmul.matmul_into(words(1, 2, 3), words(1, 4, 4), out, 0, 4)
    with pytest.raises(LocalProtocolError, match="do not fit"):
        matmul.matmul_into(words(1, 2, 3), words(1, 3, 4), out, 0, 5)
    with pytest.raises(LocalProtocolError, match="contiguous"):
        matmul.matmul_into(words(1, 2, 3), words(1, 3, 4), np.empty((4, 2), "u8").T, 0, 4)
    with pytest.raises(LocalProtocolError, match="do not fit"):
        matmul.matmul_into(words(1, 2, 2), words(1, 3, 4), out, 0, 4)


@pytest.mark.parametrize("width", [0, 65, -1])
def test_widths_outside_the_ring_are_refused(width):
    with pytest.raises(LocalProtocolError, match=f"width {width}"):
        packing.pack(words(1, 3), width)


def test_mmo_is_aes_xor_its_input_under_distinct_keys():
    seeds = words(3, 5, 2)
    results = set()
    for index in range(6):
        cipher = Cipher(AES(fixed_key(index)), ECB()).encryptor()
        expected = np.frombuffer(cipher.update(seeds.tobytes()), np.uint64).reshape(5, 2) ^ seeds
        np.testing.assert_array_equal(mmo(index, seeds), expected)
        results.add(expected.tobytes())
    assert len(results) == 6


def test_key_schedule_of_fips_197():
    """FIPS 197, appendix A.1: the last round key of the example key."""
    key = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
    assert aesni._schedule(key)[-16:].hex() == "d014f9a8c9ee2589e13f0cc8b6630ca6"


def test_importing_the_package_does_not_import_numba():
    code = "import sys, protocols.dpf, protocols.kernels; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_environment_selects_the_twins():
    code = (
        "import sys, numpy as np; from protocols.kernels import matmul, warm_up; warm_up(print);"
        "out = np.empty((1, 1), np.uint64); one = np.full((1, 1), 2**63 + 3, np.uint64);"
        "matmul.matmul_into(one, one, out, 0, 1); assert out[0, 0] == (2**63 + 3) ** 2 % 2**64;"
        "sys.exit('numba' in sys.modules)"
    )
    environment = {**os.environ, "PUMA_KERNELS": "numpy"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, b""), done.stderr


def test_an_unknown_mode_is_refused():
    environment = {**os.environ, "PUMA_KERNELS": "fortran"}
    done = subprocess.run(
        [sys.executable, "-c", "import protocols.kernels"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert ConfigError.__name__ in done.stderr and "PUMA_KERNELS='fortran'" in done.stderr


@compiled
@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize(("cached", "doing"), [(0, "compiling"), (1000, "loading")])
def test_warm_up_names_every_kernel(monkeypatch, cached, doing, public):
    monkeypatch.setattr(protocols.kernels, "cached", lambda: cached)
    lines: list[str] = []
    warm_up(lines.append, public_weights=public)
    usable = [
        item
        for item in jit.kernels()
        if (aesni.available() or item.function.__module__ not in (ctr.__name__, forest.__name__))
        and (public or ".stored." not in item.function.__module__)
    ]
    assert public == any("multiply" in line for line in lines)
    assert len(lines) == len(usable)
    assert lines[0].startswith(f"{doing} kernel 1/{len(usable)}: ")


# -- selection -------------------------------------------------------------------------------------


@LIMIT
@given(SEEDS, st.integers(1, 4), st.integers(1, 3), st.integers(1, 40))
def test_selection_equals_the_twins_and_the_truth(seed, terms, k, count):
    rng = np.random.default_rng(seed)
    bits, masks = rng.integers(0, 2, (2, terms, k, count), dtype=np.uint8)
    y, lam = words(seed, terms, count), words(seed + 1, terms, count)
    whole = select._select_secrets_numba(masks, lam)
    np.testing.assert_array_equal(whole, select.select_secrets_numpy(masks, lam))
    one = words(seed + 2, *whole.shape)
    own = words(seed + 3, terms, count)
    parts = [(own, one), (y - lam - own, whole - one)]
    total = np.zeros(count, np.uint64)
    for mine, dealt in parts:
        got = select._select_part_numba(bits, y, mine, dealt)
        np.testing.assert_array_equal(got, select.select_part_numpy(bits, y, mine, dealt))
        total += got
    chosen = (bits ^ masks).prod(axis=1, dtype=np.uint64)
    np.testing.assert_array_equal(total, (chosen * (y - lam)).sum(axis=0, dtype=np.uint64))


@LIMIT
@given(SEEDS, st.integers(1, 5), st.integers(1, 9), st.integers(2, 63), st.booleans())
def test_narrow_products_equal_the_twins(seed, rows, size, width, leads):
    m, own, y, y_own, *dealt = words(seed, 7, rows, size)
    args = (m, own, tuple(dealt), width, leads)
    got = elementwise._narrow_squares_numba(*args)
    np.testing.assert_array_equal(got, elementwise.narrow_squares_numpy(*args))
    m, own, y, y_own = (each.reshape(-1) for each in (m, own, y, y_own))
    args = (m, own, tuple(dealt), y, y_own, width, leads)
    got = elementwise._narrow_product_numba(*args)
    np.testing.assert_array_equal(got, elementwise.narrow_product_numpy(*args))


# -- waves -----------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 70), dealer=st.booleans())
def test_parts_of_products_equal_the_twin(seed, count, dealer):
    factors = [words(seed + number, count) for number in range(4)]
    got = elementwise._product_part_numba(*factors, dealer)
    np.testing.assert_array_equal(got, elementwise.product_part_numpy(*factors, dealer))


@LIMIT
@given(
    SEEDS,
    st.one_of(st.integers(1, 40), st.integers(250, 520)),
    st.integers(3, 30),
    st.integers(1, 9),
    st.data(),
)
def test_waves_equal_the_twins(seed, count, bits, harmonics, data):
    """From the first wave, and from where that left the turns."""
    frac, down = data.draw(st.integers(1, 30)), data.draw(st.integers(10, 60))
    turns = waves._first_turns_numba(words(seed, count), bits)
    twin = waves.first_turns_numpy(words(seed, count), bits)
    np.testing.assert_array_equal(turns, twin)
    got = waves._harmonics_numba(turns, harmonics, frac)
    np.testing.assert_array_equal(got, waves.harmonics_numpy(twin, harmonics, frac))
    np.testing.assert_array_equal(turns, twin)
    weights = np.random.default_rng(seed).integers(-(2**31), 2**31, (2, harmonics))
    shares, out = words(seed + 1, 2 * harmonics, count), words(seed + 2, count)
    same, drop = out.copy(), data.draw(st.integers(0, 20))
    waves._add_waves_numba(turns, weights, shares, down, drop, out)
    waves.add_waves_numpy(twin, weights, shares, down, drop, same)
    np.testing.assert_array_equal(out, same)
    np.testing.assert_array_equal(turns, twin)


@pytest.mark.parametrize("bits", [3, 10, 21, 25])
def test_harmonics_are_cosines_and_sines(bits):
    x = words(0, 500)
    angles = (x & np.uint64(2**bits - 1)).astype(float) * (2 * np.pi / 2**bits)
    got = waves.harmonics(waves.first_turns(x, bits), 20, 29).view(np.int64) / 2.0**29
    for k in range(1, 21):
        assert np.abs(got[2 * k - 2] - np.cos(k * angles)).max() <= 1e-7
        assert np.abs(got[2 * k - 1] - np.sin(k * angles)).max() <= 1e-7


@pytest.mark.parametrize("bits", [3, 20, 25])
def test_roots_are_right_to_the_last_bit(bits):
    table, low = waves.roots(bits), bits // 2
    for rows, step, count in (
        (table[:2], bits - low, 2 ** (bits - low)),
        (table[2:], bits, 2**low),
    ):
        angles = np.arange(count) * (2 * np.pi / 2**step)
        assert np.abs(rows[0, :count] - np.cos(angles) * 2.0**30).max() <= 0.51
        assert np.abs(rows[1, :count] - np.sin(angles) * 2.0**30).max() <= 0.51


@given(size=st.integers(0, 70), dealer=st.booleans(), seed=st.integers(0, 99))
def test_factors_are_joined_and_derived_as_their_twins_do(size, dealer, seed):
    rng = np.random.default_rng(seed)
    one, two = rng.integers(0, 2**64, (2, size), dtype=np.uint64)
    halves = rng.integers(0, 2**32, (3, size), dtype=np.uint32)
    for name, args in (("add_twice", (one, two)), ("joined_factor", (*halves, dealer))):
        found, expected = np.empty((2, size), dtype=np.uint64)
        getattr(elementwise, f"_{name}_numba")(*args, found)
        getattr(elementwise, f"{name}_numpy")(*args, expected)
        np.testing.assert_array_equal(found, expected)
    elementwise.joined_factor(*halves, dealer, found)
    for at, (high, first, second) in enumerate(halves.T.tolist()):
        low = (first - (1 if dealer else 2) * second) % 2**32
        assert int(found[at]) == (high << 32) + low


@LIMIT
@given(SEEDS, st.integers(0, 40), st.integers(2, 63))
def test_a_lift_equals_its_twin_and_its_halves(seed, count, width):
    low, own, high, upper = words(seed, 4, count)
    got = elementwise._lifted_numba(low, own, high, upper, width)
    np.testing.assert_array_equal(got, elementwise.lifted_numpy(low, own, high, upper, width))
    parts = (low, 1 << width - 2, high, width), (own, 0, upper, width)
    for found, part in zip(got, parts, strict=True):
        np.testing.assert_array_equal(found, elementwise._joined_numba(*part))


def test_arrays_of_any_layout_are_packed():
    whole = words(5, 6, 8)
    for layout in (whole[:, ::2], whole.T, whole[0, ::3], np.broadcast_to(whole[0], (3, 8))):
        for width in (5, 16, 64):
            expected = packing.pack(np.array(layout).reshape(-1), width)
            np.testing.assert_array_equal(packing.pack(layout, width), expected)


@LIMIT
@given(SEEDS, *[st.integers(0, top) for top in (3, 9, 40)], st.booleans())
def test_a_table_in_halves_is_multiplied_by_as_its_words(seed, count, rows, depth, dealer):
    """Also with halves at the ends of their range."""
    rng = np.random.default_rng(seed)
    ends = np.array([0, 1, 2**31, 2**32 - 1], np.uint32)
    drawn = rng.choice([ends, rng.integers(0, 2**32, 4, dtype=np.uint32)])
    upper, one, two = rng.choice(drawn, (3, rows, depth))
    high, low = rng.choice(drawn, (2, count, depth)).astype(np.uint64)
    x = (high << np.uint64(32)) + low
    table = np.empty((rows, depth), np.uint64)
    elementwise.joined_factor(*(half.ravel() for half in (upper, one, two)), dealer, table.ravel())
    found = halves.half_products(x, upper, one, two, dealer)
    np.testing.assert_array_equal(found, x @ table.T)
    np.testing.assert_array_equal(found, halves.half_products_numpy(x, upper, one, two, dealer))
