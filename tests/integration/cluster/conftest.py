"""Tests on a real SLURM: they are given one by `make test-cluster`, which starts slurm/testcluster."""

from __future__ import annotations

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
