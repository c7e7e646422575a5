"""The quick half of the fault matrix; `make test-faults` runs the whole. See `faults.cell` for what
is held true in each cell.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import cell as cells
from faults.cell import Cell, run
from faults.harness import Cluster
from faults.matrix import ALL, QUICK, QUICK_NAMES
from faults.namespaces import answer_across_namespaces, why_not

pytestmark = pytest.mark.slow

STOPPED = 0.0
"""No longer than until all others have noticed; the whole matrix uses 10 s."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="puma-") as folder, Cluster(Path(folder)) as running:
        yield running


@pytest.mark.parametrize("cell", QUICK, ids=lambda cell: cell.name)
def test_fault(cell: Cell, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "STOPPED", STOPPED)
    assert run(cell, cluster).problem == ""


def test_every_fault_and_moment_is_in_the_matrix() -> None:
    assert len({cell.name for cell in ALL}) == len(ALL)
    assert {cell.moment for cell in QUICK} >= {"upload", "prefill", "decode"}
    assert {cell.moment for cell in ALL} >= set(cells.MOMENTS)
    assert len(QUICK) == len(QUICK_NAMES)


@pytest.mark.skipif(why_not() != "", reason=why_not())
def test_parties_in_namespaces_of_their_own() -> None:
    with tempfile.TemporaryDirectory(prefix="puma-") as folder:
        answer_across_namespaces(Path(folder))
