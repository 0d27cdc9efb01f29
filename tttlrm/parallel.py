"""Sequence parallelism: the views of one scene spread over the ranks of a process group.

Ranks meet in two places only: one sum for each fast-weight update, and one gather of the Gaussians. Both are
differentiable, for a loss that is the sum of the ranks' losses; :class:`Rounds` is a gather without gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tttlrm.errors import UserError


@dataclass(frozen=True)
class SequenceGroup:
    """The ranks that share one scene. ``process_group`` None is the default (world) group."""

    process_group: Any = None

    @property
    def rank(self) -> int:
        return dist.get_rank(self.process_group)

    @property
    def size(self) -> int:
        return dist.get_world_size(self.process_group)

    def shard(self, num_views: int) -> ViewShard:
        """The part of a scene with ``num_views`` views that this rank holds.

        Views are dealt out in turn, so that every rank holds as many as any other or one fewer, of the scene and,
        but for one more, of each chunk of consecutive views.
        """
        if self.size > num_views:
            raise UserError(f"sp_size {self.size} is larger than the number of input views, {num_views}")
        return ViewShard(num_views, self.rank, self.size, self)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, on every rank."""
        result: Tensor = _Sum.apply(tensor, self.process_group)
        return result

    def gather(self, tensor: Tensor) -> Tensor:
        """All ranks' tensors, of equal shape, along a new first dimension, on every rank."""
        result: Tensor = _Gather.apply(tensor, self.process_group)
        return result


@dataclass(frozen=True)
class ViewShard:
    """Which of a scene's ``num_views`` input views this rank holds. ``group`` None: all of them."""

    num_views: int
    rank: int = 0
    size: int = 1
    group: SequenceGroup | None = None

    @property
    def views(self) -> range:
        """Positions (in the scene's input views) of this rank's views."""
        return range(self.rank, self.num_views, self.size)

    def local(self, chunk: range) -> slice:
        """Where the views of a chunk of the scene are among this rank's views."""
        return slice(self._count_before(chunk.start), self._count_before(chunk.stop))

    def locate(self, view: int) -> tuple[int, int]:
        """The rank that holds a view of the scene, and its position there."""
        return view % self.size, view // self.size

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor if self.group is None else self.group.sum(tensor)

    def _count_before(self, view: int) -> int:
        return len(range(self.rank, view, self.size))


def gather_views(tensor: Tensor, shard: ViewShard, views: list[int]) -> Tensor:
    """Collect per-view data from all ranks in one collective.

    Args:
        tensor: [B, L, ...], this rank's share of ``views``, in their order.
        shard: how the scene's views are spread.
        views: positions in the scene, each held by exactly one rank.

    Returns:
        [B, len(views), ...] in the order of ``views``, on every rank.
    """
    if shard.group is None:
        return tensor
    owners = [shard.locate(view)[0] for view in views]
    capacity = max(owners.count(rank) for rank in range(shard.size))
    if tensor.shape[1] < capacity:
        padding = tensor.new_zeros(tensor.shape[0], capacity - tensor.shape[1], *tensor.shape[2:])
        tensor = torch.cat([tensor, padding], dim=1)
    flat = shard.group.gather(tensor).transpose(0, 1).flatten(1, 2)
    position = [rank * capacity + owners[:i].count(rank) for i, rank in enumerate(owners)]
    return flat.index_select(1, torch.tensor(position, device=tensor.device))


@dataclass(frozen=True)
class Rounds:
    """A gather of views that goes on while they are computed: in each round, every rank gives its next one.

    What is gathered has a slot for each rank in each round, and a rank writes its own where they are. All views of a
    scene in their order have theirs in that order, as they were dealt out, so that nothing is copied or held twice.

    Attributes:
        views: positions in the scene, each held by exactly one rank.
    """

    shard: ViewShard
    views: tuple[int, ...]

    @property
    def own(self) -> list[int]:
        """Of this rank's views, those that are gathered: their positions among its views, by round."""
        found = [self.shard.locate(view) for view in self.views]
        return [position for rank, position in found if rank == self.shard.rank]

    @property
    def count(self) -> int:
        owners = [self.shard.locate(view)[0] for view in self.views]
        return max(owners.count(rank) for rank in range(self.shard.size))

    @property
    def slots(self) -> int:
        return self.count * self.shard.size

    def slot(self, number: int) -> int:
        """This rank's of a round."""
        return number * self.shard.size + self.shard.rank

    def begin(self, number: int, *gathered: Tensor) -> list[dist.Work]:
        """Begin to gather a round of tensors [slots, ...], in place. Every rank begins every round, in order."""
        if self.shard.group is None:
            return []
        works, size = [], self.shard.size
        for tensor in gathered:
            part = tensor[number * size : (number + 1) * size]
            own = part[self.shard.rank : self.shard.rank + 1]
            works.append(dist.all_gather_into_tensor(part, own, group=self.shard.group.process_group, async_op=True))
        return works

    def ordered(self, gathered: Tensor) -> Tensor:
        """[slots, ...] as [len(views), ...], in the order of the views; the same memory where that is theirs."""
        owners = [self.shard.locate(view)[0] for view in self.views]
        slots = [owners[:i].count(rank) * self.shard.size + rank for i, rank in enumerate(owners)]
        if slots == list(range(len(slots))):
            return gathered[: len(slots)]
        return gathered.index_select(0, torch.tensor(slots, device=gathered.device))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, process_group: Any) -> Tensor:
        ctx.process_group = process_group
        total = tensor.contiguous().clone()
        dist.all_reduce(total, group=process_group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad, group=ctx.process_group)
        return grad, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, process_group: Any) -> Tensor:
        ctx.process_group = process_group
        size = dist.get_world_size(process_group)
        gathered = tensor.new_empty(size * tensor.shape[0], *tensor.shape[1:])  # side by side: the form gloo takes
        dist.all_gather_into_tensor(gathered, tensor.contiguous(), group=process_group)
        return gathered.unflatten(0, (size, -1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad, group=ctx.process_group)
        return grad[dist.get_rank(ctx.process_group)], None
