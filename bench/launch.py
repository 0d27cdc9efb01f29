"""Runs jobs on this machine: a worker process for each, watched until its cells have records.

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

from bench.jobs import Event, Job, JobCell, events_path, write_job
from bench.outcomes import record_without_result
from bench.progress import Progress
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
    """One worker process, from its start to its end."""

    def __init__(self, job: Job, launcher: LocalLauncher) -> None:
        self._job = job
        self._launcher = launcher
        self._cells = {item.cell.id: item for item in job.cells}
        self._settled: set[str] = set()
        self._running: JobCell | None = None
        self._since = time.time()
        self._read_to = 0

    def run(self) -> set[str]:
        """The cells that are settled: recorded by the worker or here, or being run by another client."""
        path = write_job(self._job)
        log = path.with_suffix(".log")
        with open(log, "w", encoding="utf-8") as output:
            process = subprocess.Popen(
                [*self._launcher.command, str(path)],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=_worker_environment(),
            )
        try:
            timed_out = self._wait(process, path)
        finally:
            _stop(process)
        self._read_events(path)
        if timed_out:
            self._settle_running("timeout", f"stopped after {self._launcher.cell_limit_s:g} s", None)
        elif process.returncode != 0 or len(self._settled) < len(self._cells):
            reason, failure = _describe_death(process.returncode, log)
            self._settle_running("failed", reason, failure)
        return self._settled

    def _wait(self, process: subprocess.Popen[bytes], path: Path) -> bool:
        """Until the process ends (False) or the cell's time is over (True)."""
        while process.poll() is None:
            self._read_events(path)
            if time.time() - self._since > self._launcher.cell_limit_s:
                return True
            time.sleep(_POLL_S)
        return False

    def _read_events(self, path: Path) -> None:
        with open(events_path(path), "rb") as file:
            file.seek(self._read_to)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]  # the last line may be half written
        self._read_to += len(whole)
        for line in whole.splitlines():
            self._handle(Event.model_validate_json(line))

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


def _describe_death(code: int, log: Path) -> tuple[str, Failure]:
    """One sentence, and the end of the worker's output."""
    tail = log.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL:].strip()
    last = tail.splitlines()[-1] if tail else ""
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
        reason = f"the worker was killed by {name}{hint}"
    else:
        reason = f"the worker ended with exit code {code}" + (f": {last}" if last else "")
    return reason, Failure(kind="worker", message=reason, traceback=tail or None, rank=None)
