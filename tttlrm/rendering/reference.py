"""Rendering in plain torch, on CPUs and any other device, by the rule of gsplat's CUDA kernels; differentiable."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tttlrm.rendering.compositing import composite
from tttlrm.rendering.footprints import find_footprints
from tttlrm.rendering.projection import Frustum, principal_axes, project
from tttlrm.rendering.spherical_harmonics import sh_colors


def rasterize(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    sh: Tensor,
    viewmats: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    near: float,
    far: float,
    eps2d: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Render N Gaussians to V images, without background (3D Gaussian Splatting: Kerbl et al. 2023).

    A pixel sees Gaussian i, front to back by camera z, with alpha_i = min(0.999, opacity exp(-d^2 / 2)), d the
    Mahalanobis distance of the pixel's centre from the projected mean; alphas below 1/255 count as 0. Its weight is
    alpha_i times the transmittance in front of it, the product of (1 - alpha). The pixel ends before its
    transmittance reaches 1e-4. A Gaussian whose projection or opacity is not finite is not drawn.

    Args:
        means: [..., N, 3], world coordinates.
        quats: [..., N, 4], (w, x, y, z), not normalised.
        scales: [..., N, 3], standard deviations.
        opacities: [..., N], in [0, 1].
        sh: [..., N, K, 3], spherical-harmonics coefficients.
        viewmats: [..., V, 4, 4], world to camera.
        intrinsics: [..., V, 4], (fx, fy, cx, cy) in pixels.
        width, height: of the images.
        near, far: camera z outside of which Gaussians are not drawn.
        eps2d: variance in square pixels that is added to the projected covariances.

    Returns:
        colors [..., V, H, W, 3], alphas [..., V, H, W, 1], depths [..., V, H, W, 1] (sums of weight times camera z).
    """
    frustum = Frustum(width, height, near, far, eps2d)
    lead = viewmats.shape[:-3]
    tensors = (means, quats, scales, opacities, sh, viewmats, intrinsics)
    flat = [t.reshape(math.prod(lead), *t.shape[len(lead) :]) for t in tensors]
    image = means.new_zeros(*lead, viewmats.shape[-3], height, width, 5)
    if image.numel():
        scenes = [_rasterize_scene(frustum, *scene) for scene in zip(*flat, strict=True)]
        image = torch.stack(scenes).reshape(image.shape)
    return image[..., :3], image[..., 4:], image[..., 3:4]


def _rasterize_scene(
    frustum: Frustum,
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    sh: Tensor,
    viewmats: Tensor,
    intrinsics: Tensor,
) -> Tensor:
    """:func:`rasterize` for one scene. [V, H, W, 5]: colour, depth, alpha."""
    axes = principal_axes(quats, scales)
    centers = torch.linalg.inv(viewmats)[:, :3, 3]
    images = []
    for viewmat, intrinsic, center in zip(viewmats, intrinsics, centers, strict=True):
        projection = project(means, axes, viewmat, intrinsic, frustum)
        colors = sh_colors(sh, torch.nn.functional.normalize(means - center, dim=-1))
        depths = projection.depths[:, None]
        features = torch.cat([colors, depths, torch.ones_like(depths)], dim=-1)
        with torch.no_grad():
            footprints = find_footprints(projection, opacities, frustum.width, frustum.height)
        images.append(composite(projection.means, projection.conics, opacities, features, footprints))
    return torch.stack(images)
