"""Perceptual losses: LPIPS on VGG-16 (the default), and the distance of features of VGG-19.

The paper compares features of VGG-19, whose weights cannot be fetched everywhere; those of LPIPS can. Where
the user has VGG-19's, ``perceptual_features=vgg19`` takes them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from tttlrm import lpips_weights
from tttlrm.errors import DownloadError, UserError
from tttlrm.training.settings import PerceptualFeatures
from tttlrm.training.vgg import WANTED, Convolution, Vgg, read_vgg19

ImageDistance = Callable[[Tensor, Tensor], Tensor]
"""Distance [V] of images [V, 3, H, W], nominally in [0, 1]. Gradients flow to the first."""

_VGG16_COUNTS = (2, 2, 3, 3, 3)
# Mean and spread of the backbone's training images, for images in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPS = 1e-8

_VGG19_COUNTS = (2, 2, 4, 4, 2)
"""Of the convolutions up to conv5_2; the last two are of no account."""
_VGG19_TAKEN = (2, 2, 2, 2, 2)
# Mean and spread of the training images of torchvision's weights, for images in [0, 1].
_MEAN = (0.485, 0.456, 0.406)
_SPREAD = (0.229, 0.224, 0.225)
_LEVEL_FACTORS = (1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5)
_UNIT = sum(_SPREAD) / 3


class PerceptualLoss(nn.Module):
    """LPIPS (Zhang et al., 2018), made differentiable and fast, with the same weights."""

    def __init__(self, weights: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
        """Weights as :func:`tttlrm.lpips_weights.load_weights` names them; ``dtype`` of the convolutions."""
        super().__init__()
        convolutions = [
            Convolution(weights[f"conv{index}.weight"], weights[f"conv{index}.bias"])
            for index in range(sum(_VGG16_COUNTS))
        ]
        self.vgg = Vgg(convolutions, _VGG16_COUNTS, _VGG16_COUNTS, dtype)
        for level in range(len(_VGG16_COUNTS)):
            self.register_buffer(f"head{level}", weights[f"head{level}.weight"].to(dtype))
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Distance [V] of images [V, 3, H, W], nominally in [0, 1]. Gradients flow to the first."""
        with torch.no_grad():
            references = self._features(target)
        total: Tensor = predicted.new_zeros(len(predicted))
        for level, (x, y) in enumerate(zip(self._features(predicted), references, strict=True)):
            head = self.get_buffer(f"head{level}").flatten().to(x.dtype)
            difference = (_unit(x) - _unit(y)).square()
            total = total + torch.einsum("vchw,c->vhw", difference, head).mean(dim=(-2, -1)).to(total.dtype)
        return total

    def _features(self, images: Tensor) -> list[Tensor]:
        shift, scale = self.get_buffer("shift"), self.get_buffer("scale")
        features: list[Tensor] = self.vgg((2 * images.clamp(0, 1) - 1 - shift.to(images)) / scale.to(images))
        return features


class Vgg19Loss(nn.Module):
    """Mean absolute difference of two images and of their features of VGG-19.

    Of the paper's loss, the network and the weight (0.5) are known, no more. What is computed for each view is

        mean |a - b| + u * sum over levels l of c_l * mean |f_l(a) - f_l(b)|

    where a and b are the images, f_l their features after the ReLU of conv1_2, conv2_2, conv3_2, conv4_2 and conv5_2,
    and c_l 1/2.6, 1/4.8, 1/3.7, 1/5.6 and 10/1.5. Layers, absolute differences and the image's own term are those of
    Chen and Koltun (2017, "Photographic Image Synthesis with Cascaded Refinement Networks", equation 1), the factors
    those of their published code. LVSM's published code has the same sum for images in [0, 255], divided by 255; its
    author says that it has this loss because GS-LRM has one.

    Our choice, because of the weights: both of these take the original VGG-19, for images in [0, 255] less their mean,
    and pool by the mean of 2x2 values. torchvision's weights were trained anew, for images divided by their spread, and
    with the largest of 2x2 values; so it is here. Features are then in units of the spread, and u, its mean over the
    colours (0.226), brings them to the unit of images in [0, 1], as the division by 255 does there. The factors
    stay as published (docs/training.md says how well they fit).
    """

    def __init__(self, convolutions: list[Convolution], dtype: torch.dtype = torch.float32) -> None:
        """Convolutions as :func:`tttlrm.training.vgg.read_vgg19` gives them; ``dtype`` of their computation."""
        super().__init__()
        self.vgg = Vgg(convolutions[: sum(_VGG19_COUNTS)], _VGG19_COUNTS, _VGG19_TAKEN, dtype)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("spread", torch.tensor(_SPREAD).view(1, 3, 1, 1))

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Distance [V] of images [V, 3, H, W], nominally in [0, 1]. Gradients flow to the first."""
        with torch.no_grad():
            references = self._features(target)
        total = _mean_difference(predicted, target.detach(), predicted.dtype)
        for factor, x, y in zip(_LEVEL_FACTORS, self._features(predicted), references, strict=True):
            total = total + _UNIT * factor * _mean_difference(x, y, predicted.dtype)
        return total

    def _features(self, images: Tensor) -> list[Tensor]:
        mean, spread = self.get_buffer("mean"), self.get_buffer("spread")
        features: list[Tensor] = self.vgg((images - mean.to(images)) / spread.to(images))
        return features


def load_perceptual_loss(
    features: PerceptualFeatures, weights: Path | None, device: torch.device, dtype: torch.dtype
) -> PerceptualLoss | Vgg19Loss:
    """The loss with the true weights.

    Args:
        features: of which network.
        weights: for vgg16 the folder where they are or are to be kept, or None: the user's cache; for vgg19 their file.
        dtype: of the convolutions.

    Raises:
        UserError: they cannot be had; says how to train without.
    """
    if features == "vgg16":
        return PerceptualLoss(_lpips_weights(weights), dtype).to(device)
    if weights is None:
        raise UserError(
            f"perceptual_features=vgg19 has no weights; name {WANTED}, with perceptual_weights=FILE, or train without: "
            "with perceptual_features=vgg16, or with every perceptual weight of the loss set to 0"
        )
    return Vgg19Loss(read_vgg19(weights), dtype).to(device)


def _lpips_weights(folder: Path | None) -> dict[str, Tensor]:
    if folder is not None and folder.is_file():
        raise UserError(
            f"{folder}: is a file; perceptual_features=vgg16 wants the folder of LPIPS' weights, "
            "and a file of VGG-19's is for perceptual_features=vgg19"
        )
    try:
        return lpips_weights.load_weights(folder or lpips_weights.default_cache_dir(), offline=False)
    except DownloadError as error:
        raise UserError(
            f"the perceptual loss has no weights ({error}); name their folder with perceptual_weights=FOLDER, "
            "or set every perceptual weight of the loss to 0"
        ) from error


def _unit(x: Tensor) -> Tensor:
    """Each pixel's features, scaled to unit length."""
    return x / (x.float().square().sum(dim=1, keepdim=True) + _EPS).sqrt().to(x.dtype)


def _mean_difference(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """Mean absolute difference [V] of [V, C, H, W], summed up in ``dtype``."""
    return (x - y).abs().mean(dim=(1, 2, 3), dtype=dtype)
