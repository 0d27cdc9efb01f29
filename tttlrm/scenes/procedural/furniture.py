"""Furniture made of a few primitives each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tttlrm.scenes.procedural.draws import Draws, rotations_about_z
from tttlrm.scenes.procedural.parameters import Kind
from tttlrm.scenes.procedural.parts import Parts, random_profiles

PIECES = 5
"""Primitives of a piece of furniture."""

_Piece = tuple[int, float, float, float, float, float, float]


@dataclass(frozen=True)
class _Model:
    """A piece of furniture: ranges of its half width, half depth and height in metres, and its primitives.

    A primitive is (kind, centre, half sizes), in units of half width and half depth, and of the full height. The back
    is at y = +1.
    """

    half_width: tuple[float, float]
    half_depth: tuple[float, float]
    height: tuple[float, float]
    pieces: tuple[_Piece, ...]


_BOX, _SPHERE, _CYLINDER = Kind.BOX, Kind.SPHERE, Kind.CYLINDER
_MODELS = (
    _Model(  # table
        (0.5, 0.9),
        (0.35, 0.6),
        (0.5, 0.8),
        (
            (_BOX, 0.0, 0.0, 0.97, 1.0, 1.0, 0.03),
            (_BOX, -0.9, -0.85, 0.47, 0.05, 0.08, 0.47),
            (_BOX, 0.9, -0.85, 0.47, 0.05, 0.08, 0.47),
            (_BOX, -0.9, 0.85, 0.47, 0.05, 0.08, 0.47),
            (_BOX, 0.9, 0.85, 0.47, 0.05, 0.08, 0.47),
        ),
    ),
    _Model(  # desk
        (0.6, 0.95),
        (0.35, 0.5),
        (0.68, 0.8),
        (
            (_BOX, 0.0, 0.0, 0.975, 1.0, 1.0, 0.025),
            (_BOX, -0.95, 0.0, 0.475, 0.05, 0.95, 0.475),
            (_BOX, 0.95, 0.0, 0.475, 0.05, 0.95, 0.475),
            (_BOX, 0.0, 0.9, 0.6, 0.9, 0.05, 0.3),
            (_BOX, 0.58, -0.1, 0.7, 0.3, 0.85, 0.22),
        ),
    ),
    _Model(  # round table
        (0.45, 0.75),
        (0.45, 0.75),
        (0.45, 0.8),
        (
            (_CYLINDER, 0.0, 0.0, 0.97, 1.0, 1.0, 0.03),
            (_CYLINDER, 0.0, 0.0, 0.48, 0.12, 0.12, 0.47),
            (_CYLINDER, 0.0, 0.0, 0.02, 0.55, 0.55, 0.02),
            (_SPHERE, 0.0, 0.0, 0.3, 0.2, 0.2, 0.12),
            (_CYLINDER, 0.0, 0.0, 0.9, 0.35, 0.35, 0.04),
        ),
    ),
    _Model(  # cabinet
        (0.4, 0.8),
        (0.22, 0.35),
        (0.5, 1.0),
        (
            (_BOX, 0.0, 0.0, 0.48, 0.98, 0.95, 0.48),
            (_BOX, -0.49, -0.97, 0.48, 0.45, 0.06, 0.42),
            (_BOX, 0.49, -0.97, 0.48, 0.45, 0.06, 0.42),
            (_SPHERE, -0.1, -1.08, 0.55, 0.04, 0.08, 0.03),
            (_BOX, 0.0, 0.0, 0.975, 1.0, 1.0, 0.025),
        ),
    ),
    _Model(  # sofa
        (0.7, 1.1),
        (0.4, 0.5),
        (0.7, 0.9),
        (
            (_BOX, 0.0, -0.1, 0.25, 0.9, 0.9, 0.25),
            (_BOX, 0.0, 0.78, 0.55, 0.95, 0.22, 0.45),
            (_BOX, -0.92, 0.0, 0.36, 0.1, 0.95, 0.36),
            (_BOX, 0.92, 0.0, 0.36, 0.1, 0.95, 0.36),
            (_SPHERE, 0.5, 0.35, 0.66, 0.25, 0.25, 0.2),
        ),
    ),
    _Model(  # bed
        (0.5, 0.9),
        (0.9, 1.0),
        (0.7, 1.0),
        (
            (_BOX, 0.0, 0.0, 0.18, 1.0, 1.0, 0.18),
            (_BOX, 0.0, -0.02, 0.45, 0.96, 0.94, 0.12),
            (_SPHERE, -0.45, 0.7, 0.6, 0.35, 0.18, 0.09),
            (_SPHERE, 0.45, 0.7, 0.6, 0.35, 0.18, 0.09),
            (_BOX, 0.0, 0.98, 0.5, 1.0, 0.03, 0.5),
        ),
    ),
    _Model(  # shelf
        (0.35, 0.6),
        (0.14, 0.2),
        (1.2, 2.0),
        (
            (_BOX, -0.96, 0.0, 0.5, 0.04, 1.0, 0.5),
            (_BOX, 0.96, 0.0, 0.5, 0.04, 1.0, 0.5),
            (_BOX, 0.0, 0.0, 0.98, 1.0, 1.0, 0.02),
            (_BOX, 0.0, 0.0, 0.62, 0.95, 0.97, 0.015),
            (_BOX, 0.0, 0.0, 0.3, 0.95, 0.97, 0.015),
        ),
    ),
    _Model(  # chair
        (0.2, 0.27),
        (0.2, 0.27),
        (0.8, 1.0),
        (
            (_BOX, 0.0, 0.0, 0.48, 1.0, 1.0, 0.04),
            (_BOX, 0.0, 0.93, 0.76, 0.95, 0.07, 0.24),
            (_BOX, -0.9, 0.0, 0.22, 0.08, 0.9, 0.22),
            (_BOX, 0.9, 0.0, 0.22, 0.08, 0.9, 0.22),
            (_SPHERE, 0.0, -0.05, 0.53, 0.85, 0.85, 0.05),
        ),
    ),
)
FOCUS_WEIGHTS = (3.0, 4.0, 2.0, 2.0, 0.7, 1.0, 0.0, 0.0)
"""Of the models, for what a capture is about: things stand on most of them."""
OTHER_WEIGHTS = (1.0, 1.0, 0.7, 2.0, 1.5, 1.0, 2.5, 2.0)


@dataclass(frozen=True)
class Furniture:
    """A piece of furniture of each scene, standing on z = 0 about the origin, its back towards +y.

    Attributes:
        parts: of :data:`PIECES` primitives.
        half: [B, 3], half width, half depth, and full height.
        top: [B], height of the surface on which things stand.
    """

    parts: Parts
    half: Tensor
    top: Tensor

    def placed(self, yaw: Tensor, position: Tensor) -> Parts:
        """The primitives turned by [B] radians and moved to [B, 2]."""
        shift = torch.cat([position, torch.zeros_like(position[:, :1])], dim=-1)
        return self.parts.moved(rotations_about_z(yaw)[:, None], shift[:, None])


def random_furniture(draws: Draws, weights: tuple[float, ...]) -> Furniture:
    """A piece of furniture for each scene."""
    model = draws.choice(weights=weights)
    pieces = torch.tensor([m.pieces for m in _MODELS], dtype=torch.float64)[model]  # [B, PIECES, 7]
    ranges = torch.tensor([(m.half_width, m.half_depth, m.height) for m in _MODELS], dtype=torch.float64)[model]
    half = ranges[..., 0] + (ranges[..., 1] - ranges[..., 0]) * draws.uniform(3)
    kinds = pieces[..., 0].long()
    parts = Parts(
        kinds=kinds,
        frames=torch.eye(3).double().expand(*kinds.shape, 3, 3),
        centers=pieces[..., 1:4] * half[:, None],
        sizes=pieces[..., 4:] * half[:, None],
        profiles=random_profiles(draws, kinds),
    )
    seats = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5, 0.57, 1.0, 0.52], dtype=torch.float64)
    return Furniture(parts, half, seats[model] * half[:, 2])
