"""Activation functions on shares, in three approximations.

"tight" and "fast": a sum of waves where the function bends (`protocols.waves`), and its limit
elsewhere; the sets differ in the number of waves and of bits. Where bytes count for more than
rounds, "tight" SiLU is max(x, 0) less waves at |x|, which have half the range to meet and take half
the words. "puma": the paper's pieces (arXiv
2307.12533) of GeLU and SiLU; functions that it does not define take their tight form. ReLU is a
comparison with 0 in every set.
"""

import numpy as np

from protocols.arithmetic import Polynomial, lift, mul, poly
from protocols.base.blocks import saves_bytes
from protocols.base.entry import protocol
from protocols.base.fields import elementwise_work
from protocols.base.lane import Lane
from protocols.base.ring import FRACTION_BITS, RING_BITS
from protocols.base.shares import SecretBits, SecretTensor, constant, stack
from protocols.compare import less
from protocols.functions.activation_tables import (
    ACTIVATIONS,
    GELU,
    SILU,
    Activation,
    Centre,
    Pieces,
)
from protocols.narrow import narrow_mul
from protocols.selection import Term, select
from protocols.waves import evaluate

__all__ = ["ACTIVATIONS", "GELU", "SILU", "Activation", "activate", "gate"]

_INTEGER_BITS = 15
"""|x| < 2^15."""
_NARROW = FRACTION_BITS + _INTEGER_BITS + 2
"""The ring in which pieces of 18 fraction bits are selected: what `lift` needs for |x| < 2^15."""
_CUT_FRAC = 3
"""A cut-off is compared in steps of 1/8: 5 digits then reach beyond any difference with x."""
_DIGITS = 5
_SIGN_FRAC = 12
"""ReLU's sign is compared in steps of 2^-12: negative numbers down to that may pass."""
_SIGN_DIGITS = 7
_PUMA_CUT_FRAC = 7
"""The paper's pieces do not meet, so its cuts are compared in steps of 1/128."""
_PUMA_DIGITS = 6


@protocol("activation")
async def activate(lane: Lane, x: SecretTensor, activation: Activation) -> SecretTensor:
    """The function at x (18 fraction bits, a ring of at least 36 bits), over Z_2^64.

    |x| < 2^15 - 2^-11: ReLU's sign is read off 28 bits above 6 that are shifted away, which may add
    two steps of 2^-12.

    Returns:
        The function's value with 18 fraction bits.

    Cost: 4 rounds ("tight" and "fast"; 8 where SiLU is folded, see `saves_bytes`), 6 ("puma"'s own
    pieces, 7 over rings below 38 bits), 5 (ReLU). With the tree of fewest "rounds" one less, but
    for the paper's pieces: what is selected from is lifted first, beside the comparison.
    """
    chosen = await _value(lane, x, activation, wide=lane.settings.tree == "rounds")
    missing = FRACTION_BITS - chosen.frac
    return (await lift(lane, chosen, RING_BITS - missing)).scale_up(missing)


@protocol("gate")
async def gate(
    lane: Lane, x: SecretTensor, up: SecretTensor, activation: Activation
) -> SecretTensor:
    """The function at x, as in `activate`, times `up` of the same shape: 18 fraction bits, over
    Z_2^(64 - f), where f is at most 18, the fraction bits with which the function comes out.

    `up` (18 fraction bits) is over any ring that a lift takes, and is lifted beside the function;
    the product reads the function's value as it stands (`protocols.narrow`). It must be below
    2^25, so that with 2 f or more fraction bits it is below 2^62.

    Cost: as `activate`: the last lift is saved, and the product takes a round.
    """
    value, wide = await lane.both(
        lambda strand: _value(strand, x, activation, wide=False), lambda strand: lift(strand, up)
    )
    return await narrow_mul(lane, value, wide, value.frac)


async def _value(
    lane: Lane, x: SecretTensor, activation: Activation, *, wide: bool
) -> SecretTensor:
    """The function's value over a narrow ring, or, if it is to be `wide` and a select ends it, over
    Z_2^64 less the fraction bits it lacks.
    """
    kind = lane.settings.approximation
    if kind == "puma" and activation.paper is not None:
        return await _pieces(lane, x, activation.paper)
    if kind == "tight" and activation.folded is not None and saves_bytes(lane, x.size):
        return await _folded(lane, x, activation.folded)
    centre = activation.fast if kind == "fast" else activation.tight
    if centre is None:
        return await _rectified(lane, x, RING_BITS if wide else _NARROW)
    missing = FRACTION_BITS - centre.frac
    return await _centre(lane, x, activation, centre, RING_BITS - missing if wide else 0)


async def _below(
    lane: Lane, x: SecretTensor, cuts: tuple[float, ...], digits: int, frac: int
) -> SecretBits:
    thresholds = [round(cut * 2**x.frac) for cut in cuts]
    return await less(lane, x, thresholds, digits=digits, shift=x.frac - frac)


# -- exact, tight and fast -------------------------------------------------------------------------


async def _rectified(lane: Lane, x: SecretTensor, width: int) -> SecretTensor:
    async def held(strand: Lane) -> SecretTensor:
        return await lift(strand, x.narrow(_NARROW), width)

    negative, kept = await lane.both(
        lambda strand: _below(strand, x, (0.0,), _SIGN_DIGITS, _SIGN_FRAC), held
    )
    terms = [Term((~negative[..., 0],), kept)]
    return await select(lane, terms, width=width, frac=x.frac, shape=x.shape)


async def _centre(
    lane: Lane, x: SecretTensor, activation: Activation, centre: Centre, wide: int
) -> SecretTensor:
    """Over Z_2^wide, or the narrowest ring if that is 0."""
    frac = centre.frac
    narrow = frac + 2 + (_INTEGER_BITS if activation.right is None else 1)
    width = wide or narrow
    # A comparison may take a value just below a threshold as not below it: on the left, as inside.
    cuts = (-centre.cut + 1 / (1 << _CUT_FRAC), centre.cut)
    work = 4 * elementwise_work(x.size)
    sides = await lane.run(work, _sides, x, activation, frac, narrow, width)

    async def curve(strand: Lane) -> SecretTensor:
        return await evaluate(strand, x, centre.waves, frac, width)

    async def compare(strand: Lane) -> SecretBits:
        return await _below(strand, x, cuts, _DIGITS, _CUT_FRAC)

    if sides.width < width:
        held = sides
        (waves, sides), below = await lane.both(
            lambda strand: strand.both(curve, lambda inner: lift(inner, held, width)), compare
        )
    else:
        waves, below = await lane.both(curve, compare)
    terms = await lane.run(work, _choice, waves, sides, activation.left, below)
    chosen = await select(lane, terms, width=width, frac=frac, shape=x.shape)
    return chosen + sides[0]


def _choice(
    waves: SecretTensor, sides: SecretTensor, limit: float, below: SecretBits
) -> list[Term]:
    """What, added to `right`, gives `left` below the first threshold and y below the second: with
    c_low = [x < low cut] and c_high = [x < high cut], c_high (y - right) - c_low (y - left).
    """
    right, y = sides[0], waves + sides[1]
    left = _everywhere(waves, limit, waves.width, waves.frac)
    return [Term((below[..., 1],), y - right), Term((below[..., 0],), left - y)]


async def _folded(lane: Lane, x: SecretTensor, folded: Centre) -> SecretTensor:
    """max(x, 0) less the waves at |x|, over the narrowest ring.

    Cost: 7 rounds. With three thresholds, a selection of x where it is negative, which gives both
    max(x, 0) and |x|, and one of the waves where |x| is below the cut.
    """
    frac = folded.frac
    narrow = frac + 2 + _INTEGER_BITS
    # Below 0 and on the left a value within 1/8 of a threshold may count as not below it.
    cuts = (-folded.cut + 1 / (1 << _CUT_FRAC), 0.0, folded.cut)
    below = await _below(lane, x, cuts, _DIGITS, _CUT_FRAC)
    near, held = below[..., 0] ^ below[..., 2], x.drop(x.frac - frac).narrow(narrow)
    terms = [Term((below[..., 1],), held)]
    negative = await select(lane, terms, width=narrow, frac=frac, shape=x.shape)
    waves, size = folded.waves, held - negative - negative
    bent = await evaluate(lane, size, waves, frac, waves.width - waves.scale + frac)
    lost = await select(lane, [Term((near,), bent)], width=bent.width, frac=frac, shape=x.shape)
    return held - negative - await lift(lane, lost, narrow)


def _sides(
    x: SecretTensor, activation: Activation, frac: int, narrow: int, width: int
) -> SecretTensor:
    """(2, ...): the limit on the right, and what is added to the waves: x and x / 2 over
    Z_2^narrow, or constants over Z_2^width.
    """
    if activation.right is not None:
        limit = _everywhere(x, activation.right, width, frac)
        return stack([limit, _everywhere(x, 0.0, width, frac)], axis=0)
    half = x.drop(1).reinterpret(x.frac)
    return stack([part.drop(x.frac - frac).narrow(narrow) for part in (x, half)], axis=0)


def _everywhere(x: SecretTensor, value: float, width: int, frac: int) -> SecretTensor:
    words = np.full(x.shape, round(value * 2**frac) % 2**64, dtype=np.uint64)
    return constant(x.role, words, width, frac)


# -- the paper's -----------------------------------------------------------------------------------

_PIECE_FRAC = 12
_SQUARE_WIDTH = 32
"""Holds x^2 for |x| <= 4, with the room that truncation needs."""
_LEFT_SCALE = 58
_CENTRE_SCALE = 59


def piece_words(pieces: Pieces) -> list[list[np.uint64]]:
    """The coefficients of both polynomials, as they are evaluated."""
    return [
        Polynomial(pieces.left).encoded(_PIECE_FRAC, _LEFT_SCALE),
        Polynomial(pieces.centre).encoded(_PIECE_FRAC, _CENTRE_SCALE),
    ]


async def _pieces(lane: Lane, x: SecretTensor, pieces: Pieces) -> SecretTensor:
    """The paper's pieces; those not selected may wrap, and cancel exactly."""

    small = x.drop(x.frac - _PIECE_FRAC)

    async def left(strand: Lane) -> SecretTensor:
        wide, piece = await lift(strand, small), Polynomial(pieces.left)
        outer = await poly(strand, wide, piece, scale=_LEFT_SCALE, frac=FRACTION_BITS)
        return await lift(strand, outer, _NARROW)

    async def centre(strand: Lane) -> SecretTensor:
        near = await lift(strand, small, _SQUARE_WIDTH)
        square = await lift(strand, await mul(strand, near, near, _PIECE_FRAC))
        piece = Polynomial(pieces.centre)
        even = await poly(strand, square, piece, scale=_CENTRE_SCALE, frac=FRACTION_BITS)
        return await lift(strand, even, _NARROW)

    async def compare(strand: Lane) -> SecretBits:
        return await _below(strand, x, pieces.cuts, _PUMA_DIGITS, _PUMA_CUT_FRAC)

    (outer, even), below = await lane.both(lambda strand: strand.both(left, centre), compare)
    linear = x.narrow(_NARROW)
    inner = even + x.drop(1).reinterpret(x.frac).narrow(_NARROW)
    terms = [
        Term((below[..., 0],), -outer),
        Term((below[..., 1],), outer - inner),
        Term((below[..., 2],), inner - linear),
    ]
    chosen = await select(lane, terms, width=_NARROW, frac=x.frac, shape=x.shape)
    return chosen + linear
