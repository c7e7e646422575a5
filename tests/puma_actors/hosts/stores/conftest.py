"""For tests of uploads that are cut."""

import shutil
from pathlib import Path

import pytest
from cut_uploads import Sent


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    return Sent(monkeypatch)


@pytest.fixture
def copied(model: Path, tmp_path: Path) -> Path:
    """A model that may be changed."""
    return Path(shutil.copytree(model, tmp_path / "copied"))
