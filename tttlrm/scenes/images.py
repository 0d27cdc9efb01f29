"""Image files: their check on reading a scene, decoding, and resizing.

Read are 8-bit PNG, JPEG and WebP, in colour or greyscale. Transparent images are composited over white. The EXIF
orientation is not applied: pixels are taken as stored, which is how structure-from-motion programs see them.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tttlrm.errors import SceneError, UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

FORMATS = ("PNG", "JPEG", "WEBP")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
MAX_PIXELS = 2**26
"""Larger images are refused before they are decoded: a small file can claim any size."""


def check_image(path: Path, width: int, height: int, label: str) -> None:
    """Check an image file by its header: format, size as stated, 8 bits a channel.

    Raises:
        SceneError: a sentence that begins with ``label``.
    """
    with _open_image(path, (width, height), label):
        pass


def read_image(path: Path, width: int, height: int, label: str, size: tuple[int, int] | None = None) -> Tensor:
    """Decode an image of the stated width and height, and resize it.

    Args:
        size: (height, width) of the result; None keeps the image's own.

    Returns:
        [3, H, W], RGB in [0, 1], float32.

    Raises:
        SceneError: a sentence that begins with ``label``.
    """
    with _open_image(path, (width, height), label) as image:
        rgb = _decode(image, label)
    if size is not None:
        rgb = resize_image(rgb, size)
    pixels = torch.from_numpy(np.array(rgb, dtype=np.uint8))
    return pixels.permute(2, 0, 1).to(torch.float32).div_(255).contiguous()


def image_size(path: Path, label: str) -> tuple[int, int]:
    """(width, height) of an image file, by its header, which is checked as :func:`check_image` does."""
    with _open_image(path, None, label) as image:
        return image.size


def read_pixels(path: Path, label: str) -> np.ndarray:
    """An image file's pixels [H, W, 3], RGB, 8 bits.

    Raises:
        SceneError: a sentence that begins with ``label``.
    """
    with _open_image(path, None, label) as image:
        return np.array(_decode(image, label), dtype=np.uint8)


def resize_image(image: Image, size: tuple[int, int]) -> Image:
    """The image stretched (not cropped) to (height, width) with Lanczos' filter, in 8 bits."""
    from PIL import Image as pil

    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), pil.Resampling.LANCZOS)


def evaluation_size(height: int, width: int, patch: int = 8) -> tuple[int, int]:
    """(height, width) at which images of this size are evaluated: the next lower multiples of the patch size.

    540 x 960 (H x W) becomes 536 x 960.
    """
    size = height // patch * patch, width // patch * patch
    if 0 in size:
        raise UserError(f"images of {width}x{height} pixels (width x height) are smaller than a patch of {patch}")
    return size


_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error)


def _decode(image: ImageFile, label: str) -> Image:
    """Its pixels, in RGB."""
    try:
        image.load()
    except _DAMAGED as error:
        raise SceneError(f"{label}: image is truncated or damaged") from error
    return _over_white(image)


def _open_image(path: Path, stated: tuple[int, int] | None, label: str) -> ImageFile:
    """Opened but not decoded, and checked. ``stated``: the (width, height) that it must have, if known."""
    from PIL import Image as pil

    if stated is not None:
        _check_pixels(*stated, label)
    try:
        image = pil.open(path, formats=FORMATS)
    except FileNotFoundError as error:
        raise SceneError(f"{label}: image is missing") from error
    except (*_DAMAGED, pil.DecompressionBombError) as error:
        raise SceneError(f"{label}: not a readable PNG, JPEG or WebP image") from error
    try:
        _check_pixels(*image.size, label)
        if stated is not None and image.size != stated:
            stored = f"{image.width}x{image.height}"
            raise SceneError(f"{label}: image is {stored} pixels, but the scene file states {stated[0]}x{stated[1]}")
        if image.mode not in MODES or _is_deep(image):
            mode = "16 bits a channel" if _is_deep(image) else f"colour mode {image.mode}"
            raise SceneError(f"{label}: image has {mode}; 8-bit RGB, RGBA and greyscale are read")
    except SceneError:
        image.close()
        raise
    return image


def _check_pixels(width: int, height: int, label: str) -> None:
    if width * height > MAX_PIXELS:
        raise SceneError(f"{label}: image of {width}x{height} pixels is larger than the limit of {MAX_PIXELS} pixels")


def _is_deep(image: ImageFile) -> bool:
    # Pillow opens a 16-bit colour PNG as 8-bit RGB; only the decoder's raw mode shows the true depth.
    return image.mode.startswith(("I", "F")) or any(";16" in str(tile[3]) for tile in image.tile)


def _over_white(image: Image) -> Image:
    from PIL import Image as pil

    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return pil.alpha_composite(pil.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")
