"""Image quality: PSNR and SSIM as the evaluation of the paper takes them (LPIPS is in :mod:`tttlrm.lpips`).

Images are RGB, channels first, nominally in [0, 1]. Values are computed in float64, view by view, so that they
depend neither on the device nor on how many views are passed at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tttlrm.errors import UserError

_SSIM_WINDOW = 7
_SSIM_C1 = 0.01**2
_SSIM_C2 = 0.03**2


def psnr(predicted: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each view, with a peak of 1, on images clipped to [0, 1].

    Args:
        predicted, target: [V, 3, H, W].

    Returns:
        [V], float64; infinite where both are equal.
    """
    check_pair(predicted, target)
    error = torch.stack([_squared_error(p, t) for p, t in zip(predicted, target, strict=True)])
    return -10 * error.log10()


def ssim(predicted: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each view, as ``skimage.metrics.structural_similarity`` defines it by default.

    That is: a uniform 7x7 window, the sample covariance (division by 48), constants 0.01 and 0.03, a data range of 1,
    the mean over the windows that lie inside the image and over the channels. Images are taken as they are: the
    evaluation clips them for PSNR alone.

    Args:
        predicted, target: [V, 3, H, W], H and W at least 7.

    Returns:
        [V], float64.
    """
    check_pair(predicted, target)
    if min(predicted.shape[-2:]) < _SSIM_WINDOW:
        raise UserError(
            f"SSIM needs images of at least {_SSIM_WINDOW}x{_SSIM_WINDOW} pixels, not "
            f"{predicted.shape[-2]}x{predicted.shape[-1]}"
        )
    return torch.stack([_ssim_view(p, t) for p, t in zip(predicted, target, strict=True)])


def check_pair(predicted: Tensor, target: Tensor) -> None:
    """Raise unless both are non-empty [V, 3, H, W] of one shape, with finite values."""
    if predicted.ndim != 4 or predicted.shape[1] != 3 or predicted.numel() == 0:
        raise UserError(f"metrics: images must have shape [V, 3, H, W], not {list(predicted.shape)}")
    if predicted.shape != target.shape:
        raise UserError(
            f"metrics: predicted images {list(predicted.shape)} and targets {list(target.shape)} differ in shape"
        )
    for name, images in (("predicted", predicted), ("target", target)):
        # Clipping would turn an infinity into a plausible pixel, and the mean would spread a NaN without saying whence.
        if not bool(torch.isfinite(images).all()):
            raise UserError(f"metrics: {name} images contain values that are not finite")


def _squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    clipped, reference = (image.to(torch.float64).clamp(0, 1) for image in (predicted, target))
    return (clipped - reference).square().mean()


def _ssim_view(predicted: Tensor, target: Tensor) -> Tensor:
    x, y = predicted.to(torch.float64), target.to(torch.float64)
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    count = _SSIM_WINDOW**2
    unbiased = count / (count - 1)
    variance_x = unbiased * (_window_mean(x * x) - mean_x * mean_x)
    variance_y = unbiased * (_window_mean(y * y) - mean_y * mean_y)
    covariance = unbiased * (_window_mean(x * y) - mean_x * mean_y)
    luminance = (2 * mean_x * mean_y + _SSIM_C1) / (mean_x * mean_x + mean_y * mean_y + _SSIM_C1)
    structure = (2 * covariance + _SSIM_C2) / (variance_x + variance_y + _SSIM_C2)
    return (luminance * structure).mean()


def _window_mean(image: Tensor) -> Tensor:
    """Mean over each window that lies inside the image: [3, H, W] to [3, H - 6, W - 6]."""
    return torch.nn.functional.avg_pool2d(image, _SSIM_WINDOW, stride=1)
