"""Procedural scenes as scene folders, to be read like any other scene."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tttlrm.errors import SceneError, UserError
from tttlrm.scenes.procedural.cameras import sample_cameras
from tttlrm.scenes.procedural.scenes import ProceduralSpec, scene_parameters
from tttlrm.scenes.procedural.tracing import render_scenes

_TEST_EVERY = 8
_INPUT_COUNTS = (4, 8, 16, 32, 64)
_VIEWS_AT_ONCE, _PIXELS_AT_ONCE = 8, 2**23
"""Few enough to say often how far it is, and for the memory; what a scene needs once is done for each group."""


def write_scene(
    spec: ProceduralSpec,
    index: int,
    folder: Path,
    num_views: int,
    size: tuple[int, int],
    view_seed: int = 0,
    on_view: Callable[[int], None] | None = None,
) -> Path:
    """Render a scene into a folder: PNG images, and the scene file, which is written last.

    Every eighth view is a test view (``target_frames``); ``input_frames_N`` are spread evenly over the others, for
    each usual N that they suffice for.

    Args:
        folder: made if need be; it must not hold a scene yet.
        size: (height, width) in pixels.
        on_view: called with the number of views done, after each.

    Returns:
        The path of the scene file.
    """
    file = folder / "opencv_cameras.json"
    if file.exists():
        raise SceneError(f"{file}: there is a scene in this folder already")
    if num_views < 2:
        raise UserError(f"procedural scenes: a scene needs at least 2 views, not {num_views}")
    if min(size) < 1:
        raise UserError(f"procedural scenes: the image size must be positive, not {size[0]}x{size[1]}")
    scenes = scene_parameters(spec, [index])
    cameras = sample_cameras(scenes, num_views, size, view_seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    # A rotation in single precision is not quite orthogonal: invert in double.
    world_to_camera = torch.linalg.inv(cameras.camera_to_world[0].double())
    frames = []
    group = max(1, min(_VIEWS_AT_ONCE, _PIXELS_AT_ONCE // (size[0] * size[1])))
    for number in range(num_views):
        name = f"images/{number:04d}.png"
        if number % group == 0:
            images = render_scenes(scenes, cameras.select(range(number, min(number + group, num_views)))).images[0]
        _write_image(images[number % group], folder / name)
        fx, fy, cx, cy = cameras.intrinsics[0, number].tolist()
        pose = world_to_camera[number].tolist()
        frames.append(
            {"file_path": name, "w": size[1], "h": size[0], "fx": fx, "fy": fy, "cx": cx, "cy": cy, "w2c": pose}
        )
        if on_view is not None:
            on_view(number + 1)
    content: dict[str, Any] = {
        "scene_name": f"{spec.kind}_{spec.split}_{spec.seed}_{index}",
        **_selections(num_views),
        "frames": frames,
    }
    part = file.with_name(f".{file.name}.part")
    part.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(part, file)
    return file


def _selections(num_views: int) -> dict[str, list[int]]:
    targets = list(range(0, num_views, _TEST_EVERY))
    rest = [view for view in range(num_views) if view % _TEST_EVERY]
    inputs = {
        f"input_frames_{count}": [rest[(2 * i + 1) * len(rest) // (2 * count)] for i in range(count)]
        for count in _INPUT_COUNTS
        if count <= len(rest)
    }
    return {"target_frames": targets, **inputs}


def _write_image(image: Tensor, path: Path) -> None:
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    part = path.with_name(f".{path.name}.part")
    Image.fromarray(pixels).save(part, format="PNG")
    os.replace(part, path)
