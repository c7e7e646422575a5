"""A status text for the running request: its progress, and the time left."""

import time
from collections.abc import Callable

from models.programs.predict import predict
from protocols.base.cost import Cost, Traffic
from protocols.base.lane import Lane, Link
from puma_actors.api.requests import Requests, Step
from puma_actors.cli.output import amount
from puma_actors.cli.progress import duration, joined, left

_PATIENCE = 2.0
"""Seconds; shorter steps are not predicted, because a prediction takes a moment itself."""


class _OverError(Exception):
    """The step to be predicted is already over."""


class Following:
    """A callable that describes the running step.

    Rounds are predicted exactly, and counted: in this process, or by evaluator A, which tells them.

    Args:
        share: tokens of earlier batches of the same work, and tokens of all batches.
    """

    def __init__(
        self, requests: Requests, share: Callable[[], tuple[int, int]] = lambda: (0, 0)
    ) -> None:
        self._requests = requests
        self._share = share
        self._began = time.monotonic()
        self._known: dict[int, Cost] = {}
        self._most = (0, 0)  # a step's number, and its largest count of rounds so far

    def __call__(self) -> str:
        step = self._requests.step
        if step is None:
            return f"running the model on shares · {time.monotonic() - self._began:.0f} s"
        return self._first(step) if step.index == 0 else self._later(step)

    def _first(self, step: Step) -> str:
        tokens, spent = step.batch.tokens, time.monotonic() - step.began
        what = f"running the model on {tokens} tokens"
        cost = self._predicted(step) if spent >= _PATIENCE else None
        if cost is None:
            return joined(what, f"{spent:.0f} s")
        done = self._requests.rounds_done()
        if done is None:
            rounds, bytes_ = f"{cost.rounds:,} rounds", f"{amount(cost.online)} online"
            return joined(what, f"{rounds} and {bytes_} in total", f"{spent:.0f} s")
        number, most = self._most
        done = max(done, most) if number == step.number else done  # a finished party has none
        self._most = (step.number, done)
        fraction = min(done / max(1, cost.rounds), 1.0)
        before, all_tokens = self._share()
        if all_tokens > tokens:
            what = f"running the model on {all_tokens} tokens"
            fraction = (before + fraction * tokens) / all_tokens
            spent = time.monotonic() - self._began
        counted = f"{done:,} of {cost.rounds:,} rounds"
        rest = left(fraction, spent)  # before the part that a narrow terminal may cut off
        return joined(what, f"{fraction:.0%}", counted, rest, f"{spent:.0f} s")

    def _later(self, step: Step) -> str:
        usage = self._requests.usage
        decode, count = usage.seconds.get("decode", 0.0), len(usage.token_ids)
        spent = f"{time.monotonic() - self._began:.0f} s"
        if count < 2 or not decode:
            return joined("first token", f"at most {step.steps}", spent)
        rate = (count - 1) / decode
        rest = f"at most {duration((step.steps - count) / rate)} left"
        return joined(f"{count} tokens", f"{rate:.2f} tokens/s", spent, rest)

    def _predicted(self, step: Step) -> Cost | None:
        """The predicted cost; None if the step ended first."""
        if step.number not in self._known:
            try:
                found = predict(
                    self._requests.plan,
                    step.batch,
                    settings=step.settings,
                    lane_of=self._lane_of(step),
                )
            except _OverError:
                return None
            self._known[step.number] = found[0].cost
        return self._known[step.number]

    def _lane_of(self, step: Step) -> Callable[[Link], Lane]:
        requests = self._requests

        class Watched(Traffic):
            """Gives up once the prediction is no longer needed."""

            def note(self, label: str, cost: Cost) -> None:
                if requests.step is not step:
                    raise _OverError
                Traffic.note(self, label, cost)

        def lane_of(link: Link) -> Lane:
            link.traffic = Watched()
            return Lane(link)  # a plain lane: equal layers are traced only once

        return lane_of
