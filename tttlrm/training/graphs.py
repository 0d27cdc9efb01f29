"""CUDA graphs of a step's parts: their kernels and those of their gradients, recorded once and replayed.

A small model's step is thousands of short kernels, and starting them one by one takes longer than running them.
Replaying needs no compiler, so that a run loses seconds rather than minutes before its first step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tttlrm.cameras import Cameras, Views
from tttlrm.config import Compute, Schedule
from tttlrm.errors import first_line
from tttlrm.gaussians import Gaussians
from tttlrm.model import TTTLRM
from tttlrm.training.points import Surfaces, surface_terms

Warn = Callable[[str], None]


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


class GraphedSurfaceTerms:
    """:func:`tttlrm.training.points.surface_terms`, for whole scenes as graphs by shape.

    Those of a share of a scene's views are computed as they are. So are all where they cannot be recorded, and then
    ``warn`` is told.
    """

    def __init__(self, warn: Warn) -> None:
        self._graphs: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._warn = warn
        self._fails = False

    def __call__(
        self, names: tuple[str, ...], positions: Tensor, logits: Tensor, inputs: Surfaces, patch: int
    ) -> dict[str, Tensor]:
        """Values are overwritten by the next call of the same shape."""
        if inputs.pixels is not None or inputs.num_views is not None:  # a part of the scenes' views
            return surface_terms(names, positions, logits, inputs, patch)
        cameras = inputs.cameras
        # What no term depends on must not ask for a gradient.
        positions = positions if "points" in names else positions.detach()
        logits = logits if {"coverage", "solidity"} & set(names) else logits.detach()
        tensors = (positions, logits, cameras.camera_to_world, cameras.intrinsics, inputs.depths, inputs.masks)
        key = (names, patch, *(tuple(tensor.shape) for tensor in tensors))
        if key not in self._graphs and not self._fails:
            samples = tuple(t.detach().clone().requires_grad_(t.requires_grad) for t in tensors)
            terms = _SurfaceTerms(names, cameras.height, cameras.width, patch)
            try:
                with _current_stream():
                    self._graphs[key] = torch.cuda.make_graphed_callables(terms, samples)
            except RuntimeError as error:
                self._warn(f"surface terms could not be recorded as a CUDA graph: {first_line(error)}")
                self._fails = True
        if key not in self._graphs:
            return surface_terms(names, positions, logits, inputs, patch)
        return dict(zip(names, self._graphs[key](*tensors), strict=True))


class RecordedFunction:
    """A function of one tensor, without gradients, recorded as a graph after a few calls.

    Everything else that it reads and writes must stay where it is. Its result is overwritten by the next call. A call
    with another tensor than that of the recording runs the function itself. Where it cannot be recorded, it goes on as
    it is, and says so.
    """

    _CALLS_BEFORE = 3  # libraries and compilers set themselves up in the first ones

    def __init__(self, function: Callable[[Tensor], Tensor], warn: Warn) -> None:
        self._function = function
        self._warn = warn
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._argument: Tensor | None = None
        self._result: Tensor | None = None

    def __call__(self, argument: Tensor) -> Tensor:
        self._calls += 1
        if self._calls == self._CALLS_BEFORE + 1:
            self._record(argument)
        if self._graph is None or self._result is None or argument is not self._argument:
            return self._function(argument)
        self._graph.replay()
        return self._result

    def _record(self, argument: Tensor) -> None:
        try:
            graph = torch.cuda.CUDAGraph()
            with _current_stream(), torch.cuda.graph(graph):
                self._result = self._function(argument)
        except RuntimeError as error:
            self._warn(f"steps could not be recorded as a CUDA graph: {first_line(error)}")
            return
        self._graph, self._argument = graph, argument


def _current_stream() -> torch.cuda.StreamContext:
    """Restores the current stream at its end: a recording that fails does not."""
    return torch.cuda.stream(torch.cuda.current_stream())


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


class _SurfaceTerms(nn.Module):
    """The terms from tensors to tensors."""

    def __init__(self, names: tuple[str, ...], height: int, width: int, patch: int) -> None:
        super().__init__()
        self.names = names
        self.size = (height, width)
        self.patch = patch

    def forward(
        self,
        positions: Tensor,
        logits: Tensor,
        camera_to_world: Tensor,
        intrinsics: Tensor,
        depths: Tensor,
        masks: Tensor,
    ) -> tuple[Tensor, ...]:
        inputs = Surfaces(Cameras(camera_to_world, intrinsics, *self.size), depths, masks)
        return tuple(surface_terms(self.names, positions, logits, inputs, self.patch).values())
