"""Procedural scenes by kind, seed, split and index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tttlrm.cameras import Views
from tttlrm.errors import UserError
from tttlrm.scenes.procedural.cameras import sample_cameras
from tttlrm.scenes.procedural.draws import Draws
from tttlrm.scenes.procedural.materials import object_lights, object_materials, room_lights, room_materials
from tttlrm.scenes.procedural.objects import object_shapes, object_viewpoints
from tttlrm.scenes.procedural.parameters import OBJECT_LAYOUT, ROOM_LAYOUT, SceneParameters, map_tensors
from tttlrm.scenes.procedural.rooms import random_room
from tttlrm.scenes.procedural.tracing import render_scenes

Split = Literal["train", "validation", "test"]
SPLIT_SIZE = 2**40
"""Scenes in a split. The splits are disjoint ranges of scene numbers."""

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class ProceduralSpec:
    """A family of procedural scenes. A scene is determined by its family and its index in the split."""

    kind: Literal["object", "room"]
    seed: int = 0
    split: Split = "train"

    def __post_init__(self) -> None:
        if self.kind not in ("object", "room"):
            raise UserError(f"procedural scenes: kind must be object or room, not {self.kind!r}")
        if self.split not in _SPLITS:
            raise UserError(f"procedural scenes: split must be train, validation or test, not {self.split!r}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"procedural scenes: seed must be from 0 to 2^63 - 1, not {self.seed}")

    def scene_numbers(self, indices: Sequence[int]) -> list[int]:
        """Numbers of scenes of this split, in the range that belongs to the split alone."""
        for index in indices:
            if not 0 <= index < SPLIT_SIZE:
                raise UserError(f"procedural scenes: index must be from 0 to 2^40 - 1, not {index}")
        return [_SPLITS.index(self.split) * SPLIT_SIZE + index for index in indices]


@dataclass(frozen=True)
class ProceduralBatch:
    """Rendered views of B scenes.

    Attributes:
        views: [B, V, ...]. Poses are in an object's own frame, or in a room's, whose unit is about a metre.
        depths: [B, V, 1, H, W], camera z; 0 where nothing is hit.
        masks: [B, V, 1, H, W], share of a pixel that shows a surface.
    """

    views: Views
    depths: Tensor
    masks: Tensor


def scene_parameters(spec: ProceduralSpec, indices: Sequence[int]) -> SceneParameters:
    """Scenes of a family by index, on the CPU. A scene does not depend on the others asked for with it."""
    if not indices:
        raise UserError("procedural scenes: no scene was asked for")
    numbers = torch.tensor(spec.scene_numbers(indices), dtype=torch.int64)

    def draws(subject: str) -> Draws:
        return Draws(numbers, spec.seed, spec.kind, subject)

    keys = draws("keys").integers(low=0, high=2**52)
    if spec.kind == "object":
        shapes, radius = object_shapes(draws("shapes"), OBJECT_LAYOUT)
        materials = object_materials(draws("materials"), OBJECT_LAYOUT)
        viewpoints = object_viewpoints(draws("viewpoints"), radius)
        lights, layout = object_lights(draws("lights")), OBJECT_LAYOUT
    else:
        room = random_room(draws("shapes"), ROOM_LAYOUT)
        shapes, viewpoints = room.shapes, room.viewpoints
        materials = room_materials(draws("materials"), ROOM_LAYOUT, room.groups, room.pictures)
        lights, layout = room_lights(draws("lights"), room.half), ROOM_LAYOUT
    return SceneParameters(
        layout,
        keys,
        shapes,
        map_tensors(materials, _single),
        map_tensors(lights, _single),
        map_tensors(viewpoints, _single),
    )


def make_batch(
    spec: ProceduralSpec,
    indices: Sequence[int],
    num_views: int,
    size: tuple[int, int],
    device: torch.device | str = "cpu",
    view_seed: int = 0,
    *,
    compile: bool = False,
) -> ProceduralBatch:
    """Draw and render scenes.

    Args:
        indices: of the scenes in the split.
        num_views: views of a scene: around an object in random order, or along a room's path in its order.
        size: (height, width) in pixels.
        view_seed: other seeds give other views of the same scenes.
        compile: see :func:`render_scenes`.
    """
    if num_views < 1:
        raise UserError(f"procedural scenes: num_views must be at least 1, not {num_views}")
    if min(size) < 1:
        raise UserError(f"procedural scenes: the image size must be positive, not {size[0]}x{size[1]}")
    scenes = scene_parameters(spec, indices)
    cameras = sample_cameras(scenes, num_views, size, view_seed).to(device)
    rendering = render_scenes(scenes.to(device), cameras, compile=compile)
    views = Views(rendering.images, cameras.camera_to_world, cameras.intrinsics)
    return ProceduralBatch(views, rendering.depths, rendering.masks)


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
