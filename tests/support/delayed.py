"""Any transport with connections as slow as a route."""

from puma_actors.transports.base import Channel, Listener, Transport
from puma_actors.transports.delay.channel import DelayedChannel, Line
from puma_actors.transports.delay.network import Route


class DelayedListener(Listener):
    """Accepts connections as slow as `route`."""

    def __init__(self, inner: Listener, route: Route, seed: int) -> None:
        self.inner = inner
        self.address = inner.address
        self._route = route
        self._seed = seed

    async def accept(self) -> Channel:
        return DelayedChannel(await self.inner.accept(), Line(self._route, f"{self._seed}/in"))

    async def aclose(self) -> None:
        await self.inner.aclose()


class DelayedTransport(Transport):
    """Another transport whose connections are separate links, each as slow as `route`.

    Args:
        inner: what carries the frames.
        route: latency, bandwidth and jitter.
        seed: of the jitter.
    """

    def __init__(self, inner: Transport, route: Route, *, seed: int = 0) -> None:
        self._inner = inner
        self._route = route
        self._seed = seed

    async def connect(self, address: str) -> Channel:
        channel = await self._inner.connect(address)
        return DelayedChannel(channel, Line(self._route, f"{self._seed}/out"))

    async def listen(self, address: str) -> Listener:
        return DelayedListener(await self._inner.listen(address), self._route, self._seed)
