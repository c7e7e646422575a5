"""Several evaluations of one model as one: their rows go through the same operations.

    part = Part(ops, lambda member: forward(member, config, parameters, batch, cache))
    await part.embed()                     what it begins with, over its own `ops`
    results = await together(joint, parts) everything else, over the ops of all of them

Each part is the model's own program over a `Member`. Local operations a member does itself; any
other one is a meeting point: it stops there until all members have called the same operation at
the same place, which then runs once, on the rows of all, in their order. Attention is that of all
their sequences, each to its own keys and values. So a model's program does not know that it has
company, and what is sent is what one batch of all these rows would send.
"""

from collections.abc import Callable, Coroutine, Generator, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from protocols.base.shares import concat
from protocols.drivers.ops import Heads, Index, Ops, Rotation, Span, Tensor
from protocols.errors import LocalProtocolError
from protocols.functions.normalize import Norm
from protocols.functions.softcap import Cap

Join: TypeAlias = Callable[[Sequence[Tensor], int], Tensor]
"""Joins tensors along an axis."""
Run: TypeAlias = Callable[..., Coroutine[Any, Any, Any]]
"""Runs an operation: given the ops, what each member adds that is public, and the tensors."""


@dataclass(frozen=True, slots=True)
class Call:
    """An operation that a member has come to.

    Attributes:
        key: the operation and its place in the model, the same at all members.
        tensors: the member's own.
        run: runs the operation with everybody's tensors, joined along `axis`.
        count: the member's rows of the result, whose rows are along `out`.
        public: what the member adds that is public.
    """

    key: tuple[Hashable, ...]
    tensors: tuple[Tensor, ...]
    run: Run
    count: int
    axis: int = 0
    out: int = 0
    public: Any = None

    def __await__(self) -> Generator["Call", Any, Any]:
        return (yield self)


class Member:
    """`Ops` for one of several evaluations. See the module docstring.

    Args:
        ops: for what is local, and for the look-up that a program begins with.
    """

    def __init__(self, ops: Ops) -> None:
        self._ops = ops

    async def embed(self, table: Any, count: int, columns: int) -> Tensor:
        return await Call(("embed",), (), lambda ops, _: ops.embed(table, count, columns), count)

    async def _rows(self, key: tuple[Hashable, ...], run: Run, *tensors: Tensor) -> Tensor:
        """An operation on rows: `run` of the ops and the joined tensors."""
        count: int = tensors[0].shape[0]
        return await Call(key, tensors, lambda ops, _, *joined: run(ops, *joined), count)

    async def norm(
        self,
        x: Tensor,
        name: str,
        norm: Norm,
        gain: Any = None,
        shift: Any = None,
        *,
        unit: bool = False,
        residual: bool = False,
    ) -> Tensor:
        def run(ops: Ops, x: Tensor) -> Coroutine[Any, Any, Tensor]:
            return ops.norm(x, name, norm, gain, shift, unit=unit, residual=residual)

        return await self._rows(("norm", name), run, x)

    async def scaled(self, x: Tensor, factor: float) -> Tensor:
        return await self._rows(("scaled", factor), lambda ops, x: ops.scaled(x, factor), x)

    async def capped(self, x: Tensor, name: str, cap: Cap) -> Tensor:
        return await self._rows(("capped", name), lambda ops, x: ops.capped(x, name, cap), x)

    async def linear(self, x: Tensor, weight: Any, name: str) -> Tensor:
        return await self._rows(("linear", name), lambda ops, x: ops.linear(x, weight, name), x)

    async def residual(self, reader: str, norm: Norm, x: Tensor, *parts: Tensor) -> Tensor:
        def run(ops: Ops, *every: Tensor) -> Coroutine[Any, Any, Tensor]:
            return ops.residual(reader, norm, *every)

        return await self._rows(("residual", reader), run, x, *parts)

    async def dense(self, x: Tensor, weight: Any, name: str, activation: str) -> Tensor:
        def run(ops: Ops, x: Tensor) -> Coroutine[Any, Any, Tensor]:
            return ops.dense(x, weight, name, activation)

        return await self._rows(("dense", name), run, x)

    async def gated(self, x: Tensor, weight: Any, name: str, activation: str) -> Tensor:
        def run(ops: Ops, x: Tensor) -> Coroutine[Any, Any, Tensor]:
            return ops.gated(x, weight, name, activation)

        return await self._rows(("gated", name), run, x)

    async def normed_gated(
        self, x: Tensor, before: str, norm: Norm, weight: Any, name: str, activation: str
    ) -> Tensor:
        def run(ops: Ops, x: Tensor) -> Coroutine[Any, Any, Tensor]:
            return ops.normed_gated(x, before, norm, weight, name, activation)

        return await self._rows(("normed_gated", before, name), run, x)

    async def normed_project(
        self,
        x: Tensor,
        before: str,
        norm: Norm,
        weight: Any,
        name: str,
        heads: Heads,
        rotation: Rotation | None = None,
        head_norm: Norm | None = None,
        gains: tuple[Any, Any] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        def run(
            ops: Ops, turns: Sequence[Rotation | None], x: Tensor
        ) -> Coroutine[Any, Any, tuple[Tensor, Tensor, Tensor]]:
            turn = _turned(turns)
            return ops.normed_project(x, before, norm, weight, name, heads, turn, head_norm, gains)

        return await _projected(("normed_project", before, name), run, x, rotation)

    async def project(
        self,
        x: Tensor,
        weight: Any,
        name: str,
        heads: Heads,
        rotation: Rotation | None = None,
        norm: Norm | None = None,
        gains: tuple[Any, Any] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        def run(
            ops: Ops, turns: Sequence[Rotation | None], x: Tensor
        ) -> Coroutine[Any, Any, tuple[Tensor, Tensor, Tensor]]:
            return ops.project(x, weight, name, heads, _turned(turns), norm, gains)

        return await _projected(("project", name), run, x, rotation)

    async def attention(
        self, q: Tensor, k: Tensor, v: Tensor, name: str, spans: Sequence[Span]
    ) -> Tensor:
        rows, context = q.shape[1], k.shape[1]

        def run(
            ops: Ops, every: Sequence[_Seen], q: Tensor, k: Tensor, v: Tensor
        ) -> Coroutine[Any, Any, Tensor]:
            return ops.attention(q, k, v, name, _moved(every))

        public = _Seen(spans, rows, context)
        return await Call(("attention", name), (q, k, v), run, rows, axis=1, public=public)

    async def output(self, x: Tensor, weight: Any, name: str, *, tied: bool = False) -> Tensor:
        def run(ops: Ops, x: Tensor) -> Coroutine[Any, Any, Tensor]:
            return ops.output(x, weight, name, tied=tied)

        return await self._rows(("output", name), run, x)

    async def mean(self, x: Tensor, lengths: Sequence[int], *, inner: bool = False) -> Tensor:
        def run(ops: Ops, every: Sequence[Sequence[int]], x: Tensor) -> Coroutine[Any, Any, Tensor]:
            return ops.mean(x, [size for sizes in every for size in sizes], inner=inner)

        return await Call(("mean", inner), (x,), run, len(lengths), public=lengths)

    # -- local -------------------------------------------------------------------------------------

    def result(self, x: Tensor) -> Tensor:
        return self._ops.result(x)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return self._ops.add(x, y)

    def sums(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        return self._ops.sums(x, lengths)

    def append(self, past: Tensor | None, new: Tensor) -> Tensor:
        return self._ops.append(past, new)

    def take(self, x: Tensor, index: Index) -> Tensor:
        return self._ops.take(x, index)

    def heads_at(self, x: Tensor, index: Index) -> Tensor:
        return self._ops.heads_at(x, index)


async def _projected(
    key: tuple[Hashable, ...], run: Run, x: Tensor, rotation: Rotation | None
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = await Call(key, (x,), run, x.shape[0], out=1, public=rotation)
    return q, k, v


def _turned(turns: Sequence[Rotation | None]) -> Rotation | None:
    """The rotations of all rows; all members have one, or none."""
    found = [turn for turn in turns if turn is not None]
    if len(found) < 2:
        return found[0] if found else None
    return Rotation(
        np.concatenate([turn.cos for turn in found]), np.concatenate([turn.sin for turn in found])
    )


class _Seen(NamedTuple):
    """A member's spans, its rows, and the length of its context."""

    spans: Sequence[Span]
    rows: int
    context: int


def _moved(every: Sequence[_Seen]) -> list[Span]:
    """The spans of all members, at the places of their rows and of their context."""
    found: list[Span] = []
    row = first = 0
    for spans, rows, context in every:
        found += [
            replace(span, rows=_by(span.rows, row), context=_by(span.context, first))
            for span in spans
        ]
        row, first = row + rows, first + context
    return found


def _by(place: slice, offset: int) -> slice:
    return slice(place.start + offset, place.stop + offset)


class Part:
    """One of several evaluations, over a `Member`. It runs once.

    Args:
        ops: for what is local, and for the look-up that the program begins with.
        program: the model's program over the `Ops` it is given; it begins with `embed`. Called
            again, it forgets what an earlier run has left behind.
    """

    def __init__(self, ops: Ops, program: Callable[[Member], Coroutine[Any, Any, Tensor]]) -> None:
        self._ops = ops
        self._program = program
        self._task = program(Member(ops))
        self._input: Tensor = None
        self._answer: Any = None

    async def embed(self) -> None:
        """Look up its input, over its own ops."""
        call = self.look_up()
        self._input = await call.run(self._ops, ())
        self.begin(self._input)

    def again(self) -> "Part":
        """The same part before its first meeting point, with the input that it has looked up; for
        one whose evaluation was given up.
        """
        part = Part(self._ops, self._program)
        part.look_up()
        part._input = self._input
        part.begin(self._input)
        return part

    def look_up(self) -> Call:
        """The look-up that its program begins with.

        Raises:
            LocalProtocolError: the program begins with something else.
        """
        call = self.go()
        if not isinstance(call, Call) or call.key != ("embed",):
            raise LocalProtocolError("a program must begin with the look-up of its input")
        return call

    def begin(self, x: Tensor) -> None:
        """Go on with its input once it is together with others."""
        self._answer = x

    def go(self) -> "Call | Done":
        """Run to its next meeting point, or to its end."""
        try:
            found = self._task.send(self._answer)
        except StopIteration as stop:
            return Done(stop.value)
        if not isinstance(found, Call):
            raise LocalProtocolError("a member waits for something else than the others")
        return found

    def close(self) -> None:
        """Give it up."""
        self._task.close()


@dataclass(frozen=True, slots=True)
class Done:
    """The result of a part that has ended."""

    result: Tensor


async def together(ops: Ops, parts: Sequence[Part], join: Join = concat) -> list[Tensor]:
    """The results of parts that have their input, in order.

    Raises:
        LocalProtocolError: their programs call different operations.
    """
    try:
        while True:
            found = [part.go() for part in parts]
            calls = [each for each in found if isinstance(each, Call)]
            if not calls:
                return [each.result for each in found if isinstance(each, Done)]
            if len(calls) < len(found) or len({call.key for call in calls}) > 1:
                keys = sorted({str(call.key) for call in calls})
                raise LocalProtocolError(
                    f"evaluations together call different operations: {', '.join(keys)}"
                )
            for part, answer in zip(parts, await _met(ops, calls, join), strict=True):
                part.begin(answer)
    finally:
        for part in parts:
            part.close()


async def _met(ops: Ops, calls: Sequence[Call], join: Join) -> list[Any]:
    """Run an operation that all have called; each one's part of the result."""
    first = calls[0]
    publics = [call.public for call in calls]
    if len(calls) == 1:
        return [await first.run(ops, publics, *first.tensors)]
    tensors = [
        join(every, first.axis) for every in zip(*(call.tensors for call in calls), strict=True)
    ]
    result = await first.run(ops, publics, *tensors)
    ends = np.cumsum([call.count for call in calls]).tolist()
    cuts = [slice(end - call.count, end) for end, call in zip(ends, calls, strict=True)]
    if not isinstance(result, tuple):
        return [_cut(result, first.out, cut) for cut in cuts]
    return [tuple(_cut(each, first.out, cut) for each in result) for cut in cuts]


def _cut(x: Tensor, axis: int, cut: slice) -> Tensor:
    return x[:, cut] if axis else x[cut]
