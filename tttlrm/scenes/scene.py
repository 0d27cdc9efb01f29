"""The scene format: a folder of images and the JSON file of their cameras, validated once, on reading.

``opencv_cameras.json`` holds an object with ``frames``, and optionally ``scene_name``, ``target_frames`` and any number
of ``input_frames_N`` (lists of positions in ``frames``: the held-out test views, and the N input views) with
``input_frames_from`` (a text that says who chose them); or it is the bare list of frames. A frame has ``file_path``
(relative to the JSON file's folder), ``w``, ``h``, ``fx``, ``fy``, ``cx``, ``cy`` (pixels) and ``w2c``
(world-to-camera, 4x4, OpenCV axes). Other keys are ignored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from tttlrm.errors import SceneError
from tttlrm.scenes.images import check_image

SCENE_FILE = "opencv_cameras.json"
INPUT_FRAMES_FROM = "input_frames_from"
RIGID_TOLERANCE = 1e-3
"""Largest allowed entry of R R^T - I: room for poses written with four decimals, none for a scaled or sheared one."""

LARGEST = 1e9
"""Of any number in a scene file, in size: the tensors are in single precision, and squares must fit too."""
SHORTEST_FOCAL = 1e-3
_MAKE_ONE = "`tttlrm convert` makes one from what COLMAP or nerfstudio wrote of the photographs"

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Frame:
    """One image and its camera.

    Attributes:
        file_path: of the image, relative to the scene's folder.
        width, height: of the image, in pixels, as stored in the file.
        fx, fy, cx, cy: intrinsics in pixels.
        world_to_camera: 4 rows of 4, OpenCV axes, a rigid transform.
    """

    file_path: str
    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    world_to_camera: Matrix


@dataclass(frozen=True)
class Scene:
    """A validated scene; see :func:`read_scene`.

    Attributes:
        name: of the scene; a plain name without path separators.
        root: the folder that the frames' file paths are relative to.
        frames: in the order of the scene file.
        target_frames: positions of the held-out test views, or None where the scene file does not state them.
        input_frames: positions of the input views, by their number.
        file_name: of the scene file, in ``root``.
        input_frames_from: who chose the input views, where the scene file says so.
    """

    name: str
    root: Path
    frames: tuple[Frame, ...]
    target_frames: tuple[int, ...] | None = None
    input_frames: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    file_name: str = SCENE_FILE
    input_frames_from: str | None = None

    @property
    def file(self) -> Path:
        """The scene file, as error messages name it."""
        return self.root / self.file_name

    def image_path(self, index: int) -> Path:
        return self.root / self.frames[index].file_path

    def label(self, index: int) -> str:
        """How error messages name a frame."""
        return _image_label(self.root, index, self.frames[index])

    def world_to_camera(self) -> np.ndarray:
        """[F, 4, 4], float64."""
        return np.array([frame.world_to_camera for frame in self.frames], dtype=np.float64)


def read_scene(path: str | Path) -> Scene:
    """Read and validate a scene, given its folder or its JSON file.

    Everything but the pixels is checked here: structure, types, poses, intrinsics, and that every image exists inside
    the scene's folder, once, with the stated size (from its header; an EXIF orientation is not applied). What is
    damaged behind the header is found when the image is loaded.

    Raises:
        SceneError: naming the file, and the frame where there is one.
    """
    file = _scene_file(Path(path))
    content = _read_json(file)
    if isinstance(content, list):
        content = {"frames": content}
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list):
        raise SceneError(f"{file}: must hold a list of frames, or an object whose key 'frames' is one")
    if not content["frames"]:
        raise SceneError(f"{file}: has no frames")
    root = file.parent
    frames = tuple(_parse_frame(entry, f"{file}: frame {i}") for i, entry in enumerate(content["frames"]))
    _check_files(frames, file)
    targets, inputs = _parse_selections(content, len(frames), file)
    return Scene(_parse_name(content, file), root, frames, targets, inputs, file.name, _parse_source(content, file))


def _scene_file(path: Path) -> Path:
    try:
        is_folder = path.is_dir()
        file = path / SCENE_FILE if is_folder else path
        found = file.is_file()
    except (OSError, ValueError) as error:
        raise SceneError(f"{path}: cannot be opened ({error})") from error
    if not found:
        wanted = f"no {SCENE_FILE} in this folder; {_MAKE_ONE}" if is_folder else "no such scene folder or file"
        raise SceneError(f"{path}: {wanted}")
    return file


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SceneError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # wrong UTF-8 and overlong integers are ValueErrors too
        raise SceneError(f"{file}: is not valid JSON ({error})") from error


def is_plain_name(name: str) -> bool:
    """Whether a scene may have this name: it ends up in paths of results, and must not lead out of their folder."""
    return name.isprintable() and name not in ("", ".", "..") and not set(name) & set("/\\")


def _parse_name(content: Mapping[str, Any], file: Path) -> str:
    if "scene_name" not in content:
        return file.resolve().parent.name or "scene"
    name = content["scene_name"]
    if not isinstance(name, str) or not is_plain_name(name):
        raise SceneError(f"{file}: scene_name must be a plain name without path separators, not {name!r}")
    return name


def _parse_source(content: Mapping[str, Any], file: Path) -> str | None:
    source = content.get(INPUT_FRAMES_FROM)
    if source is not None and (not isinstance(source, str) or not source or not source.isprintable()):
        raise SceneError(f"{file}: {INPUT_FRAMES_FROM} must be a line of text, not {source!r}")
    return source


def _parse_frame(entry: Any, where: str) -> Frame:
    if not isinstance(entry, dict):
        raise SceneError(f"{where}: must be an object, not {type(entry).__name__}")
    missing = [key for key in ("file_path", "w", "h", "fx", "fy", "cx", "cy", "w2c") if key not in entry]
    if missing:
        raise SceneError(f"{where}: lacks {', '.join(missing)}")
    file_path = entry["file_path"]
    if not isinstance(file_path, str) or not file_path:
        raise SceneError(f"{where}: file_path must be a non-empty string, not {file_path!r}")
    where = f"{where} ({file_path!r})"
    return Frame(
        file_path,
        _parse_size(entry, "w", where),
        _parse_size(entry, "h", where),
        _parse_focal(entry, "fx", where),
        _parse_focal(entry, "fy", where),
        _parse_number(entry["cx"], "cx", where),
        _parse_number(entry["cy"], "cy", where),
        _parse_pose(entry["w2c"], where),
    )


def _parse_number(value: Any, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SceneError(f"{where}: {key} must be a number, not {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise SceneError(f"{where}: {key} must be finite, not {number}")
    if abs(number) > LARGEST:
        raise SceneError(f"{where}: {key} must not be larger than {LARGEST:g} in size, but is {number:g}")
    return number


def _parse_size(entry: Mapping[str, Any], key: str, where: str) -> int:
    number = _parse_number(entry[key], key, where)
    if number < 1 or not number.is_integer():
        raise SceneError(f"{where}: {key} must be a positive whole number of pixels, not {entry[key]!r}")
    return int(number)


def _parse_focal(entry: Mapping[str, Any], key: str, where: str) -> float:
    number = _parse_number(entry[key], key, where)
    if number <= 0:
        raise SceneError(f"{where}: focal length {key} must be positive, not {number}")
    if number < SHORTEST_FOCAL:
        raise SceneError(f"{where}: focal length {key} must be at least {SHORTEST_FOCAL:g} pixels, not {number:g}")
    return number


def _parse_pose(value: Any, where: str) -> Matrix:
    rows = value if isinstance(value, list) else []
    if len(rows) != 4 or any(not isinstance(row, list) or len(row) != 4 for row in rows):
        raise SceneError(f"{where}: w2c must be 4 rows of 4 numbers")
    pose = tuple(tuple(_parse_number(number, "each number of w2c", where) for number in row) for row in rows)
    matrix = np.array(pose)
    if np.abs(matrix[3] - (0, 0, 0, 1)).max() > 1e-6:
        raise SceneError(f"{where}: the bottom row of w2c must be 0 0 0 1, not {' '.join(f'{x:g}' for x in pose[3])}")
    rotation = matrix[:3, :3]
    with np.errstate(over="ignore", invalid="ignore"):
        determinant = float(np.linalg.det(rotation))
        deviation = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
    if abs(determinant) < 1e-6:
        raise SceneError(f"{where}: w2c is singular")
    if not deviation <= RIGID_TOLERANCE:
        raise SceneError(
            f"{where}: w2c is not rigid (its rotation part R has R R^T off the identity by {deviation:.2g})"
        )
    if determinant < 0:
        raise SceneError(f"{where}: w2c mirrors space (its rotation part has determinant -1)")
    return pose


def _check_files(frames: tuple[Frame, ...], file: Path) -> None:
    """Every image exists, inside the scene's folder, once, with the stated size."""
    root = file.parent.resolve()
    seen: dict[Path, int] = {}
    for index, frame in enumerate(frames):
        where = f"{file}: frame {index} ({frame.file_path!r})"
        path = _find_image(root, frame.file_path, where)
        if path in seen:
            raise SceneError(f"{where}: duplicate frame, the same image file as frame {seen[path]}")
        seen[path] = index
        check_image(path, frame.width, frame.height, _image_label(file.parent, index, frame))


def _find_image(root: Path, file_path: str, where: str) -> Path:
    """The image's resolved path, which is inside ``root`` (resolved itself)."""
    stated = PurePosixPath(file_path)
    if stated.is_absolute() or ".." in stated.parts:
        raise SceneError(f"{where}: file_path must be relative and stay inside the scene's folder")
    try:
        path = (root / file_path).resolve()
        found = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, null byte or unpaired surrogate, loop of links
        raise SceneError(f"{where}: file_path is not a usable path") from error
    if not path.is_relative_to(root):
        raise SceneError(f"{where}: file_path leads out of the scene's folder through a link")
    if not found:
        raise SceneError(f"{where}: image is missing from {root}")
    return path


def _parse_selections(
    content: Mapping[str, Any], num_frames: int, file: Path
) -> tuple[tuple[int, ...] | None, dict[int, tuple[int, ...]]]:
    targets = None
    if "target_frames" in content:
        targets = _parse_positions(content["target_frames"], num_frames, f"{file}: target_frames")
    inputs = {}
    for key in sorted(content):
        if not key.startswith("input_frames") or key == INPUT_FRAMES_FROM:
            continue
        where = f"{file}: {key}"
        match = re.fullmatch(r"input_frames_([1-9][0-9]{0,8})", key, re.ASCII)
        if not match:
            raise SceneError(f"{where}: such a key must be input_frames_N, N the number of input views")
        positions = _parse_positions(content[key], num_frames, where)
        if len(positions) != int(match[1]):
            raise SceneError(f"{where}: lists {len(positions)} frames, not {match[1]}")
        shared = sorted(set(positions) & set(targets or ()))
        if shared:
            raise SceneError(f"{where}: frame {shared[0]} is in target_frames as well")
        inputs[int(match[1])] = positions
    return targets, inputs


def _parse_positions(value: Any, num_frames: int, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(index) is not int for index in value):
        raise SceneError(f"{where}: must be a list of whole numbers (positions in frames)")
    seen: set[int] = set()
    for index in value:
        if not 0 <= index < num_frames:
            raise SceneError(
                f"{where}: frame {index} does not exist, there are {num_frames} frames (0 to {num_frames - 1})"
            )
        if index in seen:
            raise SceneError(f"{where}: frame {index} is listed twice")
        seen.add(index)
    return tuple(value)


def _image_label(root: Path, index: int, frame: Frame) -> str:
    return f"{root / frame.file_path} (frame {index})"
