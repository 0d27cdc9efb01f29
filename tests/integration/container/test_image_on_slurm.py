"""A job of two nodes whose ranks run inside the image, by the suite's container option, on a real SLURM.

Charliecloud runs it: like Apptainer, it is a command in front of python, and there is no scontrol inside.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cluster.cases import Run, slurm, wait_until
from tests.integration.cluster.conftest import cluster
from tests.integration.container.engine import IMAGE, Engine

pytestmark = pytest.mark.container

__all__ = ["cluster"]  # the fixture


@pytest.fixture
def run(cluster: None, image: Engine) -> Iterator[Run]:
    folder = image.folder / "shared"
    folder.mkdir()
    made = Run(folder)
    yield made
    left = made.submitted()
    if left:
        subprocess.run(["scancel", *left], timeout=60)
    shutil.rmtree(folder)


@pytest.fixture
def unpacked(image: Engine, run: Run) -> Path:
    """The image as a folder, with a place to mount the run's at."""
    folder = image.folder / "unpacked"
    folder.mkdir()
    container = image.run("create", IMAGE).stdout.strip()
    with subprocess.Popen(["podman", "export", container], env=image.environment, stdout=subprocess.PIPE) as export:
        subprocess.run(["tar", "x", "-C", str(folder)], stdin=export.stdout, check=True, timeout=120)
    image.run("rm", container)
    Path(f"{folder}{run.folder}").mkdir(parents=True)
    return folder


def test_two_nodes_in_the_image_are_requeued_and_finish(image: Engine, run: Run, unpacked: Path) -> None:
    digest = f"sha256:{image.inspect()['Id'].removeprefix('sha256:')}"
    run.misbehave(scene="time.sleep(2)", every_rank="assert 'shim' in os.popen('command -v scontrol').read()")
    command = f"ch-run --private-tmp --bind {run.folder} --set-env=HOME=/tmp {{image}} --"
    run.overrides = (
        f"cluster.python=/opt/venv/bin/python {run.folder / 'wrapper.py'}",
        f"cluster.container={{form: prefix, command: '{command}', image: {unpacked}, digest: '{digest}'}}",
        "cluster.setup=[unset PYTHONPATH]",
    )
    run.environment = {"USER": os.environ.get("USER", "root")}  # Charliecloud asks for it
    client = run.start("profile.datasets.gso.scenes=4", "cells.rows=[2]", "cells.sp_size=[4]", "cluster.max_timeouts=3")
    wait_until(lambda: run.events("scene") or client.poll() is not None, "a scene", lambda: run.log)
    assert client.poll() is None, run.log
    (job,) = run.submitted()
    slurm("scancel", "--signal=USR2", job)  # what a job is sent before it is stopped
    assert client.wait(240) == 0, run.log
    assert run.batches() == [job] and len(run.events("started")) == 2, "the batch script outside queued it again"
    assert slurm("sacct", "-X", "-n", "-P", "-o", "AllocNodes", "-j", job).split()[-1] == "2"
    assert len(run.scenes_computed()) == 4 and set(run.scenes_computed().values()) == {1}
    (record,) = run.records().values()
    assert record.status == "ok" and record.environment.image == digest
    revision = image.inspect()["Config"]["Labels"]["org.opencontainers.image.revision"]
    assert record.environment.code.commit == revision.removesuffix("-dirty"), "the image's own code ran"
    assert [memory.rank for memory in record.memory] == [0, 1, 2, 3]
