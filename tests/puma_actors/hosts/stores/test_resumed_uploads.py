"""Uploads that are cut at any moment, and continued by the same call."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cut_uploads import CUT, IDS, RECORD, Already, Sent, answers, continued, cut, part
from hosts import hosts, list_models, quiet
from reference import save_model, save_tokenizer, set_config

from protocols.base.shares import COMPUTING, Role
from protocols.errors import ConfigError, ModelError, PeerFailed, PumaError, StoreError
from puma_actors.api.local import LocalCluster
from puma_actors.hosts import unfinished
from puma_actors.hosts.caller import call, remove_model
from puma_actors.hosts.stores.draft import Draft
from puma_actors.roles.sending import Sending


async def test_an_owner_that_was_cut_sends_the_rest(
    folder: Path, certificates: Path, model: Path, wanted: np.ndarray, sent: Sent
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cut(cluster, model)
        first = sent.rows
        record = cluster.folder / RECORD
        assert record.stat().st_mode & 0o777 == 0o600
        assert record.parent.stat().st_mode & 0o777 == 0o700
        said: list[str] = []
        already = Already()
        await cluster.upload(model, already=already, progress=lambda what, _: said.append(what))
        ((held, whole),) = already.said
        assert 0 < held < whole
        assert "proving ranges" not in said  # the plan is known
        assert not record.exists()
        await answers(cluster, wanted)
        both, sent.rows = sent.rows, 0
        await remove_model(cluster.client, "tiny")
        await cluster.upload(model)
        assert both < first + sent.rows  # a whole upload
        assert both >= sent.rows
        assert len(sent.seeds) == 4  # of two uploads


@pytest.mark.parametrize("dead", COMPUTING)
async def test_a_party_that_was_restarted_gets_the_rest(
    folder: Path, certificates: Path, model: Path, wanted: np.ndarray, sent: Sent, dead: Role
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        usual = Sending.tensor

        async def tensor(this: Sending, number: int, *rest: Any) -> None:
            if number == CUT:
                await cluster.kill(dead)
            await usual(this, number, *rest)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(PumaError):
            patch.setattr(Sending, "tensor", tensor)
            await cluster.upload(model)
        await cluster.start(dead)
        await cluster.linked()
        await quiet(cluster)
        assert await continued(cluster, model, wanted) > 0
        assert len(sent.seeds) == 2


async def test_a_damaged_part_is_sent_again(
    folder: Path, certificates: Path, model: Path, wanted: np.ndarray, sent: Sent
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cut(cluster, model)
        file = part(folder, Role.EVALUATOR_B) / "00001.words"
        size = file.stat().st_size
        file.write_bytes(bytes(size))
        await cluster.kill(Role.EVALUATOR_B)
        await cluster.start(Role.EVALUATOR_B)
        await cluster.linked()
        held = await continued(cluster, model, wanted)
        other = sum(
            path.stat().st_size
            for path in (folder / f"{Role.EVALUATOR_A}-store/tiny").glob("*.words")
        )
        assert 0 < held < 2 * other - size
        assert len(sent.seeds) == 2


async def test_a_changed_checkpoint_is_another_upload(
    folder: Path, certificates: Path, copied: Path, sent: Sent, tmp_path: Path
) -> None:
    """With other seeds: under the same ones, the difference of the weights would show."""
    other = save_tokenizer(save_model(tmp_path / "other", seed=4))
    async with LocalCluster.from_pretrained(other) as local:
        wanted = await local.forward(IDS)
    sent.seen.clear()
    async with hosts(folder, certificates, "unix") as cluster:
        await cut(cluster, copied)
        before = sent.seeds
        assert len(before) == 2
        shutil.copy(other / "model.safetensors", copied / "model.safetensors")
        assert await continued(cluster, copied, wanted) == 0
        assert len(sent.seeds - before) == 2


async def test_a_changed_setting_is_another_upload(
    folder: Path, certificates: Path, copied: Path, sent: Sent
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cut(cluster, copied)
        before = sent.seeds
        assert len(before) == 2
        set_config(copied, rms_norm_eps=1e-3)
        async with LocalCluster.from_pretrained(copied) as local:
            wanted = await local.forward(IDS)
        sent.seen.clear()
        assert await continued(cluster, copied, wanted) == 0
        assert not before & sent.seeds


async def test_a_checkpoint_that_changes_meanwhile_is_not_sent(
    folder: Path, certificates: Path, copied: Path, tmp_path: Path, sent: Sent
) -> None:
    other = save_model(tmp_path / "other", seed=4)
    data = (other / "model.safetensors").read_bytes()

    def progress(what: str, fraction: float) -> None:
        if what.startswith("sharing the weights") and fraction > 0.5:
            with (copied / "model.safetensors").open("r+b") as file:  # in place, as it is mapped
                file.write(data)

    async with hosts(folder, certificates, "unix") as cluster:
        with pytest.raises(ModelError, match="has changed while it was uploaded"):
            await cluster.upload(copied, progress=progress)
        await quiet(cluster)
        before = sent.seeds
        async with LocalCluster.from_pretrained(copied) as local:
            wanted = await local.forward(IDS)
        sent.seen.clear()
        assert await continued(cluster, copied, wanted) == 0
        assert not before & sent.seeds


@pytest.mark.parametrize("step", ["finish", "publish", "keep"])
async def test_a_failure_at_the_end_loses_nothing(
    folder: Path,
    certificates: Path,
    model: Path,
    wanted: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    sent: Sent,
    step: str,
) -> None:
    usual = getattr(Draft, step)

    def fail(self: Draft, *args: Any) -> None:
        if self.store.role is Role.EVALUATOR_B:
            raise StoreError("the disk has gone away")
        usual(self, *args)

    async with hosts(folder, certificates, "unix") as cluster:
        with monkeypatch.context() as patch, pytest.raises(PeerFailed, match="gone away"):
            patch.setattr(Draft, step, fail)
            await cluster.upload(model)
        await quiet(cluster)
        assert await list_models(cluster.client) == {}
        sent.rows = 0
        assert await continued(cluster, model, wanted) > 0
        assert sent.rows == 0


async def test_an_owner_that_does_not_know_that_it_is_done(
    folder: Path, certificates: Path, model: Path, wanted: np.ndarray, sent: Sent
) -> None:
    """It was killed after its last message: the parties keep the model, it has the record."""
    async with hosts(folder, certificates, "unix") as cluster:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(unfinished.Record, "done", lambda self: None)
            await cluster.upload(model)
        assert (cluster.folder / RECORD).exists()
        await answers(cluster, wanted)
        sent.rows = 0
        assert await continued(cluster, model, wanted) > 0
        assert sent.rows == 0


async def test_a_disk_without_room_is_told_before_anything_is_sent(
    folder: Path, certificates: Path, model: Path, wanted: np.ndarray, sent: Sent
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cut(cluster, model)
        sent.rows = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Draft, "room", lambda self: 1_000)
            with pytest.raises(PeerFailed, match=r"MB on the disk of evaluator-., which has 0 MB"):
                await cluster.upload(model)
        await quiet(cluster)
        assert sent.rows == 0
        assert await continued(cluster, model, wanted) > 0


# -- owners ----------------------------------------------------------------------------------------


async def test_two_owners_at_a_time(folder: Path, certificates: Path, model: Path) -> None:
    """One process with a record; and one owner at the parties, wherever it is."""
    async with hosts(folder, certificates, "unix") as cluster:
        with unfinished.Record.of(cluster.client, "tiny"):
            with pytest.raises(ConfigError, match="another process uploads 'tiny' with this"):
                await cluster.upload(model)
            with pytest.raises(ConfigError, match="another process uploads 'tiny' with this"):
                await remove_model(cluster.client, "tiny")
        await cut(cluster, model)
        upload = json.loads((cluster.folder / RECORD).read_text())["upload"]
        first = await call(
            cluster.client, Role.OWNER, Role.DEALER, "upload", model="tiny", upload=upload
        )
        with pytest.raises(ConfigError, match="is being uploaded to dealer already"):
            await cluster.upload(model)
        await first.channel.aclose()
        await quiet(cluster)
        await cluster.upload(model)


async def test_an_owner_without_the_record_starts_over_and_so_does_the_first(
    folder: Path, certificates: Path, model: Path, wanted: np.ndarray, sent: Sent
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cut(cluster, model)
        mine = cluster.folder / RECORD
        kept = mine.read_bytes()
        mine.unlink()
        await cut(cluster, model)  # another one: what was cut of the first is gone
        assert len(sent.seeds) == 4
        mine.write_bytes(kept)
        mine.chmod(0o600)
        assert await continued(cluster, model, wanted) == 0
        assert len(sent.seeds) == 4  # the first two, for the same model
