"""Uploads that are cut, and what they have sent."""

import hashlib
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from hosts import Hosts, list_models, quiet
from waiting import until

from protocols.base.shares import EVALUATORS, Role
from puma_actors.api.remote import RemoteCluster
from puma_actors.hosts import unfinished
from puma_actors.hosts.stores.incoming import FOLDER
from puma_actors.hosts.stores.manifest import words_file
from puma_actors.roles import sending
from puma_actors.roles.sending import Sending

IDS = [1, 3, 7]
CUT = 5
"""The number of the tensor at which uploads are cut."""
RECORD = Path(unfinished.FOLDER) / "tiny.json"


class Sent:
    """The tensors that were masked and sent. No stream may mask two models."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: dict[tuple[bytes, ...], str] = {}
        self.rows = 0
        mask, send = sending.mask_parameter, Sending.tensor

        def masked(name: str, number: int, kind: Any, matrix: Any, seeds: Any) -> Any:
            digest = hashlib.sha256(np.ascontiguousarray(matrix).tobytes()).hexdigest()
            for seed in seeds:
                assert self.seen.setdefault((seed, bytes([number])), digest) == digest
            return mask(name, number, kind, matrix, seeds)

        async def sent(this: Sending, number: int, words: Any, starts: Any, most: Any) -> None:
            self.rows += sum(len(words) - starts[role] for role in EVALUATORS)
            await send(this, number, words, starts, most)

        monkeypatch.setattr(sending, "mask_parameter", masked)
        monkeypatch.setattr(Sending, "tensor", sent)

    @property
    def seeds(self) -> set[bytes]:
        return {seed for seed, _ in self.seen}


class Already:
    """What an upload says that was there: bytes of how many."""

    def __init__(self) -> None:
        self.said: list[tuple[int, int]] = []

    def __call__(self, held: int, whole: int) -> None:
        self.said.append((held, whole))


async def cut(cluster: Hosts, model: Path) -> None:
    """An upload whose owner goes away when the evaluators have the first tensors."""
    usual = Sending.tensor
    last = [part(cluster.folder, role) / words_file(CUT - 1) for role in EVALUATORS]

    async def tensor(this: Sending, number: int, *rest: Any) -> None:
        if number == CUT:
            await until(lambda: all(file.exists() and file.stat().st_size for file in last))
            scope.cancel()
        await usual(this, number, *rest)

    with anyio.CancelScope() as scope, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sending, "tensor", tensor)
        await cluster.upload(model)
    assert scope.cancelled_caught
    await quiet(cluster)
    assert await list_models(cluster.client) == {}


async def answers(cluster: Hosts, wanted: np.ndarray) -> None:
    async with await RemoteCluster.open(cluster.client, "tiny") as remote:
        assert np.abs(await remote.forward(IDS) - wanted).max() < 0.05
    await quiet(cluster)


async def continued(cluster: Hosts, model: Path, wanted: np.ndarray) -> int:
    """Upload again, by the same call; the bytes that were there."""
    already = Already()
    await cluster.upload(model, already=already)
    ((held, whole),) = already.said
    assert 0 <= held <= whole
    await answers(cluster, wanted)
    assert not (cluster.folder / RECORD).exists()
    return held


def part(folder: Path, role: Role) -> Path:
    return folder / f"{role}-store" / FOLDER / "tiny"
