"""What would run, and what has: for ``dry_run=true`` and ``list``."""

from __future__ import annotations

from pathlib import Path

from bench.records import Record
from bench.run import Work
from bench.settings import Settings


def describe_cells(work: Work) -> str:
    """One line for each cell: row of the paper, what it is, its state."""
    plan = work.planned.plan
    lines = [f"{plan.table}, profile {plan.profile}, machine {plan.machine}: {len(plan.cells)} cells"]
    for number, row in enumerate(plan.rows, start=1):
        lines.append(f"line {number}: {row.paper_row}" + (f", sp_size {row.sp_size}" if row.sp_size > 1 else ""))
        if row.left_out:
            lines.append(f"    left out: {row.left_out}")
        for cell_id in (cell_id for ids in row.cells.values() for cell_id in ids):
            lines.append(f"    {cell_id}  {plan.cells[cell_id].label()}: {_state(cell_id, work)}")
    return "\n".join(lines)


def describe_jobs(work: Work, settings: Settings) -> str:
    """The jobs that would be started, in their order."""
    jobs = work.jobs(settings)
    lines = [f"{len(work.pending)} cells to run, in {len(jobs)} jobs (order seed {settings.order_seed}):"]
    for job in jobs:
        ranks = max(item.cell.sp_size for item in job.cells)
        devices = f"{ranks} {job.cells[0].cell.device} process" + ("es" if ranks > 1 else "")
        lines.append(f"  {job.id}: {job.label()}, {devices}, on this machine")
        lines.extend(f"    {item.cell.id}  {item.cell.label()}" for item in job.cells)
    return "\n".join(lines)


def describe_tables(settings: Settings) -> str:
    """The tables that can be run, and the profiles."""
    conf = Path(__file__).parent / "conf"
    tables, profiles, clusters = (
        ", ".join(sorted(path.stem for path in (conf / group).glob("*.yaml")))
        for group in ("table", "profile", "cluster")
    )
    chosen = f"{settings.table.name}, {settings.profile.name}, {settings.cluster.kind}"
    return f"tables: {tables}\nprofiles: {profiles}\nclusters: {clusters}\nchosen: {chosen}"


def _state(cell_id: str, work: Work) -> str:
    record = work.found.get(cell_id)
    if isinstance(record, Record):
        return record.status.replace("_", " ") + (f" ({record.reason})" if record.reason else "")
    if record is not None:
        return "record damaged"
    if cell_id in work.unavailable:
        return f"unavailable ({work.unavailable[cell_id]})"
    return "not run" if cell_id in work.asked else "not run, not asked for"
