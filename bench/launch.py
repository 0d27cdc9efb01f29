"""Runs jobs on this machine: a worker process for each rank, watched until the job's cells have records.

A worker that dies, hangs or runs out of time costs the cell that it was at; the job's other cells go on in a new one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from bench.events import EventReader
from bench.jobs import Event, Job, JobCell, write_job
from bench.outcomes import record_without_result
from bench.progress import Progress
from bench.ranks import EXIT_LOST_CONTACT
from bench.records import Failure, Status

_POLL_S = 0.1
_GRACE_S = 5.0
_LOG_TAIL = 4000

WORKER = (sys.executable, "-m", "bench.worker")


@dataclass(frozen=True)
class LocalLauncher:
    """Jobs one after the other, so that they do not disturb each other's times.

    Attributes:
        cell_limit_s: a cell that runs longer is stopped and recorded as a timeout; so is a worker that takes as long
            to reach its first cell.
        command: starts a worker; the job file is appended.
    """

    cell_limit_s: float
    progress: Progress
    command: Sequence[str] = field(default=WORKER)

    def run(self, jobs: Sequence[Job]) -> None:
        """Run all jobs. Afterwards each of their cells has a record, unless another client is running it."""
        for job in jobs:
            self.progress.job_started(job.label())
            left: Job | None = job
            while left is not None:
                done = _Watch(left, self).run()
                left = left.without(done)


class _Watch:
    """The worker processes of a job (one for each rank), from their start to their end."""

    def __init__(self, job: Job, launcher: LocalLauncher) -> None:
        self._job = job
        self._launcher = launcher
        self._cells = {item.cell.id: item for item in job.cells}
        self._settled: set[str] = set()
        self._running: JobCell | None = None
        self._since = time.time()
        self._events = EventReader(job.file, job.ranks)

    def run(self) -> set[str]:
        """The cells that are settled: recorded by the worker or here, or being run by another client."""
        path = write_job(self._job)
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(self._job.ranks):
                processes.append(self._start(path, rank))
            timed_out = self._wait(processes)
            # Exit codes are read before the ranks that are left are stopped, which changes theirs.
            culprit = _first_to_fail([process.poll() for process in processes])
        finally:
            for process in processes:
                _stop(process)
        self._read_events()
        if timed_out:
            self._settle_running("timeout", f"stopped after {self._launcher.cell_limit_s:g} s", None)
        elif culprit is not None or len(self._settled) < len(self._cells):
            at = culprit or 0
            several = self._job.ranks > 1
            reason, failure = _describe_death(processes[at].returncode, _log_path(path, at), at if several else None)
            self._settle_running("failed", reason, failure)
        return self._settled

    def _start(self, path: Path, rank: int) -> subprocess.Popen[bytes]:
        command = [*self._launcher.command, str(path)]
        if self._job.ranks > 1:
            meeting = f"file://{path.with_suffix('.rendezvous')}"
            command += ["--rank", str(rank), "--size", str(self._job.ranks), "--rendezvous", meeting]
        with open(_log_path(path, rank), "w", encoding="utf-8") as output:
            return subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=_worker_environment(),
            )

    def _wait(self, processes: Sequence[subprocess.Popen[bytes]]) -> bool:
        """Until the processes end (False) or the cell's time is over (True). Once one has failed, the others have a
        few seconds to say how."""
        failed_at: float | None = None
        while any(process.poll() is None for process in processes):
            self._read_events()
            if time.time() - self._since > self._launcher.cell_limit_s:
                return True
            if failed_at is None and any(process.poll() not in (None, 0) for process in processes):
                failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() - failed_at > _GRACE_S:
                return False
            time.sleep(_POLL_S)
        return False

    def _read_events(self) -> None:
        for event in self._events.read():
            self._handle(event)

    def _handle(self, event: Event) -> None:
        item, progress = self._cells[event.cell_id], self._launcher.progress
        if event.kind == "started":
            self._running, self._since = item, event.time
            progress.cell_started(item.cell.label())
        elif event.kind == "scene":
            progress.scene_done(event.done, event.total)
        else:
            reason = None
            if event.kind == "finished" and event.status != "ok":
                record = self._job.store.read(event.cell_id)
                reason = record.reason if record else None
            status = event.status if event.kind == "finished" else "left to another client"
            self._finish(item, status, reason, event.time)

    def _settle_running(self, status: Status, reason: str, failure: Failure | None) -> None:
        """Record what became of the cell that the worker was at, or of all if it never got to one.

        If it ended between two cells, nothing is recorded: the rest go on in another worker.
        """
        since = datetime.fromtimestamp(self._since, UTC)
        items = [self._running] if self._running else [] if self._settled else list(self._cells.values())
        for item in items:
            record = record_without_result(
                item.cell,
                status,
                reason,
                table=self._job.table,
                job=self._job.id,
                attempt=item.attempt,
                started=since,
                failure=failure,
            )
            self._job.store.write(record)
            self._finish(item, status, reason, time.time())

    def _finish(self, item: JobCell, status: str, reason: str | None, at: float) -> None:
        self._settled.add(item.cell.id)
        self._launcher.progress.cell_finished(item.cell.label(), status, reason, at - self._since)
        self._running, self._since = None, at


def _worker_environment() -> dict[str, str]:
    """This process's own, with the suite importable from any folder."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root}


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the worker and whatever it started."""
    if process.poll() is None:
        _signal_group(process, signal.SIGTERM)
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            _signal_group(process, signal.SIGKILL)
            process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _log_path(job_file: Path, rank: int) -> Path:
    return job_file.with_suffix(f".rank{rank}.log" if rank else ".log")


def _first_to_fail(codes: Sequence[int | None]) -> int | None:
    """The rank whose end is the cause: one that was killed before one that failed, and that before one that lost it."""

    def order(rank: int) -> int:
        code = codes[rank] or 0
        return 0 if code < 0 else 2 if code == EXIT_LOST_CONTACT else 1

    failed = [rank for rank, code in enumerate(codes) if code]
    return min(failed, key=order) if failed else None


def _describe_death(code: int, log: Path, rank: int | None) -> tuple[str, Failure]:
    """One sentence, and the end of the worker's output."""
    tail = log.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL:].strip()
    last = tail.splitlines()[-1] if tail else ""
    who = "the worker" if rank is None else f"rank {rank}"
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
        reason = f"{who} was killed by {name}{hint}"
    else:
        reason = f"{who} ended with exit code {code}" + (f": {last}" if last else "")
    return reason, Failure(kind="worker", message=reason, traceback=tail or None, rank=rank)
