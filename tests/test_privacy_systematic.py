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

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import privacy_cases
import pytest
from helpers import A, B, own, share
from numpy.typing import NDArray
from privacy_cases import NAMES, column, inputs_of, table_of, weight_of
from uniformity import NotUniform

from protocols import embedding, spline
from protocols.dpf import generate
from protocols.embedding import embed, request_rows, reveal, revealed
from protocols.kernels.packing import unpack_numpy
from protocols.lane import Field, Lane
from protocols.linear import linear
from protocols.lockstep import run_parties
from protocols.prf import Stream
from protocols.ring import Words, bit_mask
from protocols.shares import COMPUTING, Role
from puma_actors.cli.reports import _programs

ELEMENTS = 1 << 10
"""Of an input."""
SAMPLES = 1 << 13
"""Of each bit, at least: elements of a message times runs."""
LIMIT = 8.3
"""Hoeffding: 2 exp(-8.3^2 / 2) = 2e-15 for one bit; a case has up to a few thousand."""

Key = tuple[Role, Role, tuple[int, ...], int]
"""Sender, receiver, tag of the message, number of the field in it. What is opened has its evaluator
as both.
"""
Once = Callable[[int], Any]
HELD: dict[Role, list[Words]] = {}
"""What the evaluators hold, run by run, while that is noted."""

COVERED = {
    "product, truncated": ["mul", "mul untruncated"],
    "lift to 64 bits": ["lift"],
    "product of three": ["mul3", "mul3 broadcast"],
    "matrix product (32,64)(64,32)": ["matmul"],
    "comparison, 20 bits": ["less", "less exactly"],
    "AND of 4": ["and"],
    "selection": ["select", "select of three"],
    "maximum of 64, 20 bits": ["maximum"],
    "exp": ["exp", "exp part"],
    "SiLU": ["silu", "waves"],
    "GeLU": ["gelu"],
    "reciprocal": ["reciprocal", "spline"],
    "rsqrt": ["rsqrt"],
    "RMSNorm, rows of 768": ["rms_norm", "square_sum"],
    "LayerNorm, rows of 768": ["layer_norm", "layer_norm, late gain"],
    "softmax (32,32) @ (32,64)": ["attention", "wide attention"],
    "embedding, a token of 49152 x 576": ["embedding"],
    "reveal to the client": ["reveal"],
}
BESIDE = ["poly", "tanh", "relu", "map_public", "linear", "table_product"]
"""Protocols that the command does not list."""


def test_every_protocol_of_the_command_is_covered() -> None:
    assert [name for name, _, _ in _programs()] == list(COVERED)
    listed = {case for cases in COVERED.values() for case in cases} | set(BESIDE)
    assert listed == {*NAMES, "embedding", "reveal"}


# -- taking messages apart -------------------------------------------------------------------------


@contextmanager
def dissecting(seen: dict[Key, list[Words]], widths: dict[Key, int]) -> Iterator[None]:
    """Note the words of every message of the runs inside, field by field, and what was opened."""
    join = Lane._send
    layouts: dict[int, Sequence[Field]] = {}
    corrections: dict[int, tuple[Any, int]] = {}  # with the words of an element
    swap, share_fields, words_to = Lane.open, Lane.share, Lane.send_words

    def note(key: Key, width: int, found: Words) -> None:
        seen[key].append(found)
        assert widths.setdefault(key, width) == width

    async def lane_send(self: Lane, to: Role, parts: Sequence[Any], *, online: bool) -> None:
        number = self._sent.get(to, 0) + 1
        key = self.role, to, (*self.path, number)
        if id(self) in layouts:
            for place, (item, part) in enumerate(zip(layouts[id(self)], parts, strict=True)):
                data = np.frombuffer(bytes(part), dtype=np.uint8)
                note((*key, place), item.width, unpack_numpy(data, item.width, item.count))
        else:
            (part,) = parts
            _, size = corrections[id(part)]
            for place, found in enumerate(part.view(np.uint64).reshape(-1, size).T):
                note((*key, place), 64, found)
        await join(self, to, parts, online=online)

    def with_layout(method: Any, at: int) -> Any:
        async def call(self: Lane, *args: Any) -> Any:
            before = layouts.get(id(self))
            layouts[id(self)] = args[at]
            try:
                return await method(self, *args)
            finally:
                if before is None:
                    layouts.pop(id(self), None)
                else:
                    layouts[id(self)] = before

        return call

    async def opening(self: Lane, fields: Sequence[Field], values: Any) -> list[Words]:
        sums: list[Words] = await with_layout(swap, 0)(self, fields, values)
        number = self._received[self.peer]
        for place, (item, total) in enumerate(zip(fields, sums, strict=True)):
            key = (self.role, self.role, (*self.path, number), place)
            note(key, item.width, np.ascontiguousarray(total).reshape(-1))
        return sums

    def generating(alpha: Words, *rest: Any) -> Any:
        made = generate(alpha, *rest)
        corrections[id(made)] = made, made.size // 8 // alpha.size
        return made

    with (
        mock.patch.object(spline, "generate", generating),
        mock.patch.object(embedding, "generate", generating),
        mock.patch.object(Lane, "_send", lane_send),
        mock.patch.object(Lane, "open", opening),
        mock.patch.object(Lane, "share", with_layout(share_fields, 0)),
        mock.patch.object(Lane, "send_words", with_layout(words_to, 1)),
    ):
        yield


def signs(words: Words, width: int) -> NDArray[np.float32]:
    """(n, width): -1 for a bit that is set, 1 for one that is not."""
    places = np.arange(width, dtype=np.uint64)
    return 1 - 2 * ((words[:, None] >> places) & np.uint64(1)).astype(np.float32)


def held(inputs: Sequence[Any], role: Role) -> Words:
    """(elements, words): a party's shares of those inputs that have a word an element."""
    mine = [value[role] for value in inputs if isinstance(value, dict)]
    parts = [part for x in mine if hasattr(x, "a") and x.a is not None for part in (x.a, x.b)]
    whole = [part.astype(np.uint64) for part in parts if part.shape == (ELEMENTS,)]
    return np.stack(whole, axis=1) if whole else np.empty((ELEMENTS, 0), np.uint64)


class Beside:
    """The signs of a party's shares, once for every number of words that go with an element."""

    def __init__(self, shares: Sequence[Words]) -> None:
        self.words = np.concatenate(shares) if shares else np.empty((0, 0), np.uint64)
        self._made: dict[int, NDArray[np.float32]] = {}

    def repeated(self, times: int) -> NDArray[np.float32]:
        """(samples, bits); enough of them, and no more work than that."""
        if times not in self._made:
            first = self.words[: -(-SAMPLES // times)]
            bits = signs(first.reshape(-1), 64).reshape(len(first), -1)
            self._made[times] = bits.repeat(times, axis=0)
        return self._made[times]


def check_beside(key: Key, words: Words, width: int, beside: Beside) -> None:
    """No bit goes with a bit of what the receiver holds of the same element.

    Raises:
        NotUniform: one does.
    """
    if beside.words.size == 0 or words.size % len(beside.words):
        return
    mine = beside.repeated(words.size // len(beside.words))
    words = words[: len(mine)]
    z = np.abs(signs(words, width).T @ mine) / np.sqrt(words.size)
    if z.max() > LIMIT:
        bit = int(z.max(axis=1).argmax())
        raise NotUniform(f"{key}: bit {bit} goes with a share, z = {z.max():.1f}")


def bits_set(once: Once, variant: int) -> dict[Key, tuple[NDArray[np.float64], int]]:
    """For each field: how often each of its bits was set, and of how many samples."""
    seen: dict[Key, list[Words]] = defaultdict(list)
    widths: dict[Key, int] = {}
    least = bits = 0
    shares: dict[Role, list[Words]] = {A: [], B: []}
    with dissecting(seen, widths), mock.patch.dict(HELD, shares):
        while least < SAMPLES:
            cost = once(variant).cost
            bits += 8 * (cost.online + cost.offline)
            least = min(sum(part.size for part in parts) for parts in seen.values())
    noted = sum(
        widths[key] * part.size for key in seen for part in seen[key] if key[0] is not key[1]
    )
    assert noted == bits, "a message, or a part of one, was not looked at"
    beside = {role: Beside(rows) for role, rows in shares.items()}
    found = {}
    for key, parts in seen.items():
        every = np.concatenate(parts)
        if key[1] in beside:
            check_beside(key, every, widths[key], beside[key[1]])
        places = np.arange(widths[key], dtype=np.uint64)
        counts = [(every >> place & np.uint64(1)).sum(dtype=np.uint64) for place in places]
        found[key] = (np.array(counts, dtype=np.float64), every.size)
    return found


def check(once: Once, roles: Sequence[Role] = (A, B)) -> None:
    """Every bit of every field is set as often as not, for both inputs.

    Raises:
        NotUniform: one is not, or the messages are others.
    """
    one, two = bits_set(once, 0), bits_set(once, 1)
    if one.keys() != two.keys():
        raise NotUniform("the messages depend on the input")
    if {receiver for _, receiver, _, _ in one} != set(roles):
        raise NotUniform(f"somebody else than {roles} received something")
    for key, (counts, samples) in one.items():
        others, more = two[key]
        balance = [np.abs(2 * counts - samples) / np.sqrt(samples)]
        balance.append(np.abs(2 * others - more) / np.sqrt(more))
        z = np.max(balance, axis=0)
        if z.max() > LIMIT:
            raise NotUniform(f"{key}: bit {z.argmax()} of {z.size} is biased, z = {z.max():.1f}")
        difference = np.abs(counts / samples - others / more) / np.sqrt(1 / samples + 1 / more)
        if 2 * difference.max() > LIMIT:
            raise NotUniform(f"{key}: bit {difference.argmax()} depends on the input")


# -- the protocols ---------------------------------------------------------------------------------


def once_of(name: str) -> Once:
    if name == "embedding":
        return embed_once
    if name == "reveal":
        return reveal_once
    if name == "linear":
        return linear_once

    def once(variant: int) -> Any:
        function, inputs = inputs_of(name, variant)
        for role, rows in HELD.items():
            rows.append(held(inputs, role))

        def program(role: Role) -> Any:
            return lambda lane: function(lane, *(own(value, role) for value in inputs))

        return run_parties({role: program(role) for role in COMPUTING}, record=False)

    return once


def linear_once(variant: int) -> Any:
    """More rows than the case of `privacy_cases`, which has more columns."""
    x = share(np.tile(column(variant, 0.0, -9.5)[:, None], (1, 3)))
    weight = weight_of(np.full((3, 2), variant << 20))

    def program(role: Role) -> Any:
        return lambda lane: linear(lane, x[role], weight[role])

    return run_parties({role: program(role) for role in COMPUTING}, record=False)


def embed_once(variant: int) -> Any:
    table = table_of(np.full((5, 2), variant << 29))
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
    return {"embedding": COMPUTING, "reveal": (Role.CLIENT,)}.get(name, (A, B))


@pytest.fixture(autouse=True)
def long_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy_cases, "COUNT", ELEMENTS)


@pytest.mark.parametrize("name", [*NAMES, "embedding", "reveal"])
def test_every_bit_of_every_message(name: str) -> None:
    check(once_of(name), receivers(name))


# -- negative controls, one for each kind of mistake -----------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, change: Callable[[Words, int], Words]) -> None:
    """Every word that anybody draws, changed alike at both ends."""
    whole = Stream.words

    def words(self: Stream, shape: tuple[int, ...], width: int = 64) -> Words:
        return change(whole(self, shape, width), width) & bit_mask(width)

    monkeypatch.setattr(Stream, "words", words)


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
        (lowest_stuck, ["mul", "lift", "less", "select", "spline", "embedding", "reveal"]),
        (top_stuck, ["mul", "less", "embedding", "reveal"]),  # the sum of two such is balanced
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


@pytest.mark.parametrize("name", ["mul", "square_sum", "lift", "less", "and", "maximum", "waves"])
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
    with pytest.raises(NotUniform, match=r"bit 0 of 64|depends on the input"):
        check(once_with(4))


def test_a_message_that_tells_the_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Balanced whatever the input, but for one bit that is the input's."""

    def once(variant: int) -> Any:
        async def program(lane: Lane) -> None:
            noise = lane.draw(lane.role, (ELEMENTS,))  # nobody else knows it
            if not lane.is_dealer:
                noise[::8] ^= (noise[::8] & np.uint64(1)) ^ np.uint64(variant)
                await lane.open([Field((ELEMENTS,))], [noise])

        return run_parties(dict.fromkeys(COMPUTING, program), record=False)

    with pytest.raises(NotUniform):
        check(once)
