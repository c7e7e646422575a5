"""Runs of both systems in turns: ours, theirs, ours, theirs."""

import gc
from collections.abc import Callable, Sequence
from typing import Any

from bench.spu.table import Row, Side
from bench.spu.talk import Peer, PeerError
from bench.spu.workloads import Figures, Item, Opened

Log = Callable[[str], None]
_SAME = 1e-3
"""Distance of exact results, as a share of the largest, that roundings explain."""


async def compare(
    item: Item, peer: Peer, pairs: int, log: Log, *, quick: bool = False
) -> list[Row]:
    """One row for each of our variants. One run of each system is not counted.

    A system that fails is left out from then on; its `Side` says why.
    """
    async with item.open(quick) as opened:
        ours = {variant: Side() for variant in opened.ours}
        theirs = Side()
        await _prepare(peer, opened, theirs)
        for number in range(-1, pairs):
            with peer.still():
                for variant, side in ours.items():
                    gc.collect()
                    await _ours(opened, variant, side, counted=number >= 0)
            await _theirs(peer, theirs, counted=number >= 0)
            log(f"{item.title}: " + (f"pair {number + 1} of {pairs}" if number >= 0 else "ready"))
    if theirs.failed:
        log(f"{item.title}: SPU failed: {theirs.failed}")
    for variant, side in ours.items():
        if side.failed:
            log(f"{item.title} {variant}: failed: {side.failed}")
    return [Row(_title(item, variant), side, theirs) for variant, side in ours.items()]


def _title(item: Item, variant: str) -> str:
    return f"{item.title}, {variant}" if variant else item.title


async def _prepare(peer: Peer, opened: Opened, theirs: Side) -> None:
    """Have SPU compile and share, and see that it computes the same function."""
    answer = await _ask(peer, opened.request, theirs)
    if answer is None or not opened.exact:
        return
    theirs.failed = difference(opened.exact, answer["exact"])


def difference(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Why exact results cannot be of the same function, or nothing."""
    if len(ours) != len(theirs):
        return f"it has {len(theirs)} exact results instead of {len(ours)}"
    off = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    if off <= _SAME * max(map(abs, ours)):
        return ""
    return f"its exact results are {off:.2g} from ours: it computes another function"


async def _ours(opened: Opened, variant: str, side: Side, *, counted: bool) -> None:
    if side.failed:
        return
    try:
        figures = await opened.ours[variant]()
    except Exception as error:  # the other rows are still measured
        side.failed = f"{type(error).__name__}: {error}"
        return
    if counted:
        _add(side, figures)


async def _theirs(peer: Peer, side: Side, *, counted: bool) -> None:
    answer = await _ask(peer, {"run": True}, side)
    if answer is not None and counted:
        seconds, megabytes = float(answer["seconds"]), float(answer["megabytes"])
        _add(side, Figures(seconds, megabytes, int(answer["sends"]), float(answer["error"])))


async def _ask(peer: Peer, request: dict[str, Any], side: Side) -> dict[str, Any] | None:
    """An answer, or none if SPU failed now or before."""
    if side.failed:
        return None
    try:
        return await peer.ask(request)
    except PeerError as error:
        side.failed = str(error)
        return None


def _add(side: Side, figures: Figures) -> None:
    side.seconds.append(figures.seconds)
    side.megabytes, side.steps = figures.megabytes, figures.steps
    side.error = max(side.error, figures.error)
