"""Hands jobs to the scheduler: jobs that ask for the same go out as one array, within the site's limits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.clusters import Ending, SlurmCluster
from bench.errors import SettingsError
from bench.jobs import Job, write_job
from bench.slurm.entry import RankEntry
from bench.slurm.registry import Registry, Submitted
from bench.slurm.resources import Resources, make_executor, resources_of
from bench.slurm.states import site_config

_DEFAULT_ARRAY = 1001
"""SLURM's own default of MaxArraySize."""


def plan_arrays(jobs: Sequence[Job], cluster: SlurmCluster, max_size: int) -> Iterator[tuple[Resources, list[Job]]]:
    """Jobs with equal resources, in their order, at most ``max_size`` together."""
    groups: dict[Resources, list[Job]] = defaultdict(list)
    for job in jobs:
        groups[resources_of(job, cluster)].append(job)
    for resources, group in groups.items():
        for start in range(0, len(group), max_size):
            yield resources, group[start : start + max_size]


def max_array_size(cluster: SlurmCluster, site: Mapping[str, str]) -> int:
    """Jobs that an array may have: the site's limit, or the configuration's if that is lower. Indices count from 0 and
    must stay below MaxArraySize; 0 there means that the site allows no arrays."""
    text = site.get("MaxArraySize", "")
    limit = max(1, int(text)) if text.isdigit() else _DEFAULT_ARRAY
    return limit if cluster.max_array_size is None else min(limit, cluster.max_array_size)


def submit(
    jobs: Sequence[Job], cluster: SlurmCluster, registry: Registry, tries: Mapping[str, dict[Ending, int]] | None = None
) -> list[Submitted]:
    """Submit the jobs and note them in the registry. ``tries``: by job id, for jobs that were submitted before.

    Raises SettingsError with the scheduler's words if it refuses; what it took before that is noted.
    """
    submitted: list[Submitted] = []
    if not jobs:
        return submitted
    for resources, array in plan_arrays(jobs, cluster, max_array_size(cluster, site_config())):
        entries = [RankEntry(str(write_job(job))) for job in array]
        ids = _send(entries, cluster, resources, registry.logs, f"tttlrm-{array[0].table}")
        sent = [
            Submitted(
                slurm_id=slurm_id,
                job_id=job.id,
                job_file=job.file,
                cells=tuple(item.cell.id for item in job.cells),
                ranks=job.ranks,
                tries=(tries or {}).get(job.id, {}),
            )
            for slurm_id, job in zip(ids, array, strict=True)
        ]
        registry.add(sent)
        submitted += sent
    return submitted


def _send(
    entries: Sequence[RankEntry], cluster: SlurmCluster, resources: Resources, logs: Path, name: str
) -> list[str]:
    """One call of sbatch; the ids of the jobs."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = make_executor(cluster, resources, logs, name)
    try:
        return [str(job.job_id) for job in executor.submit_array(entries)]
    except (FailedJobError, FailedSubmissionError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        problem = "; ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in lines[-2:])
        raise SettingsError(f"cluster=slurm: sbatch refused a job of {resources.describe()}: {problem}") from None
