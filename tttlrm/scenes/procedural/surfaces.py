"""Points on primitives: their normals, and their coordinates in the surface for textures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tttlrm.scenes.procedural.parameters import Kind
from tttlrm.scenes.procedural.primitives import Vector


@dataclass(frozen=True)
class SurfacePoints:
    """Where rays hit: tensors of one shape.

    Attributes:
        local: point in the surface's local frame.
        face: number of the face of a box (0 to 5), or 0.
        u, v: position on the surface in world units.
        u_fit, v_fit: the same, in [0, 1] over the face.
        extent: length of the face in world units.
        footprint: distance between samples in world units.
    """

    local: Vector
    face: Tensor
    u: Tensor
    v: Tensor
    u_fit: Tensor
    v_fit: Tensor
    extent: Tensor
    footprint: Tensor


def surface_points(
    kind: Tensor, local: Vector, sizes: Vector, profile: Vector, footprint: Tensor
) -> tuple[SurfacePoints, Vector]:
    """Position on the surface, and the normal in the local frame (not normalised, outward).

    Args:
        kind: of :class:`Kind`, as floats.
        local: points in the local frame, on the surface.
    """
    x, y, z = local
    torus = kind == Kind.TORUS
    flat = (kind == Kind.BOX) | (kind == Kind.ROOM)
    ring2 = x * x + y * y
    ring = ring2.clamp_min(1e-12).sqrt()
    side = (profile[0] + (profile[1] + profile[2] * z) * z).clamp_min(0) - ring2
    cap = ~flat & ~torus & (kind != Kind.SPHERE) & ((1.0 - z.abs()).abs() < side.abs())
    ax, ay, az = x.abs(), y.abs(), z.abs()
    on_x, on_y = flat & (ax >= ay) & (ax >= az), flat & (ay > ax) & (ay >= az)
    on_z = cap | (flat & ~on_x & ~on_y)
    around = torch.atan2(y, x) / math.pi  # in [-1, 1]
    tube = torch.atan2(z, ring - 1.0) / math.pi
    mean = 0.5 * (sizes[0] + sizes[1])

    a = torch.where(on_x, y, torch.where(on_y | on_z, x, around))
    b = torch.where(on_z, y, torch.where(torus, tube, z))
    size_a = torch.where(on_x, sizes[1], torch.where(on_y | on_z, sizes[0], math.pi * mean))
    size_b = torch.where(on_z, sizes[1], torch.where(torus, math.pi * profile[0] * mean, sizes[2]))
    positive = torch.where(on_x, x, torch.where(on_y, y, z)) > 0
    axis = torch.where(on_x, 0.0, torch.where(on_y, 1.0, 2.0))
    face = torch.where(flat, 2.0 * axis + positive.to(x.dtype), 0.0)
    points = SurfacePoints(
        local=local,
        face=face,
        u=a * size_a,
        v=b * size_b,
        u_fit=0.5 * a + 0.5,
        v_fit=0.5 - 0.5 * b,
        extent=2.0 * torch.minimum(size_a, size_b),
        footprint=footprint,
    )
    shrink = torch.where(torus, 1.0 - 1.0 / ring, 1.0)
    down = torch.where(torus, z, -(0.5 * profile[1] + profile[2] * z))
    normal = (
        torch.where(on_x, x, torch.where(on_y | on_z, 0.0, x * shrink)),
        torch.where(on_y, y, torch.where(on_x | on_z, 0.0, y * shrink)),
        torch.where(on_z, z, torch.where(on_x | on_y, 0.0, down)),
    )
    return points, normal
