"""The model owner: reads a checkpoint, calibrates, shares the weights, and leaves."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import anyio

from models.checkpoints.in_memory import open_model
from models.checkpoints.weights import Checkpoint
from models.owner.calibrate import calibrate
from models.programs.families import LazyParameters, load_parameters, parameters_of
from models.programs.folding import Source
from models.programs.plan import Plan, Weights
from protocols.base.ring import Floats
from protocols.base.shares import Role
from protocols.errors import ConfigError
from puma_actors.roles.actor import Actor, ActorOptions
from puma_actors.roles.sending import Delivery, ForSession, Progress, Sending

__all__ = ["Owner", "Progress", "check_opened", "ignore_progress"]


def ignore_progress(what: str, fraction: float) -> None:
    """A `Progress` that does nothing."""


def check_opened(checkpoint: object) -> None:
    """Raise ConfigError for anything but an open checkpoint, such as a model."""
    if not isinstance(checkpoint, Checkpoint):
        raise ConfigError(
            f"the checkpoint is {type(checkpoint).__name__}: use from_model(model) for a model in "
            "memory, or open it (open_model, open_checkpoint)"
        )


class Owner(Actor):
    """Uploads one model, then stays until the others leave.

    Args:
        checkpoint: the model.
        texts: token ids of texts on which precision is tested, in addition to made-up tokens (see
            `models.owner.probe`).
        progress: called while loading and sharing.
        delivery: how the parties get the model; None: for this session only.
        weights: whether the parties know them.
        sources: what public weights are made of (`sources_of`), to be sent to the parties; empty:
            they have them already.
        lazy: read each matrix from the checkpoint whenever it is needed, several times in all,
            instead of keeping all of them in memory.
        plan: known for exactly these weights; None: it is made here.

    Attributes:
        seconds: how many seconds loading, calibrating and sharing took.
        delivered: set when the parties have the model and `seconds` is known.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        options: ActorOptions | None = None,
        *,
        texts: Sequence[Sequence[int]] = (),
        progress: Progress = ignore_progress,
        delivery: Delivery | None = None,
        weights: Weights = "private",
        sources: Sequence[tuple[str, Source]] = (),
        lazy: bool = False,
        plan: Plan | None = None,
    ) -> None:
        check_opened(checkpoint)
        super().__init__(Role.OWNER, options)
        self._plan = plan
        self._checkpoint = checkpoint
        self._texts = texts
        self._progress = progress
        self._delivery = delivery or ForSession()
        self._weights: Weights = weights
        self._sources = sources
        self._lazy = lazy
        self.seconds: dict[str, float] = {}
        self.delivered = anyio.Event()

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
        """The owner of a transformers model in memory; see
        `models.checkpoints.in_memory.open_model`. Raises ConfigError or ModelError.
        """
        return cls(open_model(model, head=head), options, texts=texts, progress=progress)

    async def main(self) -> None:
        compute = self.scheduler.compute
        started = time.perf_counter()
        self._progress("loading the model", 0.0)
        parameters: Mapping[str, Floats] = (
            LazyParameters(self._checkpoint, self._looked_up())
            if self._lazy
            else await compute.offload(self._load)
        )
        parameters = self._delivery.watched(parameters)
        loaded = time.perf_counter()
        plan = self._plan
        if plan is None:
            plan = await compute.offload(self._calibrated, parameters)
        calibrated = time.perf_counter()
        if self._weights == "public" and isinstance(parameters, dict):
            parameters.clear()  # the parties use the checkpoint's own bytes
        sending = Sending(self.scheduler, plan, parameters, self._progress, self._sources)
        await self._delivery.deliver(sending)
        self.seconds = {
            "load": loaded - started,
            "calibrate": calibrated - loaded,
            "share": time.perf_counter() - calibrated,
        }
        self.delivered.set()
        await self.scheduler.wait_alone()

    def _calibrated(self, parameters: Mapping[str, Floats]) -> Plan:
        self._progress("proving ranges", 0.0)
        checkpoint = self._checkpoint
        return replace(
            calibrate(checkpoint.config, parameters, self._texts),
            sentences=checkpoint.sentences,
            ranking=checkpoint.ranking,
            weights=self._weights,
        )

    def _looked_up(self) -> Callable[[str], None]:
        return (lambda name: None) if self._plan is not None else self._counted()

    def _counted(self) -> Callable[[str], None]:
        """Report progress while matrices are looked up to prove ranges: about three times each."""
        whole, done = 3 * len(parameters_of(self._checkpoint.config)), 0

        def looked_up(name: str) -> None:
            nonlocal done
            done += 1
            if done <= whole:
                self._progress("proving ranges", done / whole)

        return looked_up

    def _load(self) -> dict[str, Any]:
        wanted = len(parameters_of(self._checkpoint.config))
        parameters = {}
        for name, matrix in load_parameters(self._checkpoint):
            parameters[name] = matrix
            self._progress("loading the model", len(parameters) / wanted)
        return parameters
