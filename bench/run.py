"""One table from start to end: plan, run what is missing, render, sum up."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bench.cells import Cell
from bench.clusters import ClusterSettings, LocalCluster
from bench.datasets import missing_data
from bench.environment import machine_label, slug
from bench.jobs import Job, group_cells, locks_dir
from bench.launch import WORKER, LocalLauncher
from bench.locks import is_held
from bench.measured import Result
from bench.methods import missing_device, missing_ranks, missing_weights
from bench.outcomes import record_without_result
from bench.planning import Locations, Planned, asked_cells, plan_table
from bench.progress import Progress, choose_progress
from bench.records import Header
from bench.sanitize import local_sanitizer
from bench.settings import Settings
from bench.store import Damaged, Store
from bench.tables import Table, load_records, load_table, write_table

_WAIT_S = 1.0
_PLANNER = "planner"
"""In place of the job's name, in records of cells that nothing was started for."""


@dataclass(frozen=True)
class Work:
    """What an invocation finds, and what is left to do.

    Attributes:
        found: records there are.
        asked: ids of the cells that ``cells.rows`` and ``cells.kinds`` ask for.
        lacking: cell id -> what is missing to run it here, asked for or not; cells that lack nothing are left out.
        pending: cells to run, all of them asked for.
    """

    planned: Planned
    store: Store
    found: dict[str, Header | Damaged]
    asked: frozenset[str]
    lacking: dict[str, tuple[str, ...]]
    pending: tuple[Cell, ...]

    @property
    def unavailable(self) -> dict[str, str]:
        """Cell id -> why it cannot be run here, in one sentence."""
        return {cell_id: "; ".join(reasons) for cell_id, reasons in self.lacking.items()}

    def jobs(self, settings: Settings) -> list[Job]:
        attempts = {i: record.attempt for i, record in self.found.items() if isinstance(record, Header)}
        cluster = settings.cluster
        return group_cells(
            self.pending,
            self.planned.locations,
            attempts,
            self.store,
            cluster.cells_per_job,
            settings.order_seed,
            cluster.shape(),
        )


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    table: Table
    files: tuple[Path, ...]
    exit_code: int
    asked: int
    """Cells that ``cells.rows`` and ``cells.kinds`` ask for; the exit code is theirs."""
    kept: int
    """Of these, cells whose records were there before, perhaps from another day or commit, and were not run again."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Why cells that were asked for are unavailable -> how many."""


def find_work(settings: Settings) -> Work:
    """Plan the table and compare it with what is recorded."""
    settings = _with_machine(settings)
    planned = plan_table(settings)
    asked = asked_cells(planned.plan, settings.cells)
    store = Store.at(settings.results_dir, planned.plan.machine, planned.plan.table)
    found = store.read_headers(planned.plan.cell_ids())
    lacking = {}
    pending = []
    for cell_id, cell in planned.plan.cells.items():
        reasons = what_is_missing(cell, planned.locations[cell_id], settings.cluster)
        if reasons:
            lacking[cell_id] = reasons
        elif cell_id in asked and _must_run(found.get(cell_id), settings.retry):
            pending.append(cell)
    return Work(planned, store, found, asked, lacking, tuple(pending))


def what_is_missing(cell: Cell, where: Locations, cluster: ClusterSettings) -> tuple[str, ...]:
    """All that this machine lacks for the cell, as far as that shows without running it: what nobody can provide
    alone, or else what can be had, so that nobody fetches data for a GPU that is not there. Of a cluster's nodes it
    does not show whether they have GPUs; their files are taken to be this machine's too."""
    if cell.sp_size > cell.input_views:
        return (f"sp_size {cell.sp_size} is larger than the number of input views, {cell.input_views}",)
    weights = missing_weights(cell, where.weights)
    if weights is not None and cell.weights.kind != "file":
        return (weights,)
    device = missing_device(cell) or missing_ranks(cell) if isinstance(cluster, LocalCluster) else None
    return tuple(reason for reason in (device, weights, missing_data(cell.dataset, where.dataset_root)) if reason)


def run_table(settings: Settings, command: Sequence[str] = WORKER) -> Outcome:
    """Run every cell asked for that has no record yet, and render the whole table from all records."""
    work = find_work(settings)
    store, plan = work.store, work.planned.plan
    _record_unavailable(work)
    store.write_plan(plan)
    jobs = work.jobs(settings)
    with choose_progress(len(work.pending), settings.quiet) as progress:
        _launcher(settings.cluster, store, progress, command).run(jobs)
    _wait_for_others(store, work.pending)
    table = load_records(store, plan)
    kept = len(work.asked) - len(work.pending) - len(work.asked & work.lacking.keys())
    files = tuple(write_table(store, table))
    reasons = _reasons(table, work.asked, work.lacking)
    return Outcome(table, files, exit_code(table, work.asked), len(work.asked), kept, reasons)


def report(settings: Settings) -> Outcome:
    """Render the table again from its plan and records; nothing runs."""
    settings = _with_machine(settings)
    machine = settings.machine or machine_label(settings.resolved_device)
    store = Store.at(settings.results_dir, machine, settings.table.name)
    plan_file = store.plan_path(settings.profile.name)
    table = load_table(plan_file)
    asked = asked_cells(table.plan, settings.cells)
    kept = sum(record.cell_id in asked for record in table.records)
    files = tuple(write_table(store, table))
    return Outcome(table, files, exit_code(table, asked), len(asked), kept, _reasons(table, asked, {}))


def exit_code(table: Table, asked: Collection[str] | None = None) -> int:
    """0: every cell asked for (None: every cell of the table) has a result, or a reason why it cannot have one;
    1: some failed or have no record."""
    recorded = {record.cell_id: record for record in table.records}
    return int(any(not _is_settled(recorded.get(i)) for i in (table.plan.cells if asked is None else asked)))


def summary(outcome: Outcome) -> str:
    """A few lines for the end of a run."""
    table = outcome.table
    statuses = Counter(record.status.replace("_", " ") for record in table.records)
    missing = len(table.plan.cells) - len(table.records) - len(table.damaged)
    counts = [*statuses.items(), ("damaged", len(table.damaged)), ("without a record", missing)]
    verdicts = Counter(verdict.kind for verdict in table.verdicts)
    lines = [
        f"{table.plan.table}, profile {table.plan.profile}: {len(table.plan.cells)} cells: {_counted(counts)}",
        f"{len(table.verdicts)} printed numbers: {_counted(verdicts.items())}",
    ]
    if outcome.asked < len(table.plan.cells):
        lines.append(f"{outcome.asked} of the cells were asked for (cells.rows, cells.kinds)")
    if outcome.kept:
        lines.append(f"{outcome.kept} cells had been recorded before and were not run again (retry=all would)")
    lines += [f"  {_cells(count)} unavailable: {reason}" for reason, count in outcome.reasons.items()]
    left_out = Counter(row.left_out for row in table.plan.rows if row.left_out)
    lines += [f"  {count} row{'s' * (count > 1)} unavailable: {reason}" for reason, count in left_out.items()]
    for record in table.records:
        if not _is_settled(record):
            lines.append(f"  {record.cell.label()}: {record.status.replace('_', ' ')} ({record.reason})")
    lines += [f"  {damaged.problem}" for damaged in table.damaged]
    return "\n".join([*lines, *(f"wrote {path}" for path in outcome.files)])


def _reasons(table: Table, asked: Collection[str], lacking: Mapping[str, tuple[str, ...]]) -> Mapping[str, int]:
    """Why cells are unavailable, the most frequent reason first. Of those that this run did not look at (``lacking``),
    what the record says, as one reason."""
    absent = [record for record in table.records if record.status == "unavailable" and record.cell_id in asked]
    found = Counter(
        reason for record in absent for reason in lacking.get(record.cell_id, (record.reason or "no reason recorded",))
    )
    return dict(found.most_common())


def _cells(count: int) -> str:
    return f"{count} cell{'s' * (count != 1)}"


class Launcher(Protocol):
    def run(self, jobs: Sequence[Job]) -> None:
        """Run all jobs. Afterwards each of their cells has a record, unless another client is running it."""
        ...


def _launcher(cluster: ClusterSettings, store: Store, progress: Progress, command: Sequence[str]) -> Launcher:
    if isinstance(cluster, LocalCluster):
        return LocalLauncher(cluster.cell_limit_s, progress, command)
    from bench.slurm.client import SlurmLauncher

    return SlurmLauncher(store, cluster, progress)


def _with_machine(settings: Settings) -> Settings:
    """Results of a cluster are named after it and its partition, not after the machine that submits."""
    if settings.machine is not None or isinstance(settings.cluster, LocalCluster):
        return settings
    from bench.slurm.states import site_config

    name = slug(f"{site_config().get('ClusterName', 'slurm')} {settings.cluster.partition or ''}")
    return settings.model_copy(update={"machine": name})


def _must_run(found: Header | Damaged | None, retry: str) -> bool:
    if found is None or retry == "all":
        return True
    if isinstance(found, Damaged):
        return retry == "failed"
    if found.status == "unavailable":
        # What the planner missed may be there by now; what only a run can find out is looked for when asked to.
        return found.job == _PLANNER or retry == "failed"
    return found.status != "ok" and retry == "failed"


def _record_unavailable(work: Work) -> None:
    sanitizer = local_sanitizer()  # as the record's own reason was
    for cell_id, found_reason in work.unavailable.items():
        if cell_id not in work.asked:
            continue
        before, reason = work.found.get(cell_id), sanitizer.text(found_reason)
        if isinstance(before, Header) and (before.status == "ok" or before.reason == reason):
            continue  # a result stays a result when its inputs are gone
        attempt = before.attempt + 1 if isinstance(before, Header) else 1
        cell = work.planned.plan.cells[cell_id]
        table = work.planned.plan.table
        work.store.write(record_without_result(cell, "unavailable", reason, table=table, job=_PLANNER, attempt=attempt))


def _wait_for_others(store: Store, cells: Sequence[Cell]) -> None:
    """Until no other client is running one of these cells."""
    folder = locks_dir(store)
    while any(is_held(folder, cell.id) for cell in cells):
        time.sleep(_WAIT_S)


def _is_settled(record: Result | None) -> bool:
    return record is not None and record.status in ("ok", "unavailable")


def _counted(counts: Iterable[tuple[str, int]]) -> str:
    pairs = [(name, count) for name, count in counts if count]
    return ", ".join(f"{count} {name}" for name, count in pairs)
