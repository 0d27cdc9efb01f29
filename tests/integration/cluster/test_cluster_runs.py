"""Whole runs on a real SLURM: ranks over nodes, arrays, replicas, preemption, and what limits a site has."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.clusters import SlurmCluster
from bench.records import Record
from bench.run import find_work
from bench.settings import load_settings
from bench.slurm.registry import Registry
from bench.slurm.states import Accounting, Queue, StateSource
from bench.slurm.submission import submit
from tests.integration.cluster.cases import ROOT, SMALL, Run, slurm, wait_until

pytestmark = pytest.mark.cluster


def make(run: Run, *arguments: str) -> None:
    """The target that a user calls. The environment is there already, so it is not made again."""
    venv = Path(sys.prefix)
    wanted = [part for part in SMALL if part.startswith(("machine", "quiet", "cluster."))]
    joined = " ".join(shlex.quote(part) for part in [*wanted, f"results_dir={run.folder / 'results'}", *arguments])
    command = ["make", "-o", f"{venv}/.stamp-run", f"VENV={venv}", "reproduce-scaling", "CLUSTER=slurm", "PROFILE=tiny"]
    with (run.folder / "client.log").open("a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, f"ARGS={joined}"], cwd=ROOT, env=environment, stdout=log, stderr=log, timeout=400
        )
    assert done.returncode == 0, run.log


def test_the_scaling_table_has_the_same_quality_for_every_sp_size_over_nodes(run: Run) -> None:
    run.table = "scaling"
    # In float64, for in float32 sums over other parts round otherwise: by up to 2.5e-5 of SSIM with these models.
    make(run, "cells.rows=[1,4]", "cells.kinds=[quality]", "profile.precision=float64")
    assert len(run.batches()) == 3 and run.submitted() == [], "three sorts of jobs, three calls of sbatch"
    nodes = [slurm("sacct", "-X", "-n", "-P", "-o", "AllocNodes", "-j", job).strip() for job in run.batches()]
    assert sorted(nodes) == ["1", "1", "2"], "four ranks need both nodes"
    found = run.records()
    assert set(found) == {(method, ranks) for method in ("tttlrm-full", "tttlrm-ar") for ranks in (1, 2, 4)}
    for (method, ranks), record in found.items():
        assert values(record) == pytest.approx(values(found[method, 1]), rel=1e-6), (method, ranks)
        assert [memory.rank for memory in record.memory] == list(range(ranks))
    assert len({record.environment.job for record in found.values()}) == 3

    make(run, "cells.rows=[1]", "cells.sp_size=[1,4]")  # the same again, with speed: only that is missing
    assert len(run.batches()) == 5
    speed = [record for record in run.every_record() if record.speed is not None]
    assert sorted(record.cell.sp_size for record in speed) == [1, 4]
    for record in speed:
        assert record.speed is not None
        samples = [sample for stage in record.speed.reconstruct.stages.values() for sample in stage]
        assert {len(sample) for sample in samples} == {record.cell.sp_size}


def values(record: Record) -> list[float]:
    """PSNR and SSIM of every test view."""
    assert record.quality is not None, record.reason
    views = [view for scene in record.quality.scenes for view in scene.views]
    return [value for view in views for value in (view.psnr, view.ssim)]


def test_jobs_of_a_kind_are_an_array_whose_replicas_split_the_scenes(run: Run) -> None:
    more = ("cluster.replicas=fill", "cluster.cells_per_job.quality=1", "profile.datasets.gso.scenes=3")
    assert run.finish(*more) == 0, run.log
    assert len(run.batches()) == 1 and "2 jobs in 1 arrays" in run.log
    assert set(run.scenes_computed().values()) == {1} and len(run.scenes_computed()) == 6
    for record in run.records().values():
        assert record.quality is not None and [s.scene for s in record.quality.scenes] == ["0", "1", "2"]
        assert [memory.rank for memory in record.memory] == [0, 1], "two replicas of one rank"


@pytest.mark.usefixtures("third_node")
def test_a_preempted_job_goes_on_from_the_scenes_that_it_had(run: Run) -> None:
    run.misbehave(scene="time.sleep(1.5)")
    scenes = 6
    only = (f"profile.datasets.gso.scenes={scenes}", "cells.rows=[2]", "cells.sp_size=[2]")
    client = run.start(*only, "cluster.partition=low", "cluster.signal_delay_s=5")
    run.wait_for_scenes(2)
    (job,) = run.submitted()
    urgent = slurm("sbatch", "--parsable", "-p", "high", "--exclusive", "-o", "/dev/null", "--wrap=sleep 3")
    assert run.wait(client) == 0, run.log
    assert run.batches() == [job], "the scheduler started the job again, not the client"
    assert slurm("sacct", "-X", "-n", "-P", "-o", "State", "-j", urgent.strip()).strip() == "COMPLETED"
    started = run.events("started")
    assert len(started) == 2, "it was interrupted, and began again"
    computed = run.scenes_computed()
    assert len(computed) == scenes and set(computed.values()) == {1}, "none twice, none lost"
    (record,) = run.records().values()
    assert record.quality is not None and len(record.quality.scenes) == scenes and record.attempt == 1
    assert not list((run.work / "partial").glob("*/*/*.json"))


def test_a_thousand_jobs_are_a_few_arrays_and_one_question(run: Run) -> None:
    overrides = [part for part in SMALL if not part.startswith("cells.kinds")]
    settings = load_settings([*overrides, f"results_dir={run.folder / 'results'}", "+cluster.sbatch.hold=true"])
    cluster = settings.cluster
    assert isinstance(cluster, SlurmCluster)
    work = find_work(settings)
    (quality,) = [job for job in work.jobs(settings) if job.cells[0].cell.kind == "quality"]
    jobs = [quality.model_copy(update={"id": f"quality-{at:04d}"}) for at in range(1000)]
    registry = Registry.of(work.store)
    started = time.monotonic()
    with registry.exclusive():
        sent = submit(jobs, cluster, registry)
    try:
        assert len({one.slurm_id for one in sent}) == 1000 and len(run.submitted()) == 1000
        assert len(run.batches()) == 3, "the site allows 401 jobs in an array"
        assert time.monotonic() - started < 60
        sources: list[StateSource] = [Accounting(), Queue()]
        for source in sources:
            wait_until(
                lambda source=source: all_pending(source, [one.slurm_id for one in sent]), "accounting to follow"
            )
    finally:
        slurm("scancel", *run.batches())
        for one in sent:
            registry.remove(one.slurm_id)


def all_pending(source: StateSource, ids: list[str]) -> bool:
    states = source.states(ids)
    return states is not None and {state.phase for state in states.values()} == {"pending"} and len(states) == 1000


def test_a_refused_job_is_wrong_usage_in_the_schedulers_words(run: Run) -> None:
    assert run.finish("cluster.partition=nowhere", timeout=60) == 2
    assert "sbatch refused a job of 1 node, 1 process each" in run.log and "invalid partition" in run.log
    assert run.submitted() == [] and run.records() == {}


def test_a_rank_without_scontrol_is_requeued_from_outside(run: Run) -> None:
    """As in a container: the note that it leaves makes the batch script requeue the job."""
    run.misbehave(scene="time.sleep(1.5)", every_rank="assert 'shim' in os.popen('which scontrol').read()")
    (python,) = [part.partition("=")[2] for part in run.overrides]
    (run.folder / "bin").mkdir()
    for tool in ("sh", "env", "which", "git", "uname"):
        (run.folder / "bin" / tool).symlink_to(f"/usr/bin/{tool}")
    run.overrides = (
        f"cluster.python={python}",
        f"cluster.container={{form: prefix, command: 'env PATH={run.folder / 'bin'}'}}",
    )
    client = run.start("profile.datasets.gso.scenes=4", "cells.rows=[2]", "cluster.max_timeouts=3")
    run.wait_for_scenes(1)
    (job,) = run.submitted()
    slurm("scancel", "--signal=USR2", job)  # what a job is sent before it is stopped
    assert run.wait(client) == 0, run.log
    assert run.batches() == [job] and len(run.events("started")) == 2
    assert len(run.scenes_computed()) == 4 and set(run.scenes_computed().values()) == {1}
