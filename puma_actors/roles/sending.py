"""Send a model from the owner to the parties: the plan, two seeds, masked tensors.

sending = Sending(scheduler, plan, parameters, progress)
await sending.model()            to all parties
await sending.accepted()         until each party has reported that it is ready
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from models.programs.families import parameters_of
from models.programs.folding import Source
from models.programs.plan import Kind, Plan
from models.programs.sharing import SEED_BYTES, mask_parameter
from protocols.base.ring import Floats, Words
from protocols.base.shares import COMPUTING, EVALUATORS, Role
from protocols.errors import RemoteProtocolError
from puma_actors.roles.messages import (
    PlanMessage,
    ReadyMessage,
    SeedMessage,
    TensorMessage,
    UploadedMessage,
    parse,
)
from puma_actors.roles.public_sending import send_matrices
from puma_actors.session.session import RoundScheduler

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction done (0 to 1)."""

CHUNK_BYTES = 512 << 20
"""A larger tensor is sent in several messages."""
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
        announcement = PlanMessage(plan=self.plan.to_public(), digest=self.plan.digest()).header()
        for role in self.scheduler.ports:
            await self.scheduler.send_control(role, announcement)
        if self.plan.weights == "private":
            await self._shares()
        elif self._sources:
            await send_matrices(self.scheduler, self.plan, self._sources, self._progress)
        await self.everyone(UploadedMessage())
        self._progress("waiting for the parties to take them in", 0.0)

    async def _shares(self) -> None:
        seeds = [os.urandom(SEED_BYTES) for _ in EVALUATORS]
        for which, (seed, evaluator) in enumerate(zip(seeds, EVALUATORS, strict=True), start=1):
            header = SeedMessage(which=1 if which == 1 else 2).header()
            for role in (Role.DEALER, evaluator):
                await self.scheduler.send_control(role, header, [seed])
        wanted = parameters_of(self.plan.config)
        for number, (name, parameter) in enumerate(wanted.items()):
            mask = partial(self._masked, name, number, parameter.kind, seeds)
            await self.tensor(number, await self.scheduler.compute.offload(mask))
            self._progress("sharing the weights", (number + 1) / len(wanted))

    def _masked(self, name: str, number: int, kind: Kind, seeds: Sequence[bytes]) -> Words:
        matrix = self._parameters[name]
        if isinstance(self._parameters, dict):
            del self._parameters[name]  # so that memory is freed along the way
        return mask_parameter(name, number, kind, matrix, seeds)

    async def tensor(self, number: int, masked: Words) -> None:
        """Send a masked tensor to both evaluators, by rows."""
        flat = np.ascontiguousarray(masked).reshape(masked.shape[0], -1)
        frames = (self.scheduler.port(role).channel.frame_bytes for role in EVALUATORS)
        rows = max(1, (min(CHUNK_BYTES, *frames) - FRAME_OVERHEAD) // flat[0].nbytes)
        for start in range(0, len(flat), rows):
            part = flat[start : start + rows]
            header = TensorMessage(number=number, start=start, rows=len(part)).header()
            buffer = part.reshape(-1).astype("<u8", copy=False).view(np.uint8)
            for evaluator in EVALUATORS:
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


class Delivery(Protocol):
    """Decides what is sent to the parties, and when the delivery is complete."""

    async def deliver(self, sending: Sending) -> None:
        """Send it. Returns when all parties have what they need."""


class ForSession:
    """Sends the model alone; the parties keep it for this session."""

    async def deliver(self, sending: Sending) -> None:
        """As `Delivery`."""
        await sending.model()
        await sending.accepted()
