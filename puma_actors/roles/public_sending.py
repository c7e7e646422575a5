"""Send public weights to the evaluators: each tensor as the checkpoint stores it. The dealer gets
none, because it never uses them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from models.programs.families import parameters_of
from models.programs.folding import Source
from models.programs.opened import check_range, ingredients, made_of
from models.programs.plan import Parameter, Plan
from protocols.base.shares import EVALUATORS, Role
from protocols.errors import RemoteProtocolError
from puma_actors.roles.described import Bytes, Description, pack
from puma_actors.roles.messages import MatrixMessage, PieceMessage
from puma_actors.session.session import RoundScheduler

PIECE_BYTES = 16 << 20
"""A tensor is sent in pieces of this size."""
_FRAME_OVERHEAD = 64


async def send_matrices(
    scheduler: RoundScheduler,
    plan: Plan,
    sources: Sequence[tuple[str, Source]],
    progress: Callable[[str, float], None],
    held: Mapping[Role, Sequence[int]],
    already: Callable[[int, int], None],
) -> None:
    """Send all tensors, one after another.

    Args:
        sources: what they are made of (`sources_of`).
        held: bytes of each tensor's file that an evaluator has from an earlier attempt; those that
            are left out have none.
        already: called, if the evaluators have some, with their bytes and all that they need.

    Raises:
        RangeError: a number does not fit its fraction bits. RemoteProtocolError: an evaluator has
        more than there is.
    """
    wanted = parameters_of(plan.config)
    if there := sum(sum(held[role]) for role in EVALUATORS):
        whole = await scheduler.compute.offload(_whole_bytes, wanted.values(), sources)
        already(there, len(EVALUATORS) * whole)
    for number, ((name, source), parameter) in enumerate(
        zip(sources, wanted.values(), strict=True)
    ):
        made, buffers = await scheduler.compute.offload(_packed, name, parameter, source)
        rest = {
            role: _behind(role, name, made, buffers, held[role][number:]) for role in EVALUATORS
        }
        await _send(scheduler, number, made, buffers, rest)
        progress("sending the weights", (number + 1) / len(wanted))


async def _send(
    scheduler: RoundScheduler,
    number: int,
    made: Description,
    buffers: Sequence[Bytes],
    starts: Mapping[Role, int],
) -> None:
    """Send one tensor to both evaluators. `starts`: the first byte that each needs."""
    frames = (scheduler.port(role).channel.frame_bytes for role in EVALUATORS)
    most = min(PIECE_BYTES, *frames) - _FRAME_OVERHEAD
    for evaluator in EVALUATORS:
        await scheduler.send_control(evaluator, MatrixMessage(number=number, made=made).header())
    for start, piece in _pieces(buffers, most):
        for evaluator in EVALUATORS:
            first = max(start, starts[evaluator])
            if first < start + piece.size:
                header = PieceMessage(number=number, start=first).header()
                await scheduler.send_control(evaluator, header, [piece[first - start :]])


def _behind(
    role: Role, name: str, made: Description, buffers: Sequence[Bytes], held: Sequence[int]
) -> int:
    """The bytes of a tensor, without its head, that an evaluator has."""
    there = held[0] if held else 0
    if there > len(made.head()) + sum(buffer.size for buffer in buffers):
        raise RemoteProtocolError(f"{role} has {there} bytes of {name}, more than there are")
    return max(0, there - len(made.head()))


def _whole_bytes(parameters: Iterable[Parameter], sources: Sequence[tuple[str, Source]]) -> int:
    """Bytes of all files."""
    total = 0
    for (_, source), parameter in zip(sources, parameters, strict=True):
        made, _ = pack(ingredients(parameter, source))
        total += len(made.head()) + made.size(parameter)
    return total


def _packed(name: str, parameter: Parameter, source: Source) -> tuple[Description, list[Bytes]]:
    """A tensor to be sent, after it was looked through."""
    found = ingredients(parameter, source)
    check_range(name, made_of(Role.EVALUATOR_A, parameter, found))
    return pack(found)


def _pieces(buffers: Sequence[Bytes], most: int) -> Iterator[tuple[int, Bytes]]:
    """Runs of at most so many bytes, with the place of each in the tensor."""
    at = 0
    for buffer in buffers:
        for start in range(0, buffer.size, most):
            yield at + start, buffer[start : start + most]
        at += buffer.size
