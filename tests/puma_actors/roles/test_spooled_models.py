"""Models that do not fit into memory: kept in a file without a name, read in every step."""

from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
from reference import save_model, torch_logits, torch_model
from tiny_models import SETTINGS, save, tiny_model

from models.checkpoints.weights import open_checkpoint
from models.programs.families import LazyParameters, load_parameters, parameters_of
from models.programs.plan import Parameter
from models.programs.predict import streamed_bytes
from protocols.errors import ConfigError, LocalProtocolError
from protocols.streamed import Streamed
from puma_actors.api import keeping
from puma_actors.api.keeping import in_memory_bytes, on_disk_bytes, spool_for
from puma_actors.api.local import LocalCluster
from puma_actors.roles import spool as spools
from puma_actors.roles.spool import Spool, spool_bytes

IDS = [5, 9, 30, 2]


@pytest.fixture
def spooled(tmp_path, monkeypatch):
    folder = tmp_path / "spool"
    folder.mkdir()
    monkeypatch.setenv("PUMA_SPOOL_DIR", str(folder))
    return folder


@pytest.fixture
def model(tmp_path):
    return save_model(tmp_path / "model", vocab_size=500)


def limit_of(folder):
    with open_checkpoint(folder) as checkpoint:
        return checkpoint.config, in_memory_bytes(checkpoint.config) - 1


async def test_a_model_larger_than_memory_answers_as_torch_does(model, spooled):
    config, memory = limit_of(model)
    with open_checkpoint(model) as checkpoint:
        expected = torch_logits(torch_model(checkpoint), IDS)
    said = []
    async with LocalCluster.from_pretrained(
        model, memory=memory, progress=lambda what, done: said.append((what, done))
    ) as cluster:
        factors = [
            parameter.factor
            for party in cluster._parties
            for parameter in party._parameters.values()
            if hasattr(parameter, "factor")
        ]
        assert factors
        assert all(isinstance(factor, Streamed) for factor in factors)
        for _ in range(2):
            np.testing.assert_allclose(await cluster.forward(IDS), expected, atol=0.02)
        assert list(spooled.iterdir()) == []
    proving = [done for what, done in said if what == "proving ranges"]
    assert proving == sorted(proving)
    assert len(proving) > len(parameters_of(config))


async def test_a_model_that_fits_stays_in_memory(model):
    async with LocalCluster.from_pretrained(model) as cluster:
        held = cluster._parties[1]._parameters["layers.0.qkv"]
        assert isinstance(held.factor, np.ndarray)


def test_memory_that_is_never_enough_is_refused_with_the_numbers(model):
    config, _ = limit_of(model)
    assert streamed_bytes(config) < on_disk_bytes(config)
    with pytest.raises(ConfigError, match=r"needs .* GB of memory even with its weights on disk"):
        spool_for(config, 1000)


def test_a_disk_without_room_is_refused_with_the_numbers(model, spooled, monkeypatch):
    config, memory = limit_of(model)
    full = SimpleNamespace(free=9)
    monkeypatch.setattr(spools.shutil, "disk_usage", lambda folder: full)
    with pytest.raises(ConfigError, match=r"GB on disk, and .* has 0\.0 GB free.*PUMA_SPOOL_DIR"):
        spool_for(config, memory)


def test_a_folder_that_is_not_there_is_refused(model, spooled, monkeypatch):
    config, memory = limit_of(model)
    monkeypatch.setenv("PUMA_SPOOL_DIR", str(spooled / "missing"))
    with pytest.raises(ConfigError, match=r"PUMA_SPOOL_DIR=.*missing cannot be used \(No such"):
        spool_for(config, memory)


def test_available_memory_is_the_default(model, monkeypatch):
    config, memory = limit_of(model)
    monkeypatch.setattr(keeping, "available_memory", lambda: memory + memory // 7)
    found = spool_for(config, None)
    assert found is not None
    found.close()
    monkeypatch.setattr(keeping, "available_memory", lambda: 2 * memory)
    assert spool_for(config, None) is None


def test_a_spool_keeps_what_came_first(spooled):
    sizes = {"a": _parameter((4, 3)), "b": _parameter((5,))}
    rng = np.random.default_rng(1)
    first, second = (rng.integers(0, 2**64, size, dtype=np.uint64) for size in (12, 5))
    with closing(Spool(spooled)) as spool:
        spool.reserve(sizes)
        spool.reserve(sizes)
        spool.write(1, 0, second.data)
        spool.write(0, 6, first[6:].data)
        spool.write(0, 0, first[:6].data)
        spool.write(0, 0, np.zeros(6, dtype=np.uint64).data)
        for number, whole in enumerate((first, second)):
            words = spool.words(number)
            words.expect()
            for start in range(len(whole)):
                out = np.empty(len(whole) - start, dtype=np.uint64)
                words.read(start, out)
                np.testing.assert_array_equal(out, whole[start:])
        assert list(spooled.iterdir()) == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        spool.read(0, 0, first)


def test_the_end_of_the_file_is_noticed(spooled):
    with closing(Spool(spooled)) as spool:
        spool.reserve({"a": _parameter((4, 3))})
        with pytest.raises(LocalProtocolError, match="shorter"):
            spool.read(0, 10, np.empty(12, dtype=np.uint64))


def _parameter(shape):
    return Parameter("weight" if len(shape) == 2 else "gain", shape)


@pytest.mark.parametrize("model_type", SETTINGS)
def test_matrices_made_on_demand_are_those_loaded_at_once(tmp_path, model_type):
    """In any order, and again: balancing remembers its factors."""
    head = "none"
    save(tiny_model(model_type, head), tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        whole = dict(load_parameters(checkpoint))
        asked: list[str] = []
        lazy = LazyParameters(checkpoint, asked.append)
        assert list(lazy) == list(whole) == list(parameters_of(checkpoint.config))
        order = [*reversed(whole), *whole]
        for name in order:
            np.testing.assert_array_equal(lazy[name], whole[name], err_msg=name)
        assert asked == order
        assert len(lazy) == len(whole)


def test_spool_bytes_are_words(model):
    config, _ = limit_of(model)
    with open_checkpoint(model) as checkpoint:
        entries = sum(matrix.size for _, matrix in load_parameters(checkpoint))
    assert spool_bytes(parameters_of(config)) == 8 * entries
