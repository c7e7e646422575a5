"""The shuffled event loop keeps what asyncio promises."""

import asyncio
import socket

import pytest
from chaos import Chaos
from waiting import in_time


def test_connects_end_although_their_sockets_have_the_numbers_of_others():
    """Some are answered and some refused; each next one gets the number of one that was closed."""

    async def connect(port: int) -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            return
        await reader.read()
        writer.close()
        await writer.wait_closed()

    async def client(ports: tuple[int, int], number: int) -> None:
        for count in range(10):
            await connect(ports[(number + count) % 2])

    async def clients() -> None:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            ports = server.sockets[0].getsockname()[1], nobody.getsockname()[1]
            with in_time():
                async with server, asyncio.TaskGroup() as group:
                    for number in range(8):
                        group.create_task(client(ports, number))

    with pytest.MonkeyPatch.context() as patch:
        chaos = Chaos(1)
        chaos.install(patch)
        chaos.begin("connects", still=False)
        asyncio.run(clients())


def test_steps_never_overtake_callbacks_that_were_ready_before_them():
    order: list[str] = []

    async def step(name: str) -> None:
        order.append(name)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        tasks = []
        for number in range(8):
            loop.call_soon(order.append, f"callback {number}")
            tasks.append(asyncio.create_task(step(f"step {number}")))
        await asyncio.gather(*tasks)

    shuffled = False
    for seed in range(5):
        order.clear()
        with pytest.MonkeyPatch.context() as patch:
            chaos = Chaos(seed)
            chaos.install(patch)
            chaos.begin("steps", still=False)
            asyncio.run(main())
        for number in range(8):
            assert order.index(f"callback {number}") < order.index(f"step {number}")
        steps = [each for each in order if each.startswith("step")]
        shuffled |= steps != sorted(steps)
    assert shuffled
