"""Every protocol of `puma costs`, every message, every party, bit by bit.

`test_privacy` asks whether whole views are uniform, with few runs and long messages. Here each
message is taken apart into the fields that were sent, and each bit of a field's words is looked at
over all elements and all runs together: 8,192 samples of a bit or more, so that one which is set in
56 of 100 cases is found, be it the top or the lowest. The two inputs differ as much as they can.
And as a bit that is balanced may still be the XOR of a secret with something the party holds, each
is also held against every bit of the party's own shares of the same element.

A party's view is what it receives. All of it must be uniform whatever the input, and so, with the
sizes being public, a simulator that draws it needs no input. What the evaluators open (the sum of
what one receives and what it sends) is a function of the view; it must be uniform too, or else the
output's mask was not what hides it. The client's view is uniform but for the answer: its two
messages are uniform each, and their difference is the answer.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import privacy_cases
import pytest
from dissection import ELEMENTS, HELD, Once, check, held
from helpers import A, B, own, share
from privacy_cases import NAMES, column, inputs_of, table_of, weight_of
from stored_matrices import public_tables, public_weights
from uniformity import NotUniform, rest_by_words

from protocols.base.fields import Field
from protocols.base.lane import Lane
from protocols.base.prf import Stream
from protocols.base.ring import Words, bit_mask
from protocols.base.shares import COMPUTING, Role
from protocols.drivers.lockstep import run_parties
from protocols.embedding import embed, request_rows, reveal, revealed
from protocols.linear import linear
from puma_actors.cli.commands.reports import _programs

COVERED = {
    "product, truncated": ["mul", "mul by one bit", "mul, narrow"],
    "lift to 64 bits": ["lift"],
    "product of three": ["mul3", "mul3 broadcast", "mul3, narrow"],
    "matrix product (32,64)(64,32)": ["matmul"],
    "comparison, 20 bits": ["less", "less exactly"],
    "AND of 4": ["and"],
    "selection": ["select", "select of three"],
    "maximum of 64, 20 bits": ["maximum"],
    "exp": ["exp", "exp part"],
    "SiLU": ["silu", "waves", "gate"],
    "GeLU": ["gelu"],
    "reciprocal": ["reciprocal", "spline"],
    "rsqrt": ["rsqrt"],
    "RMSNorm, rows of 768": ["rms_norm", "rms_norm, narrow", "square_sum", "square_sum, narrow"],
    "LayerNorm, rows of 768": [
        *("layer_norm", "layer_norm, narrow", "layer_norm, late gain", "layer_norm, tiny eps"),
    ],
    "maximum and exp, a score of a row of 64": ["histogram"],
    "maximum and exp, a score of 8,192 rows": ["maximum", "exp", "exp part"],
    "softmax (32,32) @ (32,64)": ["attention", "wide attention"],
    "embedding, a token of 49152 x 576": ["embedding"],
    "reveal to the client": ["reveal"],
}
BESIDE = [
    *("poly", "tanh", "relu", "map_public", "linear", "table_product"),
    *("disentangled", "soft cap", "linear, public", "table_product, public"),
    *("layer_norm, public gain", "layer_norm, public late gain", "mul by a public value"),
    *("late_norm", "matmul, narrow"),
]
"""Protocols that the command does not list."""


def test_every_protocol_of_the_command_is_covered() -> None:
    assert [name for name, _, _ in _programs()] == list(COVERED)
    listed = {case for cases in COVERED.values() for case in cases} | set(BESIDE)
    assert listed == {*NAMES, "embedding", "reveal"}


# -- the protocols ---------------------------------------------------------------------------------


def once_of(name: str) -> Once:
    if name == "embedding":
        return embed_once
    if name == "embedding, public":
        return public_embed_once
    if name == "reveal":
        return reveal_once
    if name in ("linear", "linear, public"):
        return partial(linear_once, weights=weight_of if name == "linear" else public_of)

    def once(variant: int) -> Any:
        function, inputs = inputs_of(name, variant)
        for role, rows in HELD.items():
            rows.append(held(inputs, role))

        def program(role: Role) -> Any:
            return lambda lane: function(lane, *(own(value, role) for value in inputs))

        return run_parties({role: program(role) for role in COMPUTING}, record=False)

    return once


def public_of(values: Any) -> Any:
    return public_weights(values, COMPUTING)


def linear_once(variant: int, weights: Callable[[Any], Any]) -> Any:
    """More rows than the case of `privacy_cases`, which has more columns."""
    x = share(np.tile(column(variant, 0.0, -9.5)[:, None], (1, 3)))
    weight = weights(np.full((3, 2), variant << 20))

    def program(role: Role) -> Any:
        return lambda lane: linear(lane, x[role], weight[role])

    return run_parties({role: program(role) for role in COMPUTING}, record=False)


def public_embed_once(variant: int) -> Any:
    """The table is known, but the ids are not."""
    return embed_once(variant, public_tables(np.arange(10).reshape(5, 2) << 18, COMPUTING))


def embed_once(variant: int, table: Any = None) -> Any:
    table = table or table_of(np.full((5, 2), variant << 29))
    ids = np.full(ELEMENTS, 0 if variant == 0 else 4)

    async def party(lane: Lane) -> Any:
        return await embed(lane, table[lane.role], ids.size)

    async def client(lane: Lane) -> None:
        await request_rows(lane, ids, 5)

    return run_parties({**dict.fromkeys(COMPUTING, party), Role.CLIENT: client}, record=False)


def reveal_once(variant: int) -> Any:
    x = share(column(variant, 0.0, -9.5), width=46)

    async def party(lane: Lane) -> None:
        await reveal(lane, x[lane.role])

    async def client(lane: Lane) -> Any:
        return await revealed(lane, (ELEMENTS,), 46)

    return run_parties({**dict.fromkeys(COMPUTING, party), Role.CLIENT: client}, record=False)


def receivers(name: str) -> Sequence[Role]:
    lookup = name.startswith("embedding")
    return COMPUTING if lookup else (Role.CLIENT,) if name == "reveal" else (A, B)


@pytest.fixture(autouse=True)
def long_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy_cases, "COUNT", ELEMENTS)


@pytest.mark.parametrize("name", [*NAMES, "embedding", "embedding, public", "reveal"])
def test_every_bit_of_every_message(name: str) -> None:
    check(once_of(name), receivers(name))


# -- negative controls, one for each kind of mistake -----------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, change: Callable[[Words, int], Words]) -> None:
    """Every word that any party draws, changed the same way at both ends."""
    whole = Stream.words

    def words(self: Stream, shape: tuple[int, ...], width: int = 64) -> Words:
        return change(whole(self, shape, width), width) & bit_mask(width)

    monkeypatch.setattr(Stream, "words", words)
    monkeypatch.setattr(Stream, "rest", rest_by_words)


def lowest_stuck(drawn: Words, width: int) -> Words:
    return drawn & ~np.uint64(1)


def top_stuck(drawn: Words, width: int) -> Words:
    return drawn & ~np.uint64(1 << width - 1)


def top_leaning(drawn: Words, width: int) -> Words:
    """Set in 9 of 16 cases instead of 8."""
    return drawn | ((drawn & np.uint64(7)) == 0).astype(np.uint64) << np.uint64(width - 1)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (
            lowest_stuck,
            ["mul", "lift", "less", "select", "spline", "rsqrt", "embedding", "reveal"],
        ),
        (lowest_stuck, ["linear, public", "table_product, public", "embedding, public"]),
        (lowest_stuck, ["layer_norm, public gain", "mul by a public value", "histogram"]),
        (top_stuck, ["lift", "less", "embedding", "reveal"]),  # the sum of two such is balanced
        (top_leaning, ["less", "and", "embedding", "reveal"]),
    ],
)
def test_one_bad_bit_of_the_masks(
    change: Callable[[Words, int], Words], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, change)
    for name in names:
        with pytest.raises(NotUniform):
            check(once_of(name), receivers(name))


@pytest.mark.parametrize(
    "name", ["mul", "square_sum", "lift", "less", "and", "maximum", "waves", "rsqrt"]
)
def test_a_constant_top_bit_of_what_is_opened(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opening = Lane.open

    async def uncovered(self: Lane, fields: Sequence[Field], values: Any) -> list[Words]:
        sums = await opening(self, fields, values)
        return [
            total & ~np.uint64(1 << item.width - 1)
            for item, total in zip(fields, sums, strict=True)
        ]

    monkeypatch.setattr(Lane, "open", uncovered)
    with pytest.raises(NotUniform):
        check(once_of(name))


def test_a_scaled_mask_that_is_opened() -> None:
    """What `scale_up` does to masks, before an opening: the lowest bits show."""
    inputs = [share(column(variant, 3.0, -9.5), 18) for variant in (0, 1)]

    def once_with(bits: int) -> Once:
        def once(variant: int) -> Any:
            x = inputs[variant]

            async def program(lane: Lane) -> None:
                if lane.is_dealer:
                    lane.masks(x[lane.role].shape)
                    return
                mine = x[lane.role].a - x[lane.role].b if lane.leads else -x[lane.role].b
                mask = lane.mask(mine.shape) << np.uint64(bits)
                await lane.open([Field(mine.shape)], [mine + mask])

            return run_parties(dict.fromkeys(COMPUTING, program), record=False)

        return once

    check(once_with(0))
    with pytest.raises(NotUniform, match=r"bit [0-3] of 64|depends on the input"):
        check(once_with(4))


def test_a_message_that_tells_the_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Balanced for any input, except one bit that is the input's."""

    def once(variant: int) -> Any:
        async def program(lane: Lane) -> None:
            noise = lane.draw(lane.role, (ELEMENTS,))  # no other party knows it
            if not lane.is_dealer:
                noise[::8] ^= (noise[::8] & np.uint64(1)) ^ np.uint64(variant)
                await lane.open([Field((ELEMENTS,))], [noise])

        return run_parties(dict.fromkeys(COMPUTING, program), record=False)

    with pytest.raises(NotUniform):
        check(once)
