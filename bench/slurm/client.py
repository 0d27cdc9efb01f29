"""Follows a table's jobs on a SLURM cluster until every cell has a record.

All that the client knows lies in files: it can be stopped and started again, and two can watch the same jobs.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from bench.clusters import SlurmCluster
from bench.errors import RecordError
from bench.events import EventReader
from bench.jobs import Event, Job, JobCell, locks_dir
from bench.locks import release_job
from bench.progress import Progress
from bench.slurm.endings import has_record, settle
from bench.slurm.registry import Registry, Submitted
from bench.slurm.states import UNKNOWN, JobState, StateSource, choose_source
from bench.slurm.submission import submit
from bench.store import Store

_READ_S = 1.0
"""Between looks at the files that the jobs write."""


class Detached(KeyboardInterrupt):
    """The client was interrupted; its jobs go on. The message says how to come back."""


@dataclass
class _Seen:
    """What this client has seen of one job."""

    events: EventReader
    state: JobState = field(default_factory=lambda: JobState("PENDING"))
    ended_since: float | None = None
    polls: int = 0
    held: bool = False
    running: dict[str, float] = field(default_factory=dict)


class SlurmLauncher:
    """Submits jobs, or finds those that were submitted before, and follows them."""

    def __init__(self, store: Store, cluster: SlurmCluster, progress: Progress) -> None:
        self._store, self._cluster, self._progress = store, cluster, progress
        self._registry = Registry.of(store)
        self._source: StateSource = choose_source(cluster.accounting)
        self._seen: dict[str, _Seen] = {}
        self._told: set[str] = set()
        self._items: dict[str, JobCell] = {}

    def run(self, jobs: Sequence[Job]) -> None:
        """Until each cell of the jobs has a record, or is in another client's hands.

        Raises:
            Detached: interrupted by the user.
            SettingsError: the scheduler refuses a job.
        """
        self._items = {item.cell.id: item for job in jobs for item in job.cells}
        wanted = frozenset(self._items)
        submitted: dict[str, Submitted] = {}
        try:
            self._attach(jobs)
            polled = 0.0
            while True:
                submitted = self._registry.read(submitted)
                ours = {slurm_id: one for slurm_id, one in submitted.items() if wanted & set(one.cells)}
                self._tell(ours)
                if not ours:
                    return
                if time.monotonic() - polled >= self._cluster.poll_s:
                    self._poll(ours)
                    polled = time.monotonic()
                    if self._settle_ended(ours):
                        continue
                time.sleep(min(_READ_S, self._cluster.poll_s))
        except KeyboardInterrupt:
            raise Detached(self._farewell(wanted)) from None

    def _attach(self, jobs: Sequence[Job]) -> None:
        """Submit what no submitted job has in hand."""
        with self._registry.exclusive():
            known = self._registry.read()
            for one in [one for one in known.values() if _is_complete(one)]:
                self._registry.remove(known.pop(one.slurm_id).slurm_id)
            in_hand = {cell for one in known.values() for cell in one.cells}
            left = [rest for job in jobs if (rest := job.without(_taken(job, in_hand))) is not None]
            if known and in_hand & set(self._items):
                self._progress.note(f"{len(known)} jobs were submitted before and are followed again")
            sent = submit(left, self._cluster, self._registry)
        if sent:
            arrays = {one.slurm_id.split("_")[0] for one in sent}
            what = f"job {min(arrays)}" if len(sent) == 1 else f"{len(sent)} jobs in {len(arrays)} arrays"
            self._progress.note(f"submitted {what}")

    def _poll(self, ours: dict[str, Submitted]) -> None:
        states = self._source.states(ours)
        if states is None:
            self._progress.note("the scheduler does not answer; asking again")
            return
        for slurm_id, state in states.items():
            seen = self._of(ours[slurm_id])
            seen.polls = seen.polls + 1 if state == seen.state else 1
            if state.phase != "ended":
                seen.ended_since = None
            elif seen.ended_since is None or state != seen.state:
                seen.ended_since = time.monotonic()
            seen.state = state
            if state.held and not seen.held:
                seen.held = True
                said = f"job {slurm_id} is held ({state.reason}); to let it go: scontrol release {slurm_id}"
                self._progress.note(said)
        self._progress.jobs_changed(_counts(states.values()))

    def _settle_ended(self, ours: dict[str, Submitted]) -> bool:
        """Whether anything was settled."""
        for one in [one for one in ours.values() if self._is_superfluous(one)]:
            subprocess.run(["scancel", one.slurm_id], capture_output=True, timeout=60)
            self._registry.remove(one.slurm_id)
        ended = [one for slurm_id, one in ours.items() if self._is_over(self._seen.get(slurm_id))]
        for one in ended:
            self._settle(one, self._seen[one.slurm_id].state)
        return bool(ended)

    def _is_over(self, seen: _Seen | None) -> bool:
        """An end counts when it was seen twice, and one that may be undone when it has lasted."""
        if seen is None or seen.ended_since is None:
            return False
        if seen.state.base == "COMPLETED":
            return True
        lasted = time.monotonic() - seen.ended_since
        return seen.polls >= 2 and (not seen.state.may_return or lasted >= self._cluster.look_again_s)

    def _is_superfluous(self, one: Submitted) -> bool:
        """Queued again, as happens to a job on a node that was lost for a moment only, with all of its cells done."""
        return self._of(one).state.phase == "pending" and self._told >= set(one.cells) and _is_complete(one)

    def _settle(self, one: Submitted, state: JobState) -> None:
        with self._registry.exclusive():
            if not self._registry.has(one.slurm_id):  # another client was faster
                return
            release_job(locks_dir(self._store), one.slurm_id)
            settlement = settle(one, state, self._cluster, self._registry.logs)
            for record in settlement.records:
                self._store.write(record)
            if settlement.again is not None:
                again = settlement.again
                sent = submit([again], self._cluster, self._registry, {again.id: settlement.tries})
                self._progress.note(
                    f"job {one.slurm_id} ended ({state.name}); {len(again.cells)} cells go on in job {sent[0].slurm_id}"
                )
            self._registry.remove(one.slurm_id)
        self._tell({one.slurm_id: one})
        for cell_id in one.cells:
            self._tell_finished(cell_id, 0.0)

    def _tell(self, ours: dict[str, Submitted]) -> None:
        """Pass on what the jobs' workers wrote since the last look."""
        for one in ours.values():
            seen = self._of(one)
            if seen.state.phase == "pending":  # nothing to read, of thousands perhaps
                continue
            for event in seen.events.read():
                self._handle(event, seen)

    def _handle(self, event: Event, seen: _Seen) -> None:
        if event.kind == "started":
            seen.running.setdefault(event.cell_id, event.time)
        elif event.kind == "finished":
            self._tell_finished(event.cell_id, event.time - seen.running.pop(event.cell_id, event.time))

    def _tell_finished(self, cell_id: str, seconds: float) -> None:
        item = self._items.get(cell_id)
        if item is None or cell_id in self._told:
            return
        try:
            record = self._store.read(cell_id)
        except RecordError:
            return
        if record is not None and record.attempt >= item.attempt:
            self._told.add(cell_id)
            self._progress.cell_finished(item.cell.label(), record.status, record.reason, seconds)

    def _of(self, one: Submitted) -> _Seen:
        if one.slurm_id not in self._seen:
            self._seen[one.slurm_id] = _Seen(EventReader(one.job_file, one.ranks))
        return self._seen[one.slurm_id]

    def _farewell(self, wanted: Collection[str]) -> str:
        left = [one.slurm_id for one in self._registry.read().values() if set(wanted) & set(one.cells)]
        if not left:
            return "interrupted; no job is left on the cluster"
        arrays = " ".join(sorted({slurm_id.split("_")[0] for slurm_id in left}))
        return (
            f"detached; {len(left)} jobs go on without this command, and the same command comes back to them "
            f"(to stop them: scancel {arrays})"
        )


def _taken(job: Job, in_hand: set[str]) -> set[str]:
    return {i.cell.id for i in job.cells if i.cell.id in in_hand or has_record(job.store, i)}


def _is_complete(one: Submitted) -> bool:
    job = one.job()
    return all(has_record(job.store, item) for item in job.cells)


def _counts(states: Collection[JobState]) -> dict[str, int]:
    names = ("not seen yet" if state == UNKNOWN else state.base.lower().replace("_", " ") for state in states)
    return dict(sorted(Counter(names).items()))
