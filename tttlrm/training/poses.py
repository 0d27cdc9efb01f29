"""Normalisation of poses for a batch of scenes, without waiting for the device.

The same mapping as :func:`tttlrm.cameras.normalize_poses`, which is for one scene in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tttlrm.config import PoseReference


def normalize_batch(camera_to_world: Tensor, frame: PoseReference) -> tuple[Tensor, Tensor]:
    """Poses of a batch of scenes, each in its own normalised frame.

    Args:
        camera_to_world: [B, V, 4, 4], all cameras of each scene, inputs first.

    Returns:
        [B, V, 4, 4], and the scales [B] that lengths of each scene were divided by.
    """
    if frame == "scene":
        return camera_to_world, camera_to_world.new_ones(len(camera_to_world))
    reference = _mean_cameras(camera_to_world) if frame == "mean" else camera_to_world[:, 0]
    moved = _rigid_inverse(reference)[:, None] @ camera_to_world
    scale = moved[..., :3, 3].abs().amax(dim=(1, 2))
    return scale_poses(moved, 1 / scale), scale


def scale_poses(camera_to_world: Tensor, factors: Tensor) -> Tensor:
    """Poses [B, V, 4, 4] of scenes whose lengths are multiplied by ``factors`` [B]."""
    scaled = camera_to_world.clone()
    scaled[..., :3, 3] *= factors[:, None, None]
    return scaled


def _mean_cameras(camera_to_world: Tensor) -> Tensor:
    """[B, V, 4, 4] to [B, 4, 4]."""
    z = torch.nn.functional.normalize(camera_to_world[..., :3, 2].sum(1), dim=-1)
    y = camera_to_world[..., :3, 1].sum(1)
    x = torch.nn.functional.normalize(torch.linalg.cross(y, z), dim=-1)
    y = torch.nn.functional.normalize(torch.linalg.cross(z, x), dim=-1)
    mean = camera_to_world[:, 0].clone()
    mean[:, :3] = torch.stack([x, y, z, camera_to_world[..., :3, 3].mean(1)], dim=-1)
    return mean


def _rigid_inverse(matrices: Tensor) -> Tensor:
    """Inverse of rigid transforms [..., 4, 4]; torch.linalg.inv would wait for the device."""
    rotation = matrices[..., :3, :3].transpose(-1, -2)
    inverse = matrices.clone()
    inverse[..., :3, :3] = rotation
    inverse[..., :3, 3:] = -rotation @ matrices[..., :3, 3:]
    return inverse
