"""``transforms.json`` of Nerfstudio, and the captures of DL3DV, which come with one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tttlrm.errors import SceneError
from tttlrm.scenes.convert.capture import Capture, Lens, SourceCamera, SourceFrame, image_path, make_camera, rigid

TRANSFORMS = "transforms.json"
DL3DV_IMAGES = "images_4"
"""The benchmark's images are read at a quarter of the size that the file states."""

_PERSPECTIVE = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
_FISHEYE = ("k1", "k2", "k3", "k4")
_MODELS: dict[str, Lens] = {
    "OPENCV": "perspective",
    "PINHOLE": "perspective",
    "SIMPLE_PINHOLE": "perspective",
    "OPENCV_FISHEYE": "fisheye",
}


def read_dl3dv(source: Path, images: str | None = None) -> Capture:
    """A scene of DL3DV: ``transforms.json`` (in the folder, or in ``nerfstudio`` in it), images in ``images_4``.

    Raises:
        SceneError: naming the file, and the frame where there is one.
    """
    folder = source / "nerfstudio" if (source / "nerfstudio" / TRANSFORMS).is_file() else source
    return _read(folder, images or DL3DV_IMAGES)


def read_nerfstudio(source: Path, images: str | None = None) -> Capture:
    """A folder as ``ns-process-data`` makes it. ``images``: a folder to take instead of the one that the file names."""
    return _read(source, images)


def _read(folder: Path, images: str | None) -> Capture:
    file = folder / TRANSFORMS
    if not file.is_file():
        raise SceneError(f"{folder}: no {TRANSFORMS} in this folder")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SceneError(f"{file}: is not valid JSON ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list) or not content["frames"]:
        raise SceneError(f"{file}: must hold an object whose key 'frames' is a list of at least one frame")
    frames = [
        _frame(entry, content, folder, images, f"{file}: frame {at}") for at, entry in enumerate(content["frames"])
    ]
    return Capture(file, tuple(frames))


def _frame(entry: Any, content: Mapping[str, Any], folder: Path, images: str | None, where: str) -> SourceFrame:
    if not isinstance(entry, dict) or not isinstance(entry.get("file_path"), str):
        raise SceneError(f"{where}: must be an object with a file_path")
    stated = Path(entry["file_path"])
    where = f"{where} ({str(stated)!r})"
    parts = stated.parts
    if images is None:
        root, name = (
            folder / parts[0] if len(parts) > 1 else folder,
            str(Path(*parts[1:])) if len(parts) > 1 else str(stated),
        )
    else:
        root, name = folder / images, str(Path(*parts[1:])) if len(parts) > 1 else str(stated)
    # Intrinsics are the frame's own where it has any, and those of all frames otherwise.
    return SourceFrame(name, image_path(root, name, where), _camera({**content, **entry}, where), _pose(entry, where))


def _camera(values: Mapping[str, Any], where: str) -> SourceCamera:
    model = values.get("camera_model", "OPENCV")
    if model not in _MODELS:
        raise SceneError(f"{where}: camera model {model!r} is not one that is read: {', '.join(_MODELS)}")
    lens = _MODELS[model]
    missing = [key for key in ("w", "h", "fl_x", "cx", "cy") if key not in values]
    if missing:
        raise SceneError(f"{where}: lacks {', '.join(missing)}")
    names = _FISHEYE if lens == "fisheye" else _PERSPECTIVE
    w, h, fx, cx, cy = (_number(values, key, where) for key in ("w", "h", "fl_x", "cx", "cy"))
    fy = _number(values, "fl_y", where) if "fl_y" in values else fx
    distortion = tuple(_number(values, name, where) if name in values else 0.0 for name in names)
    return make_camera(lens, (w, h), (fx, fy), (cx, cy), distortion, where)


def _pose(entry: Mapping[str, Any], where: str) -> Any:
    try:
        matrix = np.array(entry.get("transform_matrix"), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SceneError(f"{where}: transform_matrix must be 4 rows of 4 numbers") from error
    if matrix.shape not in ((4, 4), (3, 4)) or not np.isfinite(matrix).all():
        raise SceneError(f"{where}: transform_matrix must be 4 rows of 4 finite numbers")
    # From OpenGL's camera axes to OpenCV's, and from Nerfstudio's world to COLMAP's.
    rotation, position = matrix[:3, :3] * (1, -1, -1), matrix[:3, 3]
    rotation, position = (_world(value) for value in (rotation, position))
    return rigid(rotation.T, -rotation.T @ position, where)


def _world(rows: np.ndarray) -> np.ndarray:
    """x and y change places, and z its sign."""
    return np.stack([rows[1], rows[0], -rows[2]])


def _number(values: Mapping[str, Any], key: str, where: str) -> float:
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SceneError(f"{where}: {key} must be a number, not {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise SceneError(f"{where}: {key} is too large") from None
