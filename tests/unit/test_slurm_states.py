"""What the scheduler's words mean, and what a job's end means for its cells."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bench.clusters import SlurmCluster
from bench.jobs import Event, Job, events_path, group_cells, write_job
from bench.settings import load_settings
from bench.slurm.endings import settle
from bench.slurm.registry import Registry, Submitted
from bench.slurm.states import JobState, _pick, expand_ids
from bench.store import Store
from tests.bench_cases import record, tiny_plan


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("12", ["12"]),
        ("12_3", ["12_3"]),
        ("12_[0-2]", ["12_0", "12_1", "12_2"]),
        ("12_[4,7-8%2]", ["12_4", "12_7", "12_8"]),
    ],
)
def test_an_array_stands_for_its_jobs(text: str, ids: list[str]) -> None:
    assert list(expand_ids(text)) == ids


def test_states_are_read_for_all_jobs_and_unknown_ones_are_told() -> None:
    text = "12_0|COMPLETED|0:0|None\n12_[1-2%4]|PENDING|0:0|Priority\n13|CANCELLED by 1000|0:15|None\n"
    states = _pick(["12_0", "12_2", "13", "14"], text)
    assert {job: (state.phase, state.base) for job, state in states.items()} == {
        "12_0": ("ended", "COMPLETED"),
        "12_2": ("pending", "PENDING"),
        "13": ("ended", "CANCELLED"),
        "14": ("ended", "UNKNOWN"),
    }
    assert states["14"].may_return and not states["13"].may_return


@pytest.mark.parametrize(
    ("name", "phase", "ending"),
    [
        ("RUNNING", "running", None),
        ("COMPLETING", "running", None),
        ("SUSPENDED", "running", None),
        ("REQUEUED", "pending", None),
        ("CANCELLED+", "ended", "cancelled"),
        ("OUT_OF_MEMORY", "ended", "out_of_memory"),
        ("NODE_FAIL", "ended", "node_fail"),
        ("DEADLINE", "ended", "timeout"),
    ],
)
def test_phases(name: str, phase: str, ending: str | None) -> None:
    state = JobState(name)
    assert state.phase == phase
    assert ending is None or state.ending == ending


def test_a_held_job_says_so() -> None:
    assert JobState("PENDING", reason="launch failed requeued held").held
    assert not JobState("PENDING", reason="Resources").held


@pytest.fixture
def job(tmp_path: Path) -> Job:
    planned = tiny_plan()
    cells = [cell for cell in planned.plan.cells.values() if cell.kind == "quality"][:3]
    store = Store.at(tmp_path, "machine", "table1")
    first = group_cells(cells, planned.locations, {}, store, {"quality": 8}, 0)[0]
    made = first.model_copy(update={"cells": first.cells[:3]})
    write_job(made)
    return made


def cluster(**retries: int) -> SlurmCluster:
    overrides = [f"cluster.retries.{kind}={count}" for kind, count in retries.items()]
    settings = load_settings(["cluster=slurm", *overrides]).cluster
    assert isinstance(settings, SlurmCluster)
    return settings


def submitted(job: Job, **tries: int) -> Submitted:
    cells = tuple(item.cell.id for item in job.cells)
    values = {"slurm_id": "7", "job_id": job.id, "job_file": job.file, "cells": cells, "ranks": 1, "tries": tries}
    return Submitted.model_validate(values)


def tell(job: Job, *events: tuple[str, int]) -> None:
    with events_path(job.file).open("a") as file:
        for kind, at in events:
            event = {"kind": kind, "cell_id": job.cells[at].cell.id, "time": time.time()}
            file.write(Event.model_validate(event).model_dump_json() + "\n")


def test_the_cell_at_work_is_recorded_and_the_rest_goes_out_again(job: Job, tmp_path: Path) -> None:
    job.store.write(record(job.cells[0].cell))
    tell(job, ("started", 0), ("finished", 0), ("started", 1))
    found = settle(submitted(job), JobState("TIMEOUT"), cluster(), tmp_path)
    (made,) = found.records
    assert (made.cell_id, made.status) == (job.cells[1].cell.id, "timeout")
    assert made.reason == "SLURM job 7 was stopped at its time limit, 120 min if nobody changed it"
    assert found.again is not None and [item.cell.id for item in found.again.cells] == [job.cells[2].cell.id]
    assert found.again.id == f"{job.id}+2"


def test_a_job_without_any_result_does_not_go_out_for_ever(job: Job, tmp_path: Path) -> None:
    found = settle(submitted(job), JobState("FAILED", "1:0"), cluster(), tmp_path)
    assert {made.status for made in found.records} == {"failed"} and len(found.records) == len(job.cells)
    assert found.again is None


def test_retries_are_counted_by_what_ended_the_job(job: Job, tmp_path: Path) -> None:
    tell(job, ("started", 0))
    lost = JobState("NODE_FAIL")
    first = settle(submitted(job), lost, cluster(node_fail=2), tmp_path)
    assert first.records == () and first.again is not None and first.tries == {"node_fail": 1}
    last = settle(submitted(job, node_fail=2), lost, cluster(node_fail=2), tmp_path)
    assert [made.reason for made in last.records] == ["SLURM job 7 lost its node"]
    other = settle(submitted(job, node_fail=2), JobState("PREEMPTED"), cluster(preempted=1), tmp_path)
    assert other.again is not None and other.tries == {"node_fail": 2, "preempted": 1}


def test_cancelling_is_for_all_cells_and_final(job: Job, tmp_path: Path) -> None:
    tell(job, ("started", 0))
    found = settle(submitted(job), JobState("CANCELLED by 1000"), cluster(cancelled=5), tmp_path)
    assert len(found.records) == len(job.cells) and found.again is None


def test_what_another_client_runs_is_left_to_it(job: Job, tmp_path: Path) -> None:
    tell(job, *(("skipped", at) for at in range(len(job.cells))))
    found = settle(submitted(job), JobState("COMPLETED", "0:0"), cluster(), tmp_path)
    assert found.records == () and found.again is None


@pytest.mark.parametrize(
    ("log", "status", "words"),
    [
        ("srun: error: n2: tasks 2-3: Killed\nRankFailedError: this rank failed", "failed", "n2: tasks 2-3: Killed"),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0", "out_of_memory", "oom_kill"),
        ("ModuleNotFoundError: No module named 'torch'\nsrun: error: n1: task 0: Exited with exit code 1", "failed",
         "No module named 'torch'"),
    ],
)  # fmt: skip
def test_the_telling_line_of_the_log_is_in_the_reason(
    job: Job, tmp_path: Path, log: str, status: str, words: str
) -> None:
    tell(job, ("started", 0))
    (tmp_path / "7_0_log.out").write_text(f"something\n{log}\n")
    (made,) = settle(submitted(job), JobState("FAILED", "9:0"), cluster(), tmp_path).records
    assert made.status == status and made.reason is not None and words in made.reason
    assert made.failure is not None and made.failure.traceback is not None and log in made.failure.traceback


def test_the_registry_keeps_what_is_not_settled(job: Job) -> None:
    registry = Registry.of(job.store)
    registry.add([submitted(job)])
    assert registry.read() == {"7": submitted(job)} and registry.has("7")
    registry.remove("7")
    assert registry.read() == {} and not registry.has("7")
