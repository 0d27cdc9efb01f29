"""What a batch of procedural scenes is made of: tensors with one row a scene, padded to a fixed number of primitives.

Dimensions: B scenes, S surfaces, M modifiers, L lights, C control points.

A scene's surfaces come in this order: ``solids`` convex solids, ``modifiers`` convex solids that are cut out of (or
intersected with) the first solids, ``tori``, and, in rooms, the room's own walls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
from torch import Tensor

_Group = TypeVar("_Group")
_TensorFunction = Callable[[Tensor], Tensor]

# Plain integers rather than enumerations: torch.compile does not compare tensors with members of an IntEnum.


class Kind:
    """Shape of a surface in its local frame, in which every solid but the torus fills at most [-1, 1]^3."""

    NONE: Final = 0
    BOX: Final = 1
    SPHERE: Final = 2
    CYLINDER: Final = 3
    CONE: Final = 4
    """A cone or a truncated cone: of radius 1 at z = -1, and narrower at z = 1."""
    TORUS: Final = 5
    """Around the z axis: a ring of radius 1 and a tube of the radius ``profiles[..., 0]``."""
    ROOM: Final = 6
    """A box seen from inside."""


class Pattern:
    """How a material mixes its colours."""

    PLAIN: Final = 0
    NOISE: Final = 1
    BLOTCHES: Final = 2
    CHECKER: Final = 3
    STRIPES: Final = 4
    GRADIENT: Final = 5
    MOSAIC: Final = 6
    DOTS: Final = 7
    GLYPHS: Final = 8
    BRICKS: Final = 9
    IMAGE: Final = 10
    TINTED_IMAGE: Final = 11
    """Its brightness alone, between the material's first two colours."""


class Operation:
    """What a modifier does to its solid."""

    NONE: Final = 0
    DIFFERENCE: Final = 1
    INTERSECTION: Final = 2


@dataclass(frozen=True)
class Layout:
    """How many surfaces of each sort a scene has room for."""

    solids: int
    modifiers: int
    tori: int
    room: bool
    """With walls around it; its first light then casts shadows."""

    @property
    def surfaces(self) -> int:
        return self.solids + self.modifiers + self.tori + int(self.room)

    @property
    def parts(self) -> int:
        """Surfaces that are placed one by one: solids and tori."""
        return self.solids + self.tori


OBJECT_LAYOUT = Layout(solids=9, modifiers=3, tori=2, room=False)
ROOM_LAYOUT = Layout(solids=38, modifiers=2, tori=2, room=True)


@dataclass(frozen=True)
class Shapes:
    """Geometry of the surfaces.

    Attributes:
        kinds: [B, S] int64, of :class:`Kind`.
        world_to_local: [B, S, 3, 4], affine.
        sizes: [B, S, 3], half extents along the local axes: a local point times them is in world units.
        profiles: [B, S, 3]. Spheres, cylinders and cones: (c0, c1, c2) of the squared radius c0 + c1 z + c2 z^2 at
            the local height z. Tori: (tube radius, 0, 0).
        operations: [B, M] int64, of :class:`Operation`: modifier m on solid m.
    """

    kinds: Tensor
    world_to_local: Tensor
    sizes: Tensor
    profiles: Tensor
    operations: Tensor


@dataclass(frozen=True)
class Materials:
    """Appearance of the surfaces. Lengths are in world units, angles in radians.

    Attributes:
        patterns: [B, S] int64, of :class:`Pattern`.
        colors: [B, S, 3, 3], three RGB colours in [0, 1] as displayed (not linear light).
        frequencies: [B, S], repeats of the pattern a unit; of a ``fitted`` one, repeats over a face.
        offsets: [B, S, 3], of the pattern.
        angles: [B, S], of the pattern in the surface's plane.
        fitted: [B, S] bool, the pattern is stretched over the whole face.
        varied: [B, S] bool, each face of a box gets its own image or glyphs.
        warps: [B, S], displacement of the pattern by noise, in repeats.
        contrasts: [B, S], gain of the noise patterns.
        noise_frequencies: [B, S], cells of the coarsest octave of noise a unit.
        grains: [B, S], relative modulation of the brightness by noise.
        images: [B, S] int64, tile of the image atlas.
        seeds: [B, S] int64, of the noise.
        gloss: [B, S], strength of the highlights.
        shininess: [B, S], their exponent.
    """

    patterns: Tensor
    colors: Tensor
    frequencies: Tensor
    offsets: Tensor
    angles: Tensor
    fitted: Tensor
    varied: Tensor
    warps: Tensor
    contrasts: Tensor
    noise_frequencies: Tensor
    grains: Tensor
    images: Tensor
    seeds: Tensor
    gloss: Tensor
    shininess: Tensor


@dataclass(frozen=True)
class Lights:
    """Lighting, in linear light.

    Attributes:
        positions: [B, L, 4], homogeneous: (direction towards the light, 0), or (position, 1) for a lamp.
        colors: [B, L, 3], irradiance of a facing surface (for a lamp: at the distance ``reach``).
        reach: [B, L], half-value distance of a lamp.
        ambient_up, ambient_down: [B, 3], light from above and from below.
        shadow: [B], share of the first light that shadows take away.
    """

    positions: Tensor
    colors: Tensor
    reach: Tensor
    ambient_up: Tensor
    ambient_down: Tensor
    shadow: Tensor


@dataclass(frozen=True)
class Viewpoints:
    """Where a scene's cameras may be.

    Attributes:
        distances: [B, 2], objects: smallest and largest distance of a camera from the origin.
        elevations: [B, 2], objects: range of the sine of the elevation.
        rolls: [B], standard deviation of the roll.
        focal: [B], focal length over the shorter (objects) or longer (rooms) image side.
        path: [B, C, 3], rooms: control points of a uniform cubic B-spline of camera positions.
        look_at: [B, C, 3], rooms: the same of the points looked at.
        shake: [B, 12], rooms: phases of the hand's motion.
    """

    distances: Tensor
    elevations: Tensor
    rolls: Tensor
    focal: Tensor
    path: Tensor
    look_at: Tensor
    shake: Tensor


@dataclass(frozen=True)
class SceneParameters:
    """A batch of procedural scenes.

    Attributes:
        layout: the same for all scenes.
        keys: [B] int64, what random choices about these scenes' cameras derive from.
    """

    layout: Layout
    keys: Tensor
    shapes: Shapes
    materials: Materials
    lights: Lights
    viewpoints: Viewpoints

    @property
    def num_scenes(self) -> int:
        return self.keys.shape[0]

    def to(self, device: torch.device | str) -> SceneParameters:
        """On another device."""
        return self._map(lambda tensor: tensor.to(device))

    def select(self, scenes: Tensor) -> SceneParameters:
        """The scenes at these positions [N] (int64), which may repeat."""
        return self._map(lambda tensor: tensor.index_select(0, scenes))

    def _map(self, function: _TensorFunction) -> SceneParameters:
        return SceneParameters(
            self.layout,
            function(self.keys),
            map_tensors(self.shapes, function),
            map_tensors(self.materials, function),
            map_tensors(self.lights, function),
            map_tensors(self.viewpoints, function),
        )


def map_tensors(group: _Group, function: _TensorFunction) -> _Group:
    """A copy of a dataclass of tensors with a function applied to each."""
    names = [field.name for field in dataclasses.fields(group)]  # type: ignore[arg-type]
    return type(group)(**{name: function(getattr(group, name)) for name in names})
