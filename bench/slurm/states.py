"""What the scheduler says of jobs: one question for all of them, to the accounting or to the queue."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from bench.clusters import Ending
from bench.errors import SettingsError

Phase = Literal["pending", "running", "ended"]

_PENDING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_ENDINGS: dict[str, Ending] = {
    "NODE_FAIL": "node_fail",
    "BOOT_FAIL": "node_fail",
    "PREEMPTED": "preempted",
    "REVOKED": "preempted",
    "CANCELLED": "cancelled",
    "FAILED": "failed",
    "LAUNCH_FAILED": "failed",
    "OUT_OF_MEMORY": "out_of_memory",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
}
_ARRAY = re.compile(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]")
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class JobState:
    """Of one job at one moment.

    Attributes:
        name: as the scheduler calls it: RUNNING, ``CANCELLED by 1000``; UNKNOWN if it does not know the job.
        exit_code: ``code:signal``, where it is told.
        reason: why a job waits, in the scheduler's words.
    """

    name: str
    exit_code: str = ""
    reason: str = ""

    @property
    def base(self) -> str:
        return self.name.split()[0].rstrip("+")

    @property
    def phase(self) -> Phase:
        if self.base in _PENDING:
            return "pending"
        return "ended" if self.base in _ENDINGS or self.base in ("COMPLETED", "UNKNOWN") else "running"

    @property
    def ending(self) -> Ending:
        """What the end means for cells without a record."""
        return "lost" if self.base == "UNKNOWN" else _ENDINGS.get(self.base, "failed")

    @property
    def held(self) -> bool:
        """Whether the job waits for a person to release it."""
        return self.phase == "pending" and "held" in self.reason.lower()

    @property
    def may_return(self) -> bool:
        """Whether the scheduler may yet start the job again, or come to know it."""
        return self.base in ("NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "REVOKED", "UNKNOWN")


UNKNOWN = JobState("UNKNOWN")


class StateSource(Protocol):
    def states(self, ids: Iterable[str]) -> dict[str, JobState] | None:
        """id (``12`` or ``12_3``) -> state, with a single call however many ids; None if the scheduler did not answer.
        Jobs that it does not know are UNKNOWN."""
        ...


class Accounting:
    """sacct: knows jobs for good, on sites that keep accounts."""

    def states(self, ids: Iterable[str]) -> dict[str, JobState] | None:
        wanted = list(ids)
        if not wanted:
            return {}
        jobs = ",".join(sorted({job.split("_")[0] for job in wanted}))
        text = _ask(["sacct", "-X", "-n", "-P", "-o", "JobID,State,ExitCode,Reason", "-j", jobs])
        return None if text is None else _pick(wanted, text)


class Queue:
    """squeue: knows jobs until a few minutes after their end."""

    def states(self, ids: Iterable[str]) -> dict[str, JobState] | None:
        wanted = list(ids)
        if not wanted:
            return {}
        # All of the user's jobs: asking for ids is an error once a single one of them is forgotten.
        text = _ask(["squeue", "--me", "-h", "-r", "-t", "all", "-o", "%i|%T||%r"])
        return None if text is None else _pick(wanted, text)


def choose_source(accounting: Literal["auto", "sacct", "squeue"]) -> StateSource:
    """auto: sacct where it answers."""
    if accounting == "squeue":
        return Queue()
    works = _ask(["sacct", "-X", "-n", "-P", "-o", "JobID", "-j", "1"]) is not None
    if accounting == "sacct" and not works:
        raise SettingsError("cluster.accounting is sacct, and sacct does not work here; use squeue or auto")
    return Accounting() if works else Queue()


def expand_ids(text: str) -> Iterator[str]:
    """The jobs that a scheduler's id stands for: ``12``, ``12_3``, or ``12_[0-2,7%4]``."""
    match = _ARRAY.fullmatch(text)
    if match is None:
        yield text
        return
    for part in match[2].split(","):
        first, _, last = part.partition("-")
        yield from (f"{match[1]}_{at}" for at in range(int(first), int(last or first) + 1))


def site_config() -> dict[str, str]:
    """The scheduler's own settings (``scontrol show config``). Raises SettingsError if it does not answer."""
    text = _ask(["scontrol", "show", "config"])
    if text is None:
        raise SettingsError("cluster=slurm: the scheduler does not answer (scontrol show config)")
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip() for key, sign, value in pairs if sign}


def _pick(wanted: list[str], text: str) -> dict[str, JobState]:
    found = {}
    for line in text.splitlines():
        identity, name, exit_code, reason = (line.split("|") + ["", "", "", ""])[:4]
        for job in expand_ids(identity.strip()):
            found[job] = JobState(name.strip() or "UNKNOWN", exit_code, reason.strip())
    return {job: found.get(job, UNKNOWN) for job in wanted}


def _ask(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
