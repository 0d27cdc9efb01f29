"""One image and its camera without distortion, by OpenCV."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from tttlrm.errors import SceneError
from tttlrm.scenes.convert.capture import SourceCamera

_LEAST_SEEN = 0.5
"""Share of the result's pixels that must show something: the inner rectangle that is asked for shows all of them."""
_ASPECT_TOLERANCE = 0.02


@dataclass(frozen=True)
class Undistortion:
    """How images of one camera become a pinhole's.

    Attributes:
        camera: the pinhole, for images of their own size.
        maps: OpenCV's, of each of its pixels to the image's; None where nothing is distorted.
    """

    camera: SourceCamera
    maps: tuple[np.ndarray, np.ndarray] | None

    def apply(self, image: np.ndarray) -> np.ndarray:
        """[H, W, 3], 8 bits."""
        import cv2

        return image if self.maps is None else cv2.remap(image, *self.maps, cv2.INTER_LINEAR)


def scaled(camera: SourceCamera, width: int, height: int, where: str) -> SourceCamera:
    """The camera for its images at another size.

    Raises:
        SceneError: the size is not that of the camera's images made larger or smaller (but turned, or cut).
    """
    x, y = width / camera.width, height / camera.height
    if abs(x / y - 1) > _ASPECT_TOLERANCE:
        raise SceneError(
            f"{where}: image is {width}x{height} pixels, and its camera is of {camera.width}x{camera.height}, "
            "which is not the same shape"
        )
    return replace(
        camera, width=width, height=height, fx=camera.fx * x, fy=camera.fy * y, cx=camera.cx * x, cy=camera.cy * y
    )


def undistortion(camera: SourceCamera, where: str) -> Undistortion:
    """For images of the camera's own size: the largest pinhole image that shows nothing from outside of them.

    Raises:
        SceneError: the distortion leaves no such image; the sentence begins with ``where``.
    """
    try:
        return _undistortion(camera)
    except SceneError as error:
        raise SceneError(f"{where}: {error}") from error


@lru_cache(maxsize=8)
def _undistortion(camera: SourceCamera) -> Undistortion:
    """Kept for the other images of the camera: its maps take longer to make than to apply."""
    if not camera.is_distorted:
        return Undistortion(camera, None)
    import cv2

    size = (camera.width, camera.height)
    matrix = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    coefficients = np.array(camera.distortion)
    try:
        with np.errstate(all="ignore"):
            new, maps = (_fisheye if camera.lens == "fisheye" else _perspective)(cv2, matrix, coefficients, size)
    except cv2.error as error:
        raise SceneError(f"OpenCV cannot undistort its camera ({' '.join(str(error).split())})") from error
    fx, fy, cx, cy = (float(value) for value in (new[0, 0], new[1, 1], new[0, 2], new[1, 2]))
    if not np.isfinite(new).all() or min(fx, fy) <= 0 or _share_inside(maps, size) < _LEAST_SEEN:
        raise SceneError("the distortion of its camera leaves no pixels to see")
    fixed: Any = cv2.convertMaps(maps[0], maps[1], cv2.CV_16SC2)
    return Undistortion(SourceCamera("perspective", *size, fx, fy, cx, cy), (fixed[0], fixed[1]))


def _perspective(cv2: Any, matrix: np.ndarray, coefficients: np.ndarray, size: tuple[int, int]) -> tuple[Any, Any]:
    new, _ = cv2.getOptimalNewCameraMatrix(matrix, coefficients, size, 0)
    return new, cv2.initUndistortRectifyMap(matrix, coefficients, None, new, size, cv2.CV_32FC1)


def _fisheye(cv2: Any, matrix: np.ndarray, coefficients: np.ndarray, size: tuple[int, int]) -> tuple[Any, Any]:
    identity = np.eye(3)
    new = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(matrix, coefficients, size, identity, balance=0.0)
    return new, cv2.fisheye.initUndistortRectifyMap(matrix, coefficients, identity, new, size, cv2.CV_32FC1)


def _share_inside(maps: tuple[np.ndarray, np.ndarray], size: tuple[int, int]) -> float:
    x, y = maps
    inside = (x >= -0.5) & (x <= size[0] - 0.5) & (y >= -0.5) & (y <= size[1] - 0.5)
    return float(inside.mean())
