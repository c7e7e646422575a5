"""Parties on different machines: the right answer, or a refusal that says why before any input."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from attacks import Change, serves
from hosts import addresses_for, hosts, quiet, write_config
from party_processes import Party, puma
from public_words import features
from reference import save_model, save_tokenizer
from waiting import in_time

from protocols.base.shares import COMPUTING, Role
from protocols.errors import PumaError
from protocols.kernels import warm_up
from puma_actors.api.local import LocalCluster
from puma_actors.api.remote import RemoteCluster
from puma_actors.roles.client import Client

PROMPT = "I see the cat"
KINDS = {
    Role.DEALER: {"OPENBLAS_CORETYPE": "Nehalem"},
    Role.EVALUATOR_A: {"OPENBLAS_CORETYPE": "Haswell"},
    Role.EVALUATOR_B: {
        "OPENBLAS_CORETYPE": "Prescott",
        "NPY_DISABLE_CPU_FEATURES": ",".join(features()),
    },
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    warm_up()  # or three processes compile at once
    return save_tokenizer(save_model(tmp_path_factory.mktemp("model"), seed=3))


@contextmanager
def processes(
    folder: Path, certificates: Path, firsts: dict[Role, str]
) -> Iterator[dict[Role, Party]]:
    """Three parties on different kinds of processors, which run some Python first."""
    addresses = addresses_for("tls", folder)
    write_config(folder / "client.toml", addresses, certificates)
    started = {}
    try:
        for role in COMPUTING:
            config = write_config(folder / f"{role}.toml", addresses, certificates)
            first = firsts.get(role, "pass")
            started[role] = Party(role, config, first=first, **KINDS[role])
        yield started
    finally:
        for party in started.values():
            party.process.kill()
            party.process.wait()


@pytest.mark.slow
def test_three_kinds_of_processor_answer_as_one(
    folder: Path, certificates: Path, model: Path
) -> None:
    where = ("--cluster", folder / "client.toml")
    with processes(folder, certificates, {}) as parties:
        for party in parties.values():
            party.wait_for("link up", 2)
        puma("upload", model, "--name", "tiny", *where)
        asked = ("-m", "tiny", "-p", PROMPT, "-n", "4", "--json")
        answer = json.loads(puma("generate", *where, *asked).stdout)

    async def locally() -> list[int | None]:
        async with LocalCluster.from_pretrained(model) as cluster:
            return [t.id async for t in cluster.generate(PROMPT, max_new_tokens=4)]

    assert answer["token_ids"] == anyio.run(locally)


_CHANGED = (
    "from protocols.functions.elementary import power_spline;"
    "power_spline(1, {}).tables[0, 0, 9] += 1"
)


@pytest.mark.slow
def test_a_process_with_one_entry_of_a_table_changed_gets_no_link(
    folder: Path, certificates: Path
) -> None:
    odd = {Role.EVALUATOR_B: _CHANGED.format(1.0)}
    with processes(folder, certificates, odd) as parties:
        for role in COMPUTING:
            honest = role is not Role.EVALUATOR_B
            for peer in [Role.EVALUATOR_B] if honest else [Role.DEALER, Role.EVALUATOR_A]:
                said = f"{peer}'s public tables differ from this side's: splines: install the same"
                parties[role].wait_for("no link", saying=said)
        for role in COMPUTING:
            up = {e["peer"] for e in parties[role].events() if e["event"] == "link up"}
            assert not up if role is Role.EVALUATOR_B else Role.EVALUATOR_B not in up


@pytest.mark.slow
def test_a_process_with_one_entry_of_a_models_table_changed_gets_no_input(
    folder: Path, certificates: Path, model: Path
) -> None:
    """The norm's inverse root: its table belongs to the model's size, 32."""
    odd = {Role.EVALUATOR_A: _CHANGED.format("__import__('math').sqrt(2)")}
    where = ("--cluster", folder / "client.toml")
    with processes(folder, certificates, odd) as parties:
        for party in parties.values():
            party.wait_for("link up", 2)
        puma("upload", model, "--name", "tiny", *where)
        told = puma("generate", *where, "-m", "tiny", "-p", PROMPT, "-n", "1", code=1).stderr
        assert "public tables differ from this side's: powers: install the same" in told
        assert "evaluator-a" in told
        for party in parties.values():
            assert not [e for e in party.events() if e["event"] == "step done"]


def other_tables(to: Role, header: dict[str, Any], buffers: Sequence[Any]) -> Any:
    """A party whose public numbers are not the others'."""
    if header["do"] != "agree":
        return None
    return {**header, "tables": {**header["tables"], "rotary": "0" * 16}}, buffers


@pytest.fixture
def inputs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What clients shared."""
    shared: list[Any] = []
    step = Client.step

    async def noted(self: Client, inference: Any, ids: Sequence[int], *rest: Any) -> Any:
        shared.append(ids)
        return await step(self, inference, ids, *rest)

    monkeypatch.setattr(Client, "step", noted)
    return shared


@pytest.mark.parametrize("role", COMPUTING)
async def test_a_stored_model_is_not_served_with_other_tables(
    role: Role,
    folder: Path,
    certificates: Path,
    model: Path,
    lying: Callable[[Role, Change], None],
    inputs: list[Any],
) -> None:
    wrong = f"{role}'s public tables differ from this side's: rotary: install the same"
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        lying(role, other_tables)
        with in_time(), pytest.raises(PumaError, match=wrong):
            async with await RemoteCluster.open(cluster.client, "tiny") as remote:
                await remote.forward([1, 3, 7])
        assert not inputs
        lying(role, lambda *_: None)
        await quiet(cluster)
        await serves(cluster)
        assert inputs


@pytest.mark.parametrize("role", COMPUTING)
async def test_a_model_is_not_ready_with_other_tables(
    role: Role, model: Path, lying: Callable[[Role, Change], None], inputs: list[Any]
) -> None:
    lying(role, other_tables)
    wrong = f"{role}'s public tables differ from this side's: rotary: install the same"
    with in_time(), pytest.raises(PumaError, match=wrong):
        async with LocalCluster.from_pretrained(model) as cluster:
            await cluster.forward([1, 3, 7])
    assert not inputs
