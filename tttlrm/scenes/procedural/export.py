"""Procedural scenes as scene folders, to be read like any other scene."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tttlrm.errors import SceneError, UserError
from tttlrm.scenes.procedural.scenes import ProceduralSpec, make_batch

_TEST_EVERY = 8
_INPUT_COUNTS = (4, 8, 16, 32, 64)


def write_scene(
    spec: ProceduralSpec, index: int, folder: Path, num_views: int, size: tuple[int, int], view_seed: int = 0
) -> Path:
    """Render a scene into a folder: PNG images, and the scene file, which is written last.

    Every eighth view is a test view (``target_frames``); ``input_frames_N`` are spread evenly over the others, for
    each usual N that they suffice for.

    Args:
        folder: made if need be; it must not hold a scene yet.
        size: (height, width) in pixels.

    Returns:
        The path of the scene file.
    """
    file = folder / "opencv_cameras.json"
    if file.exists():
        raise SceneError(f"{file}: there is a scene in this folder already")
    if num_views < 2:
        raise UserError(f"procedural scenes: a scene needs at least 2 views, not {num_views}")
    views = make_batch(spec, [index], num_views, size, view_seed=view_seed).views
    (folder / "images").mkdir(parents=True, exist_ok=True)
    # A rotation in single precision is not quite orthogonal: invert in double.
    world_to_camera = torch.linalg.inv(views.camera_to_world[0].double())
    frames = []
    for number in range(num_views):
        name = f"images/{number:04d}.png"
        _write_image(views.images[0, number], folder / name)
        fx, fy, cx, cy = views.intrinsics[0, number].tolist()
        pose = world_to_camera[number].tolist()
        frames.append(
            {"file_path": name, "w": size[1], "h": size[0], "fx": fx, "fy": fy, "cx": cx, "cy": cy, "w2c": pose}
        )
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
