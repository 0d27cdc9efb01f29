"""What runs on the nodes: one rank of a job, started by submitit."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

_SHIM = """#!/bin/sh
# There is no scontrol in this container: leave a note, and the batch script outside requeues the job.
[ "$1" = requeue ] && : > "{note}"
"""

STOPPED = "told to stop, and not queued again"
"""What such a job says last."""


class StoppedError(BaseException):
    """The scheduler is about to stop the job, which could not be queued again. No cell's own failure, and so nothing
    that a cell's run may catch."""


@dataclass(frozen=True)
class RankEntry:
    """Runs the job in a file as the rank that SLURM says. Pickled by submitit, and so without any tensor in it."""

    job_file: str

    def __call__(self) -> None:
        import torch
        from submitit.helpers import TorchDistributedEnvironment

        from bench.ranks import EXIT_STOPPED, Placement, leave
        from bench.worker import work

        _provide_requeue()
        _guard_signal()
        cpus = int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        torch.set_num_threads(cpus)
        # Overwriting: what an outer launcher may have left is not about this job. GPUs are chosen by local rank.
        place = TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        placement = Placement(
            place.rank, place.world_size, place.local_rank, place.local_world_size, "env://", threads=cpus
        )
        try:
            status = work(Path(self.job_file), placement)
        except SystemExit:  # submitit has requeued the job; the other ranks are not to be waited for
            leave(255)
        except StoppedError as error:
            print(error, file=sys.stderr)
            leave(EXIT_STOPPED)
        if status:
            leave(status)

    def checkpoint(self) -> Any:
        """Called by submitit on rank 0 when the job is about to be stopped: the same again, as all that is done lies in
        files already."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _guard_signal() -> None:
    """submitit's handler of the scheduler's warning raises into whatever runs; see :class:`StoppedError`."""
    from submitit import JobEnvironment

    number = JobEnvironment()._usr_sig()
    theirs = signal.getsignal(number)
    assert callable(theirs)

    def handle(received: int, frame: FrameType | None) -> None:
        try:
            theirs(received, frame)
        except Exception as error:
            raise StoppedError(f"{STOPPED}: {error}") from error

    signal.signal(number, handle)


def _provide_requeue() -> None:
    """submitit calls scontrol where it runs, which in a container is mostly not there."""
    if shutil.which("scontrol") is not None:
        return
    from bench.slurm.resources import REQUEUE_NOTE

    note = Path(os.environ["SUBMITIT_FOLDER"]) / f"{REQUEUE_NOTE}{os.environ['SLURM_JOB_ID']}"
    folder = Path(tempfile.mkdtemp(prefix="tttlrm-shim-"))
    shim = folder / "scontrol"
    shim.write_text(_SHIM.format(note=note))
    shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"
