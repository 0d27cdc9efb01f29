"""What a job asks the scheduler for, and the batch script that submitit makes of it."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.clusters import SlurmCluster
from bench.environment import DIGEST_VARIABLE
from bench.errors import SettingsError
from bench.jobs import Job
from bench.slurm.images import image_digest

if TYPE_CHECKING:
    import submitit

_ROOT = Path(__file__).resolve().parents[2]
REQUEUE_NOTE = "requeue-"
"""Start of the name of a file by which a container without scontrol asks to be requeued; see bench.slurm.entry."""


@dataclass(frozen=True)
class Resources:
    """Jobs with equal resources can share an array.

    Attributes:
        gpus_per_node: 0 for jobs on CPUs.
    """

    nodes: int
    ranks_per_node: int
    gpus_per_node: int

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    def describe(self) -> str:
        """``2 nodes with 8 GPUs each``."""
        nodes = "1 node" if self.nodes == 1 else f"{self.nodes} nodes"
        if not self.gpus_per_node:
            return f"{nodes}, {_counted(self.ranks_per_node, 'process', 'processes')} each"
        return f"{nodes}, {_counted(self.gpus_per_node, 'GPU', 'GPUs')} each"


def resources_of(job: Job, cluster: SlurmCluster) -> Resources:
    """As few nodes as the ranks fit on in equal numbers. One GPU a rank, where cells run on GPUs."""
    nodes = -(-job.ranks // cluster.ranks_per_node)
    while job.ranks % nodes:
        nodes += 1
    per_node = job.ranks // nodes
    return Resources(nodes, per_node, per_node if job.cells[0].cell.device == "cuda" else 0)


def make_executor(cluster: SlurmCluster, resources: Resources, folder: Path, name: str) -> submitit.SlurmExecutor:
    """An executor that submits jobs of these resources, with logs in ``folder``.

    Raises SettingsError where jobs cannot be submitted.
    """
    import submitit

    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise SettingsError("cluster=slurm: there is no sbatch or srun here; run this where jobs can be submitted")
    executor = submitit.SlurmExecutor(folder, max_num_timeout=cluster.max_timeouts, python=_python(cluster))
    executor.update_parameters(**_parameters(cluster, resources, folder, name))
    return executor


def sbatch_text(cluster: SlurmCluster, resources: Resources, folder: Path, name: str, jobs: int = 1) -> str:
    """The batch script of a job, or of an array of ``jobs`` jobs. Needs no SLURM."""
    import submitit

    class Writer(submitit.SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 1  # though there may be no srun

    writer = Writer(folder, python=_python(cluster))
    writer.update_parameters(**_parameters(cluster, resources, folder, name))
    if jobs > 1:
        writer.parameters["map_count"] = jobs
    return str(writer._make_submission_file_text(writer._submitit_command_str, name))


def _parameters(cluster: SlurmCluster, resources: Resources, folder: Path, name: str) -> dict[str, Any]:
    gpus = f"{cluster.gpu_type}:{resources.gpus_per_node}" if cluster.gpu_type else resources.gpus_per_node
    memory = None if cluster.mem_gb_per_rank is None else cluster.mem_gb_per_rank * resources.ranks_per_node
    wanted = {
        "job_name": name,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "time": cluster.time_min,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.ranks_per_node,
        "cpus_per_task": cluster.cpus_per_rank,
        "gpus_per_node": gpus if resources.gpus_per_node else None,
        "mem": None if memory is None else f"{round(memory * 1024)}M",
        "signal_delay_s": cluster.signal_delay_s,
        "array_parallelism": cluster.parallel_jobs,
        "stderr_to_stdout": True,
        "setup": _setup(cluster),
        "teardown": _teardown(folder),
        "srun_args": _srun_arguments(cluster),
        "additional_parameters": {"requeue" if cluster.requeue else "no-requeue": True, **cluster.sbatch},
    }
    # submitit's own wckey is unknown to sites that keep a list of them.
    return {**{key: value for key, value in wanted.items() if value is not None}, "wckey": None}


def _python(cluster: SlurmCluster) -> str:
    own = shlex.quote(sys.executable)
    if cluster.container is None:
        return cluster.python or own
    python = cluster.python or "python"  # of the image
    return f"{cluster.container.prefix} {python}" if cluster.container.form == "prefix" else python


def _srun_arguments(cluster: SlurmCluster) -> list[str]:
    # A rank that fails ends its job at once; from SLURM 22.05 on, srun asks for CPUs itself.
    arguments = ["--kill-on-bad-exit=1", f"--cpus-per-task={cluster.cpus_per_rank}", *cluster.srun]
    container = cluster.container
    if container is not None and container.form == "pyxis":
        arguments.append(f"--container-image={container.image}")
        if container.mounts:
            arguments.append(f"--container-mounts={','.join(container.mounts)}")
    return arguments


def _setup(cluster: SlurmCluster) -> list[str]:
    """The suite is importable even where it is not installed; the site's own lines have the last word."""
    lines = [f"export PYTHONPATH={shlex.quote(str(_ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}"]
    if cluster.container is not None:
        digest = image_digest(cluster.container)
        # The client's own image, which the job would inherit, is another one.
        lines.append(f"unset {DIGEST_VARIABLE}" if digest is None else f"export {DIGEST_VARIABLE}={digest}")
    return [*lines, *cluster.setup]


def _teardown(folder: Path) -> list[str]:
    note = f"{shlex.quote(str(folder / REQUEUE_NOTE))}$SLURM_JOB_ID"
    return ["status=$?", f'if [ -e {note} ]; then rm -f {note}; scontrol requeue "$SLURM_JOB_ID"; fi', "exit $status"]


def _counted(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"
