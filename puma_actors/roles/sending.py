"""Send a model from the owner to the parties: the plan, two seeds, masked tensors.

sending = Sending(scheduler, plan, parameters, progress)
await sending.model()            to all parties; or plan(), held(), shares(...), uploaded()
await sending.accepted()         until each party has reported that it is ready
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, Protocol

import numpy as np

from models.programs.families import parameters_of
from models.programs.folding import Source
from models.programs.plan import Kind, Parameter, Plan
from models.programs.sharing import SEED_BYTES, mask_parameter
from protocols.base.ring import Floats, Words
from protocols.base.shares import COMPUTING, EVALUATORS, Role
from protocols.errors import RemoteProtocolError
from puma_actors.roles.messages import (
    HeldMessage,
    PlanMessage,
    ReadyMessage,
    SeedMessage,
    TensorMessage,
    UploadedMessage,
    parse,
)
from puma_actors.roles.public_sending import send_matrices
from puma_actors.roles.upload import held_rows
from puma_actors.session.session import RoundScheduler

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction done (0 to 1)."""

CHUNK_BYTES = 512 << 20
"""A larger tensor is sent in several messages."""
STORE_CHUNK_BYTES = 16 << 20
"""The same for parties that store it, between messages the upload can be cut."""
FRAME_OVERHEAD = 64
"""Bytes of a frame that are reserved for its header."""


class Message(Protocol):
    """A message that can be sent as a control message; see `puma_actors.roles.messages`."""

    def header(self) -> dict[str, Any]:
        """The message's fields."""


class Sending:
    """See the module docstring.

    Args:
        scheduler: the owner's scheduler.
        parameters: matrices by canonical name; from a dict each is removed when it is masked.
        progress: called while sharing.
        sources: what public weights are made of (`sources_of`), if the parties need them.
    """

    def __init__(
        self,
        scheduler: RoundScheduler,
        plan: Plan,
        parameters: Mapping[str, Floats],
        progress: Progress,
        sources: Sequence[tuple[str, Source]] = (),
    ) -> None:
        self.scheduler = scheduler
        self.plan = plan
        self._parameters = parameters
        self._progress = progress
        self._sources = sources

    async def everyone(self, message: Message, buffers: Sequence[bytes] = ()) -> None:
        """Send a message to the three parties."""
        for role in COMPUTING:
            await self.scheduler.send_control(role, message.header(), buffers)

    async def model(self) -> None:
        """Send the plan to all peers, and to each party its shares."""
        await self.announce()
        if self.plan.weights == "private":
            await self.shares([os.urandom(SEED_BYTES) for _ in EVALUATORS])
        await self.uploaded()

    async def announce(self) -> None:
        """Send the plan to all peers."""
        announcement = PlanMessage(plan=self.plan.to_public(), digest=self.plan.digest()).header()
        for role in self.scheduler.ports:
            await self.scheduler.send_control(role, announcement)

    async def held(self) -> "Held":
        """What each evaluator says that it has of this upload.

        Raises:
            RemoteProtocolError: a party sends something else, or has more than there is.
        """
        return Held(self.plan, await self._answers())

    async def matrices(self, already: Callable[[int, int], None]) -> None:
        """Send public weights to the evaluators, except what they say that they have.

        Args:
            already: called with the bytes that they have, and with all that they need.

        Raises:
            As `held`. RangeError: a number does not fit its fraction bits.
        """
        await send_matrices(
            self.scheduler,
            self.plan,
            self._sources,
            self._progress,
            await self._answers(),
            already,
        )

    async def _answers(self) -> dict[Role, list[int]]:
        found: dict[Role, list[int]] = {}
        self._progress("waiting for what the parties have already", 0.0)
        while len(found) < len(COMPUTING):
            role, header, _ = await self.scheduler.control()
            message = parse(header)
            if not isinstance(message, HeldMessage) or role in found:
                raise RemoteProtocolError(f"{role} did not say what it has of the model")
            found[role] = message.tensors
        return found

    async def shares(self, seeds: Sequence[bytes], held: "Held | None" = None) -> None:
        """Send the seeds, and the tensors' rows that an evaluator does not hold.

        Args:
            held: default: nothing. Otherwise the progress is told in bytes too.
        """
        for which, (seed, evaluator) in enumerate(zip(seeds, EVALUATORS, strict=True), start=1):
            header = SeedMessage(which=1 if which == 1 else 2).header()
            for role in (Role.DEALER, evaluator):
                await self.scheduler.send_control(role, header, [seed])
        wanted = parameters_of(self.plan.config)
        pace = Pace(self._progress, wanted, held)
        for number, (name, parameter) in enumerate(wanted.items()):
            mask = partial(self._masked, name, number, parameter.kind, seeds)
            starts = {role: held.rows(role, number) if held else 0 for role in EVALUATORS}
            if min(starts.values()) < parameter.shape[0]:
                masked = await self.scheduler.compute.offload(mask)
                await self.tensor(number, masked, starts, STORE_CHUNK_BYTES if held else None)
                del masked
            pace.done(number)

    async def uploaded(self) -> None:
        """Say that this was all."""
        await self.everyone(UploadedMessage())
        self._progress("waiting for the parties to take them in", 0.0)

    def _masked(self, name: str, number: int, kind: Kind, seeds: Sequence[bytes]) -> Words:
        matrix = self._parameters[name]
        if isinstance(self._parameters, dict):
            del self._parameters[name]  # so that memory is freed along the way
        return mask_parameter(name, number, kind, matrix, seeds)

    async def tensor(
        self,
        number: int,
        masked: Words,
        starts: Mapping[Role, int] | None = None,
        most: int | None = None,
    ) -> None:
        """Send a masked tensor to both evaluators, by rows.

        Args:
            starts: the first row that each needs; default: row 0.
            most: bytes of a message; default: `CHUNK_BYTES`.
        """
        flat = np.ascontiguousarray(masked).reshape(masked.shape[0], -1)
        frames = (self.scheduler.port(role).channel.frame_bytes for role in EVALUATORS)
        rows = max(1, (min(most or CHUNK_BYTES, *frames) - FRAME_OVERHEAD) // flat[0].nbytes)
        starts = starts or dict.fromkeys(EVALUATORS, 0)
        for start in range(min(starts.values()) // rows * rows, len(flat), rows):
            part = flat[start : start + rows]
            if len(part) < len(flat):  # so that the tensor can go before its last rows are sent
                part = part.copy()
            for evaluator in EVALUATORS:
                rest = part[max(0, starts[evaluator] - start) :]
                if len(rest):
                    first = start + len(part) - len(rest)
                    header = TensorMessage(number=number, start=first, rows=len(rest)).header()
                    buffer = rest.reshape(-1).astype("<u8", copy=False).view(np.uint8)
                    await self.scheduler.send_control(evaluator, header, [buffer])

    async def accepted(self) -> None:
        """Wait until each party has reported once more that it is ready.

        Raises:
            RemoteProtocolError: a party sends something else.
        """
        waiting = set(COMPUTING)
        while waiting:
            role, header, _ = await self.scheduler.control()
            self.check_ready(role, header)
            waiting.discard(role)

    def check_ready(self, role: Role, header: Mapping[str, Any]) -> None:
        """Raise RemoteProtocolError unless a party's message accepts exactly this model."""
        message = parse(header)
        if not isinstance(message, ReadyMessage) or message.digest != self.plan.digest():
            raise RemoteProtocolError(f"{role} did not accept the model that was sent")


class Held:
    """The rows of each tensor that the evaluators have from an earlier attempt.

    Args:
        found: the bytes of each tensor, by role and number; those that are left out have none.

    Attributes:
        nbytes: of all evaluators together. total: that there are, for all evaluators together.

    Raises:
        RemoteProtocolError: they are not rows of the plan's tensors.
    """

    def __init__(self, plan: Plan, found: Mapping[Role, Sequence[int]]) -> None:
        wanted = list(parameters_of(plan.config).items())
        self._rows: dict[Role, list[int]] = {}
        for role in EVALUATORS:
            if len(found[role]) > len(wanted):
                raise RemoteProtocolError(f"{role} has more tensors than the model")
            sizes = zip(wanted, found[role], strict=False)
            self._rows[role] = [held_rows(name, each, size) for (name, each), size in sizes]
        self.nbytes = sum(sum(found[role]) for role in EVALUATORS)
        self.total = len(EVALUATORS) * sum(8 * prod(each.shape) for _, each in wanted)

    def rows(self, role: Role, number: int) -> int:
        """The rows of a tensor that an evaluator has, from the first on."""
        rows = self._rows[role]
        return rows[number] if number < len(rows) else 0


class Pace:
    """Tells how far the sharing is, by bytes; with `held` also how many a second are sent."""

    def __init__(
        self, progress: Progress, wanted: Mapping[str, Parameter], held: Held | None
    ) -> None:
        self._progress = progress
        self._sizes = [8 * prod(parameter.shape) for parameter in wanted.values()]
        self._shapes = [parameter.shape for parameter in wanted.values()]
        self._held = held
        self._began = time.monotonic()
        self._done = self._sent = 0
        self._tell()

    def done(self, number: int) -> None:
        """Tensor `number` is on its way."""
        size = self._sizes[number]
        self._done += size
        if self._held is not None:
            rows = sum(self._held.rows(role, number) for role in EVALUATORS)
            held = rows / len(EVALUATORS) / self._shapes[number][0]
            self._sent += round(size * (1 - held))
        self._tell()

    def _tell(self) -> None:
        whole, what = sum(self._sizes), "sharing the weights"
        if self._held is not None:
            spent = time.monotonic() - self._began
            rate = f", {self._sent / spent / 1e6:.0f} MB/s" if spent > 1 and self._sent else ""
            what += f" ({self._done // 1_000_000:,} of {whole // 1_000_000:,} MB{rate})"
        self._progress(what, self._done / whole)


class Delivery(Protocol):
    """Decides what is sent to the parties, and when the delivery is complete."""

    def watched(self, parameters: Mapping[str, Floats]) -> Mapping[str, Floats]:
        """The matrices, in a form in which this sees what they are used for."""

    async def deliver(self, sending: Sending) -> None:
        """Send it. Returns when all parties have what they need."""


class ForSession:
    """Sends the model alone; the parties keep it for this session."""

    def watched(self, parameters: Mapping[str, Floats]) -> Mapping[str, Floats]:
        """As `Delivery`."""
        return parameters

    async def deliver(self, sending: Sending) -> None:
        """As `Delivery`."""
        await sending.model()
        await sending.accepted()
