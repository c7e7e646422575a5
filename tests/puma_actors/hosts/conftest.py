"""What most tests of hosts begin with."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import numpy as np
import pytest
from attacks import Change, liar
from reference import save_model, save_tokenizer

from protocols.base.shares import Role
from puma_actors.api.local import LocalCluster


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with a tokenizer."""
    return save_tokenizer(save_model(tmp_path_factory.mktemp("model"), seed=3))


@pytest.fixture(scope="module")
def wanted(model: Path) -> np.ndarray:
    """What it answers to the tokens 1, 3, 7, computed in this process."""

    async def run() -> np.ndarray:
        async with LocalCluster.from_pretrained(model) as cluster:
            return await cluster.forward([1, 3, 7])

    return anyio.run(run)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for the paths of sockets."""
    with tempfile.TemporaryDirectory(prefix="puma-") as path:
        yield Path(path)


@pytest.fixture
def lying(monkeypatch: pytest.MonkeyPatch) -> Callable[[Role, Change], None]:
    return liar(monkeypatch)
