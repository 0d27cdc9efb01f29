"""Sparse models of COLMAP, as text or binary: its cameras and its registered images (the points are not needed)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from tttlrm.errors import SceneError
from tttlrm.scenes.convert.capture import Capture, Lens, SourceCamera, SourceFrame, image_path, make_camera, rigid

_T = TypeVar("_T")
_LONGEST_NAME = 4096
_POINT_BYTES = 24  # x, y and the number of its 3D point


@dataclass(frozen=True)
class _Model:
    """One of COLMAP's camera models that OpenCV can undistort.

    Attributes:
        number: in binary files.
        focal_lengths: 1 or 2, which come first; the principal point follows.
        order: where each of OpenCV's coefficients is among those after the principal point.
    """

    number: int
    lens: Lens
    focal_lengths: int
    coefficients: int
    order: tuple[int | None, ...] = ()

    @property
    def parameters(self) -> int:
        return self.focal_lengths + 2 + self.coefficients


_MODELS = {
    "SIMPLE_PINHOLE": _Model(0, "perspective", 1, 0),
    "PINHOLE": _Model(1, "perspective", 2, 0),
    "SIMPLE_RADIAL": _Model(2, "perspective", 1, 1, (0, None, None, None)),
    "RADIAL": _Model(3, "perspective", 1, 2, (0, 1, None, None)),
    "OPENCV": _Model(4, "perspective", 2, 4, (0, 1, 2, 3)),
    "OPENCV_FISHEYE": _Model(5, "fisheye", 2, 4, (0, 1, 2, 3)),
    "FULL_OPENCV": _Model(6, "perspective", 2, 8, (0, 1, 2, 3, 4, 5, 6, 7)),
    "SIMPLE_RADIAL_FISHEYE": _Model(8, "fisheye", 1, 1, (0, None, None, None)),
    "RADIAL_FISHEYE": _Model(9, "fisheye", 1, 2, (0, 1, None, None)),
}
_OTHERS = {7: "FOV", 10: "THIN_PRISM_FISHEYE", 11: "RAD_TAN_THIN_PRISM_FISHEYE"}
_NUMBERS = {model.number: name for name, model in _MODELS.items()} | _OTHERS


@dataclass(frozen=True)
class _Image:
    name: str
    camera_id: int
    quaternion: tuple[float, ...]
    translation: tuple[float, ...]


def read_colmap(source: Path, images: str | None = None) -> Capture:
    """A COLMAP project: a model in ``sparse/0``, ``sparse`` or the folder itself, and its images in ``images``.

    Images in subfolders keep their paths. Frames are in the order of their names.

    Args:
        images: another folder of images, relative to ``source``.

    Raises:
        SceneError: naming the file, and the camera or image where there is one.
    """
    cameras_file, images_file = _find_model(source)
    text = cameras_file.suffix == ".txt"
    cameras = _cameras_text(cameras_file) if text else _cameras_binary(cameras_file)
    found = sorted(_images_text(images_file) if text else _images_binary(images_file), key=lambda image: image.name)
    if not found:
        raise SceneError(f"{images_file}: has no registered images")
    root = source / (images or "images")
    if not root.is_dir():
        raise SceneError(f"{root}: no such folder of images")
    return Capture(images_file, tuple(_frame(image, cameras, root, images_file) for image in found))


def _find_model(source: Path) -> tuple[Path, Path]:
    for folder in (source / "sparse" / "0", source / "sparse", source):
        for suffix in (".bin", ".txt"):
            files = folder / f"cameras{suffix}", folder / f"images{suffix}"
            if all(file.is_file() for file in files):
                return files
    raise SceneError(
        f"{source}: no COLMAP model (cameras and images, .bin or .txt) in sparse/0, sparse or the folder itself"
    )


def _frame(image: _Image, cameras: dict[int, SourceCamera], root: Path, file: Path) -> SourceFrame:
    where = f"{file}: image {image.name!r}"
    if image.camera_id not in cameras:
        raise SceneError(f"{where}: its camera {image.camera_id} is not in the model")
    pose = rigid(_rotation(image.quaternion, where), np.array(image.translation), where)
    return SourceFrame(image.name, image_path(root, image.name, where), cameras[image.camera_id], pose)


def _rotation(quaternion: tuple[float, ...], where: str) -> np.ndarray:
    """[3, 3] of a quaternion with its real part first."""
    norm = float(np.linalg.norm(quaternion))
    if not norm > 1e-6 or not np.isfinite(norm):
        raise SceneError(f"{where}: its rotation is not a quaternion")
    w, x, y, z = np.array(quaternion) / norm
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _camera(name: str, width: int, height: int, values: tuple[float, ...], where: str) -> SourceCamera:
    if name not in _MODELS:
        raise SceneError(f"{where}: camera model {name} cannot be undistorted here; these can: {', '.join(_MODELS)}")
    model = _MODELS[name]
    if len(values) != model.parameters:
        raise SceneError(f"{where}: camera model {name} has {model.parameters} parameters, not {len(values)}")
    focal, rest = values[: model.focal_lengths], values[model.focal_lengths :]
    center, coefficients = rest[:2], rest[2:]
    distortion = tuple(0.0 if at is None else coefficients[at] for at in model.order)
    return make_camera(model.lens, (width, height), (focal[0], focal[-1]), (center[0], center[1]), distortion, where)


def _cameras_text(file: Path) -> dict[int, SourceCamera]:
    cameras = {}
    for number, line in _lines(file):
        where = f"{file}: line {number}"
        parts = line.split()
        try:
            key, name, width, height = int(parts[0]), parts[1], int(parts[2]), int(parts[3])
            values = tuple(float(part) for part in parts[4:])
        except (ValueError, IndexError) as error:
            raise SceneError(f"{where}: is not a camera (number, model, width, height, parameters)") from error
        cameras[key] = _camera(name, width, height, values, where)
    return cameras


def _images_text(file: Path) -> Iterator[_Image]:
    """Every other line is an image; the one after it lists its points, and may be empty."""
    expected = True
    for number, line in _lines(file, keep_empty=True):
        if not expected:
            expected = True
            continue
        if not line:
            continue
        parts = line.split(maxsplit=9)
        try:
            values = tuple(float(part) for part in parts[1:8])
            yield _Image(parts[9], int(parts[8]), values[:4], values[4:])
        except (ValueError, IndexError) as error:
            raise SceneError(
                f"{file}: line {number}: is not an image (number, rotation, translation, camera, name)"
            ) from error
        expected = False


def _lines(file: Path, keep_empty: bool = False) -> Iterator[tuple[int, str]]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SceneError(f"{file}: cannot be read as text ({error})") from error
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line.startswith("#") and (line or keep_empty):
            yield number, line


def _cameras_binary(file: Path) -> dict[int, SourceCamera]:
    def read(reader: _Reader) -> dict[int, SourceCamera]:
        cameras = {}
        for _ in range(reader.count(least_bytes=24)):
            key, number, width, height = reader.unpack("<iiQQ")
            where = f"{file}: camera {key}"
            name = _NUMBERS.get(number, f"number {number}")
            if name not in _MODELS:
                _camera(name, width, height, (), where)
            cameras[key] = _camera(name, width, height, reader.unpack(f"<{_MODELS[name].parameters}d"), where)
        return cameras

    return _read_binary(file, read)


def _images_binary(file: Path) -> list[_Image]:
    def read(reader: _Reader) -> list[_Image]:
        images = []
        for _ in range(reader.count(least_bytes=73)):
            values = reader.unpack("<i7di")
            name = reader.text()
            reader.skip(reader.count(least_bytes=_POINT_BYTES) * _POINT_BYTES)
            images.append(_Image(name, values[8], values[1:5], values[5:8]))
        return images

    return _read_binary(file, read)


class _Reader:
    """Little-endian values of a file that may be shorter than it claims."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))

    def count(self, least_bytes: int) -> int:
        """A number of items of at least so many bytes: as many must be left."""
        number = int(self.unpack("<Q")[0])
        if number * least_bytes > self._left:
            raise EOFError
        return number

    def text(self) -> str:
        data = bytearray()
        while (byte := self._take(1)) != b"\0":
            data += byte
            if len(data) > _LONGEST_NAME:
                raise EOFError
        return data.decode("utf-8")

    def skip(self, size: int) -> None:
        self._left -= size
        self._file.seek(size, 1)

    def _take(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise EOFError
        self._left -= size
        return data


def _read_binary(file: Path, read: Callable[[_Reader], _T]) -> _T:
    try:
        with file.open("rb") as stream:
            return read(_Reader(stream, file.stat().st_size))
    except (EOFError, UnicodeDecodeError) as error:
        raise SceneError(f"{file}: is truncated or not a COLMAP model") from error
    except OSError as error:
        raise SceneError(f"{file}: cannot be read ({error.strerror})") from error
