"""The owner's record of an upload: it goes with the upload, or is not used."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cut_uploads import RECORD, Sent, continued, cut, part
from hosts import addresses_for, hosts, write_config

from models.checkpoints.weights import open_checkpoint
from models.programs.families import load_parameters
from models.programs.plan import draft_plan
from protocols.base.shares import COMPUTING, EVALUATORS
from puma_actors.hosts import unfinished
from puma_actors.hosts.caller import remove_model
from puma_actors.hosts.config import ClusterConfig, load_config
from puma_actors.hosts.stores.incoming import MOST_SECONDS


async def test_removal_forgets_what_was_cut(
    folder: Path, certificates: Path, model: Path, wanted: np.ndarray, sent: Sent
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cut(cluster, model)
        found = await remove_model(cluster.client, "tiny")
        assert {role for role, each in found.items() if each.state == "removed"} == {*EVALUATORS}
        assert not (cluster.folder / RECORD).exists()
        assert not any(part(folder, role).exists() for role in COMPUTING)
        assert await continued(cluster, model, wanted) == 0
        assert len(sent.seeds) == 4


def damaged(record: Path) -> None:
    data = bytearray(record.read_bytes())
    at = data.index(b'"tensors"') + 40
    data[at] = ord("0") if data[at] != ord("0") else ord("1")
    record.write_bytes(data)


def torn(record: Path) -> None:
    record.write_bytes(record.read_bytes()[:-5])


def old(record: Path) -> None:
    then = record.stat().st_mtime - MOST_SECONDS - 60
    os.utime(record, (then, then))


def elsewhere(record: Path) -> None:
    """The dealer has moved: the record is not for these addresses."""
    content = json.loads(record.read_text())
    content["parties"][0] += "x"
    record.write_text(json.dumps(content))


def readable(record: Path) -> None:
    record.chmod(0o644)


@pytest.mark.parametrize("harm", [damaged, torn, old, elsewhere, readable])
async def test_a_record_that_does_not_fit_starts_over(
    folder: Path,
    certificates: Path,
    model: Path,
    wanted: np.ndarray,
    sent: Sent,
    harm: Callable[[Path], None],
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cut(cluster, model)
        harm(cluster.folder / RECORD)
        assert await continued(cluster, model, wanted) == 0
        assert len(sent.seeds) == 4


async def test_without_a_folder_for_records_an_upload_works(
    folder: Path,
    certificates: Path,
    model: Path,
    wanted: np.ndarray,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (folder / unfinished.FOLDER).write_text("")
    async with hosts(folder, certificates, "unix") as cluster:
        await cut(cluster, model)
        assert "if this upload is cut, it starts over" in caplog.text
        assert await continued(cluster, model, wanted) == 0


@pytest.fixture
def records(tmp_path: Path) -> ClusterConfig:
    path = write_config(tmp_path / "c.toml", addresses_for("unix", tmp_path), tmp_path)
    return load_config(path, environ={})


def test_seeds_depend_on_all_that_decides_what_is_masked(
    records: ClusterConfig, model: Path
) -> None:
    """Even with one secret."""
    with open_checkpoint(model) as checkpoint:
        weights = dict(load_parameters(checkpoint))
        plan = draft_plan(checkpoint.config)
    with unfinished.Record.of(records, "tiny") as record:
        record.begin(plan, weights)
        content = record._content
        assert content is not None
        again = [content.seed(1), content.seed(2)]
        assert record.seeds() == again
        assert len(set(again)) == 2
        name = next(iter(weights))
        for changed in (
            {"program": "x"},
            {"parties": ["a", "b", "c"]},
            {"upload": "0" * 32},
            {"plan": {}},
            {"tensors": {**content.tensors, name: "0" * 64}},
        ):
            other = content.model_copy(update=changed)
            assert not {other.seed(1), other.seed(2)} & set(again)
        assert content.secret not in repr(content)
        for seed in again:
            assert seed.hex() not in (records.folder / RECORD).read_text()
