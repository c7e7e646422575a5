"""Is what a party sees uniform? Statistics over many runs with fresh keys, and a recorder of views.

Every test below bounds its false alarms by Hoeffding's inequality or the chi-square tail; over the
about 10^7 statistics of the whole suite they add up to less than 10^-6.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from protocols.base.fields import Field
from protocols.base.lane import Lane
from protocols.base.prf import Stream
from protocols.base.ring import Words
from protocols.base.shares import Role
from protocols.drivers.lockstep import LockstepLink
from protocols.kernels.packing import pack

Views = NDArray[np.uint8]
"""(runs, bytes): a row a run."""

LIMIT = 8.3
"""Hoeffding: 2 exp(-8.3^2 / 2) = 2e-15 for a mean of independent signs."""
CHI_LIMIT = 9.0
"""Standard deviations of a chi-square with 255 degrees of freedom or more: below 10^-12."""


class NotUniform(AssertionError):
    """Something seen depends on more than coins."""


def _bits(views: Views) -> NDArray[np.float32]:
    """Signs (runs, 8 * bytes): +1 for a 0, -1 for a 1."""
    return 1 - 2 * np.unpackbits(views, axis=1, bitorder="little").astype(np.float32)


def check_uniform(views: Views, name: str) -> None:
    """Every bit balanced, bytes flat, no bit tied to another at any distance.

    Raises:
        NotUniform: with the statistic that is off.
    """
    runs, size = views.shape
    signs = _bits(views)
    _balanced(signs, name)
    counts = np.bincount(views.reshape(-1), minlength=256)
    expected = runs * size / 256
    chi = float(((counts - expected) ** 2).sum() / expected)
    if abs(chi - 255) > CHI_LIMIT * np.sqrt(2 * 255):
        raise NotUniform(f"{name}: chi-square of bytes {chi:.0f} where 255 belong")
    # Products of signs at one distance are independent signs, if the signs are.
    count = signs.shape[1]
    length = 1 << (2 * count - 1).bit_length()
    power = np.zeros(length // 2 + 1)
    for row in signs:
        power += np.abs(np.fft.rfft(row, length)) ** 2
    sums = np.fft.irfft(power, length)[1:count]
    z = np.abs(sums) / np.sqrt(runs * (count - np.arange(1, count)))
    if z.max() > LIMIT:
        raise NotUniform(f"{name}: bits at distance {z.argmax() + 1} agree, z = {z.max():.1f}")


def _balanced(signs: NDArray[np.float32], name: str) -> None:
    runs, count = signs.shape
    z = signs.sum(axis=0) / np.sqrt(runs)
    if np.abs(z).max() > LIMIT:
        raise NotUniform(f"{name}: bit {np.abs(z).argmax()} of {count} is biased")
    excess = (z**2 - 1).sum() / np.sqrt(2 * count)
    if count >= 256 and abs(excess) > CHI_LIMIT:
        raise NotUniform(f"{name}: bits are biased on the whole, {excess:.1f} deviations")


def check_alike(one: Views, two: Views, name: str) -> None:
    """No bit is set more often under one input than under the other.

    Raises:
        NotUniform: the views differ.
    """
    if one.shape[1] != two.shape[1]:
        raise NotUniform(f"{name}: {one.shape[1]} bytes for one input, {two.shape[1]} for another")
    runs = len(one) + len(two)
    z = (_bits(one).sum(axis=0) - _bits(two).sum(axis=0)) / np.sqrt(runs)
    if np.abs(z).max() > LIMIT:
        raise NotUniform(f"{name}: bit {np.abs(z).argmax()} depends on the input")
    counts = [np.bincount(v.reshape(-1), minlength=256) / v.size for v in (one, two)]
    weight = one.size * two.size / (one.size + two.size)
    chi = float(((counts[0] - counts[1]) ** 2).sum() * weight * 256)
    if chi - 255 > CHI_LIMIT * np.sqrt(2 * 255):
        raise NotUniform(f"{name}: bytes depend on the input, chi-square {chi:.0f}")


def check_words(words: Words, name: str) -> None:
    """Sums and differences of any two of the (runs, count) words are balanced in every bit.

    Raises:
        NotUniform: two words are tied by an addition.
    """
    for i in range(words.shape[1] - 1):
        first, rest = words[:, i : i + 1], words[:, i + 1 :]
        for both in (first - rest, first + rest):
            _balanced(_bits(both.view(np.uint8)), f"{name}: word {i} beside another")


# -- recording -------------------------------------------------------------------------------------


@dataclass
class Record:
    """One party's view of one run: messages, sums it opened, and words it drew itself."""

    received: list[bytes] = field(default_factory=list)
    opened: list[bytes] = field(default_factory=list)
    drawn: list[bytes] = field(default_factory=list)
    sizes: dict[tuple[Role, tuple[int, ...]], int] = field(default_factory=dict)


def rest_by_words(stream: Any, values: Words, width: int, *, xor: bool) -> Any:
    """`Stream.rest` by way of `words`, where that is replaced."""
    half = stream.words(values.shape, width)
    return pack(values ^ half if xor else values - half, width)


class _Recorded:
    """A stream that records its output."""

    rest = rest_by_words

    def __init__(self, stream: Stream, into: list[bytes]) -> None:
        self._stream, self._into = stream, into

    def fill(self, count: int) -> Any:
        drawn = self._stream.fill(count)
        self._into.append(drawn.tobytes())
        return drawn

    def words(self, shape: tuple[int, ...], width: int = 64) -> Words:
        drawn = self._stream.words(shape, width)
        self._into.append(pack(drawn.reshape(-1), width).tobytes())
        return drawn

    def bits(self, shape: tuple[int, ...]) -> Any:
        return Stream.bits(self, shape)  # type: ignore[arg-type]


@contextmanager
def recording() -> Iterator[dict[Role, Record]]:
    """Record what every party of the lockstep runs inside learns."""
    records: dict[Role, Record] = {role: Record() for role in Role}
    send, stream, opening = LockstepLink.send, LockstepLink.stream, Lane.open

    async def send_recorded(self: Any, to: Role, tag: Any, data: Any, *, online: bool) -> None:
        message = b"".join(bytes(part) for part in data)
        records[to].received.append(message)
        records[to].sizes[self.role, tag] = len(message)
        await send(self, to, tag, data, online=online)

    def stream_recorded(self: Any, peer: Role, path: Any) -> Any:
        return _Recorded(stream(self, peer, path), records[self.role].drawn)

    async def open_recorded(self: Lane, fields: Sequence[Field], values: Any) -> list[Words]:
        sums = await opening(self, fields, values)
        for item, total in zip(fields, sums, strict=True):
            packed = pack(np.ascontiguousarray(total).reshape(-1), item.width)
            records[self.role].opened.append(bytes(packed))
        return sums

    with (
        mock.patch.object(LockstepLink, "send", send_recorded),
        mock.patch.object(LockstepLink, "stream", stream_recorded),
        mock.patch.object(Lane, "open", open_recorded),
    ):
        yield records


@dataclass
class Seen:
    """`Record` of many runs, as arrays."""

    received: Views
    opened: Views
    drawn: Views


def observe(once: Callable[[], Any], runs: int) -> dict[Role, Seen]:
    """Run `once` many times; what every party learned."""
    rows: dict[Role, list[Record]] = {role: [] for role in Role}
    for _ in range(runs):
        with recording() as records:
            once()
        for role, record in records.items():
            rows[role].append(record)
    return {
        role: Seen(*(stacked(rows[role], name) for name in ("received", "opened", "drawn")))
        for role in Role
    }


def stacked(records: Sequence[Record], name: str) -> Views:
    """(runs, bytes) of one list of the records."""
    rows = [np.frombuffer(b"".join(getattr(record, name)), dtype=np.uint8) for record in records]
    if len({row.size for row in rows}) > 1:
        raise NotUniform(f"{name}: the number of bytes differs from run to run")
    return np.stack(rows)


class SimulatedLink:
    """The link of a party that is alone: every message it waits for is made of coins.

    Args:
        sizes: (sender, tag) -> bytes, which are public.
    """

    def __init__(self, like: Any, sizes: dict[tuple[Role, tuple[int, ...]], int]) -> None:
        self.role, self.settings, self.traffic = like.role, like.settings, like.traffic
        self.gather, self.run, self.defer = like.gather, like.run, like.defer
        self._sizes, self.received = sizes, []
        self.drawn: list[bytes] = []

    def stream(self, peer: Role, path: Any) -> Any:
        return _Recorded(Stream(os.urandom(16)), self.drawn)

    async def send(self, *args: Any, **kwargs: Any) -> None:
        return None

    async def receive(self, sender: Role, tag: tuple[int, ...]) -> bytes:
        message = os.urandom(self._sizes[sender, tag])
        self.received.append(message)
        return message
