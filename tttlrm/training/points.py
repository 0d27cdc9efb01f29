"""Supervision of the Gaussians themselves, where the surfaces that the input views show are known.

Renderings say little about where on its ray a Gaussian should be as long as those of different views do not meet.
Procedural scenes have exact depths of their input views, which say it at once.

Dimension letters: B scenes, V input views.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tttlrm.cameras import Cameras, pixel_rays
from tttlrm.gaussians import Gaussians
from tttlrm.model import patchify

_MIN_DISTANCE = 1e-3
_EMPTY, _SOLID = 0.01, 0.7
"""Opacities that Gaussians are drawn to where there is nothing, and where there is a surface. Neither is an end of the
range, from which the renderings could not bring them back."""


@dataclass(frozen=True)
class Surfaces:
    """What the input views show, for the terms of their Gaussians.

    Attributes:
        cameras: [B, V].
        depths, masks: [B, V, 1, H, W], depth of the surface (camera z) and share of the pixel that shows one.
        pixels: [B], pixels of each scene that show a surface; None: those of these views.
        num_views: of each scene; None: V.
    """

    cameras: Cameras
    depths: Tensor
    masks: Tensor
    pixels: Tensor | None = None
    num_views: int | None = None


def surface_terms(
    names: tuple[str, ...], positions: Tensor, logits: Tensor, inputs: Surfaces, patch: int
) -> dict[str, Tensor]:
    """Some of the terms ``points``, ``coverage`` and ``solidity``: means over the batch.

    Args:
        names: which ones.
        positions: [B, V, H W, 3], of the Gaussians of each view, in the model's order.
        logits: [B, V, H W], of their opacities.
        inputs: the same views' surfaces.
        patch: the model's patch size.
    """
    terms: dict[str, Tensor] = {}
    num_views = inputs.num_views or logits.shape[1]
    if "points" in names:
        pixels = surface_pixels(inputs.masks) if inputs.pixels is None else inputs.pixels
        error = points_loss(positions, inputs.cameras, inputs.depths, inputs.masks, patch).sum(1)
        terms["points"] = (error / pixels).mean()
    for name, term in (("coverage", coverage_loss), ("solidity", solidity_loss)):
        if name in names:
            terms[name] = term(logits, inputs.masks, patch).sum(1).mean() / num_views
    return terms


def points_loss(positions: Tensor, cameras: Cameras, depths: Tensor, masks: Tensor, patch: int) -> Tensor:
    """Difference, in the logarithm of the distance from the camera, between Gaussians and the surfaces of their pixels.

    Args:
        positions: [B, V, H W, 3], of the Gaussians of each view, in the model's order.
        cameras: [B, V].
        depths, masks: [B, V, 1, H, W], depth of the surface (camera z) and share of the pixel that shows one.
        patch: the model's patch size, which the order of the Gaussians depends on.

    Returns:
        [B, V], sums over the view's pixels, weighted with the mask.
    """
    origins, directions = pixel_rays(cameras)
    cosines = (directions * cameras.camera_to_world[..., None, None, :3, 2]).sum(-1, keepdim=True)
    origins, directions, true, weights = (
        _in_order(image, patch) for image in (origins, directions, _last(depths) / cosines, _last(masks))
    )
    distances = ((positions - origins) * directions).sum(-1, keepdim=True)
    error = (distances.clamp(min=_MIN_DISTANCE).log() - true.clamp(min=_MIN_DISTANCE).log()).abs()
    return (error * weights).sum(dim=(-1, -2))


def coverage_loss(opacity_logits: Tensor, masks: Tensor, patch: int) -> Tensor:
    """How far Gaussians are from being transparent where their pixels show nothing: a cross-entropy.

    On surfaces the renderings decide: Gaussians of several views share one there.

    Args:
        opacity_logits: [B, V, H W].
        masks: [B, V, 1, H, W].

    Returns:
        [B, V], means over all of the view's pixels.
    """
    empty = 1 - _in_order(_last(masks), patch).squeeze(-1)
    return (_cross_entropy(opacity_logits, _EMPTY) * empty).mean(-1)


def solidity_loss(opacity_logits: Tensor, masks: Tensor, patch: int) -> Tensor:
    """How far Gaussians are from being fairly opaque where their pixels show a surface: a cross-entropy.

    Early in training, Gaussians at wrong distances would else become a transparent fog, which gets no sharper.
    Arguments and result as those of :func:`coverage_loss`.
    """
    surface = _in_order(_last(masks), patch).squeeze(-1)
    return (_cross_entropy(opacity_logits, _SOLID) * surface).mean(-1)


def surface_pixels(masks: Tensor) -> Tensor:
    """Number of pixels of each scene that show a surface, at least 1. [B, V, 1, H, W] to [B]."""
    return masks.sum(dim=(1, 2, 3, 4)).clamp(min=1)


def of_views(gaussians: Gaussians, num_views: int, views: slice) -> tuple[Tensor, Tensor]:
    """Positions [B, v, H W, 3] and opacity logits [B, v, H W] of the Gaussians of some of the V input views."""
    tensors = (gaussians.positions, gaussians.opacity_logits)
    positions, logits = (tensor.unflatten(1, (num_views, -1))[:, views] for tensor in tensors)
    return positions, logits


def _cross_entropy(logits: Tensor, target: float) -> Tensor:
    """Of opacities with a target, less its smallest value, so that it ends at 0."""
    least = -target * math.log(target) - (1 - target) * math.log(1 - target)
    return F.softplus(logits) - target * logits - least


def _last(images: Tensor) -> Tensor:
    return torch.movedim(images, -3, -1)


def _in_order(image: Tensor, patch: int) -> Tensor:
    """[B, V, H, W, c] to [B, V, H W, c], in the order of the Gaussians."""
    return patchify(image, patch).unflatten(-1, (-1, image.shape[-1])).flatten(2, 3)
