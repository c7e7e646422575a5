"""Every protocol on two very different inputs, and the check that no party can tell them apart."""

from dataclasses import replace

import numpy as np
from helpers import own, share, share_bits, share_ints, words
from stored_matrices import public_tables, public_weights
from uniformity import check_alike, check_uniform, observe

from protocols import spline, waves
from protocols.arithmetic import (
    Polynomial,
    lift,
    map_public,
    matmul,
    mul,
    poly,
    square_sum,
)
from protocols.base.lane import Settings
from protocols.base.ring import encode
from protocols.base.shares import COMPUTING, EVALUATORS, Role, constant
from protocols.boolean import and_bits
from protocols.compare import less, maximum
from protocols.drivers.lockstep import deal, run_parties
from protocols.functions.activations import ACTIVATIONS, GELU, SILU, activate, gate
from protocols.functions.attention import AttentionRange, attend
from protocols.functions.disentangled import disentangled_scores
from protocols.functions.elementary import exp_negative, power_spline, reciprocal, rsqrt
from protocols.functions.exponential import TIGHT, exp_part
from protocols.functions.histogram import numerators
from protocols.functions.late import LateRange, late_norm
from protocols.functions.normalize import Norm, norm_range, normalize
from protocols.functions.softcap import Cap, softcap
from protocols.linear import Table, Weight, linear, table_product
from protocols.narrow import narrow_matmul, narrow_mul, narrow_square_sum
from protocols.selection import Term, select
from protocols.triple import mul3

RUNS = 128
COUNT = 8
"""Elements: a multiple of 8, so that no field ends in padding."""
NORM, CENTRED = Norm(4, 0.5), Norm(4, 0.5, center=True)
STEADY = Norm(4, 1e-12, center=True)
"""A large eps: few powers of four to choose from, and short messages."""


def column(variant, low, high):
    """Two very different inputs of `COUNT` elements."""
    return np.full(COUNT, low) if variant == 0 else np.linspace(high / 3, high, COUNT)


def table_of(values):
    parts = deal(words(values))
    return {r: Table.of(parts[r]) for r in COMPUTING}


def weight_of(values):
    """A matrix as the evaluators and the dealer hold it."""
    parts = deal(words(values))
    return {r: Weight.of(parts[r]) for r in COMPUTING}


def public(values, frac=18):
    """A value that all know, as a sharing."""
    held = encode(np.asarray(values, dtype=np.float64), frac)
    return {r: constant(r, held, frac=frac) for r in COMPUTING}


async def silu(lane, x):
    return await activate(lane, x, SILU)


async def gated(lane, x, up):
    return await gate(lane, x, up, SILU)


async def gelu(lane, x):
    return await activate(lane, x, GELU)


async def tanh(lane, x):
    return await activate(lane, x, ACTIVATIONS["tanh"])


async def relu(lane, x):
    return await activate(lane, x, ACTIVATIONS["relu"])


async def cosines(lane, x):
    return await waves.evaluate(lane, x, GELU.tight.waves, 18, 35)


async def exp_alone(lane, x):
    return await exp_part(lane, x, TIGHT)


async def compare(lane, x):
    return await less(lane, x, [0, 7 << 14], digits=5, shift=12)


async def compare_exactly(lane, x):
    return await less(lane, x, digits=11)


async def cube(lane, x):
    return await poly(lane, x, Polynomial((0.5, -1.0, 0.0, 0.25)), scale=54, frac=18)


async def root_part(lane, x):
    return await spline.evaluate(lane, x, power_spline(1, 1.0), 18)


async def select_one(lane, flag, y):
    return await select(lane, [Term((flag,), y)], width=64, frac=0, shape=y.shape)


async def select_three(lane, one, two, three, y):
    terms = [Term((one, two, three), y), Term((two,), words(np.full(COUNT, 77)))]
    return await select(lane, terms, width=44, frac=0, shape=y.shape)


async def largest(lane, x, payload):
    return await maximum(lane, x, payload)


async def root(lane, v):
    return await rsqrt(lane, v, 8, 12)


async def inverse(lane, v):
    return await reciprocal(lane, v, 8, 12)


async def norm(lane, x):
    return await normalize(lane, x, NORM, norm_range(NORM, 20.0))


async def after_product(lane, x, weight):
    """A norm after the product that reads it."""
    bounds = norm_range(NORM, 20.0)
    return await late_norm(lane, x, NORM, bounds, weight, LateRange(1, 13, 13))


async def layer_norm(lane, x, gain, shift):
    """Its gain before the inverse root."""
    bounds = norm_range(CENTRED, 20.0, 2.0)
    return await normalize(lane, x, CENTRED, bounds, gain=gain, shift=shift, frac=22)


async def late_gain_norm(lane, x, gain, shift):
    """Its gain after the inverse root."""
    bounds = replace(norm_range(CENTRED, 20.0), early=False)
    return await normalize(lane, x, CENTRED, bounds, gain=gain, shift=shift, frac=22)


async def steady_norm(lane, x, gain, shift):
    """An eps under which constant rows must stay zeros."""
    bounds = norm_range(STEADY, 20.0, 2.0)
    return await normalize(lane, x, STEADY, bounds, gain=gain, shift=shift, frac=22)


async def mapped(lane, x):
    return await map_public(lane, x, lambda words: words * np.uint64(77), shift=5, frac=18)


async def near_largest(lane, x):
    """Rows of two entries, so that no field ends in padding."""
    return await numerators(lane, x, np.arange(2, x.size + 1, 2), 6)


async def attention(lane, scores, values):
    return await attend(
        lane, scores, values, np.ones((1, 2), dtype=np.bool_), AttentionRange(6, 6, 0)
    )


async def soft_cap(lane, x):
    return await softcap(lane, x, Cap(5.0))


async def disentangled(lane, q, k, keys, queries):
    return await disentangled_scores(lane, q, k, keys, queries, np.zeros((1, 1), dtype=np.int64))


async def wide_attention(lane, scores, values):
    return await attend(
        lane, scores, values, np.ones((1, 2), dtype=np.bool_), AttentionRange(23, 6, 0)
    )


def inputs_of(name, variant):
    """Program and freshly shared inputs."""
    x = column(variant, 0.0, -9.5)
    wide = share(x)
    v = share_ints(column(variant, 1 << 17, 1 << 23).astype(int), frac=18)
    bit = [share_bits(np.full(COUNT, variant)) for _ in range(3)]
    flipped = share_bits(np.full(COUNT, 1 - variant))
    pair = np.stack([x, -x], axis=1)
    row = np.linspace(x, -x, 4, axis=1)
    matrix = np.rint(np.tile(x[:, None], (1, 3)) * 2**20).astype(int)
    open_affine = [share(row, 22), public(2 * variant - np.ones(4)), public(row[0], 22)]
    affine = [share(row, 22), share(2 * variant - np.ones(4)), share(row[0], 22)]
    cases = {
        "mul": lambda: (mul, [wide, wide, 18]),
        "mul by one bit": lambda: (mul, [wide, wide, 1]),
        "square_sum": lambda: (square_sum, [share(pair)]),
        "square_sum, narrow": lambda: (narrow_square_sum, [share(pair, width=44)]),
        "mul, narrow": lambda: (narrow_mul, [share(x, width=44), wide, 18]),
        "mul3": lambda: (mul3, [share(x), share(x), wide, 36]),
        "mul3 broadcast": lambda: (mul3, [share(pair), share(x[:, None]), share(x[:, None]), 36]),
        "mul3, narrow": lambda: (
            mul3,
            [share(pair, width=34), share(x[:, None]), share(x[:, None], width=27), 36],
        ),
        "matmul": lambda: (matmul, [share(pair[:, None, :]), share(pair[:, :, None]), 18]),
        "matmul, narrow": lambda: (
            narrow_matmul,
            [share(pair[:, None, :], width=38), share(pair[:, :, None]), 18],
        ),
        "poly": lambda: (cube, [share(x / 4, 12)]),
        "lift": lambda: (lift, [share(x, width=44)]),
        "less": lambda: (compare, [share(x, width=44)]),
        "less exactly": lambda: (compare_exactly, [share(x, width=44)]),
        "select": lambda: (select_one, [bit[0], wide]),
        "select of three": lambda: (select_three, [*bit, share(x, width=44)]),
        "and": lambda: (and_bits, [[bit[0], flipped, bit[1], bit[2]]]),
        "maximum": lambda: (
            largest,
            [share(np.tile(pair, 3), 8, 20), share(np.tile(pair, 3), 8, 20)],
        ),
        "spline": lambda: (root_part, [wide]),
        "exp": lambda: (exp_negative, [share(x, width=32)]),
        "rsqrt": lambda: (root, [v]),
        "reciprocal": lambda: (inverse, [v]),
        "silu": lambda: (silu, [share(x, width=44)]),
        "gate": lambda: (gated, [share(x, width=44), share(x, width=44)]),
        "gelu": lambda: (gelu, [share(x, width=44)]),
        "tanh": lambda: (tanh, [share(x, width=44)]),
        "relu": lambda: (relu, [share(x, width=44)]),
        "soft cap": lambda: (soft_cap, [share(x, width=44)]),
        "disentangled": lambda: (disentangled, [share(pair[:, None, :])] * 4),
        "waves": lambda: (cosines, [share(x, width=44)]),
        "exp part": lambda: (exp_alone, [share(x, width=32)]),
        "rms_norm": lambda: (norm, [share(np.tile(x[:, None], (1, 4)) + 0.1, 22)]),
        "rms_norm, narrow": lambda: (
            norm,
            [share(np.tile(x[:, None], (1, 4)) + 0.1, 22, width=47)],
        ),
        "late_norm": lambda: (
            after_product,
            [share(np.tile(x[:, None], (1, 4)) + 0.1, 22, width=47), weight_of(matrix[:4])],
        ),
        "layer_norm": lambda: (layer_norm, affine),
        "layer_norm, narrow": lambda: (layer_norm, [share(row, 22, width=47), *affine[1:]]),
        "layer_norm, late gain": lambda: (late_gain_norm, affine),
        "layer_norm, tiny eps": lambda: (steady_norm, affine),
        "layer_norm, public gain": lambda: (layer_norm, open_affine),
        "layer_norm, public late gain": lambda: (late_gain_norm, open_affine),
        "mul by a public value": lambda: (mul, [wide, public(x), 18]),
        "map_public": lambda: (mapped, [wide]),
        "histogram": lambda: (near_largest, [share(x, width=45)]),
        "attention": lambda: (attention, [share(pair[:, None, :]), share(pair[:, :, None])]),
        "wide attention": lambda: (
            wide_attention,
            [share(5e5 * pair[:, None, :]), share(pair[:, :, None])],
        ),
        "linear": lambda: (linear, [share(np.tile(x, (8, 1))), weight_of(matrix)]),
        "table_product": lambda: (table_product, [share(np.tile(x[:3], (8, 1))), table_of(matrix)]),
        "linear, public": lambda: (
            linear,
            [share(np.tile(x, (8, 1))), public_weights(matrix, COMPUTING)],
        ),
        "table_product, public": lambda: (
            table_product,
            [share(np.tile(x[:3], (8, 1))), public_tables(matrix, COMPUTING)],
        ),
    }
    return cases[name]()


NAMES = [
    "mul", "mul by one bit", "square_sum", "mul3", "mul3 broadcast", "matmul", "poly", "lift",
    "less", "less exactly", "select", "select of three", "and", "maximum", "spline", "exp", "rsqrt",
    "reciprocal", "silu", "gelu", "tanh", "relu", "soft cap", "disentangled", "waves", "exp part",
    "rms_norm", "layer_norm", "layer_norm, late gain", "layer_norm, tiny eps", "map_public",
    "attention", "wide attention", "linear", "table_product", "linear, public",
    "table_product, public", "layer_norm, public gain", "layer_norm, public late gain",
    "mul by a public value", "mul3, narrow", "square_sum, narrow", "mul, narrow",
    "rms_norm, narrow", "layer_norm, narrow", "gate", "late_norm", "histogram", "matmul, narrow",
]  # fmt: skip
OTHER_SETTINGS = [
    (name, settings)
    for settings, names in (
        (
            Settings(tree="traffic"),
            [
                *("less", "less exactly", "maximum", "silu", "waves", "rms_norm", "attention"),
                *("exp", "exp part", "gate"),
            ],
        ),
        (Settings(tree="balanced"), ["gelu", "relu", "layer_norm", "attention"]),
        (Settings(approximation="puma"), ["silu", "gelu", "exp"]),
        (Settings(approximation="fast"), ["silu", "gelu", "exp"]),
    )
    for name in names
]


def run_once(name, variant, settings=None):
    function, inputs = inputs_of(name, variant)

    def program(role):
        return lambda lane: function(lane, *(own(value, role) for value in inputs))

    return run_parties({role: program(role) for role in COMPUTING}, settings)


def check_case(once, roles=EVALUATORS):
    """Views of two inputs: uniform, alike; and nothing for those who are not to receive."""
    seen = [observe(lambda v=variant: once(v), RUNS) for variant in (0, 1)]
    for role in roles:
        for part in ("received", "opened"):
            views = [getattr(s[role], part) for s in seen]
            if not views[0].shape[1]:
                assert part == "opened"
                continue
            check_alike(*views, f"{role} {part}")
            for view in views:
                check_uniform(view, f"{role} {part}")
    for role in set(Role) - set(roles):
        for s in seen:
            assert s[role].received.shape[1] == 0, f"{role} received something"
