"""Counts for Prometheus, under vLLM's names where it has one, with `puma_` before them.

Every gateway has a registry of its own. Labels are names of models, phases, roles, reasons from our
own lists: nothing that a request says.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from protocols.base.shares import Role
from puma_actors.api.usage import Token, Usage
from puma_actors.roles.peers import Exchanged
from puma_actors.serve.counting.meter import Counted, Meter
from puma_actors.serve.served import Served

_MODEL = "model_name"
_LONG = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 240, 360, 480, 600)
_SHORT = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Buckets in seconds: of whole requests, and of what comes between two tokens."""


class Prometheus(Meter):
    """See the module docstring.

    Args:
        served: the models, by name.
        expiry: for each, the days until certificates expire, by holder.
    """

    def __init__(
        self,
        served: Mapping[str, Served],
        expiry: Callable[[Served], Mapping[str, float]],
    ) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(_Now(served, expiry))
        self.first = self._seconds("time_to_first_token", "To the first token.", _LONG)
        self.between = self._seconds("inter_token_latency", "Between two tokens.", _SHORT)
        self.whole = self._seconds("e2e_request_latency", "Of whole requests.", _LONG)
        self.queue = self._seconds("request_queue_time", "In the queue.", _LONG)
        self.prompt = self._counter("prompt_tokens", "Tokens of prompts.")
        self.generated = self._counter("generation_tokens", "Tokens of answers.")
        self.done = self._counter("request_success", "Whole answers.", "finished_reason")
        self.gone = self._counter("requests_cancelled", "Given up by their clients.")
        self.rounds = self._counter("rounds", "Rounds of communication between the parties.")
        self.bytes = self._counter("bytes", "Sent by all parties together.", "phase")
        self.peer_bytes = self._counter(
            "peer_bytes", "Between this gateway and each party.", "peer", "direction"
        )
        self.peer_wait = self._counter(
            "peer_wait_seconds", "In which a request could not go on without a party.", "peer"
        )
        self._refused = Counter(
            "puma_requests_refused",
            "Refused or failed, by reason.",
            ["reason"],
            registry=self._registry,
        )
        for model in served:  # so that they are there from the start
            for each in (self.prompt, self.generated, self.gone, self.rounds):
                each.labels(model)

    def _seconds(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"puma_{name}_seconds",
            f"Seconds. {text}",
            [_MODEL],
            buckets=buckets,
            registry=self._registry,
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"puma_{name}", text, [_MODEL, *labels], registry=self._registry)

    def came(self, model: str) -> Counted:
        return _Request(self, model)

    def refused(self, reason: str) -> None:
        self._refused.labels(reason).inc()

    def page(self) -> tuple[bytes, str]:
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _Request(Counted):
    def __init__(self, meter: Prometheus, model: str) -> None:
        self._meter = meter
        self._model = model
        self._came = time.monotonic()
        self._called = False
        self._last: float | None = None  # when the last token came

    def called(self) -> None:
        if not self._called:
            self._called = True
            self._meter.queue.labels(self._model).observe(time.monotonic() - self._came)

    def took(self, token: Token) -> None:
        if token.id is None:
            return
        now = time.monotonic()
        if self._last is None:
            self._meter.first.labels(self._model).observe(now - self._came)
        else:
            self._meter.between.labels(self._model).observe(now - self._last)
        self._last = now
        self._meter.generated.labels(self._model).inc()

    def cost(self, usage: Usage) -> None:
        total = usage.total
        if usage.steps:
            self._meter.prompt.labels(self._model).inc(len(usage.prompt_ids))
        self._meter.rounds.labels(self._model).inc(total.rounds)
        self._meter.bytes.labels(self._model, "online").inc(total.online)
        self._meter.bytes.labels(self._model, "dealt").inc(total.offline)

    def exchanged(self, peers: Mapping[Role, Exchanged]) -> None:
        for role, each in peers.items():
            peer, count = str(role), self._meter.peer_bytes.labels
            count(self._model, peer, "sent").inc(each.sent)
            count(self._model, peer, "received").inc(each.received)
            self._meter.peer_wait.labels(self._model, peer).inc(each.waited)

    def answered(self, reason: str) -> None:
        self._meter.done.labels(self._model, reason).inc()
        self._meter.whole.labels(self._model).observe(time.monotonic() - self._came)

    def cancelled(self) -> None:
        self._meter.gone.labels(self._model).inc()


class _Now(Collector):
    """What is the case when somebody asks."""

    def __init__(
        self, served: Mapping[str, Served], expiry: Callable[[Served], Mapping[str, float]]
    ) -> None:
        self._served = served
        self._expiry = expiry

    def collect(self) -> Iterable[Metric]:
        """The gauges."""
        yield self._gauge("num_requests_running", "Being computed.", lambda each: each.running)
        yield self._gauge("num_requests_waiting", "In the queue.", lambda each: each.waiting)
        yield self._gauge("sessions", "Open with the parties.", lambda each: each.sessions)
        yield self._gauge("ready", "1 if a request can be computed.", lambda each: each.ready)
        days = GaugeMetricFamily(
            "puma_certificate_expiry_days", "Until it expires.", labels=[_MODEL, "holder"]
        )
        for name, each in self._served.items():
            for holder, left in self._expiry(each).items():
                days.add_metric([name, holder], left)
        yield days
        tasks = len(asyncio.all_tasks())
        yield GaugeMetricFamily("puma_tasks", "Tasks of the gateway's event loop.", value=tasks)

    def _gauge(self, name: str, text: str, value: Callable[[Served], float]) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"puma_{name}", text, labels=[_MODEL])
        for model, each in self._served.items():
            family.add_metric([model], value(each))
        return family
