"""From a scene's frames to the tensors that the model takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from tttlrm.cameras import Cameras, PoseNormalization, Views, normalize_poses
from tttlrm.config import PoseReference
from tttlrm.errors import SceneError, UserError
from tttlrm.scenes.images import read_image
from tttlrm.scenes.scene import Scene
from tttlrm.scenes.selection import ViewSplit

Progress = Callable[[int, int], None]
"""Called with (images read so far, images in all), from the caller's thread."""


@dataclass(frozen=True)
class SplitViews:
    """The views of a split, in the normalised world that :attr:`normalization` leads to; all tensors float32."""

    inputs: Views
    targets: Views
    normalization: PoseNormalization


def load_views(
    scene: Scene, indices: Sequence[int], size: tuple[int, int] | None = None, progress: Progress | None = None
) -> Views:
    """Read frames of a scene, in parallel threads.

    Args:
        indices: positions in ``scene.frames``, in the order wanted.
        size: (height, width) that images are stretched to, intrinsics following by axis; None keeps the images' own
            size, which must then be the same for all.

    Returns:
        images [V, 3, H, W] float32; poses and intrinsics float64, in the scene's world.

    Raises:
        SceneError: naming the frame: an image is unreadable, or a position does not exist.
    """
    _check_positions(scene, indices)
    height, width = _common_size(scene, indices) if size is None else size
    if min(height, width) < 1:
        raise SceneError(f"{scene.file}: cannot resize images to {width}x{height} pixels (width x height)")

    with torch.inference_mode(False):  # the threads do not inherit the caller's mode, and could not write otherwise
        images = torch.empty(len(indices), 3, height, width)

    def read(position: int) -> None:
        index = indices[position]
        frame = scene.frames[index]
        path, label = scene.image_path(index), scene.label(index)
        images[position] = read_image(path, frame.width, frame.height, label, (height, width))

    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        # Results are taken in order, so that of several bad images it is always the first that is named.
        for done, _ in enumerate(pool.map(read, range(len(indices))), start=1):
            if progress is not None:
                progress(done, len(indices))
    finally:
        pool.shutdown(cancel_futures=True)
    cameras = scene_cameras(scene, indices, (height, width))
    return Views(images, cameras.camera_to_world, cameras.intrinsics)


def scene_cameras(scene: Scene, indices: Sequence[int], size: tuple[int, int]) -> Cameras:
    """Cameras of frames, without reading images: float64, in the scene's world, for images of ``size``."""
    return Cameras(_camera_to_world(scene, indices), _intrinsics(scene, indices, size), *size)


def normalize_split(scene: Scene, split: ViewSplit, reference: PoseReference) -> PoseNormalization:
    """The normalisation of inputs and targets together, inputs first.

    Raises:
        SceneError: the poses cannot be normalised (all cameras in one place).
    """
    try:
        return normalize_poses(_camera_to_world(scene, [*split.inputs, *split.targets]), reference)
    except UserError as error:
        raise SceneError(f"{scene.file}: {error}") from error


def load_split(
    scene: Scene,
    split: ViewSplit,
    size: tuple[int, int] | None = None,
    reference: PoseReference = "mean",
    progress: Progress | None = None,
) -> SplitViews:
    """Read the views of a split and normalise their poses together (evaluation protocol of the paper).

    Args:
        size: as in :func:`load_views`; None: all images of the split must have the same size.
        reference: ``mean`` camera of inputs and targets (full schedule), the ``first`` input camera (ar schedule), or
            the ``scene``'s own world.

    Raises:
        SceneError: as :func:`load_views`, and where the poses cannot be normalised (all cameras in one place).
    """
    indices = [*split.inputs, *split.targets]
    _check_positions(scene, indices)
    if size is None:
        size = _common_size(scene, indices)
    normalization = normalize_split(scene, split, reference)

    def load(part: Sequence[int], already: int) -> Views:
        def report(done: int, _: int) -> None:
            if progress is not None:
                progress(already + done, len(indices))

        views = load_views(scene, part, size, report)
        poses = normalization.apply(views.camera_to_world)
        return Views(views.images, poses.to(torch.float32), views.intrinsics.to(torch.float32))

    return SplitViews(load(split.inputs, 0), load(split.targets, len(split.inputs)), normalization)


def _check_positions(scene: Scene, indices: Sequence[int]) -> None:
    for index in indices:
        if not 0 <= index < len(scene.frames):
            raise SceneError(f"{scene.file}: frame {index} does not exist, there are {len(scene.frames)} frames")


def _common_size(scene: Scene, indices: Sequence[int]) -> tuple[int, int]:
    if not indices:
        raise SceneError(f"{scene.file}: without frames to read, a size is needed")
    first = scene.frames[indices[0]]
    for index in indices:
        frame = scene.frames[index]
        if (frame.width, frame.height) != (first.width, first.height):
            raise SceneError(
                f"{scene.label(index)}: image is {frame.width}x{frame.height} pixels, but that of frame {indices[0]} "
                f"is {first.width}x{first.height}; give a size to resize them to"
            )
    return first.height, first.width


def _camera_to_world(scene: Scene, indices: Sequence[int]) -> torch.Tensor:
    poses = scene.world_to_camera()[list(indices)]
    return torch.from_numpy(np.linalg.inv(poses))


def _intrinsics(scene: Scene, indices: Sequence[int], size: tuple[int, int]) -> torch.Tensor:
    """[V, 4] float64, scaled by axis to images of ``size`` (height, width)."""
    height, width = size
    rows = []
    for frame in (scene.frames[index] for index in indices):
        x, y = width / frame.width, height / frame.height
        rows.append((frame.fx * x, frame.fy * y, frame.cx * x, frame.cy * y))
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
