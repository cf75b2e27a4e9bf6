"""What the tests with real clients share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from clients_cluster import ClientsCluster, clients_cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientsCluster]:
    """A cluster per module: tests may kill its nodes, and leave it mended."""
    with clients_cluster(tmp_path_factory.mktemp("clients")) as running_cluster:
        yield running_cluster
