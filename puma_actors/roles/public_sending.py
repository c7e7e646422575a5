"""Send public weights to the evaluators: each tensor as the checkpoint stores it. The dealer gets
none, because it never uses them.
"""

from collections.abc import Callable, Iterator, Sequence

from models.programs.families import parameters_of
from models.programs.folding import Source
from models.programs.opened import check_range, ingredients, made_of
from models.programs.plan import Parameter, Plan
from protocols.base.shares import EVALUATORS, Role
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
) -> None:
    """Send all tensors, one after another.

    Args:
        sources: what they are made of (`sources_of`).

    Raises:
        RangeError: a number does not fit its fraction bits.
    """
    frames = (scheduler.port(role).channel.frame_bytes for role in EVALUATORS)
    most = min(PIECE_BYTES, *frames) - _FRAME_OVERHEAD
    wanted = parameters_of(plan.config)
    for number, ((name, source), parameter) in enumerate(
        zip(sources, wanted.values(), strict=True)
    ):
        made, buffers = await scheduler.compute.offload(_packed, name, parameter, source)
        header = MatrixMessage(number=number, made=made).header()
        for evaluator in EVALUATORS:
            await scheduler.send_control(evaluator, header)
        for start, piece in _pieces(buffers, most):
            header = PieceMessage(number=number, start=start).header()
            for evaluator in EVALUATORS:
                await scheduler.send_control(evaluator, header, [piece])
        progress("sending the weights", (number + 1) / len(wanted))


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
