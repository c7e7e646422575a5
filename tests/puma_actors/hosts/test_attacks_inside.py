"""What hostile owners and clients try once they were let in."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacks import IDS, A, Change, D, serves
from hosts import hosts, quiet
from waiting import Stuck, in_time, unless_stuck, until

from models.programs.plan import Plan
from protocols.base.shares import COMPUTING, Role
from protocols.errors import PumaError
from puma_actors.api.remote import RemoteCluster
from puma_actors.roles.client import Client
from puma_actors.roles.messages import InferMessage
from puma_actors.roles.sending import Sending

# -- uploads ---------------------------------------------------------------------------------------


def plan_with(**changes: Any) -> Change:
    """An owner whose plan says something else than its tensors."""

    def change(to: Role, header: dict[str, Any], buffers: Sequence[Any]) -> Any:
        if header["do"] != "plan":
            return None
        public = {**header["plan"], "config": {**header["plan"]["config"], **changes}}
        digest = header["digest"]
        if not any(isinstance(value, str) for value in changes.values()):
            digest = Plan.from_public(public).digest()
        return {**header, "plan": public, "digest": digest}, buffers

    return change


def tensor_with(**changes: Any) -> Change:
    def change(to: Role, header: dict[str, Any], buffers: Sequence[Any]) -> Any:
        if header["do"] != "tensor":
            return None
        return {**header, **changes}, buffers

    return change


def seed_for_another(to: Role, header: dict[str, Any], buffers: Sequence[Any]) -> Any:
    return ({**header, "which": 3 - header["which"]}, buffers) if header["do"] == "seed" else None


def renamed(to: Role, header: dict[str, Any], buffers: Sequence[Any]) -> Any:
    name = "../manifest.json"
    return ({**header, "name": name}, buffers) if header["do"] == "file" else None


def commit_at_once(to: Role, header: dict[str, Any], buffers: Sequence[Any]) -> Any:
    return ({"do": "commit"}, ()) if header["do"] == "plan" else None


def uploaded_at_once(to: Role, header: dict[str, Any], buffers: Sequence[Any]) -> Any:
    return ({"do": "uploaded"}, ()) if header["do"] == "seed" else None


UPLOADS = (
    (plan_with(intermediate_size=64), r"has \d+ bytes for \d+ rows"),
    (plan_with(vocab_size=400), r"has \d+ bytes for \d+ rows"),
    (uploaded_at_once, "is missing"),
    (plan_with(vocab_size=1 << 22, hidden_size=1 << 16), "raise limits.memory"),
    (plan_with(vocab_size="many"), "plan is unusable"),
    (tensor_with(rows=10**6), "came out of order or twice"),
    (tensor_with(start=5), "came out of order or twice"),
    (tensor_with(number=999), "tensor 999 is not expected"),
    (tensor_with(number=1 << 40), "malformed request"),
    (seed_for_another, "is not for evaluator"),
    (renamed, "malformed request"),
    (commit_at_once, "before a plan"),
)


def held(store: Path) -> list[str]:
    return [path.name for path in store.iterdir()]


async def test_uploads_that_do_not_fit_together(
    folder: Path,
    certificates: Path,
    model: Path,
    lying: Callable[[Role, Change], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Sending, "check_ready", lambda *_: None)  # it knows better
    async with hosts(folder, certificates, "unix") as cluster:
        for change, reason in UPLOADS:
            lying(Role.OWNER, change)
            with in_time(), pytest.raises(PumaError, match=reason):
                await cluster.upload(model)
            await quiet(cluster)
            for role in COMPUTING:  # what had come is removed on a thread
                await until(lambda store=folder / f"{role}-store": held(store) == [".lock"])
        lying(Role.OWNER, lambda *_: None)
        await cluster.upload(model)
        await serves(cluster)


# -- requests --------------------------------------------------------------------------------------


async def test_a_request_before_the_parties_agree(
    folder: Path,
    certificates: Path,
    model: Path,
    lying: Callable[[Role, Change], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client that does not wait, while a party keeps its word back."""
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)

        async def at_once(self: Client) -> None:
            infer = InferMessage(number=0, lengths=[3], steps=1).header()
            await self.scheduler.send_control(D, infer)
            await waiting(self)

        waiting = Client.wait_ready
        other = {"do": "agree", "digest": "0" * 64, "upload": "0" * 32, "tables": {}}
        with monkeypatch.context() as patch:
            patch.setattr(Client, "wait_ready", at_once)
            lying(A, lambda to, header, _: (other, ()) if header["do"] == "agree" else None)
            with (
                in_time(),
                pytest.raises(PumaError, match=r"before the parties agreed|different uploads"),
            ):
                async with await RemoteCluster.open(cluster.client, "tiny"):
                    pass
        lying(A, lambda *_: None)
        await serves(cluster)


def infer_with(to: Role | None = None, **changes: Any) -> Change:
    """A client that asks all parties, or one, for something else than it should."""

    def change(receiver: Role, header: dict[str, Any], buffers: Sequence[Any]) -> Any:
        if header["do"] != "infer" or to not in (None, receiver):
            return None
        return {**header, **changes}, buffers

    return change


REQUESTS = (
    (infer_with(types=[5, 5, 5]), "token types go up to"),
    (infer_with(types=[1 << 20] * 3), "malformed request, infer.types"),
    (infer_with(types=[0]), "unusable batch"),
    (infer_with(rows="mean"), "request is unusable"),
    (infer_with(rows="everything"), "malformed request, infer.rows"),
    (infer_with(lengths=[]), "malformed request, infer.lengths"),
    (infer_with(lengths=[1 << 40]), "malformed request, infer.lengths"),
    (infer_with(lengths=[1 << 20]), "more than 2048 tokens"),
    (infer_with(lengths=[1] * 4096), "more than 2048 tokens"),
    (infer_with(lengths=[65]), "more than 64 positions"),
    (infer_with(steps=1 << 20), "more than 2048 tokens"),
    (infer_with(number=-1), "malformed request, infer.number"),
    (infer_with(number=1 << 63), "malformed request, infer.number"),
    (infer_with(lanes=1 << 20), "malformed request, infer.lanes"),
)


async def test_requests_out_of_range(
    folder: Path, certificates: Path, model: Path, lying: Callable[[Role, Change], None]
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        for change, reason in REQUESTS:
            lying(Role.CLIENT, change)
            with in_time(), pytest.raises(PumaError, match=reason):
                async with await RemoteCluster.open(cluster.client, "tiny") as remote:
                    await remote.forward(IDS)
        lying(Role.CLIENT, lambda *_: None)
        await serves(cluster)


async def test_a_client_that_tells_the_parties_different_things(
    folder: Path, certificates: Path, model: Path, lying: Callable[[Role, Change], None]
) -> None:
    """An error, silence that ends with its own leaving, or noise: never logits of the model. That
    the masks are bound to the request shows where no shape betrays the lie (`steps`).
    """
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            wanted = await remote.forward(IDS)
        results, silent = [], set()
        for to in COMPUTING:
            for changes in ({"lengths": [4]}, {"reveal": "argmax"}, {"number": 9}, {"steps": 2}):
                lying(Role.CLIENT, infer_with(to, **changes))
                try:
                    async with await RemoteCluster.open(cluster.client, "tiny") as remote:
                        results.append((*changes, await unless_stuck(remote.forward(IDS))))
                except PumaError:
                    pass
                except Stuck:
                    silent.add((*changes, to))
        assert silent >= {("number", to) for to in COMPUTING}
        assert sum(lie == "steps" for lie, _ in results) == len(COMPUTING)
        assert all(np.abs(result - wanted).max() > 1e3 for _, result in results)
        lying(Role.CLIENT, lambda *_: None)
        await serves(cluster)


async def test_an_inference_number_twice(
    folder: Path, certificates: Path, model: Path, lying: Callable[[Role, Change], None]
) -> None:
    """Masks would repeat."""
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            await remote.forward(IDS)
        with pytest.raises(PumaError, match="inference 0 is not new"), in_time():
            async with await RemoteCluster.open(cluster.client, "tiny") as remote:
                await remote.forward(IDS)
                lying(Role.CLIENT, infer_with(number=0))
                await remote.forward(IDS)
        lying(Role.CLIENT, lambda *_: None)
        await serves(cluster)


async def test_more_inferences_at_once_than_was_set_aside_for(
    folder: Path, certificates: Path, model: Path
) -> None:
    extra = "[limits]\ninference_tokens = 50\n"
    async with hosts(folder, certificates, "unix", extra) as cluster:
        await cluster.upload(model)
        with pytest.raises(PumaError, match="more than 50 tokens at once"), in_time():
            async with await RemoteCluster.open(cluster.client, "tiny") as remote:
                for number in range(6):
                    infer = InferMessage(number=number, lengths=[10], steps=1).header()
                    await remote.client.scheduler.send_control(D, infer)
                await remote.forward(IDS)
        await serves(cluster)


STRANGE: tuple[dict[str, Any], ...] = (
    {"do": "plan", "plan": {}, "digest": "0" * 64},
    {"do": "seed", "which": 1},
    {"do": "commit"},
    {"do": "agree", "digest": "0" * 64, "upload": "0" * 32, "tables": {}},
    {"do": "end", "number": 5},
    {"do": "rm -rf"},
    {},
)


async def test_requests_that_are_not_a_clients(
    folder: Path, certificates: Path, model: Path
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        for header in STRANGE:
            wrong = r"may not send|malformed|not running"
            with in_time(), pytest.raises(PumaError, match=wrong):
                async with await RemoteCluster.open(cluster.client, "tiny") as remote:
                    await remote.client.scheduler.send_control(A, header)
                    await remote.forward(IDS)
        await serves(cluster)
