"""Rays against primitives: where a ray is inside each solid, and where it first enters each torus.

A vector is a tuple of its three components, and products with matrices are written out: matrix kernels may round to
TF32 on CUDA, and components fuse under ``torch.compile``. Everything broadcasts; nothing synchronises.

Dimensions: I images, S surfaces, R rays of an image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tttlrm.scenes.procedural.parameters import Kind

Vector = tuple[Tensor, Tensor, Tensor]

_TORUS_STEPS = 8
_TINY = 1e-20


def dot(a: Vector, b: Vector) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def along(origin: Vector, direction: Vector, distance: Tensor) -> Vector:
    """origin + distance * direction."""
    return (
        origin[0] + distance * direction[0],
        origin[1] + distance * direction[1],
        origin[2] + distance * direction[2],
    )


def normalize(vector: Vector) -> Vector:
    inverse = dot(vector, vector).clamp_min(1e-20).rsqrt()
    return vector[0] * inverse, vector[1] * inverse, vector[2] * inverse


def transform(matrix: Tensor, vector: Vector, translate: bool) -> Vector:
    """An affine matrix [..., 3, 4] (trailing dimensions of the components follow the 4) times a vector.

    Args:
        matrix: [I, S, 3, 4, ...], where the dots broadcast with the vector's trailing dimensions.
        translate: add the last column (points), or not (directions).
    """
    rows = []
    for row in range(3):
        value = matrix[:, :, row, 0] * vector[0] + matrix[:, :, row, 1] * vector[1] + matrix[:, :, row, 2] * vector[2]
        rows.append(value + matrix[:, :, row, 3] if translate else value)
    return rows[0], rows[1], rows[2]


def convex_intervals(kinds: Tensor, profiles: Tensor, origin: Vector, direction: Vector) -> tuple[Tensor, Tensor]:
    """The interval of each ray's parameter in which it is inside a convex solid.

    Args:
        kinds: [I, S, 1], of :class:`Kind`.
        profiles: [I, S, 1, 3].
        origin, direction: in the solid's local frame; components broadcast to [I, S, R].

    Returns:
        enter, leave: [I, S, R]; enter > leave where the ray misses.
    """
    origin, middle = _nearest(origin, direction)
    box, sides, quadric = kinds == Kind.BOX, _sides(origin, direction), _quadric_interval(profiles, origin, direction)
    around = torch.where(box, sides[0], quadric[0]), torch.where(box, sides[1], quadric[1])
    enter, leave = _within(origin, direction, middle, around)
    return enter + torch.where(kinds == Kind.NONE, torch.inf, 0.0), leave


def box_interval(profiles: Tensor, origin: Vector, direction: Vector) -> tuple[Tensor, Tensor]:
    """:func:`convex_intervals` of boxes, which have no profiles."""
    origin, middle = _nearest(origin, direction)
    return _within(origin, direction, middle, _sides(origin, direction))


def round_interval(profiles: Tensor, origin: Vector, direction: Vector) -> tuple[Tensor, Tensor]:
    """:func:`convex_intervals` of spheres, cylinders and cones."""
    origin, middle = _nearest(origin, direction)
    return _within(origin, direction, middle, _quadric_interval(profiles, origin, direction))


def _nearest(origin: Vector, direction: Vector) -> tuple[Vector, Tensor]:
    """The ray's point nearest to the solid's centre, which keeps roots well conditioned, and its parameter."""
    middle = -dot(origin, direction) / dot(direction, direction)
    return along(origin, direction, middle), middle


def _sides(origin: Vector, direction: Vector) -> tuple[Tensor, Tensor]:
    enter_x, leave_x = _slab(origin[0], direction[0])
    enter_y, leave_y = _slab(origin[1], direction[1])
    return torch.maximum(enter_x, enter_y), torch.minimum(leave_x, leave_y)


def _within(origin: Vector, direction: Vector, middle: Tensor, around: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Between top and bottom, and in the interval ``around`` the axis."""
    enter, leave = _slab(origin[2], direction[2])
    return torch.maximum(enter, around[0]) + middle, torch.minimum(leave, around[1]) + middle


def box_exit(origin: Vector, direction: Vector) -> Tensor:
    """Where a ray from inside the local box [-1, 1]^3 leaves it."""
    leaves = [_slab(o, d)[1] for o, d in zip(origin, direction, strict=True)]
    return torch.minimum(torch.minimum(leaves[0], leaves[1]), leaves[2])


def torus_entry(tube: Tensor, origin: Vector, direction: Vector, near: Tensor | float) -> Tensor:
    """The first parameter above ``near`` at which a ray enters a torus from outside; infinity where it does not.

    With the origin moved to the ray's point nearest to the centre and a unit direction, the quartic has no cubic
    term. Its minima are roots of a depressed cubic; the surface is entered before a minimum below zero.

    Args:
        tube: the tube's radius (the ring's is 1), broadcasting to [I, S, R], as the components do.
    """
    length, unit, middle, origin = _unit_ray(origin, direction)
    radius2 = dot(origin, origin)
    k = radius2 + 1.0 - tube * tube
    quadratic = 2.0 * k - 4.0 * (unit[0] * unit[0] + unit[1] * unit[1])
    linear = -8.0 * (origin[0] * unit[0] + origin[1] * unit[1])
    constant = k * k - 4.0 * (origin[0] * origin[0] + origin[1] * origin[1])

    def quartic(u: Tensor) -> Tensor:
        return ((u * u + quadratic) * u + linear) * u + constant

    def slope(u: Tensor) -> Tensor:
        return (4.0 * u * u + 2.0 * quadratic) * u + linear

    bound = ((1.0 + tube) ** 2 - radius2).clamp_min(0).sqrt() + 1e-3
    start = torch.maximum(-bound, near * length - middle)
    low, top, high, three = _quartic_extrema(quadratic, linear)
    restart = torch.maximum(top, start)
    first = (quartic(low) < 0) & (low > start) & (quartic(start) > 0)
    second = three & (quartic(high) < 0) & (high > restart) & (quartic(restart) > 0)
    outside, inside = torch.where(first, start, restart), torch.where(first, low, high)
    root = _descend(quartic, slope, outside, inside)
    root = _polish_torus(root, tube, origin, unit)
    hit = (first | second) & (radius2 < (1.0 + tube) ** 2)
    return torch.where(hit, (root + middle) / length, torch.inf)


def passes_torus(tube: Tensor, origin: Vector, direction: Vector) -> Tensor:
    """Whether a ray comes as near to the centre as the torus is large: only then can it be entered."""
    nearest = _unit_ray(origin, direction)[3]
    return dot(nearest, nearest) < (1.0 + tube) ** 2


def _unit_ray(origin: Vector, direction: Vector) -> tuple[Tensor, Vector, Tensor, Vector]:
    """The direction's length, the unit direction, the parameter of the point nearest to the centre, and that point."""
    length = dot(direction, direction).sqrt()
    unit = (direction[0] / length, direction[1] / length, direction[2] / length)
    middle = -dot(origin, unit)
    return length, unit, middle, along(origin, unit, middle)


def _slab(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Where a ray is between -1 and 1 along one axis."""
    inverse = 1.0 / (direction + _TINY)  # no change but to zeros
    center, half = -origin * inverse, inverse.abs()
    return center - half, center + half


def _quadric_interval(profiles: Tensor, origin: Vector, direction: Vector) -> tuple[Tensor, Tensor]:
    """Where x^2 + y^2 <= c0 + c1 z + c2 z^2 on a ray, of a cone below its apex.

    Inside is between the roots of a quadratic; for a ray steeper than a cone it is before the first or after the last.
    """
    c0, c1, c2 = profiles.unbind(-1)
    a = direction[0] * direction[0] + direction[1] * direction[1] - c2 * direction[2] * direction[2] + _TINY
    b = origin[0] * direction[0] + origin[1] * direction[1] - (c2 * origin[2] + 0.5 * c1) * direction[2]
    c = origin[0] * origin[0] + origin[1] * origin[1] - c0 - (c1 + c2 * origin[2]) * origin[2]
    discriminant = b * b - a * c
    q = -(b + torch.copysign(discriminant.clamp_min(0).sqrt(), b))  # no cancellation
    one, two = q / a, c / q
    real, between, down = discriminant > 0, a > 0, direction[2] < 0
    first = torch.where(real, torch.minimum(one, two), torch.inf)
    last = torch.where(real, torch.maximum(one, two), -torch.inf)
    low = torch.where(between, first, torch.where(down, last, -torch.inf))
    high = torch.where(between, last, torch.where(down, torch.inf, first))
    return low, high


def _quartic_extrema(quadratic: Tensor, linear: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Extrema of u^4 + quadratic u^2 + linear u + constant: first minimum, maximum, last minimum, whether all exist.

    With a single minimum, all three are that minimum.
    """
    p, q = 0.5 * quadratic, 0.25 * linear  # u^3 + p u + q = 0
    discriminant = 0.25 * q * q + p * p * p / 27.0
    three = discriminant < 0
    size = (-p / 3.0).clamp_min(1e-12).sqrt()
    angle = torch.acos((-0.5 * q / (size * size * size)).clamp(-1.0, 1.0)) / 3.0
    third = 2.0943951023931953
    largest, smallest = 2.0 * size * angle.cos(), 2.0 * size * (angle + third).cos()
    cube = 0.5 * q.abs() + discriminant.clamp_min(0).sqrt()
    side = cube.clamp_min(1e-30).pow(1.0 / 3.0) * torch.where(q > 0, -1.0, 1.0)
    single = side - p / (3.0 * side)
    single = torch.where(cube < 1e-30, 0.0, single)
    low, high = torch.where(three, smallest, single), torch.where(three, largest, single)
    return low, torch.where(three, -(low + high), single), high, three


def _descend(
    function: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor], outside: Tensor, inside: Tensor
) -> Tensor:
    """The root between ``outside`` (value above zero) and ``inside`` (below), by Newton steps kept in the bracket."""
    root = 0.5 * (outside + inside)
    for _ in range(_TORUS_STEPS):
        value = function(root)
        positive = value > 0
        outside, inside = torch.where(positive, root, outside), torch.where(positive, inside, root)
        newton = root - value / slope(root).clamp_max(-1e-6)
        inner = (newton >= outside) & (newton <= inside)
        root = torch.where(inner, newton, 0.5 * (outside + inside))
    return root


def _polish_torus(root: Tensor, tube: Tensor, origin: Vector, unit: Vector) -> Tensor:
    """One Newton step on the distance to the surface, which rounds far less than the quartic."""
    x, y, z = along(origin, unit, root)
    ring = (x * x + y * y).clamp_min(1e-12).sqrt()
    value = (ring - 1.0) * (ring - 1.0) + z * z - tube * tube
    slope = 2.0 * ((ring - 1.0) * (x * unit[0] + y * unit[1]) / ring + z * unit[2])
    step = value / torch.where(slope.abs() < 1e-2, -1e-2, slope)
    return root - torch.where(slope < -1e-2, step, 0.0).clamp(-1e-2, 1e-2)
