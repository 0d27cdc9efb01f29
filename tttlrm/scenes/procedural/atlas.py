"""The images that scikit-image ships, as square tiles in one tensor, for image textures."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

TILE = 128
LEVELS = 4
"""Sizes of a tile: 128, 64, 32 and 16 pixels."""

_SOURCES = {
    # name in skimage.data: tiles along the longer side, and along the shorter one
    "astronaut": (3, 3),
    "brick": (2, 2),
    "camera": (2, 2),
    "cat": (2, 1),
    "cell": (1, 1),
    "coffee": (3, 2),
    "coins": (2, 1),
    "colorwheel": (1, 1),
    "grass": (2, 2),
    "gravel": (2, 2),
    "hubble_deep_field": (1, 1),
    "immunohistochemistry": (2, 2),
    "logo": (1, 1),
    "moon": (1, 1),
    "page": (2, 1),
    "retina": (1, 1),
    "rocket": (2, 1),
    "text": (3, 1),
}
NUM_IMAGES = sum(long * short + int(long * short > 1) for long, short in _SOURCES.values())


@dataclass(frozen=True)
class ImageAtlas:
    """Tiles at several sizes.

    Attributes:
        texels: [T] int32, red + 256 green + 65536 blue; level by level, in it tile by tile, row by row.
        num_images: tiles in a level.
    """

    texels: Tensor
    num_images: int

    def lookup(self, image: Tensor, u: Tensor, v: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bilinear look-up.

        Args:
            image: tile number (a float tensor holding an integer).
            u, v: position in the tile, wrapped by mirroring outside [0, 1].
            level: 0 is the finest; clamped to what there is.

        Returns:
            red, green and blue in [0, 1].
        """
        level = level.clamp(0, LEVELS - 1).to(torch.int32)
        side = TILE >> level
        base = (self.num_images * TILE * TILE * 4 - self.num_images * side * side * 4) // 3 + (
            image.to(torch.int32) * side * side
        )
        x, y = _mirror(u) * side - 0.5, _mirror(v) * side - 0.5
        x0, y0 = x.floor(), y.floor()
        wx, wy = x - x0, y - y0
        last = side - 1
        left, top = x0.to(torch.int32), y0.to(torch.int32)
        columns = (torch.minimum(left.clamp_min(0), last), torch.minimum((left + 1).clamp_min(0), last))
        rows = (torch.minimum(top.clamp_min(0), last), torch.minimum((top + 1).clamp_min(0), last))
        weights = ((1 - wx) * (1 - wy), wx * (1 - wy), (1 - wx) * wy, wx * wy)
        corners = [self.texels[base + row * side + column] for row in rows for column in columns]

        def blend(shift: int) -> Tensor:
            values = [weight * ((corner >> shift) & 255) for weight, corner in zip(weights, corners, strict=True)]
            return (values[0] + values[1] + values[2] + values[3]) / 255.0

        return blend(0), blend(8), blend(16)


@functools.lru_cache(maxsize=8)
def load_atlas(device: str = "cpu") -> ImageAtlas:
    """The atlas on a device; made once.

    Raises:
        ModuleNotFoundError: scikit-image, a dependency of the procedural scenes, is not installed.
    """
    if device != "cpu":
        return ImageAtlas(load_atlas().texels.to(device), NUM_IMAGES)
    import skimage.data

    tiles = []
    for name, (along_long, along_short) in _SOURCES.items():
        tiles.extend(_tiles(_rgb(getattr(skimage.data, name)()), along_long, along_short))
    finest = torch.stack(tiles)
    levels = [functional.avg_pool2d(finest, 2**level) for level in range(LEVELS)]
    texels = torch.cat([_pack(level) for level in levels])
    return ImageAtlas(texels, len(tiles))


def _rgb(image: np.ndarray) -> Tensor:
    """[3, H, W] float32 in [0, 1], over white."""
    values = torch.from_numpy(np.ascontiguousarray(image)).float() / 255.0
    if values.ndim == 2:
        values = values[..., None].expand(-1, -1, 3)
    if values.shape[-1] == 4:
        alpha = values[..., 3:]
        values = values[..., :3] * alpha + (1 - alpha)
    return values.permute(2, 0, 1)


def _tiles(image: Tensor, along_long: int, along_short: int) -> list[Tensor]:
    """A grid of parts of an image [3, H, W] and, if they are several, its central square; resized by averaging."""
    height, width = image.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    parts = [image[:, top : top + side, left : left + side]] if along_long * along_short > 1 else []
    rows, columns = (along_long, along_short) if height > width else (along_short, along_long)
    for strip in torch.tensor_split(image, rows, dim=1):
        parts.extend(torch.tensor_split(strip, columns, dim=2))
    return [functional.adaptive_avg_pool2d(part, (TILE, TILE)) for part in parts]


def _pack(tiles: Tensor) -> Tensor:
    """[N, 3, S, S] in [0, 1] to [N * S * S] int32."""
    red, green, blue = (tiles * 255.0).round().to(torch.int32).unbind(1)
    return (red + 256 * green + 65536 * blue).flatten()


def _mirror(value: Tensor) -> Tensor:
    """A triangle wave of period 2 that is the identity on [0, 1]."""
    return 1.0 - ((value * 0.5).frac().abs() * 2.0 - 1.0).abs()
