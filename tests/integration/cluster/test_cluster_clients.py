"""Clients that go away, come back, and meet: jobs go on, and nothing is submitted or computed twice."""

from __future__ import annotations

import os
import shutil
import signal

import pytest

from tests.integration.cluster.cases import Run, slurm, wait_until

pytestmark = pytest.mark.cluster


def once(run: Run) -> bool:
    return bool(run.scenes_computed()) and set(run.scenes_computed().values()) == {1}


def test_a_lost_client_comes_back_to_its_jobs(run: Run) -> None:
    run.hold_scenes()
    lost = run.start()
    wait_until(lambda: run.events("started"), "a cell to start", lambda: run.log)
    lost.kill()
    lost.wait()
    before = run.batches()
    assert len(run.submitted()) == 1
    back = run.start()
    wait_until(lambda: "1 jobs were submitted before and are followed again" in run.log, "the client", lambda: run.log)
    run.let_go()
    assert run.wait(back) == 0, run.log
    assert run.batches() == before and len(run.records()) == 2 and once(run) and run.submitted() == []


def test_jobs_that_end_while_no_client_looks_are_settled_by_the_next(run: Run) -> None:
    run.hold_scenes()
    lost = run.start("cells.rows=[1]")
    wait_until(lambda: run.events("started"), "a cell to start", lambda: run.log)
    lost.kill()
    lost.wait()
    (job,) = run.submitted()
    slurm("scancel", job)
    wait_until(lambda: job not in slurm("squeue", "-h", "-o", "%i").split(), "the job to end")
    assert run.finish("cells.rows=[1]") == 1, run.log
    (record,) = run.records().values()
    assert record.status == "failed" and record.reason is not None and "was cancelled" in record.reason
    assert run.batches() == [job], "a cancelled job is not submitted again unasked"
    run.let_go()
    assert run.finish("cells.rows=[1]", "retry=failed") == 0, run.log
    assert len(run.batches()) == 2 and [r.attempt for r in run.records().values()] == [2]


def test_ctrl_c_detaches_and_a_second_client_may_watch_too(run: Run) -> None:
    run.hold_scenes()
    first = run.start()
    wait_until(lambda: run.events("started"), "a cell to start", lambda: run.log)
    second = run.start()
    wait_until(lambda: "followed again" in run.log, "the second client", lambda: run.log)
    first.send_signal(signal.SIGINT)
    assert first.wait(30) == 130
    assert "detached; 1 jobs go on without this command" in run.log
    assert f"scancel {run.batches()[0]}" in run.log
    run.let_go()
    assert run.wait(second) == 0, run.log
    assert len(run.batches()) == 1 and len(run.records()) == 2 and once(run) and run.submitted() == []


def test_without_accounting_the_queue_says_what_became_of_jobs(run: Run) -> None:
    """sacct is not on the path; what the client needs is."""
    tools = run.folder / "tools"
    tools.mkdir()
    for name in ("sbatch", "srun", "squeue", "scontrol", "bash", "sh", "env", "rm", "git", "which"):
        (tools / name).symlink_to(os.path.realpath(shutil.which(name) or name))
    run.environment = {"PATH": str(tools)}
    run.misbehave(scene="if cell.method == 'gs-lrm': time.sleep(300)")
    client = run.start("cluster.cells_per_job.quality=1")
    wait_until(lambda: len(run.submitted()) == 1 and run.records(), "one of two jobs to be settled", lambda: run.log)
    (job,) = run.submitted()
    slurm("scancel", job)
    assert run.wait(client) == 1, run.log
    assert {method: record.status for (method, _), record in run.records().items()} == {
        "gs-lrm": "failed",
        "tttlrm": "ok",
    }
    reason = run.records()["gs-lrm", 1].reason
    assert reason is not None and "was cancelled (CANCELLED)" in reason
