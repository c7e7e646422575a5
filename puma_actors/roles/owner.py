"""The model owner: reads a checkpoint, calibrates, shares the weights, and leaves."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import numpy as np

from models.checkpoints.in_memory import open_model
from models.checkpoints.weights import Checkpoint
from models.owner.calibrate import calibrate
from models.programs.families import load_parameters, parameters_of
from models.programs.plan import Plan
from models.programs.sharing import SEED_BYTES, mask_parameter
from protocols.base.ring import Floats, Words
from protocols.base.shares import COMPUTING, EVALUATORS, Role
from protocols.errors import ConfigError, RemoteProtocolError
from puma_actors.roles.actor import Actor, ActorOptions
from puma_actors.roles.messages import (
    PlanMessage,
    ReadyMessage,
    SeedMessage,
    TensorMessage,
    UploadedMessage,
    parse,
)

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction done (0 to 1)."""

CHUNK_BYTES = 512 << 20
FRAME_OVERHEAD = 64
"""A larger tensor travels in several messages."""


def ignore_progress(what: str, fraction: float) -> None:
    """A `Progress` that tells nobody."""


def check_opened(checkpoint: object) -> None:
    """Raise ConfigError for what may be a model, but is no open checkpoint."""
    if not isinstance(checkpoint, Checkpoint):
        raise ConfigError(
            f"the checkpoint is {type(checkpoint).__name__}: use from_model(model) for a model in "
            "memory, or open it (open_model, open_checkpoint)"
        )


class Owner(Actor):
    """Uploads one model, then stays until the others leave.

    Args:
        checkpoint: the model.
        texts: token ids of texts on which precision is tried, beside made-up tokens (see
            `models.owner.probe`).
        progress: told about loading and sharing.

    Attributes:
        seconds: what loading, calibrating and sharing took.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        options: ActorOptions | None = None,
        *,
        texts: Sequence[Sequence[int]] = (),
        progress: Progress = ignore_progress,
    ) -> None:
        check_opened(checkpoint)
        super().__init__(Role.OWNER, options)
        self._checkpoint = checkpoint
        self._texts = texts
        self._progress = progress
        self.seconds: dict[str, float] = {}

    @classmethod
    def from_model(
        cls,
        model: object,
        options: ActorOptions | None = None,
        *,
        head: str | None = None,
        texts: Sequence[Sequence[int]] = (),
        progress: Progress = ignore_progress,
    ) -> Self:
        """The owner of a model of transformers that is in memory, see
        `models.checkpoints.in_memory.open_model`. Raises ConfigError, ModelError.
        """
        return cls(open_model(model, head=head), options, texts=texts, progress=progress)

    async def main(self) -> None:
        compute = self.scheduler.compute
        started = time.perf_counter()
        self._progress("loading the model", 0.0)
        parameters = await compute.offload(self._load)
        loaded = time.perf_counter()
        self._progress("proving ranges", 0.0)
        config = self._checkpoint.config
        plan = await compute.offload(calibrate, config, parameters, self._texts)
        calibrated = time.perf_counter()
        await self._upload(plan, parameters)
        self._progress("waiting for the parties to take them in", 0.0)
        await self._wait_ready(plan)
        self.seconds = {
            "load": loaded - started,
            "calibrate": calibrated - loaded,
            "share": time.perf_counter() - calibrated,
        }
        await self.scheduler.wait_alone()

    def _load(self) -> dict[str, Any]:
        wanted = len(parameters_of(self._checkpoint.config))
        parameters = {}
        for name, matrix in load_parameters(self._checkpoint):
            parameters[name] = matrix
            self._progress("loading the model", len(parameters) / wanted)
        return parameters

    async def _upload(self, plan: Plan, parameters: dict[str, Floats]) -> None:
        digest = plan.digest()
        announcement = PlanMessage(plan=plan.to_public(), digest=digest).header()
        for role in self.scheduler.ports:
            await self.scheduler.send_control(role, announcement)
        seeds = [os.urandom(SEED_BYTES) for _ in EVALUATORS]
        for which, (seed, evaluator) in enumerate(zip(seeds, EVALUATORS, strict=True), start=1):
            header = SeedMessage(which=1 if which == 1 else 2).header()
            for role in (Role.DEALER, evaluator):
                await self.scheduler.send_control(role, header, [seed])
        wanted = parameters_of(plan.config)
        for number, (name, parameter) in enumerate(wanted.items()):
            matrix = parameters.pop(name)  # freed as we go
            mask = partial(mask_parameter, name, number, parameter.kind, matrix, seeds)
            await self._send_tensor(number, await self.scheduler.compute.offload(mask))
            self._progress("sharing the weights", (number + 1) / len(wanted))
        for role in COMPUTING:
            await self.scheduler.send_control(role, UploadedMessage().header())

    async def _send_tensor(self, number: int, masked: Words) -> None:
        flat = np.ascontiguousarray(masked).reshape(masked.shape[0], -1)
        frames = (self.scheduler.port(role).channel.frame_bytes for role in EVALUATORS)
        rows = max(1, (min(CHUNK_BYTES, *frames) - FRAME_OVERHEAD) // flat[0].nbytes)
        for start in range(0, len(flat), rows):
            part = flat[start : start + rows]
            header = TensorMessage(number=number, start=start, rows=len(part)).header()
            buffer = part.reshape(-1).astype("<u8", copy=False).view(np.uint8)
            for evaluator in EVALUATORS:
                await self.scheduler.send_control(evaluator, header, [buffer])

    async def _wait_ready(self, plan: Plan) -> None:
        waiting = set(COMPUTING)
        while waiting:
            role, header, _ = await self.scheduler.control()
            self._check_ready(role, header, plan.digest())
            waiting.discard(role)

    def _check_ready(self, role: Role, header: Mapping[str, Any], digest: str) -> None:
        message = parse(header)
        if not isinstance(message, ReadyMessage) or message.digest != digest:
            raise RemoteProtocolError(f"{role} did not accept the model that was sent")
