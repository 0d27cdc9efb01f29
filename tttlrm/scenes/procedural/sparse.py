"""Rays against only those primitives that are there, and tori only where a ray passes them: for CPUs.

The numbers are those of :mod:`tttlrm.scenes.procedural.primitives` for all of them, to the bit. Finding out what is
there would make a GPU wait.

Dimensions: I images, S surfaces, R rays of an image, P chosen surfaces of one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tttlrm.scenes.procedural.parameters import Kind
from tttlrm.scenes.procedural.primitives import (
    Vector,
    box_interval,
    passes_torus,
    round_interval,
    torus_entry,
    transform,
)


def convex_intervals_where_present(
    kinds: Tensor, profiles: Tensor, matrices: Tensor, origin: Vector, direction: Vector
) -> tuple[Tensor, Tensor]:
    """As :func:`tttlrm.scenes.procedural.primitives.convex_intervals`.

    Args:
        kinds: [I, S].
        profiles: [I, S, 3].
        matrices: [I, S, 3, 4], world to local.
        origin, direction: components [I, R] or [I, 1], in the world.
    """
    enter, leave = (direction[0].new_full((*kinds.shape, _rays(direction)), value) for value in (torch.inf, -torch.inf))
    box = kinds == Kind.BOX
    for chosen, interval in ((box, box_interval), (~box & (kinds != Kind.NONE), round_interval)):
        for image, surfaces in enumerate(_numbers(chosen)):
            if len(surfaces):
                local = _local(matrices, image, surfaces, origin, direction)
                enter[image, surfaces], leave[image, surfaces] = interval(profiles[image, surfaces, None], *local)
    return enter, leave


def torus_entries_where_present(
    kinds: Tensor, tubes: Tensor, matrices: Tensor, origin: Vector, direction: Vector, near: float
) -> Tensor:
    """As :func:`tttlrm.scenes.procedural.primitives.torus_entry`; arguments as above, ``tubes`` being [I, S]."""
    entries = direction[0].new_full((*kinds.shape, _rays(direction)), torch.inf)
    for image, rings in enumerate(_numbers(kinds > 0)):
        if not len(rings):
            continue
        start, step = _local(matrices, image, rings, origin, direction)
        tube = tubes[image, rings, None]
        passing = passes_torus(tube, start, step)
        tube, *rays = (part.expand(passing.shape)[passing] for part in (tube, *start, *step))
        found = entries.new_full(passing.shape, torch.inf)
        found[passing] = torus_entry(tube, (rays[0], rays[1], rays[2]), (rays[3], rays[4], rays[5]), near)
        entries[image, rings] = found
    return entries


def _rays(direction: Vector) -> int:
    return direction[0].shape[-1]


def _numbers(chosen: Tensor) -> list[Tensor]:
    """Of [I, S] bool, the numbers of the chosen surfaces of each image."""
    return [row.nonzero().squeeze(-1) for row in chosen]


def _local(matrices: Tensor, image: int, surfaces: Tensor, origin: Vector, direction: Vector) -> tuple[Vector, Vector]:
    """Rays of an image in the local frames of P surfaces: components [P, R] (of the origin, also [P, 1])."""
    rows = matrices[image, surfaces][None, ..., None]
    moved = []
    for vector, translate in ((origin, True), (direction, False)):
        x, y, z = transform(rows, (vector[0][image], vector[1][image], vector[2][image]), translate)
        moved.append((x[0], y[0], z[0]))
    return moved[0], moved[1]
