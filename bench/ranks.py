"""The processes that run a job together: where each stands, how they meet, and how they split the work.

A job's processes are ``replicas`` groups of ``sp_size`` ranks. The ranks of a group share each scene; the groups share
the scenes. Consecutive ranks form a group, so that a group lies on as few nodes as possible.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from tttlrm.errors import UserError
from tttlrm.parallel import SequenceGroup

EXIT_FAILED_RANK = 70
"""A rank failed; it left a record, if it was the first."""
EXIT_LOST_CONTACT = 71
"""A rank lost another one, whose end is the cause."""
EXIT_STOPPED = 72
"""The scheduler was about to stop the job, for its time limit or for another job, and it could not be queued again."""

_TRANSPORT = re.compile(r"gloo[/:]|connection (closed|reset|refused)|broken pipe|timed out waiting|socket", re.I)


@dataclass(frozen=True)
class Placement:
    """Where a process stands in its job.

    Attributes:
        local_rank, local_size: among the processes of its node; they choose the GPU and share the threads.
        rendezvous: where the processes meet, as ``init_method`` of torch.distributed; None for a process on its own.
        threads: of PyTorch's operators, where a cell does not say; None: the machine's, shared by its processes.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    rendezvous: str | None = None
    threads: int | None = None


class Team:
    """One process's view of all processes of its job. Implements :class:`bench.timing.Ranks`."""

    def __init__(self, placement: Placement = Placement(), sp_size: int = 1, wait_s: float = 600.0) -> None:
        if placement.size % sp_size:
            raise UserError(f"{placement.size} processes cannot form groups of {sp_size} ranks")
        self.placement = placement
        self.rank, self.size = placement.rank, placement.size
        self.replicas, self.replica = placement.size // sp_size, placement.rank // sp_size
        self.leads = placement.rank % sp_size == 0
        """Whether this process has its group's results."""
        self.sequence: SequenceGroup | None = None
        self._all: Any = None
        if self.size == 1:
            return
        # Groups wait for each other as long as a cell may take, ranks of a group only as long as a collective may.
        self._all = dist.new_group(backend="gloo", timeout=timedelta(seconds=wait_s))
        if sp_size > 1 and self.replicas == 1:
            self.sequence = SequenceGroup()
        elif sp_size > 1:
            members = [list(range(at * sp_size, (at + 1) * sp_size)) for at in range(self.replicas)]
            groups = [dist.new_group(ranks) for ranks in members]  # every process takes part in making every group
            self.sequence = SequenceGroup(groups[self.replica])

    def barrier(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1), group=self._all)

    def gather(self, values: list[float]) -> list[list[float]]:
        """Every rank's values, on every rank."""
        if self.size == 1:
            return [values]
        mine = torch.tensor(values, dtype=torch.float64)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine, group=self._all)
        return [part.tolist() for part in parts]

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""
        values: list[Any] = [value]
        if self.size > 1:
            values = [None] * self.size
            dist.all_gather_object(values, value, group=self._all)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0, group=self._all)
        return values[0]


@contextmanager
def join(placement: Placement, sp_size: int, device: str, collective_timeout_s: float, wait_s: float) -> Iterator[Team]:
    """Meet the other processes of the job: NCCL for tensors on GPUs, gloo for all else.

    Raises UserError if the node has fewer GPUs than processes.
    """
    if device == "cuda" and torch.cuda.is_available():
        torch.cuda.set_device(_gpu_of(placement))
    if placement.size == 1:
        yield Team(placement, sp_size)
        return
    timeout = timedelta(seconds=collective_timeout_s)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
        init_method=placement.rendezvous,
        rank=placement.rank,
        world_size=placement.size,
        timeout=timeout,
    )
    yield Team(placement, sp_size, wait_s)
    dist.destroy_process_group()  # after a failure the process ends at once instead: see leave


def lost_contact(error: BaseException) -> bool:
    """Whether the error says that another process is gone or silent, which is not its own cause."""
    in_words = isinstance(error, RuntimeError) and _TRANSPORT.search(str(error)) is not None
    return isinstance(error, dist.DistError) or in_words


def leave(status: int) -> None:
    """End this process at once: taking down a process group can wait for ranks that wait for this one."""
    import sys

    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _gpu_of(placement: Placement) -> int:
    """By local rank, unless the scheduler shows each process a GPU of its own."""
    count = torch.cuda.device_count()
    if placement.local_size > count > 1:
        raise UserError(f"{placement.local_size} processes on a node that has {count} GPUs")
    return 0 if count == 1 else placement.local_rank
