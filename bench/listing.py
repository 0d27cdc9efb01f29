"""What would run, and what has: for ``--dry-run`` and ``list``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from bench.clusters import LocalCluster
from bench.estimates import device_hours, duration_text, job_seconds
from bench.jobs import Job
from bench.paper import load_paper
from bench.records import Header
from bench.run import Work
from bench.settings import Settings

_CONF = Path(__file__).parent / "conf"
_NOT_ASKED = "not run, not asked for"


_OWN = ("scaling", "speed")
"""Tables that no paper has."""


def table_names() -> list[str]:
    """Of all tables that can be run, the paper's first."""
    return sorted((path.stem for path in (_CONF / "table").glob("*.yaml")), key=lambda name: (name in _OWN, name))


def describe_cells(work: Work) -> str:
    """One line for each cell: row of the paper, what it is, its state."""
    plan = work.planned.plan
    lines = [f"{plan.table}, profile {plan.profile}, machine {plan.machine}: {len(plan.cells)} cells"]
    for number, row in enumerate(plan.rows, start=1):
        lines.append(f"line {number}: {row.paper_row}" + (f", sp_size {row.sp_size}" if row.sp_size > 1 else ""))
        if row.left_out:
            lines.append(f"    unavailable: {row.left_out}")
        for cell_id in (cell_id for ids in row.cells.values() for cell_id in ids):
            lines.append(f"    {cell_id}  {plan.cells[cell_id].label()}: {_state(cell_id, work)}")
    return "\n".join(lines)


def describe_jobs(work: Work, settings: Settings) -> str:
    """The jobs that would be started, in their order, what each takes, and what they take together."""
    jobs = work.jobs(settings)
    lines = [f"{len(work.pending)} cells to run, in {len(jobs)} jobs (order seed {settings.order_seed}):"]
    for job in jobs:
        lines.append(f"  {job.id}: {job.label()}, {_resources(job, settings)}, about {duration_text(job_seconds(job))}")
        lines.extend(f"    {item.cell.id}  {item.cell.label()}" for item in job.cells)
    if jobs:
        unit = "GPU hours" if jobs[0].cells[0].cell.device == "cuda" else "process hours, no GPU"
        alone = f"; one job after the other, {duration_text(sum(map(job_seconds, jobs)))}"
        lines.append(f"estimate, from arithmetic and time limits: {device_hours(jobs):.2g} {unit}{alone}")
    return "\n".join(lines)


def describe_tables(works: dict[str, Work], settings: Settings) -> str:
    """All tables with the state of their cells, and the profiles and clusters that there are."""
    profiles, clusters = (
        ", ".join(sorted(path.stem for path in (_CONF / group).glob("*.yaml"))) for group in ("profile", "cluster")
    )
    width = max(map(len, works), default=0)
    lines = [f"  {name.ljust(width)}  {_counts(work)}: {_title(work)}" for name, work in works.items()]
    chosen = f"{settings.table.name}, {settings.profile.name}, {settings.cluster.kind}"
    return "\n".join(["tables:", *lines, f"profiles: {profiles}", f"clusters: {clusters}", f"chosen: {chosen}"])


def _title(work: Work) -> str:
    return load_paper(work.planned.plan.paper).table(work.planned.plan.table).title


def _counts(work: Work) -> str:
    """``12 cells (8 ok, 4 not run), 3 rows unavailable``."""
    states = Counter(_state(cell_id, work).partition(" (")[0] for cell_id in work.planned.plan.cells)
    states["not asked for"] = states.pop(_NOT_ASKED, 0)
    counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items()) if count)
    left_out = sum(row.left_out is not None for row in work.planned.plan.rows)
    cells = f"{len(work.planned.plan.cells)} cells" + (f" ({counted})" if counted else "")
    return cells + (f", {left_out} row{'s' if left_out > 1 else ''} unavailable" if left_out else "")


def _resources(job: Job, settings: Settings) -> str:
    """GPUs (or processes) and nodes of one job."""
    if not isinstance(settings.cluster, LocalCluster):
        from bench.slurm.resources import resources_of

        return resources_of(job, settings.cluster).describe()
    name = "GPU" if job.cells[0].cell.device == "cuda" else "process"
    plural = {"GPU": "GPUs", "process": "processes"}[name]
    return f"{job.ranks} {name if job.ranks == 1 else plural} on this machine"


def _state(cell_id: str, work: Work) -> str:
    record = work.found.get(cell_id)
    if isinstance(record, Header):
        return record.status.replace("_", " ") + (f" ({record.reason})" if record.reason else "")
    if record is not None:
        return "record damaged"
    if cell_id in work.unavailable:
        return f"unavailable ({work.unavailable[cell_id]})"
    return "not run" if cell_id in work.asked else _NOT_ASKED
