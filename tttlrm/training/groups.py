"""The processes of a run: groups that share scenes (sequence parallelism), side by side (data parallelism)."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from tttlrm.errors import UserError
from tttlrm.parallel import SequenceGroup, ViewShard


@dataclass(frozen=True)
class Processes:
    """This process' place. The defaults are those of a run in one process."""

    rank: int = 0
    world_size: int = 1
    sp_size: int = 1
    sequence: SequenceGroup | None = None

    @property
    def data_groups(self) -> int:
        """Groups that each train on scenes of their own."""
        return self.world_size // self.sp_size

    @property
    def launcher(self) -> str:
        """What starts these processes, for a command that someone can type again."""
        if self.world_size == 1:
            return "python"
        per_node = int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))
        nodes = "" if per_node == self.world_size else f"--nnodes {self.world_size // per_node} "
        return f"torchrun {nodes}--nproc-per-node {per_node}"

    def shard(self, num_views: int) -> ViewShard:
        return ViewShard(num_views) if self.sequence is None else self.sequence.shard(num_views)

    def scenes(self, count: int) -> slice:
        """Which scenes of a batch are this process' group's."""
        if count % self.data_groups:
            raise UserError(
                f"a batch of {count} scenes is not a multiple of the {self.data_groups} groups of processes"
            )
        share = count // self.data_groups
        group = self.rank // self.sp_size
        return slice(group * share, (group + 1) * share)

    def sum(self, tensor: Tensor) -> Tensor:
        """In place, over all processes."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def agree(self, value: float, device: torch.device) -> float:
        """The first process' value."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=device)
        dist.broadcast(tensor, 0)
        return float(tensor)

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


def join_processes(sp_size: int, device: str) -> tuple[Processes, torch.device]:
    """Join the other processes that ``torchrun`` started, if any.

    Returns:
        This process' place, and its device: ``cuda`` becomes the GPU of its local rank.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"compute.device={device}, but PyTorch sees no CUDA GPU; set compute.device=cpu")
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if sp_size < 1 or world_size % sp_size:
        raise UserError(f"compute.sp_size {sp_size} does not divide the number of processes, {world_size}")
    if world_size == 1:
        return Processes(), torch.device(device)
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return split_processes(sp_size), torch.device(device)


def split_processes(sp_size: int) -> Processes:
    """Groups of ``sp_size`` consecutive ranks of the default process group."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if sp_size == 1:
        return Processes(rank, world_size)
    sequence = None
    for start in range(0, world_size, sp_size):
        # Every process must take part in making each group.
        group = dist.new_group(list(range(start, start + sp_size)))
        if start <= rank < start + sp_size:
            sequence = SequenceGroup(group)
    return Processes(rank, world_size, sp_size, sequence)
