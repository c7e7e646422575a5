"""Public weights that are not what they should be: refused by name, when they are uploaded or
loaded, or when a session starts.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacks import IDS, A, B, Change, D, serves
from hosts import hosts, list_models, quiet
from tiny_models import save, tiny_model
from waiting import in_time

from models.programs.plan import Plan
from protocols.base.shares import COMPUTING, Role
from protocols.errors import ConfigError, PeerFailed, PumaError, StoreError
from puma_actors.api import remote
from puma_actors.api.remote import RemoteCluster
from puma_actors.hosts.caller import problem_of, remove_model
from puma_actors.hosts.stores.manifest import MANIFEST, FileEntry
from puma_actors.roles import public_sending
from puma_actors.roles.messages import SeedMessage, TensorMessage, UploadedMessage
from puma_actors.roles.sending import Sending

FILE = "00003.matrix"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny_model("llama", "causal-lm").to(torch.bfloat16)
    return save(made, tmp_path_factory.mktemp("public"))


def flip(path: Path) -> None:
    """One bit of the last byte."""
    with path.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))


# -- uploads ---------------------------------------------------------------------------------------

TABLE, QKV, OUTPUT, NORM = 0, 1, 2, 9


def only(do: str, number: int, change: Callable[[dict[str, Any], Sequence[Any]], Any]) -> Change:
    """Change one kind of message of one tensor."""

    def changed(to: Role, header: dict[str, Any], buffers: Sequence[Any]) -> Any:
        fits = header["do"] == do and header["number"] == number
        return change(header, buffers) if fits else None

    return changed


def described(number: int, **changes: Any) -> Change:
    """Another first part."""

    def change(header: dict[str, Any], buffers: Sequence[Any]) -> Any:
        first, *rest = header["made"]["parts"]
        made = {**header["made"], "parts": [{**first, **changes}, *rest]}
        return {**header, "made": made}, buffers

    return only("matrix", number, change)


def bytes_as(number: int, change: Callable[[bytes], bytes]) -> Change:
    """Another first piece."""

    def changed(header: dict[str, Any], buffers: Sequence[Any]) -> Any:
        return None if header["start"] else (header, [change(bytes(buffers[0]))])

    return only("piece", number, changed)


def both(*changes: Change) -> Change:
    def change(to: Role, header: dict[str, Any], buffers: Sequence[Any]) -> Any:
        found = [made(to, header, buffers) for made in changes]
        return next((each for each in found if each is not None), None)

    return change


def planned(**changes: Any) -> Change:
    """Another plan, correctly announced."""

    def change(to: Role, header: dict[str, Any], buffers: Sequence[Any]) -> Any:
        if header["do"] != "plan":
            return None
        public = {**header["plan"], "config": {**header["plan"]["config"], **changes}}
        if not changes:
            del public["weights"]
        return {**header, "plan": public, "digest": Plan.from_public(public).digest()}, buffers

    return change


def instead(number: int, message: Any, *sent: bytes) -> Change:
    return only("matrix", number, lambda *_: (message.header(), sent))


NAN = np.float32(np.nan).tobytes()
ORDER = np.zeros(16, "<u4").tobytes()
UPLOADS: dict[str, tuple[Change, str]] = {
    "fewer bytes": (bytes_as(TABLE, lambda data: data[:-2]), "table came with 2 bytes too few"),
    "more bytes": (
        bytes_as(TABLE, lambda data: data + bytes(2)),
        "table came with 1282 bytes, 1280 are missing",
    ),
    "a wider kind": (described(TABLE, kind="f32"), "table came with 1280 bytes too few"),
    "no such kind": (described(TABLE, kind="q5_1"), "malformed request"),
    "blocks that do not fit": (described(TABLE, kind="q8_0"), "table is described .* be q8_0"),
    "more outputs": (described(TABLE, outputs=10**6), "do not make 40 x 16 numbers"),
    "a factor that is no number": (
        bytes_as(QKV, lambda data: NAN + data[4:]),
        "the owner's layers.0.qkv is unusable: a row factor is not finite",
    ),
    "a weight that is no number": (
        bytes_as(OUTPUT, lambda data: b"\xff" * len(data)),
        "the owner's layers.0.output is unusable: entries are not finite",
    ),
    "a gain that is no number": (
        bytes_as(NORM, lambda data: NAN + data[4:]),
        "the owner's norm is unusable: nan does not fit",
    ),
    "no permutation": (
        both(described(OUTPUT, ordered=True), bytes_as(OUTPUT, lambda data: ORDER + data)),
        "layers.0.output is unusable: the order of 16 outputs is not a permutation",
    ),
    "another place": (
        only("matrix", QKV, lambda header, buffers: ({**header, "number": 7}, buffers)),
        "tensor 7 is not expected",
    ),
    "a seed": (instead(TABLE, SeedMessage(which=1), bytes(32)), "a seed for public weights"),
    "masked words": (
        instead(TABLE, TensorMessage(number=0, start=0, rows=40), bytes(8 * 640)),
        "masked words for public weights",
    ),
    "nothing": (instead(TABLE, UploadedMessage()), "table is not complete"),
    "not all": (instead(NORM, UploadedMessage()), "norm is not complete"),
    "a private plan": (planned(), "may not send a 'matrix' request"),
    "a huge plan": (planned(vocab_size=1 << 22), "raise limits.memory"),
}


async def test_uploads_that_do_not_fit_the_plan(
    folder: Path,
    certificates: Path,
    model: Path,
    lying: Callable[[Role, Change], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Sending, "check_ready", lambda *_: None)  # it knows better
    async with hosts(folder, certificates, "unix", "[limits]\nmemory = 67108864\n") as cluster:
        for number, (change, reason) in enumerate(UPLOADS.values()):
            lying(Role.OWNER, change)
            with in_time(), pytest.raises(PumaError, match=reason):
                await cluster.upload(model, f"tiny{number}", public_weights=True)
            await quiet(cluster)
            for role in COMPUTING:
                assert cluster.servers[role].store.names() == []


async def test_weights_for_the_dealer(
    folder: Path, certificates: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public_sending, "EVALUATORS", COMPUTING)
    async with hosts(folder, certificates, "unix") as cluster:
        with in_time(), pytest.raises(PumaError, match=r"dealer failed.*tensor 0 is not expected"):
            await cluster.upload(model, public_weights=True)
        await quiet(cluster)


async def test_the_owner_looks_first(folder: Path, certificates: Path) -> None:
    made = tiny_model("llama", "causal-lm")
    with torch.no_grad():
        made.lm_head.weight[3, 4] = 1e6
    model = save(made, folder / "model")
    async with hosts(folder, certificates, "unix") as cluster:
        with in_time(), pytest.raises(PumaError, match="head"):
            await cluster.upload(model, public_weights=True)
        await quiet(cluster)
        assert await list_models(cluster.client) == {}


# -- different weights -----------------------------------------------------------------------------


def one_byte_for_b(to: Role, header: dict[str, Any], buffers: Sequence[Any]) -> Any:
    if to is not B or header["do"] != "piece" or header["number"] != OUTPUT:
        return None
    data = bytearray(buffers[0])
    data[0] ^= 1
    return header, [bytes(data)]


DIFFERENT = "evaluator-a and evaluator-b hold different public weights"


async def test_different_weights_are_refused_by_the_client(
    folder: Path,
    certificates: Path,
    model: Path,
    lying: Callable[[Role, Change], None],
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        lying(Role.OWNER, one_byte_for_b)
        await cluster.upload(model, public_weights=True)
        with pytest.raises(ConfigError, match=DIFFERENT):
            await RemoteCluster.open(cluster.client, "tiny")
        held = (await list_models(cluster.client))["tiny"]
        assert problem_of(held) == "the evaluators hold different public weights"
        lying(Role.OWNER, lambda *_: None)
        found = await remove_model(cluster.client, "tiny")
        assert {each.weights for each in found.values()} == {"public"}
        await cluster.upload(model, public_weights=True)
        await serves(cluster)


async def test_different_weights_are_refused_by_the_parties(
    folder: Path,
    certificates: Path,
    model: Path,
    lying: Callable[[Role, Change], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the client does not look."""
    monkeypatch.setattr(remote, "agreed_plan", lambda calls: (plan_of(calls), 2048))
    async with hosts(folder, certificates, "unix") as cluster:
        lying(Role.OWNER, one_byte_for_b)
        await cluster.upload(model, public_weights=True)
        with in_time(), pytest.raises(PumaError, match=DIFFERENT):
            async with await RemoteCluster.open(cluster.client, "tiny") as found:
                await found.forward(IDS)
        await quiet(cluster)


def plan_of(calls: Any) -> Plan:
    return Plan.from_public(calls[D].answer.plan)


# -- a store that changed --------------------------------------------------------------------------


async def test_a_flipped_byte_is_found_at_every_load(
    folder: Path, certificates: Path, model: Path
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model, public_weights=True)
        file = folder / f"{B}-store" / "tiny" / FILE
        await serves(cluster)
        cluster.servers[B].residents.drop("tiny")
        flip(file)
        for _ in range(2):
            with pytest.raises(StoreError, match=rf"tiny at {B}: {FILE} is damaged"):
                await RemoteCluster.open(cluster.client, "tiny")
        assert f"{FILE} is damaged" in problem_of((await list_models(cluster.client))["tiny"])
        flip(file)
        await serves(cluster)
        await cluster.kill(B)
        flip(file)
        await cluster.start(B)
        await cluster.linked()
        with pytest.raises(StoreError, match=rf"tiny at {B}: {FILE} is damaged"):
            await RemoteCluster.open(cluster.client, "tiny")


async def test_a_file_that_changes_while_it_is_used_ends_the_session(
    folder: Path, certificates: Path, model: Path
) -> None:
    for number in (3, TABLE):
        file = f"{number:05}.matrix"
        async with hosts(folder, certificates, "unix") as cluster:
            await cluster.upload(model, f"tiny{number}", public_weights=True)
            with pytest.raises(PeerFailed, match=rf"{B}.*{file} was changed while the model is in"):
                async with await RemoteCluster.open(cluster.client, f"tiny{number}") as found:
                    await found.forward(IDS)
                    flip(folder / f"{B}-store" / f"tiny{number}" / file)
                    await found.forward(IDS)
            await quiet(cluster)


async def test_a_file_that_is_missing_or_cannot_be_read(
    folder: Path, certificates: Path, model: Path
) -> None:
    """With a manifest that says that all is well."""
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model, public_weights=True)
        store = cluster.servers[A].store
        place = store.folder / "tiny"
        whole = store.manifest("tiny")
        data = (place / FILE).read_bytes()
        for changed, reason in (
            (b"\xff" * 64, "does not begin with a description"),
            (data[:-2], "has .* bytes, not"),
        ):
            (place / FILE).write_bytes(changed)
            digest = hashlib.sha256(changed).hexdigest()
            entry = FileEntry(bytes=len(changed), sha256=digest)
            lie = whole.model_copy(update={"files": {**whole.files, FILE: entry}})
            (place / MANIFEST).write_bytes(lie.to_json())
            with pytest.raises(StoreError, match=rf"{FILE} is unusable \(it {reason}"):
                await RemoteCluster.open(cluster.client, "tiny")
        fewer = {name: entry for name, entry in whole.files.items() if name != FILE}
        (place / MANIFEST).write_bytes(whole.model_copy(update={"files": fewer}).to_json())
        with pytest.raises(StoreError, match="its files are not those of its plan"):
            await RemoteCluster.open(cluster.client, "tiny")
