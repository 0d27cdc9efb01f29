"""What the tests on a real SLURM share: a small run, and ranks that misbehave on purpose."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.records import Record
from bench.store import Store

ROOT = Path(__file__).resolve().parents[3]
MACHINE = "testcluster"

SMALL = (
    "table=table1",
    "profile=tiny",
    f"machine={MACHINE}",
    "quiet=true",
    "profile.lpips=false",
    "profile.weights.quality={default: random}",
    "profile.scales.object.resolutions={256x256: [32, 32], 512x512: [32, 32]}",
    "profile.threads={quality: 1, speed: 1}",
    "profile.datasets.gso.test_views=1",
    "profile.datasets.gso.scenes=2",
    "cells.kinds=[quality]",
    "cells.rows=[1,2]",
    "cluster=slurm",
    "cluster.ranks_per_node=2",
    "cluster.cpus_per_rank=1",
    "cluster.mem_gb_per_rank=1.5",
    "cluster.time_min=20",
    "cluster.poll_s=1",
    "cluster.look_again_s=8",
    "cluster.replicas=1",
)
"""The quality of the two methods at 8 views, as one job of two cells."""

_WRAPPER = """
# Runs what it is given, as python would, after the change below to what a rank does.
import os, runpy, sys, time

sys.path.insert(0, {root!r})
import bench.quality, bench.worker

RANK = int(os.environ["SLURM_PROCID"])
original = bench.quality._run_scene


def run_scene(cell, method, name, root, lpips):
{body}
    return original(cell, method, name, root, lpips)


def reconstruct(cell, method, name, root, original=bench.quality._reconstruct):
{rank_body}
    return original(cell, method, name, root)


bench.quality._run_scene = run_scene
bench.quality._reconstruct = reconstruct
arguments = [argument for argument in sys.argv[1:] if argument != "-u"]
assert arguments[0] == "-m"
sys.argv = arguments[1:]
runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
"""


@dataclass
class Run:
    """One results folder on the cluster, and the commands that use it."""

    folder: Path
    overrides: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    table: str = "table1"

    def start(self, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "bench", *SMALL, "results_dir=results", *self.overrides, *more]
        # A file, not a pipe: a client that waits for its reader would look like one that hangs.
        with (self.folder / "client.log").open("a") as log:
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **self.environment}
            return subprocess.Popen(
                command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True
            )

    def finish(self, *more: str, timeout: float = 240) -> int:
        """Run the command to its end; its exit code."""
        return self.wait(self.start(*more), timeout)

    def wait(self, client: subprocess.Popen[str], timeout: float = 240) -> int:
        """The exit code of a client that comes to its end; if it does not, what is known of its jobs."""
        try:
            return client.wait(timeout)
        except subprocess.TimeoutExpired:
            asked = (slurm("squeue", "-a"), slurm("sinfo", "-R"), slurm("scontrol", "show", "job"))
            logs = [path.read_text() for path in sorted((self.work / "slurm" / "logs").glob("*_log.*"))]
            raise AssertionError("\n".join((f"no end after {timeout:g} s", self.log, *asked, *logs))) from None
        finally:
            client.kill()

    def misbehave(self, scene: str = "pass", every_rank: str = "pass") -> None:
        """Code that runs before each scene, on the rank that has its result, or on every rank."""
        script = self.folder / "wrapper.py"
        bodies = {"body": _indented(scene), "rank_body": _indented(every_rank)}
        script.write_text(_WRAPPER.format(root=str(ROOT), **bodies))
        self.overrides = (*self.overrides, f"cluster.python={sys.executable} {script}")

    def hold_scenes(self) -> None:
        """Every scene waits for :meth:`let_go`."""
        self.misbehave(scene=f"while not os.path.exists({str(self.folder / 'go')!r}): time.sleep(0.1)")

    def let_go(self) -> None:
        (self.folder / "go").touch()

    @property
    def log(self) -> str:
        return (self.folder / "client.log").read_text()

    @property
    def store(self) -> Store:
        return Store.at(self.folder / "results", MACHINE, self.table)

    @property
    def work(self) -> Path:
        return self.store.work_dir()

    def every_record(self) -> list[Record]:
        made = [self.store.read(cell_id) for cell_id in self.store.record_ids()]
        return [record for record in made if record is not None]

    def records(self) -> dict[tuple[str, int], Record]:
        """(method, sp_size) -> record of the quality run."""
        return {(r.cell.method, r.cell.sp_size): r for r in self.every_record() if r.cell.kind == "quality"}

    def events(self, kind: str) -> list[dict[str, object]]:
        files = sorted((self.work / "jobs").glob("*.events*.jsonl"))
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return sorted((line for line in lines if line["kind"] == kind), key=lambda line: line["time"])

    def scenes_computed(self) -> Counter[tuple[object, object]]:
        """(cell, scene) -> how often it was computed."""
        return Counter((event["cell_id"], event["scene"]) for event in self.events("scene"))

    def submitted(self) -> list[str]:
        """Ids of the jobs that are not settled."""
        return sorted(path.stem for path in (self.work / "slurm" / "submitted").glob("*.json"))

    def batches(self) -> list[str]:
        """Ids of all calls of sbatch so far."""
        return sorted(path.name.split("_")[0] for path in (self.work / "slurm" / "logs").glob("*_submission.sh"))

    def wait_for_scenes(self, count: int) -> None:
        wait_until(lambda: len(self.events("scene")) >= count, f"{count} scenes", lambda: self.log)


def wait_until(
    condition: Callable[[], object], what: str, describe: Callable[[], str] = lambda: "", timeout: float = 150
) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout:g} s for {what}\n{describe()}\n{slurm('squeue', '-a')}"
        time.sleep(0.2)


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


def rank_processes(rank: int, job: str) -> list[int]:
    """Process ids of a rank of a SLURM job: every node of the test cluster is this machine."""
    wanted = {f"SLURM_PROCID={rank}", "SUBMITIT_EXECUTOR=slurm", f"SLURM_JOB_ID={job}"}
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = entry.read_bytes().decode(errors="replace").split("\0")
            command = (entry.parent / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if wanted <= set(variables) and "submitit.core._submit" in command and "srun" not in command:
            found.append(int(entry.parent.name))
    return found


def kill_all(processes: Sequence[int]) -> None:
    for process in processes:
        os.kill(process, signal.SIGKILL)


def _indented(code: str) -> str:
    return "\n".join(f"    {line}" for line in code.strip().splitlines())
