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
from tttlrm.scenes.procedural import ProceduralBatch, ProceduralSpec, make_batch
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
    """Make scenes and split their views. The targets depend on ``num_targets`` alone, not on ``num_inputs``."""
    batches = [
        make_trajectories(spec, indices[start : start + _SCENES_AT_ONCE], size, device)
        for start in range(0, len(indices), _SCENES_AT_ONCE)
    ]
    parts = [split_scenes(batch, num_inputs, num_targets, poses) for batch in batches]
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
    views = batch.views.select(at)
    moved, scale = normalize_batch(views.camera_to_world, poses)
    views = Views(views.images, moved, views.intrinsics)
    depths, masks = (tensor.index_select(1, at[num_inputs:]) for tensor in (batch.depths, batch.masks))
    return HeldOutScenes(
        views.select(range(num_inputs)),
        views.select(range(num_inputs, len(at))),
        depths / scale[:, None, None, None, None],
        masks,
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
