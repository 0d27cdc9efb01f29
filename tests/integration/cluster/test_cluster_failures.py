"""Each way in which a job can end, for real: the cell at work gets a record that says so, the others go on."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.integration.cluster.cases import Run, kill_all, rank_processes, slurm, wait_until

pytestmark = pytest.mark.cluster


def only_job(run: Run) -> str:
    """The scheduler's id of the one job, once it is at its first scene."""
    wait_until(lambda: run.events("started"), "a cell to start", lambda: run.log)
    (job,) = run.submitted()
    return job


def failed_and_other(run: Run, sp_size: int) -> tuple[str, str]:
    """Methods of the cell that was at work when it happened, and of the other one."""
    first = run.events("started")[0]["cell_id"]
    methods = {record.cell_id: record.cell.method for record in run.records().values()}
    (other,) = {method for cell_id, method in methods.items() if cell_id != first}
    return methods[str(first)], other


def test_a_rank_that_raises_ends_its_job_in_seconds_with_its_traceback(run: Run) -> None:
    run.misbehave(every_rank="if RANK == 1 and cell.method == 'gs-lrm': raise ValueError('rank 1 broke')")
    started = time.monotonic()
    assert run.finish("cells.sp_size=[2]") == 1, run.log
    elapsed = time.monotonic() - started
    records = run.records()
    broken = records["gs-lrm", 2]
    assert broken.status == "failed" and broken.reason == "ValueError: rank 1 broke"
    assert broken.failure is not None and broken.failure.rank == 1
    assert broken.failure.traceback is not None and "rank 1 broke" in broken.failure.traceback
    assert "/root" not in broken.failure.traceback and str(run.folder) not in broken.failure.traceback
    assert records["tttlrm", 2].status == "ok"
    assert elapsed < 300, "the other rank must not wait for its timeout, which is 600 s"
    assert (broken.finished - broken.started).total_seconds() < 60


def test_a_killed_rank_is_recorded_and_the_other_cell_runs(run: Run) -> None:
    run.misbehave(scene="time.sleep(3)")
    client = run.start("cells.sp_size=[2]")
    job = only_job(run)
    kill_all(rank_processes(1, job))
    assert run.wait(client) == 1, run.log
    failed, other = failed_and_other(run, 2)
    record = run.records()[failed, 2]
    assert record.status == "failed" and record.reason is not None
    assert f"SLURM job {job} failed" in record.reason and "Killed" in record.reason
    assert run.records()[other, 2].status == "ok"


def test_too_much_memory_is_its_own_status_with_the_peak(run: Run) -> None:
    hungry = "if cell.method == 'gs-lrm':\n    held = bytearray(3 * 2**30)\n    time.sleep(30)"
    run.misbehave(scene=hungry)
    assert run.finish() == 1, run.log
    record = run.records()["gs-lrm", 1]
    assert record.status == "out_of_memory", record.reason
    (memory,) = record.memory
    assert memory.resident_mib is not None and memory.resident_mib > 1500
    assert run.records()["tttlrm", 1].status == "ok"


def test_the_time_limit_is_a_timeout(run: Run) -> None:
    run.misbehave(scene="if cell.method == 'gs-lrm': time.sleep(300)")
    client = run.start("cells.rows=[1]", "cluster.requeue=false")
    job = only_job(run)
    slurm("scontrol", "update", f"JobId={job}", "EndTime=now+2")
    assert run.wait(client) == 1, run.log
    record = run.records()["gs-lrm", 1]
    assert record.status == "timeout", record.reason


def test_a_cell_has_a_time_limit_of_its_own(run: Run) -> None:
    run.misbehave(scene="if cell.method == 'gs-lrm': time.sleep(300)")
    assert run.finish("cluster.cell_limit_s=25") == 1, run.log
    record = run.records()["gs-lrm", 1]
    assert (record.status, record.reason) == ("timeout", "stopped after 25 s")
    assert run.records()["tttlrm", 1].status == "ok"


def test_cancelling_a_job_fails_its_cells_and_no_others(run: Run) -> None:
    run.misbehave(scene="if cell.method == 'gs-lrm': time.sleep(300)")
    client = run.start("cluster.cells_per_job.quality=1")
    wait_until(lambda: any(r.status == "ok" for r in run.records().values()), "the other job", lambda: run.log)
    wait_until(lambda: len(run.submitted()) == 1, "the other job to be settled", lambda: run.log)
    (job,) = run.submitted()
    slurm("scancel", job)
    assert run.wait(client) == 1, run.log
    record = run.records()["gs-lrm", 1]
    assert record.status == "failed" and record.reason is not None and "was cancelled" in record.reason
    assert run.records()["tttlrm", 1].status == "ok"


@pytest.mark.usefixtures("third_node")
def test_a_lost_node_costs_nothing_that_was_done(run: Run) -> None:
    run.misbehave(scene="time.sleep(2)")
    client = run.start("profile.datasets.gso.scenes=4", "cells.rows=[1]", "cluster.partition=low")
    run.wait_for_scenes(2)
    (job,) = run.submitted()
    (daemon,) = [int(number) for number in slurm("pgrep", "-f", "slurmd -N tt3").split()]
    os.kill(daemon, signal.SIGSTOP)
    kill_all(rank_processes(0, job))
    slurm("scontrol", "update", "NodeName=tt3", "State=DOWN", "Reason=test")
    os.kill(daemon, signal.SIGCONT)
    wait_until(lambda: "PENDING" in slurm("squeue", "-h", "-j", job, "-o", "%T"), "the job to be queued again")
    slurm("scontrol", "update", "NodeName=tt3", "State=RESUME")
    assert run.wait(client) == 0, run.log
    assert run.records()["gs-lrm", 1].status == "ok" and run.batches() == [job]
    assert set(run.scenes_computed().values()) == {1} and len(run.scenes_computed()) == 4
