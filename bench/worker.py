"""Runs the cells of one job: ``python -m bench.worker JOBFILE``.

A cell that fails leaves a record that says how, and the next cell runs. Only the death of the process itself is left
for the launcher to record.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import ValidationError

from bench.environment import read_environment
from bench.errors import RecordError
from bench.jobs import Event, Job, JobCell, events_path, locks_dir
from bench.locks import hold
from bench.memory import MemoryWatch
from bench.methods import build_method
from bench.outcomes import record_of_error
from bench.quality import run_quality
from bench.records import Record
from bench.settings import describe
from bench.speed import run_speed
from bench.store import Store
from tttlrm.errors import UserError

Emit = Callable[[Event], None]


def run_job(job: Job, emit: Emit) -> None:
    """Run every cell of the job that has no record of this attempt and that nobody else is running."""
    default_threads = torch.get_num_threads()
    for item in job.cells:
        with hold(locks_dir(job.store), item.cell.id) as mine:
            if not mine or _is_done(job.store, item):
                emit(Event(kind="skipped", cell_id=item.cell.id, time=time.time()))
                continue
            emit(Event(kind="started", cell_id=item.cell.id, time=time.time()))
            torch.set_num_threads(item.cell.threads or default_threads)
            if item.cell.device == "cuda":
                torch.cuda.empty_cache()  # what an earlier cell left, above all one that ran out of memory
            record = job.store.write(run_cell(job, item, emit))
            emit(Event(kind="finished", cell_id=item.cell.id, time=time.time(), status=record.status))


def run_cell(job: Job, item: JobCell, emit: Emit) -> Record:
    """Run one cell; errors become the record's status."""
    cell, started = item.cell, datetime.now(UTC)
    watch = None

    def on_scene(done: int, total: int) -> None:
        emit(Event(kind="scene", cell_id=cell.id, time=time.time(), done=done, total=total))

    try:
        method = build_method(cell, item.weights)
        watch = MemoryWatch(cell.device)
        quality, speed = None, None
        if cell.kind == "quality":
            quality = run_quality(cell, method, item.dataset_root, on_scene)
            memory = watch.read()
        else:
            speed, memory = run_speed(cell, method, item.dataset_root)
    except Exception as error:  # a record is made of whatever it was
        so_far = () if watch is None else (watch.read(),)
        return record_of_error(
            error, cell, table=job.table, job=job.id, attempt=item.attempt, started=started, memory=so_far
        )
    return Record(
        table=job.table,
        cell_id=cell.id,
        cell=cell,
        status="ok",
        reason=None,
        attempt=item.attempt,
        started=started,
        finished=datetime.now(UTC),
        job=job.id,
        speed=speed,
        quality=quality,
        memory=(memory,),
        environment=read_environment(use_gpu=cell.device == "cuda"),
    )


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1:
        print("usage: python -m bench.worker JOBFILE", file=sys.stderr)
        return 2
    path = Path(arguments[0])
    try:
        job = Job.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        problem = describe(error) if isinstance(error, ValidationError) else error.strerror
        print(f"{path}: not a readable job file ({problem})", file=sys.stderr)
        return 2
    try:
        with open(events_path(path), "a", encoding="utf-8") as events:

            def emit(event: Event) -> None:
                events.write(event.model_dump_json() + "\n")
                events.flush()

            run_job(job, emit)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _is_done(store: Store, item: JobCell) -> bool:
    """Whether another client has made this attempt's record in the meantime."""
    try:
        record = store.read(item.cell.id)
    except RecordError:
        return False
    return record is not None and record.attempt >= item.attempt


if __name__ == "__main__":
    sys.exit(main())
