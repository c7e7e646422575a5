"""A text about the request that runs: how far it is, and how long the rest may take."""

import time
from collections.abc import Callable

from models.programs.predict import predict
from protocols.base.cost import Cost, Traffic
from protocols.base.lane import Lane, Link
from puma_actors.api.requests import Requests, Step
from puma_actors.cli.output import amount
from puma_actors.cli.progress import duration, joined, left

_PATIENCE = 2.0
"""What takes no longer is not worth a prediction, which takes a moment itself."""


class _OverError(Exception):
    """The step that was to be predicted is over."""


class Following:
    """Called, it describes the step that runs now.

    Rounds are predicted exactly, and in this process counted as well. A client of parties elsewhere
    sees its own messages alone, so that it can tell what a prompt costs, and not how far it is.

    Args:
        share: tokens that earlier batches of the same work had, and tokens of all of them.
    """

    def __init__(
        self, requests: Requests, share: Callable[[], tuple[int, int]] = lambda: (0, 0)
    ) -> None:
        self._requests = requests
        self._share = share
        self._began = time.monotonic()
        self._known: dict[int, Cost] = {}
        self._most = (0, 0)  # a step's number, and the most rounds that were counted of it

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
            return joined(what, f"{rounds} and {bytes_} to go through", f"{spent:.0f} s")
        number, most = self._most
        done = max(done, most) if number == step.number else done  # a party that is done has none
        self._most = (step.number, done)
        fraction = min(done / max(1, cost.rounds), 1.0)
        before, all_tokens = self._share()
        if all_tokens > tokens:
            what = f"running the model on {all_tokens} tokens"
            fraction = (before + fraction * tokens) / all_tokens
            spent = time.monotonic() - self._began
        counted = f"{done:,} of {cost.rounds:,} rounds"
        rest = left(fraction, spent)  # before what a narrow terminal may cut off
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
        """None: it was over before."""
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
            """Gives up when nobody needs the prediction any more."""

            def note(self, label: str, cost: Cost) -> None:
                if requests.step is not step:
                    raise _OverError
                Traffic.note(self, label, cost)

        def lane_of(link: Link) -> Lane:
            link.traffic = Watched()
            return Lane(link)  # a plain one: layers that are alike are traced once

        return lane_of
