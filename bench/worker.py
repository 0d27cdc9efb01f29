"""Runs the cells of one job: ``python -m bench.worker JOBFILE``, once for each of the job's ranks.

A cell that fails leaves a record that says how. Where a process runs alone the next cell follows; where several run
together, the rank that fails leaves the record and ends the job, because the others wait for it in vain, and the
launcher starts what is left in a new one. Only the death of a process itself is left for the launcher to record.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import torch
from pydantic import ValidationError

from bench.environment import read_environment
from bench.errors import RecordError
from bench.jobs import Event, Job, JobCell, claim_failure, events_path, locks_dir
from bench.locks import hold
from bench.memory import MemoryWatch
from bench.methods import build_method
from bench.outcomes import record_of_error, record_without_result
from bench.partial import PartialScenes, highest
from bench.quality import run_quality
from bench.ranks import EXIT_FAILED_RANK, EXIT_LOST_CONTACT, Placement, Team, join, leave, lost_contact
from bench.records import QualityResult, RankMemory, Record, SceneQuality
from bench.settings import describe
from bench.speed import run_speed
from bench.store import Store
from tttlrm.errors import UserError

Emit = Callable[[Event], None]


class RankFailedError(Exception):
    """A rank of several failed at a cell. ``record`` says how, unless it only lost another rank."""

    def __init__(self, record: Record | None) -> None:
        super().__init__("this rank failed")
        self.record = record


def run_job(job: Job, emit: Emit, team: Team) -> None:
    """Run every cell of the job that has no record of this attempt and that nobody else is running."""
    place = team.placement
    default_threads = place.threads or max(1, torch.get_num_threads() // place.local_size)
    for item in job.cells:
        with _turn(job, item, team) as mine:
            if not mine:
                if team.rank == 0:
                    emit(Event(kind="skipped", cell_id=item.cell.id, time=time.time()))
                continue
            if team.rank == 0:
                emit(Event(kind="started", cell_id=item.cell.id, time=time.time()))
            torch.set_num_threads(item.cell.threads or default_threads)
            if item.cell.device == "cuda":
                torch.cuda.empty_cache()  # what an earlier cell left, above all one that ran out of memory
            with _time_limit(job, item, emit, team):
                record = run_cell(job, item, emit, team)
            if record is not None:
                written = job.store.write(record)
                PartialScenes.of(job.store, item.cell, item.attempt).clear()
                emit(Event(kind="finished", cell_id=item.cell.id, time=time.time(), status=written.status))


def run_cell(job: Job, item: JobCell, emit: Emit, team: Team) -> Record | None:
    """Run one cell; errors become the record's status. None on all ranks but the first.

    Raises RankFailedError on a rank of several that fails.
    """
    cell, started = item.cell, datetime.now(UTC)
    watch = None
    quality, speed = None, None
    try:
        method = build_method(cell, item.weights, team.sequence)
        watch = MemoryWatch(cell.device, team.rank)
        if cell.kind == "quality":
            run = _QualityRun(job, item, emit, team, watch)
            quality = run_quality(cell, method, item.dataset_root, run.scene_done, run.todo, team.leads)
            quality, memories = run.complete(quality)
        else:
            speed, memory = run_speed(cell, method, item.dataset_root, team)
            memories = tuple(team.gather_objects(memory))
    except Exception as error:  # a record is made of whatever it was
        if team.size > 1 and lost_contact(error):
            raise RankFailedError(None) from error
        so_far = () if watch is None else (watch.read(),)
        record = record_of_error(
            error,
            cell,
            table=job.table,
            job=job.id,
            attempt=item.attempt,
            started=started,
            memory=so_far,
            rank=team.rank,
        )
        if team.size > 1:
            raise RankFailedError(record) from error
        return record
    if team.rank > 0:
        return None
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
        memory=memories,
        environment=read_environment(use_gpu=cell.device == "cuda"),
    )


class _QualityRun:
    """The scenes of a quality cell, as far as they are not there already, split among the replicas."""

    def __init__(self, job: Job, item: JobCell, emit: Emit, team: Team, watch: MemoryWatch) -> None:
        self._cell, self._emit, self._team, self._watch = item.cell, emit, team, watch
        self._partial = PartialScenes.of(job.store, item.cell, item.attempt)
        self._before = team.broadcast(self._partial.read() if team.rank == 0 else None)
        left = [name for name in item.cell.dataset.scenes if name not in self._before]
        self.todo = left[team.replica :: team.replicas]

    def scene_done(self, scene: SceneQuality) -> None:
        self._partial.write(scene, [self._watch.read()])
        done, total = self._partial.count(), len(self._cell.dataset.scenes)
        event = Event(kind="scene", cell_id=self._cell.id, time=time.time(), done=done, total=total, scene=scene.scene)
        self._emit(event)

    def complete(self, made: QualityResult) -> tuple[QualityResult, tuple[RankMemory, ...]]:
        """All scenes in their order, and each rank's peak memory; on every rank."""
        parts = self._team.gather_objects((made, self._watch.read()))
        scenes = {name: partial.scene for name, partial in self._before.items()}
        scenes.update({scene.scene: scene for part, _ in parts for scene in part.scenes})
        memories = [memory for partial in self._before.values() for memory in partial.memory]
        result = QualityResult(
            scenes=tuple(scenes[name] for name in self._cell.dataset.scenes), lpips_absent=parts[0][0].lpips_absent
        )
        return result, highest([*memories, *(memory for _, memory in parts)])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"python -m bench.worker JOBFILE [--rank R --size N --rendezvous URL]: {message}\n")


def main(arguments: list[str] | None = None) -> int:
    parser = _Parser(prog="python -m bench.worker", description="Run the cells of one job.")
    parser.add_argument("job", type=Path, help="the job's file")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--size", type=int, default=1)
    parser.add_argument("--rendezvous", help="where the ranks meet, as torch.distributed understands it")
    try:
        options = parser.parse_args(arguments)
    except SystemExit as leaving:  # it has said why
        return int(leaving.code or 0)
    return work(options.job, Placement(options.rank, options.size, options.rank, options.size, options.rendezvous))


def work(path: Path, placement: Placement) -> int:
    """Run the job in the file as one of its processes; the exit status."""
    try:
        job = Job.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        problem = describe(error) if isinstance(error, ValidationError) else error.strerror
        print(f"{path}: not a readable job file ({problem})", file=sys.stderr)
        return 2
    first = job.cells[0].cell
    with open(events_path(path, placement.rank), "a", encoding="utf-8") as events:

        def emit(event: Event) -> None:
            events.write(event.model_dump_json() + "\n")
            events.flush()

        try:
            limit = job.cell_limit_s or 24 * 3600.0
            with join(placement, first.sp_size, first.device, job.collective_timeout_s, limit) as team:
                run_job(job, emit, team)
        except RankFailedError as failure:
            traceback.print_exc()
            leave(_leave_record(job, path, failure, emit))
        except UserError as error:
            print(error, file=sys.stderr)
            if placement.size == 1:
                return 2
            leave(2)
        except Exception:
            if placement.size == 1:
                raise
            traceback.print_exc()
            leave(EXIT_LOST_CONTACT)
    return 0


def _leave_record(job: Job, path: Path, failure: RankFailedError, emit: Emit) -> int:
    """Write the record of the first rank that failed; the exit status."""
    record = failure.record
    if record is None:
        return EXIT_LOST_CONTACT
    if claim_failure(path, record.cell_id, record.attempt):
        written = job.store.write(record)
        emit(Event(kind="finished", cell_id=record.cell_id, time=time.time(), status=written.status))
    return EXIT_FAILED_RANK


@contextmanager
def _turn(job: Job, item: JobCell, team: Team) -> Iterator[bool]:
    """Whether this job is to run the cell now: rank 0 takes the lock and decides for all."""
    if team.rank > 0:
        yield team.broadcast(None)
        return
    with hold(locks_dir(job.store), item.cell.id) as mine:
        yield team.broadcast(mine and not _is_done(job.store, item))


@contextmanager
def _time_limit(job: Job, item: JobCell, emit: Emit, team: Team) -> Iterator[None]:
    """Where no launcher watches the cell's time, rank 0 does: it records the timeout and ends the job."""
    if job.cell_limit_s is None or team.rank > 0:
        yield
        return
    started = datetime.now(UTC)

    def stop() -> None:
        reason = f"stopped after {job.cell_limit_s:g} s"
        if claim_failure(job.file, item.cell.id, item.attempt):
            record = record_without_result(
                item.cell, "timeout", reason, table=job.table, job=job.id, attempt=item.attempt, started=started
            )
            job.store.write(record)
            emit(Event(kind="finished", cell_id=item.cell.id, time=time.time(), status="timeout"))
        print(f"{item.cell.label()}: {reason}", file=sys.stderr)
        leave(EXIT_FAILED_RANK)

    timer = threading.Timer(job.cell_limit_s, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _is_done(store: Store, item: JobCell) -> bool:
    """Whether another client has made this attempt's record in the meantime."""
    try:
        record = store.read(item.cell.id)
    except RecordError:
        return False
    return record is not None and record.attempt >= item.attempt


if __name__ == "__main__":
    sys.exit(main())
