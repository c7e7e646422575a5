"""The declared cost of a protocol equals its traffic: rounds, online and offline bytes, exactly."""

from dataclasses import replace

import numpy as np
import pytest
from counting import ALL_SETTINGS, flags, same, tensor
from helpers import (
    A,
    blank,
    generator,
    share_ints,
)
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from models.programs.plan import Parameter
from models.programs.sharing import hold_parameter
from protocols.arithmetic import (
    Polynomial,
    lift,
    matmul,
    mul,
    poly,
    remask_cost,
    square_sum,
)
from protocols.base.cost import Cost, Traffic
from protocols.base.lane import APPROXIMATIONS, Settings
from protocols.base.ring import packed_bytes
from protocols.base.shares import COMPUTING, Role
from protocols.boolean import and_bits, to_bits
from protocols.compare import less, maximum
from protocols.drivers.lockstep import deal, run_parties
from protocols.drivers.trace import TraceLink, trace
from protocols.embedding import embed, embed_cost, request_rows, reveal, reveal_cost, revealed
from protocols.errors import LocalProtocolError
from protocols.functions.activations import ACTIVATIONS, GELU, SILU, activate, gate
from protocols.functions.elementary import (
    MAX_POWER_FRAC,
    exp_negative,
    power_spline,
    reciprocal,
    rsqrt,
)
from protocols.linear import Table, linear, table_product
from protocols.selection import Term, select
from protocols.spline import evaluate, fit
from protocols.triple import mul3

shapes = st.lists(st.integers(1, 5), min_size=2, max_size=3).map(tuple)


@limits(max_examples=15, deadline=None)
@given(shapes, st.integers(1, 40))
def test_products(shape, shift):
    x = tensor(shape)
    count = int(np.prod(shape))
    size = 8 * count
    assert same(mul, x, x, shift) == Cost(1, 2 * packed_bytes(count, 63 - shift), size)
    assert same(square_sum, x) == Cost(1, 2 * size // shape[-1], size // shape[-1])
    row = tensor((*shape[:-1], 1))
    same(mul, x, row, shift)
    sent, dealt = 2 * packed_bytes(count, 64 - shift), 3 * size + size // shape[-1]
    assert same(mul3, x, row, row, shift) == Cost(1, sent, dealt)
    same(mul3, x, x, x, shift)


@pytest.mark.parametrize("width", [13, 44, 64])
def test_narrow_products(width):
    same(mul, tensor((3, 5), width, 4), tensor((5,), width, 4), 3)
    same(mul3, *[tensor((7,), width, 2)] * 3, 2)
    same(square_sum, tensor((3, 5), width, 4))


@limits(max_examples=15, deadline=None)
@given(st.tuples(*[st.integers(1, 6)] * 4), st.integers(1, 30))
def test_matmul(sides, shift):
    batch, rows, depth, columns = sides
    cost = same(matmul, tensor((batch, rows, depth)), tensor((batch, depth, columns)), shift)
    count = batch * rows * columns
    assert cost == Cost(1, 2 * packed_bytes(count, 63 - shift), 8 * count)


@limits(max_examples=15, deadline=None)
@given(shapes, st.integers(2, 63), st.integers(2, 64))
def test_lift(shape, width, to):
    same(lift, tensor(shape, width, 0), to)


def test_the_figures_of_a_product_with_truncation_and_lift():
    """Per element: 102 bits dealt, 64 each way, 2 rounds, at 18 fraction bits."""

    async def program(lane, x):
        return await lift(lane, await mul(lane, x, x, 18))

    assert same(program, tensor((800,))) == Cost(2, 2 * 64 * 100, 102 * 100)


@pytest.mark.parametrize("degree", [1, 2, 3, 6])
@pytest.mark.parametrize("frac", [18, 50])
def test_poly(degree, frac):
    async def program(lane, x):
        return await poly(lane, x, Polynomial((1.0,) * (degree + 1)), scale=50, frac=frac)

    same(program, tensor((3, 5), 64, 8))


@pytest.mark.parametrize("tree", ["rounds", "traffic"])
@pytest.mark.parametrize("digits", range(1, 13))
def test_less(digits, tree):
    settings = Settings(tree=tree)
    x = tensor((3, 5), 4 * digits + 5 if digits < 12 else 64, 1)

    async def one(lane, x):
        return await less(lane, x, digits=digits)

    async def several(lane, x):
        return await less(lane, x, [0, 1, -1], digits=digits, shift=2 if digits < 12 else 0)

    same(one, x, settings=settings)
    same(several, x, settings=settings)


def test_the_figures_of_a_comparison():
    """As the docstring says for 5 digits; by 8 elements, so that bits are whole bytes."""

    async def program(lane, x):
        return await less(lane, x, digits=5)

    x = tensor((8,), 44)
    assert same(program, x, settings=Settings(tree="rounds")) == Cost(2, 2 * 11, 117)
    assert same(program, x, settings=Settings(tree="traffic")) == Cost(3, 2 * 15, 88)


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_and(count):
    cost = same(and_bits, [flags((4, 6)) for _ in range(count)])
    assert cost.rounds == 1
    assert cost.online == 6


def test_to_bits():
    async def program(lane, bits):
        return await to_bits(lane, bits.b.astype(np.uint64), bits.shape)

    assert same(program, flags((3, 7))) == Cost(1, 6, 0)


@pytest.mark.parametrize("width", [20, 44, 64])
def test_select(width):
    async def one(lane, a, y):
        return await select(lane, [Term((a,), y)], width=width, frac=y.frac, shape=y.shape)

    async def mixed(lane, a, b, c, y):
        public = np.ones((4, 6), dtype=np.uint64)
        terms = [Term((a, b, c), y), Term((b,), public), Term((a, c), y)]
        return await select(lane, terms, width=width, frac=y.frac, shape=(4, 6))

    async def total(lane, a, y):
        term = Term((a,), y)
        return await select(lane, [term], width=width, frac=y.frac, shape=(4,), total=True)

    y = tensor((4, 6), width, 8)
    same(one, flags((4, 6)), y)
    same(one, flags((4, 1)), y)
    same(mixed, flags((4, 6)), flags((4, 1)), flags((6,)), y)
    same(total, flags((4, 6)), y)


@pytest.mark.parametrize("tree", ["rounds", "traffic"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 65])
def test_maximum(size, tree):
    async def alone(lane, x):
        return (await maximum(lane, x))[0]

    async def beside(lane, x):
        return (await maximum(lane, x, x))[1]

    x = share_ints(generator().integers(-99, 99, (3, size)), 20)
    rounds, left = 0, size
    while left > 1:
        rounds += 3 if tree == "rounds" else 4 if left == 2 else 5
        left = -(-left // min(4, left))
    for function in (alone, beside):
        assert same(function, x, settings=Settings(tree=tree)).rounds == rounds


@pytest.mark.parametrize(("v", "degree"), [(2, 1), (5, 3), (7, 2)])
def test_spline(v, degree):
    spline = fit(lambda x: x, -1.0, segment_bits=v, width_bits=3, frac=12, degree=degree)

    async def program(lane, x):
        return await evaluate(lane, x, spline, 18)

    cost = same(program, tensor((3, 5), 40, 12))
    assert cost.offline == 15 * (8 + 2 * (16 * v + 8 * (degree + 1)))


@pytest.mark.parametrize("settings", ALL_SETTINGS)
def test_functions_of_one_number(settings):
    async def silu(lane, x):
        return await activate(lane, x, SILU)

    async def gelu(lane, x):
        return await activate(lane, x, GELU)

    async def tanh(lane, x):
        return await activate(lane, x, ACTIVATIONS["tanh"])

    async def relu(lane, x):
        return await activate(lane, x, ACTIVATIONS["relu"])

    async def gated(lane, x, y):
        return await gate(lane, x, y, SILU)

    async def root(lane, x):
        return await rsqrt(lane, x, 6, 14)

    async def inverse(lane, x):
        return await reciprocal(lane, x, 8, 11)

    x = tensor((3, 5), 44)
    rounds = {
        "silu": {"tight": 3, "fast": 3, "puma": 6},
        "gelu": {"tight": 3, "fast": 3, "puma": 6},
        "tanh": {"tight": 3, "fast": 3, "puma": 3},
        "relu": dict.fromkeys(APPROXIMATIONS, 4),
        "exp_negative": {"tight": 3, "fast": 4, "puma": 8},
    }
    for width in (28, 44):
        same(exp_negative, tensor((3, 5), width), settings=settings)
    for function in (silu, gelu, tanh, relu, exp_negative):
        width = 32 if function is exp_negative else 44
        cost = same(function, tensor((3, 5), width), settings=settings)
        if settings.tree == "rounds":
            expected = rounds[function.__name__][settings.approximation]
            assert cost.rounds == expected, function.__name__
    under = replace(settings, tree="balanced") if settings.tree == "rounds" else settings
    plain = same(silu, x, settings=under)
    assert same(gated, x, tensor((3, 5), 44), settings=settings).rounds == plain.rounds
    assert same(root, tensor((3, 5)), settings=settings).rounds == 2
    assert same(inverse, tensor((4,)), settings=settings).rounds == 2


@limits(max_examples=15, deadline=None)
@given(st.integers(0, 20), st.integers(1, 9))
def test_negative_powers(low, more):
    async def root(lane, x):
        return await rsqrt(lane, x, low, low + more, narrow=True)

    dealt = 15 * (8 + 2 * (80 + 64 * more))
    kept = 64 - power_spline(1, 1.0).scale + MAX_POWER_FRAC
    online = 2 * (packed_bytes(15, kept) + 8 * 15)
    assert same(root, tensor((3, 5))) == Cost(1, online, dealt)


@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 3, 5), (4, 7, 2), (9, 1, 1)])
def test_weights(rows, depth, columns):
    seeds = {1: bytes(32), 2: bytes(31) + b"1"}
    known = {Role.DEALER: (1, 2), A: (1,), Role.EVALUATOR_B: (2,), Role.TRACE: ()}
    words = np.ones((depth, columns), dtype=np.uint64)

    def held(kind):
        parameter = Parameter(kind, (depth, columns))
        return {
            role: hold_parameter(role, 0, parameter, words, {w: seeds[w] for w in which})
            for role, which in known.items()
        }

    def program(function, parameter, x):
        async def party(lane):
            own = blank(x) if lane.tracing else x[lane.role]
            return await function(lane, own, parameter[lane.role])

        return party

    async def mapped(lane, x, weight):
        return await linear(lane, x, weight, then=lambda w: w + w, then_frac=3)

    for function, kind, x in (
        (linear, "weight", tensor((rows, depth))),
        (mapped, "weight", tensor((rows, depth))),
        (table_product, "table", tensor((rows, columns))),
    ):
        party = program(function, held(kind), x)
        outcome = run_parties(dict.fromkeys(COMPUTING, party))
        assert trace(party)[0] == outcome.cost
        product = outcome.results[A]
        shift = 64 - product.width
        assert outcome.cost == remask_cost(product.size, 64, dealt=True, shift=shift)


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 2, 1), (3, 5, 7), (9, 300, 4)])
def test_embedding_and_reveal(count, rows, columns, prepared):
    parts = deal(generator().integers(0, 2**64, (rows, columns), dtype=np.uint64))
    tables = {r: Table.of(parts[r]) for r in COMPUTING}
    tables[Role.TRACE] = Table(Role.TRACE, (rows, columns), None, None)

    async def party(lane):
        x = await embed(lane, tables[lane.role], count)
        await reveal(lane, x.narrow(42))

    async def client(lane):
        await request_rows(lane, np.zeros(count, dtype=np.int64), rows)
        await revealed(lane, (count, columns), 42)

    settings = Settings(prepared=prepared)
    counted = run_parties({**dict.fromkeys(COMPUTING, party), Role.CLIENT: client}, settings).cost
    assert trace(party, settings)[0] == counted
    declared = embed_cost(count, (rows, columns), prepared=prepared)
    assert counted == declared + reveal_cost(count * columns, 42)


# -- the accounts themselves -----------------------------------------------------------------------


def test_costs_add_up():
    one, two = Cost(2, 10, 5), Cost(3, 1, 1)
    assert one + two == Cost(5, 11, 6)
    assert one.beside(two) == Cost(3, 11, 6)
    traffic = Traffic()
    traffic.count(7, online=True)
    traffic.count(5, online=False)
    traffic.note("a", one)
    traffic.note("a", two)
    assert (traffic.online_bytes, traffic.offline_bytes, traffic.messages) == (7, 5, 2)
    assert traffic.by_label == {"a": one + two}


def test_lanes_side_by_side_cost_the_rounds_of_the_longest():
    async def program(lane, x):
        async def twice(strand):
            return await lift(strand, await mul(strand, x, x, 18))

        return await lane.both(lambda s: mul(s, x, x, 1), twice)

    assert same(program, tensor((4,))).rounds == 2


def test_a_traced_program_cannot_talk():
    async def talks(lane):
        await lane.send_words(A, [], [])

    async def draws(lane):
        lane.mask((3,))

    for program in (talks, draws):
        with pytest.raises(LocalProtocolError, match="after charging its cost"):
            trace(program)
    assert TraceLink().role is Role.TRACE
