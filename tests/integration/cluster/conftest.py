"""Tests on a real SLURM: they are given one by `make test-cluster`, which starts slurm/testcluster."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cluster.cases import Run


@pytest.fixture(scope="session")
def cluster() -> None:
    """Skips without a cluster of this project's own: nothing is ever submitted to a site by accident."""
    if "tttlrm-testcluster" not in os.environ.get("SLURM_CONF", "") or shutil.which("sinfo") is None:
        pytest.skip("needs the test cluster (make test-cluster)")
    subprocess.run(["sinfo"], check=True, capture_output=True, timeout=60)


@pytest.fixture
def run(cluster: None, tmp_path: Path) -> Iterator[Run]:
    """A run in a folder of its own; what it left on the cluster is cancelled."""
    made = Run(tmp_path)
    yield made
    left = made.submitted()
    if left:
        subprocess.run(["scancel", *left], timeout=60)


@pytest.fixture
def third_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The node tt3, of the partitions low and high, for one test at a time: those that use it take it from other jobs.

    A lock of our own, because pytest-xdist 3.8's groups have no effect under pytest 9.2 (pytest-xdist issue 1386).
    """
    with (tmp_path_factory.getbasetemp().parent / "third-node.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
