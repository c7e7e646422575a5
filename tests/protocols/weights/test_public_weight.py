"""Products with public weights against exact integers, and against products with secret ones."""

import numpy as np
import pytest
from helpers import A, B, D, generator, run, share_ints
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_matrices import KINDS, SUPER, part, public_tables, public_weights, read

from protocols.base.cost import Cost
from protocols.base.ring import RESIDUAL_BITS, decode, encode, packed_bytes, signed
from protocols.base.shares import COMPUTING, Role
from protocols.drivers.lockstep import combine, run_parties
from protocols.drivers.trace import trace
from protocols.embedding import embed, request_rows
from protocols.errors import LocalProtocolError, RangeError
from protocols.linear import linear, table_product
from protocols.public_weight import Part, PublicTable, PublicWeight

shapes = st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 20))


def assert_product(results, exact, shift):
    """Rounded down or up, exact where the shift divides it, and over the ring of secret weights."""
    assert results[A].width == 63 - shift
    got = signed(combine(results), 63 - shift).reshape(-1).tolist()
    for result, z in zip(got, [int(v) for v in exact.reshape(-1)], strict=True):
        assert result - (z >> shift) in ((0, 1) if z % 2**shift else (0,))


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(0, 1000))
def test_linear(shape, seed):
    rows, depth, columns = shape
    rng = generator(seed)
    x = rng.integers(-(2**26), 2**26, (rows, depth))
    w = rng.integers(-(2**24), 2**24, (depth, columns))
    results = run(linear, share_ints(x, frac=18), public_weights(w, COMPUTING)).results
    assert results[A].frac == 18
    assert_product(results, x.astype(object) @ w.astype(object), 20)


def test_linear_at_the_edge_of_its_range():
    x = np.array([[2**29, 2**29 - 1], [-(2**29), 1 - 2**29]])
    w = np.array([[2**30, 1], [2**31 - 128, 0]])
    exact = x.astype(object) @ w.astype(object)
    assert 2**60.5 < abs(exact).max() < 2**61

    async def program(lane, x, weight):
        return await linear(lane, x, weight, frac=RESIDUAL_BITS)

    results = run(program, share_ints(x, frac=18), public_weights(w, COMPUTING)).results
    assert results[A].frac == RESIDUAL_BITS
    assert_product(results, exact, 16)


def test_a_public_map_runs_before_truncation():
    rng = generator(5)
    x, w = rng.integers(-(2**20), 2**20, (3, 8)), rng.integers(-(2**20), 2**20, (8, 4))

    async def program(lane, x, weight):
        return await linear(
            lane, x, weight, then=lambda z: z[:, ::-1] * np.uint64(12345), then_frac=14
        )

    results = run(program, share_ints(x, frac=18), public_weights(w, COMPUTING)).results
    exact = (x.astype(object) @ w.astype(object))[:, ::-1] * 12345
    assert_product(results, exact, 34)


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(0, 1000))
def test_table_product(shape, seed):
    rows, columns, entries = shape
    rng = generator(seed)
    x = rng.integers(-(2**26), 2**26, (rows, columns))
    table = rng.integers(-(2**24), 2**24, (entries, columns))
    results = run(table_product, share_ints(x, frac=18), public_tables(table, COMPUTING)).results
    assert_product(results, x.astype(object) @ table.T.astype(object), 22)


def test_a_long_product_in_two_threads():
    rng = generator(3)
    x, w = rng.integers(-(2**20), 2**20, (33, 576)), rng.integers(-(2**20), 2**20, (576, 1001))
    results = run(linear, share_ints(x, frac=18), public_weights(w, COMPUTING)).results
    assert_product(results, x @ w, 20)


@pytest.mark.parametrize("rows", [1, 3])
def test_declared_cost_equals_counted_cost(rows):
    x = share_ints(np.ones((rows, 7), int), frac=18)
    weights = public_weights(np.ones((7, 5), int), COMPUTING)
    tables = public_tables(np.ones((5, 7), int), COMPUTING)
    weights[Role.TRACE], tables[Role.TRACE] = PublicWeight.blank((7, 5)), PublicTable.blank((5, 7))

    async def mapped(lane, x, weight):
        return await linear(lane, x, weight, then=lambda z: z + z, then_frac=3)

    for function, held in ((linear, weights), (mapped, weights), (table_product, tables)):

        async def party(lane, function=function, held=held):
            own = lane.blank((rows, 7), frac=18) if lane.tracing else x[lane.role]
            return await function(lane, own, held[lane.role])

        outcome = run_parties(dict.fromkeys(COMPUTING, party))
        declared, _ = trace(party)
        sent = 2 * packed_bytes(rows * 5, outcome.results[A].width)
        assert declared == outcome.cost == Cost(1, sent, packed_bytes(rows * 5, 64))


@pytest.mark.parametrize("kind", KINDS)
def test_the_integers_are_those_of_the_definition(kind):
    """Two parts, one permuted, with all factors and a bias."""
    rng = generator(1)
    inputs = 256 if kind in SUPER else 64
    first, second = rng.standard_normal((10, inputs)), rng.standard_normal((6, inputs))
    row = rng.uniform(0.5, 2, inputs).astype(np.float32)
    column = np.float32([0.125] * 10 + [1 / 3] * 6)
    bias, order = rng.standard_normal(16).astype(np.float32), rng.permutation(10)
    parts = [part(first, kind, order=order), part(second, kind)]
    weight = PublicWeight.of(A, parts, row=row, column=column, bias=bias)
    assert weight.shape == (inputs + 1, 16)
    assert weight.nbytes == sum(p.data.nbytes for p in parts)
    values = np.concatenate([read(parts[0].data, kind)[order], read(parts[1].data, kind)])
    expected = np.rint((values * row) * (column * np.float32(2**20))[:, None])
    found = weight.integers(0, 16)
    np.testing.assert_array_equal(found[:, :inputs], expected)
    np.testing.assert_array_equal(
        found[:, inputs], np.rint((bias * column).astype(np.float64) * 2**20)
    )
    np.testing.assert_array_equal(weight.integers(7, 13), found[7:13])
    x, out = (
        rng.integers(0, 2**64, (3, inputs + 1), dtype=np.uint64),
        np.full((3, 16), 5, np.uint64),
    )
    weight.multiply(x, out, 7, 13)
    np.testing.assert_array_equal(out[:, 7:13], x @ found[7:13].T.view(np.uint64))
    assert (np.delete(out, np.s_[7:13], axis=1) == 5).all()


def test_a_matrix_stored_by_inputs_is_the_same_matrix():
    rng = generator(2)
    values, row = rng.standard_normal((40, 21)).astype("f4"), rng.uniform(1, 2, 40).astype("f4")
    column = rng.uniform(1, 2, 21).astype("f4")
    one, other = (
        PublicWeight.of(A, [made], row=row, column=column)
        for made in (part(values, across=True), part(values.T))
    )
    np.testing.assert_array_equal(one.integers(0, 21), other.integers(0, 21))


def test_the_shift_of_a_norm_goes_into_the_bias():
    """By integers, so that all parties get the same; within a rounding of each entry."""
    rng = generator(4)
    values, shift = rng.standard_normal((9, 50)) * 0.1, rng.standard_normal(50).astype("f4")
    row, column = rng.uniform(1, 2, 50).astype("f4"), rng.uniform(0.1, 1, 9).astype("f4")
    bias = rng.standard_normal(9).astype("f4")
    both = PublicWeight.of(A, [part(values)], row=row, column=column, bias=bias, shift=shift)
    alone = PublicWeight.of(A, [part(values)], row=row, column=column, shift=shift)
    moved = (values.astype("f4") @ shift.astype(float)) * column
    slack = (np.abs(shift).sum() / 2 + 1.5) * 2.0**-20
    assert np.abs(decode(both.bias, 20) - (moved + bias * column)).max() < slack
    assert np.abs(decode(alone.bias, 20) - moved).max() < slack
    bare = PublicWeight.of(A, [part(values)], column=column)
    exact = bare.integers(0, 9).astype(object) @ signed(encode(shift, 30)).astype(object)
    assert signed(alone.bias).tolist() == [int(v + 2**29) >> 30 for v in exact]


def test_what_does_not_fit_is_refused_by_name():
    at_most, over = 2048 - 2.0**-13, 2048.0
    for value in (at_most, -at_most):
        PublicWeight.of(A, [part(np.full((5, 9), value))]).check("layers.0.qkv")
    for value in (over, -over):
        values = np.zeros((5, 9))
        values[3, 8] = value
        with pytest.raises(RangeError, match=r"layers\.0\.qkv: entries reach 2048.* below 2048"):
            PublicWeight.of(A, [part(values)]).check("layers.0.qkv")
    values[3, 8] = np.nan
    with pytest.raises(RangeError, match=r"layers\.0\.qkv: entries are not finite"):
        PublicWeight.of(A, [part(values)]).check("layers.0.qkv")
    table = PublicTable.of(A, [part(np.full((5, 9), 255.5))])
    table.check("embedding")
    with pytest.raises(RangeError, match=r"embedding: entries reach 255.5, but .* below 128"):
        table.check("embedding", 2.0**29)
    with pytest.raises(RangeError, match=r"embedding: entries reach 256, but .* below 256"):
        PublicTable.of(A, [part(np.full((5, 9), -256.0))]).check("embedding")


def test_factors_are_checked():
    good = [part(np.ones((3, 4)))]
    for options, error in (
        ({"row": np.ones(3, "f4")}, LocalProtocolError),
        ({"column": np.ones(4, "f4")}, LocalProtocolError),
        ({"bias": np.ones(4, "f4")}, LocalProtocolError),
        ({"shift": np.ones(3, "f4")}, LocalProtocolError),
        ({"row": np.full(4, np.nan, "f4")}, RangeError),
        ({"column": np.full(3, np.inf, "f4")}, RangeError),
        ({"row": np.full(4, 2.0**60, "f4")}, RangeError),
        ({"bias": np.full(3, np.nan, "f4")}, RangeError),
        ({"shift": np.full(4, np.inf, "f4")}, RangeError),
        ({"shift": np.full(4, 2.0**12, "f4")}, RangeError),
    ):
        with pytest.raises(error):
            PublicWeight.of(A, good, **options)
    with pytest.raises(LocalProtocolError, match="same number of inputs"):
        PublicWeight.of(A, [*good, part(np.ones((3, 5)))])
    with pytest.raises(LocalProtocolError, match="same number of inputs"):
        PublicWeight.of(A, [])


def test_parts_are_checked():
    with pytest.raises(LocalProtocolError, match="'q5_k' is not decoded here: use bf16"):
        Part(np.zeros((2, 176), np.uint8), "q5_k")
    for data in (np.zeros(4, np.uint8), np.zeros((2, 2), np.uint16)):
        with pytest.raises(LocalProtocolError, match="rows of bytes are needed"):
            Part(data, "bf16")


def test_factors_that_processors_may_drop_count_as_zero():
    tiny = np.full(4, 2.0**-127, "f4")
    weight = PublicWeight.of(A, [part(np.full((3, 4), 2.0**127))], row=tiny)
    assert not weight.integers(0, 3).any()


def test_a_party_without_the_weight_says_so():
    held = {role: PublicWeight(role, (2, 2)) for role in COMPUTING}
    with pytest.raises(LocalProtocolError, match="does not have the public weight"):
        run(linear, share_ints([[1, 2]], frac=18), held)
    with pytest.raises(LocalProtocolError, match="cannot multiply"):
        run(linear, share_ints([[1, 2, 3]], frac=18), public_weights(np.ones((2, 2)), COMPUTING))


@pytest.mark.parametrize("kind", ["f32", "bf16", "q8_0"])
@pytest.mark.parametrize(("rows", "count"), [(3, 1), (37, 4), (9000, 2)])
def test_a_look_up_in_a_public_table(kind, rows, count):
    """The same messages as with a secret table, and the rows to the bit."""
    rng = generator(rows)
    stored = Part(part(rng.standard_normal((rows, 32)), kind).data, kind)
    bias = rng.standard_normal(rows).astype("f4")
    table = {role: PublicTable.of(role, [stored], bias=bias) for role in COMPUTING}
    ids = np.concatenate([[0, rows - 1], rng.integers(0, rows, count)])

    async def party(lane):
        return await embed(lane, table[lane.role], ids.size)

    async def client(lane):
        await request_rows(lane, ids, rows)

    outcome = run_parties({**dict.fromkeys(COMPUTING, party), Role.CLIENT: client})
    found = {role: outcome.results[role] for role in (D, A, B)}
    expected = table[A].weight.integers(0, rows)[ids]
    np.testing.assert_array_equal(signed(combine(found)), expected)
    assert found[A].frac == RESIDUAL_BITS
    assert table[A].shape == (rows, 33)

    async def traced(lane):
        return await embed(lane, PublicTable.blank((rows, 33)), ids.size)

    assert trace(traced)[0] == outcome.cost
