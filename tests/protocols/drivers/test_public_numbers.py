"""The public numbers that all parties multiply by: the same on every processor, accurate, and
compared before an input is shared.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from public_words import configs, features, plans

from models.configs.rope import rotary_turns
from models.programs.plan import draft_plan
from models.programs.public import plan_digests
from protocols.arithmetic import PRODUCT_BITS
from protocols.base.precise import PI, PRECISE, cosine_table, cosines, inverse_root
from protocols.base.ring import FRACTION_BITS, encode, signed
from protocols.drivers.public import differing, digest, refusal, table_digests
from protocols.drivers.secure import inverse_lengths
from protocols.errors import RangeError
from protocols.functions.activation_tables import ACTIVATIONS
from protocols.functions.attention import most_spare, spare_bits, spare_near
from protocols.functions.elementary import gained_spline, power_spline
from protocols.functions.exponential import factor_tables
from protocols.functions.histogram import bucket_tables
from protocols.functions.normalize import Norm, NormRange
from protocols.kernels.spline import signed_binomials
from protocols.kernels.waves import roots

ROOT = Path(__file__).parents[3]

# -- the same everywhere ---------------------------------------------------------------------------

CORES = ("Haswell", "Prescott", "Nehalem", "SkylakeX", "Zen", "Sandybridge")


def shown(**changes: str) -> dict[str, Any]:
    """What `public_words` prints under some environment."""
    support = ROOT / "tests" / "support"
    folders = (ROOT, support, support / "checkpoints", support / "sharing")
    path = os.pathsep.join(map(str, folders))
    done = subprocess.run(
        [sys.executable, str(support / "sharing" / "public_words.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **changes},
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def here() -> dict[str, Any]:
    return shown()


@pytest.mark.parametrize("core", CORES)
def test_every_kind_of_processor_makes_the_same_words(core: str, here: dict[str, Any]) -> None:
    """OpenBLAS believes to be on another one, and NumPy's loops are those of the least."""
    changes = {"OPENBLAS_CORETYPE": core, "NPY_DISABLE_CPU_FEATURES": ",".join(features())}
    assert shown(**changes) == here


def test_fewer_instructions_and_other_threads_make_the_same_words(here: dict[str, Any]) -> None:
    some = {"NPY_DISABLE_CPU_FEATURES": ",".join(features()[-1:]), "OMP_NUM_THREADS": "3"}
    assert shown(**some, PUMA_KERNELS="numpy", PYTHONHASHSEED="7") == here


PINNED = {
    "tables": "98d803069fd08325 36ed94c23d08ffad 28d2e5b4038780a8 bbc11b3647f3a645 "
    "b71cbec74a21b708 3095624e0a138d67 57d181e7e1baa9d1",
    "plain": "e3b0c44298fc1c14 e3b0c44298fc1c14 e3b0c44298fc1c14 "
    "70b8f61f806f59fd a40b6b1473507b1a bee3c9d2a749320a",
    "linear": "e3b0c44298fc1c14 e3b0c44298fc1c14 e3b0c44298fc1c14 "
    "70b8f61f806f59fd a40b6b1473507b1a 7db5b7e7cf000ead",
    "dynamic": "e3b0c44298fc1c14 e3b0c44298fc1c14 e3b0c44298fc1c14 "
    "70b8f61f806f59fd a40b6b1473507b1a b2c86758e8d8308a",
    "yarn": "e3b0c44298fc1c14 e3b0c44298fc1c14 e3b0c44298fc1c14 "
    "70b8f61f806f59fd a40b6b1473507b1a 3921e0766da6988e",
    "llama3": "e3b0c44298fc1c14 e3b0c44298fc1c14 e3b0c44298fc1c14 "
    "70b8f61f806f59fd a40b6b1473507b1a b3868557169a1419",
    "gemma": "e3b0c44298fc1c14 b9e0fcb35e4ecd40 0cbea7dcfe2f4c2c "
    "70b8f61f806f59fd a40b6b1473507b1a 0ac8a4dc6d718c63",
    "normed": "e3b0c44298fc1c14 e3b0c44298fc1c14 e3b0c44298fc1c14 "
    "e1cb542b3b21c3e6 67af4fa622787d31 bee3c9d2a749320a",
    "alibi": "8e185b3ddcc119e6 e3b0c44298fc1c14 e3b0c44298fc1c14 "
    "f913167d7cb32e9a a40b6b1473507b1a e3b0c44298fc1c14",
}


def test_the_words_are_those_that_were_checked_in() -> None:
    """Changing them must be deliberate: parties of both versions refuse each other."""
    found = {"tables": _joined(table_digests())}
    found |= {name: _joined(plan_digests(plan)) for name, plan in plans().items()}
    assert found == PINNED, f"tables differ: a change that is meant goes into PINNED: {found}"


def _joined(digests: dict[str, str]) -> str:
    return " ".join(digests[name] for name in sorted(digests))


# -- one entry is enough ---------------------------------------------------------------------------


def held() -> Iterator[tuple[str, Any]]:
    """Name of a digest, and an array in this process that it stands for."""
    for activation in ACTIVATIONS.values():
        for centre in (activation.tight, activation.fast):
            if centre is not None:
                yield "waves", centre.waves.weights
                yield "waves", roots(centre.waves.bits)
    for table in factor_tables():
        yield "exp", table
    for table in bucket_tables():
        yield "buckets", table
    for halves in (1, 2):
        yield "splines", power_spline(halves, 1.0).tables
    yield "splines", signed_binomials(4)
    yield "cosines", cosine_table()


@contextmanager
def another_bit(array: Any, place: int) -> Iterator[None]:
    """Inside the block, the last bit of one entry of the array is flipped."""
    where = np.unravel_index(place, array.shape)
    array[where] ^= 1
    try:
        yield
    finally:
        array[where] ^= 1


@given(st.data())
def test_any_entry_of_any_table_changes_its_digest(data: st.DataObject) -> None:
    before = table_digests()
    name, array = data.draw(st.sampled_from(list(held())))
    with another_bit(array, data.draw(st.integers(0, array.size - 1))):
        assert differing(before, table_digests()) == [name]
    assert table_digests() == before


@given(st.data())
def test_any_number_of_a_plan_changes_its_digest(data: st.DataObject) -> None:
    plan = plans()["normed"]
    before = plan_digests(plan)
    gain = data.draw(st.sampled_from([math.sqrt(24), math.sqrt(8)]))
    tables = gained_spline(1, gain)[0].tables
    with another_bit(tables, data.draw(st.integers(0, tables.size - 1))):
        assert differing(before, plan_digests(plan)) == ["powers"]
    table = cosine_table()
    with another_bit(table[0], 0):  # no bit of a word: the digest of the table itself has it
        assert differing(before, plan_digests(plan)) == []


@pytest.mark.parametrize(
    ("name", "changes", "odd"),
    [
        ("plain", {"rms_norm_eps": 1.001e-5}, ["norms"]),
        ("plain", {"rope_theta": 10001.0}, ["rotary"]),
        ("plain", {"hidden_size": 25}, ["norms", "powers"]),
        ("gemma", {"score_cap": 49.0}, ["caps"]),
        ("gemma", {"embedding_scale": 5.0}, ["factors"]),
        ("gemma", {"local_rope_theta": 78.0}, ["rotary"]),
        ("yarn", {"rope_theta": 10001.0}, ["rotary"]),
        ("alibi", {"num_heads": 2, "num_kv_heads": 2}, ["biases"]),
    ],
)
def test_what_a_plan_says_goes_into_its_digests(
    name: str, changes: dict[str, Any], odd: list[str]
) -> None:
    config = configs()[name]
    other = draft_plan(replace(config, **changes))
    assert differing(plan_digests(draft_plan(config)), plan_digests(other)) == odd


def test_what_a_peer_claims() -> None:
    mine = {"waves": "1", "exp": "2"}
    assert differing(mine, dict(reversed(mine.items()))) == []
    assert differing(mine, {"waves": "1", "exp": 2}) == ["exp"]
    for claim in ({}, None, [], "waves", {"more": "3"}):
        assert differing(mine, claim) == ["exp", "waves"]
    text = refusal("evaluator-b", ["exp"])
    assert text.startswith("evaluator-b's public tables differ from this side's: exp: install")


def test_shapes_and_signs_count() -> None:
    words = np.arange(6, dtype=np.uint64)
    seen = {digest([words]), digest([words.reshape(2, 3)]), digest([words[:3], words[3:]])}
    assert len(seen | {digest([words.astype(np.int64) - 1]), digest([])}) == 5
    assert digest([words.astype(">u8")]) == digest([words]) == digest([words[::-1][::-1]])


# -- how near they are -----------------------------------------------------------------------------


def exact_cosines(angle: Fraction) -> tuple[Decimal, Decimal]:
    """Cosine and sine of a fraction of a turn, by their series."""
    with localcontext(PRECISE):
        x = 2 * PI * Decimal(angle.numerator) / Decimal(angle.denominator)
        parts = [Decimal(0), Decimal(0)]
        term = Decimal(1)
        for k in range(80):
            parts[k % 2] += term if k % 4 < 2 else -term
            term = term * x / (k + 1)
        return parts[0], parts[1]


@given(st.integers(0, 2**64 - 1) | st.integers(0, 1 << 11).map(lambda k: (k << 53) % 2**64))
def test_cosines_of_any_angle(angle: int) -> None:
    found = cosines(np.array([angle], dtype=np.uint64))
    for part, exact in zip(found, exact_cosines(Fraction(angle, 2**64)), strict=True):
        assert abs(Decimal(float(part[0])) - exact) < Decimal(2) ** -52
        assert float(part[0]) * 2**52 == round(float(part[0]) * 2**52)


def test_pi() -> None:
    """Machin's formula."""
    with localcontext(PRECISE):

        def arctan(n: int) -> Decimal:
            return sum(
                (Decimal((-1) ** k) / ((2 * k + 1) * Decimal(n) ** (2 * k + 1)) for k in range(60)),
                Decimal(0),
            )

        assert abs(16 * arctan(5) - 4 * arctan(239) - PI) < Decimal(10) ** -57


@pytest.mark.parametrize("theta", [1.0, 10000.0, 5e5, 1e12])
def test_rotary_angles_at_far_positions(theta: float) -> None:
    """Off by 2^-65 of a turn a position: at 2^24 by less than 2^-20 of a word's last place."""
    size = 16
    turns = rotary_turns(theta, size, None, 1)
    for position in (0, 1, 4095, (1 << 24) - 1):
        c, s = cosines(turns * np.uint64(position))
        for pair in range(size // 2):
            with localcontext(PRECISE):
                rate = (-Decimal(theta).ln() * 2 * pair / size).exp()
                exact = exact_cosines(Fraction(position * rate / (2 * PI)) % 1)
            for part, wanted in ((c, exact[0]), (s, exact[1])):
                assert abs(Decimal(float(part[pair])) - wanted) < Decimal(2) ** -38
                word = int(signed(encode(part[pair : pair + 1], FRACTION_BITS))[0])
                assert abs(word - wanted * (1 << 18)) < Decimal("0.50001")


@pytest.mark.parametrize(("halves", "bound"), [(1, 1.22e-6), (2, 4.6e-6)])
def test_powers_are_as_near_as_least_squares_come(halves: int, bound: float) -> None:
    """Over every segment's double width, relative to the power."""
    for size in (1, 3, 24, 768, 4096):
        gain = math.sqrt(size)
        spline, exponent = gained_spline(halves, gain)
        table = spline.tables[0].view(np.int64).astype(np.float64)
        h = 2.0**-6
        for segment in range(13, 76):
            u = np.linspace(-1, 1, 101) * 2.0**spline.local_bits
            powers = u ** np.arange(4)[:, None]
            value = (table[:, segment % 64, None] * powers).sum(axis=0)
            x = segment * h + u * 2.0**-spline.frac
            exact = gain * x ** (-halves / 2)
            found = value * 2.0 ** (exponent - spline.scale)
            assert np.abs(found / exact - 1).max() < bound
        assert np.abs(table[0]).max() < 2.0**62


@given(st.integers(1, 1 << 20))
def test_inverse_lengths_are_the_nearest(length: int) -> None:
    word = int(inverse_lengths([length])[0])
    assert abs(word - Fraction(1 << 22, length)) <= Fraction(1, 2)


@given(st.integers(2, 1 << 24), st.integers(0, 24))
def test_bits_to_spare_are_counted_exactly(length: int, value_bits: int) -> None:
    """The smallest power of two that no sum of values and weights passes, without a logarithm."""
    try:
        spare = spare_bits(value_bits, length)
    except RangeError as error:
        total = int(str(error).split("2^")[1].split(":")[0])
        assert 2 ** (total - value_bits) >= Fraction(13, 10) * length
        return
    total = spare + PRODUCT_BITS - 1 - 2 * FRACTION_BITS
    assert 2**total >= Fraction(13, 10) * length * 2**value_bits or spare == 0
    if spare > 0:
        assert 2 ** (total - 1) < Fraction(13, 10) * length * 2**value_bits


@given(st.integers(1, 12), st.integers(0, 24), st.integers(2, 2047))
def test_bits_to_spare_for_numerators_near_the_maximum(
    score_bits: int, value_bits: int, length: int
) -> None:
    """Product and division fit, and a bit less would not do; without a logarithm."""
    spare = spare_near(value_bits, length)
    fraction, sums = 26, Fraction(11, 10) * length
    high = next(n for n in range(64) if 4**n >= sums * 2**fraction)
    product = 2**value_bits * sums * 2 ** (fraction + FRACTION_BITS)

    def fits(bits: int) -> bool:
        division = value_bits + 2 * high + 3 + 16 - bits
        return product <= 2 ** (PRODUCT_BITS - 1 + bits) and division <= 61

    assert fits(spare)
    assert spare == 0 or not fits(spare - 1)
    if spare_bits(value_bits, length) <= spare <= 6:
        assert most_spare(score_bits, value_bits, length) == spare


@given(
    st.integers(1, 1 << 16),
    st.floats(1e-24, 1e-2),
    st.booleans(),
    st.integers(0, 20),
)
def test_eps_words_are_the_nearest(size: int, eps: float, center: bool, drop: int) -> None:
    norm = Norm(size, eps, center)
    word = int(NormRange(drop, 1, 29, 18).eps_word(norm))
    stretch = Fraction(size, 1 << norm.extra) if center else 1
    exact = size * Fraction(eps) * stretch**2 * 4 ** (22 - drop)
    assert word == max(1, round(exact))


def test_widths_of_waves_hold_their_sums() -> None:
    for activation in ACTIVATIONS.values():
        for centre in (activation.tight, activation.fast):
            if centre is not None:
                most = sum(map(Fraction, map(abs, centre.waves.amplitudes)))
                room = 2 ** (centre.waves.width - centre.waves.scale - 2)
                assert most * Fraction(1001, 1000) <= room
                assert room == 1 or room < 2.1 * most


def test_inverse_roots_are_rounded_once() -> None:
    for size in (1, 2, 3, 64, 80, 128):
        with localcontext(PRECISE):
            exact = 1 / Decimal(size).sqrt()
        assert abs(Fraction(inverse_root(size)) - Fraction(exact)) <= Fraction(1, 2**54)
