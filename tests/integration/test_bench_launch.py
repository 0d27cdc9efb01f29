"""Workers that fail in every way there is: their cell gets a record that says how, and the others go on."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from bench.jobs import locks_dir
from bench.locks import hold, is_held
from bench.run import Outcome, find_work, report, run_table, summary
from bench.settings import Settings, load_settings
from bench.store import Store
from tests.bench_cases import MACHINE, record

ROOT = Path(__file__).resolve().parents[2]

WORKER = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from bench import worker
from bench.errors import UnavailableError
from bench.outcomes import record_of_error
from tests.bench_cases import WHEN, record

ACTIONS = {actions!r}


def run_cell(job, item, emit, team):
    action = ACTIONS.get((item.cell.method, item.cell.input_views), "ok")
    errors = {{"raise": ValueError("broken on purpose"), "memory": MemoryError("too much"),
               "unavailable": UnavailableError("no such thing")}}
    if action == "exit":
        print("last words", flush=True)
        os._exit(3)
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "hang":
        time.sleep(1000)
    if action in errors:
        where = dict(table=job.table, job=job.id, attempt=item.attempt, started=WHEN)
        return record_of_error(errors[action], item.cell, **where)
    return record(item.cell, attempt=item.attempt, job=job.id)


worker.run_cell = run_cell
sys.exit(worker.main())
"""


def settings(tmp_path: Path, *overrides: str) -> Settings:
    """That ask for the quality cells of all rows, which are one job of eight."""
    base = [f"results_dir={tmp_path / 'results'}", f"machine={MACHINE}", "cells.kinds=[quality]", "quiet=true"]
    return load_settings([*base, *overrides])


def command(tmp_path: Path, actions: dict[tuple[str, int], str]) -> tuple[str, ...]:
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(root=str(ROOT), actions=actions))
    return (sys.executable, str(script))


def statuses(outcome: Outcome) -> dict[tuple[str, int, int], str]:
    return {
        (r.cell.method, r.cell.resolution[0], r.cell.input_views): f"{r.status}: {r.reason}" if r.reason else r.status
        for r in outcome.table.records
    }


def test_each_failure_stays_where_it_happens(tmp_path: Path) -> None:
    actions = {
        ("gs-lrm", 16): "exit",
        ("tttlrm", 16): "kill",
        ("gs-lrm", 24): "raise",
        ("tttlrm", 24): "memory",
    }
    wanted = settings(tmp_path)
    outcome = run_table(wanted, command(tmp_path, actions))
    assert outcome.exit_code == 1
    assert statuses(outcome) == {
        ("gs-lrm", 96, 8): "ok",
        ("tttlrm", 96, 8): "ok",
        ("gs-lrm", 128, 8): "ok",
        ("tttlrm", 128, 8): "ok",
        ("gs-lrm", 128, 16): "failed: the worker ended with exit code 3: last words",
        ("tttlrm", 128, 16): "failed: the worker was killed by SIGKILL, as the system does when memory runs out",
        ("gs-lrm", 128, 24): "failed: ValueError: broken on purpose",
        ("tttlrm", 128, 24): "out_of_memory: MemoryError: too much",
    }
    folder = locks_dir(find_work(wanted).store)
    assert not any(is_held(folder, cell_id) for cell_id in outcome.table.plan.cells)

    # The same command finds nothing to do, retry=failed runs the four again, and only them.
    assert find_work(wanted).pending == ()
    again = settings(tmp_path, "retry=failed")
    assert {(c.method, c.input_views) for c in find_work(again).pending} == set(actions)
    fixed = run_table(again, command(tmp_path, {}))
    assert fixed.exit_code == 0
    attempts = sorted(r.attempt for r in fixed.table.records)
    assert attempts == [1] * 4 + [2] * 4


def test_a_hanging_cell_is_a_timeout(tmp_path: Path) -> None:
    wanted = settings(tmp_path, "cells.rows=[5,6]", "cluster.cell_limit_s=15")
    started = time.monotonic()
    outcome = run_table(wanted, command(tmp_path, {("gs-lrm", 16): "hang"}))
    assert statuses(outcome) == {("gs-lrm", 128, 16): "timeout: stopped after 15 s", ("tttlrm", 128, 16): "ok"}
    assert time.monotonic() - started < 100
    (stopped,) = [r for r in outcome.table.records if r.status == "timeout"]
    assert 14 < (stopped.finished - stopped.started).total_seconds() < 40


def test_a_worker_that_cannot_start_fails_its_cells(tmp_path: Path) -> None:
    wanted = settings(tmp_path, "cells.rows=[1,2]")
    outcome = run_table(wanted, (sys.executable, "-c", "raise SystemExit('no interpreter today')"))
    reasons = {record.reason for record in outcome.table.records}
    assert reasons == {"the worker ended with exit code 1: no interpreter today"}
    assert outcome.exit_code == 1 and len(outcome.table.records) == 2


def test_what_only_a_run_finds_unavailable_is_a_verdict(tmp_path: Path) -> None:
    wanted = settings(tmp_path, "cells.rows=[1]")
    outcome = run_table(wanted, command(tmp_path, {("gs-lrm", 8): "unavailable"}))
    assert statuses(outcome) == {("gs-lrm", 96, 8): "unavailable: no such thing"}
    assert outcome.exit_code == 0
    assert find_work(wanted).pending == ()
    assert len(find_work(settings(tmp_path, "cells.rows=[1]", "retry=failed")).pending) == 1


def test_a_cell_that_another_client_runs_is_waited_for(tmp_path: Path) -> None:
    wanted = settings(tmp_path, "cells.rows=[1,2]")
    work = find_work(wanted)
    theirs = work.pending[0]
    holding, release = threading.Event(), threading.Event()

    def other_client() -> None:
        with hold(locks_dir(work.store), theirs.id) as mine:
            assert mine
            holding.set()
            release.wait(120)
            work.store.write(record(theirs, job="theirs"))

    thread = threading.Thread(target=other_client)
    thread.start()
    holding.wait(10)
    outcomes: list[Outcome] = []
    ours = threading.Thread(target=lambda: outcomes.append(run_table(wanted, command(tmp_path, {}))))
    ours.start()
    mine = work.pending[1]
    deadline = time.monotonic() + 120
    while work.store.read(mine.id) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.5)
    assert ours.is_alive(), "the run must not end while the other client is at work"
    release.set()
    ours.join(60)
    thread.join(60)
    jobs = {record.cell_id: record.job for record in outcomes[0].table.records}
    assert jobs[theirs.id] == "theirs" and jobs[mine.id] != "theirs"
    assert outcomes[0].exit_code == 0


def test_damaged_records_are_reported_and_replaced_only_when_asked(tmp_path: Path) -> None:
    wanted = settings(tmp_path, "cells.rows=[1]")
    run_table(wanted, command(tmp_path, {}))
    work = find_work(wanted)
    (cell_id,) = work.asked
    path = work.store.record_path(cell_id)
    damaged = path.read_text().replace('"attempt": 1', '"attempt": 7')
    path.write_text(damaged)
    outcome = run_table(wanted, command(tmp_path, {}))
    assert outcome.exit_code == 1 and path.read_text() == damaged
    assert [d.cell_id for d in outcome.table.damaged] == [cell_id]
    fixed = run_table(settings(tmp_path, "cells.rows=[1]", "retry=failed"), command(tmp_path, {}))
    assert fixed.exit_code == 0


def test_part_of_a_table_leaves_the_rest_in_it(tmp_path: Path) -> None:
    def verdicts(outcome: Outcome, row: int) -> str:
        return outcome.table.lines[row - 1].cells["psnr"].verdict.kind

    part = settings(tmp_path, "cells.rows=[1]")
    first = run_table(part, command(tmp_path, {}))
    assert first.exit_code == 0 and len(first.table.records) == 1
    assert (verdicts(first, 1), verdicts(first, 2)) == ("not comparable", "not run")
    assert "16 cells: 1 ok, 15 without a record\n" in summary(first) and "1 of the cells were asked" in summary(first)
    whole = run_table(settings(tmp_path), command(tmp_path, {}))
    assert whole.kept == 1 and len(whole.table.records) == 8
    before = {path: path.read_bytes() for path in whole.files}
    again = run_table(part, command(tmp_path, {}))
    assert again.kept == 1 and again.table.plan == whole.table.plan
    assert {path: path.read_bytes() for path in again.files} == before
    assert report(part).exit_code == 0
    everything = settings(tmp_path, "cells.kinds=[quality,speed]", "report_only=true")
    assert report(everything).exit_code == 1, "the speed runs have no record"
    assert {path: path.read_bytes() for path in whole.files} == before


def test_nothing_is_recorded_of_cells_that_were_not_asked_for(tmp_path: Path) -> None:
    outcome = run_table(settings(tmp_path, "cells.rows=[1]", "cells.sp_size=[9]"), command(tmp_path, {}))
    (made,) = outcome.table.records
    assert made.status == "unavailable" and made.cell.kind == "quality" and outcome.exit_code == 0


def test_missing_data_is_unavailable_until_it_is_there(tmp_path: Path) -> None:
    root = tmp_path / "scenes"
    source = "profile.datasets.gso"
    overrides = ["cells.rows=[1]", f"{source}.source=folder", f"{source}.name=mine", f"{source}.root={root}"]
    wanted = settings(tmp_path, *overrides)
    outcome = run_table(wanted, command(tmp_path, {}))
    (made,) = outcome.table.records
    assert made.status == "unavailable" and made.reason is not None and "mine is not there" in made.reason
    assert outcome.exit_code == 0
    path = Store.at(wanted.results_dir, MACHINE, "table1").record_path(made.cell_id)
    before = path.read_bytes()
    run_table(wanted, command(tmp_path, {}))
    assert path.read_bytes() == before, "the same finding is not written again"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_each_reason_is_said_once_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where there are neither weights/ nor data/
    wanted = load_settings(["table=table2", "profile=paper", f"machine={MACHINE}", "quiet=true"])
    outcome = run_table(wanted, command(tmp_path, {}))
    assert outcome.exit_code == 0
    fetch = "fetches it to where the paper profile expects it"
    reasons = [
        "  15 cells unavailable: no CUDA GPU on this machine; the tiny profile needs none",
        f"  6 cells unavailable: weights file dl3dv_full.safetensors is not there; `make weights` {fetch}",
        f"  5 cells unavailable: dataset dl3dv is not there: no scene folders in data/dl3dv; `make data-dl3dv` {fetch}",
        f"  5 cells unavailable: dataset tnt is not there: no scene folders in data/tnt; `make data-tnt` {fetch}",
        f"  4 cells unavailable: weights file dl3dv_ar.safetensors is not there; `make weights` {fetch}",
        "  9 rows unavailable: 30,000 steps of optimisation of each scene by another system, which this suite does not "
        "run",
        "  4 rows unavailable: another model, which is not part of this suite",
    ]
    said = summary(outcome).splitlines()
    assert said[2:9] == reasons and len(said) == 9 + len(outcome.files)
    repeated = summary(run_table(wanted, command(tmp_path, {}))).splitlines()
    assert repeated == said, "that they are recorded by now changes nothing"
    (full, *_) = [record for record in outcome.table.records if record.cell.dataset.name == "dl3dv"]
    assert full.reason is not None and all(word in full.reason for word in ("CUDA", "`make weights`", "data-dl3dv"))


def test_the_reasons_are_of_the_cells_that_were_asked_for(tmp_path: Path) -> None:
    outcome = run_table(settings(tmp_path, "cells.rows=[1]", "cells.sp_size=[9]"), command(tmp_path, {}))
    assert outcome.reasons == {"sp_size 9 is larger than the number of input views, 8": 1}
    again = report(settings(tmp_path, "cells.rows=[1]", "report_only=true"))
    assert again.reasons == outcome.reasons


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["missing.json"]])
def test_a_worker_refuses_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from bench.worker import main

    assert main(arguments) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
