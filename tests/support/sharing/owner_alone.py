"""An owner in a process of its own, whose parties keep nothing: what it needs itself.

python tests/support/sharing/owner_alone.py MODEL FOLDER        prints bytes, as JSON
"""

import json
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio

from models.checkpoints.weights import open_checkpoint
from protocols.base.shares import COMPUTING
from protocols.kernels import warm_up
from puma_actors.hosts.unfinished import Record
from puma_actors.hosts.uploader import ForStores
from puma_actors.roles.actor import Actor, connect_all
from puma_actors.roles.messages import (
    CommitMessage,
    HeldMessage,
    PlanMessage,
    ReadyMessage,
    UploadedMessage,
    parse,
)
from puma_actors.roles.owner import Owner


class Sink(Actor):
    """A party that says yes to everything."""

    async def main(self) -> None:
        digest, left = "", 3
        while left:
            role, header, _ = await self.scheduler.control()
            message = parse(header)
            if isinstance(message, PlanMessage):
                digest = message.digest
                await self.scheduler.send_control(role, HeldMessage(tensors=[]).header())
            if isinstance(message, UploadedMessage | CommitMessage):
                left -= 1
                await self.scheduler.send_control(role, ReadyMessage(digest=digest).header())


def anonymous() -> int:
    """Bytes of this process that are not from files."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("RssAnon:"))
    return 1024 * int(line.split()[1])


async def main(model: Path, folder: Path) -> None:
    warm_up()
    config: Any = SimpleNamespace(folder=folder, parties=dict.fromkeys(COMPUTING, "here"))
    most = before = anonymous()

    def progress(what: str, fraction: float) -> None:
        nonlocal most
        most = max(most, anonymous())

    with open_checkpoint(model) as checkpoint, Record.of(config, "tiny") as record:
        delivery = ForStores({}, record, lambda *_: None)
        owner = Owner(checkpoint, delivery=delivery, lazy=True, progress=progress)
        actors = [owner, *map(Sink, COMPUTING)]
        await connect_all(actors)
        tracemalloc.start()
        async with anyio.create_task_group() as group:
            for actor in actors:
                group.start_soon(actor.run)
        traced = tracemalloc.get_traced_memory()[1]
    print(json.dumps({"anonymous": most - before, "traced": traced}))


if __name__ == "__main__":
    anyio.run(main, *map(Path, sys.argv[1:]))
