"""Projection of 3D Gaussians to one camera's image plane (EWA splatting: Zwicker et al. 2001, Kerbl et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

VIEW_MARGIN = 0.3
"""The projection is linearised no further outside the image than this share of half the field of view."""


@dataclass(frozen=True)
class Frustum:
    """What all views of a rendering share.

    Attributes:
        width, height: of the images, in pixels.
        near, far: camera z outside of which Gaussians are not drawn.
        eps2d: variance in square pixels that is added to the projected covariances.
    """

    width: int
    height: int
    near: float
    far: float
    eps2d: float


@dataclass(frozen=True)
class Projection:
    """N Gaussians as one camera sees them. All but ``in_range`` are differentiable.

    Attributes:
        means: [N, 2], in pixels.
        covariances: [N, 3], (xx, xy, yy) in square pixels, with the low-pass filter added.
        determinants: [N], of the covariances.
        conics: [N, 3], (xx, xy, yy) of the inverse covariances.
        depths: [N], camera z. Meaningless (but finite) where ``in_range`` is false, as are the others.
        in_range: [N], bool: between the near and the far plane.
    """

    means: Tensor
    covariances: Tensor
    determinants: Tensor
    conics: Tensor
    depths: Tensor
    in_range: Tensor


def principal_axes(quats: Tensor, scales: Tensor) -> Tensor:
    """The three axes of each Gaussian, as long as its standard deviations.

    Args:
        quats: [N, 4], (w, x, y, z), not normalised.
        scales: [N, 3], standard deviations.

    Returns:
        [N, 3, 3]: axis, then xyz. The covariance is the sum of the axes' outer products.
    """
    w, x, y, z = (quats / quats.norm(dim=-1, keepdim=True)).unbind(-1)
    axes = torch.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)),
            *(2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)),
            *(2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)),
        ],
        dim=-1,
    ).unflatten(-1, (3, 3))
    return axes * scales[..., None]


def project(means: Tensor, axes: Tensor, viewmat: Tensor, intrinsics: Tensor, frustum: Frustum) -> Projection:
    """Project Gaussians to first order around their means.

    Args:
        means: [N, 3], world coordinates.
        axes: [N, 3, 3], of :func:`principal_axes`.
        viewmat: [4, 4], world to camera.
        intrinsics: [4], (fx, fy, cx, cy) in pixels.
    """
    rotation, translation = viewmat[:3, :3], viewmat[:3, 3]
    x, y, z = (_rotate(means, rotation) + translation).unbind(-1)
    in_range = (z >= frustum.near) & (z <= frustum.far)
    z = torch.where(in_range, z, 1.0)  # so that what is not drawn has finite gradients
    fx, fy, cx, cy = intrinsics.unbind(-1)
    ratio_x, ratio_y = x / z, y / z

    camera_axes = _rotate(axes, rotation)
    tangent_x = _limit(ratio_x, fx, cx, frustum.width)
    tangent_y = _limit(ratio_y, fy, cy, frustum.height)
    u = (fx / z)[:, None] * (camera_axes[..., 0] - tangent_x[:, None] * camera_axes[..., 2])
    v = (fy / z)[:, None] * (camera_axes[..., 1] - tangent_y[:, None] * camera_axes[..., 2])

    uu, uv, vv = (u * u).sum(-1), (u * v).sum(-1), (v * v).sum(-1)
    # The determinant of J C J^T + eps2d I without a difference of large products: positive for thin Gaussians too.
    normal = torch.linalg.cross(u, v)
    determinants = (normal * normal).sum(-1) + frustum.eps2d * (uu + vv) + frustum.eps2d**2
    xx, yy = uu + frustum.eps2d, vv + frustum.eps2d
    return Projection(
        means=torch.stack([fx * ratio_x + cx, fy * ratio_y + cy], dim=-1),
        covariances=torch.stack([xx, uv, yy], dim=-1),
        determinants=determinants,
        conics=torch.stack([yy, -uv, xx], dim=-1) / determinants[:, None],
        depths=z,
        in_range=in_range,
    )


def _rotate(vectors: Tensor, rotation: Tensor) -> Tensor:
    """rotation @ vector for vectors [..., 3]; not a matrix product, which may be computed in TF32 on CUDA."""
    x, y, z = rotation.unbind(-1)
    return vectors[..., :1] * x + vectors[..., 1:2] * y + vectors[..., 2:] * z


def _limit(ratio: Tensor, focal: Tensor, center: Tensor, size: int) -> Tensor:
    """x/z (or y/z) limited to the image and a margin around it."""
    margin = VIEW_MARGIN * 0.5 * size / focal
    return ratio.clamp(min=-(center / focal + margin), max=(size - center) / focal + margin)
