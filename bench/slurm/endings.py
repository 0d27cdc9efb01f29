"""What a job's end means for its cells: which get a record of it, and which go out again."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.clusters import Ending, SlurmCluster
from bench.errors import RecordError
from bench.events import EventReader
from bench.jobs import Event, Job, JobCell
from bench.outcomes import record_without_result
from bench.ranks import EXIT_STOPPED
from bench.records import Failure, RankMemory, Record, Status
from bench.slurm.entry import STOPPED
from bench.slurm.registry import Submitted
from bench.slurm.states import JobState
from bench.store import Store

_LOG_TAIL = 4000
_MEMORY = re.compile(r"oom[-_ ]?kill|out[- ]of[- ]memory|exceeded (job|step) memory limit|memory limit exceeded", re.I)
_DEATH = re.compile(r"srun: error: .*tasks? .*: (Killed|Aborted|Terminated|Bus error|Segmentation|Floating|Illegal)")
_SCHEDULER = re.compile(r"(srun|slurmstepd|slurmd)[^:]*: error:|\*\*\* (JOB|STEP)")
_PYTHON = re.compile(r"^[\w.]*(Error|Exception|Interrupt)\b")
_TIDY = re.compile(r"^(srun|slurmstepd|slurmd)[^:]*: (error: )?")

_STATUS: dict[Ending, Status] = {"timeout": "timeout", "out_of_memory": "out_of_memory"}


@dataclass(frozen=True)
class End:
    """How a job ended, as far as cells without a record need it."""

    kind: Ending
    reason: str
    log: str
    memory: tuple[RankMemory, ...] = ()


@dataclass(frozen=True)
class Settlement:
    """What is left to do after a job's end.

    Attributes:
        records: of cells that end with the job.
        again: the job's cells that go out again, None if there are none.
        tries: of that job.
    """

    records: tuple[Record, ...]
    again: Job | None
    tries: dict[Ending, int]


def settle(submitted: Submitted, state: JobState, cluster: SlurmCluster, logs: Path) -> Settlement:
    """Look at what an ended job left, decide on the rest. Writes nothing."""
    job = submitted.job()
    left = [item for item in job.cells if not has_record(job.store, item)]
    events = EventReader(submitted.job_file, submitted.ranks).read()
    if state.base == "COMPLETED":  # cells that it skipped are in another client's hands
        skipped = {event.cell_id for event in events if event.kind == "skipped"}
        left = [item for item in left if item.cell.id not in skipped]
    if not left:
        return Settlement((), None, {})
    end = describe_end(submitted, state, cluster, logs)
    at_work = _at_work(events, left)
    used = submitted.tries.get(end.kind, 0)
    progressed = len(left) < len(job.cells)
    if end.kind != "cancelled" and used < cluster.retries.get(end.kind, 0):
        return Settlement((), _again(job, left), {**submitted.tries, end.kind: used + 1})
    if end.kind == "cancelled" or (at_work is None and not progressed):
        stopped = left  # all of them: nothing says that the next job would do better
    else:
        stopped = [] if at_work is None else [at_work]
    rest = [item for item in left if item not in stopped]
    since = {event.cell_id: event.time for event in events if event.kind == "started"}
    records = tuple(_record(job, item, end, since.get(item.cell.id)) for item in stopped)
    return Settlement(records, _again(job, rest) if rest else None, {})


def describe_end(submitted: Submitted, state: JobState, cluster: SlurmCluster, logs: Path) -> End:
    log = read_log(logs, submitted)
    kind = state.ending
    if kind == "failed" and (state.exit_code.startswith(f"{EXIT_STOPPED}:") or f"{STOPPED}:" in log):
        kind = "timeout"
    if kind == "failed" and _MEMORY.search(log):
        kind = "out_of_memory"
    if kind == "lost" and "DUE TO TIME LIMIT" in log:
        kind = "timeout"
    where = f"SLURM job {submitted.slurm_id}"
    said = _telling_line(log)
    reasons: dict[Ending, str] = {
        "timeout": f"{where} was stopped at its time limit, {cluster.time_min} min if nobody changed it",
        "cancelled": f"{where} was cancelled ({state.name})",
        "out_of_memory": f"{where} was stopped for its use of memory",
        "node_fail": f"{where} lost its node",
        "preempted": f"{where} was preempted and not started again",
        "lost": f"{where} is not known to the scheduler any more",
        "failed": f"{where} failed (exit code {state.exit_code or 'unknown'})",
    }
    reason = reasons[kind] + (f": {said}" if said and kind in ("failed", "lost", "out_of_memory") else "")
    memory: tuple[RankMemory, ...] = ()
    if kind == "out_of_memory":
        peak = peak_memory_mib(submitted.slurm_id)
        memory = () if peak is None else (RankMemory(rank=0, resident_mib=peak),)
        reason += "" if peak is None else f"; its largest process used {peak:.0f} MiB when last looked at"
    return End(kind, reason, log, memory)


def has_record(store: Store, item: JobCell) -> bool:
    """Of this attempt. A damaged one counts: it is for a person to look at."""
    try:
        record = store.read(item.cell.id)
    except RecordError:
        return True
    return record is not None and record.attempt >= item.attempt


def read_log(logs: Path, submitted: Submitted) -> str:
    """The end of what the job's ranks and the scheduler wrote. The first rank's file has the scheduler's words too."""
    parts = []
    for rank in reversed(range(submitted.ranks)):
        path = logs / f"{submitted.slurm_id}_{rank}_log.out"
        if path.exists():
            parts.append(path.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL:].strip())
    return "\n".join(part for part in parts if part)[-2 * _LOG_TAIL :]


def peak_memory_mib(slurm_id: str) -> float | None:
    """The largest resident size of a process of the job, from the accounting; None where there is none."""
    try:
        command = ["sacct", "-n", "-P", "-o", "MaxRSS", "-j", slurm_id]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    sizes = [_mib(line.strip()) for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []
    return max(sizes, default=0.0) or None


def _mib(text: str) -> float:
    units = {"K": 2**-10, "M": 1.0, "G": 2.0**10, "T": 2.0**20}
    try:
        return float(text[:-1]) * units[text[-1]] if text[-1] in units else float(text) / 2**20
    except ValueError:
        return 0.0


def _at_work(events: Sequence[Event], left: Sequence[JobCell]) -> JobCell | None:
    """The cell that was running at the end."""
    running: str | None = None
    for event in events:
        if event.kind == "started":
            running = event.cell_id
        elif event.kind in ("finished", "skipped") and event.cell_id == running:
            running = None
    return next((item for item in left if item.cell.id == running), None)


def _again(job: Job, left: Sequence[JobCell]) -> Job:
    """A job of its own name, so that the first one's files stay."""
    base, _, number = job.id.rpartition("+")
    name = f"{base}+{int(number) + 1}" if base else f"{job.id}+2"
    return job.model_copy(update={"cells": tuple(left), "id": name})


def _record(job: Job, item: JobCell, end: End, since: float | None) -> Record:
    return record_without_result(
        item.cell,
        _STATUS.get(end.kind, "failed"),
        end.reason,
        table=job.table,
        job=job.id,
        attempt=item.attempt,
        started=datetime.fromtimestamp(since or time.time(), UTC),
        failure=Failure(kind=end.kind, message=end.reason, traceback=end.log or None, rank=None),
        memory=end.memory,
    )


def _telling_line(log: str) -> str:
    """The line that says most about the cause: a rank's death by a signal, then other words of the scheduler, then
    Python's, then the last."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for kind in (_DEATH, _SCHEDULER, _PYTHON):
        telling = [line for line in lines if kind.search(line) and "Exited with exit code" not in line]
        if telling:
            return _TIDY.sub("", telling[-1])[:300]
    return lines[-1][:300] if lines else ""
