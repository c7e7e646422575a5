"""Messages taken apart into the fields that were sent, and each bit of them looked at."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
from helpers import A, B
from numpy.typing import NDArray
from uniformity import NotUniform

from protocols import embedding, spline
from protocols.base.fields import Field
from protocols.base.lane import Lane
from protocols.base.ring import Words
from protocols.base.shares import Role
from protocols.dpf import generate_selectors
from protocols.functions import histogram, ladder
from protocols.functions.buckets import Layout
from protocols.functions.buckets import generate as generate_buckets
from protocols.kernels.packing import unpack_numpy

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


@contextmanager
def dissecting(seen: dict[Key, list[Words]], widths: dict[Key, int]) -> Iterator[None]:
    """Note the words of every message of the runs inside, field by field, and what was opened."""
    send, swap_parts = Lane._send, Lane._exchange
    layouts: dict[int, Sequence[Field]] = {}
    corrections: dict[int, tuple[Any, int]] = {}  # with the words of an element
    opened, exchange = Lane.open, Lane.swap
    share_fields, words_to = Lane.share, Lane.send_words

    def note(key: Key, width: int, found: Words) -> None:
        seen[key].append(found)
        assert widths.setdefault(key, width) == width

    def look(self: Lane, to: Role, parts: Sequence[Any]) -> None:
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

    async def lane_send(self: Lane, to: Role, parts: Sequence[Any], *, online: bool) -> None:
        look(self, to, parts)
        await send(self, to, parts, online=online)

    async def lane_exchange(self: Lane, parts: Sequence[Any]) -> Any:
        look(self, self.peer, parts)
        return await swap_parts(self, parts)

    def with_layout(method: Any, at: int) -> Any:
        async def call(self: Lane, *args: Any, **options: Any) -> Any:
            before = layouts.get(id(self))
            layouts[id(self)] = args[at]
            try:
                return await method(self, *args, **options)
            finally:
                if before is None:
                    layouts.pop(id(self), None)
                else:
                    layouts[id(self)] = before

        return call

    async def opening(self: Lane, fields: Sequence[Field], values: Any) -> list[Words]:
        sums: list[Words] = await with_layout(opened, 0)(self, fields, values)
        number = self._received[self.peer]
        for place, (item, total) in enumerate(zip(fields, sums, strict=True)):
            key = (self.role, self.role, (*self.path, number), place)
            note(key, item.width, np.ascontiguousarray(total).reshape(-1))
        return sums

    def noting(generate: Callable[..., Any]) -> Callable[..., Any]:
        def generating(alpha: Words, *rest: Any) -> Any:
            made = generate(alpha, *rest)
            corrections[id(made)] = made, made.size // 8 // alpha.size
            return made

        return generating

    def choosing(alpha: Words, *rest: Any) -> Any:
        made, found = generate_selectors(alpha, *rest)
        corrections[id(made)] = made, made.size // 8 // alpha.size
        return made, found

    def filling(layout: Layout, alpha: Words, *rest: Any) -> Any:
        made = generate_buckets(layout, alpha, *rest)
        corrections[id(made)] = made, layout.words
        return made

    with (
        mock.patch.object(histogram, "generate", filling),
        mock.patch.object(spline, "generate", noting(spline.generate)),
        mock.patch.object(ladder, "generate", noting(ladder.generate)),
        mock.patch.object(embedding, "generate_selectors", choosing),
        mock.patch.object(Lane, "_send", lane_send),
        mock.patch.object(Lane, "_exchange", lane_exchange),
        mock.patch.object(Lane, "open", opening),
        mock.patch.object(Lane, "swap", with_layout(exchange, 0)),
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
