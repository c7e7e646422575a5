"""Fixtures for several test files."""

from pathlib import Path

import pytest
from networks import make_certificates


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority and a certificate for each role."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))
