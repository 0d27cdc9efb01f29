"""What is trivially possible: the yardsticks that a model's PSNR is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from tttlrm.cameras import Views


def mean_color(inputs: Views, targets: Views) -> Tensor:
    """Every target view as the mean colour of all input pixels. [..., R, 3, H, W]."""
    color = inputs.images.mean(dim=(-4, -2, -1))
    return color[..., None, :, None, None].expand_as(targets.images)


def nearest_view(inputs: Views, targets: Views) -> Tensor:
    """Every target view as the nearest input view is. [..., R, 3, H, W].

    Nearest by camera position (in the poses' units) and viewing direction, as K-means chooses input views.
    """
    # Not by a matrix product, whose rounding could choose another view.
    distances = torch.cdist(_features(targets), _features(inputs), compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.argmin(dim=-1)[..., None, None, None]
    return torch.gather(inputs.images, -4, nearest.expand(*nearest.shape[:-3], *inputs.images.shape[-3:]))


def _features(views: Views) -> Tensor:
    """[..., V, 6]."""
    poses = views.camera_to_world
    return torch.cat([poses[..., :3, 3], poses[..., :3, 2]], dim=-1)
