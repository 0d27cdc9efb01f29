"""A perceptual loss: LPIPS (Zhang et al., 2018) made differentiable and fast, with the same weights.

The paper compares features of VGG-19; these are of the VGG-16 that LPIPS comes with.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tttlrm import lpips_weights
from tttlrm.errors import DownloadError, UserError

_CONVOLUTIONS_PER_LEVEL = (2, 2, 3, 3, 3)
# Mean and spread of the backbone's training images, for images in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPS = 1e-8


class PerceptualLoss(nn.Module):
    """Distance between features of two images. Gradients flow to the first."""

    def __init__(self, weights: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
        """Weights as :func:`tttlrm.lpips_weights.load_weights` names them; ``dtype`` of the convolutions."""
        super().__init__()
        for name, tensor in weights.items():
            kernel = tensor.to(dtype)
            if name.startswith("conv") and name.endswith("weight"):
                kernel = kernel.contiguous(memory_format=torch.channels_last)
            self.register_buffer(name.replace(".", "_"), kernel)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Distance [V] of images [V, 3, H, W], nominally in [0, 1]."""
        with torch.no_grad():
            references = self._features(target)
        total: Tensor = predicted.new_zeros(len(predicted))
        for level, (x, y) in enumerate(zip(self._features(predicted), references, strict=True)):
            head = self.get_buffer(f"head{level}_weight").flatten().to(x.dtype)
            difference = (_unit(x) - _unit(y)).square()
            total = total + torch.einsum("vchw,c->vhw", difference, head).mean(dim=(-2, -1)).to(total.dtype)
        return total

    def _features(self, images: Tensor) -> list[Tensor]:
        shift, scale = self.get_buffer("shift"), self.get_buffer("scale")
        x = (2 * images.clamp(0, 1) - 1 - shift.to(images)) / scale.to(images)
        x = x.to(self.get_buffer("conv0_weight").dtype).contiguous(memory_format=torch.channels_last)
        features, index = [], 0
        for level, count in enumerate(_CONVOLUTIONS_PER_LEVEL):
            x = F.max_pool2d(x, 2) if level else x
            for _ in range(count):
                weight, bias = self.get_buffer(f"conv{index}_weight"), self.get_buffer(f"conv{index}_bias")
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
                index += 1
            features.append(x)
        return features


def load_perceptual_loss(folder: Path | None, device: torch.device, dtype: torch.dtype) -> PerceptualLoss:
    """The loss with the true weights.

    Args:
        folder: where the weights are or are to be kept; None: the user's cache.

    Raises:
        UserError: they cannot be had; says how to train without.
    """
    try:
        weights = lpips_weights.load_weights(folder or lpips_weights.default_cache_dir(), offline=False)
    except DownloadError as error:
        raise UserError(
            f"the perceptual loss has no weights ({error}); name their folder with perceptual_weights=FOLDER, "
            "or set every perceptual weight of the loss to 0"
        ) from error
    return PerceptualLoss(weights, dtype).to(device)


def _unit(x: Tensor) -> Tensor:
    """Each pixel's features, scaled to unit length."""
    return x / (x.float().square().sum(dim=1, keepdim=True) + _EPS).sqrt().to(x.dtype)
