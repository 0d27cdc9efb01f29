"""Light on surface points: what a ray hit, its colour, and how it is lit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tttlrm.scenes.procedural.atlas import ImageAtlas
from tttlrm.scenes.procedural.parameters import Lights, SceneParameters
from tttlrm.scenes.procedural.primitives import Vector, dot, normalize
from tttlrm.scenes.procedural.surfaces import surface_points
from tttlrm.scenes.procedural.textures import Material, surface_color

_SHADOW_BIAS = 2e-3
_SHOULDER = 0.6


@dataclass(frozen=True)
class HitSurfaces:
    """The surfaces that rays hit: each tensor has one value a ray.

    Attributes:
        matrix: world to local, row by row, twelve components.
    """

    kind: Tensor
    matrix: tuple[Tensor, ...]
    sizes: Vector
    profile: Vector
    material: Material
    gloss: Tensor
    shininess: Tensor


def surface_table(scenes: SceneParameters) -> Tensor:
    """[B, K, S]: all numbers of each surface, for :func:`gather_surface`."""
    shapes, m = scenes.shapes, scenes.materials
    columns = [
        shapes.kinds[..., None],
        shapes.world_to_local.flatten(-2),
        shapes.sizes,
        shapes.profiles,
        m.colors.flatten(-2),
        m.offsets,
    ]
    scalars = [
        *(m.patterns, m.frequencies, m.angles, m.fitted, m.varied, m.warps, m.contrasts, m.noise_frequencies),
        *(m.grains, m.images, m.seeds, m.gloss, m.shininess),
    ]
    columns += [scalar[..., None] for scalar in scalars]
    return torch.cat([column.float() for column in columns], dim=-1).transpose(1, 2).contiguous()


def gather_surface(table: Tensor, surface: Tensor) -> HitSurfaces:
    """The rows of a table [I, K, S] for surface numbers [I, R]."""
    values = list(table.gather(2, surface[:, None].expand(-1, table.shape[1], -1)).unbind(1))

    def take(count: int) -> tuple[Tensor, ...]:
        taken = tuple(values[:count])
        del values[:count]
        return taken

    def vector() -> Vector:
        return take(3)  # type: ignore[return-value]

    (kind,), matrix, sizes, profile = take(1), take(12), vector(), vector()
    colors, offset = (vector(), vector(), vector()), vector()
    pattern, frequency, angle, fitted, varied, warp, contrast, noise_frequency, grain, image, seed = take(11)
    gloss, shininess = take(2)
    material = Material(
        *(pattern, colors, frequency, offset, angle, fitted, varied, warp, contrast, noise_frequency, grain),
        *(image, seed),
    )
    return HitSurfaces(kind, matrix, sizes, profile, material, gloss, shininess)


def shade(
    lights: Lights,
    surface: HitSurfaces,
    atlas: ImageAtlas,
    point: Vector,
    direction: Vector,
    footprint: Tensor,
    occluded: Callable[[Vector, Vector], Tensor] | None,
) -> Vector:
    """Displayed colours of surface points in [0, 1].

    Args:
        point, direction: [I, R] components; the direction from the camera.
        footprint: [I, R], distance between samples at the point.
        occluded: whether something is between points and points + offsets, for the first light's shadow.
    """
    m = surface.matrix
    local = tuple(
        m[4 * i] * point[0] + m[4 * i + 1] * point[1] + m[4 * i + 2] * point[2] + m[4 * i + 3] for i in range(3)
    )
    points, slope = surface_points(surface.kind, local, surface.sizes, surface.profile, footprint)  # type: ignore[arg-type]
    # Normals transform with the transpose of the world-to-local matrix; they face the camera (cut-outs, rooms).
    normal = normalize(tuple(m[i] * slope[0] + m[4 + i] * slope[1] + m[8 + i] * slope[2] for i in range(3)))  # type: ignore[arg-type]
    facing = torch.where(dot(normal, direction) > 0, -1.0, 1.0)
    normal = (normal[0] * facing, normal[1] * facing, normal[2] * facing)
    albedo = [c * c for c in surface_color(points, surface.material, surface.sizes, atlas)]  # display to linear light

    backward = normalize((-direction[0], -direction[1], -direction[2]))
    up = 0.5 + 0.5 * normal[2]
    light = [torch.lerp(lights.ambient_down[:, c, None], lights.ambient_up[:, c, None], up) for c in range(3)]
    glare = [torch.zeros_like(channel) for channel in light]
    for number in range(lights.positions.shape[1]):
        position = lights.positions[:, number, :, None]
        lamp = position[:, 3]
        offset = tuple(position[:, i] - lamp * point[i] for i in range(3))
        toward = normalize(offset)  # type: ignore[arg-type]
        reach = lights.reach[:, number, None]
        fading = lamp * dot(offset, offset) / (reach * reach)  # type: ignore[arg-type]
        strength = 2.0 / (1.0 + torch.where(lamp > 0, fading, 1.0))
        if number == 0 and occluded is not None:
            start = tuple(p + _SHADOW_BIAS * n for p, n in zip(point, normal, strict=True))
            strength = strength * (1.0 - lights.shadow[:, None] * occluded(start, offset))  # type: ignore[arg-type]
        diffuse = dot(normal, toward).clamp_min(0.0)
        half = normalize((toward[0] + backward[0], toward[1] + backward[1], toward[2] + backward[2]))
        highlight = dot(normal, half).clamp_min(1e-6).pow(surface.shininess) * (diffuse > 0)
        for c in range(3):
            color = lights.colors[:, number, c, None] * strength
            light[c] = light[c] + color * diffuse
            glare[c] = glare[c] + color * highlight
    red, green, blue = (_display(a * b + surface.gloss * g) for a, b, g in zip(albedo, light, glare, strict=True))
    return red, green, blue


def _display(light: Tensor) -> Tensor:
    """Linear light to displayed values below 1, with a shoulder that keeps bright surfaces from burning out."""
    above = (light - _SHOULDER).clamp_min(0.0) / (1.0 - _SHOULDER)
    return (light.clamp_max(_SHOULDER) + (1.0 - _SHOULDER) * (1.0 - torch.exp(-above))).clamp_min(1e-8).sqrt()
