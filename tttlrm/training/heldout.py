"""Scenes to measure quality on, each with fixed target views and with input views that do not include them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tttlrm.cameras import Views
from tttlrm.config import PoseReference
from tttlrm.errors import UserError
from tttlrm.scenes.procedural import (
    ProceduralBatch,
    ProceduralSpec,
    make_batch,
    render_scenes,
    sample_cameras,
    scene_parameters,
)
from tttlrm.training.poses import normalize_batch

TRAJECTORY_VIEWS = 32
"""Views that are made of each scene, of which inputs and targets are taken: these are the same whatever is asked for,
so that numbers of input views are compared on the same targets."""
_SCENES_AT_ONCE = 4


@dataclass(frozen=True)
class HeldOutScenes:
    """B scenes.

    Attributes:
        inputs: [B, V, ...].
        targets: [B, R, ...].
        depths, masks: [B, R, 1, H, W], of the targets, as :class:`tttlrm.training.data.TrainingBatch` has them.
    """

    inputs: Views
    targets: Views
    depths: Tensor
    masks: Tensor

    def select(self, at: slice) -> HeldOutScenes:
        """Some of the scenes."""
        inputs, targets = (
            Views(v.images[at], v.camera_to_world[at], v.intrinsics[at]) for v in (self.inputs, self.targets)
        )
        return HeldOutScenes(inputs, targets, self.depths[at], self.masks[at])


def split_views(num_inputs: int, num_targets: int) -> tuple[list[int], list[int]]:
    """Positions, among the views of a scene, of inputs and targets: both spread evenly, none in common."""
    if num_inputs < 1 or num_targets < 1 or num_inputs + num_targets > TRAJECTORY_VIEWS:
        raise UserError(
            f"held-out scenes have {TRAJECTORY_VIEWS} views, too few for {num_inputs} inputs and {num_targets} targets"
        )
    targets = _spread(np.arange(TRAJECTORY_VIEWS), num_targets)
    rest = np.setdiff1d(np.arange(TRAJECTORY_VIEWS), targets)
    return _spread(rest, num_inputs).tolist(), targets.tolist()


def held_out_scenes(
    spec: ProceduralSpec,
    indices: Sequence[int],
    num_inputs: int,
    num_targets: int,
    size: tuple[int, int],
    poses: PoseReference,
    device: torch.device | str = "cpu",
) -> HeldOutScenes:
    """Make scenes and split their views. The targets depend on ``num_targets`` alone, not on ``num_inputs``.

    As :func:`split_scenes` of :func:`make_trajectories`, without rendering the views that are neither.
    """
    chosen = [at for group in split_views(num_inputs, num_targets) for at in group]
    parts = [
        _split(_render(spec, indices[start : start + _SCENES_AT_ONCE], size, device, chosen), num_inputs, poses)
        for start in range(0, len(indices), _SCENES_AT_ONCE)
    ]
    return HeldOutScenes(
        _concatenate([part.inputs for part in parts]),
        _concatenate([part.targets for part in parts]),
        torch.cat([part.depths for part in parts]),
        torch.cat([part.masks for part in parts]),
    )


def make_trajectories(
    spec: ProceduralSpec, indices: Sequence[int], size: tuple[int, int], device: torch.device | str
) -> ProceduralBatch:
    """All views of scenes, to be split by :func:`split_scenes` for any number of inputs."""
    return make_batch(spec, indices, TRAJECTORY_VIEWS, size, device)


def split_scenes(batch: ProceduralBatch, num_inputs: int, num_targets: int, poses: PoseReference) -> HeldOutScenes:
    """Inputs and targets of scenes, their poses normalised together."""
    inputs, targets = split_views(num_inputs, num_targets)
    at = torch.tensor([*inputs, *targets], device=batch.depths.device)
    depths, masks = (tensor.index_select(1, at) for tensor in (batch.depths, batch.masks))
    return _split(ProceduralBatch(batch.views.select(at), depths, masks), num_inputs, poses)


def _render(
    spec: ProceduralSpec,
    indices: Sequence[int],
    size: tuple[int, int],
    device: torch.device | str,
    chosen: list[int],
) -> ProceduralBatch:
    """Some views of the scenes' trajectories."""
    scenes = scene_parameters(spec, indices)
    cameras = sample_cameras(scenes, TRAJECTORY_VIEWS, size).select(chosen).to(device)
    rendering = render_scenes(scenes.to(device), cameras)
    views = Views(rendering.images, cameras.camera_to_world, cameras.intrinsics)
    return ProceduralBatch(views, rendering.depths, rendering.masks)


def _split(batch: ProceduralBatch, num_inputs: int, poses: PoseReference) -> HeldOutScenes:
    """Inputs first, then targets; the poses of both are normalised together."""
    moved, scale = normalize_batch(batch.views.camera_to_world, poses)
    views = Views(batch.views.images, moved, batch.views.intrinsics)
    return HeldOutScenes(
        views.select(range(num_inputs)),
        views.select(range(num_inputs, views.num_views)),
        batch.depths[:, num_inputs:] / scale[:, None, None, None, None],
        batch.masks[:, num_inputs:],
    )


def _concatenate(parts: list[Views]) -> Views:
    return Views(
        torch.cat([part.images for part in parts]),
        torch.cat([part.camera_to_world for part in parts]),
        torch.cat([part.intrinsics for part in parts]),
    )


def _spread(positions: np.ndarray, count: int) -> np.ndarray:
    """``count`` of the positions, in the middles of equal parts of the list."""
    return positions[((np.arange(count) + 0.5) * len(positions) / count).astype(int)]
