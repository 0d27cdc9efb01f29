"""Exact rendering of procedural scenes by ray tracing, in plain torch operations without synchronisation.

Dimensions: B scenes, V views, I = B V images, R rays of an image, S surfaces. A ray's parameter is the camera's z,
since a direction is the rotated (x, y, 1).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tttlrm.cameras import Cameras
from tttlrm.errors import UserError
from tttlrm.scenes.procedural.atlas import ImageAtlas, load_atlas
from tttlrm.scenes.procedural.parameters import Layout, Operation, SceneParameters
from tttlrm.scenes.procedural.primitives import (
    Vector,
    along,
    box_exit,
    convex_intervals,
    torus_entry,
    transform,
)
from tttlrm.scenes.procedural.shading import gather_surface, shade, surface_table
from tttlrm.scenes.procedural.sparse import convex_intervals_where_present, torus_entries_where_present

NEAR = 1e-3
_WORK_AT_ONCE = {"cpu": 2**20, "cuda": 2**26}
"""Rays times surfaces."""


@dataclass(frozen=True)
class ProceduralRendering:
    """Exact renderings.

    Attributes:
        images: [B, V, 3, H, W], RGB in [0, 1]; white where a ray hits nothing.
        depths: [B, V, 1, H, W], camera z of the surface, mean of the pixel's samples that hit; 0 where none does.
        masks: [B, V, 1, H, W], share of the pixel's samples that hit, in [0, 1].
    """

    images: Tensor
    depths: Tensor
    masks: Tensor


@torch.no_grad()
def render_scenes(
    scenes: SceneParameters, cameras: Cameras, *, samples: int = 2, compile: bool = False
) -> ProceduralRendering:
    """Render every scene from its own cameras, on the device that both are on.

    Args:
        cameras: [B, V, ...], of B scenes.
        samples: samples x samples rays a pixel; 1 gives the surface at the pixel's centre.
        compile: fuse with ``torch.compile``: a minute or more at the first use with an image size, then several times
            faster on CUDA. Up to a number of images that fills the device, it is done anew for each power of two.

    Raises:
        UserError: the cameras are of another number of scenes, or ``samples`` is below 1.
    """
    batch = (scenes.num_scenes, cameras.num_views)
    if cameras.camera_to_world.shape[:-2] != batch:
        raise UserError(
            f"procedural scenes: cameras of shape {list(cameras.camera_to_world.shape)} are not of "
            f"{scenes.num_scenes} scenes"
        )
    if samples < 1:
        raise UserError(f"procedural scenes: samples must be at least 1, not {samples}")
    device = cameras.camera_to_world.device
    atlas, table = load_atlas(str(device)), surface_table(scenes)
    render = _compiled_tile() if compile else _render_tile
    count, height, width = batch[0] * batch[1], cameras.height, cameras.width
    images, rows = _tile(count, height, width * samples * samples * scenes.layout.surfaces, device.type)
    poses = cameras.camera_to_world.flatten(0, 1).float()
    intrinsics = cameras.intrinsics.flatten(0, 1).float()
    finished = []
    for start in range(0, count, images):
        # Compiled, the last tile repeats an image rather than having a shape of its own, to be compiled anew.
        stop = start + images if compile else min(start + images, count)
        index = torch.arange(start, stop, device=device).clamp_max(count - 1)
        scene = index // batch[1]
        inputs = (scenes.select(scene), table.index_select(0, scene), atlas, poses[index], intrinsics[index])
        parts = [
            render(*inputs, torch.arange(y, min(y + rows, height), device=device), width, samples)
            for y in range(0, height, rows)
        ]
        finished.append(torch.cat(parts, dim=-2))
    pixels = torch.cat(finished)[:count].unflatten(0, batch)
    return ProceduralRendering(pixels[:, :, :3].contiguous(), pixels[:, :, 3:4], pixels[:, :, 4:])


def trace(scenes: SceneParameters, origin: Vector, direction: Vector) -> tuple[Tensor, Tensor]:
    """First surfaces on rays.

    Args:
        scenes: one for each of I images (scenes may repeat).
        origin, direction: components [I, R] (of the origin, also [I, 1]); directions need not be unit vectors.

    Returns:
        distance: [I, R], in lengths of the direction; infinity where nothing is hit.
        surface: [I, R] int64, number of the surface.
    """
    layout, shapes = scenes.layout, scenes.shapes
    intervals = _where_present if _sparse(direction[0]) else _everywhere
    enter, leave, entries = intervals(scenes, origin, direction)
    times = [*_solid_times(layout, shapes.operations, enter, leave), entries]
    if layout.room:
        walls, here, step = shapes.world_to_local[:, -1:, ..., None], _for_surfaces(origin), _for_surfaces(direction)
        times.append(box_exit(transform(walls, here, translate=True), transform(walls, step, translate=False)))
    if torch.compiler.is_compiling():
        # Triton fails on a reduction over so many different things that computes them as well.
        torch._dynamo.graph_break()
    distance, surface = torch.cat(times, dim=1).min(dim=1)
    return distance, surface


def _everywhere(scenes: SceneParameters, origin: Vector, direction: Vector) -> tuple[Tensor, Tensor, Tensor]:
    """Intervals in all convex solids and modifiers [I, S, R], and entries into all tori [I, S, R]."""
    layout, shapes = scenes.layout, scenes.shapes
    matrices = shapes.world_to_local[..., None]
    wide_origin, wide_direction = _for_surfaces(origin), _for_surfaces(direction)
    convex = layout.solids + layout.modifiers
    rings = slice(convex, convex + layout.tori)
    enter, leave = convex_intervals(
        shapes.kinds[:, :convex, None],
        shapes.profiles[:, :convex, None],
        transform(matrices[:, :convex], wide_origin, translate=True),
        transform(matrices[:, :convex], wide_direction, translate=False),
    )
    entries = torus_entry(
        shapes.profiles[:, rings, None, 0],
        transform(matrices[:, rings], wide_origin, translate=True),
        transform(matrices[:, rings], wide_direction, translate=False),
        NEAR,
    )
    return enter, leave, torch.where(shapes.kinds[:, rings, None] > 0, entries, torch.inf)


def _where_present(scenes: SceneParameters, origin: Vector, direction: Vector) -> tuple[Tensor, Tensor, Tensor]:
    """The same without what is not there."""
    layout, shapes = scenes.layout, scenes.shapes
    convex = layout.solids + layout.modifiers
    rings = slice(convex, convex + layout.tori)
    kinds, profiles, matrices = shapes.kinds, shapes.profiles, shapes.world_to_local
    enter, leave = convex_intervals_where_present(
        kinds[:, :convex], profiles[:, :convex], matrices[:, :convex], origin, direction
    )
    entries = torus_entries_where_present(
        kinds[:, rings], profiles[:, rings, 0], matrices[:, rings], origin, direction, NEAR
    )
    return enter, leave, entries


def _solid_times(layout: Layout, operations: Tensor, enter: Tensor, leave: Tensor) -> list[Tensor]:
    """Where rays first hit the convex solids and, apart, their modifiers: infinity where they do not.

    Modifier m changes solid m. A difference leaves the part of the solid's interval before the modifier and the part
    after it; an intersection leaves the common part.
    """
    m, n = layout.modifiers, layout.solids
    whole = torch.where((enter[:, m:n] < leave[:, m:n]) & (enter[:, m:n] > NEAR), enter[:, m:n], torch.inf)
    a0, a1, b0, b1 = enter[:, :m], leave[:, :m], enter[:, n:], leave[:, n:]
    operation = operations[:, :, None]
    missed = b0 >= b1
    b0 = torch.where(missed, torch.inf, b0)
    b1 = torch.where(missed, -torch.inf, b1)
    none, cut = operation == Operation.NONE, operation == Operation.DIFFERENCE
    end = torch.where(none, a1, torch.minimum(a1, b0))
    before = ~(operation == Operation.INTERSECTION) & (a0 < end) & (a0 > NEAR)
    inner = torch.where(cut, b1, b0)
    start = torch.maximum(a0, inner)
    stop = torch.where(cut, a1, torch.minimum(a1, b1))
    after = ~none & ~before & (start < stop) & (start > NEAR)
    own = before | (after & (a0 >= inner))
    return [
        torch.where(own, a0, torch.inf),
        whole,
        torch.where(after & ~own, inner, torch.inf),
    ]


def _render_tile(
    scenes: SceneParameters,
    table: Tensor,
    atlas: ImageAtlas,
    camera_to_world: Tensor,
    intrinsics: Tensor,
    rows: Tensor,
    width: int,
    samples: int,
) -> Tensor:
    """Some rows of I images: [I, 5, rows, width] of red, green, blue, depth and mask."""
    origin, direction, pixel = _sample_rays(camera_to_world, intrinsics, rows, width, samples)
    distance, surface = trace(scenes, origin, direction)
    hit = distance < torch.inf
    depth = torch.where(hit, distance, 0.0)
    point = along(origin, direction, depth)
    gathered = gather_surface(table, surface)
    color = shade(scenes.lights, gathered, atlas, point, direction, depth * pixel / samples, _occlusion(scenes))
    share = hit.to(depth.dtype)
    channels = [torch.where(hit, channel, 1.0) for channel in color] + [depth, share]
    pixels = torch.stack(channels, dim=1)
    pixels = pixels.unflatten(-1, (rows.shape[0], width, samples * samples)).mean(-1)
    depth, share = pixels[:, 3:4], pixels[:, 4:]
    return torch.cat([pixels[:, :3], depth / share.clamp_min(1e-6), share], dim=1)


def _occlusion(scenes: SceneParameters) -> Callable[[Vector, Vector], Tensor] | None:
    """Whether something is between points and a place (points + offsets); None where scenes have no shadows."""
    if not scenes.layout.room:
        return None
    return lambda point, offset: trace(scenes, point, offset)[0] < 1.0


def _sparse(tensor: Tensor) -> bool:
    """Whether to look what is there, and compute only that."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _sample_rays(
    camera_to_world: Tensor, intrinsics: Tensor, rows: Tensor, width: int, samples: int
) -> tuple[Vector, Vector, Tensor]:
    """Rays through a regular grid of samples in each pixel, with z = 1 in the camera's frame.

    Returns:
        origin: components [I, 1]; direction: components [I, R], in the order row, column, sample row, sample column;
        pixel: [I, 1], a pixel's width at distance 1.
    """
    shifts = (torch.arange(samples, device=rows.device, dtype=torch.float32) + 0.5) / samples
    columns = torch.arange(width, device=rows.device, dtype=torch.float32)
    shape = (rows.shape[0], width, samples, samples)
    y = (rows[:, None, None, None] + shifts[:, None]).expand(shape).reshape(-1)
    x = (columns[:, None, None] + shifts).expand(shape).reshape(-1)
    fx, fy, cx, cy = intrinsics[..., None].unbind(-2)
    camera_x, camera_y = (x - cx) / fx, (y - cy) / fy
    r = camera_to_world[..., None]
    direction = tuple(r[:, i, 0] * camera_x + r[:, i, 1] * camera_y + r[:, i, 2] for i in range(3))
    origin = (r[:, 0, 3], r[:, 1, 3], r[:, 2, 3])
    return origin, direction, 1.0 / fx  # type: ignore[return-value]


def _for_surfaces(vector: Vector) -> Vector:
    return vector[0][:, None], vector[1][:, None], vector[2][:, None]


def _tile(images: int, height: int, row_work: int, device: str) -> tuple[int, int]:
    """Images and rows to render at a time: few enough for the memory, and few different numbers of them."""
    work = _WORK_AT_ONCE.get(device, 2**22)
    rows = max(1, min(height, work // row_work))
    fitting = max(1, work // (row_work * height))
    return min(2 ** (fitting.bit_length() - 1), 2 ** (images - 1).bit_length()), rows


@functools.lru_cache(maxsize=1)
def _compiled_tile() -> Callable[..., Tensor]:
    return torch.compile(_render_tile, dynamic=False)
