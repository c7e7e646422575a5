"""Dask clusters for the tests of this folder: each takes a second or two to start."""

from collections.abc import Iterator

import pytest
from dask_cluster import DaskCluster, dask_cluster

from protocols.base.shares import Role


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """Evaluator A's, with two workers."""
    with dask_cluster(tmp_path_factory.mktemp("dask"), Role.EVALUATOR_A, "one", "two") as made:
        yield made
