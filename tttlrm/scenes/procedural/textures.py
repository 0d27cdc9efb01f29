"""Colours of surface points: procedural patterns and images.

Patterns are filtered by the ``footprint``, the distance between neighbouring samples on the surface: edges are as
soft as it is wide, and octaves of noise finer than it fade out, so that images of different sizes agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tttlrm.scenes.procedural.atlas import NUM_IMAGES, TILE, ImageAtlas
from tttlrm.scenes.procedural.parameters import Pattern
from tttlrm.scenes.procedural.primitives import Vector
from tttlrm.scenes.procedural.surfaces import SurfacePoints

OCTAVES = 4
_GLYPH_CELLS = 7  # a frame of one cell around 5 x 5 cells


@dataclass(frozen=True)
class Material:
    """The materials of the points: as :class:`parameters.Materials`, one value a point."""

    pattern: Tensor
    colors: tuple[Vector, Vector, Vector]
    frequency: Tensor
    offset: Vector
    angle: Tensor
    fitted: Tensor
    varied: Tensor
    warp: Tensor
    contrast: Tensor
    noise_frequency: Tensor
    grain: Tensor
    image: Tensor
    seed: Tensor


def surface_color(points: SurfacePoints, material: Material, sizes: Vector, atlas: ImageAtlas) -> Vector:
    """Displayed (not linear) colours in [0, 1]."""
    noise = _surface_noise(points, material, sizes)
    u, v, rate = _pattern_coordinates(points, material, noise)
    # Half the width of a soft edge in repeats; beyond a third of a repeat a pattern would only flicker.
    blur = (points.footprint * rate).clamp(1e-4, 0.3)
    mix, second, swapped = _mixture(points, material, noise, u, v, blur)
    first, other, third = material.colors
    other = tuple(torch.where(swapped, c, b) for b, c in zip(other, third, strict=True))  # type: ignore[assignment]
    color = [a + (b - a) * mix + (c - a) * (1 - mix) * second for a, b, c in zip(first, other, third, strict=True)]
    color = _with_images(color, points, material, atlas, u, v, rate)
    gain = 1.0 + material.grain * noise
    red, green, blue = ((channel * gain).clamp(0.0, 1.0) for channel in color)
    return red, green, blue


def fractal_noise(position: Vector, seed: Tensor, finest: Tensor) -> Tensor:
    """Gradient noise of several octaves, about in [-1, 1].

    Args:
        position: in cells of the coarsest octave.
        seed: int32.
        finest: footprint in cells of the coarsest octave; octaves that it cannot show fade out.
    """
    ones = (1,) * seed.ndim
    octave = torch.arange(OCTAVES, device=seed.device, dtype=torch.int32).reshape(-1, *ones)
    scale = (1 << octave).to(finest.dtype)
    x, y, z = (component * scale + 17.3 * octave for component in position)
    visible = (2.0 - 4.0 * scale * finest).clamp(0.0, 1.0)
    return (gradient_noise((x, y, z), seed + octave) * visible * (1.5 / scale)).sum(0)


def gradient_noise(position: Vector, seed: Tensor) -> Tensor:
    """Perlin's noise: lattice gradients from an integer hash, interpolated; about in [-0.7, 0.7]."""
    floors = [component.floor() for component in position]
    x, y, z = (component - floor for component, floor in zip(position, floors, strict=True))
    lattice = [floor.to(torch.int32) for floor in floors]
    fade_x, fade_y, fade_z = (f * f * f * (f * (f * 6.0 - 15.0) + 10.0) for f in (x, y, z))
    hashed_x = [(lattice[0] + i) * 0x27D4EB2D for i in range(2)]
    hashed_y = [(lattice[1] + i) * 0x165667B1 for i in range(2)]
    hashed_z = [(lattice[2] + i) * 0x2C1B3C6D ^ seed * 0x1B873593 for i in range(2)]
    planes = []
    for k in range(2):
        lines = []
        for j in range(2):
            partial = hashed_y[j] ^ hashed_z[k]
            ends = [_gradient_dot(_scramble(hashed_x[i] ^ partial), x - i, y - j, z - k) for i in range(2)]
            lines.append(torch.lerp(ends[0], ends[1], fade_x))
        planes.append(torch.lerp(lines[0], lines[1], fade_y))
    return torch.lerp(planes[0], planes[1], fade_z)


def hash_unit(x: Tensor, y: Tensor, z: Tensor, seed: Tensor) -> Tensor:
    """A pseudo-random number in [0, 1) of three integers (float tensors holding them) and a seed (int32)."""
    mixed = x.to(torch.int32) * 0x27D4EB2D ^ y.to(torch.int32) * 0x165667B1 ^ z.to(torch.int32) * 0x2C1B3C6D
    return ((_scramble(mixed ^ seed * 0x1B873593) >> 7) & 0xFFFF).float() / 65536.0


def _gradient_dot(bits: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """A gradient in [-1, 1]^3, from three bytes of a hash, times the offset from its lattice point."""
    gx, gy, gz = (bits & 255), ((bits >> 8) & 255), ((bits >> 16) & 255)
    return (gx * x + gy * y + gz * z) * (2.0 / 255.0) - (x + y + z)


def _scramble(value: Tensor) -> Tensor:
    """Mixes the bits of an int32 (multiplication wraps around)."""
    value = (value ^ ((value >> 15) & 0x1FFFF)) * 0x2C1B3C6D
    value = (value ^ ((value >> 12) & 0xFFFFF)) * 0x297A2D39
    return value ^ ((value >> 15) & 0x1FFFF)


def _surface_noise(points: SurfacePoints, material: Material, sizes: Vector) -> Tensor:
    frequency = material.noise_frequency
    x, y, z = (
        p * size * frequency + offset for p, size, offset in zip(points.local, sizes, material.offset, strict=True)
    )
    return fractal_noise((x, y, z), material.seed.to(torch.int32), points.footprint * frequency)


def _pattern_coordinates(points: SurfacePoints, material: Material, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates of the pattern, in repeats, and repeats a world unit."""
    cos, sin = material.angle.cos(), material.angle.sin()
    free_u = (points.u * cos - points.v * sin) * material.frequency + material.offset[0]
    free_v = (points.u * sin + points.v * cos) * material.frequency + material.offset[1]
    shift = material.warp * noise
    fitted = material.fitted > 0.5
    u = torch.where(fitted, points.u_fit * material.frequency, free_u) + shift
    v = torch.where(fitted, points.v_fit * material.frequency, free_v) + shift
    return u, v, material.frequency / torch.where(fitted, points.extent, 1.0)


def _mixture(
    points: SurfacePoints, material: Material, noise: Tensor, u: Tensor, v: Tensor, blur: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of the second colour and, in what is left, of the third; where the third stands for the second."""
    pattern = material.pattern
    fu, fv = u - u.floor(), v - v.floor()
    bricks = pattern == Pattern.BRICKS
    row = (2.0 * v).floor()
    brick_u = u + 0.5 * (row - 2.0 * (row * 0.5).floor())
    cell_u = torch.where(bricks, brick_u, u).floor()
    cell_v = torch.where(bricks, row, v.floor())
    gu, gv = (fu * _GLYPH_CELLS).floor(), (fv * _GLYPH_CELLS).floor()
    folded = torch.minimum(gu, _GLYPH_CELLS - 1 - gu)  # symmetric, as most letters nearly are
    face = torch.where(material.varied > 0.5, points.face, 0.0)
    seed = material.seed.to(torch.int32)
    cell = hash_unit(cell_u, cell_v, face, seed)
    bit = hash_unit(cell_u * 8 + folded, cell_v * 8 + gv, face + 8, seed)

    wave_u, wave_v = _square_wave(u, blur), _square_wave(v, blur)
    radius = ((fu - 0.5) ** 2 + (fv - 0.5) ** 2).sqrt()
    brick_fu, brick_fv = brick_u - brick_u.floor(), 2.0 * v - row
    edge = torch.minimum(torch.minimum(brick_fu, 1 - brick_fu), 0.5 * torch.minimum(brick_fv, 1 - brick_fv))
    framed = torch.maximum((gu - 3).abs(), (gv - 3).abs()) > 2.5
    slope = points.local[2] * 0.35 + points.local[0] * 0.15 * material.angle.cos()
    values = {
        Pattern.NOISE: 0.5 + 0.5 * material.contrast * noise,
        Pattern.BLOTCHES: 0.5 + noise * 4.0 * material.contrast,
        Pattern.CHECKER: 0.5 + 0.5 * wave_u * wave_v,
        Pattern.STRIPES: 0.5 + 0.5 * wave_u,
        Pattern.GRADIENT: 0.5 + slope + 0.1 * noise,
        Pattern.MOSAIC: cell,
        Pattern.DOTS: 0.5 + (0.3 - radius) / blur,
        Pattern.GLYPHS: torch.where(framed | (bit < 0.45), 1.0, 0.0),
        Pattern.BRICKS: 0.5 + (0.05 - edge) / blur,
    }
    mix = torch.zeros_like(u)
    for kind, value in values.items():
        mix = torch.where(pattern == kind, value, mix)
    scattered = (pattern == Pattern.MOSAIC) | bricks
    second = torch.where(scattered, (cell * 7.0).frac(), 0.0)
    return mix.clamp(0.0, 1.0), second, (pattern == Pattern.GLYPHS) & (cell > 0.5)


def _square_wave(value: Tensor, blur: Tensor) -> Tensor:
    """-1 or 1 in each half of a period of 1, with soft edges."""
    triangle = (value - value.floor() - 0.5).abs() - 0.25  # distance to the nearest edge, signed
    return (triangle / blur).clamp(-1.0, 1.0)


def _with_images(
    color: list[Tensor],
    points: SurfacePoints,
    material: Material,
    atlas: ImageAtlas,
    u: Tensor,
    v: Tensor,
    rate: Tensor,
) -> list[Tensor]:
    """The colours, replaced by those of images where the material has one."""
    level = (points.footprint * rate * TILE).clamp_min(1.0).log2().round()
    image = material.image + torch.where(material.varied > 0.5, points.face * 5.0, 0.0)
    image = image - (image / NUM_IMAGES).floor() * NUM_IMAGES
    texel = atlas.lookup(image, u, v, level)
    bright = 0.299 * texel[0] + 0.587 * texel[1] + 0.114 * texel[2]
    tinted = material.pattern == Pattern.TINTED_IMAGE
    plain = material.pattern == Pattern.IMAGE
    first, other, _ = material.colors
    result = []
    for base, channel, a, b in zip(color, texel, first, other, strict=True):
        base = torch.where(plain, channel, base)
        result.append(torch.where(tinted, a + (b - a) * bright, base))
    return result
