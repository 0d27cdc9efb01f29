"""Cameras of procedural scenes: around objects, or along a handheld path through a room."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tttlrm.cameras import Cameras
from tttlrm.scenes.procedural.draws import Draws
from tttlrm.scenes.procedural.parameters import SceneParameters, Viewpoints

_SHAKE_POSITION = 0.01
_SHAKE_ANGLE = 0.015


def sample_cameras(scenes: SceneParameters, num_views: int, size: tuple[int, int], view_seed: int = 0) -> Cameras:
    """Cameras on the CPU, [B, num_views], in float32.

    Objects are seen from all around, in random order; rooms along a part of their path, in its order.

    Args:
        scenes: on the CPU.
        size: (height, width) in pixels.
        view_seed: other seeds give other cameras of the same scenes.
    """
    draws = Draws(scenes.keys, "cameras", view_seed)
    views = scenes.viewpoints
    double = Viewpoints(*(getattr(views, name).double() for name in Viewpoints.__dataclass_fields__))
    place = _along_path if scenes.layout.room else _around
    camera_to_world = place(draws, double, num_views)
    height, width = size
    longer = max(height, width) if scenes.layout.room else min(height, width)
    focal = (double.focal * longer)[:, None].expand(-1, num_views)
    center = torch.ones_like(focal)
    intrinsics = torch.stack([focal, focal, center * width / 2, center * height / 2], dim=-1)
    return Cameras(camera_to_world.float(), intrinsics.float(), height, width)


def spline(control: Tensor, places: Tensor) -> Tensor:
    """Points on a uniform cubic B-spline, which stays within the hull of its control points.

    Args:
        control: [..., C, 3], C >= 4.
        places: [Q] or [..., Q], from 0 (start) to 1 (end).

    Returns:
        [..., Q, 3].
    """
    segments = control.shape[-2] - 3
    scaled = places.clamp(0, 1) * segments
    segment = scaled.floor().clamp(max=segments - 1)
    t = (scaled - segment)[..., None]
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    index = segment.long().expand(*control.shape[:-2], places.shape[-1])
    total = torch.zeros(1, dtype=control.dtype)
    for i, weight in enumerate(weights):
        total = total + weight / 6 * control.gather(-2, (index + i)[..., None].expand(*index.shape, 3))
    return total


def look_at(position: Tensor, target: Tensor, roll: Tensor) -> Tensor:
    """Camera-to-world matrices [..., 4, 4] of upright cameras (z is up), turned by ``roll`` about their axis."""
    forward = _unit(target - position)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=position.dtype)
    right = _unit(torch.linalg.cross(forward, up.expand_as(forward)))
    down = torch.linalg.cross(forward, right)
    cos, sin = roll.cos()[..., None], roll.sin()[..., None]
    right, down = cos * right + sin * down, cos * down - sin * right
    matrix = torch.stack([right, down, forward, position], dim=-1)
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=position.dtype).expand(*matrix.shape[:-2], 1, 4)
    return torch.cat([matrix, bottom], dim=-2)


def _around(draws: Draws, views: Viewpoints, count: int) -> Tensor:
    """One camera in each sector around the object, in random order."""
    order = draws.uniform(count).argsort(dim=1)
    azimuth = 2 * math.pi * ((order + draws.uniform(count)) / count + draws.uniform(1))
    sine = draws.uniform(count) * (views.elevations[:, 1:] - views.elevations[:, :1]) + views.elevations[:, :1]
    distance = draws.uniform(count) * (views.distances[:, 1:] - views.distances[:, :1]) + views.distances[:, :1]
    cosine = (1 - sine * sine).sqrt()
    position = distance[..., None] * torch.stack([cosine * azimuth.cos(), cosine * azimuth.sin(), sine], dim=-1)
    target = 0.04 * draws.normal(count, 3).clamp(-2, 2)
    return look_at(position, target, views.rolls[:, None] * draws.normal(count))


def _along_path(draws: Draws, views: Viewpoints, count: int) -> Tensor:
    """Cameras in the order of the path, on a part of it, with a hand's motion."""
    part = draws.uniform(1, low=0.5, high=1.0)
    start = draws.uniform(1) * (1 - part)
    places = (torch.arange(count) + 0.5 + draws.uniform(count, low=-0.3, high=0.3)) / count
    places = start + part * places
    swing = (2 * math.pi * places[..., None] * torch.tensor([5.0, 7.0, 9.0, 11.0, 6.0, 8.0])).unsqueeze(-1)
    motion = (swing * torch.tensor([1.0, 2.3]) + views.shake.reshape(-1, 1, 6, 2)).sin().mean(-1)
    position = spline(views.path, places) + _SHAKE_POSITION * motion[..., :3]
    target = spline(views.look_at, places)
    distance = (target - position).norm(dim=-1, keepdim=True)
    target = target + _SHAKE_ANGLE * distance * motion[..., 3:]
    return look_at(position, target, views.rolls[:, None] * motion[..., 3])


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm(dim=-1, keepdim=True)
