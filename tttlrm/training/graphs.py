"""CUDA graphs of the network: its kernels and those of its gradient, recorded once for each shape and replayed.

A small model's step is thousands of short kernels, and starting them one by one takes longer than running them.
Replaying needs no compiler, so that a run loses seconds rather than minutes before its first step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tttlrm.cameras import Views
from tttlrm.config import Compute, Schedule
from tttlrm.gaussians import Gaussians
from tttlrm.model import TTTLRM


class GraphedNetwork:
    """A model with one schedule, as graphs by shape of the input. For whole scenes (no sequence parallelism).

    The Gaussians of a call are overwritten by the next one of the same shape.
    """

    def __init__(self, model: TTTLRM, schedule: Schedule, compute: Compute) -> None:
        self._arguments = (model, schedule, compute)
        self._graphs: dict[tuple[int, ...], Callable[..., Any]] = {}

    def record(self, views: Views) -> None:
        """Record graphs for views of this shape, unless there are some. Raises RuntimeError where that fails."""
        key = tuple(views.images.shape)
        if key not in self._graphs:
            samples = tuple(tensor.detach().clone() for tensor in _tensors(views))
            self._graphs[key] = torch.cuda.make_graphed_callables(_Reconstruction(*self._arguments), samples)

    def __call__(self, views: Views) -> Gaussians:
        """Gaussians of views of a recorded shape."""
        return Gaussians(*self._graphs[tuple(views.images.shape)](*_tensors(views)))


def _tensors(views: Views) -> tuple[Tensor, Tensor, Tensor]:
    return views.images, views.camera_to_world, views.intrinsics


class _Reconstruction(nn.Module):
    """The model from tensors to tensors, as recording wants it."""

    def __init__(self, model: TTTLRM, schedule: Schedule, compute: Compute) -> None:
        super().__init__()
        self.model = model
        self.schedule = schedule
        self.compute = compute

    def forward(self, images: Tensor, camera_to_world: Tensor, intrinsics: Tensor) -> tuple[Tensor, ...]:
        return self.model(Views(images, camera_to_world, intrinsics), self.schedule, self.compute).tensors
