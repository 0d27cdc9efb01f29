"""What a structure-from-motion program says of a capture, before anything is converted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tttlrm.errors import SceneError
from tttlrm.scenes.scene import LARGEST, Matrix

Lens = Literal["perspective", "fisheye"]

NEGLIGIBLE = 1e-8
"""Distortion coefficients no larger than this are taken for none."""


@dataclass(frozen=True)
class SourceCamera:
    """Intrinsics as stated, for images of the stated size.

    Attributes:
        width, height: in pixels; the images themselves may be of another size, and then the intrinsics scale.
        distortion: perspective: OpenCV's k1, k2, p1, p2[, k3, k4, k5, k6]; fisheye: OpenCV's k1 to k4.
    """

    lens: Lens
    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...] = ()

    @property
    def is_distorted(self) -> bool:
        """A fisheye lens is, whatever its coefficients: its projection is not a pinhole's."""
        return self.lens == "fisheye" or any(abs(k) > NEGLIGIBLE for k in self.distortion)


@dataclass(frozen=True)
class SourceFrame:
    """One image.

    Attributes:
        name: path relative to the folder of images, which becomes its path in the scene.
        path: where it is.
        world_to_camera: OpenCV axes.
    """

    name: str
    path: Path
    camera: SourceCamera
    world_to_camera: Matrix


@dataclass(frozen=True)
class Capture:
    """A capture as read: nothing of its images is known but where they should be."""

    file: Path
    """That named the frames, for messages."""
    frames: tuple[SourceFrame, ...]


def make_camera(
    lens: Lens,
    size: tuple[float, float],
    focal: tuple[float, float],
    center: tuple[float, float],
    distortion: tuple[float, ...],
    where: str,
) -> SourceCamera:
    """A camera of checked numbers. ``size``: width and height."""
    width, height = size
    numbers = (*size, *focal, *center, *distortion)
    if not all(math.isfinite(n) and abs(n) <= LARGEST for n in numbers):
        raise SceneError(f"{where}: every camera parameter must be a finite number of a usable size")
    if min(size) < 1 or width != int(width) or height != int(height):
        raise SceneError(f"{where}: the image size must be positive whole numbers, not {width:g} x {height:g}")
    if min(focal) <= 0:
        raise SceneError(f"{where}: the focal length must be positive, not {min(focal):g}")
    return SourceCamera(lens, int(width), int(height), *focal, *center, distortion)


def rigid(rotation: np.ndarray, translation: np.ndarray, where: str) -> Matrix:
    """[4, 4] rows of a rotation [3, 3] and a translation [3]."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, translation
    if not np.isfinite(matrix).all() or np.abs(matrix).max() > LARGEST:
        raise SceneError(f"{where}: the pose must be finite numbers of a usable size")
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3 or np.linalg.det(rotation) < 0:
        raise SceneError(f"{where}: the pose is not a rotation and a translation")
    return tuple(tuple(float(value) for value in row) for row in matrix)


def image_path(root: Path, name: str, where: str) -> Path:
    """The image ``name`` inside ``root``, which must be there and must not lead out of it."""
    try:
        path = (root / name).resolve()
        inside, found = path.is_relative_to(root.resolve()), path.is_file()
    except (OSError, ValueError) as error:
        raise SceneError(f"{where}: {name!r} is not a usable path") from error
    if not name or Path(name).is_absolute() or ".." in Path(name).parts or not inside:
        raise SceneError(f"{where}: the image {name!r} is not inside {root}")
    if not found:
        raise SceneError(f"{where}: the image {name!r} is missing from {root}")
    return path
