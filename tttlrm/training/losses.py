"""The terms of the training loss (paper section 4): images, perception, opacity, depth.

Dimension letters: B scenes, R rendered views.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tttlrm.gaussians import Gaussians
from tttlrm.rendering import Rendering
from tttlrm.training.perceptual import ImageDistance
from tttlrm.training.settings import LossWeights

_EPS = 1e-6
_LOG_FLOOR = 1e-3
"""Added to errors before their logarithm: views of more than 30 dB gain little weight."""


@dataclass(frozen=True)
class RenderingLoss:
    """Sums over views, for one group of rendered views: divide by the number of all views.

    Attributes:
        total: the weighted sum of the terms, to be differentiated.
        terms: values of each term, detached, by name.
    """

    total: Tensor
    terms: dict[str, Tensor]


def rendering_loss(
    rendering: Rendering,
    images: Tensor,
    depths: Tensor,
    masks: Tensor,
    weights: LossWeights,
    perceptual: ImageDistance | None,
) -> RenderingLoss:
    """The terms that compare renderings with targets.

    Args:
        rendering: of [B, R] views.
        images: [B, R, 3, H, W], targets in [0, 1].
        depths, masks: [B, R, 1, H, W], depth (camera z) and share of the pixel that has one.
        perceptual: needed where its weight is not 0.
    """
    error = (rendering.images - images).square().mean(dim=(-3, -2, -1))
    total = weights.mse * error.sum()
    terms = {"mse": error.detach().sum(), "psnr": _psnr(rendering.images.detach(), images).sum()}
    if weights.log_mse:
        logarithm = ((error + _LOG_FLOOR) / _LOG_FLOOR).log().sum()
        total = total + weights.log_mse * logarithm
        terms["log_mse"] = logarithm.detach()
    if weights.perceptual:
        assert perceptual is not None
        distance = perceptual(rendering.images.flatten(0, 1), images.flatten(0, 1)).sum()
        total = total + weights.perceptual * distance
        terms["perceptual"] = distance.detach()
    if weights.depth:
        difference = depth_loss(rendering, depths, masks).sum()
        total = total + weights.depth * difference
        terms["depth"] = difference.detach()
    return RenderingLoss(total, terms)


def opacity_loss(gaussians: Gaussians) -> Tensor:
    """Mean opacity: Gaussians that are not needed become transparent."""
    return gaussians.opacities.mean()


def depth_loss(rendering: Rendering, depths: Tensor, masks: Tensor) -> Tensor:
    """Smooth L1 between inverse depths, each shifted by its median and scaled by its mean absolute deviation from it.

    Taken over the pixels of each view that show a surface all over. Independent of the depths' unit.

    Returns:
        [B, R]; 0 for a view without such pixels.
    """
    inside = masks > 0.999
    expected = rendering.depths / rendering.alphas.clamp(min=1e-3)
    predicted = _normalized_inverse(expected, inside)
    reference = _normalized_inverse(depths, inside)
    error = F.smooth_l1_loss(predicted, reference, reduction="none").squeeze(-3).flatten(-2)
    return _masked_mean(error, inside.squeeze(-3).flatten(-2))


def _normalized_inverse(depths: Tensor, inside: Tensor) -> Tensor:
    shape = depths.shape
    mask = inside.flatten(-3)
    inverse = torch.where(inside, 1 / depths.clamp(min=1e-2), 0).flatten(-3)
    # The median of the pixels inside: the others do not count as NaN.
    median = torch.where(mask, inverse, torch.nan).nanmedian(dim=-1, keepdim=True).values
    shifted = torch.where(mask, inverse - median, 0)
    spread = _masked_mean(shifted.abs(), mask)[..., None]
    return (shifted / (spread + 1e-3)).view(shape)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last dimension where the mask is set; 0 where it is set nowhere."""
    return torch.where(mask, values, 0).sum(-1) / mask.sum(-1).clamp(min=1)


def _psnr(predicted: Tensor, target: Tensor) -> Tensor:
    """[B, R], in dB, at most 60, for curves: without the synchronisation of :mod:`tttlrm.metrics`."""
    error = (predicted.clamp(0, 1) - target).square().mean(dim=(-3, -2, -1))
    return -10 * error.clamp(min=_EPS).log10()
