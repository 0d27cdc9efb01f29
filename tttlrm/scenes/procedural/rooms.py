"""Random rooms with furniture and things in them, in the manner of MegaSynth (arXiv:2412.14166).

The z axis points up, the floor is at z = 0, the room's middle at x = y = 0; lengths are about metres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tttlrm.scenes.procedural.cameras import spline
from tttlrm.scenes.procedural.draws import Draws, rotations_about_z
from tttlrm.scenes.procedural.furniture import (
    FOCUS_WEIGHTS,
    OTHER_WEIGHTS,
    PIECES,
    Furniture,
    random_furniture,
)
from tttlrm.scenes.procedural.objects import random_modifiers
from tttlrm.scenes.procedural.parameters import Kind, Layout, Shapes, Viewpoints
from tttlrm.scenes.procedural.parts import Parts, assembled, concatenate, random_profiles

CLEARANCE = 0.3
"""Between cameras and everything, before the hand's shake of a few centimetres."""

_THINGS, _PICTURES, _WALL_PIECES, _CLUTTER = 10, 3, 3, 2
_CONTROL_POINTS = 12
_CANDIDATES = 6
_FLOOR = 0.05


@dataclass(frozen=True)
class Room:
    """A room without its looks.

    Attributes:
        half: [B, 3], half extents (the height in full is twice the third).
        shapes: all surfaces.
        viewpoints: cameras in free space.
        groups: [S], the piece of furniture that a surface is part of, or -1.
        pictures: [S] bool.
    """

    half: Tensor
    shapes: Shapes
    viewpoints: Viewpoints
    groups: Tensor
    pictures: Tensor


def random_room(draws: Draws, layout: Layout) -> Room:
    """Rooms whose camera paths keep clear of everything: what is too near to a path is left out."""
    half = torch.cat([draws.uniform(2, low=2.0, high=4.0), draws.uniform(1, low=1.2, high=1.7)], dim=-1)
    focus = random_furniture(draws, FOCUS_WEIGHTS)
    against_wall = draws.chance(probability=0.5)
    yaw, position = _focus_place(draws, half, focus, against_wall)
    center = torch.cat([position, focus.top[:, None]], dim=-1)
    on_top = _things(draws, layout, focus).moved(rotations_about_z(yaw)[:, None], center[:, None])
    others = [_wall_piece(draws, half) for _ in range(_WALL_PIECES)]
    movable = concatenate([on_top, focus.placed(yaw, position), *others, _pictures(draws, half), _clutter(draws, half)])

    path, look_at = _clearest(*_paths(draws, half, center, yaw, against_wall), movable)
    movable = movable.kept(~_too_near(movable, path, layout.tori))
    rings, solids = movable.part(0, layout.tori), movable.part(layout.tori, movable.kinds.shape[1])
    surroundings = _surroundings(draws, half, position)
    wanted = draws.chance(layout.modifiers, probability=0.6) & (solids.kinds[:, : layout.modifiers] > 0)
    modifiers, operations = random_modifiers(draws, solids.part(0, layout.modifiers), wanted)
    surfaces = [solids, surroundings.part(0, 3), modifiers, rings, surroundings.part(3, 4)]
    return Room(
        half=half,
        shapes=assembled(concatenate(surfaces), operations),
        viewpoints=_viewpoints(draws, path, look_at),
        groups=_numbers(layout, [-1] * _THINGS + _piece_groups()),
        pictures=_numbers(layout, [-1] * (_THINGS + PIECES * (1 + _WALL_PIECES)) + [1] * _PICTURES) > 0,
    )


def _piece_groups() -> list[int]:
    return [group for group in range(1 + _WALL_PIECES) for _ in range(PIECES)]


def _numbers(layout: Layout, first: list[int]) -> Tensor:
    """[S], the given numbers and then -1."""
    return torch.tensor(first + [-1] * (layout.surfaces - len(first)))


def _focus_place(draws: Draws, half: Tensor, focus: Furniture, against_wall: Tensor) -> tuple[Tensor, Tensor]:
    """Yaw [B] and position [B, 2] of the furniture in the middle of attention: at a wall or out in the room."""
    wall_yaw, wall_position = _at_wall(draws, half, focus.half[:, 1])
    free_yaw = draws.uniform(high=2 * math.pi)
    free_position = half[:, :2] * draws.uniform(2, low=-0.25, high=0.25)
    return (
        torch.where(against_wall, wall_yaw, free_yaw),
        torch.where(against_wall[:, None], wall_position, free_position),
    )


def _at_wall(draws: Draws, half: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """Yaw and position of something of a half depth [B] whose back is at one of the walls."""
    wall = draws.integers(low=0, high=4)
    yaw = wall.double() * (0.5 * math.pi)
    across = torch.where(wall % 2 == 0, half[:, 1], half[:, 0]) - depth - 0.02
    along = torch.where(wall % 2 == 0, half[:, 0], half[:, 1]) * draws.uniform(low=-0.65, high=0.65)
    local = torch.stack([along, across, torch.zeros_like(along)], dim=-1)
    return yaw, (rotations_about_z(yaw) @ local[..., None])[:, :2, 0]


def _wall_piece(draws: Draws, half: Tensor) -> Parts:
    piece = random_furniture(draws, OTHER_WEIGHTS)
    return piece.placed(*_at_wall(draws, half, piece.half[:, 1]))


def _things(draws: Draws, layout: Layout, focus: Furniture) -> Parts:
    """Tori and solids that stand or lie on the focus, whose top is at z = 0 here; the tori come first."""
    count = layout.tori + _THINGS
    choices = torch.tensor([Kind.BOX, Kind.SPHERE, Kind.CYLINDER, Kind.CONE])
    kinds = choices[draws.choice(count, weights=[0.45, 0.15, 0.3, 0.1])]
    ring = torch.arange(count) < layout.tori
    kinds = torch.where(ring, Kind.TORUS, kinds)
    kinds = torch.where(draws.chance(count, probability=0.85), kinds, Kind.NONE)
    sizes = draws.log_uniform(count, 1, low=0.05, high=0.16) * draws.uniform(count, 3, low=-0.7, high=0.7).exp()
    flat = draws.chance(count, 1, probability=0.2) & ~ring[:, None]  # books, papers, phones
    sizes = torch.where(flat, sizes * torch.tensor([1.3, 1.3, 0.15]), sizes)
    round_things = (kinds != Kind.BOX)[..., None]
    sizes = torch.where(round_things, torch.cat([sizes[..., :1], sizes[..., :1], sizes[..., 2:]], dim=-1), sizes)
    profiles = random_profiles(draws, kinds)
    height = torch.where(ring, sizes[..., 2] * profiles[..., 0], sizes[..., 2])
    ground = draws.uniform(count, 2, low=-0.85, high=0.85) * focus.half[:, None, :2]
    frames = rotations_about_z(draws.uniform(count, high=2 * math.pi))
    return Parts(kinds, frames, torch.cat([ground, height[..., None]], dim=-1), sizes, profiles)


def _pictures(draws: Draws, half: Tensor) -> Parts:
    """Thin boxes on the walls."""
    pictures = []
    for _ in range(_PICTURES):
        sizes = torch.stack([draws.uniform(low=0.2, high=0.7), torch.full((len(half),), 0.015).double()], dim=-1)
        sizes = torch.cat([sizes, draws.uniform(1, low=0.2, high=0.5)], dim=-1)
        yaw, position = _at_wall(draws, half, sizes[:, 1] - 0.02)
        center = torch.cat([position, draws.uniform(1, low=1.2, high=1.7)], dim=-1)
        kinds = torch.full((len(half), 1), Kind.BOX)
        profiles = torch.zeros(len(half), 1, 3).double()
        pictures.append(Parts(kinds, rotations_about_z(yaw)[:, None], center[:, None], sizes[:, None], profiles))
    return concatenate(pictures)


def _clutter(draws: Draws, half: Tensor) -> Parts:
    """Things on the floor."""
    choices = torch.tensor([Kind.BOX, Kind.SPHERE, Kind.CYLINDER, Kind.CONE])
    kinds = choices[draws.choice(_CLUTTER, weights=[0.5, 0.2, 0.2, 0.1])]
    sizes = draws.log_uniform(_CLUTTER, 1, low=0.1, high=0.35) * draws.uniform(_CLUTTER, 3, low=-0.4, high=0.4).exp()
    ground = draws.uniform(_CLUTTER, 2, low=-0.8, high=0.8) * half[:, None, :2]
    frames = rotations_about_z(draws.uniform(_CLUTTER, high=2 * math.pi))
    return Parts(kinds, frames, torch.cat([ground, sizes[..., 2:]], dim=-1), sizes, random_profiles(draws, kinds))


def _surroundings(draws: Draws, half: Tensor, focus: Tensor) -> Parts:
    """A rug (in half of the rooms), the floor, the ceiling, and the room itself, whose walls are seen from inside."""
    count = len(half)
    rug_size = torch.cat([draws.uniform(2, low=0.6, high=1.6), torch.full((count, 1), 0.006).double()], dim=-1)
    rug_center = torch.cat([0.7 * focus, torch.full((count, 1), 0.006).double()], dim=-1)
    slab = torch.cat([half[:, :2], torch.full((count, 1), 0.5 * _FLOOR).double()], dim=-1)
    zero = torch.zeros(count).double()
    below = torch.stack([zero, zero, zero - 0.5 * _FLOOR], dim=-1)
    above = torch.stack([zero, zero, 2 * half[:, 2] + 0.5 * _FLOOR], dim=-1)
    room_center, room_size = torch.stack([zero, zero, half[:, 2]], dim=-1), half + torch.tensor([0.0, 0.0, _FLOOR])
    box = torch.full((count,), Kind.BOX)
    rug = torch.where(draws.chance(probability=0.5), Kind.BOX, Kind.NONE)
    frames = torch.eye(3).double().repeat(count, 4, 1, 1)
    frames[:, 0] = rotations_about_z(draws.uniform(high=2 * math.pi))
    return Parts(
        kinds=torch.stack([rug, box, box, torch.full_like(box, Kind.ROOM)], dim=1),
        frames=frames,
        centers=torch.stack([rug_center, below, above, room_center], dim=1),
        sizes=torch.stack([rug_size, slab, slab, room_size], dim=1),
        profiles=torch.zeros(count, 4, 3).double(),
    )


def _paths(draws: Draws, half: Tensor, center: Tensor, yaw: Tensor, against_wall: Tensor) -> tuple[Tensor, Tensor]:
    """Candidates of camera paths around the focus, and of what is looked at: control points [B, K, C, 3] each."""
    k, c = _CANDIDATES, _CONTROL_POINTS
    front = yaw - 0.5 * math.pi
    sweep = torch.where(against_wall[:, None], draws.uniform(k, low=0.4, high=2.0), draws.uniform(k, low=0.5, high=3.5))
    start = torch.where(against_wall[:, None], front[:, None] - 0.5 * sweep, draws.uniform(k, high=2 * math.pi))
    sweep = sweep * torch.where(draws.chance(k, probability=0.5), 1.0, -1.0)
    start = torch.where(against_wall[:, None], front[:, None] - 0.5 * sweep, start)
    progress = (torch.arange(c, dtype=torch.float64) - 1) / (c - 3)
    # From a plain arc to a hand that goes in and out, up and down, and back and forth.
    restless = draws.uniform(k, 1, low=0.2, high=1.2)
    in_and_out, up_and_down = (_waves(draws, progress, k) for _ in range(2))
    angle = start[..., None] + sweep[..., None] * progress + 0.5 * restless * draws.normal(k, c).clamp(-1.5, 1.5)
    first, last = draws.uniform(k, 1, low=0.8, high=1.8), draws.uniform(k, 1, low=0.8, high=1.8)
    radius = torch.lerp(first, last, progress.expand(len(half), k, c)) * (0.6 * restless * in_and_out).exp()
    rise = draws.uniform(k, 1, low=0.4, high=0.9) + 0.7 * restless * up_and_down
    offset = torch.stack([radius * angle.cos(), radius * angle.sin(), rise.clamp_min(0.15)], dim=-1)
    bound = (half - torch.tensor([0.5, 0.5, 0.0]))[:, None, None]
    path = center[:, None, None] + offset
    top = 2 * half[:, 2, None, None] - 0.4
    path = torch.stack(
        [
            torch.maximum(torch.minimum(path[..., 0], bound[..., 0]), -bound[..., 0]),
            torch.maximum(torch.minimum(path[..., 1], bound[..., 1]), -bound[..., 1]),
            torch.minimum(path[..., 2].clamp_min(0.8), top),
        ],
        dim=-1,
    )
    wander = torch.where(draws.chance(k, 1, 1, probability=0.5), 0.25, 0.7)
    look_at = center[:, None, None] + wander * draws.normal(k, c, 3).clamp(-1.5, 1.5) * torch.tensor([1.0, 1.0, 0.5])
    # Some look past the focus, into the room: on from the camera, no further than the walls.
    past = draws.uniform(k, 1, 1, low=0.0, high=1.2) * draws.chance(k, 1, 1, probability=0.5)
    beyond = look_at + past * (look_at - path) * torch.tensor([1.0, 1.0, 0.2])
    limit = half[:, None, None]
    ground = torch.maximum(torch.minimum(beyond[..., :2], limit[..., :2]), -limit[..., :2])
    return path, torch.cat([ground, beyond[..., 2:].clamp_min(0.1)], dim=-1)


def _waves(draws: Draws, progress: Tensor, count: int) -> Tensor:
    """[B, count, C], from about -1 to 1: one or two times back and forth, and not quite regular."""
    turns, phase = draws.uniform(count, 1, low=0.7, high=2.5), draws.uniform(count, 1)
    wave = (2 * math.pi * (turns * progress + phase)).sin()
    return wave + 0.3 * draws.normal(count, len(progress)).clamp(-1.5, 1.5)


def _clearest(path: Tensor, look_at: Tensor, parts: Parts) -> tuple[Tensor, Tensor]:
    """The candidate [B, C, 3] with the most space around it."""
    places = torch.linspace(0, 1, 40, dtype=torch.float64)
    points = spline(path, places)
    clear = parts.distances(points.flatten(1, 2)).unflatten(-1, points.shape[1:3]).amin(dim=(1, 3))
    clear = clear.clamp_max(1.5 * CLEARANCE) - 1e-6 * torch.arange(path.shape[1])  # among equals, the first
    best = clear.argmax(1)
    batch = torch.arange(len(path))
    return path[batch, best], look_at[batch, best]


def _too_near(parts: Parts, path: Tensor, tori: int) -> Tensor:
    """[B, N] bool: what a camera could touch; all of a piece of furniture, and with the focus the things on it."""
    distance = parts.distances(spline(path, torch.linspace(0, 1, 100, dtype=torch.float64))).amin(-1)
    near = distance < CLEARANCE
    first = tori + _THINGS
    for start in range(first, first + PIECES * (1 + _WALL_PIECES), PIECES):
        near[:, start : start + PIECES] |= near[:, start : start + PIECES].any(1, keepdim=True)
    near[:, :first] |= near[:, first : first + 1]
    return near


def _viewpoints(draws: Draws, path: Tensor, look_at: Tensor) -> Viewpoints:
    empty = torch.zeros(len(path), 2)
    return Viewpoints(
        distances=empty,
        elevations=empty,
        rolls=0.08 * draws.chance(probability=0.6),
        focal=draws.uniform(low=0.7, high=1.0),
        path=path,
        look_at=look_at,
        shake=draws.uniform(12, high=2 * math.pi),
    )
